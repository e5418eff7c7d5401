"""The race detector: proxy fences, mbarrier.init, and what a relaxed arrive hands over."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.race_bench import Bench, a


def proxy_bench() -> tuple[Bench, int]:
    bench = Bench(proxies=True)
    return bench, bench.clocks.new_channel("bulk store", "wait_group.read")


@pytest.mark.parametrize("fence", ["none", "writer", "issuer", "early", "before the barrier of the issuer"])
def test_proxy_fence(fence: str) -> None:
    bench, channel = proxy_bench()
    if fence == "early":
        bench.clocks.fence_proxy(bench.all())
    bench.do("write", np.arange(64), np.arange(64) * 4)
    if fence == "writer":
        bench.clocks.fence_proxy(bench.all())
    if fence.startswith("before"):
        bench.clocks.fence_proxy(a(0))  # only its own write
    bench.clocks.barrier(bench.all())
    if fence == "issuer":
        bench.clocks.fence_proxy(a(0))
    bench.go("read", 0, channel, 1, [0], 256)
    bad = fence not in ("writer", "issuer")
    assert bench.found() == ([("missing proxy fence", 2)] if bad else [])
    if bad:
        first = 1 if fence.startswith("before") else 0
        assert bench.only().address == 4 * first and f"thread {first} wrote" in bench.only().message


def test_proxy_fence_of_an_async_write_and_of_bytes() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [1], [6], 2)
    bench.clocks.barrier(bench.all())
    bench.do("read", [1], [32], 16)  # reads through the generic proxy need no fence
    bench.clocks.barrier(bench.all())
    bench.go("write", 0, channel, 1, [8, 32], 16)
    assert bench.found() == []
    bench.go("write", 0, channel, 1, [0], 8)
    assert bench.found() == [("missing proxy fence", 4)] and bench.only().address == 6
    bench.clocks.learn(bench.all(), channel, 1)
    bench.go("read", 0, channel, 2, [0], 32)  # overwritten by the async proxy in the meantime
    assert len(bench.found()) == 1
    bench.do("read", [5], [0], 16)  # the wait is enough for the generic proxy
    assert len(bench.found()) == 1


def test_a_race_is_no_missing_fence_too() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [40], [0])
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == [("shared race", 2)]


def test_fence_travels_with_release_and_warp_sync() -> None:
    bench, channel = proxy_bench()
    bench.do("write", [40], [0])
    bench.clocks.fence_proxy(a(40))
    bench.do("write", [40], [16])  # after the fence
    bench.clocks.warp_sync(np.arange(32, 64)[None])
    bench.clocks.acquire(a(0), bench.clocks.release(a(63)))
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == []
    bench.go("read", 0, channel, 1, [16], 16)
    assert bench.found() == [("missing proxy fence", 4)]


def test_cp_async_is_generic() -> None:
    bench, channel = proxy_bench()
    for fenced in (False, True):
        lanes = bench.all()
        number = 1 + fenced
        copies = bench.clocks.cp_async_channels(lanes)
        bench.races[0].async_write(lanes, copies, np.full(64, number), lanes * 16, 16, bench.line(), generic=True)
        bench.clocks.learn_copies(lanes, number)
        if fenced:
            bench.clocks.fence_proxy(lanes)
        bench.clocks.barrier(lanes)
        bench.go("read", lanes, channel, number, [0], 1024, together=True)
        bench.clocks.learn(lanes, channel, number)
        bench.clocks.barrier(lanes)
    assert bench.found() == [("missing proxy fence", 2)]


def test_fence_must_follow_the_wait_for_cp_async() -> None:
    bench, channel = proxy_bench()
    copies = bench.clocks.cp_async_channels(a(5))
    bench.races[0].async_write(a(5), copies, a(1), a(0), 16, bench.line(), generic=True)
    bench.clocks.fence_proxy(a(5))
    bench.clocks.learn_copies(a(5), 1)
    bench.clocks.barrier(bench.all())
    bench.go("read", 0, channel, 1, [0], 16)
    assert bench.found() == [("missing proxy fence", 2)]


@pytest.mark.parametrize("fence", ["none", "init", "proxy"])
def test_mbarrier_init(fence: str) -> None:
    bench, channel = proxy_bench()
    bench.races[0].mbarrier_init(a([0, 1]), a([0, 8]), bench.line())
    bench.do("write", [0], [64])
    if fence == "init":
        bench.clocks.fence_inits(a([0, 1]))
    if fence == "proxy":
        bench.clocks.fence_proxy(a([0, 1]))
    bench.clocks.barrier(bench.all())
    bench.races[0].atomic(a([3]), a([8]), 8, bench.line(), mbarrier=True)
    bench.go("atomic", 3, channel, 1, [8], 8)
    assert bench.found() == ([("missing proxy fence", 4)] if fence == "none" else [])
    if fence != "none":
        bench.go("read", 3, channel, 2, [64], 4)
        wrong = [("missing proxy fence", 5)] if fence == "init" else []
        assert bench.found() == wrong, "fence.mbarrier_init is for mbarrier.init only"


def test_mbarrier_before_its_init() -> None:
    bench, _ = proxy_bench()
    bench.races[0].mbarrier_init(a([0]), a([0]), bench.line())
    bench.races[0].atomic(a([3]), a([0]), 8, bench.line(), mbarrier=True)
    assert bench.found() == [("shared race", 2)] and "mbarrier.init by thread 0" in bench.only().message


def test_relaxed_arrive_releases_what_was_fenced() -> None:
    bench = Bench(32, 2, proxies=True)
    bench.races[0].mbarrier_init(a([0]), a([0]), bench.line())
    bench.do("write", [0], [64])
    bench.clocks.fence_inits(a([0]))
    bench.clocks.acquire(np.arange(32, 64), bench.clocks.release_relaxed(np.arange(32)))
    bench.races[0].atomic(a([40]), a([0]), 8, bench.line(), mbarrier=True)
    assert bench.found() == []
    bench.do("read", [40], [64])
    assert bench.found() == [("shared race", 4)]
    bench.clocks.fence_memory(a([0]))
    bench.do("write", [0], [68])
    bench.clocks.acquire(np.arange(32, 64), bench.clocks.release_relaxed(np.arange(32)))
    bench.do("read", [41], [64])
    assert len(bench.found()) == 1
    bench.do("read", [41], [68])
    assert len(bench.found()) == 2
