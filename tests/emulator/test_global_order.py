"""Who may read what others wrote to global memory: every way that orders two threads, and each with a part missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.global_order import PLAIN, SCOPES, How
from gpulinear.emulator.memory import load, store, update
from tests.emulator.fakes import Bench

RELAXED, VOLATILE = How(SCOPES["gpu"]), How(SCOPES["sys"])
ACQUIRE, RELEASE = How(SCOPES["gpu"], acquire=True), How(SCOPES["gpu"], release=True)
BOTH = How(SCOPES["gpu"], acquire=True, release=True)


class Global(Bench):
    """Two CTAs, or clusters; data at ``self.data``, flags at ``self.flag``."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(64, **shape)
        self.data = self.memory.alloc(np.zeros(256, np.uint32), name="data")
        self.flag = self.memory.alloc(np.zeros(64, np.uint32), name="flags")

    def put(self, thread: int, cta: int, word: int = 0, how: How = PLAIN, flag: bool = False) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        store(self.lanes([thread], cta), "global", address, [np.ones(1, np.uint32)], np.uint32, how)

    def get(self, thread: int, cta: int, word: int = 0, how: How = PLAIN, flag: bool = False) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        load(self.lanes([thread], cta), "global", address, np.uint32, 1, how)

    def add(self, thread: int, cta: int, word: int = 0, how: How = RELAXED, flag: bool = True) -> None:
        address = np.array([(self.flag if flag else self.data) + 4 * word])
        one: Any = lambda old, lanes: old + np.uint32(1)  # noqa: E731
        update(self.lanes([thread], cta), "global", address, np.uint32, 1, lambda space: one, how)

    def fence(self, thread: int, cta: int, scope: str = "gpu", sem: str = "acq_rel") -> None:
        lanes = self.lanes([thread], cta)
        self.memory.fence(lanes, scope, sem)
        if scope != "cta":
            lanes.cta.cluster.clocks.fence_memory(lanes.threads + lanes.cta.first_agent)


@pytest.fixture
def two() -> Global:
    return Global(clusters=2)


def races(bench: Bench) -> int:
    assert set(bench.found) <= {"global race"}
    return sum(finding.count for finding in bench.launch.report.findings)


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


# ------------------------------------------------------------------------------------------ between CTAs


def test_unsynchronised(two: Global) -> None:
    two.put(0, 0)
    two.get(0, 1)
    two.put(0, 1)
    assert races(two) == 2


def test_no_hardware_barrier_orders_ctas(two: Global) -> None:
    two.put(0, 0)
    two.barrier(0)
    two.barrier(1)
    two.get(0, 1)
    assert races(two) == 1


WRITER = {
    "release": [("put", RELEASE)],
    "fence and strong store": [("fence", "gpu"), ("put", RELAXED)],
    "releasing fence and strong store": [("fence", "gpu", "release"), ("put", RELAXED)],
    "system fence and volatile store": [("fence", "sys"), ("put", VOLATILE)],
    "fence and atomic": [("fence", "gpu"), ("add", RELAXED)],
    "releasing atomic": [("add", BOTH)],
}
READER = {
    "acquire": [("get", ACQUIRE)],
    "strong load and fence": [("get", RELAXED), ("fence", "gpu")],
    "strong load and acquiring fence": [("get", RELAXED), ("fence", "gpu", "acquire")],
    "volatile load and fence": [("get", VOLATILE), ("fence", "gpu")],
    "atomic and fence": [("add", RELAXED), ("fence", "gpu")],
    "acquiring atomic": [("add", BOTH)],
}
BAD_WRITER = {
    "weak store": [("fence", "gpu"), ("put", PLAIN)],
    "no fence": [("put", RELAXED)],
    "fence after the store": [("put", RELAXED), ("fence", "gpu")],
    "fence of the CTA": [("fence", "cta"), ("put", RELAXED)],
    "acquiring fence": [("fence", "gpu", "acquire"), ("put", RELAXED)],
    "fence of the cluster": [("fence", "cluster"), ("put", RELAXED)],
    "release to the CTA": [("put", How(SCOPES["cta"], release=True))],
    "release to the cluster": [("add", How(SCOPES["cluster"], acquire=True, release=True))],
    "acquire only": [("add", ACQUIRE)],
}
BAD_READER = {
    "weak load": [("get", PLAIN), ("fence", "gpu")],
    "no fence": [("get", RELAXED)],
    "releasing fence": [("get", RELAXED), ("fence", "gpu", "release")],
    "red and fence": [("add", replace(RELAXED, reads=False)), ("fence", "gpu")],
    "fence before the load": [("fence", "gpu"), ("get", RELAXED)],
    "fence of the CTA": [("get", RELAXED), ("fence", "cta")],
    "acquire in the CTA": [("get", How(SCOPES["cta"], acquire=True))],
    "release only": [("add", RELEASE)],
}


def message(bench: Global, writer: Any, reader: Any) -> int:
    """Data, flag, flag, data; how many races there are on the data."""
    bench.put(0, 0)
    for steps, cta in ((writer, 0), (reader, 1)):
        for verb, *how in steps:
            if verb == "fence":
                bench.fence(0, cta, *how)
            else:
                getattr(bench, verb)(0, cta, how=how[0], flag=True)
    before = races(bench)
    bench.get(0, 1)
    return races(bench) - before


@pytest.mark.parametrize("writer", WRITER)
@pytest.mark.parametrize("reader", READER)
def test_message_passing(two: Global, writer: str, reader: str) -> None:
    assert message(two, WRITER[writer], READER[reader]) == 0 and races(two) == 0


@pytest.mark.parametrize("writer", BAD_WRITER)
def test_writer_that_does_not_publish(two: Global, writer: str) -> None:
    assert message(two, BAD_WRITER[writer], READER["acquire"]) == 1


@pytest.mark.parametrize("reader", BAD_READER)
def test_reader_that_does_not_acquire(two: Global, reader: str) -> None:
    assert message(two, WRITER["release"], BAD_READER[reader]) == 1


def test_another_location_tells_nothing(two: Global) -> None:
    two.put(0, 0)
    two.put(0, 0, 5, RELEASE, flag=True)
    two.get(0, 1, 6, ACQUIRE, flag=True)
    two.get(0, 1)
    assert races(two) == 1


def test_neighbouring_flags_do_not_disturb(two: Global) -> None:
    two.put(0, 0)
    two.put(0, 0, 5, RELEASE, flag=True)
    two.put(9, 1, 4, flag=True)
    two.put(9, 1, 6, flag=True)
    two.get(0, 1, 5, ACQUIRE, flag=True)
    two.get(0, 1)
    assert races(two) == 0


def test_a_store_in_between_breaks_the_chain() -> None:
    """The value read is then not the one that was released (PTX ISA 8.9.2: observation)."""
    three = Global(clusters=3)
    three.put(0, 0)
    three.put(0, 0, how=RELEASE, flag=True)
    three.put(0, 2, how=RELAXED, flag=True)
    three.get(0, 1, how=ACQUIRE, flag=True)
    three.get(0, 1)
    assert races(three) == 1


def test_atomics_in_between_do_not_break_the_chain() -> None:
    three = Global(clusters=3)
    three.put(0, 0)
    three.put(0, 0, how=RELEASE, flag=True)
    three.add(0, 2)
    three.get(0, 1, how=ACQUIRE, flag=True)
    three.get(0, 1)
    assert races(three) == 0
    three.get(0, 2)  # a relaxed atomic alone acquires nothing
    assert races(three) == 1


def test_writes_after_the_release_are_not_published(two: Global) -> None:
    two.put(0, 0)
    two.put(0, 0, how=RELEASE, flag=True)
    two.put(0, 0, word=1)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(0, 1, word=0)
    assert races(two) == 0
    two.get(0, 1, word=1)
    assert races(two) == 1


def test_writes_after_the_fence_are_not_published(two: Global) -> None:
    two.fence(0, 0)
    two.put(0, 0)
    two.put(0, 0, how=RELAXED, flag=True)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(0, 1)
    assert races(two) == 1


def test_other_threads_writes_need_a_barrier_before_the_release(two: Global) -> None:
    two.put(1, 0, word=1)
    two.barrier(0)
    two.put(2, 0, word=2)
    two.put(0, 0, how=RELEASE, flag=True)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(0, 1, word=1)
    assert races(two) == 0
    two.get(0, 1, word=2)
    assert races(two) == 1


def test_a_barrier_between_fence_and_atomic_does_not_extend_the_fence(two: Global) -> None:
    """__threadfence by all, __syncthreads, atomic by one: the one has to fence again (PTX ISA 8.8)."""
    two.put(1, 0)
    two.fence(0, 0)
    two.barrier(0)
    two.add(0, 0)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(0, 1)
    assert races(two) == 1


def test_other_threads_need_a_barrier_after_the_acquire(two: Global) -> None:
    two.put(0, 0)
    two.put(0, 0, how=RELEASE, flag=True)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(5, 1)
    assert races(two) == 1
    two.barrier(1)
    two.get(5, 1)
    assert races(two) == 1


def test_knowledge_is_passed_on() -> None:
    """CTA 0 tells CTA 1, which tells CTA 2."""
    three = Global(clusters=3)
    three.put(0, 0)
    three.put(0, 0, 0, RELEASE, flag=True)
    three.get(0, 1, 0, ACQUIRE, flag=True)
    three.put(0, 1, 1, RELEASE, flag=True)
    three.get(0, 2, 1, ACQUIRE, flag=True)
    three.get(0, 2)
    assert races(three) == 0


def test_only_what_the_thread_itself_knows_is_passed_on() -> None:
    """Thread 5 of CTA 1 releases what thread 0 acquired, with no barrier between the two."""
    for barrier in (True, False):
        three = Global(clusters=3)
        three.put(0, 0)
        three.put(0, 0, 0, RELEASE, flag=True)
        three.get(0, 1, 0, ACQUIRE, flag=True)
        if barrier:
            three.barrier(1)
        three.put(5, 1, 1, RELEASE, flag=True)
        three.get(0, 2, 1, ACQUIRE, flag=True)
        three.get(0, 2)
        assert races(three) == (not barrier)


def test_threads_of_one_cta_publish_at_one_place(two: Global) -> None:
    for thread in (0, 9):
        two.put(thread, 0, word=thread)
        two.add(thread, 0, how=RELEASE)
    two.get(0, 1, how=ACQUIRE, flag=True)
    for thread in (0, 9):
        two.get(0, 1, word=thread)
    assert races(two) == 0


def test_a_counter_collects_from_all() -> None:
    """The last of many to arrive at an atomic counter may read what all wrote: split-K."""
    many = Global(clusters=5)
    for cta in range(5):
        many.put(3, cta, word=cta)
        many.barrier(cta)
        many.fence(0, cta)
        many.add(0, cta)
    many.fence(0, 4)
    many.barrier(4)
    for cta in range(5):
        many.get(7, 4, word=cta)
    assert races(many) == 0
    many.get(7, 3, word=4)
    assert races(many) == 1


def test_ordered_writes_to_one_place(two: Global) -> None:
    """A semaphore passes an output tile from CTA to CTA."""
    two.put(0, 0)
    two.put(0, 0, how=RELEASE, flag=True)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.put(0, 1)
    assert races(two) == 0


def test_flags_order_threads_of_one_cta_too() -> None:
    bench = Global()
    bench.put(0, 0)
    store(bench.lanes([0]), "shared", np.array([0]), [np.ones(1, np.uint32)], np.uint32)
    bench.put(0, 0, how=How(SCOPES["cta"], release=True), flag=True)
    bench.get(40, 0, how=How(SCOPES["cta"], acquire=True), flag=True)
    bench.get(40, 0)
    load(bench.lanes([40]), "shared", np.array([0]), np.uint32)
    assert bench.found == []


def test_a_wide_fence_and_a_flag_of_the_cta() -> None:
    bench = Global()
    bench.put(0, 0)
    bench.fence(0, 0)
    bench.put(0, 0, how=How(SCOPES["cta"]), flag=True)
    bench.get(40, 0, how=How(SCOPES["cta"], acquire=True), flag=True)
    bench.get(40, 0)
    assert races(bench) == 0


def test_fence_level_of_the_cta_leaves_a_wider_fence_alone(two: Global) -> None:
    two.put(0, 0)
    two.fence(0, 0)
    two.fence(0, 0, "cta")
    two.add(0, 0)
    two.get(0, 1, how=ACQUIRE, flag=True)
    two.get(0, 1)
    assert races(two) == 0


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
