"""What is timed: the interface of a provider, and a case as the matrix products that every peer is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..case import Case
from ..operands import OperandSet

# Views of gpulinear.testing.VIEWS that a BLAS addresses with a leading dimension; of the others it needs a copy.
BLAS_VIEWS = frozenset(
    {
        "contiguous",
        "transposed",
        "row_sliced",
        "column_sliced",
        "padded",
        "rows_stepped",
        "misaligned",
        "misaligned_three",
    }
)


class Unavailable(Exception):
    """Why a provider cannot be used here at all, as a sentence."""


class Provider(Protocol):
    """Something that computes cases. Instances hold handles and workspaces; ``close`` lets go of them.

    name: as in the rows: "gpulinear", "gpulinear:gemm_simt" (a family forced), "cublasGemmEx", ...
    ours: whether its result must be within its bound and the same bits twice for the run to count as right.
    """

    name: str
    ours: bool

    def why_not(self, case: Case) -> str | None:
        """Why it cannot do the case at equal precision, as a sentence; None when it can."""

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """A function that enqueues the case on operand set i, on CuPy's current stream, and returns at once.

        It writes ``sets[i].outputs`` and allocates nothing where the peer allows that. ``prepare`` itself may compile,
        choose an algorithm and run; outputs hold anything afterwards.
        """

    def kernel(self, case: Case) -> str:
        """What runs for the case prepared last: ours family, tile and splits, a peer's algorithm; "" if unknown."""

    def close(self) -> None:
        """Undo global switches and free handles."""


@dataclass(frozen=True)
class Product:
    """out (M, N) = left (M, K) right (K, N), or out += of it. Arrays are views of an operand set's."""

    left: Any
    right: Any
    out: Any
    accumulate: bool


def products(case: Case, one: OperandSet) -> list[Product]:
    """The matrix products that an operand set asks for; two of them for backward."""
    arrays = {**one.inputs, **one.outputs}

    def of(op: str) -> Product:
        if op == "linear":
            return Product(arrays["x"], arrays["weight"].T, arrays["y"], False)
        if op == "dgrad":
            return Product(arrays["dy"], arrays["weight"], arrays["dx"], False)
        return Product(arrays["dy"].T, arrays["x"], arrays["dw"], case.accumulate)

    return [of(op) for op in (("dgrad", "wgrad") if case.op == "backward" else (case.op,))]


def out_dtypes(case: Case) -> set[str]:
    """The dtypes of the case's outputs."""
    other = case.out_dtype or case.dtype
    return {case.dtype, other} if case.op == "backward" else {other}


@dataclass(frozen=True)
class ColumnMajor:
    """A row-major product as a column-major BLAS takes it: outᵀ (m, n) = op(a) op(b), with a = right, b = left.

    transpose_a, transpose_b: whether op transposes. lda, ldb, ldc in elements.
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int


def column_major(product: Product) -> ColumnMajor:
    """The BLAS arguments of a product; raises ValueError where an operand has no unit stride and leading dimension."""
    rows, inner = product.left.shape
    columns = product.right.shape[1]
    left_transposed, ldb = _leading(product.left)
    right_transposed, lda = _leading(product.right)
    out_transposed, ldc = _leading(product.out)
    if out_transposed:
        raise ValueError(f"the output must be row-major, got strides {product.out.strides}")
    return ColumnMajor(right_transposed, left_transposed, columns, rows, inner, lda, ldb, ldc)


def _leading(matrix: Any) -> tuple[bool, int]:
    """(stored column by column, leading dimension) of a matrix; where both orders fit, it counts as row-major."""
    rows, cols = matrix.shape
    row, col = (stride // matrix.dtype.itemsize for stride in matrix.strides)
    for transposed, (count, step), (width, unit) in (
        (False, (rows, row), (cols, col)),
        (True, (cols, col), (rows, row)),
    ):
        if (unit == 1 or width == 1) and (step >= width or count == 1):
            return transposed, max(step, width) if count > 1 else width
    raise ValueError(f"a BLAS needs a unit stride and rows that do not overlap, got strides {matrix.strides} bytes")
