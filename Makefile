# Check by default, repair on request. Every verb sets up what it needs; `make help` lists them.
PYTHON ?= python3
TORCH_INDEX_URL ?=
MINUTES ?= 10
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
# torch first and by pip alone, so that nothing else pulls another build of it.
TORCH := $(shell cat requirements/torch.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint fix types chaos soak bench image test-image lock clean

help: ## list the verbs
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything (TORCH_INDEX_URL= for machines that need another index for torch)

$(STAMP): pyproject.toml .ci/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" sh .ci/setup.sh
	@touch $@

demo: setup ## four kinds of models behind one endpoint, and what their memory does (KEEP=1 leaves it running)
	@$(BIN)/python -m local_test.demo

test: setup ## the tests
	@$(BIN)/python -m pytest

lint: setup ## style, layers, generated parts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python .ci/readme.py --check

fix: setup ## repair what lint can repair
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python .ci/readme.py --write

types: setup ## mypy, strict
	@$(BIN)/mypy

chaos: setup ## break the real server: fuzzed parsers, the fault table (under 3 minutes)
	@$(BIN)/python -m tests.chaos

soak: setup ## mixed traffic and faults, every answer checked, creep judged (MINUTES=10 KEEP=--keep)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(KEEP)

bench: setup ## figures beside the neighbours' (bench/README.md)
	@$(BIN)/python -m bench $(ROWS)

image: ## build the Docker image berth:dev (BASE_IMAGE= TORCH_INDEX_URL= EXTRAS=, docs/image.md)
	@sh .ci/image.sh

test-image: setup image ## what is pushed is what is tested: the image, run by a real engine
	@sh .ci/docker.sh tools
	@$(BIN)/python -m local_test.archives .demo/archives
	@$(BIN)/python -m pytest -n 0 -m image tests/image/test_first_answer.py
	@$(BIN)/python -m pytest -m image --dist loadfile --no-loadscope-reorder --ignore tests/image/test_first_answer.py tests/image

lock: ## resolve requirements/*.lock again from pyproject.toml (UPGRADE=--upgrade)
	@$(BIN)/python .ci/lock.py $(UPGRADE)

clean: ## remove what make made, the environment included
	rm -rf $(VENV) .demo .bench build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
