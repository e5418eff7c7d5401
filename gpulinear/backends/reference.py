"""Answers problems with the NumPy reference. It has no grid and launches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import reference
from ..problem import ActGrad, ColumnSum, Gemm, Matrix, Problem

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def _matrix(where: Matrix, arrays: Arrays) -> np.ndarray[Any, Any]:
    """The operand as a 2-D array, a view wherever NumPy can make one."""
    rows, cols = (where.cols, where.rows) if where.transposed else (where.rows, where.cols)
    array = arrays[where.buffer].reshape(rows, cols)
    return array.T if where.transposed else array


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
    elif isinstance(problem, ColumnSum):
        out = arrays[problem.out.buffer]
        total = reference.column_sum(_matrix(problem.x, arrays), accumulate_into=out if problem.accumulate else None)
        _store(out, total)
    else:
        _run_act_grad(problem, arrays)


def _run_act_grad(problem: ActGrad, arrays: Arrays) -> None:
    dz = arrays[problem.dz.buffer]
    _store(
        dz,
        reference.act_grad(_matrix(problem.dy, arrays), _matrix(problem.preact, arrays), problem.activation),
    )
    if problem.db is not None:
        db = arrays[problem.db.buffer]
        into = db if problem.accumulate else None
        _store(db, reference.column_sum(_matrix(problem.dz, arrays), accumulate_into=into))


def run(problems: Sequence[Problem], arrays: Mapping[str, Any]) -> None:
    """Compute all problems of one call, in order, into the output arrays (NumPy)."""
    held = {name: array for name, array in arrays.items() if array is not None}
    for problem in problems:
        if isinstance(problem, ActGrad) and problem.dz.buffer not in held:
            dtype = held[problem.dy.buffer].dtype
            held[problem.dz.buffer] = np.empty((problem.dz.rows, problem.dz.cols), dtype)
        _run(problem, held)
