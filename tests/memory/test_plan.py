import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.errors import LargerThanTier, NoRoom
from container.memory.ledger import Ledger, Segment, Tier
from container.memory.order import ORDERS, greedy_dual, lru
from container.memory.plan import Demote, Reserve, Wait, idle_models, make_room

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK


def ledger(device: int, host: int | None = None, **models) -> Ledger:
    """Models as name=(bytes, what is special about it...); used in the order given, all on the device.

    "pinned", "held", "rising", "leaving", "disk" (not up), "host" (on host too), queued=2 as ("queued", 2).
    """
    book = Ledger({DEVICE: device} | ({HOST: host} if host is not None else {}))
    for at, (name, (nbytes, *marks)) in enumerate(models.items()):
        segments = [Segment(name, nbytes)] if isinstance(nbytes, int) else [Segment(*part) for part in nbytes.items()]
        book.add(name, segments, pinned="pinned" in marks, at=float(at))
        queued = [mark[1] for mark in marks if isinstance(mark, tuple)]
        book.queue(name, queued[0] if queued else None)
        if "disk" in marks:
            continue
        for tier in (DEVICE, HOST) if "host" in marks else (DEVICE,):
            book.reserve(name, tier)
            if "rising" not in marks:
                book.commit(name, tier)
        if "held" in marks:
            book.hold(name)
        if "leaving" in marks:
            book.demote(name, DEVICE)
    book.check()
    return book


def test_what_fits_is_just_reserved():
    assert make_room(ledger(device=10, new=(5, "disk")), DEVICE, "new") == [Reserve("new", DEVICE, 5)]


def test_sinks_the_idle_model_before_refusing():
    book = ledger(device=10, a=(6,), b=(4, "pinned"), new=(5, "disk"))
    assert make_room(book, DEVICE, "new") == [Demote("a", DEVICE, DISK), Reserve("new", DEVICE, 5)]


def test_the_least_recently_used_goes_first_and_no_more_than_needed():
    book = ledger(device=12, a=(4,), b=(4,), c=(4,), new=(6, "disk"))
    book.touch("a", 10.0)
    assert make_room(book, DEVICE, "new") == [
        Demote("b", DEVICE, DISK),
        Demote("c", DEVICE, DISK),
        Reserve("new", DEVICE, 6),
    ]


def test_a_large_model_that_must_go_spares_the_small_ones_before_it():
    book = ledger(device=8, small=(1,), tiny=(1,), large=(6,), new=(6, "disk"))
    assert make_room(book, DEVICE, "new") == [Demote("large", DEVICE, DISK), Reserve("new", DEVICE, 6)]


def test_a_model_that_is_up_or_on_its_way_needs_nothing():
    book = ledger(device=10, up=(4,), rising=(4, "rising"))
    assert make_room(book, DEVICE, "up") == make_room(book, DEVICE, "rising") == []


def test_a_number_of_bytes_is_freed_without_a_reservation():
    assert make_room(ledger(device=10, a=(6,), b=(4,)), DEVICE, 5) == [Demote("a", DEVICE, DISK)]


def test_a_model_sinks_to_the_tier_that_has_its_bytes_already():
    book = ledger(device=10, host=10, a=(6, "host"), b=(4,), new=(10, "disk"))
    assert make_room(book, DEVICE, "new") == [
        Demote("a", DEVICE, HOST),
        Demote("b", DEVICE, DISK),
        Reserve("new", DEVICE, 10),
    ]


def test_larger_than_the_tier_is_final_and_shows_the_arithmetic():
    book = ledger(device=100 << 20, new=(150 << 20, "disk"))
    with pytest.raises(LargerThanTier) as caught:
        make_room(book, DEVICE, "new")
    assert caught.value.message == (
        "model 'new' needs 150.0 MiB and the limit of the device tier is 100.0 MiB: it can never fit, whatever else is "
        "unloaded; raise BERTH_MEMORY_LIMIT to at least 157286400 bytes, or serve it in a smaller dtype"
    )


def test_the_host_tier_names_its_own_setting():
    book = ledger(device=10, host=5, new=(8, "disk"))
    with pytest.raises(LargerThanTier, match="raise BERTH_HOST_MEMORY_LIMIT to at least 8 bytes"):
        make_room(book, HOST, "new")


@pytest.mark.parametrize("busy", ["held", "rising", "leaving", ("queued", 1.0)])
def test_what_work_in_flight_holds_is_waited_for(busy):
    book = ledger(device=10, busy=(6, busy), new=(5, "disk"))
    with pytest.raises(Wait) as caught:
        make_room(book, DEVICE, "new")
    assert (caught.value.for_, caught.value.needed_bytes) == ({"busy"}, 5)


def test_bytes_that_are_leaving_are_waited_for_before_others_sink():
    book = ledger(device=10, idle=(5,), going=(5, "leaving"), new=(5, "disk"))
    with pytest.raises(Wait) as caught:
        make_room(book, DEVICE, "new")
    assert caught.value.for_ == {"going"}


def test_bytes_that_are_leaving_count_towards_what_is_short():
    book = ledger(device=10, a=(4,), b=(4,), going=(2, "leaving"), new=(6, "disk"))
    assert make_room(book, DEVICE, "new") == [Demote("a", DEVICE, DISK), Reserve("new", DEVICE, 6)]


def test_a_model_that_is_still_leaving_waits_for_itself():
    book = ledger(device=10, going=(2, "leaving"))
    with pytest.raises(Wait) as caught:
        make_room(book, DEVICE, "going")
    assert caught.value.for_ == {"going"}


def test_pinned_models_make_it_no_room():
    book = ledger(device=10, a=(3,), b=(7, "pinned"), new=(5, "disk"))
    with pytest.raises(NoRoom) as caught:
        make_room(book, DEVICE, "new")
    assert caught.value.message == (
        "model 'new' needs 5 bytes on the device tier, 0 bytes are free, and the rest is held by pinned models; "
        "unload a model or raise BERTH_MEMORY_LIMIT"
    )


def test_in_platform_mode_nothing_sinks():
    book = ledger(device=10, a=(10,), new=(5, "disk"))
    with pytest.raises(NoRoom, match="BERTH_EVICTION=platform"):
        make_room(book, DEVICE, "new", policy="platform")


def test_in_platform_mode_a_model_that_is_being_unloaded_is_waited_for():
    with pytest.raises(Wait):
        make_room(ledger(device=10, a=(10, "leaving"), new=(5, "disk")), DEVICE, "new", policy="platform")


def test_queued_work_is_left_alone_while_an_idle_model_suffices():
    book = ledger(device=10, queued=(5, ("queued", 9.0)), idle=(5,), new=(5, "disk", ("queued", 1.0)))
    assert make_room(book, DEVICE, "new") == [Demote("idle", DEVICE, DISK), Reserve("new", DEVICE, 5)]


def test_who_waits_longer_may_displace_who_waits_less_the_last_comer_first():
    book = ledger(
        device=9, old=(3, ("queued", 1.0)), mid=(3, ("queued", 7.0)), last=(3, ("queued", 8.0)), new=(6, "disk")
    )
    book.queue("new", 5.0)
    assert make_room(book, DEVICE, "new") == [
        Demote("last", DEVICE, DISK),
        Demote("mid", DEVICE, DISK),
        Reserve("new", DEVICE, 6),
    ]
    book.queue("new", 7.5)
    with pytest.raises(Wait) as caught:
        make_room(book, DEVICE, "new")
    assert caught.value.for_ == {"mid", "old"}


def test_a_shared_trunk_is_missing_only_once():
    trunk = {"trunk": 6}
    book = ledger(device=8, a=({**trunk, "ha": 1},), new=({**trunk, "hn": 1}, "disk"))
    assert make_room(book, DEVICE, "new") == [Reserve("new", DEVICE, 1)]


def test_a_model_whose_bytes_are_all_there_rises_even_while_the_tier_is_over_its_limit():
    book = ledger(device=10, a=({"trunk": 6},), new=({"trunk": 6}, "disk"), held=(4, "held"))
    book.set_limit(DEVICE, 8)
    assert make_room(book, DEVICE, "new") == [Reserve("new", DEVICE, 0)]
    assert book.reserve("new", DEVICE) == 0


def test_a_shared_trunk_goes_only_with_its_last_user():
    book = ledger(device=8, a=({"trunk": 4, "ha": 1},), b=({"trunk": 4, "hb": 1},), c=(2,), new=(6, "disk"))
    assert make_room(book, DEVICE, "new") == [
        Demote("a", DEVICE, DISK),
        Demote("b", DEVICE, DISK),
        Reserve("new", DEVICE, 6),
    ]
    book.hold("b")
    with pytest.raises(Wait) as caught:
        make_room(book, DEVICE, "new")
    assert caught.value.for_ == {"b"}


def test_the_trunk_that_the_asker_wants_is_not_freed_by_its_last_user_leaving():
    book = ledger(device=8, a=({"trunk": 5, "ha": 1},), b=(2,), new=({"trunk": 5, "hn": 2}, "disk"))
    assert make_room(book, DEVICE, "new") == [Demote("b", DEVICE, DISK), Reserve("new", DEVICE, 2)]
    book.hold("b")
    with pytest.raises(Wait):
        make_room(book, DEVICE, "new")


def test_a_trunk_that_goes_with_its_last_user_is_reserved_again():
    book = ledger(device=7, a=({"trunk": 5, "ha": 2},), new=({"trunk": 5, "hn": 2}, "disk"))
    assert make_room(book, DEVICE, "new") == [Demote("a", DEVICE, DISK), Reserve("new", DEVICE, 7)]


def test_a_tier_that_is_over_its_limit_first_pays_back():
    book = ledger(device=10, a=(4,), b=(4,), new=(2, "disk"))
    book.set_limit(DEVICE, 6)
    assert make_room(book, DEVICE, "new") == [Demote("a", DEVICE, DISK), Reserve("new", DEVICE, 2)]
    assert make_room(book, DEVICE, 0) == [Demote("a", DEVICE, DISK)]


def test_an_out_of_memory_error_sinks_whatever_is_idle():
    book = ledger(device=20, a=(1,), b=(1, "held"), c=(1, "pinned"), d=(1, ("queued", 1.0)), e=(1,), f=(1, "rising"))
    assert idle_models(book, DEVICE) == [Demote("a", DEVICE, DISK), Demote("e", DEVICE, DISK)]


def test_greedy_dual_keeps_what_is_used_often_and_dear_to_bring_back():
    book = ledger(device=12, often=(4,), once=(4,), new=(4, "disk"), cheap=(4,))
    for _ in range(5):
        book.touch("often", 1.0)
        book.touch("cheap", 3.0)
    book.touch("once", 2.0)
    book.entry("cheap").rise_cost = 0.01
    assert make_room(book, DEVICE, "new", order=lru)[0] == Demote("often", DEVICE, DISK)
    assert make_room(book, DEVICE, "new", order=greedy_dual)[0] == Demote("cheap", DEVICE, DISK)


def test_greedy_dual_ages_what_was_loved_long_ago():
    book = ledger(device=10, old=(5,))
    for _ in range(3):
        book.touch("old", 1.0)
    for at in range(2, 40):  # a stream of models that are each used once
        name = f"new{at}"
        book.add(name, [Segment(name, 5)])
        for step in make_room(book, DEVICE, name, order=greedy_dual):
            if isinstance(step, Demote):
                book.demote(step.name, DEVICE)
                book.release(step.name, DEVICE)
        book.reserve(name, DEVICE)
        book.commit(name, DEVICE)
        book.touch(name, float(at))
    assert "old" not in book.used_by(DEVICE)


MODELS = st.dictionaries(
    st.sampled_from([f"m{i}" for i in range(8)]),
    st.tuples(
        st.dictionaries(st.sampled_from(["t1", "t2", "own"]), st.integers(0, 9), min_size=1),
        st.sampled_from(["idle", "idle", "idle", "held", "pinned", "queued", "rising", "leaving", "disk"]),
        st.integers(0, 20),
        st.integers(0, 5),
    ),
)


@st.composite
def books(draw) -> Ledger:
    """A random ledger with one model "new" that is not up; sizes may turn out larger than predicted."""
    book = Ledger({DEVICE: 10_000})
    for name, (parts, kind, at, uses) in draw(MODELS).items():
        book.add(name, [Segment(p if p != "own" else f"own-{name}", n) for p, n in parts.items()], at=float(at))
        book.entry(name).uses = uses
        if kind == "disk":
            continue
        book.reserve(name, DEVICE)
        if kind != "rising":
            book.commit(name, DEVICE)
        if kind == "held":
            book.hold(name)
        elif kind == "pinned":
            book.pin(name)
        elif kind == "queued":
            book.queue(name, float(at))
        elif kind == "leaving":
            book.demote(name, DEVICE)
    book.add("new", [Segment("t1", draw(st.integers(0, 9))), Segment("own-new", draw(st.integers(0, 15)))])
    book.queue("new", draw(st.one_of(st.none(), st.floats(0, 20))))
    sums = book.figures(DEVICE)
    book.set_limit(DEVICE, max(0, sums.limit - sums.free + draw(st.integers(-5, 12))))
    return book


def carry_out(book: Ledger, steps) -> None:
    """Do what the keeper does: demote, let the bytes go, then reserve."""
    for step in steps:
        if isinstance(step, Demote):
            book.demote(step.name, DEVICE)
    for name in list(book.leaving(DEVICE)):
        book.release(name, DEVICE)
    for step in steps:
        if isinstance(step, Reserve):
            assert book.reserve(step.name, step.tier) == step.bytes
    book.check()


def settle(book: Ledger) -> None:
    """Let all work in flight end."""
    for name in list(book.leaving(DEVICE)):
        book.release(name, DEVICE)
    for name in list(book.reserved_by(DEVICE)):
        book.commit(name, DEVICE)
    for name in book.used_by(DEVICE):
        while book.entry(name).holds:
            book.unhold(name)
        book.queue(name, None)


def short_without(book: Ledger, victims: list[str]) -> int:
    """Return the bytes that are still short for "new" if just ``victims`` go and what is leaving is gone."""
    stay = (book.used_by(DEVICE) | book.reserved_by(DEVICE)) - set(victims)
    segments = {part for name in stay | {"new"} for part in book.segments(name)}
    account = book.account(DEVICE)
    taken = sum(account.placed_bytes(part) or book.segments("new").get(part, 0) for part in segments)
    return taken - book.figures(DEVICE).limit


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
class TestPolicyContract:
    """What must hold whatever the order is."""

    @settings(max_examples=400, deadline=None)
    @given(book=books())
    def test_a_plan_can_be_carried_out_and_hurts_nobody_needlessly(self, order, book):
        try:
            steps = make_room(book, DEVICE, "new", order=order)
        except Wait as wait:
            assert wait.for_
            assert wait.for_ <= book.reserved_by(DEVICE) | book.used_by(DEVICE) | set(book.leaving(DEVICE))
            settle(book)
            carry_out(book, make_room(book, DEVICE, "new", order=order))
            return
        except LargerThanTier:
            assert book.bytes("new") > book.figures(DEVICE).limit
            return
        except NoRoom:
            settle(book)
            with pytest.raises(NoRoom):
                make_room(book, DEVICE, "new", order=order)
            return
        victims = [step.name for step in steps if isinstance(step, Demote)]
        assert [type(step) for step in steps] == [Demote] * len(victims) + [Reserve]
        assert set(victims) <= book.used_by(DEVICE)
        asks = book.entry("new").queued_since
        for name in victims:
            entry = book.entry(name)
            assert not entry.pinned
            assert entry.holds == 0
            assert entry.queued_since is None or (asks is not None and entry.queued_since > asks)
            assert short_without(book, [v for v in victims if v != name]) > 0, f"{name} was sunk for nothing"
        if any(book.entry(name).queued_since is not None for name in victims):
            idle = [demote.name for demote in idle_models(book, DEVICE, order=order)]
            assert short_without(book, idle) > 0, "the idle ones would have sufficed"
        carry_out(book, steps)

    @given(book=books())
    def test_planning_changes_nothing(self, order, book):
        before = (book.figures(DEVICE), set(book.used_by(DEVICE)))
        try:
            first = make_room(book, DEVICE, "new", order=order)
        except (Wait, NoRoom, LargerThanTier):
            return
        assert (book.figures(DEVICE), set(book.used_by(DEVICE))) == before
        assert make_room(book, DEVICE, "new", order=order) == first
