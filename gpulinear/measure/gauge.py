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

from ..config import SEGMENT
from ..reference import activate
from ..testing import REPRESENTATION, Summation, fma, gauge_bound, tensor_core
from .case import Case
from .operands import OperandSet

FULL_FLOPS = 5e11
STRIDE = 16
WORKING_BYTES = 2**30


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
    if case.dtype in ("float16", "bfloat16"):
        cores = tensor_core(arch)
        return replace(cores, step_units=max(cores.step_units, float(cores.step_k))), 0.0
    if case.precision in (None, "ieee"):
        return fma(case.dtype, SEGMENT["gemm_simt"]), 0.0
    return tensor_core(arch, case.precision), REPRESENTATION[case.precision]


class Gauge:
    """Judges outputs of one operand set of a case. The set's inputs must not change meanwhile.

    xp: the array module of the operands.  working_bytes: what a judgement may allocate at a time, and again as much to
    remember the exact products for the next provider.
    """

    def __init__(
        self, case: Case, operands: OperandSet, xp: Any, arch: str, working_bytes: int = WORKING_BYTES
    ) -> None:
        self.case = case
        self.xp = xp
        self.factors = factors(case, operands)
        self.outputs = operands.outputs
        self.bias = operands.inputs.get("bias")
        self.how, self.representation = summation(case, arch)
        self.working_bytes = working_bytes
        self.starts = {name: out.copy() for name, out in self.outputs.items() if accumulates(case, name)}
        self._known: dict[str, list[tuple[slice, slice, Any, Any]]] = {}

    def reset(self) -> None:
        """Make the outputs what they must be before a call that is judged: NaN, or what is added to."""
        for name, out in self.outputs.items():
            if name in self.starts:
                out[...] = self.starts[name]
            else:
                poison(out)

    @np.errstate(all="ignore")
    def judge(self) -> Verdict:
        """What the outputs are worth after ``reset`` and one call that is done."""
        units = 0.0
        for name, out in self.outputs.items():
            strange = out.size - finite_count(out, self.xp, self.working_bytes)
            if strange:
                return Verdict(None, f"{name} has {strange} of {out.size} elements that are NaN or Inf, or not written")
            for rows, columns, exact, bound in self._expected(name):
                error = self.xp.abs(out[rows, columns].astype(np.float64) - exact)
                ratio = self.xp.where(error == 0.0, 0.0, error / bound)
                units = max(units, float(ratio.max()))
        if not math.isfinite(units):
            return Verdict(None, "an element differs where the bound is zero or not finite")
        return Verdict(units, None if units <= 1.0 else f"the error is {units:.4g} times the a-priori bound")

    def fingerprint(self) -> tuple[int, ...]:
        """A number for each output that changes when its bits do."""
        return tuple(fingerprint(out, self.xp, self.working_bytes) for out in self.outputs.values())

    def _expected(self, name: str) -> Iterator[tuple[slice, slice, Any, Any]]:
        """(rows, columns, exact result, bound) of the blocks to be judged; both float64."""
        if name in self._known:
            yield from self._known[name]
            return
        left, right = self.factors[name]
        parts = list(blocks(left.shape[0], right.shape[1], left.shape[1], self.case.name, self.working_bytes))
        keep = sum(16 * len(_range(r, left.shape[0])) * len(_range(c, right.shape[1])) for r, c in parts)
        known = []
        for rows, columns in parts:
            part = (rows, columns, *self._block(name, rows, columns))
            if keep <= self.working_bytes:
                known.append(part)
            yield part
        if known:
            self._known[name] = known

    def _block(self, name: str, rows: slice, columns: slice) -> tuple[Any, Any]:
        xp = self.xp
        a = self.factors[name][0][rows].astype(np.float64)
        b = self.factors[name][1][:, columns].astype(np.float64)
        z = a @ b
        gauge = xp.abs(a) @ xp.abs(b)
        if self.bias is not None:
            z = z + self.bias[columns].astype(np.float64)
        d = activate(z, self.case.activation)
        start = self.starts[name][rows, columns].astype(np.float64) if name in self.starts else None
        if start is not None:
            d = d + start
        bound = gauge_bound(
            gauge,
            z,
            d,
            self.how,
            k=a.shape[1],
            out_dtype=self.outputs[name].dtype,
            bias=self.bias is not None,
            activation=self.case.activation,
            accumulate_into=start,
            representation=self.representation,
        )
        return d, bound


def accumulates(case: Case, name: str) -> bool:
    """Whether a call adds to what the output holds."""
    return case.accumulate and name == "dw"


def poison(out: Any) -> None:
    """Fill an output with NaN: all bits set, in every floating-point dtype here."""
    # As signed integers: -1 has all bits set, and every array module can fill with it.
    out.view(f"i{out.dtype.itemsize}").fill(-1)


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


def _strips(out: Any, working_bytes: int) -> Iterator[slice]:
    """Rows at a time, such that two float64 copies of them fit."""
    step = max(working_bytes // (16 * max(out.shape[1], 1)), 1)
    return (slice(i, i + step) for i in range(0, out.shape[0], step))


def finite_count(out: Any, xp: Any, working_bytes: int = WORKING_BYTES) -> int:
    """How many elements of a matrix are neither NaN nor Inf."""
    return sum(int(xp.isfinite(out[rows].astype(np.float64)).sum()) for rows in _strips(out, working_bytes))


def fingerprint(out: Any, xp: Any, working_bytes: int = WORKING_BYTES) -> int:
    """sum over i, j of r[i] bits[i, j] c[j] modulo 2**64, with fixed random odd r and c; `out` is contiguous.

    One element with other bits always changes it, several do with a probability of at least 1 - 2**-32 (multilinear
    hashing: D. Lemire and O. Kaser, Strongly universal string hashing is fast, 2014). Integers, so the order of the sum
    does not matter. Words of at most 32 bits: of a 64-bit word the top bit would have the same weight everywhere.
    """
    bits = out.view("u2" if out.dtype.itemsize == 2 else "u4")
    rng = np.random.default_rng(0)
    r, c = (xp.asarray(rng.integers(0, 2**63, size, np.uint64) * np.uint64(2) + np.uint64(1)) for size in bits.shape)
    total = 0
    for rows in _strips(bits, working_bytes):
        total += int(((bits[rows].astype(np.uint64) * c).sum(axis=1) * r[rows]).sum())
    return total % 2**64
