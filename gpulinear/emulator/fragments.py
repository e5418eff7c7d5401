"""Which element of a matrix each register of each lane holds, for mma, wgmma, ldmatrix and stmatrix.

The formulas are those of the PTX ISA: 9.7.14.5.2 and 9.7.14.5.6 to 9.7.14.5.8 (mma), 9.7.15.5.1.1 (wgmma), 9.7.14.5.15
to 9.7.14.5.17 (8x8 matrices). With groupID = lane / 4 and threadID_in_group = lane % 4 they have one form for all
shapes: a longer fragment goes on where a shorter one ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.errors import EmulatorError

Array = npt.NDArray[Any]
Place = Callable[[Array, Array], tuple[Array, Array]]
"""(element number, lane) to (row, column)."""


class Fragment:
    """One matrix spread over the registers of a group of lanes (a warp, or a warpgroup).

    Element i of a lane is in its register i, or, where two 16-bit elements share a register, in half i % 2 of i / 2.
    """

    def __init__(self, rows: int, cols: int, threads: int, packed: bool, place: Place) -> None:
        self.rows, self.cols, self.threads = rows, cols, threads
        self.packed = packed
        self.elements = rows * cols // threads
        per_register = 2 if packed else 1
        self.registers = self.elements // per_register
        register, lane, part = np.indices((self.registers, threads, per_register))
        row, col = place(register * per_register + part, lane)
        self.flat = row * cols + col
        """[register, lane, part]: the element's place in the matrix, row by row."""
        self._gather = np.empty(rows * cols, np.intp)
        self._gather[self.flat.ravel()] = np.arange(rows * cols)

    def load(self, registers: Array, dtype: npt.DTypeLike) -> Array:
        """Registers [register, lanes of one or more groups] to matrices [group, rows, cols] of ``dtype``."""
        if len(registers) != self.registers:
            raise EmulatorError(f"the fragment has {self.registers} registers, the instruction names {len(registers)}")
        grouped = registers.reshape(self.registers, -1, self.threads).swapaxes(0, 1)
        elements = np.ascontiguousarray(grouped).reshape(len(grouped), -1).view(dtype)
        return elements.take(self._gather, axis=1).reshape(-1, self.rows, self.cols)

    def store(self, matrices: Array, dtype: npt.DTypeLike) -> Array:
        """Matrices [group, rows, cols] to registers [register, lanes] of ``dtype``."""
        flat = matrices.reshape(len(matrices), -1)
        spread = flat.take(self.flat.reshape(-1), axis=1).view(dtype)
        return np.ascontiguousarray(spread.reshape(-1, self.registers, self.threads).swapaxes(0, 1)).reshape(
            self.registers, -1
        )


def _left16(i: Array, lane: Array) -> tuple[Array, Array]:
    """A of 16-bit elements: two neighbours in a row, the row 8 below, then the columns 8 to the right."""
    return (lane >> 5) * 16 + (lane % 32 >> 2) + (i >> 1 & 1) * 8, lane % 4 * 2 + (i & 1) + (i >> 2) * 8


def _right16(i: Array, lane: Array) -> tuple[Array, Array]:
    """B of 16-bit elements: two neighbours in a column, then the rows 8 below."""
    return lane % 4 * 2 + (i & 1) + (i >> 1) * 8, lane >> 2


def _left32(i: Array, lane: Array) -> tuple[Array, Array]:
    """A of 32-bit or 64-bit elements: the row 8 below, then the columns 4 to the right."""
    return (lane >> 5) * 16 + (lane % 32 >> 2) + (i & 1) * 8, lane % 4 + (i >> 1) * 4


def _right32(i: Array, lane: Array) -> tuple[Array, Array]:
    """B of 32-bit or 64-bit elements: the rows 4 below."""
    return lane % 4 + i * 4, lane >> 2


def _accumulator(i: Array, lane: Array) -> tuple[Array, Array]:
    """C and D: two neighbours in a row, the row 8 below, then the columns 8 to the right."""
    return (lane >> 5) * 16 + (lane % 32 >> 2) + (i >> 1 & 1) * 8, (i >> 2) * 8 + lane % 4 * 2 + (i & 1)


class Shape(NamedTuple):
    """The fragments of D = A B + C."""

    a: Fragment
    b: Fragment
    c: Fragment


@cache
def mma(m: int, n: int, k: int, bits: int, accumulator_bits: int) -> Shape:
    """The fragments of ``mma.m{m}n{n}k{k}`` for elements and accumulators of these sizes."""
    left, right = (_left16, _right16) if bits == 16 else (_left32, _right32)
    return Shape(
        Fragment(m, k, 32, bits == 16, left),
        Fragment(k, n, 32, bits == 16, right),
        Fragment(m, n, 32, accumulator_bits == 16, _accumulator),
    )


@cache
def wgmma_a(bits: int) -> Fragment:
    """A of a wgmma in registers: 64 rows of 32 bytes."""
    return Fragment(64, 256 // bits, 128, bits == 16, _left16 if bits == 16 else _left32)


@cache
def wgmma_d(n: int, bits: int) -> Fragment:
    """D of a wgmma with n columns."""
    return Fragment(64, n, 128, bits == 16, _accumulator)


def from_rows(rows: Array, transposed: bool) -> Array:
    """8x8 matrices, uint16 [warp, matrix, 8, 8], to registers, uint32 [matrix, lane] (ldmatrix, Figure 104).

    A lane holds two neighbours of a row (``transposed``: of a column) of each matrix.
    """
    if transposed:
        rows = rows.swapaxes(2, 3)
    pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(*rows.shape[:2], 32)
    registers: Array = pairs.swapaxes(0, 1).reshape(rows.shape[1], -1)
    return registers


def to_rows(registers: Array, transposed: bool) -> Array:
    """The inverse of ``from_rows`` (stmatrix, Figure 107)."""
    pairs = np.ascontiguousarray(registers.reshape(len(registers), -1, 32).swapaxes(0, 1))
    rows: Array = pairs.view(np.uint16).reshape(-1, len(registers), 8, 8)
    return rows.swapaxes(2, 3) if transposed else rows
