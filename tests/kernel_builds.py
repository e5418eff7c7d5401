"""Helpers of the tests that compile: one tiny kernel, built into an empty cache."""

from __future__ import annotations

from pathlib import Path

import pytest

import gpulinear.compile as compiler
from gpulinear.compile import compile_kernel

SOURCE = 'extern "C" __global__ void tiny(float* x) { x[threadIdx.x] = __fmaf_rn(x[threadIdx.x], 2.f, 1.f); }\n'


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory and an empty in-process memo."""
    root = tmp_path / "cache"
    monkeypatch.setenv("GPULINEAR_CACHE", str(root))
    monkeypatch.setattr(compiler, "_memory", {})
    return root


def build(tmp_path: Path, source: str = SOURCE, arch: str = "sm_80") -> compiler.Artifact:
    return compile_kernel(source, entry="tiny", arch=arch, include_dir=tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_memory", {})


def refuse_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, bytes]:
        raise AssertionError("NVRTC was called")

    monkeypatch.setattr(compiler, "_compile", fail)
