"""Bulk asynchronous operations: what cp.async.bulk and cp.async.bulk.tensor have in common (PTX ISA 9.0, 9.7.9.25).

Loads into shared memory complete on an mbarrier, in the CTA that they write to. Stores out of it belong to the bulk
groups of the issuing thread; a store has two ends, the one of its reads (wait_group.read) and the one of its writes.
Each operation is one thread's. The schedule (AsyncEngine) decides when it reads and writes, unless a wait comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory_faults as faults
from gpulinear.emulator.block import POISON
from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.mbarrier import MBarrier
from gpulinear.emulator.mbarrier_lookup import find, place
from gpulinear.emulator.shared_memory import OFFSET_MASK, RANK_SHIFT

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


def each_lane(lanes: Lanes) -> Iterator[tuple[int, Lanes]]:
    """The lanes one by one: every thread that executes a bulk instruction issues an operation of its own."""
    for i in range(len(lanes.threads)):
        yield i, Lanes(lanes.cta, lanes.threads[i : i + 1], lanes.instruction)


def in_bounds(lanes: Lanes, owner: Cta, offset: int, nbytes: int, verb: str) -> bool:
    """Whether bytes are in one variable of a CTA's shared memory; if not, it is reported."""
    if owner.shared.within(offset, offset + nbytes):
        return True
    places = [(r.start, r.stop - r.start, r.name) for r in owner.shared.regions]
    where = faults.nearest(offset, nbytes, places)
    faults.out_of_bounds(lanes, verb, np.array([offset]), np.ones(1, bool), nbytes, where)
    return False


# Into shared memory


@dataclass(frozen=True)
class Target:
    """Where a load arrives: the CTA and offset, and the mbarrier there that it completes on."""

    owner: Cta
    offset: int
    barrier: MBarrier


def targets(
    lanes: Lanes, space: str, address: int, barrier: int, nbytes: int, align: int, mask: int | None = None
) -> list[Target]:
    """The destinations of a load by one thread; ``mask``: of .multicast::cluster. What is wrong is reported."""
    remote = space != "shared::cta"
    first = place(lanes, space, address, align, remote=remote)
    if first is None:
        return []
    owners = [first[0]]
    if mask is not None:
        peers = lanes.cta.cluster.ctas
        if mask >> len(peers) or not mask:
            lanes.report(
                "invalid operand",
                f"ctaMask {mask:#x} must name CTAs of the cluster, which has {len(peers)}",
                "set one bit for each destination CTA, by its %cluster_ctarank",
            )
        owners = [peer for peer in peers if mask >> peer.rank & 1]
    found = []
    for owner in owners:
        signal = barrier
        if mask is not None:
            there = (owner.rank + 1) << RANK_SHIFT
            signal = there | (barrier & OFFSET_MASK)
            if place(lanes, space, there | first[1], align, remote=True) is None:
                continue
        if not in_bounds(lanes, owner, first[1], nbytes, "copies to"):
            continue
        for _, _, object_ in find(lanes, space, np.array([signal]), remote=remote):
            if object_.owner is not owner:
                lanes.report(
                    "invalid operand",
                    f"{object_.name} is not in the CTA that the copy writes to",
                    "give the mbarrier of the destination CTA",
                )
                continue
            found.append(Target(owner, first[1], object_))
    return found


def submit_load(
    lanes: Lanes,
    target: Target,
    nbytes: int,
    perform: Callable[[Target], None],
    *,
    reduces: bool = False,
    generic: bool = False,
) -> int:
    """Issue a load by one thread: ``perform`` reads the source and writes the destination. Returns its number.

    ``reduces``: the destination is updated, and not overwritten. ``generic``: it works through the generic proxy.
    """
    owner, offset, barrier = target.owner, target.offset, target.barrier
    channel, number = barrier.issue(lanes, generic=generic)
    note = owner.races.async_atomic if reduces else owner.races.async_write
    offsets = np.array([offset])
    note(agents_of(lanes), channel, number, offsets, nbytes, lanes.instruction, generic=generic)
    if reduces:
        check_written(lanes, owner.shared.written[offset : offset + nbytes], offset)
    else:
        owner.shared.bytes[offset : offset + nbytes] = POISON

    def run() -> None:
        if owner.live.any():
            perform(target)
            lanes.cta.launch.counters.moved("shared", "write", nbytes)
            barrier.finish(lanes, number, nbytes)

    lanes.cta.cluster.engine.submit(run, f"a copy to shared memory that completes on {barrier.name}")
    return number


# Out of shared memory


@dataclass
class Group:
    """The bulk stores of one thread, numbered; the commits are kept as the numbers of their last stores."""

    reads: int  # the channels of its two ends
    writes: int
    issued: int = 0
    read_waited: int = 0
    waited: int = 0
    commits: list[int] = field(default_factory=list)
    open: list[tuple[int, Lanes, int, int]] = field(default_factory=list)  # number, thread, tickets of read and write


class BulkGroups:
    """The bulk groups of the threads of a CTA."""

    def __init__(self, cta: Cta) -> None:
        self._cta = cta
        self._threads: dict[int, Group] = {}
        cta.at_exit(self._report_left)

    def _of(self, thread: int) -> Group:
        """The groups of a thread that issues a store."""
        if thread not in self._threads:
            clocks = self._cta.cluster.clocks
            who = f"bulk copies of thread {thread} of CTA {self._cta.index}"
            wait = "cp.async.bulk.wait_group in the issuing thread, then a barrier"
            reads = clocks.new_channel(f"the reads of {who}", wait.replace("group", "group.read", 1))
            self._threads[thread] = Group(reads, clocks.new_channel(f"the writes of {who}", wait))
        return self._threads[thread]

    def submit(
        self, lanes: Lanes, source: int, nbytes: int, read: Callable[[], Any], write: Callable[..., None]
    ) -> None:
        """Issue a store by one thread: ``write(data, channel, number)`` gets what ``read`` returned."""
        group = self._of(int(lanes.threads[0]))
        group.issued += 1
        number = group.issued
        cta, engine = lanes.cta, lanes.cta.cluster.engine
        offsets = np.array([source])
        cta.races.async_read(agents_of(lanes), group.reads, number, offsets, nbytes, lanes.instruction)
        data: list[Any] = []

        def take() -> None:
            data.append(read())
            cta.launch.counters.moved("shared", "read", nbytes)

        first = engine.submit(take, "the reads of a bulk store")
        second = engine.submit(
            lambda: write(data.pop(), group.writes, number), "the writes of a bulk store", after=first
        )
        group.open.append((number, lanes, first, second))

    def commit(self, lanes: Lanes) -> None:
        """A new group for each of these threads (9.7.9.25.6.1); empty ones before the first store do not matter."""
        for thread in self._threads.keys() & set(lanes.threads.tolist()):
            group = self._threads[thread]
            group.commits.append(group.issued)

    def wait(self, lanes: Lanes, recent: int, read_only: bool) -> None:
        """All groups but the ``recent`` last ones are complete, or have at least read (9.7.9.25.6.2)."""
        clocks, engine = lanes.cta.cluster.clocks, lanes.cta.cluster.engine
        for i, thread in enumerate(lanes.threads.tolist()):
            group = self._threads.get(thread)
            if group is None:
                continue
            index = len(group.commits) - recent - 1
            if index < 0:
                continue
            limit = group.commits[index]
            for number, _, first, second in group.open:
                if number <= limit:
                    engine.complete(first if read_only else second)
            agents = agents_of(lanes)[i : i + 1]
            group.read_waited = max(group.read_waited, limit)
            clocks.learn(agents, group.reads, limit)
            if not read_only:
                group.waited = max(group.waited, limit)
                clocks.learn(agents, group.writes, limit)
                group.open = [item for item in group.open if item[0] > limit]

    def _report_left(self, cta: Cta) -> None:
        for group in self._threads.values():
            for number, lanes, _, _ in group.open:
                if number > group.read_waited:
                    lanes.report(
                        "copy never waited for",
                        "the CTA exits while a bulk store may still read its shared memory",
                        "cp.async.bulk.commit_group and wait_group.read 0 in the issuing thread before it exits",
                    )


def bulk_groups(cta: Cta) -> BulkGroups:
    """The bulk groups of a CTA."""
    return cta.state("bulk groups", lambda: BulkGroups(cta))


# Moving bytes


def read_global(lanes: Lanes, addresses: Array, unit: int) -> Array:
    """Units of global memory, read for one thread: all bytes in a row."""
    thread = int(lanes.threads[0])
    memory = lanes.cta.launch.memory
    return memory.async_read(lanes.cta, thread, lanes.instruction, addresses, unit).reshape(-1)


def write_global(lanes: Lanes, addresses: Array, data: Array, unit: int, channel: int, number: int) -> None:
    """Units of global memory, written for one thread."""
    thread = int(lanes.threads[0])
    rows = np.ascontiguousarray(data).reshape(-1, unit)
    memory = lanes.cta.launch.memory
    memory.async_write(lanes.cta, thread, lanes.instruction, addresses, rows, column=channel, value=number)


def check_written(lanes: Lanes, written: Array, offset: int) -> None:
    """Report bytes of shared memory that a store reads and nobody wrote."""
    if not written.all():
        which = np.ones(1, bool)
        faults.uninitialised(lanes, "copies", np.array([offset]), which, "shared memory")
