"""Whether a peer's float32 switch took effect, by a product that TF32 cannot give exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...testing import precision_probe
from ..case import Case

_SIZE = 512  # large enough for the kernels that a library takes for large products


def is_exact(multiply: Callable[[Any, Any, Any], None], xp: Any) -> bool:
    """Whether ``multiply(left, right, out)`` on float32 arrays of ``xp`` keeps all bits of 12-bit integers.

    Two of 512 columns of the left operand hold odd 12-bit integers, the others zeros, and so do two rows of the right:
    every sum is below 2**24 and exact in float32, in any order, while TF32 rounds each integer to 11 bits.
    """
    a, b = precision_probe(_SIZE, _SIZE, 2, seed=0)
    left = np.zeros((_SIZE, _SIZE), np.float32)
    right = np.zeros((_SIZE, _SIZE), np.float32)
    left[:, [0, 300]] = a
    right[[0, 300]] = b
    out = xp.full((_SIZE, _SIZE), np.nan, np.float32)
    multiply(xp.asarray(left), xp.asarray(right), out)
    host = out.get() if hasattr(out, "get") else out
    return bool(np.array_equal(host, a.astype(np.float64) @ b.astype(np.float64)))


def mismatch(case: Case, exact: Callable[[bool], bool]) -> str | None:
    """Why a peer does not compute the case at its precision, as a sentence; None when it does.

    ``exact(tf32)`` is ``is_exact`` of the peer, TF32 asked for or not. The split precisions (tf32x3, bf16x6) stand
    for float32 accuracy, and so their peer is strict float32.
    """
    if case.dtype != "float32":
        return None
    tf32 = case.precision == "tf32"
    if exact(tf32) == tf32:
        return "TF32 was asked for and had no effect" if tf32 else "TF32 was switched off and is still in use"
    return None
