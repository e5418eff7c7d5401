"""PTX types as NumPy has them, and the classes of registers that hold them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import WIDTHS, Imm

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "pred": np.bool_,
        "b8": np.uint8,
        "u8": np.uint8,
        "s8": np.int8,
        "b16": np.uint16,
        "u16": np.uint16,
        "s16": np.int16,
        "f16": np.uint16,
        "bf16": np.uint16,
        "b32": np.uint32,
        "u32": np.uint32,
        "s32": np.int32,
        "f32": np.float32,
        "f16x2": np.uint32,
        "bf16x2": np.uint32,
        "tf32": np.uint32,
        "b64": np.uint64,
        "u64": np.uint64,
        "s64": np.int64,
        "f64": np.float64,
        "f32x2": np.uint64,
    }.items()
}
"""The dtype in which an instruction sees an operand of a PTX type; 16-bit floats are their bits."""

CLASSES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.bool_),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
"""Register files by width in bits: one matrix [register, thread] each."""


def width_of(ptx_type: str) -> int:
    """Bits of a PTX type."""
    return 64 if ptx_type == "f32x2" else WIDTHS[ptx_type]


def literal(imm: Imm, ptx_type: str) -> Any:
    """A literal as a NumPy scalar of a PTX type: integers wrap to the width, floats are given by their bits."""
    dtype = DTYPES[ptx_type]
    if ptx_type == "pred":
        return np.bool_(imm.value != 0)
    if imm.kind != "int" and imm.kind != f"f{width_of(ptx_type)}":
        if imm.kind == "f64" and ptx_type == "f32":
            value = struct.unpack("<d", struct.pack("<Q", imm.value))[0]
            return np.float32(value)
        raise NotModelledError(f"a literal of type {imm.kind} where the instruction takes {ptx_type}")
    bits = imm.value & ((1 << width_of(ptx_type)) - 1)
    return np.frombuffer(bits.to_bytes(dtype.itemsize, "little"), dtype)[0]
