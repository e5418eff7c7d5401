"""Two numbers in one register: what an instruction does with each half of a .f16x2, .bf16x2, .s16x2 or .f32x2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_TYPES: dict[int, tuple[type[np.unsignedinteger[Any]], type[np.unsignedinteger[Any]]]] = {
    16: (np.uint16, np.uint32),
    32: (np.uint32, np.uint64),
}


def split(word: Array, width: int = 16) -> tuple[Array, Array]:
    """The low and the high ``width`` bits of registers that are twice as wide."""
    part = _TYPES[width][0]
    return word.astype(part), (word >> width).astype(part)


def join(low: Array, high: Array, width: int = 16) -> Array:
    """The inverse of ``split``, for parts of any integer type of ``width`` bits."""
    part, whole = _TYPES[width]
    joined: Array = low.view(part).astype(whole) | (high.view(part).astype(whole) << width)
    return joined


def pairwise(function: Callable[..., Array], width: int = 16) -> Callable[..., Array]:
    """A function of unsigned parts, applied to the low parts and to the high parts of its arguments."""

    def apply(*words: Array) -> Array:
        parts = [split(word, width) for word in words]
        return join(function(*[low for low, _ in parts]), function(*[high for _, high in parts]), width)

    return apply
