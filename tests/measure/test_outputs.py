"""Outputs around a judged call: poison in every dtype, what counts as written, hashes that change with any bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpulinear.measure.case import Case
from gpulinear.measure.operands import OperandSet
from gpulinear.measure.outputs import WORKING_BYTES, Outputs

DTYPES = ["float64", "float32", "float16", ml_dtypes.bfloat16]
CASE = Case("linear", "float32", 3, 5, 7)
ACCUMULATING = Case("backward", "float32", 3, 5, 7, accumulate=True)


def outputs(working_bytes: int = WORKING_BYTES, case: Case = CASE, **arrays: np.ndarray[Any, Any]) -> Outputs:
    return Outputs(case, OperandSet({}, dict(arrays)), np, working_bytes)


def fingerprint(array: np.ndarray[Any, Any], working_bytes: int = WORKING_BYTES) -> int:
    return outputs(working_bytes, y=array).fingerprint()[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("working_bytes", [1, WORKING_BYTES])
def test_every_dtype_is_poisoned_with_nan_and_counted(dtype: Any, working_bytes: int) -> None:
    y = np.zeros((3, 5), dtype)
    found = outputs(working_bytes, y=y)
    assert found.strange("y") == 0
    found.reset()
    assert np.isnan(y.astype(np.float64)).all()
    assert found.strange("y") == 15 and not found.written()
    y[...] = 1.0
    y[1, 2] = np.inf
    assert found.strange("y") == 1 and not found.written()
    y[1, 2] = 0.0
    assert found.written()


def test_what_is_added_to_is_restored_and_counts_as_written_when_it_changed() -> None:
    dx, dw = np.zeros((3, 7), np.float32), np.arange(35, dtype=np.float32).reshape(5, 7)
    found = outputs(case=ACCUMULATING, dx=dx, dw=dw)
    dw += 1.0
    found.reset()
    assert np.array_equal(dw, np.arange(35, dtype=np.float32).reshape(5, 7)) and np.isnan(dx).all()
    dx[...] = 0.0
    assert not found.written()
    dw[4, 6] += 1.0
    assert found.written()
    dx[0, 0] = np.nan
    assert not found.written()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_changes_with_any_bit_with_pairs_of_bits_and_with_any_swap(dtype: Any) -> None:
    y = np.random.default_rng(0).standard_normal((6, 9)).astype(dtype)
    found = {fingerprint(y)}
    bits = y.view(f"u{y.dtype.itemsize}")
    flips = [[(place, bit)] for place in np.ndindex(y.shape) for bit in range(8 * y.dtype.itemsize)]
    flips += [[(place, bit), ((5, 8), bit)] for ((place, bit),) in flips if place != (5, 8)]
    for flip in flips:
        for place, bit in flip:
            bits[place] ^= bits.dtype.type(1 << bit)
        found.add(fingerprint(y))
        for place, bit in flip:
            bits[place] ^= bits.dtype.type(1 << bit)
    assert len(found) == 1 + len(flips)
    for other in (y[::-1].copy(), y[:, ::-1].copy(), np.roll(y, 1, 0), np.roll(y, 1, 1)):
        assert fingerprint(other) not in found
    assert fingerprint(y, 1) == fingerprint(y) == fingerprint(y.copy())


def test_zeros_of_either_sign_and_outputs_in_another_order_differ() -> None:
    zero = np.zeros((2, 2), np.float32)
    assert fingerprint(zero) != fingerprint(-zero)
    a, b = np.ones((2, 2), np.float32), np.full((2, 2), 2.0, np.float32)
    assert outputs(dx=a, dw=b).fingerprint() != outputs(dx=b, dw=a).fingerprint()
