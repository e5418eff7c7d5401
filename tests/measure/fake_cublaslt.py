"""A host-memory stand-in for nvmath's cuBLASLt bindings, as far as the provider uses them."""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from typing import Any

import numpy as np

from .fake_blas import (
    COMPUTE_32F,
    COMPUTE_64F,
    COMPUTE_TF32,
    R_32F,
    R_64F,
    Recorder,
    column_major,
    multiply,
    scalar,
)

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
