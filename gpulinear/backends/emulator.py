"""Runs plans in the PTX emulator: the shipped kernels on copies of NumPy arrays, with every sanitizer on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..emulator import GlobalMemory, Result, run
from ..emulator.tensormap import encode_tiled
from ..errors import BackendError, KernelFault
from ..launch import buffer_order, compile_plan, kernel_names, make_template, record, recorders
from ..plan import WORKSPACE, Plan
from ..problem import ColumnSum, Gemm, Matrix, Problem, SplitPlanes, Vector
from ..tensormap import TensorMaps
from ..views import describe

SCHEDULES = ("lockstep", "warps", "random")


_results: list[tuple[str, Result]] = []


def last_results() -> list[tuple[str, Result]]:
    """(kernel, result) of each launch of the last call, for its counters."""
    return list(_results)


def _mark_elements(array: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
    """Sets the bytes of the array's elements; what lies between them stays out of bounds. Entry 0 is its first byte."""
    window = np.lib.stride_tricks.as_strided(mask, (*array.shape, array.itemsize), (*array.strides, 1))
    window[...] = True


class _Placed:
    """A NumPy array copied into the emulator's memory; ``pointer`` is its address there."""

    def __init__(
        self, memory: GlobalMemory, name: str, array: np.ndarray[Any, Any], written: bool, fresh: bool
    ) -> None:
        view = describe(name, array)
        low, high = view.byte_range()
        self.name, self.array, self.written = name, array, written and array.size > 0
        # The copy keeps the array's alignment, which decides between loads of 16 bytes and of one element.
        skew = low % 128
        self.start = view.pointer - low + skew  # of the first element, in the allocation
        nbytes = high - low + skew
        self.mask = np.zeros(nbytes, bool)
        if array.size:
            _mark_elements(array, self.mask[self.start :])
        base = memory.alloc(nbytes, valid_mask=self.mask, initialised=not fresh, readonly=not written, name=name)
        self.pointer = base + self.start
        self.allocation = memory.allocation_at(base)
        if not fresh and array.size:
            self._elements()[...] = array

    def _bytes(self, of: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert self.allocation is not None
        lead = self.allocation.start - self.allocation.base
        return of[lead : lead + len(self.mask)]

    def _elements(self) -> np.ndarray[Any, Any]:
        """The emulator's copy with the shape and strides of the array."""
        assert self.allocation is not None
        data = self._bytes(self.allocation.bytes).data
        elements: np.ndarray[Any, Any] = np.ndarray(
            self.array.shape, self.array.dtype, data, self.start, self.array.strides
        )
        return elements

    def copy_back(self) -> None:
        """The results, into the caller's array. KernelFault if a kernel left a byte of them unwritten."""
        if not self.written or self.allocation is None:
            return
        missing = int(np.count_nonzero(self.mask & (self._bytes(self.allocation.written) == 0)))
        if missing:
            raise KernelFault(f"the kernels left {missing} of {int(self.mask.sum())} bytes of {self.name} unwritten")
        self.array[...] = self._elements()


def _read_outputs(problems: Sequence[Problem]) -> set[str]:
    """The outputs that a call adds to."""
    places: list[Matrix | Vector | None] = []
    for problem in problems:
        if not isinstance(problem, SplitPlanes) and problem.accumulate:
            outputs = (problem.out,) if isinstance(problem, ColumnSum) else (problem.db,)
            places += (problem.d, *outputs) if isinstance(problem, Gemm) else outputs
    return {place.buffer for place in places if place is not None}


def execute(plan: Plan, problems: Sequence[Problem], arrays: Mapping[str, Any]) -> None:
    """Run all steps of a plan; outputs (names ending in "out") are written back.

    The schedule is GPULINEAR_EMULATOR_SCHEDULE: "lockstep" (the default), "warps" or "random:SEED".

    Raises:
        KernelFault: a sanitizer found something; nothing is written back.
    """
    schedule, _, seed = os.environ.get("GPULINEAR_EMULATOR_SCHEDULE", "lockstep").partition(":")
    if schedule not in SCHEDULES or not (seed or "0").isdigit():
        raise BackendError(f"GPULINEAR_EMULATOR_SCHEDULE must be lockstep, warps or random:SEED, got {schedule}:{seed}")
    memory = GlobalMemory()
    names = [name for name, array in arrays.items() if array is not None]
    added_to = _read_outputs(problems)
    placed = {}
    for name in names:
        written = name.endswith("out")
        fresh = written and name not in added_to
        placed[name] = _Placed(memory, name, np.asarray(arrays[name]), written, fresh)
    pointers = [placed[name].pointer for name in names]
    if plan.workspace_bytes:
        pointers.append(memory.alloc(plan.workspace_bytes, initialised=False, name=WORKSPACE))
    buffers, maps = buffer_order(names), TensorMaps(encode_tiled)
    _results.clear()
    for step, artifact in zip(plan.steps, compile_plan(plan), strict=True):
        block = make_template(step, buffers, maps).fill(pointers).tobytes()
        result = run(
            artifact.ptx,
            artifact.entry,
            step.grid,
            step.threads,
            step.smem_bytes,
            [block],
            memory=memory,
            schedule=schedule,
            seed=int(seed or 0),
            registers_per_thread=artifact.resources.registers,
        )
        _results.append((step.family, result))
        if result.report.findings:
            raise KernelFault(f"the emulator found faults in {step.family} ({step.note}):\n{result.report}")
    if recorders:
        record(kernel_names(plan))
    for item in placed.values():
        item.copy_back()
