"""Host-memory stand-ins for CuPy, cuBLAS, nvmath's cuBLASLt bindings and torch, as far as the providers use them."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from gpulinear import reference

from .fake_blas import (
    COMPUTE_32F,
    COMPUTE_64F,
    COMPUTE_TF32,
    R_16BF,
    R_16F,
    R_32F,
    R_64F,
    Array,
    Recorder,
    array,
    column_major,
    elementwise,
    multiply,
    scalar,
    strided,
)
from .fake_cublaslt import make_nvmath


def make_cupy(seen: Recorder) -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    modes = types.ModuleType("cupy._core._routines_linalg")
    state = {"float32": 1}
    modes.COMPUTE_TYPE_DEFAULT, modes.COMPUTE_TYPE_TF32 = 1, 7  # type: ignore[attr-defined]
    modes.set_compute_type = lambda dtype, mode: state.update({np.dtype(dtype).name: mode})  # type: ignore[attr-defined]
    modes.get_compute_type = lambda dtype: state[np.dtype(dtype).name]  # type: ignore[attr-defined]

    def matmul(a: Any, b: Any, *, out: Any) -> None:
        assert a.dtype == b.dtype == out.dtype
        multiply(a, b, out, seen.tf32("cupy", state["float32"] == 7))
        seen.calls.append(("cupy", "matmul", state["float32"]))

    class Event:
        def record(self) -> None:
            self.at = seen.clock

        def synchronize(self) -> None:
            pass

    stream = types.SimpleNamespace(ptr=0, synchronize=lambda: None)
    runtime = types.ModuleType("cupy.cuda.runtime")
    for name, value in {
        "CUDA_R_32F": R_32F,
        "CUDA_R_64F": R_64F,
        "CUDA_R_16F": R_16F,
        "CUDA_R_16BF": R_16BF,
        "getDevice": lambda: 0,
    }.items():
        setattr(runtime, name, value)
    cuda = types.ModuleType("cupy.cuda")
    for name, value in {
        "runtime": runtime,
        "Event": Event,
        "get_elapsed_time": lambda start, end: end.at - start.at,
        "get_current_stream": lambda: stream,
        "stream": stream,
    }.items():
        setattr(cuda, name, value)
    for name, value in {
        "ndarray": Array,
        "asarray": array,
        "empty": lambda shape, dtype=np.float64: np.empty(shape, dtype).view(Array),
        "zeros": lambda shape, dtype=np.float64: np.zeros(shape, dtype).view(Array),
        "full": lambda shape, value, dtype=None: np.full(shape, value, dtype).view(Array),
        "uint8": np.uint8,
        "lib": types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=strided)),
        "matmul": matmul,
        "ElementwiseKernel": elementwise(seen),
        "cuda": cuda,
    }.items():
        setattr(cupy, name, value)
    core = types.ModuleType("cupy._core")
    core._routines_linalg = modes  # type: ignore[attr-defined]
    sys.modules.update({"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.runtime": runtime, "cupy._core": core})
    sys.modules["cupy._core._routines_linalg"] = modes
    return cupy


def make_cublas(seen: Recorder) -> None:
    cublas = types.ModuleType("cupy_backends.cuda.libs.cublas")

    def create() -> int:
        seen.open.add("handle")
        return 77

    def gemm(
        handle: int,
        ta: int,
        tb: int,
        m: int,
        n: int,
        k: int,
        alpha: int,
        a: int,
        a_type: int,
        lda: int,
        b: int,
        b_type: int,
        ldb: int,
        beta: int,
        c: int,
        c_type: int,
        ldc: int,
        compute: int,
        algorithm: int,
    ) -> None:
        assert handle == 77 and "handle" in seen.open and algorithm == -1 and scalar(alpha, compute) == 1.0
        assert all(type(value) is int for value in (ta, tb, m, n, k, lda, ldb, ldc, a, b, c))
        left = column_major(a, a_type, *((k, m) if ta else (m, k)), lda)
        right = column_major(b, b_type, *((n, k) if tb else (k, n)), ldb)
        out = column_major(c, c_type, m, n, ldc)
        assert (compute == COMPUTE_64F) == (a_type == R_64F)
        plus = np.array(out, np.float64) if scalar(beta, compute) == 1.0 else 0.0
        tf32 = seen.tf32("cublas", compute == COMPUTE_TF32)
        multiply(left.T if ta else left, right.T if tb else right, out, tf32, plus)
        seen.calls.append(("cublas", "gemmEx", compute))

    values = {
        "create": create,
        "destroy": lambda handle: seen.open.remove("handle"),
        "gemmEx": gemm,
        "CUBLAS_COMPUTE_32F": COMPUTE_32F,
        "CUBLAS_COMPUTE_64F": COMPUTE_64F,
        "CUBLAS_COMPUTE_32F_FAST_TF32": COMPUTE_TF32,
        "CUBLAS_OP_N": 0,
        "CUBLAS_OP_T": 1,
        "CUBLAS_GEMM_DEFAULT": -1,
    }
    for name, value in values.items():
        setattr(cublas, name, value)
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = cublas  # type: ignore[attr-defined]
    sys.modules["cupy_backends.cuda.libs"] = libs
    sys.modules["cupy_backends.cuda.libs.cublas"] = cublas


def make_torch(seen: Recorder, *, modern: bool = True, cuda: bool = True) -> types.ModuleType:
    torch = types.ModuleType("torch")
    state = types.SimpleNamespace(library="default", stream="default")
    switch = types.SimpleNamespace(**({"fp32_precision": "none"} if modern else {"allow_tf32": False}))

    def tf32() -> bool:
        return seen.tf32("torch", switch.fp32_precision == "tf32" if modern else switch.allow_tf32)

    def note(name: str) -> None:
        seen.calls.append(("torch", name, state.library, state.stream))

    def mm(left: Any, right: Any, *, out: Any, out_dtype: Any = None) -> None:
        assert out.dtype == (out_dtype or left.dtype)
        multiply(left, right, out, tf32())
        note("mm")

    def addmm(added: Any, left: Any, right: Any, *, out: Any, out_dtype: Any = None) -> None:
        assert out.dtype == (out_dtype or left.dtype)
        multiply(left, right, out, tf32(), np.array(added, np.float64))
        note("addmm")

    def addmm_activation(added: Any, left: Any, right: Any, *, use_gelu: bool, out: Any) -> None:
        multiply(left, right, out, tf32(), np.array(added, np.float64), "gelu_tanh" if use_gelu else "relu")
        note("_addmm_activation")

    def activation(name: str) -> Any:
        def call(x: Any, *, out: Any, approximate: str = "none") -> None:
            kind = {"none": name, "tanh": "gelu_tanh"}[approximate]
            out[...] = reference.round_to(reference.activate(np.asarray(x, np.float64), kind), out.dtype)
            note(kind)

        return types.SimpleNamespace(out=call)

    def from_dlpack(x: Any) -> Any:
        assert all(stride >= 0 for stride in x.strides)
        return x

    def prefer(library: str | None = None) -> str:
        state.library = state.library if library is None else library
        return state.library

    wide = types.SimpleNamespace(dtype_out=1) if modern else types.SimpleNamespace()
    aten = types.SimpleNamespace(
        mm=wide, addmm=wide, relu=activation("relu"), silu=activation("silu"), gelu=activation("gelu")
    )
    values = {
        "mm": mm,
        "addmm": addmm,
        "_addmm_activation": addmm_activation,
        "from_dlpack": from_dlpack,
        "ops": types.SimpleNamespace(aten=aten),
        "backends": types.SimpleNamespace(cuda=types.SimpleNamespace(preferred_blas_library=prefer, matmul=switch)),
        "cuda": types.SimpleNamespace(
            is_available=lambda: cuda,
            set_device=lambda device: None,
            set_stream=lambda stream: setattr(state, "stream", stream),
            ExternalStream=lambda pointer: f"stream {pointer}",
            default_stream=lambda: "default",
        ),
    }
    for name, value in values.items():
        setattr(torch, name, value)
    sys.modules["torch"] = torch
    return torch


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """All fakes installed for one test: ``seen`` (what was called), ``cupy``, ``lt``, ``torch``."""
    before = set(_of_libraries())
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("gpulinear.measure.providers.torch_.Torch._active", None)
    monkeypatch.setattr("gpulinear.measure.providers.torch_.Torch._stream", None)
    seen = Recorder()
    cupy = make_cupy(seen)
    make_cublas(seen)
    yield types.SimpleNamespace(seen=seen, cupy=cupy, lt=make_nvmath(seen), torch=make_torch(seen))  # type: ignore[misc]
    monkeypatch.undo()  # now: what a test has put in a fake's place would bring the fake back once it is gone
    for name in set(_of_libraries()) - before:
        del sys.modules[name]


def _of_libraries() -> list[str]:
    """The loaded modules of the libraries that have fakes."""
    return [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupy_backends", "nvmath", "torch")]
