"""The errors gpulinear raises. Each message gives the rule, the values seen and the fix."""

from __future__ import annotations


class GpuLinearError(Exception):
    """Base of every error of this package."""


class ArgumentError(GpuLinearError, ValueError):
    """An argument has a value outside its rule (unknown activation, overlapping or read-only output, ...)."""


class ShapeError(ArgumentError):
    """A shape, stride or alignment does not fit the call."""


class DTypeError(GpuLinearError, TypeError):
    """An array type or dtype does not fit the call."""


class BackendError(GpuLinearError, RuntimeError):
    """Where the call should run is unknown, missing, mixed, or cannot do what is asked."""


class KernelFault(BackendError):
    """The emulator's sanitizers found a fault in a kernel; the message is their report."""


class CompileError(GpuLinearError, RuntimeError):
    """NVRTC refused a kernel; the message carries its log."""


class TuningWarning(UserWarning):
    """A tuning table is ignored: it is broken, or cannot be read. Results are right without it."""
