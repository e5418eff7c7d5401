"""Judges arrays: kind, dtype, shape, strides, address and aliasing.

Everything later (problems, plans, launches) works with what this module says and does not look at an array again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from .errors import ArgumentError, BackendError, DTypeError, ShapeError
from .planes import ALIGN, Planes, kept_bytes, pitch_of
from .problem import ITEMSIZE, MAX_DIM, Matrix, Vector

_DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

HOST = -1  # the "device" of NumPy arrays

MAX_COPY_DIMS = 16  # kernels/strided_copy.cuh


@dataclass(frozen=True)
class ShapeDtype:
    """An array that need not exist: its shape and dtype, for ``explain`` and ``warmup``."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class ArrayView:
    """What is known of one array argument. ``strides`` in bytes; ``device`` is HOST for NumPy.

    ``planes`` is the precision of ``Planes``, whose buffer is then ``array`` and whose strides mean nothing.
    """

    name: str
    array: Any
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pointer: int
    device: int
    writeable: bool = True
    planes: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def byte_range(self) -> tuple[int, int]:
        """[low, high) of the addresses that its elements occupy; empty arrays give an empty range."""
        if self.size == 0:
            return self.pointer, self.pointer
        if self.planes is not None:
            return self.pointer, self.pointer + kept_bytes(self.shape[0], self.shape[1], self.planes)
        low = high = self.pointer
        for extent, stride in zip(self.shape, self.strides, strict=True):
            reach = (extent - 1) * stride
            low += min(reach, 0)
            high += max(reach, 0)
        return low, high + ITEMSIZE[self.dtype]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype object of one of the four dtype names."""
    dtype: np.dtype[Any] = _DTYPES[name]
    return dtype


def dtype_name(dtype: Any, what: str) -> str:
    """The name of a supported dtype given as a name, a NumPy dtype or a scalar type; DTypeError otherwise."""
    try:
        resolved = _DTYPES[dtype] if isinstance(dtype, str) and dtype in _DTYPES else np.dtype(dtype)
    except TypeError:
        resolved = None
    name = _NAMES.get(resolved) if resolved is not None else None
    if name is None:
        hint = ""
        if resolved is not None and not resolved.isnative:
            hint = "; byte-swapped data must be converted with .astype first"
        raise DTypeError(f"{what} must be float64, float32, float16 or bfloat16, got {dtype}{hint}")
    return name


def is_cupy(array: Any) -> bool:
    """Whether ``array`` is a CuPy array, asked without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def _refuse_type(name: str, array: Any) -> DTypeError:
    module = type(array).__module__.partition(".")[0]
    kind = f"{type(array).__module__}.{type(array).__name__}"
    if module == "torch":
        fix = f"cupy.from_dlpack({name}) for a CUDA tensor or numpy.from_dlpack({name}) for a CPU one"
    elif module in ("jax", "jaxlib") or hasattr(array, "__dlpack__"):
        fix = f"cupy.from_dlpack({name}) on a GPU or numpy.from_dlpack({name}) on the host"
    elif hasattr(array, "__cuda_array_interface__"):
        fix = f"cupy.asarray({name})"
    else:
        fix = f"numpy.asarray({name}) or cupy.asarray({name})"
    return DTypeError(f"{name} must be a NumPy or CuPy array, got {kind}; convert it with {fix}")


def describe(name: str, array: Any) -> ArrayView:
    """Judge one array argument.

    Raises DTypeError for another array type or an unsupported dtype.
    """
    if isinstance(array, ShapeDtype):
        dtype = dtype_name(array.dtype, f"{name}.dtype")
        shape = tuple(int(extent) for extent in array.shape)
        if any(extent < 0 for extent in shape):
            raise ShapeError(f"{name}: a shape has no negative extents, got {shape}")
        return ArrayView(name, None, dtype, shape, contiguous_strides(shape, ITEMSIZE[dtype]), 0, HOST)
    if isinstance(array, Planes):
        view = describe(name, array.buffer)
        if view.pointer % ALIGN:
            raise ShapeError(
                f"{name}: planes must lie at a multiple of {ALIGN} bytes, got {view.pointer:#x}; use those of split"
            )
        return replace(view, shape=array.shape, strides=(), planes=array.precision)
    if type(array) is np.ndarray or isinstance(array, np.ndarray):
        if isinstance(array, np.ma.MaskedArray):
            raise DTypeError(f"{name} is a masked array; fill it first with {name}.filled(0)")
        pointer, device, writeable = array.ctypes.data, HOST, array.flags.writeable
    elif is_cupy(array):
        pointer, device, writeable = array.data.ptr, array.data.device_id, True
    else:
        raise _refuse_type(name, array)
    dtype = dtype_name(array.dtype, f"{name}.dtype")
    return ArrayView(name, array, dtype, array.shape, array.strides, pointer, device, writeable)


def contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Byte strides of a C-contiguous array."""
    strides: list[int] = []
    step = itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def common_device(views: Sequence[ArrayView]) -> int:
    """The one device on which all arrays live; BackendError when NumPy and CuPy or two GPUs are mixed."""
    real = [view for view in views if view.array is not None]
    devices = {view.device for view in real}
    if len(devices) <= 1:
        return devices.pop() if devices else HOST
    places = ", ".join(
        f"{view.name} on {'the host (NumPy)' if view.device == HOST else f'GPU {view.device}'}" for view in real
    )
    raise BackendError(
        f"all arrays of a call must live in one place, got {places}; move them with cupy.asarray or cupy.asnumpy"
    )


def same_dtype(views: Sequence[ArrayView]) -> str:
    """The dtype that all operands share; DTypeError otherwise."""
    first = views[0]
    for view in views[1:]:
        if view.dtype != first.dtype:
            raise DTypeError(
                f"operands of one call share a dtype, got {first.name} {first.dtype} and {view.name} {view.dtype}; "
                f"convert one with .astype"
            )
    return first.dtype


def alignment(pointers: Sequence[int]) -> int:
    """The largest power of two, at most 128, that divides every pointer (bytes)."""
    bits = 128
    for pointer in pointers:
        bits |= pointer
    return bits & -bits


def _row_stride(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The single byte stride that walks all leading dimensions in C order, or None where there is none."""
    step: int | None = None
    span = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent == 1:
            continue
        if step is None:
            step = stride
        elif stride != step * span:
            return None
        span *= extent
    return 0 if step is None else step


def matrix(view: ArrayView, align: int) -> Matrix:
    """The array as a (rows, last dimension) matrix, all leading dimensions flattened; a vector is one row."""
    *lead, cols = view.shape
    rows = math.prod(lead)
    if view.planes is not None:
        return Matrix(view.name, rows, cols, pitch_of(cols, view.planes), 1, view.dtype, planes=view.planes)
    check_extent(f"the rows of {view.name}", rows)
    check_extent(f"the last dimension of {view.name}", cols)
    itemsize = ITEMSIZE[view.dtype]
    row = _row_stride(lead, view.strides[:-1])
    col = view.strides[-1] if cols > 1 else itemsize
    if rows <= 1:
        row = cols * itemsize
    if row is None or row % itemsize or col % itemsize or align < itemsize:
        live = [(e, s) for e, s in zip(view.shape, view.strides, strict=True) if e != 1]
        if len(live) > MAX_COPY_DIMS:
            raise ShapeError(f"{view.name} has {len(live)} dimensions that cannot be merged; at most {MAX_COPY_DIMS}")
        shape, strides = tuple(e for e, _ in live), tuple(s for _, s in live)
        return Matrix(view.name, rows, cols, max(cols, 1), 1, view.dtype, 128, (shape, strides))
    return Matrix(view.name, rows, cols, row // itemsize, col // itemsize, view.dtype, align)


def vector(view: ArrayView, align: int) -> Vector:
    """A 1-D array; a stride that is no multiple of the item is refused (no kernel reads it)."""
    itemsize = ITEMSIZE[view.dtype]
    check_extent(f"the size of {view.name}", view.shape[0])
    stride = view.strides[0] if view.shape[0] > 1 else itemsize
    if stride % itemsize or align < itemsize:
        raise ShapeError(
            f"{view.name} must lie at multiples of its {itemsize}-byte items, got stride {view.strides[0]} and "
            f"address {view.pointer:#x}; pass a copy"
        )
    return Vector(view.name, view.shape[0], stride // itemsize, view.dtype, align)


def check_extent(what: str, extent: int) -> None:
    """ShapeError for an extent that 32-bit kernel indices cannot hold."""
    if extent > MAX_DIM:
        raise ShapeError(f"{what} may be at most {MAX_DIM}, got {extent}; split the call")


def check_output(view: ArrayView, shape: tuple[int, ...], dtypes: Sequence[str]) -> None:
    """An output needs the exact shape, one of ``dtypes``, a unit last stride, rows that do not overlap, and write access."""
    if view.shape != shape:
        raise ShapeError(f"{view.name} must have shape {shape}, got {view.shape}")
    if view.dtype not in dtypes:
        raise DTypeError(f"{view.name} must be {' or '.join(dtypes)} here, got {view.dtype}")
    if not view.writeable:
        raise ArgumentError(f"{view.name} must be writeable, got a read-only array; pass a copy or a fresh buffer")
    itemsize = ITEMSIZE[view.dtype]
    if view.pointer % itemsize:
        raise ShapeError(f"{view.name} must lie at a multiple of its {itemsize}-byte items, got {view.pointer:#x}")
    if view.size == 0:
        return
    span = itemsize
    dims = [(e, s) for e, s in zip(view.shape, view.strides, strict=True) if e != 1]
    last_is_unit = view.shape[-1] == 1 or view.strides[-1] == itemsize
    for extent, stride in sorted(dims, key=lambda dim: dim[1]):
        if not last_is_unit or stride < span or stride % itemsize:
            raise ShapeError(
                f"{view.name} needs a unit last stride and row strides of at least the width "
                f"({view.shape[-1]} items of {itemsize} bytes), got byte strides {view.strides}"
            )
        span = stride * (extent - 1) + span


def _rows_of(view: ArrayView) -> tuple[int, int] | None:
    """(positive row stride, width), both in bytes, of an array of rows; None for anything else."""
    if len(view.shape) < 2 or view.planes is not None:
        return None
    itemsize = ITEMSIZE[view.dtype]
    row = _row_stride(view.shape[:-1], view.strides[:-1])
    if row is None or row <= 0 or (view.shape[-1] > 1 and view.strides[-1] != itemsize):
        return None
    return row, view.shape[-1] * itemsize


def overlap(first: ArrayView, second: ArrayView) -> bool:
    """Whether two arrays may share memory. Disjoint column ranges of one fused buffer do not."""
    low1, high1 = first.byte_range()
    low2, high2 = second.byte_range()
    if first.device != second.device or low1 >= high2 or low2 >= high1:
        return False
    rows1, rows2 = _rows_of(first), _rows_of(second)
    if rows1 is None or rows2 is None or rows1[0] != rows2[0]:
        return True
    stride = rows1[0]
    offset = (second.pointer - first.pointer) % stride
    return not (offset >= rows1[1] and offset + rows2[1] <= stride)


def check_overlaps(outputs: Sequence[ArrayView], inputs: Sequence[ArrayView]) -> None:
    """ArgumentError where an output overlaps an input or another output. What need not exist overlaps nothing."""
    for index, out in enumerate(outputs):
        for other in (*inputs, *outputs[index + 1 :]):
            if out.array is not None and other.array is not None and overlap(out, other):
                raise ArgumentError(
                    f"{out.name} overlaps {other.name} in memory; outputs may share memory with nothing but disjoint "
                    f"column ranges of one buffer with the same row stride; pass a copy or another buffer"
                )
