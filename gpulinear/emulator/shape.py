"""The shape of a memory access: where the lanes' addresses lie relative to the first one, and what that costs.

A kernel repeats few shapes at many places, so all that depends on the shape alone is computed once and kept:
alignment, extent, bank conflicts, sectors. A shape is the relative addresses, the first address modulo 128 (banks and
sectors repeat with it) and the place of the lanes in their warps.

The cost model. Shared memory has 32 banks of 4-byte words. Accesses of up to 4 bytes per lane serve a whole warp in one
wavefront, of 8 bytes half a warp, of 16 bytes a quarter; each such part takes as many wavefronts as the busiest bank
has *distinct* words to deliver (equal words are broadcast). The ideal is one wavefront for each part. Global memory
moves sectors of 32 bytes: a warp's request costs its distinct sectors; the ideal is its distinct bytes in whole sectors.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PERIOD = 128
"""Bytes after which banks and sectors repeat."""

_SHIFTS = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4, 32: 5}
_BANKS = 32
_SECTOR = 32
_LIMIT = 4096  # shapes kept; data-dependent addresses must not fill the memory


class Shape:
    """The relative addresses of one access of ``nbytes`` per lane; ``low`` and ``high`` bound its bytes."""

    def __init__(self, relative: Array, phase: int, nbytes: int, lanes: Array) -> None:
        self.nbytes = nbytes
        self.relative = relative
        self.low = int(relative.min())
        self.high = int(relative.max()) + nbytes
        self._phase = phase
        self._lanes = lanes  # thread numbers, counted from the first warp's first thread
        shift = _SHIFTS.get(nbytes)
        self.aligned = shift is not None and not ((relative + phase) & (nbytes - 1)).any()
        self.shift = shift or 0
        self.units = relative >> self.shift
        """Relative addresses in units of ``nbytes``, if aligned."""
        self.run = self.aligned and bool((np.diff(self.units) == 1).all())
        """Whether the lanes access consecutive units, in their order."""

    @cached_property
    def distinct(self) -> bool:
        """Whether no two lanes access the same byte."""
        return bool((np.diff(np.sort(self.relative)) >= self.nbytes).all())

    @cached_property
    def turns(self) -> list[Array]:
        """Lanes in groups that access different bytes, such that of equal addresses the lower lanes come first."""
        order = np.argsort(self.relative, kind="stable")
        ordered = self.relative[order]
        start = np.searchsorted(ordered, ordered, side="left")
        turn = np.empty(len(order), np.int64)
        turn[order] = np.arange(len(order)) - start
        return [np.flatnonzero(turn == t) for t in range(int(turn.max()) + 1)]

    @cached_property
    def requests(self) -> int:
        """Warps that take part."""
        return len(np.unique(self._lanes >> 5))

    @cached_property
    def wavefronts(self) -> tuple[int, int]:
        """Wavefronts in shared memory, and the ideal."""
        part = self._lanes // (32 if self.nbytes <= 4 else max(1, 128 // self.nbytes))
        words = (self.relative + self._phase)[:, None] // 4 + np.arange(-(-self.nbytes // 4))
        words = words - words.min() // _BANKS * _BANKS
        span = int(words.max()) + 1
        taken = np.unique(part[:, None] * span + words)
        busy = np.bincount(taken // span * _BANKS + taken % span % _BANKS)
        busy = np.pad(busy, (0, -len(busy) % _BANKS)).reshape(-1, _BANKS)
        return int(busy.max(axis=1).sum()), len(np.unique(part))

    @cached_property
    def sectors(self) -> tuple[int, int]:
        """Sectors of global memory, and the ideal."""
        warp = self._lanes >> 5
        start = self.relative - self.low + (self.low + self._phase) % _SECTOR
        span = int(start.max()) + self.nbytes
        touched = start[:, None] + np.arange(self.nbytes)
        sectors = len(np.unique(warp[:, None] * span + touched // _SECTOR))
        owner = np.unique(warp[:, None] * span + touched) // span
        return sectors, int((-(-np.bincount(owner) // _SECTOR)).sum())


_known: dict[tuple[int, int, int | bytes, bytes], Shape] = {}


def shape_of(address: Array, nbytes: int, threads: Array) -> tuple[Shape, int]:
    """The shape of an access of these threads at these addresses (int64), and the first address."""
    base: int = address.item(0)
    relative = address - base
    count = len(threads)
    first: int = threads.item(0)
    consecutive = threads.item(count - 1) - first + 1 == count
    where = first & 31 if consecutive else (threads - (first & ~31)).tobytes()
    key = (nbytes, base & (PERIOD - 1), where, relative.tobytes())
    shape = _known.get(key)
    if shape is None:
        if len(_known) >= _LIMIT:
            _known.clear()
        lanes = threads.astype(np.int64) - (first & ~31)
        shape = _known[key] = Shape(relative, base & (PERIOD - 1), nbytes, lanes)
    return shape, base
