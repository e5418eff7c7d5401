"""Clocks and race detectors of a few CTAs, where every access gets an instruction of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.ir import Instruction, Location
from gpulinear.emulator.race import SharedRaces
from gpulinear.emulator.report import Finding, Report

Array = np.ndarray[Any, Any]

SIZE = 4096


class Bench:
    """One CTA (or several) with a detector each; every access gets an instruction of its own."""

    def __init__(self, threads: int = 64, ctas: int = 1, proxies: bool = False) -> None:
        self.clocks = Clocks(threads, ctas, proxies=proxies)
        self.report = Report("kernel")
        self.races = [SharedRaces(SIZE, self.clocks, self.report, (r, 0, 0), r) for r in range(ctas)]
        self.lines = 0

    def line(self) -> Instruction:
        self.lines += 1
        return Instruction(self.lines, "op", (), f"op{self.lines};", self.lines, Location("k.cu", self.lines))

    def found(self) -> list[tuple[str, int]]:
        return [(f.kind, f.instruction.line) for f in self.report.findings if f.instruction is not None]

    def only(self) -> Finding:
        assert len(self.report.findings) == 1, str(self.report)
        return self.report.findings[0]

    def do(self, kind: str, agents: object, offsets: object, nbytes: int = 4, rank: int = 0) -> None:
        getattr(self.races[rank], kind)(a(agents), a(offsets), nbytes, self.line())

    def go(
        self, kind: str, issuers: object, channel: int, value: int, offsets: object, nbytes: int, **more: bool
    ) -> None:
        who = issuers if isinstance(issuers, int) else a(issuers)
        getattr(self.races[0], f"async_{kind}")(who, channel, value, a(offsets), nbytes, self.line(), **more)

    def all(self) -> Array:
        return np.arange(self.clocks.threads)


def a(values: object) -> Array:
    return np.atleast_1d(np.asarray(values, np.int64))
