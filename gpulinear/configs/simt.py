"""The variants of ``gemm_simt``, which of them are legal, and what they may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..device import DeviceSpec
from ..problem import ITEMSIZE, Gemm, accumulator_dtype
from .base import SEGMENT, GemmConfig, cpp_bool, pitch_a, pitch_b, vector_bytes


@dataclass(frozen=True)
class Tile:
    """Block and thread tile of ``gemm_simt`` and the most registers that any of its variants may use.

    ``registers`` is a budget: a test compiles every variant on every arch and fails when one needs more. ``stages`` is
    the depth of the cp.async ring.
    """

    block_m: int
    block_n: int
    block_k: int
    thread_m: int
    thread_n: int
    registers: int
    stages: int = 3


# Sources of the shapes: 8x16 thread tiles reach the highest FFMA share, 8x8 ones leave room for two blocks per SM, the
# small ones fill the chip in small layers. The last two are for few tokens, where time is what reading the weight takes:
# their rings are deep, because a block per segment and 32 or 64 outputs leaves 2 to 4 blocks per SM for a 4096 x 4096
# layer, and memory wants some 40 KB per SM in flight (Little's law: 4.8 TB/s x 1 us / 132 SMs).
SIMT_TILES: dict[str, tuple[Tile, ...]] = {
    "float32": (
        Tile(128, 256, 16, 8, 16, 255),
        Tile(128, 128, 16, 8, 8, 255),
        Tile(64, 128, 16, 8, 8, 255),
        Tile(128, 64, 16, 8, 8, 255),
        Tile(64, 64, 16, 4, 4, 192),
        Tile(32, 64, 16, 4, 4, 192),
        Tile(32, 32, 16, 4, 4, 192),
        Tile(16, 32, 16, 4, 4, 255, 6),
        Tile(4, 64, 16, 1, 4, 255, 6),
    ),
    "float64": (
        Tile(64, 64, 8, 4, 4, 192),
        Tile(32, 64, 8, 4, 4, 192),
        Tile(32, 32, 8, 4, 4, 192),
    ),
}

# FMA issue slots per SM and clock by (major, minor), float32 then float64: the arithmetic-throughput table of the
# CUDA C++ Programming Guide.
_FMA_PER_CLOCK = {
    (7, 5): (64, 2),
    (8, 0): (64, 32),
    (8, 6): (128, 2),
    (8, 9): (128, 2),
    (9, 0): (128, 64),
    (10, 0): (128, 64),
    (12, 0): (128, 2),
}

# Share of issue slots that the main loop gives to FMA, by outputs per thread: each k step loads thread_m + thread_n
# values and does thread_m * thread_n FMAs.
_FMA_SHARE = {128: 0.90, 64: 0.85, 16: 0.60, 4: 0.40}


@dataclass(frozen=True, kw_only=True)
class GemmSimtConfig(GemmConfig):
    """One variant of ``gemm_simt``: types, majors, tiles, pipeline depth and access widths (bytes)."""

    family: ClassVar[str] = "gemm_simt"
    segment: int = SEGMENT["gemm_simt"]
    thread_m: int
    thread_n: int
    asynchronous: bool  # cp.async ring; else register prefetch (no cp.async, or a conversion on the way)

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
        """Two where 128 registers hold the variant without spills; K-major 8x8 fragments and prefetched tiles need more."""
        light = not (self.k_major_a or self.k_major_b) and min(self.vec_a, self.vec_b) == 16
        small = self.thread_m * self.thread_n <= 16 or light
        return 2 if self.asynchronous and small and self.thread_n <= 8 else 1

    @property
    def registers(self) -> int:
        """The tile's budget, or what ``min_blocks`` leaves."""
        shape = (self.block_m, self.block_n, self.block_k, self.thread_m, self.thread_n)
        budget = 255
        for tile in SIMT_TILES[accumulator_dtype(self.dtype)]:
            if (tile.block_m, tile.block_n, tile.block_k, tile.thread_m, tile.thread_n) == shape:
                budget = tile.registers
        return min(budget, 65536 // (self.threads * self.min_blocks))

    @property
    def tile(self) -> str:
        """Short name, as in ``128x128x16/8x8``."""
        return f"{self.block_m}x{self.block_n}x{self.block_k}/{self.thread_m}x{self.thread_n}"

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return super().cpp() | {
            "kBlockK": str(self.block_k),
            "kThreadM": str(self.thread_m),
            "kThreadN": str(self.thread_n),
            "kVecA": str(self.vec_a),
            "kVecB": str(self.vec_b),
            "kAsync": cpp_bool(self.asynchronous),
        }

    def supports(self, gemm: Gemm, spec: DeviceSpec) -> str | None:
        """Why the variant cannot run ``gemm`` on ``spec``, as a sentence; None when it can."""
        if gemm.precision not in (None, "ieee"):
            return f"gemm_simt computes in IEEE precision, not {gemm.precision}"
        if self.asynchronous and spec.compute_capability < (8, 0):
            return f"cp.async needs sm_80, this is {spec.arch}"
        if self.thread_m == 1 and not (self.k_major_a and self.asynchronous):
            return "thread tiles of one row are for a K-major A that cp.async can copy: few tokens"
        if self.thread_n == 16 and self.k_major_a and spec.compute_capability in ((8, 6), (8, 9)):
            return f"ptxas spills 8x16 thread tiles over a K-major A on {spec.arch}"
        k_major = self.k_major_a and self.k_major_b
        if self.thread_n == 16 and self.k_major_b:
            return "ptxas of CUDA 13.0 spills 8x16 thread tiles over a K-major B"
        if self.tile == "128x64x16/8x8" and k_major and min(self.vec_a, self.vec_b) < 16:
            return "ptxas of CUDA 13.0 spills 128x64 tiles over two K-major operands with element-wise loads"
        if self.thread_n == 16 and min(self.vec_a, self.vec_b) < 16:
            return "8x16 thread tiles leave no registers for element-wise addresses"
        if not self.asynchronous and self.thread_m * self.thread_n > 16 and self.tile != "128x128x16/8x8":
            return "the prefetched tile would not fit the registers beside this thread tile"
        return self.limits(spec)

    def macs_per_clock(self, spec: DeviceSpec, warps: float) -> float:
        """FMA slots times the main loop's share; an SM with less than 8 warps cannot hide latency."""
        peak = _FMA_PER_CLOCK.get(spec.compute_capability, (128, 2))[accumulator_dtype(self.dtype) == "float64"]
        return peak * _FMA_SHARE.get(self.thread_m * self.thread_n, 0.6) * min(1.0, warps / 8)

    @classmethod
    def candidates(cls, gemm: Gemm, spec: DeviceSpec) -> Iterator[GemmSimtConfig]:
        """Every tile, for the operands as they lie."""
        acc = accumulator_dtype(gemm.dtype)
        # 16-bit operands are converted on the way to shared memory, which cp.async cannot do.
        asynchronous = gemm.dtype == acc and spec.compute_capability >= (8, 0)
        for tile in SIMT_TILES[acc]:
            yield cls(
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
                stages=tile.stages if asynchronous else 2,
                vec_a=vector_bytes(gemm.a, pitch_a(gemm)),
                vec_b=vector_bytes(gemm.b, pitch_b(gemm)),
                asynchronous=asynchronous,
            )
