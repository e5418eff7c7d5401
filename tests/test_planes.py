"""Weights that are split once: the bits of a call that splits them itself, what is refused, and the reference's planes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.configs.split import SPLITS
from gpulinear.plan import Plan
from gpulinear.planes import kept_bytes, plane_views

from .fake_cupy import FakeCupy, fake_cupy, ndarray  # noqa: F401 - the fixture
from .test_tensormap import FakeDriver, driver  # noqa: F401 - the fixture

Array = np.ndarray[Any, Any]
PRECISIONS = ("bf16x6", "tf32x3")
BACKENDS = ("reference", "emulator")


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_80"):
        yield


def layer(tokens: int = 5, out: int = 7, inner: int = 19) -> tuple[Array, Array, Array]:
    shapes = ((tokens, inner), (out, inner), (tokens, out))
    x, w, dy = (testing.normal(shape, "float32", seed) for seed, shape in enumerate(shapes))
    return x, w, dy


def special(w: Array) -> Array:
    """A weight with numbers at the ends of the range, and without any."""
    w = w.copy()
    w.flat[:5] = np.inf, -np.inf, np.finfo(np.float32).max, 2.0**-140, -0.0
    w.view(np.uint32).flat[5] = 0x7FFFFFFF  # the NaN that the kernels write
    return w


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_have_the_bits_of_a_call_that_splits(precision: str, arch: str) -> None:
    x, w, dy = layer()
    with gl.host_backend("emulator", arch=arch):
        kept = gl.split(w, precision)
        testing.assert_same_bits(gl.linear(x, kept), gl.linear(x, w, precision=precision))
        assert [family for family, _ in last_results()].count("split_planes") == 2, (
            "without planes x and weight are split"
        )
        gl.linear(x, kept, precision=precision)
        assert [family for family, _ in last_results()].count("split_planes") == 1
        testing.assert_same_bits(gl.dgrad(dy, kept), gl.dgrad(dy, w, precision=precision))
        grads = gl.linear_backward(dy, x, kept), gl.linear_backward(dy, x, w, precision=precision)
        for got, want in zip(*grads, strict=True):
            testing.assert_same_bits(got, want)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("view", testing.VIEWS)
def test_a_weight_of_any_strides(view: str, precision: str) -> None:
    _, w, _ = layer()
    want = gl.split(w, precision).buffer
    testing.assert_same_bits(gl.split(testing.VIEWS[view](w, np), precision).buffer, want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernels_planes_are_the_references(precision: str) -> None:
    w = special(testing.wide((9, 37), "float32", 0))
    on_emulator = gl.split(w, precision)
    with gl.host_backend("reference"):
        testing.assert_same_bits(gl.split(w, precision).buffer, on_emulator.buffer)
    sets = plane_views(on_emulator.buffer, *w.shape, precision)
    assert len(sets) == 1 + SPLITS[precision].along_k
    for kept, matrix in zip(sets, (w, w.T), strict=False):
        shift = np.uint32(8 * (4 - kept.itemsize))
        for bits, plane in zip(kept, reference.planes(np.ascontiguousarray(matrix), precision), strict=True):
            assert np.array_equal(bits[:, : matrix.shape[1]], plane.view(np.uint32) >> shift)
            assert not bits[:, matrix.shape[1] :].any(), "what fills the rows up is zeros"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_planes_joined_are_the_matrix(precision: str) -> None:
    w = special(testing.normal((9, 37), "float32", 0))
    joined, lost = reference.join(reference.planes(w, precision)), 2.0**-22 * (precision == "tf32x3")
    finite = np.isfinite(w)
    assert np.array_equal(joined[~finite], w[~finite], equal_nan=True)
    assert (np.abs(joined[finite].astype(np.float64) - w[finite]) <= lost * np.abs(w[finite]) + 2.0**-134).all()
    assert (np.signbit(joined) == np.signbit(w)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reference_reads_planes(precision: str) -> None:
    x, w, dy = layer()
    with gl.host_backend("reference"):
        kept = gl.split(w, precision)
        testing.assert_same_bits(gl.linear(x, kept), gl.linear(x, w, precision=precision))
        testing.assert_same_bits(gl.dgrad(dy, kept), gl.dgrad(dy, w, precision=precision))


@pytest.mark.parametrize("backend", BACKENDS)
def test_planes_follow_the_weight_when_it_is_split_again(backend: str) -> None:
    x, w, _ = layer()
    with gl.host_backend(backend):
        kept = gl.split(w, "bf16x6")
        before = gl.linear(x, kept)
        w *= 2
        testing.assert_same_bits(gl.linear(x, kept), before)
        assert gl.split(w, "bf16x6", out=kept) is kept
        testing.assert_same_bits(gl.linear(x, kept), 2 * before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 40), (40, 1)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_at_the_edge(shape: tuple[int, int], precision: str, backend: str) -> None:
    w = testing.normal(shape, "float32", 0)
    x, dy = testing.normal((2, shape[1]), "float32", 1), testing.normal((2, shape[0]), "float32", 2)
    with gl.host_backend(backend):
        kept = gl.split(w, precision)
        assert kept.buffer.nbytes == kept_bytes(*shape, precision)
        testing.assert_same_bits(gl.linear(x, kept), gl.linear(x, w, precision=precision))
        testing.assert_same_bits(gl.dgrad(dy, kept), gl.dgrad(dy, w, precision=precision))


def test_a_plan_says_that_planes_are_read() -> None:
    x, w, _ = layer()
    assert "weight is read as the planes that split made" in str(gl.explain("linear", x, gl.split(w, "bf16x6")))
    plan = gl.explain("split", gl.ShapeDtype((64, 48), "float32"), "tf32x3")
    assert isinstance(plan, Plan) and [step.family for step in plan.steps] == ["split_planes"] * 2


def test_what_is_refused_says_so() -> None:
    x, w, dy = layer()
    kept = gl.split(w, "bf16x6")
    with pytest.raises(gl.ArgumentError, match=r"planes for precision='bf16x6', got precision='tf32x3'"):
        gl.linear(x, kept, precision="tf32x3")
    with pytest.raises(gl.DTypeError, match="got them as x"):
        gl.linear(kept, w)
    with pytest.raises(gl.DTypeError, match="got them as x"):
        gl.wgrad(dy, kept)
    with pytest.raises(gl.DTypeError, match="got them as out"):
        gl.dgrad(dy, w, out=kept)
    with pytest.raises(gl.DTypeError, match="got them as weight"):
        gl.split(kept, "bf16x6")
    with pytest.raises(gl.DTypeError, match="share a dtype"):
        gl.linear(x.astype(np.float16), kept)
    with pytest.raises(gl.ShapeError, match="in_features = 19"):
        gl.linear(x[:, 1:], kept)
    with pytest.raises(gl.ArgumentError, match="bf16x6, tf32x3, got 'ieee'"):
        gl.split(w, "ieee")
    with pytest.raises(gl.DTypeError, match="must be float32"):
        gl.split(w.astype(np.float64), "bf16x6")
    with pytest.raises(gl.ShapeError, match=r"2-D"):
        gl.split(w[0], "bf16x6")
    with pytest.raises(gl.DTypeError, match="got ndarray"):
        gl.split(w, "bf16x6", out=w)
    with pytest.raises(gl.ShapeError, match=r"planes of shape \(7, 19\) for 'tf32x3'"):
        gl.split(w, "tf32x3", out=kept)
    with pytest.raises(gl.ArgumentError, match="out overlaps weight"):
        gl.split(kept.buffer[: w.size].reshape(w.shape), "bf16x6", out=kept)
    with pytest.raises(gl.ArgumentError, match="out overlaps weight"):
        gl.linear(x, kept, out=kept.buffer[: 5 * 7].reshape(5, 7))


def test_a_warm_call_is_not_planned_again(
    fake_cupy: FakeCupy,  # noqa: F811
    driver: FakeDriver,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w, dy = (ndarray(a) for a in layer())
    kept = gl.split(w, "bf16x6")

    def calls() -> None:
        gl.split(w, "bf16x6", out=kept)
        gl.linear(x, kept)
        gl.dgrad(dy, kept)

    calls()
    monkeypatch.setattr(gemm, "run", None)
    calls()
    splits = [launch["params"] for launch in fake_cupy.launches if launch["kernel"] == "gpulinear_split_planes"]
    targets = [struct.unpack_from("2Q", params)[1] for params in splits]
    assert targets.count(kept.data.ptr) == 3, "the other launches split x and dy"
    with pytest.raises(gl.BackendError, match="one place"):
        gl.linear(layer()[0], kept)
