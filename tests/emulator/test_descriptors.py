"""descriptors.py: fields and layouts against the ISA's canonical CuTe layouts and its examples (9.7.15.5.1.2)."""

from __future__ import annotations

import numpy as np
import pytest

from gpulinear.emulator import descriptors

NONE, B128, B64, B32 = 0, 1, 2, 3
SPAN = {NONE: 16, B128: 128, B64: 64, B32: 32}


def describe(start, leading=0, stride=0, mode=NONE, base=0, reserved=0):
    """A descriptor by the table of 9.7.15.5.1.2.2."""
    fields = [(start >> 4, 0), (leading >> 4, 16), (stride >> 4, 32), (base, 49), (mode, 62)]
    return sum(value << shift for value, shift in fields) | reserved


def swizzle(offset, bits):
    """CuTe's Swizzle<bits, 4, 3> on a byte address."""
    return offset ^ (offset >> 3 & ((1 << bits) - 1) << 4)


def canonical(mn_major, mode, itemsize, lbo, sbo):
    """(mn, k) to a byte offset: the canonical layouts of 9.7.15.5.1.2.1.3, strides in elements."""
    t = 16 // itemsize
    lbo, sbo = lbo // itemsize, sbo // itemsize
    w = SPAN[mode] // 16

    def layout(mn, k):
        if not mn_major:
            if mode == NONE:  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
                return mn % 8 * t + mn // 8 * sbo + k % t + k // t * lbo
            return mn % 8 * w * t + mn // 8 * sbo + k % t + k // t * t  # ((8,m),(T,2k)):((wT,SBO),(1,T))
        if mode == NONE:  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
            return mn % t + mn // t * sbo + k % 8 * t + k // 8 * lbo
        # ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
        return mn % t + mn // t % w * t + mn // (t * w) * lbo + k % 8 * w * t + k // 8 * sbo

    bits = {NONE: 0, B128: 3, B64: 2, B32: 1}[mode]
    return lambda start, mn, k: swizzle(start + layout(mn, k) * itemsize, bits)


def place(shared, matrix, start, layout):
    """Write [mn, k] bit patterns where a layout puts them, as an asynchronous copy would."""
    for mn, k in np.ndindex(*matrix.shape):
        shared.store(layout(start, mn, k), np.frombuffer(matrix[mn, k].tobytes(), np.uint8))


def strides(mn_major, mode, itemsize, extent):
    """LBO and SBO of a tile that is packed without gaps (but for a spare 16 bytes here and there), in bytes."""
    span = SPAN[mode]
    if mode == NONE:
        return (8 * 16 * (extent // 8), 8 * 16) if not mn_major else (8 * 16 * (extent // 8) + 16, 8 * 16)
    if not mn_major:
        return 1 << 4, 8 * span
    return 8 * span * 2, 8 * span  # k advances first


MODES = [(major, mode, itemsize) for mode in SPAN for major, itemsize in ((0, 2), (1, 2), (0, 4))]


@pytest.mark.parametrize(("mn_major", "mode", "itemsize"), MODES)
@pytest.mark.parametrize("extent", [8, 24, 64])
def test_layouts(mn_major, mode, itemsize, extent):
    lbo, sbo = strides(mn_major, mode, itemsize, extent)
    operand = descriptors.Operand(extent, itemsize, bool(mn_major))
    start = 4096
    descriptor = descriptors.decode(describe(start, lbo, sbo, mode))
    assert descriptor[:5] == (start, lbo, sbo, 0, mode) and not descriptors.misplaced(descriptor, operand)
    layout = canonical(mn_major, mode, itemsize, lbo, sbo)
    k = 32 // itemsize
    memory = np.random.default_rng(3).integers(0, 256, 1 << 16, np.uint8)
    units = descriptors.units(descriptor, operand)
    assert len(units) == extent * 2 == len(set(units.tolist()))
    got = descriptors.assemble(memory.reshape(-1, 16)[units >> 4], operand)
    assert got.shape == (extent, k) and got.dtype.itemsize == itemsize
    for mn, kk in np.ndindex(extent, k):
        at = layout(start, mn, kk)
        assert got[mn, kk] == int.from_bytes(memory[at : at + itemsize].tobytes(), "little")


@pytest.mark.parametrize(
    ("major", "mode", "itemsize", "lbo", "sbo", "exact"),
    [
        # Figures 166 to 170: the "exact layout" of each example, shape and strides in elements.
        (0, NONE, 4, 64, 32, (((8, 2), (4, 32)), ((4, 4), (1, 64)))),
        (0, B32, 4, 4, 64, (((8, 2), (8, 64)), ((4, 4), (1, 4)))),
        (1, NONE, 2, 128, 64, (((8, 1, 2), (1, 8, 64)), ((8, 2), (8, 128)))),
        (1, B32, 2, 128, 256, (((8, 2, 2), (1, 8, 128)), ((8, 2), (16, 256)))),
        (1, B64, 2, 256, 512, (((8, 4, 2), (1, 8, 256)), ((8, 2), (32, 512)))),
    ],
)
def test_examples_of_the_isa(major, mode, itemsize, lbo, sbo, exact):
    def apply(shape_and_strides, index):
        offset = 0
        for size, step in zip(*shape_and_strides, strict=True):
            offset, index = offset + index % size * step, index // size
        return offset

    (rows, columns), k = exact, 32 // itemsize
    extent = int(np.prod(rows[0]))
    operand = descriptors.Operand(extent, itemsize, bool(major))
    units = descriptors.units(descriptors.decode(describe(0, lbo * itemsize, sbo * itemsize, mode)), operand)
    memory = np.arange(1 << 15, dtype=np.uint16 if itemsize == 2 else np.uint32)
    got = descriptors.assemble(memory.view(np.uint8).reshape(-1, 16)[units >> 4], operand)
    bits = {NONE: 0, B32: 1, B64: 2}[mode]
    for mn, kk in np.ndindex(extent, k):
        assert got[mn, kk] * itemsize == swizzle((apply(rows, mn) + apply(columns, kk)) * itemsize, bits)


def test_stepping_along_k_inside_a_swizzled_row():
    """Kernels add 32 bytes to the start address for the next K: the swizzle acts on address bits."""
    operand = descriptors.Operand(16, 2, False)
    for mode, span in ((B128, 128), (B64, 64), (B32, 32)):
        layout = canonical(0, mode, 2, 0, 8 * span)
        for step in range(0, span, 32):
            descriptor = descriptors.decode(describe(2048 + step, 0, 8 * span, mode))
            assert not descriptors.misplaced(descriptor, operand)
            units = descriptors.units(descriptor, operand).reshape(16, 2)
            for mn, half in np.ndindex(16, 2):
                assert units[mn, half] == layout(2048, mn, step // 2 + 8 * half)
        assert "leaves it" in descriptors.misplaced(descriptors.decode(describe(span - 16, 0, 0, mode)), operand)
        for start in (span, 5 * span, 8 * span - 16):
            assert "not in the first" in descriptors.misplaced(descriptors.decode(describe(start, 0, 0, mode)), operand)
    narrow, wide = (descriptors.Operand(n, 2, True) for n in (8, 64))
    inside = descriptors.decode(describe(112, 0, 0, B128))
    assert not descriptors.misplaced(inside, narrow) and "leaves it" in descriptors.misplaced(inside, wide)
