"""The kill matrix of gemm_wgmma: bugs put into it on purpose, each of which a report or a number must catch.

tests/kill_matrix.py runs them, under each schedule until one catches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.plan import Options

from . import layers
from .kill_matrix import Mutant, Pairs, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .layers import f8

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
ints = partial(layers.ints, dtype=BF16)
F32 = np.dtype("float32")
SCHEDULES = ("lockstep", "warps", "random:0", "random:1")


def planned(tile: str, call: Callable[[], Pairs], **options: Any) -> Pairs:
    with gemm.planning(Options(family="gemm_wgmma", tile=tile, num_sms=options.pop("num_sms", 1), **options)):
        return call()


def _ring(tokens: int, out: int, inner: int) -> Pairs:
    x, w = ints(tokens, inner), ints(out, inner, seed=1)
    return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16))]


def ring() -> Pairs:
    """Six tiles through one CTA and, with eight stages, more k-tiles than the ring has slots; two segments."""
    return planned("64x64x64", lambda: _ring(72, 136, 264), segment=128)


def two_consumers() -> Pairs:
    return planned("128x128x64", lambda: _ring(136, 136, 264), segment=128)


def cluster() -> Pairs:
    """Three rows of tiles in clusters of two: the last one is outside. Three stages: the ring turns over."""
    return planned("128x256x64/c2", lambda: _ring(264, 72, 264), num_sms=2, segment=64)


def other_majors() -> Pairs:
    x, w, dy = ints(72, 136), ints(72, 136, seed=1), ints(72, 72, seed=2)

    def call() -> Pairs:
        return [
            (gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(BF16)),
            (gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(BF16)),
        ]

    return planned("64x128x64", call)


def cluster_of_n_major() -> Pairs:
    dy, w = ints(136, 72), ints(72, 136, seed=1)
    return planned("128x192x64/c2", lambda: [(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(BF16))], num_sms=2)


def totals_in_shared_memory() -> Pairs:
    """Two tiles through one CTA: what the first one's stores read must not be written by the second's totals."""
    return planned("64x256x64", lambda: _ring(72, 200, 200), segment=64)


def epilogue() -> Pairs:
    """Five puts of a chunk in a row, each pair of them into the two halves of the staging memory."""
    x, w, b = ints(72, 40), ints(200, 40, seed=1), ints(200, seed=2)
    preact, exact = np.empty((72, 200), BF16), f8(x) @ f8(w).T + f8(b)

    def call() -> Pairs:
        y = gl.linear(x, w, b, preact_out=preact)
        z = gl.linear(x, w, b, activation="relu")
        return [(y, exact.astype(BF16)), (preact, exact.astype(BF16)), (z, np.maximum(exact, 0).astype(BF16))]

    return planned("64x64x64", call)


def registers_to_memory() -> Pairs:
    """Rows that TMA cannot store, of odd and of even width; float32; sums that it is added to."""
    x, w = ints(72, 40), ints(67, 40, seed=1)
    held, dy, u = ints(67, 70, dtype=F32, seed=2), ints(40, 67, seed=3), ints(40, 70, seed=4)

    def call() -> Pairs:
        out = held.copy()
        gl.wgrad(dy, u, out=out, accumulate=True)
        pairs = [(out, (f8(dy).T @ f8(u) + f8(held)).astype(F32))]
        for count in (67, 66):
            exact = f8(x) @ f8(w[:count]).T
            pairs += [(gl.linear(x, w[:count]), exact.astype(BF16))]
            pairs += [(gl.linear(x, w[:count], out_dtype="float32"), exact.astype(F32))]
        return pairs

    return planned("64x64x64", call)


def _accumulating(rows: int, cols: int, tokens: int, kind: Any) -> Pairs:
    dy, x, held = ints(tokens, rows), ints(tokens, cols, seed=1), ints(rows, cols, dtype=kind, seed=2)
    out = held.copy()
    gl.wgrad(dy, x, out=out, accumulate=True)
    return [(out, (f8(dy).T @ f8(x) + f8(held)).astype(kind))]


def accumulating() -> Pairs:
    """Nine tiles of five k-tiles and a slot for D, which turn a ring of twelve over; three segments."""
    return planned("64x64x64", lambda: _accumulating(136, 136, 264, F32), segment=128)


def accumulating_16_bits() -> Pairs:
    """One box in a slot that has room for two."""
    return planned("64x64x64", lambda: _accumulating(72, 136, 136, BF16))


def accumulating_two_consumers() -> Pairs:
    return planned("128x128x64", lambda: _accumulating(136, 136, 264, F32), segment=128)


def accumulating_cluster() -> Pairs:
    """Four slots for D in a ring of three, and a tile outside of it."""
    return planned("128x256x64/c2", lambda: _accumulating(264, 72, 136, F32), num_sms=2, segment=64)


def swapped() -> Pairs:
    """Few tokens: the weight on the row side, with a bias, a row that does not exist and a second segment."""
    x, w, b = ints(19, 72), ints(67, 72, seed=1), ints(67, seed=2)
    exact = (f8(x) @ f8(w).T + f8(b)).astype(BF16)
    pairs = planned("32x64x64/swap", lambda: [(gl.linear(x, w, b), exact)])
    return pairs + planned("16x64x64/swap", lambda: [(gl.linear(x, w, b), exact)], segment=64, splits=2)


def slabs() -> Pairs:
    return planned("64x64x64", lambda: _ring(72, 72, 200), segment=64, splits=4)


def _bias_grad(tile: str, **options: Any) -> Pairs:
    """db of inexact sums, added to what is there, beside ``bgrad``: two tiles in each direction, two segments."""
    dy, x = testing.wide((96, 136), BF16, 0), testing.normal((96, 136), BF16, 1)
    held = testing.normal((136,), F32, 2)
    got, want, dw = held.copy(), held.copy(), np.zeros((136, 136), F32)

    def call() -> Pairs:
        gl.linear_backward(dy, x, dw.astype(BF16), needs=("dw", "db"), dw_out=dw, db_out=got, accumulate=True)
        assert "column_sum" not in [name for name, _ in last_results()]
        gl.bgrad(dy, out=want, accumulate=True)
        return [(got, want)]

    return planned(tile, call, segment=64, **options)


def bias_grad() -> Pairs:
    return _bias_grad("128x128x64")


def bias_grad_slabs() -> Pairs:
    return _bias_grad("64x128x64", splits=2)


MAIN, TILE, RING = "gemm_wgmma.cuh", "wgmma/tile.cuh", "wgmma/ring.cuh"
LOOP, LOAD, PUT, NEXT = "wgmma/mainloop.cuh", "wgmma/producer.cuh", "wgmma/epilogue.cuh", "wgmma/scheduler.cuh"
PREVIOUS, BOX, PTX = "wgmma/previous.cuh", "wgmma/box.cuh", "common/ptx_sm90.cuh"
SUMS = "wgmma/bias_grad.cuh"
ADD_BOX = "if (summed) add_box<typename Config::In>(ring.a(place.slot) + box * kBox, lane, sums);"
RELEASE = "ring.release_warp(place.slot, lane);"

MUTANTS = [
    # ring, parity, bytes
    Mutant("no wait for a full slot", LOOP, "mbarrier_wait<false>(ring.full(place.slot), place.parity);", "", ring),
    Mutant("no wait for an empty slot", LOAD,
           "mbarrier_wait<(Config::kCluster > 1)>(ring.empty(place.slot), place.parity ^ 1);", "", ring),
    Mutant("wrong parity of full", LOOP, "ring.full(place.slot), place.parity)", "ring.full(place.slot), place.parity ^ 1)", ring),
    Mutant("wrong parity of empty", LOAD, "place.parity ^ 1)", "place.parity)", ring),
    Mutant("parity never flips", RING, "parity ^= 1;", "", ring),
    Mutant("ring one slot too long", RING, "if (++slot == kStages)", "if (++slot == kStages + 1)", ring),
    Mutant("expects too few bytes", LOAD, "full, Ring<Config>::kSlotBytes", "full, Ring<Config>::kSlotBytes - kBox", ring),
    Mutant("expects too many bytes", LOAD, "full, Ring<Config>::kSlotBytes", "full, Ring<Config>::kSlotBytes + 16", ring),
    Mutant("announces nothing", LOAD, "mbarrier_arrive_expect(full, Ring<Config>::kSlotBytes);", "mbarrier_arrive(full);", ring),
    Mutant("full waits for two producers", RING, "mbarrier_init(full(slot), 1)", "mbarrier_init(full(slot), 2)", ring),
    Mutant("empty counts one consumer", RING, "Config::kConsumers * Config::kCluster +", "Config::kCluster +", two_consumers),
    Mutant("every thread releases the slot", RING, "if (thread == 0) mbarrier_arrive(empty", "mbarrier_arrive(empty", ring),
    Mutant("released before it is read", LOOP, "    wgmma_wait<1>();\n    if (t > 0) ring.release(last, thread);",
           "    ring.release(place.slot, thread);\n    wgmma_wait<1>();", ring),
    Mutant("the slot still in use is released", LOOP, "wgmma_wait<1>();", "wgmma_wait<2>();", ring),
    Mutant("the last slot is not released", LOOP, "  ring.release(last, thread);\n}", "}", ring),
    Mutant("the last slot is released twice", LOOP, "if (t > 0) ring", "ring", ring),
    Mutant("the same slot is released again", LOOP, "last = place.slot;\n    place.advance();", "place.advance();", ring),
    Mutant("barriers lie in the staging memory", MAIN, "smem + Smem::kBarriers", "smem + Smem::kStaging", epilogue),
    # fences
    Mutant("no fence after mbarrier.init", RING, "fence_mbarrier_init();", "", ring),
    Mutant("no barrier after mbarrier.init", MAIN, "sync_cluster<Config::kCluster>();", "", ring),
    Mutant("no wgmma.fence", LOOP, "wgmma_fence();", "", ring),
    Mutant("no wgmma.commit_group", LOOP, "wgmma_commit();", "", ring),
    Mutant("no wait at a segment's end", LOOP, "wgmma_wait<0>();", "", ring),
    Mutant("no proxy fence before the store", PUT, "fence_proxy_async();", "", epilogue),
    Mutant("proxy fence after the barrier, by another thread", PUT, "fence_proxy_async();\n      barrier();",
           "barrier();\n      if (thread == 1) fence_proxy_async();", epilogue),
    # descriptors
    Mutant("stride of the descriptor", TILE, "kStride = kGroup / 16", "kStride = kGroup / 32", ring),
    Mutant("no swizzle in the descriptor", TILE, "kStride << 32 | 1ull << 62", "kStride << 32", ring),
    Mutant("64-byte swizzle in the descriptor", TILE, "1ull << 62", "2ull << 62", ring),
    Mutant("leading offset of an MN-major tile", TILE, "kBox / 16;", "kBox / 32;", other_majors),
    Mutant("address not in units of 16 bytes", TILE, "(smem & 0x3FFFF) >> 4 |", "(smem & 0x3FFF) |", ring),
    Mutant("step along K of a K-major tile", TILE, "? 32 :", "? 64 :", ring),
    Mutant("step along K of an MN-major tile", TILE, ": 16 * kRow)", ": 8 * kRow)", other_majors),
    Mutant("transpose bit of both tiles dropped", TILE, "kTrans = kMajor == Major::MN", "kTrans = false", other_majors),
    Mutant("boxes of an MN-major tile overlap", TILE, "smem + i * kBox +", "smem + i * kBox / 2 +", other_majors),
    Mutant("second box is the first", TILE, "mn + 64 * i,", "mn,", other_majors),
    Mutant("both consumers read the same rows of A", LOOP, "consumer * kBox", "0 * kBox", two_consumers),
    # sums
    Mutant("a segment's first step accumulates", LOOP, "step + pair > 0 ? 1 : t)", "1)", ring),
    Mutant("every k-tile starts anew", LOOP, "step + pair > 0 ? 1 : t)", "step)", ring),
    Mutant("a k-tile too few", MAIN, "Config::kSegment) + kTileDepth - 1) / kTileDepth",
           "Config::kSegment)) / kTileDepth", ring),
    Mutant("total is not added to", MAIN, "total.add_to(acc);", "", ring),
    Mutant("total of the segment before is lost", MAIN, "total.keep(acc);",
           "if (k == work.k_begin + Config::kSegment) total.keep(acc);", ring),
    Mutant("totals in one place for all threads", MAIN, "epilogue.scratch + 128 * (i - kInRegisters) + epilogue.thread",
           "epilogue.scratch + 128 * (i - kInRegisters)", totals_in_shared_memory),
    Mutant("totals over what TMA still reads", MAIN,
           "if (RunningTotal<Config>::kBytes > 0) epilogue.reclaim();", "", totals_in_shared_memory),
    Mutant("shared totals are not added", MAIN,
           "? registers[i] : *shared(i), sum", "? registers[i] : 0.0f, sum", totals_in_shared_memory),
    Mutant("accumulate ignored", MAIN, "if (!epilogue.p.accumulate)", "if (true)", registers_to_memory),
    # scheduler
    Mutant("an item is left out", NEXT, "item += gridDim.x / Config::kCluster;", "item += gridDim.x / Config::kCluster + 1;", ring),
    Mutant("rows of a ragged group", NEXT, "min(p.group, p.tiles_m - first_m)", "p.group", ring),
    Mutant("segments overlap", NEXT, "min(p.k - work.k_begin, Config::kSegment) + work.k_begin", "p.k", slabs),
    Mutant("slab of another segment", PUT, "static_cast<long long>(work.segment) * p.m", "static_cast<long long>(0) * p.m", slabs),
    # epilogue
    Mutant("no wait before the staging memory is used again", PUT, "if (thread == 0) bulk_wait_read<1>();", "", epilogue),
    Mutant("wait one group too shallow", PUT, "bulk_wait_read<1>()", "bulk_wait_read<2>()", epilogue),
    Mutant("no barrier before the staging memory is used again", PUT, "being read\n      barrier();", "being read\n", epilogue),
    Mutant("no barrier before the store", PUT, "fence_proxy_async();\n      barrier();", "fence_proxy_async();", epilogue),
    Mutant("stores always from one half", PUT, "buffer ^= 1;", "", epilogue),
    Mutant("stores are not committed", PUT, "bulk_commit();", "", epilogue),
    Mutant("the kernel ends before its stores", MAIN, "bulk_wait<0>();", ";", epilogue),
    Mutant("staged without the swizzle", BOX, "((i / 4 + lane / 16) ^ (r % 8)) * 16", "(i / 4 + lane / 16) * 16", epilogue),
    Mutant("fragments of stmatrix swapped", BOX, "lane / 16) ^", "lane / 8 % 2) ^", epilogue),
    Mutant("a warp stores", PUT, "if (thread == 0) {\n        tma_store", "if (thread < 2) {\n        tma_store", epilogue),
    Mutant("both consumers store the same rows", PUT, "m0 + 64 * consumer, box", "m0, box", two_consumers),
    Mutant("both consumers use one named barrier", PUT, "named_barrier(1 + consumer, 128)",
           "named_barrier(1, 128)", two_consumers),
    Mutant("both consumers stage in one place", MAIN, "(warpgroup - 1) * Smem::kPerConsumer",
           "0 * Smem::kPerConsumer", two_consumers),
    Mutant("activation reads others' values", PUT, "scratch[128 * i + thread] = v[i];", "scratch[128 * i] = v[i];", epilogue),
    Mutant("activation over what TMA still reads", PUT, "const {\n    reclaim();\n", "const {\n", epilogue),
    Mutant("bias of the next column", PUT, "n0 + col() + 2 * i + e, p.n", "n0 + col() + 2 * i + 1, p.n", epilogue),
    Mutant("column guard off by one", PUT, "? cols - col :", "? cols - col + 1 :", registers_to_memory),
    Mutant("row guard off by one", PUT, "row + 8 * half < rows ?", "row + 8 * half <= rows ?", registers_to_memory),
    Mutant("pairs at odd columns of odd rows", PUT, "(2 * sizeof(T) - 1)) == 0", "(sizeof(T) - 1)) == 0", registers_to_memory),
    Mutant("wrong row of the lower half", PUT, "(row + 8 * half) * ld", "(row + 4 * half) * ld", registers_to_memory),
    Mutant("pair packed the wrong way round", PTX, "cvt.rn.bf16x2.f32 %0, %1, %2", "cvt.rn.bf16x2.f32 %0, %2, %1", epilogue),
    # boxes of float32, and what accumulating outputs held
    Mutant("chunks of float32 without the swizzle", BOX, "(lane % 4 / 2 ^ r) * 16", "lane % 4 / 2 * 16", accumulating),
    Mutant("pairs of odd rows stay where they are", BOX, "^ r % 2 * 64", "", accumulating),
    Mutant("pairs of odd rows are read at the places of even ones", BOX, "low[1] : low[0], v", "low[0] : low[0], v", accumulating),
    Mutant("halves of a 16-bit pair swapped", BOX, "(pair >> 16)", "(pair)", accumulating_16_bits),
    Mutant("old values are not waited for", PREVIOUS,
           "mbarrier_wait<false>(ring.full(place.slot), place.parity);", "", accumulating),
    Mutant("old values over k-tiles in use", PREVIOUS,
           "mbarrier_wait<(Config::kCluster > 1)>(ring.empty(place.slot), place.parity ^ 1);", "", accumulating),
    Mutant("old values of one consumer announced", PREVIOUS,
           "count * Config::kConsumers * kBox", "count * kBox", accumulating_two_consumers),
    Mutant("a part of a slot announced as a whole", PREVIOUS,
           "count * Config::kConsumers * kBox", "2 * Config::kConsumers * kBox", accumulating_16_bits),
    Mutant("old values are never released", PREVIOUS, "    ring.release(place.slot, thread);\n", "", accumulating),
    Mutant("old values released before all warps read them", PREVIOUS, "named_barrier(1 + consumer, 128);", "", accumulating),
    Mutant("old values released to the own CTA only", PREVIOUS, "ring.release(place.slot, thread);",
           "if (thread == 0) mbarrier_arrive(ring.empty(place.slot));", accumulating_cluster),
    Mutant("old values one slot off", PREVIOUS, "Slots::Box::read(ring.a(place.slot) +",
           "Slots::Box::read(ring.a((place.slot + 1) % Config::kStages) +", accumulating),
    Mutant("the consumer does not pass the slot", PREVIOUS, "ring.release(place.slot, thread);\n    place.advance();",
           "ring.release(place.slot, thread);", accumulating),
    Mutant("both consumers add the same old rows", PREVIOUS,
           "Slots::offset(i, consumer), thread", "Slots::offset(i, 0), thread", accumulating_two_consumers),
    Mutant("old rows of the first consumer for both", PREVIOUS,
           "work.m0 + 64 * consumer, full", "work.m0, full", accumulating_two_consumers),
    Mutant("the first old columns for all", PREVIOUS, "work.n0 + i * Slots::Box::kCols,", "work.n0,", accumulating),
    Mutant("old values after every segment", LOAD, "k < first_end &&", "(k + kTileDepth) % Config::kSegment == 0 &&", accumulating),
    Mutant("old values after the last segment", LOAD,
           "min(work.k_end, work.k_begin + Config::kSegment)", "work.k_end", accumulating),
    Mutant("old values where nothing accumulates", LOAD, "if (p.accumulate && k", "if (k", ring),
    # few tokens
    Mutant("bias of the token", PUT, "bias[i / 2 % 2]", "bias[i % 2]", swapped),
    Mutant("row guard of the transposed store", PUT, "8 * (i / 2 % 2) < rows_left", "true", swapped),
    Mutant("column guard of the transposed store", PUT, "8 * (i / 4) + e < left &&", "", swapped),
    Mutant("slab of a transposed tile", PUT, "Config::kSwapped ? p.m : p.n", "p.n", swapped),
    Mutant("transposed store by rows", PUT, "base) + col * ld + row)", "base) + row * ld + col)", swapped),
    # db
    Mutant("rows of db in descending order", SUMS, "row = 0; row < kDepth<In>; ++row",
           "row = kDepth<In> - 1; row >= 0; --row", bias_grad),
    Mutant("db reads slots that are not full", SUMS,
           "mbarrier_wait<false>(ring.full(place.slot), place.parity);\n        if", "if", bias_grad),
    Mutant("slots that db has read are not released", SUMS, f"sums);\n        {RELEASE}", "sums);", bias_grad),
    Mutant("slots of db released before they are read", SUMS,
           f"{ADD_BOX}\n        {RELEASE}", f"{RELEASE}\n        {ADD_BOX}", bias_grad),
    Mutant("db does not pass over what D holds", SUMS, "i < PreviousSlots<Config>::kSlots", "i < 0", bias_grad),
    Mutant("a lane releases what others still read", RING, "__syncwarp();\n    if (lane == 0)", "if (lane == 0)", bias_grad),
    Mutant("empty does not count the warps of db", RING, " + Config::kBiasGradWarps);", ");", bias_grad),
    Mutant("db of the first box only", MAIN, "box < Config::kBiasGradWarps", "box < 1", bias_grad),
    Mutant("both warps sum the same box", SUMS, "ring.a(place.slot) + box * kBox", "ring.a(place.slot)", bias_grad),
    Mutant("swizzle of db's rows", SUMS, "(row % 8) << 4", "(row % 4) << 4", bias_grad),
    Mutant("db is one chain over all segments", SUMS,
           "begin += Config::kSegment) {\n      const int end = min(begin + Config::kSegment, work.k_end);",
           "begin = work.k_end) {\n      const int end = work.k_end;", bias_grad),
    Mutant("db is the last segment's sum", SUMS, "totals[0] = add_rn(totals[0], sums[0]);", "totals[0] = sums[0];", bias_grad),
    Mutant("db of the tile before", SUMS, "    float totals[2] = {};\n    if (p.acc",
           "    float totals[2];\n    if (p.acc", bias_grad_slabs),
    Mutant("every tile along N sums db", SUMS, "work.n0 == 0", "true", bias_grad),
    Mutant("the second tile along N sums db", SUMS, "work.n0 == 0", "work.n0 == Config::kBlockN && work.m0 == 0", bias_grad),
    Mutant("db ignores accumulate", SUMS, "if (p.accumulate) {", "if (false) {", bias_grad),
    Mutant("db's slab of another segment", SUMS, "(work.segment) * p.m + col", "(0) * p.m + col", bias_grad_slabs),
    Mutant("db past its end", SUMS, "min(2, p.m - col)", "2", bias_grad),
    # registers
    Mutant("setmaxnreg beyond the pool", MAIN, "224 : 232;", "224 : 240;", two_consumers),
    Mutant("setmaxnreg without release", MAIN, "56 : 40;", "56 : 168;", two_consumers),
    # clusters
    Mutant("multicast to itself only", LOAD, "(1 << Config::kCluster) - 1", "1", cluster),
    Mutant("multicast past the cluster", LOAD, "(1 << Config::kCluster) - 1", "7", cluster),
    Mutant("a slot is free when one CTA says so", RING, "Config::kConsumers * Config::kCluster +", "Config::kConsumers +", cluster),
    Mutant("releases only its own slots", RING, "(rank + other) % Config::kCluster);", "rank);", cluster),
    Mutant("barriers not known to the cluster", MAIN, "sync_cluster<Config::kCluster>();", "sync_cluster<1>();", cluster),
    Mutant("no cluster barrier before the exit", MAIN, "    cluster_sync();\n  }\n}", "  }\n}", cluster),
    Mutant("both CTAs load the same half", LOAD, "work.n0, k, scheduler.rank,", "work.n0, k, 0,", cluster),
    Mutant("halves at one place", TILE, "copy(smem + part * kRows * kRow, k", "copy(smem, k", cluster),
    Mutant("halves of an N-major tile at one place", TILE, "i * kBox + part * kRows * kRow", "i * kBox", cluster_of_n_major),
    Mutant("both CTAs have the same rows of A", NEXT, "* Config::kCluster + rank)", "* Config::kCluster)", cluster),
    Mutant("arrival released to its CTA only", PTX, "mbarrier.arrive.release.cluster.shared",
           "mbarrier.arrive.release.cta.shared", cluster),
    Mutant("arrival acquired in its CTA only", LOAD, "mbarrier_wait<(Config::kCluster > 1)>", "mbarrier_wait<false>", cluster),
]  # fmt: skip


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("gemm_wgmma mutants", caught)


PROBES = probes_of(MUTANTS)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_the_clean_kernel_passes(probe: Probe, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, SCHEDULES) is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, SCHEDULES)
