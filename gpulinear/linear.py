"""The public functions of the layer.

y  = x Wᵀ + b      linear   NT   (tokens, out) = (tokens, in) (in, out)
dx = dy W          dgrad    NN   (tokens, in)  = (tokens, out) (out, in)
dw = dyᵀ x         wgrad    TN   (out, in)     = (out, tokens) (tokens, in)
db = Σ dy          bgrad         column sums over the tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from . import gemm
from .calls import BUILDERS, NEEDS
from .planes import Planes


class Grads(NamedTuple):
    """Gradients of one layer; None where not asked for."""

    dx: Any
    dw: Any
    db: Any


# ---- public functions --------------------------------------------------------------------------


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    precision: str | None = None,
    out_dtype: Any = None,
    out: Any = None,
    preact_out: Any = None,
) -> Any:
    """y = act(x Wᵀ + b), the forward pass of a fully connected layer.

    Args:
        x: (*, in_features), any leading dimensions and strides; also (in_features,).
        weight: (out_features, in_features), the dtype of x; or its Planes, whose precision is then that of the call.
        bias: (out_features,), the dtype of x or float32; None for none.
        activation: None, "relu", "gelu" (erf), "gelu_tanh" or "silu"; applied before the one rounding of the result.
        precision: for float32 only. "ieee" (default): FMA chains on CUDA cores; subnormals, Inf and NaN as IEEE has them.
            The others run on the tensor cores of sm_80 and later. "bf16x6" and "tf32x3" split both operands into planes;
            they err at most about as much as one FMA chain over the whole depth, tf32x3 up to twice that. Inf and NaN
            are as IEEE has them; elements below 2**-110 (tf32x3: 2**-115) lose up to 2**-134 (2**-137); a product beyond
            2**136 may come out as Inf of either sign or NaN. "tf32": operands rounded to 11 bits, error 2**-10.
            docs/accuracy.md has bounds, modelled errors and the domain.
        out_dtype: float32 for 16-bit inputs, else the dtype of x.
        out: (*, out_features), written only; unit last stride. Decides out_dtype when that is not given.
        preact_out: (*, out_features) of the output dtype; receives x Wᵀ + b.

    Returns:
        y: (*, out_features), ``out`` if it was given. float64, float32, float16 and bfloat16 are accumulated in
        float32 (float64 in float64) in the canonical order of docs/design.md.

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: U = X Wᵀ, the source document's forward formula; Goodfellow, Bengio, Courville, Deep Learning, 6.5.6.
    """
    arrays = (x, weight, bias, out, preact_out)
    bound = gemm.lookup("linear", arrays, (activation, precision, out_dtype))
    if bound is not None:
        return bound(arrays)[3]
    call = BUILDERS["linear"](
        x, weight, bias, activation=activation, precision=precision, out_dtype=out_dtype, out=out, preact_out=preact_out
    )
    gemm.run(call, "linear", arrays, (activation, precision, out_dtype), ("x", "weight", "bias", "out", "preact_out"))
    return call.arrays["out"]


def dgrad(dy: Any, weight: Any, *, precision: str | None = None, out_dtype: Any = None, out: Any = None) -> Any:
    """dx = dy W, the gradient of the loss by the layer's input.

    Args:
        dy: (*, out_features), the gradient by the (pre-activation) output; any strides.
        weight: (out_features, in_features), the dtype of dy; or its Planes, as for ``linear``.
        precision: as for ``linear``.
        out_dtype: float32 for 16-bit inputs, else the dtype of dy.
        out: (*, in_features), written only.

    Returns:
        dx: (*, in_features).

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: ∂ℓ/∂X = ∂ℓ/∂U · W.
    """
    arrays = (dy, weight, out)
    bound = gemm.lookup("dgrad", arrays, (precision, out_dtype))
    if bound is not None:
        return bound(arrays)[2]
    call = BUILDERS["dgrad"](dy, weight, precision=precision, out_dtype=out_dtype, out=out)
    gemm.run(call, "dgrad", arrays, (precision, out_dtype), ("dy", "weight", "out"))
    return call.arrays["out"]


def wgrad(
    dy: Any, x: Any, *, precision: str | None = None, out_dtype: Any = None, out: Any = None, accumulate: bool = False
) -> Any:
    """dw = dyᵀ x, the gradient of the loss by the weight.

    Args:
        dy: (*, out_features), any strides.
        x: (*, in_features), the leading dimensions and dtype of dy.
        precision: as for ``linear``.
        out_dtype: float32 for 16-bit inputs, else the dtype of dy.
        out: (out_features, in_features). Written only, unless ``accumulate``.
        accumulate: add to ``out`` (which is then needed); a 16-bit ``out`` is rounded once.

    Returns:
        dw: (out_features, in_features).

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: ∂ℓ/∂W = (∂ℓ/∂U)ᵀ X.
    """
    arrays = (dy, x, out)
    bound = gemm.lookup("wgrad", arrays, (precision, out_dtype, accumulate))
    if bound is not None:
        return bound(arrays)[2]
    call = BUILDERS["wgrad"](dy, x, precision=precision, out_dtype=out_dtype, out=out, accumulate=accumulate)
    gemm.run(call, "wgrad", arrays, (precision, out_dtype, accumulate), ("dy", "x", "out"))
    return call.arrays["out"]


def bgrad(dy: Any, *, out_dtype: Any = None, out: Any = None, accumulate: bool = False) -> Any:
    """db = Σ dy over all leading dimensions, the gradient of the loss by the bias.

    Args:
        dy: (*, out_features), any strides.
        out_dtype: float32 for 16-bit inputs, else the dtype of dy.
        out: (out_features,). Written only, unless ``accumulate``.
        accumulate: add to ``out`` (which is then needed).

    Returns:
        db: (out_features,).

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: u = W x + b, hence ∂ℓ/∂b = ∂ℓ/∂u, summed over the batch.
    """
    arrays = (dy, out)
    bound = gemm.lookup("bgrad", arrays, (out_dtype, accumulate))
    if bound is not None:
        return bound(arrays)[1]
    call = BUILDERS["bgrad"](dy, out_dtype=out_dtype, out=out, accumulate=accumulate)
    gemm.run(call, "bgrad", arrays, (out_dtype, accumulate), ("dy", "out"))
    return call.arrays["out"]


def linear_backward(
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
) -> Grads:
    """All gradients of one layer: dz = dy · act'(preact), then dx = dz W, dw = dzᵀ x, db = Σ dz.

    Args:
        dy: (*, out_features), the gradient by the layer's output; any strides.
        x: (*, in_features), the layer's input.
        weight: (out_features, in_features), or its Planes, as for ``linear``.
        needs: which of "dx", "dw", "db" to compute.
        activation: the forward pass's activation; then ``preact`` is needed.
        preact: (*, out_features), what ``linear`` stored in ``preact_out``, in the input dtype or float32. dz is
            rounded to the input dtype.
        precision: as for ``linear``.
        dx_out, dw_out, db_out: buffers of shapes (*, in_features), (out_features, in_features), (out_features,); a
            float32 buffer for 16-bit inputs is allowed.
        accumulate: add to dw_out and db_out (dx is always overwritten).

    Returns:
        Grads(dx, dw, db), None where not asked for.

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: ∂ℓ/∂X = ∂ℓ/∂U · W and ∂ℓ/∂W = (∂ℓ/∂U)ᵀ X, with ∂ℓ/∂U = ∂ℓ/∂Y ⊙ act'(U).
    """
    wanted = needs if isinstance(needs, (str, tuple)) else tuple(needs)
    arrays = (dy, x, weight, preact, dx_out, dw_out, db_out)
    flags = (wanted, activation, precision, accumulate)
    bound = gemm.lookup("linear_backward", arrays, flags)
    if bound is not None:
        return Grads(*bound(arrays)[4:])
    call = BUILDERS["linear_backward"](
        dy,
        x,
        weight,
        needs=wanted,
        activation=activation,
        preact=preact,
        precision=precision,
        dx_out=dx_out,
        dw_out=dw_out,
        db_out=db_out,
        accumulate=accumulate,
    )
    names = ("dy", "x", "weight", "preact", "dx_out", "dw_out", "db_out")
    gemm.run(call, "linear_backward", arrays, flags, names)
    return Grads(*(call.arrays.get(f"{name}_out") for name in NEEDS))


def split(weight: Any, precision: str, *, out: Planes | None = None) -> Planes:
    """The planes of a float32 weight, to use in its place in ``linear``, ``dgrad`` and ``linear_backward``.

    A call of precision "bf16x6" or "tf32x3" splits both of its operands first. A weight that is used more than once, in
    forward and backward or from call to call, can be split once instead; the results have the same bits. Planes do not
    follow the weight: after a change of it, split again into the same planes.

    Args:
        weight: (out_features, in_features), float32, any strides.
        precision: "bf16x6" (6 bytes per element) or "tf32x3" (16: ``linear`` and ``dgrad`` read different ones).
        out: planes of this shape and precision to write; None for new ones.

    Returns:
        Planes: ``out`` if it was given.

    Raises:
        ShapeError, DTypeError, ArgumentError, BackendError, CompileError: before anything is launched or written.

    Source: docs/accuracy.md; kernels/split_planes.cuh.
    """
    arrays = (weight, out)
    bound = gemm.lookup("split", arrays, (precision,))
    if bound is not None:
        filled = bound(arrays)[1]
        return filled if out is not None else Planes(weight.shape, precision, filled)
    call = BUILDERS["split"](weight, precision, out=out)
    gemm.run(call, "split", arrays, (precision,), ("weight", "out"))
    return out if out is not None else Planes(tuple(weight.shape), precision, call.arrays["out"])
