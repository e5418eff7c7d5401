"""Small kernels, written by hand in PTX, through the whole emulator: results, divergence, faults and their reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulinear.emulator import (
    BudgetError,
    DeadlockError,
    GlobalMemory,
    LaunchError,
    NotModelledError,
    ParseError,
    Result,
    run,
)

Array = np.ndarray[Any, Any]
SCHEDULES = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1), ("random", 2)]


def kernel(body: str, params: str = ".param .u64 out", target: str = "sm_90a", declarations: str = "") -> str:
    return f"""
.version 8.7
.target {target}
.address_size 64
{declarations}
.visible .entry k({params})
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<32>;
    .reg .f32 %f<16>;
    .reg .b64 %d<32>;
{body}
}}
"""


# Every thread stores %r9 at out[thread of the grid].
STORE = """
    ld.param.u64 %d30, [out];
    mov.u32 %r30, %ctaid.x;
    mov.u32 %r31, %ntid.x;
    mov.u32 %r29, %tid.x;
    mad.lo.s32 %r28, %r30, %r31, %r29;
    mul.wide.u32 %d29, %r28, 4;
    add.s64 %d28, %d30, %d29;
    st.global.u32 [%d28], %r9;
    ret;
"""


def launch(text: str, count: int, block: int, grid: int = 1, smem: int = 0, **options: Any) -> tuple[Array, Result]:
    memory = GlobalMemory()
    out = memory.alloc(4 * count, initialised=False, name="out")
    result = run(text, None, grid, block, smem, [out], memory=memory, **options)
    return memory.view(out, 4 * count).view(np.uint32).copy(), result


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_threads_see_their_own_numbers(schedule: str, seed: int) -> None:
    body = "mov.u32 %r1, %tid.x;\n mov.u32 %r2, %ctaid.x;\n shl.b32 %r3, %r2, 16;\n or.b32 %r9, %r1, %r3;" + STORE
    got, result = launch(kernel(body), 3 * 70, 70, 3, schedule=schedule, seed=seed)
    want = np.concatenate([np.arange(70, dtype=np.uint32) | np.uint32(c << 16) for c in range(3)])
    assert (got == want).all() and not result.report.findings


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_divergent_loops_meet_again(schedule: str, seed: int) -> None:
    """Thread t runs the loop t % 7 times and then all of them go through a barrier."""
    body = (
        """
    mov.u32 %r1, %tid.x;
    rem.u32 %r2, %r1, 7;
    mov.u32 %r9, 0;
    mov.u32 %r4, 0;
L:  setp.ge.u32 %p1, %r4, %r2;
    @%p1 bra E;
    add.s32 %r9, %r9, %r1;
    add.s32 %r4, %r4, 1;
    bra L;
E:  bar.sync 0;
"""
        + STORE
    )
    got, result = launch(kernel(body), 96, 96, schedule=schedule, seed=seed)
    t = np.arange(96)
    assert (got == t * (t % 7)).all() and not result.report.findings


SHARED = ".shared .align 16 .b8 buffer[512];"
REVERSE = """
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, buffer;
    mad.lo.s32 %r3, %r1, 4, %r2;
    st.shared.u32 [%r3], %r1;
    {barrier}
    sub.s32 %r4, 127, %r1;
    mad.lo.s32 %r5, %r4, 4, %r2;
    ld.shared.u32 %r9, [%r5];
"""


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_shared_memory_and_a_barrier(schedule: str, seed: int) -> None:
    text = kernel(REVERSE.format(barrier="bar.sync 0;") + STORE, declarations=SHARED)
    got, result = launch(text, 128, 128, schedule=schedule, seed=seed)
    assert (got == np.arange(127, -1, -1)).all() and not result.report.findings


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_missing_barrier_is_a_race_with_both_sides(schedule: str, seed: int) -> None:
    text = kernel(REVERSE.format(barrier="") + STORE, declarations=SHARED)
    _, result = launch(text, 128, 128, schedule=schedule, seed=seed)
    kinds = [finding.kind for finding in result.report.findings]
    assert any("race" in kind or "uninitialised" in kind for kind in kinds), result.report
    assert "st.shared" in str(result.report) or "ld.shared" in str(result.report)


def test_out_of_bounds_names_the_allocation_and_the_thread() -> None:
    text = kernel("mov.u32 %r9, 1;" + STORE)
    _, result = launch(text, 31, 32)
    (finding,) = result.report.findings
    assert "bounds" in finding.kind and "out" in finding.message and finding.threads == (31,)
    assert finding.fix


def test_an_uninitialised_register_is_found_where_it_is_read() -> None:
    body = (
        """
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, 5;
    @%p1 mov.u32 %r9, 7;
"""
        + STORE
    )
    got, result = launch(kernel(body), 32, 32)
    (finding,) = result.report.findings
    assert finding.kind == "uninitialised register" and finding.count == 27 and finding.threads[0] == 5
    assert (got[:5] == 7).all()


def test_a_write_under_a_guard_and_its_opposite_initialise() -> None:
    body = (
        """
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, 5;
    @%p1 mov.u32 %r9, 7;
    @!%p1 mov.u32 %r9, 8;
"""
        + STORE
    )
    got, result = launch(kernel(body), 32, 32)
    assert not result.report.findings and (got == np.where(np.arange(32) < 5, 7, 8)).all()


def test_a_deadlock_says_who_waits_where() -> None:
    body = (
        """
    mov.u32 %r9, %tid.x;
    setp.lt.u32 %p1, %r9, 32;
    @%p1 bra A;
    bar.sync 1, 64;
    bra E;
A:  bar.sync 2, 64;
E:
"""
        + STORE
    )
    with pytest.raises(DeadlockError, match=r"threads 0\.\.31") as caught:
        launch(kernel(body), 64, 64)
    assert "bar.sync 1" in str(caught.value) and "bar.sync 2" in str(caught.value)


def test_an_endless_loop_runs_out_of_budget() -> None:
    with pytest.raises(BudgetError, match="more than 1000 instructions"):
        launch(kernel("L: bra L;"), 1, 32, budget=1000)


def test_a_spinning_cta_lets_the_next_one_run() -> None:
    """CTA 0 waits for a flag that CTA 1 sets."""
    body = """
    ld.param.u64 %d1, [out];
    mov.u32 %r1, %ctaid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra SET;
L:  ld.acquire.gpu.global.u32 %r2, [%d1];
    setp.eq.u32 %p2, %r2, 0;
    @%p2 bra L;
    bra E;
SET: mov.u32 %r3, 5;
    st.release.gpu.global.u32 [%d1], %r3;
E:  ret;
"""
    memory = GlobalMemory()
    out = memory.alloc(np.zeros(1, np.uint32))
    result = run(kernel(body), None, 2, 1, 0, [out], memory=memory)
    assert memory.view(out, 4).view(np.uint32)[0] == 5
    assert not result.report.findings, result.report


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        ("frobnicate.b32 %r1, %r2;", NotModelledError, "frobnicate.b32"),
        ("add.s32.wrap %r1, %r2, %r3;", NotModelledError, "add.s32.wrap"),
        ("mov.u32 %r1, %clock;", NotModelledError, "%clock"),
        ("bra NOWHERE;", ParseError, "NOWHERE"),
        ("mov.b64 %r1, %d1;", ParseError, "32 bits"),
    ],
)
def test_what_is_not_modelled_stops_the_load_with_its_line(body: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        launch(kernel(body + " ret;"), 1, 32)
    assert "line" in str(caught.value).lower()


def test_launch_arguments_are_checked() -> None:
    text = kernel("ret;")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"params": []}, "takes 1 parameters"),
        ({"params": [np.int32(3)]}, "has 8 bytes"),
        ({"params": [1.5]}, "NumPy scalar"),
        ({"block": 1025}, "1024 threads"),
        ({"grid": 0}, "grid"),
        ({"smem_bytes": 300_000}, "shared memory"),
        ({"entry": "nobody"}, "nobody"),
        ({"schedule": "fair"}, "lockstep"),
        ({"tensor": "guess"}, "model or exact"),
    ]
    for change, match in cases:
        arguments: dict[str, Any] = {"entry": None, "grid": 1, "block": 32, "smem_bytes": 0, "params": [0], **change}
        with pytest.raises(LaunchError, match=match):
            run(text, **arguments)


def test_brx_jumps_through_its_table() -> None:
    body = (
        """
    mov.u32 %r1, %tid.x;
    rem.u32 %r2, %r1, 3;
    ts: .branchtargets A, B, C;
    brx.idx %r2, ts;
A:  mov.u32 %r9, 10;
    bra E;
B:  mov.u32 %r9, 20;
    bra E;
C:  mov.u32 %r9, 30;
E:
"""
        + STORE
    )
    got, result = launch(kernel(body), 40, 40)
    assert (got == np.array([10, 20, 30])[np.arange(40) % 3]).all() and not result.report.findings


def test_module_variables_have_their_initial_values() -> None:
    body = (
        """
    mov.u32 %r1, %tid.x;
    mov.u64 %d1, table;
    mul.wide.u32 %d2, %r1, 4;
    add.s64 %d3, %d1, %d2;
    ld.const.u32 %r2, [%d3];
    ld.global.u32 %r3, [counter];
    add.s32 %r9, %r2, %r3;
"""
        + STORE
    )
    declarations = ".const .align 4 .u32 table[4] = {11, 22, 33, 44};\n.global .align 4 .u32 counter = 1000;"
    got, result = launch(kernel(body, declarations=declarations), 4, 4)
    assert (got == [1011, 1022, 1033, 1044]).all() and not result.report.findings, result.report


def test_a_warp_collective_with_a_missing_lane_is_refused() -> None:
    body = (
        """
    mov.u32 %r1, %tid.x;
    mov.u32 %r9, 0;
    setp.eq.u32 %p1, %r1, 3;
    @%p1 bra E;
    shfl.sync.bfly.b32 %r9, %r1, 1, 31, 0xffffffff;
E:
"""
        + STORE
    )
    _, result = launch(kernel(body), 32, 32)
    assert result.report.findings


@pytest.mark.parametrize("seed", range(6))
def test_a_warp_that_came_apart_meets_again_whoever_else_is_there(seed: int) -> None:
    """Thread 32 is at the barrier alone when the rest of its warp comes along with three other warps."""
    body = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, 0;
    mov.u32 %r9, 0;
    setp.eq.u32 %p1, %r0, 32;
AGAIN:
    wgmma.fence.sync.aligned;
    @!%p1 bra JOINED;
    add.u32 %r9, %r9, 1;
JOINED:
    bar.sync 1, 128;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p2, %r1, 20;
    @%p2 bra AGAIN;
"""
    values, result = launch(kernel(body + STORE), 128, 128, schedule="random", seed=seed)
    assert not result.report.findings and values.tolist() == [20 * (thread == 32) for thread in range(128)]
