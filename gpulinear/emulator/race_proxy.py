"""Missing proxy fences: the async proxy accesses bytes that were last written through the generic proxy.

PTX ISA 9.0, 8.2.4 and 9.7.13.4 (fence.proxy.async): TMA, bulk copies and wgmma access shared memory through the async
proxy; what was written through the generic proxy before has to pass a proxy fence on its way to the issuing thread
(``fenced`` in clocks.py). Here the last generic write of each byte is kept, beyond all barriers. The writes are only
put down byte by byte when an asynchronous access comes near.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.ir import Instruction
from gpulinear.emulator.race_access import GRANULE, READ, Access
from gpulinear.emulator.race_report import column_of, threads_of
from gpulinear.emulator.report import Report

Array = npt.NDArray[Any]

_PENDING = 256  # writes that may wait to be put down


class ProxyShadow:
    """The last generic-proxy write of each byte of a CTA's shared memory, if no async-proxy write came after it."""

    def __init__(self, size: int, clocks: Clocks, report: Report, cta: tuple[int, int, int]) -> None:
        room = (size // GRANULE + 2) * GRANULE
        self._clocks = clocks
        self._report = report
        self._cta = cta
        self._pending: list[Access] = []
        self._generic = np.zeros(size // GRANULE + 2, bool)  # granules with bytes whose last write may be generic
        self._column = np.full(room, -1, np.int32)
        self._value = np.zeros(room, np.int32)
        self._writer = np.zeros(room, np.int32)
        self._instructions: dict[int, Instruction] = {}

    def wrote(self, access: Access, granules: Array | slice) -> None:
        """Keeps a write through the generic proxy."""
        self._generic[granules] = True
        self._pending.append(access)
        if len(self._pending) > _PENDING:
            self._put_down()

    def check(self, access: Access, granules: Array | slice) -> None:
        """Checks an access through the async proxy; if it is a write, it takes the place of generic ones."""
        if not self._generic[granules].any():
            return
        self._put_down()
        places = _bytes(access)
        columns = self._column[places]
        at = np.flatnonzero(columns >= 0)
        columns, values = columns[at], self._value[places[at]]
        rows = at // access.nbytes
        if access.together:
            known = self._clocks.least(access.issuers)[columns] >= values
            fenced = self._clocks.least_fenced(access.issuers)[columns] >= values
        else:
            issuers = access.issuers[rows]
            known = self._clocks.knows(issuers, columns, values)
            fenced = self._clocks.knows_fenced(issuers, columns, values)
        bad = np.flatnonzero(known & ~fenced)  # without `known` it is a race, which is reported as such
        if len(bad):
            self._complain(access, rows[bad], int(columns[bad[0]]), int(places[at[bad[0]]]))
        if access.kind != READ:
            self._column[places] = -1
            near = np.arange(len(self._generic))[granules]
            self._generic[near] = (self._column[near[:, None] * GRANULE + np.arange(GRANULE)] >= 0).any(axis=1)

    def _put_down(self) -> None:
        for write in self._pending:
            places, rows = _bytes(write), np.repeat(np.arange(len(write.offsets)), write.nbytes)
            self._column[places] = write.columns if isinstance(write.columns, int) else write.columns[rows]
            values = write.values
            self._value[places] = values if isinstance(values, int) else values[rows]
            self._writer[places] = self._number(write.instruction)
        self._pending.clear()

    def _number(self, instruction: Instruction) -> int:
        if instruction.index not in self._instructions:
            self._instructions[instruction.index] = instruction
        return instruction.index

    def _complain(self, access: Access, rows: Array, column: int, address: int) -> None:
        clocks = self._clocks
        writer = self._instructions[int(self._writer[address])]
        who = clocks.describe(column_of(access, int(rows[0]))).name
        verb = "reads" if access.kind == READ else "writes"
        self._report.add(
            "missing proxy fence",
            f"{who} {verb} shared memory through the async proxy that {clocks.describe(column).name} wrote through the "
            f"generic proxy at {writer.where()}, with no proxy fence between the two",
            "fence.proxy.async in the writing thread after its write (for mbarrier.init: fence.mbarrier_init), then a "
            "barrier, then this operation",
            access.instruction,
            self._cta,
            threads_of(clocks, access, rows),
            address,
            len(np.unique(rows)),
        )


def _bytes(access: Access) -> Array:
    """The addresses of all bytes, row by row."""
    return np.asarray((access.offsets[:, None] + np.arange(access.nbytes)).ravel())
