"""Races in the shared memory of a CTA: two accesses to one byte, at least one a write, that nothing orders.

Exact by byte and by thread (lanes of a warp are not ordered by being in one warp), on the vector clocks of clocks.py.
An access is compared with the last write of each of its bytes and with the reads after it: a race with anything older
is a race with these too.

Speed: accesses go to a log. For each granule of 16 bytes the age of its last write and of its last access is kept; a
barrier of all threads empties the log and starts a new age, and an access whose granules are all of an older age is
ordered. Only an access that hits the present age is compared with the log, byte by byte. Where no such barrier comes,
the log is thinned out: what every live thread knows, and what was overwritten, leaves it.

Asynchronous operations are noted when they are *issued*: their issuer must be ordered after earlier accesses then, and
from then on everybody must have waited for their channel. Accesses of other CTAs of the cluster are noted in the
detector of the CTA that owns the memory, with the agent numbers of the accessing threads.

Relaxed, volatile and atomic accesses to shared memory order nothing here: stricter than the memory model.
"""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.ir import Instruction
from gpulinear.emulator.race_access import (
    ATOMIC,
    GRANULE,
    READ,
    WRITE,
    Access,
    common_unit,
    overwritten,
    pairs,
    repeated,
)
from gpulinear.emulator.race_proxy import ProxyShadow
from gpulinear.emulator.race_report import report_conflict, report_race
from gpulinear.emulator.report import Report

Array = npt.NDArray[Any]

GENERIC, ASYNC, NEITHER = 0, 1, 2
"""The proxy of an access; operations on mbarrier objects need no fence, and leave what the others need as it is."""

_THIN_OUT = 96  # accesses in the log before it is thinned out for the first time


class SharedRaces:
    """The accesses to the shared memory (``size`` bytes) of the CTA of rank ``rank`` in its cluster.

    ``offsets`` are byte offsets, one for each entry of ``agents``; ``nbytes`` is the size of each access. Accesses of
    up to 16 bytes are naturally aligned, have a size that is a power of two, and lie inside the memory.
    """

    def __init__(
        self, size: int, clocks: Clocks, report: Report, cta: tuple[int, int, int] = (0, 0, 0), rank: int = 0
    ) -> None:
        self.clocks = clocks
        self.report = report
        self.cta = cta
        self.rank = rank
        self._size = size
        self._log: list[Access] = []
        self._settled: list[Access] = []  # ordered for all threads of this CTA, but not for all of the cluster
        self._limit = _THIN_OUT
        self._age = 1
        self._stamp = clocks.stamps[rank]
        self._written = np.zeros(size // GRANULE + 2, np.int32)
        self._touched = np.zeros(size // GRANULE + 2, np.int32)
        self._lane = np.zeros(size + GRANULE, np.int32)
        self._least: dict[bytes, Array] = {}
        self._ordered: dict[bytes, dict[Access, bool]] = {}
        self._version = -1
        self._proxy = ProxyShadow(size, clocks, report, cta) if clocks.proxies else None

    # Accesses of threads

    def read(self, agents: Array, offsets: Array, nbytes: int, instruction: Instruction) -> None:
        """Threads read through the generic proxy."""
        self._note(Access(READ, offsets, nbytes, agents, self.clocks.now, agents, instruction))

    def write(self, agents: Array, offsets: Array, nbytes: int, instruction: Instruction) -> None:
        """Threads write through the generic proxy; two lanes may not write one byte in one instruction."""
        self._note(Access(WRITE, offsets, nbytes, agents, self.clocks.now, agents, instruction))

    def atomic(
        self, agents: Array, offsets: Array, nbytes: int, instruction: Instruction, *, mbarrier: bool = False
    ) -> None:
        """Threads update atomically; ``mbarrier``: an operation on an mbarrier object, which needs no proxy fence."""
        access = Access(ATOMIC, offsets, nbytes, agents, self.clocks.now, agents, instruction)
        self._note(access, NEITHER if mbarrier else GENERIC)

    def mbarrier_init(self, agents: Array, offsets: Array, instruction: Instruction) -> None:
        """Threads initialise mbarrier objects (8 bytes)."""
        for i, agent in enumerate(agents):
            channel, value = self.clocks.initialise(int(agent))
            one = slice(i, i + 1)
            self._note(Access(WRITE, offsets[one], 8, channel, value, agents[one], instruction, False, True))

    # Accesses of asynchronous operations

    def _asynchronous(
        self,
        kind: int,
        issuers: Array | int,
        channel: Array | int,
        value: Array | int,
        offsets: Array,
        nbytes: int,
        instruction: Instruction,
        *,
        together: bool = False,
        generic: bool = False,
    ) -> None:
        """Notes an asynchronous operation when it is issued: ``async_read`` and its likes below.

        Args:
            kind: READ, WRITE or ATOMIC, given by the method's name.
            issuers: The issuing agents: one for each entry of ``offsets``, or a single one, or (``together``) agents
                that issue the whole operation jointly: each must be ordered after earlier accesses.
            channel: The column (or one for each entry) whose ``value`` others have to wait for.
            value: The value of the column, or one for each entry.
            offsets: First bytes.
            nbytes: Bytes from each of them; any number.
            instruction: Where it was issued.
            together: See ``issuers``.
            generic: The operation works through the generic proxy (non-bulk cp.async).
        """
        agents = np.atleast_1d(issuers)
        joint = together or len(agents) == 1
        access = Access(kind, offsets, nbytes, channel, value, agents, instruction, False, joint)
        self._note(access, GENERIC if generic else ASYNC)

    async_read = partialmethod(_asynchronous, READ)
    async_write = partialmethod(_asynchronous, WRITE)
    async_atomic = partialmethod(_asynchronous, ATOMIC)  # complete_tx on an mbarrier, cp.reduce.async

    def end(self) -> None:
        """All threads of the CTA have exited: accesses of other CTAs must be ordered before that, in any schedule.

        Not so what is atomic: an arrive on an mbarrier of this CTA is what orders the two.
        """
        clocks = self.clocks
        own = np.arange(clocks.threads) + self.rank * clocks.threads
        for access in self._settled + self._log:
            if not access.remote or access.kind == ATOMIC:
                continue
            known = clocks.knows(own[:, None], np.atleast_1d(access.columns), np.atleast_1d(access.values))
            if not known.any(axis=0).all():
                self.report.add(
                    "shared memory of an exited CTA",
                    "another CTA of the cluster accesses this CTA's shared memory, and nothing orders that before its exit",
                    "let all CTAs of the cluster wait (barrier.cluster) before one of them exits",
                    access.instruction,
                    self.cta,
                )

    # The log

    def _note(self, access: Access, proxy: int = GENERIC) -> None:
        clocks = self.clocks
        if self._stamp != clocks.stamps[self.rank]:
            self._settle()
        granules = access.granules()
        if clocks.ctas > 1:
            access.remote = int(access.issuers[0]) // clocks.threads != self.rank
        before = self._written if access.kind == READ else self._touched
        if before[granules].max() == self._age or (access.remote and self._settled):
            self._compare(access)
        if access.kind == WRITE and len(access.offsets) > 1:
            self._compare_lanes(access)
        if self._proxy is not None:
            if proxy == ASYNC:
                self._proxy.check(access, granules)
            elif proxy == GENERIC and access.kind != READ:
                self._proxy.wrote(access, granules)
        self._append(access, granules)
        if len(self._log) > self._limit:
            self._thin_out()

    def _append(self, access: Access, granules: Array | slice) -> None:
        self._touched[granules] = self._age
        if access.kind != READ:
            self._written[granules] = self._age
        self._log.append(access)

    def _restart(self, log: list[Access]) -> None:
        """A new age, in which only the accesses of ``log`` matter."""
        self._age += 1
        self._log = []
        for access in log:
            self._append(access, access.granules())

    def _settle(self) -> None:
        """After a barrier of all threads of the CTA: what all of them know leaves the log."""
        clocks = self.clocks
        self._stamp = clocks.stamps[self.rank]
        common, exited = clocks.common(self.rank), clocks.exited(self.rank)
        kept = []
        for access in self._log:
            known = access.by_thread and not access.remote and not exited
            if not known and not np.all(common[access.columns] >= access.values):
                kept.append(access)
            elif clocks.ctas > 1:
                self._settled.append(access)
        self._restart(kept)
        if len(self._settled) > self._limit:
            self._thin_out()

    def _thin_out(self) -> None:
        """Drops what nothing can race with any more, or what something newer stands for."""
        both = self._settled + self._log
        gone = [a or b for a, b in zip(overwritten(both, self._size), repeated(both), strict=True)]
        floor = self.clocks.floor()
        border = len(self._settled)
        kept = [not (g or bool(np.all(floor[a.columns] >= a.values))) for a, g in zip(both, gone, strict=True)]
        self._settled = [a for a, keep in zip(both[:border], kept[:border], strict=True) if keep]
        self._restart([a for a, keep in zip(both[border:], kept[border:], strict=True) if keep])
        self._limit = max(_THIN_OUT, 2 * max(len(self._log), len(self._settled)))

    # Comparisons

    def _compare(self, access: Access) -> None:
        log = self._settled + self._log if access.remote else self._log
        kind, (start, end, _) = access.kind, access.bounds
        suspects = [
            i
            for i, other in enumerate(log)
            if (other.kind != kind or kind == WRITE) and (around := other.bounds)[0] < end and start < around[1]
        ]
        if not suspects:
            return
        least, ordered = self._knowledge(access.issuers)
        for i in suspects:
            other = log[i]
            known = ordered.get(other)
            if known is None:
                known = ordered[other] = bool(np.all(least[other.columns] >= other.values))
            if not known:
                self._compare_bytes(access, other, log[i + 1 :], least)

    def _knowledge(self, agents: Array) -> tuple[Array, dict[Access, bool]]:
        """What all of these agents know, and which accesses of the log are therefore before them all."""
        if self._version != self.clocks.version:
            self._version = self.clocks.version
            self._least.clear()
            self._ordered.clear()
        key = agents.tobytes()
        if key not in self._least:
            self._least[key] = self.clocks.least(np.unique(agents))
            self._ordered[key] = {}
        return self._least[key], self._ordered[key]

    def _compare_bytes(self, access: Access, other: Access, later: list[Access], least: Array) -> None:
        unit = common_unit((access, other))
        mine, theirs, units = pairs(access, other, unit)
        if not len(units):
            return
        columns = other.columns if isinstance(other.columns, int) else other.columns[theirs]
        values = other.values
        values = values if isinstance(values, int) else values[theirs]
        if access.together:
            open_pairs = np.broadcast_to(least[columns] < values, units.shape)
        else:
            open_pairs = ~self.clocks.knows(access.issuers[mine], columns, values)
        at = np.flatnonzero(open_pairs)
        if len(at):
            at = at[~self._covered(units[at] * unit, unit, later)]
        if len(at):
            report_race(self, access, other, mine[at], theirs[at], units[at] * unit)

    def _covered(self, starts: Array, unit: int, later: list[Access]) -> Array:
        """Which units were overwritten by a later plain write."""
        answer = np.zeros(len(starts), bool)
        for write in (access for access in later if access.kind == WRITE):
            fine = min(unit, write.bounds[2])
            bytes_written = np.zeros(self._size // fine + 1, bool)
            bytes_written[write.units(fine)] = True
            inside = starts[:, None] // fine + np.arange(unit // fine)
            answer |= bytes_written[inside].all(axis=1)
        return answer

    def _compare_lanes(self, access: Access) -> None:
        """Two rows of one write may not have a byte in common."""
        unit = access.nbytes if access.nbytes <= GRANULE else access.bounds[2]
        units = access.units(unit)
        number = np.arange(len(units), dtype=np.int32)
        self._lane[units] = number
        clash = self._lane[units] != number
        if clash.any():
            each = access.nbytes // unit
            mine = np.flatnonzero(clash)
            report_conflict(self, access, mine // each, self._lane[units[mine]] // each, units[mine] * unit)
