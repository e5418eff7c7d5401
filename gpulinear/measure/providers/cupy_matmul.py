"""cupy.matmul: what a CuPy user gets, cuBLAS through ``cublasGemmEx`` with CuPy's own handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..case import Case
from ..operands import OperandSet
from . import epilogue
from .base import Unavailable, out_dtypes, products
from .precision import is_exact, mismatch


class CupyMatmul:
    """One ``cupy.matmul(left, right, out=)`` a product; bias and activation are an elementwise kernel after it.

    CuPy copies operands that have no unit stride, or whose rows are not adjacent: the copy is part of its time.
    """

    name = "cupy.matmul"
    ours = False

    def __init__(self) -> None:
        import cupy
        from cupy._core import _routines_linalg as modes  # the only switch of TF32 is there; CUPY_TF32 is read once

        try:
            self._modes = {False: modes.COMPUTE_TYPE_DEFAULT, True: modes.COMPUTE_TYPE_TF32}
            self._set = modes.set_compute_type
            self._before = modes.get_compute_type(np.float32)
        except AttributeError as error:
            raise Unavailable(f"this CuPy has no switch of TF32 ({error})") from None
        self._cupy: Any = cupy
        self._exact = lru_cache(self._probe)
        self._kernel = ""

    def _probe(self, tf32: bool) -> bool:
        self._set(np.float32, self._modes[tf32])
        return is_exact(lambda a, b, out: self._cupy.matmul(a, b, out=out), self._cupy)

    def why_not(self, case: Case) -> str | None:
        """It cannot accumulate, nor give another dtype than its operands'."""
        if case.accumulate:
            return "cupy.matmul overwrites its output; adding to it needs another kernel"
        if out_dtypes(case) != {case.dtype}:
            return "cupy.matmul gives the dtype of its operands"
        return mismatch(case, self._exact)

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """Switches TF32 for float32 products of the process until the next ``prepare`` or ``close``."""
        self._set(np.float32, self._modes[case.precision == "tf32"])
        self._kernel = epilogue.describe(case)
        work = [products(case, one) for one in sets]
        matmul = self._cupy.matmul
        finish = epilogue.make(case, self._cupy) if epilogue.wanted(case) else None
        biases = [one.inputs.get("bias") for one in sets]

        def call(i: int) -> None:
            for product in work[i]:
                matmul(product.left, product.right, out=product.out)
            if finish is not None:
                y = work[i][0].out
                if biases[i] is None:
                    finish(y, y)
                else:
                    finish(y, biases[i], y)

        return call

    def kernel(self, case: Case) -> str:
        """Says so where bias and activation are a second kernel."""
        return self._kernel

    def close(self) -> None:
        """CuPy's TF32 setting as it was."""
        self._set(np.float32, self._before)
