"""Bulk stores and reductions into global memory, bulk groups (PTX ISA 9.0, 9.7.9.25.4 and 9.7.9.25.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.emulator.bulk_bench import POLICIES, STORE, Case, at, commit, u32, wait


def store(
    case: Case, offset: int = 1024, start: int = 0, nbytes: int = 256, name: str = STORE, thread: int = 0
) -> None:
    case.run(name, at(case.out + start), at(offset), u32(nbytes), threads=thread)


@POLICIES
def test_a_store_is_complete_after_its_wait(policy: str) -> None:
    case = Case(policy)
    case.put(1024, case.bytes[:256])
    store(case)
    commit(case)
    wait(case)
    assert (case.result(256) == case.bytes[:256]).all()
    case.write(0, 1024)
    case.leave()
    assert case.found == []


@POLICIES
def test_after_wait_group_read_the_source_may_be_overwritten(policy: str) -> None:
    case = Case(policy)
    case.put(1024, case.bytes[:256])
    store(case)
    commit(case)
    case_before = Case(policy)
    case_before.put(1024, case.bytes[:256])
    store(case_before)
    commit(case_before)
    case_before.write(0, 1024)
    assert case_before.only().kind == "shared race" and "wait_group.read" in case_before.only().fix
    wait(case, 0, ".read")
    case.write(0, 1024)
    case.leave()
    case.finish()
    assert (case.result(256) == case.bytes[:256]).all() and case.found == []


def test_the_reads_of_a_late_store_see_what_was_overwritten() -> None:
    case = Case("late")
    case.put(1024, case.bytes[:256])
    store(case)
    case.put(1024, np.zeros(16, np.uint8))
    case.finish()
    assert not case.result(16).any() and (case.result(240, 16) == case.bytes[16:256]).all()


def test_wait_group_read_says_nothing_of_the_writes() -> None:
    case = Case("early")
    case.put(1024, case.bytes[:256])
    store(case)
    commit(case)
    wait(case, 0, ".read")
    case.run("ld.global.u32", at(case.out), None, threads=0)
    assert case.only().kind == "global race"
    case = Case("early")
    case.put(1024, case.bytes[:256])
    store(case)
    commit(case)
    wait(case)
    case.run("ld.global.u32", at(case.out), None, threads=0)
    assert case.found == []


def test_wait_group_leaves_the_recent_groups_in_flight() -> None:
    case = Case("late")
    case.put(1024, case.bytes[:256])
    for start in (0, 256, 512):
        store(case, 1024, start)
        commit(case)
    store(case, 1024, 768)
    wait(case, 2)
    assert (case.result(256) == case.bytes[:256]).all() and (case.result(256, 256) == 0xFF).all()
    wait(case, 1, ".read")
    assert (case.result(256, 256) == 0xFF).all()
    wait(case, 0)
    assert (case.result(768) == np.tile(case.bytes[:256], 3)).all() and (case.result(256, 768) == 0xFF).all()


def test_empty_groups_count_after_the_first_store() -> None:
    case = Case("late")
    case.put(1024, case.bytes[:256])
    case.run("cp.async.bulk.commit_group")
    store(case)
    commit(case)
    wait(case, 1)
    assert (case.result(256) == 0xFF).all()
    case.run("cp.async.bulk.commit_group")
    case.run("cp.async.bulk.wait_group", 1)
    assert (case.result(256) == case.bytes[:256]).all() and case.found == []


def test_groups_belong_to_threads() -> None:
    case = Case("late")
    case.put(1024, case.bytes[:256])
    case.everyone()
    store(case)
    store(case, start=256, thread=40)
    commit(case)
    wait(case, thread=40)
    assert (case.result(512) == 0xFF).all()
    wait(case)
    assert (case.result(256) == case.bytes[:256]).all() and (case.result(256, 256) == 0xFF).all()


@POLICIES
@pytest.mark.parametrize("committed", [False, True])
def test_a_cta_must_not_exit_before_its_stores_have_read(policy: str, committed: bool) -> None:
    case = Case(policy)
    case.put(1024, case.bytes[:256])
    store(case)
    if committed:
        commit(case)
    else:
        wait(case, 0, ".read")
    case.leave()
    assert case.only().kind == "copy never waited for" and "wait_group.read" in case.only().fix


def test_generic_writes_need_a_proxy_fence_before_a_store_reads_them() -> None:
    case = Case("early")
    for i in range(0, 256, 4):
        case.write(0, 1024 + i)
    store(case)
    assert case.only().kind == "missing proxy fence"


def test_a_store_of_bytes_that_nobody_wrote_is_reported() -> None:
    case = Case("early")
    case.put(1024, case.bytes[:240])
    store(case)
    assert case.only().kind == "uninitialised read"


@pytest.mark.parametrize(
    ("offset", "start", "nbytes", "kind"),
    [
        (1024, 0, 40, "invalid operand"),
        (1032, 0, 32, "misaligned address"),
        (1024, 8, 32, "misaligned address"),
        (24576 - 16, 0, 32, "out of bounds"),
        (1024, 8192 - 16, 32, "out of bounds"),
    ],
)
def test_sizes_and_addresses_of_stores(offset: int, start: int, nbytes: int, kind: str) -> None:
    case = Case("early")
    case.put(1024, case.bytes[:256])
    store(case, offset, start, nbytes)
    assert case.only().kind == kind


def bits_of(kind: str, values: Any) -> Any:
    if kind == "bf16":
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    dtype = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "b": np.uint32}.get(kind)
    return np.array(values, dtype or np.dtype(("i" if kind[0] == "s" else "u") + str(int(kind[1:]) // 8)))


TINY = float(np.finfo(np.float32).smallest_subnormal)
REDUCTIONS = [
    ("add.u32", [2**32 - 1, 1, 2, 3], [1, 2, 3, 4], [0, 3, 5, 7]),
    ("add.u64", [2**64 - 1, 5], [2, 6], [1, 11]),
    ("add.f32", [1.5, 2.0**-126, TINY, -TINY], [2.25, -(2.0**-127), TINY, 0.0], [3.75, 2.0**-126, 0.0, 0.0]),
    ("add.f64", [1.0, 5e-324], [2.0**-53, 5e-324], [1.0, 1e-323]),
    ("add.noftz.f16", [1.0, 6e-8, 65504.0] + [0.0] * 5, [2.0**-11, 6e-8, 32.0] + [1.0] * 5, None),
    ("add.noftz.bf16", [1.0, 2.0**-133, 3.0] + [0.0] * 5, [2.0**-8, 2.0**-133, 4.0] + [1.0] * 5, None),
    ("min.f16", [1.0, -2.0, float("nan")] + [0.0] * 5, [0.5, 3.0, 4.0] + [1.0] * 5, None),
    ("max.bf16", [1.0, -2.0, float("nan")] + [0.0] * 5, [0.5, 3.0, 4.0] + [1.0] * 5, None),
    ("min.s32", [-5, 7, 0, 1], [3, -8, 0, 2], [-5, -8, 0, 1]),
    ("max.s64", [-5, 7], [3, -8], [3, 7]),
    ("inc.u32", [0, 7, 8, 9], [8, 7, 8, 8], [1, 0, 0, 0]),
    ("dec.u32", [0, 7, 9, 1], [8, 7, 8, 8], [8, 6, 8, 0]),
    ("and.b32", [0xFF00FF00, 1, 2, 3], [0x0FF00FF0, 1, 1, 6], [0x0F000F00, 1, 0, 2]),
    ("xor.b64", [2**63, 3], [2**63 + 1, 5], [1, 6]),
]


@pytest.mark.parametrize(("name", "old", "new", "want"), REDUCTIONS)
def test_reductions_into_global_memory(name: str, old: Any, new: Any, want: Any) -> None:
    kind = name.rpartition(".")[2]
    if want is None:  # sums and extremes of halves: exact in float64, then one rounding by NumPy or by the bits
        pick = {"add": lambda a, b: a + b, "min": np.fmin, "max": np.fmax}[name.partition(".")[0]]
        exact = pick(np.array(old), np.array(new))
        with np.errstate(over="ignore"):
            want = exact.astype(np.float16).astype(float) if kind == "f16" else bf16(exact)
    case = Case("late")
    case.put(1024, bits_of(kind, new).view(np.uint8))
    case.memory.fill(case.out, bits_of(kind, old))
    store(case, nbytes=16, name=f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{name}")
    commit(case)
    wait(case)
    expected = bits_of(kind, want)
    got = case.result(16).view(expected.dtype)
    assert got.tobytes() == expected.tobytes() and case.found == []


def test_ctas_may_reduce_into_the_same_bytes() -> None:
    """Each element is updated with .relaxed.gpu semantics; plain stores to the same bytes are a race."""
    for name, kinds in (("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32", []), (STORE, ["global race"])):
        case = Case("early", clusters=2)
        case.memory.fill(case.out, np.zeros(4, np.uint32))
        case.ctas[1].cluster.engine.policy = "early"
        for cta in range(2):
            case.put(1024, np.ones(4, np.uint32).view(np.uint8), cta=cta)
            case.run(name, at(case.out), at(1024), u32(16), threads=0, cta=cta)
        assert case.found == kinds
        assert case.result(16).view(np.uint32).tolist() == [2 if not kinds else 1] * 4


def bf16(values: Any) -> Any:
    """Round to nearest, ties to even, by the bits; exact inputs."""
    bits = np.array(values, np.float32).view(np.uint32).astype(np.int64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def test_prefetches_check_their_range() -> None:
    case = Case()
    case.run("cp.async.bulk.prefetch.L2.global", at(case.src), u32(64), threads=0)
    case.run(
        "cp.async.bulk.prefetch.L2.global.L2::cache_hint", at(case.src), u32(64), np.zeros(1, np.uint64), threads=0
    )
    assert case.found == []
    case.run("cp.async.bulk.prefetch.L2.global", at(case.src + 8192 - 16), u32(64), threads=0)
    assert case.only().kind == "out of bounds"
