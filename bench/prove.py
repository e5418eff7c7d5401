"""The one command for an hour on a GPU: ``python -m bench.prove --out DIR [--budget SECONDS]`` from a plain checkout.

In the order of ``parts``, so that an early stop keeps what matters: golden bits of the tensor cores; every kernel and
layout against float64 and, bit for bit, against itself in other tiles; the numeric contract; the emulator against the
hardware; ``check``; ``train``; the experiments of docs/gpu-todo.md; the quick bench; tuning; compute-sanitizer; ncu on
the slowest case. DIR then holds

    prove.jsonl               a row per check, with its provenance
    kernels.json              which kernels ran, by their machine code, and whether all they gave was right
    golden/                   copy over tests/golden
    ledger.json               the committed ledger and what passed: copy over tests/ledger.json
    results/<gpu>/*.jsonl     the bench's rows and the cost model's regret: copy over bench/results
    tuning/<arch>.json        winners: copy over gpulinear/tuning
    sanitizer-*.txt profile.txt

The parts run in a process of their own (supervisor.py), so that one that hangs costs the others nothing.
Exit codes: 0 all right, 1 something is wrong, 3 no GPU. A part can be run alone: ``--parts contract,bench``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gpulinear as gl
from gpulinear import check, cli_tune, ledger
from gpulinear import train as job
from gpulinear.device import why_no_gpu
from gpulinear.errors import BackendError
from gpulinear.measure.candidates import tunable
from gpulinear.measure.cases import select
from gpulinear.measure.device import Device, is_lost
from gpulinear.measure.provenance import provenance
from gpulinear.measure.providers import discover
from gpulinear.measure.records import Recorder, results_path
from gpulinear.measure.session import run

from . import experiments, golden, prove_tools, supervisor
from .budget import Clock, Part, run_parts
from .contract import Contract
from .prove_kernels import Kernels


def checks(clock: Clock) -> Iterator[dict[str, Any]]:
    """``gpulinear check`` on the device."""
    for row in check.run("cuda"):
        yield {
            "op": row.op, "dtype": row.dtype, "layout": row.layout, "shape": row.shape, "error_ratio": row.ratio,
            "status": "ok" if row.passed else "WRONG",
        }  # fmt: skip


def training(clock: Clock) -> Iterator[dict[str, Any]]:
    """``gpulinear train`` on the device, twice: the same bits."""
    results = [job.train(job.Settings(backend="cuda", epochs=10)) for _ in range(2)]
    same = all(results[0].weights[n].tobytes() == results[1].weights[n].tobytes() for n in results[0].weights)
    accuracy = results[0].test_accuracy
    yield {
        "test_accuracy": accuracy, "images_per_second": results[1].images_per_second, "same_bits": same,
        "status": "ok" if same and accuracy >= 0.95 else "WRONG",
    }  # fmt: skip


def contract(device: Device) -> Part:
    """D1 to D6 for every dtype, and for every precision of float32 that the device has."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        for dtype, precision in [(dtype, None) for dtype in check.DTYPES] + [("float32", p) for p in PRECISIONS]:
            if precision is not None and not _runs(device, precision):
                yield {"promise": "all", "dtype": dtype, "precision": precision, "status": "unavailable",
                       "reason": f"no kernel for {precision} on {device.arch}"}  # fmt: skip
                continue
            yield from Contract(device.xp, dtype, precision).rows()

    return part


PRECISIONS = ("tf32", "tf32x3", "bf16x6")


def _runs(device: Device, precision: str) -> bool:
    shape = gl.ShapeDtype((64, 64), "float32")
    try:
        gl.explain("linear", shape, shape, precision=precision, arch=device.arch)
    except BackendError:
        return False
    return True


def golden_bits(out: Path, arch: str, where: Mapping[str, Any]) -> Part:
    """The part that writes golden bits of every form and compares them with the model."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        for verdict in golden.write(out, arch, where):
            good = verdict.outcome == "confirmed"
            yield {"form": verdict.form, "detail": verdict.detail, "status": "ok" if good else verdict.outcome}

    return part


def bench(device: Device, results: Path, where: Mapping[str, Any]) -> Part:
    """The quick bench: gpulinear and every peer that is installed; rows go to ``results``."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        providers, absent = discover(device.arch)
        for name, reason in absent.items():
            yield {"provider": name, "status": "unavailable", "reason": reason}
        try:
            with Recorder(results) as recorder:
                summary = run(select("quick"), providers, device, budget_s=clock.left() - 2.0, write=recorder.write,
                              provenance=where)  # fmt: skip
        finally:
            for provider in providers:
                provider.close()
        yield {
            "rows": dict(summary.counts), "wrong": summary.wrong, "wrong_peers": summary.wrong_peers,
            "errors": summary.errors, "skipped": len(summary.skipped), "unsettled": len(summary.unsettled),
            "missing": summary.missing, "lost": summary.lost,
            "status": "WRONG" if summary.exit_code else "ok" if summary.lost is None else "error",
        }  # fmt: skip

    return part


def tuning(out: Path) -> Part:
    """The legal variants of the quick bench's cases; winners go to ``out``/tuning, regrets beside the bench's rows."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        at_hand = cli_tune.open_bench()
        path = out / "tuning" / f"{at_hand.spec.arch}.json"
        cases = tunable(select("quick"))
        report = cli_tune.run(cases, at_hand, clock.left() - 2.0, path, out / "results", quiet=True)
        regret = report.regret
        yield {
            "cases": len(report.results), "unmeasured": len(report.unmeasured), "failures": report.failures,
            "lost": report.lost, "regret": None if regret is None else vars(regret),
            "status": "WRONG" if report.failures else "ok" if report.lost is None else "error",
        }  # fmt: skip

    return part


# Part -> the most seconds that it may take, in the order in which they run.
LIMITS = {
    "golden_bits": 50.0,
    "correctness": 100.0,
    "contract": 60.0,
    "emulator": 60.0,
    "check": 20.0,
    "train": 20.0,
    "segments": 25.0,
    "hot_and_cold": 10.0,
    "host_costs": 8.0,
    "stream_rate": 8.0,
    "foreign_cubins": 4.0,
    "bench": 90.0,
    "tuning": 40.0,
    "sanitizers": 40.0,
    "profile": 25.0,
}


def parts(
    out: Path, kernels: Kernels, device: Device, where: Mapping[str, Any], cubins: Path | None = None
) -> list[tuple[str, float, Part]]:
    """What is done, in order, with the most seconds that each may take."""
    results = results_path(out / "results", where)
    made: dict[str, Part] = {
        "golden_bits": golden_bits(out / "golden", device.arch, where),
        "correctness": kernels.correctness,
        "contract": contract(device),
        "emulator": kernels.emulator,
        "check": checks,
        "train": training,
        "segments": experiments.segments(device, ("gemm_wgmma", "gemm_mma")),
        "hot_and_cold": experiments.hot_and_cold(device),
        "host_costs": experiments.host_costs(device),
        "stream_rate": experiments.stream_rate(device),
        "foreign_cubins": experiments.foreign_cubins(device, cubins),
        "bench": bench(device, results, where),
        "tuning": tuning(out),
        "sanitizers": prove_tools.sanitizers(out),
        "profile": prove_tools.profile(out, results),
    }
    return [(name, seconds, made[name]) for name, seconds in LIMITS.items()]


# ---- the worker, which touches the GPU ---------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    """Run the named parts in this process, saying what goes on (see supervisor.py); returns the exit code.

    4: the device has stopped answering, and what is left needs another process.
    """
    device, where = _device(), provenance()
    print(f"@where {json.dumps(where)}", flush=True)
    kernels = Kernels(options.out / KERNELS)
    clock, good = Clock(options.budget), True
    known = {name: (s, part) for name, s, part in parts(options.out, kernels, device, where, options.cubins)}
    for name in options.parts.split(","):
        print(f"@begin {name}", flush=True)
        one = run_parts({name: known[name]}, options.out / ROWS, clock.left(), where, print)
        kernels.save()
        print(f"@end {name} {'ok' if one else 'bad'}", flush=True)
        good = good and one
        if is_lost(device):
            return 4
    return 0 if good else 1


def _device() -> Device:
    from gpulinear.measure.cuda_device import CudaDevice

    return CudaDevice()


# ---- the command, which does not ---------------------------------------------------------------

ROWS, KERNELS = "prove.jsonl", "kernels.json"


def finish(out: Path, outcome: supervisor.Outcome) -> dict[str, Any]:
    """Write the committed ledger and the kernels that passed; returns the row that says so.

    Where a worker died nobody knows which kernel did it: then none is entered.
    """
    kernels = Kernels(out / KERNELS)
    entries = [] if outcome.deaths or not outcome.where else kernels.entries(outcome.where)
    ledger.append([*ledger.load(), *entries], out / "ledger.json")
    failed = sorted({name for name, _, good in kernels.seen.values() if not good})
    return {"part": "ledger", "passed": len(entries), "seen": len(kernels.seen), "failed_families": failed}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.prove", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of everything that is found")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds in all")
    parser.add_argument("--parts", default="", help="only these, separated by commas, still in their order")
    parser.add_argument("--cubins", type=Path, help="a kernel cache copied from another machine: do its cubins load?")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(options)
    wanted = [name for name in options.parts.split(",") if name] or list(LIMITS)
    unknown = sorted(set(wanted) - set(LIMITS))
    if unknown:
        parser.error(f"parts are {', '.join(LIMITS)}; unknown: {', '.join(unknown)}")
    why = why_no_gpu()
    if why is not None:
        print(f"bench.prove needs a GPU with a working driver and CuPy ({why}); nothing was measured")
        return 3
    options.out.mkdir(parents=True, exist_ok=True)

    def command(names: list[str], seconds: float) -> list[str]:
        given = ["--out", str(options.out), "--budget", str(seconds), "--parts", ",".join(names)]
        given += ["--cubins", str(options.cubins)] if options.cubins else []
        return [sys.executable, "-m", "bench.prove", "--worker", *given]

    limits = {name: seconds for name, seconds in LIMITS.items() if name in wanted}
    outcome = supervisor.supervise(command, limits, options.budget, print)
    rows = [{"part": name, "status": "error", "error": reason} for name, reason in outcome.deaths.items()]
    with open(options.out / ROWS, "a", encoding="utf-8") as file:
        for row in [*rows, finish(options.out, outcome)]:
            file.write(json.dumps({**row, **outcome.where}) + "\n")
            print(row)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    raise SystemExit(main())
