"""Operands on which float32 accuracy is tried: benign, biased, wide, with outliers, cancelling, tiny and huge. Seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear import testing

Array = npt.NDArray[Any]
Make = Callable[[np.random.Generator, tuple[int, int]], Array]


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape)


def _uniform(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.random(shape)


def _relu(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    x: Array = np.maximum(rng.standard_normal(shape), 0.0)
    return x


def _small(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return 1e-4 * rng.standard_normal(shape)


def _student(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_t(2, shape)


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    sign: Array = rng.choice([-1.0, 1.0], shape)
    return rng.lognormal(0.0, 4.0, shape) * sign


def _wide(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    scale: Array = np.exp2(rng.uniform(-30.0, 30.0, shape))
    return rng.standard_normal(shape) * scale


def _subnormal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape) * 2.0**-130


def _cut(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape) * 2.0**-118


def _great(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape) * 2.0**100


def _largest(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Within 2**-7 of the largest float: most would round to Inf in bfloat16."""
    size: Array = np.ldexp(2.0 - 2.0**-23 - rng.random(shape) * 2.0**-7, 127)
    sign: Array = rng.choice([-1.0, 1.0], shape)
    return size * sign


def _least(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape) * 2.0**-12


_PAIRS: dict[str, tuple[Make, Make]] = {
    "N(0,1)": (_normal, _normal),
    "U(0,1)": (_uniform, _uniform),
    "ReLU · 1e-4 N(0,1)": (_relu, _small),
    "Student-t, 2 d.o.f.": (_student, _student),
    "lognormal, sigma 4, signed": (_lognormal, _lognormal),
    "N(0,1) · 2^U(-30,30)": (_wide, _wide),
    "subnormal · 2^100 N(0,1)": (_subnormal, _great),
    "2^-118 N(0,1) · 2^100 N(0,1)": (_cut, _great),
    "near the largest float · 2^-12 N(0,1)": (_largest, _least),
}
OUTLIER, OUTLIER_ZERO, CANCELLING = (
    "one 2^20 outlier in each row",
    "outlier of A meets a zero of B",
    "cancelling to 2^-6",
)
NAMES = (*_PAIRS, OUTLIER, OUTLIER_ZERO, CANCELLING)


def operands(name: str, m: int, n: int, k: int, seed: int = 0) -> tuple[Array, Array]:
    """A (m, k) and B (k, n) in float32; the same for the same arguments. KeyError for an unknown name."""
    rng = np.random.default_rng(seed)
    if name == CANCELLING:
        return testing.cancelling(m, n, k, "float32", seed)
    if name in (OUTLIER, OUTLIER_ZERO):
        a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
        places = rng.integers(0, k, m)
        a[np.arange(m), places] *= 2.0**20
        if name == OUTLIER_ZERO:
            b[places] = 0.0
    else:
        left, right = _PAIRS[name]
        a, b = left(rng, (m, k)), right(rng, (k, n))
    return a.astype(np.float32), b.astype(np.float32)
