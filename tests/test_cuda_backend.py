"""The CUDA path on a stand-in for CuPy: what is launched, with which parameters, on which device; the warm path."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.device import DeviceSpec
from gpulinear.params import PARAM_BLOCKS
from gpulinear.plan import Options

from .fake_cupy import FakeCupy, RawKernel, ndarray

F32 = np.dtype("float32")


def device_array(*shape: int, dtype: Any = F32, device: int = 0) -> ndarray:
    return ndarray(np.zeros(shape, dtype), device)


def fields(launch: dict[str, Any]) -> dict[str, int]:
    """The parameter block of a recorded launch, by field."""
    block = PARAM_BLOCKS[launch["kernel"].removeprefix("gpulinear_")]
    values = iter(block.packer.unpack(launch["params"]))
    return {name: next(iter(tuple(islice(values, count)))) for name, _, count in block.fields}


def test_a_launch_has_the_right_parameters(fake_cupy: FakeCupy) -> None:
    x, w, b, y = device_array(40, 24), device_array(56, 24), device_array(56), device_array(40, 56)
    assert gl.linear(x, w, b, activation="gelu", out=y) is y
    (launch,) = fake_cupy.launches
    p = fields(launch)
    assert (p["a"], p["b"], p["bias"], p["d"]) == (x.data.ptr, w.data.ptr, b.data.ptr, y.data.ptr)
    assert (p["m"], p["n"], p["k"], p["lda"], p["ldb"], p["ldd"]) == (40, 56, 24, 24, 24, 56)
    assert (p["activation"], p["accumulate"], p["preact"]) == (2, 0, 0)
    assert launch["grid"][0] == p["tiles_m"] * p["tiles_n"] * p["splits"]
    assert launch["shared_mem"] <= launch["limit"]


def test_what_is_launched_is_a_raw_kernel(fake_cupy: FakeCupy) -> None:
    gl.dgrad(device_array(4, 8), device_array(8, 16))
    from gpulinear.backends import cuda

    assert cuda._kernels and all(isinstance(kernel, RawKernel) for kernel in cuda._kernels.values())
    import cupy

    assert all(isinstance(kernel, cupy.RawKernel) for kernel in cuda._kernels.values())


def test_a_warm_call_skips_everything_but_the_launch(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    w = device_array(56, 24)
    gl.linear(device_array(40, 24), w, out=device_array(40, 56))

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the cold path ran")

    monkeypatch.setattr(gemm, "run", fail)
    x, y = device_array(40, 24), device_array(40, 56)
    assert gl.linear(x, w, out=y) is y
    assert fields(fake_cupy.launches[-1])["a"] == x.data.ptr and fields(fake_cupy.launches[-1])["d"] == y.data.ptr
    made = gl.linear(x, w, out=y)
    assert made is y


def test_a_warm_call_makes_its_own_outputs(fake_cupy: FakeCupy) -> None:
    dy, x, w = device_array(40, 56), device_array(40, 24), device_array(56, 24)
    first = gl.linear_backward(dy, x, w)
    again = gl.linear_backward(dy, x, w)
    assert again.dx is not first.dx and again.dx.shape == (40, 24) and again.dw.shape == (56, 24)
    assert again.db.shape == (56,)
    written = set(fields(fake_cupy.launches[-1]).items())
    assert {("first.d", again.dw.data.ptr), ("second.d", again.dx.data.ptr)} <= written or {
        ("first.d", again.dx.data.ptr),
        ("second.d", again.dw.data.ptr),
    } <= written


def test_aliasing_is_checked_again_on_a_warm_call(fake_cupy: FakeCupy) -> None:
    w = device_array(24, 24)
    gl.linear(device_array(40, 24), w, out=device_array(40, 24))
    x = device_array(40, 24)
    count = len(fake_cupy.launches)
    with pytest.raises(gl.ArgumentError, match="overlaps"):
        gl.linear(x, w, out=x)
    assert len(fake_cupy.launches) == count


def test_slices_of_one_buffer_stay_legal_when_warm(fake_cupy: FakeCupy) -> None:
    w = device_array(24, 24)
    fused = np.zeros((40, 48), F32)
    x, y = ndarray(fused[:, :24]), ndarray(fused[:, 24:])
    gl.linear(x, w, out=y)
    gl.linear(x, w, out=y)
    assert len(fake_cupy.launches) == 2


def test_alignment_and_strides_are_in_the_key(fake_cupy: FakeCupy) -> None:
    w = device_array(56, 24)
    gl.linear(device_array(40, 24), w, out=device_array(40, 56))
    shifted = np.zeros(40 * 24 + 1, F32)[1:].reshape(40, 24)
    gl.linear(ndarray(shifted), w, out=device_array(40, 56))
    gl.linear(ndarray(np.zeros((24, 40), F32).T), w, out=device_array(40, 56))
    assert len(gemm._warm) == 3


def test_arrays_run_on_their_own_device(fake_cupy: FakeCupy) -> None:
    gl.linear(device_array(4, 8, device=1), device_array(8, 8, device=1), out=device_array(4, 8, device=1))
    assert fake_cupy.launches[-1]["device"] == 1 and fake_cupy.device == 0
    with pytest.raises(gl.BackendError, match="one place"):
        gl.linear(device_array(4, 8, device=1), device_array(8, 8, device=0))
    with pytest.raises(gl.BackendError, match="NumPy"):
        gl.linear(device_array(4, 8), np.zeros((8, 8), F32))


def test_shared_memory_limit_is_raised_where_needed(fake_cupy: FakeCupy) -> None:
    big = 4096
    x = ndarray(np.lib.stride_tricks.as_strided(np.zeros(big, F32), (big, big), (0, 4)))
    w = ndarray(np.lib.stride_tricks.as_strided(np.zeros(big, F32), (big, big), (0, 4)))
    with gemm.planning(
        Options(tile="128x256x16/8x16")
    ):  # named, so that no cost model decides whether this tests anything
        plan = gl.warmup("dgrad", x, w, out=ndarray(np.zeros((big, big), F32)))
    assert plan.steps[0].smem_bytes > 48 * 1024
    from gpulinear.backends import cuda

    limits = {kernel.max_dynamic_shared_size_bytes for kernel in cuda._kernels.values()}
    assert plan.steps[0].smem_bytes in limits and fake_cupy.launches == []


def test_workspace_is_kept_for_a_captured_graph(fake_cupy: FakeCupy) -> None:
    dy, x, dw = device_array(5000, 8), device_array(5000, 8), device_array(8, 8)
    from gpulinear.backends import cuda

    fake_cupy.capturing = True
    with pytest.raises(gl.BackendError, match="warmup"):
        gl.wgrad(dy, x, out=dw)
    fake_cupy.capturing = False
    gl.wgrad(dy, x, out=dw)
    assert fake_cupy.allocated and not cuda._captured
    fake_cupy.capturing = True
    gl.wgrad(dy, x, out=dw)
    assert len(cuda._captured) == 1


def test_empty_calls_launch_nothing(fake_cupy: FakeCupy) -> None:
    gl.linear(device_array(0, 8), device_array(8, 8))
    gl.linear(device_array(4, 8), device_array(0, 8))
    assert fake_cupy.launches == []
    gl.linear(device_array(4, 0), device_array(8, 0))
    assert [launch["kernel"] for launch in fake_cupy.launches] == ["gpulinear_ordered_reduce"]


def test_other_precisions_are_refused_by_name(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulinear.backends import cuda

    monkeypatch.setattr(cuda, "spec", lambda device: DeviceSpec.preset("sm_75"))
    with pytest.raises(gl.BackendError, match=r"sm_80.*precision='ieee'"):
        gl.linear(device_array(4, 8), device_array(8, 8), precision="tf32")
    assert fake_cupy.launches == []


def test_threads_share_kernels_and_never_parameters(fake_cupy: FakeCupy) -> None:
    def work(index: int) -> None:
        w = device_array(8 * (index % 4 + 1), 16)
        for _ in range(20):
            x = device_array(4, 16)
            y = gl.linear(x, w)
            assert y.shape == (4, w.shape[0])

    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(fake_cupy.launches) == 320
    for launch in fake_cupy.launches:
        p = fields(launch)
        assert p["m"] == 4 and p["k"] == 16 and p["ldd"] == p["n"]
