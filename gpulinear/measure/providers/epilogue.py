"""Bias and activation as one elementwise kernel, for peers whose matrix product has no epilogue."""

from __future__ import annotations

from typing import Any

from ..case import Case

_ACTIVATION = {
    None: "v",
    "relu": "v > 0 ? v : acc(0)",
    "gelu": "v * acc(0.5) * (acc(1) + erf(v * acc(0.70710678118654752)))",
    # v (1 + tanh u) / 2 = v / (1 + exp(-2 u)), with 2 u = 2 sqrt(2 / pi) (v + 0.044715 v^3)
    "gelu_tanh": "v / (acc(1) + exp(acc(-1.5957691216057308) * (v + acc(0.044715) * v * v * v)))",
    "silu": "v / (acc(1) + exp(-v))",
}


def wanted(case: Case) -> bool:
    """Whether the case asks for more than a product."""
    return case.bias or case.activation is not None


def describe(case: Case) -> str:
    """What runs, for the rows."""
    parts = [*(["bias"] if case.bias else []), *([case.activation] if case.activation else [])]
    return f"unfused: product, then an elementwise kernel of {' and '.join(parts)}" if parts else ""


def make(case: Case, cupy: Any) -> Any:
    """A CuPy kernel ``f(y, bias, out)``, or ``f(y, out)`` without a bias: out = act(y + bias), elementwise, in float32
    (float64 for float64). ``out`` may be ``y``."""
    accumulator = "double" if case.dtype == "float64" else "float"
    added = " + static_cast<acc>(bias)" if case.bias else ""
    body = (
        f"typedef {accumulator} acc; const acc v = static_cast<acc>(y){added}; "
        f"out = static_cast<T>({_ACTIVATION[case.activation]});"
    )
    inputs = "T y, B bias" if case.bias else "T y"
    return cupy.ElementwiseKernel(inputs, "T out", body, f"bench_{'bias_' * case.bias}{case.activation or 'none'}")
