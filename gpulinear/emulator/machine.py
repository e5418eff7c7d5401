"""Runs the CTAs of a cluster: cohorts of threads at one block, split by branches and merged where they meet again.

A cohort is a set of threads of one CTA that are at the same block. The machine picks a cohort, executes its block for
all its threads at once, and follows the branch; threads that disagree become two cohorts, cohorts of one CTA at one
block become one. Of the cohorts that can run the one at the lowest block goes first, so that what diverged meets again.

Schedules: "lockstep" starts with all threads of a CTA in one cohort and completes asynchronous work only when nothing
else can run; "warps" runs one warp as far as it gets and completes at once; "random" picks warps and completions at
random, from a seed. A kernel that is right gives the same result under all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.errors import BudgetError, DeadlockError
from gpulinear.emulator.execute import BlockingStep, Selection
from gpulinear.emulator.lanes import Parked
from gpulinear.emulator.loader import Code, CodeBlock
from gpulinear.emulator.special import SPECIALS, special_values
from gpulinear.emulator.types import CLASSES

if TYPE_CHECKING:
    from gpulinear.emulator.launch import Launch
    from gpulinear.emulator.race import SharedRaces
    from gpulinear.emulator.shared_memory import SharedMemory

Array = npt.NDArray[Any]
T = TypeVar("T")

_GROUP_SHIFT = {"warp": 5, "mask": 5, "warpgroup": 7}


class Stateful:
    """Something instruction files keep their own state with."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def state(self, key: str, make: Callable[[], T]) -> T:
        """The state under a key, made on first use."""
        if key not in self._states:
            self._states[key] = make()
        value: T = self._states[key]
        return value


class Cta(Stateful):
    """One CTA: its registers, shared memory and threads."""

    def __init__(self, launch: Launch, index: tuple[int, int, int], rank: int, cluster: Cluster) -> None:
        super().__init__()
        self.launch = launch
        self.index = index
        self.rank = rank
        self.cluster = cluster
        self.thread_count = launch.threads
        self.first_agent = rank * launch.threads
        self.live = np.ones(launch.threads, bool)
        self.shared: SharedMemory = launch.make_shared(self)
        self.races: SharedRaces = launch.make_races(self)
        self._exit_callbacks: list[Callable[[Cta], None]] = []
        self.views: dict[tuple[int, np.dtype[Any]], Array] = {}
        self._make_registers(launch.code)

    def _make_registers(self, code: Code) -> None:
        for width, count in code.layout.counts.items():
            base = np.full((count, self.thread_count), 0 if width == 1 else 2**width - 1, CLASSES[width])
            self.views[width, base.dtype] = base
            if width > 1:
                for kind in "if":
                    if kind == "i" or width >= 32:
                        dtype = np.dtype(f"{kind}{width // 8}")
                        self.views[width, dtype] = base.view(dtype)
        for key in code.constants:
            row = self.views[key[0], CLASSES[key[0]]][code.layout.rows[key]]
            row[:] = special_values(key[1], self) if key[1] in SPECIALS else self.launch.symbols[key[1]]
        self.written = {key: np.zeros(self.thread_count, bool) for key in code.tracked}

    def at_exit(self, callback: Callable[[Cta], None]) -> None:
        """Call back once, when all threads have exited."""
        self._exit_callbacks.append(callback)

    def exit(self, threads: Array) -> None:
        """These threads are done."""
        self.live[threads] = False
        self.cluster.clocks.exit(threads + self.first_agent)
        if not self.live.any():
            if len(self.cluster.ctas) > 1:
                self.races.end()
            for callback in self._exit_callbacks:
                callback(self)


class AsyncEngine:
    """Asynchronous operations in flight; the schedule decides when each of them happens."""

    def __init__(self, launch: Launch) -> None:
        self.policy = launch.completion
        self.rng = launch.rng
        self._pending: dict[int, tuple[Callable[[], None], str, int | None]] = {}
        self._next = 0

    def submit(self, action: Callable[[], None], why: str, *, after: int | None = None) -> int:
        """Queue an operation; returns its ticket. ``after``: not before that ticket's operation."""
        ticket = self._next
        self._next += 1
        self._pending[ticket] = (action, why, after)
        if self.policy == "early":
            self.complete(ticket)
        return ticket

    def complete(self, ticket: int) -> None:
        """Make one operation happen now, and whatever it must follow before it; nothing if it has happened."""
        operation = self._pending.get(ticket)
        if operation is None:
            return
        if operation[2] is not None:
            self.complete(operation[2])
        del self._pending[ticket]
        operation[0]()

    def step(self) -> bool:
        """Complete one operation: the oldest, or a random one; False if there is none."""
        if not self._pending:
            return False
        tickets = list(self._pending)
        self.complete(tickets[int(self.rng.integers(len(tickets)))] if self.policy == "random" else tickets[0])
        return True

    def maybe(self) -> None:
        """Under the random schedule, now and then complete something."""
        if self._pending and self.policy == "random" and self.rng.random() < 0.3:
            self.step()

    def drain(self) -> None:
        """Complete everything."""
        while self.step():
            pass


@dataclass
class Cohort:
    """Threads of one CTA at one block. ``parked`` is what they wait for, ``collecting`` that a group is incomplete."""

    cta: Cta
    block: int
    selection: Selection
    parked: Parked | None = None
    collecting: bool = False


@dataclass
class Cluster(Stateful):
    """CTAs that are scheduled together and share clocks; a launch without clusters has one CTA in each."""

    launch: Launch
    cohorts: list[Cohort] = field(default_factory=list)
    ctas: list[Cta] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        launch = self.launch
        self.clocks = Clocks(launch.threads, launch.cluster_size, proxies=launch.code.proxies)
        self.engine = AsyncEngine(launch)
        self.lockstep = launch.schedule == "lockstep"
        self._order: list[int] = []

    def start(self) -> None:
        """Put all threads at the first block."""
        for cta in self.ctas:
            threads = np.arange(cta.thread_count)
            parts = [threads] if self.lockstep else [threads[i : i + 32] for i in range(0, len(threads), 32)]
            self.cohorts += [Cohort(cta, 0, Selection(part)) for part in parts]

    # Choosing

    def _ready(self) -> list[Cohort]:
        ready = []
        for cohort in self.cohorts:
            if cohort.parked is not None:
                if not cohort.parked.ready():
                    continue
            elif cohort.collecting:
                continue
            ready.append(cohort)
        return ready

    def _pick(self, ready: list[Cohort]) -> Cohort:
        if self.launch.schedule == "random":
            warps = sorted({(c.cta.rank, int(c.selection.threads[0]) >> 5) for c in ready})
            rank, warp = warps[int(self.launch.rng.integers(len(warps)))]
            ready = [c for c in ready if c.cta.rank == rank and int(c.selection.threads[0]) >> 5 == warp]
        elif self.launch.schedule == "warps":
            # Waiting cohorts last: a warp runs as far as it gets.
            return min(ready, key=lambda c: (c.cta.rank, int(c.selection.threads[0]) >> 5, c.block))
        return min(ready, key=lambda c: c.block)

    def _merge(self, cohort: Cohort) -> Cohort:
        """The cohort with all others that are at its block, ready to run and may run with it."""
        sync = self.launch.code.blocks[cohort.block].sync
        shift = 31 if self.lockstep else _GROUP_SHIFT.get(sync, 5)
        group = int(cohort.selection.threads[0]) >> shift
        same = [
            c
            for c in self.cohorts
            if c.cta is cohort.cta
            and c.block == cohort.block
            and c.parked is None
            and int(c.selection.threads[0]) >> shift == group
        ]
        if len(same) == 1:
            return cohort
        self.cohorts = [c for c in self.cohorts if not any(c is s for s in same)]
        threads = np.sort(np.concatenate([c.selection.threads for c in same]))
        merged = Cohort(cohort.cta, cohort.block, Selection(threads))
        self.cohorts.append(merged)
        return merged

    def _split(self, cohort: Cohort, mask: Array, block: int) -> Cohort:
        """Moves the threads of ``mask`` (not all of them) into a new cohort at a block."""
        other = Cohort(cohort.cta, block, cohort.selection.pick(mask))
        cohort.selection = cohort.selection.pick(~mask)
        self.cohorts.append(other)
        return other

    # Running

    def step(self) -> bool:
        """Run one block, or complete asynchronous work; False when all threads have exited."""
        if not self.cohorts:
            return False
        self.engine.maybe()
        ready = self._ready()
        if not ready:
            if not self.engine.step():
                self._deadlock()
            return True
        cohort = self._pick(ready)
        if cohort.parked is not None:
            self._resume(cohort)
            return True
        cohort = self._merge(cohort)
        code = self.launch.code.blocks[cohort.block]
        if code.sync and not self._complete_groups(cohort, code):
            return True
        self._run(cohort, code)
        return True

    def _complete_groups(self, cohort: Cohort, code: CodeBlock) -> bool:
        """Whether the cohort may execute a collective; threads of incomplete groups stay behind and collect."""
        cta, threads = cohort.cta, cohort.selection.threads
        shift = _GROUP_SHIFT[code.sync]
        if code.sync == "mask":
            missing = self._missing_members(cohort, code)
        else:
            groups = (cta.thread_count + (1 << shift) - 1) >> shift
            need = np.bincount(np.flatnonzero(cta.live) >> shift, minlength=groups)
            have = np.bincount(threads >> shift, minlength=groups)
            missing = (need != have)[threads >> shift]
        if not missing.any():
            return True
        if missing.all():
            cohort.collecting = True
            return False
        # Not collecting yet: others of its group may be, and only meet it when it runs.
        self._split(cohort, missing, cohort.block)
        return True

    @staticmethod
    def _missing_members(cohort: Cohort, code: CodeBlock) -> Array:
        """Lanes whose member mask names a live lane of the warp that is not here yet."""
        step = code.steps[0]
        assert isinstance(step, BlockingStep) and step.mask is not None
        cta, threads = cohort.cta, cohort.selection.threads
        masks = step.mask(cta, cohort.selection).astype(np.int64)
        warps = (cta.thread_count + 31) // 32
        here = np.zeros(warps * 32, bool)
        here[threads] = True
        waited = np.zeros(warps * 32, bool)
        waited[: cta.thread_count] = cta.live
        absent = (waited & ~here).reshape(warps, 32) @ (1 << np.arange(32, dtype=np.int64))
        return np.asarray((masks & absent[threads >> 5]) != 0)

    def _run(self, cohort: Cohort, code: CodeBlock) -> None:
        cta, selection = cohort.cta, cohort.selection
        code.executed(selection)
        self.launch.spend(code.length, cta)
        if code.blocking:
            step = code.steps[0]
            assert isinstance(step, BlockingStep)
            self._wait_or_go(cohort, step)
            return
        for run in code.steps:
            assert callable(run)
            run(cta, selection)
        self._finish(cohort, code)

    def _wait_or_go(self, cohort: Cohort, step: BlockingStep) -> None:
        parts = step.start(cohort.cta, cohort.selection)
        self.cohorts = [c for c in self.cohorts if c is not cohort]
        for selection, parked in parts:
            part = Cohort(cohort.cta, cohort.block, selection, parked)
            self.cohorts.append(part)
            if parked is None:
                self._finish(part, self.launch.code.blocks[part.block])

    def _resume(self, cohort: Cohort) -> None:
        step = self.launch.code.blocks[cohort.block].steps[0]
        assert isinstance(step, BlockingStep) and cohort.parked is not None
        parked, cohort.parked = cohort.parked, None
        step.resume(cohort.cta, cohort.selection, parked)
        self._finish(cohort, self.launch.code.blocks[cohort.block])

    def _finish(self, cohort: Cohort, code: CodeBlock) -> None:
        """Follow the end of the block."""
        end, after = code.end, cohort.block + 1
        values = None if code.read_end is None else code.read_end(cohort.cta, cohort.selection)
        if end.kind == "table":
            assert values is not None
            self._jump_table(cohort, values, end.targets)
            return
        if end.kind == "branch":
            self._jump(cohort, values, end.targets[0], after)
        elif end.kind == "exit":
            self._jump(cohort, values, len(self.launch.code.blocks), after)
        else:
            cohort.block = after
        self._arrived(cohort)
        if not self.lockstep and code.sync == "warpgroup":
            self._into_warps(cohort)

    def _jump(self, cohort: Cohort, taken: Array | None, target: int, after: int) -> None:
        if taken is None or taken.all():
            cohort.block = target
        elif not taken.any():
            cohort.block = after
        else:
            cohort.block = after
            self._arrived(self._split(cohort, taken, target))

    def _jump_table(self, cohort: Cohort, values: Array, targets: tuple[int, ...]) -> None:
        if (values >= len(targets)).any():
            raise DeadlockError(f"brx.idx past its table of {len(targets)} targets in CTA {cohort.cta.index}")
        for value in np.unique(values)[1:].tolist():
            mask = values == value
            self._arrived(self._split(cohort, mask, targets[value]))
            values = values[~mask]
        cohort.block = targets[int(values[0])]
        self._arrived(cohort)

    def _arrived(self, cohort: Cohort) -> None:
        """Retire threads that ran past the end, and wake cohorts that were collecting."""
        if cohort.block >= len(self.launch.code.blocks):
            cohort.cta.exit(cohort.selection.threads)
            self.cohorts = [c for c in self.cohorts if c is not cohort]
        for other in self.cohorts:
            if other.collecting and other.cta is cohort.cta:
                other.collecting = False

    def _into_warps(self, cohort: Cohort) -> None:
        if not any(c is cohort for c in self.cohorts):
            return
        threads = cohort.selection.threads
        for warp in np.unique(threads >> 5)[1:].tolist():
            self._split(cohort, cohort.selection.threads >> 5 == warp, cohort.block)

    # Trouble

    def _deadlock(self) -> None:
        lines = []
        for cohort in self.cohorts:
            threads = cohort.selection.threads
            shown = f"threads {threads[0]}..{threads[-1]}" if len(threads) > 1 else f"thread {threads[0]}"
            block = self.launch.code.blocks[min(cohort.block, len(self.launch.code.blocks) - 1)]
            place = block.first.where() if block.first is not None else "the end of the kernel"
            if cohort.parked is not None:
                why = cohort.parked.why
            else:
                why = (
                    f"the rest of their {'warpgroup' if block.sync == 'warpgroup' else 'warp'}: the collective needs it"
                )
            gone = int(np.count_nonzero(~cohort.cta.live))
            ended = f" ({gone} threads of the CTA have exited)" if gone else ""
            lines.append(f"CTA {cohort.cta.index}, {len(threads)} ({shown}) at {place} wait for {why}{ended}")
        raise DeadlockError(f"deadlock in {self.launch.entry}: nothing can run\n  " + "\n  ".join(lines))


def budget_error(entry: str, budget: int) -> BudgetError:
    """The error of a launch that ran too long."""
    return BudgetError(f"{entry} executed more than {budget} instructions: a loop that waits for nothing?")
