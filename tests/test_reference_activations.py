"""Activations, derivatives, erf and erfc against decimal arithmetic and finite differences."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from gpulinear import reference
from gpulinear.reference import ACTIVATIONS, activate, activation_derivative

U64 = 2.0**-53


def slow_normal(z: float | Decimal) -> Decimal:
    """The normal distribution by its series in 120 digits."""
    with localcontext() as context:
        context.prec = 160
        t = Decimal(z)
        term, total, n = t, t, 0
        while abs(term) > Decimal(10) ** -150:  # exp(-t²/2) Σ t²ⁿ⁺¹ / (2n+1)!!
            n += 1
            term = term * t * t / (2 * n + 1)
            total += term
        pi = 4 * (4 * atan(5) - atan(239))
        return Decimal(1) / 2 + (-t * t / 2).exp() * total / (2 * pi).sqrt()


def atan(inverse: int) -> Decimal:
    x = Decimal(1) / inverse
    return sum((-1) ** n * x ** (2 * n + 1) / (2 * n + 1) for n in range(120))


def test_activations_against_decimal_arithmetic():
    points = [-20.0, -8.3, -5.0, -1.7, -0.75, -0.7, -1e-9, 1e-300, 0.3, 0.72, 1.0, 4.4, 9.0]
    for z in points:
        phi = slow_normal(z)
        with localcontext() as context:
            context.prec = 60
            t = Decimal(z)
            pi = 4 * (4 * atan(5) - atan(239))
            u = (2 / pi).sqrt() * (t + Decimal("0.044715") * t**3)
            want = {
                "gelu": t * phi,
                "gelu_tanh": t / (1 + (-2 * u).exp()),
                "silu": t / (1 + (-t).exp()),
                "relu": max(t, Decimal(0)),
            }
            slope = {
                "gelu": phi + t * (-t * t / 2).exp() / (2 * pi).sqrt(),
                "silu": (1 + t / (1 + t.exp())) / (1 + (-t).exp()),
            }
        for name, value in want.items():
            # relative, even deep in the tail; tanh's argument u is itself rounded
            ulps = 8 + 4 * abs(u) if name == "gelu_tanh" else 8
            got = Decimal(float(activate(np.array(z), name)))
            assert abs(got - value) <= ulps * Decimal(U64) * abs(value), (name, z)
        for name, value in slope.items():
            got = Decimal(float(activation_derivative(np.array(z), name)))
            size = abs(value) + abs(want[name])
            assert abs(got - value) <= 8 * Decimal(U64) * size, (name, z)


def test_silu_does_not_vanish_before_it_is_subnormal():
    want = -720.0 * math.exp(-720.0)
    got = float(activate(np.array(-720.0), "silu"))
    assert want < 0 and abs(got - want) <= 720 * math.ulp(0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_special_values(activation):
    z = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, -1e300, 1e30, -1e30, 800, -800])
    value, slope = activate(z, activation), activation_derivative(z, activation)
    at_zero = 0.0 if activation == "relu" else 0.5
    assert np.isnan(value[0]) and np.isnan(slope[0])
    assert value[1:3].tolist() == [math.inf, 0] and slope[1:3].tolist() == [1, 0]
    assert (value[3:5] == 0).all() and (slope[3:5] == at_zero).all()
    assert (value[5::2] == z[5::2]).all() and (slope[5::2] == 1).all()
    assert (value[6::2] == 0).all() and (slope[6::2] == 0).all()
    assert reference.act_grad(np.array([2.0]), np.array([-1.0]), "relu") == 0


# ---- erf and erfc ----


@pytest.mark.parametrize("name,limit", [("erf", 2), ("erfc", 6)])
def test_error_function_everywhere(name, limit):
    edges = [0.5, 1.0, 2 * math.pi, 26.5]
    x = np.concatenate(
        [
            np.linspace(-7, 27.3, 60001),
            np.geomspace(1e-310, 1, 2001),
            -np.geomspace(1e-310, 40, 2001),
            *[np.nextafter(e, [0, e, 99]) for e in edges],
        ]
    )
    want = np.array([getattr(math, name)(v) for v in x])
    got = getattr(reference, name)(x)
    # the C library's own result may be one unit off
    assert (np.abs(got - want) <= (limit + 1) * np.spacing(np.abs(want))).all()


def test_error_function_against_decimal_arithmetic():
    for x in (-3.0, -0.51, 0.4999, 0.5, 0.77, 1.0, 1.3, 2.5, 4.0, 6.28, 6.29, 8.0):
        with localcontext() as context:
            context.prec = 160
            want = 2 - 2 * slow_normal(Decimal(x) * Decimal(2).sqrt())
        got_c, got = (Decimal(float(f(np.array(x)))) for f in (reference.erfc, reference.erf))
        assert abs(got_c - want) <= 6 * Decimal(math.ulp(float(want))), x
        assert abs(got - (1 - want)) <= 2 * Decimal(math.ulp(float(1 - want))), x


def test_error_function_at_special_values():
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -1e300, 5e-324])
    got = reference.erf(x)
    assert got[[0, 2, 3, 5, 6, 7]].tolist() == [0, 1, -1, 1, -1, 5e-324] and np.isnan(got[4])
    assert np.signbit(got[1])
    got = reference.erfc(x)
    assert got[[0, 1, 2, 3, 5, 6, 7]].tolist() == [1, 1, 0, 2, 0, 2, 1] and np.isnan(got[4])


def difference(f, z, h=2.0**-7):
    """f'(z) by two central differences, and a limit of their error for |f⁽⁵⁾| <= 30."""
    one, two = (f(z + h) - f(z - h)) / (2 * h), (f(z + 2 * h) - f(z - 2 * h)) / (4 * h)
    return (4 * one - two) / 3, h**4 / 30 * 4 * 30 + 40 * U64 * (1 + np.abs(z)) / h


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_derivative_by_finite_differences(activation):
    z = np.linspace(-12, 12, 4001) + 2.0**-9
    z = z[np.abs(z) > 2.0**-5] if activation == "relu" else z
    slope, limit = difference(lambda t: activate(t, activation), z)
    assert (np.abs(activation_derivative(z, activation) - slope) <= limit).all()
