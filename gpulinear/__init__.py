"""gpulinear: the fully connected linear layer on NVIDIA GPUs, forward and both gradients, as hand-written CUDA kernels."""

from __future__ import annotations

from .errors import (
    ArgumentError,
    BackendError,
    CompileError,
    DTypeError,
    GpuLinearError,
    ShapeError,
)
from .explain import explain, warmup
from .gemm import host_backend, options
from .layer import Linear
from .linear import Grads, bgrad, dgrad, linear, linear_backward, split, wgrad
from .planes import Planes
from .views import ShapeDtype

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BackendError",
    "CompileError",
    "DTypeError",
    "GpuLinearError",
    "Grads",
    "Linear",
    "Planes",
    "ShapeDtype",
    "ShapeError",
    "bgrad",
    "dgrad",
    "explain",
    "host_backend",
    "linear",
    "linear_backward",
    "options",
    "split",
    "warmup",
    "wgrad",
]
