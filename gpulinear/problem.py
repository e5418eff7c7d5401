"""What is to be computed: frozen, hashable descriptions of one GEMM, column sum or activation gradient.

A problem says where each operand lies (``Matrix``, ``Vector``) and nothing about how the work is done. Two calls
whose problems are equal get the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
PRECISIONS = ("ieee", "tf32", "tf32x3", "bf16x6")
ACTIVATION_CODES = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}  # enum Activation in params.cuh

# Kernels count rows, columns and depth in 32-bit integers (offsets are 64-bit).
MAX_DIM = 2**31 - 1


def accumulator_dtype(dtype: str) -> str:
    """The dtype in which products of ``dtype`` are summed: float64 for float64, else float32."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True)
class Matrix:
    """Where a (rows, cols) matrix lies in a named buffer.

    Strides are in elements. ``align`` is a power of two (bytes, at most 128) that divides the address of the first
    element. ``scatter`` is set where the array has no single row stride: its (shape, byte strides), in C order; the
    element strides are then those of a contiguous copy.
    """

    buffer: str
    rows: int
    cols: int
    row_stride: int
    col_stride: int
    dtype: str
    align: int = 128
    scatter: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    transposed: bool = False  # rows and cols are swapped with respect to the array
    planes: str | None = (
        None  # the precision whose planes of the matrix the buffer holds (planes.py), else its elements
    )

    @property
    def T(self) -> Matrix:
        """The transposed matrix over the same memory."""
        return replace(
            self,
            rows=self.cols,
            cols=self.rows,
            row_stride=self.col_stride,
            col_stride=self.row_stride,
            transposed=not self.transposed,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols

    @property
    def row_major(self) -> bool:
        """Elements of a row are adjacent."""
        return self.col_stride == 1 or self.cols <= 1

    @property
    def col_major(self) -> bool:
        """Elements of a column are adjacent."""
        return self.row_stride == 1 or self.rows <= 1


@dataclass(frozen=True)
class Vector:
    """Where a vector of ``size`` elements lies in a named buffer; ``stride`` in elements."""

    buffer: str
    size: int
    stride: int
    dtype: str
    align: int = 128


@dataclass(frozen=True)
class Gemm:
    """D[m,n] = act(A[m,k] B[k,n] + bias[n]), or D += A B when accumulating.

    ``op`` is the layer's name for it (linear, dgrad, wgrad). ``precision`` is one of ``PRECISIONS`` for float32 and
    None for the other dtypes. ``preact`` receives A B + bias before the activation. ``db`` receives the sum over k of
    A[m, k], which in a wgrad are the column sums of dy, as ``ColumnSum`` gives them; added to what it holds when
    accumulating.
    """

    op: str
    a: Matrix
    b: Matrix
    d: Matrix
    precision: str | None = None
    bias: Vector | None = None
    activation: str | None = None
    preact: Matrix | None = None
    accumulate: bool = False
    db: Vector | None = None

    @property
    def m(self) -> int:
        """Rows of D."""
        return self.d.rows

    @property
    def n(self) -> int:
        """Columns of D."""
        return self.d.cols

    @property
    def k(self) -> int:
        """The reduced dimension."""
        return self.a.cols

    @property
    def dtype(self) -> str:
        """The dtype of A and B."""
        return self.a.dtype


@dataclass(frozen=True)
class ColumnSum:
    """out[j] = sum over rows i of x[i, j], added to what ``out`` holds when accumulating."""

    x: Matrix
    out: Vector
    accumulate: bool = False


@dataclass(frozen=True)
class ActGrad:
    """dz = dy * act'(preact), rounded to dz's dtype, and on request db = column sums of the rounded dz."""

    activation: str
    dy: Matrix
    preact: Matrix
    dz: Matrix
    db: Vector | None = None
    accumulate: bool = False


@dataclass(frozen=True)
class SplitPlanes:
    """The planes of x for a precision, and of its transpose where they must lie along K, in the buffer ``out`` (planes.py)."""

    precision: str
    x: Matrix
    out: Vector


Problem = Gemm | ColumnSum | ActGrad | SplitPlanes
