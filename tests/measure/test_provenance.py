"""Where a row comes from: the commit of a checkout, of a copied tree, of a wheel; what a GPU and its libraries say."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from gpulinear.errors import ArgumentError
from gpulinear.measure import provenance

SHA = "0123456789abcdef0123456789abcdef01234567"


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=fake", "-c", "user.email=fake@example.invalid"]
    command = ["git", "-C", str(where), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package and a kernel, which provenance takes for its own."""
    for name in ("gpulinear/linear.py", "kernels/gemm.cuh", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.delenv("GPULINEAR_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    return tmp_path


def test_a_checkout_says_its_commit(checkout: Path) -> None:
    assert provenance.commit() == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize(
    ("name", "dirty"),
    [("gpulinear/linear.py", True), ("kernels/new.cuh", True), ("README.md", False), ("bench-row.jsonl", False)],
)
def test_only_what_a_time_depends_on_makes_a_tree_dirty(name: str, dirty: bool, checkout: Path) -> None:
    (checkout / name).write_text("changed")
    assert provenance.commit()[1] is dirty


def test_a_wheel_inside_somebodys_checkout_does_not_take_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_CHECKOUT", checkout / "gpulinear")
    assert provenance.commit() == ("unknown", False)


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPULINEAR_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert provenance.commit() == ("unknown", False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == ("unknown", False)


@pytest.mark.parametrize(("given", "want"), [(SHA, (SHA, False)), (f"{SHA}-dirty", (SHA, True))])
def test_a_copied_tree_is_told_its_commit(
    given: str, want: tuple[str, bool], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULINEAR_COMMIT", given)
    assert provenance.commit() == want


@pytest.mark.parametrize("given", ["main", "unknown", SHA.upper(), f"{SHA} -dirty", "012345"])
def test_a_commit_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPULINEAR_COMMIT", given)
    with pytest.raises(ArgumentError, match=r"GPULINEAR_COMMIT .* got .*; unset it"):
        provenance.commit()


def fake_cupy(cublas: bool) -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    cupy.cuda = cuda = types.ModuleType("cupy.cuda")  # type: ignore[attr-defined]
    cuda.runtime = types.SimpleNamespace(  # type: ignore[attr-defined]
        getDeviceProperties=lambda device: {"name": b"Fake GPU"},
        driverGetVersion=lambda: 13020,
        runtimeGetVersion=lambda: 12090,
    )
    if cublas:
        cuda.cublas = types.SimpleNamespace(getVersion=lambda handle: 130104)  # type: ignore[attr-defined]
        cuda.device = types.SimpleNamespace(get_cublas_handle=lambda: 1)  # type: ignore[attr-defined]
    return cupy


@pytest.mark.parametrize("cublas", [True, False])
def test_a_gpu_and_its_libraries(cublas: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = fake_cupy(cublas)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    monkeypatch.setattr(provenance, "live_spec", lambda _: types.SimpleNamespace(arch="sm_90a", sm_count=132))
    monkeypatch.setattr(provenance, "nvrtc_version", lambda: (13, 5))
    monkeypatch.setenv("GPULINEAR_COMMIT", SHA)
    monkeypatch.setenv("PATH", str(tmp_path))
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 580.1.2\n")
    smi.chmod(0o755)
    found: dict[str, Any] = provenance.provenance()
    assert found["gpu"] == "Fake GPU" and found["arch"] == "sm_90a" and found["sms"] == 132
    assert (found["driver"], found["driver_release"], found["cuda"], found["nvrtc"]) == (
        "13.2",
        "580.1.2",
        "12.9",
        "13.5",
    )
    assert found.get("cublas") == ("13.1.4" if cublas else None)
    assert (found["commit"], found["dirty"]) == (SHA, False) and None not in found.values()
    assert datetime.datetime.fromisoformat(found["time"]).utcoffset() == datetime.timedelta(0)
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert "driver_release" not in provenance.provenance()


def test_a_package_is_found_under_any_of_its_names() -> None:
    assert re.fullmatch(r"\d+\.\d+.*", provenance.package("no-such-package", "numpy") or "")
    assert provenance.package("no-such-package") is None
