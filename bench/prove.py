"""The first hardware proof: ``python -m bench.prove --out DIR [--budget SECONDS]`` from a plain checkout on a GPU.

In the order of ``parts``, so that an early stop keeps what matters: golden bits of the tensor cores; every kernel
and layout against float64 and, bit for bit, against itself in other tiles; the emulator against the hardware; ``check``;
``train``; cost of a launch; times of cuBLAS, then ours beside it. Rows go to DIR/prove.jsonl, golden bits to DIR/golden,
and kernels that passed to DIR/ledger.json, which begins as the committed ledger: copy both over tests/ to keep them.
Exit codes: 0 all right, 1 something is wrong, 3 no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import check, device, ledger
from gpulinear import train as job
from gpulinear.measure.provenance import provenance
from gpulinear.views import numpy_dtype

from . import golden
from .budget import Clock, Part, run_parts
from .prove_kernels import Kernels, factors

SQUARES = (1024, 2048, 4096, 8192)


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


def launch_cost(clock: Clock) -> Iterator[dict[str, Any]]:
    """Host microseconds of a warm call with ``out=``, without waiting for the device; cupy.matmul beside it."""
    import cupy

    out = cupy.empty((64, 64), cupy.float32)
    operands = {name: cupy.ones((64, 64), cupy.float32) for name in ("x", "weight")}
    for name, call in _providers("linear", out).items():
        for _ in range(50):
            call(operands)
        samples = []
        for _ in range(21):
            cupy.cuda.runtime.deviceSynchronize()
            begin = time.perf_counter()
            for _ in range(100):
                call(operands)
            samples.append((time.perf_counter() - begin) * 1e4)
        yield {"provider": name, "host_us_p50": float(np.median(samples)), "host_us_p20": float(np.quantile(samples, 0.2)),
               "host_us_p80": float(np.quantile(samples, 0.8))}  # fmt: skip


def _rotating(shape: tuple[int, int, int], dtype: str) -> list[dict[str, Any]]:
    """Operand sets whose sum exceeds three times a 64 MB L2, so that no launch finds its operands in the cache."""
    import cupy

    tokens, out, inner = shape
    item = numpy_dtype(dtype).itemsize
    bytes_of_set = (tokens * inner + out * inner + 2 * tokens * out) * item
    count = max(2, min(64, -(-3 * (64 << 20) // bytes_of_set)))
    rng = cupy.random.RandomState(0)
    shapes = {"x": (tokens, inner), "weight": (out, inner), "dy": (tokens, out)}
    return [
        {
            name: rng.standard_normal(size, dtype=cupy.float32).astype(numpy_dtype(dtype))
            for name, size in shapes.items()
        }
        for _ in range(count)
    ]


def _providers(op: str, out: Any) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What is timed, each writing into ``out``."""
    import cupy

    first, second = {"linear": ("x", "weight"), "dgrad": ("dy", "weight"), "wgrad": ("dy", "x")}[op]
    function: Any = {"linear": gl.linear, "dgrad": gl.dgrad, "wgrad": gl.wgrad}[op]

    def ours(operands: dict[str, Any]) -> Any:
        return function(operands[first], operands[second], out=out)

    def theirs(operands: dict[str, Any]) -> Any:
        return cupy.matmul(*factors(op, operands), out=out)

    return {"gpulinear": ours, "cupy.matmul": theirs}


def _measured(
    calls: Mapping[str, Callable[[dict[str, Any]], Any]], sets: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """Device microseconds of each call: launches interleaved, cold operands, after a warm-up."""
    import cupy

    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n) {} }', "spin"
    )
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.monotonic()
    for round_number in range(200):
        spin((1,), (1,), (np.int64(400_000),))  # a backlog: the events below are enqueued before it ends
        events = []
        for offset, (name, call) in enumerate(calls.items()):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            call(sets[(2 * round_number + offset) % len(sets)])
            end.record()
            events.append((name, start, end))
        cupy.cuda.runtime.deviceSynchronize()
        if round_number >= 5:
            for name, start, end in events:
                times[name].append(cupy.cuda.get_elapsed_time(start, end) * 1e3)
        if round_number >= 15 and time.monotonic() - begin > 2:
            break
    return times


def _table(
    clock: Clock, dtypes: tuple[str, ...], providers: tuple[str, ...], math: str | None = None
) -> Iterator[dict[str, Any]]:
    """Median times of each op on squares; a provider that cannot do it is a row that says so."""
    import cupy

    for dtype, size, op in itertools.product(dtypes, SQUARES, ("linear", "dgrad", "wgrad")):
        if clock.left() < 4:
            return
        row = {"op": op, "dtype": dtype, "math": math or dtype, "shape": (size, size, size)}
        try:
            sets = _rotating((size, size, size), dtype)
            calls = _providers(op, cupy.empty((size, size), numpy_dtype(dtype)))
            times = _measured({name: calls[name] for name in providers}, sets)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            if "gpulinear" in providers:
                raise
            yield {**row, "provider": providers[0], "available": False, "reason": repr(error)}
            continue
        for name, samples in times.items():
            p20, p50, p80 = (float(np.quantile(samples, q)) for q in (0.2, 0.5, 0.8))
            yield {**row, "provider": name, "us_p20": p20, "us_p50": p50, "us_p80": p80, "samples": len(samples),
                   "tflops": 2e-6 * size**3 / p50}  # fmt: skip


def _set_tf32() -> Callable[[], None]:
    """Let cupy.matmul use tf32 for float32; returns what undoes it."""
    from cupy._core import _routines_linalg as linalg

    before = linalg.get_compute_type(np.float32)
    linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32)
    return lambda: linalg.set_compute_type(np.float32, before)


def cublas_table(clock: Clock) -> Iterator[dict[str, Any]]:
    """The baseline alone: cupy.matmul in tf32 and every dtype; what CuPy cannot do is recorded as not available."""
    try:
        undo = _set_tf32()
    except (ImportError, AttributeError) as error:
        yield {"math": "tf32", "provider": "cupy.matmul", "available": False, "reason": repr(error)}
    else:
        try:
            yield from _table(clock, ("float32",), ("cupy.matmul",), "tf32")
        finally:
            undo()
    yield from _table(clock, ("bfloat16", "float16", "float32", "float64"), ("cupy.matmul",))


def matmul_table(clock: Clock) -> Iterator[dict[str, Any]]:
    """Each op beside cupy.matmul, interleaved in one process on the same operands."""
    yield from _table(clock, ("float32", "float64"), ("gpulinear", "cupy.matmul"))


def golden_bits(out: Path, where: Mapping[str, Any]) -> Part:
    """The part that writes golden bits of every form and compares them with the model."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        for verdict in golden.write(out, device.live_spec(0).arch, where):
            good = verdict.outcome == "confirmed"
            yield {"form": verdict.form, "detail": verdict.detail, "status": "ok" if good else verdict.outcome}

    return part


def parts(out: Path, kernels: Kernels, where: Mapping[str, Any]) -> list[tuple[str, float, Part]]:
    """What is done, in order, with the most seconds that each may take."""
    return [
        ("golden_bits", 60.0, golden_bits(out / "golden", where)),
        ("correctness", 160.0, kernels.correctness),
        ("emulator", 90.0, kernels.emulator),
        ("check", 40.0, checks),
        ("train", 40.0, training),
        ("launch_cost", 10.0, launch_cost),
        ("cublas_table", 70.0, cublas_table),
        ("matmul_table", 90.0, matmul_table),
    ]


def write_ledger(out: Path, kernels: Kernels, where: Mapping[str, Any]) -> Part:
    """The part that writes the committed ledger and the kernels that passed to ``out``."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        entries = kernels.entries(where)
        ledger.append([*ledger.load(), *entries], out)
        failed = sorted({name for name, _, good in kernels.seen.values() if not good})
        yield {"passed": len(entries), "seen": len(kernels.seen), "failed_families": failed}

    return part


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.prove", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for rows, golden bits and ledger")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds in all")
    options = parser.parse_args(arguments)
    if not job.gpu_usable():
        print("bench.prove needs a GPU with a working driver and CuPy; nothing was measured")
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    where, kernels, rows = provenance(), Kernels(), options.out / "prove.jsonl"
    todo = {name: (seconds, part) for name, seconds, part in parts(options.out, kernels, where)}
    good = run_parts(todo, rows, options.budget, where, print)
    # Whatever the budget was spent on, what passed is kept.
    last: dict[str, tuple[float, Part]] = {"ledger": (30.0, write_ledger(options.out / "ledger.json", kernels, where))}
    good = run_parts(last, rows, 30.0, where, print) and good
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
