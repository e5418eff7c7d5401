"""The threads that execute one instruction together, as the instruction sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.ir import Instruction

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


class Lanes:
    """The executing threads of one CTA: ``threads`` are their linear ids, ascending; guards are already applied."""

    __slots__ = ("cta", "instruction", "threads")

    def __init__(self, cta: Cta, threads: Array, instruction: Instruction) -> None:
        self.cta = cta
        self.threads = threads
        self.instruction = instruction

    @property
    def warps(self) -> Array:
        """The warp of each lane."""
        return self.threads >> 5

    def report(
        self,
        kind: str,
        message: str,
        fix: str,
        *,
        which: Array | None = None,
        address: int | None = None,
    ) -> None:
        """Note a fault of these lanes, or of those that the boolean mask ``which`` picks."""
        threads = self.threads if which is None else self.threads[which]
        self.cta.launch.report.add(
            kind,
            message,
            fix,
            self.instruction,
            self.cta.index,
            tuple(int(t) for t in threads[:8]),
            address,
            max(1, int(np.size(threads))),
        )


@dataclass(frozen=True)
class Parked:
    """Returned by an instruction (``blocks=True``) that has to wait.

    Its effects up to the wait are done. The machine polls ``ready``; once it is true, ``resume`` is called with the
    same lanes, and what it returns are the instruction's results. ``why`` says what is waited for, in a deadlock report.
    """

    ready: Callable[[], bool]
    why: str
    resume: Callable[[Lanes], Any]
