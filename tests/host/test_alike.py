"""Equal storages of several models become one, privately mapped; whatever somebody else knows is left alone."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.nn import functional

from container.host import storages
from container.host.alike import Book, Cut
from container.memory.likeness import same_bytes

WIDTH = 200
LAYER = WIDTH * WIDTH * 4


def net(seed: int = 0, layers: int = 2, head: int = 0) -> torch.nn.Sequential:
    """Layers by ``seed``, whose biases are too small to be shared, and a head by ``head``."""
    torch.manual_seed(seed)
    body = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers)]
    torch.manual_seed(1000 + head)
    return torch.nn.Sequential(*body, torch.nn.Linear(WIDTH, WIDTH))


def measured(model: torch.nn.Module) -> int:
    return sum({each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}.values())


class Shelf:
    """A book and the models in it, all at rest but those in ``busy``."""

    def __init__(self) -> None:
        self.book = Book()
        self.models: dict[str, Any] = {}
        self.busy: set[str] = set()

    def put(self, name: str, model: Any, salt: str = "", nbytes: int | None = None) -> dict[str, Cut] | None:
        self.models[name] = model
        holds = lambda: self.models.get(name)  # noqa: E731
        self.book.enrol(name, holds, measured(model) if nbytes is None else nbytes, salt)
        return self.again(name)

    def again(self, name: str) -> dict[str, Cut] | None:
        finding = self.book.compare(name, self.models.keys() - self.busy)
        changed = self.book.carry_out(finding)
        self.book.tidy(finding)
        return changed


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> None:
    """Hundreds of collections look through what tests before these left; from here on they do not."""
    gc.collect()
    gc.freeze()


def mappings() -> int:
    """Mappings of shared parts; one may be several lines where pages differ, so their files are counted."""
    gc.collect()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:berth-parts" in line]
    return len({line.split()[4] for line in lines})


def private_kib() -> int:
    """What of shared parts this process has written to, and has for itself."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = "memfd:berth-parts" in line
        elif inside and line.startswith("Anonymous:"):
            found += int(line.split()[1])
    return found


def test_copies_become_one_and_each_is_still_its_owners_to_write() -> None:
    shelf, before = Shelf(), mappings()
    kept = [net() for _ in range(4)]
    expected = [tensor.detach().clone() for tensor in kept[0].parameters()]
    assert shelf.put("0", kept[0]) == {}
    own = measured(kept[0]) - 3 * LAYER
    for number in (1, 2, 3):
        changed = shelf.put(str(number), kept[number])
        assert changed is not None
        assert changed.keys() == ({"0", "1"} if number == 1 else {str(number)})
        assert {(cut.own_bytes, *(part.bytes for part in cut.parts)) for cut in changed.values()} == {(own, 3 * LAYER)}
    assert mappings() == before + 1
    for model in kept:
        assert all(same_bytes(one.data, other) for one, other in zip(model.parameters(), expected, strict=True))
    written = private_kib()
    with torch.no_grad():
        kept[2][0].weight[0, 0] += 1
    assert private_kib() == written + 4
    assert not torch.equal(kept[2][0].weight, expected[0])
    assert all(torch.equal(kept[number][0].weight, expected[0]) for number in (0, 1, 3))
    for name in list(shelf.models):
        shelf.book.forget(name)
        shelf.models.clear()
    kept.clear()
    del model
    assert mappings() == before


def test_parameters_stay_the_objects_that_they_were_and_tied_ones_stay_tied() -> None:
    shelf = Shelf()
    models = []
    for name in "ab":
        model = net()
        model[1].weight = model[0].weight
        model[2].weight = torch.nn.Parameter(model[0].weight.data)  # another object on the same memory
        models.append(model)
        ids = [id(parameter) for parameter in model.parameters()]
        shelf.put(name, model)
        assert [id(parameter) for parameter in model.parameters()] == ids
    for model in models:
        assert model[1].weight is model[0].weight
        assert model[2].weight.data_ptr() == model[0].weight.data_ptr()
        assert model[0].weight.untyped_storage().nbytes() == LAYER
    assert shelf.book._cut("a").own_bytes == measured(models[0]) - LAYER
    with torch.no_grad():
        models[0][0].weight[0, 0] = 7
    assert models[0][2].weight[0, 0] == 7
    assert models[1][2].weight[0, 0] != 7


def test_what_is_trained_after_it_was_shared_is_trained_alone() -> None:
    shelf, models = Shelf(), [net(), net()]
    for name, model in zip("ab", models, strict=True):
        shelf.put(name, model)
    expected = net()
    x = torch.ones(1, WIDTH)
    for model in (models[0], expected):
        model(x).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad
    assert torch.equal(models[0](x), expected(x))
    assert torch.equal(models[1](x), net()(x))


def test_fine_tunes_share_their_trunk_and_a_copy_of_one_shares_its_head_too() -> None:
    shelf = Shelf()
    small = measured(net()) - 3 * LAYER
    for number in range(3):
        shelf.put(str(number), net(head=number))
    changed = shelf.put("copy", net(head=1))
    assert changed is not None
    assert {name: [part.bytes for part in cut.parts] for name, cut in changed.items()} == {
        "1": [2 * LAYER, LAYER],
        "copy": [2 * LAYER, LAYER],
    }
    assert {cut.own_bytes for cut in changed.values()} == {small}
    assert shelf.book._cut("0").own_bytes == small + LAYER


def test_one_that_has_less_of_a_part_holds_the_whole_of_it() -> None:
    shelf = Shelf()
    for name in "ab":
        shelf.put(name, net())
    changed = shelf.put("tune", net(head=5))
    assert changed is not None
    assert [part.bytes for part in changed["tune"].parts] == [3 * LAYER]
    assert changed["tune"].own_bytes == measured(net()) - 2 * LAYER


def test_models_of_different_salt_share_nothing() -> None:
    shelf = Shelf()
    assert [shelf.put(name, net(), salt=name) for name in "ab"] == [{}, {}]
    assert shelf.put("c", net(), salt="a") is not None
    assert [len(shelf.book._cut(name).parts) for name in "abc"] == [1, 0, 1]


def known_by(kind: str, model: Any) -> Any:
    """Have somebody know the first layer's weight, and return how."""
    weight = model[0].weight
    if kind == "array on it":
        return weight.detach().numpy()
    if kind == "view":
        return weight[0]
    if kind == "storage":
        return weight.untyped_storage()
    if kind == "list":
        return [weight]
    if kind == "array under it":
        array = np.array(weight.detach().numpy())
        model[0].weight = torch.nn.Parameter(torch.from_numpy(array))
        model.array = array
    return None


@pytest.mark.parametrize("kind", ["array on it", "view", "storage", "list", "array under it"])
def test_what_somebody_else_knows_stays_the_models_own(kind: str) -> None:
    shelf, models = Shelf(), [net(), net(), net()]
    known = known_by(kind, models[0])
    address = models[0][0].weight.data_ptr()
    for name, model in zip("abc", models, strict=True):
        shelf.put(name, model)
    assert models[0][0].weight.data_ptr() == address
    cuts = [shelf.book._cut(name) for name in "abc"]
    small = measured(net()) - 3 * LAYER
    assert [cut.own_bytes for cut in cuts] == [small + LAYER, small, small]
    assert [sum(part.bytes for part in cut.parts) for cut in cuts] == [2 * LAYER, 3 * LAYER, 3 * LAYER]
    del known


def test_torchscript_and_what_was_made_in_inference_mode_stay_as_they_are() -> None:
    shelf = Shelf()
    assert [shelf.put(name, torch.jit.script(net())) for name in "ab"] == [{}, {}]
    with torch.inference_mode():
        models = [net(), net()]
    assert [shelf.put(name, model) for name, model in zip("cd", models, strict=True)] == [{}, {}]


def test_opaque_models_are_left_alone() -> None:
    shelf = Shelf()
    for name in "ab":
        model = net()
        model.register_buffer("eye", torch.eye(4).to_sparse())
        assert shelf.put(name, model, nbytes=1) == {}


def test_a_model_at_work_is_not_touched_and_is_found_later() -> None:
    shelf = Shelf()
    shelf.put("a", net())
    shelf.busy = {"a"}
    assert shelf.put("b", net()) == {}
    assert shelf.book.compare("b", {"b"}).waits
    shelf.busy = {"b"}
    assert shelf.again("b") == {}
    assert shelf.book.compare("b", {"a"}).waits
    shelf.busy = set()
    changed = shelf.again("b")
    assert changed is not None
    assert changed.keys() == {"a", "b"}
    assert not shelf.book.compare("b", {"a", "b"}).waits


def test_what_was_written_between_comparing_and_moving_is_not_moved() -> None:
    shelf = Shelf()
    models = [net(), net()]
    shelf.put("a", models[0])
    shelf.models["b"] = models[1]
    shelf.book.enrol("b", lambda: models[1], measured(models[1]))
    finding = shelf.book.compare("b", {"a", "b"})
    with torch.no_grad():
        models[0][0].weight[0, 0] = 5
    assert shelf.book.carry_out(finding) is None
    shelf.book.tidy(finding)
    assert models[0][0].weight[0, 0] == 5
    assert shelf.book._cut("a").own_bytes == measured(models[0])
    changed = shelf.again("b")
    assert changed is not None
    assert [part.bytes for part in changed["b"].parts] == [2 * LAYER]


def test_weights_that_were_shared_by_somebody_and_written_since_are_compared_as_they_are_now() -> None:
    shelf, models = Shelf(), [net(), net()]
    with torch.no_grad():
        for model in models:
            model[0].weight.add_(1)
    for name, model in zip("ab", models, strict=True):
        shelf.put(name, model)
    with torch.no_grad():
        models[0][0].weight.zero_()
    third = net()
    with torch.no_grad():
        third[0].weight.add_(1)
    changed = shelf.put("c", third)
    assert changed is not None
    assert [part.bytes for part in changed["c"].parts] == [3 * LAYER]
    assert torch.equal(third[0].weight, models[1][0].weight)


def test_the_parameters_of_an_lstm_are_shared_though_it_lists_them_twice() -> None:
    shelf, models = Shelf(), []
    for name in "ab":
        torch.manual_seed(0)
        models.append(torch.nn.LSTM(64, 64))
        shelf.put(name, models[-1])
    assert len(shelf.book._cut("a").parts) == 1
    x = torch.randn(3, 1, 64)
    assert torch.equal(models[0](x)[0], models[1](x)[0])
    assert functional.mse_loss(models[0].weight_ih_l0, models[1].weight_ih_l0) == 0


def test_a_model_that_two_names_have_is_not_shared_with_itself() -> None:
    shelf, model = Shelf(), net()
    assert shelf.put("a", model) == {}
    assert shelf.put("b", model) == {}


def test_no_memory_for_a_part_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(contents: object, name: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("container.host.alike.sealed.file", refuse)
    shelf = Shelf()
    assert [shelf.put(name, net()) for name in "ab"] == [{}, {}]


def test_no_room_for_a_third_copy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    shelf.put("a", net())
    with monkeypatch.context() as patch:
        patch.setattr("container.memory.probe.free_ram_bytes", lambda: LAYER)
        assert shelf.put("b", net()) == {}
        assert shelf.book.compare("b", {"a", "b"}).waits
    changed = shelf.again("b")
    assert changed is not None
    assert changed.keys() == {"a", "b"}


def test_modules_that_change_under_the_search_are_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def changes(value: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    shelf = Shelf()
    shelf.put("a", net())
    with monkeypatch.context() as patch:
        patch.setattr("container.host.storages.find", changes)
        assert shelf.put("b", net()) == {}
        assert shelf.book.compare("b", {"a", "b"}).waits
    assert shelf.again("b") != {}


class Shelves(RuleBasedStateMachine):
    """Models come, are written to, are at work, go: each answers from what is its own, and the sums are right."""

    def __init__(self) -> None:
        super().__init__()
        self.before = mappings()
        self.shelf = Shelf()
        self.expected: dict[str, list[torch.Tensor]] = {}
        self.held: list[Any] = []
        self.made = 0

    @rule(head=st.integers(0, 1), salt=st.sampled_from(["", "", "", "x"]))
    def load(self, head: int, salt: str) -> None:
        self.made += 1
        model = net(head=head)
        self.expected[str(self.made)] = [parameter.detach().clone() for parameter in model.parameters()]
        self.shelf.put(str(self.made), model, salt)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), layer=st.integers(0, 2), value=st.integers(0, 1))
    def write(self, data: st.DataObject, layer: int, value: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        with torch.no_grad():
            self.shelf.models[name][layer].weight[0].fill_(value)
        self.expected[name][2 * layer][0].fill_(value)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def know(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        self.held.append(self.shelf.models[name][0].weight.detach().numpy())

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def work_or_rest(self, data: st.DataObject) -> None:
        self.shelf.busy ^= {data.draw(st.sampled_from(sorted(self.expected)))}

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def look_again(self, data: st.DataObject) -> None:
        self.shelf.again(data.draw(st.sampled_from(sorted(self.expected))))

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        self.shelf.book.forget(name)
        del self.shelf.models[name], self.expected[name]
        self.shelf.busy.discard(name)

    @invariant()
    def everybody_has_what_is_his(self) -> None:
        for name, expected in self.expected.items():
            parameters = list(self.shelf.models[name].parameters())
            assert all(same_bytes(one.data, other) for one, other in zip(parameters, expected, strict=True))
        addresses = [each.data_ptr() for model in self.shelf.models.values() for each in model.parameters()]
        assert len(set(addresses)) == len(addresses)

    @invariant()
    def what_is_booked_is_there(self) -> None:
        cuts = [self.shelf.book._cut(name) for name in self.expected]
        parts = {part for cut in cuts for part in cut.parts}
        small = measured(net()) - 3 * LAYER
        assert all(small <= cut.own_bytes <= small + 3 * LAYER for cut in cuts)
        assert all(cut.own_bytes == small + 3 * LAYER for cut in cuts if not cut.parts)
        del cuts
        if not self.held:
            assert mappings() == self.before + len(parts)


TestShelves = Shelves.TestCase
TestShelves.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_small_storages_and_modules_without_any_are_nothing_to_share() -> None:
    assert storages.find(torch.nn.Linear(4, 4)) == []
    assert storages.find([torch.nn.ReLU(), 3]) == []
