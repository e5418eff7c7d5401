"""cp.async.bulk and cp.reduce.async.bulk: contiguous bulk copies, and the bulk groups (PTX ISA 9.0, 9.7.9.25.4, .6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.bulk import (
    Target,
    bulk_groups,
    check_written,
    each_lane,
    in_bounds,
    read_global,
    submit_load,
    targets,
    write_global,
)
from gpulinear.emulator.clocks import agents_of
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.mbarrier_lookup import place
from gpulinear.emulator.reductions import reduce_global, reduce_shared

Array = npt.NDArray[Any]

_ALIGN = 16
_UNIT = 16


def _good_size(lanes: Lanes, size: int) -> bool:
    if size % 16 == 0 and size:
        return True
    lanes.report(
        "invalid operand",
        f"a bulk copy moves a multiple of 16 bytes, got {size}",
        "round the size up (and pad both sides), or copy the rest with ordinary instructions",
    )
    return False


def _good_global(lanes: Lanes, address: int) -> bool:
    if address % _ALIGN == 0:
        return True
    lanes.report(
        "misaligned address",
        "the global address of a bulk copy must be a multiple of 16",
        "align the start of the range",
        address=address,
    )
    return False


def _units(address: int, size: int) -> Array:
    return address + np.arange(0, size, _UNIT)


def _load(form: Form) -> Semantics:
    """global -> shared::cluster or shared::cta, also to several CTAs."""
    space = form["dst"]

    def run(
        lanes: Lanes, to: Array, source: Array, size: Array, barrier: Array, mask: Array | None, policy: Array | None
    ) -> None:
        for i, one in each_lane(lanes):
            address, nbytes = int(source[i]), int(size[i])
            if not (_good_size(one, nbytes) and _good_global(one, address)):
                continue

            def perform(target: Target, one: Lanes = one, address: int = address, nbytes: int = nbytes) -> None:
                target.owner.shared.store(target.offset, read_global(one, _units(address, nbytes), _UNIT))

            chosen = None if mask is None else int(mask[i])
            for target in targets(one, space, int(to[i]), int(barrier[i]), nbytes, _ALIGN, chosen):
                submit_load(one, target, nbytes, perform)

    return run


_LOAD = "cp.async.bulk.<dst:shared::cta|shared::cluster>.global.mbarrier::complete_tx::bytes"
_CAST = "cp.async.bulk.<dst:shared::cluster>.global.mbarrier::complete_tx::bytes.multicast::cluster"


@effect(_LOAD, "addr, addr, u32, addr", "9.7.9.25.4.1")
def load(form: Form) -> Semantics:
    run = _load(form)
    return lambda lanes, to, source, size, barrier: run(lanes, to, source, size, barrier, None, None)


@effect(f"{_LOAD}.L2::cache_hint", "addr, addr, u32, addr, b64", "9.7.9.25.4.1")
def load_with_policy(form: Form) -> Semantics:
    run = _load(form)
    return lambda lanes, to, source, size, barrier, policy: run(lanes, to, source, size, barrier, None, policy)


@effect(_CAST, "addr, addr, u32, addr, b16", "9.7.9.25.4.1")
def multicast(form: Form) -> Semantics:
    run = _load(form)
    return lambda lanes, to, source, size, barrier, mask: run(lanes, to, source, size, barrier, mask, None)


@effect(f"{_CAST}.L2::cache_hint", "addr, addr, u32, addr, b16, b64", "9.7.9.25.4.1")
def multicast_with_policy(form: Form) -> Semantics:
    return _load(form)


def _source(lanes: Lanes, address: int, nbytes: int) -> int | None:
    """The offset of a source in the own shared memory; None if something is wrong with it."""
    placed = place(lanes, "shared::cta", address, _ALIGN)
    if placed is None or not in_bounds(lanes, lanes.cta, placed[1], nbytes, "copies from"):
        return None
    return placed[1]


def _take(lanes: Lanes, offset: int, nbytes: int) -> Array:
    shared = lanes.cta.shared
    check_written(lanes, shared.written[offset : offset + nbytes], offset)
    return np.array(shared.bytes[offset : offset + nbytes])


def _to_peer(form: Form) -> Semantics:
    """shared::cta -> shared::cluster, of another CTA: a copy, or with ``redOp`` a reduction."""
    operation = form.get("redOp", "")

    def run(lanes: Lanes, to: Array, source: Array, size: Array, barrier: Array) -> None:
        for i, one in each_lane(lanes):
            nbytes = int(size[i])
            offset = _source(one, int(source[i]), nbytes) if _good_size(one, nbytes) else None
            if offset is None:
                continue
            for target in targets(one, "shared::cluster", int(to[i]), int(barrier[i]), nbytes, _ALIGN):
                if target.owner is lanes.cta:
                    one.report(
                        "invalid operand",
                        "the destination must be in the shared memory of another CTA of the cluster",
                        "map it with mapa, or copy with ordinary instructions",
                        address=target.offset,
                    )
                    continue
                _issue_to_peer(one, target, offset, nbytes, operation, form.get("T", ""))

    return run


def _issue_to_peer(lanes: Lanes, target: Target, offset: int, nbytes: int, operation: str, ptx_type: str) -> None:
    def perform(target: Target) -> None:
        data = _take(lanes, offset, nbytes)
        if operation:
            reduce_shared(target.owner, target.offset, data, operation, ptx_type)
        else:
            target.owner.shared.store(target.offset, data)

    number = submit_load(lanes, target, nbytes, perform, reduces=bool(operation))
    channel = target.barrier.channel
    assert channel is not None
    offsets = np.array([offset])
    lanes.cta.races.async_read(agents_of(lanes), channel, number, offsets, nbytes, lanes.instruction)


@effect(
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes", "addr, addr, u32, addr", "9.7.9.25.4.1"
)
def to_peer(form: Form) -> Semantics:
    return _to_peer(form)


_PEER = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"


@effect(f"{_PEER}.<redOp:add>.<T:u32|s32|u64>", "addr, addr, u32, addr", "9.7.9.25.4.2")
@effect(f"{_PEER}.<redOp:min|max>.<T:u32|s32>", "addr, addr, u32, addr", "9.7.9.25.4.2")
@effect(f"{_PEER}.<redOp:inc|dec>.<T:u32>", "addr, addr, u32, addr", "9.7.9.25.4.2")
@effect(f"{_PEER}.<redOp:and|or|xor>.<T:b32>", "addr, addr, u32, addr", "9.7.9.25.4.2")
def reduce_to_peer(form: Form) -> Semantics:
    return _to_peer(form)


def _store(form: Form) -> Semantics:
    """shared::cta -> global: a copy, or with ``redOp`` a reduction."""
    operation = form.get("redOp", "")

    def run(lanes: Lanes, to: Array, source: Array, size: Array, policy: Array | None = None) -> None:
        for i, one in each_lane(lanes):
            address, nbytes = int(to[i]), int(size[i])
            if not (_good_size(one, nbytes) and _good_global(one, address)):
                continue
            offset = _source(one, int(source[i]), nbytes)
            if offset is None:
                continue

            def read(one: Lanes = one, offset: int = offset, nbytes: int = nbytes) -> Array:
                return _take(one, offset, nbytes)

            def write(data: Array, channel: int, number: int, one: Lanes = one, address: int = address) -> None:
                units = _units(address, len(data))
                if operation:
                    reduce_global(one, units, data, _UNIT, operation, form["T"])
                else:
                    write_global(one, units, data, _UNIT, channel, number)

            bulk_groups(lanes.cta).submit(one, offset, nbytes, read, write)

    return run


_STORE = "cp.async.bulk.global.shared::cta.bulk_group"
_REDUCE = "cp.reduce.async.bulk.global.shared::cta.bulk_group"


@effect(_STORE, "addr, addr, u32", "9.7.9.25.4.1")
@effect(f"{_STORE}.L2::cache_hint", "addr, addr, u32, b64", "9.7.9.25.4.1")
def store(form: Form) -> Semantics:
    return _store(form)


@effect(f"{_REDUCE}[.L2::cache_hint].<redOp:add>.<T:u32|s32|u64|f32|f64>", "addr, addr, u32, b64?", "9.7.9.25.4.2")
@effect(f"{_REDUCE}[.L2::cache_hint].<redOp:add>.noftz.<T:f16|bf16>", "addr, addr, u32, b64?", "9.7.9.25.4.2")
@effect(
    f"{_REDUCE}[.L2::cache_hint].<redOp:min|max>.<T:u32|s32|u64|s64|f16|bf16>", "addr, addr, u32, b64?", "9.7.9.25.4.2"
)
@effect(f"{_REDUCE}[.L2::cache_hint].<redOp:inc|dec>.<T:u32>", "addr, addr, u32, b64?", "9.7.9.25.4.2")
@effect(f"{_REDUCE}[.L2::cache_hint].<redOp:and|or|xor>.<T:b32|b64>", "addr, addr, u32, b64?", "9.7.9.25.4.2")
def reduce(form: Form) -> Semantics:
    return _store(form)


@effect("cp.async.bulk.prefetch.L2.global", "addr, u32", "9.7.9.25.4.3")
@effect("cp.async.bulk.prefetch.L2.global.L2::cache_hint", "addr, u32, b64", "9.7.9.25.4.3")
def prefetch(form: Form) -> Semantics:
    """A hint; the range has to be good all the same."""

    def run(lanes: Lanes, address: Array, size: Array, policy: Array | None = None) -> None:
        for i, one in each_lane(lanes):
            if _good_size(one, int(size[i])) and _good_global(one, int(address[i])):
                units = _units(int(address[i]), int(size[i]))
                same = Lanes(lanes.cta, np.full(len(units), one.threads[0]), lanes.instruction)
                lanes.cta.launch.memory.readable(same, units, _UNIT, _ALIGN)

    return run


@effect("cp.async.bulk.commit_group", "", "9.7.9.25.6.1")
def commit_group(form: Form) -> Semantics:
    return lambda lanes: bulk_groups(lanes.cta).commit(lanes)


@effect("cp.async.bulk.wait_group[.read]", "imm", "9.7.9.25.6.2")
def wait_group(form: Form) -> Semantics:
    return lambda lanes, recent: bulk_groups(lanes.cta).wait(lanes, recent, bool(form["read"]))
