"""Tuning on a fake GPU with a made-up clock: who wins, who may not, what a budget leaves, and what is kept."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import cli_tune, gemm, testing
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.errors import BackendError
from gpulinear.measure import tuner
from gpulinear.measure.candidates import (
    LEAST_US,
    MOST_CANDIDATES,
    PRUNED_BEYOND,
    Candidate,
    candidates_of,
    tunable,
)
from gpulinear.measure.case import Case
from gpulinear.measure.cases import select
from gpulinear.measure.device import DeviceLost
from gpulinear.measure.operands import OperandSet, dtype_of, names_of, shape_of
from gpulinear.measure.records import validate
from gpulinear.measure.regret import regret_row, summarise
from gpulinear.measure.stopwatch import Call, Timing
from gpulinear.measure.tuner import Result, Unmeasured, entry_of, prepare_ours, tune, tune_case
from gpulinear.plan import Choice, Options
from gpulinear.tuning import table

from .fakes import Gone
from .tuner_lab import CASE, LISTED, PROVENANCE, RULES, SPEC, Lab, bench, no_tables

__all__ = ["no_tables"]  # a fixture for every test here

# ---- candidates --------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_the_first_candidate_is_what_the_planner_takes(arch: str) -> None:
    """The regret is the planner's own only if both choose alike, whatever the shape."""
    spec = DeviceSpec.preset(arch)
    checked = 0
    for case in tunable(select("full"))[::37]:
        try:
            found = candidates_of(case, spec)
        except BackendError:
            continue
        first, (output,) = names_of(case)
        arrays = [gl.ShapeDtype(shape_of(case, name), dtype_of(case, name)) for name in first]
        kwargs = {"precision": case.precision, "out_dtype": dtype_of(case, output)}
        with gemm.planning(Options(tuned=False)):
            plan = gl.explain(case.op, *arrays, arch=arch, **kwargs)
        legal = [choice for choice in plan.choices if choice.refused is None and choice.cost is not None]
        want = min(legal, key=lambda choice: choice.cost.seconds if choice.cost else math.inf)
        assert (found[0].family, found[0].tile, found[0].splits) == (want.config.family, want.config.tile, want.splits)
        with gemm.planning(found[-1].options):
            forced = gl.explain(case.op, *arrays, arch=arch, **kwargs)
        (step,) = [step for step in forced.steps if step.family == found[-1].family]
        assert step.config.tile == found[-1].tile and f"{found[-1].splits} split(s)" in step.note
        checked += 1
    assert checked > 30


def test_candidates_are_sorted_pruned_and_few() -> None:
    split = 0
    for case in tunable(select("main")):
        if case.precision is not None:
            continue
        found = candidates_of(case, SPEC)
        split += len({candidate.tile for candidate in found}) < len(found)  # several splits of a tile
        times = [candidate.predicted_us for candidate in found]
        assert times == sorted(times) and len(set(found)) == len(found) <= MOST_CANDIDATES
        assert times[-1] <= PRUNED_BEYOND * max(times[0], LEAST_US)
    assert split > 10


def test_a_case_without_a_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = [Choice(LISTED[0], 1, None, "it is Sunday")]  # type: ignore[arg-type]
    monkeypatch.setattr("gpulinear.measure.candidates.considered", lambda builder, gemm: refused)
    with pytest.raises(BackendError, match="linear float32 48x40x4096 on sm_90a: it is Sunday"):
        candidates_of(CASE, SPEC)


def test_only_plain_products_are_tuned_once_each() -> None:
    cases = [
        Case("linear", "float32", 5, 6, 7, bias=True, activation="gelu"),
        Case("linear", "float32", 5, 6, 7, view="transposed"),
        Case("linear", "float32", 5, 6, 7),
        Case("backward", "bfloat16", 5, 6, 7, accumulate=True, out_dtype="float32"),
        Case("wgrad", "bfloat16", 5, 6, 7, out_dtype="float32"),
    ]
    assert [case.name for case in tunable(cases)] == [
        "linear float32 5x6x7",
        "dgrad bfloat16 5x6x7",
        "wgrad bfloat16->float32 5x6x7",
    ]


# ---- the winner --------------------------------------------------------------------------------


def test_a_faster_candidate_wins_and_the_regret_is_the_models() -> None:
    lab = Lab(times={0: 60.0, 2: 40.0})
    result = lab.result()
    assert result.chosen == LISTED[0] and result.best == result.winner == LISTED[2]
    assert result.beyond_noise and result.regret == 60.0 / 40.0 - 1
    assert set(result.timings) == set(LISTED) and not result.failures
    assert result.timings[LISTED[2]].us_p50 == 40.0


def test_the_cost_models_choice_wins_when_it_is_the_best_or_equal() -> None:
    for times in ({0: 40.0}, {}):
        result = Lab(times=times).result()
        assert result.best == result.winner == LISTED[0]
        assert result.regret == 0.0 and not result.beyond_noise


def timing(p20: float, p50: float, p80: float) -> Timing:
    return Timing(p20, p50, p80, 9, 0, None, None)


@pytest.mark.parametrize(
    ("best", "wins"),
    [
        ((80.0, 90.0, 94.0), True),
        ((80.0, 90.0, 95.0), False),
        ((80.0, 90.0, 96.0), False),
        ((80.0, 93.0, 200.0), False),
    ],
)
def test_a_winner_must_beat_the_choice_by_more_than_the_noise(best: tuple[float, float, float], wins: bool) -> None:
    """Its slow end against the fast end of the choice's."""
    first, second = LISTED[:2]
    result = Result(CASE, first, {first: timing(95.0, 100.0, 105.0), second: timing(*best)}, {})
    assert result.best == second and result.beyond_noise == wins
    assert result.winner == (second if wins else first)
    assert result.regret == 100.0 / best[1] - 1  # measured is measured


def test_a_difference_within_the_spread_of_the_clock_does_not_win() -> None:
    assert Lab(times={0: 50.0, 1: 48.0}, spread=0.1).result().winner == LISTED[0]
    assert Lab(times={0: 50.0, 1: 48.0}, spread=0.001).result().winner == LISTED[1]


# ---- what may not win --------------------------------------------------------------------------


def test_other_bits_never_win_however_fast() -> None:
    result = Lab(wrong={1}, times={1: 1.0}).result()
    assert result.winner == LISTED[0] and LISTED[1] not in result.timings
    assert result.failures == {LISTED[1]: "WRONG: 1 of 7680 bytes of y differ from the cost model's choice"}


def test_a_candidate_that_writes_nothing_is_wrong() -> None:
    """It would pass if the outputs of the one before it were still there."""
    result = Lab(idle={3}, times={3: 1.0}).result()
    assert "WRONG: 7680 of 7680 bytes" in result.failures[LISTED[3]] and LISTED[3] not in result.timings


def test_wrong_candidates_are_not_even_timed() -> None:
    lab = Lab(wrong={1})
    lab.tune()
    assert lab.calls[1] == 1 and lab.calls[2] > 5


def test_bits_are_compared_not_values() -> None:
    nan, zero = np.array([np.nan], np.float32), np.array([0.0], np.float32)
    assert (tuner._bytes(nan) == tuner._bytes(nan.copy())).all()
    assert (tuner._bytes(nan) != tuner._bytes(-nan)).any() and (tuner._bytes(zero) != tuner._bytes(-zero)).any()


def test_what_fails_is_dropped_and_said() -> None:
    lab = Lab(uncompilable={1}, fails_at={2: 1, 3: 9}, times={1: 1.0, 2: 1.0, 3: 1.0})
    result = lab.result()
    assert result.failures == {
        LISTED[1]: "CompileError: it does not compile",
        LISTED[2]: "ValueError: it fails",
        LISTED[3]: "ValueError: it fails",
    }
    assert set(result.timings) == set(LISTED) - set(LISTED[1:4])


@pytest.mark.parametrize(
    "bad",
    [{"uncompilable": {0}}, {"fails_at": {0: 1}}, {"fails_at": {0: 2}}, {"fails_at": {0: 12}}],
    ids=["compiling", "first call", "second call", "timing"],
)
def test_without_the_cost_models_choice_there_is_no_result(bad: dict[str, Any]) -> None:
    lab = Lab(**bad)
    found = lab.tune()
    assert isinstance(found, Unmeasured) and ("it fails" in found.reason or "not compile" in found.reason)
    if "uncompilable" in bad:
        assert not lab.calls  # nothing is run for an answer that cannot come
        assert "the cost model's choice" in found.reason and LISTED[0].name in found.reason


def test_one_candidate_alone_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "candidates_of", lambda case, spec: LISTED[:1])
    assert Lab().result().regret == 0.0


def test_a_case_too_large_for_the_memory_is_left_out() -> None:
    found = Lab().tune(Case("linear", "float32", 2**17, 2**17, 64))
    assert isinstance(found, Unmeasured) and "MemoryError" in found.reason


def test_compiling_runs_in_threads() -> None:
    lab = Lab()
    lab.tune()
    assert threading.get_ident() not in lab.threads


# ---- budget and loss ---------------------------------------------------------------------------


def many(count: int) -> list[Case]:
    return [replace(CASE, tokens=32 + index) for index in range(count)]


def test_the_budget_ends_the_run_and_what_is_left_is_named() -> None:
    lab = Lab()
    found = list(tune(many(6), lab.device, SPEC, 0.15, lab.prepare, RULES))
    measured = [isinstance(one, Result) for one in found]
    assert [one.case for one in found] == many(6)
    assert measured[0] and not measured[-1] and measured == sorted(measured, reverse=True)
    assert all("budget of 0.15 s" in one.reason for one in found if isinstance(one, Unmeasured))
    assert lab.device.released == sum(measured)
    begun = lab.device.now()
    assert all(isinstance(one, Unmeasured) for one in tune(many(3), lab.device, SPEC, 0.0, lab.prepare, RULES))
    assert lab.device.now() == begun


@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_device_that_disappears_ends_the_run_and_keeps_what_was_found(place: int) -> None:
    lab = Lab()
    first, second = many(2)
    seen: list[Case] = []

    def vanish() -> None:
        if len(seen) == 1 and lab.calls.get(place, 0) > before + 20:
            lab.device.gone_after = 0

    lab.on_call = vanish
    before = 10**9
    run = tune([first, second], lab.device, SPEC, 1e9, lab.prepare, RULES)
    seen.append(next(run).case)
    before = lab.calls[place]
    with pytest.raises(DeviceLost):
        list(run)
    assert seen == [first]


def test_a_device_that_disappears_in_the_check_of_bits_is_lost() -> None:
    lab = Lab()

    def vanish() -> None:
        if lab.calls.get(1):
            lab.device.gone_after = 0

    lab.on_call = vanish
    with pytest.raises(DeviceLost, match=f"^the device stopped answering after {re.escape(LISTED[2].name)}: "):
        lab.tune()
    with pytest.raises(Gone):
        lab.device.synchronize()


# ---- entries and rows --------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    ("sizes", "precision"),
    [
        ((48, 40, 4096), None),
        ((47, 39, 4097), None),
        ((1, 64, 4096), None),
        ((47, 39, 4097), "bf16x6"),
    ],
    ids=str,
)
def test_an_entry_makes_the_planner_take_the_winner(
    op: str, sizes: tuple[int, int, int], precision: str | None
) -> None:
    """Whatever is done to the operands before: planes of a precision are found by the same key as they were tuned."""
    case = Case(op, "float32", *sizes, precision)
    listed = candidates_of(case, SPEC)
    place = min(3, len(listed) - 1)
    entry = entry_of(Lab(times={place: 1.0}).result(case), SPEC, PROVENANCE)
    assert (entry.family, entry.tile, entry.splits) == (listed[place].family, listed[place].tile, listed[place].splits)
    assert entry.measured_us == 1.0 and entry.predicted_us == listed[place].predicted_us
    assert (entry.gpu, entry.sms, entry.commit, entry.time) == (
        "a fake GPU",
        SPEC.sm_count,
        "0" * 40,
        PROVENANCE["time"],
    )
    path = table.user_path("sm_90a")
    assert path is not None and not any(choice.tuned for choice in explained(case).choices)
    cli_tune.run([case], bench(Lab(times={place: 1.0})), 1e9, path, None, quiet=True)
    (step, *_) = [step for step in explained(case).steps if step.family == entry.family]
    assert step.config.tile == entry.tile and f"{entry.splits} split(s)" in step.note
    assert sum(bool(choice.tuned) for choice in explained(case).choices) == 1


def explained(case: Case) -> Any:
    inputs, _ = names_of(case)
    arrays = [gl.ShapeDtype(shape_of(case, name), case.dtype) for name in inputs]
    return gl.explain(case.op, *arrays, arch="sm_90a", precision=case.precision)


def test_an_output_of_another_dtype_is_an_entry_of_its_own() -> None:
    case = Case("wgrad", "bfloat16", 64, 40, 48, out_dtype="float32")
    entry = entry_of(Lab().result(case), SPEC, PROVENANCE)
    assert (entry.dtype, entry.out_dtype, entry.layout, entry.tokens) == ("bfloat16", "float32", "TN", 64)


def test_a_changed_tree_is_said_and_the_drivers_own_version_preferred() -> None:
    changed = {**PROVENANCE, "dirty": True, "driver_release": "580.95.05"}
    entry = entry_of(Lab().result(), SPEC, changed)
    assert entry.commit == "0" * 40 + "-dirty" and entry.driver == "580.95.05"


def test_rows_of_regret_are_rows_of_the_bench() -> None:
    lab = Lab(times={0: 60.0, 2: 40.0}, wrong={4})
    row = regret_row(lab.result(), "a" * 32, PROVENANCE)
    validate(row)
    assert (row["us_chosen"], row["us_best"], row["candidates"]) == (60.0, 40.0, len(LISTED) - 1)
    assert row["chosen"] == LISTED[0].name and row["best"] == LISTED[2].name and row["beyond_noise"] is True
    assert row["sm_clock_mhz"] == 1000.0 and "temperature_c" not in row
    assert row["us_predicted"] == LISTED[0].predicted_us


def test_the_summary_of_regret() -> None:
    first, second = LISTED[:2]

    def one(tokens: int, regret: float) -> Result:
        times = {first: timing(*(3 * [100.0 * (1 + regret)])), second: timing(100.0, 100.0, 100.0)}
        return Result(replace(CASE, tokens=tokens), first, times, {})

    results = [one(tokens, tokens / 64) for tokens in range(1, 12)]  # exact in binary
    noisy = replace(results[3], timings={**results[3].timings, second: timing(100.0, 100.0, 200.0)})
    total = summarise([*results[:3], noisy, *results[4:]])
    assert total is not None
    assert total.cases == 11 and total.beyond_noise == 10
    assert (total.median, total.p90, total.worst) == (6 / 64, 10 / 64, 11 / 64)
    assert total.worst_name == "linear float32 11x40x4096"
    assert summarise([]) is None


# ---- the real kernels --------------------------------------------------------------------------


def test_every_candidate_of_the_planner_gives_the_same_bits(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in the emulator, called as on a GPU: twice each, for the check; the times are made up."""
    monkeypatch.setenv("GPULINEAR_HOST_BACKEND", "emulator")
    case = Case("dgrad", "float32", 5, 1029, 20)
    lab, ours = Lab(), prepare_ours("sm_90a")
    outputs: dict[Candidate, Any] = {}

    def prepare(case: Case, candidate: Candidate, sets: Sequence[OperandSet]) -> Call:
        real, fake = ours(case, candidate, sets), lab.prepare(case, candidate, sets)
        seen: list[int] = []

        def call(index: int) -> None:
            if len(seen) < 2:  # the first candidate is held against itself
                real(index)
                outputs.setdefault(candidate, sets[index].outputs["dx"].copy())
            else:
                fake(index)
            seen.append(index)

        return call

    result = tune_case(case, lab.device, SPEC, prepare, RULES)
    assert isinstance(result, Result) and not result.failures
    count = len(candidates_of(case, SPEC))
    assert len(result.timings) == len(outputs) == count > 3
    first, *others = outputs.values()
    for other in others:
        testing.assert_same_bits(other, first)
    assert np.isfinite(first).all() and first.any()
