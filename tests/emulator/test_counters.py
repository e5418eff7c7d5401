"""Wavefronts and sectors against a model in plain Python, and the summaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.counters import Counters
from gpulinear.emulator.ir import Instruction, Location
from gpulinear.emulator.memory import load, store
from gpulinear.emulator.shape import Shape, shape_of
from tests.emulator.fakes import Bench


def wavefronts(addresses: list[int], threads: list[int], nbytes: int) -> tuple[int, int]:
    """For each part of a warp: the most distinct words that one of 32 banks has to give."""
    parts: dict[int, list[int]] = {}
    lanes = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8}[nbytes]
    for address, thread in zip(addresses, threads, strict=True):
        parts.setdefault(thread // lanes, []).append(address)
    total = 0
    for part in parts.values():
        words = {(a + k) // 4 for a in part for k in range(nbytes)}
        banks = [w % 32 for w in words]
        total += max(banks.count(bank) for bank in banks)
    return total, len(parts)


def sectors(addresses: list[int], threads: list[int], nbytes: int) -> tuple[int, int]:
    """For each warp: its distinct sectors, and its distinct bytes in whole sectors."""
    cost = ideal = 0
    for warp in {t // 32 for t in threads}:
        touched = {a + k for a, t in zip(addresses, threads, strict=True) if t // 32 == warp for k in range(nbytes)}
        cost += len({b // 32 for b in touched})
        ideal += -(-len(touched) // 32)
    return cost, ideal


PATTERNS = {
    "run": lambda t, n: t * n,
    "reversed": lambda t, n: (63 - t) * n,
    "broadcast": lambda t, n: t * 0 + 64,
    "two words": lambda t, n: t % 2 * 128,
    "stride 2": lambda t, n: t * 2 * n,
    "stride 32 words": lambda t, n: t * 128,
    "stride 33 words": lambda t, n: t * (128 + n),
    "swizzle": lambda t, n: (t * n) ^ (t // 8 % 8 * 16),
    "column of a tile": lambda t, n: t % 16 * 144 + t // 16 * 16,
    "random": lambda t, n: np.random.default_rng(5).permutation(256)[: len(t)] * n,
    "offset": lambda t, n: t * n + 16,
}
MASKS = {
    "all": np.ones(64, bool),
    "one": np.arange(64) == 37,
    "odd": np.arange(64) % 2 == 1,
    "tail": np.arange(64) >= 50,
    "scattered": np.random.default_rng(1).random(64) < 0.4,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("nbytes", [1, 2, 4, 8, 16])
def test_costs(pattern: str, mask: str, nbytes: int) -> None:
    threads = np.flatnonzero(MASKS[mask])
    address = PATTERNS[pattern](threads.astype(np.int64), nbytes) // nbytes * nbytes
    for base in (0, 1 << 40, (1 << 40) + 96):
        shape, first = shape_of(address + base, nbytes, threads)
        assert first == address[0] + base
        assert shape.wavefronts == wavefronts((address + base).tolist(), threads.tolist(), nbytes)
        assert shape.sectors == sectors((address + base).tolist(), threads.tolist(), nbytes)
        assert shape.requests == len({t // 32 for t in threads.tolist()})
        assert shape.aligned
        low, high = int(address.min() + base), int(address.max() + base) + nbytes
        assert (first + shape.low, first + shape.high) == (low, high)
        assert shape.run == all(b - a == nbytes for a, b in zip(address.tolist(), address.tolist()[1:], strict=False))
        assert shape.distinct == (len(set(address.tolist())) == len(address))


def test_known_costs() -> None:
    """Cases that the CUDA guides name: no conflict, a conflict of n words, and broadcasts."""
    lane = np.arange(32, dtype=np.int64)

    def cost(address: Any, nbytes: int) -> tuple[int, int]:
        return shape_of(address, nbytes, lane)[0].wavefronts

    assert cost(lane * 4, 4) == (1, 1)
    assert cost(lane * 8, 4) == (2, 1)
    assert cost(lane * 128, 4) == (32, 1)
    assert cost(lane * 132, 4) == (1, 1)
    assert cost(lane * 0, 4) == (1, 1)
    assert cost(lane, 1) == (1, 1)
    assert cost(lane * 8, 8) == (2, 2)
    assert cost(lane * 16, 16) == (4, 4)
    assert cost(lane * 64, 16) == (16, 4)
    assert shape_of(lane * 4, 4, lane)[0].sectors == (4, 4)
    assert shape_of(lane * 4 + 16, 4, lane)[0].sectors == (5, 4)
    assert shape_of(lane * 128, 4, lane)[0].sectors == (32, 4)
    assert shape_of(lane * 0, 4, lane)[0].sectors == (1, 1)


def test_the_place_in_the_warp_belongs_to_the_shape() -> None:
    address = np.arange(8, dtype=np.int64) * 128
    first, _ = shape_of(address, 16, np.arange(8))
    second, _ = shape_of(address, 16, np.arange(4, 12))
    gaps, _ = shape_of(address, 16, np.array([0, 1, 2, 3, 4, 5, 6, 8]))
    again, _ = shape_of(address + 4096, 16, np.arange(32, 40))
    assert [s.wavefronts for s in (first, second, gaps)] == [(8, 1), (8, 2), (8, 2)] and again is first


def test_misaligned_shapes() -> None:
    lane = np.arange(4)
    assert not shape_of(np.array([0, 4, 8, 13]), 4, lane)[0].aligned
    assert not shape_of(np.array([2, 6, 10, 14]), 4, lane)[0].aligned
    assert not shape_of(np.array([0, 3, 6, 9]), 3, lane)[0].aligned
    assert shape_of(np.array([14, 10, 6, 2]), 2, lane)[0].aligned


def test_turns_are_in_lane_order() -> None:
    relative = np.array([0, 8, 0, 4, 8, 0, 12])
    turns = Shape(relative, 0, 4, np.arange(7)).turns
    assert [t.tolist() for t in turns] == [[0, 1, 3, 6], [2, 4], [5]]


def test_requests_are_counted() -> None:
    bench = Bench(64)
    a = bench.memory.alloc(np.zeros(4096, np.uint32))
    lane = np.arange(64, dtype=np.int64)
    store(bench.lanes(), "shared", lane * 8, [np.zeros(64, np.uint32)], np.uint32)
    bench.barrier()
    load(bench.lanes(), "shared", lane * 8, np.uint32)
    load(bench.lanes(), "global", a + lane * 4, np.uint32)
    load(bench.lanes(), "global", a + lane * 32, np.uint32, 2)
    counters = bench.launch.counters
    assert [(r.requests, r.cost, r.ideal) for r in counters.instructions("shared")] == [(2, 4, 2), (2, 4, 2)]
    assert [(r.requests, r.cost, r.ideal) for r in counters.instructions("global")] == [(2, 8, 8), (2, 64, 16)]
    assert counters.wavefront_ratio == 2.0 and counters.sector_ratio == 3.0
    assert counters.moved_bytes == {("shared", "write"): 256, ("shared", "read"): 256, ("global", "read"): 768}
    assert bench.found == []


def line(index: int, location: Location | None) -> Instruction:
    return Instruction(index, "ld.shared.b32", (), "ld.shared.b32 %r1, [%r2];", 10 + index, location)


def test_summaries() -> None:
    counters = Counters()
    helper = Location("k.cu", 5, Location("k.cu", 9))
    rows = [line(0, Location("k.cu", 7)), line(1, helper), line(2, helper), line(3, None)]
    for instruction, cost in zip(rows, (1, 4, 6, 3), strict=True):
        for _ in range(2):
            counters.shared(instruction, cost, 1)
    counters.sectors(rows[0], 8, 4, 2)
    assert [r.where for r in counters.lines("shared")] == ["k.cu:5 (inlined at k.cu:9)", "PTX line 13", "k.cu:7"]
    assert [(r.requests, r.cost, r.ideal, r.ratio) for r in counters.lines("shared")] == [
        (4, 20, 4, 5.0),
        (2, 6, 2, 3.0),
        (2, 2, 2, 1.0),
    ]
    total = counters.total("shared")
    assert (total.requests, total.cost, total.ideal) == (8, 28, 8) and counters.wavefront_ratio == 3.5
    assert (counters.total("global").requests, counters.sector_ratio) == (2, 2.0)
    assert Counters().wavefront_ratio == 1.0
    text = str(counters)
    assert "28 wavefronts, ideal 8" in text and "k.cu:5" in text and "8 sectors, ideal 4" in text


def test_mix_and_flops() -> None:
    counters = Counters()
    counters.executed("add.f32", 4, 128)
    counters.executed("add.f32", 1, 5)
    counters.executed("bar.sync", 3, 96)
    counters.flops(10)
    counters.flops(5)
    assert counters.mix == {"add.f32": (5, 133), "bar.sync": (3, 96)}
    assert counters.warp_instructions == 8 and counters.active_lanes == 229 / 8 and counters.total_flops == 15
    assert "8 warp instructions, 28.6 of 32 lanes active" in str(counters) and "15 FLOPs" in str(counters)
