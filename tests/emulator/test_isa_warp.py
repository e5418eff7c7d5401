"""shfl, vote, match, redux, elect, activemask, bar.warp.sync: against the ISA's definitions, lane by lane in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulinear.emulator.isa.warp  # noqa: F401
from gpulinear.emulator.ir import Instruction, Operand, Pair, Reg
from gpulinear.emulator.isa import resolve
from tests.emulator.fakes import Bench

FULL = 0xFFFFFFFF
POISON = 0xFFFFFFFF


def call(bench: Bench, name: str, *values: Any, outputs: int = 1, threads: Any = None) -> Any:
    """An instruction on 32-bit values; a number stands for all lanes."""
    lanes = bench.lanes(threads, name=name)
    register = Reg("%r")
    first: list[Operand] = [[], [register], [Pair(register, register)]][outputs]  # type: ignore[list-item]
    operands = (*first, *(register for _ in values))
    rule, form = resolve(Instruction(0, name, operands, name, 1))
    count = len(lanes.threads)
    arrays = [v if isinstance(v, np.ndarray) else np.full(count, v, np.uint32) for v in values]
    with np.errstate(all="ignore"):
        return rule.factory(form)(lanes, *arrays)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """Source lane and predicate (PTX ISA 9.7.9.6)."""
    offset, clamp, segment = b & 31, c & 31, c >> 8 & 31
    most, least = lane & segment | clamp & ~segment & 31, lane & segment
    source = {
        "up": lane - offset,
        "down": lane + offset,
        "bfly": lane ^ offset,
        "idx": least | offset & ~segment & 31,
    }[mode]
    ok = source >= most if mode == "up" else source <= most
    return (source if ok else lane), ok


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode: str) -> None:
    bench = Bench(96)
    rng = np.random.default_rng(1)
    for c in (0x1F, 0, 0x1C1F, 0x1800, 0x181F, 0x1007, 0x0C13, 0xFFFFE01F):
        b = rng.integers(0, 2**32, 96, dtype=np.uint32) if mode == "idx" else int(rng.choice([0, 1, 5, 16, 31, 33]))
        a = rng.integers(0, 2**32, 96, dtype=np.uint32)
        values, ok = call(bench, f"shfl.sync.{mode}.b32", a, b, c, FULL, outputs=2)
        expected = [shuffled(mode, t & 31, int(np.broadcast_to(b, 96)[t]), c) for t in range(96)]
        assert ok.tolist() == [e[1] for e in expected]
        assert values.tolist() == [int(a[(t & ~31) + e[0]]) for t, e in enumerate(expected)]
        assert values.dtype == np.uint32
    assert bench.found == []


def test_shfl_of_a_part_of_the_warp() -> None:
    bench = Bench(96)
    threads = np.r_[4:8, 36:40]
    a = (threads * 10).astype(np.uint32)
    values, ok = call(bench, "shfl.sync.bfly.b32", a, 1, 0x1F, 0xF0, outputs=2, threads=threads)
    assert values.tolist() == [50, 40, 70, 60, 370, 360, 390, 380] and ok.all() and bench.found == []
    values, ok = call(bench, "shfl.sync.idx.b32", a, 8, 0x1F, 0xF0, outputs=2, threads=threads)
    assert (values == POISON).all() and ok.all()
    assert bench.found == ["shuffle from nowhere"] and bench.only().count == 8
    values, ok = call(bench, "shfl.sync.up.b32", a, 4, 0, 0xF0, outputs=2, threads=threads)
    assert len(bench.found) == 2 and (values == POISON).all()  # lanes 0 to 3 do not take part
    values, ok = call(bench, "shfl.sync.up.b32", a, 8, 0, 0xF0, outputs=2, threads=threads)
    assert len(bench.found) == 2 and (values == a).all() and not ok.any()  # out of range: the own value


def test_shfl_of_two_halves_with_their_own_masks() -> None:
    bench = Bench(32)
    lane = np.arange(32)
    mask = np.where(lane < 16, 0x0000FFFF, 0xFFFF0000).astype(np.uint32)
    values, _ = call(bench, "shfl.sync.down.b32", lane.astype(np.uint32), 1, 0x101F, mask, outputs=2)
    assert values.tolist() == [*range(1, 16), 15, *range(17, 32), 31] and bench.found == []
    values, _ = call(bench, "shfl.sync.idx.b32", lane.astype(np.uint32), 3, 0x1F, mask, outputs=2)
    assert values[:16].tolist() == [3] * 16 and (values[16:] == POISON).all()
    assert bench.found == ["shuffle from nowhere"] and bench.only().count == 16


@pytest.mark.parametrize(
    ("masks", "threads", "part"),
    [
        (0x0F, [0, 1, 2, 3, 4], "own member mask does not name"),
        (0x1F, [0, 1, 2, 3], "do not execute it now"),
        ([3, 3, 12, 15], [0, 1, 2, 3], "different member masks"),
    ],
)
def test_member_masks(masks: Any, threads: list[int], part: str) -> None:
    for name in ("vote.sync.ballot.b32", "redux.sync.add.u32", "match.any.sync.b32"):
        bench = Bench(32)
        mask = np.broadcast_to(np.array(masks, np.uint32), len(threads)).copy()
        a = np.ones(len(threads), bool if name.startswith("vote") else np.uint32)
        call(bench, name, a, mask, threads=threads)
        assert (
            bench.found[0] == f"member mask: {name.split('.')[0]}" and part in bench.launch.report.findings[0].message
        )
        assert len(bench.found) == 1


def test_exited_lanes_may_be_named_but_not_by_a_shuffle() -> None:
    lanes, mask = np.arange(4), np.full(4, 0x1F, np.uint32)
    for name, found in (("vote.sync.ballot.b32", []), ("shfl.sync.idx.b32", ["member mask: shfl"])):
        bench = Bench(32)
        bench.cta.live[4] = False
        if name.startswith("vote"):
            operands: list[Any] = [np.ones(4, bool), mask]
        else:
            operands = [lanes.astype(np.uint32), np.zeros(4, np.uint32), np.full(4, 31, np.uint32), mask]
        call(bench, name, *operands, threads=lanes)
        assert bench.found == found


def test_lanes_that_never_were_may_be_named() -> None:
    bench = Bench(40)
    a = np.arange(40) % 3 == 0
    got = call(bench, "vote.sync.ballot.b32", a, FULL)
    first = sum(1 << i for i in range(32) if i % 3 == 0)
    second = sum(1 << i for i in range(8) if (i + 32) % 3 == 0)
    assert got.tolist() == [first] * 32 + [second] * 8 and bench.found == []
    assert call(bench, "redux.sync.add.u32", np.ones(40, np.uint32), FULL).tolist() == [32] * 32 + [8] * 8
    assert call(bench, "vote.sync.all.pred", np.ones(40, bool), FULL).all()
    values, _ = call(bench, "shfl.sync.down.b32", np.arange(40, dtype=np.uint32), 1, 0x1F, FULL, outputs=2)
    assert values[39] == POISON and bench.found == ["shuffle from nowhere"]


def test_vote() -> None:
    bench = Bench(96)
    a = np.zeros(96, bool)
    a[:32] = True
    a[33] = True
    assert call(bench, "vote.sync.all.pred", a, FULL).tolist() == [True] * 32 + [False] * 64
    assert call(bench, "vote.sync.any.pred", a, FULL).tolist() == [True] * 64 + [False] * 32
    assert call(bench, "vote.sync.uni.pred", a, FULL).tolist() == [True] * 32 + [False] * 32 + [True] * 32
    assert call(bench, "vote.sync.ballot.b32", a, FULL)[[0, 40, 70]].tolist() == [FULL, 2, 0]
    part = [1, 2, 34, 35]
    assert call(bench, "vote.sync.any.pred", a[part], np.array([6, 6, 12, 12], np.uint32), threads=part).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert bench.found == []


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_match(kind: str) -> None:
    bench = Bench(64)
    dtype = np.dtype(f"u{int(kind[1:]) // 8}")
    a = (np.arange(64) % 5).astype(dtype)
    if kind == "b64":
        a <<= np.uint64(40)
    got = call(bench, f"match.any.sync.{kind}", a, FULL)
    for t in range(64):
        warp = t & ~31
        assert got[t] == sum(1 << i for i in range(32) if a[warp + i] == a[t])
    a[32:] = 7
    masks, every = call(bench, f"match.all.sync.{kind}", a, FULL, outputs=2)
    assert masks.tolist() == [0] * 32 + [FULL] * 32 and every.tolist() == [False] * 32 + [True] * 32
    assert masks.dtype == np.uint32
    part = np.array([3, 8, 13])
    assert call(bench, f"match.any.sync.{kind}", np.zeros(3, dtype), 0x2108, threads=part).tolist() == [0x2108] * 3
    halves = np.where(np.arange(64) % 32 < 16, 0x0000FFFF, 0xFFFF0000).astype(np.uint32)
    assert (call(bench, f"match.any.sync.{kind}", np.zeros(64, dtype), halves) == halves).all()
    masks, every = call(bench, f"match.all.sync.{kind}", a[part], 0x2108, outputs=2, threads=part)
    assert masks.tolist() == [0x2108] * 3 and every.all() and bench.found == []


@pytest.mark.parametrize("kind", ["u32", "s32", "b32"])
def test_redux(kind: str) -> None:
    bench = Bench(64)
    rng = np.random.default_rng(2)
    dtype = np.int32 if kind == "s32" else np.uint32
    bits = rng.integers(0, 2**32, 64, dtype=np.uint32)
    a = bits.view(dtype)
    half = np.where(np.arange(64) % 32 < 16, 0x0000FFFF, 0xFFFF0000).astype(np.uint32)
    for op in ("and", "or", "xor") if kind == "b32" else ("add", "min", "max"):
        for mask, size in ((np.full(64, FULL, np.uint32), 32), (half, 16)):
            got = call(bench, f"redux.sync.{op}.{kind}", a, mask)
            assert got.dtype == dtype
            for start in range(0, 64, size):
                items = [int(x) for x in a[start : start + size]]
                folded = items[0]
                for x in items[1:]:
                    folded = {
                        "add": folded + x,
                        "min": min(folded, x),
                        "max": max(folded, x),
                        "and": folded & x,
                        "or": folded | x,
                        "xor": folded ^ x,
                    }[op]
                assert [int(x) & FULL for x in got[start : start + size]] == [folded & FULL] * size
    # Lanes outside must not count, whatever the neutral element of the operation is.
    for value in (9, -5 if kind == "s32" else 2**31 + 5):
        one = np.array([value], np.int64).astype(dtype)
        for op in ("and", "or", "xor") if kind == "b32" else ("add", "min", "max"):
            assert call(bench, f"redux.sync.{op}.{kind}", one, 1 << 7, threads=[7]).tolist() == one.tolist()
    assert bench.found == []


def test_activemask_and_elect() -> None:
    bench = Bench(96)
    assert call(bench, "activemask.b32", threads=[1, 4, 64]).tolist() == [0x12, 0x12, 1]
    assert (call(bench, "activemask.b32") == FULL).all()
    lanes, leader = call(bench, "elect.sync", FULL, outputs=2)
    assert (lanes == 0).all() and np.flatnonzero(leader).tolist() == [0, 32, 64]
    lanes, leader = call(bench, "elect.sync", 0xF0, outputs=2, threads=np.r_[4:8, 36:40])
    assert (lanes == 4).all() and np.flatnonzero(leader).tolist() == [0, 4] and lanes.dtype == np.uint32
    assert bench.found == []


def exchange(bench: Bench, partner: int) -> list[str]:
    """Each thread of a warp reads what its partner wrote before."""
    threads = np.arange(32)
    line = bench.lanes().instruction
    bench.cta.races.read(threads, (threads ^ partner) * 4, 4, line)
    return bench.found


@pytest.mark.parametrize("name", ["none", "bar.warp.sync", "vote.sync.any.pred", "shfl.sync.idx.b32"])
def test_only_bar_warp_sync_orders_memory(name: str) -> None:
    bench = Bench(64)
    threads = np.arange(64)
    bench.cta.races.write(threads, threads * 4, 4, bench.lanes().instruction)
    if name == "bar.warp.sync":
        call(bench, name, FULL, outputs=0)
    elif name.startswith("vote"):
        call(bench, name, np.ones(64, bool), FULL)
    elif name.startswith("shfl"):
        call(bench, name, 0, 0, 0x1F, FULL)
    assert exchange(bench, 1) == ([] if name == "bar.warp.sync" else ["shared race"])


def test_bar_warp_sync_orders_the_members_of_each_mask() -> None:
    bench = Bench(64)
    threads = np.arange(64)
    bench.cta.races.write(threads, threads * 4, 4, bench.lanes().instruction)
    mask = np.where(threads % 32 < 8, 0xFF, 0xFFFFFF00).astype(np.uint32)
    call(bench, "bar.warp.sync", mask, outputs=0)
    assert exchange(bench, 7) == []
    bench.cta.races.read(np.array([35]), np.array([4 * 37]), 4, bench.lanes().instruction)
    assert bench.found == []
    assert exchange(bench, 8) == ["shared race"]
    bench.cta.races.read(np.array([3]), np.array([4 * 37]), 4, bench.lanes().instruction)
    assert len(bench.found) == 2


@pytest.mark.parametrize("mask", [FULL, 0x7])
def test_bar_warp_sync_in_a_cluster(mask: int) -> None:
    bench = Bench(32, ctas=2)
    threads = np.flatnonzero([mask >> i & 1 for i in range(32)])
    bench.ctas[1].races.write(threads + 32, threads * 4, 4, bench.lanes().instruction)
    rule, form = resolve(Instruction(0, "bar.warp.sync", (Reg("%r"),), "", 1))
    rule.factory(form)(bench.lanes(threads, cta=1), np.full(len(threads), mask, np.uint32))
    bench.ctas[1].races.read(np.array([32]), np.array([4]), 4, bench.lanes().instruction)
    assert bench.found == []
