"""The GPU behind the stopwatch, on a stand-in that has only those names of CuPy that the installed CuPy has."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import cupy as real
import numpy as np
import pytest

from gpulinear.compile import compile_kernel
from gpulinear.device import ARCHS
from gpulinear.errors import BackendError
from gpulinear.measure import cuda_device
from gpulinear.measure.cuda_device import CudaDevice
from gpulinear.measure.device import Device

from ..fake_cupy import FakeCupy


def like(theirs: Any, **members: Any) -> Any:
    """A namespace with these members, each of which the real thing must have."""
    for name in members:
        assert hasattr(theirs, name), f"{theirs} has no {name}"
    return types.SimpleNamespace(**members)


class Machine:
    """What the stand-in does: a list of what was asked for, and a stream that is always done."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fails: set[str] = set()
        self.stream = "null"

    def ask(self, *what: Any) -> None:
        self.asked.append(what)
        if what[0] in self.fails:
            raise RuntimeError(f"{what[0]} fails")


@pytest.fixture
def machine(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    cuda: Any = fake_cupy.cuda

    class Event:
        done = True

        def __init__(self) -> None:
            self.at = len(found.asked)

        def record(self) -> None:
            found.ask("record", found.stream)

    class Stream:
        def __init__(self, *, non_blocking: bool) -> None:
            assert non_blocking  # the legacy stream may not be touched while a blocking stream captures

        def __enter__(self) -> None:
            found.stream = "capture"

        def __exit__(self, *_: object) -> None:
            found.stream = "null"

        def begin_capture(self) -> None:
            found.ask("begin_capture")

        def end_capture(self) -> Any:
            found.ask("end_capture")
            return like(real.cuda.Graph, launch=lambda: found.ask("launch", found.stream))

        @staticmethod
        def is_capturing() -> bool:
            return found.stream == "capture"

    attributes = cuda.Device.attributes

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        pci_bus_id = "0000:4F:00.0"
        mem_info = (5 << 30, 80 << 30)

        def use(self) -> None:
            found.ask("use", self.index)

        def synchronize(self) -> None:
            found.ask("synchronize")

    Device.attributes = attributes  # type: ignore[attr-defined]

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
            found.ask(self.name, grid, block, *((type(a), int(a)) for a in args))

    class Array:
        def __init__(self, nbytes: int) -> None:
            found.ask("empty", nbytes)

        def fill(self, value: int) -> None:
            found.ask("fill", value)

    pool = like(real.cuda.MemoryPool, free_bytes=lambda: 1 << 30, free_all_blocks=lambda: found.ask("free_all_blocks"))
    for theirs, ours in ((real.cuda.Event, Event), (real.cuda.Stream, Stream), (real.cuda.Device, Device)):
        for name in vars(ours):
            assert name.startswith("__") or name == "at" or hasattr(theirs, name), (theirs, name)
    cuda.Event, cuda.Stream, cuda.Device = Event, Stream, Device
    assert hasattr(real.cuda, "get_elapsed_time")
    cuda.get_elapsed_time = lambda start, end: 0.25 * (end.at - start.at)
    fake_cupy.RawModule = lambda *, path: like(real.RawModule, get_function=Kernel)  # type: ignore[method-assign]
    fake_cupy.empty = lambda size, dtype: Array(size * np.dtype(dtype).itemsize)  # type: ignore[method-assign]
    fake_cupy.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    assert hasattr(real, "get_default_memory_pool") and hasattr(real, "empty")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    yield found


@pytest.fixture
def device(machine: Machine) -> Device:
    found: Device = CudaDevice(1)  # also: the class has the protocol's members
    assert machine.asked == [("use", 1)]
    machine.asked.clear()
    return found


def test_it_knows_its_gpu(device: Device) -> None:
    assert device.arch == "sm_90a" and device.l2_bytes == 60 << 20 and device.xp.__name__ == "cupy"
    assert device.free_bytes() == 6 << 30


def test_the_spin_is_given_in_nanoseconds_as_64_bits(device: Device, machine: Machine) -> None:
    event = device.spin(2500.5)
    assert machine.asked == [("gpulinear_spin", (1,), (1,), (np.uint64, 2_500_500)), ("record", "null")]
    assert device.done(event) is True
    device.nothing()
    assert machine.asked[-1] == ("gpulinear_nothing", (1,), (1,))


def test_events_are_recorded_and_read_in_microseconds(device: Device, machine: Machine) -> None:
    start, end = device.record(), device.record()
    assert machine.asked == [("record", "null")] * 2
    assert device.elapsed_us(start, end) == 250.0
    before = device.now()
    assert device.now() >= before


def test_the_flush_writes_twice_the_l2_and_its_buffer_is_released(device: Device, machine: Machine) -> None:
    device.flush_l2()
    device.flush_l2()
    assert machine.asked == [("empty", 120 << 20), ("fill", 0), ("fill", 0)]
    from gpulinear.backends import cuda as backend

    backend._captured.append("workspace of a graph")
    device.release()
    assert machine.asked[-1] == ("free_all_blocks",) and backend._captured == []
    device.flush_l2()
    assert machine.asked[-2:] == [("empty", 120 << 20), ("fill", 0)]


def test_a_graph_is_captured_on_a_stream_of_its_own_and_replayed_on_the_current_one(
    device: Device, machine: Machine
) -> None:
    replay = device.capture(lambda: machine.ask("work", machine.stream))
    assert replay is not None
    replay()
    assert machine.asked == [
        ("synchronize",), ("begin_capture",), ("work", "capture"), ("end_capture",), ("launch", "null"),
    ]  # fmt: skip


@pytest.mark.parametrize("fails", ["work", "end_capture"])
def test_what_cannot_be_captured_is_none_and_the_capture_is_over(device: Device, machine: Machine, fails: str) -> None:
    machine.fails = {fails}
    assert device.capture(lambda: machine.ask("work", machine.stream)) is None
    assert machine.asked[-1] == ("end_capture",) and machine.stream == "null"


def test_an_interrupt_ends_the_capture_too(device: Device, machine: Machine) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(interrupted)
    assert machine.asked[-1] == ("end_capture",) and machine.stream == "null"


def test_without_nvml_nothing_is_known(device: Device) -> None:
    assert (device.clock_mhz(), device.power_w(), device.temperature_c()) == (None, None, None)


class Nvml(types.ModuleType):
    """nvidia-ml-py, whose module is called pynvml, as of 13.615."""

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.initialised = False

    def nvmlInit(self) -> None:
        self.initialised = True

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:
        assert self.initialised and bus == "0000:4F:00.0"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert (handle, kind) == ("handle", self.NVML_CLOCK_SM)
        return 1755

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        assert handle == "handle"
        return 650_500  # milliwatts

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        raise self.NVMLError("not supported")


def test_nvml_is_read_where_it_is_installed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    device = CudaDevice()
    assert (device.clock_mhz(), device.power_w(), device.temperature_c()) == (1755.0, 650.5, None)


def test_nvml_that_does_not_start_is_as_if_it_were_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setattr(nvml, "nvmlInit", lambda: machine.ask("nvmlInit"))
    machine.fails = {"nvmlInit"}
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert CudaDevice().clock_mhz() is None


def test_without_a_gpu_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "why_no_gpu", lambda: "the driver reports no GPU")
    with pytest.raises(BackendError, match="measuring needs a GPU: "):
        CudaDevice()


@pytest.mark.parametrize("arch", ARCHS)
def test_both_kernels_compile_without_memory(arch: str, compiled: None) -> None:
    artifact = compile_kernel(cuda_device._SOURCE, entry="gpulinear_spin", arch=arch)
    assert artifact.resources.spill_stores == artifact.resources.stack_frame == artifact.resources.static_smem == 0
    assert ".entry gpulinear_nothing" in artifact.ptx and b"gpulinear_nothing" in artifact.cubin
    assert artifact.ptx.count("%globaltimer") == 2 and "%clock64" in artifact.ptx
    for instruction in ("ld.global", "st.global"):
        assert instruction not in artifact.ptx
