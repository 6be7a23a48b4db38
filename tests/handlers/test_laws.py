"""Whatever a caller sends, a handler answers it or says what is wrong with it; nothing else may come out."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container.errors import ServingError
from handlers.embeddings import Embeddings
from handlers.image_classification import ImageClassification
from handlers.text_classification import TextClassification
from handlers.text_generation import TextGeneration
from tests.handlers.models import bert, gpt2, loaded, payload, resnet
from tests.handlers.test_image_classification import CONVNEXT, encoded, picture

USUAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAMES = st.sampled_from(
    (
        *("inputs", "parameters", "text", "text_pair", "pooling", "normalize", "truncate", "top_k", "top_p", "odd"),
        *("function_to_apply", "temperature", "do_sample", "seed", "max_new_tokens", "stop", "repetition_penalty"),
    )
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
BODIES = VALUES | st.builds(
    lambda inputs, given: {"inputs": inputs, "parameters": given},
    st.text(max_size=20) | VALUES,
    st.dictionaries(NAMES, LEAVES, max_size=3) | VALUES,
)


@pytest.fixture(scope="module")
def handlers(tmp_path_factory):
    made = {
        Embeddings: bert,
        TextClassification: lambda path: bert(path, "BertForSequenceClassification"),
        TextGeneration: gpt2,
        ImageClassification: lambda path: resnet(path, CONVNEXT),
    }
    return [loaded(kind(), make(tmp_path_factory.mktemp(kind.__name__))) for kind, make in made.items()]


def check_answer(handler, request):
    """Return whether ``request`` was answered; a refusal must be one of ours and say something."""
    try:
        value = handler.decode(request)
        assert handler.size(value) >= 1
        (output,) = handler.predict([value])
        if isinstance(output, Exception):
            raise output
        json.loads(handler.encode(output, "application/json").body)
    except ServingError as refused:
        assert refused.code in ("request.input", "request.malformed", "request.media_type")
        assert refused.message
        return False
    return True


@USUAL
@given(value=BODIES)
def test_any_json_is_answered_or_refused(handlers, value):
    for handler in handlers:
        check_answer(handler, payload(value))


@USUAL
@given(
    text=st.text(max_size=200),
    kind=st.sampled_from(["text/plain", "text/csv", "application/json", "image/png", "application/x-npy", "a/b"]),
)
def test_any_text_under_any_content_type_is_answered_or_refused(handlers, text, kind):
    for handler in handlers:
        check_answer(handler, payload(text.encode(errors="replace"), kind))


SEEDS = [encoded(picture(40, 30), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF and ends that are missing
@USUAL
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(max_size=4)), min_size=1, max_size=6),
    end=st.floats(0.01, 1),
)
def test_any_damaged_image_is_answered_or_refused(handlers, seed, changes, end):
    raw = bytearray(seed)
    for place, new in changes:
        at = int(place * len(raw))
        raw[at : at + len(new)] = new
    check_answer(handlers[-1], payload(bytes(raw[: int(end * len(raw)) or 1]), "image/jpeg"))


@USUAL
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    dtype=st.sampled_from(["uint8", "int64", "float32", "float16", "bool", "complex64"]),
)
def test_any_array_is_answered_or_refused(handlers, shape, dtype):
    values = np.zeros(shape, dtype=dtype).tolist()
    if dtype != "complex64":
        check_answer(handlers[-1], payload({"inputs": values}))


def test_the_examples_are_answered(handlers):
    assert all(check_answer(handler, type(handler).example) for handler in handlers)
