"""``gpulinear tune``: measure the legal variants of given layers and keep the winners where the planner finds them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .device import DeviceSpec, live_spec, why_no_gpu
from .errors import ArgumentError, BackendError
from .gemm import reload_tuning

if TYPE_CHECKING:
    from .measure.case import Case
    from .measure.device import Device
    from .measure.regret import Regret
    from .measure.tuner import Prepare, Result, Unmeasured

console = Console()

PRODUCTS = ("linear", "dgrad", "wgrad")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _cases_of(shapes: Sequence[str], ops: str | None, dtypes: str | None, tier: str | None) -> list[Case]:
    """The plain matrix products to tune, once each: the given shapes, or those of a tier."""
    from .measure.candidates import tunable
    from .measure.case import Case
    from .measure.cases import ARITHMETIC, select
    from .problem import ITEMSIZE

    if shapes and tier is not None:
        raise ArgumentError("--shape and --tier exclude each other; give one of them")
    wanted = _names(dtypes) or list(ARITHMETIC)
    if not shapes:
        return tunable(select(tier or "quick", ops=_names(ops), dtypes=_names(dtypes)))
    for what, given, known in (("ops", _names(ops), PRODUCTS), ("dtypes", wanted, tuple(ARITHMETIC))):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ArgumentError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")
    found = []
    for shape in shapes:
        if not re.fullmatch(r"[0-9]{1,10}x[0-9]{1,10}x[0-9]{1,10}", shape):
            raise ArgumentError(f"a shape is TOKENSxOUTxIN, such as 4096x14336x4096, got {shape!r}")
        tokens, out, inner = map(int, shape.split("x"))
        for name in wanted:
            dtype, precision = (name, None) if name in ITEMSIZE else ("float32", name)
            for op in _names(ops) or PRODUCTS:
                found.append(Case(op, dtype, tokens, out, inner, precision, group="given", source="command line"))
    return tunable(found)


@dataclass
class Bench:
    """What measuring needs: a device, what the planner knows of it, where rows come from, and what prepares a call."""

    device: Device
    spec: DeviceSpec
    provenance: dict[str, Any]
    prepare: Prepare


def open_bench() -> Bench:
    """The GPU at hand; BackendError where there is none."""
    why = why_no_gpu()
    if why is not None:
        raise BackendError(f"tuning measures, and needs a GPU: {why}. --dry-run lists what would be measured")
    from .measure.cuda_device import CudaDevice
    from .measure.provenance import provenance
    from .measure.tuner import prepare_ours

    spec = live_spec(0)
    return Bench(CudaDevice(), spec, provenance(), prepare_ours(spec.arch))


# ---- what is known without measuring -----------------------------------------------------------


def _plan_rows(cases: Iterable[Case], spec: DeviceSpec) -> Iterator[dict[str, Any]]:
    from .measure.candidates import candidates_of

    for case in cases:
        try:
            found = candidates_of(case, spec)
        except BackendError as error:
            yield {"case": case.name, "reason": str(error)}
            continue
        yield {"case": case.name, "candidates": [asdict(candidate) for candidate in found]}


def _dry_run(cases: list[Case], arch: str, as_json: bool) -> None:
    spec = DeviceSpec.preset(arch)
    rows = list(_plan_rows(cases, spec))
    if as_json:
        _print_json({"arch": arch, "gpu": spec.name, "measured": False, "cases": rows})
        return
    table = Table(title=f"what would be measured on {arch} (predictions are for a {spec.name}; nothing was measured)")
    table.add_column("case", overflow="fold")
    table.add_column("candidates", justify="right")
    table.add_column("the cost model's choice", overflow="fold")
    table.add_column("predicted us", justify="right")
    for row in rows:
        if "reason" in row:
            table.add_row(row["case"], "0", escape(row["reason"]), "")
            continue
        chosen = row["candidates"][0]
        name = f"{chosen['family']} {chosen['tile']} splits {chosen['splits']}"
        table.add_row(row["case"], str(len(row["candidates"])), name, f"{chosen['predicted_us']:.1f}")
    console.print(table)
    total = sum(len(row.get("candidates", ())) for row in rows)
    console.print(f"{total} candidates of {len(rows)} cases; predictions rank candidates and are no claim of speed")


# ---- measuring ---------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run of tuning found. ``lost``: why the device stopped answering, where it did."""

    results: list[Result] = field(default_factory=list)
    unmeasured: list[Unmeasured] = field(default_factory=list)
    lost: str | None = None

    @property
    def failures(self) -> list[str]:
        """One line for each candidate that failed or gave other bits."""
        return [
            f"{result.case.name}: {candidate.name}: {reason}"
            for result in self.results
            for candidate, reason in result.failures.items()
        ]

    @property
    def regret(self) -> Regret | None:
        """The cost model's, over all results."""
        from .measure.regret import summarise

        return summarise(self.results)


def run(cases: list[Case], bench: Bench, budget_s: float, path: Path, results: Path | None, quiet: bool) -> Report:
    """Measure within the budget; each result is in the table, and its row on disk, before the next case begins.

    Raises:
        ArgumentError: the table or the results file cannot be added to; said before anything is measured.
    """
    from .measure.device import DeviceLost
    from .measure.provenance import timestamp
    from .measure.records import Recorder, RecordError, results_path
    from .measure.regret import regret_row
    from .measure.tuner import Result, entry_of, tune
    from .tuning.entry import TableError
    from .tuning.store import save

    report, run_id, arch = Report(), uuid4().hex, bench.spec.arch
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        try:
            save(path, arch, [])
            recorder = None
            if results is not None:
                recorder = stack.enter_context(Recorder(results_path(results, bench.provenance)))
        except (TableError, RecordError, OSError) as error:
            raise ArgumentError(
                f"the results cannot be kept: {path} or {results}: {error}; mend or remove it"
            ) from None
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), disable=quiet))
        found = tune(cases, bench.device, bench.spec, budget_s, bench.prepare)
        try:
            for one in progress.track(found, total=len(cases)):
                if not isinstance(one, Result):
                    report.unmeasured.append(one)
                    continue
                report.results.append(one)
                provenance = {**bench.provenance, "time": timestamp()}
                save(path, arch, [entry_of(one, bench.spec, provenance)])
                if recorder is not None:
                    recorder.write(regret_row(one, run_id, provenance))
        except DeviceLost as error:
            report.lost = str(error)
    reload_tuning()  # whoever goes on in this process uses what was found
    return report


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _report_json(report: Report, bench: Bench, path: Path) -> dict[str, Any]:
    rows = [
        {
            "case": result.case.name,
            "chosen": result.chosen.name,
            "us_chosen": result.timings[result.chosen].us_p50,
            "best": result.best.name,
            "us_best": result.timings[result.best].us_p50,
            "winner": result.winner.name,
            "regret": result.regret,
            "beyond_noise": result.beyond_noise,
        }
        for result in report.results
    ]
    return {
        "gpu": bench.provenance["gpu"],
        "table": str(path),
        "cases": rows,
        "unmeasured": [{"case": item.case.name, "reason": item.reason} for item in report.unmeasured],
        "failures": report.failures,
        "lost": report.lost,
        "regret": asdict(report.regret) if report.regret else None,
    }


def _print_report(report: Report, bench: Bench, path: Path) -> None:
    table = Table(title=f"measured on {bench.provenance['gpu']}: the cost model's choice, and the best candidate")
    for column in ("case", "choice", "best"):
        table.add_column(column, overflow="fold")
    for column in ("choice us", "best us", "regret"):
        table.add_column(column, justify="right")
    for result in report.results:
        chosen, best = result.timings[result.chosen].us_p50, result.timings[result.best].us_p50
        regret = f"{100 * result.regret:.1f} %" + ("" if result.beyond_noise else " (noise)")
        names = (result.case.name, result.chosen.name, result.best.name)
        table.add_row(*names, f"{chosen:.1f}", f"{best:.1f}", regret if result.best != result.chosen else "-")
    if report.results:
        console.print(table)
    for item in report.unmeasured:
        console.print(f"not measured: {escape(item.case.name)}: {escape(item.reason)}", soft_wrap=True)
    for line in report.failures:
        console.print(f"[red]failed:[/red] {escape(line)}", soft_wrap=True)
    if report.lost is not None:
        console.print(f"[red]stopped:[/red] {escape(report.lost)}", soft_wrap=True)
    total = report.regret
    if total is not None:
        console.print(
            f"the cost model's regret over {total.cases} cases: median {100 * total.median:.1f} %, 90th percentile "
            f"{100 * total.p90:.1f} %, worst {100 * total.worst:.1f} % ({total.worst_name}); beyond the noise in "
            f"{total.beyond_noise}",
            soft_wrap=True,
        )
    console.print(f"{len(report.results)} entries written to {path}", soft_wrap=True)


def tune(
    shape: Annotated[
        list[str] | None, typer.Option(help="TOKENSxOUTxIN, such as 4096x14336x4096; may be repeated.")
    ] = None,
    ops: Annotated[str | None, typer.Option(help="Of linear,dgrad,wgrad (default: all).")] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Of bfloat16,float32,float16,float64,tf32,bf16x6,tf32x3 (default: all).")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="The bench's cases: quick (default), main or full.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds; no case begins after them.")] = 120.0,
    ship: Annotated[bool, typer.Option("--ship", help="Write the package's table, not your own.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Append rows of the cost model's regret below this directory.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be measured; needs no GPU.")] = False,
    arch: Annotated[str, typer.Option(help="Of a dry run.")] = "sm_90a",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure the legal kernels of given layers; the planner takes the winners from then on. The bits stay the same."""
    from .tuning.table import shipped_path, user_path

    cases = _cases_of(shape or [], ops, dtypes, tier)
    if dry_run:
        _dry_run(cases, arch, as_json)
        return
    bench = open_bench()
    path = shipped_path(bench.spec.arch) if ship else user_path(bench.spec.arch)
    if path is None:
        raise BackendError("there is no cache directory to keep a table in; set GPULINEAR_CACHE to one of your own")
    report = run(cases, bench, budget, path, out, quiet=as_json)
    if as_json:
        _print_json(_report_json(report, bench, path))
    else:
        _print_report(report, bench, path)
    if report.failures or report.lost is not None:
        raise typer.Exit(1)
