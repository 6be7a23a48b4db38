"""Long work in steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from handlers import encoders
from handlers.embeddings import Embeddings
from handlers.steps import slices
from tests.handlers.models import MINILM, loaded, payload


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_slices_follow_each_other_and_hold_no_more_than_they_may_but_what_is_more_by_itself(
    lengths: list[int], most: int
) -> None:
    parts = [lengths[part] for part in slices(lengths, most)]
    assert [each for part in parts for each in part] == lengths
    assert all(part and (sum(part) <= most or len(part) == 1) for part in parts)
    assert all(sum(one) + two[0] > most for one, two in pairwise(parts))


def test_a_long_list_gives_way_while_it_is_tokenised() -> None:
    handler = loaded(Embeddings(), MINILM)
    many = 2 + encoders._STEP_CHARACTERS // (handler._encoder.limit * encoders._CHARACTERS_PER_TOKEN)
    request, short = (handler.decode(payload(["tide " * words] * many)) for words in (50_000, 600))
    assert sum(1 for _ in handler.steps([request])) == sum(1 for _ in handler.steps([short])) + 1
    assert np.array_equal(handler.predict([request])[0], handler.predict([short])[0])
