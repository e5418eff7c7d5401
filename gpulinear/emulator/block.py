"""Bytes with a flag each for "was written", and the regions in which they may be accessed.

All state spaces are kept in blocks: a global allocation, the shared memory of a CTA, the local memory of its threads,
the parameters. Accesses are gathers and scatters of whole units of 1 to 32 bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.shape import Shape

Array = npt.NDArray[Any]
Step = Callable[[Array, Array], Array]

POISON = 0xFF
"""What uninitialised bytes hold, and what faulting loads give: NaN in every floating point type."""

ROUND = 128
"""Blocks are padded to whole multiples of this, so that they can be viewed as units of any size."""

UNITS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    16: np.dtype("V16"),
    32: np.dtype("V32"),
}


class Region(NamedTuple):
    """A stretch of bytes that may be accessed, and what reports call it."""

    start: int
    stop: int
    name: str


def regions_of(valid: Array, name: str, start: int = 0) -> list[Region]:
    """The stretches of true bytes in a mask."""
    edges = np.flatnonzero(np.diff(valid.astype(np.int8), prepend=0, append=0)) + start
    return [Region(int(a), int(b), name) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def unit_type(nbytes: int) -> np.dtype[Any]:
    """The dtype that moves ``nbytes`` bytes as one item."""
    return UNITS.get(nbytes) or np.dtype(f"V{nbytes}")


class Block:
    """``bytes`` and ``written`` (0 or 1 for each byte); ``regions`` are ascending and do not touch each other."""

    def __init__(self, size: int, regions: Sequence[Region]) -> None:
        padded = -(-size // ROUND) * ROUND
        self.size = size
        self.bytes: Array = np.full(padded, POISON, np.uint8)
        self.written: Array = np.zeros(padded, np.uint8)
        self.complete = False
        """Whether all bytes are known to be initialised: loads need not look."""
        self.regions = list(regions)
        self._starts = [region.start for region in regions]
        self._bounds = np.array([(r.start, r.stop) for r in regions], np.int64).reshape(-1, 2)
        self._words = {n: self.bytes.view(t) for n, t in UNITS.items()}
        self._flags = {n: self.written.view(t) for n, t in UNITS.items()}
        self._set = {n: np.full(n, 1, np.uint8).view(t)[0] for n, t in UNITS.items()}

    def within(self, start: int, stop: int) -> bool:
        """Whether one region holds all bytes of [start, stop)."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and stop <= self.regions[index].stop

    def inside(self, offsets: Array, nbytes: int) -> Array:
        """For each offset whether one region holds the ``nbytes`` bytes there."""
        if not self.regions:
            return np.zeros(len(offsets), bool)
        index = np.searchsorted(self._bounds[:, 0], offsets, side="right") - 1
        return np.asarray((index >= 0) & (offsets + nbytes <= self._bounds[index, 1]))

    def take(self, shape: Shape, base: int) -> Array:
        """The units at ``base`` (an offset): one item for each lane."""
        return self._gather(self._words, self.bytes, shape, base)

    def initialised(self, shape: Shape, base: int) -> bool:
        """Whether all bytes of an access were written."""
        if self.complete:
            return True
        flags = self._gather(self._flags, self.written, shape, base).view(np.uint8)
        return bool(np.count_nonzero(flags) == flags.size)

    def uninitialised(self, offsets: Array, nbytes: int) -> Array:
        """For each lane whether some byte was not written."""
        return np.asarray(self.written[offsets[:, None] + np.arange(nbytes)].min(axis=1) == 0)

    def put(self, shape: Shape, base: int, units: Array) -> None:
        """Writes units; of lanes that write the same bytes the last one wins."""
        if not shape.aligned:
            where = (shape.relative + base)[:, None] + np.arange(shape.nbytes)
            self.bytes[where] = units.view(np.uint8).reshape(where.shape)
            self.written[where] = 1
            return
        n = shape.nbytes
        if shape.run:
            first = base >> shape.shift
            self._words[n][first : first + len(units)] = units
            self.written[base : base + n * len(units)] = 1
            return
        where = shape.units + (base >> shape.shift)
        self._words[n][where] = units
        if not self.complete:
            self._flags[n][where] = self._set[n]

    def update(self, shape: Shape, base: int, dtype: np.dtype[Any], step: Step) -> Array:
        """Read-modify-writes of the lanes in their order; returns what each lane saw, [lanes, elements of a unit].

        ``step`` gets the old values [k, elements] of some lanes that access different units, and which lanes these are;
        it returns the new ones.
        """
        where = shape.units + (base >> shape.shift)
        words = self._words[shape.nbytes]
        seen = np.empty((len(where), shape.nbytes // dtype.itemsize), dtype)
        for lanes in shape.turns:
            old = words[where[lanes]].view(dtype).reshape(len(lanes), -1)
            seen[lanes] = old
            new = np.ascontiguousarray(step(old, lanes))
            words[where[lanes]] = new.reshape(-1).view(words.dtype)
        self._flags[shape.nbytes][where] = self._set[shape.nbytes]
        return seen

    def store(self, offset: int, data: Array) -> None:
        """Writes consecutive bytes."""
        self.bytes[offset : offset + len(data)] = data
        self.written[offset : offset + len(data)] = 1

    def erase(self, start: int, stop: int) -> None:
        """The bytes become uninitialised."""
        self.bytes[start:stop] = POISON
        self.written[start:stop] = 0
        self.complete = False

    @staticmethod
    def _gather(words: dict[int, Array], raw: Array, shape: Shape, base: int) -> Array:
        if not shape.aligned:
            rows = raw[(shape.relative + base)[:, None] + np.arange(shape.nbytes)]
            return rows.reshape(-1).view(unit_type(shape.nbytes))
        first, units = base >> shape.shift, words[shape.nbytes]
        found: Array = units[first : first + len(shape.units)].copy() if shape.run else units.take(shape.units + first)
        return found
