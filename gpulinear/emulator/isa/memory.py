"""Loads, stores, and what is said about caches (PTX ISA 9.7.9.1, 9.7.9.2, 9.7.9.8 to 9.7.9.19).

Caches are not modelled: cache operators, eviction priorities, prefetches and policies change nothing. Refused: .b128,
.mmio, .unified, and .param::func, which only calls use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory
from gpulinear.emulator.block import POISON
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.global_order import PLAIN, SCOPES, How
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.spaces import GLOBAL_BASE, LOCAL_BASE, PARAM_BASE, SHARED_BASE
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_TYPES = "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"
_SHARED = "shared|shared::cta|shared::cluster"
_SCOPE = "<scope:cta|cluster|gpu|sys>"
_EVICT = "evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate"
_HINTS = f"[.<l1:L1::{_EVICT}>][.<l2:L2::evict_normal|L2::evict_first|L2::evict_last>][.L2::cache_hint]"
_PREFETCH = "[.<prefetch:L2::64B|L2::128B|L2::256B>]"
_TAIL = f"[.<vec:v2|v4|v8>].<T:{_TYPES}>"


def space_of(form: Form) -> str:
    """The state space of an instruction as memory.py names it."""
    space = form.get("space", "")
    return {"": "generic", "shared::cta": "shared", "param::entry": "param"}.get(space, space)


def how_of(form: Form, default: str = "weak") -> How:
    """The memory semantics of an instruction; .volatile is as strong as .relaxed.sys (PTX ISA 8.4.2)."""
    size = DTYPES[form["T"]].itemsize
    if form.get("nc"):
        return How(nc=True)
    sem = form.get("sem") or default
    if sem == "weak":
        return PLAIN
    level = SCOPES["sys"] if sem == "volatile" else SCOPES[form.get("scope") or "gpu"]
    return How(level, acquire=sem in ("acquire", "acq_rel"), release=sem in ("release", "acq_rel"), size=size)


def check_policy(form: Form, policy: Array | None) -> None:
    """A cache policy stands exactly where .L2::cache_hint is."""
    if (policy is None) != (not form.get("L2_cache_hint")):
        raise NotModelledError("a cache-policy operand and .L2::cache_hint need each other")


def _vector(form: Form) -> tuple[np.dtype[Any], int, bool]:
    """The element type, how many, and whether the access has 32 bytes."""
    kind, count = DTYPES[form["T"]], int(form["vec"][1:] or 1)
    nbytes = kind.itemsize * count
    if nbytes > 32 or (count == 8 and nbytes < 32):
        raise NotModelledError(f".{form['vec']} of .{form['T']} is not in the PTX ISA")
    if nbytes == 32 and space_of(form) not in ("global", "generic"):
        raise NotModelledError(f"accesses of 32 bytes are for global memory, not .{form['space']}")
    return kind, count, nbytes == 32


def _needs_blackwell(lanes: Lanes, wide: bool) -> None:
    if wide and lanes.cta.launch.capability < 100:
        raise NotModelledError(f"accesses of 32 bytes need sm_100, this is {lanes.cta.launch.arch}")


@effect(f"ld[.weak][.<space:const|global|local|param|param::entry|{_SHARED}>][.<cop:ca|cg|cs|lu|cv>]{_HINTS}{_PREFETCH}{_TAIL}",
        "=V1:T, addr, b64?", "9.7.9.8")  # fmt: skip
@effect(f"ld.<sem:relaxed|acquire>.{_SCOPE}[.<space:global|{_SHARED}>]{_HINTS}{_PREFETCH}{_TAIL}",
        "=V1:T, addr, b64?", "9.7.9.8")  # fmt: skip
@effect(f"ld.<space:global|{_SHARED}>.<sem:relaxed|acquire>.{_SCOPE}{_HINTS}{_PREFETCH}{_TAIL}",
        "=V1:T, addr, b64?", "9.7.9.8")  # fmt: skip
@effect(f"ld.<sem:volatile>[.<space:global|local|{_SHARED}>]{_PREFETCH}{_TAIL}", "=V1:T, addr", "9.7.9.8")
@effect(f"ld.<space:global|local|{_SHARED}>.<sem:volatile>{_PREFETCH}{_TAIL}", "=V1:T, addr", "9.7.9.8")
@effect(f"ld.<space:global>[.<cop:ca|cg|cs>].<nc:nc>{_HINTS}{_PREFETCH}{_TAIL}", "=V1:T, addr, b64?", "9.7.9.9")
def ld(form: Form) -> Semantics:
    kind, count, wide = _vector(form)
    space, how = space_of(form), how_of(form)

    def run(lanes: Lanes, address: Array, policy: Array | None = None) -> list[Array]:
        check_policy(form, policy)
        _needs_blackwell(lanes, wide)
        return memory.load(lanes, space, address, kind, count, how)

    return run


@effect(f"ldu[.<space:global>][.<vec:v2|v4>].<T:{_TYPES}>", "=V1:T, addr", "9.7.9.10")
def ldu(form: Form) -> Semantics:
    kind, count, _ = _vector(form)
    space = space_of(form)

    def run(lanes: Lanes, address: Array) -> list[Array]:
        _, first, of_warp = np.unique(lanes.warps, return_index=True, return_inverse=True)
        apart = address != address[first][of_warp]
        if apart.any():
            lanes.report(
                "ldu of several addresses",
                "ldu loads from one address for all threads of a warp",
                "use ld.global, or make the address common to the warp",
                which=apart,
                address=int(address[apart][0]),
            )
        return memory.load(lanes, space, address, kind, count, How(nc=True))

    return run


@effect(f"st[.weak][.<space:global|local|{_SHARED}>][.<cop:wb|cg|cs|wt>]{_HINTS}{_TAIL}",
        "addr, V1:T, b64?", "9.7.9.11")  # fmt: skip
@effect(f"st.<sem:relaxed|release>.{_SCOPE}[.<space:global|{_SHARED}>]{_HINTS}{_TAIL}", "addr, V1:T, b64?", "9.7.9.11")
@effect(f"st.<space:global|{_SHARED}>.<sem:relaxed|release>.{_SCOPE}{_HINTS}{_TAIL}", "addr, V1:T, b64?", "9.7.9.11")
@effect(f"st.<sem:volatile>[.<space:global|local|{_SHARED}>]{_TAIL}", "addr, V1:T", "9.7.9.11")
@effect(f"st.<space:global|local|{_SHARED}>.<sem:volatile>{_TAIL}", "addr, V1:T", "9.7.9.11")
def st(form: Form) -> Semantics:
    kind, count, wide = _vector(form)
    space, how = space_of(form), how_of(form)

    def run(lanes: Lanes, address: Array, values: list[Array], policy: Array | None = None) -> None:
        check_policy(form, policy)
        _needs_blackwell(lanes, wide)
        if len(values) != count:
            raise ValueError(f"a vector of {count} elements, got {len(values)}")
        memory.store(lanes, space, address, values, kind, how)

    return run


def _nothing(form: Form) -> Semantics:
    return lambda lanes, *operands: None


@effect("prefetch[.<space:global|local>].<level:L1|L2>", "addr", "9.7.9.15")
@effect("prefetch.global.<level:L2::evict_last|L2::evict_normal>", "addr", "9.7.9.15")
@effect("prefetchu.L1", "addr", "9.7.9.15")
def prefetch(form: Form) -> Semantics:
    """A prefetch of an address that is not there does nothing on hardware either."""
    return _nothing(form)


@effect("prefetch[.<space:const|param>].tensormap", "addr", "9.7.9.15")
def prefetch_tensormap(form: Form) -> Semantics:
    return lambda lanes, address: memory.check(lanes, space_of(form), address, 128, 64)


def _lines(action: Callable[[Lanes, Array], None]) -> Semantics:
    """An instruction on whole cache lines: its size operand can only be 128."""

    def run(lanes: Lanes, address: Array, size: int) -> None:
        if size != 128:
            raise NotModelledError(f"the size operand of {lanes.instruction.name} must be 128, got {size}")
        action(lanes, address)

    return run


@effect("applypriority[.global].L2::evict_normal", "addr, imm", "9.7.9.16")
def applypriority(form: Form) -> Semantics:
    return _lines(lambda lanes, address: memory.check(lanes, "global", address, 128, 128))


@effect("discard[.global].L2", "addr, imm", "9.7.9.17")
def discard(form: Form) -> Semantics:
    """A write of an indeterminate value: the bytes are uninitialised afterwards."""

    def action(lanes: Lanes, address: Array) -> None:
        memory.write_bytes(lanes, "global", address, np.full((len(address), 128), POISON, np.uint8), 128)
        for start in address.tolist():
            block = lanes.cta.launch.memory.allocation_at(start)
            if block is not None and not block.readonly and start % 128 == 0:
                block.erase(start - block.base, start - block.base + 128)

    return _lines(action)


_POLICIES = {"evict_normal": 0x10, "evict_first": 0x12, "evict_last": 0x14, "evict_unchanged": 0x16}
"""The top byte of a policy: only there to tell policies apart, what hardware has in them is not documented."""

_SECONDARY = "[.<secondary:L2::evict_first|L2::evict_unchanged>].b64"
_PRIMARY = "<primary:L2::evict_last|L2::evict_normal|L2::evict_first|L2::evict_unchanged>"


def _policy(form: Form, lanes: Lanes) -> Array:
    code = _POLICIES[form["primary"].removeprefix("L2::")] << 56
    secondary = form["secondary"].removeprefix("L2::") or "evict_unchanged"
    return np.full(len(lanes.threads), code | _POLICIES[secondary] << 48, np.uint64)


@effect(f"createpolicy.fractional.{_PRIMARY}{_SECONDARY}", "=b64, f32?", "9.7.9.18")
def createpolicy_fractional(form: Form) -> Semantics:
    def run(lanes: Lanes, fraction: Array | None) -> Array:
        if fraction is not None and not ((fraction > 0) & (fraction <= 1)).all():
            lanes.report("cache policy", "the fraction is not in (0, 1]", "pass a fraction above 0 and up to 1")
        return _policy(form, lanes)

    return run


@effect(f"createpolicy.range[.global].{_PRIMARY}{_SECONDARY}", "=b64, addr, u32, u32", "9.7.9.18")
def createpolicy_range(form: Form) -> Semantics:
    def run(lanes: Lanes, address: Array, primary: Array, total: Array) -> Array:
        if (primary > total).any():
            lanes.report("cache policy", "the primary size exceeds the total size", "pass primary-size <= total-size")
        return _policy(form, lanes)

    return run


@effect("createpolicy.cvt.L2.b64", "=b64, b64", "9.7.9.18")
def createpolicy_cvt(form: Form) -> Semantics:
    return lambda lanes, access_property: access_property


def _in_window(address: Array, base: int) -> Array:
    inside: Array = address >> np.uint64(44) == base >> 44
    return inside


@effect("isspacep.<space:const|global|local|shared|shared::cta|shared::cluster|param|param::entry>",
        "=pred, u64", "9.7.9.19")  # fmt: skip
def isspacep(form: Form) -> Semantics:
    """The window of the parameters lies within that of .global; constants are told by their allocation."""
    space = form["space"].removesuffix("::entry")

    def constant(lanes: Lanes, address: Array) -> Array:
        blocks = [lanes.cta.launch.memory.allocation_at(a) for a in address.tolist()]
        return np.array([block is not None and block.space == "const" for block in blocks])

    def run(lanes: Lanes, address: Array) -> Array:
        if space == "const":
            return constant(lanes, address)
        if space == "global":
            device: Array = _in_window(address, GLOBAL_BASE) | _in_window(address, PARAM_BASE)
            return device & ~constant(lanes, address)
        if space in ("local", "param"):
            return _in_window(address, LOCAL_BASE if space == "local" else PARAM_BASE)
        rank = (address & np.uint64(0xFFFFFFFF)) >> np.uint64(24)
        ranks = len(lanes.cta.cluster.ctas) if space == "shared::cluster" else 0
        known: Array = (rank <= ranks) | (rank == lanes.cta.rank + 1)
        return _in_window(address, SHARED_BASE) & known

    return run
