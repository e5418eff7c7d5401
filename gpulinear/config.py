"""The compile-time choices of each kernel family, which of them are legal, and what they cost in registers.

A config is frozen and hashable: it is the template argument of the generated source and part of the cache key.
``supports`` is the only statement of what is legal; ``candidates`` lists what the planner may choose from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .device import DeviceSpec
from .problem import ITEMSIZE, Gemm, Matrix, accumulator_dtype

# Version of the numbers: raised when a change of kernel or order of reduction changes a result bit.
NUMERICS_VERSION = 1

# K (or the rows of a column sum) is cut into segments of this many elements: the unit of split-K, the same for every
# shape, tile and batch (docs/design.md, "The numeric contract").
SEGMENT = {"gemm_simt": 1024, "column_sum": 4096}

CPP_TYPE = {"float64": "double", "float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}


@dataclass(frozen=True)
class GemmSimtConfig:
    """One variant of ``gemm_simt``: types, majors, tiles, pipeline depth and access widths (bytes)."""

    family: ClassVar[str] = "gemm_simt"
    dtype: str
    out_dtype: str
    bias_dtype: str
    k_major_a: bool  # A is read along K (else along M)
    k_major_b: bool  # B is read along K (else along N)
    block_m: int
    block_n: int
    block_k: int
    thread_m: int
    thread_n: int
    stages: int
    vec_a: int
    vec_b: int
    asynchronous: bool  # cp.async ring; else register prefetch (no cp.async, or a conversion on the way)
    segment: int = SEGMENT["gemm_simt"]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.block_m // self.thread_m) * (self.block_n // self.thread_n)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block: the ring of tiles, and the rows staged for the store (gemm_simt.cuh)."""
        ring = self.stages * (self.block_m + self.block_n) * self.block_k
        staged = self.block_m // self.thread_m * (self.block_n + 8)
        return (ring + staged) * ITEMSIZE[accumulator_dtype(self.dtype)]

    @property
    def min_blocks(self) -> int:
        """Blocks per SM that ptxas must leave registers for (second argument of __launch_bounds__).

        Two where 128 registers hold the variant without spills; K-major 8x8 fragments and prefetched tiles need more.
        """
        light = not (self.k_major_a or self.k_major_b) and min(self.vec_a, self.vec_b) == 16
        small = self.thread_m * self.thread_n <= 16 or light
        return 2 if self.asynchronous and small and self.thread_n <= 8 else 1

    @property
    def tile(self) -> str:
        """Short name, as in ``128x128x16/8x8``."""
        return f"{self.block_m}x{self.block_n}x{self.block_k}/{self.thread_m}x{self.thread_n}"

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.out_dtype],
            "Bias": CPP_TYPE[self.bias_dtype],
            "kMajorA": "Major::K" if self.k_major_a else "Major::MN",
            "kMajorB": "Major::K" if self.k_major_b else "Major::MN",
            "kBlockM": str(self.block_m),
            "kBlockN": str(self.block_n),
            "kBlockK": str(self.block_k),
            "kThreadM": str(self.thread_m),
            "kThreadN": str(self.thread_n),
            "kStages": str(self.stages),
            "kVecA": str(self.vec_a),
            "kVecB": str(self.vec_b),
            "kSegment": str(self.segment),
            "kAsync": str(self.asynchronous).lower(),
        }


@dataclass(frozen=True)
class ColumnSumConfig:
    """One variant of ``column_sum``."""

    family: ClassVar[str] = "column_sum"
    dtype: str
    out_dtype: str
    segment: int = SEGMENT["column_sum"]
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.out_dtype],
            "kSegment": str(self.segment),
        }


@dataclass(frozen=True)
class ActGradConfig:
    """One variant of ``act_grad``."""

    family: ClassVar[str] = "act_grad"
    dtype: str
    preact_dtype: str
    db_dtype: str
    segment: int = SEGMENT["column_sum"]
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "In": CPP_TYPE[self.dtype],
            "Preact": CPP_TYPE[self.preact_dtype],
            "Acc": CPP_TYPE[accumulator_dtype(self.dtype)],
            "Out": CPP_TYPE[self.db_dtype],
            "kSegment": str(self.segment),
        }


@dataclass(frozen=True)
class OrderedReduceConfig:
    """One variant of ``ordered_reduce``."""

    family: ClassVar[str] = "ordered_reduce"
    acc_dtype: str
    out_dtype: str
    bias_dtype: str
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {
            "Acc": CPP_TYPE[self.acc_dtype],
            "Out": CPP_TYPE[self.out_dtype],
            "Bias": CPP_TYPE[self.bias_dtype],
        }


@dataclass(frozen=True)
class StridedCopyConfig:
    """One variant of ``strided_copy``: the element size in bytes."""

    family: ClassVar[str] = "strided_copy"
    itemsize: int
    threads: ClassVar[int] = 256

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {"kItemBytes": str(self.itemsize)}


Config = GemmSimtConfig | ColumnSumConfig | ActGradConfig | OrderedReduceConfig | StridedCopyConfig


@dataclass(frozen=True)
class Tile:
    """Block and thread tile of ``gemm_simt`` and the most registers that any of its variants may use.

    ``registers`` is a budget: a test compiles every variant on every arch and fails when one needs more.
    """

    block_m: int
    block_n: int
    block_k: int
    thread_m: int
    thread_n: int
    registers: int


# Sources of the shapes: 8x16 thread tiles reach the highest FFMA share, 8x8 ones leave room for two blocks per SM, the
# small ones fill the chip in small layers.
SIMT_TILES: dict[str, tuple[Tile, ...]] = {
    "float32": (
        Tile(128, 256, 16, 8, 16, 255),
        Tile(128, 128, 16, 8, 8, 255),
        Tile(64, 128, 16, 8, 8, 255),
        Tile(128, 64, 16, 8, 8, 255),
        Tile(64, 64, 16, 4, 4, 192),
        Tile(32, 64, 16, 4, 4, 192),
        Tile(32, 32, 16, 4, 4, 192),
    ),
    "float64": (
        Tile(64, 64, 8, 4, 4, 192),
        Tile(32, 64, 8, 4, 4, 192),
        Tile(32, 32, 8, 4, 4, 192),
    ),
}


def vector_bytes(operand: Matrix, pitch: int) -> int:
    """The width of an access along the contiguous dimension: 16 bytes where address and pitch allow, else an item.

    ``pitch`` is the stride in elements of the other dimension. A matrix of one row or column is contiguous both ways,
    with two pitches: it is the one of the major that the kernel reads that counts.
    """
    item = ITEMSIZE[operand.dtype]
    return 16 if operand.align >= 16 and pitch * item % 16 == 0 else item


def supports(config: GemmSimtConfig, gemm: Gemm, spec: DeviceSpec) -> str | None:
    """Why ``config`` cannot run ``gemm`` on ``spec``, as a sentence; None when it can."""
    if gemm.precision not in (None, "ieee"):
        return f"gemm_simt computes in IEEE precision, not {gemm.precision}"
    if config.smem_bytes > spec.smem_per_block_optin:
        return (
            f"needs {config.smem_bytes} bytes of shared memory, a block of {spec.arch} has {spec.smem_per_block_optin}"
        )
    if config.asynchronous and spec.compute_capability < (8, 0):
        return f"cp.async needs sm_80, this is {spec.arch}"
    if config.thread_n == 16 and config.k_major_a and spec.compute_capability in ((8, 6), (8, 9)):
        return f"ptxas spills 8x16 thread tiles over a K-major A on {spec.arch}"
    k_major = config.k_major_a and config.k_major_b
    if config.thread_n == 16 and k_major:
        return "ptxas of CUDA 13.0 spills 8x16 thread tiles over two K-major operands"
    if config.tile == "128x64x16/8x8" and k_major and min(config.vec_a, config.vec_b) < 16:
        return "ptxas of CUDA 13.0 spills 128x64 tiles over two K-major operands with element-wise loads"
    if config.thread_n == 16 and min(config.vec_a, config.vec_b) < 16:
        return "8x16 thread tiles leave no registers for element-wise addresses"
    if not config.asynchronous and config.thread_m * config.thread_n > 16 and config.tile != "128x128x16/8x8":
        return "the prefetched tile would not fit the registers beside this thread tile"
    if config.threads * registers(config) > spec.regs_per_block:
        return f"needs {config.threads * registers(config)} registers, a block of {spec.arch} has {spec.regs_per_block}"
    return None


def registers(config: GemmSimtConfig) -> int:
    """The most registers per thread that a variant may use: its tile's budget, or what ``min_blocks`` leaves."""
    shape = (config.block_m, config.block_n, config.block_k, config.thread_m, config.thread_n)
    budget = 255
    for tile in SIMT_TILES[accumulator_dtype(config.dtype)]:
        if (tile.block_m, tile.block_n, tile.block_k, tile.thread_m, tile.thread_n) == shape:
            budget = tile.registers
    return min(budget, 65536 // (config.threads * config.min_blocks))


def candidates(gemm: Gemm, spec: DeviceSpec) -> Iterator[tuple[GemmSimtConfig, str | None]]:
    """Every variant for the operands as they lie, each with the reason why it is refused (None: legal)."""
    acc = accumulator_dtype(gemm.dtype)
    # 16-bit operands are converted on the way to shared memory, which cp.async cannot do.
    asynchronous = gemm.dtype == acc and spec.compute_capability >= (8, 0)
    for tile in SIMT_TILES[acc]:
        config = GemmSimtConfig(
            dtype=gemm.dtype,
            out_dtype=gemm.d.dtype,
            bias_dtype=gemm.bias.dtype if gemm.bias else gemm.dtype,
            k_major_a=gemm.a.row_major,
            k_major_b=gemm.b.col_major,
            block_m=tile.block_m,
            block_n=tile.block_n,
            block_k=tile.block_k,
            thread_m=tile.thread_m,
            thread_n=tile.thread_n,
            stages=3 if asynchronous else 2,
            vec_a=vector_bytes(gemm.a, gemm.a.row_stride if gemm.a.row_major else gemm.a.col_stride),
            vec_b=vector_bytes(gemm.b, gemm.b.col_stride if gemm.b.col_major else gemm.b.row_stride),
            asynchronous=asynchronous,
        )
        yield config, supports(config, gemm, spec)
