"""Planes of a matrix that a caller keeps: the object, and where each plane lies in its buffer.

A precision that multiplies planes (configs/split.py) splits its operands in every call. ``split`` does it once for a
weight, and the layer functions take what it returns in the weight's place, with the same bits. Nothing is hidden: planes
are as old as the last ``split`` into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .configs.split import SPLITS
from .problem import ITEMSIZE

# Rows of a plane start at whole sectors of global memory, so that a k-tile never reads a part of one.
_SECTOR = 32
ALIGN = 16  # of a buffer: what kernels copy at a time, and what TMA can address


def pitch_of(cols: int, precision: str) -> int:
    """Elements from one row of a plane to the next."""
    per_sector = _SECTOR // ITEMSIZE[SPLITS[precision].dtype]
    return -(-cols // per_sector) * per_sector


def planes_bytes(rows: int, cols: int, precision: str) -> int:
    """The size of all planes of a (rows, cols) matrix, one after the other."""
    split = SPLITS[precision]
    return split.planes * rows * pitch_of(cols, precision) * ITEMSIZE[split.dtype]


def both_ways(rows: int, cols: int, precision: str) -> bool:
    """Whether ``split`` keeps the planes of the transposed matrix too, behind the matrix's own.

    K is the columns of a weight in ``linear`` and its rows in ``dgrad``, and some planes must lie along K: those of tf32,
    and a single row or column, which kernels take for contiguous along it.
    """
    return SPLITS[precision].along_k or 1 in (rows, cols)


def kept_bytes(rows: int, cols: int, precision: str) -> int:
    """The size of what ``split`` keeps."""
    transposed = planes_bytes(cols, rows, precision) if both_ways(rows, cols, precision) else 0
    return planes_bytes(rows, cols, precision) + transposed


@dataclass(frozen=True)
class Planes:
    """A float32 matrix of ``shape`` (rows, cols), split for ``precision``; made and refreshed by ``split``.

    ``buffer`` is a float32 array of one dimension, as storage only: a matrix of planes [planes][rows][pitch] in the
    precision's own dtype, then the same of the transposed matrix where ``both_ways``.
    """

    shape: tuple[int, int]
    precision: str
    buffer: Any

    # What a warm call looks at; three strides tell planes from a matrix of their shape.

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32: that of the matrix."""
        return np.dtype(np.float32)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes from one plane, row and element to the next."""
        item, pitch = ITEMSIZE[SPLITS[self.precision].dtype], pitch_of(self.shape[1], self.precision)
        return self.shape[0] * pitch * item, pitch * item, item

    @property
    def data(self) -> Any:
        """Where the buffer lies, as CuPy arrays say it."""
        return self.buffer.data


def plane_views(buffer: np.ndarray[Any, Any], rows: int, cols: int, precision: str) -> list[np.ndarray[Any, Any]]:
    """The sets of planes in a host buffer as (planes, rows, pitch) arrays of bit patterns: the matrix's, and the transposed
    matrix's where there is one."""
    split = SPLITS[precision]
    raw, item = buffer.view(np.uint8), ITEMSIZE[split.dtype]
    bits = np.uint16 if item == 2 else np.uint32
    sets, start = [], 0
    for r, c in ((rows, cols), (cols, rows)) if both_ways(rows, cols, precision) else ((rows, cols),):
        nbytes = planes_bytes(r, c, precision)
        sets.append(raw[start : start + nbytes].view(bits).reshape(split.planes, r, pitch_of(c, precision)))
        start += nbytes
    return sets
