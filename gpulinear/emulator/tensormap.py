"""Tensor maps: the argument rules of cuTensorMapEncodeTiled, our own encoding of its 128 bytes, and box addressing.

``encode_tiled`` takes the arguments of the driver's function (as cuda.bindings has it: no output argument) under the
same names and in the same order, so that one host function can fill in maps for a GPU and for the emulator. The 128
bytes hold all fields and a checksum: a map can be copied through memory, and garbage is recognised.

Sources: the CUDA driver API (the comment of cuTensorMapEncodeTiled in cuda.h) for the rules, PTX ISA 9.0, 5.5 for boxes
(5.5.3.1), out-of-bounds elements (5.5.3.3) and swizzling (5.5.7).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any, SupportsInt

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.errors import LaunchError, NotModelledError
from gpulinear.emulator.types import width_of

Array = npt.NDArray[Any]

SIZE = 128
ALIGNMENT = 64
"""Of a tensor map in memory."""


class DataType(IntEnum):
    """CUtensorMapDataType, without its prefix."""

    UINT8 = 0
    UINT16 = 1
    UINT32 = 2
    INT32 = 3
    UINT64 = 4
    INT64 = 5
    FLOAT16 = 6
    FLOAT32 = 7
    FLOAT64 = 8
    BFLOAT16 = 9
    FLOAT32_FTZ = 10
    TFLOAT32 = 11
    TFLOAT32_FTZ = 12
    U4_ALIGN8B = 13
    U4_ALIGN16B = 14
    U6_ALIGN16B = 15


class Interleave(IntEnum):
    """CUtensorMapInterleave, without its prefix."""

    NONE = 0
    BYTES_16 = 1
    BYTES_32 = 2


class Swizzle(IntEnum):
    """CUtensorMapSwizzle, without its prefix."""

    NONE = 0
    BYTES_32 = 1
    BYTES_64 = 2
    BYTES_128 = 3
    BYTES_128_ATOM_32 = 4
    BYTES_128_ATOM_32_FLIP_8 = 5
    BYTES_128_ATOM_64 = 6


class L2Promotion(IntEnum):
    """CUtensorMapL2promotion, without its prefix."""

    NONE = 0
    BYTES_64 = 1
    BYTES_128 = 2
    BYTES_256 = 3


class OobFill(IntEnum):
    """CUtensorMapFloatOOBfill, without its prefix."""

    NONE = 0
    NAN_REQUEST_ZERO_FMA = 1


_PTX_TYPES = {
    DataType.UINT8: "u8",
    DataType.UINT16: "u16",
    DataType.UINT32: "u32",
    DataType.INT32: "s32",
    DataType.UINT64: "u64",
    DataType.INT64: "s64",
    DataType.FLOAT16: "f16",
    DataType.FLOAT32: "f32",
    DataType.FLOAT64: "f64",
    DataType.BFLOAT16: "bf16",
}
"""What is modelled."""
_BITS = dict(zip(DataType, (8, 16, 32, 32, 64, 64, 16, 32, 64, 16, 32, 32, 32, 4, 4, 6), strict=True))
_PADDED = (DataType.U4_ALIGN16B, DataType.U6_ALIGN16B)
_FLOATS = frozenset(t for t in DataType if "FLOAT" in t.name)
_SPANS = {Swizzle.NONE: 0, Swizzle.BYTES_32: 32, Swizzle.BYTES_64: 64}  # all others: 128
# Magic; type, rank, interleave, swizzle, L2 promotion, fill; 0; address; dims - 1; strides; box; element strides.
_FIELDS = struct.Struct("<8s6BHQ5I4Q5H5B")
_MAGIC = b"gl.tmap\x01"


@dataclass(frozen=True)
class Window:
    """The part of a box that lies inside the tensor; its axes are outermost first, the last one counts bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in global memory, in bytes
    place: tuple[slice, ...]  # in the box


@dataclass(frozen=True)
class TensorMap:
    """A decoded map; dimension 0 is the innermost one, as in the driver's arguments."""

    type: str  # PTX type of the elements
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]  # bytes, of dimensions 1 and up
    box: tuple[int, ...]
    swizzle: Swizzle
    nan_fill: bool

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return width_of(self.type) // 8

    @property
    def box_bytes(self) -> int:
        """Bytes of a whole box: what a load writes and counts, out-of-bounds elements included."""
        return prod(self.box) * self.item

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Shape of a box as an array of bytes, outermost dimension first."""
        return (*self.box[:0:-1], self.box[0] * self.item)

    def empty_box(self) -> Array:
        """A box all of whose elements are out of bounds (PTX ISA 5.5.3.3); the bits of the NaN are our choice."""
        box = np.zeros(self.box_shape, np.uint8)
        if self.nan_fill:
            box[:] = 0xFF
            box[..., self.item - 1 :: self.item] = 0x7F
        return box

    def box_address(self, coordinates: Sequence[int]) -> int:
        """The address of a box's first element, in or out of bounds."""
        return (
            self.address
            + coordinates[0] * self.item
            + sum(c * stride for c, stride in zip(coordinates[1:], self.strides, strict=True))
        )

    def window(self, coordinates: Sequence[int]) -> Window | None:
        """What of the box at these coordinates is inside the tensor; None if nothing is."""
        low = [max(0, -c) for c in coordinates]
        high = [min(b, d - c) for b, d, c in zip(self.box, self.dims, coordinates, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        first = self.box_address([c + a for c, a in zip(coordinates, low, strict=True)])
        sizes = [b - a for a, b in zip(low, high, strict=True)]
        inner = slice(low[0] * self.item, high[0] * self.item)
        return Window(
            first,
            (*sizes[:0:-1], sizes[0] * self.item),
            (*self.strides[::-1], 1),
            (*(slice(a, b) for a, b in zip(low[:0:-1], high[:0:-1], strict=True)), inner),
        )

    def chunks(self, base: int) -> Array:
        """Where the 16-byte chunks of a box at ``base`` lie in shared memory, in the order of the box.

        A chunk's place in its 128-byte line is XORed with the low bits of the line's number (PTX ISA 5.5.7); these are
        bits of the address itself, which is how a base off the pattern's boundary shifts the pattern.
        """
        address = base + np.arange(0, self.box_bytes, 16)
        mask = {Swizzle.BYTES_32: 1, Swizzle.BYTES_64: 3, Swizzle.BYTES_128: 7}.get(self.swizzle, 0)
        return np.asarray(address ^ (((address >> 7) & mask) << 4))


def _require(holds: bool, rule: str, fix: str) -> None:
    if not holds:
        raise LaunchError(f"cuTensorMapEncodeTiled: {rule}. {fix}.")


def _member(kind: type[IntEnum], value: SupportsInt, name: str) -> Any:
    number = int(value)
    if number not in kind._value2member_map_:
        known = ", ".join(f"{m.name} = {m.value}" for m in kind)
        raise LaunchError(f"cuTensorMapEncodeTiled: {name} must be one of {known}, got {number}.")
    return kind(number)


def _integers(values: Sequence[SupportsInt] | None, count: int, name: str) -> tuple[int, ...]:
    numbers = tuple(int(v) for v in values or ())
    _require(
        len(numbers) == count, f"{name} must have {count} entries for this rank, got {len(numbers)}", "Give all of them"
    )
    return numbers


def _check_tensor(
    data_type: DataType, address: int, dims: tuple[int, ...], strides: tuple[int, ...], interleave: Interleave
) -> None:
    wide = interleave == Interleave.BYTES_32 or data_type in _PADDED
    align = 32 if wide else 16
    _require(
        address % align == 0 and 0 <= address < 1 << 64,
        f"globalAddress must be a multiple of {align}, got {address:#x}",
        "Align the base of the tensor (a view may start anywhere: copy it)",
    )
    for i, size in enumerate(dims):
        _require(
            1 <= size <= 1 << 32, f"globalDim[{i}] must be 1 to 2^32, got {size}", "Do not launch for an empty tensor"
        )
    unit = 128 if data_type in _PADDED else 2 if data_type == DataType.U4_ALIGN8B else 1
    _require(dims[0] % unit == 0, f"globalDim[0] must be a multiple of {unit} for this type, got {dims[0]}", "Pad it")
    least = dims[0] * _BITS[data_type] // 8
    for i, stride in enumerate(strides):
        _require(
            stride % align == 0 and 0 <= stride < 1 << 40,
            f"globalStrides[{i}] must be a multiple of {align} bytes below 2^40, got {stride}",
            "Pad the rows of the tensor",
        )
        _require(
            stride >= least,
            f"globalStrides[{i}] must hold dimension {i} ({least} bytes), got {stride}",
            "Strides are in bytes, each includes the dimension below it",
        )
        least = stride * dims[i + 1]


def _check_box(
    data_type: DataType, box: tuple[int, ...], steps: tuple[int, ...], interleave: Interleave, swizzle: Swizzle
) -> None:
    for i, size in enumerate(box):
        _require(1 <= size <= 256, f"boxDim[{i}] must be 1 to 256, got {size}", "Cut the tile into several boxes")
    for i, step in enumerate(steps):
        _require(1 <= step <= 8, f"elementStrides[{i}] must be 1 to 8, got {step}", "Give 1 to take every element")
    if data_type in _PADDED:
        _require(box[0] == 128, f"boxDim[0] must be 128 for this type, got {box[0]}", "Set it to 128")
    row = box[0] * _BITS[data_type] // 8
    if interleave == Interleave.NONE:
        _require(row % 16 == 0, f"boxDim[0] must span a multiple of 16 bytes, got {row}", "Widen the box")
        span = _SPANS.get(swizzle, 128)
        _require(
            not span or row <= span or data_type in _PADDED,
            f"a row of the box ({row} bytes) must not be longer than the swizzle's span ({span} bytes)",
            "Cut the tile into several boxes along dimension 0",
        )
    _require(
        interleave != Interleave.BYTES_32 or swizzle == Swizzle.BYTES_32,
        f"interleave BYTES_32 needs swizzle BYTES_32, got {swizzle.name}",
        "Use that swizzle",
    )
    if data_type == DataType.U6_ALIGN16B:
        _require(interleave == Interleave.NONE, "this type has no interleaved layout", "Use interleave NONE")
    if data_type in _PADDED:
        _require(
            swizzle not in (Swizzle.BYTES_32, Swizzle.BYTES_64, Swizzle.BYTES_128_ATOM_32_FLIP_8),
            f"this type does not support swizzle {swizzle.name}",
            "Use NONE or BYTES_128",
        )


def _check_modelled(
    data_type: DataType, box: tuple[int, ...], steps: tuple[int, ...], interleave: Interleave, swizzle: Swizzle
) -> None:
    what = ""
    if data_type not in _PTX_TYPES:
        what = f"tensorDataType {data_type.name}"
    elif interleave != Interleave.NONE:
        what = f"interleave {interleave.name}"
    elif swizzle > Swizzle.BYTES_128:
        what = f"swizzle {swizzle.name}"
    elif any(step != 1 for step in steps):
        what = f"elementStrides {list(steps)} (other than 1)"
    elif swizzle and box[0] * _BITS[data_type] // 8 != _SPANS.get(swizzle, 128):
        what = f"swizzle {swizzle.name} with rows of the box narrower than its span"
    if what:
        raise NotModelledError(f"tensor maps: {what} is not modelled")


def _padded(values: Sequence[int], count: int) -> list[int]:
    return [*values, *[0] * (count - len(values))]


def encode_tiled(
    tensorDataType: SupportsInt,
    tensorRank: SupportsInt,
    globalAddress: SupportsInt,
    globalDim: Sequence[SupportsInt],
    globalStrides: Sequence[SupportsInt] | None,
    boxDim: Sequence[SupportsInt],
    elementStrides: Sequence[SupportsInt],
    interleave: SupportsInt,
    swizzle: SupportsInt,
    l2Promotion: SupportsInt,
    oobFill: SupportsInt,
) -> bytes:
    """The 128 bytes of a tensor map, to be passed as a kernel parameter or copied into memory.

    Raises:
        LaunchError: an argument breaks a documented rule of cuTensorMapEncodeTiled.
        NotModelledError: the map is valid, but not modelled here.
    """
    data_type: DataType = _member(DataType, tensorDataType, "tensorDataType")
    layout: Interleave = _member(Interleave, interleave, "interleave")
    pattern: Swizzle = _member(Swizzle, swizzle, "swizzle")
    promotion: L2Promotion = _member(L2Promotion, l2Promotion, "l2Promotion")
    fill: OobFill = _member(OobFill, oobFill, "oobFill")
    rank, address = int(tensorRank), int(globalAddress)
    lowest = 1 if layout == Interleave.NONE else 3
    _require(
        lowest <= rank <= 5, f"tensorRank must be {lowest} to 5, got {rank}", "Merge dimensions, or make several maps"
    )
    dims = _integers(globalDim, rank, "globalDim")
    strides = _integers(globalStrides, rank - 1, "globalStrides")
    box = _integers(boxDim, rank, "boxDim")
    steps = _integers(elementStrides, rank, "elementStrides")
    _check_tensor(data_type, address, dims, strides, layout)
    _check_box(data_type, box, steps, layout, pattern)
    _require(
        fill == OobFill.NONE or data_type in _FLOATS,
        f"oobFill {fill.name} needs a floating-point type, got {data_type.name}",
        "Use oobFill NONE",
    )
    _check_modelled(data_type, box, steps, layout, pattern)
    fields = _FIELDS.pack(
        _MAGIC,
        *(data_type, rank, layout, pattern, promotion, fill, 0, address),
        *_padded([d - 1 for d in dims], 5),
        *_padded(strides, 4),
        *_padded(box, 5),
        *_padded(steps, 5),
    )
    body = fields.ljust(SIZE - 4, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def decode(data: bytes) -> TensorMap | None:
    """The map that 128 bytes hold; None if they are no tensor map of ``encode_tiled``."""
    body, checksum = data[: SIZE - 4], data[SIZE - 4 : SIZE]
    if len(data) != SIZE or not body.startswith(_MAGIC) or struct.pack("<I", zlib.crc32(body)) != checksum:
        return None
    data_type, rank, _, swizzle, _, fill, _, address, *rest = _FIELDS.unpack_from(body)[1:]
    return TensorMap(
        _PTX_TYPES[DataType(data_type)],
        address,
        tuple(d + 1 for d in rest[:rank]),
        tuple(rest[5 : 4 + rank]),
        tuple(rest[9 : 9 + rank]),
        Swizzle(swizzle),
        fill == OobFill.NAN_REQUEST_ZERO_FMA,
    )
