"""The pytest-benchmark suite in bench/: it runs anywhere and says what it skipped; its GPU part, on a fake device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.conftest import skip_lines
from bench.test_peers import CASES, PROVIDERS, device_figures, trials_on
from gpulinear.device import why_no_gpu
from gpulinear.measure.case import Case
from gpulinear.measure.providers import PEERS
from gpulinear.measure.stopwatch import Timing
from gpulinear.measure.trial import Result

from .measure.fakes import FakeDevice, FakeProvider

ROOT = Path(__file__).resolve().parent.parent
# pytest-benchmark refuses to run in a worker of pytest-xdist, and these are processes of their own.
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
CASE = Case("linear", "float32", 4, 8, 4)


def test_the_suite_runs_here_and_says_what_it_skipped(kernel_cache: Path) -> None:
    # Compiling and the emulator are left to a real run: they are covered by their own tests, and slow.
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--benchmark-disable"]
    command += ["-k", "import or plan or warm or cpu_reference or kernel"]
    environment = {**ALONE, "GPULINEAR_CACHE": str(kernel_cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpulinear bench" in done.stdout
    if why_no_gpu() is not None:
        assert f"{len(CASES) * len(PROVIDERS)} skipped: kernels against cuBLAS need a GPU" in done.stdout


def test_every_benchmark_can_be_collected() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("emulator", "warm_call", "import", "plan", "compile", "reference", "peers"):
        assert f"bench/test_{name}.py::" in done.stdout


def test_each_reason_is_counted() -> None:
    assert skip_lines(3, Counter({"no GPU": 2, "a": 1})) == [
        "3 ran, 3 skipped",
        "  1 skipped: a",
        "  2 skipped: no GPU",
    ]
    assert skip_lines(3, Counter()) == ["3 ran, 0 skipped"]


def test_cases_are_told_apart_and_peers_exist() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(PROVIDERS) <= {"gpulinear", *PEERS}


# ---- the part for a GPU ----


def outcome(result: Result) -> tuple[str, str]:
    """How a benchmark of this result ends; a skip must not end the test that looks at it."""
    try:
        device_figures(result)
    except (pytest.fail.Exception, pytest.skip.Exception) as error:
        return ("failed" if isinstance(error, pytest.fail.Exception) else "skipped"), str(error)
    return "timed", ""


def test_right_results_are_timed_on_the_device_and_only_once() -> None:
    device = FakeDevice()
    ours = FakeProvider(device, "gpulinear", ours=True, device_us=10.0)
    peer = FakeProvider(device, "cublasGemmEx", device_us=20.0)
    trials = trials_on(device, [ours, peer])
    figures = {name: device_figures(result) for name, result in trials(CASE).items()}
    assert [figures[name]["device_us_p50"] for name in ("gpulinear", "cublasGemmEx")] == [10.0, 20.0]
    for found in figures.values():
        assert found["error_units"] <= 1 and found["samples"] > 0 and found["kernel"].startswith("kernel of")
        assert found["device_us_p20"] <= found["device_us_p50"] <= found["device_us_p80"]
    assert trials(CASE) is trials(CASE) and len(ours.prepared) == 1


@pytest.mark.parametrize("fault", ["wrong", "nan", "raises", "last bit"])
def test_a_wrong_result_of_ours_fails_and_has_no_time(fault: str) -> None:
    device = FakeDevice()
    at = 5 if fault == "last bit" else 1  # right at first, other bits when repeated
    trials = trials_on(device, [FakeProvider(device, "gpulinear", ours=True, fault=fault, at=at)])
    ended, reason = outcome(trials(CASE)["gpulinear"])
    assert ended == "failed" and reason.startswith(("gpulinear WRONG: ", "gpulinear error: "))


@pytest.mark.parametrize("fault", ["wrong", "raises", "why_not"])
def test_what_a_peer_cannot_do_is_skipped_with_its_reason(fault: str) -> None:
    device = FakeDevice()
    trials = trials_on(device, [FakeProvider(device, "cublasGemmEx", fault=fault)])
    ended, reason = outcome(trials(CASE)["cublasGemmEx"])
    assert ended == "skipped" and reason.split(": ")[0] in {
        f"cublasGemmEx {how}" for how in ("WRONG", "error", "unavailable")
    }


def test_what_ours_does_not_offer_is_skipped() -> None:
    device = FakeDevice()
    trials = trials_on(device, [FakeProvider(device, "gpulinear", ours=True, fault="why_not")])
    assert outcome(trials(CASE)["gpulinear"]) == ("skipped", "gpulinear unavailable: it does not do that")


def test_a_lost_device_ends_the_suite() -> None:
    device = FakeDevice()
    trials = trials_on(device, [FakeProvider(device, "gpulinear", ours=True, fault="device")])
    with pytest.raises(pytest.exit.Exception, match="the device is gone"):
        trials(CASE)


def test_figures_are_the_timing() -> None:
    timing = Timing(1.0, 2.0, 3.0, 7, 0, 4.0, None)
    result = Result(FakeProvider(FakeDevice()), "ok", None, "k", 0.5, True, timing)
    assert device_figures(result) == {
        **{"kernel": "k", "error_units": 0.5, "device_us_p20": 1.0, "device_us_p50": 2.0, "device_us_p80": 3.0},
        **{"samples": 7, "host_us": 4.0, "graph_us": None},
    }
