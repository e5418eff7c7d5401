"""Rotating operand sets of a case: random values in more memory than the L2 holds, so that each launch finds it cold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..problem import ITEMSIZE
from ..reference import Array
from ..testing import VIEWS, normal
from ..views import numpy_dtype
from .case import Case

# Values come from one pool of normal numbers, copied at shifting offsets: its length is odd, so that rows of a
# power of two never line up with it. Values are random because the power that a GPU draws, and so its clock, depends
# on how many bits toggle.
_POOL = 2**23 + 9

_ALIGN = 256  # bytes: what an allocator gives
_SHARE = 0.4  # of the free memory: peers want workspace too
_L2_FACTOR = 3

# Below 3 L2 / 4096 bytes a set (some 45 KB on an H200), launching costs more than memory does, wherever the data lies.
MAX_SETS = 4096

_INPUTS = {
    "linear": ("x", "weight"),
    "dgrad": ("dy", "weight"),
    "wgrad": ("dy", "x"),
    "backward": ("dy", "x", "weight"),
}
_OUTPUTS = {"linear": ("y",), "dgrad": ("dx",), "wgrad": ("dw",), "backward": ("dx", "dw")}


@dataclass
class OperandSet:
    """What one launch reads and writes.

    inputs: x (tokens, in), weight (out, in), dy (tokens, out), each in the case's view, and bias (out,), as the case
        needs them. outputs: y (tokens, out), dx (tokens, in), dw (out, in), contiguous; an accumulating dw holds
        normal numbers, every other output is uninitialised.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]


def shape_of(case: Case, name: str) -> tuple[int, ...]:
    """The shape of the case's operand ``name``."""
    tokens, out, inner = case.tokens, case.out_features, case.in_features
    return {
        "x": (tokens, inner),
        "dx": (tokens, inner),
        "dy": (tokens, out),
        "y": (tokens, out),
        "weight": (out, inner),
        "dw": (out, inner),
        "bias": (out,),
    }[name]


def dtype_of(case: Case, name: str) -> str:
    """The dtype of the case's operand ``name``; ``out_dtype`` is that of y, of dw, and of dgrad's dx."""
    converted = name in ("y", "dw") or (name == "dx" and case.op == "dgrad")
    return (case.out_dtype if converted else None) or case.dtype


def names_of(case: Case) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the case's inputs and of its outputs."""
    return _INPUTS[case.op] + (("bias",) if case.bias else ()), _OUTPUTS[case.op]


@lru_cache(maxsize=4)
def _pool(dtype: str, seed: int) -> Array:
    return normal((_POOL,), numpy_dtype(dtype), seed)


def _fill(flat: Any, pool: Any, offset: int) -> None:
    """Copy the pool over ``flat`` from ``offset`` on, again and again."""
    done, offset = 0, offset % pool.size
    while done < flat.size:
        take = min(pool.size - offset, flat.size - done)
        flat[done : done + take] = pool[offset : offset + take]
        done, offset = done + take, 0


def _padded_bytes(case: Case, name: str) -> int:
    size = math.prod(shape_of(case, name)) * ITEMSIZE[dtype_of(case, name)]
    return -(-size // _ALIGN) * _ALIGN


def count_sets(case: Case, l2_bytes: int, free_bytes: int) -> int:
    """How many sets the case gets: together over 3 L2 (at most ``MAX_SETS``), 2 or more, within 40 % of free memory.

    Where memory holds only one, it is one: it is then larger than any L2.

    Raises:
        MemoryError: not even one fits.
    """
    inputs, outputs = names_of(case)
    size = sum(_padded_bytes(case, name) for name in inputs + outputs)
    # A view lies in a buffer of up to twice its size, made from a copy with a mask beside it.
    held = size if case.view == "contiguous" else 4 * size
    fitting = int(_SHARE * free_bytes) // held
    if fitting < 1:
        raise MemoryError(
            f"one set of operands of {case.name} takes {held / 2**30:.1f} GiB, and {_SHARE:.0%} of the free memory is "
            f"{_SHARE * free_bytes / 2**30:.1f} GiB; free memory, or leave the case out"
        )
    wanted = max(2, _L2_FACTOR * l2_bytes // size + 1)
    return min(wanted, fitting, MAX_SETS)


def operand_sets(case: Case, xp: Any, l2_bytes: int, free_bytes: int, seed: int = 0) -> list[OperandSet]:
    """Operand sets on the array module ``xp`` (NumPy or CuPy), values N(0, 1) rounded to the dtype.

    Equal arguments give equal values, on either module.

    Raises:
        MemoryError: not even one set fits; see ``count_sets``.
    """
    count = count_sets(case, l2_bytes, free_bytes)
    inputs, outputs = names_of(case)
    columns: dict[str, list[Any]] = {}
    pools: dict[str, Any] = {}
    for number, name in enumerate(inputs + outputs):
        dtype, shape = dtype_of(case, name), shape_of(case, name)
        stride = _padded_bytes(case, name) // ITEMSIZE[dtype]
        buffer = xp.empty(count * stride, numpy_dtype(dtype))
        if name in inputs or (case.accumulate and name == "dw"):
            if dtype not in pools:
                pools[dtype] = xp.asarray(_pool(dtype, seed))
            _fill(buffer, pools[dtype], number * 1_000_003)
        arrays = [buffer[i * stride : i * stride + math.prod(shape)].reshape(shape) for i in range(count)]
        if name in inputs and name != "bias" and case.view != "contiguous":
            arrays = [VIEWS[case.view](array, xp) for array in arrays]
        columns[name] = arrays
    return [
        OperandSet({name: columns[name][i] for name in inputs}, {name: columns[name][i] for name in outputs})
        for i in range(count)
    ]
