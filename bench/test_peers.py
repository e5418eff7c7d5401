"""Kernels against cuBLAS on a GPU, timed launch by launch on the same operands, and judged before they are timed.

What pytest-benchmark itself times is one call and the wait for it. The device's own time is in ``extra_info``: of events
behind a backlog, interleaved with the peer's launches (gpulinear.measure.stopwatch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest

from gpulinear.device import why_no_gpu
from gpulinear.measure.case import Case
from gpulinear.measure.device import Device
from gpulinear.measure.operands import operand_sets
from gpulinear.measure.providers import discover
from gpulinear.measure.providers.base import Provider
from gpulinear.measure.stopwatch import Rules
from gpulinear.measure.trial import Result, try_case

CASES = [
    *(
        Case(op, dtype, n, n, n)
        for n in (4096, 1024)
        for dtype in ("bfloat16", "float32")
        for op in ("linear", "dgrad", "wgrad")
    ),
    *(Case("linear", dtype, 16, 4096, 4096) for dtype in ("bfloat16", "float32")),
]
PROVIDERS = ("gpulinear", "cublasGemmEx")
Trials = Callable[[Case], dict[str, Result]]


def trials_on(device: Device, providers: Sequence[Provider]) -> Trials:
    """What becomes of each provider on a case; asked twice, it answers from memory."""

    @cache
    def trials(case: Case) -> dict[str, Result]:
        trial = try_case(case, providers, device, Rules())
        if trial.lost:
            pytest.exit(f"the device is gone: {trial.lost}", returncode=1)
        return {result.provider.name: result for result in trial.results}

    return trials


def device_figures(result: Result) -> dict[str, Any]:
    """What is stored of a right result; fails for a wrong one of ours, skips what a peer cannot do."""
    if result.timing is None:
        sentence = f"{result.provider.name} {result.status}: {result.reason}"
        if result.provider.ours and result.status != "unavailable":
            pytest.fail(sentence)
        pytest.skip(sentence)
    timing = result.timing
    return {
        "kernel": result.kernel,
        "error_units": result.error_units,
        "device_us_p20": timing.us_p20,
        "device_us_p50": timing.us_p50,
        "device_us_p80": timing.us_p80,
        "samples": timing.samples,
        "host_us": timing.host_us,
        "graph_us": timing.graph_us,
    }


@pytest.fixture(scope="session")
def bench() -> Iterator[tuple[Device, list[Provider], dict[str, str], Trials]]:
    """The GPU, the providers that work on it, why others do not, and their trials."""
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(f"kernels against cuBLAS need a GPU: {reason}")
    from gpulinear.measure.cuda_device import CudaDevice

    device = CudaDevice()
    providers, missing = discover(device.arch, PROVIDERS)
    yield device, providers, missing, trials_on(device, providers)
    for provider in providers:
        provider.close()


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel(benchmark: Any, bench: Any, case: Case, name: str) -> None:
    device, providers, missing, trials = bench
    if name in missing:
        pytest.skip(f"{name}: {missing[name]}")
    benchmark.group = case.name
    benchmark.extra_info |= {"flops": case.flops, **device_figures(trials(case)[name])}
    provider = next(provider for provider in providers if provider.name == name)
    sets = operand_sets(case, device.xp, device.l2_bytes, device.free_bytes())
    call = provider.prepare(case, sets)

    def call_and_wait() -> None:
        call(0)
        device.synchronize()

    benchmark.pedantic(call_and_wait, rounds=20, warmup_rounds=3)
