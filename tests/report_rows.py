"""Rows of a GPU that does not exist, for the tests of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from gpulinear.measure.case import Case
from gpulinear.measure.pairs import GpuRows, Pair
from gpulinear.measure.records import Row

CASE = Case("linear", "bfloat16", 1024, 1024, 1024, group="square", source="a fake")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST, SECOND = "1" * 32, "2" * 32
PROVENANCE = {
    "gpu": "Fake GPU", "arch": "sm_90a", "sms": 7, "driver": "13.2", "cuda": "13.0", "nvrtc": "13.0", "cupy": "14.2.0",
    "numpy": "2.3.0", "python": "3.12.1", "gpulinear": "0.1.0", "commit": COMMIT, "dirty": False,
    "time": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
LATER = {"run": SECOND, "time": "2026-01-03T03:04:05+00:00"}


def row(provider: str = "gpulinear", us: float | None = 10.0, case: Case = CASE, **more: Any) -> dict[str, Any]:
    """A row of a case; without ``us`` one that was not run, unless ``more`` says otherwise."""
    data = {
        "schema": 1, "kind": "time", "run": FIRST, "case": case.to_json(), "name": case.name, "flops": case.flops,
        "least_bytes": case.least_bytes, "provider": provider, "ours": provider.startswith("gpulinear"), "kernel": "",
        **PROVENANCE,
    }  # fmt: skip
    if us is None:
        return {**data, "status": "skipped", "reason": "budget", **more}
    return {
        **data, "status": "ok", "error_units": 0.25, "same_bits": True, "us_p20": us * 0.75, "us_p50": us,
        "us_p80": us * 1.5, "samples": 50, "late_batches": 0, "sets": 3, **more,
    }  # fmt: skip


def wrong(provider: str = "gpulinear", case: Case = CASE, **more: Any) -> dict[str, Any]:
    return {**row(provider, None, case), "status": "WRONG", "reason": "NaN in 3 outputs", **more}


def ceiling(name: str, value: float, unit: str = "TFLOP/s", **more: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "ceiling",
        "run": FIRST,
        "ceiling": name,
        "value": value,
        "unit": unit,
        **PROVENANCE,
        **more,
    }


def placed(rows: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(data, Path("2026-01-02-0123456.jsonl"), line) for line, data in enumerate(rows, 1)]


def gpu(*rows: dict[str, Any]) -> GpuRows:
    return GpuRows(placed(rows))


def only(found: GpuRows) -> Pair:
    (pair,) = found.pairs
    return pair


def everything() -> list[dict[str, Any]]:
    """Rows for every picture and table."""
    rows: list[dict[str, Any]] = [ceiling("copy", 1000.0, "GB/s")]
    rows += [ceiling(f"matmul {name}", 500.0) for name in ("bfloat16", "float32", "tf32")]
    numbers = (("bfloat16", None), ("float32", None), ("float32", "tf32"))
    for (dtype, precision), op, size in product(numbers, ("linear", "dgrad", "wgrad"), (512, 1024, 2048)):
        case = Case(op, dtype, size, size, size, precision=precision, group="square")
        rows += [row(us=size / 20, case=case, host_us=7.0), row("torch", size / 25, case, host_us=5.0)]
    few = Case("linear", "bfloat16", 1, 512, 512, group="decode")
    return [*rows, row(us=4, case=few), row("torch", 5, few), wrong(case=replace(few, tokens=2))]


BEHIND = [row(us=10.0), row("torch", 8.0)]
