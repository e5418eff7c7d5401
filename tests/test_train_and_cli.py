"""The main job and the command line, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, cli
from gpulinear import train as job


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gpulinear.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


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
    emulator = run("train", "--backend", "emulator")
    assert emulator.returncode == 3 and "emulator" in emulator.stderr
    assert run("train", "--dtype", "int8").returncode == 2
    assert run("train", "--backend", "gpu").returncode == 2
    assert run("--version").stdout == f"gpulinear {gl.__version__}\n"
    assert run("explain", "conv", "4", "4", "4").returncode == 2
    assert json.loads(run("info", "--json").stdout)["gpulinear"] == gl.__version__
    assert "gemm_simt" in run("explain", "wgrad", "4096", "64", "64", "--arch", "sm_80").stdout


def test_check_passes_here_and_fails_on_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.passed for row in check.run("reference"))
    monkeypatch.setattr(check, "dgrad", lambda dy, weight: gl.dgrad(dy, weight) * np.float32(1.01).astype(dy.dtype))
    wrong = [row for row in check.run("reference") if not row.passed]
    assert wrong and {row.op for row in wrong} == {"dgrad"}
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
    def missing(_: object) -> None:
        raise gl.BackendError("pip install 'gpulinear[train]'")

    monkeypatch.setattr(job, "choose_backend", missing)
    monkeypatch.setattr(sys, "argv", ["gpulinear", "train"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3 and "gpulinear[train]" in capsys.readouterr().err
