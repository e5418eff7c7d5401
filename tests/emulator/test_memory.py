"""Memory: what each state space holds, and what is reported; expected values come from Python's own integers."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.errors import LaunchError
from gpulinear.emulator.global_order import How
from gpulinear.emulator.ir import Param, Variable
from gpulinear.emulator.memory import check, load, read_bytes, split_shared, store, write_bytes
from gpulinear.emulator.shared_memory import RED_ZONE, layout_shared
from gpulinear.emulator.spaces import GLOBAL_BASE, LOCAL_BASE, PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench

POISON32 = 0xFFFFFFFF


def at(*addresses: int) -> np.ndarray[Any, Any]:
    return np.array(addresses, np.int64)


def rows(base: int, count: int, step: int) -> np.ndarray[Any, Any]:
    return base + np.arange(count, dtype=np.int64) * step


def shared_variable(name: str, size: int | None, align: int) -> Variable:
    return Variable(name, "shared", size, align)


# ---------------------------------------------------------------------------------------------- global memory


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i4", "f4", "f8"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("order", ["run", "reversed", "scattered", "broadcast"])
def test_global_load_and_store(dtype: str, count: int, order: str) -> None:
    bench = Bench(64)
    size = np.dtype(dtype).itemsize * count
    rng = np.random.default_rng(1)
    content = rng.integers(0, 256, 64 * size, np.uint8)
    source, target = bench.memory.alloc(content, name="a"), bench.memory.alloc(64 * size, initialised=False, name="b")
    index = {"run": np.arange(64), "reversed": np.arange(64)[::-1], "broadcast": np.full(64, 5)}.get(order)
    if index is None:
        index = rng.permutation(64)
    values = load(bench.lanes(), "global", source + index * size, dtype, count)
    raw = content.tobytes()
    expected = [raw[i * size : (i + 1) * size] for i in index.tolist()]
    assert [b"".join(v[i].tobytes() for v in values) for i in range(64)] == expected
    assert len(values) == count and all(v.dtype == np.dtype(dtype) for v in values)
    if order != "broadcast":
        store(bench.lanes(), "global", target + index * size, values, dtype)
        assert bench.memory.view(target, 64 * size).tobytes() == raw
    assert bench.found == []
    assert bench.launch.counters.moved_bytes["global", "read"] == 64 * size


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("order", [1, -1])
def test_what_was_loaded_does_not_change(space: str, order: int) -> None:
    bench = Bench(32)
    address = rows(bench.memory.alloc(np.zeros(32, np.uint32)) if space == "global" else 0, 32, 4)[::order].copy()
    bench.cta.shared.store(0, np.zeros(128, np.uint8))
    got = load(bench.lanes(), space, address, np.uint32)
    store(bench.lanes(), space, address, [np.ones(32, np.uint32)], np.uint32)
    assert got[0].tolist() == [0] * 32


def test_addresses_are_aligned_as_asked_and_not_better() -> None:
    memory = Bench().memory
    for align in (1, 2, 16, 256, 1024):
        for nbytes in (1, 100, 4096):
            address = memory.alloc(nbytes, align=align)
            assert address & -address == align and address > GLOBAL_BASE
    with pytest.raises(LaunchError, match="power of two"):
        memory.alloc(4, align=3)


def test_allocations_are_far_apart() -> None:
    memory = Bench().memory
    end = 0
    for nbytes in (1, 0, 4096, 7):
        start = memory.alloc(nbytes)
        assert start - end >= 512
        end = start + nbytes


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (4096, "4 bytes past the end of allocation 'a' (4096 bytes)"),
        (4100, "8 bytes past the end of allocation 'a' (4096 bytes)"),
        (-4, "4 bytes before the start of allocation 'a' (4096 bytes)"),
        (-(1 << 30), "where nothing is allocated"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_out_of_bounds_names_the_allocation(offset: int, words: str, write: bool) -> None:
    bench = Bench(64)
    a = bench.memory.alloc(np.arange(1024, dtype=np.uint32), name="a")
    address = rows(a, 64, 4)
    address[37] = a + offset
    if write:
        store(bench.lanes(), "global", address, [np.full(64, 7, np.uint32)], np.uint32)
        got = bench.memory.view(a, 4096).view(np.uint32)
        assert got.tolist() == [7 if i < 64 and i != 37 else i for i in range(1024)]
    else:
        (got,) = load(bench.lanes(), "global", address, np.uint32)
        assert got.tolist() == [POISON32 if i == 37 else i for i in range(64)]
    found = bench.only()
    assert (found.kind, found.threads, found.address) == ("out of bounds", (37,), a + offset)
    assert words in found.message and found.message.startswith("writes" if write else "reads") and found.fix


def test_an_access_may_not_run_over_the_end() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(np.zeros(24, np.uint8), name="a")
    load(bench.lanes([0]), "global", at(a + 16), np.uint32, 4)
    assert "8 bytes past the end" in bench.only().message


def test_two_allocations_in_one_instruction() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(np.arange(32, dtype=np.uint32))
    b = bench.memory.alloc(np.arange(100, 132, dtype=np.uint32))
    lane = np.arange(32)
    (got,) = load(bench.lanes(), "global", np.where(lane % 2 == 0, a, b) + lane * 4, np.uint32)
    assert got.tolist() == [i if i % 2 == 0 else 100 + i for i in range(32)] and bench.found == []


@pytest.mark.parametrize(("nbytes", "count"), [(2, 1), (4, 1), (8, 1), (8, 2), (16, 4)])
def test_misaligned(nbytes: int, count: int) -> None:
    """The whole vector has to be aligned, not only its elements (PTX ISA 6.4.1)."""
    bench = Bench(32)
    a = bench.memory.alloc(np.zeros(4096, np.uint8))
    dtype = f"u{nbytes // count}"
    for step in (1, nbytes // 2):
        address = rows(a, 32, nbytes)
        address[3] += step
        got = load(bench.lanes(), "global", address, dtype, count)
        assert all(int(v[3]) == 256 ** (nbytes // count) - 1 and not v[:3].any() and not v[4:].any() for v in got)
    assert bench.found == ["misaligned access"] * 2
    first = bench.launch.report.findings[0]
    assert (first.threads, first.address) == ((3,), a + 3 * nbytes + 1)
    store(bench.lanes(), "global", address, got, dtype)
    assert bench.found[2:] == ["misaligned access"]
    assert not bench.memory.view(a, 4096).any()


def test_holes_of_a_strided_view() -> None:
    bench = Bench(32)
    valid = np.tile(np.arange(32) < 24, 8)
    a = bench.memory.alloc(np.arange(64, dtype=np.uint32), valid_mask=valid, name="a")
    (got,) = load(bench.lanes(range(6)), "global", rows(a + 32, 6, 4), np.uint32)
    assert got.tolist() == list(range(8, 14)) and bench.found == []
    (got,) = load(bench.lanes(), "global", rows(a, 32, 8), np.uint32)
    assert got.tolist() == [POISON32 if i % 4 == 3 else 2 * i for i in range(32)]
    found = bench.only()
    assert found.count == 8 and "in a gap of allocation 'a' (256 bytes), at its byte 24" in found.message


def test_an_access_across_a_hole_is_out_of_bounds() -> None:
    bench = Bench(32)
    valid = np.ones(16, bool)
    valid[5] = False
    a = bench.memory.alloc(np.zeros(16, np.uint8), valid_mask=valid)
    load(bench.lanes([0]), "global", at(a), np.uint32, 4)
    assert bench.found == ["out of bounds"]


def test_read_only() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(np.zeros(32, np.uint32), readonly=True, name="weights")
    store(bench.lanes(), "global", rows(a, 32, 4), [np.ones(32, np.uint32)], np.uint32)
    assert bench.found == ["write to read-only memory"] and "'weights'" in bench.only().message
    assert not bench.memory.view(a, 128).any()


@pytest.mark.parametrize("order", ["run", "scattered"])
def test_uninitialised_global(order: str) -> None:
    bench = Bench(32)
    a = bench.memory.alloc(128, initialised=False, name="out")
    lane = np.arange(32) if order == "run" else np.random.default_rng(0).permutation(32)
    store(bench.lanes(range(31)), "global", a + lane[:31] * 4, [np.ones(31, np.uint32)], np.uint32)
    load(bench.lanes(range(31)), "global", a + lane[:31] * 4, np.uint32)
    assert bench.found == []
    (got,) = load(bench.lanes(), "global", a + lane * 4, np.uint32)
    found = bench.only()
    assert (found.kind, found.threads, found.address) == ("uninitialised read", (31,), a + 4 * int(lane[31]))
    assert got.tolist() == [1] * 31 + [POISON32] and "'out'" in found.message


def test_one_uninitialised_byte_is_enough() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(16, initialised=False)
    for i in range(15):
        store(bench.lanes([0]), "global", at(a + i), [np.zeros(1, np.uint8)], np.uint8)
    load(bench.lanes([0]), "global", at(a), np.uint8)
    assert bench.found == []
    load(bench.lanes([0]), "global", at(a), np.uint32, 4)
    assert bench.found == ["uninitialised read"]


def test_host_access() -> None:
    memory = Bench().memory
    a = memory.alloc(16, initialised=False)
    memory.fill(a + 4, np.array([1, 2], np.uint32))
    assert memory.view(a, 16).view(np.uint32).tolist() == [POISON32, 1, 2, POISON32]
    memory.view(a, 4)[:] = 0
    assert memory.view(a, 4).tolist() == [0] * 4
    for address, nbytes in ((a, 17), (a + 16, 1), (a - 1, 1)):
        with pytest.raises(LaunchError, match="not in one allocation"):
            memory.view(address, nbytes)
    with pytest.raises(LaunchError, match="valid_mask"):
        memory.alloc(4, valid_mask=np.ones(5, bool))


def test_variables_of_a_module() -> None:
    bench = Bench(32)
    zero = bench.memory.place(Variable("z", "global", 8, 8))
    const = bench.memory.place(Variable("c", "const", 4, 4, b"\1\2\3\4"))
    assert load(bench.lanes([0]), "global", at(zero), np.uint64)[0].tolist() == [0]
    assert load(bench.lanes([0]), "const", at(const), np.uint32)[0].tolist() == [0x04030201]
    store(bench.lanes([0]), "global", at(zero), [np.ones(1, np.uint64)], np.uint64)
    assert bench.found == []
    load(bench.lanes([0]), "global", at(const), np.uint32)
    load(bench.lanes([0]), "const", at(zero), np.uint32)
    assert bench.found == ["wrong state space"] * 2
    store(bench.lanes([0]), "generic", at(const), [np.ones(1, np.uint32)], np.uint32)
    store(bench.lanes([0]), "const", at(const), [np.ones(1, np.uint32)], np.uint32)
    assert bench.found[2:] == ["write to read-only memory"] * 2
    assert "variable 'c'" in bench.launch.report.findings[0].message


def test_write_conflict() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(128)
    address = rows(a, 32, 4)
    address[9] = a + 16
    store(bench.lanes(), "global", address, [np.arange(32, dtype=np.uint32)], np.uint32)
    assert bench.found == ["write conflict"]
    store(bench.lanes(), "global", np.full(32, a), [np.ones(32, np.uint32)], np.uint32, How(level=2))
    assert bench.found == ["write conflict", "global race"]  # strong stores race with the weak one, not with each other


# --------------------------------------------------------------------------------------------- non-coherent loads


def test_nc_read_after_a_write() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(np.zeros(64, np.uint32))
    store(bench.lanes(), "global", rows(a, 32, 4), [np.ones(32, np.uint32)], np.uint32)
    bench.barrier()
    load(bench.lanes(), "global", rows(a + 128, 32, 4), np.uint32, 1, How(nc=True))
    assert bench.found == []
    load(bench.lanes(), "global", rows(a, 32, 8), np.uint32, 1, How(nc=True))
    found = bench.only()
    assert (found.kind, found.count, found.threads[:2]) == ("non-coherent read", 16, (0, 1))


def test_write_after_an_nc_read() -> None:
    bench = Bench(32)
    a = bench.memory.alloc(np.zeros(64, np.uint32))
    load(bench.lanes(), "global", rows(a, 32, 8), np.uint32, 1, How(nc=True))
    store(bench.lanes(), "global", rows(a + 4, 32, 8), [np.ones(32, np.uint32)], np.uint32)
    assert bench.found == []
    store(bench.lanes([7]), "global", at(a + 16), [np.ones(1, np.uint32)], np.uint32)
    found = bench.only()
    assert (found.kind, found.threads, found.address) == ("non-coherent read", (7,), a + 16)


def test_a_launch_starts_afresh() -> None:
    first = Bench(32)
    a = first.memory.alloc(np.zeros(32, np.uint32))
    load(first.lanes(), "global", rows(a, 32, 4), np.uint32, 1, How(nc=True))
    second = Bench(32, memory=first.memory)
    store(second.lanes(), "global", rows(a, 32, 4), [np.ones(32, np.uint32)], np.uint32)
    third = Bench(32, memory=first.memory)
    (got,) = load(third.lanes(), "global", rows(a, 32, 4), np.uint32, 1, How(nc=True))
    assert got.tolist() == [1] * 32 and first.found == second.found == third.found == []


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
    assert np.flatnonzero(shared.valid).tolist() == [0, *range(offset, offset + 40)]
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


def test_split_shared() -> None:
    bench = Bench(32, ctas=2)
    cta: Any = bench.ctas[0]
    owner, offsets = split_shared(cta, at(8, 16))
    assert owner is cta and offsets.tolist() == [8, 16]
    owner, offsets = split_shared(cta, at((2 << 24) + 8, (2 << 24) + 12))
    assert owner is bench.ctas[1] and offsets.tolist() == [8, 12]
    owners, offsets = split_shared(cta, at((1 << 24) + 8, (2 << 24) + 12, 4, 9 << 24))
    assert list(owners) == [cta, bench.ctas[1], cta, None] and offsets.tolist() == [8, 12, 4, 0]


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


# ------------------------------------------------------------------------------------- asynchronous copies


def test_rows_of_asynchronous_copies() -> None:
    bench = Bench(32)
    cta: Any = bench.cta
    line = bench.lanes().instruction
    a = bench.memory.alloc(np.arange(256, dtype=np.uint8))
    b = bench.memory.alloc(256, initialised=False)
    data = bench.memory.async_read(cta, 3, line, at(a, a + 100), 20)
    assert data.tolist() == [list(range(20)), list(range(100, 120))]
    bench.memory.async_write(cta, 3, line, at(b + 1, b + 50), data)
    assert bench.memory.view(b + 1, 20).tolist() == list(range(20)) and bench.found == []
    bench.memory.async_read(cta, 3, line, at(a + 250), 20)
    assert (bench.only().kind, bench.only().threads) == ("out of bounds", (3,))
    assert bench.launch.counters.total("global").requests == 0
    assert bench.launch.counters.moved_bytes["global", "read"] == 40


def test_asynchronous_writes_have_to_be_waited_for() -> None:
    bench = Bench(32)
    cta: Any = bench.cta
    clocks = bench.cta.cluster.clocks
    channel = clocks.new_channel("bulk stores", "cp.async.bulk.wait_group")
    b = bench.memory.alloc(64, initialised=False)
    bench.memory.async_write(
        cta, 0, bench.lanes().instruction, at(b), np.zeros((1, 16), np.uint8), column=channel, value=2
    )
    load(bench.lanes([0]), "global", at(b), np.uint32)
    assert bench.found == ["global race"]
    clocks.learn(np.array([0]), channel, 2)
    load(bench.lanes([0]), "global", at(b), np.uint32)
    assert bench.found == ["global race"]
    load(bench.lanes([1]), "global", at(b), np.uint32)
    bench.barrier()
    load(bench.lanes([1]), "global", at(b), np.uint32)
    assert bench.found == ["global race"] * 2


def test_shared_rows() -> None:
    shared = Bench(32).cta.shared
    shared.store(3, np.arange(5, dtype=np.uint8))
    shared.store_rows(np.array([64, 128]), np.arange(8, dtype=np.uint8).reshape(2, 4))
    assert shared.bytes[3:8].tolist() == list(range(5)) and shared.bytes[128:132].tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(shared.written).tolist() == [*range(3, 8), *range(64, 68), *range(128, 132)]
    assert shared.within(0, 4096) and not shared.within(0, 4097)
