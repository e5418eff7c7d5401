"""Vector clocks: what each thread of a cluster, and each asynchronous operation, is known to have done by whom.

An *agent* is a thread of the cluster (``cta.first_agent + thread``). A *column* is whatever makes accesses that others
must be ordered after: column ``t`` is the thread ``t`` itself (its clock is ``now[t]``), the columns behind the threads
are *channels* of asynchronous operations, whose values are any increasing numbers that their owner chooses: the number
of a cp.async group, the running number of a TMA load. Agent u is ordered after the event (column, value) exactly if
``known[u, column] >= value``.

For the async proxy (PTX ISA 8.2.4, proxies) there is a second matrix: ``fenced[u, column]`` is how much of a column's
past, written through the generic proxy, u knows to be made visible to the async proxy by a proxy fence on the way.

A barrier of all live threads of a CTA leaves them with one common row. It is kept once (``base``), the rows of the
matrices are filled again only when threads learn something alone; ``stamps`` counts these barriers for each CTA.

Arrays of agents are ascending and without repeats everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpulinear.emulator.lanes import Lanes

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """What a release hands over: a value for each column known then (and for each one fenced to the async proxy)."""

    known: Array
    fenced: Array | None


@dataclass(frozen=True)
class Channel:
    """A column of asynchronous operations: who they are, and how a program waits for them (for reports)."""

    name: str
    wait: str


def agents_of(lanes: Lanes) -> Array:
    """The agent numbers of executing lanes."""
    first = lanes.cta.first_agent
    return lanes.threads + first if first else lanes.threads


class Clocks:
    """The clocks of a cluster of ``ctas`` CTAs with ``threads`` threads each; ``proxies`` keeps the second matrix."""

    def __init__(self, threads: int, ctas: int = 1, *, proxies: bool = False) -> None:
        count = threads * ctas
        self.threads = threads
        self.ctas = ctas
        self.agents = count
        self.proxies = proxies
        self.columns = count
        self.stamps = [0] * ctas
        self.version = 0  # raised by all that may change an answer of ``least``
        self.channels: list[Channel] = []
        self.live = np.ones(count, bool)
        # Replaced, never changed in place: a log of accesses keeps a reference instead of a copy.
        self.now: Array = np.ones(count, np.int32)
        self._live_count = [threads] * ctas
        self._rank = np.repeat(np.arange(ctas), threads)
        self._own_row = np.zeros(count, bool)  # whether an agent's row is in the matrix (else it is its CTA's base)
        self._copies = 0  # first column of the cp.async channels, one for each thread; 0 before the first use
        self._waited = np.zeros(count, np.int32)  # what each thread knows of its own cp.async channel
        self._inits: dict[int, int] = {}
        capacity = count + 32
        self._base = np.zeros((ctas, capacity), np.int32)
        self._known = np.zeros((count, capacity), np.int32)
        self._fenced_base = np.zeros((ctas, capacity), np.int32)
        self._fenced = np.zeros((count, capacity) if proxies else (0, capacity), np.int32)
        self._at_fence: Array | None = None  # what each thread knew (and had fenced) at its last memory fence
        self._fenced_at_fence: Array | None = None

    # Columns

    def new_channel(self, name: str, wait: str) -> int:
        """A new column. ``name`` says who ("TMA loads to the mbarrier at 0x40"), ``wait`` what orders others after it."""
        self.channels.append(Channel(name, wait))
        return self._grow(1)

    def cp_async_channels(self, agents: Array) -> Array:
        """The columns of the cp.async operations of threads (one for each thread of the cluster)."""
        if not self._copies:
            wait = "cp.async.wait_group (or wait_all) in the copying threads, then a barrier"
            self.channels += [Channel(f"cp.async of {self._thread(t)}", wait) for t in range(self.agents)]
            self._copies = self._grow(self.agents)
        return np.asarray(agents) + self._copies

    def init_channel(self, agent: int) -> int:
        """The column of the mbarrier.init of a thread, which fence.mbarrier_init can order without the rest."""
        if agent not in self._inits:
            wait = "a barrier after mbarrier.init (with fence.mbarrier_init or fence.proxy.async for the async proxy)"
            self._inits[agent] = self.new_channel(f"mbarrier.init by {self._thread(agent)}", wait)
        return self._inits[agent]

    def describe(self, column: int) -> Channel:
        """Who a column is; the way to wait for a thread depends on who waits and is left empty."""
        return Channel(self._thread(column), "") if column < self.agents else self.channels[column - self.agents]

    def _thread(self, agent: int) -> str:
        rank, thread = divmod(agent, self.threads)
        return f"thread {thread}" if self.ctas == 1 else f"thread {thread} of CTA {rank} of the cluster"

    def _grow(self, count: int) -> int:
        first = self.columns
        self.columns += count
        self.version += 1
        missing = self.columns - self._known.shape[1]
        if missing > 0:
            more = max(missing, self._known.shape[1] // 2)
            for name in ("_base", "_known", "_fenced_base", "_fenced", "_at_fence", "_fenced_at_fence"):
                old = getattr(self, name)
                if old is not None:
                    new = np.zeros((old.shape[0], old.shape[1] + more), np.int32)
                    new[:, :first] = old[:, :first]
                    setattr(self, name, new)
        return first

    # Events of threads

    def tick(self, agents: Array) -> None:
        """Later accesses of these agents are not part of what they released or fenced so far."""
        now = self.now.copy()
        now[_index(agents)] += 1
        self.now = now
        self.version += 1

    def exit(self, agents: Array) -> None:
        """These threads are gone: nobody waits for them, and they need to know nothing any more."""
        self.live[agents] = False
        self.version += 1
        for rank in range(self.ctas):
            self._live_count[rank] = int(self.live[rank * self.threads : (rank + 1) * self.threads].sum())

    def release(self, agents: Array) -> Snapshot:
        """All that these agents did and know, for others to acquire."""
        snapshot = self._join(agents)
        self.tick(agents)
        return snapshot

    def acquire(self, agents: Array, snapshot: Snapshot) -> None:
        """These agents are ordered after what a snapshot holds."""
        rows = self._fill(agents)
        for matrix, row in ((self._known, snapshot.known), (self._fenced, snapshot.fenced)):
            if row is not None:
                width = len(row)
                matrix[rows, :width] = np.maximum(matrix[rows, :width], row)

    @staticmethod
    def merge(first: Snapshot | None, second: Snapshot) -> Snapshot:
        """Both snapshots together."""
        if first is None:
            return second
        return Snapshot(_longer(first.known, second.known), _merge_fenced(first.fenced, second.fenced))

    def signal(self, channel: int, value: int) -> Snapshot:
        """That the operations of a channel up to a value are complete, and no more (complete_tx on an mbarrier)."""
        known = np.zeros(self.columns, np.int32)
        known[channel] = value
        return Snapshot(known, None)

    def learn(self, agents: Array, channel: int, value: int) -> None:
        """These agents have waited for the operations of a channel up to a value."""
        rows = self._fill(agents)
        self._known[rows, channel] = np.maximum(self._known[rows, channel], value)

    def learn_copies(self, agents: Array, values: Array | int) -> None:
        """These agents have waited for their own cp.async operations up to a value."""
        self._waited[agents] = np.maximum(self._waited[agents], values)
        self.version += 1

    def barrier(self, agents: Array) -> None:
        """A barrier: each of these agents learns what any of them did and knows."""
        joined = self._join(agents)
        ranks = np.bincount(self._rank[agents], minlength=self.ctas).tolist() if self.ctas > 1 else [len(agents)]
        if all(n in (0, live) for n, live in zip(ranks, self._live_count, strict=True)):
            for rank, n in enumerate(ranks):
                if n:
                    self._set_base(rank, joined)
                    self.stamps[rank] += 1
        else:
            rows = self._fill(agents)
            self._known[rows, : self.columns] = joined.known
            if joined.fenced is not None:
                self._fenced[rows, : self.columns] = joined.fenced
        self.tick(agents)

    def _set_base(self, rank: int, joined: Snapshot) -> None:
        self._base[rank, : self.columns] = joined.known
        if joined.fenced is not None:
            self._fenced_base[rank, : self.columns] = joined.fenced
        self._own_row[rank * self.threads : (rank + 1) * self.threads] = False

    def warp_sync(self, groups: Array) -> None:
        """bar.warp.sync of several sets of lanes at once: ``groups`` is [sets, agents of a set]."""
        sets, size = groups.shape
        agents = groups.ravel()
        rows = self._fill(agents)
        for matrix in (self._known, self._fenced) if self.proxies else (self._known,):
            block = matrix[rows].reshape(sets, size, -1)  # a view if the agents follow each other
            joined = block[:, :, : self.columns].max(axis=1)
            if matrix is self._known:
                self._add_own(joined, groups)
            block[:, :, : self.columns] = joined[:, None, :]
            if not isinstance(rows, slice):
                matrix[rows] = block.reshape(sets * size, -1)
        self.tick(agents)

    def _add_own(self, joined: Array, groups: Array) -> None:
        sets = np.arange(len(groups))[:, None]
        joined[sets, groups] = self.now[groups]
        if self._copies:
            joined[sets, groups + self._copies] = self._waited[groups]

    # Fences

    def fence_proxy(self, agents: Array) -> None:
        """fence.proxy.async: what these agents did and know through the generic proxy is visible to the async proxy."""
        if self.proxies:
            rows = self._fill(agents)
            self._store_own(agents)
            self._fenced[rows] = np.maximum(self._fenced[rows], self._known[rows])
        self.tick(agents)

    def fence_memory(self, agents: Array) -> None:
        """A memory fence of cluster scope or wider: a relaxed arrive after it releases what came before it."""
        rows = self._fill(agents)
        self._store_own(agents)
        known, fenced = self._fence_rows()
        known[rows] = self._known[rows]
        if self.proxies:
            fenced[rows] = self._fenced[rows]
        self.tick(agents)

    def fence_inits(self, agents: Array) -> None:
        """fence.mbarrier_init: as both fences, but only for the mbarrier.init of these agents themselves."""
        known, fenced = self._fence_rows()
        for agent in (int(a) for a in agents if int(a) in self._inits):
            channel = self._inits[agent]
            known[agent, channel] = self._known[agent, channel]
            if self.proxies:
                self._fenced[agent, channel] = fenced[agent, channel] = self._known[agent, channel]

    def release_relaxed(self, agents: Array) -> Snapshot:
        """What a relaxed arrive hands over: what these agents released by their last fences."""
        known, fenced = self._fence_rows()
        width = self.columns
        return Snapshot(known[agents, :width].max(axis=0), fenced[agents, :width].max(axis=0) if self.proxies else None)

    def _fence_rows(self) -> tuple[Array, Array]:
        if self._at_fence is None or self._fenced_at_fence is None:
            self._at_fence = np.zeros_like(self._known)
            self._fenced_at_fence = np.zeros_like(self._fenced)
        return self._at_fence, self._fenced_at_fence

    def initialise(self, agent: int) -> tuple[int, int]:
        """An mbarrier.init by an agent: the channel and the value of this write."""
        channel = self.init_channel(agent)
        self._fill(np.array([agent]))
        self._known[agent, channel] += 1
        return channel, int(self._known[agent, channel])

    # Questions

    def knows(self, agents: Array | int, columns: Array | int, values: Array | int) -> Array:
        """Whether each agent is ordered after (column, value); an agent is always ordered after itself. Broadcasts."""
        agents, columns, values = np.asarray(agents), np.asarray(columns), np.asarray(values)
        answer = np.where(self._own_row[agents], self._known[agents, columns], self._base[self._rank[agents], columns])
        ordered = (answer >= values) | (columns == agents)
        if self._copies:
            ordered |= (columns == agents + self._copies) & (self._waited[agents] >= values)
        return np.asarray(ordered)

    def knows_fenced(self, agents: Array | int, columns: Array | int, values: Array | int) -> Array:
        """Whether (column, value) is fenced to the async proxy, as far as each agent knows. Broadcasts."""
        agents, columns = np.asarray(agents), np.asarray(columns)
        base = self._fenced_base[self._rank[agents], columns]
        return np.asarray(np.where(self._own_row[agents], self._fenced[agents, columns], base) >= values)

    def least(self, agents: Array) -> Array:
        """For each column what all of these agents know."""
        return self._least(agents, self._known, self._base)

    def least_fenced(self, agents: Array) -> Array:
        """For each column what all of these agents know to be fenced to the async proxy."""
        return self._least(agents, self._fenced, self._fenced_base)

    def _least(self, agents: Array, matrix: Array, base: Array) -> Array:
        width = self.columns
        if len(agents) > 1 and not self._own_row[_index(agents)].any():
            return np.asarray(base[np.unique(self._rank[agents]), :width].min(axis=0))
        version = self.version
        rows = self._fill(agents)
        self.version = version  # a row filled from the base says the same as the base
        if matrix is self._known:
            self._store_own(agents)
        return np.asarray(matrix[rows, :width].min(axis=0))

    def common(self, rank: int) -> Array:
        """For each column what the live threads of a CTA knew after their last common barrier."""
        return self._base[rank, : self.columns]

    def exited(self, rank: int) -> bool:
        """Whether some thread of a CTA is gone."""
        return self._live_count[rank] < self.threads

    def floor(self) -> Array:
        """For each column what every live thread of the cluster knows."""
        width = self.columns
        alone = np.flatnonzero(self._own_row & self.live)
        self._store_own(alone)
        rows = [self._known[alone, :width].min(axis=0)] if len(alone) else []
        for rank in np.unique(self._rank[self.live & ~self._own_row]):
            rows.append(self._base[rank, :width])
        return np.minimum.reduce(rows) if rows else np.full(width, np.iinfo(np.int32).max, np.int32)

    # Rows

    def _fill(self, agents: Array) -> slice | Array:
        """Puts the rows of these agents into the matrices; returns their index."""
        self.version += 1
        rows = _index(agents)
        own = self._own_row[rows]
        if not own.all():
            new = agents[~own] if own.any() else rows
            ranks = self._rank[new]
            self._known[new] = self._base[ranks] if self.ctas > 1 else self._base[0]
            if self.proxies:
                self._fenced[new] = self._fenced_base[ranks] if self.ctas > 1 else self._fenced_base[0]
            self._own_row[new] = True
        return rows

    def _store_own(self, agents: Array) -> None:
        """Writes into the matrix what a thread knows of itself, which is else kept in vectors."""
        self._known[agents, agents] = self.now[agents]
        if self._copies:
            self._known[agents, agents + self._copies] = self._waited[agents]

    def _join(self, agents: Array) -> Snapshot:
        rows = _index(agents)
        own = self._own_row[rows]
        parts = agents[own] if not own.all() else rows
        width = self.columns
        ranks = np.unique(self._rank[rows]) if self.ctas > 1 else np.array([0])
        known = self._base[ranks, :width].max(axis=0)
        fenced = self._fenced_base[ranks, :width].max(axis=0) if self.proxies else None
        if own.any():
            np.maximum(known, self._known[parts, :width].max(axis=0), out=known)
            if fenced is not None:
                np.maximum(fenced, self._fenced[parts, :width].max(axis=0), out=fenced)
        known[rows] = self.now[rows]
        if self._copies:
            known[agents + self._copies] = self._waited[rows]
        return Snapshot(known, fenced)


def _index(agents: Array) -> slice | Array:
    """Agents that follow each other as a slice: its rows are a view."""
    first = int(agents[0])
    return slice(first, first + len(agents)) if int(agents[-1]) - first + 1 == len(agents) else agents


def _longer(first: Array, second: Array) -> Array:
    """The maximum of two rows, of which one may have been made before columns were added."""
    if len(first) < len(second):
        first, second = second, first
    joined: Array = first.copy()
    np.maximum(joined[: len(second)], second, out=joined[: len(second)])
    return joined


def _merge_fenced(first: Array | None, second: Array | None) -> Array | None:
    if first is None or second is None:
        return second if first is None else first
    return _longer(first, second)
