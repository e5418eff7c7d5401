"""Tensor maps: what TMA needs to know of a matrix, checked by the documented rules, encoded once and kept.

``TensorMapSpec`` is everything but the address, and part of a plan. An encoder has the arguments of
cuTensorMapEncodeTiled: the driver's own on a GPU (``encode_on_driver``), the emulator's model elsewhere.

Source of the rules: the CUDA driver API, cuTensorMapEncodeTiled (the comment in cuda.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import BackendError
from .problem import ITEMSIZE, Matrix

MAP_BYTES = 128
ALIGN = 16  # bytes: of a base and of a row pitch
SWIZZLE_BYTES = 128  # of the swizzle, and the most that a row of a box may have

# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion; interleave and out-of-bounds fill are 0 (none, zeros).
_DATA_TYPE = {"float16": 6, "float32": 7, "bfloat16": 9}
_SWIZZLE_128B = 3
_L2_PROMOTION_256B = 3

_SINCE = 12000  # the CUDA version that brought cuTensorMapEncodeTiled
# Its C type: the map (aligned to 64 bytes); type, rank, address; sizes, strides, box, steps; interleave, swizzle, L2
# promotion, fill. Enumerations are ints.
_EncodeTiled = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p),
    *(ctypes.POINTER(ctypes.c_uint64),) * 2,
    *(ctypes.POINTER(ctypes.c_uint32),) * 2,
    *(ctypes.c_int,) * 4,
)

Encoder = Callable[..., bytes]


@dataclass(frozen=True)
class TensorMapSpec:
    """A row-major matrix of ``rows`` x ``cols`` elements, ``pitch`` bytes from row to row, and the box that is copied.

    Of several ``planes``, matrices of one shape that follow each other, a box lies in one: the plane is the third
    coordinate.
    """

    dtype: str
    rows: int
    cols: int
    pitch: int
    box_rows: int
    box_cols: int
    planes: int = 1

    def arguments(self, address: int) -> tuple[Any, ...]:
        """The arguments of cuTensorMapEncodeTiled, without the map itself. BackendError where one breaks a rule."""
        self.check(address)
        rank = 3 if self.planes > 1 else 2
        dims = (self.cols, self.rows, self.planes)[:rank]
        strides = (self.pitch, self.rows * self.pitch)[: rank - 1]
        box = (self.box_cols, self.box_rows, 1)[:rank]
        steps = (1,) * rank
        how = (0, _SWIZZLE_128B, _L2_PROMOTION_256B, 0)
        return (_DATA_TYPE[self.dtype], rank, address, dims, strides, box, steps, *how)

    def check(self, address: int) -> None:
        """Every documented rule for the arguments, before the driver refuses them all with one code."""
        if self.dtype not in _DATA_TYPE:
            raise BackendError(f"a tensor map is of {' or '.join(_DATA_TYPE)}, got {self.dtype}")
        row = self.box_cols * ITEMSIZE[self.dtype]
        rules = (
            (address % ALIGN == 0 and 0 <= address < 1 << 64, f"its address must be a multiple of {ALIGN}", address),
            (1 <= self.rows <= 1 << 32, "it must have 1 to 2^32 rows", self.rows),
            (1 <= self.cols <= 1 << 32, "it must have 1 to 2^32 columns", self.cols),
            (self.pitch % ALIGN == 0, f"its row pitch must be a multiple of {ALIGN} bytes", self.pitch),
            (0 <= self.pitch < 1 << 40, "its row pitch must be below 2^40 bytes", self.pitch),
            (self.pitch >= self.cols * ITEMSIZE[self.dtype], "its rows must not overlap", self.pitch),
            (1 <= self.planes <= 1 << 32, "it must have 1 to 2^32 planes", self.planes),
            (self.planes == 1 or self.rows * self.pitch < 1 << 40, "a plane must have less than 2^40 bytes", self),
            (1 <= self.box_rows <= 256 and 1 <= self.box_cols <= 256, "a box has 1 to 256 rows and columns", self),
            (row % ALIGN == 0, f"a row of its box must be a multiple of {ALIGN} bytes", row),
            (row <= SWIZZLE_BYTES, f"a row of its box must fit the swizzle's {SWIZZLE_BYTES} bytes", row),
        )
        for holds, rule, seen in rules:
            if not holds:
                raise BackendError(f"TMA cannot address this matrix: {rule}, got {seen}; copy it to aligned rows first")


def rows_of(m: Matrix) -> int | None:
    """The row pitch in bytes by which TMA can address a matrix along its rows, or None where it cannot.

    Base and pitch must be multiples of 16 bytes, and rows must follow each other without overlap. A single row has any
    pitch.
    """
    item = ITEMSIZE[m.dtype]
    pitch = aligned(m.cols * item) if m.rows == 1 else m.row_stride * item
    fits = pitch % ALIGN == 0 and m.cols * item <= pitch < 1 << 40
    return pitch if m.scatter is None and m.align >= ALIGN and m.row_major and fits else None


def major_of(m: Matrix, *, rows_first: bool) -> tuple[bool, int] | None:
    """How TMA can read a matrix in place: (along its rows, pitch in bytes), or None where it cannot.

    ``rows_first`` decides where both ways are possible.
    """
    ways = ((True, rows_of(m)), (False, rows_of(m.T)))
    for along_rows, pitch in ways if rows_first else ways[::-1]:
        if pitch is not None:
            return along_rows, pitch
    return None


def aligned(nbytes: int) -> int:
    """Rounded up to a pitch that TMA takes."""
    return -(-nbytes // ALIGN) * ALIGN


class TensorMaps:
    """Encodes each (spec, address) once. A map says nothing of what the memory holds, so it stays right for ever."""

    limit = 4096

    def __init__(self, encode: Encoder) -> None:
        self._encode = encode
        self._known: dict[tuple[TensorMapSpec, int], bytes] = {}

    def get(self, spec: TensorMapSpec, address: int) -> bytes:
        """The 128 bytes of a map. BackendError where the arguments break a rule or the driver refuses them."""
        found = self._known.get((spec, address))
        if found is None:
            found = self._encode(*spec.arguments(address))
            if len(self._known) >= self.limit:
                self._known.clear()
            self._known[spec, address] = found
        return found


def encode_on_driver(
    data_type: int,
    rank: int,
    address: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    steps: tuple[int, ...],
    interleave: int,
    swizzle: int,
    promotion: int,
    fill: int,
) -> bytes:
    """cuTensorMapEncodeTiled of the CUDA driver, with a context current. BackendError where it refuses."""
    from cuda.bindings import driver

    # Not driver.cuTensorMapEncodeTiled: that one encodes into a Python object, whose memory is aligned to 16 bytes.
    status, function, _ = driver.cuGetProcAddress(b"cuTensorMapEncodeTiled", _SINCE, 0)
    if int(status) != 0 or not function:
        raise BackendError(
            f"the driver has no cuTensorMapEncodeTiled ({status}); TMA needs a driver of CUDA 12 or newer"
        )
    memory = ctypes.create_string_buffer(2 * MAP_BYTES)
    start = -ctypes.addressof(memory) % MAP_BYTES
    code = _EncodeTiled(int(function))(
        ctypes.addressof(memory) + start,
        data_type,
        rank,
        address,
        (ctypes.c_uint64 * len(dims))(*dims),
        (ctypes.c_uint64 * len(strides))(*strides),
        (ctypes.c_uint32 * len(box))(*box),
        (ctypes.c_uint32 * len(steps))(*steps),
        interleave,
        swizzle,
        promotion,
        fill,
    )
    if code != 0:
        raise BackendError(
            f"the driver refused a tensor map of {dims[1]}x{dims[0]} elements, {strides[0]} bytes apart, in boxes of "
            f"{box[1]}x{box[0]}, at {address:#x}: CUresult {code}; please report this with `gpulinear info`"
        )
    return memory.raw[start : start + MAP_BYTES]
