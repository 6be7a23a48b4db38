"""What a front process loads."""

from __future__ import annotations

import subprocess
import sys

from .conftest import ROOT

HEAVY = ("torch", "transformers", "numpy", "tokenizers", "flask", "prometheus_client", "PIL")


def loaded_by(code: str, *forbidden: str) -> set[str]:
    """Run ``code`` in a Python where importing one of ``forbidden`` fails; return what it loaded of HEAVY."""
    block = "".join(f"sys.modules[{name!r}] = None; " for name in forbidden)
    shown = f"print(*(name for name in {HEAVY} if sys.modules.get(name) is not None))"
    script = f"import sys; {block}\n{code}\n{shown}"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_front_starts_without_torch_or_anything_else_that_is_heavy() -> None:
    code = "import container.front.gunicorn_conf as conf; conf.application()"
    assert loaded_by(code, "torch", "transformers", "numpy", "tokenizers") == set()


def test_the_pages_need_flask_and_no_torch() -> None:
    code = "import container.front.pages"
    assert loaded_by(code, "torch", "transformers", "numpy") == {"flask", "prometheus_client"}
