"""The questions that only hardware answers, each a few seconds: what docs/gpu-todo.md predicts is measured here.

How fast few blocks read memory; what a launch and a tensor map cost the host; what the length of a segment costs a large
product; what a cold L2 costs the baseline; whether cubins that were built elsewhere load.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gpulinear as gl
from gpulinear import gemm
from gpulinear.compile import compile_kernel
from gpulinear.measure.case import Case
from gpulinear.measure.device import Device
from gpulinear.measure.operands import OperandSet, operand_sets
from gpulinear.measure.stopwatch import Rules, Timing, measure
from gpulinear.plan import Options

from .budget import Clock, Part

MICRO = Path(__file__).with_name("micro")
STREAM_BYTES = 64 << 20  # of one launch: a weight of 4096 x 8192 in 16 bits
STREAM_BLOCKS = (16, 32, 64, 128, 256, 512)
_UNIT = 256 * 16 * 16  # bytes that a block reads per step (micro/stream.cu)
SEGMENTS = (1024, 2048, 4096, 1 << 20)  # the last one: no segments
LARGE = ((4096, 4096, 4096), (8192, 8192, 16384))  # (tokens, out, in)


def _row(timing: Timing) -> dict[str, Any]:
    return {name: value for name, value in asdict(timing).items() if value is not None}


def _one(call: Callable[[int], Any], sets: int, device: Device, seconds: float = 0.5) -> Timing:
    outcome = measure({"it": call}, sets, device, Rules(budget_s=seconds))
    if "it" in outcome.errors:
        raise outcome.errors["it"]
    return outcome.timings["it"]


def stream_rate(device: Device) -> Part:
    """GB/s at which 16 to 512 blocks read memory once, cold: what a skinny GEMM can hope for."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        xp = device.xp
        source = (MICRO / "stream.cu").read_text(encoding="utf-8")
        artifact = compile_kernel(source, entry="micro", arch=device.arch, include_dir=MICRO)
        kernel = xp.RawModule(path=str(artifact.cubin_path)).get_function("micro")
        copies = max(2, -(-3 * device.l2_bytes // STREAM_BYTES))
        data = xp.random.RandomState(0).randint(0, 1 << 31, copies * STREAM_BYTES // 4).astype(xp.int32)
        sink = xp.empty(max(STREAM_BLOCKS), xp.uint32)
        for blocks in STREAM_BLOCKS:
            chunk = STREAM_BYTES // blocks // _UNIT * _UNIT

            def call(index: int, blocks: int = blocks, chunk: int = chunk) -> None:
                start = data[index * (STREAM_BYTES // 4) :]
                kernel((blocks,), (256,), (start, np.int64(chunk // 16), sink))

            timing = _one(call, copies, device)
            yield {"question": "stream rate", "blocks": blocks, "bytes": blocks * chunk,
                   "gbps": blocks * chunk / timing.us_p50 * 1e-3, **_row(timing)}  # fmt: skip

    return part


def host_costs(device: Device) -> Part:
    """Host microseconds of a warm call with ``out=`` beside cupy.matmul's, nobody waiting; and of one tensor map."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        xp = device.xp
        for dtype in ("float32", "bfloat16"):
            (given, *_) = operand_sets(Case("linear", dtype, 64, 64, 64), xp, 0, device.free_bytes())
            x, weight, y = given.inputs["x"], given.inputs["weight"], given.outputs["y"]
            calls: dict[str, Callable[[], Any]] = {"gpulinear": partial(gl.linear, x, weight, out=y)}
            if dtype == "float32":
                calls["cupy.matmul"] = partial(xp.matmul, x, weight.T, out=y)
            for name, call in calls.items():
                yield {"question": "host time of a call", "provider": name, "dtype": dtype, **_host(call, device)}

    return part


def _host(call: Callable[[], Any], device: Device) -> dict[str, float]:
    for _ in range(50):
        call()
    samples = []
    for _ in range(21):
        device.synchronize()
        begin = time.perf_counter()
        for _ in range(100):
            call()
        samples.append((time.perf_counter() - begin) * 1e4)
    p20, p50, p80 = (float(np.quantile(samples, q)) for q in (0.2, 0.5, 0.8))
    return {"host_us_p20": p20, "host_us_p50": p50, "host_us_p80": p80}


def segments(device: Device, families: tuple[str, ...]) -> Part:
    """The time of large 16-bit products with segments of 1024, 2048, 4096 and none: S is settled by this."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        for (tokens, out, inner), family in itertools.product(LARGE, families):
            case = Case("linear", "bfloat16", tokens, out, inner)
            sets = operand_sets(case, device.xp, device.l2_bytes, device.free_bytes())
            first, *_ = sets
            shown = gl.explain("linear", first.inputs["x"], first.inputs["weight"], out_dtype="bfloat16")
            tiles = [c.config.tile for c in shown.choices if c.refused is None and c.config.family == family]
            for tile in tiles:
                if clock.left() < 5:
                    return
                calls = {str(s): _forced(sets, Options(tile=tile, splits=1, segment=s)) for s in SEGMENTS}
                outcome = measure(calls, len(sets), device, Rules(budget_s=2.0))
                for s, timing in outcome.timings.items():
                    yield {"question": "segments", "case": case.name, "family": family, "tile": tile, "segment": int(s),
                           **_row(timing)}  # fmt: skip
                for s, error in outcome.errors.items():
                    yield {"question": "segments", "case": case.name, "family": family, "tile": tile, "segment": int(s),
                           "status": "error", "error": repr(error)}  # fmt: skip

    return part


def _forced(sets: list[OperandSet], options: Options) -> Callable[[int], None]:
    def call(index: int) -> None:
        given = sets[index]
        with gemm.planning(options):
            gl.linear(given.inputs["x"], given.inputs["weight"], out=given.outputs["y"])

    return call


def hot_and_cold(device: Device) -> Part:
    """cupy.matmul on one operand set (hot where the L2 holds it) and on rotating ones (cold): what rotation changes."""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        for size, dtype in itertools.product((512, 1024, 2048, 4096), ("float16", "float32")):
            if clock.left() < 3:
                return
            case = Case("linear", dtype, size, size, size)
            sets = operand_sets(case, device.xp, device.l2_bytes, device.free_bytes())
            # One after the other: interleaved, the cold launches would cool the hot ones.
            for name, call in (("cold", _product(device.xp, sets)), ("hot", _product(device.xp, sets[:1]))):
                yield {
                    "question": "hot and cold",
                    "case": case.name,
                    "cache": name,
                    **_row(_one(call, len(sets), device)),
                }

    return part


def _product(xp: Any, sets: list[OperandSet]) -> Callable[[int], None]:
    def call(index: int) -> None:
        given = sets[index % len(sets)]
        xp.matmul(given.inputs["x"], given.inputs["weight"].T, out=given.outputs["y"])

    return call


def foreign_cubins(device: Device, directory: Path | None) -> Part:
    """Cubins of another machine's compiler, such as a copied kernel cache: does this driver load them?"""

    def part(clock: Clock) -> Iterator[dict[str, Any]]:
        found = sorted(directory.rglob("*.cubin")) if directory else []
        if not found:
            reason = f"no cubins in {directory}" if directory else "no directory was given (--cubins)"
            yield {"question": "foreign cubins", "status": "unavailable", "reason": reason}
        for path in found:
            try:
                device.xp.RawModule(path=str(path)).compile()
            except Exception as error:  # any refusal is the answer
                yield {"question": "foreign cubins", "cubin": path.parent.name, "status": "error", "error": repr(error)}
            else:
                yield {"question": "foreign cubins", "cubin": path.parent.name, "status": "ok"}

    return part
