"""wgmma matrix descriptors: their fields, and where in shared memory the elements of an operand lie.

PTX ISA 9.7.15.5.1.2 (layouts and strides) and 9.7.15.5.1.2.2 (descriptor format). Memory is seen in units of 16 bytes,
T = 16 / element size elements. A *swizzle atom* is 8 rows of W units, W = 1, 8, 4 or 2 by mode; an operand is tiled
with atoms at the distances that the leading (LBO) and stride (SBO) byte offsets give. The swizzle exchanges units: bits
4 to 6 of the address are XORed with bits 7 to 9, as far as the mode's mask goes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpulinear.emulator.shared_memory import SharedMemory

Array = npt.NDArray[Any]

UNIT = 16
START, LEADING, STRIDE = "start address", "leading dimension byte offset", "stride dimension byte offset"

_WIDTH = (1, 8, 4, 2)  # units in a row of an atom, by swizzle mode: none, 128, 64, 32 bytes
_MASK = (0, 7, 3, 1)
_ENCODED = 0x3FFF  # a field holds (bytes & 0x3FFFF) >> 4
_RESERVED = (0b11 << 14) | (0b11 << 30) | (0b111 << 46) | (0x3FF << 52)


class Descriptor(NamedTuple):
    """The fields in bytes; ``mode`` is 0 (no swizzle), 1 (128 bytes), 2 (64 bytes) or 3 (32 bytes)."""

    start: int
    leading: int
    stride: int
    base_offset: int
    mode: int
    reserved: int

    @property
    def row(self) -> int:
        """Bytes of a row of the swizzle atom."""
        return UNIT * _WIDTH[self.mode]


class Operand(NamedTuple):
    """What a wgmma takes from shared memory: ``extent`` rows of A (columns of B), each of 32 bytes along K."""

    extent: int
    itemsize: int
    mn_major: bool


def decode(value: int) -> Descriptor:
    """The fields of a 64-bit descriptor."""
    start, leading, stride = ((value >> shift & _ENCODED) << 4 for shift in (0, 16, 32))
    return Descriptor(start, leading, stride, value >> 49 & 7, value >> 62 & 3, value & _RESERVED)


@lru_cache(maxsize=4096)
def _relative(operand: Operand, mode: int, leading: int, stride: int) -> Array:
    """Unswizzled byte offsets of the units from the start: [extent, 2] K-major, [extent / T, K] MN-major."""
    width = _WIDTH[mode]
    if not operand.mn_major:
        mn, k = np.arange(operand.extent)[:, None], np.arange(2)
        return mn % 8 * UNIT * width + mn // 8 * stride + k * (leading if mode == 0 else UNIT)
    v = np.arange(operand.extent * operand.itemsize // UNIT)[:, None]
    k = np.arange(32 // operand.itemsize)
    if mode == 0:
        return v * stride + k % 8 * UNIT + k // 8 * leading
    return v % width * UNIT + v // width * leading + k % 8 * UNIT * width + k // 8 * stride


def units(descriptor: Descriptor, operand: Operand) -> Array:
    """Byte offsets in shared memory of the operand's units, in the order that ``assemble`` expects."""
    address: Array = _relative(operand, descriptor.mode, descriptor.leading, descriptor.stride) + descriptor.start
    mask = _MASK[descriptor.mode]
    return (address ^ (address >> 7 & mask) << 4 if mask else address).ravel()


def assemble(data: Array, operand: Operand) -> Array:
    """The units' bytes, uint8 [units, 16], as a matrix [extent, K] of bit patterns."""
    elements = np.ascontiguousarray(data).view(np.dtype(f"u{operand.itemsize}"))
    if not operand.mn_major:
        return elements.reshape(operand.extent, -1)
    k = 32 // operand.itemsize
    matrix: Array = elements.reshape(-1, k, UNIT // operand.itemsize).swapaxes(1, 2).reshape(operand.extent, k)
    return matrix


def misplaced(descriptor: Descriptor, operand: Operand) -> str:
    """Why the start address and the swizzle do not go together; "" if they do.

    A base offset of 0 says that the swizzle pattern starts at a multiple of its size (8 rows). The operand may start
    inside the pattern's first row, as kernels do that step along K, but must not leave that row.
    """
    if descriptor.mode == 0:
        return ""
    pattern, within = 8 * descriptor.row, descriptor.start % (8 * descriptor.row)
    if within >= descriptor.row:
        return f"{START} {descriptor.start:#x} is not in the first {descriptor.row} bytes of a {pattern}-byte pattern"
    used = operand.extent * operand.itemsize if operand.mn_major else 32
    if within + min(used, descriptor.row) > descriptor.row:
        return (
            f"{START} {descriptor.start:#x} is {within} bytes into a {descriptor.row}-byte row: the operand leaves it"
        )
    return ""


def outside(descriptor: Descriptor, operand: Operand, shared: SharedMemory) -> str:
    """The field that puts (part of) the operand outside the variables in shared memory; "" if all is inside."""

    def fits(candidate: Descriptor) -> bool:
        return bool(shared.inside(units(candidate, operand), UNIT).all())

    if fits(descriptor):
        return ""
    if fits(descriptor._replace(leading=0)):
        return LEADING
    if fits(descriptor._replace(stride=0)):
        return STRIDE
    return START
