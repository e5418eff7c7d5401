"""Barriers of a CTA (bar, barrier) and of a cluster (barrier.cluster): PTX ISA 9.0, 9.7.13.1 and 9.7.13.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.barriers import Generation, NamedBarriers
from gpulinear.emulator.clocks import Snapshot, agents_of
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes, Parked

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cluster

Array = npt.NDArray[Any]

_CTA = "9.7.13.1"
_CLUSTER = "9.7.13.3"


def _check_aligned(lanes: Lanes) -> None:
    """.aligned: all live threads of each warp execute it together."""
    cta, threads = lanes.cta, lanes.threads
    warps = (cta.thread_count + 31) // 32
    live = np.bincount(np.flatnonzero(cta.live) >> 5, minlength=warps)
    partial = (live != np.bincount(threads >> 5, minlength=warps))[threads >> 5]
    if partial.any():
        lanes.report(
            "divergent barrier",
            "only a part of a warp executes an .aligned barrier with these operands",
            "let all threads of the warp reach it together with the same operands, or use barrier without .aligned",
            which=partial,
        )


def _arrive(
    lanes: Lanes, numbers: Array, counts: Array | None, kind: str, predicates: Array | None
) -> tuple[Generation, Callable[[], bool]]:
    """Arrival of lanes that all name one barrier: its use, and whether it is complete."""
    barriers = lanes.cta.state("barriers", lambda: NamedBarriers(lanes.cta))
    count = None if counts is None else int(counts[0])
    generation = barriers.arrive(lanes, int(numbers[0]), count, kind, predicates)
    return generation, lambda: barriers.complete(lanes, generation)


def _why(lanes: Lanes, numbers: Array, counts: Array | None) -> str:
    if counts is not None:
        return f"barrier {int(numbers[0])} of {int(counts[0])} threads (threads that have exited do not arrive)"
    return f"barrier {int(numbers[0])} of all {lanes.cta.thread_count} threads that have not exited"


def _sync(aligned: bool) -> Semantics:
    def run(lanes: Lanes, numbers: Array, counts: Array | None) -> Parked | None:
        if aligned:
            _check_aligned(lanes)
        _, complete = _arrive(lanes, numbers, counts, "sync", None)
        return None if complete() else Parked(complete, _why(lanes, numbers, counts), lambda _: None)

    return run


@effect("bar[.cta].sync", "u32, u32?", _CTA, sync="warp", blocks=True, uniform=True)
@effect("barrier[.cta].sync.aligned", "u32, u32?", _CTA, sync="warp", blocks=True, uniform=True)
def sync_aligned(form: Form) -> Semantics:
    return _sync(True)


@effect("barrier[.cta].sync", "u32, u32?", _CTA, blocks=True, uniform=True)
def sync(form: Form) -> Semantics:
    return _sync(False)


def _arrive_only(aligned: bool) -> Semantics:
    def run(lanes: Lanes, numbers: Array, counts: Array) -> None:
        if aligned:
            _check_aligned(lanes)
        _, complete = _arrive(lanes, numbers, counts, "arrive", None)
        complete()

    return run


@effect("bar[.cta].arrive", "u32, u32", _CTA, sync="warp", uniform=True)
@effect("barrier[.cta].arrive.aligned", "u32, u32", _CTA, sync="warp", uniform=True)
def arrive_aligned(form: Form) -> Semantics:
    return _arrive_only(True)


@effect("barrier[.cta].arrive", "u32, u32", _CTA, uniform=True)
def arrive(form: Form) -> Semantics:
    return _arrive_only(False)


def _reduced(generation: Generation, op: str, lanes: Lanes) -> Array:
    if op == "popc":
        return np.full(len(lanes.threads), generation.true, np.uint32)
    everyone = np.count_nonzero(generation.arrived)
    return np.full(len(lanes.threads), generation.true == everyone if op == "and" else generation.true > 0)


def _red(form: Form, aligned: bool, counted: bool) -> Semantics:
    """All lanes have to name one barrier: they wait together."""
    op = form["op"]

    def run(lanes: Lanes, numbers: Array, *rest: Array) -> Array | Parked:
        counts, predicates = (rest[0] if counted else None), rest[-1]
        if aligned:
            _check_aligned(lanes)
        if (numbers != numbers[0]).any() or (counts is not None and (counts != counts[0]).any()):
            lanes.report(
                "barrier number",
                "threads that execute one bar.red name different barriers or counts; taken as the first one's",
                "branch first, so that each group has a bar.red of its own",
            )
        generation, complete = _arrive(lanes, numbers, counts, "red", predicates)
        if complete():
            return _reduced(generation, op, lanes)
        why = _why(lanes, numbers, counts)
        return Parked(complete, why, lambda resumed: _reduced(generation, op, resumed))

    return run


def _register_red(pattern: str, aligned: bool) -> None:
    for op, result in (("popc", "u32"), ("and|or", "pred")):
        for counted in (False, True):

            def factory(form: Form, counted: bool = counted) -> Semantics:
                return _red(form, aligned, counted)

            operands = "=T, u32, u32, pred" if counted else "=T, u32, pred"
            text = pattern.format(op=op, type=result)
            effect(text, operands, _CTA, sync="warp" if aligned else "", blocks=True)(factory)


_register_red("bar[.cta].red.<op:{op}>.<T:{type}>", aligned=True)
_register_red("barrier[.cta].red.<op:{op}>.aligned.<T:{type}>", aligned=True)
_register_red("barrier[.cta].red.<op:{op}>.<T:{type}>", aligned=False)


class ClusterBarrier:
    """The barrier of a cluster: complete when all live threads have arrived.

    ``phase`` counts completions, ``joined`` is the phase at which each agent arrived and has not waited for yet (-1:
    none), ``handed`` what the arrivals of each phase released.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._clocks = cluster.clocks
        self._phase = 0
        self._joined = np.full(self._clocks.agents, -1)
        self._arrived = np.zeros(self._clocks.agents, bool)
        self._handed: dict[int, Snapshot] = {}

    def arrive(self, lanes: Lanes, relaxed: bool) -> None:
        """These lanes arrive and go on."""
        agents = agents_of(lanes)
        self._advance()
        twice = self._joined[agents] >= 0
        if twice.any():
            lanes.report(
                "cluster barrier",
                "a thread arrives at the cluster barrier that has not waited since it arrived before",
                "barrier.cluster.wait between two arrivals",
                which=twice,
            )
        released = self._clocks.release_relaxed(agents) if relaxed else self._clocks.release(agents)
        self._handed[self._phase] = self._clocks.merge(self._handed.get(self._phase), released)
        self._joined[agents] = self._phase
        self._arrived[agents] = True

    def _advance(self) -> None:
        """A phase may also be completed by threads that exit."""
        if self._arrived.any() and (self._arrived | ~self._clocks.live).all():
            self._phase += 1
            self._arrived[:] = False

    def missing(self, agents: Array) -> Array:
        """Which of these agents have not arrived since they last waited."""
        return np.asarray(self._joined[agents] < 0)

    def passed(self, agents: Array) -> bool:
        """Whether the phases that these agents arrived at are complete."""
        self._advance()
        return bool((self._joined[agents] < self._phase).all())

    def leave(self, lanes: Lanes) -> None:
        """These lanes are ordered after what was released by the phase they waited for."""
        agents = agents_of(lanes)
        phases = self._joined[agents]
        for phase in np.unique(phases[phases >= 0]).tolist():
            self._clocks.acquire(agents[phases == phase], self._handed[phase])
        self._joined[agents] = -1
        needed = self._joined[self._joined >= 0]
        oldest = int(needed.min()) if len(needed) else self._phase
        self._handed = {phase: snapshot for phase, snapshot in self._handed.items() if phase >= oldest}


def _cluster_barrier(lanes: Lanes) -> ClusterBarrier:
    cluster = lanes.cta.cluster
    return cluster.state("cluster barrier", lambda: ClusterBarrier(cluster))


def _cluster_arrive(form: Form, aligned: bool) -> Semantics:
    relaxed = form["sem"] == "relaxed"

    def run(lanes: Lanes) -> None:
        if aligned:
            _check_aligned(lanes)
        _cluster_barrier(lanes).arrive(lanes, relaxed)

    return run


@effect("barrier.cluster.arrive[.<sem:release|relaxed>].aligned", "", _CLUSTER, sync="warp")
def cluster_arrive_aligned(form: Form) -> Semantics:
    return _cluster_arrive(form, True)


@effect("barrier.cluster.arrive[.<sem:release|relaxed>]", "", _CLUSTER)
def cluster_arrive(form: Form) -> Semantics:
    return _cluster_arrive(form, False)


def _cluster_wait(aligned: bool) -> Semantics:
    def run(lanes: Lanes) -> Parked | None:
        if aligned:
            _check_aligned(lanes)
        barrier, agents = _cluster_barrier(lanes), agents_of(lanes)
        idle = barrier.missing(agents)
        if idle.any():
            lanes.report(
                "cluster barrier",
                "a thread waits for the cluster barrier that has not arrived at it",
                "barrier.cluster.arrive before barrier.cluster.wait",
                which=idle,
            )
        if barrier.passed(agents):
            barrier.leave(lanes)
            return None
        why = "the cluster barrier: all live threads of the cluster have to arrive"
        return Parked(lambda: barrier.passed(agents), why, barrier.leave)

    return run


@effect("barrier.cluster.wait[.acquire].aligned", "", _CLUSTER, sync="warp", blocks=True)
def cluster_wait_aligned(form: Form) -> Semantics:
    return _cluster_wait(True)


@effect("barrier.cluster.wait[.acquire]", "", _CLUSTER, blocks=True)
def cluster_wait(form: Form) -> Semantics:
    return _cluster_wait(False)
