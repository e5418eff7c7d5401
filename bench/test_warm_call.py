"""Host time of a warm call, from the public function to the point where CuPy would launch: ``pytest bench``.

The launcher packs the parameter block and returns; arrays are stand-ins with CuPy's attributes. Runs anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import gemm
from gpulinear.calls import BUILDERS
from gpulinear.device import DeviceSpec
from gpulinear.launch import buffer_order, make_template


class Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr, self.device_id = ptr, 0


class Array:
    """The attributes of a CuPy array that a warm call reads."""

    def __init__(self, like: np.ndarray[Any, Any]) -> None:
        self.shape, self.strides, self.dtype = like.shape, like.strides, like.dtype
        self.data = Pointer(like.ctypes.data)


def test_warm_linear(benchmark: Any) -> None:
    host = [np.zeros((64, 64), np.float32) for _ in range(3)]
    call = BUILDERS["linear"](host[0], host[1], out=host[2])
    names = ("x", "weight", "bias", "out", "preact_out")
    given = (host[0], host[1], None, host[2], None)
    plan = gemm.plan_call(call, DeviceSpec.preset("sm_90a"))
    template = make_template(plan.steps[0], buffer_order([name for name in names if name in call.arrays]))
    bound = gemm.Bound(template.fill, call, given, names)
    x, weight, out = (Array(array) for array in host)
    gemm._warm[gemm._key("linear", (x, weight, None, out, None), (None, None, None))] = bound
    assert benchmark(lambda: gl.linear(x, weight, out=out)) is out
