"""What the planner knows of a GPU: read from a live device, or a preset for planning without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .errors import BackendError

_INSTALL = "pip install 'gpulinear[cuda13]' (cuda12 for a driver older than 580)"


@dataclass(frozen=True)
class DeviceSpec:
    """Limits and rates of one GPU. Sizes in bytes, clock in GHz, memory bandwidth in GB/s.

    The rates only rank candidates. Where a driver reports none, ``name`` says whose rates stand in.
    """

    name: str
    arch: str
    compute_capability: tuple[int, int]
    sm_count: int
    smem_per_block_optin: int
    smem_per_sm: int
    regs_per_sm: int
    regs_per_block: int
    max_threads_per_sm: int
    l2_bytes: int
    clock_ghz: float
    dram_gbps: float

    @staticmethod
    def preset(arch: str) -> DeviceSpec:
        """The spec that stands for ``arch`` when there is no device; BackendError for an unknown arch."""
        try:
            return _PRESETS[arch]
        except KeyError:
            raise BackendError(f"unknown arch {arch!r}; known are {', '.join(_PRESETS)}") from None


_KB = 1024
_MB = 1024 * 1024


def _preset(
    name: str,
    arch: str,
    cc: tuple[int, int],
    sms: int,
    optin_kb: int,
    smem_kb: int,
    threads: int,
    l2_mb: int,
    clock: float,
    dram: float,
) -> DeviceSpec:
    return DeviceSpec(
        name, arch, cc, sms, optin_kb * _KB, smem_kb * _KB, 65536, 65536, threads, l2_mb * _MB, clock, dram
    )


# Per-SM limits: CUDA C++ Programming Guide, "Compute Capabilities". SM counts, boost clocks, L2 and memory bandwidth: the
# vendor's datasheet of the named product; the H200's 60 MB of L2 is what its driver reports.
_PRESETS = {
    spec.arch: spec
    for spec in (
        _preset("Tesla T4", "sm_75", (7, 5), 40, 64, 64, 1024, 4, 1.59, 320),
        _preset("A100-SXM4-80GB", "sm_80", (8, 0), 108, 163, 164, 2048, 40, 1.41, 2039),
        _preset("GeForce RTX 3090", "sm_86", (8, 6), 82, 99, 100, 1536, 6, 1.70, 936),
        _preset("GeForce RTX 4090", "sm_89", (8, 9), 128, 99, 100, 1536, 72, 2.52, 1008),
        _preset("H200", "sm_90a", (9, 0), 132, 227, 228, 2048, 60, 1.98, 4800),
        _preset("B200", "sm_100", (10, 0), 148, 227, 228, 2048, 126, 1.97, 8000),
        _preset("GeForce RTX 5090", "sm_120", (12, 0), 170, 99, 100, 1536, 96, 2.41, 1792),
    )
}

ARCHS = tuple(_PRESETS)


def arch_of(major: int, minor: int, supported: tuple[int, ...]) -> str:
    """The NVRTC arch for a compute capability: exact, or the nearest lower minor of the same major.

    Raises:
        BackendError: older than 7.5, or unknown to this NVRTC.
    """
    if (major, minor) < (7, 5):
        raise BackendError(f"compute capability {major}.{minor} is too old; gpulinear needs 7.5 (Turing) or newer")
    fitting = [arch for arch in supported if arch // 10 == major and arch % 10 <= minor]
    if not fitting:
        known = ", ".join(f"sm_{arch}" for arch in supported)
        raise BackendError(
            f"NVRTC knows {known} but nothing for compute capability {major}.{minor}; install a newer nvidia-cuda-nvrtc"
        )
    arch = max(fitting)
    # The a suffix opens the instructions of exactly this chip (wgmma).
    return "sm_90a" if arch == 90 and (major, minor) == (9, 0) else f"sm_{arch}"


def why_no_gpu() -> str | None:
    """Why kernels cannot be launched here, as a sentence; None when CuPy sees a GPU and its driver works. Never raises."""
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"CuPy is not installed; {_INSTALL}"
        return f"CuPy fails to import ({error}); {_INSTALL}"
    except Exception as error:  # a broken install or driver fails in any way
        return f"no usable CuPy, GPU or driver ({type(error).__name__}: {error})"
    return None if count else "the driver reports no GPU"


def _reported(values: Mapping[str, Any], name: str, device: int) -> int:
    """A limit that planning rests on."""
    value = int(values.get(name, 0))
    if value <= 0:
        raise BackendError(
            f"GPU {device} must report {name} as a positive number, got {values.get(name)}; update the driver and CuPy"
        )
    return value


def _nearest_preset(capability: tuple[int, int]) -> DeviceSpec:
    """The newest preset that is not newer than ``capability``."""
    return max(
        (spec for spec in _PRESETS.values() if spec.compute_capability <= capability),
        key=lambda spec: spec.compute_capability,
    )


@lru_cache(maxsize=64)
def live_spec(device: int) -> DeviceSpec:
    """The spec of GPU ``device`` as its driver reports it; needs CuPy and a driver.

    Rates come from the attributes (CUDA 13 dropped the clocks from the properties). Where one is missing or 0, as some
    integrated GPUs have it, the rates are those of the nearest preset, and the name says so.

    Raises:
        BackendError: the driver does not report a limit, or NVRTC cannot compile for the GPU.
    """
    import cupy

    from .compile import supported_archs

    props = cupy.cuda.runtime.getDeviceProperties(device)
    attributes = cupy.cuda.Device(device).attributes
    capability = (int(props["major"]), int(props["minor"]))
    arch = arch_of(*capability, supported_archs())
    name = props["name"].decode() if isinstance(props["name"], bytes) else str(props["name"])
    # kHz, kHz and bits
    clock, memory_clock, bus = (
        int(attributes.get(key, 0)) for key in ("ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth")
    )
    if min(clock, memory_clock, bus) > 0:
        rates = (clock / 1e6, 2 * memory_clock * 1e3 * bus / 8 / 1e9)
    else:
        stand_in = _nearest_preset(capability)
        rates = (stand_in.clock_ghz, stand_in.dram_gbps)
        name += f" (its driver reports no rates; those of {stand_in.name} stand in)"
    return DeviceSpec(
        name=name,
        arch=arch,
        compute_capability=capability,
        sm_count=_reported(props, "multiProcessorCount", device),
        smem_per_block_optin=_reported(attributes, "MaxSharedMemoryPerBlockOptin", device),
        smem_per_sm=_reported(attributes, "MaxSharedMemoryPerMultiprocessor", device),
        regs_per_sm=_reported(attributes, "MaxRegistersPerMultiprocessor", device),
        regs_per_block=_reported(props, "regsPerBlock", device),
        max_threads_per_sm=_reported(attributes, "MaxThreadsPerMultiProcessor", device),
        l2_bytes=_reported(props, "l2CacheSize", device),
        clock_ghz=rates[0],
        dram_gbps=rates[1],
    )
