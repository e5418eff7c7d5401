"""Tensor maps on the host: every documented rule in words, encoded once per address, the driver called as it wants."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.emulator import tensormap as model
from gpulinear.errors import BackendError
from gpulinear.params import PARAM_BLOCKS
from gpulinear.plan import Options
from gpulinear.problem import Matrix
from gpulinear.tensormap import TensorMaps, TensorMapSpec, encode_on_driver, major_of, rows_of

from .fake_cupy import FakeCupy, ndarray
from .test_cuda_backend import fields

BF16 = np.dtype(ml_dtypes.bfloat16)
SPEC = TensorMapSpec("bfloat16", rows=100, cols=70, pitch=144, box_rows=128, box_cols=64)
BASE = 1 << 30

WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "base": ({}, BASE + 8, "address must be a multiple of 16"),
    "pitch": ({"pitch": 150}, BASE, "row pitch must be a multiple of 16"),
    "overlap": ({"pitch": 128}, BASE, "rows must not overlap"),
    "wide pitch": ({"pitch": 1 << 40}, BASE, "below 2"),
    "no rows": ({"rows": 0}, BASE, "1 to 2\\^32 rows"),
    "no columns": ({"cols": 0}, BASE, "columns"),
    "too many rows": ({"rows": (1 << 32) + 1}, BASE, "rows"),
    "tall box": ({"box_rows": 257}, BASE, "1 to 256"),
    "narrow box": ({"box_cols": 4}, BASE, "a row of its box must be a multiple"),
    "wide box": ({"box_cols": 72}, BASE, "fit the swizzle"),
    "dtype": ({"dtype": "float64"}, BASE, "float16 or float32 or bfloat16, got float64"),
    "no planes": ({"planes": 0}, BASE, "1 to 2\\^32 planes"),
    "huge planes": ({"planes": 2, "rows": 1 << 32, "pitch": 256}, BASE, "less than 2\\^40 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rules_are_checked_in_words(case: str) -> None:
    changes, address, message = WRONG[case]
    with pytest.raises(BackendError, match=message):
        replace(SPEC, **changes).arguments(address)


def test_what_passes_here_passes_the_emulators_rules() -> None:
    for spec in (SPEC, replace(SPEC, rows=1), replace(SPEC, cols=1, pitch=16), replace(SPEC, rows=1 << 32)):
        found = model.decode(model.encode_tiled(*spec.arguments(BASE)))
        assert found is not None and found.address == BASE and found.dims == (spec.cols, spec.rows)
        assert found.strides == (spec.pitch,) and found.box == (64, 128) and found.swizzle == model.Swizzle.BYTES_128
        assert found.type == "bf16" and not found.nan_fill
    wide = model.decode(model.encode_tiled(*replace(SPEC, dtype="float32", pitch=288, box_cols=32).arguments(BASE)))
    assert wide is not None and wide.type == "f32" and wide.box_shape == (128, 128)


def test_planes_are_a_third_dimension() -> None:
    spec = replace(SPEC, planes=3)
    found = model.decode(model.encode_tiled(*spec.arguments(BASE)))
    assert found is not None and found.dims == (70, 100, 3) and found.box == (64, 128, 1)
    assert found.strides == (144, 100 * 144)
    floats = replace(spec, dtype="float32", pitch=288, box_cols=32)
    found = model.decode(model.encode_tiled(*floats.arguments(BASE)))
    assert found is not None and found.type == "f32" and found.box_bytes == 128 * 128


def test_what_can_be_addressed_in_place() -> None:
    rows = Matrix("x", 5, 40, 40, 1, "bfloat16")
    assert rows_of(rows) == 80 and major_of(rows, rows_first=True) == (True, 80)
    assert major_of(rows.T, rows_first=True) == (False, 80)
    assert rows_of(replace(rows, align=8)) is None
    assert rows_of(replace(rows, row_stride=41)) is None and rows_of(replace(rows, row_stride=0)) is None
    assert rows_of(replace(rows, row_stride=32)) is None and rows_of(replace(rows, row_stride=-40)) is None
    assert rows_of(replace(rows, rows=1, row_stride=-3)) == 80 and rows_of(replace(rows, rows=1, cols=41)) == 96
    column = Matrix("x", 48, 1, 1, 7, "bfloat16")  # both ways contiguous, and rows of two bytes
    assert major_of(column, rows_first=True) == (False, 96)


def test_each_map_is_encoded_once_and_the_number_kept_is_bounded() -> None:
    calls: list[int] = []

    def encode(*arguments: Any) -> bytes:
        calls.append(arguments[2])
        return model.encode_tiled(*arguments)

    maps = TensorMaps(encode)
    first = maps.get(SPEC, BASE)
    assert maps.get(SPEC, BASE) is first and calls == [BASE]
    assert maps.get(SPEC, BASE + 16) != first and maps.get(replace(SPEC, rows=99), BASE) != first
    assert calls == [BASE, BASE + 16, BASE]
    maps.limit = 4
    for step in range(20):
        maps.get(SPEC, BASE + 32 * step)
        assert len(maps._known) <= 4
    assert maps.get(SPEC, BASE) == first, "a map that was let go is encoded again"


class FakeDriver(types.ModuleType):
    """cuda.bindings.driver as far as it is used: a C function that encodes like the emulator, or returns an error."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.status, self.encoded = 0, 0
        self.context: Callable[[], int] = lambda: 1
        self.found = True
        words, longs = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint64)
        numbers = [ctypes.c_uint32] * 4
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_void_p,
            longs,
            longs,
            words,
            words,
            *numbers,
        )
        self._function = kind(self._encode)

    def cuGetProcAddress(self, symbol: bytes, version: int, flags: int) -> tuple[int, int, int]:
        assert (symbol, version, flags) == (b"cuTensorMapEncodeTiled", 12000, 0)
        return 0, (ctypes.cast(self._function, ctypes.c_void_p).value or 0) if self.found else 0, 0

    def _encode(self, place: int, kind: int, rank: int, address: int, *rest: Any) -> int:
        arrays = [values[:length] for values, length in zip(rest, (rank, rank - 1, rank, rank), strict=False)]
        if not self.context():
            return 201  # CUDA_ERROR_INVALID_CONTEXT
        if self.status or place % 64:
            return self.status or 1  # CUDA_ERROR_INVALID_VALUE
        self.encoded += 1
        ctypes.memmove(place, model.encode_tiled(kind, rank, address, *arrays, *rest[4:]), 128)
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    import cuda.bindings
    import cuda.bindings.nvrtc  # imports the real driver module once

    fake = FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setattr(cuda.bindings, "driver", fake, raising=False)
    return fake


def test_the_driver_is_asked_with_checked_arguments(driver: FakeDriver) -> None:
    arguments = SPEC.arguments(BASE)
    assert encode_on_driver(*arguments) == model.encode_tiled(*arguments)
    driver.status = 1
    with pytest.raises(BackendError, match=r"the driver refused a tensor map of 100x70 elements, 144 bytes apart"):
        encode_on_driver(*arguments)
    driver.found = False
    with pytest.raises(BackendError, match="the driver has no cuTensorMapEncodeTiled"):
        encode_on_driver(*arguments)


def test_a_map_is_encoded_where_the_driver_can_write_it(driver: FakeDriver) -> None:
    """Aligned to 64 bytes, wherever the allocator puts things."""
    kept = []
    for size in range(1, 200):
        kept.append(ctypes.create_string_buffer(16 * size))
        encode_on_driver(*SPEC.arguments(BASE))
    assert driver.encoded == len(kept)


def maps_of(launch: dict[str, Any]) -> dict[str, model.TensorMap | None]:
    return {name: model.decode(value) for name, value in fields(launch).items() if isinstance(value, bytes)}


def test_a_warm_call_has_maps_of_the_arrays_it_is_given(driver: FakeDriver, fake_cupy: FakeCupy) -> None:
    def array(*shape: int) -> ndarray:
        """At a 16-byte boundary, as CuPy's are."""
        raw = np.zeros(2 * int(np.prod(shape)) + 128, np.uint8)
        start = -raw.ctypes.data % 128
        return ndarray(raw[start : start + 2 * int(np.prod(shape))].view(BF16).reshape(shape))

    x, w, y = array(72, 64), array(80, 64), array(72, 80)
    with gemm.planning(Options(family="gemm_wgmma", tile="64x64x64")):
        gl.linear(x, w, out=y)
        (launch,) = fake_cupy.launches
        assert launch["kernel"] == "gpulinear_gemm_wgmma" and len(launch["params"]) == PARAM_BLOCKS["gemm_wgmma"].size
        found = maps_of(launch)
        assert [found[f"map_{name}"].address for name in ("a", "b", "d")] == [x.data.ptr, w.data.ptr, y.data.ptr]
        assert found["map_preact"] is None and driver.encoded == 3
        gl.linear(x, w, out=y)
        assert driver.encoded == 3, "nothing has moved"
        other = array(72, 64)
        gl.linear(other, w, out=y)
        assert driver.encoded == 4
        assert maps_of(fake_cupy.launches[-1])["map_a"].address == other.data.ptr
        assert fields(fake_cupy.launches[-1])["d"] == y.data.ptr


def test_a_thread_without_a_context_gets_one_before_it_encodes(driver: FakeDriver, fake_cupy: FakeCupy) -> None:
    driver.context = lambda: fake_cupy.context
    x, w = fake_cupy.empty((72, 64), BF16), fake_cupy.empty((80, 64), BF16)
    with gemm.planning(Options(family="gemm_wgmma", tile="64x64x64")):
        fake_cupy.context = 0
        gl.linear(x, w)
        assert driver.encoded > 0 and fake_cupy.context == 1
