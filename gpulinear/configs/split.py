"""The variants of ``split_planes``: how float32 operands become planes of a narrower type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import cpp_bool


@dataclass(frozen=True)
class Split:
    """The planes of a precision: the C++ policy, their dtype in memory, how many there are, and whether they must lie along
    K (ldmatrix transposes 16-bit elements only). Of n planes, n (n + 1) / 2 pairs are multiplied
    (gpulinear.reference.products, kernels/gemm_mma/planes.cuh)."""

    policy: str
    dtype: str
    planes: int
    along_k: bool


SPLITS = {
    "bf16x6": Split("Bfloat16Planes", "bfloat16", 3, along_k=False),
    "tf32x3": Split("Tf32Planes", "float32", 2, along_k=True),
}


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
