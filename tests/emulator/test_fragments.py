"""fragments.py against the PTX ISA's formulas, written out case by case and looped over lanes."""

from __future__ import annotations

import numpy as np
import pytest

from gpulinear.emulator import fragments
from gpulinear.emulator.errors import EmulatorError

# Each function: (element i, lane) to (row, column), as its section states it.


def a_m16n8k16_f16(i, lane):
    """9.7.14.5.8, Figure 79."""
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8


def b_m16n8k16_f16(i, lane):
    """Figure 81."""
    row = lane % 4 * 2 + (i & 1)
    return row if i < 2 else row + 8, lane >> 2


def c_m16n8(i, lane):
    """Figures 69, 77, 83: all shapes of 16 rows."""
    return (lane >> 2) if i < 2 else (lane >> 2) + 8, lane % 4 * 2 + (i & 1)


def a_m16n8k8_f16(i, lane):
    """9.7.14.5.7, Figure 71."""
    return (lane >> 2) if i < 2 else (lane >> 2) + 8, lane % 4 * 2 + (i & 1)


def b_m16n8k8_f16(i, lane):
    """Figure 74."""
    return lane % 4 * 2 + i, lane >> 2


def a_m16n8k8_tf32(i, lane):
    """Figure 72; Figure 73 for f64."""
    return (lane >> 2) if i in (0, 2) else (lane >> 2) + 8, lane % 4 if i in (0, 1) else lane % 4 + 4


def b_m16n8k8_tf32(i, lane):
    """Figure 75; Figure 76 for f64."""
    return lane % 4 if i == 0 else lane % 4 + 4, lane >> 2


def a_m16n8k4(i, lane):
    """9.7.14.5.6, Figures 65 and 66."""
    return (lane >> 2) if i == 0 else (lane >> 2) + 8, lane % 4


def b_m16n8k4(i, lane):
    """Figures 67 and 68."""
    return lane % 4, lane >> 2


def a_m16n8k16_f64(i, lane):
    """9.7.14.5.8, Figure 80."""
    if i % 2 == 0:
        return lane >> 2, i * 2 + lane % 4
    return (lane >> 2) + 8, i * 2 - 2 + lane % 4


def b_m16n8k16_f64(i, lane):
    """Figure 82."""
    return lane % 4 + i * 4, lane >> 2


def a_m8n8k4_f64(i, lane):
    """9.7.14.5.2, Figure 53."""
    return lane >> 2, lane % 4


def b_m8n8k4_f64(i, lane):
    """Figure 54."""
    return lane % 4, lane >> 2


def c_m8n8k4_f64(i, lane):
    """Figure 55."""
    return lane >> 2, lane % 4 * 2 + (i & 1)


def a_wgmma_16(i, thread):
    """9.7.15.5.1.1.1, Figure 148: warp w of the warpgroup holds rows 16 w and on, as mma.m16n8k16 does."""
    row, col = a_m16n8k16_f16(i, thread % 32)
    return thread // 32 * 16 + row, col


def a_wgmma_tf32(i, thread):
    """9.7.15.5.1.1.2, Figure 150."""
    row, col = a_m16n8k8_tf32(i, thread % 32)
    return thread // 32 * 16 + row, col


def d_wgmma(i, thread):
    """Figures 149 and 151: d0 d1 | d2 d3 8 rows below | d4 d5 8 columns to the right | ..."""
    row, col = c_m16n8(i % 4, thread % 32)
    return thread // 32 * 16 + row, i // 4 * 8 + col


def shape_of(name, bits, accumulator_bits):
    m, n, k = (int(x) for x in name[1:].replace("n", " ").replace("k", " ").split())
    return fragments.mma(m, n, k, bits, accumulator_bits)


SHAPES = [
    ("m16n8k16", 16, 32, a_m16n8k16_f16, b_m16n8k16_f16, c_m16n8),
    ("m16n8k16", 16, 16, a_m16n8k16_f16, b_m16n8k16_f16, c_m16n8),
    ("m16n8k8", 16, 32, a_m16n8k8_f16, b_m16n8k8_f16, c_m16n8),
    ("m16n8k8", 16, 16, a_m16n8k8_f16, b_m16n8k8_f16, c_m16n8),
    ("m16n8k8", 32, 32, a_m16n8k8_tf32, b_m16n8k8_tf32, c_m16n8),
    ("m16n8k4", 32, 32, a_m16n8k4, b_m16n8k4, c_m16n8),
    ("m8n8k4", 64, 64, a_m8n8k4_f64, b_m8n8k4_f64, c_m8n8k4_f64),
    ("m16n8k4", 64, 64, a_m16n8k4, b_m16n8k4, c_m16n8),
    ("m16n8k8", 64, 64, a_m16n8k8_tf32, b_m16n8k8_tf32, c_m16n8),
    ("m16n8k16", 64, 64, a_m16n8k16_f64, b_m16n8k16_f64, c_m16n8),
]
CASES = []
for _name, _bits, _accumulator, *_formulas in SHAPES:
    _sizes = (_bits, _bits, _accumulator)
    for _which, _size, _formula in zip("abc", _sizes, _formulas, strict=True):
        CASES.append((f"{_name} {_size} {_which}", shape_of(_name, _bits, _accumulator), _which, _size, _formula))
CASES = [(label, getattr(shape, which), size, formula) for label, shape, which, size, formula in CASES]
CASES += [
    ("wgmma a 16", fragments.wgmma_a(16), 16, a_wgmma_16),
    ("wgmma a tf32", fragments.wgmma_a(32), 32, a_wgmma_tf32),
]
CASES += [(f"wgmma d {n} {bits}", fragments.wgmma_d(n, bits), bits, d_wgmma) for n in (8, 24, 256) for bits in (16, 32)]


@pytest.mark.parametrize(("fragment", "bits", "formula"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_lane_holds_what_the_isa_says(fragment, bits, formula):
    element = np.dtype(f"u{bits // 8}")
    register = np.dtype(f"u{max(bits, 32) // 8}")
    per_register = register.itemsize // element.itemsize
    rng = np.random.default_rng(fragment.cols)
    matrices = rng.integers(0, 2 ** min(bits, 63), (2, fragment.rows, fragment.cols), np.uint64).astype(element)
    want = np.zeros((fragment.registers, 2 * fragment.threads), register)
    seen = set()
    for group in range(2):
        for lane in range(fragment.threads):
            for i in range(fragment.registers * per_register):
                row, col = formula(i, lane)
                seen.add((row, col))
                bits_here = int(matrices[group, row, col]) << (i % per_register * bits)
                want[i // per_register, group * fragment.threads + lane] |= register.type(bits_here)
    assert len(seen) == fragment.rows * fragment.cols == fragment.threads * fragment.registers * per_register
    got = fragment.store(matrices, register)
    assert got.dtype == register and (got == want).all()
    back = fragment.load(want, element)
    assert back.dtype == element and (back == matrices).all()


def test_registers_are_counted():
    with pytest.raises(EmulatorError, match="has 4 registers, the instruction names 3"):
        fragments.mma(16, 8, 16, 16, 32).a.load(np.zeros((3, 32), np.uint32), np.uint16)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_eight_by_eight(count, transposed):
    """9.7.14.5.15, Figure 104: lane 4 r + q holds elements 2 q and 2 q + 1 of row r (transposed: of column r)."""
    warps = 3
    rows = np.arange(warps * count * 64, dtype=np.uint16).reshape(warps, count, 8, 8)
    registers = fragments.from_rows(rows, transposed)
    assert registers.shape == (count, 32 * warps)
    for warp in range(warps):
        for matrix in range(count):
            for lane in range(32):
                r, q = divmod(lane, 4)
                pair = [(r, 2 * q), (r, 2 * q + 1)]
                low, high = (int(rows[warp, matrix][at[::-1] if transposed else at]) for at in pair)
                assert registers[matrix, 32 * warp + lane] == low | high << 16
    assert (fragments.to_rows(registers, transposed) == rows).all()
