"""The command line. Exit codes: 0 done, 1 a check failed, 2 bad usage, 3 cannot run here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__, cli_bench
from .cli_tune import tune
from .errors import ArgumentError, DTypeError, GpuLinearError, KernelFault
from .views import ShapeDtype

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The linear layer on NVIDIA GPUs.")
console = Console()

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Backend = Annotated[str, typer.Option(help="auto, cuda, reference or emulator.")]
Arch = Annotated[str | None, typer.Option(help="Whose kernels the emulator runs, such as sm_80 (default: sm_90a).")]


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity: they become text."""
    return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        sys.stdout.write(f"gpulinear {__version__}\n")
        raise typer.Exit


@app.command()
def info(as_json: Json = False) -> None:
    """What is installed, what is usable, and what to install if not."""
    from .info import collect

    facts = collect()
    if as_json:
        _print_json(facts)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, escape("\n".join(value) if isinstance(value, list) else str(value or "-")))
    console.print(table)


@app.command()
def explain(
    op: Annotated[str, typer.Argument(help="linear, dgrad, wgrad, bgrad or linear_backward")],
    tokens: int,
    out_features: int,
    in_features: int,
    dtype: str = "float32",
    arch: str = "sm_90a",
) -> None:
    """The plan of a layer's op: kernels, tiles, grid, and why the other candidates were not taken."""
    from .explain import explain as plan_of

    x = ShapeDtype((tokens, in_features), dtype)
    weight = ShapeDtype((out_features, in_features), dtype)
    dy = ShapeDtype((tokens, out_features), dtype)
    operands = {
        "linear": (x, weight),
        "dgrad": (dy, weight),
        "wgrad": (dy, x),
        "bgrad": (dy,),
        "linear_backward": (dy, x, weight),
    }
    if op not in operands:
        raise ArgumentError(f"op must be one of {', '.join(operands)}, got {op!r}")
    sys.stdout.write(f"{plan_of(op, *operands[op], arch=arch)}\n")


@app.command()
def check(backend: Backend = "auto", arch: Arch = None, as_json: Json = False) -> None:
    """Every op, layout and dtype against a float64 product; errors in units of the a-priori bound."""
    from .check import Traffic, run, total
    from .train import choose_backend

    chosen = choose_backend(backend, arch)
    traffic: dict[str, Traffic] = {}
    columns = (TextColumn("checks"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as progress:
        rows = list(progress.track(run(chosen, arch, traffic), total=total(chosen, arch)))
    failed = [row for row in rows if not row.passed]
    if as_json:
        counted = {kernel: asdict(worst) for kernel, worst in traffic.items()}
        shown = [_finite(asdict(row)) for row in rows]
        _print_json({"backend": chosen, "rows": shown, "failed": len(failed), "traffic": counted})
    else:
        table = Table(title=f"backend {chosen}: largest error / a-priori bound (at most 1 is right)")
        for column in ("op", "dtype", "layout", "checks", "worst"):
            table.add_column(column, justify="right" if column in ("checks", "worst") else "left")
        groups = dict.fromkeys((row.op, row.dtype, row.layout) for row in rows)
        for group in groups:
            ratios = [row.ratio for row in rows if (row.op, row.dtype, row.layout) == group]
            worst = max(ratios) if all(r == r for r in ratios) else float("nan")
            table.add_row(*group, str(len(ratios)), f"{worst:.3f}" if worst <= 1 else f"[red]{worst:.3f}")
        console.print(table)
        console.print(f"{len(rows) - len(failed)} right, {len(failed)} wrong")
        if traffic:
            console.print(_traffic_table(traffic))
    if failed:
        raise typer.Exit(1)


def _traffic_table(traffic: Mapping[str, Any]) -> Table:
    """Counted, not timed: how far the worst launch of each kernel is from requests that cost the least."""
    table = Table(title="memory requests in the emulator, worst launch / ideal (1 is best)")
    table.add_column("kernel")
    for column in ("shared memory: bank conflicts", "global memory: sectors"):
        table.add_column(column, justify="right")
    for kernel, worst in sorted(traffic.items()):
        table.add_row(kernel, *("-" if ratio is None else f"{ratio:.2f}" for ratio in (worst.banks, worst.sectors)))
    return table


@app.command()
def train(
    epochs: Annotated[int, typer.Option(min=1)] = 25,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many mini-batches.")] = None,
    hidden: Annotated[int, typer.Option(min=1)] = 256,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    dtype: str = "float32",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    backend: Backend = "auto",
    arch: Arch = None,
    save: Annotated[Path | None, typer.Option(help="Write the weights here (.npz).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw curves and predictions here (.png).")] = None,
    as_json: Json = False,
) -> None:
    """Train a digit classifier of gpulinear layers on scikit-learn's handwritten digits."""
    from . import train as job

    settings = job.Settings(epochs, steps, hidden, batch, dtype, seed, backend=backend, arch=arch)
    chosen = job.choose_backend(backend, arch)
    job.check_outputs(save, plot)
    if chosen == "reference" and not as_json:
        console.print("No kernel runs here: the NumPy reference computes (no usable GPU, or --backend reference).")
    if chosen == "emulator" and not as_json:
        console.print("The PTX emulator runs the shipped kernels: slow, and its times say nothing of a GPU.")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as progress:
        task = progress.add_task("training", total=None)
        result = job.train(settings, lambda done, total: progress.update(task, completed=done, total=total))
    if save is not None:
        job.save_weights(result, save)
    if plot is not None:
        job.plot(result, plot)
    if as_json:
        _print_json(
            {
                "settings": asdict(settings),
                "backend": result.backend,
                "kernels": result.kernels,
                "epochs": result.epochs,
                "test_accuracy": result.test_accuracy,
                "images_per_second": result.images_per_second,
            }
        )
        return
    table = Table(title="digits: 64 -> hidden -> 10")
    for column in ("epoch", "loss", "training accuracy", "test accuracy"):
        table.add_column(column, justify="right")
    for epoch, (loss, training, test) in enumerate(result.epochs, 1):
        table.add_row(str(epoch), f"{loss:.4f}", f"{100 * training:.1f} %", f"{100 * test:.1f} %")
    console.print(table)
    console.print(f"test accuracy {100 * result.test_accuracy:.2f} % on {len(result.test_labels)} images")
    if chosen != "emulator":
        console.print(f"{result.images_per_second:.0f} images per second in training")
    if not result.kernels:
        console.print(f"backend {result.backend}: no kernel ran")
        return
    ran = Table(title=f"backend {result.backend}: what ran")
    ran.add_column("kernel")
    ran.add_column("launches", justify="right")
    for kernel, launches in sorted(result.kernels.items()):
        ran.add_row(kernel, str(launches))
    console.print(ran)


app.command()(cli_bench.bench)
app.command()(tune)


def main() -> None:
    """Entry point: errors of the package become one line and an exit code."""
    try:
        app()
    except (ArgumentError, DTypeError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except GpuLinearError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        # A fault that a sanitizer found is a check that failed, not a machine that cannot run it.
        raise SystemExit(1 if isinstance(error, KernelFault) else 3) from None
