"""Judges what a provider wrote: every element against a float64 product, in units of the a-priori error bound.

The unit is the bound of the project's own order of summation (docs/design.md, "The numeric contract"), the same for all
providers of a case, so that their errors can stand beside each other. Everything is computed where the operands lie, in
blocks, and only the verdict comes to the host.

Products above ``FULL_FLOPS`` are judged in part: the rows o, o + 16, o + 32, ... and the columns of the same kind, with an
offset o that depends on the case. They cross every 16 x 16 block of the output, so that no wrong tile can hide; that no
element is NaN or Inf is looked up in the whole output.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import PROMOTE, SEGMENT
from ..reference import activate
from ..testing import REPRESENTATION, Summation, fma, gauge_bound, magnitude, tensor_core
from .case import Case
from .operands import OperandSet
from .outputs import Outputs

FULL_FLOPS = 5e11
STRIDE = 16


@dataclass(frozen=True)
class Verdict:
    """units: the largest error in units of the bound; None where an element is not finite.  reason: why it is wrong."""

    units: float | None
    reason: str | None

    @property
    def right(self) -> bool:
        """Whether everything lies within the bound."""
        return self.reason is None


def factors(case: Case, operands: OperandSet) -> dict[str, tuple[Any, Any]]:
    """For each output, the two matrices (m, k) and (k, n) whose product it is."""
    get = operands.inputs
    if case.op == "linear":
        return {"y": (get["x"], get["weight"].T)}
    found = {}
    if case.op in ("dgrad", "backward"):
        found["dx"] = (get["dy"], get["weight"])
    if case.op in ("wgrad", "backward"):
        found["dw"] = (get["dy"].T, get["x"])
    return found


def summation(case: Case, arch: str) -> tuple[Summation, float]:
    """The order of summation that the bound is for, and the error of representing float32 operands in the precision.

    16-bit operands may go through tensor cores or through FMA chains; the order is the one with the larger error.
    """
    segment = max(SEGMENT["gemm_mma"], SEGMENT["gemm_wgmma"])
    if case.dtype in ("float16", "bfloat16"):
        cores = tensor_core(arch, segment=segment)
        return replace(cores, step_units=max(cores.step_units, float(cores.step_k))), 0.0
    if case.precision in (None, "ieee"):
        return fma(case.dtype, SEGMENT["gemm_simt"]), 0.0
    how = tensor_core(arch, case.precision, segment=segment, promote=PROMOTE)
    return how, REPRESENTATION[case.precision]


class Gauge:
    """Judges outputs of one operand set of a case. The set's inputs must not change meanwhile.

    `outputs.working_bytes` is what a judgement may allocate at a time, and again as much to remember the exact products
    for the next provider.
    """

    def __init__(self, case: Case, operands: OperandSet, outputs: Outputs, arch: str) -> None:
        self.case = case
        self.outputs = outputs
        self.factors = factors(case, operands)
        self.bias = operands.inputs.get("bias")
        self.how, self.representation = summation(case, arch)
        self._known: dict[str, list[tuple[slice, slice, Any, Any]]] = {}

    @np.errstate(all="ignore")
    def judge(self) -> Verdict:
        """What the outputs are worth after ``outputs.reset`` and one call that is done."""
        xp = self.outputs.xp
        units = 0.0
        for name, out in self.outputs.arrays.items():
            strange = self.outputs.strange(name)
            if strange:
                return Verdict(None, f"{name} has {strange} of {out.size} elements that are NaN or Inf, or not written")
            for rows, columns, exact, bound in self._expected(name):
                error = xp.abs(out[rows, columns].astype(np.float64) - exact)
                ratio = xp.where(error == 0.0, 0.0, error / bound)
                # Python's max() and some maxima on devices let a NaN pass.
                units = max(units, float(xp.where(ratio >= 0.0, ratio, np.inf).max()))
        if not math.isfinite(units):
            return Verdict(
                None, "an element differs where the bound is zero, or is finite where the exact result is not"
            )
        return Verdict(units, None if units <= 1.0 else f"the error is {units:.4g} times the a-priori bound")

    def _expected(self, name: str) -> Iterator[tuple[slice, slice, Any, Any]]:
        """(rows, columns, exact result, bound) of the blocks to be judged; both float64."""
        if name in self._known:
            yield from self._known[name]
            return
        left, right = self.factors[name]
        working_bytes = self.outputs.working_bytes
        parts = list(blocks(left.shape[0], right.shape[1], left.shape[1], self.case.name, working_bytes))
        keep = sum(16 * len(_range(r, left.shape[0])) * len(_range(c, right.shape[1])) for r, c in parts)
        known = []
        for rows, columns in parts:
            part = (rows, columns, *self._block(name, rows, columns))
            if keep <= working_bytes:
                known.append(part)
            yield part
        if known:
            self._known[name] = known

    def _block(self, name: str, rows: slice, columns: slice) -> tuple[Any, Any]:
        starts = self.outputs.starts
        left, right = self.factors[name]
        a, b = left[rows].astype(np.float64), right[:, columns].astype(np.float64)
        z = a @ b
        sizes = [magnitude(x, left.dtype, self.how, self.representation) for x in (a, b)]
        gauge = sizes[0] @ sizes[1]
        if self.bias is not None:
            z = z + self.bias[columns].astype(np.float64)
        d = activate(z, self.case.activation)
        start = starts[name][rows, columns].astype(np.float64) if name in starts else None
        if start is not None:
            d = d + start
        bound = gauge_bound(
            gauge,
            z,
            d,
            self.how,
            k=a.shape[1],
            out_dtype=self.outputs.arrays[name].dtype,
            bias=self.bias is not None,
            activation=self.case.activation,
            accumulate_into=start,
            representation=self.representation,
        )
        return d, bound


def blocks(m: int, n: int, k: int, seed: str, working_bytes: int) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of an (m, n) product of depth k to judge one after the other: all of it, or crossing lines."""
    if 2.0 * m * n * k <= FULL_FLOPS:
        yield from _tiles(range(m), range(n), k, working_bytes)
        return
    # A checksum, because hash() of a string differs from process to process.
    offset = zlib.crc32(seed.encode())
    rows, columns = (range(offset % min(STRIDE, size), size, STRIDE) for size in (m, n))
    yield from _tiles(rows, range(n), k, working_bytes)
    yield from _tiles(range(m), columns, k, working_bytes)


def _tiles(rows: range, columns: range, k: int, working_bytes: int) -> Iterator[tuple[slice, slice]]:
    # Two operands and their absolute values, and a dozen temporaries of the result.
    side = 8192
    while side > STRIDE and 8 * (4 * side * k + 12 * side * side) > working_bytes:
        side //= 2
    for i in range(0, len(rows), side):
        for j in range(0, len(columns), side):
            yield _slice(rows[i : i + side]), _slice(columns[j : j + side])


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop, numbers.step)


def _range(part: slice, size: int) -> range:
    return range(*part.indices(size))
