"""A linear layer that keeps its weights: forward and backward on NumPy or CuPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import gemm
from .calls import ACTIVATIONS
from .errors import ArgumentError, ShapeError
from .linear import linear, linear_backward
from .problem import PRECISIONS
from .views import describe, dtype_name, numpy_dtype


@dataclass(frozen=True)
class Context:
    """What a forward pass leaves for its backward pass. ``preact`` is None without an activation."""

    x: Any
    preact: Any


class Linear:
    """y = act(x Wᵀ + b) with its own weight (out_features, in_features) and bias (out_features,).

    Args:
        in_features, out_features: sizes of the last dimension of x and y; at least 0.
        bias: whether there is one.
        activation: None, "relu", "gelu", "gelu_tanh" or "silu".
        dtype: float64, float32, float16 or bfloat16.
        precision: for float32, as for ``linear``.
        xp: numpy or cupy; where the weights live.
        seed: of the initial weights; the same seed gives the same bits with either xp. None: a fresh one.

    Weights and bias start uniform in ±1/sqrt(in_features). ``backward`` sets ``dw`` and ``db``.

    Raises:
        ShapeError, DTypeError, ArgumentError: bad sizes, dtype, activation or precision.

    Source: U = X Wᵀ and its gradients; the initial range is LeCun et al., Efficient BackProp, section 4.6.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        dtype: Any = "float32",
        precision: str | None = None,
        xp: Any = np,
        seed: int | None = None,
    ) -> None:
        if in_features < 0 or out_features < 0:
            raise ShapeError(f"in_features and out_features must be at least 0, got {in_features} and {out_features}")
        if activation is not None and activation not in ACTIVATIONS:
            raise ArgumentError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.dtype = dtype_name(dtype, "dtype")
        if precision is not None and (self.dtype != "float32" or precision not in PRECISIONS):
            raise ArgumentError(
                f"precision must be None or, for float32, one of {', '.join(PRECISIONS)}; got {precision!r} with {self.dtype}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.precision = activation, precision
        rng = np.random.default_rng(seed)
        limit = 1.0 / np.sqrt(max(in_features, 1))

        def draw(shape: tuple[int, ...]) -> Any:
            return xp.asarray(rng.uniform(-limit, limit, shape).astype(numpy_dtype(self.dtype)))

        self.weight = draw((out_features, in_features))
        self.bias: Any = draw((out_features,)) if bias else None
        self.dw: Any = None
        self.db: Any = None

    def __repr__(self) -> str:
        return (
            f"Linear({self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}, dtype={self.dtype!r}, precision={self.precision!r})"
        )

    def __call__(self, x: Any) -> Any:
        """Inference: x (*, in_features) to y (*, out_features); keeps nothing."""
        return linear(x, self.weight, self.bias, activation=self.activation, precision=self.precision)

    def forward(self, x: Any) -> tuple[Any, Context]:
        """x (*, in_features) to y (*, out_features), and what ``backward`` needs."""
        if self.activation is None:
            return self(x), Context(x, None)
        view = describe("x", x)
        preact = gemm.empty(view.device, (*view.shape[:-1], self.out_features), numpy_dtype(self.dtype))
        y = linear(x, self.weight, self.bias, activation=self.activation, precision=self.precision, preact_out=preact)
        return y, Context(x, preact)

    def backward(self, dy: Any, ctx: Context, accumulate: bool = False) -> Any:
        """dy (*, out_features) to dx (*, in_features); sets ``dw`` and ``db``, or adds to them with ``accumulate``."""
        into = accumulate and self.dw is not None
        grads = linear_backward(
            dy,
            ctx.x,
            self.weight,
            needs=("dx", "dw", "db") if self.bias is not None else ("dx", "dw"),
            activation=self.activation,
            preact=ctx.preact,
            precision=self.precision,
            dw_out=self.dw if into else None,
            db_out=self.db if into else None,
            accumulate=into,
        )
        self.dw, self.db = grads.dw, grads.db
        return grads.dx
