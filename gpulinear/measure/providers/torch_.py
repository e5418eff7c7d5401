"""PyTorch: the matrix product of ``torch.nn.Linear``, with either of the libraries it can be told to prefer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from ..case import Case
from ..operands import OperandSet
from . import epilogue
from .base import Unavailable, out_dtypes, products
from .precision import is_exact, mismatch

_NEGATIVE = ("rows_reversed", "both_reversed")
_FUSED = {"relu": False, "gelu_tanh": True}  # activation -> use_gelu of _addmm_activation; on a GPU that is tanh gelu


class Torch:
    """``torch.mm``, ``addmm`` and ``_addmm_activation`` with ``out=``, on tensors that share CuPy's memory and stream.

    library: "cublas" or "cublaslt", what ``torch.backends.cuda.preferred_blas_library`` is told; torch may still take
    the other, as for a fused epilogue. Its switches are the process's, so two of these change them back and forth.
    16-bit reductions keep torch's defaults, which are the fast ones.
    """

    ours = False
    # What the process is told now: the library to prefer, and CuPy's stream that torch's current stream is.
    _active: ClassVar[str | None] = None
    _stream: ClassVar[int | None] = None

    def __init__(self, library: str) -> None:
        import cupy
        import torch

        if not torch.cuda.is_available():
            raise Unavailable("torch is installed without CUDA, or sees no GPU")
        self.name = f"torch-{library}"
        self._library = library
        self._torch: Any = torch
        self._cupy: Any = cupy
        try:
            self._prefer: Callable[[str], object] = torch.backends.cuda.preferred_blas_library
            self._before: Any = torch.backends.cuda.preferred_blas_library()
            self._switch: Any = torch.backends.cuda.matmul
            # Newer versions refuse a mix of the two switches.
            self._precision = "fp32_precision" if hasattr(self._switch, "fp32_precision") else "allow_tf32"
            self._precision_before: Any = getattr(self._switch, self._precision)
            self._fused: Callable[..., Any] = torch._addmm_activation
            torch.cuda.set_device(cupy.cuda.runtime.getDevice())
        except AttributeError as error:
            raise Unavailable(f"this torch lacks what is timed ({error})") from None
        self._exact = lru_cache(self._probe)
        self._kernel = ""

    def _set_precision(self, tf32: bool) -> None:
        modern = self._precision == "fp32_precision"
        setattr(self._switch, self._precision, ("tf32" if tf32 else "ieee") if modern else tf32)

    def _enter(self) -> None:
        """Make this library and CuPy's stream current, where they are not yet."""
        if Torch._active != self._library:
            self._prefer(self._library)
            Torch._active = self._library
        pointer = self._cupy.cuda.get_current_stream().ptr
        if pointer != Torch._stream:
            cuda = self._torch.cuda
            cuda.set_stream(cuda.ExternalStream(pointer) if pointer else cuda.default_stream())
            Torch._stream = pointer

    def _probe(self, tf32: bool) -> bool:
        self._set_precision(tf32)
        from_dlpack = self._torch.from_dlpack

        def multiply(left: Any, right: Any, out: Any) -> None:
            self._enter()
            self._torch.mm(from_dlpack(left), from_dlpack(right), out=from_dlpack(out))

        return is_exact(multiply, self._cupy)

    def why_not(self, case: Case) -> str | None:
        """It has no negative strides, and a wider output only where the version has it."""
        if case.view in _NEGATIVE:
            return "torch has no negative strides"
        needed = "addmm" if case.accumulate else "mm"
        widened = out_dtypes(case) != {case.dtype}
        if widened and (epilogue.wanted(case) or not hasattr(getattr(self._torch.ops.aten, needed), "dtype_out")):
            return f"this torch.{needed} gives the dtype of its operands"
        return mismatch(case, self._exact)

    def prepare(self, case: Case, sets: Sequence[OperandSet]) -> Callable[[int], None]:
        """Switches TF32 for float32 products of the process until the next ``prepare`` or ``close``."""
        self._set_precision(case.precision == "tf32")
        self._kernel = ""
        work = [[self._steps(case, product, one) for product in products(case, one)] for one in sets]
        steps = [[step for steps in one for step in steps] for one in work]
        enter = self._enter

        def call(i: int) -> None:
            enter()
            for function, args, kwargs in steps[i]:
                function(*args, **kwargs)

        return call

    def _steps(
        self, case: Case, product: Any, one: OperandSet
    ) -> list[tuple[Callable[..., Any], tuple[Any, ...], Any]]:
        """(function, arguments, keyword arguments) of one product and what follows it."""
        torch, aten = self._torch, self._torch.ops.aten
        left, right, out = (torch.from_dlpack(array) for array in (product.left, product.right, product.out))
        bias = torch.from_dlpack(one.inputs["bias"]) if case.bias else None
        to: dict[str, Any] = {"out": out}
        if product.out.dtype != product.left.dtype:
            to["out_dtype"] = out.dtype
        if product.accumulate:
            return [(torch.addmm, (out, left, right), to)]
        if bias is not None and case.activation in _FUSED:
            return [(self._fused, (bias, left, right), {"use_gelu": _FUSED[case.activation], **to})]
        first = (torch.mm, (left, right), to) if bias is None else (torch.addmm, (bias, left, right), to)
        if case.activation is None:
            return [first]
        self._kernel = f"unfused: product, then {case.activation}"
        kernel = {"relu": aten.relu, "silu": aten.silu}.get(case.activation, aten.gelu).out
        style = {"gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}}.get(case.activation, {})
        return [first, (kernel, (out,), {**style, "out": out})]

    def kernel(self, case: Case) -> str:
        """Says so where the activation is a second kernel."""
        return self._kernel

    def close(self) -> None:
        """Torch's library, precision and stream as they were."""
        self._prefer(self._before)
        Torch._active = None
        setattr(self._switch, self._precision, self._precision_before)
        if Torch._stream is not None:
            self._torch.cuda.set_stream(self._torch.cuda.default_stream())
            Torch._stream = None
