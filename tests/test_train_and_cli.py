"""The main job and the command line, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, cli
from gpulinear import train as job
from gpulinear.backends import reference
from gpulinear.errors import KernelFault
from gpulinear.launch import kernel_names, launches, record, recorders

from .fake_cupy import FakeCupy
from .test_cuda_backend import device_array

ROOT = Path(gl.__file__).parent.parent


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gpulinear.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **env})


def test_training_reaches_97_percent_and_repeats_its_bits() -> None:
    settings = job.Settings(backend="reference")
    first = job.train(settings)
    assert first.test_accuracy >= 0.97
    short = job.Settings(backend="reference", steps=30)
    once, twice = job.train(short), job.train(short)
    for name, weight in once.weights.items():
        assert weight.tobytes() == twice.weights[name].tobytes(), name
    other = job.train(job.Settings(backend="reference", steps=30, seed=1))
    assert any(other.weights[n].tobytes() != w.tobytes() for n, w in once.weights.items())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_training_in_other_dtypes(dtype: str) -> None:
    result = job.train(job.Settings(backend="reference", epochs=8, dtype=dtype))
    assert result.test_accuracy >= 0.9


def test_train_command_writes_weights_and_a_picture(tmp_path: Path) -> None:
    weights, picture = tmp_path / "weights.npz", tmp_path / "loss.png"
    done = run("train", "--steps", "30", "--backend", "reference", "--save", str(weights), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert "NumPy reference" in done.stdout and "images per second" in done.stdout
    with np.load(weights) as saved:
        assert saved["weight0"].shape == (256, 64) and saved["bias1"].shape == (10,)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_json_and_exit_codes() -> None:
    done = run("train", "--steps", "5", "--backend", "reference", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["backend"] == "reference"
    helped = run("train", "--help")  # old typer with new click fails here
    assert helped.returncode == 0 and "steps" in helped.stdout, helped.stderr
    assert run("train", "--dtype", "int8").returncode == 2
    assert run("train", "--backend", "gpu").returncode == 2
    assert run("--version").stdout == f"gpulinear {gl.__version__}\n"
    assert run("explain", "conv", "4", "4", "4").returncode == 2
    assert json.loads(run("info", "--json").stdout)["gpulinear"] == gl.__version__
    assert "gemm_simt" in run("explain", "wgrad", "4096", "64", "64", "--arch", "sm_80").stdout
    joint = run("explain", "linear_backward", "4096", "64", "32")
    assert joint.returncode == 0 and "dgrad 4096x32x64" in joint.stdout and "wgrad 64x32x4096" in joint.stdout
    assert "column_sum" in joint.stdout


def test_check_passes_here_and_fails_on_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(check.run("reference"))
    assert all(row.passed for row in rows) and len(rows) == check.total("reference")
    assert {"float32", "float32 tf32", "float32 tf32x3", "float32 bf16x6"} <= {row.dtype for row in rows}
    assert len(list(check.run("reference", "sm_75"))) == check.total("reference", "sm_75") < len(rows)

    def wrong_dgrad(dy: Any, weight: Any, **how: Any) -> Any:
        return gl.dgrad(dy, weight, **how) * np.float32(1.01).astype(dy.dtype)

    monkeypatch.setattr(check, "dgrad", wrong_dgrad)
    wrong = [row for row in check.run("reference") if not row.passed]
    assert wrong and {row.op for row in wrong} == {"dgrad"}
    assert {row.dtype for row in wrong} == {row.dtype for row in rows}
    assert not check.Row("linear", "float32", "contiguous", (1, 1, 1), float("nan")).passed
    assert callable(cli.main)


def test_layer_forward_backward_and_accumulation() -> None:
    layer = gl.Linear(5, 3, activation="silu", dtype="float64", seed=0)
    x, dy = np.ones((2, 4, 5)), np.ones((2, 4, 3))
    y, ctx = layer.forward(x)
    assert y.tobytes() == layer(x).tobytes()
    dx = layer.backward(dy, ctx)
    once = layer.dw.copy()
    layer.backward(dy, ctx, accumulate=True)
    assert dx.shape == x.shape and (layer.dw == 2 * once).all()
    assert gl.Linear(5, 3, seed=0).weight.tobytes() == gl.Linear(5, 3, seed=0).weight.tobytes()
    with pytest.raises(gl.DTypeError, match=r"numpy\.asarray"):
        layer.forward([[1.0] * 5])
    with pytest.raises(gl.ArgumentError, match="relu"):
        gl.Linear(5, 3, activation="swish")
    with pytest.raises(gl.ArgumentError, match="precision"):
        gl.Linear(5, 3, dtype="float16", precision="tf32")


def test_messages_keep_their_brackets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> None:
        raise gl.BackendError("pip install 'gpulinear[train]'")

    monkeypatch.setattr(job, "choose_backend", missing)
    monkeypatch.setattr(sys, "argv", ["gpulinear", "train"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3 and "gpulinear[train]" in capsys.readouterr().err


def test_launches_are_counted_cold_and_warm_and_only_inside(fake_cupy: FakeCupy) -> None:
    x, w, dy = device_array(40, 24), device_array(56, 24), device_array(40, 56)
    gl.linear(x, w)
    with launches() as outer:
        gl.linear(x, w)
        with launches() as inner:
            gl.linear(x, w)
            gl.bgrad(dy)
        gl.linear(device_array(0, 24), w)  # nothing to launch
    gl.linear(x, w)
    (name,) = kernel_names(gl.explain("linear", x, w))
    assert name.startswith("gemm_simt ") and "x" in name.split()[1]
    assert inner == {name: 1, "column_sum": 1} and outer == {name: 2, "column_sum": 1}
    with launches() as outer:
        with launches() as inner:
            pass  # ends with counts that equal the outer ones
        gl.linear(x, w)
    assert inner == {} and outer == {name: 1} and recorders == []


@pytest.fixture
def fake_emulator(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The emulator backend replaced by the reference, which claims to have launched the plan's kernels."""
    fake = types.ModuleType("gpulinear.backends.emulator")
    ran: list[str] = []
    calls: list[str] = []

    class Total:
        def __init__(self, ratio: float) -> None:
            self.ratio, self.requests = ratio, 0 if ratio == 0 else 9

    class Counters:
        def __init__(self, ratios: dict[str, float]) -> None:
            self.total: Callable[[str], Total] = lambda space: Total(ratios[space])

    def execute(plan: Any, problems: Any, arrays: Any) -> None:
        reference.run(problems, arrays)
        calls.append(plan.op)
        ran[:] = kernel_names(plan)
        if recorders:
            record(ran)

    def last_results() -> list[tuple[str, Any]]:
        counted = {
            "shared": 0.0 if ran[0] == "column_sum" else 1.25,
            "global": 2.5 if calls.count(calls[-1]) == 1 else 1.5,
        }
        return [(name.split()[0], types.SimpleNamespace(counters=Counters(counted))) for name in ran]

    fake.execute, fake.last_results = execute, last_results  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpulinear.backends.emulator", fake)
    monkeypatch.setattr("gpulinear.backends.emulator", fake, raising=False)
    return fake


def test_training_tells_which_kernels_ran(fake_emulator: types.ModuleType) -> None:
    result = job.train(job.Settings(backend="emulator", arch="sm_75", steps=3, hidden=16))
    both = sum(
        count for name, count in result.kernels.items() if name.startswith("joint_gemm_simt ")
    )  # dgrad and wgrad
    gemms = 2 * both + sum(count for name, count in result.kernels.items() if name.startswith("gemm_simt "))
    # 3 steps of 2 layers: forward, dgrad, wgrad; then 2 layers on the test set.
    assert gemms >= 3 * 2 * 3 + 2 and result.kernels["act_grad"] == 3 and result.kernels["column_sum"] >= 3
    assert job.train(job.Settings(backend="reference", steps=1)).kernels == {}


def test_training_runs_the_shipped_kernels_in_the_emulator(compiled: None) -> None:
    command = ("train", "--steps", "2", "--hidden", "16", "--batch", "8", "--json")
    emulated = json.loads(run(*command, "--backend", "emulator", "--arch", "sm_80").stdout)
    reference = json.loads(run(*command, "--backend", "reference").stdout)
    assert emulated["kernels"]["act_grad"] == 2 and reference["kernels"] == {}
    for got, exact in zip(emulated["epochs"][0], reference["epochs"][0], strict=True):
        assert got == pytest.approx(exact, abs=0.01)


def cli_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["gpulinear", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_check_shows_what_the_emulator_counted(
    fake_emulator: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "DTYPES", ("float32",))
    monkeypatch.setattr(check, "PRECISIONS", ("ieee",))
    monkeypatch.setattr(check, "EMULATED_SHAPES", ((3, 5, 7),))
    assert cli_main(monkeypatch, "check", "--backend", "emulator", "--arch", "sm_80", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["rows"]) == 12 and answer["failed"] == 0
    assert answer["traffic"]["gemm_simt"] == {"banks": 1.25, "sectors": 2.5}
    assert answer["traffic"]["column_sum"] == {"banks": None, "sectors": 2.5}
    assert cli_main(monkeypatch, "check", "--backend", "emulator") == 0
    shown = capsys.readouterr().out
    assert "bank conflicts" in shown and "1.25" in shown and "1.50" in shown and "12 right, 0 wrong" in shown
    assert check.total("reference") == 12 * len(check.SHAPES)


def test_arch_is_the_emulators(fake_emulator: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = fake_emulator.execute

    def execute(plan: Any, problems: Any, arrays: Any) -> None:
        seen.add(plan.arch)
        real(plan, problems, arrays)

    monkeypatch.setattr(fake_emulator, "execute", execute)
    command = ("train", "--backend", "emulator", "--steps", "1", "--hidden", "8")
    assert cli_main(monkeypatch, *command, "--arch", "sm_80") == 0 and seen == {"sm_80"}
    assert cli_main(monkeypatch, *command) == 0 and seen == {"sm_80", "sm_90a"}
    assert cli_main(monkeypatch, *command, "--arch", "sm_70") == 3
    monkeypatch.setattr(check, "DTYPES", ("float32",))
    monkeypatch.setattr(check, "EMULATED_SHAPES", ((3, 5, 7),))
    assert cli_main(monkeypatch, "check", "--backend", "emulator", "--arch", "sm_75") == 0 and "sm_75" in seen
    for command in (("train", "--steps", "1"), ("check",)):
        for backend in ("auto", "reference", "cuda"):
            assert cli_main(monkeypatch, *command, "--backend", backend, "--arch", "sm_80") == 2


def test_a_fault_in_a_kernel_is_a_failed_check(
    fake_emulator: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def race(*_: Any) -> None:
        raise KernelFault("the emulator found faults in gemm_simt: race, gemm_simt.cuh:131")

    monkeypatch.setattr(fake_emulator, "execute", race)
    assert cli_main(monkeypatch, "check", "--backend", "emulator") == 1
    assert "gemm_simt.cuh:131" in capsys.readouterr().err


def test_outputs_are_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(job, "train", refuse)
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "file").write_text("")
    for option, path in (
        ("--save", tmp_path / "none" / "w.npz"),
        ("--save", tmp_path),
        ("--save", tmp_path / "file" / "w.npz"),
        ("--plot", tmp_path / "none" / "p.png"),
        ("--plot", tmp_path / "dir.png"),
        ("--plot", tmp_path / "p.what"),
        ("--plot", tmp_path / "p"),
    ):
        assert cli_main(monkeypatch, "train", option, str(path)) == 2
        message = capsys.readouterr().err
        assert f"error: {option} must" in message and message.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli_main(monkeypatch, "train", "--plot", str(tmp_path / "p.png")) == 3
    assert "gpulinear[train]" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.png", "file"]


def test_the_check_of_outputs_leaves_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"old")
    job.check_outputs(tmp_path / "w.npz", tmp_path / "p.PDF")
    job.check_outputs(None, None)
    assert (tmp_path / "w.npz").read_bytes() == b"old" and not (tmp_path / "p.PDF").exists()


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cupy", "cuda"):
            raise {error}
sys.meta_path.insert(0, Block())
"""
ABSENT = 'ModuleNotFoundError(f"No module named {name!r}", name=name)'


@pytest.mark.parametrize("error", [ABSENT, 'OSError("libcudart is broken")', 'AttributeError("numpy is too new")'])
def test_the_command_line_without_cupy_and_cuda_bindings(tmp_path: Path, error: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(error=error))
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "GPULINEAR_CACHE": str(tmp_path / "cache")}
    said = "not installed" if error == ABSENT else error.split('"')[1]

    facts = json.loads(run("info", "--json", **env).stdout)
    assert said in facts["kernels on a GPU"] and said in facts["kernels compiled"]
    assert facts["nvrtc"] is None and facts["devices"] == []
    assert json.loads(run("info", "--json", GPULINEAR_HOST_BACKEND="what", **env).stdout)["host backend"].endswith(
        "'what'"
    )

    trained = run("train", "--steps", "3", "--json", **env)
    assert json.loads(trained.stdout)["backend"] == "reference", trained.stderr
    assert "gemm_simt" in run("explain", "linear_backward", "64", "32", "16", **env).stdout

    for command in (("train", "--backend", "cuda"), ("check", "--backend", "cuda"), ("check", "--backend", "emulator")):
        refused = run(*command, **env)
        assert refused.returncode == 3 and "Traceback" not in refused.stderr
        (line,) = [line for line in refused.stderr.splitlines() if "error:" in line]
        assert said in line
