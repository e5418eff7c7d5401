"""The first hardware proof: ``python -m bench.prove --out DIR [--budget SECONDS]`` from a plain checkout on a GPU.

In this order, so that an early stop keeps what matters: every variant of every kernel against float64 and against each
other, bit for bit; ``check``; ``train``; cost of a launch; time against cupy.matmul. Rows go to DIR/prove.jsonl.
Exit codes: 0 all right, 1 something is wrong, 3 no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import check, gemm, testing
from gpulinear import train as job
from gpulinear.config import SEGMENT
from gpulinear.plan import Options
from gpulinear.views import numpy_dtype

from .budget import Clock, Part, run_parts
from .provenance import provenance

# (tokens, out, in): tile edges, ragged sizes, and K of several segments for the running total and for split-K.
SHAPES = ((1, 1, 1), (129, 127, 65), (300, 257, 2 * SEGMENT["gemm_simt"] + 13))
SQUARES = (1024, 2048, 4096, 8192)


def _operands(shape: tuple[int, int, int], dtype: str, exact: bool) -> dict[str, np.ndarray[Any, Any]]:
    tokens, out, inner = shape
    make = testing.integers if exact else testing.normal
    name = numpy_dtype(dtype)
    return {
        "x": make((tokens, inner), name, 0),
        "weight": make((out, inner), name, 1),
        "dy": make((tokens, out), name, 2),
    }


def _call(op: str, arrays: dict[str, Any]) -> Any:
    if op == "linear":
        return gl.linear(arrays["x"], arrays["weight"])
    if op == "dgrad":
        return gl.dgrad(arrays["dy"], arrays["weight"])
    return gl.wgrad(arrays["dy"], arrays["x"])


def _factors(op: str, arrays: dict[str, Any]) -> tuple[Any, Any]:
    return {
        "linear": (arrays["x"], arrays["weight"].T),
        "dgrad": (arrays["dy"], arrays["weight"]),
        "wgrad": (arrays["dy"].T, arrays["x"]),
    }[op]


def correctness(clock: Clock) -> Iterator[dict[str, Any]]:
    """Every legal tile and several splits, all ops and dtypes: within the bound, exact on integers, equal bits."""
    import cupy

    for dtype, shape, op in itertools.product(check.DTYPES, SHAPES, ("linear", "dgrad", "wgrad")):
        for exact in (True, False):
            host = _operands(shape, dtype, exact)
            device = {name: cupy.asarray(array) for name, array in host.items()}
            a, b = _factors(op, host)
            want = a.astype(np.float64) @ b.astype(np.float64)
            fma = testing.fma(dtype, SEGMENT["gemm_simt"])
            bound = testing.gemm_bound(a, b, fma, out_dtype=numpy_dtype(dtype))
            plan = gl.explain(
                op, *(device[n] for n in {"linear": ("x", "weight"), "dgrad": ("dy", "weight")}.get(op, ("dy", "x")))
            )
            first: bytes | None = None
            for choice in plan.choices:
                if choice.refused is not None:
                    continue
                for splits in (1, 2, 3):
                    with gemm.planning(Options(tile=choice.config.tile, splits=splits)):
                        got = _call(op, device).get()
                    first = got.tobytes() if first is None else first
                    ratio = testing.error_ratio(got, want, bound)
                    same = got.tobytes() == first
                    right = ratio <= 1.0 and same and (not exact or (got == want.astype(got.dtype)).all())
                    yield {
                        "op": op, "dtype": dtype, "shape": shape, "exact": exact, "tile": choice.config.tile,
                        "splits": splits, "error_ratio": ratio, "same_bits": same, "status": "ok" if right else "WRONG",
                    }  # fmt: skip


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
        {name: rng.standard_normal(size, dtype=cupy.float32).astype(dtype) for name, size in shapes.items()}
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
        return cupy.matmul(*_factors(op, operands), out=out)

    return {"gpulinear": ours, "cupy.matmul": theirs}


def matmul_table(clock: Clock) -> Iterator[dict[str, Any]]:
    """Device time of each op beside cupy.matmul: launches interleaved, cold operands, random data, median of events."""
    import cupy

    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n) {} }', "spin"
    )
    for dtype, size, op in itertools.product(("float32", "float64"), SQUARES, ("linear", "dgrad", "wgrad")):
        if clock.left() < 5:
            return
        sets = _rotating((size, size, size), dtype)
        outs = cupy.empty((size, size), dtype)
        providers = _providers(op, outs)
        times: dict[str, list[float]] = {name: [] for name in providers}
        begin = time.monotonic()
        for round_number in range(200):
            spin((1,), (1,), (np.int64(400_000),))  # a backlog: the events below are enqueued before it ends
            events = []
            for offset, (name, call) in enumerate(providers.items()):
                start, end = cupy.cuda.Event(), cupy.cuda.Event()
                start.record()
                call(sets[(2 * round_number + offset) % len(sets)])
                end.record()
                events.append((name, start, end))
            cupy.cuda.runtime.deviceSynchronize()
            if round_number >= 5:
                for name, start, end in events:
                    times[name].append(cupy.cuda.get_elapsed_time(start, end) * 1e3)
            if round_number >= 15 and time.monotonic() - begin > 3:
                break
        for name, samples in times.items():
            p20, p50, p80 = (float(np.quantile(samples, q)) for q in (0.2, 0.5, 0.8))
            yield {"op": op, "dtype": dtype, "shape": (size, size, size), "provider": name, "us_p20": p20, "us_p50": p50,
                   "us_p80": p80, "samples": len(samples), "tflops": 2e-6 * size**3 / p50}  # fmt: skip


PARTS: dict[str, tuple[float, Part]] = {
    "correctness": (240.0, correctness),
    "check": (60.0, checks),
    "train": (60.0, training),
    "launch_cost": (20.0, launch_cost),
    "matmul_table": (200.0, matmul_table),
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.prove", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for prove.jsonl")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds in all")
    options = parser.parse_args(arguments)
    if not job.gpu_usable():
        print("bench.prove needs a GPU with a working driver and CuPy; nothing was measured")
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    good = run_parts(PARTS, options.out / "prove.jsonl", options.budget, provenance(), print)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
