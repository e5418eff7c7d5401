"""Barriers of a CTA and of a cluster, one instruction at a time."""

from __future__ import annotations

import numpy as np
import pytest

import gpulinear.emulator.isa.barrier  # noqa: F401
from tests.emulator.blocking_calls import Call, cluster_sync, races, write
from tests.emulator.fakes import Bench


@pytest.mark.parametrize("name", ["bar.sync", "bar.cta.sync", "barrier.sync.aligned", "barrier.cta.sync"])
def test_sync_of_all(name: str) -> None:
    bench = Bench(80)
    write(bench, np.arange(80))
    first, second = Call(bench, name, 0, threads=np.arange(32)), Call(bench, name, 0, threads=np.arange(64, 80))
    assert first.waits and second.waits
    assert races(bench, 0, 70)
    last = Call(bench, name, 0, threads=np.arange(32, 64))
    assert not last.waits and last.result is None and not first.waits and not second.waits
    assert not races(bench, 0, 60) and not races(bench, 75, 10) and not races(bench, 40, 70)
    assert Call(bench, name, 0, threads=np.arange(32)).waits, "the barrier is used anew"
    assert len(bench.found) == 1


def test_named_barriers_are_apart_and_count_warps() -> None:
    bench = Bench(128)
    write(bench, np.arange(128))
    one, two = (
        Call(bench, "bar.sync", 1, 64, threads=np.arange(32)),
        Call(bench, "bar.sync", 2, 64, threads=np.r_[64:96]),
    )
    assert one.waits and two.waits
    done = Call(bench, "bar.sync", 1, 64, threads=np.r_[96:128])
    assert not done.waits and not one.waits and two.waits
    assert not races(bench, 0, 100) and not races(bench, 100, 3) and races(bench, 0, 70) and races(bench, 70, 3)


def test_a_warp_arrives_with_its_last_live_thread() -> None:
    bench = Bench(64)
    bench.cta.live[[5, 40]] = False
    bench.cta.cluster.clocks.exit(np.array([5, 40]))
    parts = [[0, 1, 2, 3, 4], [t for t in range(32, 64) if t != 40]]
    calls = [Call(bench, "barrier.sync", 3, 64, threads=np.array(part)) for part in parts]
    assert all(call.waits for call in calls)
    Call(bench, "barrier.sync", 3, 64, threads=np.r_[6:31])
    assert all(call.waits for call in calls)
    bench.cta.live[31] = False  # the last one exits instead
    assert not any(call.waits for call in calls) and bench.found == []


def test_an_exit_releases_a_barrier_of_all() -> None:
    bench = Bench(96)
    bench.cta.live[64:] = False
    call = Call(bench, "bar.sync", 0, threads=np.arange(32))
    assert call.waits and "all 96 threads that have not exited" in call.result.why
    bench.cta.live[32:64] = False
    assert not call.waits and bench.found == []


def test_arrive_releases_only() -> None:
    bench = Bench(64)
    producer, consumer = np.arange(32), np.arange(32, 64)
    write(bench, producer)
    write(bench, consumer)
    waiting = Call(bench, "bar.sync", 1, 64, threads=consumer)
    assert waiting.waits
    assert Call(bench, "bar.arrive", 1, 64, threads=producer).result is None
    assert not waiting.waits
    assert not races(bench, 40, 3) and not races(bench, 40, 50)
    assert races(bench, 3, 40)
    bench = Bench(64)
    Call(bench, "barrier.arrive", 1, 64, threads=producer)
    write(bench, producer)  # after its arrival
    assert not Call(bench, "bar.sync", 1, 64, threads=consumer).waits
    assert races(bench, 40, 3)
    assert races(bench, 40, 4) and [f.kind for f in bench.launch.report.findings] == ["shared race"] * 2


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(("op", "kind"), [("popc", "u32"), ("and", "pred"), ("or", "pred")])
def test_red(op: str, kind: str, counted: bool) -> None:
    bench = Bench(70)
    for true in (0, 1, 69, 70):
        predicate = np.arange(70) < true
        more = (96,) if counted else ()
        calls = [
            Call(bench, f"bar.red.{op}.{kind}", 4, *more, predicate[part], threads=part)
            for part in (np.arange(32), np.arange(64, 70), np.arange(32, 64))
        ]
        for call in calls:
            got = call.go_on()
            assert got.dtype == (np.uint32 if op == "popc" else bool) and len(got) == len(call.lanes.threads)
            assert set(got.tolist()) == {{"popc": true, "and": true == 70, "or": true > 0}[op]}
    assert bench.found == []


def test_red_counts_live_threads_only() -> None:
    bench = Bench(64)
    bench.cta.live[40] = False
    alive = np.flatnonzero(bench.cta.live)
    assert Call(bench, "barrier.red.and.pred", 0, 64, np.ones(63, bool), threads=alive).go_on().all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [((16,), "barrier number"), ((1, 40), "barrier count"), ((1, 0), "barrier count"), ((1, 128), "barrier count")],
)
def test_operands_out_of_range(values: tuple[int, ...], kind: str) -> None:
    bench = Bench(64)
    Call(bench, "bar.sync", *values)
    assert bench.found[0] == kind


def test_misuse_of_a_barrier() -> None:
    bench = Bench(96)
    warps = [np.arange(32 * w, 32 * w + 32) for w in range(3)]
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == ["barrier count"] and "with 96 threads here and with 64" in bench.only().message
    bench = Bench(96)
    Call(bench, "bar.sync", 1, threads=warps[0])
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == [], "without a count it is all threads, in whole warps"
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == ["barrier overrun"] and bench.only().threads[0] == 32
    bench = Bench(96)
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.arrive", 1, 64, threads=np.arange(32, 96))
    assert bench.found == ["barrier overrun"] and "96 threads arrive" in bench.only().message
    bench = Bench(96)
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.red.or.pred", 1, 64, np.ones(32, bool), threads=warps[1])
    assert bench.found == ["barrier mix"]
    bench = Bench(96)
    Call(bench, "bar.sync", 1, threads=np.arange(8))
    assert bench.found == ["divergent barrier"] and bench.only().count == 8
    bench = Bench(96)
    Call(bench, "barrier.sync", 1, threads=np.arange(8))
    assert bench.found == []
    bench = Bench(96)
    Call(bench, "bar.arrive", 3, 64, threads=warps[2])
    bench.cta.exit()
    assert bench.found == ["barrier incomplete at exit"] and "32 of 64" in bench.only().message


# Clusters


def test_cluster_barrier() -> None:
    bench = Bench(64, ctas=2)
    write(bench, np.arange(64))
    Call(bench, "barrier.cluster.arrive.release.aligned")
    early = Call(bench, "barrier.cluster.wait.acquire.aligned")
    Call(bench, "barrier.cluster.arrive", threads=np.arange(32), cta=1)
    assert early.waits
    Call(bench, "barrier.cluster.arrive", threads=np.arange(32, 64), cta=1)
    write(bench, 5)  # after the arrival
    assert not early.waits
    late = Call(bench, "barrier.cluster.wait", cta=1)
    assert not late.waits
    assert not races(bench, 3, 6, cta=1) and not races(bench, 63, 62, cta=1)
    assert races(bench, 3, 5, cta=1)
    early.go_on()
    assert len(bench.found) == 1
    cluster_sync(bench)
    assert not races(bench, 3, 5, cta=1)


def test_cluster_barrier_with_exited_threads() -> None:
    bench = Bench(32, ctas=2)
    Call(bench, "barrier.cluster.arrive")
    call = Call(bench, "barrier.cluster.wait")
    assert call.waits
    bench.cta.cluster.clocks.exit(np.arange(32, 64))
    assert not call.waits
    call.go_on()
    Call(bench, "barrier.cluster.arrive")
    assert Call(bench, "barrier.cluster.wait").go_on() is None and bench.found == []


def test_cluster_barrier_out_of_step() -> None:
    """A thread that is quick arrives again before a slow one has waited for the first time."""
    bench = Bench(32, ctas=2)
    write(bench, 3)
    for cta in (0, 1):
        Call(bench, "barrier.cluster.arrive", cta=cta)
    Call(bench, "barrier.cluster.wait").go_on()
    write(bench, 4)
    Call(bench, "barrier.cluster.arrive")
    second = Call(bench, "barrier.cluster.wait")
    assert second.waits
    Call(bench, "barrier.cluster.wait", cta=1).go_on()
    assert not races(bench, 1, 3, cta=1)
    assert races(bench, 1, 4, cta=1)
    Call(bench, "barrier.cluster.arrive", cta=1)
    assert not second.waits and bench.found == ["shared race"]


def test_misuse_of_the_cluster_barrier() -> None:
    bench = Bench(32, ctas=2)
    assert Call(bench, "barrier.cluster.wait").go_on() is None
    assert bench.found == ["cluster barrier"] and "has not arrived" in bench.only().message
    Call(bench, "barrier.cluster.arrive")
    Call(bench, "barrier.cluster.arrive", threads=np.arange(3))
    assert len(bench.found) == 2 and bench.launch.report.findings[1].threads == (0, 1, 2)
    Call(bench, "barrier.cluster.arrive.aligned", threads=np.arange(3), cta=1)
    assert bench.found[2] == "divergent barrier"
