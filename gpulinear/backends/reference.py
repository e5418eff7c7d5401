"""Answers problems with the NumPy reference. It has no grid and launches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import reference
from ..planes import plane_views
from ..problem import ActGrad, ColumnSum, Gemm, Matrix, Problem, SplitPlanes, Vector

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def _matrix(where: Matrix, arrays: Arrays) -> np.ndarray[Any, Any]:
    """The operand as a 2-D array, a view wherever NumPy can make one."""
    rows, cols = (where.cols, where.rows) if where.transposed else (where.rows, where.cols)
    if where.planes is not None:
        array = _join(arrays[where.buffer], rows, cols, where.planes)
    else:
        array = arrays[where.buffer].reshape(rows, cols)
    return array.T if where.transposed else array


def _join(buffer: np.ndarray[Any, Any], rows: int, cols: int, precision: str) -> np.ndarray[Any, Any]:
    """The matrix that planes were made of."""
    bits = plane_views(buffer, rows, cols, precision)[0][:, :, :cols]
    shift = 8 * (4 - bits.itemsize)  # a bfloat16 is the upper half of a float32
    return reference.join(list((bits.astype(np.uint32) << np.uint32(shift)).view(np.float32)))


def _run_split(problem: SplitPlanes, arrays: Arrays) -> None:
    x = _matrix(problem.x, arrays)
    sets = plane_views(arrays[problem.out.buffer], problem.x.rows, problem.x.cols, problem.precision)
    for kept, matrix in zip(sets, (x, x.T), strict=False):
        shift = np.uint32(8 * (4 - kept.itemsize))
        kept[...] = 0
        for place, plane in zip(kept, reference.planes(np.ascontiguousarray(matrix), problem.precision), strict=True):
            place[:, : matrix.shape[1]] = plane.view(np.uint32) >> shift


def _store(array: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> None:
    """Round once into the output's own dtype."""
    array[...] = reference.round_to(exact, array.dtype).reshape(array.shape)


def _run(problem: Problem, arrays: Arrays) -> None:
    if isinstance(problem, Gemm):
        out = arrays[problem.d.buffer]
        exact, preact = reference.gemm(
            _matrix(problem.a, arrays),
            _matrix(problem.b, arrays),
            bias=arrays[problem.bias.buffer] if problem.bias else None,
            activation=problem.activation,
            precision=problem.precision,
            accumulate_into=out if problem.accumulate else None,
        )
        if problem.preact is not None:
            _store(arrays[problem.preact.buffer], preact)
        _store(out, exact)
        if problem.db is not None:
            _add_columns(problem.a.T, problem.db, problem.accumulate, arrays)
    elif isinstance(problem, ColumnSum):
        _add_columns(problem.x, problem.out, problem.accumulate, arrays)
    elif isinstance(problem, SplitPlanes):
        _run_split(problem, arrays)
    else:
        _run_act_grad(problem, arrays)


def _add_columns(x: Matrix, out: Vector, accumulate: bool, arrays: Arrays) -> None:
    """Column sums of ``x`` into, or onto, ``out``."""
    held = arrays[out.buffer]
    _store(held, reference.column_sum(_matrix(x, arrays), accumulate_into=held if accumulate else None))


def _run_act_grad(problem: ActGrad, arrays: Arrays) -> None:
    dz = arrays[problem.dz.buffer]
    _store(
        dz,
        reference.act_grad(_matrix(problem.dy, arrays), _matrix(problem.preact, arrays), problem.activation),
    )
    if problem.db is not None:
        _add_columns(problem.dz, problem.db, problem.accumulate, arrays)


def run(problems: Sequence[Problem], arrays: Mapping[str, Any]) -> None:
    """Compute all problems of one call, in order, into the output arrays (NumPy)."""
    held = {name: array for name, array in arrays.items() if array is not None}
    for problem in problems:
        if isinstance(problem, ActGrad) and problem.dz.buffer not in held:
            dtype = held[problem.dy.buffer].dtype
            held[problem.dz.buffer] = np.empty((problem.dz.rows, problem.dz.cols), dtype)
        _run(problem, held)
