"""The variants of ``gemm_mma``: tensor cores through mma.sync, on 16-bit operands, tf32, planes and float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from ..device import DeviceSpec
from ..problem import ITEMSIZE, Gemm, Matrix, accumulator_dtype
from .base import CPP_TYPE, PROMOTE, SEGMENT, GemmConfig, cpp_bool, pitch_a, pitch_b, segment_of
from .split import Split, split_of

# Sums between two staged rows beyond a warp's columns, and staged rows of a warp (kernels/gemm_mma/store.cuh).
_STAGED_PAD = 8
_STAGED_ROWS = 8


@dataclass(frozen=True)
class MmaTile:
    """Block and warp tile of ``gemm_mma``, the blocks per SM that its registers shall allow, and the depth of its cp.async
    ring where it is not the device's."""

    block_m: int
    block_n: int
    warp_m: int
    warp_n: int
    resident: int
    stages: int | None = None


# 64x64 warp tiles read the least shared memory per multiplication; the small ones fill the chip in small layers. The last
# one is for few tokens, where time is what reading the weight takes: eleven stages of it in flight are 44 KB per block.
MMA_TILES = (
    MmaTile(128, 256, 64, 64, 1),
    MmaTile(128, 128, 64, 64, 2),
    MmaTile(64, 128, 64, 32, 3),
    MmaTile(128, 64, 64, 32, 3),
    MmaTile(64, 64, 32, 32, 4),
    MmaTile(16, 64, 16, 32, 3, stages=12),
)

# The same for operands in planes: a chain, the sum that it is promoted to, and fragments of all planes leave registers for
# half as many outputs of a warp.
PLANE_TILES = (
    MmaTile(128, 128, 32, 64, 1),
    MmaTile(128, 64, 64, 32, 2),
    MmaTile(16, 64, 16, 32, 3),  # few tokens
    MmaTile(64, 64, 32, 32, 3),
)

# The same for float64, whose sums take two registers each: 64x32 warp tiles hold 128 of them. A matrix instruction takes 16
# times as long as of 16 bits (sm_80: 32 times), so fragments are cheap at any size; 128x128 is for what the L2 gives.
FLOAT64_TILES = (
    MmaTile(128, 128, 64, 32, 1),
    MmaTile(128, 64, 64, 32, 2),
    MmaTile(64, 64, 32, 32, 3),
    MmaTile(32, 32, 16, 32, 8),
    MmaTile(16, 64, 16, 32, 3, stages=12),
)

# Multiply-adds of float64 per SM and clock, on the chips whose tensor cores beat their CUDA cores at it (twice): the
# datasheets' 19.5 and 67 TFLOP/s.
FLOAT64_CORES = {(8, 0): 64, (9, 0): 128}

# Dense multiply-adds of 16-bit operands with float32 sums per SM and clock, by (major, minor): the peak of the preset's
# datasheet over its SMs and clock. mma.sync reaches 65 % of it on sm_90 and 30 % on sm_100, whose peaks need wgmma and
# tcgen05 (docs/design.md, "Kernels"). Of sm_75 the preset is a T4: GeForce Turing does half of it with float32 sums.
_MACS_PER_CLOCK = {
    (7, 5): 512,
    (8, 0): 1024,
    (8, 6): 256,
    (8, 9): 256,
    (9, 0): 0.65 * 2048,
    (10, 0): 0.30 * 4096,
    (12, 0): 256,
}

# Share of the tensor pipe that the main loop keeps busy, by outputs per warp: each step loads warp_m + warp_n rows of
# fragments for warp_m * warp_n outputs.
_SHARE = {64 * 64: 0.90, 64 * 32: 0.75, 32 * 32: 0.55, 16 * 32: 0.35}
# An instruction of float64 is so long that the latency of loads hides behind few of them.
_FLOAT64_SHARE = {64 * 32: 0.90, 32 * 32: 0.85, 16 * 32: 0.70}
# With planes a step of fragments serves several products.
_PLANES_SHARE = {64 * 32: 0.90, 32 * 32: 0.75, 16 * 32: 0.50}


def copy_bytes(operand: Matrix, pitch: int, width: int) -> int:
    """The widest access, at most 16 bytes, that address and pitch allow and of which a row holds a whole number.

    ``pitch`` and ``width`` (what exists of a row) in elements.
    """
    item = ITEMSIZE[operand.dtype]
    bits = operand.align | pitch * item | width * item | 16
    return bits & -bits


# What to do instead, in the precisions that only tensor cores have.
_OTHERWISE = {name: "; precision='ieee' runs everywhere" for name in ("tf32", "tf32x3", "bf16x6")}


@dataclass(frozen=True, kw_only=True)
class GemmMmaConfig(GemmConfig):
    """One variant of ``gemm_mma``: types, majors, tiles, pipeline depth and access widths (bytes)."""

    family: ClassVar[str] = "gemm_mma"
    as_planes: ClassVar[tuple[str, ...]] = ("tf32x3", "bf16x6")  # to tf32 it rounds as it loads fragments
    segment: int = SEGMENT["gemm_mma"]
    warp_m: int
    warp_n: int
    resident: int  # blocks per SM that registers are left for
    asynchronous: bool = True  # cp.async ring and m16n8k16 (sm_80); else register prefetch and m16n8k8 (sm_75)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return (self.block_m // self.warp_m) * (self.block_n // self.warp_n)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block: the ring of k-tiles, and beside it, or without cp.async in it, the rows that each
        warp stages (gemm_mma.cuh)."""
        ring = self.stages * self.planes * (self.block_m + self.block_n) * self.block_k * ITEMSIZE[self.dtype]
        sums = _STAGED_ROWS * (self.warp_n + _STAGED_PAD) * ITEMSIZE[accumulator_dtype(self.dtype)]
        staged = self.warps * sums
        return ring + staged if self.asynchronous else max(ring, staged)

    @property
    def min_blocks(self) -> int:
        """Blocks per SM that ptxas must leave registers for: one less where narrow copies need them."""
        return self.resident - (1 if self.narrow and self.resident > 1 else 0)

    @property
    def narrow(self) -> bool:
        """Whether an operand is copied in pieces of less than 16 bytes."""
        return min(self.vec_a, self.vec_b) < 16

    @property
    def registers(self) -> int:
        """What ``min_blocks`` leaves."""
        return min(255, 65536 // (self.threads * self.min_blocks) // 8 * 8)

    @property
    def tile(self) -> str:
        """Short name, as in ``128x128x32/64x64``: block and warp tile."""
        return f"{self.block_m}x{self.block_n}x{self.block_k}/{self.warp_m}x{self.warp_n}"

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return super().cpp() | {
            "kBlockK": str(self.block_k),
            "kWarpM": str(self.warp_m),
            "kWarpN": str(self.warp_n),
            "kVecA": str(self.vec_a),
            "kVecB": str(self.vec_b),
            "kPlanes": str(self.planes),
            "kPromote": str(self.promote),
            "kAsync": cpp_bool(self.asynchronous),
            "kMmaK": str(32 // ITEMSIZE[self.dtype] if self.asynchronous else 8),
            "kBiasGrad": cpp_bool(self.db_dtype is not None),
            "Db": CPP_TYPE[self.db_dtype or self.out_dtype],
        }

    def supports(self, gemm: Gemm, spec: DeviceSpec) -> str | None:
        """Why the variant cannot run ``gemm`` on ``spec``, as a sentence; None when it can."""
        if gemm.dtype == "float64" and spec.compute_capability not in FLOAT64_CORES:
            return f"float64 on tensor cores needs sm_80 or sm_90, this is {spec.arch}"
        turing = spec.compute_capability < (8, 0)
        if turing and gemm.dtype != "float16":
            otherwise = _OTHERWISE.get(gemm.precision or "", "")
            return f"tensor cores multiply only float16 before sm_80, this is {spec.arch}{otherwise}"
        if turing and self.asynchronous:
            return f"m16n8k16 and cp.async need sm_80, this is {spec.arch}"
        if not turing and not self.asynchronous:
            return f"m16n8k8 may add up to other bits than m16n8k16, which {spec.arch} has"
        split = split_of(gemm, type(self))
        if split:
            kinds: tuple[str, ...] = (split.dtype,)
        else:
            kinds = ("float32",) if gemm.precision == "tf32" else ("float16", "bfloat16", "float64")
        if gemm.dtype not in kinds:
            otherwise = _OTHERWISE.get(gemm.precision or "", "")
            return f"gemm_mma multiplies {' and '.join(kinds)}, not {gemm.dtype}{otherwise}"
        if self.block_m == 16 and not self.k_major_a and gemm.dtype != "float64":
            return "tiles of 16 rows are for a K-major A: few tokens"
        if split and split.along_k and not (self.k_major_a and self.k_major_b):
            return f"planes of {gemm.precision} lie along K: ldmatrix transposes 16-bit elements only"
        if self.narrow and self.warp_m * self.warp_n == 64 * 64:
            return "64x64 warp tiles leave no registers for copies of less than 16 bytes"
        return self.limits(spec)

    def db_refused(self, gemm: Gemm) -> str | None:
        """Why the variant does not sum ``gemm.db`` on its way through A, as a sentence; None when it does."""
        if self.planes > 1:
            return f"dy comes in planes of {gemm.precision}"
        if gemm.dtype == "float64":
            return f"its segments are of {self.segment} rows, not those of column sums"
        if self.k_major_a:
            return "dy is read along tokens, and the threads that sum it take rows of it"
        if not self.asynchronous and self.warp_m * self.warp_n == 64 * 64:
            return "beside a prefetched tile, 64x64 warp tiles leave no registers for it"
        return None

    def macs_per_clock(self, spec: DeviceSpec, warps: float) -> float:
        """The tensor pipe's peak times the main loop's share. Four schedulers need a warp each, and three hide latency where
        an instruction is short (the data-centre chips)."""
        if self.dtype == "float64":
            cores = FLOAT64_CORES.get(spec.compute_capability, 2)
            return cores * _FLOAT64_SHARE[self.warp_m * self.warp_n] * min(1.0, (4 + warps) / 8)
        peak = _MACS_PER_CLOCK.get(spec.compute_capability, 256)
        wanted = 12 if peak >= 1024 else 8
        if self.dtype == "float32":  # tf32
            peak /= 2
        if self.planes > 1:  # long steps: two warps hide the latency between them
            return peak / self.pairs * _PLANES_SHARE[self.warp_m * self.warp_n] * min(1.0, warps / 4)
        return peak * _SHARE[self.warp_m * self.warp_n] * min(1.0, (4 + warps) / wanted)

    @classmethod
    def candidates(cls, gemm: Gemm, spec: DeviceSpec) -> Iterator[GemmMmaConfig]:
        """Every tile, for the operands as they lie."""
        asynchronous = spec.compute_capability >= (8, 0)
        deep = 4 if spec.smem_per_sm > 128 * 1024 else 3
        split = split_of(gemm, cls)
        plain = FLOAT64_TILES if gemm.dtype == "float64" else MMA_TILES
        for tile in PLANE_TILES if split else plain:
            # sm_120 is fastest with two long stages (docs/design.md, "Kernels"), which 128x256 has no room for.
            two = spec.compute_capability >= (12, 0) and gemm.dtype != "float32"
            long = two and tile.stages is None and tile.block_m * tile.block_n < 128 * 256
            config = cls(
                dtype=gemm.dtype,
                out_dtype=gemm.d.dtype,
                bias_dtype=gemm.bias.dtype if gemm.bias else gemm.dtype,
                k_major_a=gemm.a.row_major,
                k_major_b=gemm.b.col_major,
                block_m=tile.block_m,
                block_n=tile.block_n,
                block_k=(128 if long else 64) // ITEMSIZE[gemm.dtype],
                warp_m=tile.warp_m,
                warp_n=tile.warp_n,
                resident=tile.resident,
                stages=(tile.stages or (2 if two else deep)) if asynchronous else 2,
                asynchronous=asynchronous,
                segment=segment_of(cls.family, gemm.dtype),
                vec_a=copy_bytes(gemm.a, pitch_a(gemm), gemm.k if gemm.a.row_major else gemm.m),
                vec_b=copy_bytes(gemm.b, pitch_b(gemm), gemm.k if gemm.b.col_major else gemm.n),
            )
            yield _over_planes(config, split, spec) if split else config


def _over_planes(config: GemmMmaConfig, split: Split, spec: DeviceSpec) -> GemmMmaConfig:
    """The variant over planes, whose rows are padded with zeros to whole 16-byte accesses: 64 bytes along K in a k-tile,
    and as many stages, up to four, as fit beside the other blocks of an SM."""
    depth = 64 // ITEMSIZE[split.dtype]
    single = replace(config, planes=split.planes, promote=PROMOTE, block_k=depth, stages=1, vec_a=16, vec_b=16)
    staged = 2 * single.smem_bytes - replace(single, stages=2).smem_bytes
    room = min(spec.smem_per_sm // config.resident - 1024, spec.smem_per_block_optin) - staged
    stages = max(2, min(4, room // (single.smem_bytes - staged)))
    return replace(single, stages=stages)
