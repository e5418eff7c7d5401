"""Fences, register redistribution, and the rest that is neither arithmetic nor memory: trap, nanosleep, griddepcontrol.

PTX ISA 9.0: 9.7.13.4 (membar, fence), 9.7.13.13 (griddepcontrol), 9.7.19 (miscellaneous). One grid runs at a time, so
griddepcontrol has nothing to wait for. Not modelled, hence refused: brkpt, pmevent, fences of one direction only
(fence.acquire, fence.release, fence.proxy.async::generic).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.errors import EmulatorError, NotModelledError
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes, Parked

Array = npt.NDArray[Any]

_FENCE = "9.7.13.4"


@effect("fence[.<sem:sc|acq_rel>].<scope:cta|cluster|gpu|sys>", "", _FENCE)
@effect("membar.<scope:cta|gl|sys>", "", _FENCE)
def fence(form: Form) -> Semantics:
    scope = {"gl": "gpu"}.get(form["scope"], form["scope"])

    def run(lanes: Lanes) -> None:
        lanes.cta.launch.memory.fence(lanes, scope)
        if scope != "cta":
            lanes.cta.cluster.clocks.fence_memory(agents_of(lanes))

    return run


@effect("fence.proxy.async[.<space:shared::cta|shared::cluster>]", "", _FENCE)
@effect("membar.proxy.async[.<space:shared::cta|shared::cluster>]", "", _FENCE)
def fence_proxy_async(form: Form) -> Semantics:
    return lambda lanes: lanes.cta.cluster.clocks.fence_proxy(agents_of(lanes))


@effect("fence.proxy.<kind:alias|async.global>", "", _FENCE)
@effect("membar.proxy.<kind:alias|async.global>", "", _FENCE)
@effect("fence.proxy.tensormap::generic.release.<scope:cta|cluster|gpu|sys>", "", _FENCE)
@effect("fence.proxy.tensormap::generic.acquire.<scope:cta|cluster|gpu|sys>", "addr, imm", _FENCE)
def fence_proxy_other(form: Form) -> Semantics:
    """Orders nothing here: there are no virtual aliases, and proxies of global memory are not told apart."""
    return lambda lanes, *operands: None


@effect("fence.mbarrier_init.release.cluster", "", _FENCE)
def fence_mbarrier_init(form: Form) -> Semantics:
    return lambda lanes: lanes.cta.cluster.clocks.fence_inits(agents_of(lanes))


@effect("griddepcontrol.<action:wait|launch_dependents>", "", "9.7.13.13")
def griddepcontrol(form: Form) -> Semantics:
    return lambda lanes: None


@effect("nanosleep.u32", "u32", "9.7.19.2")
def nanosleep(form: Form) -> Semantics:
    return lambda lanes, duration: None


@effect("trap", "", "9.7.19.4")
def trap(form: Form) -> Semantics:
    def run(lanes: Lanes) -> None:
        threads = ", ".join(str(t) for t in lanes.threads[:4].tolist()) + (", ..." if len(lanes.threads) > 4 else "")
        where = lanes.instruction.where()
        raise EmulatorError(f"trap in CTA {lanes.cta.index}, threads {threads}, at {where}")

    return run


class RegisterPool:
    """How many registers per thread each warpgroup owns (None: not known), and how many the CTA has free.

    At the launch each warp owns what ptxas gave the kernel, in units of 8 registers per thread, and none are free.
    """

    def __init__(self, registers_per_thread: int | None, threads: int) -> None:
        start = None if registers_per_thread is None else -(-registers_per_thread // 8) * 8
        self.owned: list[int | None] = [start] * ((threads + 127) // 128)
        self.free = 0

    def change(self, group: int, threads: int, count: int) -> None:
        """A warpgroup of so many threads gets or gives registers."""
        owned = self.owned[group]
        if owned is not None:
            self.free -= (count - owned) * threads
        self.owned[group] = count

    def has(self, wanted: dict[int, int], count: int) -> bool:
        """Whether there are registers for these warpgroups (number -> threads) to own ``count`` per thread."""
        needs = [(count - owned) * n for group, n in wanted.items() if (owned := self.owned[group]) is not None]
        return sum(needs) <= self.free


def _check_setmaxnreg(lanes: Lanes, groups: dict[int, int], count: int, action: str, pool: RegisterPool) -> None:
    def report(message: str, fix: str) -> None:
        lanes.report("setmaxnreg", message, fix)

    if count % 8 or not 24 <= count <= 256:
        report(f"{count} registers per thread", "use a multiple of 8 from 24 to 256")
    for group, threads in groups.items():
        if threads != 128:
            report(f"only {threads} threads of warpgroup {group} execute it", "let all four warps execute it")
        owned = pool.owned[group]
        if owned is not None and (count < owned if action == "inc" else count > owned):
            report(
                f".{action} to {count} registers per thread, warpgroup {group} owns {owned}",
                f"use .{'dec' if action == 'inc' else 'inc'}, or compile with another register limit",
            )


@effect("setmaxnreg.<action:inc|dec>.sync.aligned.u32", "imm", "9.7.19.5", sync="warpgroup", blocks=True)
def setmaxnreg(form: Form) -> Semantics:
    """Not checked: that the warps of a warpgroup synchronise between two of these."""
    action = form["action"]

    def run(lanes: Lanes, count: int) -> Parked | None:
        cta = lanes.cta
        if cta.launch.arch[-1] not in "af":
            raise NotModelledError(f"setmaxnreg needs sm_90a or the like. At {lanes.instruction.where()}")
        pool = cta.state("setmaxnreg", lambda: RegisterPool(cta.launch.registers_per_thread, cta.thread_count))
        numbers, sizes = np.unique(lanes.threads >> 7, return_counts=True)
        groups = dict(zip(numbers.tolist(), sizes.tolist(), strict=True))
        _check_setmaxnreg(lanes, groups, count, action, pool)

        def take(_: Lanes) -> None:
            for group, threads in groups.items():
                pool.change(group, threads, count)

        if action == "dec" or pool.has(groups, count):
            take(lanes)
            return None
        why = f"registers: setmaxnreg.inc to {count} needs more than the {pool.free} that other warps have given back"
        return Parked(lambda: pool.has(groups, count), why, take)

    return run
