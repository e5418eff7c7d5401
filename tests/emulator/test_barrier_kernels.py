"""Whole kernels with barriers, of warps, CTAs and clusters, under every schedule; deadlocks and their reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator import DeadlockError, GlobalMemory, Result, run

SCHEDULES = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1), ("random", 2)]


def kernel(body: str, cluster: str = "") -> str:
    return f"""
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out) {cluster}
{{
    .reg .pred %p<8>;
    .reg .b32 %r<32>;
    .reg .b64 %d<8>;
    .shared .align 16 .b8 buffer[1024];
    mov.u32 %r1, %tid.x;
    shr.u32 %r2, %r1, 5;
    mov.u32 %r3, buffer;
    shl.b32 %r4, %r1, 2;
    add.s32 %r5, %r3, %r4;
{body}
    ld.param.u64 %d1, [out];
    mov.u32 %r30, %ctaid.x;
    mov.u32 %r31, %ntid.x;
    mad.lo.s32 %r30, %r30, %r31, %r1;
    mul.wide.u32 %d2, %r30, 4;
    add.s64 %d1, %d1, %d2;
    st.global.u32 [%d1], %r9;
    ret;
}}
"""


def launch(text: str, block: int, schedule: str, seed: int, grid: int = 1) -> tuple[Any, Result]:
    memory = GlobalMemory()
    out = memory.alloc(4 * block * grid, initialised=False, name="out")
    result = run(text, None, grid, block, 0, [out], memory=memory, schedule=schedule, seed=seed, budget=100_000)
    return memory.view(out, 4 * block * grid).view(np.uint32).copy(), result


# Every thread reads what the thread 17 further wrote.
READ_FROM_OTHER = """
    add.s32 %r6, %r1, 17;
    rem.u32 %r6, %r6, 96;
    shl.b32 %r6, %r6, 2;
    add.s32 %r6, %r3, %r6;
    ld.shared.u32 %r9, [%r6];
"""


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.cta.sync 5, 96;", ""])
def test_exchange_through_shared_memory(barrier: str, schedule: str, seed: int) -> None:
    got, result = launch(kernel("st.shared.u32 [%r5], %r1;" + barrier + READ_FROM_OTHER), 96, schedule, seed)
    if barrier:
        assert got.tolist() == [(t + 17) % 96 for t in range(96)] and not result.report.findings
    else:
        assert "shared race" in [f.kind for f in result.report.findings]


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_producer_and_consumers_by_arrive(schedule: str, seed: int) -> None:
    """Warp 0 writes, warps 1 and 2 read, three rounds, with a barrier for full and one for empty."""
    body = """
    and.b32 %r7, %r4, 127;
    add.s32 %r7, %r3, %r7;
    mov.u32 %r8, 0;
    mov.u32 %r9, 0;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra CONSUME;
PRODUCE:
    mad.lo.u32 %r10, %r8, 100, %r1;
    st.shared.u32 [%r7], %r10;
    bar.arrive 1, 96;
    bar.sync 2, 96;
    add.s32 %r8, %r8, 1;
    setp.lt.u32 %p2, %r8, 3;
    @%p2 bra PRODUCE;
    bra DONE;
CONSUME:
    bar.sync 1, 96;
    ld.shared.u32 %r10, [%r7];
    add.s32 %r9, %r9, %r10;
    bar.arrive 2, 96;
    add.s32 %r8, %r8, 1;
    setp.lt.u32 %p2, %r8, 3;
    @%p2 bra CONSUME;
DONE:
"""
    got, result = launch(kernel(body), 96, schedule, seed)
    assert got.tolist() == [0] * 32 + [300 + 3 * lane for lane in range(32)] * 2 and not result.report.findings
    with pytest.raises(DeadlockError):
        launch(kernel(body.replace("bar.sync 2, 96;", "bar.arrive 3, 96;")), 96, schedule, seed)


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_two_groups_with_their_barrier_numbers_in_a_register(schedule: str, seed: int) -> None:
    body = """
    add.s32 %r20, %r2, 1;
    and.b32 %r20, %r20, 1;
    add.s32 %r20, %r20, 3;
    st.shared.u32 [%r5], %r1;
    bar.sync %r20, 64;
    xor.b32 %r6, %r4, 256;
    add.s32 %r6, %r3, %r6;
    ld.shared.u32 %r9, [%r6];
"""
    got, result = launch(kernel(body), 128, schedule, seed)
    assert got.tolist() == [t ^ 64 for t in range(128)] and not result.report.findings


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_reduction_over_the_cta(schedule: str, seed: int) -> None:
    got, result = launch(kernel("setp.lt.u32 %p1, %r1, 41;\n bar.red.popc.u32 %r9, 0, %p1;"), 96, schedule, seed)
    assert got.tolist() == [41] * 96 and not result.report.findings
    text = "setp.lt.u32 %p1, %r1, 41;\n bar.red.or.pred %p2, 0, 96, !%p1;\n selp.u32 %r9, 1, 0, %p2;"
    assert launch(kernel(text), 96, schedule, seed)[0].tolist() == [1] * 96


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_an_early_exit_is_no_deadlock(schedule: str, seed: int) -> None:
    body = "setp.eq.u32 %p1, %r2, 1;\n @%p1 ret;\n mov.u32 %r9, 7;\n bar.sync 0;"
    got, _ = launch(kernel(body), 96, schedule, seed)
    assert (got[:32] == 7).all() and (got[64:] == 7).all()


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_deadlock_names_the_barrier(schedule: str, seed: int) -> None:
    with pytest.raises(DeadlockError, match=r"barrier 1 of 96 threads"):
        launch(kernel("setp.eq.u32 %p1, %r2, 1;\n mov.u32 %r9, 0;\n @!%p1 bar.sync 1, 96;"), 96, schedule, seed)


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_divergent_aligned_barrier(schedule: str, seed: int) -> None:
    body = "mov.u32 %r9, 0;\n setp.lt.u32 %p1, %r1, 40;\n @%p1 bar.sync 1, 64;\n"
    _, result = launch(kernel(body), 64, schedule, seed)
    assert [f.kind for f in result.report.findings] == ["divergent barrier"]


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
@pytest.mark.parametrize("barrier", ["barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;", "bar.sync 0;"])
def test_exchange_in_a_cluster(barrier: str, schedule: str, seed: int) -> None:
    body = f"""
    mov.u32 %r10, %cluster_ctarank;
    mad.lo.u32 %r11, %r10, 1000, %r1;
    st.shared.u32 [%r5], %r11;
    {barrier}
    xor.b32 %r12, %r10, 1;
    mapa.shared::cluster.u32 %r13, %r5, %r12;
    ld.shared::cluster.u32 %r9, [%r13];
    barrier.cluster.arrive.release;
    barrier.cluster.wait.acquire;
"""
    got, result = launch(kernel(body, ".reqnctapercluster 2"), 64, schedule, seed, grid=2)
    if barrier.startswith("bar."):
        assert result.report.findings
    else:
        assert got.tolist() == [1000 + t for t in range(64)] + list(range(64)) and not result.report.findings


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_warp_exchange(schedule: str, seed: int) -> None:
    body = """
    st.shared.u32 [%r5], %r1;
    bar.warp.sync 0xffffffff;
    xor.b32 %r6, %r4, 124;
    add.s32 %r6, %r3, %r6;
    ld.shared.u32 %r10, [%r6];
    shfl.sync.bfly.b32 %r9|%p1, %r10, 1, 31, 0xffffffff;
"""
    got, result = launch(kernel(body), 96, schedule, seed)
    assert got.tolist() == [t ^ 31 ^ 1 for t in range(96)] and not result.report.findings
    _, result = launch(kernel(body.replace("bar.warp.sync 0xffffffff;", "")), 96, schedule, seed)
    assert "__syncwarp" in result.report.findings[0].fix
