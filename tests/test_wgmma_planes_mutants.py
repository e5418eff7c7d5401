"""The kill matrix of gemm_wgmma over planes: bugs put on purpose into the order of their products, their promotion, their
copies and descriptors. Each must be caught by a report or by the bits of bench/order.py.

tests/kill_matrix.py runs them; what planes have in common with other operands is in test_wgmma_mutants.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gpulinear as gl
from bench.order import split_gemm
from gpulinear import gemm, testing
from gpulinear.config import PROMOTE
from gpulinear.plan import Options

from .kill_matrix import Mutant, Pairs, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .test_split_planes import SPECIAL_BITS, from_bits, run_split, want_planes

S = 128
SCHEDULES = ("lockstep", "warps", "random:0")


def _products(tile: str, precision: str, tokens: int, out: int, inner: int) -> Pairs:
    """A layer, against the canonical order."""
    x, w = testing.normal((tokens, inner), "float32", 0), testing.normal((out, inner), "float32", 1)
    promote = None if precision == "tf32" else PROMOTE
    with gemm.planning(Options(tile=tile, segment=S, num_sms=1)):
        got = gl.linear(x, w, precision=precision)
    return [(got, split_gemm(x, w.T, precision, "sm_90a", segment=S, promote=promote))]


def bf16x6() -> Pairs:
    """More k-tiles than slots, a segment that ends in the middle of a chain, two tiles, edges of M and N within them."""
    return _products("64x64x64", "bf16x6", 66, 67, 2 * S + 70)


def two_consumers() -> Pairs:
    return _products("128x128x64", "bf16x6", 70, 20, S + 40)


def swapped() -> Pairs:
    """Enough outputs for the order of two products of one size to show."""
    return _products("16x64x64/swap", "bf16x6", 16, 64, 2 * S)


def other_majors() -> Pairs:
    """Boxes of two planes' columns beside each other: a tile has two in each direction."""
    dy, x = testing.normal((70, 70), "float32", 0), testing.normal((70, 100), "float32", 1)
    with gemm.planning(Options(tile="128x128x64", segment=S, num_sms=1)):
        got = gl.wgrad(dy, x, precision="bf16x6")
    return [(got, split_gemm(dy.T, x, "bf16x6", "sm_90a", segment=S, promote=PROMOTE))]


def tf32x3() -> Pairs:
    """Chains of two k-tiles, the last of which has one."""
    return _products("64x64x32", "tf32x3", 66, 67, 2 * S + 20)


def tf32() -> Pairs:
    return _products("64x64x32", "tf32", 66, 67, S + 40)


def tf32_plane() -> Pairs:
    x = from_bits(np.array(SPECIAL_BITS, np.uint32) | np.array([[0], [0x80000000]], np.uint32))
    return [(run_split(x, "tf32")[0], want_planes(x, "tf32"))]


SPLIT, PAIRS, TILE, RING = "split_planes.cuh", "common/plane_pairs.cuh", "wgmma/tile.cuh", "wgmma/ring.cuh"
LOOP, LOAD, SUM, MAIN = "wgmma/mainloop.cuh", "wgmma/producer.cuh", "wgmma/segment.cuh", "gemm_wgmma.cuh"
PTX, WGMMA = "common/ptx_sm90.cuh", "common/wgmma.cuh"

MUTANTS = [
    # the order of the products
    Mutant("large products first", LOOP, "int pair = 0; pair < Pairs::kCount; ++pair",
           "int pair = Pairs::kCount - 1; pair >= 0; --pair", bf16x6),
    Mutant("a pair left out", LOOP, "int pair = 0; pair <", "int pair = 1; pair <", bf16x6),
    Mutant("plane of A chosen as that of B", LOOP, "Config::kSwapped ? Pairs::b(pair)", "true ? Pairs::b(pair)", bf16x6),
    Mutant("order of the swapped kernel's own A", LOOP,
           "Config::kSwapped ? Pairs::b(pair) : Pairs::a(pair);\n        const int plane_b = Config::kSwapped ?",
           "false ? Pairs::b(pair) : Pairs::a(pair);\n        const int plane_b = false ?", swapped),
    Mutant("two small products change places", PAIRS, "{2, 1, 0, 1, 0, 0}", "{1, 2, 0, 1, 0, 0}", bf16x6),
    Mutant("a wrong plane of B in tf32x3", PAIRS, "{0, 1, 0}", "{0, 1, 1}", tf32x3),
    Mutant("planes outside the steps", LOOP, "a + step * TileA::kStep + plane_a",
           "a + (step * Pairs::kCount + pair) % kSteps * TileA::kStep + plane_a", bf16x6),
    # chains and their promotion
    Mutant("a chain's first product accumulates", LOOP, "step + pair > 0 ? 1 : t)", "1)", bf16x6),
    Mutant("every step starts anew", LOOP, "step + pair > 0 ? 1 : t)", "pair > 0 ? 1 : t)", bf16x6),
    Mutant("every k-tile starts anew", LOOP, "step + pair > 0 ? 1 : t)", "step + pair)", tf32x3),
    Mutant("no promotion", SUM, "sum[i] = add_rn(sum[i], acc[i]);", "sum[i] = acc[i];", bf16x6),
    Mutant("promotion truncates", SUM, "add_rn(sum[i], acc[i])", "__fadd_rz(sum[i], acc[i])", bf16x6),
    Mutant("chains twice as long", SUM, "kChain = Config::kPromote /", "kChain = 2 * Config::kPromote /", bf16x6),
    Mutant("chains half as long", SUM, "kChain = Config::kPromote /", "kChain = Config::kPromote / 2 /", tf32x3),
    Mutant("sum of the segment before", SUM, "sum[i] = 0.0f;", "sum[i] += 0.0f;", bf16x6),
    Mutant("last chain too long", SUM, "min(kChain, k_tiles - t)", "kChain", tf32x3),
    Mutant("one chain per segment", SUM, "(Config::kPromote == 0)", "(true)", bf16x6),
    Mutant("no wait at a chain's end", LOOP, "wgmma_wait<0>();", "", bf16x6),
    # copies
    Mutant("every plane is the first", LOAD, "&p.map_a, x, y, plane, full);", "&p.map_a, x, y, 0, full);", bf16x6),
    Mutant("planes of B one too high", LOAD, "&p.map_b, x, y, plane, full);", "&p.map_b, x, y, plane + 1, full);", bf16x6),
    Mutant("plane and row change places", PTX, "{%2, %3, %4}], [%5]", "{%2, %4, %3}], [%5]", bf16x6),
    Mutant("planes copied over each other", LOAD, "ring.a(place.slot) + plane * TileA::kBytes", "ring.a(place.slot)", bf16x6),
    Mutant("a plane too few", LOAD, "plane < Config::kPlanes;", "plane < Config::kPlanes - 1;", bf16x6),
    Mutant("expects one plane", LOAD, "full, Ring<Config>::kSlotBytes",
           "full, Ring<Config>::kSlotBytes / Config::kPlanes", bf16x6),
    Mutant("planes of B behind the first of A", RING, "a(slot) + Config::kPlanes * TileA::kBytes",
           "a(slot) + TileA::kBytes", bf16x6),
    # descriptors
    Mutant("descriptor of the first plane", TILE, "kPlane = kBytes / 16", "kPlane = 0", bf16x6),
    Mutant("planes one box apart", TILE, "kPlane = kBytes / 16", "kPlane = kBox / 16", other_majors),
    Mutant("planes half a consumer apart", TILE, "kPlane = kBytes / 16", "kPlane = kBytes / 32", two_consumers),
    Mutant("both consumers read the same rows of A", LOOP, "consumer * kBox", "0 * kBox", two_consumers),
    Mutant("a segment's last k-tile left out", MAIN, "Config::kSegment) + kTileDepth - 1) / kTileDepth",
           "Config::kSegment)) / kTileDepth", tf32),
    Mutant("half the steps of a k-tile", TILE, "kSteps = kRow / 32", "kSteps = kRow / 64", tf32),
    Mutant("k-tiles of 64 floats", TILE, "kDepth = kRow / static_cast<int>(sizeof(In))", "kDepth = kRow / 2", tf32),
    Mutant("tf32 multiplied as float16", WGMMA, "kIsFloat<float> = true", "kIsFloat<float> = false", tf32),
    # the plane of tf32
    Mutant("tf32 left to the tensor core", SPLIT, "planes[0] = cvt_rna_tf32_f32(x);", "planes[0] = __float_as_uint(x);", tf32),
    Mutant("tf32 truncated", SPLIT, "planes[0] = cvt_rna_tf32_f32(x);",
           "planes[0] = __float_as_uint(x) & 0xFFFFE000u;", tf32_plane),
]  # fmt: skip
PROBES = probes_of(MUTANTS)


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("mutants of gemm_wgmma over planes", caught)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_the_clean_kernel_passes(probe: Probe, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, SCHEDULES) is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, SCHEDULES)
