"""Sanitizer, profiler and experiments of the proof command, with tools and a device that are made up."""

from __future__ import annotations

import json
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench import experiments, prove_tools
from bench.budget import Clock
from gpulinear import gemm
from gpulinear.measure.case import Case
from gpulinear.measure.stopwatch import Timing

from .measure.fakes import FakeDevice


class Tools:
    """subprocess.run and shutil.which; ``codes`` gives each tool's exit code, or an exception to raise."""

    def __init__(self, *codes: int | Exception, output: str = "ERROR SUMMARY: 0 errors\n") -> None:
        self.codes, self.output = list(codes), output
        self.commands: list[list[str]] = []
        self.timeouts: list[float] = []

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if self.codes else None

    def run(self, command: Any, *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(list(command))
        self.timeouts.append(timeout)
        code = self.codes[len(self.commands) - 1]
        if isinstance(code, Exception):
            raise code
        return subprocess.CompletedProcess(command, code, self.output, "")


def sanitized(tools: Tools, out: Path) -> list[dict[str, Any]]:
    return list(prove_tools.sanitizers(out, tools.run, tools.which)(Clock(100)))


def test_each_sanitizer_runs_and_a_finding_is_wrong(tmp_path: Path) -> None:
    tools = Tools(0, 9, 1, subprocess.TimeoutExpired("initcheck", 5))
    rows = sanitized(tools, tmp_path)
    assert [row["tool"] for row in rows] == list(prove_tools.SANITIZERS)
    assert [row["status"] for row in rows] == ["ok", "WRONG", "error", "skipped"]
    assert all(command[3:5] == ["--error-exitcode", "9"] and command[-1] == "bench.tiny" for command in tools.commands)
    assert all(0 < timeout <= 100 for timeout in tools.timeouts)
    assert (tmp_path / "sanitizer-racecheck.txt").read_text() == tools.output


def test_an_absent_tool_is_not_passed(tmp_path: Path) -> None:
    (row,) = sanitized(Tools(), tmp_path)
    assert row["status"] == "unavailable" and "PATH" in row["reason"]
    (row,) = prove_tools.profile(tmp_path, tmp_path / "none", Tools().run, Tools().which)(Clock(9))
    assert row["status"] == "unavailable"


def timed(name: str, ours: bool, us: float, status: str = "ok") -> dict[str, Any]:
    return {"kind": "time", "name": name, "case": {"op": name}, "ours": ours, "us_p50": us, "status": status}


def test_the_slowest_case_is_the_one_furthest_behind_the_best_peer() -> None:
    rows = [timed("a", True, 9.0), timed("a", False, 3.0), timed("a", False, 30.0), timed("b", True, 2.0)]
    rows += [timed("b", False, 1.0), timed("c", True, 99.0), timed("d", True, 9.0), timed("d", False, 1.0, "WRONG")]
    assert prove_tools.slowest(rows) == ({"op": "a"}, 3.0)
    assert prove_tools.slowest([]) is None and prove_tools.slowest(rows[:1]) is None


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [(0, "sm__throughput 80 %", "ok"), (1, "==ERROR== ERR_NVGPUCTRPERM", "unavailable"), (2, "crash", "error")],
)
def test_the_profile_is_of_the_slowest_case(code: int, output: str, status: str, tmp_path: Path) -> None:
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(json.dumps(row) + "\n" for row in (timed("a", True, 9.0), timed("a", False, 3.0))))
    tools = Tools(code, output=output)
    (row,) = prove_tools.profile(tmp_path, bench, tools.run, tools.which)(Clock(100))
    assert row["status"] == status and json.loads(tools.commands[0][-1]) == {"op": "a"}
    assert (tmp_path / "profile.txt").exists() == (status != "unavailable")


class Arrays(types.SimpleNamespace):
    """NumPy as CuPy: modules load and kernels take time of the fake device."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(**{name: value for name, value in vars(np).items() if name[0] != "_"})
        self.random = np.random
        self.launches: list[tuple[Any, ...]] = []

        def kernel(grid: Any, block: Any, args: Any) -> None:
            self.launches.append((grid, block, args))
            device.work(2.0, 10.0)

        def load(path: str) -> Any:
            if "broken" in path:
                raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
            return types.SimpleNamespace(get_function=lambda name: kernel, compile=lambda: None)

        self.RawModule = load

        def matmul(a: Any, b: Any, out: Any) -> None:
            device.work(3.0, 20.0)

        self.matmul = matmul


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    fake.xp = Arrays(fake)
    yield fake


def test_the_stream_rate_reads_what_it_says(
    compiled: None, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "STREAM_BYTES", 1 << 25)
    monkeypatch.setattr(experiments, "STREAM_BLOCKS", (16, 512))
    rows = list(experiments.stream_rate(device)(Clock(100)))
    assert [row["blocks"] for row in rows] == [16, 512] and all(row["bytes"] == 1 << 25 for row in rows)
    assert all(row["gbps"] == row["bytes"] / row["us_p50"] * 1e-3 for row in rows)
    (grid, block, (start, words, _)) = device.xp.launches[0]
    assert (grid, block) == ((16,), (256,)) and 16 * int(words) * 16 == 1 << 25 and start.nbytes >= 1 << 25


def test_segments_are_forced_one_by_one(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def linear(x: Any, weight: Any, *, out: Any) -> None:
        seen.append(gemm._options.get())
        if gemm._options.get().segment == 1024:
            raise RuntimeError("out of registers")
        device.work(1.0, 50.0)

    monkeypatch.setattr(gl, "linear", linear)
    monkeypatch.setattr(experiments, "LARGE", ((64, 64, 96),))
    (family,) = {c.config.family for c in gl.explain("linear", *shapes()).choices}
    rows = list(experiments.segments(device, (family,))(Clock(1000)))
    tiles = {row["tile"] for row in rows}
    assert tiles == {c.config.tile for c in gl.explain("linear", *shapes()).choices if c.refused is None}
    for tile in tiles:
        status = {row["segment"]: row.get("status", "ok") for row in rows if row["tile"] == tile}
        assert status == {1024: "error", 2048: "ok", 4096: "ok", 1 << 20: "ok"}
    assert {options.tile for options in seen} == tiles and all(options.splits == 1 for options in seen)


def shapes() -> tuple[Any, Any]:
    return gl.ShapeDtype((64, 96), "bfloat16"), gl.ShapeDtype((64, 96), "bfloat16")


def test_hot_launches_use_one_set_and_cold_ones_all(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[int]] = {}

    def one(call: Any, sets: int, device: Any, seconds: float = 0.5) -> Timing:
        mine = used.setdefault(f"{len(used)}", set())
        monkeypatch.setattr(device.xp, "matmul", lambda a, b, out: mine.add(id(out)))
        for index in range(sets):
            call(index)
        return Timing(1.0, 2.0, 3.0, 5, 0, None, None)

    monkeypatch.setattr(experiments, "_one", one)
    rows = list(experiments.hot_and_cold(device)(Clock(3.5)))
    assert [row["cache"] for row in rows[:2]] == ["cold", "hot"]
    assert len(used["0"]) >= 2 and len(used["1"]) == 1


def test_cubins_from_elsewhere(device: FakeDevice, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("good", "broken"):
        (tmp_path / name / "kernel.cubin").write_bytes(b"")
    rows = list(experiments.foreign_cubins(device, tmp_path)(Clock(9)))
    assert {row["cubin"]: row["status"] for row in rows} == {"good": "ok", "broken": "error"}
    for nothing in (None, tmp_path / "good" / "none"):
        (row,) = experiments.foreign_cubins(device, nothing)(Clock(9))
        assert row["status"] == "unavailable"


def test_host_costs_are_of_warm_calls(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "linear", lambda x, weight, *, out: device.work(1.0, 1.0))
    rows = list(experiments.host_costs(device)(Clock(9)))
    assert [(row["provider"], row["dtype"]) for row in rows] == [
        ("gpulinear", "float32"), ("cupy.matmul", "float32"), ("gpulinear", "bfloat16")
    ]  # fmt: skip
    assert all(row["host_us_p20"] <= row["host_us_p50"] <= row["host_us_p80"] for row in rows)


def test_a_case_survives_the_command_line() -> None:
    case = Case("linear", "bfloat16", 3, 5, 7, activation="gelu", bias=True)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case
