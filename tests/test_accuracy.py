"""What the precisions of float32 err by in the tensor-core model: within the a-priori bounds, and as docs/accuracy.md says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import accuracy, hostile
from bench.accuracy_rows import ARCHS, CHAIN, IEEE, ONE_CHAIN, OTHERS, PROBLEMS, SHIPPED, Scheme, row
from bench.order import fma_gemm, split_gemm
from gpulinear import reference, testing
from gpulinear.config import PROMOTE, SEGMENT
from gpulinear.emulator import tensorcore

SCHEMES = {scheme.name: scheme for scheme in (IEEE, ONE_CHAIN, *SHIPPED, *OTHERS)}


def measured(scheme: Scheme, arch: str, data: str, k: int = 300) -> float:
    a, b = hostile.operands(data, 9, 8, k, seed=k)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return testing.error_ratio(scheme.multiply(a, b, arch), exact, scheme.bound(a, b, arch), dtype="float32")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("data", hostile.NAMES)
@pytest.mark.parametrize("name", SCHEMES)
def test_errors_are_within_the_bound(name: str, data: str, arch: str) -> None:
    if name == "tf32" and data.startswith("near the largest"):  # outside its domain
        assert math.isinf(measured(SCHEMES[name], arch, data))
    else:
        assert measured(SCHEMES[name], arch, data) <= 1


@pytest.mark.parametrize(("precision", "factor"), [("bf16x6", 1.0), ("tf32x3", 2.0)])
def test_splits_err_no_more_than_an_fma_chain_of_the_same_depth(precision: str, factor: float) -> None:
    """Of both adders and every kind of operands that no plane is too small for: the claim of docs/accuracy.md."""
    found = {(r["data"], r["k"], r["scheme"], r["arch"]): r["rms"] for r in accuracy.read()}
    for (data, k, scheme, arch), rms in found.items():
        if scheme == precision and "100 N" not in data:
            assert rms <= factor * found[data, k, ONE_CHAIN.name, "any"], (data, k, arch)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_wrong_order_or_a_missing_promotion_breaks_the_bound_or_the_bits(arch: str) -> None:
    a, b = hostile.operands("U(0,1)", 8, 8, 4096)
    want = split_gemm(a, b, "bf16x6", arch, promote=PROMOTE)
    for promote in (None, 128, 32):
        assert (split_gemm(a, b, "bf16x6", arch, promote=promote) != want).any()
    truncated = (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # one plane of three
    exact = a.astype(np.float64) @ b.astype(np.float64)
    got = split_gemm(truncated, b, "bf16x6", arch, promote=PROMOTE)
    assert testing.error_ratio(got, exact, SHIPPED[0].bound(a, b, arch)) > 1


def test_the_order_is_that_of_single_instructions() -> None:
    """split_gemm lines instructions up for speed; here they follow each other as the contract names them."""
    a, b = testing.normal((3, 150), "float32", 0), testing.normal((150, 4), "float32", 1)
    pairs = reference.products(np.pad(a, ((0, 0), (0, 10))), np.pad(b, ((0, 10), (0, 0))), "bf16x6")

    def bits(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    sums = []
    for segment in (0, 128):
        total = np.zeros((3, 4), np.float32)
        for chain in range(segment, min(segment + 128, 160), 64):
            acc = np.zeros((3, 4), np.float32)
            for k in range(chain, min(chain + 64, 160), 16):
                for left, right in pairs:
                    acc = tensorcore.multiply_add(
                        bits(left[:, k : k + 16]), bits(right[k : k + 16]), acc, "bf16", "sm_90a"
                    )
            total = total + acc
        sums.append(total)
    want = sums[0] + sums[1]
    testing.assert_same_bits(split_gemm(a, b, "bf16x6", "sm_90a", segment=128, promote=64), want)
    start = testing.normal((3, 4), "float32", 2)
    got = split_gemm(a, b, "bf16x6", "sm_90a", segment=128, promote=64, start=start)
    testing.assert_same_bits(got, (start + sums[0]) + sums[1])


def test_constants_agree_with_the_kernels() -> None:
    assert testing.tensor_core("sm_80", "bf16x6").promote == testing.tensor_core("sm_80", "tf32x3").promote == PROMOTE
    assert IEEE.segment == SEGMENT["gemm_simt"]


def test_an_fma_chain_is_numpys_where_nothing_rounds() -> None:
    a, b = testing.integers((5, 40), "float32", 0), testing.integers((40, 6), "float32", 1)
    testing.assert_same_bits(fma_gemm(a, b, segment=16), a @ b + np.float32(0))


def test_rows_are_what_the_tree_computes() -> None:
    """Some rows of every kind of data; all of them take minutes: ``python -m bench.accuracy``."""
    stored = accuracy.read()
    for data, k in PROBLEMS:
        if k == CHAIN:
            assert row(data, k, IEEE, ARCHS[0]) in stored, data
    for scheme, arch in ((SHIPPED[0], ARCHS[0]), (SHIPPED[1], ARCHS[1])):
        assert row("N(0,1)", 1024, scheme, arch) in stored
        assert row(next(name for name in hostile.NAMES if "largest" in name), CHAIN, scheme, arch) in stored


def test_the_page_is_what_the_rows_say() -> None:
    assert accuracy.PAGE.read_text() == accuracy.page(accuracy.read())
    assert "not on hardware" in accuracy.PAGE.read_text()


def test_operand_errors_are_what_planes_leave_over() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 40000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    relative = {"tf32": 2.0**-11, "tf32x3": 2.0**-22, "bf16x6": 0.0}
    for precision, unit in relative.items():
        inside = x[np.abs(x) < 2.0**127]
        rest = np.abs(sum(plane.astype(np.float64) for plane in reference.planes(inside, precision)) - inside)
        limit = testing.operand_error(inside, precision)
        assert (rest <= limit + unit * np.abs(inside.astype(np.float64))).all()
        assert (rest > 0.4 * limit)[limit > 0].any()
    assert not testing.operand_error(x, "ieee").any()
