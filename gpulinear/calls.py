"""Checks the arguments of a layer function and turns the layer's algebra into the problems of one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import gemm
from .configs.split import SPLITS
from .errors import ArgumentError, DTypeError, ShapeError
from .planes import Planes, kept_bytes
from .problem import (
    ACTIVATION_CODES,
    ITEMSIZE,
    PRECISIONS,
    ActGrad,
    ColumnSum,
    Gemm,
    Matrix,
    Problem,
    SplitPlanes,
    Vector,
)
from .views import (
    ArrayView,
    ShapeDtype,
    alignment,
    check_output,
    check_overlaps,
    common_device,
    describe,
    dtype_name,
    matrix,
    numpy_dtype,
    same_dtype,
    vector,
)

ACTIVATIONS = tuple(name for name in ACTIVATION_CODES if name is not None)
NEEDS = ("dx", "dw", "db")


# ---- argument rules ----------------------------------------------------------------------------


def _check_activation(activation: str | None) -> None:
    if activation not in ACTIVATION_CODES:
        raise ArgumentError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _check_precision(precision: str | None, dtype: str, weight: ArrayView | None = None) -> str | None:
    """The precision of a call: that of a weight in planes, else ieee for float32 unless named; None for the other dtypes."""
    if weight is not None and weight.planes is not None:
        if precision not in (None, weight.planes):
            raise ArgumentError(
                f"weight holds planes for precision={weight.planes!r}, got precision={precision!r}; drop it, or split the "
                f"weight for {precision!r}"
            )
        return weight.planes
    if dtype != "float32":
        if precision is not None:
            raise ArgumentError(
                f"precision is for float32 inputs only, got precision={precision!r} with {dtype}; drop it"
            )
        return None
    if precision is None:
        return "ieee"
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def _check_matrix(view: ArrayView, what: str) -> None:
    if len(view.shape) != 2:
        raise ShapeError(f"{view.name} must be 2-D {what}, got shape {view.shape}")


def _check_last(view: ArrayView, extent: int, what: str) -> None:
    if len(view.shape) < 1:
        raise ShapeError(f"{view.name} must have at least one dimension, got a scalar array")
    if view.shape[-1] != extent:
        raise ShapeError(f"the last dimension of {view.name} must be {what} = {extent}, got shape {view.shape}")


def _check_planes(view: ArrayView, allowed: bool) -> None:
    if view.planes is not None and not allowed:
        raise DTypeError(
            f"planes take the place of a weight in linear, dgrad and linear_backward only, got them as {view.name}; pass "
            f"the float32 array"
        )


def _output_dtypes(dtype: str) -> tuple[str, ...]:
    """What a result may be stored as: the input dtype, or float32 for 16-bit inputs."""
    return (dtype,) if dtype in ("float32", "float64") else (dtype, "float32")


def _resolve_out_dtype(dtype: str, out_dtype: Any, out: ArrayView | None, name: str) -> str:
    if out_dtype is None:
        return dtype if out is None else out.dtype
    asked = dtype_name(out_dtype, "out_dtype")
    if asked not in _output_dtypes(dtype):
        raise DTypeError(f"out_dtype must be {' or '.join(_output_dtypes(dtype))} for {dtype} inputs, got {asked}")
    if out is not None and out.dtype != asked:
        raise DTypeError(f"{name} is {out.dtype} but out_dtype asks for {asked}; drop one of the two")
    return asked


# ---- calls -------------------------------------------------------------------------------------


class _CallBuilder:
    """Gathers the arrays of one call, checks them together, and makes what the caller did not give."""

    def __init__(self, op: str, **inputs: Any) -> None:
        self.op = op
        self.inputs = {name: describe(name, array) for name, array in inputs.items() if array is not None}
        for name, view in self.inputs.items():
            _check_planes(view, name == "weight" and op != "split")
        self.outputs: dict[str, ArrayView] = {}
        self.missing: dict[str, tuple[tuple[int, ...], str]] = {}

    def __getitem__(self, name: str) -> ArrayView:
        return self.inputs[name]

    def get(self, name: str) -> ArrayView | None:
        """An input, or None where it was not given."""
        return self.inputs.get(name)

    def given(self, name: str, array: Any) -> ArrayView | None:
        """Register an output the caller passed."""
        if array is None:
            return None
        view = describe(name, array)
        _check_planes(view, False)
        self.outputs[name] = view
        return view

    def output(self, name: str, shape: tuple[int, ...], dtype: str, allowed: Sequence[str]) -> None:
        """Check a given output against its rule, or note that it must be made."""
        view = self.outputs.get(name)
        if view is None:
            self.missing[name] = (shape, dtype)
        else:
            check_output(view, shape, allowed)

    def finish(self) -> _Arrays:
        """The last checks, which concern all arrays together; then allocate. Nothing is written before this."""
        everything = [*self.inputs.values(), *self.outputs.values()]
        device = common_device(everything)
        check_overlaps(list(self.outputs.values()), list(self.inputs.values()))
        planning = all(view.array is None for view in everything)
        for name, (shape, dtype) in self.missing.items():
            made = ShapeDtype(shape, dtype) if planning else gemm.empty(device, shape, numpy_dtype(dtype))
            self.outputs[name] = describe(name, made)
        views = {**self.inputs, **self.outputs}
        return _Arrays(views, alignment([view.pointer for view in views.values()]), device)


@dataclass(frozen=True)
class _Arrays:
    """All checked arrays of a call and the alignment they share."""

    views: dict[str, ArrayView]
    align: int
    device: int

    def matrix(self, name: str) -> Matrix:
        return matrix(self.views[name], self._align(self.views[name]))

    def vector(self, name: str) -> Vector:
        return vector(self.views[name], self._align(self.views[name]))

    def _align(self, view: ArrayView) -> int:
        """What all arrays share, or the size of an item where the array has at least that: a 16-bit array at an odd element
        must not make float32 ones look misaligned."""
        return max(self.align, min(ITEMSIZE[view.dtype], alignment([view.pointer])))

    def call(self, op: str, problems: Sequence[Problem], temporaries: Sequence[tuple[str, int]] = ()) -> gemm.Call:
        arrays = {name: view.array for name, view in self.views.items()}
        pointers = {name: view.pointer for name, view in self.views.items()}
        return gemm.Call(op, tuple(problems), tuple(temporaries), arrays, pointers, self.device)


def _build_linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    precision: str | None = None,
    out_dtype: Any = None,
    out: Any = None,
    preact_out: Any = None,
) -> gemm.Call:
    builder = _CallBuilder("linear", x=x, weight=weight, bias=bias)
    _check_activation(activation)
    _check_matrix(builder["weight"], "(out_features, in_features)")
    n, k = builder["weight"].shape
    _check_last(builder["x"], k, "in_features")
    dtype = same_dtype([builder["x"], builder["weight"]])
    precision = _check_precision(precision, dtype, builder["weight"])
    b = builder.get("bias")
    if b is not None:
        if b.shape != (n,):
            raise ShapeError(f"bias must have shape (out_features,) = ({n},), got {b.shape}")
        if b.dtype not in (dtype, "float32"):
            raise DTypeError(f"bias must be {dtype} or float32 with {dtype} operands, got {b.dtype}")
    shape = (*builder["x"].shape[:-1], n)
    result = _resolve_out_dtype(dtype, out_dtype, builder.given("out", out), "out")
    builder.output("out", shape, result, (result,) if out_dtype is not None else _output_dtypes(dtype))
    if builder.given("preact_out", preact_out) is not None:
        builder.output("preact_out", shape, result, (result,))
    arrays = builder.finish()
    problem = Gemm(
        "linear",
        arrays.matrix("x"),
        arrays.matrix("weight").T,
        arrays.matrix("out"),
        precision,
        arrays.vector("bias") if b is not None else None,
        activation,
        arrays.matrix("preact_out") if preact_out is not None else None,
    )
    return arrays.call("linear", [problem])


def _build_dgrad(
    dy: Any, weight: Any, *, precision: str | None = None, out_dtype: Any = None, out: Any = None
) -> gemm.Call:
    builder = _CallBuilder("dgrad", dy=dy, weight=weight)
    _check_matrix(builder["weight"], "(out_features, in_features)")
    n, k = builder["weight"].shape
    _check_last(builder["dy"], n, "out_features")
    dtype = same_dtype([builder["dy"], builder["weight"]])
    precision = _check_precision(precision, dtype, builder["weight"])
    result = _resolve_out_dtype(dtype, out_dtype, builder.given("out", out), "out")
    builder.output("out", (*builder["dy"].shape[:-1], k), result, _output_dtypes(dtype))
    arrays = builder.finish()
    problem = Gemm("dgrad", arrays.matrix("dy"), arrays.matrix("weight"), arrays.matrix("out"), precision)
    return arrays.call("dgrad", [problem])


def _check_same_rows(dy: ArrayView, x: ArrayView) -> None:
    if len(dy.shape) < 1 or len(x.shape) < 1:
        raise ShapeError(f"dy and x must have at least one dimension, got shapes {dy.shape} and {x.shape}")
    if dy.shape[:-1] != x.shape[:-1]:
        raise ShapeError(f"dy and x must have the same leading dimensions, got shapes {dy.shape} and {x.shape}")


def _check_accumulate(accumulate: bool, buffer: Any, name: str) -> None:
    if accumulate and buffer is None:
        raise ArgumentError(f"accumulate=True adds to a buffer and needs {name}=, got None; pass the gradient buffer")


def _build_wgrad(
    dy: Any, x: Any, *, precision: str | None = None, out_dtype: Any = None, out: Any = None, accumulate: bool = False
) -> gemm.Call:
    builder = _CallBuilder("wgrad", dy=dy, x=x)
    _check_same_rows(builder["dy"], builder["x"])
    _check_accumulate(accumulate, out, "out")
    n, k = builder["dy"].shape[-1], builder["x"].shape[-1]
    dtype = same_dtype([builder["dy"], builder["x"]])
    precision = _check_precision(precision, dtype)
    result = _resolve_out_dtype(dtype, out_dtype, builder.given("out", out), "out")
    builder.output("out", (n, k), result, _output_dtypes(dtype))
    arrays = builder.finish()
    problem = Gemm(
        "wgrad", arrays.matrix("dy").T, arrays.matrix("x"), arrays.matrix("out"), precision, accumulate=accumulate
    )
    return arrays.call("wgrad", [problem])


def _build_bgrad(dy: Any, *, out_dtype: Any = None, out: Any = None, accumulate: bool = False) -> gemm.Call:
    builder = _CallBuilder("bgrad", dy=dy)
    if len(builder["dy"].shape) < 1:
        raise ShapeError("dy must have at least one dimension, got a scalar array")
    _check_accumulate(accumulate, out, "out")
    dtype = builder["dy"].dtype
    result = _resolve_out_dtype(dtype, out_dtype, builder.given("out", out), "out")
    builder.output("out", builder["dy"].shape[-1:], result, _output_dtypes(dtype))
    arrays = builder.finish()
    return arrays.call("bgrad", [ColumnSum(arrays.matrix("dy"), arrays.vector("out"), accumulate)])


def _check_needs(needs: Sequence[str], outs: dict[str, Any]) -> tuple[str, ...]:
    wanted = (needs,) if isinstance(needs, str) else tuple(needs)
    for need in wanted:
        if need not in NEEDS:
            raise ArgumentError(f"needs may name {', '.join(NEEDS)}, got {need!r}")
    for name, buffer in outs.items():
        if buffer is not None and name not in wanted:
            raise ArgumentError(
                f"{name}_out is given but needs={wanted} leaves {name} out; add it to needs or drop the buffer"
            )
    return wanted


def _build_linear_backward(
    dy: Any,
    x: Any,
    weight: Any,
    *,
    needs: Sequence[str] = NEEDS,
    activation: str | None = None,
    preact: Any = None,
    precision: str | None = None,
    dx_out: Any = None,
    dw_out: Any = None,
    db_out: Any = None,
    accumulate: bool = False,
) -> gemm.Call:
    wanted = _check_needs(needs, {"dx": dx_out, "dw": dw_out, "db": db_out})
    _check_activation(activation)
    builder = _CallBuilder("linear_backward", dy=dy, x=x, weight=weight, preact=preact)
    g, xv = builder["dy"], builder["x"]
    _check_matrix(builder["weight"], "(out_features, in_features)")
    n, k = builder["weight"].shape
    _check_same_rows(g, xv)
    _check_last(g, n, "out_features")
    _check_last(xv, k, "in_features")
    dtype = same_dtype([g, xv, builder["weight"]])
    precision = _check_precision(precision, dtype, builder["weight"])
    z = builder.get("preact")
    if (activation is None) != (z is None):
        raise ArgumentError(
            "activation and preact belong together: the backward pass of an activation needs the "
            f"pre-activation that linear stored, got activation={activation!r} and preact "
            f"{'missing' if z is None else 'given'}"
        )
    if z is not None:
        if z.shape != g.shape:
            raise ShapeError(f"preact must have the shape of dy {g.shape}, got {z.shape}")
        if z.dtype not in (dtype, "float32"):
            raise DTypeError(f"preact must be {dtype} or float32 with {dtype} operands, got {z.dtype}")
    for name, buffer in (("dw", dw_out), ("db", db_out)):
        if name in wanted:
            _check_accumulate(accumulate, buffer, f"{name}_out")
    allowed = _output_dtypes(dtype)
    shapes = {"dx": (*g.shape[:-1], k), "dw": (n, k), "db": (n,)}
    for name, buffer in (("dx", dx_out), ("dw", dw_out), ("db", db_out)):
        if name in wanted:
            view = builder.given(f"{name}_out", buffer)
            builder.output(f"{name}_out", shapes[name], view.dtype if view else dtype, allowed)
    arrays = builder.finish()

    problems: list[Problem] = []
    temporaries: list[tuple[str, int]] = []
    grad = arrays.matrix("dy")
    db = arrays.vector("db_out") if "db" in wanted else None
    db_of_dw = db if activation is None and "dw" in wanted else None
    if activation is not None:
        tokens = math.prod(g.shape[:-1])
        dz = Matrix("dz", tokens, n, n, 1, dtype)
        temporaries.append(("dz", tokens * n * ITEMSIZE[dtype]))
        problems.append(ActGrad(activation, grad, arrays.matrix("preact"), dz, db, accumulate and db is not None))
        grad = dz
    elif db is not None and db_of_dw is None:
        problems.append(ColumnSum(grad, db, accumulate))
    if "dx" in wanted:
        problems.append(Gemm("dgrad", grad, arrays.matrix("weight"), arrays.matrix("dx_out"), precision))
    if "dw" in wanted:
        dw = arrays.matrix("dw_out")
        problems.append(Gemm("wgrad", grad.T, arrays.matrix("x"), dw, precision, accumulate=accumulate, db=db_of_dw))
    return arrays.call("linear_backward", problems, temporaries)


def _build_split(weight: Any, precision: str, *, out: Any = None) -> gemm.Call:
    builder = _CallBuilder("split", weight=weight)
    _check_matrix(builder["weight"], "(out_features, in_features)")
    if builder["weight"].dtype != "float32":
        raise DTypeError(f"weight must be float32 to be split into planes, got {builder['weight'].dtype}")
    kept = [name for name, split in SPLITS.items() if split.planes > 1]  # to tf32 most architectures round on the way
    if precision not in kept:
        raise ArgumentError(f"precision must be one with planes, {', '.join(kept)}, got {precision!r}")
    shape = builder["weight"].shape
    if out is not None:
        if not isinstance(out, Planes):
            raise DTypeError(f"out must be planes, which split returns, got {type(out).__name__}")
        if (out.shape, out.precision) != (shape, precision):
            raise ShapeError(
                f"out must be planes of shape {shape} for {precision!r}, got planes of shape {out.shape} for {out.precision!r}"
            )
        builder.given("out", out.buffer)
    builder.output("out", (kept_bytes(shape[0], shape[1], precision) // ITEMSIZE["float32"],), "float32", ("float32",))
    arrays = builder.finish()
    return arrays.call("split", [SplitPlanes(precision, arrays.matrix("weight"), arrays.vector("out"))])


BUILDERS: dict[str, Callable[..., gemm.Call]] = {
    "linear": _build_linear,
    "dgrad": _build_dgrad,
    "wgrad": _build_wgrad,
    "bgrad": _build_bgrad,
    "linear_backward": _build_linear_backward,
    "split": _build_split,
}
