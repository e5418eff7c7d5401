"""Runs plans in the PTX emulator: the shipped kernels on copies of NumPy arrays, with every sanitizer on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..emulator import GlobalMemory, Result, run
from ..errors import BackendError
from ..launch import buffer_order, compile_plan, kernel_names, make_template, record, recorders
from ..plan import WORKSPACE, Plan
from ..problem import ColumnSum, Gemm, Problem
from ..views import describe

SCHEDULES = ("lockstep", "warps", "random")


class KernelFault(BackendError):
    """A sanitizer found a fault in a kernel; the message is its report."""


_results: list[tuple[str, Result]] = []


def last_results() -> list[tuple[str, Result]]:
    """(kernel, result) of each launch of the last call, for its counters."""
    return list(_results)


def _element_mask(array: np.ndarray[Any, Any], low: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Which bytes of the range belong to elements of the array: what lies between them is out of bounds."""
    mask = np.zeros(nbytes, bool)
    start = array.__array_interface__["data"][0] - low
    strides = (*array.strides, 1)
    shape = (*array.shape, array.itemsize)
    window = np.lib.stride_tricks.as_strided(mask[start:], shape, strides)
    window[...] = True
    return mask


class _Placed:
    """A NumPy array copied into the emulator's memory."""

    def __init__(
        self, memory: GlobalMemory, name: str, array: np.ndarray[Any, Any], written: bool, fresh: bool
    ) -> None:
        view = describe(name, array)
        low, high = view.byte_range()
        self.array, self.written = array, written
        self.nbytes = high - low
        mask = _element_mask(array, low, self.nbytes) if self.nbytes else None
        self.start = view.pointer - low
        # The copy keeps the array's alignment, which decides between loads of 16 bytes and of one element.
        self.skew = low % 128
        self.base = memory.alloc(
            self.nbytes + self.skew,
            valid_mask=None if mask is None else np.concatenate([np.zeros(self.skew, bool), mask]),
            initialised=not fresh,
            readonly=not written,
            name=name,
        )
        self.bytes = memory.view(self.base + self.skew, self.nbytes)
        self.bytes[...] = 0xFF
        if not fresh and self.nbytes:
            self._elements()[...] = array
        self.pointer = self.base + self.skew + self.start

    def _elements(self) -> np.ndarray[Any, Any]:
        """The emulator's copy with the shape and strides of the array."""
        elements: np.ndarray[Any, Any] = np.ndarray(self.array.shape, self.array.dtype, self.bytes.data, self.start, self.array.strides)
        return elements

    def copy_back(self) -> None:
        """The results, into the caller's array."""
        if self.written and self.nbytes:
            self.array[...] = self._elements()


def _read_outputs(problems: Sequence[Problem]) -> set[str]:
    """The outputs that a call adds to."""
    places = [
        problem.d if isinstance(problem, Gemm) else problem.out if isinstance(problem, ColumnSum) else problem.db
        for problem in problems
        if problem.accumulate
    ]
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
    buffers = buffer_order(names)
    _results.clear()
    for step, artifact in zip(plan.steps, compile_plan(plan), strict=True):
        block = make_template(step, buffers).fill(pointers).tobytes()
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
