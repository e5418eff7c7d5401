"""Small integers in the three layouts of a layer, and what they must come to: shared by the tests that run kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import testing

Array = np.ndarray[Any, Any]


def ints(*shape: int, dtype: Any = "float32", seed: int = 0) -> Array:
    """Integers that no product of a test makes inexact."""
    return testing.integers(shape, dtype, seed)


def f8(a: Array) -> Array:
    """As float64."""
    return a.astype(np.float64)


def check_exact(tokens: int, out: int, inner: int, dtype: Any) -> None:
    """All three layouts of a layer, and by a transposed view the fourth pair of majors."""
    x, w, dy = (
        ints(tokens, inner, dtype=dtype),
        ints(out, inner, dtype=dtype, seed=1),
        ints(tokens, out, dtype=dtype, seed=2),
    )
    y = (f8(x) @ f8(w).T).astype(dtype)
    testing.assert_same_bits(gl.linear(x, w), y)
    testing.assert_same_bits(gl.linear(np.ascontiguousarray(x.T).T, w), y)
    testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(dtype))
    testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(dtype))
