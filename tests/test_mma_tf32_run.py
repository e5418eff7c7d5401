"""gemm_mma on float32 operands rounded to tf32, run in the emulator with every sanitizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options

from .layers import f8, ints
from .test_kernel_counters import aligned
from .test_mma_run import ARCHS, F32

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_80"):
        yield


def tf32_layers(tokens: int, out: int, inner: int) -> tuple[Array, Array, Array]:
    return (
        testing.normal((tokens, inner), F32, 0),
        testing.normal((out, inner), F32, 1),
        testing.normal((tokens, out), F32, 2),
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_tf32_integers_are_exact_in_all_majors_on_every_arch(arch: str) -> None:
    for tokens, out, inner in ((72, 40, 36), (33, 31, 17)):
        x, w, dy = (
            ints(tokens, inner, dtype=F32),
            ints(out, inner, dtype=F32, seed=1),
            ints(tokens, out, dtype=F32, seed=2),
        )
        with gl.host_backend("emulator", arch=arch), gemm.planning(Options(family="gemm_mma", segment=32)):
            y = (f8(x) @ f8(w).T).astype(F32)
            testing.assert_same_bits(gl.linear(x, w, precision="tf32"), y)
            testing.assert_same_bits(gl.linear(np.ascontiguousarray(x.T).T, w, precision="tf32"), y)
            testing.assert_same_bits(gl.dgrad(dy, w, precision="tf32"), (f8(dy) @ f8(w)).astype(F32))
            testing.assert_same_bits(gl.wgrad(dy, x, precision="tf32"), (f8(dy).T @ f8(x)).astype(F32))
            assert [family for family, _ in last_results()] == ["gemm_mma"]


def test_tf32_below_sm_80_is_refused_with_a_way_out() -> None:
    x, w, _ = tf32_layers(3, 4, 5)
    with gl.host_backend("emulator", arch="sm_75"), pytest.raises(gl.BackendError, match="precision='ieee'"):
        gl.linear(x, w, precision="tf32")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_chain_of_tf32_is_the_contract(arch: str) -> None:
    """Operands rounded to nearest, ties away; k8 steps of the model; all majors and tiles give these bits."""
    x, w, _ = tf32_layers(20, 24, 72)
    total: Array | None = None
    for start in range(0, 72, 32):
        a, b = (reference.round_tf32(m[:, start : start + 32]).view(np.uint32) for m in (x, w))
        chain = tensorcore.multiply_add(a, b.T, np.zeros((20, 24), F32), "tf32", arch)
        total = chain if total is None else total + chain
    with gl.host_backend("emulator", arch=arch):
        with gemm.planning(Options(family="gemm_mma", segment=32)):
            testing.assert_same_bits(gl.linear(x, w, precision="tf32"), total)
            testing.assert_same_bits(gl.linear(np.asfortranarray(x), np.asfortranarray(w), precision="tf32"), total)
        with gemm.planning(Options(family="gemm_mma", segment=32, splits=3, tile="128x128x16/64x64")):
            testing.assert_same_bits(gl.linear(x, w, precision="tf32"), total)


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
def test_tf32_errors_stay_within_the_bounds(fill: str) -> None:
    """Against the product of the rounded operands, and of the operands themselves."""
    make = getattr(testing, fill)
    x, w, dy = make((9, 77), F32, 0), make((11, 77), F32, 1), make((9, 11), F32, 2)
    how = testing.tensor_core("sm_80", "tf32")
    results = (
        (gl.linear(x, w, precision="tf32"), x, w.T),
        (gl.dgrad(dy, w, precision="tf32"), dy, w),
        (gl.wgrad(dy, x, precision="tf32"), dy.T, x),
    )
    for got, a, b in results:
        rounded = f8(reference.round_tf32(a)) @ f8(reference.round_tf32(b))
        testing.assert_within(got, rounded, testing.gemm_bound(a, b, how, out_dtype="float32", precision="tf32"))
        bound = testing.gemm_bound(
            a,
            b,
            how,
            out_dtype="float32",
            representation=testing.REPRESENTATION["tf32"],
            a_error=testing.operand_error(a, "tf32"),
            b_error=testing.operand_error(b, "tf32"),
        )
        testing.assert_within(got, f8(a) @ f8(b), bound)


def test_tf32_rows_do_not_depend_on_the_batch() -> None:  # D2
    x, w, _ = tf32_layers(150, 24, 20)
    whole = gl.linear(x, w, precision="tf32")
    for tokens in (1, 2, 15, 33, 64, 65, 129):
        testing.assert_same_bits(gl.linear(x[:tokens], w, precision="tf32"), whole[:tokens])
        testing.assert_same_bits(gl.linear(x[150 - tokens :], w, precision="tf32"), whole[150 - tokens :])


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
@pytest.mark.parametrize("tile", ["64x64x16/32x32", "128x128x16/64x64"])
def test_tf32_has_no_bank_conflict_and_no_partial_sector(tile: str, op: str) -> None:
    m, n = (int(extent) for extent in tile.split("/")[0].split("x")[:2])
    shapes = {"linear": ((m, 32), (n, 32)), "dgrad": ((m, 32), (32, n)), "wgrad": ((32, m), (32, n))}[op]
    a, b = (aligned(ints(*shape, dtype=F32, seed=seed)) for seed, shape in enumerate(shapes))
    with gemm.planning(Options(tile=tile)):
        getattr(gl, op)(a, b, out=aligned(np.zeros((m, n), F32)), precision="tf32")
    ((_, result),) = last_results()
    assert (result.counters.wavefront_ratio, result.counters.sector_ratio) == (1.0, 1.0), str(result.counters)
