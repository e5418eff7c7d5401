"""cuBLASLt at its best: every algorithm its heuristics propose, timed once per case, and the fastest taken.

Through ``nvmath.bindings.cublasLt`` (nvmath-python) and not nvmath's Matmul class, which allocates each result and gives
16-bit operands no float32 output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..case import Case
from ..operands import OperandSet
from . import epilogue
from .base import BLAS_VIEWS, ColumnMajor, Product, Unavailable, column_major, products
from .precision import is_exact, mismatch

_PROPOSALS = 16  # algorithms asked of the heuristics
_WORKSPACE = 1 << 28  # bytes, what gpulinear.Options allows itself; cuBLAS recommends 32 MiB on Hopper

# How the fastest is found: rounds over all algorithms, a few launches each behind a memset that hides the enqueueing.
_ROUNDS = 3
_LAUNCHES = 8
_SECONDS = 1.0


class CublasLt:
    """One ``cublasLtMatmul`` a product; bias, relu and gelu (tanh) are its epilogue, what else there is a second kernel."""

    name = "cublasLt"
    ours = False

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import runtime
        from nvmath.bindings import cublas
        from nvmath.bindings import cublasLt as lt

        try:
            self._types = {
                "float64": int(runtime.CUDA_R_64F),
                "float32": int(runtime.CUDA_R_32F),
                "float16": int(runtime.CUDA_R_16F),
                "bfloat16": int(runtime.CUDA_R_16BF),
            }
            compute = cublas.ComputeType
            self._compute = {
                "float64": int(compute.COMPUTE_64F),
                "float32": int(compute.COMPUTE_32F),
                "float16": int(compute.COMPUTE_32F),
                "bfloat16": int(compute.COMPUTE_32F),
                "tf32": int(compute.COMPUTE_32F_FAST_TF32),
            }
            kinds = lt.Epilogue
            self._epilogues = {
                (True, None): int(kinds.BIAS),
                (False, "relu"): int(kinds.RELU),
                (True, "relu"): int(kinds.RELU_BIAS),
                (False, "gelu_tanh"): int(kinds.GELU),
                (True, "gelu_tanh"): int(kinds.GELU_BIAS),
            }
            self._handle: int = lt.create()
        except AttributeError as error:
            raise Unavailable(f"this nvmath-python has other cuBLASLt bindings ({error})") from None
        self._lt: Any = lt
        self._cupy: Any = cupy
        self._workspace: Any = cupy.empty(_WORKSPACE, np.uint8)
        self._scalars = {dtype: np.array([0, 1], dtype) for dtype in ("float32", "float64")}
        self._made: list[tuple[Callable[[int], None], int]] = []  # descriptors of the last prepare
        self._kept: list[Any] = []  # memory that descriptors and launches point to
        self._exact = lru_cache(self._probe)
        self._kernel = ""

    # ---- descriptors ----

    def _own(self, handle: int, destroy: Callable[[int], None]) -> int:
        self._made.append((destroy, handle))
        return handle

    def _free(self) -> None:
        while self._made:
            destroy, handle = self._made.pop()
            destroy(handle)
        self._kept.clear()

    def _description(self, layout: ColumnMajor, compute: str, kind: int | None, bias: Any) -> int:
        lt = self._lt
        scale = self._types["float64" if compute == "float64" else "float32"]
        description = self._own(lt.matmul_desc_create(self._compute[compute], scale), lt.matmul_desc_destroy)
        names = lt.MatmulDescAttribute
        attributes = {names.TRANSA: int(layout.transpose_a), names.TRANSB: int(layout.transpose_b)}
        if kind is not None:
            attributes[names.EPILOGUE] = kind
        if kind is not None and bias is not None:
            attributes[names.BIAS_POINTER] = bias.data.ptr
            attributes[names.BIAS_DATA_TYPE] = self._types[bias.dtype.name]
        for attribute, value in attributes.items():
            buffer = np.array([value], lt.get_matmul_desc_attribute_dtype(attribute))
            lt.matmul_desc_set_attribute(description, attribute, buffer.ctypes.data, buffer.nbytes)
        return description

    def _layouts(self, product: Product, layout: ColumnMajor) -> tuple[int, int, int]:
        """Of a (the right operand), b (the left one) and the output, as they lie in memory, column by column."""

        def create(array: Any, rows: int, cols: int, ld: int) -> int:
            made = self._lt.matrix_layout_create(self._types[array.dtype.name], rows, cols, ld)
            return self._own(made, self._lt.matrix_layout_destroy)

        m, n, k = layout.m, layout.n, layout.k
        a = create(product.right, *((k, m) if layout.transpose_a else (m, k)), layout.lda)
        b = create(product.left, *((n, k) if layout.transpose_b else (k, n)), layout.ldb)
        return a, b, create(product.out, m, n, layout.ldc)

    def _proposals(
        self, description: int, layouts: tuple[int, int, int], work: Sequence[Product]
    ) -> list[tuple[int, int]]:
        """(address of the algorithm, bytes of workspace) of each proposal, the library's favourite first."""
        lt = self._lt
        names = lt.MatmulPreferenceAttribute
        preference = self._own(lt.matmul_preference_create(), lt.matmul_preference_destroy)
        values = {names.MAX_WORKSPACE_BYTES: _WORKSPACE}
        for attribute, operand in (
            (names.MIN_ALIGNMENT_A_BYTES, "right"),
            (names.MIN_ALIGNMENT_B_BYTES, "left"),
            (names.MIN_ALIGNMENT_C_BYTES, "out"),
            (names.MIN_ALIGNMENT_D_BYTES, "out"),
        ):
            bits = 256
            for product in work:
                bits |= getattr(product, operand).data.ptr
            values[attribute] = bits & -bits
        for attribute, value in values.items():
            buffer = np.array([value], lt.get_matmul_preference_attribute_dtype(attribute))
            lt.matmul_preference_set_attribute(preference, attribute, buffer.ctypes.data, buffer.nbytes)
        results = lt.MatmulHeuristicResult(_PROPOSALS)
        count = np.zeros(1, np.int32)
        a, b, d = layouts
        try:
            lt.matmul_algo_get_heuristic(
                self._handle, description, a, b, d, d, preference, _PROPOSALS, results.ptr, count.ctypes.data
            )
        except lt.cuBLASLtError:  # no proposal is an error of its own there
            return []
        self._kept.append(results)
        found = [results[i] for i in range(int(count[0]))]
        return [(int(one.algo.ctypes.data), int(one.workspace_size)) for one in found if int(one.state) == 0]

    # ---- one product ----

    def _plan(
        self, work: Sequence[Product], compute: str, kind: int | None, biases: Sequence[Any]
    ) -> tuple[list[Callable[[int], None]], list[int]]:
        """A call per proposed algorithm, and their addresses; both empty where there is no algorithm."""
        layout = column_major(work[0])
        a, b, d = self._layouts(work[0], layout)
        # Only a bias makes the descriptions of two sets differ.
        distinct = len(work) if kind is not None and biases[0] is not None else 1
        descriptions = [self._description(layout, compute, kind, bias) for bias in biases[:distinct]]
        proposals = self._proposals(descriptions[0], (a, b, d), work)
        scalars = self._scalars["float64" if compute == "float64" else "float32"]
        zero, one = (scalars.ctypes.data + i * scalars.itemsize for i in (0, 1))
        arguments = []
        for i, product in enumerate(work):
            right, left, out = product.right.data.ptr, product.left.data.ptr, product.out.data.ptr
            beta = one if product.accumulate else zero
            description = descriptions[i % distinct]
            operands = (product, biases[i])  # kept beside their addresses: they live as long as the call does
            arguments.append((operands, (self._handle, description, one, right, a, left, b, beta, out, d, out, d)))
        matmul, workspace = self._lt.matmul, self._workspace.data.ptr
        stream = self._cupy.cuda.get_current_stream

        def make(algorithm: int, size: int) -> Callable[[int], None]:
            return lambda i: matmul(*arguments[i][1], algorithm, workspace, size, stream().ptr)

        return [make(*proposal) for proposal in proposals], [algorithm for algorithm, _ in proposals]

    def _fastest(self, calls: list[Callable[[int], None]], sets: int) -> int:
        """The index of the call with the least time of a launch."""
        cuda = self._cupy.cuda

        def measure(call: Callable[[int], None], launches: int) -> float:
            start, end = cuda.Event(), cuda.Event()
            self._workspace.data.memset_async(0, _WORKSPACE)
            start.record()
            for i in range(launches):
                call(i % sets)
            end.record()
            end.synchronize()
            return float(cuda.get_elapsed_time(start, end)) / launches

        times: dict[int, list[float]] = {}
        for index, call in enumerate(calls):
            try:
                once = measure(call, 1)  # loads its kernel: no time yet
            except Exception:  # what a heuristic proposes may still be refused at launch
                continue
            times[index] = [] if once < 100 else [once]  # ms: nobody needs a longer look at such a launch
        begin = time.perf_counter()
        for number in range(_ROUNDS):
            for index, seen in times.items():
                if number and time.perf_counter() - begin > _SECONDS:
                    break
                if not seen or seen[0] < 100:
                    seen.append(measure(calls[index], _LAUNCHES if not seen or seen[0] < 1 else 1))
        if not times:
            raise RuntimeError("cuBLASLt refused every algorithm that its heuristics proposed")
        return min(times, key=lambda index: min(times[index]))

    def _describe(self, algorithm: int, index: int, count: int) -> str:
        lt = self._lt
        names = lt.MatmulAlgoConfigAttribute
        values = {}
        written = np.zeros(1, np.uint64)
        for label, attribute in (("algorithm", names.ID), ("tile", names.TILE_ID), ("split", names.SPLITK_NUM)):
            buffer = np.zeros(1, lt.get_matmul_algo_config_attribute_dtype(attribute))
            lt.matmul_algo_config_get_attribute(
                algorithm, attribute, buffer.ctypes.data, buffer.nbytes, written.ctypes.data
            )
            values[label] = int(buffer[0])
        words = " ".join(f"{label} {value}" for label, value in values.items())
        return f"{words} (heuristic {index + 1} of {count})"

    # ---- the provider ----

    def _probe(self, tf32: bool) -> bool:
        def multiply(left: Any, right: Any, out: Any) -> None:
            calls, _ = self._plan([Product(left, right, out, False)], "tf32" if tf32 else "float32", None, [None])
            if not calls:
                raise RuntimeError("cuBLASLt has no algorithm for a square product in float32")
            calls[0](0)

        try:
            return is_exact(multiply, self._cupy)
        finally:
            self._free()

    def why_not(self, case: Case) -> str | None:
        """It needs operands with a unit stride and a positive leading dimension."""
        if case.view not in BLAS_VIEWS:
            return f"cuBLASLt cannot read operands that are {case.view.replace('_', ' ')}; a copy would be timed"
        return mismatch(case, self._exact)

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """Runs every proposed algorithm and keeps the fastest; what the last ``prepare`` made is freed."""
        self._cupy.cuda.get_current_stream().synchronize()  # calls of the last one may still read what is freed
        self._free()
        compute = "tf32" if case.precision == "tf32" else case.dtype
        columns = list(zip(*(products(case, one) for one in sets), strict=True))  # a product of all sets together
        biases = [one.inputs.get("bias") for one in sets]
        kind = None if case.dtype == "float64" else self._epilogues.get((case.bias, case.activation))
        chosen: list[Callable[[int], None]] = []
        words: list[str] = []
        for work in columns:
            calls, algorithms = self._plan(work, compute, kind, biases)
            if not calls and kind is not None:
                kind = None
                calls, algorithms = self._plan(work, compute, None, biases)
            if not calls:
                raise RuntimeError(f"cuBLASLt's heuristics propose no algorithm for {case.name}")
            best = self._fastest(calls, len(sets))
            chosen.append(calls[best])
            words.append(self._describe(algorithms[best], best, len(calls)))
        if epilogue.wanted(case) and kind is None:
            words.append(epilogue.describe(case))
            finish = epilogue.make(case, self._cupy)
            operands = [
                (one.outputs["y"], *([one.inputs["bias"]] if case.bias else []), one.outputs["y"]) for one in sets
            ]
            chosen.append(lambda i: finish(*operands[i]))
        self._kernel = " + ".join(words)
        if len(chosen) == 1:
            return chosen[0]

        def call(i: int) -> None:
            for one in chosen:
                one(i)

        return call

    def kernel(self, case: Case) -> str:
        """The algorithm of each product, and whether bias and activation are a second kernel."""
        return self._kernel

    def close(self) -> None:
        """Frees descriptors, handle and workspace."""
        self._free()
        if self._handle:
            self._lt.destroy(self._handle)
            self._handle = 0
        self._workspace = None
