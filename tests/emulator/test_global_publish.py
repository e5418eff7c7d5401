"""Ordering between CTAs: every way to publish and to acquire, and each with a part missing (PTX ISA 8.8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.global_order import PLAIN, SCOPES, How
from gpulinear.emulator.memory import load, store
from tests.emulator.global_bench import ACQUIRE, BOTH, RELAXED, RELEASE, VOLATILE, Global, races


@pytest.fixture
def two() -> Global:
    return Global(clusters=2)


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
