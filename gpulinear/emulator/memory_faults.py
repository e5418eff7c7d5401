"""What memory accesses can do wrong, as findings: which lanes may go on, and the words for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.block import POISON, unit_type
from gpulinear.emulator.shape import Shape

if TYPE_CHECKING:
    from gpulinear.emulator.lanes import Lanes

Array = npt.NDArray[Any]

_FAR = 1 << 20  # bytes beyond which the nearest allocation has nothing to do with a wrong address


def poison(lanes: int, nbytes: int) -> Array:
    """What faulting loads give."""
    return np.full(lanes * nbytes, POISON, np.uint8).view(unit_type(nbytes))


def fits(shape: Shape, address: Array, align: int | None) -> bool:
    """Whether all addresses are multiples of ``align`` (None: of the access size)."""
    return shape.aligned if align is None else align == 1 or not (address & (align - 1)).any()


def aligned(lanes: Lanes, verb: str, address: Array, nbytes: int, align: int) -> Array:
    """The lanes whose address is a multiple of ``align``; the others are reported."""
    wrong: Array = address & (align - 1) != 0
    if wrong.any():
        first = int(address[wrong][0])
        lanes.report(
            "misaligned access",
            f"{verb} {nbytes} bytes at an address that is only a multiple of {first & -first}, not of {align}",
            f"make the address a multiple of {align}, or access smaller units",
            which=wrong,
            address=first,
        )
    return ~wrong


def out_of_bounds(lanes: Lanes, verb: str, address: Array, which: Array, nbytes: int, where: str) -> None:
    """Report lanes that access bytes that belong to nobody; ``where`` says where the first one's lie."""
    lanes.report(
        "out of bounds",
        f"{verb} {nbytes} bytes, {where}",
        "check the guards of this access and the size that was allocated",
        which=which,
        address=int(address[which][0]),
    )


def uninitialised(lanes: Lanes, verb: str, address: Array, which: Array, what: str) -> None:
    """Report lanes that read bytes that nobody wrote."""
    lanes.report(
        "uninitialised read",
        f"{verb} bytes of {what} that were never written",
        "write them first (and wait for the write), or do not read them",
        which=which,
        address=int(address[which][0]),
    )


def past(offset: int, nbytes: int, start: int, size: int, name: str) -> tuple[int, str]:
    """By how much an access misses [start, start + size), and that in words."""
    if offset >= start + size or (offset >= start and offset + nbytes > start + size):
        far = offset + nbytes - start - size
        return far, f"{far} bytes past the end of {name} ({size} bytes)"
    if offset < start:
        return start - offset, f"{start - offset} bytes before the start of {name} ({size} bytes)"
    return 0, f"in a gap of {name} ({size} bytes), at its byte {offset - start}"


def nearest(offset: int, nbytes: int, places: list[tuple[int, int, str]]) -> str:
    """Where an access lies relative to the nearest of (start, size, name)."""
    distance, words = min((past(offset, nbytes, *place) for place in places), default=(_FAR, ""))
    return words if distance < _FAR else "where nothing is allocated"


def read_only(lanes: Lanes, what: str, address: Array) -> None:
    """Report writes to read-only memory."""
    lanes.report(
        "write to read-only memory",
        f"writes to {what}, which is read-only",
        "write to an output instead",
        address=int(address[0]),
    )


def wrong_space(lanes: Lanes, message: str, address: Array) -> None:
    """Report an access to memory of another state space than the instruction's."""
    lanes.report(
        "wrong state space",
        message,
        "access it by generic addressing or in its own state space",
        address=int(address[0]),
    )
