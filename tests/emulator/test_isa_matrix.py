"""isa/matrix.py: ldmatrix, stmatrix, movmatrix and mma on a fake CTA; expected values from the ISA's formulas."""

from __future__ import annotations

import numpy as np
import pytest

import gpulinear.emulator.isa.matrix
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import Addr, Instruction, Reg, Vec
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.spaces import SHARED_BASE
from tests.emulator.fakes import Bench
from tests.emulator.test_fragments import SHAPES, shape_of

assert gpulinear.emulator.isa.matrix  # registers the instructions


def vec(count):
    return Vec(tuple(Reg(f"%r{i}") for i in range(count)))


def execute(bench, name, operands, values, threads=None):
    """Resolve an instruction with these operands in its text and run it on these values."""
    line = Instruction(7, name, tuple(operands), name, 1)
    rule, form = resolve(line)
    chosen = np.arange(bench.cta.thread_count) if threads is None else threads
    with np.errstate(all="ignore"):
        return rule.factory(form)(Lanes(bench.cta, chosen, line), *values)


def bench_with_rows(threads=64, data=None):
    """Shared memory full of distinct 16-bit numbers, written by nobody in particular."""
    bench = Bench(threads, smem=4096)
    words = np.arange(2048, dtype=np.uint16) if data is None else data
    bench.cta.shared.store(0, words.view(np.uint8))
    return bench, words


# ------------------------------------------------------------------------------ ldmatrix, stmatrix, movmatrix


@pytest.mark.parametrize("space", [".shared", ".shared::cta", ""])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans, space):
    bench, words = bench_with_rows()
    rng = np.random.default_rng(count)
    rows = rng.permutation(256)[:64] * 16  # a row for each lane, anywhere
    address = rows.astype(np.int64) + (0 if space else SHARED_BASE)
    used = np.arange(64) % 32 < 8 * count
    address[~used] = 3  # neither aligned nor looked at
    name = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}{space}.b16"
    got = execute(bench, name, [vec(count), Addr(Reg("%a"), 0)], [address])
    assert bench.found == [] and len(got) == count
    for thread in range(64):
        warp, lane = divmod(thread, 32)
        r, q = divmod(lane, 4)
        for matrix in range(count):

            def element(row, col, warp=warp, matrix=matrix):
                return int(words[rows[32 * warp + 8 * matrix + row] // 2 + col])

            low, high = (element(2 * q + e, r) if trans else element(r, 2 * q + e) for e in (0, 1))
            assert got[matrix][thread] == low | high << 16 and got[matrix].dtype == np.uint32


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_is_the_inverse_of_ldmatrix(count, trans):
    rng = np.random.default_rng(count)
    registers = list(rng.integers(0, 2**32, (count, 64), np.uint64).astype(np.uint32))
    rows = rng.permutation(256)[:64].astype(np.int64) * 16
    suffix = f"x{count}{'.trans' if trans else ''}.shared.b16"
    bench = Bench(64, smem=4096)
    execute(bench, f"stmatrix.sync.aligned.m8n8.{suffix}", [Addr(Reg("%a"), 0), vec(count)], [rows, registers])
    assert bench.found == [] and bench.cta.shared.written.sum() == 2 * count * 8 * 16
    for thread in range(64):
        warp, lane = divmod(thread, 32)
        r, q = divmod(lane, 4)
        for matrix, half in np.ndindex(count, 2):
            row, col = (2 * q + half, r) if trans else (r, 2 * q + half)
            at = int(rows[32 * warp + 8 * matrix + row]) + 2 * col
            value = int.from_bytes(bench.cta.shared.bytes[at : at + 2].tobytes(), "little")
            assert value == int(registers[matrix][thread]) >> 16 * half & 0xFFFF
    bench.barrier()
    back = execute(bench, f"ldmatrix.sync.aligned.m8n8.{suffix}", [vec(count), Addr(Reg("%a"), 0)], [rows])
    assert all((x == y).all() for x, y in zip(back, registers, strict=True)) and bench.found == []


def test_movmatrix_transposes():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2**32, 64, np.uint64).astype(np.uint32)
    d = execute(Bench(64), "movmatrix.sync.aligned.m8n8.trans.b16", [Reg("%d"), Reg("%a")], [a])
    for warp in range(2):
        matrix = a[32 * warp :][:32].view(np.uint16).reshape(8, 8)  # lane 4 r + q holds 2 q and 2 q + 1 of row r
        assert (d[32 * warp :][:32].view(np.uint16).reshape(8, 8) == matrix.T).all()


LOAD = "ldmatrix.sync.aligned.m8n8.x1.shared.b16"
STORE = "stmatrix.sync.aligned.m8n8.x1.shared.b16"
ROWS = np.arange(32, dtype=np.int64) * 16


def test_rows_must_be_aligned_inside_and_written():
    for shift, kind in ((8, "misaligned access"), (1 << 14, "out of bounds")):
        bench, _ = bench_with_rows(32)
        address = ROWS.copy()
        address[5] += shift
        (got,) = execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [address])
        assert bench.found == [kind]
        assert (got[20:24] == 0xFFFFFFFF).all() and (got[:20] != 0xFFFFFFFF).all()  # row 5 is in lanes 20 to 23
        bench, words = bench_with_rows(32)
        execute(bench, STORE, [Addr(Reg("%a"), 0), vec(1)], [address, [np.zeros(32, np.uint32)]])
        assert bench.found == [kind]
        assert (bench.cta.shared.bytes[80:96].view(np.uint16) == words[40:48]).all()
    bench = Bench(32)
    execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [ROWS])
    assert bench.found == ["uninitialised read"]


def test_all_lanes_need_valid_addresses_on_turing():
    for capability, found in ((75, ["out of bounds"]), (80, [])):
        bench, _ = bench_with_rows(32)
        bench.launch.capability = capability
        address = np.where(np.arange(32) < 31, ROWS, 1 << 20)
        execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [address])
        assert bench.found == found
    bench.launch.capability = 75
    (got,) = execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [ROWS])
    assert (got.view(np.uint16) == np.arange(64)).all() and bench.found == []


def test_generic_addresses_must_be_shared():
    for address in (ROWS, ROWS + (1 << 46), ROWS + SHARED_BASE + (1 << 32)):
        bench, _ = bench_with_rows(32)
        generic = LOAD.replace(".shared", "")
        (got,) = execute(bench, generic, [vec(1), Addr(Reg("%a"), 0)], [address])
        assert bench.found == ["wrong state space"] and (got == 0xFFFFFFFF).all()


def test_lanes_of_a_warp_are_not_ordered_by_being_one():
    """ldmatrix reads what other lanes wrote: without __syncwarp a race, with a barrier none (weak accesses)."""
    for barrier in (False, True):
        bench = Bench(32)
        execute(bench, STORE, [Addr(Reg("%a"), 0), vec(1)], [ROWS, [np.zeros(32, np.uint32)]])
        if barrier:
            bench.barrier()
        execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [ROWS[::-1] - 24 * 16])
        assert bench.found == ([] if barrier else ["shared race"])


def test_incomplete_warps_are_reported():
    for threads in (np.arange(31), np.arange(1, 33), np.r_[0:32, 40:72], np.r_[0:31, 33]):
        n = len(threads)
        bench, _ = bench_with_rows(96)
        (got,) = execute(bench, LOAD, [vec(1), Addr(Reg("%a"), 0)], [np.arange(n) * 16], threads)
        assert bench.found == ["incomplete collective"] and (got == 0xFFFFFFFF).all()
        assert (
            execute(bench, "movmatrix.sync.aligned.m8n8.trans.b16", [Reg("%d"), Reg("%a")], [got], threads) == got
        ).all()
        execute(bench, STORE, [Addr(Reg("%a"), 0), vec(1)], [np.arange(n) * 16, [np.zeros(n, np.uint32)]], threads)
        assert bench.cta.shared.bytes[2] == 1  # nothing was stored
        name, _, _, operands = mma_case("m16n8k8", "tf32", "f32")
        d = execute(
            bench, name, operands, [[np.zeros(n, np.uint32)] * 4] * 2 + [[np.zeros(n, np.float32)] * 4], threads
        )
        assert len(d) == 4 and np.isnan(d[0]).all()


@pytest.mark.parametrize(
    "name",
    [
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x1.global.b16",
    ],
)
def test_other_loads_are_refused(name):
    with pytest.raises(NotModelledError, match="not modelled"):
        execute(Bench(32), name, [vec(1), Addr(Reg("%a"), 0)], [ROWS])
    with pytest.raises(NotModelledError, match="not modelled"):
        execute(Bench(32), name.replace("ld", "st", 1), [Addr(Reg("%a"), 0), vec(1)], [ROWS, [ROWS]])


# ----------------------------------------------------------------------------------------------------- mma

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "f64": 64}
FORMS = [("m16n8k16", "f16", "f32"), ("m16n8k16", "bf16", "f32"), ("m16n8k8", "f16", "f32"), ("m16n8k8", "bf16", "f32")]
FORMS += [("m16n8k8", "tf32", "f32"), ("m16n8k4", "tf32", "f32"), ("m16n8k16", "f16", "f16"), ("m16n8k8", "f16", "f16")]
FORMS += [(f"m{m}n8k{k}", "f64", "f64") for m, k in ((8, 4), (16, 4), (16, 8), (16, 16))]


def mma_case(shape, kind, result):
    """The name, the row of SHAPES (formulas), the fragments and the operands of a form."""
    bits = BITS[result]
    row = next(s for s in SHAPES if s[0] == shape and s[1] == BITS[kind] and s[2] == bits)
    fragment = shape_of(shape, BITS[kind], bits)
    name = f"mma.sync.aligned.{shape}.row.col.{result}.{kind}.{kind}.{result}"
    operands = [
        vec(fragment.c.registers),
        vec(fragment.a.registers),
        vec(fragment.b.registers),
        vec(fragment.c.registers),
    ]
    return name, row, fragment, operands


def encode(values, kind):
    """Numbers as an array of their bit patterns."""
    values = np.asarray(values, np.float64)
    if kind == "f64":
        return values
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


def spread(matrix, formula, registers, per_register):
    """Registers [register][lane] of one warp, element by element by the ISA's formula."""
    dtype = np.dtype(f"u{max(4, matrix.dtype.itemsize)}")
    bits = matrix.view(f"u{matrix.dtype.itemsize}")
    out = np.zeros((registers, 32), dtype)
    for lane, i in np.ndindex(32, registers * per_register):
        shift = i % per_register * 8 * matrix.dtype.itemsize
        out[i // per_register, lane] |= dtype.type(int(bits[formula(i, lane)]) << shift)
    return out


@pytest.mark.parametrize(("shape", "kind", "result"), FORMS)
def test_mma_of_integers(shape, kind, result):
    """Three warps with different matrices: exact sums, in the lanes that the ISA says."""
    name, (*_, fa, fb, fc), fragment, operands = mma_case(shape, kind, result)
    rng = np.random.default_rng(2)
    a, b, c = [], [], []
    want = []
    for _ in range(3):
        left = rng.integers(-4, 5, (fragment.a.rows, fragment.a.cols))
        right = rng.integers(-4, 5, (fragment.b.rows, fragment.b.cols))
        addend = rng.integers(-50, 50, (fragment.c.rows, 8))
        a.append(spread(encode(left, kind), fa, fragment.a.registers, 2 if BITS[kind] == 16 else 1))
        b.append(spread(encode(right, kind), fb, fragment.b.registers, 2 if BITS[kind] == 16 else 1))
        packed = 2 if result == "f16" else 1
        accumulator = encode(addend, result)
        c.append(spread(accumulator, fc, fragment.c.registers, packed))
        total = encode(left @ right + addend, result)
        want.append(spread(total, fc, fragment.c.registers, packed))
    seen = {"f16": np.uint32, "f32": np.float32, "f64": np.float64}[result]
    element = np.float64 if kind == "f64" else np.uint32
    bench = Bench(96)
    values = [[*np.hstack(part).view(t)] for part, t in ((a, element), (b, element), (c, seen))]
    got = execute(bench, name, operands, values)
    assert bench.found == [] and all(d.dtype == seen for d in got)
    assert (np.stack(got).view(want[0].dtype) == np.hstack(want)).all()
    assert bench.launch.counters.total_flops == 3 * 2 * fragment.a.rows * 8 * fragment.a.cols


def test_mma_arithmetic_is_that_of_the_launch():
    """1 + 16 * 1.5 * 2^-25: sm_80 cuts at 2^-24, sm_90 at 2^-25, the exact sum nowhere."""
    name, *_, operands = mma_case("m16n8k16", "f16", "f32")
    a, b = (int(encode(v, "f16")) * 0x10001 for v in (1.5 * 2.0**-12, 2.0**-13))
    wants = (("sm_80", "model", 1.0), ("sm_90a", "model", 1 + 2.0**-21), ("sm_90a", "exact", 1 + 1.5 * 2.0**-21))
    for arch, mode, want in wants:
        bench = Bench(32)
        bench.launch.arch, bench.launch.tensor = arch, mode
        one = np.ones(32, np.float32)
        values = [[np.full(32, a, np.uint32)] * 4, [np.full(32, b, np.uint32)] * 2, [one] * 4]
        assert (np.stack(execute(bench, name, operands, values)) == want).all()


def test_float64_is_not_reassociated():
    """1 + 2^-53 stays 1, however often: an fma for each product."""
    name, *_, operands = mma_case("m8n8k4", "f64", "f64")
    values = [[np.full(32, 2.0**-53)], [np.ones(32)], [np.ones(32)] * 2]
    assert (np.stack(execute(Bench(32), name, operands, values)) == 1.0).all()


def test_forms_that_the_target_does_not_have():
    zeros = [np.zeros(32, np.uint32)]
    first = {("m16n8k8", "f16"): 75, ("m8n8k4", "f64"): 80} | {(f"m16n8k{k}", "f64"): 90 for k in (4, 8, 16)}
    for shape, kind, result in FORMS:
        name, _, fragment, operands = mma_case(shape, kind, result)
        bench = Bench(32)
        bench.launch.capability = first.get((shape, kind), 80) - 1
        values = [zeros * fragment.a.registers, zeros * fragment.b.registers, zeros * fragment.c.registers]
        with pytest.raises(NotModelledError, match=f"needs sm_{bench.launch.capability + 1}"):
            execute(bench, name, operands, values)
    bench.launch.capability = 89
    with pytest.raises(NotModelledError, match="needs sm_90"):
        execute(bench, STORE, [Addr(Reg("%a"), 0), vec(1)], [ROWS, zeros])


@pytest.mark.parametrize(
    "name",
    [
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    ],
)
def test_other_forms_are_refused(name):
    with pytest.raises(NotModelledError, match=r"not modelled|one type"):
        execute(Bench(32), name, [vec(4), vec(4), vec(2), vec(4)], [[], [], []])
