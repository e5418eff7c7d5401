"""One access to shared memory as the race detector logs it, and which bytes two accesses have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.ir import Instruction

Array = npt.NDArray[Any]

READ, WRITE, ATOMIC = 0, 1, 2
GRANULE = 16
"""Bytes that the fast checks take together."""


@dataclass(slots=True, eq=False)
class Access:
    """``offsets[i] .. + nbytes`` is accessed by column ``columns[i]`` (clocks.py) at the clock of that column.

    An int stands for one column of all rows. ``clock`` is the clock of each row, or for threads (``by_thread``) the
    clocks of all agents at that time. ``issuers`` are the agents that have to be ordered after earlier accesses: one
    for each row, or, if ``together``, agents that are jointly responsible for all rows.
    """

    kind: int
    offsets: Array
    nbytes: int
    columns: Array | int
    clock: Array | int
    issuers: Array
    instruction: Instruction
    by_thread: bool = True
    together: bool = False
    remote: bool = False
    _bounds: tuple[int, int, int] | None = field(default=None)

    @property
    def values(self) -> Array | int:
        """The clock of each row (or of all)."""
        if not self.by_thread:
            return self.clock
        values: Array = np.asarray(self.clock)[self.columns]
        return values

    @property
    def bounds(self) -> tuple[int, int, int]:
        """The first byte, the end, and the largest power of two (up to a granule) that divides all addresses."""
        if self._bounds is None:
            joined = int(np.bitwise_or.reduce(self.offsets)) | self.nbytes | GRANULE
            self._bounds = int(self.offsets.min()), int(self.offsets.max()) + self.nbytes, joined & -joined
        return self._bounds

    def granules(self) -> Array | slice:
        """The granules touched; what threads access is naturally aligned."""
        if self.nbytes <= GRANULE and (self.by_thread or self.bounds[2] >= self.nbytes):
            return self.offsets >> 4
        if len(self.offsets) == 1:
            start = int(self.offsets[0])
            return slice(start >> 4, (start + self.nbytes + GRANULE - 1) >> 4)
        last = (self.offsets + (self.nbytes - 1)) >> 4
        spans = np.minimum((self.offsets >> 4)[:, None] + np.arange((self.nbytes + 30) >> 4), last[:, None])
        return np.asarray(spans.ravel())

    def units(self, size: int) -> Array:
        """The numbers of all units of ``size`` bytes, row by row."""
        each = self.nbytes // size
        first = self.offsets // size
        return first if each == 1 else np.asarray((first[:, None] + np.arange(each)).ravel())

    def key(self) -> tuple[int, int, int | bytes, bytes]:
        """Equal for accesses by the same columns to the same bytes."""
        columns = self.columns if isinstance(self.columns, int) else self.columns.tobytes()
        return self.kind, self.nbytes, columns, self.offsets.tobytes()


def common_unit(accesses: Sequence[Access]) -> int:
    """The largest unit (a power of two, up to a granule) in which all accesses can be counted."""
    return min(access.bounds[2] for access in accesses)


def pairs(first: Access, second: Access, unit: int) -> tuple[Array, Array, Array]:
    """All (row of first, row of second, unit number) that touch the same unit."""
    mine, theirs = first.units(unit), second.units(unit)
    end = max(first.bounds[1], second.bounds[1]) // unit
    touched = np.zeros(end, bool)
    touched[mine] = True
    theirs_at = np.flatnonzero(touched[theirs])
    if not len(theirs_at):
        return theirs_at, theirs_at, theirs_at
    theirs = theirs[theirs_at]
    touched[:] = False
    touched[theirs] = True
    mine_at = np.flatnonzero(touched[mine])
    mine_at = mine_at[np.argsort(mine[mine_at], kind="stable")]
    sorted_units = mine[mine_at]
    left = np.searchsorted(sorted_units, theirs, "left")
    count = np.searchsorted(sorted_units, theirs, "right") - left
    place = np.repeat(left - np.cumsum(count) + count, count) + np.arange(count.sum())
    rows = mine_at[place] // (first.nbytes // unit)
    return rows, np.repeat(theirs_at // (second.nbytes // unit), count), np.repeat(theirs, count)


def overwritten(log: Sequence[Access], size: int) -> list[bool]:
    """Which accesses of a log had all their bytes overwritten by later plain writes.

    Whoever races with such an access races with the later write too (or with a still later one).
    """
    if not log:
        return []
    unit = common_unit(log)
    last = np.full(size // unit + 1, -1, np.int32)
    for i, access in enumerate(log):
        if access.kind == WRITE:
            last[access.units(unit)] = i
    return [int(last[access.units(unit)].min()) > i for i, access in enumerate(log)]


def repeated(log: Sequence[Access]) -> list[bool]:
    """Which accesses are done again later in the log by the same columns to the same bytes."""
    seen: set[Any] = set()
    answer = []
    for access in reversed(log):
        key = access.key()
        answer.append(key in seen)
        seen.add(key)
    return answer[::-1]
