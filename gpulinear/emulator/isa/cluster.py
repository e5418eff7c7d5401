"""Addresses of other CTAs of a cluster, and asynchronous stores and reductions into their shared memory.

PTX ISA 9.0: mapa 9.7.9.23, getctarank 9.7.9.24, st.async 9.7.9.12, red.async 9.7.13.7. A shared::cluster address is
(rank + 1) << 24 | offset; a plain offset means the executing CTA. The forms of st.async and red.async on global memory
(sm_100) are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.bulk import Target, each_lane, submit_load, targets
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.reductions import reduce_shared
from gpulinear.emulator.shared_memory import OFFSET_MASK, RANK_SHIFT
from gpulinear.emulator.spaces import SHARED_BASE
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_TYPE = "[.<space:shared::cluster>].<T:u32|u64>"


def _window(lanes: Lanes, form: Form, addresses: Array) -> Array:
    """Addresses in the shared window as int64, from those of the form's space; others are reported."""
    wide = addresses.astype(np.int64)
    if form["space"]:
        return np.asarray(wide)
    wide = wide - SHARED_BASE
    outside = (wide < 0) | (wide >> 32 != 0)
    if outside.any():
        lanes.report(
            "wrong address space",
            f"{lanes.instruction.opcode} of a generic address that does not point to shared memory",
            "give the generic address of a shared variable (cvta.shared)",
            which=outside,
            address=int(addresses[outside][0]),
        )
    return np.asarray(wide & 0xFFFFFFFF)


@effect(f"mapa{_TYPE}", "=T, T, u32", "9.7.9.23")
def mapa(form: Form) -> Semantics:
    dtype = DTYPES[form["T"]]

    def run(lanes: Lanes, addresses: Array, ranks: Array) -> Array:
        size = len(lanes.cta.cluster.ctas)
        wrong = ranks >= size
        if wrong.any():
            lanes.report(
                "invalid operand",
                f"mapa to CTA rank {int(ranks[wrong][0])} of a cluster of {size}",
                "use ranks below %cluster_nctarank",
                which=wrong,
            )
        offsets = _window(lanes, form, addresses) & OFFSET_MASK
        mapped = ((ranks.astype(np.int64) + 1) << RANK_SHIFT) | offsets
        return np.asarray((mapped if form["space"] else mapped + SHARED_BASE).astype(dtype))

    return run


@effect(f"getctarank{_TYPE}", "=u32, T", "9.7.9.24")
def getctarank(form: Form) -> Semantics:
    def run(lanes: Lanes, addresses: Array) -> Array:
        ranks = _window(lanes, form, addresses) >> RANK_SHIFT
        return np.asarray(np.where(ranks == 0, lanes.cta.rank, ranks - 1).astype(np.uint32))

    return run


def _remote(lanes: Lanes, space: str, to: int, barrier: int, nbytes: int) -> list[Target]:
    """The destination; it has to be in another CTA than the executing one."""
    found = targets(lanes, space, to, barrier, nbytes, nbytes)
    if found and found[0].owner is lanes.cta:
        lanes.report(
            "invalid operand",
            f"{lanes.instruction.opcode}.async into the executing CTA's own shared memory",
            "store with st.shared there, or map the address to another CTA",
            address=to,
        )
        return []
    return found


@effect(
    "st.async[.<sem:weak>][.<scope:cluster>][.<space:shared::cluster>].mbarrier::complete_tx::bytes[.<vec:v2|v4>]"
    ".<T:b32|b64|u32|u64|s32|s64|f32|f64>",
    "addr, V1:T, addr",
    "9.7.9.12",
)
def st_async(form: Form) -> Semantics:
    def run(lanes: Lanes, to: Array, values: list[Array], barrier: Array) -> None:
        rows = np.ascontiguousarray(np.stack(values, axis=1)).view(np.uint8)
        for i, one in each_lane(lanes):
            data = rows[i]

            def perform(target: Target, data: Array = data) -> None:
                target.owner.shared.store(target.offset, data)

            for target in _remote(one, form["space"], int(to[i]), int(barrier[i]), len(data)):
                submit_load(one, target, len(data), perform, generic=True)

    return run


_RED = "red.async.relaxed.cluster[.<space:shared::cluster>].mbarrier::complete_tx::bytes"


@effect(f"{_RED}.<op:add>.<T:u32|s32|u64>", "addr, T, addr", "9.7.13.7")
@effect(f"{_RED}.<op:min|max>.<T:u32|s32>", "addr, T, addr", "9.7.13.7")
@effect(f"{_RED}.<op:inc|dec>.<T:u32>", "addr, T, addr", "9.7.13.7")
@effect(f"{_RED}.<op:and|or|xor>.<T:b32>", "addr, T, addr", "9.7.13.7")
def red_async(form: Form) -> Semantics:
    def run(lanes: Lanes, to: Array, values: Array, barrier: Array) -> None:
        for i, one in each_lane(lanes):
            data = values[i : i + 1].view(np.uint8)

            def perform(target: Target, data: Array = data) -> None:
                reduce_shared(target.owner, target.offset, data, form["op"], form["T"])

            for target in _remote(one, form["space"], int(to[i]), int(barrier[i]), len(data)):
                submit_load(one, target, len(data), perform, reduces=True, generic=True)

    return run
