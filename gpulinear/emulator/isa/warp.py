"""Exchange inside a warp: shfl, vote, match, redux, elect, activemask, bar.warp.sync.

PTX ISA 9.0: 9.7.9.6 (shfl.sync), 9.7.13.2 (bar.warp.sync), 9.7.13.9 to 9.7.13.13. Of these only bar.warp.sync orders
memory; the race detector takes nothing from the others, as the ISA promises nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.members import Members, pack, unpack

Array = npt.NDArray[Any]

_SOURCE: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "up": lambda lane, b, low, high: (lane - b, lane - b >= high),
    "down": lambda lane, b, low, high: (lane + b, lane + b <= high),
    "bfly": lambda lane, b, low, high: (lane ^ b, (lane ^ b) <= high),
    "idx": lambda lane, b, low, high: (low | b, (low | b) <= high),
}
"""Lane, offset, lowest and bounding lane of the segment -> the source lane, and whether it is in range."""


@effect("shfl.sync.<mode:up|down|bfly|idx>.b32", "=b32|=pred?, b32, u32, u32, u32", "9.7.9.6", sync="mask")
def shfl(form: Form) -> Semantics:
    source = _SOURCE[form["mode"]]
    is_index = form["mode"] == "idx"

    def run(lanes: Lanes, a: Array, b: Array, c: Array, mask: Array) -> tuple[Array, Array]:
        members = Members(lanes, mask)
        lane, offset = members.lane, (b & 31).astype(np.int64)
        segment = (c >> 8 & 31).astype(np.int64)
        low = lane & segment
        high = low | ((c & 31).astype(np.int64) & ~segment)
        if is_index:
            offset = offset & ~segment
        chosen, in_range = source(lane, offset, low, high)
        chosen = np.where(in_range, chosen, lane)
        values = members.spread(a)[members.row, chosen]
        if not members.whole:
            absent = members.masks >> chosen.astype(np.uint32) & 1 == 0
            if absent.any():
                lanes.report(
                    "shuffle from nowhere",
                    "the source lane does not take part, its value is undefined",
                    "keep the source lane inside the member mask, or do not use the value",
                    which=absent,
                )
                values = np.where(absent, np.uint32(0xFFFFFFFF), values)
        return values, in_range

    return run


def _voters(lanes: Lanes, a: Array, mask: Array) -> tuple[Array, Array]:
    """Who takes part with each thread, and which of them vote true."""
    members = Members(lanes, mask)
    return members.masks, members.of_warps(pack(members.spread(a))) & members.masks


@effect("vote.sync.<mode:all|any|uni>.pred", "=pred, pred, u32", "9.7.13.9", sync="mask")
def vote(form: Form) -> Semantics:
    mode = form["mode"]

    def run(lanes: Lanes, a: Array, mask: Array) -> Array:
        members, true = _voters(lanes, a, mask)
        every, none = true == members, true == 0
        return np.asarray({"all": every, "any": ~none, "uni": every | none}[mode])

    return run


@effect("vote.sync.ballot.b32", "=b32, pred, u32", "9.7.13.9", sync="mask")
def ballot(form: Form) -> Semantics:
    return lambda lanes, a, mask: _voters(lanes, a, mask)[1]


def _equal(members: Members, a: Array) -> Array:
    """For each thread the members with its value."""
    return members.masks & pack(members.spread(a)[members.row] == a[:, None])


@effect("match.any.sync.<T:b32|b64>", "=b32, T, u32", "9.7.13.10", sync="mask")
def match_any(form: Form) -> Semantics:
    return lambda lanes, a, mask: _equal(Members(lanes, mask), a)


@effect("match.all.sync.<T:b32|b64>", "=b32|=pred?, T, u32", "9.7.13.10", sync="mask")
def match_all(form: Form) -> Semantics:
    def run(lanes: Lanes, a: Array, mask: Array) -> tuple[Array, Array]:
        members = Members(lanes, mask)
        every = _equal(members, a) == members.masks
        return np.where(every, members.masks, np.uint32(0)), every

    return run


_REDUCE: dict[str, tuple[Any, dict[str, int]]] = {
    "add": (np.add, {"u32": 0, "s32": 0}),
    "min": (np.minimum, {"u32": 2**32 - 1, "s32": 2**31 - 1}),
    "max": (np.maximum, {"u32": 0, "s32": -(2**31)}),
    "and": (np.bitwise_and, {"b32": 2**32 - 1}),
    "or": (np.bitwise_or, {"b32": 0}),
    "xor": (np.bitwise_xor, {"b32": 0}),
}
"""Function, and its neutral element for each type."""


@effect("redux.sync.<op:add|min|max>.<T:u32|s32>", "=T, T, u32", "9.7.13.12", sync="mask")
@effect("redux.sync.<op:and|or|xor>.<T:b32>", "=T, T, u32", "9.7.13.12", sync="mask")
def redux(form: Form) -> Semantics:
    function, neutral = _REDUCE[form["op"]]

    def run(lanes: Lanes, a: Array, mask: Array) -> Array:
        members = Members(lanes, mask)
        terms = members.spread(a)[members.row]
        terms = np.where(unpack(members.masks), terms, a.dtype.type(neutral[form["T"]]))
        return np.asarray(function.reduce(terms, axis=1, dtype=a.dtype))

    return run


@effect("activemask.b32", "=b32", "9.7.13.11")
def activemask(form: Form) -> Semantics:
    def run(lanes: Lanes) -> Array:
        members = Members(lanes, np.full(len(lanes.threads), 0, np.uint32) | (np.uint32(1) << (lanes.threads & 31)))
        return members.of_warps(members.executing)

    return run


@effect("elect.sync", "=b32|=pred, u32", "9.7.13.14", sync="mask")
def elect(form: Form) -> Semantics:
    """Which lane is elected is not specified; here the lowest one."""

    def run(lanes: Lanes, mask: Array) -> tuple[Array, Array]:
        members = Members(lanes, mask)
        leader = np.argmax(unpack(members.masks), axis=1).astype(np.uint32)
        return leader, leader == members.lane

    return run


@effect("bar.warp.sync", "u32", "9.7.13.2", sync="mask")
def warp_sync(form: Form) -> Semantics:
    def run(lanes: Lanes, mask: Array) -> None:
        members = Members(lanes, mask)
        clocks, agents = lanes.cta.cluster.clocks, agents_of(lanes)
        if members.whole:
            clocks.warp_sync(agents.reshape(-1, 32))
            return
        groups = np.unique(np.stack([members.row.astype(np.uint32), members.masks], axis=1), axis=0)
        base = lanes.cta.first_agent + 32 * members.first_warp
        for row, group in groups.tolist():
            clocks.warp_sync((base + 32 * row + np.flatnonzero(unpack(np.array(group, np.uint32))))[None])

    return run
