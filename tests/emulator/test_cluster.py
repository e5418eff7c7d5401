"""Addresses in a cluster, st.async and red.async (PTX ISA 9.0: 9.7.9.12, 9.7.9.23, 9.7.9.24, 9.7.13.7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator import GlobalMemory, run
from gpulinear.emulator.spaces import PARAM_BASE, SHARED_BASE
from tests.emulator.fakes import Bench

BAR = 2048
POLICIES = pytest.mark.parametrize("policy", ["late", "early"])


def at(*addresses: int) -> Any:
    return np.array(addresses, np.int64)


def u32(*values: int) -> Any:
    return np.array(values, np.uint32)


def there(rank: int, offset: int) -> int:
    return (rank + 1) << 24 | offset


@pytest.mark.parametrize(
    ("name", "base", "dtype"),
    [
        ("mapa.shared::cluster.u32", 0, np.uint32),
        ("mapa.shared::cluster.u64", 0, np.uint64),
        ("mapa.u64", SHARED_BASE, np.uint64),
    ],
)
def test_mapa_gives_the_same_place_in_another_cta(name: str, base: int, dtype: Any) -> None:
    bench = Bench(threads=32, ctas=4)
    addresses = np.array([64, 64, there(2, 128)], np.int64)
    got = bench.run(name, (addresses + base).astype(dtype), u32(0, 3, 1), threads=[0, 1, 2])
    assert got.dtype == dtype
    assert got.astype(np.int64).tolist() == [base + a for a in (there(0, 64), there(3, 64), there(1, 128))]
    ranks = bench.run(name.replace("mapa", "getctarank"), got, threads=[0, 1, 2], cta=2)
    assert ranks.dtype == np.uint32 and ranks.tolist() == [0, 3, 1] and bench.found == []


def test_a_plain_address_is_in_the_executing_cta() -> None:
    bench = Bench(threads=32, ctas=4)
    assert bench.run("getctarank.shared::cluster.u32", u32(64), threads=0, cta=3).tolist() == [3]
    assert bench.run("getctarank.u64", np.array([SHARED_BASE + 64], np.uint64), threads=0, cta=3).tolist() == [3]


def test_mapa_needs_a_rank_of_the_cluster_and_shared_memory() -> None:
    bench = Bench(threads=32, ctas=2)
    bench.run("mapa.shared::cluster.u32", u32(64), u32(2), threads=0)
    assert bench.only().kind == "invalid operand"
    bench = Bench(threads=32, ctas=2)
    bench.run("mapa.u64", np.array([PARAM_BASE + 64], np.uint64), u32(1), threads=0)
    assert bench.only().kind == "wrong address space"


class Pair(Bench):
    """A cluster of two CTAs; the second one has an mbarrier at BAR with a count of 1, known to all."""

    def __init__(self, policy: str = "late") -> None:
        super().__init__(threads=64, ctas=2, proxies=True)
        self.cta.cluster.engine.policy = policy
        self.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=0, cta=1)
        self.everyone()

    def everyone(self) -> None:
        self.cta.cluster.clocks.barrier(np.arange(128))

    def expect(self, nbytes: int) -> None:
        self.run("mbarrier.arrive.expect_tx.shared::cta.b64", at(BAR), u32(nbytes), threads=0, cta=1)

    def done(self) -> bool:
        name = "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64"
        return bool(self.run(name, at(BAR), u32(0), threads=40, cta=1)[0])

    def read(self, thread: int, offset: int) -> Any:
        return self.run("ld.shared.u32", at(offset), None, threads=thread, cta=1)[0]


@POLICIES
def test_st_async_stores_and_signals(policy: str) -> None:
    case = Pair(policy)
    case.expect(4 + 32 + 8)
    bars = at(there(1, BAR), there(1, BAR))
    case.run(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32", at(there(1, 64)), [u32(77)], bars[:1], threads=5
    )
    vector = [u32(1, 5), u32(2, 6), u32(3, 7), u32(4, 8)]
    name = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
    case.run(name, at(there(1, 128), there(1, 144)), vector, bars, threads=[6, 7])
    generic = at(SHARED_BASE + there(1, 256)), [np.array([9], np.uint64)], at(SHARED_BASE + there(1, BAR))
    case.run("st.async.weak.mbarrier::complete_tx::bytes.u64", *generic, threads=8)
    assert case.done() == (policy == "early")
    case.cta.cluster.engine.drain()
    assert case.done()
    words = case.ctas[1].shared.bytes.view(np.uint32)
    assert words[16] == 77 and words[32:40].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and words[64:66].tolist() == [9, 0]
    case.read(40, 64)
    assert case.found == []
    case.read(41, 64)
    assert case.only().kind == "shared race"


@POLICIES
@pytest.mark.parametrize(
    ("operation", "operand", "want"),
    [
        ("add.u32", u32(2**32 - 1), 9),
        ("add.s32", np.array([-3], np.int32), 7),
        ("min.u32", u32(3), 3),
        ("max.s32", np.array([-3], np.int32), 10),
        ("inc.u32", u32(9), 0),
        ("inc.u32", u32(11), 11),
        ("dec.u32", u32(20), 9),
        ("dec.u32", u32(4), 4),
        ("and.b32", u32(6), 2),
        ("or.b32", u32(5), 15),
        ("xor.b32", u32(3), 9),
    ],
)
def test_red_async_reduces_and_signals(policy: str, operation: str, operand: Any, want: int) -> None:
    case = Pair(policy)
    case.run("st.shared.u32", at(64), [u32(10)], None, threads=0, cta=1)
    case.everyone()
    case.expect(4)
    name = f"red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.{operation}"
    case.run(name, at(there(1, 64)), operand, at(there(1, BAR)), threads=5)
    case.cta.cluster.engine.drain()
    assert case.done() and case.read(40, 64).tolist() == [want] and case.found == []


def test_several_threads_may_reduce_into_one_place() -> None:
    case = Pair("late")
    case.run("st.shared.u32", at(64), [u32(10)], None, threads=0, cta=1)
    case.everyone()
    case.expect(16)
    name = "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32"
    lanes = np.arange(4)
    case.run(name, np.full(4, there(1, 64)), u32(1, 2, 3, 4), np.full(4, there(1, BAR)), threads=lanes)
    case.cta.cluster.engine.drain()
    assert case.done() and case.read(40, 64).tolist() == [20] and case.found == []


STORE = "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32"


@pytest.mark.parametrize(
    ("to", "barrier", "kind"),
    [
        (there(0, 64), there(0, BAR), "invalid operand"),  # its own CTA
        (64, BAR, "invalid operand"),
        (there(1, 64), there(0, BAR), "invalid operand"),  # two CTAs
        (there(1, 66), there(1, BAR), "misaligned address"),
        (there(1, 4096), there(1, BAR), "out of bounds"),
        (there(2, 64), there(1, BAR), "wrong address space"),
        (there(1, 64), there(1, BAR + 8), "mbarrier not initialised"),
    ],
)
def test_destinations_of_st_async(to: int, barrier: int, kind: str) -> None:
    case = Pair("early")
    case.run("mbarrier.init.shared::cta.b64", at(BAR), u32(1), threads=5)
    case.everyone()
    case.run(STORE, at(to), [u32(1)], at(barrier), threads=5)
    assert case.only().kind == kind


def test_a_store_over_what_the_other_cta_reads_is_a_race() -> None:
    case = Pair("early")
    case.run("st.shared.u32", at(64), [u32(10)], None, threads=0, cta=1)
    case.everyone()
    case.read(3, 64)
    case.run(STORE, at(there(1, 64)), [u32(1)], at(there(1, BAR)), threads=5)
    assert case.only().kind == "shared race"


@POLICIES
def test_an_exited_cta_cannot_be_written(policy: str) -> None:
    case = Pair(policy)
    case.run(STORE, at(there(1, 64)), [u32(1)], at(there(1, BAR)), threads=5)
    case.ctas[1].live[:] = False
    case.ctas[1].exit()
    assert case.only().kind == "copy never waited for"
    before = case.ctas[1].shared.bytes.copy()
    case.cta.cluster.engine.drain()
    assert (case.ctas[1].shared.bytes == before).all()
    case.run(STORE, at(there(1, 64)), [u32(1)], at(there(1, BAR)), threads=6)
    assert case.found[-1] == "shared memory of an exited CTA"


# A whole kernel: the threads of CTA 1 store into CTA 0, which waits for them on its mbarrier.
KERNEL = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out) .reqnctapercluster 2, 1, 1
{
    .reg .pred %p<8>;
    .reg .b32 %r<16>;
    .reg .b64 %d<8>;
    .shared .align 4 .b8 words[128];
    .shared .align 8 .b64 bar;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %cluster_ctarank;
    mov.u32 %r3, words;
    mad.lo.s32 %r4, %r1, 4, %r3;
    mov.u32 %r5, bar;
    or.b32 %r6, %r1, %r2;
    setp.ne.u32 %p1, %r6, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r5], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 128;
READY:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    setp.eq.u32 %p2, %r2, 0;
    @%p2 bra OWNER;
    mapa.shared::cluster.u32 %r7, %r4, 0;
    mapa.shared::cluster.u32 %r8, %r5, 0;
    mad.lo.s32 %r9, %r1, 3, 1;
    st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r7], %r9, [%r8];
    ret;
OWNER:
WAIT:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r5], 0;
    @!%p3 bra WAIT;
    ld.shared.u32 %r10, [%r4];
    ld.param.u64 %d1, [out];
    mul.wide.u32 %d2, %r1, 4;
    add.s64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r10;
    ret;
}
"""


@pytest.mark.parametrize(("schedule", "seed"), [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1)])
def test_a_cluster_stores_across_its_ctas(schedule: str, seed: int) -> None:
    memory = GlobalMemory()
    out = memory.alloc(128, initialised=False)
    result = run(KERNEL, None, 2, 32, 0, [out], memory=memory, schedule=schedule, seed=seed)
    assert memory.view(out, 128).view(np.uint32).tolist() == [3 * t + 1 for t in range(32)]
    assert result.report.findings == []


@pytest.mark.parametrize("schedule", ["lockstep", "warps", "random"])
def test_a_cta_that_does_not_wait_for_its_peers_is_found(schedule: str) -> None:
    """Depending on the schedule it exits before the stores are issued, or with them in flight."""
    text = KERNEL.replace("@!%p3 bra WAIT;", "bra END;").replace("    ret;\n}", "END:\n    ret;\n}")
    text = text.replace("mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r5], 0;", "")
    memory = GlobalMemory()
    result = run(text, None, 2, 32, 0, [memory.alloc(128)], memory=memory, schedule=schedule)
    kinds = {finding.kind for finding in result.report.findings}
    assert kinds and kinds <= {"copy never waited for", "shared memory of an exited CTA"}
