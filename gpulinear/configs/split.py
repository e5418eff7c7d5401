"""The variants of ``split_planes``: how float32 operands become planes of a narrower type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Split:
    """The planes of a precision: the C++ policy, their dtype in memory, and how many there are. Of n planes, n (n + 1) / 2
    pairs are multiplied (gpulinear.reference.products, kernels/gemm_mma/planes.cuh)."""

    policy: str
    dtype: str
    planes: int


SPLITS = {
    "bf16x6": Split("Bfloat16Planes", "bfloat16", 3),
    "tf32x3": Split("Tf32Planes", "float32", 2),
}


@dataclass(frozen=True)
class SplitPlanesConfig:
    """One variant of ``split_planes``: the precision, and the bytes of a load."""

    family: ClassVar[str] = "split_planes"
    precision: str
    vec: int
    threads: ClassVar[int] = 256
    elements_per_thread: ClassVar[int] = 16

    def cpp(self) -> dict[str, str]:
        """Members of the C++ ``Config`` struct."""
        return {"Planes": SPLITS[self.precision].policy, "kVec": str(self.vec)}
