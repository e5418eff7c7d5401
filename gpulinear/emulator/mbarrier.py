"""mbarrier objects: phases, pending arrivals, tx-counts, and what a completed phase lets its waiters know.

The state of an object is kept here, by CTA and offset, and not in its 8 bytes of shared memory: these count as
uninitialised while the object lives, so that an ordinary load of them is reported; an ordinary store is found at the
next operation on the object. Accesses are told to the race detector as atomic ones, initialisation and invalidation as
writes: an operation that is not ordered after the initialisation is a race.

Every operation that arrives in a phase adds what it releases to the phase, a wait with acquire semantics takes all of
it. Asynchronous operations that complete on an object are numbered, and a phase releases a number up to which all of
them are complete. Sections are those of the PTX ISA 9.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Snapshot, agents_of
from gpulinear.emulator.lanes import Lanes, Parked

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]

LIMIT = (1 << 20) - 1
"""Largest count of arrivals, and largest size of the tx-count (9.7.13.15.2)."""

_TAG = 0xB << 60  # a state: tag, noComplete, offset / 8 (15 bits), phase (24 bits), pending arrivals (20 bits)
_NO_COMPLETE = 1 << 59


class Phase:
    """A phase of an object: whether it is complete, and what it releases."""

    __slots__ = ("arrivals", "complete", "copies", "number", "observed", "remote", "signalled", "snapshot")

    def __init__(self, number: int) -> None:
        self.number = number
        self.complete = False
        self.observed = False
        self.remote = False
        """Whether threads of other CTAs arrived."""
        self.snapshot: Snapshot | None = None
        self.signalled = 0
        """Asynchronous operations up to this number are complete."""
        self.copies: list[tuple[Array, Array]] = []
        """cp.async operations: agents, and values of their channels."""
        self.arrivals: list[tuple[Lanes | None, int]] = []


class MBarrier:
    """One object, in the shared memory of ``owner``."""

    def __init__(self, owner: Cta, offset: int, count: int) -> None:
        self.owner = owner
        self.offset = offset
        self.expected = self.pending = count
        self.tx = 0
        self.phase = Phase(0)
        self.previous: Phase | None = None
        self.valid = True
        self.channel: int | None = None
        self._issued = self._done = self._seen = 0  # numbers of asynchronous operations
        self._copies = self._copies_seen = 0  # arrivals of cp.async
        self._finished: set[int] = set()
        self._last: Lanes | None = None  # who issued the last one
        self.cover()

    @property
    def name(self) -> str:
        """How reports call it."""
        cta = f" of CTA {self.owner.index}" if len(self.owner.cluster.ctas) > 1 else ""
        return f"the mbarrier at {self.offset:#x}{cta}"

    def progress(self, phase: Phase) -> str:
        """What a phase still needs, and who arrived: for deadlock reports."""
        need = f"{self.pending} of {self.expected} arrivals and {self.tx} bytes of transactions"
        parts = []
        for lanes, count in phase.arrivals[:8]:
            if lanes is None:
                parts.append(f"cp.async ({count})")
                continue
            where = "" if lanes.cta is self.owner else f" of CTA {lanes.cta.index}"
            shown = ", ".join(str(t) for t in lanes.threads[:4]) + (", ..." if len(lanes.threads) > 4 else "")
            parts.append(f"thread{'s' if len(lanes.threads) > 1 else ''} {shown}{where}")
        more = ", and others" if len(phase.arrivals) > 8 else ""
        arrived = "; ".join(parts) + more if parts else "nobody"
        return f"{self.name}, phase {phase.number} (parity {phase.number & 1}): it needs {need}; arrived: {arrived}"

    # The 8 bytes

    def cover(self) -> None:
        """The bytes count as uninitialised."""
        self.owner.shared.erase(self.offset, self.offset + 8)

    def check_bytes(self, lanes: Lanes) -> None:
        """Report if something was stored over the object."""
        if self.owner.shared.written[self.offset : self.offset + 8].any():
            lanes.report(
                "mbarrier overwritten",
                f"{self.name} was overwritten by an ordinary store while it was valid",
                "keep data out of its 8 bytes, or mbarrier.inval it before they are used for something else",
                address=self.offset,
            )
            self.cover()

    # What threads do

    def expect(self, lanes: Lanes, nbytes: int) -> None:
        """expect-tx (9.7.13.15.5.1)."""
        self.tx += nbytes
        self._check_tx(lanes)

    def complete_tx(self, lanes: Lanes, nbytes: int) -> None:
        """complete-tx (9.7.13.15.5.2)."""
        self.tx -= nbytes
        self._check_tx(lanes)
        self._settle()

    def _check_tx(self, lanes: Lanes) -> None:
        if abs(self.tx) > LIMIT:
            lanes.report(
                "mbarrier tx-count",
                f"the tx-count of {self.name} is {self.tx}, outside of -(2^20 - 1) to 2^20 - 1",
                "expect exactly the bytes that are copied in the phase, less than 1 MiB of them",
                address=self.offset,
            )
            self.tx = max(-LIMIT, min(LIMIT, self.tx))

    def arrive(
        self, lanes: Lanes, counts: Array, released: Snapshot, *, drop: bool = False, no_complete: bool = False
    ) -> Array:
        """Arrive-on by each lane with its count (9.7.13.15.7); returns the states before each arrival."""
        sums = np.cumsum(counts)
        states = np.zeros(len(counts), np.uint64)
        start, taken = 0, 0
        while start < len(counts):
            stop = int(np.searchsorted(sums, taken + self.pending, "right"))
            if stop == start:
                self._too_many(lanes, int(sums[-1]) - taken)
                break
            self._note_arrival(lanes)
            before = self.pending - (sums[start:stop] - counts[start:stop] - taken)
            states[start:stop] = self._states(before, no_complete)
            amount = int(sums[stop - 1]) - taken
            self.phase.snapshot = self._clocks.merge(self.phase.snapshot, released)
            self.phase.remote |= lanes.cta is not self.owner
            self.phase.arrivals.append((lanes, amount))
            self.pending -= amount
            if drop:
                self._drop(lanes, amount)
            if no_complete and self.pending == 0 and self.tx == 0:
                lanes.report(
                    "mbarrier completed",
                    f"an arrive with .noComplete completes the phase of {self.name}",
                    "leave the last arrival of a phase to an arrive without .noComplete",
                    address=self.offset,
                )
            start, taken = stop, int(sums[stop - 1])
            self._settle()
        return states

    def _drop(self, lanes: Lanes, amount: int) -> None:
        self.expected -= amount
        if self.expected < 1:
            lanes.report(
                "mbarrier count",
                f"arrive_drop leaves {self.name} with an expected arrival count of {self.expected}",
                "let at least one participant stay, or mbarrier.inval the object",
                address=self.offset,
            )
            self.expected = 1

    def _too_many(self, lanes: Lanes, count: int) -> None:
        lanes.report(
            "mbarrier over-arrival",
            f"{count} more arrivals than the {self.pending} that are pending in phase {self.phase.number} of "
            f"{self.name} (count {self.expected}, {self.tx} bytes of transactions outstanding)",
            "initialise it with the number of arrivals of a phase, and wait for a phase before arriving in the next",
            address=self.offset,
        )

    def _note_arrival(self, lanes: Lanes) -> None:
        """9.7.13.15.4: before an arrival a wait for the phase before must have returned true, in some thread."""
        if self.previous is not None and not self.previous.observed:
            lanes.report(
                "mbarrier phase not observed",
                f"arrival in phase {self.phase.number} of {self.name}, but no wait has returned true for phase "
                f"{self.previous.number}: the arrivals may be counted in the wrong phase",
                "wait for a phase before arriving in the next one; check the count that it was initialised with",
                address=self.offset,
            )
            self.previous.observed = True

    def _states(self, pending: Array, no_complete: bool) -> Array:
        head = _TAG | (_NO_COMPLETE if no_complete else 0) | (self.offset >> 3) << 44
        head |= (self.phase.number & 0xFFFFFF) << 20
        return np.asarray(pending.astype(np.uint64) | np.uint64(head))

    def phase_of_parity(self, parity: int) -> Phase | None:
        """The phase that a parity names: the current one, or the one before (None before the first)."""
        return self.phase if parity == self.phase.number & 1 else self.previous

    def phase_of_state(self, lanes: Lanes, state: int) -> Phase | None:
        """The phase of a state; a state that is none of this object, or too old, is reported."""
        number = state >> 20 & 0xFFFFFF
        mine = state >> 60 == _TAG >> 60 and state >> 44 & 0x7FFF == self.offset >> 3
        if mine and number == self.phase.number & 0xFFFFFF:
            return self.phase
        if not mine or self.previous is None or number != self.previous.number & 0xFFFFFF:
            what = f"of phase {number}" if mine else "no state of it"
            lanes.report(
                "mbarrier state",
                f"the state that is waited for on {self.name} is {what}; its current phase is {self.phase.number}",
                "wait with the state that mbarrier.arrive on this object returned, before the next phase completes",
                address=self.offset,
            )
        return self.previous

    def observe(self, lanes: Lanes, phase: Phase | None, sem: str, scope: str) -> None:
        """A wait for a completed phase returned true."""
        if phase is None:
            return
        if not phase.observed:
            phase.observed = True
            self._copies_seen += sum(len(values) for _, values in phase.copies)
        self._seen = max(self._seen, phase.signalled)
        if sem == "relaxed":
            return
        if phase.remote and scope != "cluster":
            lanes.report(
                "mbarrier scope",
                f"this wait on {self.name} acquires at .cta scope, but threads of other CTAs arrived",
                "wait with .acquire.cluster",
                address=self.offset,
            )
        agents = agents_of(lanes)
        if phase.snapshot is not None:
            self._clocks.acquire(agents, phase.snapshot)
        for copying, values in phase.copies:
            _, mine, theirs = np.intersect1d(agents, copying, assume_unique=True, return_indices=True)
            if len(mine):
                self._clocks.learn_copies(agents[mine], values[theirs])

    # What asynchronous operations do

    def issue(self, lanes: Lanes, *, generic: bool = False) -> tuple[int, int]:
        """A new operation of one thread that will complete on this object: its channel and number.

        ``generic``: it works through the generic proxy, so that the initialisation needs no proxy fence.
        """
        if self.channel is None:
            wait = f"mbarrier.try_wait (or test_wait) on {self.name} that returns true"
            self.channel = self._clocks.new_channel(f"an asynchronous copy that completes on {self.name}", wait)
        self._issued += 1
        self._last = lanes
        channel, number = self.channel, self._issued
        agents, offsets = agents_of(lanes), np.array([self.offset])
        if generic:
            self.owner.races.atomic(agents, offsets, 8, lanes.instruction, mbarrier=True)
        else:
            self.owner.races.async_atomic(agents, channel, number, offsets, 8, lanes.instruction)
        return channel, number

    def finish(self, lanes: Lanes, number: int, nbytes: int) -> None:
        """The operation is complete: complete-tx of its bytes."""
        if not self.valid and self.owner.live.any():
            lanes.report(
                "mbarrier not initialised",
                f"the copy completes on {self.name}, which has been invalidated since it was issued",
                "wait for the copy before mbarrier.inval",
                address=self.offset,
            )
            return
        self._finished.add(number)
        while self._done + 1 in self._finished:
            self._done += 1
            self._finished.remove(self._done)
        self.complete_tx(lanes, nbytes)

    def expect_copies(self, lanes: Lanes) -> None:
        """A cp.async.mbarrier.arrive that will arrive once for each lane."""
        self._copies += len(lanes.threads)
        self._last = lanes

    def arrive_copies(self, lanes: Lanes, values: Array) -> None:
        """The arrive-on of cp.async.mbarrier.arrive, one for each lane: its copies up to a value are complete."""
        if not self.valid:
            return
        if self.pending < len(values):
            self._too_many(lanes, len(values))
            return
        self._note_arrival(lanes)
        agents = agents_of(lanes)
        known = np.zeros(self._clocks.columns, np.int32)
        known[self._clocks.cp_async_channels(agents)] = values
        self.phase.snapshot = self._clocks.merge(self.phase.snapshot, Snapshot(known, None))
        self.phase.copies.append((agents, values))
        self.phase.arrivals.append((None, len(values)))
        self.pending -= len(values)
        self._settle()

    def report_unseen(self, why: str) -> None:
        """Report copies that nobody waited for."""
        if (self._issued > self._seen or self._copies > self._copies_seen) and self._last is not None:
            self._last.report(
                "copy never waited for",
                f"{why} while a copy that completes on {self.name} may still be in flight: no wait returned true after it",
                "wait for the phase of the mbarrier in which the copy completes",
                address=self.offset,
            )

    # Phases

    @property
    def _clocks(self) -> Any:
        return self.owner.cluster.clocks

    def _settle(self) -> None:
        """Phase completion (9.7.13.15.6)."""
        if self.pending or self.tx:
            return
        phase = self.phase
        if self.channel is not None:
            phase.signalled = self._done
            phase.snapshot = self._clocks.merge(phase.snapshot, self._clocks.signal(self.channel, self._done))
        phase.complete = True
        self.previous, self.phase = phase, Phase(phase.number + 1)
        self.pending = self.expected


class PhaseWait(Parked):
    """A thread that waits for a phase; the reason is worded when it is asked for, with the state of that time."""

    def __init__(self, barrier: MBarrier, phase: Phase, resume: Callable[[Lanes], Any]) -> None:
        object.__setattr__(self, "_barrier", barrier)
        object.__setattr__(self, "_phase", phase)
        object.__setattr__(self, "ready", lambda: phase.complete)
        object.__setattr__(self, "resume", resume)

    @property
    def why(self) -> str:
        """What is waited for."""
        barrier: MBarrier = self._barrier  # type: ignore[attr-defined]
        phase: Phase = self._phase  # type: ignore[attr-defined]
        return barrier.progress(phase) if barrier.valid else f"{barrier.name}, which was invalidated meanwhile"
