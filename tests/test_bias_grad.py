"""db out of the wgrad's launch: the bits of ``bgrad`` in every tile, split, segment and batch, and nothing beside them.

Segments are 64 or 128 rows long here, those of ``column_sum`` too. A finding of a sanitizer is an error in any test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import WGMMA_TILES
from gpulinear.plan import Options

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype("float16")
F32 = np.dtype("float32")
SMALL = "64x64x64"
TILES = [tile.name for tile in WGMMA_TILES if tile.block_n % 64 == 0 and not tile.swapped]


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def planned(tile: str | None = SMALL, segment: int | None = 64, **options: Any) -> AbstractContextManager[None]:
    """Plan with gemm_wgmma, unless another family is named."""
    return gemm.planning(Options(**{"family": "gemm_wgmma", "tile": tile, "segment": segment, **options}))


def operands(tokens: int, out: int, inner: int, dtype: Any = BF16) -> tuple[Array, Array]:
    """dy and x whose sums are inexact."""
    return testing.normal((tokens, out), dtype, 0), testing.normal((tokens, inner), dtype, 1)


def fused(dy: Array, x: Array, **how: Any) -> gl.Grads:
    """dw and db, by one GEMM launch and what finishes its slabs: no kernel reads dy apart."""
    w = np.zeros((dy.shape[-1], x.shape[-1]), dy.dtype)
    grads = gl.linear_backward(dy, x, w, needs=("dw", "db"), **how)
    assert "column_sum" not in [name for name, _ in last_results()]
    return grads


@pytest.mark.parametrize("tile", TILES)
def test_every_tile_gives_the_bits_of_bgrad(tile: str) -> None:
    """Two rows and two columns of tiles, ragged, for clusters with one row of tiles outside; one segment and several."""
    for tokens in (64, 200):
        dy, x = operands(tokens, 264, 264)
        with planned(tile, num_sms=3):
            grads = fused(dy, x)
            testing.assert_same_bits(grads.db, gl.bgrad(dy))
            testing.assert_same_bits(grads.dw, gl.wgrad(dy, x))


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
def test_every_number_of_tokens(tokens: int, splits: int) -> None:
    """1, S - 1, S, S + 1, 3 S + 8, as one item of work and as one for each segment."""
    dy, x = operands(tokens, 72, 72, F16)
    with planned(splits=splits, num_sms=2):
        testing.assert_same_bits(fused(dy, x).db, gl.bgrad(dy))
