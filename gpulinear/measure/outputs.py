"""The outputs of an operand set around a call that is judged: poisoned before it, looked at and hashed after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .case import Case
from .operands import OperandSet

WORKING_BYTES = 2**30


class Outputs:
    """Outputs by name, and what those that are added to started from. `working_bytes` may be allocated at a time."""

    def __init__(self, case: Case, operands: OperandSet, xp: Any, working_bytes: int = WORKING_BYTES) -> None:
        self.xp = xp
        self.arrays = operands.outputs
        self.working_bytes = working_bytes
        self.starts = {name: out.copy() for name, out in self.arrays.items() if case.accumulate and name == "dw"}

    def reset(self) -> None:
        """Make them what they must be before the call: NaN in every element, or what is added to."""
        for name, out in self.arrays.items():
            if name in self.starts:
                out[...] = self.starts[name]
            else:
                # As signed integers, -1 has all bits set: a NaN in every dtype here.
                out.view(f"i{out.dtype.itemsize}").fill(-1)

    def strange(self, name: str) -> int:
        """How many elements of an output are NaN or Inf; those that were not written are."""
        out = self.arrays[name]
        finite = (self.xp.isfinite(out[rows].astype(np.float64)).sum() for rows in self._strips(out))
        return int(out.size) - sum(map(int, finite))

    def written(self) -> bool:
        """Whether a call has written every poisoned element since the reset, and changed what it adds to."""
        return all(
            self._hash(out) != self._hash(self.starts[name]) if name in self.starts else self.strange(name) == 0
            for name, out in self.arrays.items()
        )

    def fingerprint(self) -> tuple[int, ...]:
        """A number for each output that changes when its bits do."""
        return tuple(map(self._hash, self.arrays.values()))

    def _hash(self, out: Any) -> int:
        """sum over i, j of r[i] bits[i, j] c[j] modulo 2**64, with fixed random odd r and c.

        One element with other bits always changes it, several do with a probability of at least 1 - 2**-32 (multilinear
        hashing: D. Lemire and O. Kaser, Strongly universal string hashing is fast, 2014). Integers, so the order of the
        sum does not matter. Words of at most 32 bits: of a 64-bit word the top bit would weigh the same everywhere.
        """
        bits = out.view("u2" if out.dtype.itemsize == 2 else "u4")
        rng = np.random.default_rng(0)
        r, c = (
            self.xp.asarray(rng.integers(0, 2**63, size, np.uint64) * np.uint64(2) + np.uint64(1))
            for size in bits.shape
        )
        sums = (((bits[rows].astype(np.uint64) * c).sum(axis=1) * r[rows]).sum() for rows in self._strips(bits))
        return sum(map(int, sums)) % 2**64

    def _strips(self, out: Any) -> Iterator[slice]:
        """Rows at a time, such that two arrays of 64 bits an element fit."""
        step = max(self.working_bytes // (16 * out.shape[1]), 1)
        return (slice(i, i + step) for i in range(0, out.shape[0], step))
