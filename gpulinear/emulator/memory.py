"""Loads, stores and atomics of the threads of a CTA in any state space: what instruction files call.

``address`` holds a byte address for each lane (int64). ``space`` is global, shared, shared::cluster, local, param, const
or generic; generic addresses are told apart lane by lane by their window (spaces.py). Every access is checked
(alignment to its size, bounds, initialisation, order) and counted; faults become findings, faulting loads give poison
(0xFF...), faulting stores are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory_faults as faults
from gpulinear.emulator.block import UNITS, Step, unit_type
from gpulinear.emulator.global_order import PLAIN, How
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.private_memory import local_memory, param_memory
from gpulinear.emulator.shape import shape_of
from gpulinear.emulator.shared_accesses import read_shared, update_shared, write_shared
from gpulinear.emulator.spaces import LOCAL_BASE, PARAM_BASE, SHARED_BASE

if TYPE_CHECKING:
    from gpulinear.emulator.block import Block

Array = npt.NDArray[Any]

_WINDOW_SHIFT = 44
_WINDOWS = {
    LOCAL_BASE >> _WINDOW_SHIFT: ("local", LOCAL_BASE),
    PARAM_BASE >> _WINDOW_SHIFT: ("param", PARAM_BASE),
    SHARED_BASE >> _WINDOW_SHIFT: ("shared::cluster", SHARED_BASE),
}
_PARAM_WINDOW = PARAM_BASE >> _WINDOW_SHIFT


def load(
    lanes: Lanes, space: str, address: Array, dtype: npt.DTypeLike, count: int = 1, how: How = PLAIN
) -> list[Array]:
    """``count`` consecutive elements for each lane: a list of arrays [lanes]."""
    kind = np.dtype(dtype)
    units = _read(lanes, space, address, kind.itemsize * count, None, how).view(kind)
    return [units] if count == 1 else list(units.reshape(-1, count).T)


def store(
    lanes: Lanes, space: str, address: Array, values: Sequence[Array], dtype: npt.DTypeLike, how: How = PLAIN
) -> None:
    """Writes ``values`` (arrays [lanes]) as consecutive elements for each lane."""
    kind, count = np.dtype(dtype), len(values)
    if count == 1:
        packed = np.ascontiguousarray(values[0], kind)
    else:
        packed = np.empty((len(address), count), kind)
        for i, value in enumerate(values):
            packed[:, i] = value
    nbytes = kind.itemsize * count
    _write(lanes, space, address, packed.reshape(-1).view(unit_type(nbytes)), nbytes, None, how)


def read_bytes(lanes: Lanes, space: str, address: Array, nbytes: int, align: int | None = None) -> Array:
    """``nbytes`` bytes for each lane, uint8 [lanes, nbytes]; ``align`` is the access size if that is a power of two."""
    if align is None and nbytes not in UNITS:
        align = 1
    return _read(lanes, space, address, nbytes, align, PLAIN).view(np.uint8).reshape(-1, nbytes)


def write_bytes(lanes: Lanes, space: str, address: Array, data: Array, align: int | None = None) -> None:
    """Writes rows of bytes, uint8 [lanes, nbytes]."""
    nbytes = data.shape[1]
    if align is None and nbytes not in UNITS:
        align = 1
    units = np.ascontiguousarray(data, np.uint8).reshape(-1).view(unit_type(nbytes))
    _write(lanes, space, address, units, nbytes, align, PLAIN)


def update(
    lanes: Lanes,
    space: str,
    address: Array,
    dtype: npt.DTypeLike,
    count: int,
    step_in: Callable[[str], Step],
    how: How,
) -> list[Array]:
    """Atomic read-modify-writes, lane after lane; returns the old values as ``load`` does.

    ``step_in`` is asked with "global" or "shared" for the function that gives new values for the old ones [k, count] of
    some lanes (see ``Block.update``): ``step_in(space)(old, lanes)``.
    """
    kind = np.dtype(dtype)
    seen = faults.poison(len(address), kind.itemsize * count).view(kind).reshape(-1, count)
    for part, kindred, near, which in _windows(lanes, space, address):
        step = _for_lanes(step_in("global" if kindred == "global" else "shared"), which)
        if kindred in ("shared", "shared::cluster") and count == 1:
            old = update_shared(part, near, kind, count, step, kindred == "shared::cluster")
        elif kindred == "global":
            old = part.cta.launch.memory.update(part, near, kind, count, step, how)
        else:
            where = "only .global and .shared have them" if count == 1 else "vectors are for .global"
            faults.wrong_space(part, f"an atomic on .{kindred} memory; {where}", near)
            continue
        seen[slice(None) if which is None else which] = old
    return list(seen.T)


def check(lanes: Lanes, space: str, address: Array, nbytes: int, align: int) -> None:
    """Report addresses at which ``nbytes`` cannot be accessed, or that are not aligned; access nothing."""
    for part, kind, near, _ in _windows(lanes, space, address):
        if kind == "param" or kind == "local":
            _admit_private(part, "points to", kind, near, nbytes, align)
        elif kind == "global" or kind == "const":
            part.cta.launch.memory.readable(part, near, nbytes, align)
        else:
            faults.wrong_space(part, f"an address of .{kind} memory", near)


def _for_lanes(step: Step, which: Array | None) -> Step:
    """A step that gets lane numbers among ``which``."""
    return step if which is None else lambda old, chosen: step(old, which[chosen])


def _windows(lanes: Lanes, space: str, address: Array) -> Iterator[tuple[Lanes, str, Array, Array | None]]:
    """Generic addresses by their windows: lanes, state space, addresses there, and which lanes (None: all)."""
    if space == "global" and address.item(0) >> _WINDOW_SHIFT != _PARAM_WINDOW:
        yield lanes, space, address, None
        return
    if space not in ("generic", "global"):
        yield lanes, space, address, None
        return
    windows = address >> _WINDOW_SHIFT
    if (windows == windows[0]).all():
        kind, base = _WINDOWS.get(int(windows[0]), ("global", 0))
        yield lanes, kind, address - base, None
        return
    for window in np.unique(windows).tolist():
        kind, base = _WINDOWS.get(window, ("global", 0))
        which = np.flatnonzero(windows == window)
        yield Lanes(lanes.cta, lanes.threads[which], lanes.instruction), kind, address[which] - base, which


def _read(lanes: Lanes, space: str, address: Array, nbytes: int, align: int | None, how: How) -> Array:
    if space == "shared" or space == "shared::cluster":
        return read_shared(lanes, address, nbytes, align, space != "shared")
    if space == "local" or space == "param":
        return _read_private(lanes, space, address, nbytes, align)
    if space == "const" or (space == "global" and address.item(0) >> _WINDOW_SHIFT != _PARAM_WINDOW):
        return lanes.cta.launch.memory.read(lanes, address, nbytes, align=align, how=how, space=space)
    result = faults.poison(len(address), nbytes)
    for part, kind, near, which in _windows(lanes, space, address):
        if kind == "global":
            units = lanes.cta.launch.memory.read(part, near, nbytes, align=align, how=how)
        else:
            units = _read(part, kind, near, nbytes, align, how)
        if which is None:
            return units
        result[which] = units
    return result


def _write(lanes: Lanes, space: str, address: Array, units: Array, nbytes: int, align: int | None, how: How) -> None:
    for part, kind, near, which in _windows(lanes, space, address):
        data = units if which is None else units[which]
        if kind == "shared" or kind == "shared::cluster":
            write_shared(part, near, data, nbytes, align, kind != "shared")
        elif kind == "global":
            lanes.cta.launch.memory.write(part, near, data, nbytes, align=align, how=how)
        elif kind == "local":
            _write_local(part, near, data, nbytes, align)
        else:
            faults.read_only(part, f".{kind} memory", near)


# Local memory and parameters: nobody else sees them, so only alignment, bounds and initialisation are checked.


def _admit_private(
    lanes: Lanes, verb: str, space: str, address: Array, nbytes: int, align: int | None
) -> tuple[Block, Array, Array]:
    """The block, the offsets in it, and the lanes that may go on."""
    block: Block
    offsets, copies = address, np.zeros(len(address), np.int64)
    if space == "param":
        block = param_memory(lanes.cta)
        extent = block.size
    else:
        block = local = local_memory(lanes.cta)
        extent = local.extent
        copies = lanes.threads * local.stride
        offsets = address + copies
    ok = faults.aligned(lanes, verb, address, nbytes, nbytes if align is None else align)
    # Each thread has its own copy: what lies past its end must not be found in the next one.
    inside = (address >= 0) & (address + nbytes <= extent)
    inside[inside] = block.inside(offsets[inside], nbytes)
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        copy = int(copies[first])
        own = [(r.start, r.stop - r.start, r.name) for r in block.regions if copy <= r.start < copy + max(extent, 1)]
        where = faults.nearest(int(offsets[first]), nbytes, own)
        faults.out_of_bounds(lanes, verb, address, ~inside, nbytes, where)
    return block, offsets, np.flatnonzero(ok & inside)


def _read_private(lanes: Lanes, space: str, address: Array, nbytes: int, align: int | None) -> Array:
    block, offsets, which = _admit_private(lanes, "reads", space, address, nbytes, align)
    result = faults.poison(len(address), nbytes)
    if len(which):
        shape, first = shape_of(offsets[which], nbytes, lanes.threads[which])
        if not block.initialised(shape, first):
            bad = which[block.uninitialised(offsets[which], nbytes)]
            what = "the parameters" if space == "param" else "local memory"
            faults.uninitialised(lanes, "reads", address, np.isin(np.arange(len(address)), bad), what)
        result[which] = block.take(shape, first)
        lanes.cta.launch.counters.moved(space, "read", len(which) * nbytes)
    return result


def _write_local(lanes: Lanes, address: Array, units: Array, nbytes: int, align: int | None) -> None:
    block, offsets, which = _admit_private(lanes, "writes", "local", address, nbytes, align)
    if len(which):
        shape, first = shape_of(offsets[which], nbytes, lanes.threads[which])
        block.put(shape, first, units[which])
        lanes.cta.launch.counters.moved("local", "write", len(which) * nbytes)
