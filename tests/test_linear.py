"""The public functions on the NumPy backend: values, views, zero sizes, and every rule that refuses a call."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import testing
from gpulinear.testing import VIEWS

pytestmark = pytest.mark.on_backend

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype("float64"), np.dtype("float32"), np.dtype("float16"), BF16]
F32 = np.dtype("float32")


def ints(*shape: int, dtype: Any = F32, seed: int = 0) -> np.ndarray[Any, Any]:
    return testing.integers(shape, dtype, seed)


def f8(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "out", "inner"), [(1, 1, 1), (5, 7, 3), (33, 31, 65)])
def test_exact_integers(dtype: np.dtype[Any], tokens: int, out: int, inner: int) -> None:
    x, w = ints(tokens, inner, dtype=dtype), ints(out, inner, dtype=dtype, seed=1)
    dy, b = ints(tokens, out, dtype=dtype, seed=2), ints(out, dtype=dtype, seed=3)
    testing.assert_same_bits(gl.linear(x, w, b), (f8(x) @ f8(w).T + f8(b)).astype(dtype))
    testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(dtype))
    testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(dtype))
    testing.assert_same_bits(gl.bgrad(dy), f8(dy).sum(0).astype(dtype))
    grads = gl.linear_backward(dy, x, w)
    testing.assert_same_bits(grads.dx, gl.dgrad(dy, w))
    testing.assert_same_bits(grads.dw, gl.wgrad(dy, x))
    testing.assert_same_bits(grads.db, gl.bgrad(dy))


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_a_16_bit_array_at_an_odd_element_leaves_float32_ones_in_place(arch: str, compiled: None) -> None:
    """Arrays share an alignment, but none has less than its own items."""
    dy, x, w = ints(9, 8, dtype=BF16)[:, 1:], ints(9, 8, dtype=BF16, seed=1), ints(7, 8, dtype=BF16, seed=2)
    dw, db = ints(7, 8, seed=3), ints(7, seed=4)
    want = (f8(dy).T @ f8(x) + f8(dw)).astype(F32), (f8(dy).sum(0) + f8(db)).astype(F32)
    with gl.host_backend("emulator", arch=arch):
        assert "strided_copy" not in [step.family for step in gl.explain("wgrad", dy, x, out=dw).steps]
        gl.linear_backward(dy, x, w, needs=("dw", "db"), dw_out=dw, db_out=db, accumulate=True)
    testing.assert_same_bits(dw, want[0])
    testing.assert_same_bits(db, want[1])


def test_adjoint_identity_on_integers() -> None:
    x, w, dy = ints(9, 13), ints(11, 13, seed=1), ints(9, 11, seed=2)
    y, dx, dw = (f8(a) for a in (gl.linear(x, w), gl.dgrad(dy, w), gl.wgrad(dy, x)))
    assert (f8(dy) * y).sum() == (dx * f8(x)).sum() == (dw * f8(w)).sum() != 0


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = VIEWS[view]
    x, w, dy = ints(6, 10), ints(7, 10, seed=1), ints(6, 7, seed=2)
    vx, vw, vdy = (make(a, np) for a in (x, w, dy))
    testing.assert_same_bits(gl.linear(vx, vw), gl.linear(x, w))
    testing.assert_same_bits(gl.dgrad(vdy, vw), gl.dgrad(dy, w))
    testing.assert_same_bits(gl.wgrad(vdy, vx), gl.wgrad(dy, x))
    testing.assert_same_bits(gl.bgrad(vdy), gl.bgrad(dy))


def test_leading_dimensions_and_one_vector() -> None:
    x, w = ints(2, 3, 4, 5), ints(6, 5, seed=1)
    y = gl.linear(x, w)
    assert y.shape == (2, 3, 4, 6)
    testing.assert_same_bits(y.reshape(24, 6), gl.linear(x.reshape(24, 5), w))
    testing.assert_same_bits(gl.linear(x[0, 0, 0], w), y[0, 0, 0])
    testing.assert_same_bits(gl.wgrad(y, x), gl.wgrad(y.reshape(24, 6), x.reshape(24, 5)))
    outer = gl.wgrad(y[0, 0, 0], x[0, 0, 0])
    testing.assert_same_bits(outer, np.outer(y[0, 0, 0], x[0, 0, 0]) + np.float32(0))
    permuted = np.moveaxis(x, 0, 2)
    testing.assert_same_bits(gl.linear(permuted, w), gl.linear(np.ascontiguousarray(permuted), w))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_sizes(dtype: np.dtype[Any]) -> None:
    bias = ints(3, dtype=dtype)
    out = np.full((2, 3), np.nan, dtype)
    testing.assert_same_bits(
        gl.linear(np.zeros((2, 0), dtype), np.zeros((3, 0), dtype), bias, activation="relu", out=out),
        np.broadcast_to(np.maximum(bias, 0), (2, 3)).astype(dtype),
    )
    assert gl.linear(np.zeros((0, 4), dtype), np.zeros((3, 4), dtype)).shape == (0, 3)
    empty_dy, empty_x = np.zeros((0, 3), dtype), np.zeros((0, 4), dtype)
    testing.assert_same_bits(gl.wgrad(empty_dy, empty_x), np.zeros((3, 4), dtype))
    testing.assert_same_bits(gl.bgrad(empty_dy), np.zeros(3, dtype))
    kept = np.ones((3, 4), dtype)
    gl.wgrad(empty_dy, empty_x, out=kept, accumulate=True)
    assert (kept == 1).all()


def test_out_is_written_only_and_returned() -> None:
    x, w = ints(4, 5), ints(6, 5, seed=1)
    fused = np.full((4, 20), np.nan, F32)
    y = fused[:, 3:9]
    assert gl.linear(x, w, out=y) is y
    testing.assert_same_bits(np.ascontiguousarray(y), gl.linear(x, w))
    assert np.isnan(fused[:, :3]).all() and np.isnan(fused[:, 9:]).all()


def test_out_dtype_and_accumulate() -> None:
    x, dy = ints(40, 5, dtype=BF16), ints(40, 6, dtype=BF16, seed=1)
    wide = gl.wgrad(dy, x, out_dtype="float32")
    assert wide.dtype == F32
    total = np.full((6, 5), 3, F32)
    gl.wgrad(dy, x, out=total, accumulate=True)
    testing.assert_same_bits(total, wide + np.float32(3))
    db = np.full(6, 2, F32)
    gl.bgrad(dy, out=db, accumulate=True)
    testing.assert_same_bits(db, f8(dy).sum(0).astype(F32) + np.float32(2))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_backward_of_an_activation_by_finite_differences(activation: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b, dy = (rng.standard_normal(s) for s in ((5, 4), (3, 4), (3,), (5, 3)))
    z = np.empty((5, 3))
    y = gl.linear(x, w, b, activation=activation, preact_out=z)
    testing.assert_same_bits(z, gl.linear(x, w, b))
    grads = gl.linear_backward(dy, x, w, activation=activation, preact=z)
    step = 2.0**-20
    for name, array, grad in (("x", x, grads.dx), ("w", w, grads.dw), ("b", b, grads.db)):
        direction = rng.standard_normal(array.shape)
        moved = {"x": x, "w": w, "b": b, name: array + step * direction}
        other = {"x": x, "w": w, "b": b, name: array - step * direction}
        forward = gl.linear(moved["x"], moved["w"], moved["b"], activation=activation)
        backward = gl.linear(other["x"], other["w"], other["b"], activation=activation)
        slope = (dy * (forward - backward)).sum() / (2 * step)
        # Truncation is of order step^2 and rounding of order u / step, both far below 2^-24 of the terms summed.
        scale = np.abs(grad * direction).sum() + np.abs(dy * y).sum()
        assert abs(slope - (grad * direction).sum()) <= 2.0**-24 * scale


def test_needs() -> None:
    x, w, dy = ints(4, 5), ints(6, 5, seed=1), ints(4, 6, seed=2)
    grads = gl.linear_backward(dy, x, w, needs=("dw",))
    assert grads.dx is None and grads.db is None and grads.dw.shape == (6, 5)
    assert gl.linear_backward(dy, x, w, needs="db").db.shape == (6,)


X, W, B, DY = ints(4, 5), ints(6, 5), ints(6), ints(4, 6)


def read_only() -> np.ndarray[Any, Any]:
    out = np.zeros((4, 6), F32)
    out.flags.writeable = False
    return out


class FakeTensor:
    __module__ = "torch"


REFUSED = [
    ("weight 1-D", lambda: gl.linear(X, W[0]), gl.ShapeError, "weight must be 2-D"),
    ("inner sizes", lambda: gl.linear(X[:, :4], W), gl.ShapeError, "in_features = 5"),
    ("scalar x", lambda: gl.linear(np.zeros((), F32), W), gl.ShapeError, "at least one dimension"),
    ("bias shape", lambda: gl.linear(X, W, B[:, None]), gl.ShapeError, r"\(6,\)"),
    ("bias dtype", lambda: gl.linear(X, W, f8(B)), gl.DTypeError, "bias must be"),
    ("dtype mix", lambda: gl.linear(X, f8(W)), gl.DTypeError, "share a dtype"),
    ("complex", lambda: gl.linear(X.astype("c8"), W), gl.DTypeError, "x.dtype must be"),
    ("integers", lambda: gl.linear(X.astype("i4"), W), gl.DTypeError, "x.dtype must be"),
    ("object", lambda: gl.linear(X.astype(object), W), gl.DTypeError, "x.dtype must be"),
    ("byte order", lambda: gl.linear(X.astype(">f4"), W), gl.DTypeError, "byte-swapped"),
    ("list", lambda: gl.linear([[1.0]], W), gl.DTypeError, "numpy.asarray"),
    ("torch", lambda: gl.linear(FakeTensor(), W), gl.DTypeError, "cupy.from_dlpack"),
    ("masked", lambda: gl.linear(np.ma.masked_array(X), W), gl.DTypeError, "masked"),
    ("activation", lambda: gl.linear(X, W, activation="swish"), gl.ArgumentError, "relu, gelu"),
    ("precision", lambda: gl.linear(X, W, precision="fast"), gl.ArgumentError, "ieee, tf32"),
    ("precision of f64", lambda: gl.linear(f8(X), f8(W), precision="tf32"), gl.ArgumentError, "float32 inputs only"),
    ("out shape", lambda: gl.linear(X, W, out=np.zeros((4, 5), F32)), gl.ShapeError, "out must have shape"),
    ("out dtype", lambda: gl.linear(X, W, out=np.zeros((4, 6))), gl.DTypeError, "out must be float32"),
    ("out_dtype", lambda: gl.linear(X, W, out_dtype="float16"), gl.DTypeError, "out_dtype must be"),
    (
        "out and out_dtype",
        lambda: gl.linear(X.astype("f2"), W.astype("f2"), out=np.zeros((4, 6), "f2"), out_dtype="float32"),
        gl.DTypeError,
        "drop one of the two",
    ),
    ("read-only out", lambda: gl.linear(X, W, out=read_only()), gl.ArgumentError, "writeable"),
    ("strided out", lambda: gl.linear(X, W, out=np.zeros((4, 12), F32)[:, ::2]), gl.ShapeError, "unit last stride"),
    ("broadcast out", lambda: gl.linear(X, W, out=np.lib.stride_tricks.as_strided(np.zeros(6, F32), (4, 6), (0, 4))),
     gl.ShapeError, "row strides"),
    ("out is x", lambda: gl.linear(X[:, :5], W[:5], out=X), gl.ArgumentError, "overlaps x"),
    ("accumulate without out", lambda: gl.wgrad(DY, X, accumulate=True), gl.ArgumentError, "needs out="),
    ("tokens", lambda: gl.wgrad(DY[:3], X), gl.ShapeError, "same leading dimensions"),
    ("needs", lambda: gl.linear_backward(DY, X, W, needs=("dz",)), gl.ArgumentError, "dx, dw, db"),
    ("unasked out", lambda: gl.linear_backward(DY, X, W, needs=("dx",), db_out=B.copy()), gl.ArgumentError, "leaves db out"),
    ("preact missing", lambda: gl.linear_backward(DY, X, W, activation="relu"), gl.ArgumentError, "belong together"),
    ("preact shape", lambda: gl.linear_backward(DY, X, W, activation="relu", preact=DY[:, :5]), gl.ShapeError, "preact"),
    ("unknown backend", lambda: gl.host_backend("gpu").__enter__(), gl.BackendError, "reference, emulator"),
    ("unknown arch", lambda: gl.host_backend("reference", arch="sm_1").__enter__(), gl.BackendError, "sm_90a"),
    ("num_sms", lambda: gl.options(num_sms=0).__enter__(), gl.ArgumentError, "at least 1"),
    ("explain op", lambda: gl.explain("conv", X, W), gl.ArgumentError, "linear, dgrad"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
    assert issubclass(error, (ValueError, TypeError, gl.BackendError))


def test_nothing_is_written_when_a_call_is_refused() -> None:
    out = np.full((4, 6), 7, F32)
    with pytest.raises(gl.DTypeError):
        gl.linear(X, W, f8(B), out=out)
    assert (out == 7).all()


def test_slices_of_one_fused_buffer_are_legal() -> None:
    fused = np.zeros((4, 11), F32)
    fused[:, :5] = X
    y = gl.linear(fused[:, :5], W, out=fused[:, 5:])
    testing.assert_same_bits(np.ascontiguousarray(y), gl.linear(X, W))
    with pytest.raises(gl.ArgumentError, match="overlaps"):
        gl.linear(fused[:, :5], W, out=fused[:, 4:10])


def test_a_precision_without_kernels_is_refused_by_name() -> None:
    with gl.host_backend("emulator", arch="sm_75"), pytest.raises(gl.BackendError, match=r"sm_80.*precision='ieee'"):
        gl.linear(X, W, precision="tf32")
