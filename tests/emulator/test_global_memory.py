"""Global memory: what it holds and what is reported; expected values come from Python's own integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.errors import LaunchError
from gpulinear.emulator.global_order import How
from gpulinear.emulator.ir import Variable
from gpulinear.emulator.memory import load, store
from gpulinear.emulator.spaces import GLOBAL_BASE
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


def test_asynchronous_reductions() -> None:
    """They do not race with each other, whoever else reads has to wait."""
    bench = Bench(32, clusters=2)
    sums = bench.memory.alloc(np.zeros(4, np.float32))
    how, kind = How(level=2), np.dtype(np.float32)
    for cta in (0, 1):
        channel = bench.ctas[cta].cluster.clocks.new_channel("bulk reductions", "cp.async.bulk.wait_group")
        lanes = bench.lanes([3], cta)
        bench.memory.update(
            lanes, at(sums), kind, 4, lambda old, which: old + kind.type(1), how, column=channel, value=1
        )
    assert bench.memory.view(sums, 16).view(np.float32).tolist() == [2] * 4 and bench.found == []
    load(bench.lanes([3], 1), "global", at(sums), np.float32)
    assert bench.found == ["global race"]
    bench.ctas[1].cluster.clocks.learn(np.array([3]), channel, 1)
    load(bench.lanes([3], 1), "global", at(sums), np.float32)
    assert bench.found == ["global race"]
