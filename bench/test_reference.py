"""Throughput of the NumPy reference on this CPU: how long tests and GPU-less users wait. It says nothing of a kernel."""

from __future__ import annotations

from typing import Any

import pytest

import gpulinear as gl
from gpulinear import testing
from gpulinear.views import numpy_dtype

TOKENS, OUT, IN = 256, 512, 512


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
def test_cpu_reference(benchmark: Any, op: str, dtype: str) -> None:
    benchmark.group = "NumPy reference on the CPU"
    benchmark.extra_info |= {"runs on": "CPU reference", "flops": 2 * TOKENS * OUT * IN}
    x, w, dy = (
        testing.normal(shape, numpy_dtype(dtype), seed)
        for seed, shape in enumerate(((TOKENS, IN), (OUT, IN), (TOKENS, OUT)))
    )
    given = {"linear": (x, w), "dgrad": (dy, w), "wgrad": (dy, x)}[op]
    with gl.host_backend("reference"):
        benchmark(getattr(gl, op), *given)
