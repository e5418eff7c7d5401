"""Shared fixtures, the ``--backend`` option, and a header that says what this run does and does not exercise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpulinear as gl

from .fake_cupy import fake_cupy

__all__ = ["fake_cupy"]

ON_BACKEND = "on_backend"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("reference", "emulator"),
        default="reference",
        help="what the tests of the public functions run on; the kernels' own tests always run in the emulator",
    )
    parser.addoption("--arch", default="sm_90a", help="the architecture of --backend emulator")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{ON_BACKEND}: a test of the public functions, run on the chosen --backend")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say plainly what is run, and what is not."""
    backend, arch = config.getoption("--backend"), config.getoption("--arch")
    return [
        f"gpulinear: public functions on the {backend}{f' ({arch})' if backend == 'emulator' else ''}; "
        "shipped kernels compiled by NVRTC, resource-checked, and run in the PTX emulator with all its sanitizers.",
        "gpulinear: nothing here runs on a GPU; the tensor-core model of the emulator is not confirmed on hardware.",
    ]


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled kernels for the session and for all its xdist workers, so that tests share compilations."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a worker's own directory lies in the session's
    place = root / "kernels"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


@pytest.fixture
def compiled(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile into the session's cache."""
    kernel_cache.chmod(0o700)
    monkeypatch.setenv("GPULINEAR_CACHE", str(kernel_cache))


@pytest.fixture(autouse=True)
def chosen_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``on_backend`` run on what ``--backend`` names."""
    backend = request.config.getoption("--backend")
    if backend == "reference" or request.node.get_closest_marker(ON_BACKEND) is None:
        yield
        return
    request.getfixturevalue("compiled")
    with gl.host_backend(backend, arch=request.config.getoption("--arch")):
        yield
