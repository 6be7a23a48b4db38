"""The platform's belief of what a container holds, checked against a plain model of it."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from local_test.residents import Residents

names = st.sampled_from("abcd")


class Machine(RuleBasedStateMachine):
    """Every step beside a list of names by age and a list of holders."""

    def __init__(self):
        super().__init__()
        self.it, self.order, self.holders, self.waiters = Residents(), [], [], []
        self.leaving, self.loading, self.freed = set(), set(), 0

    def touch(self, name):
        if name in self.order:
            self.order.remove(name)
            self.order.append(name)

    @rule(name=names)
    def hold(self, name):
        self.it.hold(name)
        self.holders.append(name)
        self.touch(name)

    @precondition(lambda self: len(self.holders) > len(self.waiters))
    @rule(data=st.data())
    def release(self, data):
        free = list(self.holders)
        for name in self.waiters:
            free.remove(name)
        name = data.draw(st.sampled_from(free))
        self.it.release(name)
        self.holders.remove(name)
        self.touch(name)

    @precondition(lambda self: len(self.holders) > len(self.waiters))
    @rule(data=st.data())
    def wait(self, data):
        free = list(self.holders)
        for name in self.waiters:
            free.remove(name)
        name = data.draw(st.sampled_from(free))
        self.it.wait(name)
        self.waiters.append(name)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def wake(self, data):
        name = data.draw(st.sampled_from(self.waiters))
        self.it.wake(name)
        self.waiters.remove(name)

    @rule(name=names)
    def add(self, name):
        self.it.add(name)
        self.order = [n for n in self.order if n != name] + [name]

    @rule(name=names)
    def forget(self, name):
        self.it.forget(name)
        self.order = [n for n in self.order if n != name]

    @rule(besides=names)
    def make_room(self, besides):
        victim = self.it.victim(besides)
        idle = [n for n in self.order if n != besides and n not in self.holders]
        assert victim == (idle[0] if idle else None)
        if victim:
            self.it.leave(victim)
            self.order.remove(victim)
            self.leaving.add(victim)

    @rule(name=names)
    def left(self, name):
        self.it.left(name)
        self.leaving.discard(name)
        self.freed += 1

    @rule(name=names)
    def begin_load(self, name):
        self.it.begin_load(name)
        self.loading.add(name)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), loaded=st.booleans())
    def end_load(self, data, loaded):
        name = data.draw(st.sampled_from(sorted(self.loading)))
        self.it.end_load(name, loaded)
        self.loading.discard(name)
        if loaded:
            self.order = [n for n in self.order if n != name] + [name]
        else:
            self.freed += 1

    @invariant()
    def agrees(self):
        assert self.it.names() == self.order
        assert self.it.in_flight() == len(self.holders)
        assert {n for n in "abcd" if self.it.is_leaving(n)} == self.leaving
        assert {n for n in "abcd" if self.it.is_held(n)} == set(self.holders)
        assert self.it.freed == self.freed

    @invariant()
    def nobody_waits_for_those_who_all_wait(self):
        if sorted(self.holders) == sorted(self.waiters) and not self.leaving and self.loading <= set(self.waiters):
            assert not any(self.it.worth_waiting(name) for name in "abcd")


TestResidents = Machine.TestCase


def test_two_holders_that_wait_for_room_do_not_wait_for_each_other():
    it = Residents()
    for name in "ab":
        it.add(name)
        it.hold(name)
    it.wait("a")
    assert it.worth_waiting("a")
    it.wait("b")
    assert not it.worth_waiting("a") and not it.worth_waiting("b")


def test_room_that_another_load_or_unload_may_give_back_is_waited_for():
    it = Residents()
    assert not it.worth_waiting("a")
    it.begin_load("a")
    assert not it.worth_waiting("a")
    assert it.worth_waiting("b")
    it.hold("a")
    it.wait("a")
    assert not it.worth_waiting("b")
    it.leave("c")
    assert it.worth_waiting("b")


def test_the_containers_list_wins_except_over_what_is_under_way():
    it = Residents()
    for name in ("lost", "held", "kept"):
        it.add(name)
    it.hold("held")
    before = it.names()
    it.add("loaded while the list travelled")
    it.leave("kept")
    new, gone = it.reconcile(["kept", "left over"], before)
    assert (new, gone) == (["left over"], ["lost"])
    assert it.names() == ["left over", "held", "loaded while the list travelled"]


@given(st.lists(names, unique=True), st.lists(names, unique=True))
def test_an_idle_platform_believes_exactly_what_the_container_lists(believed, listed):
    it = Residents()
    for name in believed:
        it.add(name)
    it.reconcile(listed, it.names())
    assert sorted(it.names()) == sorted(listed)
