"""Where a row comes from: GPU, driver, versions, commit, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from gpulinear import __version__
from gpulinear.compile import nvrtc_version


def commit() -> str:
    """The checkout's commit, from git or GPULINEAR_COMMIT (a copied tree has no .git); "unknown" otherwise."""
    given = os.environ.get("GPULINEAR_COMMIT")
    if given:
        return given
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def package(*names: str) -> str | None:
    """The version of the first of these packages that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def provenance(device: int = 0) -> dict[str, Any]:
    """What every row repeats. Needs a GPU."""
    import cupy

    runtime = cupy.cuda.runtime
    props = runtime.getDeviceProperties(device)
    major, minor = nvrtc_version()
    return {
        "gpu": props["name"].decode(),
        "sms": props["multiProcessorCount"],
        "driver_cuda": runtime.driverGetVersion(),
        "nvrtc": f"{major}.{minor}",
        "cupy": package("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "python": platform.python_version(),
        "gpulinear": __version__,
        "commit": commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
