"""Two or more CTAs, data and flags in global memory: for the tests of what orders accesses to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulinear.emulator.global_order import PLAIN, SCOPES, How
from gpulinear.emulator.memory import load, store, update
from tests.emulator.fakes import Bench

RELAXED, VOLATILE = How(SCOPES["gpu"]), How(SCOPES["sys"])
ACQUIRE, RELEASE = How(SCOPES["gpu"], acquire=True), How(SCOPES["gpu"], release=True)
BOTH = How(SCOPES["gpu"], acquire=True, release=True)


class Global(Bench):
    """Two CTAs, or clusters; data at ``self.data``, flags at ``self.flag``."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(64, **shape)
        self.data = self.memory.alloc(np.zeros(256, np.uint32), name="data")
        self.flag = self.memory.alloc(np.zeros(64, np.uint32), name="flags")

    def put(self, thread: int, cta: int, word: int = 0, how: How = PLAIN, flag: bool = False) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        store(self.lanes([thread], cta), "global", address, [np.ones(1, np.uint32)], np.uint32, how)

    def get(self, thread: int, cta: int, word: int = 0, how: How = PLAIN, flag: bool = False) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        load(self.lanes([thread], cta), "global", address, np.uint32, 1, how)

    def add(self, thread: int, cta: int, word: int = 0, how: How = RELAXED, flag: bool = True) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        one: Any = lambda old, lanes: old + np.uint32(1)  # noqa: E731
        update(self.lanes([thread], cta), "global", address, np.uint32, 1, lambda space: one, how)

    def fence(self, thread: int, cta: int, scope: str = "gpu", sem: str = "acq_rel") -> None:
        lanes = self.lanes([thread], cta)
        self.memory.fence(lanes, scope, sem)
        if scope != "cta":
            lanes.cta.cluster.clocks.fence_memory(lanes.threads + lanes.cta.first_agent)


def races(bench: Bench) -> int:
    assert set(bench.found) <= {"global race"}
    return sum(finding.count for finding in bench.launch.report.findings)
