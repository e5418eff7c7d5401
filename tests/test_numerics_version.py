"""Golden bits: a change of any result bit is a visible event that goes with a new NUMERICS_VERSION.

float32 and float64 FMA chains are IEEE arithmetic: their hashes hold for every architecture. 16-bit GEMMs run on tensor
cores, whose adders differ: they have hashes for each kind of adder, which say what the emulator's model of it gives. Write
all of them anew with ``python -m tests.test_numerics_version`` after NUMERICS_VERSION was raised and the changelog says why.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import gpulinear as gl
from gpulinear import testing
from gpulinear.config import NUMERICS_VERSION
from gpulinear.views import numpy_dtype

GOLDEN = Path(__file__).parent / "golden" / "numerics.json"
IEEE, SIXTEEN_BIT = ("float32", "float64"), ("float16", "bfloat16")
PRECISIONS = ("bf16x6", "tf32x3")  # of float32, on tensor cores
ADDERS = ("sm_75", "sm_80", "sm_90a")  # tensor cores for float16 only, 8 products a step, 16 products a step


def hashes(dtype: str, arch: str, precision: str | None = None) -> dict[str, str]:
    """SHA-256 of the output bytes of one problem for each op; K of more than one segment where it matters."""
    kind = numpy_dtype(dtype)
    x, w, b = (testing.normal(shape, kind, seed) for seed, shape in enumerate(((5, 1100), (7, 1100), (7,))))
    dy = testing.normal((5, 7), kind, 3)
    with gl.host_backend("emulator", arch=arch):
        results = {
            "linear": gl.linear(x, w, precision=precision),
            "linear gelu": gl.linear(x, w, b, activation="gelu", precision=precision),
            "dgrad": gl.dgrad(dy, w, precision=precision),
            "wgrad": gl.wgrad(dy, x, precision=precision),
        }
        if precision is None:
            results["bgrad"] = gl.bgrad(dy)
        if dtype in SIXTEEN_BIT or precision is not None:
            long_x, long_w = testing.normal((2, 4200), kind, 4), testing.normal((3, 4200), kind, 5)
            results["linear of two segments"] = gl.linear(long_x, long_w, out_dtype="float32", precision=precision)
        if dtype in SIXTEEN_BIT:  # weights of rows that are multiples of 16 bytes: gemm_wgmma on sm_90a
            x, w, dy = (testing.normal(shape, kind, seed) for seed, shape in enumerate(((5, 1104), (8, 1104), (5, 8))))
            aligned = {"linear": gl.linear(x, w), "dgrad": gl.dgrad(dy, w), "wgrad": gl.wgrad(dy, x)}
            results |= {f"{op}, aligned": result for op, result in aligned.items()}
    return {op: hashlib.sha256(result.tobytes()).hexdigest()[:32] for op, result in results.items()}


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("dtype", IEEE)
def test_ieee_bits_are_those_of_this_numerics_version(dtype: str, arch: str, compiled: None) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics_version"] == NUMERICS_VERSION
    assert hashes(dtype, arch) == golden["sha256"][dtype]


@pytest.mark.parametrize("arch", ADDERS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_tensor_core_bits_are_those_of_this_numerics_version(dtype: str, arch: str, compiled: None) -> None:
    assert hashes(dtype, arch) == json.loads(GOLDEN.read_text())["sha256"][dtype][arch]


@pytest.mark.parametrize("arch", ADDERS[1:])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_of_precisions_are_those_of_this_numerics_version(precision: str, arch: str, compiled: None) -> None:
    assert hashes("float32", arch, precision) == json.loads(GOLDEN.read_text())["sha256"][precision][arch]


if __name__ == "__main__":
    table: dict[str, object] = {dtype: hashes(dtype, "sm_90a") for dtype in IEEE}
    table |= {dtype: {arch: hashes(dtype, arch) for arch in ADDERS} for dtype in SIXTEEN_BIT}
    table |= {precision: {arch: hashes("float32", arch, precision) for arch in ADDERS[1:]} for precision in PRECISIONS}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"numerics_version": NUMERICS_VERSION, "sha256": table}, indent=1) + "\n")
