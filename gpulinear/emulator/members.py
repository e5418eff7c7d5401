"""The lanes that take part in a warp-wide .sync instruction: its member masks, checked, and values by warp and lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.lanes import Lanes

Array = npt.NDArray[Any]

LANE = np.arange(32)
_WEIGHT = np.uint32(1) << LANE.astype(np.uint32)
FULL = 0xFFFFFFFF


def pack(bits: Array) -> Array:
    """[.., 32] booleans as 32-bit masks: lane i is bit i."""
    return np.asarray(bits.astype(np.uint32) @ _WEIGHT)


def unpack(masks: Array) -> Array:
    """32-bit masks as [.., 32] booleans."""
    return np.asarray((masks[..., None] & _WEIGHT) != 0)


class Members:
    """``row`` and ``lane`` of each executing thread in matrices [warps, 32]; ``masks`` are those that take part with it.

    Undefined, and reported: a thread that is not in its own mask, a mask that names threads that do not execute the
    instruction with the same mask. shfl may not name threads that have exited either: what it reads from them is
    undefined, all others wait for and combine the threads that have not (PTX ISA 9.7.9 and 9.7.13). Lanes that never
    existed, in the last warp of a CTA whose size is no multiple of 32, may be named.
    """

    def __init__(self, lanes: Lanes, masks: Array) -> None:
        threads = lanes.threads
        self.lanes = lanes
        self.lane = threads & 31
        first = int(threads[0]) >> 5
        self.row = (threads >> 5) - first
        self.warps = int(self.row[-1]) + 1
        self.first_warp = first
        self.place = self.row * 32 + self.lane
        self.executing = pack(self.spread(np.ones(len(threads), bool)))
        self.whole = len(threads) == 32 * self.warps and int(masks.min()) == FULL
        self.masks = masks
        if not self.whole:
            self._check(masks)
            self.masks = masks & self.executing[self.row]

    def spread(self, values: Array) -> Array:
        """One value for each executing thread as [warps, 32]; 0 where none executes."""
        matrix = np.zeros(self.warps * 32, values.dtype)
        matrix[self.place] = values
        return matrix.reshape(self.warps, 32)

    def of_warps(self, values: Array) -> Array:
        """One value for each warp, for each executing thread."""
        return np.asarray(values[self.row])

    def _check(self, masks: Array) -> None:
        cta = self.lanes.cta
        live = np.zeros(self.warps * 32, bool)
        exists = np.zeros(self.warps * 32, bool)
        part = cta.live[self.first_warp * 32 : (self.first_warp + self.warps) * 32]
        live[: len(part)] = part
        exists[: len(part)] = True
        live_bits = pack(live.reshape(-1, 32))[self.row]
        exited = masks & pack(exists.reshape(-1, 32))[self.row] & ~live_bits
        here = masks & self.executing[self.row]
        same = self.spread(masks)[self.row] == masks[:, None]
        for wrong, message, fix in (
            (
                (masks >> self.lane.astype(np.uint32)) & 1 == 0,
                "a thread executes it that its own member mask does not name",
                "name every thread that executes it",
            ),
            (
                masks & live_bits & ~self.executing[self.row] != 0,
                "its member mask names threads that do not execute it now (a guard, or divergence)",
                "name the threads that execute it, no others; __ballot_sync before the branch gives them",
            ),
            (
                (exited != 0) & (self.lanes.instruction.opcode == "shfl"),
                "its member mask names threads that have exited",
                "name live threads only",
            ),
            (
                here & ~pack(same) != 0,
                "threads that it joins have different member masks",
                "give all threads of a group the same mask",
            ),
        ):
            if wrong.any():
                self.lanes.report(f"member mask: {self.lanes.instruction.opcode}", message, fix, which=wrong)
