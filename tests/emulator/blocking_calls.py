"""Calls one instruction that may have to wait, and asks who is ordered after whom."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulinear.emulator.ir import Imm, Instruction, Operand, Reg
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.lanes import Parked
from tests.emulator.fakes import Bench


class Call:
    """An instruction that may have to wait."""

    def __init__(self, bench: Bench, name: str, *values: Any, threads: Any = None, cta: int = 0) -> None:
        self.lanes = bench.lanes(threads, cta, name)
        operands: list[Operand] = [Reg("%d")] if ".red." in name else []
        operands += [Imm("int", v) if name.startswith("setmaxnreg") else Reg("%r") for v in values]
        rule, form = resolve(Instruction(0, name, tuple(operands), name, 1))
        count = len(self.lanes.threads)
        if name.startswith("setmaxnreg"):
            arrays: list[Any] = list(values)
        else:
            arrays = [v if isinstance(v, np.ndarray) else np.full(count, v, np.uint32) for v in values]
            arrays += [None] * (sum(not s[0].written for s in rule.operands) - len(arrays))
        self.result = rule.factory(form)(self.lanes, *arrays)

    @property
    def waits(self) -> bool:
        return isinstance(self.result, Parked) and not self.result.ready()

    def go_on(self) -> Any:
        assert not self.waits
        return self.result.resume(self.lanes) if isinstance(self.result, Parked) else self.result


def write(bench: Bench, threads: Any, cta: int = 0) -> None:
    threads = np.atleast_1d(threads)
    owner = bench.ctas[cta]
    owner.races.write(threads + owner.first_agent, threads * 4, 4, bench.lanes().instruction)


def races(bench: Bench, reader: int, writer: int, cta: int = 0, of: int = 0) -> bool:
    """Whether a read by one thread of what another one wrote is a race."""
    before = len(bench.found)
    agent = reader + bench.ctas[cta].first_agent
    bench.ctas[of].races.read(np.array([agent]), np.array([writer * 4]), 4, bench.lanes().instruction)
    return len(bench.found) > before


def cluster_sync(bench: Bench, arrive: str = "barrier.cluster.arrive") -> None:
    """Two CTAs arrive and wait."""
    for cta in (0, 1):
        Call(bench, arrive, cta=cta)
    for cta in (0, 1):
        assert Call(bench, "barrier.cluster.wait", cta=cta).go_on() is None
