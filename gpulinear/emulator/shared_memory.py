"""The shared memory of a CTA: where its variables lie, with red zones between them, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpulinear.emulator.block import Block, Region
from gpulinear.emulator.ir import Variable

RED_ZONE = 64
"""Bytes at least between two variables: what runs over the end of one does not land in the next."""

RANK_SHIFT = 24
"""A shared::cluster address is (rank + 1) << 24 | offset; plain offsets mean the executing CTA."""

OFFSET_MASK = (1 << RANK_SHIFT) - 1


class Layout(NamedTuple):
    """Variables at their offsets; ``declared`` is the size without red zones, as hardware counts it."""

    offsets: dict[str, int]
    size: int
    regions: list[Region]
    declared: int


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def layout(variables: Sequence[Variable], dynamic_bytes: int | None = None) -> Layout:
    """Places variables in their order, each with a red zone behind it; the ``extern`` ones share the dynamic part.

    The dynamic part is the last, at the alignment of its variables and at least 16 bytes; ``None`` means that the
    space has no dynamic part.
    """
    offsets: dict[str, int] = {}
    regions: list[Region] = []
    end = declared = 0
    for variable in variables:
        if variable.size is None:
            continue
        align = max(variable.align, 1)
        start = _round_up(end, align)
        declared = _round_up(declared, align) + variable.size
        offsets[variable.name] = start
        if variable.size:
            regions.append(Region(start, start + variable.size, f"variable '{variable.name}'"))
        end = start + variable.size + RED_ZONE
    if dynamic_bytes is not None:
        extern = [variable for variable in variables if variable.size is None]
        align = max([16, *(variable.align for variable in extern)])
        end = _round_up(end, align)
        declared = _round_up(declared, align) + dynamic_bytes if dynamic_bytes else declared
        offsets |= {variable.name: end for variable in extern}
        if dynamic_bytes:
            regions.append(Region(end, end + dynamic_bytes, "the dynamic shared memory"))
        end += dynamic_bytes
    return Layout(offsets, end, regions, declared)


def layout_shared(variables: Sequence[Variable], dynamic_bytes: int = 0) -> tuple[dict[str, int], int]:
    """Offsets of the shared variables of an entry, and the bytes of shared memory that hardware counts for it."""
    placed = layout(variables, dynamic_bytes)
    return placed.offsets, placed.declared


class SharedMemory(Block):
    """Shared memory of one CTA, poisoned at its start; ``declared`` bytes of its ``size`` count for the hardware.

    Asynchronous engines write into ``bytes`` and ``written`` themselves and ask ``within`` and ``inside`` for bounds.
    """

    def __init__(self, variables: Sequence[Variable], dynamic_bytes: int) -> None:
        placed = layout(variables, dynamic_bytes)
        super().__init__(placed.size, placed.regions)
        self.declared = placed.declared
