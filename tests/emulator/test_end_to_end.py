"""Whole kernels of the kinds that the library is made of, against NumPy, under all schedules, without one finding."""

from __future__ import annotations

import numpy as np
import pytest

from gpulinear import testing
from tests.emulator import ring_kernels as kernels
from tests.emulator.ring_kernels import Outcome, integers, normal

SCHEDULES = [("lockstep", 0), ("warps", 0), ("random", 0), ("random", 1), ("random", 2)]
every_schedule = pytest.mark.parametrize(("schedule", "seed"), SCHEDULES, ids=lambda value: str(value))

pytestmark = pytest.mark.usefixtures("compiled")


def check(outcome: Outcome) -> None:
    assert not outcome.result.report.findings, outcome.result.report
    np.testing.assert_array_equal(outcome.got, outcome.want)
    assert outcome.right


@every_schedule
def test_cp_async_ring(schedule: str, seed: int) -> None:
    """Two ragged tiles, and more steps than the ring has slots."""
    check(kernels.mma_ring(integers((37, 136), 0), integers((136, 24), 1), schedule=schedule, seed=seed))


@pytest.mark.parametrize("shape", [(1, 8, 8), (32, 32, 32), (64, 64, 40), (33, 40, 96)], ids=str)
def test_cp_async_ring_on_random_data(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    check(kernels.mma_ring(normal((m, k), 2), normal((k, n), 3)))


def test_integers_are_exact_in_the_model_of_the_tensor_core() -> None:
    """What the other tests compare with agrees with NumPy where there is nothing to round."""
    a, b = integers((37, 136), 0), integers((136, 24), 1)
    want = (a.astype(np.float64) @ b).astype(np.float32)
    for arch in ("sm_80", "sm_90a"):
        np.testing.assert_array_equal(kernels.expected(kernels.bfloat16(a), kernels.bfloat16(b), arch), want)


@every_schedule
@pytest.mark.parametrize("epilogue", [0, 1, 2], ids=["plain", "store", "add"])
def test_tma_ring(epilogue: int, schedule: str, seed: int) -> None:
    """Two tiles through one CTA; the ring wraps around, M, N and K are ragged."""
    a, b = integers((100, 264), 4), integers((264, 136), 5)
    check(kernels.tma_ring(a, b, epilogue=epilogue, schedule=schedule, seed=seed))


@pytest.mark.parametrize("n_major", [False, True], ids=["k-major", "n-major"])
@pytest.mark.parametrize("shape", [(8, 8, 8), (130, 72, 200)], ids=str)
def test_tma_ring_on_random_data(shape: tuple[int, int, int], n_major: bool) -> None:
    m, n, k = shape
    check(kernels.tma_ring(normal((m, k), 6), normal((k, n), 7), n_major=n_major, ctas=2, epilogue=1))


def test_in_exact_mode_the_sum_is_rounded_once() -> None:
    a, b = normal((16, 64), 8), normal((64, 16), 9)
    outcome = kernels.tma_ring(a, b, tensor="exact")
    as_float = [
        (kernels.bfloat16(x).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for x in (a, b)
    ]
    bound = testing.gemm_bound(*as_float, testing.fma("float32", 4096), out_dtype="float32")
    testing.assert_within(outcome.got, as_float[0] @ as_float[1], bound)
    assert not outcome.result.report.findings


@every_schedule
def test_cluster_sum(schedule: str, seed: int) -> None:
    """Two clusters; the last tile is ragged; the order of the sums shows in random data."""
    check(kernels.cluster_sum(normal((61, 64), 10), schedule=schedule, seed=seed))
