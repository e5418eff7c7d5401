"""Where a row comes from: GPU, driver, versions, commit, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from .. import __version__
from ..compile import nvrtc_version
from ..device import live_spec
from ..errors import ArgumentError

UNKNOWN = "unknown"
MATTERS = ("gpulinear", "kernels")  # what a time depends on; rows just written do not make a tree dirty
_COMMIT = re.compile(r"([0-9a-f]{7,64})(-dirty)?")
_CHECKOUT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where there is no git, or where the package lies in no checkout of its own."""
    command = ["git", "-C", str(_CHECKOUT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> tuple[str, bool]:
    """The commit that is running, and whether the package or the kernels differ from it.

    A copied tree has no git: there, GPULINEAR_COMMIT says it, in the words of
    ``git describe --always --abbrev=40 --exclude '*' --dirty``. An installed wheel's commit is "unknown".

    Raises:
        ArgumentError: GPULINEAR_COMMIT is set and is no commit.
    """
    given = os.environ.get("GPULINEAR_COMMIT")
    if given:
        match = _COMMIT.fullmatch(given)
        if match is None:
            raise ArgumentError(
                f"GPULINEAR_COMMIT must be 7 to 64 hexadecimal digits, with -dirty behind them if the tree was changed, "
                f"got {given!r}; unset it, or set it to the output of git describe --always --abbrev=40 --dirty"
            )
        return match[1], match[2] is not None
    # A wheel in a virtual environment inside somebody's checkout must not take that checkout's commit for its own.
    top = _git("rev-parse", "--show-toplevel")
    head = _git("rev-parse", "HEAD")
    if top is None or head is None or Path(top).resolve() != _CHECKOUT:
        return UNKNOWN, False
    return head, bool(_git("status", "--porcelain", "--", *MATTERS))


def timestamp() -> str:
    """Now, in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def package(*names: str) -> str | None:
    """The version of the first of these packages that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cuda_version(number: int) -> str:
    """13020 is CUDA 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_release() -> str | None:
    """The driver's own version, such as "580.95.05"; None where nvidia-smi is absent or does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _cublas() -> str | None:
    """The version of the cuBLAS that CuPy loads, where there is one: 130101 is 13.1.1 (cublasGetVersion)."""
    try:
        from cupy.cuda import cublas, device
    except ImportError:
        return None
    number = int(cublas.getVersion(device.get_cublas_handle()))
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def provenance(device: int = 0) -> dict[str, Any]:
    """What every row repeats, with the names of record.schema.json; what is not installed is left out. Needs a GPU.

    "driver" and "cuda" are CUDA versions, of the driver and of CuPy's runtime; "time" is now.

    Raises:
        ArgumentError: GPULINEAR_COMMIT is no commit. BackendError: the driver reports no limits.
    """
    import cupy

    runtime = cupy.cuda.runtime
    props = runtime.getDeviceProperties(device)
    spec = live_spec(device)
    major, minor = nvrtc_version()
    head, dirty = commit()
    found = {
        "gpu": props["name"].decode() if isinstance(props["name"], bytes) else str(props["name"]),
        "arch": spec.arch,
        "sms": spec.sm_count,
        "driver": _cuda_version(runtime.driverGetVersion()),
        "driver_release": _driver_release(),
        "cuda": _cuda_version(runtime.runtimeGetVersion()),
        "nvrtc": f"{major}.{minor}",
        "cupy": package("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "cublas": _cublas(),
        "torch": package("torch"),
        "nvmath": package("nvmath-python"),
        "numpy": package("numpy"),
        "python": platform.python_version(),
        "gpulinear": __version__,
        "commit": head,
        "dirty": dirty,
        "time": timestamp(),
    }
    return {name: value for name, value in found.items() if value is not None}
