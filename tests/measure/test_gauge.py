"""The judge: right results pass, every kind of wrong one does not, on NumPy and on arrays as strict as CuPy's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpulinear import reference, testing
from gpulinear.measure import gauge
from gpulinear.measure.case import Case
from gpulinear.measure.gauge import Gauge
from gpulinear.measure.operands import OperandSet, operand_sets
from gpulinear.measure.outputs import WORKING_BYTES, Outputs

from .device_array import DeviceArray, DeviceModule

SHAPE = (37, 50, 70)  # tokens, out, in: three different sizes, none a multiple of 16

CASES = [
    *(Case(op, dtype, *SHAPE) for op in ("linear", "dgrad", "wgrad", "backward") for dtype in ("float64", "float32")),
    *(Case(op, dtype, *SHAPE) for op in ("linear", "wgrad") for dtype in ("float16", "bfloat16")),
    *(Case("linear", "bfloat16", *SHAPE, bias=True, activation=act) for act in reference.ACTIVATIONS),
    Case("linear", "float32", *SHAPE, bias=True),
    Case("linear", "bfloat16", *SHAPE, out_dtype="float32"),
    Case("wgrad", "bfloat16", *SHAPE, accumulate=True, out_dtype="float32"),
    Case("backward", "float32", *SHAPE, accumulate=True),
    Case("backward", "bfloat16", *SHAPE, accumulate=True, out_dtype="float32"),
    Case("linear", "float32", *SHAPE, view="transposed"),
    Case("wgrad", "float32", *SHAPE, view="both_reversed"),
    Case("linear", "float32", 1, 1, 1),
    Case("dgrad", "bfloat16", 3, 1, 200),
    *(Case(op, "float32", *SHAPE, precision=p) for op in ("linear", "backward") for p in ("tf32", "tf32x3", "bf16x6")),
]


def on_device(operands: OperandSet) -> OperandSet:
    return OperandSet(
        {name: DeviceArray(array) for name, array in operands.inputs.items()},
        {name: DeviceArray(array) for name, array in operands.outputs.items()},
    )


def host(array: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = getattr(array, "host", array)
    return found


def compute(case: Case, operands: OperandSet) -> None:
    """What a right provider writes: the reference, rounded once."""
    get = {name: host(array) for name, array in operands.inputs.items()}
    out = {name: host(array) for name, array in operands.outputs.items()}
    if case.op == "linear":
        out["y"][...] = reference.linear(
            get["x"],
            get["weight"],
            get.get("bias"),
            activation=case.activation,
            precision=case.precision,
            out_dtype=out["y"].dtype,
        )
    if case.op in ("dgrad", "backward"):
        out["dx"][...] = reference.dgrad(get["dy"], get["weight"], precision=case.precision, out_dtype=out["dx"].dtype)
    if case.op in ("wgrad", "backward"):
        out["dw"][...] = reference.wgrad(
            get["dy"],
            get["x"],
            precision=case.precision,
            out_dtype=out["dw"].dtype,
            accumulate_into=out["dw"] if case.accumulate else None,
        )


def judge_of(case: Case, operands: OperandSet, xp: Any = np, working_bytes: int = WORKING_BYTES) -> Gauge:
    return Gauge(case, operands, Outputs(case, operands, xp, working_bytes), "sm_90a")


def judged(case: Case, working_bytes: int = WORKING_BYTES) -> tuple[Gauge, OperandSet]:
    operands = operand_sets(case, np, 0, 2**30)[0]
    return judge_of(case, operands, np, working_bytes), operands


@pytest.mark.parametrize("device", [False, True], ids=["numpy", "device"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_right_result_is_right_and_one_changed_element_is_not(case: Case, device: bool) -> None:
    operands = operand_sets(case, np, 0, 2**30)[0]
    judge = judge_of(case, on_device(operands), DeviceModule()) if device else judge_of(case, operands)
    judge.outputs.reset()
    compute(case, operands)
    verdict = judge.judge()
    assert verdict.right and verdict.units is not None and 0.0 <= verdict.units <= 1.0
    bits = judge.outputs.fingerprint()
    for name, out in operands.outputs.items():
        judge.outputs.reset()
        compute(case, operands)
        assert judge.outputs.fingerprint() == bits
        place = (out.shape[0] // 2, out.shape[1] - 1)
        out[place] = out[place] + out.dtype.type(40.0)
        verdict = judge.judge()
        assert not verdict.right and verdict.units is not None and verdict.units > 1.0, name
        assert "times the a-priori bound" in str(verdict.reason)
        assert judge.outputs.fingerprint() != bits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_bound_is_that_of_the_testing_module(case: Case) -> None:
    judge, operands = judged(case)
    judge.outputs.reset()
    start = {name: np.array(out) for name, out in operands.outputs.items()}
    for name, (a, b) in judge.factors.items():
        bound = testing.gemm_bound(
            a,
            b,
            judge.how,
            out_dtype=operands.outputs[name].dtype,
            bias=operands.inputs.get("bias"),
            activation=case.activation,
            accumulate_into=start[name] if name in judge.outputs.starts else None,
            representation=judge.representation,
        )
        ((_, _, exact, got),) = judge._expected(name)
        # The two compute |A|·|B| alike, so only the BLAS's blocking may differ, in the last places.
        assert np.abs(got / bound - 1.0).max() <= a.shape[1] * 2.0**-50
        want, _ = reference.gemm(
            a,
            b,
            bias=operands.inputs.get("bias"),
            activation=case.activation,
            accumulate_into=start[name] if name in judge.outputs.starts else None,
        )
        assert np.abs(exact - want).max() <= np.abs(bound).max() * 2.0**-20


def test_an_output_that_is_not_written_is_wrong() -> None:
    for case in CASES:
        judge, operands = judged(case)
        judge.outputs.reset()
        verdict = judge.judge()
        # What an accumulating call would add to is not poisoned; that nothing was added shows as an error.
        assert not verdict.right, case.name
        for name, out in operands.outputs.items():
            judge.outputs.reset()
            keep = {other: array for other, array in operands.outputs.items() if other == name}
            compute(case, operands)
            if name not in judge.outputs.starts:
                keep[name][...] = np.nan
                assert judge.judge().units is None, case.name
            assert out is keep[name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_one_nan_or_inf_is_wrong_and_has_no_units(dtype: str, value: float) -> None:
    case = Case("linear", dtype, *SHAPE)
    judge, operands = judged(case)
    judge.outputs.reset()
    compute(case, operands)
    operands.outputs["y"][5, 7] = value
    verdict = judge.judge()
    assert verdict.units is None and not verdict.right
    assert "1 of 1850 elements" in str(verdict.reason)


def test_a_finite_element_is_wrong_where_the_exact_result_is_not() -> None:
    for value in (np.nan, np.inf):
        case = Case("linear", "float32", *SHAPE)
        judge, operands = judged(case)
        judge.outputs.reset()
        compute(case, operands)
        operands.inputs["x"][3, 3] = value
        verdict = judge.judge()
        assert verdict.units is None and "finite" in str(verdict.reason)


def test_an_accumulating_output_starts_from_what_it_held() -> None:
    case = Case("wgrad", "float32", *SHAPE, accumulate=True)
    judge, operands = judged(case)
    start = operands.outputs["dw"].copy()
    for _ in range(3):
        judge.outputs.reset()
        assert np.array_equal(operands.outputs["dw"], start)
        compute(case, operands)
        assert judge.judge().right
    compute(case, operands)  # twice without a reset
    assert not judge.judge().right


def test_a_lower_precision_than_asked_for_is_wrong() -> None:
    case = Case("linear", "float32", 64, 64, 256)
    for precision, right in (("tf32", False), ("tf32x3", True), ("bf16x6", True)):
        judge, operands = judged(case)
        judge.outputs.reset()
        compute(replace(case, precision=precision), operands)
        assert judge.judge().right is right, precision


@pytest.mark.parametrize("working_bytes", [1, 200_000, 2**30])
def test_blocks_cover_every_element_once_and_are_remembered_only_if_small(working_bytes: int) -> None:
    case = Case("linear", "float32", 100, 90, 40)
    judge, operands = judged(case, working_bytes)
    judge.outputs.reset()
    compute(case, operands)
    seen = np.zeros((100, 90), int)
    for rows, columns, exact, bound in judge._expected("y"):
        seen[rows, columns] += 1
        assert exact.shape == bound.shape == seen[rows, columns].shape
    assert (seen == 1).all()
    assert judge.judge().right and judge.judge().right
    assert bool(judge._known) is (working_bytes >= 200_000)
    operands.outputs["y"][99, 89] += 1.0
    assert not judge.judge().right


def test_blocks_stay_within_the_working_memory() -> None:
    for m, n, k in ((100_000, 20_000, 30), (300, 300, 100_000), (4096, 4096, 4096)):
        for rows, columns in gauge.blocks(m, n, k, "x", 2**28):
            r, c = len(range(*rows.indices(m))), len(range(*columns.indices(n)))
            assert 8 * (2 * k * (r + c) + 12 * r * c) <= 2**28


def test_large_products_are_judged_on_lines_that_cross_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "FULL_FLOPS", 1e4)
    offsets = set()
    for tokens in range(100, 110):
        case = Case("linear", "float32", tokens, 90, 40)
        judge, operands = judged(case, 150_000)
        looked_at = np.zeros((tokens, 90), bool)
        for rows, columns, _, _ in judge._expected("y"):
            looked_at[rows, columns] = True
        assert not looked_at.all() and looked_at.any(axis=0).all() and looked_at.any(axis=1).all()
        offsets.add(int(looked_at.all(axis=1).argmax()))
        judge.outputs.reset()
        compute(case, operands)
        assert judge.judge().right
        for i in range(0, tokens - 15):
            for j in (0, 33, 74):
                assert looked_at[i : i + 16, j].any() and looked_at[i, j : j + 16].any()
        for i, j in ((0, 0), (tokens - 16, 74), (33, 50)):
            kept = operands.outputs["y"][i : i + 16, j : j + 16].copy()
            operands.outputs["y"][i : i + 16, j : j + 16] += 1.0
            assert not judge.judge().right
            operands.outputs["y"][i : i + 16, j : j + 16] = kept
        operands.outputs["y"][:, :][~looked_at] = np.nan
        assert judge.judge().units is None  # what no line crosses must still be finite
    assert len(offsets) > 3  # other cases look at other lines


def test_the_lines_of_a_narrow_output_exist() -> None:
    for m, n in ((1, 10**6), (10**6, 3), (5, 17)):
        parts = list(gauge.blocks(m, n, 10**7, "narrow", 2**40))
        assert all(len(range(*r.indices(m))) and len(range(*c.indices(n))) for r, c in parts)


def test_sixteen_bit_bounds_hold_for_tensor_cores_and_for_fma_chains() -> None:
    for arch in ("sm_75", "sm_80", "sm_90a", "sm_120"):
        how, _ = gauge.summation(Case("linear", "bfloat16", 1, 1, 1), arch)
        cores, chain = testing.tensor_core(arch), testing.fma("bfloat16", 1024)
        for k in (1, 7, 8, 16, 100, 1000, 1024):
            assert how.chain_units(k) >= max(cores.chain_units(k), chain.chain_units(k))
