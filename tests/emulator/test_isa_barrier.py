"""Barriers of a CTA and of a cluster, fences, register redistribution: one at a time, and in whole kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulinear.emulator.isa.barrier
import gpulinear.emulator.isa.control  # noqa: F401
from gpulinear.emulator import DeadlockError, EmulatorError, GlobalMemory, NotModelledError, Result, run
from gpulinear.emulator.ir import Addr, Imm, Instruction, Operand, Reg
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.lanes import Parked
from tests.emulator.fakes import Bench

SCHEDULES = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1), ("random", 2)]


class Call:
    """An instruction that may have to wait."""

    def __init__(self, bench: Bench, name: str, *values: Any, threads: Any = None, cta: int = 0) -> None:
        self.lanes = bench.lanes(threads, cta, name)
        operands: list[Operand] = [Reg("%d")] if ".red." in name else []
        operands += [Imm("int", v) if name.startswith("setmaxnreg") else Reg("%r") for v in values]
        rule, form = resolve(Instruction(0, name, tuple(operands), name, 1))
        count = len(self.lanes.threads)
        if name.startswith("setmaxnreg"):
            arrays: list[Any] = list(values)
        else:
            arrays = [v if isinstance(v, np.ndarray) else np.full(count, v, np.uint32) for v in values]
            arrays += [None] * (sum(not s[0].written for s in rule.operands) - len(arrays))
        self.result = rule.factory(form)(self.lanes, *arrays)

    @property
    def waits(self) -> bool:
        return isinstance(self.result, Parked) and not self.result.ready()

    def go_on(self) -> Any:
        assert not self.waits
        return self.result.resume(self.lanes) if isinstance(self.result, Parked) else self.result


def write(bench: Bench, threads: Any, cta: int = 0) -> None:
    threads = np.atleast_1d(threads)
    owner = bench.ctas[cta]
    owner.races.write(threads + owner.first_agent, threads * 4, 4, bench.lanes().instruction)


def races(bench: Bench, reader: int, writer: int, cta: int = 0, of: int = 0) -> bool:
    """Whether a read by one thread of what another one wrote is a race."""
    before = len(bench.found)
    agent = reader + bench.ctas[cta].first_agent
    bench.ctas[of].races.read(np.array([agent]), np.array([writer * 4]), 4, bench.lanes().instruction)
    return len(bench.found) > before


@pytest.mark.parametrize("name", ["bar.sync", "bar.cta.sync", "barrier.sync.aligned", "barrier.cta.sync"])
def test_sync_of_all(name: str) -> None:
    bench = Bench(80)
    write(bench, np.arange(80))
    first, second = Call(bench, name, 0, threads=np.arange(32)), Call(bench, name, 0, threads=np.arange(64, 80))
    assert first.waits and second.waits
    assert races(bench, 0, 70)
    last = Call(bench, name, 0, threads=np.arange(32, 64))
    assert not last.waits and last.result is None and not first.waits and not second.waits
    assert not races(bench, 0, 60) and not races(bench, 75, 10) and not races(bench, 40, 70)
    assert Call(bench, name, 0, threads=np.arange(32)).waits, "the barrier is used anew"
    assert len(bench.found) == 1


def test_named_barriers_are_apart_and_count_warps() -> None:
    bench = Bench(128)
    write(bench, np.arange(128))
    one, two = (
        Call(bench, "bar.sync", 1, 64, threads=np.arange(32)),
        Call(bench, "bar.sync", 2, 64, threads=np.r_[64:96]),
    )
    assert one.waits and two.waits
    done = Call(bench, "bar.sync", 1, 64, threads=np.r_[96:128])
    assert not done.waits and not one.waits and two.waits
    assert not races(bench, 0, 100) and not races(bench, 100, 3) and races(bench, 0, 70) and races(bench, 70, 3)


def test_a_warp_arrives_with_its_last_live_thread() -> None:
    bench = Bench(64)
    bench.cta.live[[5, 40]] = False
    bench.cta.cluster.clocks.exit(np.array([5, 40]))
    parts = [[0, 1, 2, 3, 4], [t for t in range(32, 64) if t != 40]]
    calls = [Call(bench, "barrier.sync", 3, 64, threads=np.array(part)) for part in parts]
    assert all(call.waits for call in calls)
    Call(bench, "barrier.sync", 3, 64, threads=np.r_[6:31])
    assert all(call.waits for call in calls)
    bench.cta.live[31] = False  # the last one exits instead
    assert not any(call.waits for call in calls) and bench.found == []


def test_an_exited_thread_holds_up_a_barrier_of_all() -> None:
    bench = Bench(64)
    bench.cta.live[63] = False
    call = Call(bench, "bar.sync", 0, threads=np.arange(63))
    assert call.waits and "exited never arrive" in call.result.why


def test_arrive_releases_only() -> None:
    bench = Bench(64)
    producer, consumer = np.arange(32), np.arange(32, 64)
    write(bench, producer)
    write(bench, consumer)
    waiting = Call(bench, "bar.sync", 1, 64, threads=consumer)
    assert waiting.waits
    assert Call(bench, "bar.arrive", 1, 64, threads=producer).result is None
    assert not waiting.waits
    assert not races(bench, 40, 3) and not races(bench, 40, 50)
    assert races(bench, 3, 40)
    bench = Bench(64)
    Call(bench, "barrier.arrive", 1, 64, threads=producer)
    write(bench, producer)  # after its arrival
    assert not Call(bench, "bar.sync", 1, 64, threads=consumer).waits
    assert races(bench, 40, 3)
    assert races(bench, 40, 4) and [f.kind for f in bench.launch.report.findings] == ["shared race"] * 2


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(("op", "kind"), [("popc", "u32"), ("and", "pred"), ("or", "pred")])
def test_red(op: str, kind: str, counted: bool) -> None:
    bench = Bench(70)
    for true in (0, 1, 69, 70):
        predicate = np.arange(70) < true
        more = (96,) if counted else ()
        calls = [
            Call(bench, f"bar.red.{op}.{kind}", 4, *more, predicate[part], threads=part)
            for part in (np.arange(32), np.arange(64, 70), np.arange(32, 64))
        ]
        for call in calls:
            got = call.go_on()
            assert got.dtype == (np.uint32 if op == "popc" else bool) and len(got) == len(call.lanes.threads)
            assert set(got.tolist()) == {{"popc": true, "and": true == 70, "or": true > 0}[op]}
    assert bench.found == []


def test_red_counts_live_threads_only() -> None:
    bench = Bench(64)
    bench.cta.live[40] = False
    alive = np.flatnonzero(bench.cta.live)
    assert Call(bench, "barrier.red.and.pred", 0, 64, np.ones(63, bool), threads=alive).go_on().all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [((16,), "barrier number"), ((1, 40), "barrier count"), ((1, 0), "barrier count"), ((1, 128), "barrier count")],
)
def test_operands_out_of_range(values: tuple[int, ...], kind: str) -> None:
    bench = Bench(64)
    Call(bench, "bar.sync", *values)
    assert bench.found[0] == kind


def test_misuse_of_a_barrier() -> None:
    bench = Bench(96)
    warps = [np.arange(32 * w, 32 * w + 32) for w in range(3)]
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == ["barrier count"] and "with 96 threads here and with 64" in bench.only().message
    bench = Bench(96)
    Call(bench, "bar.sync", 1, threads=warps[0])
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == [], "without a count it is all threads, in whole warps"
    Call(bench, "bar.arrive", 1, 96, threads=warps[1])
    assert bench.found == ["barrier overrun"] and bench.only().threads[0] == 32
    bench = Bench(96)
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.arrive", 1, 64, threads=np.arange(32, 96))
    assert bench.found == ["barrier overrun"] and "96 threads arrive" in bench.only().message
    bench = Bench(96)
    Call(bench, "bar.sync", 1, 64, threads=warps[0])
    Call(bench, "bar.red.or.pred", 1, 64, np.ones(32, bool), threads=warps[1])
    assert bench.found == ["barrier mix"]
    bench = Bench(96)
    Call(bench, "bar.sync", 1, threads=np.arange(8))
    assert bench.found == ["divergent barrier"] and bench.only().count == 8
    bench = Bench(96)
    Call(bench, "barrier.sync", 1, threads=np.arange(8))
    assert bench.found == []
    bench = Bench(96)
    Call(bench, "bar.arrive", 3, 64, threads=warps[2])
    bench.cta.exit()
    assert bench.found == ["barrier incomplete at exit"] and "32 of 64" in bench.only().message


# Clusters


def cluster_sync(bench: Bench, arrive: str = "barrier.cluster.arrive", ctas: int = 2) -> None:
    for cta in range(ctas):
        Call(bench, arrive, cta=cta)
    for cta in range(ctas):
        assert Call(bench, "barrier.cluster.wait", cta=cta).go_on() is None


def test_cluster_barrier() -> None:
    bench = Bench(64, ctas=2)
    write(bench, np.arange(64))
    Call(bench, "barrier.cluster.arrive.release.aligned")
    early = Call(bench, "barrier.cluster.wait.acquire.aligned")
    Call(bench, "barrier.cluster.arrive", threads=np.arange(32), cta=1)
    assert early.waits
    Call(bench, "barrier.cluster.arrive", threads=np.arange(32, 64), cta=1)
    write(bench, 5)  # after the arrival
    assert not early.waits
    late = Call(bench, "barrier.cluster.wait", cta=1)
    assert not late.waits
    assert not races(bench, 3, 6, cta=1) and not races(bench, 63, 62, cta=1)
    assert races(bench, 3, 5, cta=1)
    early.go_on()
    assert len(bench.found) == 1
    cluster_sync(bench)
    assert not races(bench, 3, 5, cta=1)


def test_cluster_barrier_with_exited_threads() -> None:
    bench = Bench(32, ctas=2)
    Call(bench, "barrier.cluster.arrive")
    call = Call(bench, "barrier.cluster.wait")
    assert call.waits
    bench.cta.cluster.clocks.exit(np.arange(32, 64))
    assert not call.waits
    call.go_on()
    Call(bench, "barrier.cluster.arrive")
    assert Call(bench, "barrier.cluster.wait").go_on() is None and bench.found == []


def test_cluster_barrier_out_of_step() -> None:
    """A thread that is quick arrives again before a slow one has waited for the first time."""
    bench = Bench(32, ctas=2)
    write(bench, 3)
    for cta in (0, 1):
        Call(bench, "barrier.cluster.arrive", cta=cta)
    Call(bench, "barrier.cluster.wait").go_on()
    write(bench, 4)
    Call(bench, "barrier.cluster.arrive")
    second = Call(bench, "barrier.cluster.wait")
    assert second.waits
    Call(bench, "barrier.cluster.wait", cta=1).go_on()
    assert not races(bench, 1, 3, cta=1)
    assert races(bench, 1, 4, cta=1)
    Call(bench, "barrier.cluster.arrive", cta=1)
    assert not second.waits and bench.found == ["shared race"]


def test_misuse_of_the_cluster_barrier() -> None:
    bench = Bench(32, ctas=2)
    assert Call(bench, "barrier.cluster.wait").go_on() is None
    assert bench.found == ["cluster barrier"] and "has not arrived" in bench.only().message
    Call(bench, "barrier.cluster.arrive")
    Call(bench, "barrier.cluster.arrive", threads=np.arange(3))
    assert len(bench.found) == 2 and bench.launch.report.findings[1].threads == (0, 1, 2)
    Call(bench, "barrier.cluster.arrive.aligned", threads=np.arange(3), cta=1)
    assert bench.found[2] == "divergent barrier"


@pytest.mark.parametrize("fence", [None, "fence.acq_rel.cta", "fence.acq_rel.cluster", "fence.sc.gpu", "membar.sys"])
def test_relaxed_arrive(fence: str | None) -> None:
    bench = Bench(32, ctas=2)
    write(bench, 3)
    if fence is not None:
        Call(bench, fence)
    cluster_sync(bench, "barrier.cluster.arrive.relaxed")
    assert races(bench, 1, 3, cta=1) == (fence in (None, "fence.acq_rel.cta"))


def test_fence_mbarrier_init() -> None:
    bench = Bench(32, ctas=2, proxies=True)
    bench.cta.races.mbarrier_init(np.array([0]), np.array([0]), bench.lanes().instruction)
    write(bench, 3)
    Call(bench, "fence.mbarrier_init.release.cluster", threads=[0])
    cluster_sync(bench, "barrier.cluster.arrive.relaxed")
    bench.cta.races.atomic(np.array([40]), np.array([0]), 8, bench.lanes().instruction, mbarrier=True)
    assert bench.found == [] and races(bench, 1, 3, cta=1)


@pytest.mark.parametrize(
    ("name", "helps"),
    [
        ("fence.proxy.async", True),
        ("fence.proxy.async.shared::cta", True),
        ("fence.proxy.async.shared::cluster", True),
        ("membar.proxy.async", True),
        ("fence.proxy.async.global", False),
        ("fence.proxy.alias", False),
        ("fence.proxy.tensormap::generic.release.gpu", False),
        ("fence.acq_rel.gpu", False),
        ("fence.mbarrier_init.release.cluster", False),
    ],
)
def test_proxy_fences(name: str, helps: bool) -> None:
    bench = Bench(32, proxies=True)
    write(bench, np.arange(32))
    Call(bench, name)
    bench.barrier()
    channel = bench.cta.cluster.clocks.new_channel("bulk store", "wait")
    bench.cta.races.async_read(0, channel, 1, np.array([0]), 128, bench.lanes().instruction)
    assert bench.found == ([] if helps else ["missing proxy fence"])


def test_fences_reach_global_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(32)
    scopes: list[str] = []
    monkeypatch.setattr(bench.memory, "fence", lambda lanes, scope: scopes.append(scope))
    for name in ("membar.cta", "membar.gl", "membar.sys", "fence.cluster", "fence.sc.gpu", "fence.acq_rel.cta"):
        Call(bench, name)
    assert scopes == ["cta", "gpu", "sys", "cluster", "gpu", "cta"]


@pytest.mark.parametrize("name", ["brkpt", "pmevent", "fence.acquire.gpu", "fence.release.gpu", "barrier.sync.cluster"])
def test_refused(name: str) -> None:
    with pytest.raises(NotModelledError):
        resolve(Instruction(0, name, (), name, 1))


def test_acquire_of_a_tensormap_takes_an_address() -> None:
    name = "fence.proxy.tensormap::generic.acquire.gpu"
    rule, form = resolve(Instruction(0, name, (Addr(Reg("%d"), 0), Imm("int", 128)), name, 1))
    assert rule.factory(form)(Bench(32).lanes(), np.zeros(32, np.int64), 128) is None


def test_no_operations_and_trap() -> None:
    bench = Bench(32)
    for name, *values in (("griddepcontrol.wait",), ("griddepcontrol.launch_dependents",), ("nanosleep.u32", 5)):
        assert Call(bench, name, *values).result is None
    with pytest.raises(EmulatorError, match=r"trap in CTA \(0, 0, 0\), threads 4, 5, at PTX line"):
        Call(bench, "trap", threads=[4, 5])


# setmaxnreg


def group(number: int) -> np.ndarray[Any, Any]:
    return np.arange(128 * number, 128 * number + 128)


def registers(action: str, bench: Bench, count: int, number: int) -> Call:
    return Call(bench, f"setmaxnreg.{action}.sync.aligned.u32", count, threads=group(number))


def test_setmaxnreg_waits_for_the_pool() -> None:
    bench = Bench(384)
    bench.launch.registers_per_thread = 162  # 168 in units of 8
    first, second = registers("inc", bench, 232, 1), registers("inc", bench, 232, 2)
    assert first.waits and second.waits
    assert registers("dec", bench, 40, 0).result is None  # frees 128, each of the others needs 64
    assert not first.waits and not second.waits
    first.go_on()
    assert not second.waits
    second.go_on()
    assert bench.found == []
    third = registers("inc", bench, 240, 1)
    assert third.waits and "setmaxnreg.inc to 240" in third.result.why
    registers("dec", bench, 32, 0)
    assert not third.waits


def test_setmaxnreg_too_much_never_goes_on() -> None:
    bench = Bench(384)
    bench.launch.registers_per_thread = 168
    registers("dec", bench, 80, 2)
    first, second = registers("inc", bench, 224, 0), registers("inc", bench, 224, 1)
    assert not first.waits and first.go_on() is None and second.waits


@pytest.mark.parametrize(
    ("action", "count", "launched", "message"),
    [
        ("dec", 44, 168, "44 registers"),
        ("dec", 16, 168, "16 registers"),
        ("inc", 264, 168, "264 registers"),
        ("dec", 176, 168, "owns 168"),
        ("inc", 160, 168, "owns 168"),
        ("dec", 168, 168, None),
        ("inc", 168, 168, None),
        ("dec", 24, 168, None),
        ("inc", 256, None, None),
        ("inc", 20, None, "20 registers"),
    ],
)
def test_setmaxnreg_rules(action: str, count: int, launched: int | None, message: str | None) -> None:
    bench = Bench(128)
    bench.launch.registers_per_thread = launched
    registers(action, bench, count, 0)
    assert [f.kind for f in bench.launch.report.findings] == ["setmaxnreg"] * (message is not None)
    if message is not None:
        assert message in bench.only().message


def test_setmaxnreg_needs_whole_warpgroups_and_the_right_target() -> None:
    bench = Bench(160)
    bench.launch.registers_per_thread = None
    registers("dec", bench, 40, 0)
    assert bench.found == []
    Call(bench, "setmaxnreg.dec.sync.aligned.u32", 40, threads=np.r_[128:160])
    assert bench.found == ["setmaxnreg"] and "32 threads of warpgroup 1" in bench.only().message
    bench.launch.arch = "sm_90"
    with pytest.raises(NotModelledError, match="sm_90a"):
        registers("dec", bench, 40, 0)


# Whole kernels


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
def test_deadlock_names_the_barrier(schedule: str, seed: int) -> None:
    with pytest.raises(
        DeadlockError, match=r"barrier 0 of all 96 threads .*exited never arrive.*32 threads of the CTA"
    ):
        launch(kernel("setp.eq.u32 %p1, %r2, 1;\n @%p1 ret;\n mov.u32 %r9, 0;\n bar.sync 0;"), 96, schedule, seed)
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
