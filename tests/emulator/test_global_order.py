"""Who may access what others wrote to global memory: inside a CTA, a cluster, and by strong accesses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpulinear.emulator.global_order import SCOPES, How
from gpulinear.emulator.memory import load, store
from tests.emulator.fakes import Bench
from tests.emulator.global_bench import RELAXED, VOLATILE, Global, races


@pytest.fixture
def two() -> Global:
    return Global(clusters=2)


# ------------------------------------------------------------------------------------------ inside a CTA


def test_threads_of_a_cta() -> None:
    bench = Global()
    bench.put(3, 0)
    bench.get(3, 0)
    assert races(bench) == 0
    bench.get(4, 0)
    found = bench.only()
    assert found.kind == "global race" and "thread 3 of CTA (0, 0, 0)" in found.message and "'data'" in found.message
    assert (found.threads, found.address) == ((4,), bench.data)
    bench.put(4, 0)
    assert races(bench) == 2
    bench.barrier()
    bench.get(5, 0)
    bench.put(5, 0)
    assert races(bench) == 2


def test_only_the_bytes_that_were_written() -> None:
    bench = Global()
    address = np.array([bench.data + 5])
    store(bench.lanes([1]), "global", address, [np.ones(1, np.uint8)], np.uint8)
    load(bench.lanes([2]), "global", np.array([bench.data]), np.uint32)
    load(bench.lanes([2]), "global", np.array([bench.data + 6]), np.uint16)
    assert races(bench) == 0
    load(bench.lanes([2]), "global", np.array([bench.data]), np.uint32, 4)
    assert races(bench) == 1


def test_the_newest_write_counts() -> None:
    """A thread's second write comes after the barrier that ordered the first."""
    bench = Global()
    bench.put(0, 0)
    bench.barrier()
    bench.put(0, 0)
    bench.get(1, 0)
    assert races(bench) == 1


def test_a_store_that_is_executed_again() -> None:
    bench = Global()
    lanes, address = bench.lanes(), bench.data + np.arange(64) * 4
    for _ in range(2):
        store(lanes, "global", address, [np.zeros(64, np.uint32)], np.uint32)
        bench.barrier()
    load(bench.lanes(), "global", address[::-1].copy(), np.uint32)
    assert races(bench) == 0
    store(lanes, "global", address, [np.zeros(64, np.uint32)], np.uint32)
    load(bench.lanes(), "global", address[::-1].copy(), np.uint32)
    assert races(bench) == 64


def test_cluster_barrier() -> None:
    bench = Global(ctas=2)
    bench.put(0, 0)
    bench.cta.cluster.clocks.barrier(np.arange(128))
    bench.get(7, 1)
    assert races(bench) == 0
    bench.put(0, 0)
    bench.get(7, 1)
    assert races(bench) == 1


def test_lanes_are_told_apart() -> None:
    bench = Global()
    address = bench.data + np.arange(64) * 4
    store(bench.lanes(), "global", address, [np.zeros(64, np.uint32)], np.uint32)
    address[20], address[40] = address[40], address[20]
    load(bench.lanes(), "global", address, np.uint32)
    assert bench.only().threads == (20, 40) and bench.only().count == 2


# -------------------------------------------------------------------------------- strong accesses and atomics


def test_atomics_are_exempt_among_themselves(two: Global) -> None:
    for cta in (0, 1, 0):
        two.add(0, cta)
    two.put(3, 0, how=RELAXED, flag=True)
    two.get(3, 1, how=VOLATILE, flag=True)
    assert races(two) == 0


@pytest.mark.parametrize("first", ["atomic", "weak"])
def test_atomic_against_weak(two: Global, first: str) -> None:
    if first == "atomic":
        two.add(0, 0)
        two.get(0, 1, flag=True)
    else:
        two.put(0, 0, flag=True)
        two.add(0, 1)
    assert races(two) == 1


def test_atomics_of_too_narrow_a_scope(two: Global) -> None:
    """Atomics are atomic to each other only where each scope includes the other thread (PTX ISA 9.7.13.5)."""
    narrow = How(SCOPES["cta"])
    two.add(0, 0, how=narrow)
    two.add(5, 0, how=narrow)
    assert races(two) == 0
    two.add(0, 1)
    assert races(two) == 1


def test_strong_accesses_of_different_sizes_conflict(two: Global) -> None:
    """Morally strong accesses overlap completely (PTX ISA 8.7)."""
    two.put(0, 0, how=replace(RELAXED, size=4))
    load(two.lanes([0], 1), "global", np.array([two.data]), np.uint32, 1, replace(RELAXED, size=4))
    assert races(two) == 0
    load(two.lanes([0], 1), "global", np.array([two.data]), np.uint64, 1, replace(RELAXED, size=8))
    load(two.lanes([0], 1), "global", np.array([two.data]), np.uint16, 1, replace(RELAXED, size=2))
    assert races(two) == 2


def test_cluster_scope_inside_a_cluster() -> None:
    bench = Global(ctas=2, clusters=2)
    level = SCOPES["cluster"]
    bench.put(0, 0)
    bench.put(0, 0, how=How(level, release=True), flag=True)
    bench.get(0, 1, how=How(level, acquire=True), flag=True)
    bench.get(0, 1)
    assert races(bench) == 0
    bench.get(0, 2, how=How(level, acquire=True), flag=True)
    assert races(bench) == 1


def test_launches_are_ordered(two: Global) -> None:
    two.put(0, 0)
    later = Bench(64, memory=two.memory)
    load(later.lanes([0]), "global", np.array([two.data]), np.uint32)
    assert later.found == []
