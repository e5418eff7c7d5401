"""One case on one device: operands are made, every provider is judged, and those that are right are timed together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .case import Case
from .device import Device, DeviceLost, is_lost
from .gauge import Gauge
from .operands import OperandSet, operand_sets
from .outputs import WORKING_BYTES, Outputs
from .providers.base import Provider
from .stopwatch import Call, Outcome, Rules, Timing, measure


@dataclass
class Result:
    """What became of one provider. status and the fields are those of a row; see record.schema.json."""

    provider: Provider
    status: str = "error"
    reason: str | None = None
    kernel: str = ""
    error_units: float | None = None
    same_bits: bool | None = None
    timing: Timing | None = None


@dataclass
class Trial:
    """Results in the order of the providers; `lost` says why the device is gone, if it is."""

    case: Case
    results: list[Result]
    sets: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    lost: str | None = None


@dataclass
class _Entry:
    """A provider that has given a right result: its call, and the fingerprint of that result."""

    result: Result
    call: Call
    bits: tuple[int, ...]


def try_case(case: Case, providers: Sequence[Provider], device: Device, rules: Rules) -> Trial:
    """Judge and time a case. Never raises for what a provider or the device does: it says so in the results."""
    trial = Trial(case, [Result(provider) for provider in providers])
    able = [result for result in trial.results if _is_able(result, case)]
    if able:
        try:
            _run(trial, able, device, rules)
        except Exception as error:
            for result in able:
                if result.status == "error" and result.reason is None:  # what is already known stays
                    _fail(result, error)
            if isinstance(error, DeviceLost) or is_lost(device):
                trial.lost = describe(error)
        if any(result.status == "error" for result in able):
            gc.collect()  # errors hold frames, and frames hold operands
        if trial.lost is None:
            device.release()
    return trial


def describe(error: BaseException) -> str:
    """An error as the reason of a row."""
    return f"{type(error).__name__}: {error}"[:1000].strip()


def _fail(result: Result, error: Exception) -> None:
    result.status, result.reason = "error", describe(error)
    result.error_units = result.same_bits = result.timing = None


def _is_able(result: Result, case: Case) -> bool:
    try:
        reason = result.provider.why_not(case)
    except Exception as error:
        _fail(result, error)
        return False
    if reason is not None:
        result.status, result.reason = "unavailable", reason
    return reason is None


def _run(trial: Trial, able: list[Result], device: Device, rules: Rules) -> None:
    case = trial.case
    try:
        sets = operand_sets(case, device.xp, device.l2_bytes, device.free_bytes())
    except MemoryError as error:  # no failure of a provider: this device holds the case for nobody
        for result in able:
            result.status, result.reason = "unavailable", str(error)
        return
    trial.sets = len(sets)
    bench = _Bench(case, sets, device)
    entries: dict[str, _Entry] = {}
    for result in able:
        try:
            entry = bench.judge(result)
        except Exception as error:
            _fail(result, error)
            if is_lost(device):
                raise DeviceLost(f"the device stopped answering after {result.provider.name}: {error}") from error
            continue
        if entry is not None:
            entries[result.provider.name] = entry
    calls = {name: entry.call for name, entry in entries.items()}
    trial.outcome = measure(calls, len(sets), device, rules, bench.replays)
    for name, failure in trial.outcome.errors.items():
        _fail(entries[name].result, failure)
    trial.outcome.errors.clear()
    for name, timing in trial.outcome.timings.items():
        try:
            bench.repeat(entries[name], timing)
        except Exception as error:
            _fail(entries[name].result, error)
            if is_lost(device):
                raise DeviceLost(f"the device stopped answering after {name} was timed: {error}") from error


class _Bench:
    """The operand sets of a case, with the judge of the first, and eyes on the second and the last."""

    def __init__(self, case: Case, sets: Sequence[OperandSet], device: Device) -> None:
        self.case, self.sets, self.device = case, sets, device
        working = min(WORKING_BYTES, device.free_bytes() // 8)
        self.outputs = {
            i: Outputs(case, sets[i], device.xp, working) for i in sorted({0, min(1, len(sets) - 1), len(sets) - 1})
        }
        self.gauge = Gauge(case, sets[0], self.outputs[0], device.arch)

    def judge(self, result: Result) -> _Entry | None:
        """Prepare a provider and look at its first call; None if it is wrong, which `result` then says."""
        call = result.provider.prepare(self.case, self.sets)
        result.kernel = result.provider.kernel(self.case)
        self._once(call, 0)
        verdict = self.gauge.judge()
        result.error_units, result.reason = verdict.units, verdict.reason
        bits = self.outputs[0].fingerprint()
        for i in self.outputs:
            # One that stays on a set would find it in the L2.
            if i > 0 and result.reason is None and not self._once(call, i).written():
                result.reason = f"the call on operand set {i} left outputs of that set unwritten"
        if result.reason is not None:
            result.status = "WRONG"
            return None
        return _Entry(result, call, bits)

    def repeat(self, entry: _Entry, timing: Timing) -> None:
        """The first call again, after all that timing: the same bits, or not."""
        result = entry.result
        result.same_bits = self._once(entry.call, 0).fingerprint() == entry.bits
        if result.same_bits or not result.provider.ours:
            result.status, result.timing = "ok", timing
        else:
            result.status, result.reason = "WRONG", "the first call, repeated after timing, gave other bits"

    def replays(self, name: str, replay: Callable[[], None]) -> bool:
        """Whether a captured graph writes the outputs of the first set."""
        return self._once(lambda _: replay(), 0).written()

    def _once(self, call: Call, index: int) -> Outputs:
        outputs = self.outputs[index]
        outputs.reset()
        call(index)
        self.device.synchronize()
        return outputs
