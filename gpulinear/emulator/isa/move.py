"""Moving bits: mov, prmt and cvta (PTX ISA 9.7.9.3, 9.7.9.4, 9.7.9.7, 9.7.9.20)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.packed import join, split
from gpulinear.emulator.spaces import LOCAL_BASE, PARAM_BASE, SHARED_BASE

Array = npt.NDArray[Any]


@elementwise("mov.<T:pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64>", "=T, T", "9.7.9.3")
def mov(form: Form) -> Semantics:
    return lambda a: a


@elementwise("mov.<T:b32>", "=T, V:b16", "9.7.9.4")
@elementwise("mov.<T:b64>", "=T, V:b32", "9.7.9.4")
def mov_pack(form: Form) -> Semantics:
    width = 32 if form["T"] == "b64" else 16

    def pack(parts: list[Array]) -> Array:
        low, high = parts
        return join(low, high, width)

    return pack


@elementwise("mov.<T:b32>", "=V:b16, T", "9.7.9.4")
@elementwise("mov.<T:b64>", "=V:b32, T", "9.7.9.4")
def mov_unpack(form: Form) -> Semantics:
    width = 32 if form["T"] == "b64" else 16
    return lambda a: list(split(a, width))


# Which source byte each byte of the result takes, the highest first, by the two low bits of the selector.
_PERMUTATIONS: dict[str, tuple[int, int, int, int]] = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}


@elementwise("prmt.b32[.<mode:f4e|b4e|rc8|ecl|ecr|rc16>]", "=b32, b32, b32, u32", "9.7.9.7")
def prmt(form: Form) -> Semantics:
    codes = np.array(_PERMUTATIONS[form["mode"]], np.uint32) if form["mode"] else None

    def permute(a: Array, b: Array, c: Array) -> Array:
        source = join(a, b, 32)
        if codes is not None:
            c = codes[c & 3]
        result: Array = np.uint32(0)
        for number in range(4):
            pick = (c >> (4 * number)) & 0xF
            byte = (source >> ((pick & 7) << 3).astype(np.uint64)).astype(np.uint8)
            # The top bit of the selection asks for the byte's sign in all its bits.
            byte = np.where(pick > 7, (byte.view(np.int8) >> 7).view(np.uint8), byte)
            result = result | (byte.astype(np.uint32) << (8 * number))
        return result

    return permute


_WINDOWS = {
    "shared": SHARED_BASE,
    "shared::cta": SHARED_BASE,
    "shared::cluster": SHARED_BASE,
    "local": LOCAL_BASE,
    "param": PARAM_BASE,
    "param::entry": PARAM_BASE,
}
_WINDOW_SIZE = np.uint64(1 << 32)
_OUTSIDE = np.uint64(0xFFFFFFFFFFFFFFFF)  # the result is undefined there: an address that no access survives


@elementwise("cvta.<space:global|const>.u64", "=u64, u64", "9.7.9.20")
def cvta_global(form: Form) -> Semantics:
    return lambda a: a


@elementwise(f"cvta.<space:{'|'.join(_WINDOWS)}>.u64", "=u64, u64", "9.7.9.20")
def cvta(form: Form) -> Semantics:
    base = np.uint64(_WINDOWS[form["space"]])
    return lambda a: a + base


@elementwise("cvta.to.<space:global|const>.u64", "=u64, u64", "9.7.9.20")
def cvta_to_global(form: Form) -> Semantics:
    """Generic addresses of global memory are global addresses; parameters lie within the global window."""

    def convert(a: Array) -> Array:
        private = (a - np.uint64(SHARED_BASE) < _WINDOW_SIZE) | (a - np.uint64(LOCAL_BASE) < _WINDOW_SIZE)
        return np.where(private, _OUTSIDE, a)

    return convert


@elementwise(f"cvta.to.<space:{'|'.join(_WINDOWS)}>.u64", "=u64, u64", "9.7.9.20")
def cvta_to(form: Form) -> Semantics:
    base = np.uint64(_WINDOWS[form["space"]])

    def convert(a: Array) -> Array:
        offset: Array = a - base
        return np.where(offset < _WINDOW_SIZE, offset, _OUTSIDE)

    return convert
