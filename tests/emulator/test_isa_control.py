"""Fences, trap and the like, and register redistribution (setmaxnreg), one instruction at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulinear.emulator.isa.barrier
import gpulinear.emulator.isa.control  # noqa: F401
from gpulinear.emulator import EmulatorError, NotModelledError
from gpulinear.emulator.ir import Addr, Imm, Instruction, Reg
from gpulinear.emulator.isa import resolve
from tests.emulator.blocking_calls import Call, cluster_sync, races, write
from tests.emulator.fakes import Bench


@pytest.mark.parametrize("fence", [None, "fence.acq_rel.cta", "fence.acq_rel.cluster", "fence.sc.gpu", "membar.sys"])
def test_relaxed_arrive(fence: str | None) -> None:
    bench = Bench(32, ctas=2)
    write(bench, 3)
    if fence is not None:
        Call(bench, fence)
    cluster_sync(bench, "barrier.cluster.arrive.relaxed")
    assert races(bench, 1, 3, cta=1) == (fence in (None, "fence.acq_rel.cta"))


def test_fence_mbarrier_init() -> None:
    bench = Bench(32, ctas=2, proxies=True)
    bench.cta.races.mbarrier_init(np.array([0]), np.array([0]), bench.lanes().instruction)
    write(bench, 3)
    Call(bench, "fence.mbarrier_init.release.cluster", threads=[0])
    cluster_sync(bench, "barrier.cluster.arrive.relaxed")
    bench.cta.races.atomic(np.array([40]), np.array([0]), 8, bench.lanes().instruction, mbarrier=True)
    assert bench.found == [] and races(bench, 1, 3, cta=1)


@pytest.mark.parametrize(
    ("name", "helps"),
    [
        ("fence.proxy.async", True),
        ("fence.proxy.async.shared::cta", True),
        ("fence.proxy.async.shared::cluster", True),
        ("membar.proxy.async", True),
        ("fence.proxy.async.global", False),
        ("fence.proxy.alias", False),
        ("fence.proxy.tensormap::generic.release.gpu", False),
        ("fence.acq_rel.gpu", False),
        ("fence.mbarrier_init.release.cluster", False),
    ],
)
def test_proxy_fences(name: str, helps: bool) -> None:
    bench = Bench(32, proxies=True)
    write(bench, np.arange(32))
    Call(bench, name)
    bench.barrier()
    channel = bench.cta.cluster.clocks.new_channel("bulk store", "wait")
    bench.cta.races.async_read(0, channel, 1, np.array([0]), 128, bench.lanes().instruction)
    assert bench.found == ([] if helps else ["missing proxy fence"])


def test_fences_reach_global_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(32)
    scopes: list[str] = []
    monkeypatch.setattr(bench.memory, "fence", lambda lanes, scope: scopes.append(scope))
    for name in ("membar.cta", "membar.gl", "membar.sys", "fence.cluster", "fence.sc.gpu", "fence.acq_rel.cta"):
        Call(bench, name)
    assert scopes == ["cta", "gpu", "sys", "cluster", "gpu", "cta"]


@pytest.mark.parametrize("name", ["brkpt", "pmevent", "fence.acquire.gpu", "fence.release.gpu", "barrier.sync.cluster"])
def test_refused(name: str) -> None:
    with pytest.raises(NotModelledError):
        resolve(Instruction(0, name, (), name, 1))


def test_acquire_of_a_tensormap_takes_an_address() -> None:
    name = "fence.proxy.tensormap::generic.acquire.gpu"
    rule, form = resolve(Instruction(0, name, (Addr(Reg("%d"), 0), Imm("int", 128)), name, 1))
    assert rule.factory(form)(Bench(32).lanes(), np.zeros(32, np.int64), 128) is None


def test_no_operations_and_trap() -> None:
    bench = Bench(32)
    for name, *values in (("griddepcontrol.wait",), ("griddepcontrol.launch_dependents",), ("nanosleep.u32", 5)):
        assert Call(bench, name, *values).result is None
    with pytest.raises(EmulatorError, match=r"trap in CTA \(0, 0, 0\), threads 4, 5, at PTX line"):
        Call(bench, "trap", threads=[4, 5])


# setmaxnreg


def group(number: int) -> np.ndarray[Any, Any]:
    return np.arange(128 * number, 128 * number + 128)


def registers(action: str, bench: Bench, count: int, number: int) -> Call:
    return Call(bench, f"setmaxnreg.{action}.sync.aligned.u32", count, threads=group(number))


def test_setmaxnreg_waits_for_the_pool() -> None:
    bench = Bench(384)
    bench.launch.registers_per_thread = 162  # 168 in units of 8
    first, second = registers("inc", bench, 232, 1), registers("inc", bench, 232, 2)
    assert first.waits and second.waits
    assert registers("dec", bench, 40, 0).result is None  # frees 128, each of the others needs 64
    assert not first.waits and not second.waits
    first.go_on()
    assert not second.waits
    second.go_on()
    assert bench.found == []
    third = registers("inc", bench, 240, 1)
    assert third.waits and "setmaxnreg.inc to 240" in third.result.why
    registers("dec", bench, 32, 0)
    assert not third.waits


def test_setmaxnreg_too_much_never_goes_on() -> None:
    bench = Bench(384)
    bench.launch.registers_per_thread = 168
    registers("dec", bench, 80, 2)
    first, second = registers("inc", bench, 224, 0), registers("inc", bench, 224, 1)
    assert not first.waits and first.go_on() is None and second.waits


@pytest.mark.parametrize(
    ("action", "count", "launched", "message"),
    [
        ("dec", 44, 168, "44 registers"),
        ("dec", 16, 168, "16 registers"),
        ("inc", 264, 168, "264 registers"),
        ("dec", 176, 168, "owns 168"),
        ("inc", 160, 168, "owns 168"),
        ("dec", 168, 168, None),
        ("inc", 168, 168, None),
        ("dec", 24, 168, None),
        ("inc", 256, None, None),
        ("inc", 20, None, "20 registers"),
    ],
)
def test_setmaxnreg_rules(action: str, count: int, launched: int | None, message: str | None) -> None:
    bench = Bench(128)
    bench.launch.registers_per_thread = launched
    registers(action, bench, count, 0)
    assert [f.kind for f in bench.launch.report.findings] == ["setmaxnreg"] * (message is not None)
    if message is not None:
        assert message in bench.only().message


def test_setmaxnreg_needs_whole_warpgroups_and_the_right_target() -> None:
    bench = Bench(160)
    bench.launch.registers_per_thread = None
    registers("dec", bench, 40, 0)
    assert bench.found == []
    Call(bench, "setmaxnreg.dec.sync.aligned.u32", 40, threads=np.r_[128:160])
    assert bench.found == ["setmaxnreg"] and "32 threads of warpgroup 1" in bench.only().message
    bench.launch.arch = "sm_90"
    with pytest.raises(NotModelledError, match="sm_90a"):
        registers("dec", bench, 40, 0)
