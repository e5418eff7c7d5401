"""How much time the cost model's choice costs against the measured best: as rows of the bench, and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .records import SCHEMA
from .tuner import Result


def regret_row(result: Result, run: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """The row of a result, as record.schema.json has it; ``run`` is the id of this process's run."""
    case, outcome = result.case, result.outcome
    state = {
        "sm_clock_mhz": outcome.sm_clock_mhz,
        "power_w": outcome.power_w,
        "temperature_c": outcome.temperature_c,
    }
    return {
        "schema": SCHEMA,
        "kind": "regret",
        "run": run,
        "case": case.to_json(),
        "name": case.name,
        "chosen": result.chosen.name,
        "us_chosen": result.timings[result.chosen].us_p50,
        "us_predicted": result.chosen.predicted_us,
        "best": result.best.name,
        "us_best": result.timings[result.best].us_p50,
        "beyond_noise": result.beyond_noise,
        "candidates": len(result.timings),
        **{name: value for name, value in state.items() if value is not None},
        **provenance,
    }


@dataclass(frozen=True)
class Regret:
    """Of several cases: the median, the 90th percentile (linear between ranks), the largest and its case's name.

    A regret of 0.1 means that the cost model's choice takes 10 % longer than the best measured candidate.
    ``beyond_noise`` counts the cases in which the difference is more than the noise.
    """

    cases: int
    median: float
    p90: float
    worst: float
    worst_name: str
    beyond_noise: int


def summarise(results: Sequence[Result]) -> Regret | None:
    """The regret of the cost model over results; None where there are none."""
    if not results:
        return None
    values = [result.regret for result in results]
    worst = max(results, key=lambda result: result.regret)
    median, p90 = (float(value) for value in np.percentile(values, (50, 90)))
    beyond = sum(result.beyond_noise for result in results)
    return Regret(len(results), median, p90, worst.regret, worst.case.name, beyond)
