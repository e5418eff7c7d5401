"""tensorcore.py against a slow model in fractions, written from the description alone."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from gpulinear.emulator import tensorcore

FORMS = [("f16", "sm_75"), ("f16", "sm_80"), ("bf16", "sm_89"), ("tf32", "sm_86")]
FORMS += [("f16", "sm_90a"), ("bf16", "sm_90a"), ("tf32", "sm_90a"), ("bf16", "sm_120")]
LOWEST = {"f16": -14, "bf16": -126, "tf32": -126}


def exponent_field(value: float, lowest: int) -> int:
    return max(math.frexp(value)[1] - 1, lowest)


def truncate(value: Fraction, quantum: Fraction) -> Fraction:
    return int(value / quantum) * quantum  # int() cuts toward zero


def slow_dot(a, b, c, kind, arch):
    """One element of D, in fractions."""
    step = tensorcore.step_of(kind, arch)
    total = Fraction(float(c))
    for start in range(0, len(a), step.products):
        terms = []
        for x, y in zip(a[start:][: step.products], b[start:][: step.products], strict=True):
            if x and y:
                both = exponent_field(x, LOWEST[kind]) + exponent_field(y, LOWEST[kind])
                terms.append((Fraction(x) * Fraction(y), both))
        if total:
            terms.append((total, exponent_field(float(total), -126)))
        if not terms:
            continue
        quantum = Fraction(2) ** (max(e for _, e in terms) - step.fraction_bits)
        total = sum(truncate(value, quantum) for value, _ in terms)
        if total:
            top = math.frexp(float(total))[1] - 1
            if Fraction(2) ** top > abs(total):
                top -= 1
            total = truncate(total, Fraction(2) ** (max(top, -126) - 23))
            if abs(total) >= Fraction(2) ** 128:
                return math.copysign(math.inf, total)
    return float(total)


def operands(kind, shape, spread, rng):
    """Bit patterns over 2 * spread binades, zeros and subnormals among them."""
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))
    x[rng.random(shape) < 0.05] = 0.0
    x[rng.random(shape) < 0.05] *= 2.0 ** (LOWEST[kind] - 2)
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


@pytest.mark.parametrize("spread", [0, 3, 9])
@pytest.mark.parametrize(("kind", "arch"), FORMS)
def test_model_agrees_with_fractions(kind, arch, spread):
    rng = np.random.default_rng(spread)
    m, n, k = 5, 7, 32
    a, b = operands(kind, (m, k), spread, rng), operands(kind, (k, n), spread, rng)
    c = rng.standard_normal((m, n)).astype(np.float32)
    c[0] = 0
    c[1] *= np.float32(2.0**20)
    got = tensorcore.multiply_add(a, b, c, kind, arch)
    av, bv = tensorcore.values(a, kind), tensorcore.values(b, kind)
    want = np.float32([[slow_dot(av[i], bv[:, j], c[i, j], kind, arch) for j in range(n)] for i in range(m)])
    assert (got.view(np.uint32) == want.view(np.uint32)).all()


@pytest.mark.parametrize(("kind", "arch"), FORMS)
def test_within_the_bound_and_order_matters(kind, arch):
    """The a-priori bound (2 + (p + 1) 2^(24 - F)) ceil(k / p) 2^-24; swapped steps change bits."""
    rng = np.random.default_rng(5)
    step = tensorcore.step_of(kind, arch)
    k = 16 * step.products
    a, b = operands(kind, (16, k), 2, rng), operands(kind, (k, 24), 2, rng)
    zero = np.zeros((16, 24), np.float32)
    d = tensorcore.multiply_add(a, b, zero, kind, arch)
    av, bv = tensorcore.values(a, kind), tensorcore.values(b, kind)
    units = (2 + (step.products + 1) * 2.0 ** (24 - step.fraction_bits)) * 16 * 2.0**-24
    assert (np.abs(d - av @ bv) <= units / (1 - units) * (np.abs(av) @ np.abs(bv))).all()
    order = np.arange(k).reshape(16, -1)
    order[[0, 1]] = order[[1, 0]]
    order = order.ravel()
    swapped = tensorcore.multiply_add(a[:, order], b[order], zero, kind, arch)
    assert (swapped != d).any()
    exact = tensorcore.multiply_add(a, b, zero, kind, arch, exact=True)
    assert (exact.view(np.uint32) == (av @ bv).astype(np.float32).view(np.uint32)).all()


def test_specials_subnormals_and_tf32_truncation():
    one, inf, nan = np.float32([1.0, np.inf, np.nan]).view(np.uint32)
    a = np.zeros((4, 8), np.uint32)
    b = np.full((8, 1), one)
    a[0, 0], a[1, 0], a[2, 0], a[2, 1] = inf, nan, inf, inf | np.uint32(1 << 31)
    a[3, 0] = one | np.uint32(0x1FFF)
    d = tensorcore.multiply_add(a, b, np.zeros((4, 1), np.float32), "tf32", "sm_90a")
    assert d[0, 0] == np.inf and d[3, 0] == 1.0
    assert d.view(np.uint32)[1, 0] == d.view(np.uint32)[2, 0] == 0x7FFFFFFF
    small = np.full((1, 16), 1, np.uint16)  # the smallest float16, 2^-24
    d = tensorcore.multiply_add(small, small.T, np.zeros((1, 1), np.float32), "f16", "sm_90a")
    assert d[0, 0] == np.float32(16 * 2.0**-48)


def test_status_names_its_source_and_is_not_confirmed():
    for kind, arch in FORMS:
        assert "not yet confirmed on hardware" in tensorcore.status(f"mma.{kind}", arch)
    with pytest.raises(ValueError, match="sm_70"):
        tensorcore.status("mma.f16", "sm_70")
    with pytest.raises(ValueError, match="bf16"):
        tensorcore.step_of("bf16", "sm_75")
