"""What the variants of all families share: C++ type names, segments, and the protocol of a GEMM variant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..device import DeviceSpec
from ..problem import ITEMSIZE, Gemm, Matrix, accumulator_dtype

# K (or the rows of a column sum) is cut into segments of this many elements: the unit of split-K, the same for every
# shape, tile and batch (docs/design.md, "The numeric contract"). Of a matrix product, ``segment_of`` says it.
SEGMENT = {"gemm_simt": 1024, "gemm_mma": 4096, "gemm_wgmma": 4096, "column_sum": 4096}


def segment_of(family: str, dtype: str) -> int:
    """Elements of K in a segment of a GEMM family: float64 sums are chains of FMAs in every family, cut like gemm_simt's."""
    return SEGMENT["gemm_simt" if dtype == "float64" else family]


# Split precisions restart their chains every this many elements and add them into the segment's sum, rounded to nearest:
# a tensor core truncates, and the bias grows with the chain (docs/accuracy.md).
PROMOTE = 64

CPP_TYPE = {"float64": "double", "float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}


def cpp_bool(value: bool) -> str:
    """``true`` or ``false``."""
    return str(value).lower()


def cpp_major(k_major: bool) -> str:
    """The enumerator of ``Major`` in kernels/common/layout.cuh."""
    return "Major::K" if k_major else "Major::MN"


@dataclass(frozen=True, kw_only=True)
class GemmConfig(ABC):
    """One variant of a GEMM family: frozen and hashable, the template argument of the generated source.

    A family is a subclass in a file of its own, listed in ``gpulinear.config.FAMILIES``. All legal variants of a family
    give the same bits for one problem; the default of ``segment`` is the family's (tests may build others).
    """

    family: ClassVar[str]
    as_planes: ClassVar[tuple[str, ...]] = ()  # precisions whose operands it takes as planes (configs/split.py)
    persistent: ClassVar[bool] = False  # the grid is as large as the chip at most, and its blocks walk the work
    dtype: str
    out_dtype: str
    bias_dtype: str
    k_major_a: bool  # A is read along K (else along M)
    k_major_b: bool  # B is read along K (else along N)
    block_m: int
    block_n: int
    block_k: int
    stages: int
    vec_a: int  # bytes of an access to A in global memory
    vec_b: int
    segment: int
    planes: int = 1  # that each operand is given as: more than one in the split precisions (configs/split.py)
    promote: int = 0  # elements of K after which a chain over planes restarts
    db_dtype: str | None = None  # of the sums over k of A[m, k] that a block also writes; None: none

    @property
    def pairs(self) -> int:
        """Products of planes in a step of K."""
        return self.planes * (self.planes + 1) // 2

    @property
    def blocks_per_cluster(self) -> int:
        """Blocks of a thread-block cluster; the grid is a multiple of it."""
        return 1

    @property
    @abstractmethod
    def tile(self) -> str:
        """Short name, unique among the candidates of a problem; ``Options.tile`` forces it."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block."""

    @property
    @abstractmethod
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block; the generated source asserts that ``<family>_smem_bytes<Config>()`` agrees."""

    @property
    @abstractmethod
    def registers(self) -> int:
        """The most registers per thread that the variant may use: a test compiles it on every arch and holds it to this."""

    @property
    @abstractmethod
    def min_blocks(self) -> int:
        """Blocks per SM that ptxas must leave registers for (second argument of __launch_bounds__)."""

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct: types, and constants whose names start with k. A family adds its own."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.out_dtype],
            "Bias": CPP_TYPE[self.bias_dtype],
            "kMajorA": cpp_major(self.k_major_a),
            "kMajorB": cpp_major(self.k_major_b),
            "kBlockM": str(self.block_m),
            "kBlockN": str(self.block_n),
            "kStages": str(self.stages),
            "kSegment": str(self.segment),
        }

    @abstractmethod
    def supports(self, gemm: Gemm, spec: DeviceSpec) -> str | None:
        """Why the variant cannot run ``gemm`` on ``spec``, as a sentence; None when it can."""

    def db_refused(self, gemm: Gemm) -> str | None:
        """Why the variant does not sum ``gemm.db`` on its way through A, as a sentence; None when it does."""
        return f"{self.family} does not sum it"

    @abstractmethod
    def macs_per_clock(self, spec: DeviceSpec, warps: float) -> float:
        """Multiply-adds per clock that the main loop reaches on an SM where ``warps`` of its warps are resident."""

    @classmethod
    @abstractmethod
    def candidates(cls, gemm: Gemm, spec: DeviceSpec) -> Iterator[GemmConfig]:
        """Every variant for the operands as they lie, legal or not."""

    def split_choices(self, segments: int, splits: list[int]) -> list[int]:
        """Which of these numbers of K splits the variant can do; 1 is always among them."""
        return splits

    def for_work(self, segments: int, splits: int, spec: DeviceSpec) -> GemmConfig:
        """The variant as it is launched for so many segments and splits of K."""
        return self

    def joins(self, other: GemmConfig) -> str | None:
        """Why a launch that both share (``JointConfig``) cannot be, as a sentence; None when it can."""
        return None

    def beside(self, other: GemmConfig) -> GemmConfig:
        """The variant as it is launched together with ``other``."""
        return self

    def limits(self, spec: DeviceSpec) -> str | None:
        """Why a block does not fit ``spec``, whatever the problem; None when it does."""
        if self.smem_bytes > spec.smem_per_block_optin:
            return (
                f"needs {self.smem_bytes} bytes of shared memory, a block of {spec.arch} has "
                f"{spec.smem_per_block_optin}"
            )
        registers = self.threads * self.registers
        if registers > spec.regs_per_block:
            return f"needs {registers} registers, a block of {spec.arch} has {spec.regs_per_block}"
        return None


def pitch_a(gemm: Gemm) -> int:
    """Elements from one row of A (column, where A is read along M) to the next, as a kernel reads it."""
    return gemm.a.row_stride if gemm.a.row_major else gemm.a.col_stride


def pitch_b(gemm: Gemm) -> int:
    """Elements from one column of B (row, where B is read along N) to the next, as a kernel reads it."""
    return gemm.b.col_stride if gemm.b.col_major else gemm.b.row_stride


def vector_bytes(operand: Matrix, pitch: int) -> int:
    """The width of an access along the contiguous dimension: 16 bytes where address and pitch allow, else an item.

    ``pitch`` is the stride in elements of the other dimension. A matrix of one row or column is contiguous both ways,
    with two pitches: it is the one of the major that the kernel reads that counts.
    """
    item = ITEMSIZE[operand.dtype]
    return 16 if operand.align >= 16 and pitch * item % 16 == 0 else item
