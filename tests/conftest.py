"""Shared fixtures, and a header that says what this run does and does not exercise."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fake_cupy import fake_cupy

__all__ = ["fake_cupy"]


def pytest_report_header() -> list[str]:
    """The promise is about kernels: say plainly that none runs here."""
    return [
        "gpulinear: NumPy reference and host code are run; kernels are compiled by NVRTC and resource-checked.",
        "gpulinear: no kernel is executed by this suite (no GPU, and the PTX emulator is not part of this version).",
    ]


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled kernels for the session, so that tests share compilations."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def compiled(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile into the session's cache."""
    kernel_cache.chmod(0o700)
    monkeypatch.setenv("GPULINEAR_CACHE", str(kernel_cache))
