"""Binds a plan to compiled kernels: which pointers each launch needs, packed into a fresh parameter block per call."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compile import Artifact, compile_kernel
from .params import PARAM_BLOCKS, ParamBlock
from .plan import WORKSPACE, MapRef, Plan, Ref, Step, Value
from .source import entry_name, render
from .tensormap import MAP_BYTES, TensorMaps, TensorMapSpec

Slot = tuple[int, int] | None
"""An address: (buffer index, byte offset); None for a null pointer."""


@dataclass(frozen=True)
class _Part:
    """The parameters of one problem, with the leading tensor maps and pointers left open. A map is None where nothing
    reads it."""

    map_slots: tuple[tuple[Slot, TensorMapSpec] | None, ...]
    maps: TensorMaps | None
    slots: tuple[Slot, ...]
    pack_pointers: Callable[..., bytes]
    tail: bytes

    def fill(self, pointers: Sequence[int]) -> bytes:
        head = self.pack_pointers(*[0 if s is None else pointers[s[0]] + s[1] for s in self.slots])
        if self.map_slots:
            head = b"".join([self._map(pointers, entry) for entry in self.map_slots]) + head
        return head + self.tail

    def _map(self, pointers: Sequence[int], entry: tuple[Slot, TensorMapSpec] | None) -> bytes:
        if entry is None:
            return bytes(MAP_BYTES)
        slot, spec = entry
        assert slot is not None and self.maps is not None
        return self.maps.get(spec, pointers[slot[0]] + slot[1])


@dataclass(frozen=True)
class ParamTemplate:
    """The parameter block of a step: one problem's parameters, or those of two, one after the other."""

    parts: tuple[_Part, ...]
    dtype: np.dtype[Any]

    def fill(self, pointers: Sequence[int]) -> np.ndarray[Any, Any]:
        """A new one-element array holding the block: a launch may release the GIL, so a shared block would race."""
        if len(self.parts) == 1:  # nearly always
            return np.frombuffer(self.parts[0].fill(pointers), self.dtype)
        return np.frombuffer(b"".join([part.fill(pointers) for part in self.parts]), self.dtype)


def make_template(step: Step, buffers: Sequence[str], maps: TensorMaps | None = None) -> ParamTemplate:
    """Pack everything of a step but its maps and pointers.

    ``buffers`` names the pointers that ``fill`` will be given; ``maps`` encodes the tensor maps of steps that have any.
    """
    block = PARAM_BLOCKS[step.family]
    parts, start = [], 0
    for part in block.parts:
        end = start + sum(count for _, _, count in part.fields)
        parts.append(_make_part(part, step.values[start:end], buffers, maps))
        start = end
    return ParamTemplate(tuple(parts), np.dtype(f"V{block.size}"))


def _make_part(block: ParamBlock, values: Sequence[Value], buffers: Sequence[str], maps: TensorMaps | None) -> _Part:
    first, count = block.map_count, block.map_count + block.pointer_count

    def slot(value: Value) -> Slot:
        return (buffers.index(value.buffer), value.offset) if isinstance(value, Ref) else None

    map_slots = tuple((slot(v.at), v.spec) if isinstance(v, MapRef) else None for v in values[:first])
    slots = tuple(slot(value) for value in values[first:count])
    numbers = [b""] * first + [0] * (count - first) + [int(v) for v in values[count:]]  # type: ignore[arg-type]
    tail = block.packer.pack(*numbers)[MAP_BYTES * first + 8 * (count - first) :]
    pack = struct.Struct(f"@{count - first}Q").pack
    return _Part(map_slots, maps, slots, pack, tail)


def compile_step(step: Step, arch: str) -> Artifact:
    """The compiled kernel of a step, from memory, disk or NVRTC."""
    return compile_kernel(render(step.config), entry=entry_name(step.family), arch=arch)


def compile_plan(plan: Plan) -> list[Artifact]:
    """The compiled kernels of all steps, in order."""
    return [compile_step(step, plan.arch) for step in plan.steps]


# Who wants to know what is launched. Backends look here after each call, which costs nothing while it is empty.
recorders: list[Counter[str]] = []


def kernel_names(plan: Plan) -> tuple[str, ...]:
    """What a recorder calls the launches of a plan: family and tile, such as ``gemm_simt 64x64x16/4x4``."""
    return tuple(f"{step.family} {getattr(step.config, 'tile', '')}".rstrip() for step in plan.steps)


def record(names: Sequence[str]) -> None:
    """Called by a backend that has launched kernels, when there are ``recorders``."""
    for counter in tuple(recorders):
        counter.update(names)


@contextmanager
def launches() -> Iterator[Counter[str]]:
    """Count, by name, the kernels that any thread launches inside the block."""
    counter: Counter[str] = Counter()
    recorders.append(counter)
    try:
        yield counter
    finally:
        recorders[:] = [other for other in recorders if other is not counter]  # equal counters are not the same


def buffer_order(names: Sequence[str]) -> tuple[str, ...]:
    """The order of the pointers given to ``ParamTemplate.fill``: the call's arrays, then the workspace."""
    return (*names, WORKSPACE)
