"""Who may read what others wrote to global memory in the same launch.

Every byte remembers its last writer of this launch: a store, the thread, the thread's clock (clocks.py). A later weak
access to the byte, by whichever thread, has to be ordered after that write:

- inside a cluster by what orders threads there: barriers, mbarriers, __syncwarp;
- between any threads by publishing (PTX ISA 8.8, release and acquire patterns; both scopes must include the other):
  the writer (or a thread ordered after it) executes a fence and then a strong write of some location, or a .release
  write; the reader (or a thread ordered before it) reads that value with .acquire, or reads it with a strong read, not
  a red, and then executes a fence. Atomics of others in between do not break the chain, stores do (8.9.2).

Strong accesses (relaxed, acquire, release, volatile, atomic) do not conflict with each other where they are morally
strong (8.7): each scope includes the other's thread, and they have the same size.

Stricter than hardware: a fence counts only for what its own thread knew when it executed it, both fences are needed,
and .cta fences make relaxed writes publish nothing. Not seen: a write after another thread's read (in another order
of the CTAs it is a read after a write), and ordering through strong accesses to shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import Clocks, Snapshot
from gpulinear.emulator.errors import BudgetError
from gpulinear.emulator.ir import Instruction

if TYPE_CHECKING:
    from gpulinear.emulator.lanes import Lanes
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]
Index = tuple[int, int, int]

WEAK = -1
SCOPES = {"cta": 0, "cluster": 1, "gpu": 2, "sys": 3}

THREAD_BITS = 10
_MAX_WRITERS = 1 << (32 - THREAD_BITS)


@dataclass(frozen=True)
class How:
    """The qualifiers of a memory access.

    ``level`` is WEAK, or for strong accesses the scope's number in SCOPES; ``size`` is the size of an element, and
    ``reads`` is False for red, which returns nothing and so acquires nothing.
    """

    level: int = WEAK
    acquire: bool = False
    release: bool = False
    nc: bool = False
    size: int = 0
    reads: bool = True


PLAIN = How()


@dataclass(frozen=True, eq=False)
class Writer:
    """A store (or an atomic, or an asynchronous write) of some threads at their clocks ``now``.

    Asynchronous writes have a ``column`` and a ``value`` of their own that readers have to know.
    """

    instruction: Instruction
    cta: Index
    cluster: Index
    first_agent: int
    now: Array
    how: How
    column: int | None = None
    value: int = 0


@dataclass(frozen=True, eq=False)
class Publication:
    """What a thread released: for each cluster the clocks known of its columns."""

    level: int
    cta: Index
    cluster: Index
    parts: dict[Index, Array]


@dataclass
class Record:
    """What is published at a location of ``nbytes``: the newest publication of each CTA and scope."""

    nbytes: int
    publications: dict[tuple[int, Index], Publication] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Entry:
    """An agent of a cluster has acquired a publication at its clock ``value``."""

    agent: int
    value: int
    source: Publication


@dataclass
class CtaOrder:
    """What the rule keeps for a CTA: the level of each thread's last fence, and what it read but has not acquired."""

    cta: Index
    cluster: Index
    first_agent: int
    clocks: Clocks
    entries: list[Entry]  # shared by the CTAs of a cluster
    fenced: Array | None = None
    pending: dict[int, list[Publication]] = field(default_factory=dict)


def order_of(cta: Cta) -> CtaOrder:
    """The CTA's part, made on first use."""

    def make() -> CtaOrder:
        entries: list[Entry] = cta.cluster.state("global order", list)
        return CtaOrder(cta.index, cta.cluster.ctas[0].index, cta.first_agent, cta.cluster.clocks, entries)

    return cta.state("global order", make)


def _accepts(me: CtaOrder, level: int, cta: Index, cluster: Index, other: int) -> bool:
    """Whether the scopes of two sides include each other's thread."""
    return (
        (level >= 2 and other >= 2)
        or (cluster == me.cluster and level >= 1 and other >= 1)
        or (cta == me.cta and level >= 0 and other >= 0)
    )


class GlobalOrder:
    """The writers of a launch, and what was published at which address."""

    def __init__(self) -> None:
        self.writers: list[Writer] = []
        self._newest: dict[tuple[Index, int], int] = {}
        self._published: dict[int, Record] = {}

    # Writers

    def stamp(self, me: CtaOrder, instruction: Instruction, how: How, column: int | None = None, value: int = 0) -> int:
        """The stamp of bytes written now, to which the thread number in its CTA is to be added; 0 is nobody."""
        key = (me.cta, instruction.index)
        newest = self._newest.get(key)
        if newest is not None and column is None and self.writers[newest].now is me.clocks.now:
            return (newest + 1) << THREAD_BITS
        if len(self.writers) >= _MAX_WRITERS - 1:
            raise BudgetError(f"more than {_MAX_WRITERS - 1} stores to global memory in one launch")
        writer = Writer(instruction, me.cta, me.cluster, me.first_agent, me.clocks.now, how, column, value)
        self.writers.append(writer)
        if column is None:
            self._newest[key] = len(self.writers) - 1
        return len(self.writers) << THREAD_BITS

    def writer(self, stamp: int) -> tuple[Writer, int]:
        """Who wrote a byte with this stamp: the store and the thread in its CTA."""
        return self.writers[(stamp >> THREAD_BITS) - 1], stamp & ((1 << THREAD_BITS) - 1)

    def own(self, me: CtaOrder, threads: Array, stamps: Array) -> bool:
        """Whether each thread accesses what it wrote itself, all of it in one store: the common case."""
        number: int = stamps.item(0) >> THREAD_BITS
        if number == 0 or not (stamps == threads + (number << THREAD_BITS)).all():
            return False
        writer = self.writers[number - 1]
        return writer.cta == me.cta and writer.column is None

    def unordered(self, me: CtaOrder, threads: Array, stamps: Array, how: How) -> Array:
        """For each (thread, stamp of a byte it accesses now) whether nothing orders it after that write."""
        answer = np.zeros(len(stamps), bool)
        for number in np.unique(stamps >> THREAD_BITS).tolist():
            if number == 0:
                continue
            writer = self.writers[number - 1]
            if writer.how.size == how.size and _accepts(me, writer.how.level, writer.cta, writer.cluster, how.level):
                continue
            which = np.flatnonzero(stamps >> THREAD_BITS == number)
            columns, values = self._event(writer, stamps[which])
            answer[which] = ~self._known(me, threads[which] + me.first_agent, writer.cluster, columns, values)
        return answer

    @staticmethod
    def _event(writer: Writer, stamps: Array) -> tuple[Array, Array]:
        if writer.column is not None:
            return np.full(len(stamps), writer.column), np.full(len(stamps), writer.value)
        columns = (stamps & ((1 << THREAD_BITS) - 1)).astype(np.int64) + writer.first_agent
        return columns, writer.now[columns]

    @staticmethod
    def _known(me: CtaOrder, agents: Array, cluster: Index, columns: Array, values: Array) -> Array:
        if cluster == me.cluster:
            return me.clocks.knows(agents, columns, values)
        known = np.zeros(len(agents), bool)
        for entry in me.entries:
            part = entry.source.parts.get(cluster)
            if part is not None:
                inside = columns < len(part)
                told = inside & (part[np.where(inside, columns, 0)] >= values)
                known |= told & me.clocks.knows(agents, entry.agent, entry.value)
        return known

    # Publishing

    def fence(self, lanes: Lanes, scope: str, sem: str) -> None:
        """A memory fence: what its threads read strongly before is acquired, what they know can be published."""
        me, level = order_of(lanes.cta), SCOPES[scope]
        if level >= SCOPES["cluster"] and sem != "acquire":
            if me.fenced is None:
                me.fenced = np.full(lanes.cta.thread_count, WEAK, np.int8)
            me.fenced[lanes.threads] = level
        if me.pending and sem != "release":
            for thread in lanes.threads.tolist():
                waiting = me.pending.pop(thread, [])
                later = [p for p in waiting if not self._acquire(me, thread, p, level)]
                if later:
                    me.pending[thread] = later

    def read(self, lanes: Lanes, address: Array, how: How) -> None:
        """After a strong read: acquire what was published at these addresses."""
        if how.level == WEAK or not self._published:
            return
        me = order_of(lanes.cta)
        for i in np.flatnonzero(np.isin(address, list(self._published))).tolist():
            self._read_one(me, int(lanes.threads[i]), int(address[i]), how)

    def wrote(self, lanes: Lanes, address: Array, nbytes: int, how: How) -> None:
        """After a store: what was published there is gone; a strong one publishes."""
        if self._published:
            low, high = int(address.min()), int(address.max()) + nbytes
            for place, record in list(self._published.items()):
                stop = place + record.nbytes
                if low < stop and place < high and ((address < stop) & (place < address + nbytes)).any():
                    del self._published[place]
        if how.level == WEAK:
            return
        me = order_of(lanes.cta)
        if how.release or me.fenced is not None:
            for thread, place in zip(lanes.threads.tolist(), address.tolist(), strict=True):
                self._published.pop(place, None)
                self._publish(me, thread, place, nbytes, how)

    def updated(self, lanes: Lanes, address: Array, nbytes: int, how: How) -> None:
        """After an atomic: its lanes in their order read, and publish beside what was published."""
        me = order_of(lanes.cta)
        if not self._published and not how.release and me.fenced is None:
            return
        for thread, place in zip(lanes.threads.tolist(), address.tolist(), strict=True):
            if how.reads:
                self._read_one(me, thread, place, how)
            self._publish(me, thread, place, nbytes, how)

    def _read_one(self, me: CtaOrder, thread: int, address: int, how: How) -> None:
        record = self._published.get(address)
        for publication in [] if record is None else record.publications.values():
            if not (how.acquire and self._acquire(me, thread, publication, how.level)):
                waiting = me.pending.setdefault(thread, [])
                if publication not in waiting:
                    waiting.append(publication)

    @staticmethod
    def _acquire(me: CtaOrder, thread: int, publication: Publication, level: int) -> bool:
        if not _accepts(me, publication.level, publication.cta, publication.cluster, level):
            return False
        agent = thread + me.first_agent
        if any(entry.source is publication and entry.agent == agent for entry in me.entries):
            return True
        own = publication.parts.get(me.cluster)
        if own is not None:
            me.clocks.acquire(np.array([agent]), Snapshot(own, None))
        me.entries.append(Entry(agent, int(me.clocks.now[agent]), publication))
        return True

    def _publish(self, me: CtaOrder, thread: int, address: int, nbytes: int, how: How) -> None:
        agents = np.array([thread + me.first_agent])
        level = how.level
        if how.release:
            known = me.clocks.release(agents).known
        else:
            fenced = WEAK if me.fenced is None else int(me.fenced[thread])
            if fenced == WEAK:
                return
            level = min(level, fenced)
            known = me.clocks.release_relaxed(agents).known
        parts = {me.cluster: known}
        for entry in me.entries:
            if known[entry.agent] >= entry.value:
                for cluster, part in entry.source.parts.items():
                    parts[cluster] = _longest(parts.get(cluster), part)
        record = self._published.setdefault(address, Record(nbytes))
        before = record.publications.get((level, me.cta))
        if before is not None:
            for cluster, part in before.parts.items():
                parts[cluster] = _longest(parts.get(cluster), part)
        record.publications[level, me.cta] = Publication(level, me.cta, me.cluster, parts)


def _longest(first: Array | None, second: Array) -> Array:
    """The larger of each clock; one of them may have been taken before columns were added."""
    if first is None:
        return second
    if len(first) < len(second):
        first, second = second, first
    joined: Array = first.copy()
    np.maximum(joined[: len(second)], second, out=joined[: len(second)])
    return joined
