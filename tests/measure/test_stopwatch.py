"""The stopwatch on a device with a fake clock: order, backlog, statistics, budget, and providers and devices that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gpulinear.measure import stopwatch
from gpulinear.measure.device import DeviceLost
from gpulinear.measure.quantiles import is_settled, percentiles
from gpulinear.measure.stopwatch import Outcome, Rules, measure

from .fakes import FakeCall, FakeDevice, Gone

RULES = Rules(budget_s=0.5, warm_s=0.05)


def run(device: FakeDevice, *calls: FakeCall, sets: int = 3, rules: Rules = RULES) -> Outcome:
    return measure({call.name: call for call in calls}, sets, device, rules)


def batches(device: FakeDevice) -> list[list[tuple[str, int]]]:
    """Launches by batch, those timed behind a spin only."""
    found: list[list[tuple[str, int]]] = []
    behind = False
    for entry in device.log:
        if entry[0] == "spin":
            found.append([])
            behind = True
        elif entry[0] == "synchronize":
            behind = False
        elif behind and entry[0] != "flush":
            found[-1].append((entry[0], entry[1]))
    return [batch for batch in found if batch]


# ---- what is timed ----


def test_the_times_are_those_of_the_device_and_of_the_host() -> None:
    device = FakeDevice()
    fast, slow = FakeCall(device, "fast", 7.0, 11.0), FakeCall(device, "slow", 5.0, 900.0)
    found = run(device, fast, slow)
    assert not found.errors
    times = found.timings
    assert (times["fast"].us_p20, times["fast"].us_p50, times["fast"].us_p80) == pytest.approx((11.0, 11.0, 11.0))
    assert times["slow"].us_p50 == pytest.approx(900.0)
    assert times["fast"].host_us == pytest.approx(7.0) and times["slow"].host_us == pytest.approx(5.0)
    assert times["fast"].graph_us == pytest.approx(11.0)
    assert times["slow"].graph_us is None  # too long for the figure to matter
    assert times["fast"].late_batches == 0


def test_host_time_far_above_device_time_is_not_in_the_device_time() -> None:
    device = FakeDevice()
    assert run(device, FakeCall(device, "a", 200.0, 4.0)).timings["a"].us_p50 == pytest.approx(4.0)


def test_long_calls_have_no_host_time_and_few_samples_in_a_batch() -> None:
    device = FakeDevice()
    found = run(device, FakeCall(device, "a", 3.0, 40_000.0), FakeCall(device, "b", 3.0, 60_000.0))
    assert found.timings["a"].host_us is None and found.timings["a"].us_p50 == pytest.approx(40_000.0)
    assert {len(batch) for batch in batches(device)[1:]} == {2}


def test_an_empty_call_shows_what_an_event_pair_costs() -> None:
    device = FakeDevice()
    found = measure({"nothing": lambda index: None}, 1, device, RULES)
    assert found.timings["nothing"].us_p50 == 0.0  # the fake's events are free on the stream


def test_percentiles_are_of_all_samples() -> None:
    device = FakeDevice()
    call = FakeCall(device, "a")
    durations = iter(list(np.random.default_rng(0).permutation(1000)) * 20)

    def uneven(index: int) -> None:
        call.device_us = 1000.0 + float(next(durations))
        call(index)

    found = measure({"a": uneven}, 1, device, replace(RULES, most_samples=200, settled=0.0, budget_s=9.0))
    timing = found.timings["a"]
    assert timing.samples >= 200
    assert 1100 < timing.us_p20 < 1300 and 1400 < timing.us_p50 < 1600 and 1700 < timing.us_p80 < 1900


# ---- order ----


def test_each_launch_takes_the_next_set_and_each_round_the_next_order() -> None:
    device = FakeDevice()
    calls = [FakeCall(device, name) for name in "abc"]
    run(device, *calls, sets=4)
    launches = [launch for batch in batches(device) for launch in batch]
    graphs_from = 3 * (len(launches) // 3)
    timed = [launches[i : i + 3] for i in range(0, graphs_from, 3)]
    rounds = timed[: len(timed) // 2]
    assert len(rounds) > 40
    for number, launched in enumerate(rounds):
        shift = (number + number // 4) % 3
        assert [name for name, _ in launched] == list("abcabc"[shift : shift + 3])
        assert [index for _, index in launched] == [(3 * number + place) % 4 for place in range(3)]


@pytest.mark.parametrize("count, sets", [(1, 2), (2, 2), (2, 4), (3, 3), (3, 6), (4, 2), (5, 5)])
def test_every_provider_meets_every_place_and_every_set_equally_often(count: int, sets: int) -> None:
    device = FakeDevice()
    watch = stopwatch._Stopwatch({str(i): FakeCall(device) for i in range(count)}, sets, device)
    met: Counter[tuple[str, int]] = Counter()
    places: Counter[tuple[str, int]] = Counter()
    for _ in range(count * sets):
        for place, name in enumerate(watch._order()):
            met[name, watch._next_set()] += 1
            places[name, place] += 1
    assert len(met) == count * sets and set(met.values()) == {count}
    assert len(places) == count * count and set(places.values()) == {sets}


def test_all_providers_are_launched_in_every_batch_equally_often() -> None:
    device = FakeDevice()
    run(device, FakeCall(device, "a", device_us=200.0), FakeCall(device, "b", device_us=200.0))
    for batch in batches(device):
        counted = Counter(name for name, _ in batch)
        assert counted["a"] == counted["b"]
        assert len(batch) <= stopwatch.MOST_LAUNCHES


# ---- the backlog ----


def test_a_late_batch_is_thrown_away_and_repeated_behind_a_longer_one() -> None:
    device = FakeDevice()
    call = FakeCall(device, "a", 3.0, 50.0)
    slow_from, slow_to = 400, 500

    def uneven(index: int) -> None:
        # Suddenly the host is slow, so that the known backlog does not suffice.
        call.host_us = 300.0 if slow_from <= len(call.calls) < slow_to else 3.0
        call(index)

    found = measure({"a": uneven}, 2, device, replace(RULES, warm_s=0.01, settled=-1.0, most_samples=900))
    timing = found.timings["a"]
    assert timing.late_batches >= 1
    # With a sample of a late batch, a gap of 300 us would be among them.
    assert (timing.us_p20, timing.us_p80) == pytest.approx((50.0, 50.0))
    assert timing.samples < len(call.calls)
    longest = max(device.spins)
    assert longest > 2 * device.spins[2]


def test_no_sample_of_a_late_batch_is_kept() -> None:
    device = FakeDevice()
    call = FakeCall(device, "a", 3.0, 50.0)
    watch = stopwatch._Stopwatch({"a": call}, 1, device)
    assert watch._attempt(10, 1.0) is None
    kept = watch._attempt(10, 10_000.0)
    assert kept is not None and [us for _, us in kept] == pytest.approx([50.0] * 10)
    watch.enqueue_us = 1.6  # the host takes 7 us: the first backlog will be too short, a doubled one will do
    assert [us for _, us in watch._batch(100)] == pytest.approx([50.0] * 100)
    assert watch.late == 1


def test_a_driver_that_holds_few_operations_gets_smaller_batches() -> None:
    device = FakeDevice(depth=60)
    found = run(device, FakeCall(device, "a", device_us=20.0), FakeCall(device, "b", device_us=30.0))
    assert not found.errors and found.timings["a"].us_p50 == pytest.approx(20.0)
    # Found out while warming up, and remembered.
    assert found.timings["a"].late_batches == 0 and found.timings["a"].samples >= 20
    assert [len(batch) for batch in batches(device)[-3:]] == [16, 16, 16]
    assert device.now() < RULES.budget_s


def test_a_provider_that_waits_for_the_device_is_dropped_and_the_others_are_timed() -> None:
    device = FakeDevice()
    waiting = FakeCall(device, "waiting", waits=True)
    found = run(device, FakeCall(device, "a", device_us=20.0), waiting, FakeCall(device, "b", device_us=30.0))
    assert isinstance(found.errors["waiting"], stopwatch.Waits)
    assert set(found.timings) == {"a", "b"} and found.timings["b"].us_p50 == pytest.approx(30.0)
    assert max(device.spins) <= stopwatch.LONGEST_SPIN_US


def test_a_host_that_never_keeps_up_ends_with_an_error_not_with_a_time() -> None:
    device = FakeDevice()
    found = run(device, FakeCall(device, "a", host_us=2 * stopwatch.LONGEST_SPIN_US))
    assert not found.timings and isinstance(found.errors["a"], stopwatch.Waits)


# ---- when it stops ----


def test_it_stops_when_the_medians_are_settled() -> None:
    device = FakeDevice()
    found = run(device, FakeCall(device, "a", device_us=1000.0))
    assert found.timings["a"].samples == stopwatch.LEAST_BATCHES * stopwatch.BATCH_US / 1000.0
    assert device.now() < RULES.budget_s


def test_all_medians_must_be_settled_not_one() -> None:
    device = FakeDevice()
    noise = np.random.default_rng(1)
    steady, noisy = FakeCall(device, "steady", device_us=1000.0), FakeCall(device, "noisy")

    def uneven(index: int) -> None:
        noisy.device_us = float(noise.uniform(500, 1500))
        noisy(index)

    found = measure({"steady": steady, "noisy": uneven}, 1, device, RULES)
    assert device.now() >= RULES.budget_s and found.timings["steady"].samples > 100


def test_it_stops_when_the_budget_is_spent() -> None:
    device = FakeDevice()
    call = FakeCall(device, "a")
    noise = np.random.default_rng(1)

    def noisy(index: int) -> None:
        call.device_us = float(noise.uniform(100, 3000))
        call(index)

    found = measure({"a": noisy}, 1, device, replace(RULES, settled=0.0))
    assert RULES.budget_s <= device.now() < 1.3 * RULES.budget_s
    assert found.timings["a"].samples > 50


def test_it_takes_the_least_number_of_samples_whatever_the_budget() -> None:
    device = FakeDevice()
    found = run(device, FakeCall(device, "a", device_us=300_000.0), rules=replace(RULES, least_samples=7))
    assert found.timings["a"].samples == 7


def test_it_stops_at_the_most_samples() -> None:
    device = FakeDevice()
    found = run(device, FakeCall(device, "a"), rules=replace(RULES, settled=-1.0, most_samples=300, budget_s=100.0))
    assert 300 <= found.timings["a"].samples < 300 + stopwatch.MOST_LAUNCHES


# ---- clocks ----


def test_it_warms_up_until_the_clock_stands_still() -> None:
    # Falls from 2000 to 1500 MHz within 0.4 s, then stays.
    device = FakeDevice(clocks=lambda seconds: max(2000.0 - 1250.0 * seconds, 1500.0))
    found = run(device, FakeCall(device, "a", device_us=1000.0), rules=replace(RULES, warm_s=2.0, budget_s=3.0))
    assert found.clock_settled is True
    assert found.sm_clock_mhz == 1500.0  # nothing from before is among the readings
    assert found.power_w == 300.0 and found.temperature_c is None


def test_a_clock_that_never_settles_is_said_so_and_costs_only_its_share() -> None:
    device = FakeDevice(clocks=lambda seconds: 1500.0 + 200.0 * (int(seconds * 30) % 2))
    found = run(device, FakeCall(device, "a", device_us=1000.0), rules=replace(RULES, warm_s=0.3, budget_s=1.0))
    assert found.clock_settled is False and found.timings["a"].us_p50 == pytest.approx(1000.0)
    assert device.now() < 1.2


def test_a_movement_below_the_limit_is_still() -> None:
    device = FakeDevice(clocks=lambda seconds: 1500.0 + 14.0 * (int(seconds * 30) % 2))
    found = run(device, FakeCall(device, "a", device_us=1000.0), rules=replace(RULES, warm_s=0.4))
    assert found.clock_settled is True


def test_where_the_clock_is_unknown_it_warms_up_for_the_whole_share() -> None:
    device = FakeDevice(clocks=lambda seconds: None)
    call = FakeCall(device, "a", device_us=1000.0)
    begun: list[float] = []
    watch = stopwatch._Stopwatch({"a": call}, 1, device)
    assert watch._warm_up(replace(RULES, warm_s=0.2)) is None
    begun.append(device.now())
    assert 0.2 <= begun[0] < 0.25
    assert run(FakeDevice(clocks=lambda seconds: None), FakeCall(device, "a")).sm_clock_mhz is None


# ---- graphs ----


def test_the_cache_is_cold_before_each_replay_and_a_graph_has_no_more_calls_than_it_needs() -> None:
    device = FakeDevice()
    call = FakeCall(device, "a")
    found = run(device, call, sets=4096)
    assert found.timings["a"].graph_us == pytest.approx(10.0)
    assert call.calls[-stopwatch.MOST_GRAPH_CALLS :] == list(range(stopwatch.MOST_GRAPH_CALLS))
    after = [entry[0] for entry in device.log[device.log.index(("flush",)) - 2 :]]
    assert after == ["synchronize", "spin", "flush", "synchronize"] * stopwatch.REPEATS


def test_no_graph_figure_where_nothing_can_be_captured() -> None:
    device = FakeDevice(can_capture=False)
    assert run(device, FakeCall(device, "a")).timings["a"].graph_us is None


def test_no_graph_figure_from_a_graph_that_does_not_do_the_work() -> None:
    device = FakeDevice()
    asked: list[str] = []

    def replays(name: str, replay: object) -> bool:
        asked.append(name)
        return name == "a"

    calls = {name: FakeCall(device, name) for name in "ab"}
    found = measure(calls, 2, device, RULES, replays)
    assert asked == ["a", "b"]
    assert found.timings["a"].graph_us == pytest.approx(10.0) and found.timings["b"].graph_us is None


def test_a_graph_that_raises_when_replayed_drops_its_provider() -> None:
    class Broken(FakeDevice):
        def capture(self, enqueue: object) -> object:  # type: ignore[override]
            def replay() -> None:
                raise ValueError("cannot be replayed")

            return replay

    device = Broken()
    found = run(device, FakeCall(device, "a"))
    assert not found.timings and str(found.errors["a"]) == "cannot be replayed"


def test_a_check_of_a_graph_that_raises_drops_its_provider() -> None:
    device = FakeDevice()

    def replays(name: str, replay: object) -> bool:
        if name == "b":
            raise ValueError("the check fails")
        return True

    found = measure({name: FakeCall(device, name) for name in "abc"}, 1, device, RULES, replays)
    assert set(found.timings) == {"a", "c"} and str(found.errors["b"]) == "the check fails"
    assert found.timings["c"].graph_us == pytest.approx(10.0)


def test_a_replay_that_is_enqueued_too_late_is_not_counted() -> None:
    class Slow(FakeDevice):
        replays = 0

        def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
            replay = super().capture(enqueue)
            assert replay is not None

            def slow() -> None:
                self.replays += 1
                self.host += 5000.0 if self.replays < 4 else 0.0
                replay()

            return slow

    device = Slow()
    found = run(device, FakeCall(device, "a"))
    assert found.timings["a"].graph_us == pytest.approx(10.0)
    device = Slow()
    device.replays = -100
    assert run(device, FakeCall(device, "a")).timings["a"].graph_us is None


# ---- failures ----


@pytest.mark.parametrize("fails_at", [1, 2, 50, 500])
def test_a_provider_that_raises_is_dropped_and_the_others_go_on(fails_at: int) -> None:
    device = FakeDevice()
    broken = FakeCall(device, "broken", fails_at=fails_at)
    found = run(device, FakeCall(device, "a", device_us=20.0), broken, FakeCall(device, "b", device_us=30.0))
    assert set(found.timings) == {"a", "b"} and set(found.errors) == {"broken"}
    assert found.errors["broken"].args == (f"broken fails at call {fails_at}",)
    assert found.timings["a"].us_p50 == pytest.approx(20.0)
    assert found.timings["a"].samples == found.timings["b"].samples


def test_a_provider_that_raises_only_in_its_last_calls_has_no_time() -> None:
    device = FakeDevice()
    whole = FakeCall(device, "a")
    run(device, whole)
    for fails_at in range(len(whole.calls) - 5, len(whole.calls) - 50 * stopwatch.REPEATS, -97):
        device = FakeDevice()
        found = run(device, FakeCall(device, "a", fails_at=fails_at))
        # A failed capture costs the graph figure only, a failed call everything.
        assert "a" in found.errors or found.timings["a"].graph_us is None


def test_when_all_fail_there_is_nothing_and_it_ends() -> None:
    device = FakeDevice()
    found = run(device, *(FakeCall(device, name, fails_at=3) for name in "abc"))
    assert not found.timings and set(found.errors) == set("abc")
    assert device.now() < 1.0


@pytest.mark.parametrize("after", [0, 1, 7, 300, 1000])
def test_a_device_that_disappears_is_said_so(after: int) -> None:
    device = FakeDevice(gone_after=after)
    with pytest.raises(DeviceLost, match="stopped answering") as caught:
        run(device, FakeCall(device, "a"), FakeCall(device, "b"), rules=replace(RULES, settled=0.0))
    assert isinstance(caught.value.__cause__, Gone)


def test_an_error_of_the_device_that_passes_is_not_a_lost_device() -> None:
    class Hiccup(FakeDevice):
        def spin(self, microseconds: float) -> object:
            raise MemoryError("once")

    with pytest.raises(MemoryError, match="once"):
        run(device := Hiccup(), FakeCall(device, "a"))


# ---- statistics ----


def test_percentiles() -> None:
    assert percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)


def test_settled_means_a_narrow_interval_of_the_median() -> None:
    assert not is_settled([1.0] * 5, 0.01) and is_settled([1.0] * 10, 0.01)
    assert not is_settled([], 0.01)
    spread = list(np.linspace(0.9, 1.1, 101))
    # 101 samples: the order statistics 40 and 62, which are 0.978 and 1.022.
    assert not is_settled(spread, 0.043) and is_settled(spread, 0.045)
    long = [1000.0 * us for us in spread]  # the width is relative
    assert not is_settled(long, 0.043) and is_settled(long, 0.045)
    assert is_settled([1.0] * 80 + [9.0] * 20, 0.001)  # outliers do not matter to a median


def test_the_interval_holds_the_median_in_95_of_100_runs() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        n = 60
        ordered = np.sort(rng.standard_exponential(n))
        low, high = int(np.floor(n / 2 - 0.98 * np.sqrt(n))), int(np.ceil(n / 2 + 1 + 0.98 * np.sqrt(n)))
        held += ordered[low - 1] <= np.log(2.0) <= ordered[high - 1]
    assert held >= 0.95 * 400 - 3 * np.sqrt(400 * 0.05 * 0.95)
