"""What is booked when a model has come up and takes more than was predicted."""

from __future__ import annotations

import pytest

from container.engine.models import Model, Registry
from container.engine.residence import Residence
from container.engine.runners import Up
from container.errors import LargerThanTier, NoRoom
from container.memory.keeper import Keeper
from container.memory.ledger import Ledger, Segment, Tier


@pytest.mark.parametrize(
    ("nbytes", "refusal", "told"),
    [
        (70, NoRoom, "others on this machine leave no more than 50 bytes to all models"),
        (101, LargerThanTier, "it can never fit"),
    ],
)
def test_what_turns_out_larger_than_the_machine_has_now_is_refused_for_good_only_over_the_limit(
    nbytes: int, refusal: type[Exception], told: str
) -> None:
    async def nobody(name: str, tier: Tier) -> None:
        raise AssertionError(name)

    ledger = Ledger({Tier.DEVICE: 100})
    ledger.add("m", [Segment("m", 10)])
    ledger.reserve("m", Tier.DEVICE)
    ledger.set_cap(Tier.DEVICE, 50)
    residence = Residence(Registry(), Keeper(ledger, nobody, "sink"), lanes=None)  # type: ignore[arg-type] - nothing comes up
    with pytest.raises(refusal, match=told):
        residence._book(Model("m", "/m"), Up([Segment("m", nbytes)], {}))
