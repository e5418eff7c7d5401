"""Loads, stores and cache instructions by their PTX forms; expected bytes come from struct."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

import gpulinear.emulator.isa.memory  # noqa: F401
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import Param, Variable
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.spaces import LOCAL_BASE, PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench, instruction_of

LANES = 64
TYPES = {
    "b8": "u1",
    "u8": "u1",
    "s8": "i1",
    "b16": "u2",
    "u16": "u2",
    "s16": "i2",
    "b32": "u4",
    "u32": "u4",
    "s32": "i4",
    "f32": "f4",
    "b64": "u8",
    "u64": "u8",
    "s64": "i8",
    "f64": "f8",
}


def random_bytes(nbytes: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def lanes(step: int = 0, base: int = 0, count: int = LANES) -> np.ndarray[Any, Any]:
    return base + np.arange(count, dtype=np.int64) * step


def combinations() -> list[tuple[str, int]]:
    return [(t, c) for t, d in TYPES.items() for c in (1, 2, 4) if c * np.dtype(d).itemsize <= 16]


@pytest.mark.parametrize(("kind", "count"), combinations())
@pytest.mark.parametrize("space", ["global", "shared", "local", ""])
def test_types_and_vectors(kind: str, count: int, space: str) -> None:
    """A vector's elements are adjacent, the first at the lowest address (PTX ISA 5.4.2)."""
    bench = Bench(LANES, local=[Variable("x", "local", 16, 16)])
    size = np.dtype(TYPES[kind]).itemsize * count
    raw = random_bytes(LANES * size)
    values = list(raw.view(TYPES[kind]).reshape(LANES, count).T)
    base = bench.memory.alloc(LANES * size, initialised=False) if space in ("global", "") else 0
    address = lanes(0 if space == "local" else size, base)
    dot = (f".{space}" if space else "") + (f".v{count}" if count > 1 else "") + f".{kind}"
    bench.run(f"st{dot}", address, values)
    if space in ("global", ""):
        assert bench.memory.view(base, LANES * size).tobytes() == raw.tobytes()
    elif space == "shared":
        assert bench.cta.shared.bytes[: LANES * size].tobytes() == raw.tobytes()
    got = bench.run(f"ld{dot}", address)
    assert len(got) == count and all(g.dtype == np.dtype(TYPES[kind]) for g in got)
    assert [[g[i].tobytes() for g in got] for i in range(LANES)] == [
        [raw[i * size + k * size // count :][: size // count].tobytes() for k in range(count)] for i in range(LANES)
    ]
    assert bench.found == []


LD = [
    "ld.global.b32",
    "ld.weak.global.b32",
    "ld.weak.b32",
    "ld.global.ca.b32",
    "ld.global.cg.b32",
    "ld.global.cs.b32",
    "ld.global.lu.b32",
    "ld.global.cv.b32",
    "ld.global.L1::evict_last.b32",
    "ld.global.L1::no_allocate.L2::128B.b32",
    "ld.L2::256B.b32",
    "ld.relaxed.gpu.global.b32",
    "ld.relaxed.sys.b32",
    "ld.acquire.gpu.b32",
    "ld.acquire.cluster.global.L1::evict_first.b32",
    "ld.global.acquire.gpu.b32",
    "ld.global.relaxed.cta.b32",
    "ld.volatile.global.b32",
    "ld.global.volatile.b32",
    "ld.volatile.b32",
    "ld.global.nc.b32",
    "ld.global.cs.nc.b32",
    "ld.global.nc.L1::no_allocate.L2::128B.b32",
]


@pytest.mark.parametrize("name", LD)
def test_load_forms(name: str) -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.arange(LANES, dtype=np.uint32))
    (got,) = bench.run(name, lanes(4, a))
    assert got.tolist() == list(range(LANES)) and bench.found == []


ST = [
    "st.global.b32",
    "st.weak.global.b32",
    "st.b32",
    "st.global.wb.b32",
    "st.global.cg.b32",
    "st.global.cs.b32",
    "st.global.wt.b32",
    "st.global.L1::no_allocate.b32",
    "st.relaxed.gpu.global.b32",
    "st.release.gpu.b32",
    "st.release.sys.global.b32",
    "st.global.release.cluster.b32",
    "st.global.relaxed.cta.b32",
    "st.volatile.global.b32",
    "st.global.volatile.b32",
]


@pytest.mark.parametrize("name", ST)
def test_store_forms(name: str) -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(LANES * 4, initialised=False)
    bench.run(name, lanes(4, a), [np.arange(LANES, dtype=np.uint32)])
    assert bench.memory.view(a, LANES * 4).view(np.uint32).tolist() == list(range(LANES)) and bench.found == []


@pytest.mark.parametrize("space", ["shared", "shared::cta", "shared::cluster"])
@pytest.mark.parametrize("sem", ["", ".volatile", ".relaxed.cta", "acquire"])
def test_shared_forms(space: str, sem: str) -> None:
    bench = Bench(LANES)
    store, load = (".release.cta", ".acquire.cta") if sem == "acquire" else (sem, sem)
    bench.run(f"st{store}.{space}.u16", lanes(2), [np.arange(LANES, dtype=np.uint16)])
    assert bench.run(f"ld{load}.{space}.u16", lanes(2))[0].tolist() == list(range(LANES)) and bench.found == []


def test_parameters_and_constants() -> None:
    bench = Bench(LANES, params=[(Param("p", 0, 16), struct.pack("<4i", -1, 2, -3, 4))])
    for name in ("ld.param.v4.s32", "ld.param::entry.v4.s32"):
        got = bench.run(name, lanes())
        assert [g.tolist() for g in got] == [[v] * LANES for v in (-1, 2, -3, 4)]
    c = bench.memory.place(Variable("c", "const", 8, 8, struct.pack("<d", 2.5)))
    assert bench.run("ld.const.f64", lanes(0, c))[0].tolist() == [2.5] * LANES and bench.found == []


REFUSED = [
    ("ld.global.b128", 1),
    ("ld.mmio.relaxed.sys.global.b32", 1),
    ("ld.relaxed.global.b32", 1),
    ("ld.relaxed.gpu.const.b32", 1),
    ("ld.global.v3.b32", 3),
    ("ld.global.f16", 1),
    ("ld.global.wb.b32", 1),
    ("ld.global.lu.nc.b32", 1),
    ("ld.shared.nc.b32", 1),
    ("ld.relaxed.gpu.global.cg.b32", 1),
]


@pytest.mark.parametrize(("name", "count"), REFUSED)
def test_refused_loads(name: str, count: int) -> None:
    with pytest.raises(NotModelledError):
        resolve(instruction_of(name, lanes()))


@pytest.mark.parametrize(
    "name", ["st.const.b32", "st.param.b32", "st.acquire.gpu.b32", "st.global.ca.b32", "st.global.nc.b32"]
)
def test_refused_stores(name: str) -> None:
    with pytest.raises(NotModelledError):
        resolve(instruction_of(name, lanes(), [np.zeros(LANES, np.uint32)]))


@pytest.mark.parametrize("tail", ["v8.b64", "v8.b16", "v4.b64.", "v8.f32."])
def test_wide_vectors_are_for_global_memory_of_blackwell(tail: str) -> None:
    legal = tail.endswith(".")
    tail = tail.rstrip(".")
    bench = Bench(LANES)
    a = bench.memory.alloc(np.arange(LANES * 32, dtype=np.uint8))
    with pytest.raises(NotModelledError):
        bench.run(f"ld.global.{tail}", lanes(32, a))
    bench.launch.capability = 100
    if not legal:
        with pytest.raises(NotModelledError):
            bench.run(f"ld.global.{tail}", lanes(32, a))
        return
    got = bench.run(f"ld.global.L1::evict_last.L2::evict_last.{tail}", lanes(32, a))
    b = bench.memory.alloc(LANES * 32)
    bench.run(f"st.global.{tail}", lanes(32, b), got)
    assert bench.memory.view(b, LANES * 32).tobytes() == bench.memory.view(a, LANES * 32).tobytes()
    bench.run(f"ld.global.{tail}", lanes(32, a + 16, 1), threads=[0])
    assert bench.found == ["misaligned access"]
    with pytest.raises(NotModelledError, match="global memory"):
        bench.run(f"ld.shared.{tail}", lanes(32))


def test_cache_policy_and_hint_need_each_other() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.arange(LANES, dtype=np.uint32))
    policy = bench.run("createpolicy.fractional.L2::evict_last.b64", np.full(LANES, 0.5, np.float32))
    assert policy.dtype == np.uint64 and policy.shape == (LANES,)
    assert bench.run("ld.global.L2::cache_hint.b32", lanes(4, a), policy)[0].tolist() == list(range(LANES))
    bench.run("st.global.L2::cache_hint.b32", lanes(4, a), [np.ones(LANES, np.uint32)], policy)
    for name, extra in (("ld.global.L2::cache_hint.b32", []), ("ld.global.b32", [policy])):
        with pytest.raises(NotModelledError, match="cache_hint"):
            bench.run(name, lanes(4, a), *extra)
    assert bench.found == []


def test_policies() -> None:
    bench = Bench(LANES)
    seen = {
        bench.run(f"createpolicy.fractional.L2::{first}{second}.b64", None).tobytes()
        for first in ("evict_last", "evict_normal", "evict_first", "evict_unchanged")
        for second in ("", ".L2::evict_first")
    }
    assert len(seen) == 8
    sizes = [np.full(LANES, n, np.uint32) for n in (64, 128)]
    assert bench.run("createpolicy.range.global.L2::evict_last.b64", lanes(), *sizes).dtype == np.uint64
    given = np.arange(LANES, dtype=np.uint64)
    assert (bench.run("createpolicy.cvt.L2.b64", given) == given).all() and bench.found == []
    bench.run("createpolicy.range.L2::evict_last.b64", lanes(), *sizes[::-1])
    bench.run("createpolicy.fractional.L2::evict_last.b64", np.zeros(LANES, np.float32))
    assert bench.found == ["cache policy"] * 2


def test_prefetches_do_nothing() -> None:
    bench = Bench(LANES, params=[(Param("map", 0, 128), bytes(128))])
    for name in (
        "prefetch.global.L1",
        "prefetch.local.L2",
        "prefetch.L2",
        "prefetchu.L1",
        "prefetch.global.L2::evict_last",
    ):
        assert bench.run(name, lanes()) is None
    assert bench.run("prefetch.param.tensormap", lanes()) is None
    assert bench.run("prefetch.tensormap", lanes(0, PARAM_BASE)) is None
    assert bench.found == []
    bench.run("prefetch.tensormap", lanes(0, PARAM_BASE + 32))
    assert bench.found == ["misaligned access", "out of bounds"]


def test_discard_and_applypriority() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(512, np.uint8))
    bench.run("applypriority.global.L2::evict_normal", lanes(128, a, 2), 128, threads=[0, 1])
    bench.run("discard.global.L2", lanes(128, a, 2), 128, threads=[0, 1])
    bench.barrier()
    bench.run("ld.global.b8", lanes(1, a + 256), threads=range(LANES))
    assert bench.found == []
    bench.run("ld.global.b8", lanes(4, a + 128))
    assert bench.only().kind == "uninitialised read" and bench.only().count == 32
    with pytest.raises(NotModelledError, match="128"):
        bench.run("discard.L2", lanes(128, a, 1), 64, threads=[0])
    bench.run("discard.L2", lanes(128, a + 320, 1), 128, threads=[0])
    bench.run("discard.L2", lanes(128, a + 512, 1), 128, threads=[0])
    assert bench.found[1:] == ["misaligned access", "out of bounds"]
    bench.run("ld.global.b8", lanes(1, a + 320))
    assert len(bench.found) == 3


def test_ldu() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.arange(LANES, dtype=np.uint32))
    warp = a + np.arange(LANES, dtype=np.int64) // 32 * 8
    got = bench.run("ldu.global.v2.u32", warp)
    assert got[1].tolist() == [1] * 32 + [3] * 32 and bench.found == []
    warp[40] = a
    assert bench.run("ldu.global.u32", warp)[0][40] == 0
    assert (bench.only().kind, bench.only().threads) == ("ldu of several addresses", (40,))
    bench.run("st.global.u32", lanes(0, a, 1), [np.ones(1, np.uint32)], threads=[0])
    assert bench.found[1:] == ["non-coherent read"]


def test_isspacep() -> None:
    bench = Bench(LANES, ctas=2)
    g = bench.memory.alloc(4)
    c = bench.memory.place(Variable("c", "const", 4, 4))
    windows = {"g": g, "c": c, "s": SHARED_BASE + 8, "l": LOCAL_BASE, "p": PARAM_BASE}
    windows |= {"own": SHARED_BASE + (1 << 24), "peer": SHARED_BASE + (2 << 24), "nobody": SHARED_BASE + (3 << 24)}
    address = np.array(list(windows.values()), np.uint64)
    expected = {
        "const": "c",
        "global": "gp",
        "local": "l",
        "shared": ["s", "own"],
        "shared::cta": ["s", "own"],
        "shared::cluster": ["s", "own", "peer"],
        "param": "p",
        "param::entry": "p",
    }
    for space, names in expected.items():
        got = bench.run(f"isspacep.{space}", address, threads=range(len(address)))
        assert got.dtype == bool and [n for n, g in zip(windows, got, strict=True) if g] == list(names), space
    assert bench.run("isspacep.shared", address, threads=range(len(address)), cta=1).tolist()[5:] == [
        False,
        True,
        False,
    ]


def test_orders_of_the_qualifiers_mean_the_same() -> None:
    """Release and acquire reach the memory: a message from one CTA to another."""
    for release, acquire in (
        ("st.release.gpu.global.b32", "ld.acquire.gpu.global.b32"),
        ("st.global.release.gpu.b32", "ld.global.acquire.sys.b32"),
        ("st.release.gpu.b32", "ld.acquire.gpu.b32"),
    ):
        bench = Bench(LANES, clusters=2)
        a = bench.memory.alloc(np.zeros(2, np.uint32))
        one = [np.ones(1, np.uint32)]
        bench.run("st.global.b32", lanes(0, a, 1), one, threads=[0])
        bench.run(release, lanes(0, a + 4, 1), one, threads=[0])
        bench.run(acquire, lanes(0, a + 4, 1), threads=[0], cta=1)
        bench.run("ld.global.b32", lanes(0, a, 1), threads=[0], cta=1)
        assert bench.found == [], release
        bench.run("ld.global.b32", lanes(0, a + 4, 1), threads=[1], cta=1)
        assert bench.found == ["global race"], release


def test_strong_accesses_of_two_sizes_race() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(2, np.uint32))
    bench.run("st.relaxed.gpu.global.b64", lanes(0, a, 1), [np.ones(1, np.uint64)], threads=[0])
    bench.run("ld.relaxed.gpu.global.b64", lanes(0, a, 1), threads=[1])
    assert bench.found == []
    bench.run("ld.relaxed.gpu.global.b32", lanes(0, a, 1), threads=[1])
    assert bench.found == ["global race"]


def test_nc_and_volatile_reach_the_memory() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(2, np.uint32))
    bench.run("st.volatile.global.b32", lanes(0, a, 1), [np.ones(1, np.uint32)], threads=[0])
    bench.run("ld.volatile.global.b32", lanes(0, a, 1), threads=[1])
    assert bench.found == []
    bench.run("ld.global.nc.b32", lanes(0, a, 1), threads=[0])
    assert bench.found == ["non-coherent read"]
