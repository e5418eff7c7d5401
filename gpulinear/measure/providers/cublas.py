"""cuBLAS called directly: ``cublasGemmEx`` through CuPy's bindings, on a handle of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..case import Case
from ..operands import OperandSet
from . import epilogue
from .base import BLAS_VIEWS, Product, Unavailable, column_major, products
from .precision import is_exact, mismatch


class CublasGemmEx:
    """One ``cublasGemmEx`` a product, beta = 1 to accumulate, in the default algorithm; majors as the operands lie.

    Strict float32 is CUBLAS_COMPUTE_32F under the default math mode. 16-bit operands are summed in float32, with the
    library's default that partial sums of split K may be stored in 16 bits: a restriction would only make it slower.
    The workspace is the handle's own pool (32 MiB on Hopper); CuPy's bindings cannot set another, and each change of
    stream would reset it.
    """

    name = "cublasGemmEx"
    ours = False

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import runtime

        try:
            from cupy_backends.cuda.libs import cublas
        except ImportError as error:
            raise Unavailable(f"cuBLAS cannot be loaded ({error}); pip install 'gpulinear[bench]'") from None
        try:
            self._types = {
                "float64": runtime.CUDA_R_64F,
                "float32": runtime.CUDA_R_32F,
                "float16": runtime.CUDA_R_16F,
                "bfloat16": runtime.CUDA_R_16BF,
            }
            self._compute = {
                "float64": cublas.CUBLAS_COMPUTE_64F,
                "float32": cublas.CUBLAS_COMPUTE_32F,
                "float16": cublas.CUBLAS_COMPUTE_32F,
                "bfloat16": cublas.CUBLAS_COMPUTE_32F,
                "tf32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32,
            }
            self._ops = (cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T)
            self._algorithm = cublas.CUBLAS_GEMM_DEFAULT
            self._gemm: Callable[..., None] = cublas.gemmEx
            self._destroy: Callable[[int], None] = cublas.destroy
            self._handle: int = cublas.create()
        except AttributeError as error:
            raise Unavailable(f"this CuPy's cuBLAS bindings are not the expected ones ({error})") from None
        self._cupy: Any = cupy
        # Scalars are read on the host when a product is enqueued.
        self._scalars = {dtype: np.array([0, 1], dtype) for dtype in ("float32", "float64")}
        self._exact = lru_cache(self._probe)
        self._kernel = ""

    def _arguments(self, product: Product, compute: str) -> tuple[int, ...]:
        """Everything ``gemmEx`` takes, for out = left right (+ out)."""
        layout = column_major(product)
        kind = self._types[product.left.dtype.name]
        scalars = self._scalars["float64" if compute == "float64" else "float32"]
        zero, one = (scalars.ctypes.data + i * scalars.itemsize for i in (0, 1))
        return (
            self._handle,
            self._ops[layout.transpose_a],
            self._ops[layout.transpose_b],
            layout.m,
            layout.n,
            layout.k,
            one,
            product.right.data.ptr,
            kind,
            layout.lda,
            product.left.data.ptr,
            kind,
            layout.ldb,
            one if product.accumulate else zero,
            product.out.data.ptr,
            self._types[product.out.dtype.name],
            layout.ldc,
            self._compute[compute],
            self._algorithm,
        )

    def _probe(self, tf32: bool) -> bool:
        def multiply(left: Any, right: Any, out: Any) -> None:
            self._gemm(*self._arguments(Product(left, right, out, False), "tf32" if tf32 else "float32"))

        return is_exact(multiply, self._cupy)

    def why_not(self, case: Case) -> str | None:
        """It needs operands with a unit stride and a positive leading dimension."""
        if case.view not in BLAS_VIEWS:
            return f"cuBLAS cannot read operands that are {case.view.replace('_', ' ')}; a copy would be timed"
        return mismatch(case, self._exact)

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """Arguments of every set ahead of time: a call is one call of the binding for each product."""
        compute = "tf32" if case.precision == "tf32" else case.dtype
        self._kernel = epilogue.describe(case)
        # The arrays are kept beside their addresses: they live as long as the call does.
        work = [(one, [self._arguments(product, compute) for product in products(case, one)]) for one in sets]
        gemm = self._gemm
        if not epilogue.wanted(case):

            def call(i: int) -> None:
                for arguments in work[i][1]:
                    gemm(*arguments)

            return call
        finish = epilogue.make(case, self._cupy)
        operands = [(one.outputs["y"], *([one.inputs["bias"]] if case.bias else []), one.outputs["y"]) for one in sets]

        def call_and_finish(i: int) -> None:
            gemm(*work[i][1][0])
            finish(*operands[i])

        return call_and_finish

    def kernel(self, case: Case) -> str:
        """Says so where bias and activation are a second kernel."""
        return self._kernel

    def close(self) -> None:
        """Frees the handle."""
        if self._handle:
            self._destroy(self._handle)
            self._handle = 0
