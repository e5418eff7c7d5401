"""A stand-in for CuPy on a machine without a GPU: NumPy memory, and launches that are recorded instead of run."""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar

import numpy as np
import pytest


class MemoryPointer:
    def __init__(self, ptr: int, device_id: int = 0, owner: Any = None) -> None:
        self.ptr, self.device_id, self.owner = ptr, device_id, owner


class ndarray:
    """An array of device memory: the attributes of cupy.ndarray that gpulinear reads."""

    def __init__(self, host: np.ndarray[Any, Any], device_id: int = 0) -> None:
        self.host = host
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.data = MemoryPointer(host.ctypes.data, device_id, host)


class RawKernel:
    def __init__(self, fake: FakeCupy, path: str, name: str) -> None:
        self.fake, self.path, self.name = fake, path, name
        self.max_dynamic_shared_size_bytes = 48 * 1024

    @property
    def kernel(self) -> RawKernel:
        self.fake.loaded.append((self.fake.device, self.name))
        return self

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        (block_of_params,) = args
        self.fake.launches.append(
            {
                "kernel": self.name,
                "device": self.fake.device,
                "grid": grid,
                "block": block,
                "params": block_of_params.tobytes(),
                "shared_mem": shared_mem,
                "limit": self.max_dynamic_shared_size_bytes,
            }
        )


class FakeCupy(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("cupy")
        self.device = 0
        self.context = 1  # the current one; 0 in a thread that has done nothing on the GPU
        self.capturing = False
        self.launches: list[dict[str, Any]] = []
        self.loaded: list[tuple[int, str]] = []
        self.allocated: list[int] = []
        self.ndarray = ndarray
        self.RawKernel = RawKernel
        fake = self

        class Device:
            attributes: ClassVar[dict[str, int]] = {}

            def __init__(self, device: int) -> None:
                self.wanted = device

            def __enter__(self) -> None:
                self.before, fake.device = fake.device, self.wanted

            def __exit__(self, *_: object) -> None:
                fake.device = self.before

        class Stream:
            @staticmethod
            def is_capturing() -> bool:
                return fake.capturing

        def alloc(nbytes: int) -> MemoryPointer:
            fake.allocated.append(nbytes)
            return MemoryPointer(1 << 40)

        props = {
            "name": b"Fake H200",
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 132,
            "regsPerBlock": 65536,
            "l2CacheSize": 60 << 20,
        }
        self.props = props
        self.cuda = types.ModuleType("cupy.cuda")
        self.cuda.runtime = types.SimpleNamespace(  # type: ignore[attr-defined]
            getDevice=lambda: fake.device,
            setDevice=self._set_device,
            getDeviceProperties=lambda _: props,
            getDeviceCount=lambda: 2,
        )
        self.cuda.driver = types.SimpleNamespace(ctxGetCurrent=lambda: fake.context)  # type: ignore[attr-defined]
        self.cuda.Device = Device  # type: ignore[attr-defined]
        self.cuda.get_current_stream = Stream  # type: ignore[attr-defined]
        self.cuda.alloc = alloc  # type: ignore[attr-defined]
        Device.attributes = {
            "MaxSharedMemoryPerBlockOptin": 227 * 1024,
            "MaxSharedMemoryPerMultiprocessor": 228 * 1024,
            "MaxRegistersPerMultiprocessor": 65536,
            "MaxThreadsPerMultiProcessor": 2048,
            "ClockRate": 1_980_000,
            "MemoryClockRate": 3_201_000,
            "GlobalMemoryBusWidth": 6144,
        }

    def _set_device(self, device: int) -> None:
        self.device, self.context = device, 1

    def empty(self, shape: Any, dtype: Any) -> ndarray:
        return ndarray(np.empty(shape, dtype), self.device)

    def RawModule(self, *, path: str) -> Any:
        return types.SimpleNamespace(get_function=lambda name: RawKernel(self, path, name))


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch, compiled: None) -> FakeCupy:
    """CuPy replaced for one test; gpulinear's caches of plans, kernels and specs start empty."""
    from gpulinear import device, gemm

    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "cupy.cuda", fake.cuda)
    monkeypatch.delitem(sys.modules, "gpulinear.backends.cuda", raising=False)
    monkeypatch.delattr("gpulinear.backends.cuda", raising=False)
    monkeypatch.setattr(gemm, "_warm", {})
    device.live_spec.cache_clear()
    yield fake  # type: ignore[misc]
    sys.modules.pop("gpulinear.backends.cuda", None)
    device.live_spec.cache_clear()
