"""The kill matrix of gemm_mma: bugs put into it on purpose, each of which a report, a counter or a number must catch.

tests/kill_matrix.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.plan import Options

from .kill_matrix import Mutant, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .layers import f8, ints
from .test_kernel_counters import aligned

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
SMALL = "64x64x32/32x32"


def mma(**options: Any) -> Any:
    return gemm.planning(Options(**{"family": "gemm_mma", "tile": SMALL, **options}))


def ragged() -> list[tuple[Array, Array]]:
    """Two tiles in each direction, all with ragged edges, in 16-byte copies; K of six k-tiles, more than the stages."""
    x, w = ints(70, 168, dtype=BF16), ints(66, 168, dtype=BF16, seed=1)
    with mma():
        return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16))]


def transposed() -> list[tuple[Array, Array]]:
    x, dy = ints(75, 72, dtype=BF16), ints(75, 80, dtype=BF16, seed=1)
    with mma():
        return [(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(BF16))]


def unaligned() -> list[tuple[Array, Array]]:
    """Copies of single elements, and of four bytes."""
    pairs = []
    for inner in (37, 38):
        x, w = ints(5, inner, dtype=BF16), ints(6, inner, dtype=BF16, seed=1)
        with mma():
            pairs.append((gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16)))
    return pairs


def segments() -> list[tuple[Array, Array]]:
    """Three segments of K, in one block and split, against each other and against exact integers."""
    x, w = ints(3, 144, dtype=BF16), ints(12, 144, dtype=BF16, seed=1)
    y, v = testing.normal((3, 144), BF16, 2), testing.normal((12, 144), BF16, 3)
    exact = (f8(x) @ f8(w).T).astype(np.float32)
    results = []
    for splits in (1, 3):
        with mma(segment=64, splits=splits):
            results += [gl.linear(x, w, out_dtype="float32"), gl.linear(y, v, out_dtype="float32")]
    return [(results[0], exact), (results[2], exact), (results[1], results[3])]


def bias_and_activation() -> list[tuple[Array, Array]]:
    """Of two segments: the total is added by other lanes than the bias."""
    x, w, b = ints(9, 40, dtype=BF16), ints(40, 40, dtype=BF16, seed=1), ints(40, dtype=BF16, seed=2)
    z = f8(x) @ f8(w).T + f8(b)
    preact = np.empty((9, 40), BF16)
    with mma(segment=32):
        y = gl.linear(x, w, b, activation="relu", preact_out=preact)
    return [(y, np.maximum(z, 0).astype(BF16)), (preact, z.astype(BF16))]


def accumulate() -> list[tuple[Array, Array]]:
    x, dy, held = ints(9, 16, dtype=BF16), ints(9, 5, dtype=BF16, seed=1), ints(5, 16, seed=2)
    out = held.copy()
    with mma():
        gl.wgrad(dy, x, out=out, accumulate=True)
    return [(out, (f8(dy).T @ f8(x) + f8(held)).astype(np.float32))]


def bias_grad() -> list[tuple[Array, Array]]:
    """db of inexact sums, added to what is there, beside ``bgrad``: two tiles in each direction, three segments."""
    dy, x = testing.wide((84, 72), BF16, 0), testing.normal((84, 72), BF16, 1)
    held, pairs = testing.normal((72,), np.float32, 2), []
    for splits in (1, 2):
        got, want, dw = held.copy(), held.copy(), np.zeros((72, 72), np.float32)
        with mma(segment=32, splits=splits):
            gl.linear_backward(dy, x, dw.astype(BF16), needs=("dw", "db"), dw_out=dw, db_out=got, accumulate=True)
            assert "column_sum" not in [name for name, _ in last_results()]
            gl.bgrad(dy, out=want, accumulate=True)
        pairs.append((got, want))
    return pairs


def zeros() -> list[tuple[Array, Array]]:
    """Products that all underflow from below sum to -0 without the addition of +0."""
    x, w = np.full((2, 32), -(2.0**-100), BF16), np.full((8, 32), 2.0**-100, BF16)
    with mma():
        return [(gl.linear(x, w), np.zeros((2, 8), BF16))]


def conflicts() -> list[tuple[Array, Array]]:
    """The ratios of the emulator's counters are 1."""
    ratios = []
    for op in ("linear", "wgrad"):
        a, b = aligned(ints(64, 64, dtype=BF16)), aligned(ints(64, 64, dtype=BF16, seed=1))
        with mma(segment=32):
            getattr(gl, op)(a, b, out=aligned(np.zeros((64, 64), BF16)))
        counters = last_results()[0][1].counters
        ratios += [counters.wavefront_ratio, counters.sector_ratio]
    return [(np.array(ratios), np.ones(4))]


SMALL_F64, FEW_F64 = "32x32x8/16x32", "16x64x8/16x32"


def f64(tile: str = SMALL_F64, **options: Any) -> Any:
    return mma(tile=tile, **options)


def f64_integers() -> list[tuple[Array, Array]]:
    """All majors, ragged edges, K of three k-tiles; accumulation into a ragged output."""
    x, w, dy = (
        ints(35, 19, dtype="float64"),
        ints(33, 19, dtype="float64", seed=1),
        ints(35, 33, dtype="float64", seed=2),
    )
    dw = ints(33, 19, dtype="float64", seed=3)
    want = dy.T @ x + dw
    with f64():
        return [(gl.linear(x, w), x @ w.T), (gl.dgrad(dy, w), dy @ w), (gl.wgrad(dy, x, out=dw, accumulate=True), want)]


def f64_chain() -> list[tuple[Array, Array]]:
    """The bits of gemm_simt, whose chain runs k by k."""
    x, w, dy = (testing.normal(shape, "float64", seed) for seed, shape in enumerate(((5, 27), (6, 27), (5, 6))))
    bits = []
    for family in ("gemm_mma", "gemm_simt"):
        with gemm.planning(Options(family=family, segment=16)):
            bits.append((gl.linear(x, w), gl.dgrad(dy, w), gl.wgrad(dy, x)))
    return list(zip(*bits, strict=True))


def f64_few_tokens() -> list[tuple[Array, Array]]:
    """A row of k holds more chunks than half the threads copy."""
    dy, w = ints(16, 40, dtype="float64"), ints(40, 64, dtype="float64", seed=1)
    with f64(FEW_F64):
        return [(gl.dgrad(dy, w), dy @ w)]


def f64_conflicts() -> list[tuple[Array, Array]]:
    ratios = []
    for op in ("linear", "wgrad"):
        a, b = aligned(ints(32, 32, dtype="float64")), aligned(ints(32, 32, dtype="float64", seed=1))
        with f64(segment=16):
            getattr(gl, op)(a, b, out=aligned(np.zeros((32, 32))))
        counters = last_results()[0][1].counters
        ratios += [counters.wavefront_ratio, counters.sector_ratio]
    return [(np.array(ratios), np.ones(4))]


CHUNK = "common/chunk.cuh"
SUMS = "gemm_mma/bias_grad.cuh"
KERNEL, TILE, FRAGMENTS, STORE = (
    "gemm_mma.cuh",
    "gemm_mma/tile.cuh",
    "gemm_mma/fragments.cuh",
    "gemm_mma/store.cuh",
)

MUTANTS = [
    Mutant("no barrier before the next k-tile", KERNEL, "__syncthreads();  // everybody's is, and everybody has",
           "// everybody's is, and everybody has", ragged),
    Mutant("waits for one group too few", KERNEL, "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", ragged),
    Mutant("refills one slot too early", KERNEL, "slot == 0 ? kStages - 1 : slot - 1", "slot", ragged),
    Mutant("a k-tile too few", KERNEL, "(k_end - k_begin + kBK - 1) / kBK", "(k_end - k_begin) / kBK", ragged),
    Mutant("fragments of the old slot", KERNEL, "slot = slot + 1 == kStages ? 0 : slot + 1;\n            arrive",
           "arrive", ragged),
    Mutant("segments of a split one short", KERNEL, "first_segment + p.segments_per_split, segments",
           "first_segment + p.segments_per_split, segments - 1", segments),
    Mutant("the wrong half of B", KERNEL, "a[i], b[j][2], b[j][3]);",
           "a[i], b[j][0], b[j][1]);", ragged),
    Mutant("rows past the edge", TILE, "i * kPass < rows_left ?", "i * kPass <= rows_left ?", ragged),
    Mutant("a row of k too many", TILE, "i * kPass < rows_left ?", "i * kPass <= rows_left ?", transposed),
    Mutant("elements past the edge", TILE, "element < exist);", "element <= exist);", ragged),
    Mutant("an element past the edge", TILE, "2 * i + 1 < exist", "2 * i < exist", unaligned),
    Mutant("k does not advance", TILE, "from += tile_step;", "", ragged),
    Mutant("edges do not come nearer", TILE, "(kAlongK ? cols_left : rows_left) -= kBlockK;", "", ragged),
    Mutant("no swizzle", TILE, "chunk ^ swizzle(row)", "chunk", conflicts),
    Mutant("swizzle by the wrong rows", TILE, "row / kRowsPerLine * kApart & kMask", "row * kApart & kMask", conflicts),
    Mutant("rows of db in descending order", SUMS, "row = 0; row < Config::kBlockK; ++row",
           "row = Config::kBlockK - 1; row >= 0; --row", bias_grad),
    Mutant("db of the next slot", KERNEL, "bias_grad.add_tile(ring + slot * kStageBytes)",
           "bias_grad.add_tile(ring + (slot + 1) % kStages * kStageBytes)", bias_grad),
    Mutant("db without the swizzle", SUMS, "TileA::offset(row, local / kChunk)",
           "row * TileA::kRowBytes + local / kChunk * 16", bias_grad),
    Mutant("db's chain is not reset", SUMS, "total = add_rn(total, sum);\n    sum = 0.0f;",
           "total = add_rn(total, sum);", bias_grad),
    Mutant("db's slabs hold the segments before", SUMS, "= total;\n      total = 0.0f;", "= total;", bias_grad),
    Mutant("db's slab of another segment", SUMS, "(segment) * p.m + col", "(0) * p.m + col", bias_grad),
    Mutant("every block along N sums db", SUMS, "n0 == 0 &&", "", bias_grad),
    Mutant("the second block along N sums db", SUMS, "n0 == 0 &&", "n0 > 0 && m0 == 0 &&", bias_grad),
    Mutant("db ignores accumulate", SUMS, "p.accumulate && p.splits == 1", "false", bias_grad),
    Mutant("slabs of db start from what is there", SUMS, "p.accumulate && p.splits == 1", "p.accumulate", bias_grad),
    Mutant("db stored after the first segment", SUMS, "} else if (last) {", "} else if (segment == 0) {", bias_grad),
    Mutant("db past its end", SUMS, "min(m0 + static_cast<int>(threadIdx.x), p.m);",
           "m0 + static_cast<int>(threadIdx.x);", bias_grad),
    Mutant("halves of A swapped", FRAGMENTS, "kOperand == Operand::A ? matrix % 2 : matrix / 2",
           "kOperand == Operand::A ? matrix / 2 : matrix / 2", ragged),
    Mutant("fragment and step swapped", FRAGMENTS, "i * 16 * Tile::kRowBytes", "step * 16 * Tile::kRowBytes", ragged),
    Mutant("not transposed", FRAGMENTS, "ldmatrix_x4_trans(", "ldmatrix_x4(", transposed),
    Mutant("staged before it was read", STORE, "write(row0 + part * kStagedRows);\n    __syncwarp();",
           "write(row0 + part * kStagedRows);", ragged),
    Mutant("read before it was staged", STORE, "__syncwarp();\n    write(", "write(", ragged),
    Mutant("negative zeros stay", STORE, "add_rn(two[h % 2 * 2 + 1], Acc(0))", "two[h % 2 * 2 + 1]", zeros),
    Mutant("sums not cleared", STORE, "two[h % 2 * 2] = two[h % 2 * 2 + 1] = 0;", "", segments),
    Mutant("columns past the edge", STORE, "count = min(kWidth, p.n - col);", "count = kWidth;", ragged),
    Mutant("rows of the output past the edge", STORE, "if (at >= p.m || count <= 0) continue;",
           "if (at > p.m || count <= 0) continue;", ragged),
    Mutant("first segment's total dropped", STORE, "if (segment > 0) {", "if (segment > 1) {", segments),
    Mutant("accumulate ignored", STORE, "} else if (p.accumulate) {", "} else if (false) {", accumulate),
    Mutant("all segments into one slab", STORE, "static_cast<long long>(segment) * p.m * p.n", "0", segments),
    Mutant("bias past the edge", STORE, "if (col0 + c < p.n)", "if (true)", bias_and_activation),
    Mutant("bias before its lanes are there", STORE, "  __syncwarp();  // other lanes take these elements now\n", "",
           bias_and_activation),
    Mutant("float64: words of a number swapped", FRAGMENTS, "__hiloint2double(b1, b0)", "__hiloint2double(b0, b1)",
           f64_integers),
    Mutant("float64: upper rows twice", FRAGMENTS, "(d[2], d[3], lower, b)", "(d[2], d[3], upper, b)", f64_integers),
    Mutant("float64: rows and k of a lane swapped", FRAGMENTS, "mn = threadIdx.x % 32 / 4, k = threadIdx.x % 4;",
           "mn = threadIdx.x % 8, k = threadIdx.x % 32 / 8;", f64_integers),
    Mutant("float64: one number of each chunk", FRAGMENTS, " + at % Tile::kChunk * kBytes;", ";", f64_integers),
    Mutant("float64: columns of B in halves swapped", FRAGMENTS, "16 * i + 8 * half_mn, step, 0",
           "16 * i + 8 * (half_mn ^ (kOperand == Operand::B)), step, 0", f64_integers),
    Mutant("float64: k steps in the other order", FRAGMENTS, "(step * 32 + k * kBytes)", "((step ^ 1) * 32 + k * kBytes)",
           f64_chain),
    Mutant("float64: sums in another segment", KERNEL, "constexpr int kTilesPerSegment = Config::kSegment / kBK;",
           "constexpr int kTilesPerSegment = Config::kSegment / kBK + (sizeof(In) == 8);", f64_chain),
    Mutant("float64: copies in the first row's swizzle", TILE, "to ^ Tile::swizzle(i * kPass) << 4", "to", f64_few_tokens),
    Mutant("float64: swizzle of single chunks", TILE, "kByElements ? 2 : 1;", "1;", f64_conflicts),
    Mutant("float64: held value past the edge", CHUNK, "count > 1 ? from[1]", "count > 0 ? from[1]", f64_integers),
    Mutant("float64: column past the edge", CHUNK, "if (count > 1) to[1]", "if (count > 0) to[1]", f64_integers),
    Mutant("chunks in the other order", STORE, "(chunk ^ swap) *", "chunk *", conflicts),
]  # fmt: skip

PROBES = probes_of(MUTANTS)


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("gemm_mma mutants", caught)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
@pytest.mark.parametrize("schedule", ["lockstep", "warps", "random:0"])
def test_the_clean_kernel_passes(probe: Probe, schedule: str, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, [schedule], "sm_80") is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, arch="sm_80")
