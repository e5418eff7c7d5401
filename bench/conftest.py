"""The pytest-benchmark suite: says at its end what it skipped and why, and stores with results where they come from."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

import pytest

from gpulinear.device import why_no_gpu
from gpulinear.measure.provenance import commit, package, provenance


def skip_lines(ran: int, reasons: Counter[str]) -> list[str]:
    """How many benchmarks ran and how many did not, and each reason with its count."""
    lines = [f"{ran} ran, {reasons.total()} skipped"]
    return lines + [f"  {count} skipped: {reason}" for reason, count in sorted(reasons.items())]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What did not run is as much a result as what did."""
    stats = terminalreporter.stats
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in stats.get("skipped", ()))
    terminalreporter.write_sep("=", "gpulinear bench")
    for line in skip_lines(len(stats.get("passed", ())), reasons):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Stored and compared results carry the GPU, the versions and the commit of a bench row."""
    if why_no_gpu() is None:
        machine_info["gpulinear"] = provenance()
        return
    head, dirty = commit()
    machine_info["gpulinear"] = {
        "gpu": "none: times are of the host",
        "nvrtc": package("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
        "numpy": package("numpy"),
        "python": platform.python_version(),
        "commit": head,
        "dirty": dirty,
    }
