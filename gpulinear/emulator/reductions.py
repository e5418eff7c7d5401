"""What the asynchronous reductions do with each element (PTX ISA 9.0, 9.7.9.25.4.2, 9.7.9.25.5.3 and 9.7.13.7).

Float32 sums flush subnormal inputs and results, as the ISA says of the present implementation; sums of half types
(.noftz) and of float64 keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats
from gpulinear.emulator.conversions import narrow, to_float
from gpulinear.emulator.global_order import SCOPES, How
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.shape import shape_of
from gpulinear.emulator.types import DTYPES

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]
Function = Callable[[Array, Array], Array]

_RELAXED_GPU = How(level=SCOPES["gpu"])


def _half(function: Function, kind: str) -> Function:
    return lambda a, b: narrow(function(to_float(a, kind), to_float(b, kind)), kind)


_FUNCTIONS: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda a, b: np.where(a >= b, 0, a + 1).astype(a.dtype),
    "dec": lambda a, b: np.where((a == 0) | (a > b), b, a - 1).astype(a.dtype),
}


def function_of(operation: str, ptx_type: str) -> Function:
    """New value of an element from its old value and the operand."""
    if ptx_type in ("f32", "f64"):
        return lambda a, b: floats.add(a, b, ftz=ptx_type == "f32")
    if ptx_type in ("f16", "bf16"):
        chosen: dict[str, Function] = {"add": lambda a, b: a + b, "min": floats.minimum, "max": floats.maximum}
        return _half(chosen[operation], ptx_type)
    return _FUNCTIONS[operation]


def reduce_global(lanes: Lanes, addresses: Array, data: Array, unit: int, operation: str, ptx_type: str) -> None:
    """Reduces units of bytes into global memory, for one thread; each element by itself is .relaxed.gpu."""
    dtype, function = DTYPES[ptx_type], function_of(operation, ptx_type)
    rows = np.ascontiguousarray(data).reshape(-1).view(dtype).reshape(len(addresses), -1)
    same = Lanes(lanes.cta, np.full(len(addresses), lanes.threads[0]), lanes.instruction)
    memory = lanes.cta.launch.memory
    memory.update(same, addresses, dtype, unit // dtype.itemsize, lambda old, at: function(old, rows[at]), _RELAXED_GPU)


def reduce_shared(owner: Cta, offset: int, data: Array, operation: str, ptx_type: str) -> None:
    """Reduces bytes into the shared memory of a CTA; order and bounds were checked when it was issued."""
    dtype, function = DTYPES[ptx_type], function_of(operation, ptx_type)
    values = data.view(dtype).reshape(-1, 1)
    places = offset + np.arange(0, len(data), dtype.itemsize)
    shape, base = shape_of(places, dtype.itemsize, np.arange(len(places)))
    owner.shared.update(shape, base, dtype, lambda old, at: function(old, values[at]))
