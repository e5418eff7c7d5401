"""The kill matrix of the split precisions: bugs put on purpose into the split pass, and into the order of the products of
planes, their promotion and their copies. Each must be caught by a report or by the bits of bench/order.py.

tests/kill_matrix.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench.order import split_gemm
from gpulinear import gemm, testing
from gpulinear.config import PROMOTE
from gpulinear.configs.mma import PLANE_TILES
from gpulinear.emulator import SanitizerError
from gpulinear.errors import KernelFault
from gpulinear.plan import Options

from .kill_matrix import Mutant, Pairs, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .test_split_planes import SPECIAL_BITS, from_bits, run_split, want_planes

Array = np.ndarray[Any, Any]
S = 128
DEPTH = {"bf16x6": 32, "tf32x3": 16}  # of a k-tile
SCHEDULES = ("lockstep", "warps", "random:0")


def planes(precision: str) -> Pairs:
    """Special numbers of both signs in rows that are not whole chunks, aligned and not; and random ones, transposed too."""
    signs = np.array([[0], [0x80000000]], np.uint32)
    special = from_bits(np.array(SPECIAL_BITS, np.uint32) | signs)
    raw = np.random.default_rng(0).integers(0, 2**32, (150, 30), dtype=np.uint32).view(np.float32)
    aligned = testing.VIEWS["padded"](special, np)
    try:
        return [(run_split(x, precision)[0], want_planes(x, precision)) for x in (special, aligned, raw[:, 1:], raw.T)]
    except SanitizerError as error:
        raise KernelFault(f"split_planes:\n{error}") from error


def bfloat16_planes() -> Pairs:
    return planes("bf16x6")


def tf32_planes() -> Pairs:
    return planes("tf32x3")


def products(precision: str) -> Pairs:
    """More k-tiles than stages, chains and segments that end in the middle of one, two tiles in each direction."""
    t = PLANE_TILES[-1]
    name = f"{t.block_m}x{t.block_n}x{DEPTH[precision]}/{t.warp_m}x{t.warp_n}"
    results = []
    with gemm.planning(Options(family="gemm_mma", tile=name, segment=S)):
        x, w = testing.normal((66, 2 * S + 106), "float32", 0), testing.normal((67, 2 * S + 106), "float32", 1)
        got = gl.linear(x, w, precision=precision)
        results.append((got, split_gemm(x, w.T, precision, "sm_90a", segment=S, promote=PROMOTE)))
        dy = testing.normal((66, 5), "float32", 2)
        got = gl.wgrad(dy, x[:, :9], precision=precision)
        results.append((got, split_gemm(dy.T, x[:, :9], precision, "sm_90a", segment=S, promote=PROMOTE)))
    return results


def bf16x6() -> Pairs:
    return products("bf16x6")


def tf32x3() -> Pairs:
    return products("tf32x3")


SPLIT, PAIRS, PLANES = "split_planes.cuh", "common/plane_pairs.cuh", "gemm_mma/planes.cuh"
GEMM, TILE = "gemm_mma.cuh", "gemm_mma/tile.cuh"
MUTANTS = [
    Mutant("bfloat16 truncated", SPLIT, "(magnitude + 0x7FFFu + ((magnitude >> 16) & 1u)) >> 16", "magnitude >> 16",
           bfloat16_planes),
    Mutant("bfloat16 ties away from zero", SPLIT, "0x7FFFu + ((magnitude >> 16) & 1u)", "0x8000u", bfloat16_planes),
    Mutant("bfloat16 plane overflows", SPLIT, "min(nearest(magnitude), 0x7F7Fu)", "nearest(magnitude)", bfloat16_planes),
    Mutant("bfloat16 plane vanishes", SPLIT, "min(magnitude, 1u)", "0u", bfloat16_planes),
    Mutant("second rest not taken", SPLIT, "rest = add_rn(rest, -__uint_as_float(planes[1] << 16));", "", bfloat16_planes),
    Mutant("sign of a plane lost", SPLIT, "nearest(bits & 0x7FFFFFFFu) | (bits >> 16 & 0x8000u)",
           "nearest(bits & 0x7FFFFFFFu)", bfloat16_planes),
    Mutant("Inf split like a number", SPLIT, "if (magnitude >= 0x7F800000u) {\n      planes[0] = sign | 0x3F80u;",
           "if (false) {\n      planes[0] = sign | 0x3F80u;", bfloat16_planes),
    Mutant("Inf without its sign", SPLIT, "planes[2] = sign | (magnitude", "planes[2] = (magnitude", bfloat16_planes),
    Mutant("NaN becomes Inf", SPLIT, "magnitude > 0x7F800000u ? 0x7FFFu", "false ? 0x7FFFu", bfloat16_planes),
    Mutant("column guard off by one", SPLIT, "e < count ?", "e <= count ?", bfloat16_planes),
    Mutant("row guard missing", SPLIT, "if (row >= p.rows) break;", "", bfloat16_planes),
    Mutant("rows read past the end", SPLIT, "row < p.rows ?", "row <= p.rows ?", bfloat16_planes),
    Mutant("planes overlap", SPLIT, "plane * static_cast<long long>(p.rows) + row", "plane + row", bfloat16_planes),
    Mutant("wide loads across the edge", SPLIT, "count >= kWidth)", "count > 0)", bfloat16_planes),
    Mutant("tf32 truncated", SPLIT, "(bits + 0x1000u) & 0xFFFFE000u", "bits & 0xFFFFE000u", tf32_planes),
    Mutant("tf32 plane overflows", SPLIT, "min(nearest(magnitude), 0x7F7FE000u)", "nearest(magnitude)", tf32_planes),
    Mutant("tf32 plane vanishes", SPLIT, "magnitude != 0 ? 0x2000u : 0u", "0u", tf32_planes),
    Mutant("tf32 NaN becomes Inf", SPLIT, "0x7FFFFFFFu : 0x7F800000u", "0x7F800000u : 0x7F800000u", tf32_planes),
    Mutant("tf32 planes add up to Inf", SPLIT, "min(nearest(rest & 0x7FFFFFFFu), 0x79FFE000u)",
           "nearest(rest & 0x7FFFFFFFu)", tf32_planes),
    Mutant("no barrier before columns are read", SPLIT, "__syncthreads();", "", tf32_planes),
    Mutant("columns past the end are read", SPLIT, "row < p.rows && col < p.cols", "row < p.rows", tf32_planes),
    Mutant("rows past the end are written", SPLIT, "row0 + r >= p.rows || ", "", tf32_planes),
    Mutant("a wrong plane of A in tf32x3", PAIRS, "{1, 0, 0}", "{1, 1, 0}", tf32x3),
    Mutant("steps of tf32 overlap", "gemm_mma/fragments.cuh", "(first ^ step << 5)", "(first ^ step << 4)", tf32x3),
    Mutant("large products first", PLANES, "int pair = 0; pair < Pairs::kCount; ++pair",
           "int pair = Pairs::kCount - 1; pair >= 0; --pair", bf16x6),
    Mutant("a pair left out", PLANES, "int pair = 0; pair <", "int pair = 1; pair <", bf16x6),
    Mutant("a wrong plane of B", PAIRS, "{0, 1, 2, 0, 1, 0}", "{0, 1, 2, 0, 1, 1}", bf16x6),
    Mutant("chain not restarted", PLANES, "acc[i][j][e] = 0;", "", bf16x6),
    Mutant("promotion truncates", PLANES, "add_rn(sum[i][j][e], acc[i][j][e])", "__fadd_rz(sum[i][j][e], acc[i][j][e])", bf16x6),
    Mutant("chains twice as long", GEMM, "(t + 1) % kTilesPerChain == 0", "(t + 1) % (2 * kTilesPerChain) == 0", bf16x6),
    Mutant("last chain forgotten", GEMM, " || t + 1 == segment_end) promote", ") promote", bf16x6),
    Mutant("no barrier before the planes are read", GEMM,
           "__syncthreads();  // everybody's is", "// everybody's is", bf16x6),
    Mutant("waits for one group too few", GEMM, "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", bf16x6),
    Mutant("planes of B behind the first of A", GEMM, "ring + slot * kStageBytes + kPartA + plane * TileB::kBytes",
           "ring + slot * kStageBytes + TileA::kBytes + plane * TileB::kBytes", bf16x6),
    Mutant("planes copied over each other", TILE, "plane * Tile::kBytes", "0", bf16x6),
    Mutant("planes of another size", TILE, "(kAlongK ? size_mn : size_k) * ld", "(kAlongK ? size_k : size_mn) * ld", bf16x6),
]  # fmt: skip
PROBES = probes_of(MUTANTS)


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("mutants of the split precisions", caught)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_the_clean_kernels_pass(probe: Probe, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, SCHEDULES) is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, SCHEDULES)
