"""Finds the mbarrier objects of a cluster by the addresses that instructions give, and says what is wrong with these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.mbarrier import MBarrier
from gpulinear.emulator.shared_memory import OFFSET_MASK, RANK_SHIFT
from gpulinear.emulator.spaces import SHARED_BASE

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


def barriers(cta: Cta) -> dict[int, MBarrier]:
    """The valid objects of a CTA by their offsets."""

    def make() -> dict[int, MBarrier]:
        def report_all(_: Cta) -> None:
            for barrier in table.values():
                barrier.report_unseen("the CTA exits")

        table: dict[int, MBarrier] = {}
        cta.at_exit(report_all)
        return table

    return cta.state("mbarrier", make)


def place(lanes: Lanes, space: str, address: int, align: int, *, remote: bool = False) -> tuple[Cta, int] | None:
    """The CTA and the offset that a shared address means; what is wrong with it is reported (then None).

    ``space`` as written in the instruction, "" for a generic address; ``remote``: other CTAs of the cluster may own it.
    """
    cta = lanes.cta
    where = address - SHARED_BASE if space == "" else address
    rank, offset = where >> RANK_SHIFT, where & OFFSET_MASK
    owner = None
    if 0 <= rank <= len(cta.cluster.ctas):
        owner = cta if rank == 0 else cta.cluster.ctas[rank - 1]
    if owner is None or not (remote or owner is cta):
        whose = "of the cluster" if remote else "of the executing CTA"
        lanes.report(
            "wrong address space",
            f"the address is not in the shared memory {whose}",
            "give an address of a shared variable (for another CTA through mapa)",
            address=address,
        )
        return None
    if owner is not cta and not owner.live.any():
        lanes.report(
            "shared memory of an exited CTA",
            f"CTA {owner.index} has exited: its shared memory is gone",
            "let all CTAs of the cluster wait (barrier.cluster) before one of them exits",
            address=address,
        )
        return None
    if offset % align:
        lanes.report(
            "misaligned address",
            f"the shared address must be a multiple of {align}",
            f"declare the variable with __align__({align})",
            address=address,
        )
        return None
    return owner, offset


def find(
    lanes: Lanes, space: str, addresses: Array, *, remote: bool = False
) -> Iterator[tuple[Array | slice, Lanes, MBarrier]]:
    """The objects that the lanes name: for each which lanes, these lanes, and the object; misuse is reported."""
    for address in dict.fromkeys(addresses.tolist()):
        same = addresses == address
        which = slice(None) if same.all() else same
        part = Lanes(lanes.cta, lanes.threads[which], lanes.instruction)
        placed = place(part, space, address, 8, remote=remote)
        if placed is None:
            continue
        owner, offset = placed
        barrier = barriers(owner).get(offset)
        if barrier is None:
            part.report(
                "mbarrier not initialised",
                "there is no valid mbarrier object at this address",
                "mbarrier.init by one thread, then a barrier, before it is used",
                address=address,
            )
            continue
        barrier.check_bytes(part)
        yield which, part, barrier
