"""The error of every precision of float32 over hostile data, in the emulator's tensor-core model, as rows.

Data are seeded and arithmetic is modelled bit by bit: the same tree gives the same rows anywhere. Nothing here is
measured on hardware: the model is a published reverse engineering (gpulinear/emulator/tensorcore.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear import testing
from gpulinear.config import PROMOTE, SEGMENT

from . import hostile
from .order import fma_gemm, split_gemm

Array = npt.NDArray[Any]
M, N = 32, 64  # 2048 dot products of each kind
U32 = 2.0**-24
ARCHS = ("sm_80", "sm_90a")
CHAIN = 4096  # the depth of the table of hostile data


@dataclass(frozen=True)
class Scheme:
    """A way to multiply float32 matrices: a precision with its P, or FMA chains with their S."""

    name: str
    precision: str
    promote: int | None = None
    segment: int = 4096

    def multiply(self, a: Array, b: Array, arch: str) -> Array:
        """float32 (m, n) in the canonical order."""
        if self.precision == "ieee":
            return fma_gemm(a, b, segment=self.segment)
        return split_gemm(a, b, self.precision, arch, segment=self.segment, promote=self.promote)

    def bound(self, a: Array, b: Array, arch: str) -> Array:
        """Largest error that theory allows, element by element (gpulinear.testing.bounds)."""
        if self.precision == "ieee":
            return testing.gemm_bound(a, b, testing.fma("float32", self.segment), out_dtype="float32")
        how = testing.tensor_core(arch, self.precision, segment=self.segment, promote=self.promote)
        return testing.gemm_bound(
            a,
            b,
            how,
            out_dtype="float32",
            representation=testing.REPRESENTATION[self.precision],
            a_error=testing.operand_error(a, self.precision),
            b_error=testing.operand_error(b, self.precision),
        )


IEEE = Scheme("ieee", "ieee", segment=SEGMENT["gemm_simt"])
ONE_CHAIN = Scheme("one FMA chain", "ieee", segment=1 << 30)
SHIPPED = (Scheme("bf16x6", "bf16x6", PROMOTE), Scheme("tf32x3", "tf32x3", PROMOTE), Scheme("tf32", "tf32"))
OTHERS = (
    Scheme("bf16x6, P = 128", "bf16x6", 128),
    Scheme("bf16x6, no promotion", "bf16x6"),
    Scheme("tf32x3, P = 128", "tf32x3", 128),
    Scheme("tf32x3, no promotion", "tf32x3"),
)
PROBLEMS = [(name, k) for name in hostile.NAMES[:2] for k in (1024, CHAIN, 8192)] + [
    (name, CHAIN) for name in hostile.NAMES[2:]
]


def row(data: str, k: int, scheme: Scheme, arch: str) -> dict[str, Any]:
    """Errors in units of 2**-24 of |A|·|B|: root mean square and largest; and the largest in units of its bound."""
    a, b = hostile.operands(data, M, N, k)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    exact, gauge = a64 @ b64, np.abs(a64) @ np.abs(b64)
    got = scheme.multiply(a, b, arch)
    units = (got.astype(np.float64) - exact) / (gauge * U32)
    return {
        "data": data,
        "k": k,
        "scheme": scheme.name,
        "arch": "any" if scheme.precision == "ieee" else arch,
        "rms": float(f"{np.sqrt(np.mean(units**2)):.4g}"),
        "max": float(f"{np.abs(units).max():.4g}"),
        "of_bound": float(f"{testing.error_ratio(got, exact, scheme.bound(a, b, arch)):.4g}"),
    }


def rows() -> list[dict[str, Any]]:
    """Every row of the tables."""
    found = []
    for data, k in PROBLEMS:
        found += [row(data, k, scheme, ARCHS[0]) for scheme in (IEEE, ONE_CHAIN)]
        schemes = SHIPPED + (OTHERS if data in hostile.NAMES[:2] else ())
        found += [row(data, k, scheme, arch) for arch in ARCHS for scheme in schemes]
        print(f"{data}, K = {k}", flush=True)
    return found
