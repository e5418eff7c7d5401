"""What a bug report needs: versions, devices, the cache, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from . import __version__, ledger
from .cache import cache_dir
from .config import NUMERICS_VERSION
from .device import ARCHS, why_no_gpu
from .errors import GpuLinearError
from .gemm import current_host_backend
from .tuning.entry import TableError
from .tuning.table import read, shipped_path, user_path


def _version(*packages: str) -> str | None:
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _nvrtc() -> tuple[str | None, str | None]:
    """(version, why not)."""
    from .compile import nvrtc_version, supported_archs

    try:
        major, minor = nvrtc_version()
        return f"{major}.{minor}, compiles for sm_{min(supported_archs())} to sm_{max(supported_archs())}", None
    except GpuLinearError as error:
        return None, str(error)


def _devices() -> tuple[list[str], str | None, str | None]:
    """(devices, driver's CUDA version, why there is none). Never raises: a broken driver is an answer too."""
    why = why_no_gpu()
    if why is not None:
        return [], None, why
    try:
        import cupy

        runtime = cupy.cuda.runtime
        driver = runtime.driverGetVersion()
        count = runtime.getDeviceCount()
        devices = []
        for index in range(count):
            props = runtime.getDeviceProperties(index)
            devices.append(
                f"{index}: {props['name'].decode()}, compute capability {props['major']}.{props['minor']}, "
                f"{props['multiProcessorCount']} SMs, {props['totalGlobalMem'] >> 30} GiB"
            )
        return devices, f"{driver // 1000}.{driver % 1000 // 10}", None
    except Exception as error:
        return [], None, f"no usable GPU or driver ({type(error).__name__}: {error})"


def _host_backend() -> str:
    try:
        return current_host_backend().name
    except GpuLinearError as error:
        return str(error)


def _ledger() -> str:
    entries = ledger.load()
    if not entries:
        return "none: emulated only; docs/gpu-todo.md lists what to run first"
    gpus = ", ".join(sorted({entry.gpu for entry in entries}))
    return f"{len(entries)} on {gpus}; all others emulated only"


def _tuning_tables() -> list[str]:
    tables = []
    for arch in ARCHS:
        for path in (user_path(arch), shipped_path(arch)):
            try:
                found = None if path is None else read(path)
            except TableError as error:
                tables.append(f"{path} is ignored: {error}")
                continue
            if found is not None:
                stale = "" if found.numerics_version == NUMERICS_VERSION else ", of another NUMERICS_VERSION: ignored"
                tables.append(f"{path}: {len(found.entries)} entries{stale}")
    return tables or ["none: the cost model chooses"]


def collect() -> dict[str, Any]:
    """Everything ``gpulinear info`` prints, as plain values."""
    nvrtc, no_nvrtc = _nvrtc()
    devices, driver, no_device = _devices()
    return {
        "gpulinear": __version__,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "cupy": _version("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "cuda-bindings": _version("cuda-bindings"),
        "nvrtc": nvrtc,
        "driver CUDA": driver,
        "devices": devices,
        "kernel cache": str(cache_dir() or "none: no home directory; set GPULINEAR_CACHE"),
        "tuning tables": _tuning_tables(),
        "host backend": _host_backend(),
        "kernels on a GPU": no_device or no_nvrtc or "usable",
        "kernels compiled": no_nvrtc or "usable",
        "kernels proven on hardware": _ledger(),
    }
