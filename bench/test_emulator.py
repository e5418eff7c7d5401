"""How fast the emulator is, with all its checks on: the shipped float32 kernel, and loading its PTX."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.emulator.loader import load
from gpulinear.launch import compile_step
from gpulinear.plan import Options

TILE = "128x128x16/8x8"


def test_simt_tile_128_cubed(benchmark: Any) -> None:
    """float32 128x128x128 in one block of 256 threads; the goal is 100 ms."""
    x, w = testing.normal((128, 128), "float32", 0), testing.normal((128, 128), "float32", 1)
    out = np.empty((128, 128), np.float32)
    with gl.host_backend("emulator", arch="sm_90a"), gemm.planning(Options(tile=TILE, splits=1)):
        benchmark(gl.linear, x, w, out=out)


def test_loading_a_kernel(benchmark: Any) -> None:
    """Parse, bind and schedule the PTX of that kernel."""
    x = gl.ShapeDtype((128, 128), "float32")
    with gemm.planning(Options(tile=TILE, splits=1)):
        step = gl.explain("linear", x, x, arch="sm_90a").steps[0]
    ptx = compile_step(step, "sm_90a").ptx
    benchmark(load.__wrapped__, ptx)
