"""What the planner knows of a GPU: read from a live device, or a preset for planning without one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .errors import BackendError


@dataclass(frozen=True)
class DeviceSpec:
    """Limits and rates of one GPU. Sizes in bytes, clock in GHz, memory bandwidth in GB/s."""

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


@lru_cache(maxsize=64)
def live_spec(device: int) -> DeviceSpec:
    """The spec of GPU ``device`` as its driver reports it; needs CuPy and a driver."""
    import cupy

    from .compile import supported_archs

    runtime = cupy.cuda.runtime
    props = runtime.getDeviceProperties(device)
    capability = (int(props["major"]), int(props["minor"]))
    name = props["name"]
    # CUDA 13 dropped the clocks from the properties; the attributes remain (kHz, and bits of the bus).
    attributes = cupy.cuda.Device(device).attributes
    clock_khz = attributes.get("ClockRate", 0) or 1_500_000
    memory_khz = attributes.get("MemoryClockRate", 0) or 1_000_000
    bus_bits = attributes.get("GlobalMemoryBusWidth", 0) or 256
    return DeviceSpec(
        name=name.decode() if isinstance(name, bytes) else str(name),
        arch=arch_of(*capability, supported_archs()),
        compute_capability=capability,
        sm_count=int(props["multiProcessorCount"]),
        smem_per_block_optin=int(attributes.get("MaxSharedMemoryPerBlockOptin", 48 * _KB)),
        smem_per_sm=int(attributes.get("MaxSharedMemoryPerMultiprocessor", 64 * _KB)),
        regs_per_sm=int(attributes.get("MaxRegistersPerMultiprocessor", 65536)),
        regs_per_block=int(props["regsPerBlock"]),
        max_threads_per_sm=int(attributes.get("MaxThreadsPerMultiProcessor", 1024)),
        l2_bytes=int(props["l2CacheSize"]),
        clock_ghz=clock_khz / 1e6,
        dram_gbps=2 * memory_khz * 1e3 * bus_bits / 8 / 1e9,
    )
