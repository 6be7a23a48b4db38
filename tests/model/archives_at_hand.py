"""The archives of tests/archives and what is asked of them."""

from pathlib import Path

from container.archive.manifest import Manifest
from container.errors import Failure
from container.model import pipeline

ARCHIVES = Path(__file__).parent.parent / "archives"


def script(name, folder=ARCHIVES, **more):
    """The Manifest of tests/archives/<name>, as archive/describe gives it."""
    home = folder / name
    kind, program = ("handler", "handler.py") if (home / "code/handler.py").exists() else ("script", "inference.py")
    return Manifest(kind, str(home), str(home / "code"), **{"program": program, **more})


def results(handler, *payloads, budget=4096, max_items=32):
    """What ``answer`` gives, in the order asked; asserts that each comes once."""
    found = {}
    for part in pipeline.answer(handler, list(payloads), budget, max_items):
        for index, result in part or ():
            assert index not in found
            found[index] = result
    assert sorted(found) == list(range(len(payloads)))
    return [found[index] for index in range(len(payloads))]


def bodies(handler, *payloads):
    """The bodies of the answers; a failure fails the test."""
    answers = results(handler, *payloads)
    assert not [each for each in answers if isinstance(each, Failure)], answers
    return [each.body for each in answers]
