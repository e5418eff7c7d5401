"""Bulk copies into shared memory, of the own CTA and of others (PTX ISA 9.0, 9.7.9.25.4), and what is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.emulator.bulk_bench import BAR, LOAD, POLICIES, Case, at, load, u32

# Loads


@POLICIES
def test_a_load_arrives_and_completes_on_its_mbarrier(policy: str) -> None:
    case = Case(policy)
    case.expect(512)
    load(case, 1024, 32, 256)
    load(case, 2048, 512, 256, name="cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes")
    assert case.done() == (policy == "early")
    case.finish()
    assert case.done()
    assert (case.shared(1024, 256) == case.bytes[32:288]).all() and (
        case.shared(2048, 256) == case.bytes[512:768]
    ).all()
    case.read(40, 1024)
    case.leave()
    assert case.found == []


@POLICIES
def test_data_may_only_be_read_after_the_wait(policy: str) -> None:
    case = Case(policy)
    case.expect(256)
    load(case, 1024, 0, 256)
    case.finish()
    case.read(40, 1024)
    assert case.found == ["shared race"]
    assert "mbarrier.try_wait" in case.only().fix
    case = Case(policy)
    case.expect(256)
    load(case, 1024, 0, 256)
    case.finish()
    assert case.done(40)
    case.read(41, 1024)  # another thread than the one that waited
    assert case.found == ["shared race"]


def test_a_phase_that_ends_too_early_releases_no_copy_that_is_in_flight() -> None:
    """Two loads, the bytes of one expected: the second one to be issued happens to be first."""
    case = Case("late", count=2)
    case.run("mbarrier.arrive.expect_tx.shared::cta.b64", at(BAR), u32(256), threads=0)
    load(case, 1024, 0, 256)
    load(case, 2048, 0, 256)
    case.cta.cluster.engine.complete(1)
    case.run("mbarrier.arrive.shared::cta.b64", at(BAR), threads=1)
    assert case.done(40)
    case.read(40, 1024)
    assert "shared race" in case.found and "copy never waited for" not in case.found
    case.leave()
    assert case.found[-1] == "copy never waited for"


def test_in_flight_the_destination_is_poison() -> None:
    case = Case("late")
    case.put(1024, np.zeros(256, np.uint8))
    load(case, 1024, 0, 256)
    assert (case.shared(1024, 256) == 0xFF).all()


def test_releasing_a_stage_before_it_was_read_is_a_race() -> None:
    case = Case("late")
    case.put(1024, np.zeros(256, np.uint8))
    case.everyone()
    case.read(40, 1024)
    load(case, 1024, 0, 256)
    assert case.only().kind == "shared race"


def test_generic_writes_need_a_proxy_fence_before_a_load_overwrites_them() -> None:
    case = Case("late")
    case.write(0, 1024)
    load(case, 1024, 0, 256)
    assert case.only().kind == "missing proxy fence"


def test_the_initialisation_needs_a_fence_before_a_copy_completes_on_the_object() -> None:
    case = Case("late", fenced=False)
    load(case, 1024, 0, 256)
    assert case.only().kind == "missing proxy fence"


def test_an_unordered_initialisation_is_a_race() -> None:
    bench = Case("late")
    bench.run("mbarrier.init.shared::cta.b64", at(BAR + 8), u32(1), threads=0)
    bench.cta.cluster.clocks.fence_inits(np.array([0]))
    load(bench, 1024, 0, 256, thread=33, bar=BAR + 8)
    assert bench.only().kind == "shared race"


@POLICIES
def test_a_load_that_nobody_waits_for_is_reported(policy: str) -> None:
    case = Case(policy)
    case.expect(256)
    load(case, 1024, 0, 256)
    case.leave()
    assert case.only().kind == "copy never waited for"
    case.finish()


def test_an_object_must_not_be_invalidated_with_copies_in_flight() -> None:
    case = Case("late")
    load(case, 1024, 0, 256)
    case.run("mbarrier.inval.shared::cta.b64", at(BAR), threads=0)
    case.finish()
    assert "copy never waited for" in case.found and "mbarrier not initialised" in case.found


def test_a_copy_does_not_complete_on_an_object_that_took_the_place_of_its_own() -> None:
    case = Case("late")
    case.expect(256)
    load(case, 1024, 0, 256)
    case.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=0)
    case.finish()
    assert case.found[-1] == "mbarrier not initialised" and not case.done(0)


@pytest.mark.parametrize(
    ("to", "start", "nbytes", "kind"),
    [
        (1024, 0, 24, "invalid operand"),
        (1024, 0, 0, "invalid operand"),
        (1032, 0, 32, "misaligned address"),
        (1024, 8, 32, "misaligned address"),
        (24576 - 16, 0, 32, "out of bounds"),
        (1024, 8192 - 16, 32, "out of bounds"),
    ],
)
def test_sizes_and_addresses_of_loads(to: int, start: int, nbytes: int, kind: str) -> None:
    case = Case("early")
    load(case, to, start, nbytes)
    assert case.only().kind == kind


def test_an_uninitialised_source_is_reported() -> None:
    case = Case("early")
    case.run(LOAD, at(0), at(case.out), u32(16), at(BAR), threads=0)
    assert case.only().kind == "uninitialised read"


def test_every_thread_issues_a_copy_of_its_own() -> None:
    """The classic error: a whole warp executes the load of one thread."""
    case = Case("early")
    lanes = np.arange(4)
    case.run(LOAD, np.full(4, 1024), np.full(4, case.src), np.full(4, 64, np.uint32), np.full(4, BAR), threads=lanes)
    assert case.only().kind == "shared race"


@POLICIES
def test_multicast_writes_and_signals_each_cta_of_the_mask(policy: str) -> None:
    case = Case(policy, ctas=4, threads=32)
    for cta in range(4):
        case.expect(128, cta)
    name = f"{LOAD}.multicast::cluster"
    case.run(name, at(1024), at(case.src), u32(128), at(BAR), np.array([0b1011], np.uint16), threads=0, cta=1)
    case.finish()
    assert [case.done(5, cta=cta) for cta in range(4)] == [True, True, False, True]
    for cta in (0, 1, 3):
        assert (case.shared(1024, 128, cta) == case.bytes[:128]).all()
        case.read(5, 1024, cta)
    assert (case.shared(1024, 128, 2) == 0xFF).all() and case.found == []


def test_a_mask_beyond_the_cluster_is_reported() -> None:
    case = Case("early", ctas=2)
    name = f"{LOAD}.multicast::cluster.L2::cache_hint"
    policy = np.zeros(1, np.uint64)
    case.run(name, at(1024), at(case.src), u32(128), at(BAR), np.array([5], np.uint16), policy, threads=0)
    assert case.only().kind == "invalid operand"


def test_a_load_into_an_exited_cta_is_reported() -> None:
    case = Case("late", ctas=2)
    case.leave(1)
    name = f"{LOAD}.multicast::cluster"
    case.run(name, at(1024), at(case.src), u32(128), at(BAR), np.array([3], np.uint16), threads=0)
    assert case.only().kind == "shared memory of an exited CTA"


def test_the_mbarrier_is_in_the_cta_that_is_written() -> None:
    case = Case("early", ctas=2)
    load(case, 2 << 24 | 1024, 0, 64)
    assert case.only().kind == "invalid operand"
    case = Case("early", ctas=2)
    load(case, 2 << 24 | 1024, 0, 64, name="cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes")
    assert case.only().kind == "wrong address space"


# Shared memory to shared memory

PEER = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"


def to_peer(case: Case, name: str = PEER, rank: int = 1, nbytes: int = 64) -> None:
    there = (rank + 1) << 24
    case.run(name, at(there | 2048), at(1024), u32(nbytes), at(there | BAR), threads=0)


@POLICIES
def test_a_copy_to_another_cta(policy: str) -> None:
    case = Case(policy, ctas=2)
    case.put(1024, case.bytes[:64])
    case.expect(64, cta=1)
    to_peer(case)
    case.finish()
    assert case.done(9, cta=1) and (case.shared(2048, 64, 1) == case.bytes[:64]).all()
    case.read(9, 2048, cta=1)
    assert case.found == []
    case.write(0, 1024)  # the source is still in use, as far as this thread knows
    assert case.only().kind == "shared race"


def test_such_a_copy_goes_to_another_cta_only() -> None:
    case = Case("early", ctas=2)
    case.put(1024, case.bytes[:64])
    to_peer(case, rank=0)
    assert case.only().kind == "invalid operand"


@pytest.mark.parametrize(
    ("operation", "kind", "expected"),
    [
        ("add", "u32", lambda a, b: (a + b) % 2**32),
        ("add", "u64", lambda a, b: (a + b) % 2**64),
        ("min", "s32", lambda a, b: min(a, b)),
        ("max", "u32", lambda a, b: max(a, b)),
        ("inc", "u32", lambda a, b: 0 if a >= b else a + 1),
        ("dec", "u32", lambda a, b: b if a == 0 or a > b else a - 1),
        ("xor", "b32", lambda a, b: a ^ b),
    ],
)
def test_reductions_into_another_cta(operation: str, kind: str, expected: Any) -> None:
    case = Case("late", ctas=2)
    dtype = np.dtype({"b": "u", "u": "u", "s": "i"}[kind[0]] + str(int(kind[1:]) // 8))
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 64)).astype(np.uint8)
    a[:16], b[32:48] = 0, 0
    case.put(1024, b)
    case.put(2048, a, thread=3, cta=1)
    case.everyone()
    case.expect(64, cta=1)
    to_peer(case, f"cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.{operation}.{kind}")
    case.finish()
    assert case.done(9, cta=1) and case.found == []
    want = [expected(int(x), int(y)) for x, y in zip(a.view(dtype), b.view(dtype), strict=True)]
    assert case.shared(2048, 64, 1).view(dtype).tolist() == want
