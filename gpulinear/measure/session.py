"""Runs cases within a budget and writes a row for each case and provider; nothing costs the rest of the run."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .case import Case
from .ceilings import Missing, ceilings, warm_rules
from .device import Device, DeviceLost
from .providers.base import Provider
from .stopwatch import Outcome, Rules
from .trial import Result, Trial, describe, try_case

Write = Callable[[dict[str, Any]], None]
Progress = Callable[[int, int, str], None]

CASE_RULES = Rules()
CEILING_RULES = Rules(budget_s=0.3, warm_s=0.1)
MOST_WARM_S = 10.0  # clocks of large GPUs swing for some seconds after idling
MOST_SKIPPED_ROWS = 100
# Of a case's share of the budget, what timing may take; the rest is for operands, compiling and judging.
TIMING_SHARE = 0.6


@dataclass
class Summary:
    """What a run came to. Lists hold "case: provider: reason".

    counts: rows by status.  skipped: names of the cases that the budget left no time for.
    unsettled: cases whose SM clock was still moving when they were timed.
    missing: ceilings that could not be measured, "name: reason".  lost: why the device is gone, if it is.
    """

    run: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrong_peers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lost: str | None = None

    @property
    def exit_code(self) -> int:
        """1 if a result of ours was wrong, or a call of ours failed on a case that it had accepted; else 0."""
        return int(bool(self.wrong or self.errors))


def run(
    cases: Iterable[Case],
    providers: Sequence[Provider],
    device: Device,
    *,
    budget_s: float,
    write: Write,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    rules: Rules = CASE_RULES,
    with_ceilings: bool = True,
) -> Summary:
    """Measure `cases` in their order with all `providers`, ceilings first.

    Each case may take an equal share of what is left of `budget_s` (host seconds), and its timing at most
    `rules.budget_s`. When the budget is spent, each remaining case gets one row with status "skipped", under the first
    provider of ours; beyond ``MOST_SKIPPED_ROWS`` cases there are none, and only `Summary.skipped` has them.

    Args:
        write: called with each row as soon as its case is done; see record.schema.json. What it raises ends the run.
        provenance: fields that every row repeats.
        progress: called with (cases done, cases in all, name of the next one; "" at the end).

    Providers stay open; who made them closes them.
    """
    todo = list(cases)
    session = _Session(providers, device, write, {"schema": 1, "run": uuid.uuid4().hex}, provenance or {})
    end = device.now() + budget_s
    if with_ceilings:
        session.ceilings(todo, budget_s)
    for number, case in enumerate(todo):
        left = end - device.now()
        if left <= 0.0 or session.summary.lost is not None:
            session.skip(todo[number:])
            break
        if progress is not None:
            progress(number, len(todo), case.name)
        share = min(rules.budget_s, TIMING_SHARE * left / (len(todo) - number))
        session.measure(case, replace(rules, budget_s=share, warm_s=rules.warm_s * share / rules.budget_s))
    if progress is not None:
        progress(len(todo) - len(session.summary.skipped), len(todo), "")
    return session.summary


class _Session:
    def __init__(
        self,
        providers: Sequence[Provider],
        device: Device,
        write: Write,
        head: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        self.providers, self.device = providers, device
        self._write, self.head, self.provenance = write, head, provenance
        self.summary = Summary(head["run"])

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Write a row; what is None is not known, and is left out."""
        whole = {**self.head, "kind": kind, **row, **self.provenance}
        self._write({name: value for name, value in whole.items() if value is not None})

    def ceilings(self, cases: Sequence[Case], budget_s: float) -> None:
        """Rows of the ceilings that the cases can be held against."""
        kinds = dict.fromkeys(kind for case in cases for kind in _arithmetic(case))
        peers = [provider for provider in self.providers if not provider.ours] or self.providers
        warm = warm_rules(CEILING_RULES, min(MOST_WARM_S, 0.1 * budget_s))
        try:
            for found in ceilings(kinds, peers, self.device, CEILING_RULES, warm):
                if isinstance(found, Missing):
                    self.summary.missing.append(f"{found.name}: {found.reason}")
                    continue
                row = {"ceiling": found.name, "value": found.value, "unit": found.unit}
                self.write("ceiling", {**row, **_state(found.outcome)})
        except DeviceLost as error:
            self.summary.lost = describe(error)

    def measure(self, case: Case, rules: Rules) -> None:
        """Rows of one case."""
        trial = try_case(case, self.providers, self.device, rules)
        for result in trial.results:
            self._count(trial, result)
            self.write("time", {**_of_case(case), **_of_result(trial, result)})
        if trial.outcome.clock_settled is False:
            self.summary.unsettled.append(case.name)
        self.summary.lost = trial.lost

    def skip(self, cases: Sequence[Case]) -> None:
        """Rows of the cases that are not measured any more."""
        self.summary.skipped = [case.name for case in cases]
        if not self.providers or len(cases) > MOST_SKIPPED_ROWS:
            return
        provider = next((provider for provider in self.providers if provider.ours), self.providers[0])
        reason = "the budget is spent" if self.summary.lost is None else f"the device is lost: {self.summary.lost}"
        for case in cases:
            self.summary.counts["skipped"] += 1
            row = {"provider": provider.name, "ours": provider.ours, "kernel": "", "status": "skipped"}
            self.write("time", {**_of_case(case), **row, "reason": reason})

    def _count(self, trial: Trial, result: Result) -> None:
        self.summary.counts[result.status] += 1
        note = f"{trial.case.name}: {result.provider.name}: {result.reason}"
        if result.status == "WRONG":
            (self.summary.wrong if result.provider.ours else self.summary.wrong_peers).append(note)
        if result.status == "error" and result.provider.ours:
            self.summary.errors.append(note)


def _arithmetic(case: Case) -> list[tuple[str, str | None]]:
    """(dtype, precision) of the products whose rates the case is held against: a peer's, and that of the tensor cores."""
    cores = {"tf32": ("float32", "tf32"), "tf32x3": ("float32", "tf32"), "bf16x6": ("bfloat16", None)}
    if case.precision == "tf32":
        return [cores["tf32"]]
    return [(case.dtype, None)] + ([cores[case.precision]] if case.precision in cores else [])


def _of_case(case: Case) -> dict[str, Any]:
    return {"case": case.to_json(), "name": case.name, "flops": case.flops, "least_bytes": case.least_bytes}


def _of_result(trial: Trial, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {
        "provider": result.provider.name,
        "ours": result.provider.ours,
        "kernel": result.kernel,
        "status": result.status,
        "reason": result.reason,
        "error_units": result.error_units,
        "same_bits": result.same_bits,
    }
    timing = result.timing
    if timing is not None:
        row |= {
            "us_p20": timing.us_p20,
            "us_p50": timing.us_p50,
            "us_p80": timing.us_p80,
            "samples": timing.samples,
            "late_batches": timing.late_batches,
            "host_us": timing.host_us,
            "graph_us": timing.graph_us,
            "sets": trial.sets,
            **_state(trial.outcome),
        }
    return row


def _state(outcome: Outcome) -> dict[str, float | None]:
    return {
        "sm_clock_mhz": outcome.sm_clock_mhz,
        "power_w": outcome.power_w,
        "temperature_c": outcome.temperature_c,
    }
