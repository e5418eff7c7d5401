"""The vector clocks: every operation against sets of events, with CTAs, channels that come late, and threads that go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.clocks import Clocks, Snapshot, agents_of
from tests.emulator.fakes import Bench

Array = np.ndarray[Any, Any]


def a(*values: int) -> Array:
    return np.array(values)


def order(clocks: Clocks) -> list[list[bool]]:
    """[u][t]: whether u knows the present of t."""
    everyone = np.arange(clocks.agents)
    return [clocks.knows(np.full(clocks.agents, u), everyone, clocks.now).tolist() for u in everyone]


def test_at_the_start_only_itself() -> None:
    clocks = Clocks(3)
    assert order(clocks) == [[True, False, False], [False, True, False], [False, False, True]]


def test_barrier_and_tick() -> None:
    clocks = Clocks(4)
    before = clocks.now
    clocks.barrier(a(0, 1, 3))
    assert [int(x) for x in clocks.now - before] == [1, 1, 0, 1], "the members tick, old clocks stay as they were"
    for u in (0, 1, 3):
        assert clocks.knows(u, a(0, 1, 2, 3), before).tolist() == [True, True, u == 2, True]
        assert not clocks.knows(u, a(0, 1, 2, 3), clocks.now)[[t for t in range(4) if t != u]].any()
    assert not clocks.knows(2, a(0, 1, 3), before[[0, 1, 3]]).any()
    assert clocks.stamps == [0]
    clocks.barrier(np.arange(4))
    assert clocks.stamps == [1] and clocks.knows(a(0, 1, 2, 3)[:, None], np.arange(4), before).all()


def test_barriers_of_ctas() -> None:
    clocks = Clocks(2, 3)
    first = clocks.now
    clocks.barrier(a(0, 1))
    assert clocks.stamps == [1, 0, 0] and clocks.knows(0, 1, first[1]) and not clocks.knows(0, 2, first[2])
    clocks.barrier(a(2, 3, 4, 5))
    assert clocks.stamps == [1, 1, 1] and clocks.knows(2, 5, first[5]) and not clocks.knows(2, 0, first[0])
    clocks.barrier(a(0, 1, 2))
    assert clocks.stamps == [1, 1, 1], "a part of CTA 1 makes no common row of CTA 0 alone"
    assert clocks.knows(0, 5, first[5]) and clocks.knows(2, 1, first[1]) and not clocks.knows(3, 0, first[0])
    clocks.exit(a(3))
    clocks.barrier(a(2))
    assert clocks.stamps == [1, 2, 1] and clocks.exited(1) and not clocks.exited(0)


def test_snapshots() -> None:
    clocks = Clocks(4)
    one = clocks.release(a(0))
    late = clocks.new_channel("late", "wait")
    clocks.learn(a(1), late, 5)
    two = clocks.release(a(1))
    assert len(one.known) == 4 and len(two.known) == 5
    for first, second in ((one, two), (two, one)):
        both = clocks.merge(first, second)
        assert both.known.tolist() == [1, 1, 0, 0, 5]
    assert clocks.merge(None, one) is one and one.known.tolist() == [1, 0, 0, 0]
    clocks.acquire(a(2, 3), both)
    assert clocks.knows(a(2, 3), late, 5).all() and not clocks.knows(2, late, 6) and clocks.knows(3, 0, 1)
    assert not clocks.knows(2, 0, 2), "the releasing thread has ticked"
    clocks.acquire(a(0), clocks.signal(late, 9))
    assert clocks.knows(0, late, 9) and not clocks.knows(0, 1, 1)
    clocks.learn(a(0), late, 3)
    assert clocks.knows(0, late, 9), "never less"


def test_fenced_travels_and_stays_apart() -> None:
    clocks = Clocks(4, proxies=True)
    clocks.barrier(a(0, 1))
    clocks.fence_proxy(a(1))
    assert clocks.knows_fenced(1, a(0, 1), 1).all() and clocks.knows_fenced(1, 1, 2)
    assert not clocks.knows_fenced(1, 1, 3) and not clocks.knows_fenced(0, 0, 1) and not clocks.knows_fenced(1, 0, 2)
    clocks.acquire(a(2), clocks.release(a(1)))
    assert clocks.knows_fenced(2, 1, 2) and not clocks.knows_fenced(3, 1, 2)
    clocks.barrier(np.arange(4))
    assert clocks.knows_fenced(a(0, 3), 1, 2).all() and not clocks.knows_fenced(3, 2, 1)
    assert clocks.least_fenced(np.arange(4)).tolist() == [1, 2, 0, 0]
    plain = Clocks(2)
    assert plain.release(a(0)).fenced is None
    assert clocks.merge(Snapshot(a(1), None), Snapshot(a(2), a(7))).fenced is not None


@pytest.mark.parametrize("first", [0, 3])
def test_warp_sync_of_several_sets(first: int) -> None:
    clocks = Clocks(12, proxies=True)
    clocks.fence_proxy(a(first + 1))
    before = clocks.now
    sets = np.arange(first, first + 6).reshape(2, 3) if first else np.array([[0, 1, 4], [2, 6, 9]])
    clocks.warp_sync(sets)
    for group in sets.tolist():
        for u in group:
            expected = [t in group or t == u for t in range(12)]
            assert clocks.knows(u, np.arange(12), before).tolist() == expected
            assert bool(clocks.knows_fenced(u, first + 1, 1)) == (first + 1 in group)
        assert (clocks.now[group] == before[group] + 1).all()
    outside = [t for t in range(12) if t not in sets]
    assert (clocks.now[outside] == before[outside]).all()


def test_warp_sync_keeps_what_members_knew_and_their_copies() -> None:
    clocks = Clocks(6)
    columns = clocks.cp_async_channels(a(0, 1))
    clocks.learn_copies(a(0, 1), a(4, 7))
    clocks.acquire(a(1), clocks.release(a(5)))
    clocks.warp_sync(a(0, 1, 2)[None])
    assert clocks.knows(a(0, 1, 2), 5, 1).all() and not clocks.knows(3, 5, 1)
    for u in (0, 1, 2):
        assert clocks.knows(u, columns, a(4, 7)).all() and not clocks.knows(u, columns, a(5, 8)).any()


def test_copies_are_known_to_their_thread_first() -> None:
    clocks = Clocks(3)
    columns = clocks.cp_async_channels(np.arange(3))
    assert len(set(columns.tolist())) == 3 and (clocks.cp_async_channels(a(1)) == columns[1]).all()
    clocks.learn_copies(a(1), 2)
    clocks.learn_copies(a(1), 1)
    assert clocks.knows(1, columns[1], 2) and not clocks.knows(1, columns[1], 3) and not clocks.knows(0, columns[1], 1)
    snapshot = clocks.release(a(1))
    clocks.learn_copies(a(1), 3)
    clocks.acquire(a(0), snapshot)
    assert clocks.knows(0, columns[1], 2) and not clocks.knows(0, columns[1], 3)
    clocks.barrier(np.arange(3))
    assert clocks.knows(a(0, 2), columns[1], 3).all()
    assert "cp.async of thread 1" in clocks.describe(int(columns[1])).name


def test_many_channels_keep_what_was_known() -> None:
    clocks = Clocks(4, proxies=True)
    clocks.barrier(a(0, 1))
    clocks.fence_proxy(a(0))
    clocks.fence_memory(a(0))
    numbers = [clocks.new_channel(f"channel {i}", f"wait {i}") for i in range(200)]
    assert numbers == list(range(4, 204)) and clocks.describe(50).name == "channel 46"
    clocks.learn(a(1), numbers[-1], 3)
    assert clocks.knows(0, 1, 1) and clocks.knows_fenced(0, 1, 1) and clocks.knows(1, numbers[-1], 3)
    assert not clocks.knows(0, numbers[-1], 1) and not clocks.knows(a(1), numbers[:-1], 1).any()
    assert clocks.release_relaxed(a(0)).known[:2].tolist() == [3, 1]


def test_least_and_floor() -> None:
    clocks = Clocks(3)
    channel = clocks.new_channel("c", "wait")
    clocks.learn(a(0, 1), channel, 5)
    clocks.learn(a(2), channel, 3)
    assert clocks.least(a(0, 1))[channel] == 5 and clocks.least(np.arange(3))[channel] == 3
    assert clocks.least(a(0))[0] == clocks.now[0]
    assert clocks.floor()[channel] == 3 and clocks.floor()[0] == 0
    clocks.barrier(np.arange(3))
    assert clocks.floor().tolist()[:3] == [1, 1, 1] and clocks.floor()[channel] == 5
    clocks.learn(a(1), channel, 8)
    assert clocks.floor()[channel] == 5 and clocks.common(0)[channel] == 5
    clocks.exit(a(0, 2))
    assert clocks.floor()[channel] == 8
    clocks.exit(a(1))
    assert (clocks.floor() > 10**6).all()


def test_floor_over_ctas() -> None:
    clocks = Clocks(2, 2)
    clocks.barrier(a(0, 1))
    assert clocks.floor().tolist() == [0, 0, 0, 0]
    clocks.barrier(np.arange(4))
    assert clocks.floor().tolist() == [2, 2, 1, 1]


def test_the_version_tells_what_may_have_changed() -> None:
    clocks = Clocks(4, proxies=True)
    channel = clocks.new_channel("c", "wait")
    changes = [
        lambda: clocks.learn(a(0), channel, 1),
        lambda: clocks.learn_copies(a(0), 1),
        lambda: clocks.acquire(a(0), clocks.signal(channel, 7)),
        lambda: clocks.barrier(a(0, 1)),
        lambda: clocks.warp_sync(a(0, 1)[None]),
        lambda: clocks.fence_proxy(a(0)),
        lambda: clocks.initialise(2),
        lambda: clocks.new_channel("d", "wait"),
        lambda: clocks.exit(a(3)),
    ]
    for change in changes:
        before = clocks.version
        change()
        assert clocks.version > before
    before = clocks.version
    clocks.least(a(0, 1, 2))
    clocks.floor()
    clocks.knows(0, 1, 1)
    assert clocks.version == before


def test_relaxed_release_and_inits() -> None:
    clocks = Clocks(2, 2, proxies=True)
    assert not clocks.release_relaxed(np.arange(4)).known.any()
    channel, value = clocks.initialise(1)
    assert (channel, value) == (4, 1) and clocks.knows(1, channel, 1) and not clocks.knows(0, channel, 1)
    clocks.fence_inits(a(0, 1))
    assert clocks.initialise(1) == (4, 2)
    snapshot = clocks.release_relaxed(np.arange(4))
    assert snapshot.known.tolist() == [0, 0, 0, 0, 1] and snapshot.fenced is not None
    assert snapshot.fenced.tolist() == [0, 0, 0, 0, 1]
    assert clocks.knows_fenced(1, channel, 1) and not clocks.knows_fenced(1, channel, 2)
    clocks.fence_memory(a(1))
    assert clocks.release_relaxed(a(1)).known.tolist() == [0, 1, 0, 0, 2]
    assert clocks.now.tolist() == [1, 2, 1, 1]
    assert "thread 1 of CTA 0" in clocks.describe(channel).name and "thread 1 of CTA 1" in clocks.describe(3).name


def test_agents_of_lanes() -> None:
    bench = Bench(32, ctas=2)
    assert agents_of(bench.lanes(a(3, 4))).tolist() == [3, 4]
    assert agents_of(bench.lanes(a(3, 4), cta=1)).tolist() == [35, 36]
