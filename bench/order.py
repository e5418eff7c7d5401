"""The canonical order of reduction in NumPy, instruction by instruction: what the bits of a GEMM must be.

Written from docs/design.md ("The numeric contract"), apart from kernels and planner. A tensor core's steps come from the
emulator's model of one, which no hardware has confirmed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear import reference
from gpulinear.emulator import floats, tensorcore

Array = npt.NDArray[Any]

# By precision: the type of a plane, K of one instruction, and the pairs of planes in the order of their products.
_SPLITS = {
    "tf32": ("tf32", 8, [(0, 0)]),
    "tf32x3": ("tf32", 8, [(1, 0), (0, 1), (0, 0)]),
    "bf16x6": ("bf16", 16, [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)]),
}


def _bits(x: Array, kind: str) -> Array:
    """Values of float32 that ``kind`` holds, as its bit patterns."""
    bits: Array = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16) if kind == "bf16" else bits


def _padded(x: Array, axis: int, multiple: int) -> Array:
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, -x.shape[axis] % multiple)
    return np.pad(x, widths)


def _total(sums: Array, start: Array | None) -> Array:
    """Segment sums [segments, m, n] added ascending, each addition rounded to nearest; -0 becomes +0."""
    with np.errstate(all="ignore"):
        total: Array = sums[0] + np.float32(0) if start is None else start + (sums[0] + np.float32(0))
        for part in sums[1:]:
            total = total + (part + np.float32(0))
    return total


def split_gemm(
    a: Array,
    b: Array,
    precision: str,
    arch: str,
    *,
    segment: int = 4096,
    promote: int | None = 128,
    start: Array | None = None,
) -> Array:
    """A (m, k) times B (k, n), float32, on the tensor cores of ``arch`` in a precision of float32 operands.

    Args:
        precision: "tf32", "tf32x3" or "bf16x6".
        segment: S. promote: P, or None for one chain per segment. Multiples of 16; ``segment`` one of ``promote``.
        start: what the output holds, float32 (m, n), when accumulating.

    Returns:
        float32 (m, n), before any epilogue.
    """
    kind, step, pairs = _SPLITS[precision]
    m, n = a.shape[0], b.shape[1]
    k = a.shape[1]
    length = promote or segment
    chains = []
    planes_a = [_bits(_padded(plane, 1, step), kind) for plane in reference.planes(a, precision)]
    planes_b = [_bits(_padded(plane, 0, step), kind) for plane in reference.planes(b, precision)]
    for low in range(0, max(k, 1), length):
        part = slice(low, low + length)
        # One instruction after the other: of each step of K, the pairs.
        left = np.stack([planes_a[i][:, part].reshape(m, -1, step) for i, _ in pairs], axis=2)
        right = np.stack([planes_b[j][part].reshape(-1, step, n) for _, j in pairs], axis=1)
        zero = np.zeros((m, n), np.float32)
        chains.append(tensorcore.multiply_add(left.reshape(m, -1), right.reshape(-1, n), zero, kind, arch))
    per_segment = segment // length
    sums = []
    with np.errstate(all="ignore"):
        for first in range(0, len(chains), per_segment):
            total = np.zeros((m, n), np.float32)
            for chain in chains[first : first + per_segment]:
                total = total + chain
            sums.append(total)
    return _total(np.stack(sums), start)


def fma_gemm(a: Array, b: Array, *, segment: int = 1024) -> Array:
    """A (m, k) times B (k, n) as chains of float32 FMAs, segments of K added ascending."""
    sums = []
    with np.errstate(all="ignore"):
        for low in range(0, max(a.shape[1], 1), segment):
            total = np.zeros((a.shape[0], b.shape[1]), np.float32)
            for i in range(low, min(low + segment, a.shape[1])):
                total = floats.fma(a[:, i, None], b[None, i], total)
            sums.append(total)
    return _total(np.stack(sums), None)
