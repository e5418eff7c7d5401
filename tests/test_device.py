"""What the planner knows of a GPU: presets, the arch of a compute capability, and what a live driver reports."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

import pytest

from gpulinear.compile import compile_kernel, supported_archs
from gpulinear.device import ARCHS, DeviceSpec, arch_of, live_spec, why_no_gpu
from gpulinear.errors import BackendError

from .fake_cupy import FakeCupy

# Every arch that some NVRTC of CUDA 12.9 or 13 lists.
KNOWN = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121)

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory of a block and of an SM in
# KB, threads of an SM.
TABLE = {
    (7, 5): (64, 64, 1024),
    (8, 0): (163, 164, 2048),
    (8, 6): (99, 100, 1536),
    (8, 9): (99, 100, 1536),
    (9, 0): (227, 228, 2048),
    (10, 0): (227, 228, 2048),
    (12, 0): (99, 100, 1536),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_presets_are_what_the_guide_says(arch: str) -> None:
    spec = DeviceSpec.preset(arch)
    limits = (spec.smem_per_block_optin, spec.smem_per_sm, spec.max_threads_per_sm)
    optin, per_sm, threads = TABLE[spec.compute_capability]
    assert limits == (optin * 1024, per_sm * 1024, threads)
    assert spec.regs_per_sm == spec.regs_per_block == 65536
    assert 40 <= spec.sm_count <= 192 and 1 < spec.clock_ghz < 3 and 300 <= spec.dram_gbps <= 8000
    assert spec.l2_bytes >= 4 << 20


@pytest.mark.parametrize("arch", ARCHS)
def test_a_preset_has_the_arch_of_its_capability(arch: str) -> None:
    assert DeviceSpec.preset(arch).arch == arch
    assert arch_of(*DeviceSpec.preset(arch).compute_capability, supported_archs()) == arch


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"unknown arch 'sm_70'; known are sm_75, .*sm_120"):
        DeviceSpec.preset("sm_70")


@pytest.mark.parametrize("listed", [arch for arch in KNOWN if arch >= 75])
def test_a_listed_capability_gets_its_own_arch(listed: int) -> None:
    wanted = "sm_90a" if listed == 90 else f"sm_{listed}"
    assert arch_of(listed // 10, listed % 10, KNOWN) == wanted


def test_every_arch_that_is_chosen_compiles(compiled: None) -> None:
    source = 'extern "C" __global__ void tiny(float* x) { x[threadIdx.x] = 1.f; }\n'
    for listed in supported_archs():
        if listed >= 75:
            arch = arch_of(listed // 10, listed % 10, supported_archs())
            assert f".target {arch}" in compile_kernel(source, entry="tiny", arch=arch).ptx


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [
        ((7, 8), "sm_75"),
        ((8, 1), "sm_80"),
        ((8, 7), "sm_86"),
        ((9, 5), "sm_90"),
        ((10, 2), "sm_100"),
        ((12, 9), "sm_120"),
    ],
)
def test_an_unknown_minor_gets_the_nearest_lower_one(capability: tuple[int, int], wanted: str) -> None:
    assert arch_of(*capability, (75, 80, 86, 89, 90, 100, 120)) == wanted


def test_what_cannot_run_is_refused() -> None:
    for capability in ((7, 0), (7, 2), (6, 1), (3, 5)):
        with pytest.raises(BackendError, match=r"too old.*7\.5"):
            arch_of(*capability, KNOWN)
    with pytest.raises(BackendError, match=r"sm_90 but nothing for compute capability 10\.0; install a newer"):
        arch_of(10, 0, (75, 80, 86, 89, 90))
    with pytest.raises(BackendError, match=r"nothing for compute capability 8\.0"):
        arch_of(8, 0, (75, 86))


def test_a_live_spec_is_what_the_driver_reports(fake_cupy: FakeCupy) -> None:
    spec = live_spec(0)
    assert (spec.name, spec.arch, spec.compute_capability) == ("Fake H200", "sm_90a", (9, 0))
    assert (spec.sm_count, spec.regs_per_block, spec.l2_bytes) == (132, 65536, 60 << 20)
    assert (spec.smem_per_block_optin, spec.smem_per_sm) == (227 * 1024, 228 * 1024)
    assert (spec.regs_per_sm, spec.max_threads_per_sm) == (65536, 2048)
    assert spec.clock_ghz == pytest.approx(1.98) and spec.dram_gbps == pytest.approx(4917, abs=1)


@pytest.mark.parametrize(
    "name",
    [
        "MaxSharedMemoryPerBlockOptin",
        "MaxSharedMemoryPerMultiprocessor",
        "MaxRegistersPerMultiprocessor",
        "MaxThreadsPerMultiProcessor",
    ],
)
def test_a_missing_limit_is_an_error(fake_cupy: FakeCupy, name: str) -> None:
    del fake_cupy.cuda.Device.attributes[name]
    with pytest.raises(BackendError, match=f"GPU 0 must report {name}.*got None; update"):
        live_spec(0)


@pytest.mark.parametrize("name", ["multiProcessorCount", "regsPerBlock", "l2CacheSize"])
def test_a_limit_of_zero_is_an_error(fake_cupy: FakeCupy, name: str) -> None:
    fake_cupy.props[name] = 0
    with pytest.raises(BackendError, match=f"GPU 0 must report {name}.*got 0; update"):
        live_spec(0)


@pytest.mark.parametrize("value", [None, 0])
@pytest.mark.parametrize("name", ["ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth"])
def test_missing_rates_are_a_presets_and_say_so(fake_cupy: FakeCupy, name: str, value: int | None) -> None:
    fake_cupy.cuda.Device.attributes.pop(name)
    if value is not None:
        fake_cupy.cuda.Device.attributes[name] = value
    spec, preset = live_spec(0), DeviceSpec.preset("sm_90a")
    assert (spec.clock_ghz, spec.dram_gbps) == (preset.clock_ghz, preset.dram_gbps)
    assert spec.name == "Fake H200 (its driver reports no rates; those of H200 stand in)"


@pytest.mark.parametrize(
    ("capability", "stand_in"), [((10, 3), "B200"), ((12, 1), "GeForce RTX 5090"), ((8, 7), "GeForce RTX 3090")]
)
def test_the_stand_in_is_the_nearest_preset(fake_cupy: FakeCupy, capability: tuple[int, int], stand_in: str) -> None:
    fake_cupy.props.update(major=capability[0], minor=capability[1])
    fake_cupy.cuda.Device.attributes["MemoryClockRate"] = 0
    assert f"those of {stand_in} stand in" in live_spec(0).name


def test_why_there_is_no_gpu(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = fake_cupy.cuda.runtime
    assert why_no_gpu() is None
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 0)
    assert why_no_gpu() == "the driver reports no GPU"

    def insufficient() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(runtime, "getDeviceCount", insufficient)
    assert "cudaErrorInsufficientDriver" in (why_no_gpu() or "")
    monkeypatch.delattr(fake_cupy, "cuda")
    assert "AttributeError" in (why_no_gpu() or "")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "CuPy" in (why_no_gpu() or "") and "pip install" in (why_no_gpu() or "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'cupy'", name="cupy"), "not installed; pip install"),
        (ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"), "fastrlock"),
        (ImportError("libcudart.so.13: cannot open shared object file"), "libcudart"),
        (OSError("bad ELF"), "bad ELF"),
        (RuntimeError("numpy too old"), "numpy too old"),
        (AttributeError("partially initialised"), "partially"),
    ],
)
def test_a_cupy_that_fails_to_import_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> types.ModuleType:
        if name == "cupy":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert said in (why_no_gpu() or "")
