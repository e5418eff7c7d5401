"""Ceilings on the fake device: what they are, at which size they stop, and what happens when one cannot be measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.measure import ceilings as module
from gpulinear.measure.case import Case
from gpulinear.measure.ceilings import Ceiling, Missing, ceilings, warm_rules
from gpulinear.measure.device import DeviceLost
from gpulinear.measure.stopwatch import Rules

from .fakes import FakeDevice, FakeProvider

RULES = Rules(budget_s=0.05, warm_s=0.01, most_samples=40)
FLOAT32 = ("float32", None)


class CopyModule:
    """NumPy, with a copy that takes time on the fake device: 4 bytes in a nanosecond."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def copyto(self, target: Any, source: Any) -> None:
        assert target is not source and target.nbytes == source.nbytes
        self.device.work(3.0, target.nbytes / 4000.0, lambda: np.copyto(target, source))


class Timed(FakeProvider):
    """As long as its products are large: `device_us` per million products."""

    def prepare(self, case: Case, sets: Any) -> Any:
        million = case.tokens * case.out_features * case.in_features / 1e6
        return super().prepare(case, sets) if not million else _slower(self, case, sets, million)


def _slower(provider: Timed, case: Case, sets: Any, million: float) -> Any:
    call = FakeProvider.prepare(provider, case, sets)
    call.provider = FakeProvider(
        provider.device, provider.name, provider.ours, provider.device_us * million, provider.fault
    )
    return call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    monkeypatch.setattr(module, "SIZES", (8, 16, 32))
    monkeypatch.setattr(module, "COPY_BYTES", 4000)
    found = FakeDevice()
    found.xp = CopyModule(found)
    return found


def test_the_ceilings_and_their_units(device: FakeDevice) -> None:
    # 1000 us for a million products: 16 products of 2 flop in a nanosecond at any size, and half of that.
    peers = [Timed(device, "slow", device_us=2000.0), Timed(device, "fast", device_us=1000.0)]
    found = {
        c.name: c for c in ceilings([FLOAT32, ("float32", "tf32")], peers, device, RULES) if isinstance(c, Ceiling)
    }
    assert list(found) == [
        "matmul float32",
        "matmul tf32",
        "copy",
        "empty launch",
    ]  # the fake's event pairs take no time
    for name, value, unit in (
        ("matmul float32", 2e-6 * 1000, "TFLOP/s"),
        ("copy", 8.0, "GB/s"),
        ("empty launch", 2.0, "us"),
    ):
        assert found[name].unit == unit
        assert found[name].value == pytest.approx(value)
    assert found["copy"].outcome.sm_clock_mhz == 1000.0
    assert peers[0].prepared[:3] == [f"linear float32 {size}x{size}x{size}" for size in (8, 16, 32)]


def test_a_slow_device_is_measured_at_the_smaller_sizes(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Timed(device, device_us=1000.0)
    # 16 x 16 x 16 takes 4.1 us, so the next would take 33.
    monkeypatch.setattr(module, "MOST_MATMUL_US", 30.0)
    list(ceilings([FLOAT32], [peer], device, RULES))
    assert peer.prepared == ["linear float32 8x8x8", "linear float32 16x16x16"]


def test_the_largest_rate_counts_not_the_largest_size(device: FakeDevice) -> None:
    peer = FakeProvider(device)  # every size takes 10 us, but the largest does not fit

    class Full(FakeDevice):
        def free_bytes(self) -> int:
            return 20_000

    full = Full()
    full.xp = CopyModule(full)
    peer.device = full
    found = next(iter(ceilings([FLOAT32], [peer], full, RULES)))
    assert isinstance(found, Ceiling) and found.value == pytest.approx(2 * 16**3 / 10.0 * 1e-6)


def test_a_wrong_peer_is_no_ceiling(device: FakeDevice) -> None:
    peers = [FakeProvider(device, "wrong", device_us=1.0, fault="wrong"), FakeProvider(device, "right")]
    found = next(iter(ceilings([FLOAT32], peers, device, RULES)))
    assert isinstance(found, Ceiling) and found.value == pytest.approx(2 * 32**3 / 10.0 * 1e-6)


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(device: FakeDevice) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("full")

    device.xp.arange = full
    found = list(ceilings([FLOAT32], [FakeProvider(device, fault="why_not")], device, RULES))
    assert found[0] == Missing("matmul float32", "fake: it does not do that")
    assert found[1] == Missing("copy", "MemoryError: full")
    assert isinstance(found[2], Ceiling) and found[2].name == "empty launch"
    assert next(iter(ceilings([FLOAT32], [], device, RULES))) == Missing("matmul float32", "no provider")


@pytest.mark.parametrize("after, kinds", [(10, [FLOAT32]), (300, [])])
def test_a_device_that_disappears_is_no_missing_ceiling(
    device: FakeDevice, after: int, kinds: list[tuple[str, str | None]]
) -> None:
    device.gone_after = after
    found = ceilings(kinds, [FakeProvider(device)], device, RULES)
    with pytest.raises(DeviceLost):
        while True:
            assert isinstance(next(found), Ceiling)


def test_only_the_first_product_warms_up_for_long(device: FakeDevice) -> None:
    device.clocks = lambda seconds: None  # then all of the time for warming up is used
    warm = warm_rules(RULES, 2.0)
    assert (warm.budget_s, warm.warm_s, warm.clock_over_s) == (2.05, 2.0, 1.0)
    list(ceilings([FLOAT32, ("float64", None)], [FakeProvider(device)], device, RULES, warm))
    assert 2.0 < device.now() < 3.0
