"""Loads, stores and atomics in shared memory, of the own CTA or of another one of the cluster, with their checks.

Strong accesses (volatile, relaxed, acquire, release) are checked like weak ones: they order nothing (race.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory_faults as faults
from gpulinear.emulator.block import Step
from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.shape import Shape, shape_of
from gpulinear.emulator.shared_memory import OFFSET_MASK, RANK_SHIFT

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


def read_shared(lanes: Lanes, address: Array, nbytes: int, align: int | None, cluster: bool) -> Array:
    """A unit of ``nbytes`` for each lane; ``cluster``: shared::cluster addresses."""
    cta = lanes.cta
    shape, first = shape_of(address, nbytes, lanes.threads)
    if cta.shared.within(first + shape.low, first + shape.high) and faults.fits(shape, address, align):
        return _read(lanes, cta, shape, first, address)
    result = faults.poison(len(address), nbytes)
    for owner, which, offsets in _admit(lanes, "reads", address, nbytes, align, cluster):
        part = Lanes(cta, lanes.threads[which], lanes.instruction)
        shape, first = shape_of(offsets, nbytes, part.threads)
        result[which] = _read(part, owner, shape, first, offsets)
    return result


def write_shared(lanes: Lanes, address: Array, units: Array, nbytes: int, align: int | None, cluster: bool) -> None:
    """Writes a unit for each lane."""
    cta = lanes.cta
    shape, first = shape_of(address, nbytes, lanes.threads)
    if cta.shared.within(first + shape.low, first + shape.high) and faults.fits(shape, address, align):
        _write(lanes, cta, shape, first, address, units)
        return
    for owner, which, offsets in _admit(lanes, "writes", address, nbytes, align, cluster):
        part = Lanes(cta, lanes.threads[which], lanes.instruction)
        shape, first = shape_of(offsets, nbytes, part.threads)
        _write(part, owner, shape, first, offsets, units[which])


def update_shared(lanes: Lanes, address: Array, dtype: np.dtype[Any], count: int, step: Step, cluster: bool) -> Array:
    """Atomic read-modify-writes; returns the old values, [lanes, count]."""
    nbytes = dtype.itemsize * count
    seen = faults.poison(len(address), nbytes).view(dtype).reshape(-1, count)
    for owner, which, offsets in _admit(lanes, "updates", address, nbytes, None, cluster):
        part = Lanes(lanes.cta, lanes.threads[which], lanes.instruction)
        shape, first = shape_of(offsets, nbytes, part.threads)
        _check_initialised(part, owner, shape, first, offsets, "updates")
        owner.races.atomic(agents_of(part), offsets, nbytes, part.instruction)

        def turn(old: Array, chosen: Array, which: Array = which) -> Array:
            return step(old, which[chosen])

        seen[which] = owner.shared.update(shape, first, dtype, turn)
        _count(part, shape, "read")
        lanes.cta.launch.counters.moved("shared", "write", len(which) * nbytes)
    return seen


def _admit(
    lanes: Lanes, verb: str, address: Array, nbytes: int, align: int | None, cluster: bool
) -> list[tuple[Cta, Array, Array]]:
    """The lanes that may go on with their offsets, by the CTA that owns the memory; the others are reported."""
    ok = faults.aligned(lanes, verb, address, nbytes, nbytes if align is None else align)
    ranks = address >> RANK_SHIFT
    parts: list[tuple[Cta, Array, Array]] = []
    for rank in np.unique(ranks).tolist():
        which = np.flatnonzero(ranks == rank)
        offsets = address[which] & OFFSET_MASK
        owner = _owner(lanes.cta, rank, cluster)
        if owner is None:
            size = len(lanes.cta.cluster.ctas)
            where = f"with an address of CTA rank {rank - 1} of a cluster of {size}"
            if 0 < rank <= size:
                where += ", which only .shared::cluster accesses reach"
            faults.out_of_bounds(lanes, verb, address, ranks == rank, nbytes, where)
            continue
        if owner is not lanes.cta and not owner.live.any():
            lanes.report(
                "shared memory of an exited CTA",
                f"{verb} shared memory of CTA {owner.index}, which has exited",
                "let all CTAs of the cluster wait (barrier.cluster) before one of them exits",
                which=ranks == rank,
                address=int(address[which][0]),
            )
            continue
        inside = owner.shared.inside(offsets, nbytes)
        if not inside.all():
            outside = np.zeros(len(address), bool)
            outside[which[~inside]] = True
            places = [(r.start, r.stop - r.start, r.name) for r in owner.shared.regions]
            where = faults.nearest(int(offsets[~inside][0]), nbytes, places)
            faults.out_of_bounds(lanes, verb, address, outside, nbytes, where)
        inside &= ok[which]
        if inside.any():
            parts.append((owner, which[inside], offsets[inside]))
    return parts


def _owner(cta: Cta, rank: int, cluster: bool) -> Cta | None:
    """Whose memory an address with these rank bits means; None if it is nobody's or out of reach."""
    if rank == 0 or rank - 1 == cta.rank:
        return cta
    peers = cta.cluster.ctas
    return peers[rank - 1] if cluster and 0 < rank <= len(peers) else None


def _races(lanes: Lanes, shape: Shape, offsets: Array) -> tuple[Array, Array, int]:
    """An access as the race detector wants it: what is not naturally aligned goes byte by byte."""
    agents = agents_of(lanes)
    if shape.aligned or shape.nbytes > 16:
        return agents, offsets, shape.nbytes
    each = np.arange(shape.nbytes)
    return np.repeat(agents, shape.nbytes), (offsets[:, None] + each).reshape(-1), 1


def _check_initialised(lanes: Lanes, owner: Cta, shape: Shape, first: int, offsets: Array, verb: str) -> None:
    if not owner.shared.initialised(shape, first):
        which = owner.shared.uninitialised(offsets, shape.nbytes)
        faults.uninitialised(lanes, verb, offsets, which, "shared memory")


def _read(lanes: Lanes, owner: Cta, shape: Shape, first: int, offsets: Array) -> Array:
    _check_initialised(lanes, owner, shape, first, offsets, "reads")
    owner.races.read(*_races(lanes, shape, offsets), lanes.instruction)
    _count(lanes, shape, "read")
    return owner.shared.take(shape, first)


def _write(lanes: Lanes, owner: Cta, shape: Shape, first: int, offsets: Array, units: Array) -> None:
    owner.races.write(*_races(lanes, shape, offsets), lanes.instruction)
    _count(lanes, shape, "write")
    owner.shared.put(shape, first, units)


def _count(lanes: Lanes, shape: Shape, direction: str) -> None:
    counters = lanes.cta.launch.counters
    if shape.aligned:
        counters.shared(lanes.instruction, *shape.wavefronts, shape.requests)
    counters.moved("shared", direction, len(shape.relative) * shape.nbytes)
