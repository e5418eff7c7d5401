"""Operand sets: enough to leave the L2 cold, few enough to fit, random, and as the case lays them out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gpulinear import testing
from gpulinear.measure import operands
from gpulinear.measure.case import OPS, Case
from gpulinear.views import numpy_dtype

MIB = 1 << 20


class Unwritten:
    """NumPy, whose uninitialised memory is NaN and not whatever a test left there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.full(shape, np.nan, dtype)


def total_bytes(one: operands.OperandSet) -> int:
    return sum(a.nbytes for a in (*one.inputs.values(), *one.outputs.values()))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_names_shapes_and_dtypes(op: str, dtype: str) -> None:
    case = Case(op, dtype, 33, 20, 12, bias=op == "linear")
    first = operands.operand_sets(case, np, MIB // 64, 1 << 30)[0]
    shapes = {"x": (33, 12), "weight": (20, 12), "dy": (33, 20), "y": (33, 20), "dx": (33, 12), "dw": (20, 12)}
    wanted = {
        "linear": (["x", "weight", "bias"], ["y"]),
        "dgrad": (["dy", "weight"], ["dx"]),
        "wgrad": (["dy", "x"], ["dw"]),
        "backward": (["dy", "x", "weight"], ["dx", "dw"]),
    }
    assert (list(first.inputs), list(first.outputs)) == wanted[op]
    for name, array in {**first.inputs, **first.outputs}.items():
        assert array.shape == (20,) if name == "bias" else shapes[name]
        assert array.dtype == numpy_dtype(dtype)


def test_out_dtype_is_dws_in_the_pair() -> None:
    case = Case("backward", "bfloat16", 8, 8, 8, accumulate=True, out_dtype="float32")
    one = operands.operand_sets(case, np, 0, 1 << 30)[0]
    assert one.outputs["dw"].dtype == np.float32 and one.outputs["dx"].dtype == numpy_dtype("bfloat16")
    assert (
        operands.operand_sets(Case("dgrad", "float16", 8, 8, 8, out_dtype="float32"), np, 0, 1 << 30)[0]
        .outputs["dx"]
        .dtype
        == np.float32
    )


@pytest.mark.parametrize("l2", [0, 1, MIB, 3 * MIB + 1])
def test_sets_together_exceed_three_times_the_l2_and_share_no_byte(l2: int) -> None:
    case = Case("linear", "float32", 100, 60, 70, bias=True)
    sets = operands.operand_sets(case, np, l2, 1 << 30)
    assert len(sets) >= 2 and sum(map(total_bytes, sets)) > 3 * l2 - len(sets) * 4 * 256
    padded = sum(-(-a.nbytes // 256) * 256 for a in (*sets[0].inputs.values(), *sets[0].outputs.values()))
    assert len(sets) * padded > 3 * l2 and (len(sets) == 2 or (len(sets) - 1) * padded <= 3 * l2)
    ranges = sorted(
        (a.ctypes.data, a.ctypes.data + a.nbytes) for s in sets for a in (*s.inputs.values(), *s.outputs.values())
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
    base = {name: a.ctypes.data for name, a in sets[0].inputs.items()}
    assert all((s.inputs[n].ctypes.data - base[n]) % 256 == 0 for s in sets for n in base)  # equally aligned


def test_memory_bounds_the_sets_and_a_sentence_says_when_none_fits() -> None:
    case = Case("linear", "float32", 512, 512, 512)
    one = 3 * 512 * 512 * 4
    assert operands.count_sets(case, 50 * MIB, int(3.5 * one / 0.4)) == 3
    assert operands.count_sets(case, 50 * MIB, int(1.5 * one / 0.4)) == 1
    with pytest.raises(MemoryError, match=r"linear float32 512x512x512.*free memory"):
        operands.count_sets(case, 50 * MIB, 2 * one)
    assert operands.count_sets(Case("linear", "float32", 1, 1, 1), 50 * MIB, 1 << 36) == operands.MAX_SETS


def test_values_are_random_normal_and_reproducible() -> None:
    case = Case("wgrad", "bfloat16", 512, 128, 128)
    sets = operands.operand_sets(case, np, MIB, 1 << 30, seed=3)
    again = operands.operand_sets(case, np, MIB, 1 << 30, seed=3)
    other = operands.operand_sets(case, np, MIB, 1 << 30, seed=4)
    for a, b, c in zip(sets, again, other, strict=True):
        for name in a.inputs:
            testing.assert_same_bits(a.inputs[name], b.inputs[name])
            assert not np.array_equal(a.inputs[name], c.inputs[name])
    flat = [s.inputs[n].astype(np.float64).ravel() for s in sets for n in s.inputs]
    assert all(not np.array_equal(a, b) for i, a in enumerate(flat) for b in flat[:i] if a.size == b.size)
    values = np.concatenate(flat)
    # The mean of n draws of N(0, 1) is within 6 / sqrt(n) and their mean square within 6 sqrt(2 / n) of 1, but once in
    # 5e8 tries; the values of a pool that is visited twice count once, and rounding to 8 bits adds 2**-16.
    n = min(values.size, operands._POOL)
    assert abs(values.mean()) < 6 / n**0.5
    assert abs((values**2).mean() - 1) < 6 * (2 / n) ** 0.5 + 2.0**-16


def test_a_matrix_larger_than_the_pool_is_filled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "_POOL", 1009)
    operands._pool.cache_clear()
    x = operands.operand_sets(Case("linear", "float32", 128, 8, 128), np, 0, 1 << 30)[1].inputs["x"]
    assert np.isfinite(x).all() and np.unique(x).size == 1009
    assert not any(np.array_equal(x[0], x[i]) for i in range(1, 128))
    operands._pool.cache_clear()


def test_what_is_read_is_written_and_what_is_written_is_left_alone() -> None:
    for accumulate in (True, False):
        case = Case("backward", "float16", 64, 32, 32, accumulate=accumulate, out_dtype="float32")
        for one in operands.operand_sets(case, Unwritten(), MIB, 1 << 30):
            assert all(np.isfinite(array).all() for array in one.inputs.values())
            assert np.isnan(one.outputs["dx"]).all()
            assert np.isfinite(one.outputs["dw"]).all() if accumulate else np.isnan(one.outputs["dw"]).all()


@pytest.mark.parametrize("view", sorted(testing.VIEWS))
def test_views_hold_the_values_of_the_contiguous_case(view: str) -> None:
    plain = operands.operand_sets(Case("backward", "float16", 24, 20, 16), np, 4096, 1 << 30)
    viewed = operands.operand_sets(Case("backward", "float16", 24, 20, 16, view=view), np, 4096, 1 << 30)
    for a, b in zip(plain, viewed, strict=True):
        for name in a.inputs:
            # The set strides of the two agree, so the same set holds the same values.
            assert np.array_equal(a.inputs[name], b.inputs[name])
    strides = viewed[0].inputs["x"].strides
    assert (strides == plain[0].inputs["x"].strides) == (
        view in ("contiguous", "row_sliced", "misaligned", "misaligned_three")
    )
