import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from container.memory.ledger import BadBooking, Figures, Ledger, Segment, Tier

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK


def book(limit: int = 10, **models: int) -> Ledger:
    ledger = Ledger({DEVICE: limit})
    for name, nbytes in models.items():
        ledger.add(name, [Segment(name, nbytes)])
    return ledger


def up(ledger: Ledger, *names: str) -> Ledger:
    for name in names:
        ledger.reserve(name, DEVICE)
        ledger.commit(name, DEVICE)
    return ledger


def test_bytes_go_from_free_to_reserved_to_used_to_leaving_to_free():
    ledger = book(10, cats=6)
    assert ledger.figures(DEVICE) == Figures(limit=10, used=0, reserved=0, leaving=0, free=10, over=0)
    assert ledger.reserve("cats", DEVICE) == 6
    assert ledger.figures(DEVICE) == Figures(limit=10, used=0, reserved=6, leaving=0, free=4, over=0)
    ledger.commit("cats", DEVICE)
    assert ledger.figures(DEVICE) == Figures(limit=10, used=6, reserved=0, leaving=0, free=4, over=0)
    assert (ledger.tier("cats"), ledger.used_by(DEVICE)) == (DEVICE, {"cats"})
    assert ledger.demote("cats", DEVICE) == 6
    assert ledger.figures(DEVICE) == Figures(limit=10, used=0, reserved=0, leaving=6, free=4, over=0)
    assert (ledger.tier("cats"), set(ledger.leaving(DEVICE))) == (DISK, {"cats"})
    assert ledger.release("cats", DEVICE) == 6
    assert ledger.figures(DEVICE) == Figures(limit=10, used=0, reserved=0, leaving=0, free=10, over=0)
    ledger.drop("cats")
    assert "cats" not in ledger
    ledger.check()


def test_a_model_larger_than_predicted_shows_as_over_and_is_predicted_right_the_next_time():
    ledger = book(10, liar=4)
    ledger.reserve("liar", DEVICE)
    ledger.commit("liar", DEVICE, 13)
    assert ledger.figures(DEVICE) == Figures(limit=10, used=13, reserved=0, leaving=0, free=0, over=3)
    assert ledger.bytes("liar") == 13
    ledger.check()
    ledger.demote("liar", DEVICE)
    ledger.release("liar", DEVICE)
    with pytest.raises(BadBooking, match="needs 13 bytes on the device tier and 10 are free"):
        ledger.reserve("liar", DEVICE)


def test_a_segment_of_two_models_is_counted_once_and_leaves_with_the_last():
    ledger = Ledger({DEVICE: 100})
    ledger.add("a", [Segment("trunk", 50), Segment("a.head", 2)])
    ledger.add("b", [Segment("trunk", 50), Segment("b.head", 3)])
    up(ledger, "a")
    assert ledger.reserve("b", DEVICE) == 3
    ledger.commit("b", DEVICE, {"b.head": 4, "trunk": 60})
    assert ledger.figures(DEVICE).used == 56, "who came first has measured the trunk"
    assert (ledger.bytes("b"), ledger.shared_bytes("b")) == (54, 50)
    assert ledger.demote("a", DEVICE) == 2
    ledger.release("a", DEVICE)
    assert ledger.figures(DEVICE).used == 54
    assert ledger.demote("b", DEVICE) == 54
    ledger.check()


def test_what_a_newcomer_predicts_of_a_known_segment_is_not_believed():
    ledger = Ledger({DEVICE: 100})
    ledger.add("a", [Segment("trunk", 50)])
    ledger.add("b", [Segment("trunk", 70)])
    ledger.recut("b", [Segment("trunk", 90), Segment("b", 1)])
    assert (ledger.bytes("a"), ledger.bytes("b")) == (50, 51)


def test_two_models_on_their_way_reserve_a_shared_segment_once():
    ledger = Ledger({DEVICE: 100})
    for name in "ab":
        ledger.add(name, [Segment("trunk", 50)])
        ledger.reserve(name, DEVICE)
    assert ledger.figures(DEVICE).reserved == 50
    ledger.demote("a", DEVICE)  # its load failed
    assert (ledger.release("a", DEVICE), ledger.figures(DEVICE).reserved) == (0, 50)
    ledger.commit("b", DEVICE, 40)
    assert ledger.figures(DEVICE).used == 40
    ledger.check()


def test_nothing_is_reserved_when_one_segment_does_not_fit():
    ledger = Ledger({DEVICE: 10})
    ledger.add("big", [Segment("x", 6), Segment("y", 6)])
    with pytest.raises(BadBooking):
        ledger.reserve("big", DEVICE)
    assert ledger.figures(DEVICE) == Figures(limit=10, used=0, reserved=0, leaving=0, free=10, over=0)
    ledger.check()


def test_a_model_in_flight_cannot_leave():
    ledger = up(book(10, busy=6), "busy")
    ledger.hold("busy")
    ledger.hold("busy")
    assert ledger.unhold("busy") == 1
    with pytest.raises(BadBooking, match="1 requests in flight"):
        ledger.demote("busy", DEVICE)
    assert ledger.unhold("busy") == 0
    assert ledger.demote("busy", DEVICE) == 6


def test_bytes_on_two_tiers_are_two_books():
    ledger = Ledger({HOST: 20, DEVICE: 10})
    ledger.add("cats", [Segment("cats", 6)])
    assert ledger.tiers == (DEVICE, HOST)
    ledger.reserve("cats", HOST)
    ledger.commit("cats", HOST)
    assert ledger.tier("cats") is HOST
    up(ledger, "cats")
    assert ledger.tier("cats") is DEVICE
    ledger.demote("cats", DEVICE)
    assert ledger.tier("cats") is HOST
    assert ledger.figures(HOST).used == 6


def test_a_lowered_limit_is_over_until_something_leaves():
    ledger = up(book(10, a=4, b=4), "a", "b")
    ledger.set_limit(DEVICE, 5)
    assert ledger.figures(DEVICE) == Figures(limit=5, used=8, reserved=0, leaving=0, free=0, over=3)
    ledger.demote("a", DEVICE)
    ledger.release("a", DEVICE)
    assert ledger.figures(DEVICE) == Figures(limit=5, used=4, reserved=0, leaving=0, free=1, over=0)


def test_two_models_found_equal_become_one_segment():
    ledger = up(book(100, a=40, b=40, c=5), "a", "b")
    for name in "ab":
        ledger.recut(name, [Segment("shared:1", 39), Segment(name, 1)])
        ledger.check()
    assert ledger.figures(DEVICE) == Figures(limit=100, used=41, reserved=0, leaving=0, free=59, over=0)
    assert (ledger.bytes("a"), ledger.shared_bytes("a")) == (40, 39)
    ledger.recut("c", [Segment("shared:1", 39), Segment("c", 1)])  # lies on disk; it knows what it will need
    assert ledger.reserve("c", DEVICE) == 1
    assert ledger.demote("a", DEVICE) == 1
    ledger.check()


def test_a_model_on_its_way_can_be_cut_anew():
    ledger = up(book(100, a=40, b=40), "a")
    ledger.recut("a", [Segment("shared:1", 40)])
    ledger.reserve("b", DEVICE)
    ledger.recut("b", [Segment("shared:1", 40), Segment("b", 2)])
    assert ledger.figures(DEVICE) == Figures(limit=100, used=40, reserved=2, leaving=0, free=58, over=0)
    ledger.commit("b", DEVICE)
    ledger.check()


@pytest.mark.parametrize(
    "verb",
    [
        lambda book: book.add("idle", []),
        lambda book: book.add("new", [Segment("x", -1)]),
        lambda book: book.reserve("nobody", DEVICE),
        lambda book: book.reserve("up", DEVICE),
        lambda book: book.reserve("leaving", DEVICE),
        lambda book: book.reserve("huge", DEVICE),
        lambda book: book.commit("idle", DEVICE),
        lambda book: book.commit("up", DEVICE),
        lambda book: book.commit("rising", DEVICE, -1),
        lambda book: book.commit("rising", DEVICE, {"other": 1}),
        lambda book: book.demote("idle", DEVICE),
        lambda book: book.demote("leaving", DEVICE),
        lambda book: book.release("idle", DEVICE),
        lambda book: book.release("up", DEVICE),
        lambda book: book.drop("up"),
        lambda book: book.drop("rising"),
        lambda book: book.drop("leaving"),
        lambda book: book.drop("nobody"),
        lambda book: book.unhold("up"),
        lambda book: book.recut("nobody", []),
        lambda book: book.recut("up", [Segment("x", -1)]),
        lambda book: Ledger({DISK: 1}),
    ],
)
def test_a_verb_out_of_order_is_refused_and_changes_nothing(verb):
    ledger = up(book(10, idle=1, up=2, rising=3, leaving=1, huge=8), "up", "leaving")
    ledger.reserve("rising", DEVICE)
    ledger.demote("leaving", DEVICE)
    before = ledger.figures(DEVICE)
    with pytest.raises(BadBooking):
        verb(ledger)
    assert ledger.figures(DEVICE) == before
    assert len(ledger) == 5
    ledger.check()


class LedgerMachine(RuleBasedStateMachine):
    """Random verbs beside a model that keeps each segment's bytes by set arithmetic, from scratch, each time."""

    LIMITS = {DEVICE: 40, HOST: 70}  # noqa: RUF012
    SEGMENTS = ("trunk", "head", "x", "y")

    @initialize()
    def start(self):
        self.ledger = Ledger(self.LIMITS)
        self.models: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.state = {tier: {} for tier in self.LIMITS}  # name -> "reserved" | "used" | leaving bytes
        self.there = {tier: {} for tier in self.LIMITS}  # segment -> (bytes, used)

    def pick(self, data, names):
        return data.draw(st.sampled_from(sorted(names)), "model")

    @rule(name=st.sampled_from("abcdef"), data=st.data())
    def add(self, name, data):
        if name in self.models:
            return
        parts = [*data.draw(st.lists(st.sampled_from(self.SEGMENTS), unique=True, max_size=3)), f"own-{name}"]
        sizes = {part: self.sizes.get(part, data.draw(st.integers(0, 20))) for part in parts}
        self.ledger.add(name, [Segment(part, nbytes) for part, nbytes in sizes.items()])
        self.models[name] = tuple(parts)
        self.sizes |= sizes

    @precondition(lambda self: self.models)
    @rule(tier=st.sampled_from([DEVICE, HOST]), data=st.data())
    def reserve(self, tier, data):
        name = self.pick(data, self.models)
        missing = [part for part in self.models[name] if part not in self.there[tier]]
        need = sum(self.sizes[part] for part in missing)
        free = self.ledger.figures(tier).free
        if name in self.state[tier] or need > free:
            with pytest.raises(BadBooking):
                self.ledger.reserve(name, tier)
            return
        assert self.ledger.reserve(name, tier) == need
        self.state[tier][name] = "reserved"
        self.there[tier] |= {part: (self.sizes[part], False) for part in missing}

    @rule(tier=st.sampled_from([DEVICE, HOST]), data=st.data())
    def commit(self, tier, data):
        rising = [name for name, state in self.state[tier].items() if state == "reserved"]
        if not rising:
            return
        name = self.pick(data, rising)
        measured = {part: data.draw(st.integers(0, 25)) for part in self.models[name]}
        self.ledger.commit(name, tier, measured)
        for part, nbytes in measured.items():
            if not self.there[tier][part][1]:
                self.there[tier][part] = (nbytes, True)
                self.sizes[part] = nbytes
        self.state[tier][name] = "used"

    @rule(tier=st.sampled_from([DEVICE, HOST]), data=st.data())
    def demote(self, tier, data):
        there = [name for name, state in self.state[tier].items() if isinstance(state, str)]
        if not there:
            return
        name = self.pick(data, there)
        others = {part for other in there if other != name for part in self.models[other]}
        gone = [part for part in self.models[name] if part not in others]
        if self.ledger.entry(name).holds:
            with pytest.raises(BadBooking):
                self.ledger.demote(name, tier)
            return
        expected = sum(self.there[tier].pop(part)[0] for part in gone)
        assert self.ledger.demote(name, tier) == expected
        self.state[tier][name] = expected

    @rule(tier=st.sampled_from([DEVICE, HOST]), data=st.data())
    def release(self, tier, data):
        leaving = [name for name, state in self.state[tier].items() if isinstance(state, int)]
        if leaving:
            name = self.pick(data, leaving)
            assert self.ledger.release(name, tier) == self.state[tier].pop(name)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def drop(self, data):
        name = self.pick(data, self.models)
        if any(name in states for states in self.state.values()):
            with pytest.raises(BadBooking):
                self.ledger.drop(name)
            return
        self.ledger.drop(name)
        del self.models[name]
        self.sizes = {s: n for s, n in self.sizes.items() if any(s in parts for parts in self.models.values())}

    @precondition(lambda self: self.models)
    @rule(data=st.data(), more=st.booleans())
    def hold(self, data, more):
        name = self.pick(data, self.models)
        if more:
            self.ledger.hold(name)
        elif self.ledger.entry(name).holds:
            self.ledger.unhold(name)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def recut(self, data):
        name = self.pick(data, self.models)
        parts = [*data.draw(st.lists(st.sampled_from(self.SEGMENTS), unique=True, max_size=3)), f"own-{name}"]
        others = {part for other, theirs in self.models.items() if other != name for part in theirs}
        new = {part: self.sizes[part] if part in others else data.draw(st.integers(0, 20)) for part in parts}
        self.ledger.recut(name, [Segment(part, nbytes) for part, nbytes in new.items()])
        old, self.models[name] = self.models[name], tuple(parts)
        self.sizes |= new
        for tier, states in self.state.items():
            state, there = states.get(name), self.there[tier]
            if not isinstance(state, str):
                continue
            wanted = {part for user, s in states.items() if isinstance(s, str) for part in self.models[user]}
            for part in old:
                if part not in wanted:
                    del there[part]
            for part in parts:
                nbytes, used = there.get(part, (self.sizes[part], False))
                alone = not any(
                    part in self.models[user] for user, s in states.items() if isinstance(s, str) and user != name
                )
                there[part] = (self.sizes[part] if alone else nbytes, used or state == "used")
        named = {part for parts in self.models.values() for part in parts}
        self.sizes = {part: nbytes for part, nbytes in self.sizes.items() if part in named}

    @rule(tier=st.sampled_from([DEVICE, HOST]), limit=st.integers(0, 80))
    def set_limit(self, tier, limit):
        self.ledger.set_limit(tier, limit)

    @invariant()
    def the_book_is_right(self):
        self.ledger.check()
        for tier, there in self.there.items():
            sums = self.ledger.figures(tier)
            states = self.state[tier]
            assert sums.used == sum(nbytes for nbytes, used in there.values() if used)
            assert sums.reserved == sum(nbytes for nbytes, used in there.values() if not used)
            assert sums.leaving == sum(state for state in states.values() if isinstance(state, int))
            assert self.ledger.used_by(tier) == {name for name, state in states.items() if state == "used"}
        for name, parts in self.models.items():
            others = {part for other, theirs in self.models.items() if other != name for part in theirs}
            assert self.ledger.bytes(name) == sum(self.sizes[part] for part in parts)
            assert self.ledger.shared_bytes(name) == sum(self.sizes[part] for part in parts if part in others)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
