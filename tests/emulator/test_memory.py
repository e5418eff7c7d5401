"""Shared, local and parameter memory, clusters and generic addresses: what they hold, and what is reported."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.ir import Param, Variable
from gpulinear.emulator.memory import check, load, read_bytes, store, write_bytes
from gpulinear.emulator.shared_memory import RED_ZONE, layout_shared
from gpulinear.emulator.spaces import LOCAL_BASE, PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench

POISON32 = 0xFFFFFFFF


def at(*addresses: int) -> np.ndarray[Any, Any]:
    return np.array(addresses, np.int64)


def rows(base: int, count: int, step: int) -> np.ndarray[Any, Any]:
    return base + np.arange(count, dtype=np.int64) * step


def shared_variable(name: str, size: int | None, align: int) -> Variable:
    return Variable(name, "shared", size, align)


# ---------------------------------------------------------------------------------------------- shared memory


def test_layout() -> None:
    variables = [shared_variable("a", 6, 2), shared_variable("b", 16, 16), shared_variable("d", None, 128)]
    offsets, declared = layout_shared(variables, 100)
    assert offsets["a"] == 0 and offsets["b"] >= 6 + RED_ZONE and offsets["b"] % 16 == 0
    assert offsets["d"] % 128 == 0 and offsets["d"] >= offsets["b"] + 16
    assert declared == 128 + 100  # 6, padding to 16, 16 more, padding to 128, 100
    assert layout_shared(variables, 100) == (offsets, declared)
    assert layout_shared([], 100) == ({}, 100)
    assert layout_shared(variables[:2])[1] == 32


def test_dynamic_memory_is_aligned_to_16_and_last() -> None:
    bench = Bench(32, variables=[shared_variable("a", 1, 1), shared_variable("d", None, 4)], smem=40)
    offset = layout_shared([shared_variable("a", 1, 1), shared_variable("d", None, 4)], 40)[0]["d"]
    shared = bench.cta.shared
    assert offset % 16 == 0 and shared.size == offset + 40
    inside = shared.inside(np.arange(shared.size + 9), 1)
    assert np.flatnonzero(inside).tolist() == [0, *range(offset, offset + 40)]
    assert shared.declared == 16 + 40
    assert (shared.bytes == 0xFF).all() and not shared.written.any()


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("order", ["run", "swizzled"])
def test_shared_load_and_store(size: int, order: str) -> None:
    bench = Bench(64)
    lane = np.arange(64)
    offsets = lane * size if order == "run" else (lane ^ (lane >> 3 & 7)) * size
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (64, size), np.uint8)
    write_bytes(bench.lanes(), "shared", offsets, data)
    bench.barrier()
    assert (read_bytes(bench.lanes(), "shared", offsets, size) == data).all()
    for i in range(64):
        assert bench.cta.shared.bytes[offsets[i] : offsets[i] + size].tobytes() == data[i].tobytes()
    assert bench.found == []
    assert bench.launch.counters.moved_bytes == {("shared", "write"): 64 * size, ("shared", "read"): 64 * size}


def test_shared_red_zone_between_variables() -> None:
    variables = [shared_variable("a", 128, 4), shared_variable("b", 128, 4)]
    bench = Bench(32, variables=variables, smem=0)
    store(bench.lanes(), "shared", rows(4, 32, 4), [np.arange(32, dtype=np.uint32)], np.uint32)
    found = bench.only()
    assert (found.kind, found.threads, found.address) == ("out of bounds", (31,), 128)
    assert "4 bytes past the end of variable 'a' (128 bytes)" in found.message
    assert bench.cta.shared.written.sum() == 124


def test_shared_faults() -> None:
    bench = Bench(32, smem=256)
    load(bench.lanes([0, 1]), "shared", at(252, 256), np.uint32)
    assert sorted(bench.found) == ["out of bounds", "uninitialised read"]
    assert "the dynamic shared memory (256 bytes)" in bench.launch.report.findings[0].message
    load(bench.lanes([5]), "shared", at(2), np.uint32)
    assert bench.found[2:] == ["misaligned access"]
    load(bench.lanes([5]), "shared", at(-4), np.uint32)
    assert bench.found[3:] == ["out of bounds"]


def test_shared_races_are_told() -> None:
    bench = Bench(64)
    store(bench.lanes(), "shared", rows(0, 64, 4), [np.ones(64, np.uint32)], np.uint32)
    load(bench.lanes(), "shared", rows(0, 64, 4), np.uint32)  # each thread reads what it wrote
    assert bench.found == []
    load(bench.lanes(), "shared", rows(0, 64, 4)[::-1].copy(), np.uint32)
    assert bench.found == ["shared race"]


def test_bytes_of_any_number_and_alignment() -> None:
    bench = Bench(32)
    data = np.arange(96, dtype=np.uint8).reshape(32, 3)
    write_bytes(bench.lanes(), "shared", rows(1, 32, 3), data)
    assert bench.cta.shared.bytes[1:97].tolist() == list(range(96))
    bench.barrier()
    assert (read_bytes(bench.lanes(), "shared", rows(1, 32, 3), 3) == data).all() and bench.found == []
    assert (read_bytes(bench.lanes([0]), "shared", at(2), 4, 2) == [[1, 2, 3, 4]]).all() and bench.found == []
    read_bytes(bench.lanes([0]), "shared", at(4), 8, 8)
    assert bench.found == ["misaligned access"]


def test_a_race_of_bytes_that_no_unit_covers() -> None:
    bench = Bench(64)
    write_bytes(bench.lanes([0]), "shared", at(1), np.zeros((1, 3), np.uint8))
    write_bytes(bench.lanes([40]), "shared", at(4), np.zeros((1, 3), np.uint8))
    assert bench.found == []
    read_bytes(bench.lanes([40]), "shared", at(3), 3)
    assert bench.found == ["shared race"]


# ---------------------------------------------------------------------------------------------- clusters


def test_other_ctas_of_the_cluster() -> None:
    bench = Bench(32, ctas=2)
    everyone = np.arange(64)
    address = (np.int64(2) << 24) + rows(0, 32, 4)  # rank 1
    store(bench.lanes(), "shared::cluster", address, [np.arange(32, dtype=np.uint32)], np.uint32)
    assert bench.ctas[1].shared.bytes[:128].view(np.uint32).tolist() == list(range(32))
    assert not bench.ctas[0].shared.written.any()
    bench.cta.cluster.clocks.barrier(everyone)
    (own,) = load(bench.lanes(cta=1), "shared", rows(0, 32, 4), np.uint32)
    (mapped,) = load(bench.lanes(cta=1), "shared", address, np.uint32)  # its own rank: the same bytes
    (generic,) = load(bench.lanes(), "generic", address + SHARED_BASE, np.uint32)
    assert own.tolist() == mapped.tolist() == generic.tolist() == list(range(32)) and bench.found == []
    load(bench.lanes(), "shared", address, np.uint32)
    load(bench.lanes(), "shared::cluster", (np.int64(3) << 24) + rows(0, 32, 4), np.uint32)
    assert bench.found == ["out of bounds"] * 2
    assert "only .shared::cluster accesses reach" in bench.launch.report.findings[0].message
    assert "rank 2 of a cluster of 2" in bench.launch.report.findings[1].message


def test_races_across_the_cluster() -> None:
    bench = Bench(32, ctas=2)
    address = (np.int64(2) << 24) + rows(0, 32, 4)
    store(bench.lanes(), "shared::cluster", address, [np.ones(32, np.uint32)], np.uint32)
    load(bench.lanes(cta=1), "shared", rows(0, 32, 4), np.uint32)
    assert bench.found == ["shared race"]


# --------------------------------------------------------------------------- parameters, local, generic


def test_parameters() -> None:
    params = [(Param("n", 0, 4), struct.pack("<i", -7)), (Param("p", 8, 8), struct.pack("<Q", 1 << 40))]
    bench = Bench(64, params=params)
    assert load(bench.lanes(), "param", np.zeros(64, np.int64), np.int32)[0].tolist() == [-7] * 64
    assert load(bench.lanes(), "param", np.full(64, 8), np.uint64)[0].tolist() == [1 << 40] * 64
    assert load(bench.lanes([0]), "generic", at(PARAM_BASE + 8), np.uint64)[0].tolist() == [1 << 40]
    assert load(bench.lanes([0]), "global", at(PARAM_BASE), np.int32)[0].tolist() == [-7]
    assert bench.found == []
    load(bench.lanes([0]), "param", at(0), np.uint64)
    assert bench.found == ["uninitialised read"]  # the padding
    load(bench.lanes([0]), "param", at(16), np.uint32)
    load(bench.lanes([0]), "param", at(-4), np.uint32)
    load(bench.lanes([0]), "param", at(12), np.uint64)
    assert bench.found[1:] == ["out of bounds", "out of bounds", "misaligned access", "out of bounds"]
    assert "the kernel parameters (16 bytes)" in bench.launch.report.findings[1].message
    store(bench.lanes([0]), "generic", at(PARAM_BASE), [np.zeros(1, np.uint32)], np.uint32)
    assert bench.found[-1] == "write to read-only memory"


def test_local_memory_is_of_each_thread() -> None:
    bench = Bench(64, local=[Variable("depot", "local", 80, 16), Variable("other", "local", 4, 4)])
    values = [np.arange(64, dtype=np.uint32) + 100 * i for i in range(4)]
    store(bench.lanes(), "local", np.full(64, 16), values, np.uint32)
    for got in (
        load(bench.lanes(), "local", np.full(64, 16), np.uint32, 4),
        load(bench.lanes(), "generic", np.full(64, LOCAL_BASE + 16), np.uint32, 4),
    ):
        assert [g.tolist() for g in got] == [v.tolist() for v in values]
    lane = np.arange(64)
    (mixed,) = load(bench.lanes(), "local", 16 + lane % 4 * 4, np.uint32)
    assert mixed.tolist() == [i + 100 * (i % 4) for i in range(64)] and bench.found == []


@pytest.mark.parametrize("size", [80, 128])
@pytest.mark.parametrize("offset", [80, 128, -4, 256, 384])
def test_local_memory_of_the_next_thread_is_out_of_bounds(size: int, offset: int) -> None:
    if 0 <= offset < size:
        return
    bench = Bench(64, local=[Variable("depot", "local", size, 16)])
    store(bench.lanes(), "local", np.zeros(64, np.int64), [np.ones(64, np.uint32)], np.uint32)
    load(bench.lanes([5]), "local", at(offset), np.uint32)
    store(bench.lanes([5]), "local", at(offset), [np.ones(1, np.uint32)], np.uint32)
    assert bench.found == ["out of bounds"] * 2 and bench.launch.report.findings[0].threads == (5,)


def test_local_uninitialised() -> None:
    bench = Bench(64, local=[Variable("depot", "local", 80, 16)])
    store(bench.lanes(range(63)), "local", np.zeros(63, np.int64), [np.ones(63, np.uint32)], np.uint32)
    load(bench.lanes(), "local", np.zeros(64, np.int64), np.uint32)
    assert (bench.only().kind, bench.only().threads) == ("uninitialised read", (63,))


def test_generic_windows_may_be_mixed() -> None:
    params = [(Param("n", 0, 4), struct.pack("<I", 3))]
    bench = Bench(32, params=params, local=[Variable("x", "local", 4, 4)])
    a = bench.memory.alloc(np.full(1, 2, np.uint32))
    store(bench.lanes([0]), "shared", at(12), [np.full(1, 4, np.uint32)], np.uint32)
    bench.barrier()
    address = at(a, SHARED_BASE + 12, PARAM_BASE, LOCAL_BASE, 0, a)
    store(bench.lanes([3]), "local", at(0), [np.full(1, 5, np.uint32)], np.uint32)
    (got,) = load(bench.lanes(range(6)), "generic", address, np.uint32)
    assert got.tolist() == [2, 4, 3, 5, POISON32, 2]
    found = bench.only()
    assert (found.kind, found.threads, found.address) == ("out of bounds", (4,), 0)
    assert "where nothing is allocated" in found.message
    bench.barrier()
    target = at(a, SHARED_BASE + 12, LOCAL_BASE)
    store(bench.lanes([1, 2, 3]), "generic", target, [np.array([7, 8, 9], np.uint32)], np.uint32)
    assert bench.memory.view(a, 4).view(np.uint32).tolist() == [7]
    assert bench.cta.shared.bytes[12:16].view(np.uint32).tolist() == [8]
    assert load(bench.lanes([3]), "local", at(0), np.uint32)[0].tolist() == [9]
    assert len(bench.found) == 1


def test_check_accesses_nothing() -> None:
    bench = Bench(32, params=[(Param("map", 0, 128), bytes(128))])
    a = bench.memory.alloc(256, initialised=False)
    check(bench.lanes([0]), "generic", at(a), 128, 64)
    check(bench.lanes([0]), "param", at(0), 128, 64)
    assert bench.found == []
    check(bench.lanes([0]), "generic", at(a + 192), 128, 64)
    check(bench.lanes([0]), "generic", at(a + 32), 128, 64)
    check(bench.lanes([0]), "param", at(64), 128, 64)
    check(bench.lanes([0]), "generic", at(SHARED_BASE), 128, 64)
    assert bench.found == ["out of bounds", "misaligned access", "out of bounds", "wrong state space"]


def test_bytes_stored_by_engines() -> None:
    shared = Bench(32).cta.shared
    shared.store(3, np.arange(5, dtype=np.uint8))
    assert shared.bytes[3:8].tolist() == list(range(5)) and np.flatnonzero(shared.written).tolist() == [*range(3, 8)]
    assert shared.within(0, 4096) and not shared.within(0, 4097)
