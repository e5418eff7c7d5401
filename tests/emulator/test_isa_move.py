"""mov, prmt and cvta (PTX ISA 9.7.9.3, 9.7.9.4, 9.7.9.7, 9.7.9.20)."""

from __future__ import annotations

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.spaces import LOCAL_BASE, PARAM_BASE, SHARED_BASE
from tests.emulator.semantics import bits_of, edges, evaluate, sweep


@pytest.mark.parametrize("kind", ["pred", "b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_mov_copies(kind):
    assert evaluate(f"mov.{kind}", edges(kind)).tolist() == edges(kind)


def test_mov_keeps_the_bits_of_nan():
    x = np.array([0x7F800001, 0xFFC12345, 0x80000000], np.uint32)
    assert bits_of(evaluate("mov.f32", x)).tolist() == x.tolist()
    y = np.array([0xFFF0000000000001], np.uint64)
    assert bits_of(evaluate("mov.f64", y)).tolist() == y.tolist()


def test_the_first_element_of_a_vector_is_the_low_end():
    assert evaluate("mov.b32", ([0x1111, 1], [0x2222, 0xFFFF])).tolist() == [0x22221111, 0xFFFF0001]
    assert evaluate("mov.b64", ([0x11111111], [0x22222222])).tolist() == [0x2222222211111111]
    low, high = evaluate("mov.b32", [0x22221111], unpack=2)
    assert low.tolist() == [0x1111] and high.tolist() == [0x2222]
    low, high = evaluate("mov.b64", [0x2222222211111111], unpack=2)
    assert low.tolist() == [0x11111111] and high.tolist() == [0x22222222]


def test_128_bits_are_refused():
    with pytest.raises(NotModelledError):
        evaluate("mov.b128", [1])


def test_prmt_selects_bytes_and_signs():
    def permute(a, b, c):
        source = [(b << 32 | a) >> 8 * i & 0xFF for i in range(8)]
        result = 0
        for i in range(4):
            pick = c >> 4 * i & 0xF
            byte = source[pick & 7]
            result |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * i
        return result

    codes = [0x3210, 0x7654, 0x5410, 0x7632, 0x0123, 0x89AB, 0xCDEF, 0xFFFF, 0x8888, 0x4440, 0xABCD3210]
    words = [0x80FF017F, 0x12345678, 0, 0xFFFFFFFF, 0xFEDCBA98]
    sweep("prmt.b32", "b32", ["b32", "b32", "u32"], permute, at0=words, at1=words, at2=codes)
    assert evaluate("prmt.b32", [0x33221100], [0x77665544], 0x5410).tolist() == [0x55441100]


# The table of the ISA: the source byte of d.b3, d.b2, d.b1, d.b0 for selectors 0 to 3.
MODES = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}


@pytest.mark.parametrize("mode", MODES)
def test_prmt_modes(mode):
    a, b = 0x83828180, 0x87868584  # byte i is 0x80 + i: no sign is replicated in these modes
    got = evaluate(f"prmt.b32.{mode}", [a] * 4, [b] * 4, [0, 1, 2, 0xFFFFFFF3]).tolist()
    assert got == [int("".join(f"8{digit}" for digit in digits), 16) for digits in MODES[mode]]
    assert evaluate(f"prmt.b32.{mode}", [a], [b], 1).tolist() == got[1:2]


WINDOWS = {"shared": SHARED_BASE, "shared::cta": SHARED_BASE, "shared::cluster": SHARED_BASE, "local": LOCAL_BASE}
WINDOWS |= {"param": PARAM_BASE, "param::entry": PARAM_BASE}
ONES = 2**64 - 1
GLOBAL = 0x7F0000001234


@pytest.mark.parametrize("space", WINDOWS)
def test_addresses_of_windows(space):
    base = WINDOWS[space]
    offsets = [0, 16, 0x2000010, 2**32 - 1]
    assert evaluate(f"cvta.{space}.u64", offsets).tolist() == [base + o for o in offsets]
    assert evaluate(f"cvta.to.{space}.u64", [base + o for o in offsets]).tolist() == offsets
    # Outside of the window: nothing that looks like an address, not even in its low half.
    outside = [0, GLOBAL, base - 1, base + 2**32]
    assert evaluate(f"cvta.to.{space}.u64", outside).tolist() == [ONES] * 4


@pytest.mark.parametrize("space", ["global", "const"])
def test_global_addresses_are_generic(space):
    addresses = [0, 8, GLOBAL, PARAM_BASE + 8]
    assert evaluate(f"cvta.{space}.u64", addresses).tolist() == addresses
    assert evaluate(f"cvta.to.{space}.u64", addresses).tolist() == addresses
    private = [SHARED_BASE, SHARED_BASE + 100, LOCAL_BASE, LOCAL_BASE + 2**32 - 1, SHARED_BASE + 2**32]
    assert evaluate(f"cvta.to.{space}.u64", private).tolist() == [ONES] * 4 + [SHARED_BASE + 2**32]


def test_32_bit_generic_addresses_are_refused():
    with pytest.raises(NotModelledError):
        evaluate("cvta.shared.u32", [0])
