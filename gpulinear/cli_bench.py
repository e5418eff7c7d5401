"""``gpulinear bench``: time gpulinear against the libraries at hand, judge every result, keep every row.

Exit codes: 0 all right, 1 a result of ours was wrong, failed, or the device was lost, 2 bad usage, 3 nothing can run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .device import live_spec, why_no_gpu
from .errors import ArgumentError, BackendError
from .gemm import DEFAULT_ARCH

if TYPE_CHECKING:
    from .measure.case import Case
    from .measure.device import Device
    from .measure.providers.base import Provider
    from .measure.records import Row
    from .measure.session import Summary

console = Console()


@dataclass
class Bench:
    """What a run needs: a device, who is timed, why others are not, and where rows come from."""

    device: Device
    providers: list[Provider]
    missing: dict[str, str]
    provenance: dict[str, Any]

    def close(self) -> None:
        """Give back what the providers hold."""
        for provider in self.providers:
            provider.close()


def open_bench(wanted: Sequence[str], families: Sequence[str]) -> Bench:
    """The GPU at hand. ArgumentError for an unknown provider; BackendError where the GPU cannot be used after all."""
    from .measure.cuda_device import CudaDevice
    from .measure.provenance import provenance
    from .measure.providers import discover

    device = CudaDevice()
    return Bench(device, *discover(live_spec(0).arch, wanted, families), provenance())


# ---- options -----------------------------------------------------------------------------------


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _results(out: Path | None, provenance: dict[str, Any]) -> Path:
    """The file of this run: a given file, else by GPU, date and commit below a given directory, the checkout's, or here."""
    from .measure.records import results_path

    if out is not None and out.suffix == ".jsonl":
        return out
    checkout = Path(__file__).resolve().parents[1]
    inside = (checkout / ".git").exists() and (checkout / "bench").is_dir()
    return results_path(out or (checkout / "bench" / "results" if inside else Path("gpulinear-results")), provenance)


def _earlier(path: Path, provenance: dict[str, Any]) -> list[Row]:
    """Rows that runs of this GPU and commit left in the file, and in those of other days beside it."""
    from .measure.records import RecordError, read

    try:
        found = [row for other in sorted({path, *path.parent.glob("*.jsonl")}) if other.exists() for row in read(other)]
    except (RecordError, OSError) as error:
        raise ArgumentError(
            f"--resume needs rows that can be read: {error}; mend the file or leave --resume out"
        ) from None
    same = ("gpu", "commit", "dirty")
    return [row for row in found if all(row.data.get(name) == provenance.get(name) for name in same)]


def _undone(cases: list[Case], rows: list[Row], providers: Sequence[Provider]) -> list[Case]:
    """The cases that some provider has no row for yet; a row that the budget cut off counts for nothing."""
    done: dict[str, set[str]] = {}
    for row in rows:
        if row.data["kind"] == "time" and row.data["status"] != "skipped":
            done.setdefault(row.data["name"], set()).add(row.data["provider"])
    return [case for case in cases if {p.name for p in providers} - done.get(case.name, set())]


# ---- running -----------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run came to. ``rows``: its own and those it went on from."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    summary: Summary | None = None
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """See the module. 130 where a person stopped it, as shells have it."""
        if self.interrupted or self.summary is None:
            return 130
        if self.summary.exit_code or self.summary.lost is not None:
            return 1
        # Nothing of ours was timed, nor had been: for a bench, that is the same as no GPU.
        return 0 if any(row.data["kind"] == "time" and row.data["status"] == "ok" for row in self.rows) else 3


def run(cases: list[Case], bench: Bench, budget_s: float, path: Path, resume: bool, quiet: bool) -> Report:
    """Measure within the budget; each row is on the disk before the next case begins.

    Raises:
        ArgumentError: the file cannot be added to, or not be resumed; said before anything is measured.
    """
    from .measure import session
    from .measure.records import Recorder, RecordError, Row

    report = Report(path, _earlier(path, bench.provenance) if resume else [])
    todo = _undone(cases, report.rows, bench.providers) if resume else cases
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        try:
            recorder = stack.enter_context(Recorder(path))
        except (RecordError, OSError) as error:
            raise ArgumentError(f"rows cannot be kept in {path}: {error}; give another place with --out") from None
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), disable=quiet))
        task = progress.add_task("ceilings", total=len(todo))

        def write(row: dict[str, Any]) -> None:
            recorder.write(row)
            report.rows.append(Row(row, path, 0))

        def show(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, description=escape(name))

        try:
            report.summary = session.run(
                todo,
                bench.providers,
                bench.device,
                budget_s=budget_s,
                write=write,
                provenance=bench.provenance,
                progress=show,
            )
        except KeyboardInterrupt:
            report.interrupted = True
    return report


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _list(cases: list[Case], as_json: bool) -> None:
    from .measure.cases import arithmetic

    if as_json:
        _print_json([{**case.to_json(), "name": case.name} for case in cases])
        return
    for case in cases:
        sys.stdout.write(f"{case.group:<11} {arithmetic(case):<9} {case.name}\n")


def _without_gpu(why: str, arch: str, families: list[str], dtypes: list[str], limit: int | None, as_json: bool) -> None:
    """What is known of the kernels here. BackendError where nothing is: there is no NVRTC either."""
    from itertools import islice

    from .config import FAMILIES
    from .measure.static import WORK, examine_all
    from .measure.static_table import show, to_json
    from .measure.variants import variants
    from .problem import ITEMSIZE

    families = list(FAMILIES) if "all" in families else families
    unknown = [name for name in families if name not in WORK]
    if unknown:
        raise ArgumentError(f"families are {', '.join(WORK)}; unknown: {', '.join(unknown)}")
    kinds = tuple(dict.fromkeys(name if name in ITEMSIZE else "float32" for name in dtypes)) or tuple(ITEMSIZE)
    chosen = list(islice(variants(arch, families or None, kinds), limit))
    if not as_json:
        console.print(f"[yellow]No time is measured here:[/yellow] {escape(why)}", soft_wrap=True)
    with Progress(console=Console(stderr=True), disable=as_json) as progress:
        rows = list(progress.track(examine_all(chosen), total=len(chosen), description=f"kernels for {arch}"))
    if as_json:
        _print_json({"measured": False, "reason": why, **to_json(rows)})
    else:
        show(console, rows)


def bench(
    tier: Annotated[str, typer.Option(help="quick (90 s), main (8 min) or full (1 h).")] = "quick",
    ops: Annotated[str | None, typer.Option(help="Of linear,dgrad,wgrad,backward (default: all).")] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Of bfloat16,float32,float16,float64,tf32,bf16x6,tf32x3 (default: all).")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Of square,model,decode,fused,... (--list shows them).")] = None,
    match: Annotated[str | None, typer.Option(help="Cases whose name contains this, or matches it as a glob.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many cases.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th case from the i-th on.")] = None,
    providers: Annotated[str | None, typer.Option(help="Whom to time (default: gpulinear and all peers).")] = None,
    families: Annotated[str | None, typer.Option(help="Kernel families to time on their own too, or all.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Seconds; no case begins after them.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .jsonl file, or a directory of them by GPU.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out cases that this commit has rows of.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="Print the cases; needs no GPU.")] = False,
    arch: Annotated[str, typer.Option(help="Whose kernels to look at where there is no GPU.")] = DEFAULT_ARCH,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Time gpulinear against cuBLAS and others, and judge every result; without a GPU, print what is known there."""
    from .measure.cases import BUDGET_SECONDS, select

    kept = select(
        tier,
        ops=_names(ops),
        dtypes=_names(dtypes),
        groups=_names(groups),
        match=match,
        limit=limit,
        shard=shard,
    )
    if list_cases:
        _list(kept, as_json)
        return
    why = why_no_gpu()
    if why is not None:
        _without_gpu(why, arch, _names(families), _names(dtypes), limit, as_json)
        return
    if not kept:
        raise ArgumentError("no case passes these filters; --list shows what there is")
    opened = open_bench(_names(providers), _names(families))
    try:
        path = _results(out, opened.provenance)
        seconds = BUDGET_SECONDS[tier] if budget is None else budget
        report = run(kept, opened, seconds, path, resume, quiet=as_json)
    finally:
        opened.close()
    from .measure.table import show, to_json

    if as_json:
        _print_json({"measured": True, **to_json(report.rows, report.summary, opened.missing, path)})
    else:
        show(console, report.rows, report.summary, opened.missing, path)
    if report.exit_code == 3:
        raise BackendError("no provider could be timed on any case; the rows say why")
    if report.exit_code:
        raise typer.Exit(report.exit_code)
