import weakref

import pytest
import torch
from torch import nn

from container.model import adopt, moving
from container.model.moving import Adopted


def adopted(value):
    """Return the modules inside ``value``, lifted to a device that is rehearsed."""
    made = moving.adopt_all(value, "cpu", rehearsed=True)
    assert made is not None
    return made


def storages(module):
    return {name: tensor.data_ptr() for name, tensor in module.state_dict(keep_vars=True).items()}


class Counter(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def test_everything_gets_a_copy_and_comes_home_to_the_very_memory_it_left():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    home, x = storages(module), torch.ones(2, 4)
    expected, weight = module(x), module[0].weight
    made = adopted({"model": module})
    assert not set(home.values()) & set(storages(module).values())
    assert module[0].weight is weight, "an author may hold it"
    for _ in range(3):
        assert torch.equal(module(x), expected)
        made.lower()
        assert storages(module) == home
        assert torch.equal(module(x), expected)
        made.lift()
    assert len(module._forward_hooks) == 1
    assert made.bytes == adopt.measure(module)


def test_the_hooks_ferry_only_while_the_weights_are_on_the_device():
    module = nn.Linear(4, 4)
    made = adopted([module])
    assert module.__dict__["_berth_ferry"].device == torch.device("cpu")
    made.lower()
    assert module.__dict__["_berth_ferry"].device is None


def test_buffers_are_written_back_and_what_was_written_to_parameters_in_place_as_well():
    module = Counter()
    buffer, memory = module.calls, module.net.weight.data
    made = adopted(module)
    module(torch.ones(1, 4))
    with torch.no_grad():
        module.net.weight.fill_(3)
    assert (buffer.item(), memory.max() < 3) == (0, True)
    made.lower()
    assert module.calls is buffer
    assert (buffer.item(), memory.min()) == (1, 3)
    made.lift()
    assert (module.calls.item(), module.net.weight.min()) == (1, 3)
    made.lower()
    assert module.net.weight.data_ptr() == memory.data_ptr()


def test_a_batch_norm_that_learns_keeps_what_it_has_seen_though_torch_counts_no_writing():
    module = nn.BatchNorm1d(4).train()
    made = adopted(module)
    module(torch.randn(8, 4) + 5)
    seen = module.running_mean.clone()
    assert seen.min() > 0
    for _ in range(2):
        made.lower()
        assert torch.equal(module.running_mean, seen)
        made.lift()
        assert torch.equal(module.running_mean, seen)
    assert module.num_batches_tracked == 1


def test_what_an_author_put_there_meanwhile_is_moved():
    module = Counter()
    made = adopted(module)
    module.calls = torch.full((3,), 7.0)
    module.net.weight = nn.Parameter(torch.eye(4))
    module.net.bias.data = torch.arange(4.0)
    for move in (made.lower, made.lift, made.lower):
        move()
        assert module.calls.tolist() == [7, 7, 7]
        assert torch.equal(module.net.weight, torch.eye(4))
        assert module.net.bias.tolist() == [0, 1, 2, 3]


def test_tied_weights_and_shared_modules_and_buffers_stay_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.again = nn.ModuleList([self.a])
            self.register_buffer("table", torch.zeros(2))
            self.a.register_buffer("table", self.table)

    module = Tied()
    made = adopted({"tied": module, "part": module.a})
    for move in (lambda: None, made.lower, made.lift):
        move()
        assert module.a.weight is module.b.weight is module.again[0].weight
        assert module.a.table is module.table
        with torch.no_grad():
            module.table += 1
        assert adopt.measure(module) == 64 + 8
    made.lower()
    assert module.table.tolist() == [3, 3]


@pytest.mark.parametrize("saved", [False, True])
def test_torchscript_moves_too_scripted_here_or_loaded(saved, tmp_path):
    module = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train())
    if saved:
        torch.jit.save(module, str(tmp_path / "model.pt"))
        module = torch.jit.load(str(tmp_path / "model.pt"))
    home, x = storages(module), torch.randn(8, 4)
    made = adopted([module])
    assert not set(home.values()) & set(storages(module).values())
    module(x)
    seen = dict(module.named_buffers())["1.running_mean"].clone()
    assert seen.abs().max() > 0
    made.lower()
    assert storages(module) == home
    assert torch.equal(dict(module.named_buffers())["1.running_mean"], seen)
    made.lift()
    assert torch.equal(dict(module.named_buffers())["1.running_mean"], seen)


def test_tensors_of_inference_mode_and_expanded_ones_move_too():
    with torch.inference_mode():
        module = nn.Linear(4, 4)
        module.register_buffer("seen", torch.zeros(2))
    module.register_buffer("rows", torch.arange(3).expand(2, 3))
    made = adopted(module)
    with torch.inference_mode():
        module.weight.fill_(2)
        module.seen = module.seen + 1
    module.rows = module.rows + 1
    for move in (made.lower, made.lift, made.lower):
        move()
        assert module.weight.min() == 2
        assert module.seen.tolist() == [1, 1]
        assert module.rows.tolist() == [[1, 2, 3]] * 2


def test_an_lstm_answers_the_same_wherever_it_lies():
    module, x = nn.LSTM(4, 4, 2).eval(), torch.randn(3, 1, 4)
    expected = module(x)[0]
    made = adopted(module)
    for move in (lambda: None, made.lower, made.lift):
        move()
        assert torch.equal(module(x)[0], expected)


def test_memory_that_may_not_be_written_is_not_written_where_nothing_changed(tmp_path):
    import numpy as np

    np.arange(4, dtype=np.float32).tofile(tmp_path / "table")
    module = nn.Module()
    with pytest.warns(UserWarning, match="not writable"):
        module.register_buffer("table", torch.from_numpy(np.memmap(tmp_path / "table", np.float32, "r")))
    made = adopted(module)
    made.lower()
    assert module.table.tolist() == [0, 1, 2, 3]


def test_a_lift_that_fails_half_way_leaves_everything_at_home(monkeypatch):
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    home, real, left = storages(module), torch.Tensor.to, [7]
    made = Adopted(adopt.finds(module), torch.device("cpu"), rehearsed=True)

    def scarce(tensor, *given, **named):
        if named.get("copy"):
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        made.lift()
    assert storages(module) == home
    left[0] = 100
    made.lift()
    assert not set(home.values()) & set(storages(module).values())


def test_a_forgotten_home_is_memory_given_up_and_the_next_lowering_makes_another():
    module = Counter()
    memory = weakref.ref(module.calls)
    made = adopted(module)
    module(torch.ones(1, 4))
    assert memory() is not None
    made.forget()
    assert memory() is None
    for move in (made.lower, made.lift, made.lower):
        move()
        assert module.calls.item() == 1


def test_dropped_modules_are_referred_to_by_nobody():
    module = nn.Linear(2, 2)
    made, gone = adopted([module]), weakref.ref(module)
    made.drop()
    del module
    assert gone() is None


def test_what_has_no_weights_or_lies_on_a_device_already_cannot_be_moved():
    assert moving.adopt_all([1, "a"], "cpu", rehearsed=True) is None
    assert moving.adopt_all(nn.ReLU(), "cpu", rehearsed=True) is None
    assert moving.adopt_all([nn.Linear(2, 2), torch.zeros(2, device="meta")], "cpu", rehearsed=True) is None


def test_the_modules_of_several_models_move_as_one_or_none_does():
    one, other = nn.Linear(2, 2), nn.Linear(3, 3)
    home = storages(one) | storages(other)
    parts = [adopted(one), adopted(other)]
    made = moving.together(parts)
    made.lower()
    assert storages(one) | storages(other) == home
    assert made.bytes == sum(part.bytes for part in parts)
    assert moving.together([adopted(one), None]) is None
    assert moving.together([]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no GPU")
def test_on_a_gpu_lowering_gives_the_bytes_back_and_answers_stay():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.LSTM(2048, 8)).eval(), torch.ones(2, 2048)
    free = torch.cuda.mem_get_info()[0]
    made = moving.adopt_all(module, "cuda:0")
    expected = module(x)[0]
    for _ in range(5):
        made.lower()
        assert torch.cuda.memory_reserved() == 0
        assert free - torch.cuda.mem_get_info()[0] < 1 << 30, "the context alone"
        made.lift()
        assert torch.equal(module(x)[0], expected)
