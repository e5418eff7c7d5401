"""Measures the legal variants of a case against each other, and says which one a tuning table should name.

Every candidate must first give the bits of the cost model's choice: one that does not is an error, never a winner. All
are then timed in one interleaved sequence, so that a drifting clock meets them equally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..builder import Builder
from ..device import DeviceSpec
from ..plan import Options
from ..tuning.entry import Entry
from ..tuning.table import layout_of, loads_of
from .candidates import Candidate, candidates_of, problem_of
from .case import Case
from .device import Device, DeviceLost, is_lost
from .operands import OperandSet, operand_sets
from .providers.ours import Ours
from .stopwatch import Call, Outcome, Rules, Timing, measure

Prepare = Callable[[Case, Candidate, Sequence[OperandSet]], Call]

RULES = Rules(budget_s=1.0)


@dataclass(frozen=True)
class Result:
    """What was measured of a case.

    chosen: the cost model's choice.  timings: of every candidate that is right.  failures: why the others are not
    timed.  outcome: the state of the device meanwhile.
    """

    case: Case
    chosen: Candidate
    timings: dict[Candidate, Timing]
    failures: dict[Candidate, str]
    outcome: Outcome = field(default_factory=Outcome, repr=False)

    @property
    def best(self) -> Candidate:
        """The least median; the cost model's choice among equals."""
        return min(self.timings, key=lambda item: (self.timings[item].us_p50, item != self.chosen))

    @property
    def beyond_noise(self) -> bool:
        """Whether the best one beats the cost model's choice by more than the noise: the slow end (p80) of its times is
        below the fast end (p20) of the choice's."""
        return self.timings[self.best].us_p80 < self.timings[self.chosen].us_p20

    @property
    def winner(self) -> Candidate:
        """What a table should name: the cost model's choice, unless another is faster beyond the noise."""
        return self.best if self.beyond_noise else self.chosen

    @property
    def regret(self) -> float:
        """The cost model's choice's time over the best measured one's, less 1."""
        return self.timings[self.chosen].us_p50 / self.timings[self.best].us_p50 - 1


@dataclass(frozen=True)
class Unmeasured:
    """A case without a result, and why."""

    case: Case
    reason: str


def prepare_ours(arch: str) -> Prepare:
    """Candidates as calls of the public functions with the planner's choice forced; the first use compiles."""

    def prepare(case: Case, candidate: Candidate, sets: Sequence[OperandSet]) -> Call:
        return Ours(arch, options=candidate.options).prepare(case, sets)

    return prepare


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _bytes(array: Any) -> Any:
    """A contiguous array as its bytes: a NaN equals itself, and -0 is not 0."""
    return array.reshape(-1).view("uint8")


def _poison(outputs: dict[str, Any]) -> None:
    """A pattern that no candidate writes everywhere, so that an output left alone is not taken for a result."""
    for array in outputs.values():
        _bytes(array)[...] = 0xFF


class _Bits:
    """Holds the first operand set's outputs of the cost model's choice against those of the other candidates."""

    def __init__(self, device: Device, sets: Sequence[OperandSet], chosen: Call) -> None:
        self._device, self._outputs = device, sets[0].outputs
        self._run(chosen)
        self._want = {name: array.copy() for name, array in self._outputs.items()}

    def _run(self, call: Call) -> None:
        _poison(self._outputs)
        call(0)
        self._device.synchronize()

    def why_wrong(self, call: Call) -> str | None:
        """Run a candidate; a sentence if a bit differs."""
        self._run(call)
        xp = self._device.xp
        for name, want in self._want.items():
            differing = int(xp.count_nonzero(_bytes(self._outputs[name]) != _bytes(want)))
            if differing:
                return f"WRONG: {differing} of {want.nbytes} bytes of {name} differ from the cost model's choice"
        return None


def _prepared(
    case: Case,
    listed: Sequence[Candidate],
    sets: Sequence[OperandSet],
    prepare: Prepare,
    failures: dict[Candidate, str],
) -> dict[Candidate, Call]:
    """The candidates that compile and load, in their order. Compiling takes most of the time and runs in threads."""
    with ThreadPoolExecutor() as pool:
        futures = {candidate: pool.submit(prepare, case, candidate, sets) for candidate in listed}
    calls = {}
    for candidate, future in futures.items():
        error = future.exception()
        if error is None:
            calls[candidate] = future.result()
        elif isinstance(error, Exception):
            failures[candidate] = _reason(error)
        else:
            raise error
    return calls


def _right(
    device: Device, sets: Sequence[OperandSet], calls: dict[Candidate, Call], failures: dict[Candidate, str]
) -> dict[Candidate, Call]:
    """The candidates that give the bits of the first one."""
    chosen = next(iter(calls))
    bits = _Bits(device, sets, calls[chosen])
    right = {}
    for candidate, call in calls.items():
        try:
            wrong = bits.why_wrong(call)
        except Exception as error:
            if is_lost(device):
                raise DeviceLost(f"the device stopped answering after {candidate.name}: {error}") from error
            wrong = _reason(error)
        if wrong is None:
            right[candidate] = call
        else:
            failures[candidate] = wrong
    return right


def tune_case(
    case: Case, device: Device, spec: DeviceSpec, prepare: Prepare, rules: Rules = RULES
) -> Result | Unmeasured:
    """Check and time the candidates of a ``tunable`` case.

    Raises:
        DeviceLost: the device stopped answering; nothing more can be measured.
    """
    failures: dict[Candidate, str] = {}
    try:
        listed = candidates_of(case, spec)
        sets = operand_sets(case, device.xp, device.l2_bytes, device.free_bytes())
        calls = _prepared(case, listed, sets, prepare, failures)
        if listed[0] in calls:
            calls = _right(device, sets, calls, failures)
    except DeviceLost:
        raise
    except Exception as error:
        if is_lost(device):
            raise DeviceLost(f"the device stopped answering at {case.name}: {error}") from error
        return Unmeasured(case, _reason(error))
    chosen = listed[0]
    named = {candidate.name: candidate for candidate in calls}
    outcome = Outcome()
    if chosen in calls:
        # A replayed graph says nothing that the launches do not.
        outcome = measure(
            {item.name: call for item, call in calls.items()}, len(sets), device, rules, lambda name, replay: False
        )
        failures.update({named[name]: _reason(error) for name, error in outcome.errors.items()})
        outcome.errors.clear()  # their tracebacks would keep the operands alive
    timings = {named[name]: timing for name, timing in outcome.timings.items()}
    if chosen not in timings:
        return Unmeasured(case, f"the cost model's choice, {chosen.name}, cannot be timed: {failures[chosen]}")
    return Result(case, chosen, timings, failures, outcome)


def tune(
    cases: Iterable[Case], device: Device, spec: DeviceSpec, budget_s: float, prepare: Prepare, rules: Rules = RULES
) -> Iterator[Result | Unmeasured]:
    """Measure case after case; those that the budget, in host seconds, leaves no time for are said to be so.

    Raises:
        DeviceLost: the device stopped answering. What was yielded before stays true.
    """
    end = device.now() + budget_s
    for case in cases:
        if device.now() >= end:
            yield Unmeasured(case, f"the budget of {budget_s:g} s is spent")
            continue
        yield tune_case(case, device, spec, prepare, rules)
        device.release()


def entry_of(result: Result, spec: DeviceSpec, provenance: dict[str, Any]) -> Entry:
    """The table's entry of a result on ``spec``, with what ``measure.provenance`` says of where it was measured."""
    gemm, winner = problem_of(result.case, Builder(spec, Options())), result.winner
    vec_a, vec_b = loads_of(gemm)
    return Entry(
        op=gemm.op,
        layout=layout_of(gemm),
        dtype=gemm.dtype,
        out_dtype=gemm.d.dtype,
        precision=gemm.precision,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        vec_a=vec_a,
        vec_b=vec_b,
        family=winner.family,
        tile=winner.tile,
        splits=winner.splits,
        measured_us=result.timings[winner].us_p50,
        predicted_us=winner.predicted_us,
        gpu=provenance["gpu"],
        sms=provenance["sms"],
        driver=provenance.get("driver_release", provenance["driver"]),
        commit=provenance["commit"] + ("-dirty" if provenance["dirty"] else ""),
        time=provenance["time"],
    )
