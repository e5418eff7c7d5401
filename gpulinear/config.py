"""Which kernel families there are, which one a problem belongs to, and its candidates.

A config is frozen and hashable: it is the template argument of the generated source and part of the cache key. The
variants of each family are in ``configs/``; ``GemmConfig.supports`` is the only statement of what is legal.
"""

from __future__ import annotations

from collections.abc import Iterator

from .configs.base import PROMOTE, SEGMENT, GemmConfig, segment_of, vector_bytes
from .configs.joint import JointConfig
from .configs.mma import FLOAT64_CORES, MMA_TILES, GemmMmaConfig
from .configs.simt import SIMT_TILES, GemmSimtConfig
from .configs.small import ActGradConfig, ColumnSumConfig, OrderedReduceConfig, StridedCopyConfig
from .configs.split import SPLITS, SplitPlanesConfig
from .configs.wgmma import WGMMA_TILES, GemmWgmmaConfig
from .device import DeviceSpec
from .errors import BackendError
from .problem import ITEMSIZE, Gemm
from .tensormap import ALIGN

__all__ = [
    "FAMILIES",
    "MMA_TILES",
    "NUMERICS_VERSION",
    "PROMOTE",
    "SEGMENT",
    "SIMT_TILES",
    "SPLITS",
    "WGMMA_TILES",
    "ActGradConfig",
    "ColumnSumConfig",
    "Config",
    "GemmConfig",
    "GemmMmaConfig",
    "GemmSimtConfig",
    "GemmWgmmaConfig",
    "JointConfig",
    "OrderedReduceConfig",
    "SplitPlanesConfig",
    "StridedCopyConfig",
    "candidates",
    "family_of",
    "segment_of",
    "vector_bytes",
]

# Version of the numbers: raised when a change of kernel or order of reduction changes a result bit.
NUMERICS_VERSION = 3

Config = (
    GemmConfig
    | JointConfig
    | ColumnSumConfig
    | ActGradConfig
    | OrderedReduceConfig
    | SplitPlanesConfig
    | StridedCopyConfig
)

FAMILIES: dict[str, type[GemmConfig]] = {
    config.family: config for config in (GemmSimtConfig, GemmMmaConfig, GemmWgmmaConfig)
}


def family_of(gemm: Gemm, spec: DeviceSpec) -> str:
    """The family whose bits are the result of ``gemm`` on ``spec`` (docs/design.md, "The numeric contract").

    A function of op, dtype, precision, arch and of whether the weight's own contiguous dimensions are multiples of 16
    bytes; never of tokens, a pointer, a stride or, for linear, the number of output features.
    """
    if gemm.precision not in (None, "ieee"):
        # Planes are aligned whatever the operands are. gemm_mma also where it cannot run: its refusal says why.
        return "gemm_wgmma" if spec.arch == "sm_90a" else "gemm_mma"
    if gemm.dtype in ("float16", "bfloat16") and spec.compute_capability >= (8, 0):
        return "gemm_wgmma" if spec.arch == "sm_90a" and _weight_is_aligned(gemm) else "gemm_mma"
    if gemm.dtype == "float64" and spec.compute_capability in FLOAT64_CORES:
        return "gemm_mma"
    return "gemm_mma" if gemm.dtype == "float16" else "gemm_simt"  # sm_75 has tensor cores for float16 only


def _weight_is_aligned(gemm: Gemm) -> bool:
    """Whether the weight's contiguous dimensions are multiples of 16 bytes, so that TMA can address it wherever it lies:
    in for linear, which must not depend on out; out and in for the gradients."""
    sizes = {"linear": (gemm.k,), "dgrad": (gemm.k, gemm.n), "wgrad": (gemm.m, gemm.n)}[gemm.op]
    return all(size * ITEMSIZE[gemm.dtype] % ALIGN == 0 for size in sizes)


def candidates(gemm: Gemm, spec: DeviceSpec, family: str | None = None) -> Iterator[tuple[GemmConfig, str | None]]:
    """Every variant for the operands as they lie, each with the reason why it is refused (None: legal).

    ``family`` names another family than ``family_of``; the bits are that family's. BackendError for an unknown one.
    """
    name = family or family_of(gemm, spec)
    if name not in FAMILIES:
        raise BackendError(f"the GEMM families are {', '.join(FAMILIES)}, got {name!r}")
    for config in FAMILIES[name].candidates(gemm, spec):
        yield config, config.supports(gemm, spec)
