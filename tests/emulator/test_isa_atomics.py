"""Atomics against a model in Python integers: lane after lane, one address after the other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gpulinear.emulator.isa.atomics  # noqa: F401
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.spaces import SHARED_BASE
from gpulinear.emulator.types import DTYPES, width_of
from tests.emulator.fakes import Bench, instruction_of

LANES = 64


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def model(operation: str, kind: str) -> Callable[..., int]:
    """What an operation does to bit patterns (PTX ISA 9.7.13.5, Semantics)."""
    bits = width_of(kind)
    key = (lambda v: signed(v, bits)) if kind.startswith("s") else (lambda v: v)
    return {
        "and": lambda r, s: r & s,
        "or": lambda r, s: r | s,
        "xor": lambda r, s: r ^ s,
        "exch": lambda r, s: s,
        "cas": lambda r, s, t: t if r == s else r,
        "add": lambda r, s: (r + s) % (1 << bits),
        "inc": lambda r, s: 0 if r >= s else r + 1,
        "dec": lambda r, s: s if r == 0 or r > s else r - 1,
        "min": lambda r, s: min(r, s, key=key),
        "max": lambda r, s: max(r, s, key=key),
    }[operation]


OPERATIONS = [
    *[(op, kind) for op in ("and", "or", "xor", "exch", "cas") for kind in ("b32", "b64")],
    ("cas", "b16"),
    *[("add", kind) for kind in ("u32", "s32", "u64")],
    ("inc", "u32"),
    ("dec", "u32"),
    *[(op, kind) for op in ("min", "max") for kind in ("u32", "s32", "u64", "s64")],
]


def memory_of(bench: Bench, space: str, content: np.ndarray[Any, Any]) -> int:
    """Content in a state space; its address as instructions of that space take it."""
    if "shared" not in space:
        return bench.memory.alloc(content)
    bench.cta.shared.store(64, content.view(np.uint8))
    return 64


def bytes_at(bench: Bench, space: str, base: int, nbytes: int) -> Any:
    return bench.cta.shared.bytes[base : base + nbytes] if "shared" in space else bench.memory.view(base, nbytes)


@pytest.mark.parametrize(("operation", "kind"), OPERATIONS)
@pytest.mark.parametrize(("space", "places"), [("global", 5), ("global", 64), ("shared", 1), ("shared::cluster", 5)])
def test_integers(operation: str, kind: str, space: str, places: int) -> None:
    bench = Bench(LANES)
    rng = np.random.default_rng(places)
    bits = width_of(kind)
    # Small numbers and the ends of the range: equal values, wrapping and signs all occur.
    pool = [0, 1, 2, 3, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    draw = lambda n: [pool[i] for i in rng.integers(0, len(pool), n)]  # noqa: E731
    memory, b, c = draw(places), draw(LANES), draw(LANES)
    index = rng.integers(0, places, LANES)
    unsigned = f"u{bits // 8}"
    base = memory_of(bench, space, np.array(memory, unsigned))
    operands = [np.array(v, unsigned).view(DTYPES[kind]) for v in ([b, c] if operation == "cas" else [b])]
    seen = bench.run(f"atom.{space}.{operation}.{kind}", base + index * (bits // 8), *operands, None)
    apply, expected = model(operation, kind), []
    for lane in range(LANES):
        old = memory[index[lane]]
        expected.append(old)
        memory[index[lane]] = apply(old, b[lane], c[lane]) if operation == "cas" else apply(old, b[lane])
    assert seen.dtype == DTYPES[kind] and seen.view(unsigned).tolist() == expected
    assert bytes_at(bench, space, base, places * bits // 8).view(unsigned).tolist() == memory
    assert bench.found == []


@pytest.mark.parametrize(("operation", "kind"), [o for o in OPERATIONS if o[0] not in ("exch", "cas")])
def test_red_is_an_atom_without_a_result(operation: str, kind: str) -> None:
    bench = Bench(LANES)
    content = np.arange(5, 21, dtype=DTYPES[kind])
    one, two = bench.memory.alloc(content), bench.memory.alloc(content)
    b = np.arange(LANES).astype(DTYPES[kind]) * DTYPES[kind].type(3)
    address = np.arange(LANES, dtype=np.int64) % 16 * content.itemsize
    bench.run(f"atom.global.{operation}.{kind}", one + address, b, None)
    assert bench.run(f"red.global.{operation}.{kind}", two + address, b, None) is None
    assert bench.memory.view(one, content.nbytes).tobytes() == bench.memory.view(two, content.nbytes).tobytes()
    assert bench.memory.view(one, content.nbytes).tobytes() != content.tobytes() or operation == "max"


def rounded(value: Fraction, precision: int, emin: int) -> Fraction:
    """To nearest, ties to even."""
    if value == 0:
        return value
    exponent = max(
        (abs(value).numerator.bit_length() - abs(value).denominator.bit_length()) - precision - 1, emin - precision + 1
    )
    while abs(value) >= Fraction(2) ** (exponent + precision):
        exponent += 1
    quantum = Fraction(2) ** exponent
    return round(value / quantum) * quantum


@pytest.mark.parametrize(("kind", "precision", "emin"), [("f32", 24, -126), ("f64", 53, -1022)])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_float_add_in_lane_order(kind: str, precision: int, emin: int, space: str) -> None:
    bench = Bench(LANES)
    dtype = DTYPES[kind]
    rng = np.random.default_rng(7)
    b = (rng.standard_normal(LANES) * 2.0 ** rng.integers(-30, 30, LANES)).astype(dtype)
    index = np.arange(LANES) % 3
    base = memory_of(bench, space, np.array([1, -1, 0], dtype))
    seen = bench.run(f"atom.{space}.add.{kind}", base + index * dtype.itemsize, b, None)
    sums, expected = [Fraction(1), Fraction(-1), Fraction(0)], []
    for lane in range(LANES):
        expected.append(sums[index[lane]])
        sums[index[lane]] = rounded(sums[index[lane]] + Fraction(float(b[lane])), precision, emin)
    assert [Fraction(float(v)) for v in seen] == expected
    got = bytes_at(bench, space, base, 3 * dtype.itemsize).view(dtype)
    assert [Fraction(float(v)) for v in got] == sums and bench.found == []


@pytest.mark.parametrize("space", ["global", "shared", ""])
def test_f32_subnormals_are_flushed_on_global_memory_only(space: str) -> None:
    """PTX ISA 9.7.13.5: inputs and results become zeros of their sign on global memory, and are kept on shared."""
    tiny, small = 2.0**-149, 2.0**-126
    old = [tiny, -tiny, 0.0, small * 1.5, -0.0]
    add = [0.0, -0.0, -tiny, -small, -tiny]
    exact = [tiny, -tiny, -tiny, small / 2, -tiny]
    flushed = [0.0, -0.0, 0.0, 0.0, -0.0]
    bench = Bench(LANES)
    kept = space == "shared"
    base = memory_of(bench, space, np.array(old, np.float32))
    seen = bench.run(
        f"atom{'.' + space if space else ''}.add.f32",
        base + np.arange(5, dtype=np.int64) * 4,
        np.array(add, np.float32),
        None,
        threads=range(5),
    )
    assert seen.tobytes() == struct.pack("<5f", *old)
    assert bytes_at(bench, space, base, 20).tobytes() == struct.pack("<5f", *(exact if kept else flushed))


def half(value: float) -> int:
    return int(struct.unpack("<H", struct.pack("<e", value))[0])


def brain(value: float) -> int:
    """The bits of a number that a bf16 holds exactly."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    assert bits & 0xFFFF == 0
    return int(bits) >> 16


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_add_keeps_subnormals_and_rounds_once(kind: str) -> None:
    encode = half if kind == "f16" else brain
    tiny = 2.0**-24 if kind == "f16" else 2.0**-133
    step = 2.0**-10 if kind == "f16" else 2.0**-7
    cases = [
        (tiny, tiny, 2 * tiny),
        (1.0, step / 2, 1.0),  # a tie goes to even
        (1.0 + step, step / 2, 1.0 + 2 * step),
        (1.0, step / 2 + step / 64, 1.0 + step),
        (1.5, -1.5, 0.0),
    ]
    bench = Bench(LANES)
    old, add, new = (np.array([encode(v) for v in column], np.uint16) for column in zip(*cases, strict=True))
    a = bench.memory.alloc(old)
    address = a + np.arange(len(cases), dtype=np.int64) * 2
    seen = bench.run(f"atom.global.add.noftz.{kind}", address, add, None, threads=range(len(cases)))
    assert seen.tolist() == old.tolist()
    assert bench.memory.view(a, 2 * len(cases)).view(np.uint16).tolist() == new.tolist()
    words = np.array([encode(1.0) | encode(-2.0) << 16], np.uint32)
    b = bench.memory.alloc(words)
    more = np.array([encode(0.5) | encode(-4.0) << 16] * 2, np.uint32)
    bench.run(f"red.global.add.noftz.{kind}x2", np.array([b, b]), more, None, threads=[0, 1])
    assert bench.memory.view(b, 4).view(np.uint32).tolist() == [encode(2.0) | encode(-10.0) << 16]


@pytest.mark.parametrize("count", [2, 4])
def test_vectors(count: int) -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(8 * count, np.float32))
    index = np.arange(LANES) % 8
    values = [np.arange(LANES, dtype=np.float32) + 100 * k for k in range(count)]
    seen = bench.run(f"atom.global.add.v{count}.f32", a + index * 4 * count, values, None)
    bench.run(f"red.global.add.v{count}.f32", a + index * 4 * count, values, None)
    total = [[2.0 * sum(i + 100 * k for i in range(LANES) if i % 8 == j) for k in range(count)] for j in range(8)]
    assert bench.memory.view(a, 32 * count).view(np.float32).reshape(8, count).tolist() == total
    assert [s[8:16].tolist() for s in seen] == [[i + 100 * k for i in range(8)] for k in range(count)]
    assert bench.found == []
    bench.run(f"red.global.add.v{count}.f32", np.array([a + 4]), [v[:1] for v in values], None, threads=[0])
    assert bench.found == ["misaligned access"]
    bench.run(f"red.add.v{count}.f32", np.array([SHARED_BASE]), [v[:1] for v in values], None, threads=[0])
    assert bench.found[1:] == ["wrong state space"]


FORMS = [
    "atom.add.acq_rel.gpu.u32",
    "atom.add.relaxed.cta.u32",
    "atom.add.release.gpu.global.u32",
    "atom.global.cta.add.u32",
    "atom.global.sys.add.u32",
    "atom.acquire.gpu.global.add.u32",
    "atom.global.acq_rel.cluster.add.u32",
    "atom.relaxed.gpu.add.u32",
    "atom.add.u32",
    "red.global.add.u32",
    "red.release.gpu.global.add.u32",
    "red.global.relaxed.cluster.add.u32",
    "red.add.release.gpu.u32",
]


@pytest.mark.parametrize("name", FORMS)
def test_places_of_the_qualifiers(name: str) -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(1, np.uint32))
    bench.run(name, np.full(LANES, a), np.ones(LANES, np.uint32), None)
    bench.run(
        name.replace(".u32", ".L2::cache_hint.u32"),
        np.full(LANES, a),
        np.ones(LANES, np.uint32),
        np.zeros(LANES, np.uint64),
    )
    assert bench.memory.view(a, 4).view(np.uint32).tolist() == [2 * LANES] and bench.found == []


REFUSED = [
    "atom.global.add.s64",
    "atom.global.inc.s32",
    "atom.global.and.u32",
    "atom.global.exch.b128",
    "atom.global.add.f16",
    "atom.global.min.f32",
    "atom.local.add.u32",
    "atom.shared.add.v2.f32",
    "red.global.exch.b32",
    "red.acquire.gpu.global.add.u32",
]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    value = [np.zeros(LANES, np.uint32)] * 2 if ".v2" in name else np.zeros(LANES, np.uint32)
    with pytest.raises(NotModelledError):
        resolve(instruction_of(name, np.zeros(LANES, np.int64), value))


@pytest.mark.parametrize(
    "name", ["atom.global.add.v2.f32", "atom.global.add.noftz.bf16", "red.global.add.noftz.bf16x2"]
)
def test_hopper_only(name: str) -> None:
    bench = Bench(LANES)
    bench.launch.capability = 80
    a = bench.memory.alloc(np.zeros(64, np.uint32))
    with pytest.raises(NotModelledError, match="sm_90"):
        bench.run(name, np.full(LANES, a), [np.zeros(LANES, np.float32)] * 2, None)


def test_generic_addresses_of_two_spaces() -> None:
    bench = Bench(LANES)
    a = bench.memory.alloc(np.zeros(1, np.uint32))
    bench.cta.shared.store(0, np.zeros(4, np.uint8))
    address = np.where(np.arange(LANES) % 2 == 0, a, SHARED_BASE)
    seen = bench.run("atom.add.u32", address, np.arange(LANES, dtype=np.uint32), None)
    evens, odds = list(range(0, LANES, 2)), list(range(1, LANES, 2))
    assert seen[::2].tolist() == [sum(evens[:i]) for i in range(32)]
    assert seen[1::2].tolist() == [sum(odds[:i]) for i in range(32)]
    assert bench.memory.view(a, 4).view(np.uint32)[0] == sum(evens)
    assert bench.cta.shared.bytes[:4].view(np.uint32)[0] == sum(odds) and bench.found == []
    assert bench.launch.counters.moved_bytes["shared", "write"] == 32 * 4


@pytest.mark.parametrize("space", ["global", "shared"])
def test_faults(space: str) -> None:
    bench = Bench(LANES, smem=128)
    base = memory_of(bench, space, np.zeros(8, np.uint32))
    end = 128 if space == "shared" else base + 32
    one = np.arange(1, 4, dtype=np.uint32)
    seen = bench.run(f"atom.{space}.add.u32", np.array([end, base + 2, base]), one, None, threads=range(3))
    assert sorted(bench.found) == ["misaligned access", "out of bounds"]
    assert seen.tolist() == [0xFFFFFFFF, 0xFFFFFFFF, 0]
    assert bytes_at(bench, space, base, 32).view(np.uint32).tolist() == [3] + [0] * 7
    fresh = 96 if space == "shared" else bench.memory.alloc(4, initialised=False)
    bench.run(f"red.{space}.add.u32", np.array([fresh]), one[:1], None, threads=[0])
    assert bench.found[2:] == ["uninitialised read"]
    if space == "global":
        a = bench.memory.alloc(np.zeros(1, np.uint32), readonly=True)
        bench.run("red.global.add.u32", np.array([a]), one[:1], None, threads=[0])
        assert bench.found[3:] == ["write to read-only memory"]


def test_shared_atomics_race_with_plain_accesses_only() -> None:
    import gpulinear.emulator.isa.memory  # noqa: F401

    bench = Bench(LANES)
    bench.cta.shared.store(0, np.zeros(4, np.uint8))
    zeros = np.zeros(LANES, np.int64)
    bench.run("atom.shared.add.u32", zeros, np.ones(LANES, np.uint32), None)
    bench.run("red.shared.add.u32", zeros, np.ones(LANES, np.uint32), None)
    assert bench.found == []
    bench.run("ld.shared.u32", zeros)
    assert bench.found == ["shared race"]


def test_red_acquires_nothing() -> None:
    """red.relaxed and a fence are no acquire pattern, atom and a fence are one (PTX ISA 8.8)."""
    for opcode, kinds in (("atom", []), ("red", ["global race"])):
        bench = Bench(LANES, clusters=2)
        data, flag = bench.memory.alloc(np.zeros(1, np.uint32)), bench.memory.alloc(np.zeros(1, np.uint32))
        one = np.ones(1, np.uint32)
        bench.run("st.global.b32", np.array([data]), [one], threads=[0])
        bench.run("red.release.gpu.global.add.u32", np.array([flag]), one, None, threads=[0])
        bench.run(f"{opcode}.global.add.u32", np.array([flag]), one, None, threads=[0], cta=1)
        bench.memory.fence(bench.lanes([0], 1))
        bench.run("ld.global.b32", np.array([data]), threads=[0], cta=1)
        assert bench.found == kinds
