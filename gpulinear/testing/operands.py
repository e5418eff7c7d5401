"""Operands that break kernels: seeded data, poisoned buffers with guards, and every kind of view.

The data makers return NumPy arrays; `poisoned` and the views also work on CuPy (`xp=cupy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..reference import Array, round_to

Shape = tuple[int, ...]

# Bytes of 0xFF are a NaN in every floating-point dtype here.
ROGUE = 0xFF


# ---- data ----


def integers(shape: Shape, dtype: DTypeLike, seed: int, *, limit: int = 2) -> Array:
    """Integers of -limit..limit: sums are exact in any order while k limit² is at most 2**24."""
    values = np.random.default_rng(seed).integers(-limit, limit + 1, shape)
    return round_to(values.astype(np.float64), dtype)


def normal(shape: Shape, dtype: DTypeLike, seed: int) -> Array:
    """N(0, 1): roundings average out."""
    return round_to(np.random.default_rng(seed).standard_normal(shape), dtype)


def uniform(shape: Shape, dtype: DTypeLike, seed: int) -> Array:
    """U(0, 1): all of one sign, so that biased roundings add up."""
    return round_to(np.random.default_rng(seed).random(shape), dtype)


def wide(shape: Shape, dtype: DTypeLike, seed: int, *, exponent: int = 20) -> Array:
    """N(0, 1) times 2**-exponent to 2**exponent (at most 2**7 for float16), element by element."""
    rng = np.random.default_rng(seed)
    limit = min(exponent, 7) if _name(dtype) == "float16" else exponent
    return round_to(np.ldexp(rng.standard_normal(shape), rng.integers(-limit, limit + 1, shape)), dtype)


def subnormals(shape: Shape, dtype: DTypeLike, seed: int) -> Array:
    """Subnormal numbers of the dtype, both signs, with a zero here and there."""
    bits, lowest = {
        "float64": (52, -1074),
        "float32": (23, -149),
        "float16": (10, -24),
        "bfloat16": (7, -133),
    }[_name(dtype)]
    values = np.random.default_rng(seed).integers(-(2**bits) + 1, 2**bits, shape)
    return round_to(np.ldexp(values.astype(np.float64), lowest), dtype)


# What a test of random data loops over; integers are apart, being exact.
FILLS: dict[str, Callable[[Shape, DTypeLike, int], Array]] = {
    "normal": normal,
    "uniform": uniform,
    "wide": wide,
}


def cancelling(m: int, n: int, k: int, dtype: DTypeLike, seed: int, *, delta: float = 2.0**-6) -> tuple[Array, Array]:
    """A = [X, X] (m, k) and B = [Y; -(1 + delta) Y] (k, n), k even: A·B is tiny beside |A|·|B|."""
    if k % 2:
        raise ValueError(f"k must be even, got {k}")
    half = normal((m, k // 2), dtype, seed)
    y = normal((k // 2, n), dtype, seed + 1)
    negative = round_to(y.astype(np.float64) * -(1.0 + delta), dtype)
    return np.concatenate([half, half], axis=1), np.concatenate([y, negative], axis=0)


def precision_probe(m: int, n: int, k: int, seed: int) -> tuple[Array, Array]:
    """Odd 12-bit integers as float32, k = 1 or 2: exact in float32, never in TF32 or bfloat16.

    Products and sums stay below 2**24, so a float32 kernel must return them bit for bit.
    """
    if k not in (1, 2):
        raise ValueError(f"k must be 1 or 2, got {k}")
    rng = np.random.default_rng(seed)
    top = 4096 if k == 1 else 2896

    def odd(shape: Shape) -> Array:
        values = rng.integers(1024, top // 2, shape) * 2 + 1
        return values.astype(np.float32)

    return odd((m, k)), odd((k, n))


def accumulator_probe(m: int, n: int, k: int, dtype: DTypeLike) -> tuple[Array, Array]:
    """Ones where the index along k is a multiple of 16, else zeros: every element is ceil(k / 16).

    A float16 accumulator sticks at 2048, a bfloat16 one at 256.
    """
    comb = (np.arange(k) % 16 == 0).astype(np.float64)
    a = np.broadcast_to(comb, (m, k))
    b = np.broadcast_to(comb[:, None], (k, n))
    return round_to(a, dtype), round_to(b, dtype)


def sprinkled(
    x: Array,
    tile: tuple[int, int],
    seed: int,
    *,
    values: tuple[float, ...] = (math.nan, math.inf, -math.inf),
    count: int = 4,
) -> Array:
    """A copy of x (rows, cols) with up to `count` special values, first at corners of the tiles."""
    x = np.array(x)
    rows, cols = x.shape
    corners = [
        (i, j)
        for i in sorted({0, tile[0] - 1, tile[0], rows - 1})
        for j in sorted({0, tile[1] - 1, tile[1], cols - 1})
        if 0 <= i < rows and 0 <= j < cols
    ]
    order = np.random.default_rng(seed).permutation(len(corners))[:count]
    for number, place in enumerate(order):
        x[corners[place]] = values[number % len(values)]
    return x


# ---- poisoned buffers ----


@dataclass(frozen=True)
class Poisoned:
    """An array inside a buffer whose every byte is 0xFF (NaN), the array's own bytes included.

    array: what to fill or to hand to a kernel.  raw: the whole buffer as bytes.
    owned: for each byte of `raw`, whether it belongs to the array.
    """

    array: Array
    raw: Array
    owned: Array

    def check_guards(self) -> None:
        """AssertionError with the offset of the first byte outside the array that was written."""
        touched = (self.raw != ROGUE) & ~self.owned
        if bool(touched.any()):
            first = int(touched.argmax())
            start = int(self.owned.argmax()) if bool(self.owned.any()) else 0
            raise AssertionError(
                f"{int(touched.sum())} guard bytes written, the first {first - start} bytes from "
                f"the first element of {self.array.dtype.name} {self.array.shape}"
            )


def poisoned(
    shape: Shape,
    dtype: DTypeLike,
    *,
    offset: int = 0,
    row_pad: int = 0,
    guard: int = 256,
    xp: Any = np,
) -> Poisoned:
    """A row-major array of NaN, at least `guard` bytes of NaN before and after it.

    Its first element lies `offset` elements past a 256-byte boundary; rows (of the last dimension)
    are `row_pad` elements apart, and the gaps are guarded too.
    """
    target = round_to(np.zeros(0), dtype).dtype
    item = target.itemsize
    strides = [item]
    for axis in range(len(shape) - 1, 0, -1):
        strides.insert(0, strides[0] * shape[axis] + (row_pad * item if axis == len(shape) - 1 else 0))
    strides = strides[: len(shape)]
    extent = 0 if 0 in shape else item + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    raw = xp.full(extent + offset * item + 2 * guard + 512, ROGUE, dtype=xp.uint8)
    start = -(-(_address(raw) + guard) // 256) * 256 - _address(raw) + offset * item
    owned = xp.zeros(raw.shape, dtype=bool)
    if extent:
        body = raw[start : start + extent]
        mask = owned[start : start + extent]
        array = _strided(xp, body, target, shape, tuple(strides))
        _strided(xp, mask, mask.dtype, (*shape, item), (*strides, 1))[...] = True
    else:
        array = raw[start:start].view(target).reshape(shape)
    return Poisoned(array, raw, owned)


def _strided(xp: Any, body: Array, dtype: Any, shape: Shape, strides: Shape) -> Array:
    # The flat view must start at the first element; its own length does not matter.
    flat = body[: dtype.itemsize].view(dtype)
    result: Array = xp.lib.stride_tricks.as_strided(flat, shape, strides)
    return result


def _address(raw: Any) -> int:
    return int(raw.data.ptr) if hasattr(raw.data, "ptr") else int(raw.ctypes.data)


# ---- views: the same values, laid out in other ways, NaN wherever the view does not look ----


def _nan(xp: Any, shape: Shape, dtype: Any) -> Array:
    return poisoned(shape, dtype, xp=xp).array


def _filled(view: Array, x: Array) -> Array:
    view[...] = x
    return view


def _contiguous(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, x.shape, x.dtype), x)


def _transposed(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, x.shape[::-1], x.dtype).T, x)


def _row_sliced(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, (x.shape[0] + 5, x.shape[1]), x.dtype)[2 : 2 + x.shape[0]], x)


def _column_sliced(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, (x.shape[0], x.shape[1] + 7), x.dtype)[:, 3 : 3 + x.shape[1]], x)


def _padded(x: Array, xp: Any) -> Array:
    # Rows padded to a multiple of 16 elements and more: the aligned case of a leading dimension.
    width = -(-x.shape[1] // 16) * 16 + 16
    return _filled(_nan(xp, (x.shape[0], width), x.dtype)[:, : x.shape[1]], x)


def _rows_reversed(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, x.shape, x.dtype)[::-1], x)


def _both_reversed(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, x.shape, x.dtype)[::-1, ::-1], x)


def _rows_stepped(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, (2 * x.shape[0], x.shape[1]), x.dtype)[::2], x)


def _columns_stepped(x: Array, xp: Any) -> Array:
    return _filled(_nan(xp, (x.shape[0], 2 * x.shape[1]), x.dtype)[:, ::2], x)


def _misaligned(x: Array, xp: Any) -> Array:
    return _filled(poisoned(x.shape, x.dtype, offset=1, xp=xp).array, x)


def _misaligned_three(x: Array, xp: Any) -> Array:
    return _filled(poisoned(x.shape, x.dtype, offset=3, xp=xp).array, x)


# name -> (x of two dimensions, xp) -> a view with the values of x.
VIEWS: dict[str, Callable[[Array, Any], Array]] = {
    "contiguous": _contiguous,
    "transposed": _transposed,
    "row_sliced": _row_sliced,
    "column_sliced": _column_sliced,
    "padded": _padded,
    "rows_reversed": _rows_reversed,
    "both_reversed": _both_reversed,
    "rows_stepped": _rows_stepped,
    "columns_stepped": _columns_stepped,
    "misaligned": _misaligned,
    "misaligned_three": _misaligned_three,
}


def broadcast(x: Array, axis: int, xp: Any = np) -> Array:
    """The first slice of `x` along `axis`, repeated with stride 0 to x's shape; read-only."""
    first = x[:1] if axis == 0 else x[:, :1]
    result: Array = xp.broadcast_to(xp.array(first), x.shape)
    return result


def _name(dtype: DTypeLike) -> str:
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name
