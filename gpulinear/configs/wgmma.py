"""The variants of ``gemm_wgmma``: Hopper's tensor cores, fed by TMA, 16-bit operands and planes of float32 ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from ..device import DeviceSpec
from ..problem import ITEMSIZE, Gemm
from ..tensormap import major_of, rows_of
from .base import CPP_TYPE, PROMOTE, SEGMENT, GemmConfig, cpp_bool, cpp_major
from .split import split_of

_ROW = 128  # bytes of K in a k-tile: a row of the swizzle
_STAGE_BYTES = 16384  # shared memory of a consumer's epilogue (kernels/wgmma/epilogue.cuh)
_MOST_TOTALS = 104  # per thread in registers; a larger tile keeps 64 there (kernels/gemm_wgmma.cuh)
_MOST_STAGES = 12
_PEAK = 2048  # dense multiply-adds of 16-bit operands per SM and clock: 989 TFLOP/s over 132 SMs at 1.83 GHz; tf32 half


@dataclass(frozen=True)
class WgmmaTile:
    """Block tile of ``gemm_wgmma``, the CTAs that share a tile of B, and the share of the peak its main loop reaches.

    ``swapped``: the columns of D, which are rows of the weight, lie on wgmma's 64-row side, for few tokens. The shares
    only rank variants; they are the ratios that kernels of this design reached elsewhere (docs/hopper.md).
    """

    block_m: int
    block_n: int
    cluster: int
    share: float
    swapped: bool = False

    @property
    def name(self) -> str:
        """Over 16-bit operands, as in ``128x256x64``, ``128x256x64/c2`` with clusters of two, ``16x64x64/swap``."""
        return self.name_at(_ROW // 2)

    def name_at(self, depth: int) -> str:
        """The name with k-tiles of ``depth`` elements."""
        form = f"/c{self.cluster}" if self.cluster > 1 else "/swap" if self.swapped else ""
        return f"{self.block_m}x{self.block_n}x{depth}{form}"


# Clusters rank below the same tile alone until a GPU says otherwise: elsewhere they gain 4 %, but the arrival at the other
# CTA's barrier is compiled to a fence of the whole GPU per k-tile (docs/hopper.md), whose cost nobody has measured here.
WGMMA_TILES = (
    WgmmaTile(128, 256, 1, 0.83),
    WgmmaTile(128, 256, 2, 0.82),
    WgmmaTile(128, 208, 1, 0.80),
    WgmmaTile(128, 192, 1, 0.80),
    WgmmaTile(128, 192, 2, 0.79),
    WgmmaTile(128, 128, 1, 0.70),
    WgmmaTile(64, 256, 1, 0.62),
    WgmmaTile(64, 128, 1, 0.50),
    WgmmaTile(64, 64, 1, 0.35),
    # Of tiles that memory makes equally fast the first is taken: the one that wastes the least.
    WgmmaTile(16, 64, 1, 0.125, swapped=True),
    WgmmaTile(32, 64, 1, 0.25, swapped=True),
    WgmmaTile(64, 64, 1, 0.35, swapped=True),
)

# The same where operands are several planes: a chain and the sum that it is promoted to, and with more than a segment the
# total, leave registers for 128 columns. One consumer alone does not hide its promotions (docs/hopper.md).
PLANE_TILES = (
    WgmmaTile(128, 128, 1, 0.80),
    WgmmaTile(64, 128, 1, 0.70),
    WgmmaTile(64, 64, 1, 0.45),
    WgmmaTile(16, 64, 1, 0.125, swapped=True),
    WgmmaTile(32, 64, 1, 0.25, swapped=True),
    WgmmaTile(64, 64, 1, 0.45, swapped=True),
)


@dataclass(frozen=True, kw_only=True)
class GemmWgmmaConfig(GemmConfig):
    """One variant of ``gemm_wgmma``: types, majors, tile, cluster, and how sums and results are kept."""

    family: ClassVar[str] = "gemm_wgmma"
    as_planes: ClassVar[tuple[str, ...]] = ("tf32", "tf32x3", "bf16x6")  # wgmma would truncate what tf32 must round
    persistent: ClassVar[bool] = True
    segment: int = SEGMENT["gemm_wgmma"]
    cluster: int  # CTAs, neighbours along M, that load their tile of B once
    running_total: bool  # an item of work is all of K; else one segment of it
    tma_store: bool  # D and preact leave through shared memory
    swapped: bool  # the kernel computes the transpose of D: its A is B transposed, its B is A transposed
    beside_db: bool = False  # in one launch with a problem whose db is summed

    @property
    def rows(self) -> int:
        """Rows of the tile as the kernel sees it."""
        return self.block_n if self.swapped else self.block_m

    @property
    def cols(self) -> int:
        """Columns of the tile as the kernel sees it."""
        return self.block_m if self.swapped else self.block_n

    @property
    def majors(self) -> tuple[bool, bool]:
        """Whether the kernel's A and B are read along K."""
        return (self.k_major_b, self.k_major_a) if self.swapped else (self.k_major_a, self.k_major_b)

    @property
    def blocks_per_cluster(self) -> int:
        """Blocks of a cluster, neighbours along M."""
        return self.cluster

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply, 64 rows each."""
        return self.rows // 64

    @property
    def threads(self) -> int:
        """One warpgroup that loads, and the consumers."""
        return 128 * (1 + self.consumers)

    @property
    def totals_in_smem(self) -> int:
        """Running totals of a thread that its registers do not hold."""
        totals = self.cols // 2
        return totals - 64 if self.running_total and totals > _MOST_TOTALS else 0

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block: ring, epilogue or totals of each consumer, barriers (gemm_wgmma.cuh)."""
        ring = self.stages * self.planes * (self.block_m + self.block_n) * _ROW
        return ring + self.consumers * max(_STAGE_BYTES, 128 * 4 * self.totals_in_smem) + 16 * self.stages

    @property
    def min_blocks(self) -> int:
        """One block takes the SM."""
        return 1

    @property
    def registers(self) -> int:
        """What a block of all threads may start with; setmaxnreg then gives the producer's to two consumers."""
        return min(255, 65536 // self.threads // 8 * 8)

    @property
    def tile(self) -> str:
        """The name of its tile (``WgmmaTile.name``)."""
        return WgmmaTile(self.block_m, self.block_n, self.cluster, 0.0, self.swapped).name_at(self.block_k)

    @property
    def box_a(self) -> tuple[int, int]:
        """Rows and columns of a box of the kernel's A as TMA copies it."""
        return (self.rows, self.block_k) if self.majors[0] else (self.block_k, 64)

    @property
    def box_b(self) -> tuple[int, int]:
        """Rows and columns of a box of the kernel's B: the CTAs of a cluster copy equal parts."""
        if self.majors[1]:
            return self.cols // self.cluster, self.block_k
        return self.block_k // self.cluster, 64

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return super().cpp() | {
            # The matrices as the kernel sees them.
            "kMajorA": cpp_major(self.majors[0]),
            "kMajorB": cpp_major(self.majors[1]),
            "kBlockM": str(self.rows),
            "kBlockN": str(self.cols),
            "kConsumers": str(self.consumers),
            "kCluster": str(self.cluster),
            "kRunningTotal": cpp_bool(self.running_total),
            "kTmaStore": cpp_bool(self.tma_store),
            "kSwapped": cpp_bool(self.swapped),
            "kBiasGrad": cpp_bool(self.db_dtype is not None),
            "kBiasGradWarps": str(self.consumers if self.beside_db or self.db_dtype is not None else 0),
            "Db": CPP_TYPE[self.db_dtype or self.out_dtype],
            "kPlanes": str(self.planes),
            "kPromote": str(self.promote),
        }

    def supports(self, gemm: Gemm, spec: DeviceSpec) -> str | None:
        """Why the variant cannot run ``gemm`` on ``spec``, as a sentence; None when it can."""
        split = split_of(gemm, type(self))
        kinds = (split.dtype,) if split else ("float16", "bfloat16")
        if gemm.dtype not in kinds:
            return f"gemm_wgmma multiplies {' and '.join(kinds)}, not {gemm.dtype}"
        if spec.arch != "sm_90a":
            return f"wgmma needs sm_90a, this is {spec.arch}"
        if major_of(gemm.a, rows_first=True) is None or major_of(gemm.b, rows_first=False) is None:
            return "TMA needs operands whose base and row pitch are multiples of 16 bytes"
        if split and split.along_k and not (self.k_major_a and self.k_major_b):
            return f"planes of {gemm.precision} lie along K: wgmma transposes 16-bit elements only"
        if not self.majors[1] and self.cols % 64:
            return f"boxes of an N-major B have 64 columns, {self.cols} is no multiple of that"
        if self.cluster > 1 and gemm.m <= self.block_m:
            return "a cluster shares B between rows of tiles, and there is one"
        return self.limits(spec)

    def db_refused(self, gemm: Gemm) -> str | None:
        """Why the variant does not sum ``gemm.db`` on its way through A, as a sentence; None when it does."""
        if split_of(gemm, type(self)):
            return f"dy comes in planes of {gemm.precision}"
        if self.swapped:
            return "in swapped tiles dy is on the side of N"
        if self.k_major_a:
            return "dy is read along tokens, and the warps that sum it take rows of it"
        return None

    def macs_per_clock(self, spec: DeviceSpec, warps: float) -> float:
        """The share of the peak that this tile's main loop reaches."""
        tiles = PLANE_TILES if self.planes > 1 else WGMMA_TILES
        shares = {(t.block_m, t.block_n, t.cluster, t.swapped): t.share for t in tiles}
        peak = _PEAK / 2 if self.dtype == "float32" else _PEAK
        return peak / self.pairs * shares[self.block_m, self.block_n, self.cluster, self.swapped]

    def split_choices(self, segments: int, splits: list[int]) -> list[int]:
        """All of K in one item of work, or each segment in its own."""
        return sorted({1 if count == 1 else segments for count in splits})

    def for_work(self, segments: int, splits: int, spec: DeviceSpec) -> GemmWgmmaConfig:
        """A running total only where a block meets more than one segment; as many stages as fit."""
        config = replace(self, running_total=splits == 1 and segments > 1, stages=1)
        slot = self.planes * (self.block_m + self.block_n) * _ROW + 16
        free = spec.smem_per_block_optin - (config.smem_bytes - slot)
        return replace(config, stages=min(_MOST_STAGES, free // slot))

    def joins(self, other: GemmConfig) -> str | None:
        """Both problems go through one ring."""
        assert isinstance(other, GemmWgmmaConfig)
        one, two = ((c.rows, c.cols, c.planes, c.cluster) for c in (self, other))
        return None if one == two else "one ring has slots of one size, for tiles of one size"

    def beside(self, other: GemmConfig) -> GemmWgmmaConfig:
        """As many stages as fit beside the totals of either; warps that sum db walk through both."""
        return replace(self, stages=min(self.stages, other.stages), beside_db=other.db_dtype is not None)

    @classmethod
    def candidates(cls, gemm: Gemm, spec: DeviceSpec) -> Iterator[GemmWgmmaConfig]:
        """Every tile, for the operands as they lie."""
        a, b = major_of(gemm.a, rows_first=True), major_of(gemm.b, rows_first=False)
        outputs = [out for out in (gemm.d, gemm.preact) if out is not None]
        stores = all(rows_of(out) is not None for out in outputs)
        split = split_of(gemm, cls)
        planes = split.planes if split else 1
        depth = _ROW // ITEMSIZE[gemm.dtype]
        for tile in PLANE_TILES if planes > 1 else WGMMA_TILES:
            yield cls(
                dtype=gemm.dtype,
                out_dtype=gemm.d.dtype,
                bias_dtype=gemm.bias.dtype if gemm.bias else gemm.dtype,
                k_major_a=a is None or a[0],
                k_major_b=b is not None and not b[0],
                block_m=tile.block_m,
                block_n=tile.block_n,
                block_k=depth,
                # The fewest: a slot is released once the next one of its chain has been issued.
                stages=min(2, PROMOTE // depth) if planes > 1 else 2,
                vec_a=16,
                vec_b=16,
                cluster=tile.cluster,
                running_total=False,
                tma_store=stores and tile.block_n % 64 == 0 and not tile.swapped,
                swapped=tile.swapped,
                planes=planes,
                promote=PROMOTE if planes > 1 else 0,
            )
