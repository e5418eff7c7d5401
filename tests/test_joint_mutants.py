"""The kill matrix of joint launches: bugs put into them on purpose, each of which a report or a number must catch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm
from gpulinear.plan import Options

from .kill_matrix import Mutant, Pairs, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .layers import f8, ints

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype("float32")
SCHEDULES = ("lockstep", "warps", "random:0")


def gradients(
    tokens: int, out: int, inner: int, dtype: Any, dw: Any = None, *, db: bool = False, **options: Any
) -> Pairs:
    dy, x, w = (
        ints(tokens, out, dtype=dtype),
        ints(tokens, inner, dtype=dtype, seed=1),
        ints(out, inner, dtype=dtype, seed=2),
    )
    with gemm.planning(Options(joint=True, **options)):
        grads = gl.linear_backward(dy, x, w, needs=("dx", "dw", "db") if db else ("dx", "dw"), dw_out=dw)
    pairs = [(grads.dx, (f8(dy) @ f8(w)).astype(dtype)), (grads.dw, (f8(dy).T @ f8(x)).astype(grads.dw.dtype))]
    return [*pairs, (grads.db, f8(dy).sum(0).astype(dtype))] if db else pairs


def simt() -> Pairs:
    return gradients(40, 72, 40, F32, family="gemm_simt", tile="32x32x16/4x4")


def simt_in_splits() -> Pairs:
    return gradients(40, 72, 40, F32, family="gemm_simt", tile="32x32x16/4x4", segment=16, splits=2)


def mma() -> Pairs:
    return gradients(40, 72, 40, BF16, family="gemm_mma", tile="64x64x32/32x32")


def ring() -> Pairs:
    """Three tiles and four, through one CTA; neither problem's k-tiles are a multiple of the ring's slots."""
    return gradients(72, 136, 72, BF16, family="gemm_wgmma", tile="64x64x64", num_sms=1)


def bias_grad() -> Pairs:
    """The warps that sum db walk through dgrad's k-tiles first."""
    return gradients(72, 136, 72, BF16, db=True, family="gemm_wgmma", tile="64x64x64", num_sms=1)


def two_ctas() -> Pairs:
    """Three items of the first: the second's list starts in the middle of a round."""
    return gradients(136, 200, 40, BF16, family="gemm_wgmma", tile="64x64x64", num_sms=2)


def totals_of_the_second() -> Pairs:
    """A first with TMA stores, then totals of a second in shared memory, which leaves its results from registers."""
    dw = np.full((200, 203), np.nan, F32)[:, :200]
    return gradients(72, 200, 200, BF16, dw, family="gemm_wgmma", tile="64x256x64", num_sms=1, segment=64)


def totals_of_the_first() -> Pairs:
    return gradients(40, 200, 200, BF16, family="gemm_wgmma", tile="64x256x64", num_sms=1, segment=64)


def stores_of_the_second() -> Pairs:
    """A first that leaves its results from registers, then stores by TMA."""
    dw = np.full((40, 43), np.nan, F32)[:, :40]
    return gradients(200, 40, 40, BF16, dw, family="gemm_wgmma", tile="64x64x64", num_sms=1)


def one_chunk() -> Pairs:
    """The first problem stores one chunk: the second's first goes to the other half of the staging memory."""
    return gradients(40, 136, 40, BF16, family="gemm_wgmma", tile="64x64x64", num_sms=1)


def cluster() -> Pairs:
    return gradients(264, 264, 72, BF16, family="gemm_wgmma", tile="128x256x64/c2", num_sms=2, segment=64)


WGMMA, MAIN, NEXT = "joint_wgmma.cuh", "gemm_wgmma.cuh", "wgmma/scheduler.cuh"
WORK = "common/block_work.cuh"
FOLLOWING = "first.item - first.items()"
BUFFER = "consume<Second>(p.second, same_ring, second, place, staging, buffer"

MUTANTS = [
    # blocks
    Mutant("second problem's blocks are not renumbered", "joint_simt.cuh", "blockIdx.x - of_first", "blockIdx.x", simt),
    Mutant("second problem with the first's parameters", "joint_simt.cuh", "(p.second, ", "(p.first, ", simt),
    Mutant("one block too many for the first", "joint_simt.cuh", "blockIdx.x < of_first", "blockIdx.x <= of_first", simt),
    Mutant("splits are not counted", WORK, "(p.tiles_m * p.tiles_n) * p.splits", "(p.tiles_m * p.tiles_n)", simt_in_splits),
    Mutant("second problem's blocks of gemm_mma", "joint_mma.cuh", "blockIdx.x - of_first", "blockIdx.x", mma),
    Mutant("first problem with the second's parameters", "joint_mma.cuh", "<First>(p.first)", "<First>(p.second)", mma),
    # items
    Mutant("second problem starts an item late", WGMMA, FOLLOWING, f"{FOLLOWING} + 1", two_ctas),
    Mutant("items of the first are not taken off", WGMMA, FOLLOWING, "first.item", ring),
    Mutant("producer loads the first problem's operands", WGMMA, "produce<Second>(p.second", "produce<Second>(p.first", ring),
    Mutant("consumer stores into the first problem's output", WGMMA, "consume<Second>(p.second", "consume<Second>(p.first", ring),
    Mutant("majors of the first problem", WGMMA, "produce<Second>(p.second, same_ring, second, place)",
           "produce<First>(p.second, ring, reinterpret_cast<Scheduler<First>&>(second), place)", ring),
    Mutant("rank lost between the problems", WGMMA, "{second, first.rank,", "{second, 0,", cluster),
    Mutant("warps of db do not walk through the first problem", WGMMA,
           "sum_bias_grad<First>(p.first, ring, first, place, box, lane);", "", bias_grad),
    Mutant("warps of db start anew in the ring", WGMMA, "sum_bias_grad<Second>(p.second",
           "place = RingPlace<First::kStages>(), sum_bias_grad<Second>(p.second", bias_grad),
    Mutant("db of either problem's A", "wgmma/bias_grad.cuh", "Config::kBiasGrad && work.n0 == 0", "work.n0 == 0", bias_grad),
    # ring and staging memory
    Mutant("consumer's place in the ring starts anew", WGMMA, BUFFER,
           f"place = RingPlace<First::kStages>(), {BUFFER}", ring),
    Mutant("producer's place in the ring starts anew", WGMMA, "produce<Second>(p.second",
           "place = RingPlace<First::kStages>(), produce<Second>(p.second", ring),
    Mutant("consumer's parity starts anew", WGMMA, BUFFER, f"place.parity = 0, {BUFFER}", ring),
    Mutant("half of the staging memory starts anew", MAIN, "  buffer = epilogue.buffer;\n", "", one_chunk),
    Mutant("barriers where a launch of the second has them", WGMMA, "smem + Smem::kBarriers",
           "smem + WgmmaSmem<Second>::kBarriers", totals_of_the_first),
    Mutant("second problem does not wait for the first's stores", WGMMA,
           "if (thread == 0) bulk_wait_read<0>();", "", totals_of_the_second),
    Mutant("nobody is told of that wait", WGMMA, "named_barrier(1 + consumer, 128);", "", totals_of_the_second),
    Mutant("the kernel ends before the second problem's stores", MAIN, "Config::kTmaStore || Other::kTmaStore",
           "Config::kTmaStore", stores_of_the_second),
]  # fmt: skip


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("joint mutants", caught)


@pytest.mark.parametrize("probe", probes_of(MUTANTS), ids=lambda probe: probe.__name__)
def test_the_clean_kernel_passes(probe: Probe, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, SCHEDULES) is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, SCHEDULES)
