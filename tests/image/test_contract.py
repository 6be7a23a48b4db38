"""The tests of bad input, word for word, against the image instead of a local server."""

from __future__ import annotations

from tests.system import test_bad_input

globals().update({name: each for name, each in vars(test_bad_input).items() if name.startswith(("test_", "the_"))})
