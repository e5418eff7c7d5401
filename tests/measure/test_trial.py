"""One case with providers of every kind: right, wrong, broken, nondeterministic, and devices that disappear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulinear.measure import trial as module
from gpulinear.measure.case import Case
from gpulinear.measure.stopwatch import Rules, Waits
from gpulinear.measure.trial import Result, Trial, try_case

from .fakes import FakeDevice, FakeProvider

CASE = Case("linear", "float32", 6, 10, 8)
RULES = Rules(budget_s=0.05, warm_s=0.01, most_samples=60)


def trial(device: FakeDevice, *providers: FakeProvider, case: Case = CASE) -> tuple[Trial, dict[str, Result]]:
    found = try_case(case, providers, device, RULES)
    assert [result.provider for result in found.results] == list(providers)
    return found, {result.provider.name: result for result in found.results}


def with_good(
    fault: str, at: int = 1, ours: bool = False, device: FakeDevice | None = None, case: Case = CASE
) -> tuple[Trial, Result]:
    """A faulty provider between two good ones, which must be timed whatever it does."""
    device = device or FakeDevice()
    faulty = FakeProvider(device, "faulty", ours, 15.0, fault, at)
    found, results = trial(device, FakeProvider(device, "a", True, 20.0), faulty, FakeProvider(device, "b"), case=case)
    for name, us in (("a", 20.0), ("b", 10.0)):
        result = results[name]
        assert result.status == "ok" and result.timing is not None and result.same_bits is True
        assert result.timing.us_p50 == pytest.approx(us) and result.timing.samples >= RULES.least_samples
        assert result.kernel == f"kernel of {name}"
        assert result.error_units is not None and result.error_units <= 1.0
    assert found.lost is None and device.released == 1
    return found, results["faulty"]


def launches(device: FakeDevice, name: str) -> int:
    return sum(1 for entry in device.log if entry[0] == name)


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        Case("dgrad", "float64", 6, 10, 8),
        Case("backward", "float32", 6, 10, 8, accumulate=True),
        Case("wgrad", "float32", 6, 10, 8, view="transposed"),
    ],
    ids=lambda case: case.name,
)
def test_right_providers_are_timed_together(case: Case) -> None:
    found, result = with_good("", case=case)
    assert result.status == "ok" and result.reason is None and found.sets >= 2
    assert result.timing is not None and result.timing.graph_us == pytest.approx(15.0)


def test_every_provider_writes_into_poison_or_onto_what_was_there() -> None:
    seen: list[Any] = []

    class Looks(FakeProvider):
        def prepare(self, case: Case, sets: Any) -> Callable[[int], None]:
            call = super().prepare(case, sets)

            def looks(index: int) -> None:
                seen.append(np.isnan(sets[index].outputs["y"]).all())
                call(index)

            return looks

    device = FakeDevice()
    found, _ = trial(device, Looks(device, "a"), Looks(device, "b"))
    # Sets 0, 1 and the last, for each of them.
    assert found.sets >= 3 and seen[:6] == [True] * 6


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("fault, reason", [("wrong", "times the a-priori bound"), ("nan", "1 of 60 elements")])
def test_a_wrong_result_is_never_timed(fault: str, reason: str, ours: bool) -> None:
    device = FakeDevice()
    _, result = with_good(fault, ours=ours, device=device)
    assert result.status == "WRONG" and reason in str(result.reason)
    assert result.timing is None and (result.error_units is None) == (fault == "nan")
    assert launches(device, "faulty") == 1


def test_a_provider_that_stays_on_one_operand_set_is_wrong() -> None:
    _, result = with_good("stays on its set")
    assert result.status == "WRONG" and "operand set 1 left outputs of that set unwritten" in str(result.reason)
    _, result = with_good("stays on its set", case=Case("wgrad", "float32", 6, 10, 8, accumulate=True))
    assert result.status == "WRONG" and "unwritten" in str(result.reason)


def test_bits_that_change_are_wrong_for_ours_and_said_of_a_peer() -> None:
    _, result = with_good("last bit", at=5)
    assert result.status == "ok" and result.same_bits is False and result.timing is not None
    _, result = with_good("last bit", at=5, ours=True)
    assert result.status == "WRONG" and "other bits" in str(result.reason)
    assert result.same_bits is False and result.timing is None and result.error_units is not None


@pytest.mark.parametrize(
    "fault, at, reason",
    [
        ("why_not raises", 1, "KeyError: 'no such case'"),
        ("prepare raises", 1, "MemoryError: no memory for a workspace"),
        ("kernel raises", 1, "ValueError: no kernel"),
        ("raises", 1, "ValueError: call 1 fails"),
        ("raises", 2, "ValueError: call 2 fails"),
        ("raises", 60, "ValueError: call 60 fails"),
    ],
)
def test_a_provider_that_raises_costs_only_itself(fault: str, at: int, reason: str) -> None:
    _, result = with_good(fault, at)
    assert result.status == "error" and result.reason == reason
    assert result.timing is None and result.error_units is None and result.same_bits is None


def test_a_provider_that_raises_in_the_last_call_has_no_time() -> None:
    device = FakeDevice()
    trial(device, FakeProvider(device))
    calls = launches(device, "fake")
    device = FakeDevice()
    _, results = trial(device, FakeProvider(device, fault="raises", at=calls))
    assert results["fake"].status == "error" and results["fake"].timing is None


def test_a_provider_that_cannot_is_unavailable_and_is_not_prepared() -> None:
    device = FakeDevice()
    provider = FakeProvider(device, fault="why_not")
    _, results = trial(device, provider)
    assert results["fake"].status == "unavailable" and results["fake"].reason == "it does not do that"
    assert provider.prepared == [] and device.log == []


def test_a_provider_that_ignores_the_capture_has_no_graph_figure() -> None:
    _, result = with_good("ignores the capture")
    assert result.status == "ok" and result.timing is not None and result.timing.graph_us is None


def test_a_provider_that_waits_is_an_error() -> None:
    class Waiting(FakeProvider):
        def prepare(self, case: Case, sets: Any) -> Callable[[int], None]:
            call = super().prepare(case, sets)

            def waits(index: int) -> None:
                call(index)
                self.device.wait()

            return waits

    device = FakeDevice()
    _, results = trial(device, FakeProvider(device, "a"), Waiting(device, "b"))
    assert results["a"].status == "ok"
    assert results["b"].status == "error" and str(results["b"].reason).startswith(Waits.__name__)


def test_operands_that_do_not_fit_are_nobodys_failure() -> None:
    class Small(FakeDevice):
        def free_bytes(self) -> int:
            return 1000

    device = Small()
    found, results = trial(device, FakeProvider(device, "a"), FakeProvider(device, "b", fault="why_not"))
    assert results["a"].status == "unavailable" and str(results["a"].reason).startswith("one set of operands")
    assert results["b"].status == "unavailable" and found.lost is None and device.released == 1


def test_an_error_of_the_judge_costs_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the judge fails")

    monkeypatch.setattr(module, "Gauge", broken)
    device = FakeDevice()
    found, results = trial(device, FakeProvider(device, "a"))
    assert results["a"].reason == "ZeroDivisionError: the judge fails" and found.lost is None


@pytest.mark.parametrize("at", [1, 2, 40])
def test_a_device_that_disappears_leaves_what_was_known(at: int) -> None:
    device = FakeDevice()
    found, results = trial(
        device,
        FakeProvider(device, "wrong", fault="wrong"),
        FakeProvider(device, "good"),
        FakeProvider(device, "faulty", fault="device", at=at),
        FakeProvider(device, "next"),
    )
    assert found.lost is not None and "the device stopped answering" in found.lost
    assert results["wrong"].status == "WRONG"
    for name in ("good", "faulty", "next"):
        assert results[name].status == "error" and results[name].reason and results[name].timing is None
    assert results["next"].reason == found.lost
    assert device.released == 0  # it would raise


def test_a_device_that_disappears_after_timing_leaves_the_times_that_were_confirmed() -> None:
    device = FakeDevice()
    good, faulty = FakeProvider(device, "good"), FakeProvider(device, "faulty")
    trial(device, good, faulty)
    calls = launches(device, "faulty")
    device = FakeDevice()
    good, faulty = FakeProvider(device, "good"), FakeProvider(device, "faulty", fault="device", at=calls)
    found, results = trial(device, good, faulty)
    assert results["good"].status == "ok" and results["good"].timing is not None
    assert results["faulty"].status == "error" and found.lost is not None


def test_nothing_keeps_the_operands_when_it_is_over() -> None:
    import gc
    import weakref

    references: list[weakref.ref[Any]] = []

    class Watched(FakeProvider):
        def prepare(self, case: Case, sets: Any) -> Callable[[int], None]:
            references.append(weakref.ref(sets[0]))
            return super().prepare(case, sets)

    device = FakeDevice()
    gc.collect()
    gc.disable()
    try:
        found, _ = trial(device, Watched(device, "a"), Watched(device, "b", fault="raises", at=50))
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
    assert found.results[1].status == "error"
