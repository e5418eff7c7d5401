"""Kernel parameters (read-only, one copy) and local memory (one copy for each thread)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from gpulinear.emulator.block import ROUND, Block, Region
from gpulinear.emulator.ir import Param, Variable
from gpulinear.emulator.shared_memory import Layout, layout

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


class ParamMemory(Block):
    """The parameter block of a launch. Padding between parameters is there to be read, but uninitialised."""

    def __init__(self, params: Sequence[Param], data: Array) -> None:
        super().__init__(len(data), [Region(0, len(data), "the kernel parameters")] if len(data) else [])
        for param in params:
            self.store(param.offset, data[param.offset : param.offset + param.size])


def layout_local(variables: Sequence[Variable]) -> Layout:
    """Places the local variables of an entry, with red zones between them."""
    return layout(variables)


class LocalMemory(Block):
    """Local memory of the threads of a CTA: thread t's copy starts at byte ``t * stride``."""

    def __init__(self, threads: int, variables: Sequence[Region]) -> None:
        self.extent = max((v.stop for v in variables), default=0)
        self.stride = -(-self.extent // ROUND) * ROUND
        variables = sorted(variables)
        regions = [
            Region(t * self.stride + v.start, t * self.stride + v.stop, v.name)
            for t in range(threads)
            for v in variables
        ]
        super().__init__(threads * self.stride, regions)


def local_memory(cta: Cta) -> LocalMemory:
    """The local memory of a CTA's threads, made on first use."""

    def make() -> LocalMemory:
        program = cta.launch.code.program
        declared = [*program.module.variables, *program.entry.variables]
        variables = [v for v in declared if v.space == "local" and v.size]
        regions = [
            Region(start, start + (v.size or 0), f"local variable '{v.name}'")
            for v in variables
            for start in [program.symbols[v.name][1]]
        ]
        return LocalMemory(cta.thread_count, regions)

    return cta.state("local memory", make)


def param_memory(cta: Cta) -> ParamMemory:
    """The kernel parameters, made on first use."""
    launch = cta.launch
    return launch.state("param memory", lambda: ParamMemory(launch.code.program.entry.params, launch.params))
