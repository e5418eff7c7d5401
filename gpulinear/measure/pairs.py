"""What committed rows say: for each case of one GPU its newest run, and ours beside the fastest right peer of that run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .case import Case
from .cases import ARITHMETIC, GROUPS, arithmetic
from .records import RecordError, Row

OURS = "gpulinear"  # the provider that runs what a user gets; "gpulinear:<family>" forces a kernel
OPS = {"linear": "fprop", "dgrad": "dgrad", "wgrad": "wgrad", "backward": "backward"}

# Products of the tensor cores that a split precision is made of: what they reach is its ceiling (docs/design.md).
PASSES = {"bf16x6": ("bfloat16", 6), "tf32x3": ("tf32", 3)}


def key(case: Case) -> tuple[int, int, int]:
    """Sorts cases by group, arithmetic and op, as the tables have them."""
    group = GROUPS.index(case.group) if case.group in GROUPS else len(GROUPS)
    return group, list(ARITHMETIC).index(arithmetic(case)), list(OPS).index(case.op)


def tflops(row: Row) -> float:
    """Arithmetic of a timed row per second, in 10^12."""
    return float(row.data["flops"] / row.data["us_p50"] * 1e-6)


@dataclass(frozen=True)
class Pair:
    """One case in one run. ``rows`` are all its rows there; ``ceilings`` those of the run, by name."""

    case: Case
    rows: tuple[Row, ...]
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> Row | None:
        """What a user's call does; None where this run did not try it."""
        return next((row for row in self.rows if row.data["provider"] == OURS), None)

    @property
    def timed(self) -> Row | None:
        """``ours`` where it is right and has a time."""
        return self.ours if self.ours is not None and self.ours.data["status"] == "ok" else None

    @property
    def peer(self) -> Row | None:
        """The fastest peer whose result is right."""
        right = [row for row in self.rows if not row.data["ours"] and row.data["status"] == "ok"]
        return min(right, key=lambda row: row.data["us_p50"], default=None)

    @property
    def ratio(self) -> float | None:
        """Time of the fastest right peer / our time: above 1 we are ahead; None unless both have a time."""
        if self.timed is None or self.peer is None:
            return None
        return float(self.peer.data["us_p50"] / self.timed.data["us_p50"])

    @property
    def intensity(self) -> float:
        """Operations per byte that must move."""
        data = self.rows[0].data
        return float(data["flops"] / data["least_bytes"])

    @property
    def peak(self) -> float | None:
        """TFLOP/s of the largest product in the case's arithmetic that the run reached."""
        name, passes = PASSES.get(arithmetic(self.case), (arithmetic(self.case), 1))
        reached = self.ceilings.get(f"matmul {name}")
        return None if reached is None else reached / passes

    @property
    def roof(self) -> float | None:
        """TFLOP/s that the run's ceilings allow: ``peak``, or the copy's bandwidth times intensity if that is lower."""
        copy = self.ceilings.get("copy")
        return None if self.peak is None or copy is None else min(self.peak, self.intensity * copy * 1e-3)

    def share(self, row: Row | None) -> float | None:
        """Rate of a timed row / ``roof``."""
        return None if row is None or self.roof is None else tflops(row) / self.roof


@dataclass(frozen=True)
class Summary:
    """Ratios of some cases: how many, their geometric mean, the least with its pair, and how many are at least 1."""

    count: int
    mean: float
    least: Pair
    ahead: int


def summarize(pairs: Iterable[Pair]) -> Summary | None:
    """None where no case has a ratio."""
    found = [(pair.ratio, pair) for pair in pairs if pair.ratio is not None]
    if not found:
        return None
    mean = math.exp(math.fsum(math.log(ratio) for ratio, _ in found) / len(found))
    least = min(found, key=lambda item: item[0])[1]
    return Summary(len(found), mean, least, sum(ratio >= 1 for ratio, _ in found))


@dataclass(frozen=True)
class GpuRows:
    """All rows of one GPU. Raises RecordError where there is another GPU's among them."""

    rows: Sequence[Row]

    def __post_init__(self) -> None:
        gpus = sorted({row.data["gpu"] for row in self.rows})
        if len(gpus) != 1:
            raise RecordError(f"a table is of one GPU, got rows of {', '.join(gpus) or 'none'}: make a table of each")

    @property
    def gpu(self) -> str:
        name: str = self.rows[0].data["gpu"]
        return name

    @cached_property
    def begun(self) -> dict[str, str]:
        """Run -> time of its first row, oldest run first."""
        first: dict[str, str] = {}
        for row in self.rows:
            run, time = row.data["run"], row.data["time"]
            first[run] = min(first.get(run, time), time)
        return dict(sorted(first.items(), key=lambda item: (item[1], item[0])))

    @cached_property
    def ceilings(self) -> dict[str, dict[str, Row]]:
        """Run -> name of a ceiling -> its row, the last one where a run has several."""
        found: dict[str, dict[str, Row]] = {run: {} for run in self.begun}
        for row in self.of_kind("ceiling"):
            found[row.data["run"]][row.data["ceiling"]] = row
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each case in its newest run, in the order of ``key`` and then by work.

        The newest run that tried ours; else the newest that tried anything; else (all skipped) the newest.
        """
        cases: dict[str, dict[str, list[Row]]] = {}
        for row in self.of_kind("time"):
            cases.setdefault(row.data["name"], {}).setdefault(row.data["run"], []).append(row)
        return sorted((self._newest(runs) for runs in cases.values()), key=_order)

    def _newest(self, runs: dict[str, list[Row]]) -> Pair:
        order = list(self.begun)

        def rank(run: str) -> tuple[bool, bool, int]:
            tried = [row.data for row in runs[run] if row.data["status"] != "skipped"]
            return any(data["provider"] == OURS for data in tried), bool(tried), order.index(run)

        newest = max(runs, key=rank)
        rows = tuple(runs[newest])
        ceilings = {name: row.data["value"] for name, row in self.ceilings[newest].items()}
        return Pair(Case.from_json(rows[0].data["case"]), rows, ceilings)

    @cached_property
    def runs(self) -> list[str]:
        """The runs that what is shown comes from, newest first."""
        used = {row.data["run"] for pair in self.pairs for row in pair.rows} or set(self.begun)
        return [run for run in reversed(self.begun) if run in used]

    def of_kind(self, kind: str) -> list[Row]:
        """The rows of a kind."""
        return [row for row in self.rows if row.data["kind"] == kind]

    def any_of(self, run: str) -> dict[str, Any]:
        """The provenance of a run: its first row."""
        return next(row.data for row in self.rows if row.data["run"] == run)


def _order(pair: Pair) -> tuple[tuple[int, int, int], int, str]:
    return key(pair.case), pair.case.flops, pair.case.name


def by_gpu(rows: Iterable[Row]) -> list[GpuRows]:
    """The rows apart by GPU, the one with the newest row first."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row.data["gpu"], []).append(row)
    return sorted(
        (GpuRows(group) for group in apart.values()), key=lambda gpu: (max(gpu.begun.values()), gpu.gpu), reverse=True
    )
