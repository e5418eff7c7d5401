"""The kill matrix: bugs put into the shipped kernels on purpose, each of which a report or a number must catch.

A mutant is one textual change of a header in a copy of kernels/. ``probe`` names the smallest calls that reach it; they
run in the emulator. The matrix is printed at the end (``-s`` shows it), with what caught each mutant.
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
from gpulinear.config import SEGMENT
from gpulinear.plan import Options

from .kill_matrix import Mutant, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .layers import f8, ints

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
S = SEGMENT["gemm_simt"]
SMALL = "32x32x16/4x4"


def ragged() -> list[tuple[Array, Array]]:
    """Two tiles in each direction, all with ragged edges; K of several k-tiles."""
    x, w = ints(33, 67), ints(37, 67, seed=1)
    with gemm.planning(Options(tile=SMALL)):
        return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(np.float32))]


def unaligned() -> list[tuple[Array, Array]]:
    x, w = ints(5, 21, dtype=BF16), ints(6, 21, dtype=BF16, seed=1)
    with gemm.planning(Options(family="gemm_simt")):
        return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16))]


def transposed() -> list[tuple[Array, Array]]:
    x, dy = ints(67, 36), ints(67, 40, seed=1)
    with gemm.planning(Options(tile=SMALL)):
        return [(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(np.float32))]


def segments() -> list[tuple[Array, Array]]:
    """Three segments of K, in one block and split, against each other and against exact integers."""
    x, w = ints(3, 2 * S + 9), ints(4, 2 * S + 9, seed=1)
    y, v = testing.normal((3, 2 * S + 9), "float32", 2), testing.normal((4, 2 * S + 9), "float32", 3)
    exact = (f8(x) @ f8(w).T).astype(np.float32)
    results = []
    for splits in (1, 3):
        with gemm.planning(Options(tile=SMALL, splits=splits)):
            results += [gl.linear(x, w), gl.linear(y, v)]
    return [(results[0], exact), (results[2], exact), (results[1], results[3])]


def bias_and_activation() -> list[tuple[Array, Array]]:
    x, w, b = ints(5, 8), ints(40, 8, seed=1), ints(40, seed=2)
    z = f8(x) @ f8(w).T + f8(b)
    preact = np.empty((5, 40), np.float32)
    y = gl.linear(x, w, b, activation="relu", preact_out=preact)
    return [(y, np.maximum(z, 0).astype(np.float32)), (preact, z.astype(np.float32))]


def accumulate() -> list[tuple[Array, Array]]:
    x, dy, held = ints(9, 6), ints(9, 5, seed=1), ints(5, 6, seed=2)
    want = (f8(dy).T @ f8(x) + f8(held)).astype(np.float32)
    out = held.copy()
    gl.wgrad(dy, x, out=out, accumulate=True)
    return [(out, want)]


def chain() -> list[tuple[Array, Array]]:
    """Only a fused multiply-add keeps the 2^-24 of (1 + 2^-12)^2."""
    x = np.array([[-1.0, 1 + 2.0**-12]], np.float32)
    w = np.array([[1 + 2.0**-11, 1 + 2.0**-12]], np.float32)
    return [(gl.linear(x, w), np.array([[2.0**-24]], np.float32))]


def rounding() -> list[tuple[Array, Array]]:
    """Products above a tie, and on one whose even neighbour is the lower."""
    x = np.array([[1.75], [1.5]]).astype(BF16)
    w = np.array([[1 + 2.0**-7], [1 + 3 * 2.0**-7]]).astype(BF16)
    return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16))]


def columns() -> list[tuple[Array, Array]]:
    dy = ints(150, 35)
    held = ints(35, seed=1)
    out = held.copy()
    gl.bgrad(dy, out=out, accumulate=True)
    return [(gl.bgrad(dy), f8(dy).sum(0).astype(np.float32)), (out, (f8(dy).sum(0) + held).astype(np.float32))]


def long_columns() -> list[tuple[Array, Array]]:
    rows = SEGMENT["column_sum"] + 3
    dy = ints(rows, 3)
    return [(gl.bgrad(dy), f8(dy).sum(0).astype(np.float32))]


def act_grad() -> list[tuple[Array, Array]]:
    dy, x, w = testing.normal((70, 6), BF16, 0), ints(70, 4, dtype=BF16, seed=1), ints(6, 4, dtype=BF16, seed=2)
    preact = testing.normal((70, 6), BF16, 3)
    grads = gl.linear_backward(dy, x, w, activation="relu", preact=preact, needs=("dw", "db"))
    dz = np.where(f8(preact) > 0, f8(dy), 0.0).astype(BF16)
    return [(grads.db, gl.bgrad(dz)), (grads.dw, gl.wgrad(dz, x))]


def gapped() -> list[tuple[Array, Array]]:
    x, w = ints(6, 20)[:, ::2], ints(7, 10, seed=1)
    return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(np.float32))]


MUTANTS = [
    Mutant("no barrier before the k-tile is read", "gemm_simt.cuh", "__syncthreads();  // everybody", "// everybody", ragged),
    Mutant("waits for one group too few", "gemm_simt.cuh", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>", ragged),
    Mutant("refills one slot too early", "gemm_simt.cuh", "next_slot = kStages - 1;", "next_slot = 0;", ragged),
    Mutant("a k-tile too many", "gemm_simt.cuh", "(k_end - k_begin + kBK - 1) / kBK", "(k_end - k_begin) / kBK", ragged),
    Mutant("row guard off by one", "gemm_simt.cuh", "if (row >= p.m) continue;", "if (row > p.m) continue;", ragged),
    Mutant("column guard off by one", "gemm_simt.cuh", "col < p.n", "col <= p.n", ragged),
    Mutant("accumulators not cleared", "gemm_simt.cuh", "acc[i][j] = 0;", "", segments),
    Mutant("first segment's total dropped", "gemm_simt.cuh", "if (segment > 0) {", "if (segment > 1) {", segments),
    Mutant("segments of a split one short", "gemm_simt.cuh", "first_segment + p.segments_per_split, segments",
           "first_segment + p.segments_per_split, segments - 1", segments),
    Mutant("running total not added", "gemm_simt.cuh", "if (segment > 0 || p.accumulate) value",
           "if (p.accumulate) value", segments),
    Mutant("accumulate ignored", "gemm_simt.cuh", "} else if (p.accumulate) {", "} else if (false) {", accumulate),
    Mutant("k guard off by one", "common/layout.cuh", "size_k - k :", "size_k - k + 1 :", unaligned),
    Mutant("mn guard off by one", "common/layout.cuh", "mn0 + mn < size_mn :", "mn0 + mn <= size_mn :", ragged),
    Mutant("k rows past the end", "common/layout.cuh", ": k < size_k;", ": k <= size_k;", transposed),
    Mutant("swizzle only when written", "common/layout.cuh", "(mn / kRowsPerLine) % kChunksPerRow",
           "(mn / kRowsPerLine + k / 8) % kChunksPerRow", ragged),
    Mutant("pitch and index swapped", "common/layout.cuh", "m * ld + k : k * ld + m", "k * ld + m : m * ld + k", ragged),
    Mutant("bias of the row", "common/epilogue.cuh", "add_bias<Config>(p, col, value)", "add_bias<Config>(p, row, value)",
           bias_and_activation),
    Mutant("pre-activation after the activation", "common/epilogue.cuh", "row * p.ldp + col, value)",
           "row * p.ldp + col, activate(value, p.activation))", bias_and_activation),
    Mutant("product rounded", "common/types.cuh", "return __fmaf_rn(a, b, c);", "return __fadd_rn(__fmul_rn(a, b), c);", chain),
    Mutant("bfloat16 truncated", "common/types.cuh", "(bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16", "bits >> 16", rounding),
    Mutant("ties away from zero", "common/types.cuh", "0x7FFFu + ((bits >> 16) & 1u)", "0x8000u", rounding),
    Mutant("split sums in descending order", "ordered_reduce.cuh", "slabs[segment * p.slab_stride + index]",
           "slabs[(p.count - segment) * p.slab_stride + index]", segments),
    Mutant("output guard off by one", "ordered_reduce.cuh", "index >= ", "index > ", segments),
    Mutant("column chain without its barrier", "common/column_chain.cuh", "__syncthreads();", "", columns),
    Mutant("chunk of the wrong parity", "common/column_chain.cuh", "chunk[c % 2][r][lane]", "chunk[(c + 1) % 2][r][lane]", columns),
    Mutant("a chunk fetched twice", "common/column_chain.cuh", "fetch(c + 1)", "fetch(c)", long_columns),
    Mutant("column sums do not accumulate", "common/column_chain.cuh", "if (accumulate) sum", "if (false) sum", columns),
    Mutant("rows of the last segment", "bias_grad.cuh", "min(Config::kSegment, p.rows - first)", "Config::kSegment", long_columns),
    Mutant("dz summed before it is rounded", "act_grad.cuh", "return to_acc<Acc>(rounded);",
           "return mul_rn(to_acc<Acc>(loaded.dy), slope) + Acc(1);", act_grad),
    Mutant("items past the end are copied", "strided_copy.cuh", "if (rest >= count) return;", "", gapped),
]  # fmt: skip


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("kernel mutants", caught)


PROBES = probes_of(MUTANTS)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
@pytest.mark.parametrize("schedule", ["lockstep", "warps", "random:0"])
def test_the_clean_kernels_pass(probe: Probe, schedule: str, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, [schedule]) is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch)
