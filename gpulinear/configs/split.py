"""The variants of ``split_planes``: how float32 operands become planes of a narrower type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..problem import Gemm
from .base import GemmConfig, cpp_bool


@dataclass(frozen=True)
class Split:
    """The planes of a precision: the C++ policy, their dtype in memory, how many there are, and whether they must lie along
    K (ldmatrix and wgmma transpose 16-bit elements only). Of n planes, n (n + 1) / 2 pairs are multiplied
    (gpulinear.reference.products, kernels/common/plane_pairs.cuh)."""

    policy: str
    dtype: str
    planes: int
    along_k: bool


SPLITS = {
    "tf32": Split("Tf32Plane", "float32", 1, along_k=True),
    "bf16x6": Split("Bfloat16Planes", "bfloat16", 3, along_k=False),
    "tf32x3": Split("Tf32Planes", "float32", 2, along_k=True),
}


def split_of(gemm: Gemm, family: type[GemmConfig]) -> Split | None:
    """The planes that a family takes the operands of a problem as; None where it reads them as they are."""
    return SPLITS[gemm.precision] if gemm.precision in family.as_planes else None


@dataclass(frozen=True)
class SplitPlanesConfig:
    """One variant of ``split_planes``: the precision, the bytes of a load, and whether rows become columns on the way."""

    family: ClassVar[str] = "split_planes"
    precision: str
    vec: int
    transpose: bool = False
    threads: ClassVar[int] = 256
    elements_per_thread: ClassVar[int] = 16
    tile: ClassVar[int] = 64  # rows and columns of a block where it transposes

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {"Planes": SPLITS[self.precision].policy, "kVec": str(self.vec), "kTranspose": cpp_bool(self.transpose)}
