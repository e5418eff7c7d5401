"""The variants of ``split_planes``: how float32 operands become planes of a narrower type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

# By precision: the C++ policy, the dtype of a plane in memory, and how many there are. Their order and their products
# are in gpulinear.reference.products and kernels/gemm_mma.cuh.
SPLITS: dict[str, tuple[str, str, int]] = {
    "bf16x6": ("Bfloat16Planes", "bfloat16", 3),
    "tf32x3": ("Tf32Planes", "float32", 2),
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
        return {"Planes": SPLITS[self.precision][0], "kVec": str(self.vec)}
