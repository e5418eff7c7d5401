"""The sixteen named barriers of a CTA: who has arrived, when a barrier is complete, and what is undefined about it.

PTX ISA 9.0, 9.7.13.1. A warp has arrived when all of its live threads have; a barrier with a thread count is complete
when count / 32 warps have arrived. A barrier without a count waits for the threads that have not exited, and an exit can
complete it (PTX ISA 9.7.12.7, exit); one with a count gets no arrival from a thread that has exited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks, Snapshot, agents_of
from gpulinear.emulator.ir import Instruction
from gpulinear.emulator.lanes import Lanes

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]

BARRIERS = 16


@dataclass
class Generation:
    """One use of a named barrier, from the first arrival to its completion."""

    number: int
    count: int | None  # threads it waits for; None: all of the CTA
    kind: str  # "red", or "sync" (which arrive may mix with)
    first: Instruction
    arrived: Array  # threads that have arrived
    waiting: list[Array] = field(default_factory=list)
    released: Snapshot | None = None  # what those that do not wait did before
    true: int = 0  # true predicates of bar.red
    done: bool = False


class NamedBarriers:
    """The barriers of a CTA."""

    def __init__(self, cta: Cta) -> None:
        self._cta = cta
        self._warps = (cta.thread_count + 31) // 32
        self._open: dict[int, Generation] = {}
        cta.at_exit(self._report_open)

    def arrive(
        self, lanes: Lanes, number: int, count: int | None, kind: str, predicates: Array | None = None
    ) -> Generation:
        """These lanes arrive ("sync", "red": to wait; "arrive": not to)."""
        number = self._checked_number(lanes, number)
        count = self._checked_count(lanes, count)
        generation = self._open.get(number)
        if generation is None:
            family = "red" if kind == "red" else "sync"
            nobody = np.zeros(self._cta.thread_count, bool)
            generation = self._open[number] = Generation(number, count, family, lanes.instruction, nobody)
        else:
            self._check_same(lanes, number, generation, count, kind)
        self._check_first_time(lanes, number, generation)
        generation.arrived[lanes.threads] = True
        clocks, agents = self._cta.cluster.clocks, agents_of(lanes)
        if kind == "arrive":
            generation.released = clocks.merge(generation.released, clocks.release(agents))
        else:
            generation.waiting.append(agents)
        if predicates is not None:
            generation.true += int(np.count_nonzero(predicates))
        return generation

    def complete(self, lanes: Lanes, generation: Generation) -> bool:
        """Whether this use of a barrier is over; after an arrival, or when threads have exited."""
        if not generation.done and self._is_full(lanes, generation):
            del self._open[generation.number]
            _join(self._cta.cluster.clocks, generation)
            generation.done = True
        return generation.done

    def _is_full(self, lanes: Lanes, generation: Generation) -> bool:
        if generation.count is None:
            return not bool((self._cta.live & ~generation.arrived).any())
        arrived = np.zeros(self._warps * 32, bool)
        arrived[: self._cta.thread_count] = generation.arrived
        missing = np.zeros(self._warps * 32, bool)
        missing[: self._cta.thread_count] = self._cta.live & ~generation.arrived
        warps = arrived.reshape(-1, 32).any(axis=1) & ~missing.reshape(-1, 32).any(axis=1)
        threads = 32 * int(np.count_nonzero(warps))
        if threads > generation.count:
            lanes.report(
                "barrier overrun",
                f"{threads} threads arrive at barrier {generation.number}, which waits for {generation.count}",
                "make the thread count the number of threads of all warps that use the barrier, or use another barrier",
            )
        return threads >= generation.count

    def _checked_number(self, lanes: Lanes, number: int) -> int:
        if number >= BARRIERS:
            lanes.report("barrier number", f"there is no barrier {number}", f"use 0 to {BARRIERS - 1}")
        return number % BARRIERS

    def _checked_count(self, lanes: Lanes, count: int | None) -> int | None:
        if count is None:
            return None
        if count % 32 or not count:
            lanes.report("barrier count", f"{count} threads are no whole warps", "use a positive multiple of 32")
        if count > 32 * self._warps:
            lanes.report(
                "barrier count",
                f"barrier of {count} threads in a CTA of {self._cta.thread_count}: it can never complete",
                "count the threads of the warps that use the barrier",
            )
        return count

    def _check_same(self, lanes: Lanes, number: int, generation: Generation, count: int | None, kind: str) -> None:
        everyone = 32 * self._warps
        if (everyone if count is None else count) != (everyone if generation.count is None else generation.count):
            lanes.report(
                "barrier count",
                f"barrier {number} is used with {count or 'all'} threads here and with {generation.count or 'all'} at "
                f"{generation.first.where()}",
                "give all arrivals of one use of a barrier the same thread count",
            )
        if (kind == "red") != (generation.kind == "red"):
            lanes.report(
                "barrier mix",
                f"barrier {number} is used by bar.red and by bar.sync or bar.arrive at {generation.first.where()}",
                "use another barrier for the reduction",
            )

    def _check_first_time(self, lanes: Lanes, number: int, generation: Generation) -> None:
        again = generation.arrived[lanes.threads]
        if again.any():
            lanes.report(
                "barrier overrun",
                f"a thread arrives again at barrier {number} before it has completed",
                "let the thread wait for the barrier (bar.sync on another one) before it uses it again",
                which=again,
            )

    def _report_open(self, cta: Cta) -> None:
        for number, generation in self._open.items():
            threads = np.flatnonzero(generation.arrived)
            cta.launch.report.add(
                "barrier incomplete at exit",
                f"the kernel ends while barrier {number} waits: {len(threads)} of "
                f"{generation.count or cta.thread_count} threads have arrived",
                "let every arrival have its bar.sync",
                generation.first,
                cta.index,
                tuple(int(t) for t in threads[:8]),
                None,
                len(threads),
            )


def _join(clocks: Clocks, generation: Generation) -> None:
    """Those that wait are ordered after everything that was done before any arrival."""
    if not generation.waiting:
        return
    agents = np.sort(np.concatenate(generation.waiting))
    if generation.released is None:
        clocks.barrier(agents)
    else:
        clocks.acquire(agents, clocks.merge(clocks.release(agents), generation.released))
