"""Golden bits: a change of any result bit is a visible event that goes with a new NUMERICS_VERSION.

float32 and float64 FMA chains are IEEE arithmetic, so the hashes hold for every architecture. Write them anew with
``python -m tests.test_numerics_version`` after NUMERICS_VERSION was raised and the changelog says why.
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
DTYPES = ("float32", "float64", "float16", "bfloat16")


def hashes(dtype: str, arch: str) -> dict[str, str]:
    """SHA-256 of the output bytes of one problem for each op; K of more than one segment where it matters."""
    kind = numpy_dtype(dtype)
    x, w, b = (testing.normal(shape, kind, seed) for seed, shape in enumerate(((5, 1100), (7, 1100), (7,))))
    dy = testing.normal((5, 7), kind, 3)
    with gl.host_backend("emulator", arch=arch):
        results = {
            "linear": gl.linear(x, w),
            "linear gelu": gl.linear(x, w, b, activation="gelu"),
            "dgrad": gl.dgrad(dy, w),
            "wgrad": gl.wgrad(dy, x),
            "bgrad": gl.bgrad(dy),
        }
    return {op: hashlib.sha256(result.tobytes()).hexdigest()[:32] for op, result in results.items()}


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_this_numerics_version(dtype: str, arch: str, compiled: None) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics_version"] == NUMERICS_VERSION
    assert hashes(dtype, arch) == golden["sha256"][dtype]


if __name__ == "__main__":
    table = {dtype: hashes(dtype, "sm_90a") for dtype in DTYPES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"numerics_version": NUMERICS_VERSION, "sha256": table}, indent=1) + "\n")
