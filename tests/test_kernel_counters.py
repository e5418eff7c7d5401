"""What the emulator counts of each shipped kernel on aligned shapes, held where it is: no more bank conflicts, no more
sectors than now. 1 is ideal. What is above 1 is known: the staging stores at the end of a segment where an operand lies
along M or N (four-way conflicts), once per tile and segment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.plan import Options

pytestmark = pytest.mark.usefixtures("compiled")

# (dtype, tile, op): wavefronts over ideal; sectors over ideal are 1 everywhere.
WAVEFRONTS = {
    ("float32", "64x64x16/4x4", "linear"): 1.0,
    ("float32", "64x64x16/4x4", "dgrad"): 1.084,
    ("float32", "64x64x16/4x4", "wgrad"): 1.084,
    ("float32", "128x128x16/8x8", "linear"): 1.0,
    ("float32", "128x128x16/8x8", "dgrad"): 1.079,
    ("float32", "128x128x16/8x8", "wgrad"): 1.079,
    ("float32", "128x256x16/8x16", "dgrad"): 1.052,
    ("float32", "128x256x16/8x16", "wgrad"): 1.052,
    ("float64", "64x64x8/4x4", "linear"): 1.0,
    ("float64", "64x64x8/4x4", "dgrad"): 1.014,
    ("float64", "64x64x8/4x4", "wgrad"): 1.014,
}


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy: np.ndarray[Any, Any] = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize(("dtype", "tile", "op"), WAVEFRONTS, ids=lambda v: str(v))
def test_gemm_simt_has_no_more_conflicts_than_now(dtype: str, tile: str, op: str) -> None:
    m, n = (int(extent) for extent in tile.split("/")[0].split("x")[:2])
    k = 64
    shapes = {"linear": ((m, k), (n, k)), "dgrad": ((m, k), (k, n)), "wgrad": ((k, m), (k, n))}[op]
    a, b = (aligned(testing.normal(shape, dtype, seed)) for seed, shape in enumerate(shapes))
    out = aligned(np.zeros((m, n), dtype))
    with gl.host_backend("emulator", arch="sm_90a"), gemm.planning(Options(family="gemm_simt", tile=tile, splits=1)):
        getattr(gl, op)(a, b, out=out)
    ((family, result),) = last_results()
    assert family == "gemm_simt"
    assert result.counters.sector_ratio == 1.0
    assert result.counters.wavefront_ratio <= WAVEFRONTS[dtype, tile, op] + 1e-3
    assert result.counters.mix["fma.rn.f32" if dtype == "float32" else "fma.rn.f64"][1] >= m * n * k


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_gemm_wgmma_stages_and_reads_boxes_of_d_without_conflicts(out_dtype: str) -> None:
    dy, x = aligned(testing.normal((64, 64), "bfloat16", 0)), aligned(testing.normal((64, 64), "bfloat16", 1))
    out = aligned(testing.normal((64, 64), out_dtype, 2))
    with gl.host_backend("emulator", arch="sm_90a"), gemm.planning(Options(family="gemm_wgmma", tile="64x64x64")):
        gl.wgrad(dy, x, out=out, accumulate=True)
    ((_, result),) = last_results()
    assert result.counters.wavefront_ratio == 1.0
    assert result.counters.moved_bytes["global", "read"] == dy.nbytes + x.nbytes + out.nbytes
    assert not [name for name in result.counters.mix if name.startswith(("ld.global", "st.global"))]


def test_column_sums_and_activation_gradients_read_whole_sectors() -> None:
    dy, x = aligned(testing.normal((128, 64), "float32", 0)), aligned(testing.normal((128, 32), "float32", 1))
    w, preact = aligned(testing.normal((64, 32), "float32", 2)), aligned(testing.normal((128, 64), "float32", 3))
    outs = {"dw_out": aligned(np.zeros((64, 32), np.float32)), "db_out": aligned(np.zeros(64, np.float32))}
    with gl.host_backend("emulator", arch="sm_90a"):
        gl.linear_backward(dy, x, w, needs=("dw", "db"), activation="silu", preact=preact, **outs)
        counted = dict(last_results())
        gl.bgrad(dy, out=outs["db_out"])
        counted |= dict(last_results())
    for family in ("act_grad", "column_sum"):
        counters = counted[family].counters
        assert (counters.wavefront_ratio, counters.sector_ratio) == (1.0, 1.0), family
