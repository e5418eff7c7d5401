"""Whole layers, forward and backward, in one CUDA graph, on the stand-in for CuPy: what may be loaded when, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear.emulator.tensormap import encode_tiled
from gpulinear.params import PARAM_BLOCKS
from gpulinear.tensormap import TensorMaps

from .fake_cupy import FakeCupy, ndarray

F32 = np.dtype("float32")
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(autouse=True)
def maps(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor maps without a driver."""
    from gpulinear.backends import cuda

    monkeypatch.setattr(cuda, "_maps", TensorMaps(encode_tiled))


def device_array(*shape: int, dtype: Any = F32) -> ndarray:
    return ndarray(np.zeros(shape, dtype))


def layers(fake_cupy: FakeCupy, dtype: str) -> list[gl.Linear]:
    """Two layers whose gradients share a launch; fake arrays have no arithmetic, so the weights are zeros."""
    made = [gl.Linear(64, 96, activation="gelu", dtype=dtype), gl.Linear(96, 32, dtype=dtype)]
    for layer in made:
        layer.weight = ndarray(np.asarray(layer.weight))
        layer.bias = ndarray(np.asarray(layer.bias))
    return made


def step(net: list[gl.Linear], x: ndarray, dy: ndarray) -> Any:
    """Forward and backward through all layers; everything between them is dropped."""
    contexts = []
    for layer in net:
        x, context = layer.forward(x)
        contexts.append(context)
    for layer, context in zip(reversed(net), reversed(contexts), strict=True):
        dy = layer.backward(dy, context)
    return x, dy


def prepared_by_running(net: list[gl.Linear], x: ndarray, dy: ndarray) -> None:
    step(net, x, dy)


def prepared_by_warmup(net: list[gl.Linear], x: ndarray, dy: ndarray) -> None:
    """With the arguments that the layers give."""
    dtype, tokens = net[0].weight.dtype, x.shape[0]
    hidden = device_array(tokens, 96, dtype=dtype)
    gl.warmup("linear", x, net[0].weight, net[0].bias, activation="gelu", preact_out=hidden)
    gl.warmup("linear", hidden, net[1].weight, net[1].bias)
    gl.warmup("linear_backward", dy, hidden, net[1].weight)
    gl.warmup("linear_backward", hidden, x, net[0].weight, activation="gelu", preact=hidden)


@pytest.mark.parametrize("prepare", [prepared_by_running, prepared_by_warmup])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_and_backward_of_layers_in_one_graph(
    dtype: str, prepare: Callable[..., None], fake_cupy: FakeCupy
) -> None:
    net = layers(fake_cupy, dtype)
    kind = BF16 if dtype == "bfloat16" else F32
    x, dy = device_array(48, 64, dtype=kind), device_array(48, 32, dtype=kind)
    prepare(net, x, dy)
    loaded, before = len(fake_cupy.loaded), len(fake_cupy.launches)
    fake_cupy.capturing = True
    y, dx = step(net, x, dy)
    assert len(fake_cupy.loaded) == loaded, "nothing is loaded inside the capture"
    captured = fake_cupy.launches[before:]
    family = "gemm_wgmma" if dtype == "bfloat16" else "gemm_simt"
    names = [launch["kernel"].removeprefix("gpulinear_") for launch in captured]
    joint = f"joint_{family}"
    sums = [] if dtype == "bfloat16" else ["column_sum"]  # gemm_wgmma's wgrad sums db as well
    assert names == [family, family, *sums, joint, "act_grad", joint]
    assert (y.shape, dx.shape, net[0].dw.shape, net[1].db.shape) == ((48, 32), (48, 64), (96, 64), (32,))
    step(net, x, dy)
    again = fake_cupy.launches[before + len(captured) :]
    assert [launch["kernel"] for launch in again] == [launch["kernel"] for launch in captured]


def test_what_a_graph_writes_to_is_never_reused(fake_cupy: FakeCupy) -> None:
    """Results, stored pre-activations and workspace of captured calls are kept; those of other calls are not."""
    net = layers(fake_cupy, "float32")
    x, dy = device_array(48, 64), device_array(48, 32)
    step(net, x, dy)
    from gpulinear.backends import cuda

    assert cuda._captured == []
    fake_cupy.capturing = True
    y, dx = step(net, x, dy)
    results = {array.data.ptr for array in cuda._captured if isinstance(array, ndarray)}
    # y and the pre-activation of the first layer, y of the second; dx, dw, db of both
    assert len(results) == 3 + 6 and {y.data.ptr, dx.data.ptr, net[0].dw.data.ptr, net[1].db.data.ptr} <= results
    assert len(cuda._captured) == 9 + 1, "and the workspace that dz lies in"
    cuda.release_captured()
    assert cuda._captured == []


def test_a_kernel_that_was_not_loaded_is_an_error_inside_a_capture(fake_cupy: FakeCupy) -> None:
    x, w, dy = device_array(48, 64), device_array(96, 64), device_array(48, 96)
    gl.warmup("dgrad", dy, w)
    gl.warmup("wgrad", dy, x)
    fake_cupy.capturing = True
    gl.dgrad(dy, w)
    launched = len(fake_cupy.launches)
    with pytest.raises(gl.BackendError, match=r"joint_gemm_simt.*warmup"):
        gl.linear_backward(dy, x, w, needs=("dx", "dw"))
    assert len(fake_cupy.launches) == launched


def test_accumulating_gradients_of_a_captured_layer(fake_cupy: FakeCupy) -> None:
    """dw in float32 for 16-bit operands, added to by one launch with dgrad."""
    dy, x, w = device_array(48, 96, dtype=BF16), device_array(48, 64, dtype=BF16), device_array(96, 64, dtype=BF16)
    dw, dx = device_array(96, 64), device_array(48, 64, dtype=BF16)
    wanted = {"needs": ("dx", "dw"), "dw_out": dw, "dx_out": dx, "accumulate": True}
    gl.warmup("linear_backward", dy, x, w, **wanted)
    fake_cupy.capturing = True
    gl.linear_backward(dy, x, w, **wanted)
    (launch,) = fake_cupy.launches
    block = PARAM_BLOCKS["joint_gemm_wgmma"]
    values = dict(zip((name for name, _, _ in block.fields), block.packer.unpack(launch["params"]), strict=True))
    adds = {values[f"{part}.d"]: values[f"{part}.accumulate"] for part in ("first", "second")}
    assert adds == {dx.data.ptr: 0, dw.data.ptr: 1}
