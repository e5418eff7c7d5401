"""What the fakes of CuPy, cuBLAS, cuBLASLt and torch share: arrays with pointers, and products in float64.

Operands are read through pointers and leading dimensions, column by column, as a BLAS does. Products are computed in
float64 (operands first rounded to TF32 where that is switched on) and rounded once.
"""

from __future__ import annotations

import ctypes
import math
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulinear import reference
from gpulinear.views import numpy_dtype

R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
DTYPES = {R_32F: "float32", R_64F: "float64", R_16F: "float16", R_16BF: "bfloat16"}
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77


class Array(np.ndarray[Any, Any]):
    """A NumPy array with the attributes of a CuPy array that the providers read."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        memset = lambda value, size: None  # noqa: E731
        return types.SimpleNamespace(ptr=self.ctypes.data, device_id=0, memset_async=memset)

    def get(self) -> np.ndarray[Any, Any]:
        return np.array(self)


def array(values: Any) -> Array:
    return np.array(values).view(Array)


def multiply(left: Any, right: Any, out: Any, tf32: bool = False, plus: Any = 0.0, then: str | None = None) -> None:
    """out = act(left right + plus), rounded once."""
    a, b = (np.asarray(x) for x in (left, right))
    if tf32 and a.dtype == np.float32:
        a, b = reference.round_tf32(a), reference.round_tf32(b)
    z = a.astype(np.float64) @ b.astype(np.float64) + np.asarray(plus, np.float64)
    out[...] = reference.round_to(reference.activate(z, then), out.dtype)


class Recorder:
    """What the fakes saw: (library, function, extra) of each call, and switches."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.open: set[Any] = set()
        self.ignore_tf32: dict[str, bool | None] = {}  # library -> what TF32 is whatever it is told
        self.clock = 0.0

    def tf32(self, library: str, asked: bool) -> bool:
        forced = self.ignore_tf32.get(library)
        return asked if forced is None else forced


def elementwise(seen: Recorder) -> Callable[..., Any]:
    def make(inputs: str, output: str, body: str, name: str) -> Callable[..., None]:
        match = re.fullmatch(
            r"typedef (float|double) acc; const acc v = static_cast<acc>\(y\)( \+ static_cast<acc>\(bias\))?; "
            r"out = static_cast<T>\((.*)\);",
            body,
        )
        assert match and output == "T out" and inputs == ("T y, B bias" if match[2] else "T y")
        expression = match[3].replace("acc(", "float(")
        expression = re.sub(r"^(.*) \? (.*) : (.*)$", r"(\2) if (\1) else (\3)", expression)
        known = {"erf": math.erf, "tanh": math.tanh, "exp": np.exp, "float": float}
        f = np.vectorize(lambda v: eval(expression, {**known, "v": v}), otypes=[np.float64])

        def kernel(y: Any, *rest: Any) -> None:
            *bias, out = rest
            z = np.asarray(y, np.float64) + (np.asarray(bias[0], np.float64) if bias else 0.0)
            with np.errstate(over="ignore"):  # exp is infinite there, as in C
                out[...] = reference.round_to(f(z), out.dtype)
            seen.calls.append(("cupy", "elementwise", name, match[1]))

        return kernel

    return make


def column_major(pointer: int, kind: int, rows: int, cols: int, ld: int) -> np.ndarray[Any, Any]:
    """The (rows, cols) matrix at a pointer whose columns are ``ld`` elements apart."""
    assert ld >= max(1, rows)
    dtype = np.dtype(numpy_dtype(DTYPES[kind]))
    assert pointer % dtype.itemsize == 0
    size = (rows + ld * (cols - 1)) * dtype.itemsize
    flat = np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, cols), (dtype.itemsize, ld * dtype.itemsize))


def scalar(pointer: int, compute: int) -> float:
    kind = ctypes.c_double if compute == COMPUTE_64F else ctypes.c_float
    return float(kind.from_address(pointer).value)


def strided(x: Any, shape: Any, strides: Any) -> Any:
    return np.lib.stride_tricks.as_strided(x, shape, strides, subok=True)
