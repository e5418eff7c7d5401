"""cp.async: non-bulk asynchronous copies from global to shared memory (PTX ISA 9.0, 9.7.9.25.3 and 9.7.13.15.15).

The source is read and checked when the copy is issued, its data arrive when the schedule wants or when a wait covers
the copy; until then the destination holds poison. Each thread has a running number, raised by every commit and every
cp.async.mbarrier.arrive: it is the value of the thread's channel in the race detector for the copies issued under it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory_faults as faults
from gpulinear.emulator.block import POISON, unit_type
from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.mbarrier import LIMIT, MBarrier
from gpulinear.emulator.mbarrier_lookup import find
from gpulinear.emulator.shape import Shape, shape_of

Array = npt.NDArray[Any]


class Copy:
    """The copies of one instruction: where their data go, and the running number of each lane."""

    __slots__ = ("base", "lanes", "offsets", "open", "shape", "ticket", "units", "values")

    def __init__(self, lanes: Lanes, offsets: Array, shape: Shape, base: int, units: Array, values: Array) -> None:
        self.lanes = lanes
        self.offsets = offsets
        self.shape = shape
        self.base = base
        self.units = units
        self.values = values
        self.open: Array | None = None  # lanes whose data have not arrived; None: all of them
        self.ticket = -1

    @property
    def delivered(self) -> bool:
        """Whether all data have arrived."""
        return self.open is not None and not self.open.any()

    def deliver(self, which: Array | None = None) -> None:
        """The data of all lanes (or of those in ``which``) arrive, where they have not yet."""
        shared = self.lanes.cta.shared
        if which is None and self.open is None:
            shared.put(self.shape, self.base, self.units)
            self.open = np.zeros(len(self.units), bool)
            return
        before = np.ones(len(self.units), bool) if self.open is None else self.open
        now = before if which is None else before & which
        if now.any():
            threads = self.lanes.threads[now]
            shape, base = shape_of(self.offsets[now], self.shape.nbytes, threads)
            shared.put(shape, base, self.units[now])
        self.open = before & ~now


class Copies:
    """The cp.async copies of a CTA."""

    def __init__(self, threads: int) -> None:
        self.number = np.ones(threads, np.int32)
        self.commits = np.zeros(threads, np.int64)
        self.history = np.zeros((16, threads), np.int32)  # the number of each group of each thread
        self.waited = np.zeros(threads, np.int32)  # copies up to this number were waited for
        self.tracked = np.zeros(threads, np.int32)  # copies up to this number were given to an mbarrier
        self.pending: list[Copy] = []

    def commit(self, threads: Array) -> None:
        """A new group for each of these threads."""
        commits = self.commits[threads]
        if int(commits.max()) >= len(self.history):
            self.history = np.concatenate([self.history, np.zeros_like(self.history)])
        self.history[commits, threads] = self.number[threads]
        self.commits[threads] += 1
        self.number[threads] += 1

    def wait(self, lanes: Lanes, recent: int) -> None:
        """All groups of these threads but the ``recent`` last ones are complete and visible to their thread."""
        threads = lanes.threads
        group = self.commits[threads] - recent - 1
        values = np.where(group >= 0, self.history[np.maximum(group, 0), threads], 0)
        self.waited[threads] = np.maximum(self.waited[threads], values)
        self.complete(lanes, self.waited)
        lanes.cta.cluster.clocks.learn_copies(agents_of(lanes), self.waited[threads])
        self.pending = [copy for copy in self.pending if not (copy.delivered and self._covered(copy))]

    def complete(self, lanes: Lanes, limit: Array) -> None:
        """The data of copies with numbers up to the limit of their thread arrive."""
        for copy in self.pending:
            if copy.delivered:
                continue
            covered = copy.values <= limit[copy.lanes.threads]
            if covered.all():
                lanes.cta.cluster.engine.complete(copy.ticket)
            elif covered.any():
                copy.deliver(covered)

    def _covered(self, copy: Copy) -> bool:
        threads = copy.lanes.threads
        return bool((copy.values <= np.maximum(self.waited[threads], self.tracked[threads])).all())

    def report_left(self, _: Any) -> None:
        """At the end of the CTA: copies that nobody waited for."""
        for copy in self.pending:
            if not self._covered(copy):
                copy.lanes.report(
                    "copy never waited for",
                    "the thread exits without having waited for this cp.async",
                    "cp.async.wait_all (or commit_group and wait_group 0) before the end",
                    address=int(copy.offsets[0]),
                )


def copies_of(lanes: Lanes) -> Copies:
    """The copies of the executing CTA."""

    def make() -> Copies:
        copies = Copies(lanes.cta.thread_count)
        lanes.cta.at_exit(copies.report_left)
        return copies

    return lanes.cta.state("cp.async", make)


def _valid_destinations(lanes: Lanes, offsets: Array, size: int) -> Array:
    """The lanes whose destination is valid; the others are reported."""
    shared = lanes.cta.shared
    inside = shared.inside(offsets, size)
    if not inside.all():
        first = int(offsets[~inside][0])
        where = faults.nearest(first, size, [(r.start, r.stop - r.start, r.name) for r in shared.regions])
        faults.out_of_bounds(lanes, "copies to", offsets, ~inside, size, where)
    return np.asarray(inside & faults.aligned(lanes, "copies to", offsets, size, size))


def _source(lanes: Lanes, addresses: Array, size: int, sizes: Array) -> Array:
    """The data of each lane as units: ``sizes`` bytes of the source, then zeros (which are not read)."""
    memory = lanes.cta.launch.memory
    if (sizes == size).all():
        return np.asarray(memory.read(lanes, addresses, size, space="global"))
    data = np.zeros((len(addresses), size), np.uint8)
    for count in np.unique(sizes[sizes > 0]).tolist():
        which = sizes == count
        part = Lanes(lanes.cta, lanes.threads[which], lanes.instruction)
        if count < size:
            faults.aligned(part, "copies from", addresses[which], size, size)
        units = memory.read(part, addresses[which], count, align=1 if count < size else None, space="global")
        data[which, :count] = units.view(np.uint8).reshape(-1, count)
    return data.reshape(-1).view(unit_type(size))


def _issue(lanes: Lanes, offsets: Array, addresses: Array, size: int, sizes: Array) -> None:
    if size not in (4, 8, 16):
        lanes.report("invalid operand", f"cp.async copies 4, 8 or 16 bytes, not {size}", "use one of these sizes")
        return
    if (sizes > size).any():
        lanes.report(
            "invalid operand",
            f"src-size {int(sizes.max())} is larger than cp-size {size}",
            "copy at most cp-size bytes",
            which=sizes > size,
        )
        sizes = np.minimum(sizes, size)
    shape, base = shape_of(offsets, size, lanes.threads)
    if not (shape.aligned and lanes.cta.shared.within(base + shape.low, base + shape.high)):
        valid = _valid_destinations(lanes, offsets, size)
        if not valid.any():
            return
        lanes = Lanes(lanes.cta, lanes.threads[valid], lanes.instruction)
        offsets, addresses, sizes = offsets[valid], addresses[valid], sizes[valid]
        shape, base = shape_of(offsets, size, lanes.threads)
    units = _source(lanes, addresses, size, sizes)
    cta, state = lanes.cta, copies_of(lanes)
    agents, values = agents_of(lanes), state.number[lanes.threads]
    channels = cta.cluster.clocks.cp_async_channels(agents)
    cta.races.async_write(agents, channels, values, offsets, size, lanes.instruction, generic=True)
    counters = cta.launch.counters
    counters.shared(lanes.instruction, *shape.wavefronts, shape.requests)
    counters.moved("shared", "write", size * len(offsets))
    cta.shared.put(shape, base, np.full(size * len(offsets), POISON, np.uint8).view(unit_type(size)))
    copy = Copy(lanes, offsets, shape, base, units, values)
    state.pending.append(copy)
    copy.ticket = cta.cluster.engine.submit(copy.deliver, "cp.async")


_HINTS = "[.<prefetch:L2::64B|L2::128B|L2::256B>]"
_PLAIN = f"cp.async.<cache:ca|cg>.<space:shared|shared::cta>.global{_HINTS}"
_POLICY = f"cp.async.<cache:ca|cg>.<space:shared|shared::cta>.global.L2::cache_hint{_HINTS}"


def _copy(form: Form) -> Semantics:
    def run(
        lanes: Lanes, offsets: Array, addresses: Array, size: int, sizes: Array | None = None, policy: Any = None
    ) -> None:
        whole = np.full(len(offsets), size, np.int64)
        _issue(lanes, offsets, addresses, size, whole if sizes is None else sizes.astype(np.int64))

    return run


@effect(_PLAIN, "addr, addr, imm, u32?", "9.7.9.25.3.1")
def copy(form: Form) -> Semantics:
    return _copy(form)


@effect(_POLICY, "addr, addr, imm, b64", "9.7.9.25.3.1")
def copy_with_policy(form: Form) -> Semantics:
    run = _copy(form)
    return lambda lanes, offsets, addresses, size, policy: run(lanes, offsets, addresses, size)


@effect(_POLICY, "addr, addr, imm, u32, b64", "9.7.9.25.3.1")
def copy_sized_with_policy(form: Form) -> Semantics:
    return _copy(form)


def _ignore(form: Form) -> Semantics:
    """The ignore-src operand: lanes for which it is true get zeros and read nothing."""

    def run(
        lanes: Lanes, offsets: Array, addresses: Array, size: int, ignore: Array, policy: Array | None = None
    ) -> None:
        _issue(lanes, offsets, addresses, size, np.where(ignore, 0, size))

    return run


@effect(_PLAIN, "addr, addr, imm, pred", "9.7.9.25.3.1")
def copy_or_zero(form: Form) -> Semantics:
    return _ignore(form)


@effect(_POLICY, "addr, addr, imm, pred, b64", "9.7.9.25.3.1")
def copy_or_zero_with_policy(form: Form) -> Semantics:
    return _ignore(form)


@effect("cp.async.commit_group", "", "9.7.9.25.3.2")
def commit_group(form: Form) -> Semantics:
    return lambda lanes: copies_of(lanes).commit(lanes.threads)


@effect("cp.async.wait_group", "imm", "9.7.9.25.3.3")
def wait_group(form: Form) -> Semantics:
    return lambda lanes, recent: copies_of(lanes).wait(lanes, recent)


@effect("cp.async.wait_all", "", "9.7.9.25.3.3")
def wait_all(form: Form) -> Semantics:
    def run(lanes: Lanes) -> None:
        copies_of(lanes).commit(lanes.threads)
        copies_of(lanes).wait(lanes, 0)

    return run


def _arrive_when_done(part: Lanes, barrier: MBarrier, increment: bool) -> None:
    state = copies_of(part)
    threads = part.threads
    values = state.number[threads]
    state.number[threads] += 1
    state.tracked[threads] = values
    limit = np.zeros_like(state.number)
    limit[threads] = values
    if increment:
        barrier.pending += len(threads)
        if barrier.pending > LIMIT:
            part.report(
                "mbarrier count",
                f"cp.async.mbarrier.arrive raises the pending arrivals of {barrier.name} to {barrier.pending}",
                "stay below 2^20, or use .noinc",
                address=barrier.offset,
            )

    def arrive() -> None:
        state.complete(part, limit)
        barrier.arrive_copies(part, values)

    barrier.expect_copies(part)
    part.cta.cluster.engine.submit(arrive, f"cp.async.mbarrier.arrive on {barrier.name}")


@effect("cp.async.mbarrier.arrive[.noinc][.<space:shared|shared::cta>].b64", "addr", "9.7.13.15.15")
def mbarrier_arrive(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array) -> None:
        for _, part, barrier in find(lanes, form["space"], addresses):
            offsets = np.full(len(part.threads), barrier.offset)
            lanes.cta.races.atomic(agents_of(part), offsets, 8, lanes.instruction, mbarrier=True)
            _arrive_when_done(part, barrier, not form["noinc"])

    return run
