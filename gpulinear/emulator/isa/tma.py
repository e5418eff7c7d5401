"""cp.async.bulk.tensor, cp.reduce.async.bulk.tensor and cp.async.bulk.prefetch.tensor: TMA in tile mode (PTX ISA 9.0, 9.7.9.25.5).

The im2col, gather4 and scatter4 modes and .cta_group are refused when a module is loaded. A store writes only what of
its box is inside the tensor; a load fills up the rest and counts whole boxes on its mbarrier.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory, tensormap
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
from gpulinear.emulator.isa import Form, Semantics, effect
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.mbarrier_lookup import place
from gpulinear.emulator.reductions import reduce_global
from gpulinear.emulator.spaces import PARAM_BASE
from gpulinear.emulator.tensormap import TensorMap, Window

Array = npt.NDArray[Any]
Coordinates = tuple[Array, list[list[Array]]]

_ALIGN = 128
"""Of a box in shared memory (CUDA C++ Programming Guide, Tensor Memory Access)."""

_REDUCIBLE = {
    "add": ("u32", "s32", "u64", "f32", "f16", "bf16"),
    "min": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    "max": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    "inc": ("u32",),
    "dec": ("u32",),
    "and": ("u32", "s32", "u64", "s64"),
    "or": ("u32", "s32", "u64", "s64"),
    "xor": ("u32", "s32", "u64", "s64"),
}
"""Element types of each reduction (9.7.9.25.5.3); the bit operations take any integers of 32 and 64 bits."""

_decode = lru_cache(maxsize=256)(tensormap.decode)


def _read_map(lanes: Lanes, address: int) -> TensorMap | None:
    """What is at an address; parameters do not change in a launch, so that it is kept for these."""
    known: dict[int, TensorMap] = lanes.cta.launch.state("tensor maps", dict)
    if address in known:
        return known[address]
    found = _decode(memory.read_bytes(lanes, "generic", np.array([address]), tensormap.SIZE, 1).tobytes())
    if found is not None and address >> 44 == PARAM_BASE >> 44:
        known[address] = found
    return found


def _tensor_map(lanes: Lanes, address: int, rank: int) -> TensorMap | None:
    """The tensor map at a generic address; None if there is none of this rank, which is reported."""
    if address % tensormap.ALIGNMENT:
        problem = f"its address must be a multiple of {tensormap.ALIGNMENT}"
        fix = "declare it as a const __grid_constant__ CUtensorMap parameter"
    else:
        found = _read_map(lanes, address)
        if found is not None and found.rank == rank:
            return found
        problem = "these 128 bytes are none" if found is None else f"it has {found.rank} dimensions, not {rank}"
        fix = "pass what encode_tiled returned, unchanged, and its address with cvta (or a __grid_constant__ parameter)"
    lanes.report("not a tensor map", f"the operand must be a tensor map: {problem}", fix, address=address)
    return None


def _at(lanes: Lanes, tensor: TensorMap, vectors: list[list[Array]], i: int, *, store: bool) -> list[int] | None:
    """The coordinates of a lane's box, innermost first; None if there are too many or too few."""
    coordinates = [int(value[i]) for value in vectors[0]]
    if len(coordinates) != tensor.rank or len(vectors) != 1:
        lanes.report(
            "invalid operand",
            f"a tensor of {tensor.rank} dimensions needs as many coordinates, got {len(coordinates)}",
            "give one coordinate for each dimension",
        )
        return None
    if coordinates[0] * tensor.item % 16:
        lanes.report(
            "misaligned address",
            f"the box starts {coordinates[0] * tensor.item} bytes into a row, which is no multiple of 16 (5.5.3.1)",
            "start boxes at coordinates that are 16 bytes apart in dimension 0",
        )
    if store and min(coordinates) < 0:
        lanes.report(
            "invalid operand",
            f"a store has negative coordinates {coordinates} (9.7.9.25.5.1)",
            "start the boxes of stores inside the tensor",
        )
    return coordinates


def _addresses(window: Window) -> tuple[Array, int]:
    """Global addresses of the units of a window in the order of its bytes, and the bytes of a unit."""
    joined = 32 | window.address | window.shape[-1]
    for size, stride in zip(window.shape[:-1], window.strides[:-1], strict=True):
        joined |= stride if size > 1 else 0
    unit = joined & -joined
    addresses = window.address + np.arange(0, window.shape[-1], unit)
    for size, stride in zip(window.shape[-2::-1], window.strides[-2::-1], strict=True):
        addresses = (np.arange(size)[:, None] * stride + addresses.reshape(1, -1)).reshape(-1)
    return addresses, unit


def _load(form: Form) -> Semantics:
    space, rank = form["dst"], int(form["dim"])

    def run(
        lanes: Lanes, to: Array, map_and_coordinates: Coordinates, barrier: Array, mask: Array | None = None
    ) -> None:
        maps, vectors = map_and_coordinates
        for i, one in each_lane(lanes):
            tensor = _tensor_map(one, int(maps[i]), rank)
            start = None if tensor is None else _at(one, tensor, vectors, i, store=False)
            if tensor is None or start is None:
                continue
            chosen = None if mask is None else int(mask[i])
            for target in targets(one, space, int(to[i]), int(barrier[i]), tensor.box_bytes, _ALIGN, chosen):
                _issue_load(one, target, tensor, start)

    return run


def _issue_load(lanes: Lanes, target: Target, tensor: TensorMap, start: list[int]) -> None:
    def perform(target: Target) -> None:
        box = tensor.empty_box()
        window = tensor.window(start)
        if window is not None:
            addresses, unit = _addresses(window)
            box[window.place] = read_global(lanes, addresses, unit).reshape(window.shape)
        shared, offset = target.owner.shared, target.offset
        shared.bytes.reshape(-1, 16)[tensor.chunks(offset) >> 4] = box.reshape(-1, 16)
        shared.written[offset : offset + tensor.box_bytes] = 1

    submit_load(lanes, target, tensor.box_bytes, perform)


_LOAD = (
    "cp.async.bulk.tensor.<dim:1|2|3|4|5>d.<dst:shared::cta|shared::cluster>.global[.tile].mbarrier::complete_tx::bytes"
)
_CAST = (
    "cp.async.bulk.tensor.<dim:1|2|3|4|5>d.<dst:shared::cluster>.global[.tile].mbarrier::complete_tx::bytes"
    ".multicast::cluster"
)


@effect(_LOAD, "addr, coords, addr", "9.7.9.25.5.2")
def load(form: Form) -> Semantics:
    return _load(form)


@effect(f"{_LOAD}.L2::cache_hint", "addr, coords, addr, b64", "9.7.9.25.5.2")
def load_with_policy(form: Form) -> Semantics:
    run = _load(form)
    return lambda lanes, to, source, barrier, policy: run(lanes, to, source, barrier)


@effect(_CAST, "addr, coords, addr, b16", "9.7.9.25.5.2")
def multicast(form: Form) -> Semantics:
    return _load(form)


@effect(f"{_CAST}.L2::cache_hint", "addr, coords, addr, b16, b64", "9.7.9.25.5.2")
def multicast_with_policy(form: Form) -> Semantics:
    run = _load(form)
    return lambda lanes, to, source, barrier, mask, policy: run(lanes, to, source, barrier, mask)


def _store(form: Form) -> Semantics:
    """A store, or with ``redOp`` a reduction of the elements."""
    rank, operation = int(form["dim"]), form.get("redOp", "")

    def run(lanes: Lanes, map_and_coordinates: Coordinates, source: Array, policy: Array | None = None) -> None:
        maps, vectors = map_and_coordinates
        for i, one in each_lane(lanes):
            tensor = _tensor_map(one, int(maps[i]), rank)
            start = None if tensor is None else _at(one, tensor, vectors, i, store=True)
            placed = None if start is None else place(one, "shared::cta", int(source[i]), _ALIGN)
            if tensor is None or start is None or placed is None:
                continue
            if operation and tensor.type not in _REDUCIBLE[operation]:
                one.report(
                    "invalid operand",
                    f"there is no .{operation} of {tensor.type} elements",
                    f"reduce with .{operation} into {', '.join(_REDUCIBLE[operation])}",
                )
                continue
            if in_bounds(one, lanes.cta, placed[1], tensor.box_bytes, "copies from"):
                _issue_store(one, placed[1], tensor, start, operation)

    return run


def _issue_store(lanes: Lanes, offset: int, tensor: TensorMap, start: list[int], operation: str) -> None:
    window = tensor.window(start)

    def read() -> Array | None:
        if window is None:
            return None
        shared, chunks = lanes.cta.shared, tensor.chunks(offset) >> 4
        inside = (*window.place,)
        written = shared.written.reshape(-1, 16)[chunks].reshape(tensor.box_shape)[inside]
        check_written(lanes, written, offset)
        return np.array(shared.bytes.reshape(-1, 16)[chunks].reshape(tensor.box_shape)[inside])

    def write(data: Array | None, channel: int, number: int) -> None:
        if data is None or window is None:
            return
        addresses, unit = _addresses(window)
        if operation:
            reduce_global(lanes, addresses, data.reshape(-1), unit, operation, tensor.type)
        else:
            write_global(lanes, addresses, data, unit, channel, number)

    bulk_groups(lanes.cta).submit(lanes, offset, tensor.box_bytes, read, write)


_STORE = "cp.async.bulk.tensor.<dim:1|2|3|4|5>d.global.shared::cta[.tile].bulk_group"
_REDUCE = (
    "cp.reduce.async.bulk.tensor.<dim:1|2|3|4|5>d.global.shared::cta.<redOp:add|min|max|inc|dec|and|or|xor>"
    "[.tile].bulk_group"
)


@effect(_STORE, "coords, addr", "9.7.9.25.5.2")
@effect(f"{_STORE}.L2::cache_hint", "coords, addr, b64", "9.7.9.25.5.2")
def store(form: Form) -> Semantics:
    return _store(form)


@effect(_REDUCE, "coords, addr", "9.7.9.25.5.3")
@effect(f"{_REDUCE}.L2::cache_hint", "coords, addr, b64", "9.7.9.25.5.3")
def reduce(form: Form) -> Semantics:
    return _store(form)


@effect("cp.async.bulk.prefetch.tensor.<dim:1|2|3|4|5>d.L2.global[.tile]", "coords", "9.7.9.25.5.4")
@effect("cp.async.bulk.prefetch.tensor.<dim:1|2|3|4|5>d.L2.global[.tile].L2::cache_hint", "coords, b64", "9.7.9.25.5.4")
def prefetch(form: Form) -> Semantics:
    """A hint; the tensor map and the coordinates have to be good all the same."""

    def run(lanes: Lanes, map_and_coordinates: Coordinates, policy: Array | None = None) -> None:
        maps, vectors = map_and_coordinates
        for i, one in each_lane(lanes):
            tensor = _tensor_map(one, int(maps[i]), int(form["dim"]))
            if tensor is not None:
                _at(one, tensor, vectors, i, store=False)

    return run
