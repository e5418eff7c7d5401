"""Host-memory stand-ins for CuPy, cuBLAS, nvmath's cuBLASLt bindings and torch, as far as the providers use them.

The fake BLAS reads operands through pointers and leading dimensions, column by column, as the real one does. Products
are computed in float64 (operands first rounded to TF32 where that is switched on) and rounded once.
"""

from __future__ import annotations

import ctypes
import enum
import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulinear import reference
from gpulinear.views import numpy_dtype

R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
DTYPES = {R_32F: "float32", R_64F: "float64", R_16F: "float16", R_16BF: "bfloat16"}
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77


class Array(np.ndarray[Any, Any]):
    """A NumPy array with the attributes of a CuPy array that the providers read."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        memset = lambda value, size: None  # noqa: E731
        return types.SimpleNamespace(ptr=self.ctypes.data, device_id=0, memset_async=memset)

    def get(self) -> np.ndarray[Any, Any]:
        return np.array(self)


def array(values: Any) -> Array:
    return np.array(values).view(Array)


def multiply(left: Any, right: Any, out: Any, tf32: bool = False, plus: Any = 0.0, then: str | None = None) -> None:
    """out = act(left right + plus), rounded once."""
    a, b = (np.asarray(x) for x in (left, right))
    if tf32 and a.dtype == np.float32:
        a, b = reference.round_tf32(a), reference.round_tf32(b)
    z = a.astype(np.float64) @ b.astype(np.float64) + np.asarray(plus, np.float64)
    out[...] = reference.round_to(reference.activate(z, then), out.dtype)


class Recorder:
    """What the fakes saw: (library, function, extra) of each call, and switches."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.open: set[Any] = set()
        self.ignore_tf32: dict[str, bool | None] = {}  # library -> what TF32 is whatever it is told
        self.clock = 0.0

    def tf32(self, library: str, asked: bool) -> bool:
        forced = self.ignore_tf32.get(library)
        return asked if forced is None else forced


def elementwise(seen: Recorder) -> Callable[..., Any]:
    def make(inputs: str, output: str, body: str, name: str) -> Callable[..., None]:
        match = re.fullmatch(
            r"typedef (float|double) acc; const acc v = static_cast<acc>\(y\)( \+ static_cast<acc>\(bias\))?; "
            r"out = static_cast<T>\((.*)\);",
            body,
        )
        assert match and output == "T out" and inputs == ("T y, B bias" if match[2] else "T y")
        expression = match[3].replace("acc(", "float(")
        expression = re.sub(r"^(.*) \? (.*) : (.*)$", r"(\2) if (\1) else (\3)", expression)
        known = {"erf": math.erf, "tanh": math.tanh, "exp": np.exp, "float": float}
        f = np.vectorize(lambda v: eval(expression, {**known, "v": v}), otypes=[np.float64])

        def kernel(y: Any, *rest: Any) -> None:
            *bias, out = rest
            z = np.asarray(y, np.float64) + (np.asarray(bias[0], np.float64) if bias else 0.0)
            with np.errstate(over="ignore"):  # exp is infinite there, as in C
                out[...] = reference.round_to(f(z), out.dtype)
            seen.calls.append(("cupy", "elementwise", name, match[1]))

        return kernel

    return make


def column_major(pointer: int, kind: int, rows: int, cols: int, ld: int) -> np.ndarray[Any, Any]:
    """The (rows, cols) matrix at a pointer whose columns are ``ld`` elements apart."""
    assert ld >= max(1, rows)
    dtype = np.dtype(numpy_dtype(DTYPES[kind]))
    assert pointer % dtype.itemsize == 0
    size = (rows + ld * (cols - 1)) * dtype.itemsize
    flat = np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, cols), (dtype.itemsize, ld * dtype.itemsize))


def scalar(pointer: int, compute: int) -> float:
    kind = ctypes.c_double if compute == COMPUTE_64F else ctypes.c_float
    return float(kind.from_address(pointer).value)


def strided(x: Any, shape: Any, strides: Any) -> Any:
    return np.lib.stride_tricks.as_strided(x, shape, strides, subok=True)


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


DescAttribute = enum.IntEnum(
    "DescAttribute", {"TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7, "BIAS_POINTER": 8, "BIAS_DATA_TYPE": 26}
)
PreferenceAttribute = enum.IntEnum(
    "PreferenceAttribute",
    {
        "MAX_WORKSPACE_BYTES": 1,
        "MIN_ALIGNMENT_A_BYTES": 5,
        "MIN_ALIGNMENT_B_BYTES": 6,
        "MIN_ALIGNMENT_C_BYTES": 7,
        "MIN_ALIGNMENT_D_BYTES": 8,
    },
)
ConfigAttribute = enum.IntEnum("ConfigAttribute", {"ID": 0, "TILE_ID": 1, "SPLITK_NUM": 2})
Epilogue = enum.IntEnum("Epilogue", {"DEFAULT": 1, "RELU": 2, "BIAS": 4, "RELU_BIAS": 6, "GELU": 32, "GELU_BIAS": 36})
ComputeType = enum.IntEnum(
    "ComputeType", {"COMPUTE_32F": COMPUTE_32F, "COMPUTE_64F": COMPUTE_64F, "COMPUTE_32F_FAST_TF32": COMPUTE_TF32}
)
RESULT = np.dtype(
    [("algo", "u8", (8,)), ("workspace_size", "u8"), ("state", "i4"), ("waves_count", "f4"), ("reserved", "i4", (4,))]
)


class CuBLASLtError(Exception):
    pass


class FakeLt(types.ModuleType):
    """Descriptors are numbers into ``made``; ``speeds`` are the milliseconds of the algorithms that are proposed."""

    MatmulDescAttribute, MatmulPreferenceAttribute = DescAttribute, PreferenceAttribute
    MatmulAlgoConfigAttribute, Epilogue, cuBLASLtError = ConfigAttribute, Epilogue, CuBLASLtError

    def __init__(self, seen: Recorder) -> None:
        super().__init__("nvmath.bindings.cublasLt")
        self.seen, self.made, self.next = seen, {}, 1000  # type: ignore[var-annotated]
        self.speeds = [3.0, 1.0, 2.0]
        self.refused: set[int] = set()  # algorithms that fail when launched
        self.no_epilogue = False
        self.alignments: list[dict[int, int]] = []

    def _make(self, **values: Any) -> int:
        self.next += 1
        self.made[self.next] = values
        return self.next

    def _drop(self, handle: int) -> None:
        del self.made[handle]

    destroy = matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _drop

    def create(self) -> int:
        return self._make(kind="handle")

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return self._make(kind="desc", compute=compute, scale=scale, set={})

    def matrix_layout_create(self, dtype: int, rows: int, cols: int, ld: int) -> int:
        assert type(dtype) is int
        return self._make(kind="layout", dtype=dtype, rows=rows, cols=cols, ld=ld)

    def matmul_preference_create(self) -> int:
        return self._make(kind="preference", set={})

    def get_matmul_desc_attribute_dtype(self, attribute: int) -> Any:
        return {3: np.int32, 4: np.int32, 7: np.uint32, 8: np.int64, 26: np.int32}[attribute]

    def get_matmul_preference_attribute_dtype(self, attribute: int) -> Any:
        return np.uint64 if attribute == 1 else np.uint32

    def get_matmul_algo_config_attribute_dtype(self, attribute: int) -> Any:
        return np.int32

    def _set(self, handle: int, attribute: int, buffer: int, size: int, dtype: Any) -> None:
        assert size == np.dtype(dtype).itemsize
        value = np.frombuffer((ctypes.c_char * size).from_address(buffer), dtype)[0]
        self.made[handle]["set"][int(attribute)] = int(value)

    def matmul_desc_set_attribute(self, handle: int, attribute: int, buffer: int, size: int) -> None:
        self._set(handle, attribute, buffer, size, self.get_matmul_desc_attribute_dtype(attribute))

    def matmul_preference_set_attribute(self, handle: int, attribute: int, buffer: int, size: int) -> None:
        self._set(handle, attribute, buffer, size, self.get_matmul_preference_attribute_dtype(attribute))

    class MatmulHeuristicResult:
        def __init__(self, size: int) -> None:
            self.values = np.zeros(size, RESULT)
            self.ptr = self.values.ctypes.data

        def __getitem__(self, i: int) -> Any:
            one = self.values[i : i + 1]
            return types.SimpleNamespace(
                algo=one["algo"], workspace_size=one["workspace_size"][0], state=one["state"][0]
            )

    def matmul_algo_get_heuristic(self, handle: int, desc: int, *rest: int) -> None:
        *layouts, preference, wanted, results, count = rest
        assert self.made[handle]["kind"] == "handle" and [self.made[x]["kind"] for x in layouts] == ["layout"] * 4
        self.alignments.append(self.made[preference]["set"])
        if self.no_epilogue and DescAttribute.EPILOGUE in self.made[desc]["set"]:
            raise CuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        found = np.frombuffer((ctypes.c_char * (wanted * RESULT.itemsize)).from_address(results), RESULT)
        for i in range(len(self.speeds)):
            found[i]["algo"][0], found[i]["workspace_size"], found[i]["state"] = i, 64 * i, 0
        np.frombuffer((ctypes.c_char * 4).from_address(count), np.int32)[0] = len(self.speeds)

    def matmul_algo_config_get_attribute(
        self, algorithm: int, attribute: int, buffer: int, size: int, written: int
    ) -> None:
        value = ctypes.c_uint64.from_address(algorithm).value if attribute == ConfigAttribute.ID else 5
        ctypes.c_int32.from_address(buffer).value = value

    def matmul(
        self, handle: int, desc: int, alpha: int, a: int, a_layout: int, b: int, b_layout: int, beta: int, *rest: int
    ) -> None:
        c, c_layout, d, d_layout, algorithm, workspace, size, _ = rest
        about = self.made[desc]
        compute, chosen = about["compute"], about["set"]
        number = ctypes.c_uint64.from_address(algorithm).value
        assert (
            self.made[handle]["kind"] == "handle"
            and size == 64 * number
            and workspace
            and c == d
            and c_layout == d_layout
        )
        assert scalar(alpha, compute) == 1.0 and about["scale"] == (R_64F if compute == COMPUTE_64F else R_32F)
        if number in self.refused:
            raise CuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        left, right, out = (
            column_major(pointer, x["dtype"], x["rows"], x["cols"], x["ld"])
            for pointer, x in ((a, self.made[a_layout]), (b, self.made[b_layout]), (d, self.made[d_layout]))
        )
        plus: Any = np.array(out, np.float64) if scalar(beta, compute) == 1.0 else 0.0
        kind = Epilogue(chosen.get(DescAttribute.EPILOGUE, 1))
        if "BIAS" in kind.name:
            bias = column_major(
                chosen[DescAttribute.BIAS_POINTER], chosen[DescAttribute.BIAS_DATA_TYPE], out.shape[0], 1, out.shape[0]
            )
            plus = plus + np.array(bias, np.float64)
        then = "relu" if "RELU" in kind.name else "gelu_tanh" if "GELU" in kind.name else None
        transposed = [chosen[DescAttribute.TRANSA], chosen[DescAttribute.TRANSB]]
        operands = [x.T if t else x for x, t in zip((left, right), transposed, strict=True)]
        multiply(*operands, out, self.seen.tf32("cublasLt", compute == COMPUTE_TF32), plus, then)
        self.seen.calls.append(("cublasLt", "matmul", number, kind.name))
        self.seen.clock += self.speeds[number]


def make_nvmath(seen: Recorder) -> FakeLt:
    lt = FakeLt(seen)
    nvmath, bindings = types.ModuleType("nvmath"), types.ModuleType("nvmath.bindings")
    cublas = types.ModuleType("nvmath.bindings.cublas")
    cublas.ComputeType = ComputeType  # type: ignore[attr-defined]
    bindings.cublas, bindings.cublasLt, nvmath.bindings = cublas, lt, bindings  # type: ignore[attr-defined]
    names = ("nvmath", "nvmath.bindings", "nvmath.bindings.cublas", "nvmath.bindings.cublasLt")
    sys.modules.update(dict(zip(names, (nvmath, bindings, cublas, lt), strict=True)))
    return lt


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
    names = [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupy_backends", "nvmath", "torch")]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    monkeypatch.setattr("gpulinear.measure.providers.torch_.Torch._active", None)
    monkeypatch.setattr("gpulinear.measure.providers.torch_.Torch._stream", None)
    seen = Recorder()
    cupy = make_cupy(seen)
    make_cublas(seen)
    yield types.SimpleNamespace(seen=seen, cupy=cupy, lt=make_nvmath(seen), torch=make_torch(seen))  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("cupy", "cupy_backends", "nvmath", "torch"):
            del sys.modules[name]
