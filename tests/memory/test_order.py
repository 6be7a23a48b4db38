import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from container.memory.ledger import HALF_LIFE, LEAST_MODELS, Ledger, Segment, Tier
from container.memory.order import ORDERS, Coldest, greedy_dual, lrfu, lru, ranked
from container.memory.plan import NoRoom, Wait, make_room

DEVICE = Tier.DEVICE


def up(book: Ledger, name: str, nbytes: int = 1) -> None:
    book.add(name, [Segment(name, nbytes)])
    book.reserve(name, DEVICE)
    book.commit(name, DEVICE)


def use(book: Ledger, name: str, times: int = 1, at: float = 0.0) -> None:
    for _ in range(times):
        book.touch(name, at)


def test_lrfu_keeps_what_is_used_often_though_another_was_used_last():
    book = Ledger({DEVICE: 10})
    up(book, "often")
    up(book, "once")
    use(book, "often", 5, at=1.0)
    use(book, "once", at=2.0)
    assert ranked(book, DEVICE, lrfu) == ["once", "often"]
    assert ranked(book, DEVICE, lru) == ["often", "once"]


def test_lrfu_forgets_by_half_in_a_half_life():
    book = Ledger({DEVICE: 10})
    for name in ("loved", "liked", "other"):
        up(book, name)
    use(book, "loved", 8)
    use(book, "other", int(HALF_LIFE * LEAST_MODELS * 3))  # three half-lives: eight uses are worth one
    use(book, "liked", 3)
    assert ranked(book, DEVICE, lrfu) == ["loved", "liked", "other"]


def test_lrfu_weighs_frequency_by_cost_and_bytes():
    book = Ledger({DEVICE: 100})
    up(book, "small", 10)
    up(book, "large", 40)
    for name in ("small", "large"):
        use(book, name, 4)
    assert ranked(book, DEVICE, lrfu) == ["large", "small"]
    book.rose("large", 10.0)
    book.rose("small", 1.0)
    assert ranked(book, DEVICE, lrfu) == ["small", "large"]


def test_one_of_many_that_share_is_worth_its_part_of_the_bytes():
    book = Ledger({DEVICE: 1000})
    for number in range(10):
        name = f"copy{number}"
        book.add(name, [Segment("shared", 100), Segment(name, 0)])
        book.reserve(name, DEVICE)
        book.commit(name, DEVICE)
    up(book, "alone", 100)
    for name in [f"copy{number}" for number in range(10)]:
        use(book, name)
    use(book, "alone", 3)
    assert ranked(book, DEVICE, lrfu)[0] == "alone", "ten copies with a use each are worth more than it"


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_walk_that_was_broken_off_loses_nobody(order):
    book = Ledger({DEVICE: 10})
    coldest = Coldest(book, DEVICE, order)
    for name in "abcd":
        up(book, name)
    assert list(itertools.islice(coldest, 2)) == ranked(book, DEVICE, order)[:2]
    assert list(coldest) == ranked(book, DEVICE, order)
    assert list(coldest) == ranked(book, DEVICE, order)


class Life(RuleBasedStateMachine):
    """Models come, are used, sink and change; the heap must always tell what sorting everything tells."""

    order = staticmethod(lru)

    @initialize()
    def begin(self):
        self.book = Ledger({DEVICE: 10_000})
        self.coldest = Coldest(self.book, DEVICE, self.order)
        self.clock = itertools.count(1)
        self.names = itertools.count()

    def some(self, data):
        return data.draw(st.sampled_from(sorted(self.book.used_by(DEVICE))))

    @rule(nbytes=st.integers(0, 9), shared=st.booleans())
    def come(self, nbytes, shared):
        name = f"m{next(self.names)}"
        self.book.add(name, [*([Segment("shared", 5)] if shared else []), Segment(name, nbytes)])
        self.book.reserve(name, DEVICE)
        self.book.commit(name, DEVICE)

    @precondition(lambda self: self.book.used_by(DEVICE))
    @rule(data=st.data(), times=st.integers(1, 5))
    def use(self, data, times):
        use(self.book, self.some(data), times, float(next(self.clock)))

    @precondition(lambda self: self.book.used_by(DEVICE))
    @rule(data=st.data(), again=st.booleans())
    def sink(self, data, again):
        name = self.some(data)
        self.book.demote(name, DEVICE)
        self.book.release(name, DEVICE)
        if again:
            self.book.reserve(name, DEVICE)
            self.book.commit(name, DEVICE)

    @precondition(lambda self: self.book.used_by(DEVICE))
    @rule(data=st.data(), nbytes=st.integers(0, 9))
    def become_another(self, data, nbytes):
        name = self.some(data)
        self.book.recut(name, [Segment(name, nbytes)])

    @precondition(lambda self: self.book.used_by(DEVICE))
    @rule(data=st.data(), looks=st.integers(0, 3))
    def look(self, data, looks):
        list(itertools.islice(self.coldest, looks))

    @invariant()
    def everybody_is_there_once(self):
        if hasattr(self, "book"):
            assert sorted(self.coldest) == sorted(self.book.used_by(DEVICE))

    @invariant()
    def the_order_is_that_of_sorting(self):
        """By the order; shares of bytes that fall when others leave are seen when they come up."""
        if hasattr(self, "book") and self.order is lru:
            assert list(self.coldest) == ranked(self.book, DEVICE, self.order)


class LrfuLife(Life):
    order = staticmethod(lrfu)


class GreedyLife(Life):
    order = staticmethod(greedy_dual)


TestLife = Life.TestCase
TestLrfuLife = LrfuLife.TestCase
TestGreedyLife = GreedyLife.TestCase
for case in (TestLife, TestLrfuLife, TestGreedyLife):
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_plans_by_the_heap_are_those_by_sorting(data):
    """Without sharing, where keys only grow: the same victims in the same order, or the same refusal."""
    order = data.draw(st.sampled_from([lru, lrfu, greedy_dual]))
    book = Ledger({DEVICE: data.draw(st.integers(10, 40))})
    coldest = Coldest(book, DEVICE, order)
    for step in range(data.draw(st.integers(1, 30))):
        name = f"m{data.draw(st.integers(0, 8))}"
        if name not in book:
            book.add(name, [Segment(name, data.draw(st.integers(1, 9)))], pinned=data.draw(st.integers(0, 9)) == 0)
        results = []
        for way in (coldest, order):
            try:
                results.append(make_room(book, DEVICE, name, order=way))
            except (NoRoom, Wait) as refusal:
                results.append(type(refusal))
        assert results[0] == results[1]
        if isinstance(results[0], list):
            for planned in results[0][:-1]:
                book.demote(planned.name, DEVICE)
                book.release(planned.name, DEVICE)
            if results[0]:
                book.reserve(name, DEVICE)
                book.commit(name, DEVICE)
        book.touch(name, float(step))
