"""Memory behind arenas: growing, pinning in steps, pinning refused, extents given back; and the rehearsed device."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from container.memory import regions
from container.memory.regions import DeviceRegion, HostRegion
from container.memory.sim import SimDevice, Spec

MIB = 1 << 20


class Picky(SimDevice):
    """Counts what is pinned, refuses from ``refuse_at`` bytes on, and has ``room`` bytes of device memory."""

    def __init__(self, refuse_at: int = 1 << 40, room: int = 1 << 40) -> None:
        super().__init__("sim:1GiB@100GB/s")
        self.pinned_at: dict[int, int] = {}
        self.refuse_at = refuse_at
        self.room = room
        self.trimmed = 0

    def pin(self, memory: torch.Tensor) -> bool:
        if sum(self.pinned_at.values()) + memory.numel() > self.refuse_at:
            return False
        self.pinned_at[memory.data_ptr()] = memory.numel()
        return True

    def unpin(self, memory: torch.Tensor) -> None:
        assert self.pinned_at.pop(memory.data_ptr()) == memory.numel()

    def block(self, nbytes: int) -> torch.Tensor:
        if nbytes > self.room:
            raise torch.OutOfMemoryError("none left")
        self.room -= nbytes
        return super().block(nbytes)

    def trim(self) -> None:
        self.trimmed += 1


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "STEP_BYTES", MIB)


def test_the_host_is_pinned_step_by_step_and_no_copy_crosses_two_steps(small_steps: None) -> None:
    device = Picky()
    host = HostRegion(device, 5 * MIB // 2)
    first = host.take(100, "a")
    assert (host.capacity, list(device.pinned_at.values())) == (MIB, [MIB])
    place = host.take(2 * MIB, "b")
    assert first is not None
    assert place is not None
    assert list(device.pinned_at.values()) == [MIB, MIB, MIB // 2]
    place.memory.random_()
    target = torch.zeros(2 * MIB, dtype=torch.uint8)
    pieces = list(host.pieces(target, place))
    assert [source.numel() for _, source in pieces] == [MIB - 256, MIB, 256]
    for _, source in pieces:
        starts = [start for start in device.pinned_at if start <= source.data_ptr()]
        assert source.data_ptr() + source.numel() <= max(starts) + device.pinned_at[max(starts)]
    device.copy(pieces).synchronize()
    assert torch.equal(target, place.memory)
    assert host.take(MIB, "c") is None
    host.close()
    assert device.pinned_at == {}


def test_where_pinning_is_refused_extents_come_from_torch(small_steps: None) -> None:
    device = Picky(refuse_at=MIB)
    host = HostRegion(device, 8 * MIB)
    places = [host.take(MIB - 256, str(number)) for number in range(4)]
    assert None not in places
    assert len(device.pinned_at) == 1
    assert host.capacity == 4 * MIB
    large = host.take(3 * MIB, "large")
    assert large is not None
    assert [len(list(host.pieces(large.memory, large))), host.capacity] == [1, 8 * MIB]


def test_the_host_grows_in_the_background_before_it_is_full(small_steps: None) -> None:
    device = Picky()
    with ThreadPoolExecutor(1) as background:
        host = HostRegion(device, 4 * MIB, background)
        host.take(256, "a")
        background.submit(int).result()
        assert host.capacity == 2 * MIB
        host.take(256, "b")
        background.submit(int).result()
        assert host.capacity == 2 * MIB, "a whole step is free"


def test_what_others_have_of_the_limit_is_given_back_where_it_is_empty_and_not_grown_into(small_steps: None) -> None:
    device = Picky()
    host = HostRegion(device, 4 * MIB)
    low, high, end = (host.take(size, "a") for size in (MIB, MIB, 2 * MIB))
    assert low is not None
    assert high is not None
    assert end is not None
    high.memory.fill_(7)
    host.outside_bytes = MIB
    host.trim()
    assert host.capacity == 4 * MIB, "nothing of it is empty"
    host.give(low)
    host.give(end)
    host.trim()
    assert (host.capacity, len(device.pinned_at)) == (3 * MIB, 3), "no more than others have"
    host.outside_bytes = 4 * MIB
    host.trim()
    assert (host.capacity, len(device.pinned_at)) == (2 * MIB, 2), "what lies behind an empty step keeps it"
    assert high.memory.min() == 7
    assert host.take(2 * MIB, "b") is None
    host.outside_bytes = 0
    again = host.take(2 * MIB, "b")
    assert again is not None
    assert (host.capacity, again.memory.max()) == (4 * MIB, 0)
    host.close()
    assert not device.pinned_at


def test_nothing_is_grown_ahead_into_what_others_have(small_steps: None) -> None:
    host = HostRegion(Picky(), 2 * MIB, grower := ThreadPoolExecutor(1))
    host.outside_bytes = MIB + 1
    host.grow_ahead()
    grower.shutdown()
    assert host.capacity == 0
    assert host.take(100, "a") is not None, "the step that the rest of the limit lies in is there on demand"
    assert host.capacity == MIB


def test_an_empty_extent_of_torchs_own_goes_where_others_have_of_the_limit(small_steps: None) -> None:
    host = HostRegion(Picky(refuse_at=0), 4 * MIB)
    place = host.take(3 * MIB, "a")
    assert place is not None
    host.give(place)
    host.outside_bytes = MIB
    host.trim()
    assert host.capacity == 0


def test_the_device_grows_in_extents_and_gives_empty_ones_back(small_steps: None) -> None:
    device = Picky(room=6 * MIB)
    region = DeviceRegion(device, 8 * MIB)
    one, two = region.take(MIB, "a"), region.take(3 * MIB, "b")
    assert one is not None
    assert two is not None
    assert region.capacity == 4 * MIB
    assert region.take(3 * MIB, "c") is None, "the device has no more"
    region.give(two)
    region.trim()
    assert (region.capacity, device.trimmed) == (MIB, 1)
    region.trim()
    assert (region.capacity, device.trimmed) == (MIB, 1)


def test_whole_extents_of_the_device_become_one_when_what_lies_in_them_may_go(small_steps: None) -> None:
    region = DeviceRegion(Picky(), 4 * MIB)
    there = {tag: region.take(MIB * 3 // 4, tag) for tag in "abcd"}
    assert region.capacity == 4 * MIB
    assert region.take(2 * MIB, "large") is None
    price = {"a": 5.0, "b": None, "c": 1.0, "d": 2.0}
    assert region.cheapest_run(MIB // 4 * 3, lambda slot: price[slot.tag]) == ["c"], "in one extent, as ever"
    victims = region.cheapest_run(2 * MIB, lambda slot: price[slot.tag])
    assert victims is not None
    assert sorted(victims) == ["c", "d"]
    assert region.cheapest_run(4 * MIB, lambda slot: price[slot.tag]) is None, "b stays"
    for tag in victims:
        place = there[tag]
        assert place is not None
        region.give(place)
    assert region.take(2 * MIB, "large") is not None
    assert region.capacity == 4 * MIB


def test_where_the_device_itself_has_no_more_extents_make_up_for_all_of_it(small_steps: None) -> None:
    device = SimDevice(f"sim:{2 * MIB}@100GB/s")
    region = DeviceRegion(device, 4 * MIB)
    there = [region.take(MIB * 3 // 4, tag) for tag in "ab"]
    assert region.take(2 * MIB, "large") is None
    assert region.cheapest_run(2 * MIB, lambda slot: 1.0) == ["a", "b"]
    while there:
        place = there.pop()
        assert place is not None
        region.give(place)
    del place
    assert region.take(2 * MIB, "large") is not None


def test_what_is_too_little_for_an_extent_of_its_own_is_part_of_the_last_one(small_steps: None) -> None:
    region = DeviceRegion(Picky(), 3 * MIB // 2)
    assert None not in (region.take(3 * MIB // 4, "a"), region.take(3 * MIB // 4, "b"))


def test_where_the_device_has_less_than_an_extent_the_arena_takes_what_is_needed(small_steps: None) -> None:
    region = DeviceRegion(Picky(room=MIB // 2), 4 * MIB)
    assert region.take(MIB // 4, "a") is not None
    assert region.take(MIB // 2, "b") is None
    assert region.take(MIB // 4, "c") is not None


def test_a_rehearsed_device_refuses_what_it_does_not_have_and_has_again_what_nobody_refers_to() -> None:
    device = SimDevice("sim:8MiB@100GB/s")
    one, part = device.block(5 * MIB), device.block(2 * MIB)[:MIB]
    assert device.free_bytes() == MIB
    with pytest.raises(torch.OutOfMemoryError, match="1048576 of 8388608 bytes are free"):
        device.block(2 * MIB)
    assert (int(part.sum()), device.free_bytes()) == (0, MIB), "a view keeps all of it"
    del one, part
    assert device.free_bytes() == 8 * MIB


def test_copies_arrive_in_order_and_take_the_time_of_their_bytes() -> None:
    assert Spec.read("sim:4GiB@2GB/s") == (4 << 30, 2_000_000_000)
    device = SimDevice("sim:1GiB@100MB/s")
    source, target = torch.ones(2 * MIB, dtype=torch.uint8), torch.zeros(2 * MIB, dtype=torch.uint8)
    began = time.monotonic()
    first = device.copy([(target[:MIB], source[:MIB])])
    second = device.copy([(target[MIB:], source[MIB:])])
    assert not second.query()
    assert target[MIB] == 0
    second.synchronize()
    assert first.query()
    assert bool((target == 1).all())
    assert time.monotonic() - began >= 2 * MIB / 100e6, "never faster than set"
    assert device.mark().query()
