"""The kill matrix of the emulator: bugs put into its test kernels on purpose, and what caught each of them.

A mutant is a textual change of a kernel (or a launch that does not fit it). It counts as caught when a finding is
reported, an error is raised, or the numbers are wrong. What only a finding caught would have passed any test of the
numbers. ``-s`` shows the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpulinear.emulator import EmulatorError
from gpulinear.emulator.tensormap import Swizzle
from gpulinear.errors import CompileError
from tests.emulator import ring_kernels as kernels
from tests.emulator.ring_kernels import Change, Outcome, integers, normal

Probe = Callable[..., Outcome]
Mutant = tuple[str, list[Change], dict[str, Any]]

SCHEDULES: list[tuple[str, int]] = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1), ("random", 2)]

pytestmark = pytest.mark.usefixtures("compiled")


def change(name: str, old: str, new: str = "", **options: Any) -> Mutant:
    return name, [(old, new)], options


def mma_ring(changes: list[Change], **options: Any) -> Outcome:
    return kernels.mma_ring(integers((37, 120), 0), integers((120, 24), 1), changes, **options)


def tma_ring(changes: list[Change], **options: Any) -> Outcome:
    return kernels.tma_ring(integers((72, 200), 2), integers((200, 136), 3), changes, **options)


def cluster_sum(changes: list[Change], **options: Any) -> Outcome:
    return kernels.cluster_sum(normal((61, 32), 4), changes, **options)


STORE: dict[str, Any] = {"epilogue": 1}
MMA_RING = [
    change("no barrier in the ring", "__syncthreads();  // everybody's", "//"),
    change("cp.async waits for one group too few", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    change("cp.async is never waited for", "cp_async_wait<kStages - 2>();"),
    change("groups are not committed", "32 * next);\n        cp_async_commit();", "32 * next);"),
    change("fills the slot that is read", "load(next % kStages", "load(step % kStages"),
    change("reads the next slot", "step % kStages * kStage", "(step + 1) % kStages * kStage"),
    change("A is read without the swizzle", "a + place(16 * warp + (lane & 15), 2 * k + (lane >> 4))",
           "a + 64 * (16 * warp + (lane & 15)) + 16 * (2 * k + (lane >> 4))"),
    change("B is not transposed", "ldmatrix_trans(fb,", "ldmatrix(fb,"),
    change("wrong fragment of B", "fb[2], fb[3]", "fb[1], fb[3]"),
    change("fragments of A swapped", "{%4, %5, %6, %7}, {%8, %9}", "{%4, %6, %5, %7}, {%8, %9}"),
    change("no row guard of A", "m0 + row < M && k0", "k0"),
    change("no K guard of A", "m0 + row < M && k0 + 8 * chunk < K", "m0 + row < M"),
    change("no K guard of B", "k0 + row < K && n0", "n0"),
    ("nothing is filled with zeros", [("in_a ? 16 : 0", "16"), ("in_b ? 16 : 0", "16")], {}),
    change("a row of B is never written", "cp_async(b + place(row", "if (row != 31) cp_async(b + place(row"),
    change("accumulators are not cleared", "acc[4][4] = {}", "acc[4][4]"),
    change("no barrier before the ring is reused", "__syncthreads();  // the ring is free", "//"),
    change("only a warp passes the barrier", "__syncthreads();  // the ring", "if (warp == 0) __syncthreads();  // the ring"),
    change("no __syncwarp", "__syncwarp();"),
    change("both warps use one patch", "(float*)ring + 16 * 32 * warp", "(float*)ring"),
    change("wrong row of the lower half", "at + 8 * 32", "at + 4 * 32"),
    change("no row guard of C", "if (m < M && n < N)", "if (n < N)"),
    change("no column guard of C", "if (m < M && n < N)", "if (m < M)"),
]  # fmt: skip

TMA_RING = [
    change("no wait for a full slot", "mbarrier_wait(full + 8 * slot, turn / kStages & 1);"),
    change("no wait for an empty slot", "mbarrier_wait(empty + 8 * slot, parity ^ 1);"),
    change("wrong parity of full", "turn / kStages & 1); // A", "~(turn / kStages) & 1); // A"),
    change("wrong parity of empty", "parity ^ 1", "parity"),
    change("expects half of the bytes", "slot, 2 * kTile)", "slot, kTile)"),
    change("expects too many bytes", "slot, 2 * kTile)", "slot, 2 * kTile + 16)"),
    change("empty counts one consumer", "mbarrier_init(empty + 8 * i, 2)", "mbarrier_init(empty + 8 * i, 1)"),
    change("no fence after mbarrier.init", "fence_mbarrier_init();"),
    change("no barrier after mbarrier.init", "__syncthreads();  // the barriers exist", "//"),
    change("no wgmma.fence", "wgmma_fence();"),
    change("no wgmma.commit_group", "wgmma_commit();"),
    change("no wgmma.wait_group", "wgmma_wait<0>();"),
    change("wgmma.wait_group too shallow", "wgmma_wait<0>();", "wgmma_wait<1>();"),
    change("releases a slot before the wait", "wgmma_wait<0>(); if (t == 0) mbarrier_arrive(empty + 8 * slot);",
           "if (t == 0) mbarrier_arrive(empty + 8 * slot); wgmma_wait<0>();"),
    change("stride of A's descriptor", "(kTile / 2), 16, 1024, 1)", "(kTile / 2), 16, 512, 1)"),
    change("no swizzle in B's descriptor", "slot * kTile, 16, 1024, 1)", "slot * kTile, 16, 1024, 0)"),
    change("64-byte swizzle in B's descriptor", "slot * kTile, 16, 1024, 1)", "slot * kTile, 16, 1024, 2)"),
    change("leading offset of an N-major B", "kTile / 2, 1024, 1)", "kTile / 4, 1024, 1)", n_major=True),
    change("stride of an N-major B", "kTile / 2, 1024, 1)", "kTile / 2, 512, 1)", n_major=True),
    change("step of K too wide", "a + k * (32 >> 4)", "a + k * (64 >> 4)"),
    change("B taken as N-major", "wgmma<B_MAJOR_N>(", "wgmma<1>("),
    change("B taken as K-major", "wgmma<B_MAJOR_N>(", "wgmma<0>(", n_major=True),
    change("second box of B is the first", "n0 + 64, 64 * step", "n0, 64 * step", n_major=True),
    ("tensor maps without swizzle", [], {"swizzle": Swizzle.NONE}),
    ("launched with too little shared memory", [], {"smem": kernels.RING_BYTES - 8}),
    change("every thread releases the slot", "if (t == 0) mbarrier_arrive", "mbarrier_arrive"),
    change("two threads load", "if (t != 0) return;", "if (t > 1) return;"),
    change("A goes to the next slot", "ring_a + slot * kTile, &map_a", "ring_a + (slot + 1) % kStages * kTile, &map_a"),
    change("wrong coordinate of A", "&map_a, 64 * step", "&map_a, 32 * step"),
    change("turns start again at a tile", "float d[64];", "float d[64];\n        turn = 0;"),
    change("setmaxnreg not a multiple of 8", "inc.sync.aligned.u32 232", "inc.sync.aligned.u32 236"),
    change("setmaxnreg beyond the pool", "inc.sync.aligned.u32 232", "inc.sync.aligned.u32 240"),
    change("setmaxnreg without release", "dec.sync.aligned.u32 40", "dec.sync.aligned.u32 168"),
    change("the first wgmma accumulates", "(step | k) != 0", "true"),
    change("every step starts anew", "(step | k) != 0", "k != 0"),
    change("wrong accumulator stored", "make_float2(d[4 * j + 2], d[4 * j + 3])", "make_float2(d[4 * j + 1], d[4 * j + 3])"),
    change("no row guard of C", "if (m + 8 < M)"),
    change("no fence.proxy.async", "fence_proxy_async();", **STORE),
    change("no wait before the patch is reused", "if (t == 0) bulk_wait_read();", **STORE),
    change("no barrier before the patch is reused", "named_barrier(1 + consumer, 128);  // the patch is free", "//", **STORE),
    change("no barrier before the store", "named_barrier(1 + consumer, 128);  // the patch is written", "//", **STORE),
    change("named barrier waits for a warpgroup of two", "named_barrier(1 + consumer, 128);  // the patch is written",
           "named_barrier(1 + consumer, 256);  // the patch is written", **STORE),
    change("bulk stores are not committed", "bulk_commit();\n", "\n", **STORE),
    change("no wait for bulk stores at the end", "if (t == 0) bulk_wait();", **STORE),
    change("patch is written without the swizzle", "(at >> 4) ^ (row & 7)", "(at >> 4)", **STORE),
    change("proxy fence before the writes", "named_barrier(1 + consumer, 128);  // the patch is free\n",
           "named_barrier(1 + consumer, 128); fence_proxy_async();\n#define fence_proxy_async()\n", **STORE),
    change("another thread waits for the bulk stores", "if (t == 0) bulk_wait_read();", "if (t == 32) bulk_wait_read();", **STORE),
    change("both consumers use one barrier", "named_barrier(1 + consumer, 128);  // the patch is written",
           "named_barrier(1, 128);", **STORE),
    change("the barriers lie in the patch", "full = patches + 2 * kPatch", "full = patches + kPatch", **STORE),
    change("a patch for both consumers", "kTile + consumer * kPatch", "kTile", **STORE),
    change("a warp stores", "if (t == 0) {\n#if EPILOGUE == 1", "if (t < 32) {\n#if EPILOGUE == 1", epilogue=2),
    change("setmaxnreg in half a warpgroup", 'asm volatile("setmaxnreg.inc', 'if (t < 64) asm volatile("setmaxnreg.inc'),
    change("arrives at the full barrier", "if (t == 0) mbarrier_arrive(empty", "if (t == 0) mbarrier_arrive(full"),
    change("stores where it should add", "tma_add(&map_c", "tma_store(&map_c", epilogue=2),
]  # fmt: skip

ALLOWED = [
    # A proxy fence counts for all that is ordered before it (PTX ISA, causality order).
    change("only the storing thread fences",
           "fence_proxy_async(); named_barrier(1 + consumer, 128);  // the patch is w",
           "named_barrier(1 + consumer, 128); if (t == 0) fence_proxy_async();  // the patch is w", **STORE),
    change("the proxy fence of the inits is the general one", "fence_mbarrier_init();", "fence_proxy_async();"),
    change("a deeper wait than needed", "if (t == 0) bulk_wait_read();", "if (t == 0) bulk_wait();", **STORE),
]  # fmt: skip
"""Changes that are no bugs: nothing may be reported."""

CLUSTER = [
    change("multicast to itself only", "full + 8 * slot, 3)", "full + 8 * slot, (u16)(1 << rank))"),
    change("multicast past the cluster", "full + 8 * slot, 3)", "full + 8 * slot, 7)"),
    change("no fence after mbarrier.init", "fence_mbarrier_init();"),
    change("barriers not known to the cluster", "cluster_sync();  // the barriers", "__syncthreads();  // the barriers"),
    change("sums are read at once", "cluster_sync();  // the sums", "__syncthreads();  // the sums"),
    change("no cluster barrier before the exit", "cluster_sync();  // a CTA's", "//"),
    ("one CTA exits while the other reads", [("cluster_sync();  // a CTA's", "//"), ("lane / 16 == rank", "rank == 0")], {}),
    change("cluster barrier is not waited for", "barrier.cluster.wait.acquire.aligned;"),
    change("cluster barrier without release", "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned"),
    change("releases only its own slots", "if (lane < 2) arrive_at(empty + 8 * slot, lane)",
           "if (lane < 2) arrive_at(empty + 8 * slot, rank)"),
    change("a slot is free when one CTA says so", "mbarrier_init(empty + 8 * i, 2)", "mbarrier_init(empty + 8 * i, 1)"),
    change("no __syncwarp before the release", "__syncwarp();  // all", "//"),
    change("expects only its own half", "slot, kTile)", "slot, kHalf)"),
    change("both halves at one place", " + rank * kHalf, &map", ", &map"),
    change("wrong parity of empty", "& 1 ^ 1)", "& 1)"),
    change("both CTAs load the same rows", "8 * tile + 4 * rank", "8 * tile"),
    change("no wait for an empty slot", "wait_for_cluster(empty + 8 * slot, tile / kSlots & 1 ^ 1);"),
    change("no wait for a full slot", "mbarrier_wait(full + 8 * slot, tile / kSlots & 1);"),
    change("plain loads of the other CTA's sums", 'ld.shared::cluster.f32', 'ld.shared::cta.f32'),
    change("a rank that the cluster does not have", "load_from(mine, 1)", "load_from(mine, 2)"),
    change("own sum twice", "load_from(mine, 0)", "load_from(mine, rank)"),
    change("arrival released to its CTA only", "mbarrier.arrive.release.cluster.", "mbarrier.arrive.release.cta."),
    change("arrival acquired in its CTA only", "parity.acquire.cluster.", "parity.acquire.cta."),
    change("arrival without release", "mbarrier.arrive.release.cluster.", "mbarrier.arrive.relaxed.cluster."),
]  # fmt: skip

MUTANTS: list[tuple[Probe, Mutant]] = [
    (probe, mutant)
    for probe, list_ in ((mma_ring, MMA_RING), (tma_ring, TMA_RING), (cluster_sum, CLUSTER))
    for mutant in list_
]


def verdict(probe: Probe, changes: list[Change], options: dict[str, Any]) -> str | None:
    """How a probe fails: the error, the kind of the first finding, "wrong numbers"; None if it passes."""
    try:
        outcome = probe(changes, **options)
    except CompileError:
        return "CompileError"
    except EmulatorError as error:
        before = f" after {error.findings[0].kind}" if error.findings else ""
        return f"{type(error).__name__}{before}"
    findings = outcome.result.report.findings
    if findings:
        return f"{findings[0].kind}{' (numbers right)' if outcome.right else ''}"
    return None if outcome.right else "wrong numbers"


def first_verdict(probe: Probe, changes: list[Change], options: dict[str, Any]) -> str | None:
    """The verdict under the first schedule that has one."""
    for schedule, seed in SCHEDULES:
        how = verdict(probe, changes, {"schedule": schedule, "seed": seed, **options})
        if how is not None:
            return how if schedule == "lockstep" else f"{how} under {schedule} {seed}"
    return None


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    width = max((len(name) for name in caught), default=0)
    print("\nmutants: caught by")
    for name, how in caught.items():
        print(f"  {name:<{width}}  {how}")


@pytest.mark.parametrize(
    ("probe", "mutant"), MUTANTS, ids=lambda value: value[0] if isinstance(value, tuple) else value.__name__
)
def test_every_mutant_is_caught(probe: Probe, mutant: Mutant, matrix: dict[str, str]) -> None:
    name, changes, options = mutant
    how = first_verdict(probe, changes, options)
    assert how is not None, "the mutant survived"
    matrix[f"{probe.__name__}: {name}"] = how


@pytest.mark.parametrize("mutant", ALLOWED, ids=lambda mutant: mutant[0])
def test_what_is_allowed_is_not_reported(mutant: Mutant) -> None:
    assert first_verdict(tma_ring, mutant[1], mutant[2]) is None
