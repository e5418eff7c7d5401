"""The kill matrix of what gemm_mma does on sm_75 alone: bugs in the register prefetch, in the shared memory that staged rows
share with the ring, and in the steps of m16n8k8. tests/kill_matrix.py runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options

from .kill_matrix import Mutant, Probe, caught_by, first_verdict, print_matrix, probes_of, sampled
from .layers import f8, ints

Array = np.ndarray[Any, Any]
F16 = np.dtype("float16")
SCHEDULES = ("lockstep", "warps", "random:0")


def tiles() -> Any:
    return gemm.planning(Options(tile="64x64x32/32x32", splits=1, segment=64))


def ragged() -> list[tuple[Array, Array]]:
    """Two tiles in each direction with ragged edges; three segments of K: of two k-tiles, two, and a part of one."""
    x, w = ints(70, 136, dtype=F16), ints(66, 136, dtype=F16, seed=1)
    with tiles():
        return [(gl.linear(x, w), (f8(x) @ f8(w).T).astype(F16))]


def unaligned() -> list[tuple[Array, Array]]:
    """Rows of a multiple of 4 and of 8 bytes."""
    pairs = []
    for inner in (38, 44):
        x, w = ints(5, inner, dtype=F16), ints(6, inner, dtype=F16, seed=1)
        with tiles():
            pairs.append((gl.linear(x, w), (f8(x) @ f8(w).T).astype(F16)))
    return pairs


def order() -> list[tuple[Array, Array]]:
    """The bits of eight products at a time, K ascending."""
    x, w = testing.normal((4, 64), F16, 0), testing.normal((5, 64), F16, 1)
    chain = tensorcore.multiply_add(x.view(np.uint16), w.view(np.uint16).T, np.zeros((4, 5), "f4"), "f16", "sm_75")
    with tiles():
        return [(gl.linear(x, w, out_dtype="float32"), chain)]


KERNEL, TILE, FRAGMENTS = "gemm_mma.cuh", "gemm_mma/tile.cuh", "gemm_mma/fragments.cuh"
FIRST, SECOND = "mma_m16n8k8_f16(d, a[0], a[1], b0);", "mma_m16n8k8_f16(d, a[2], a[3], b1);"

MUTANTS = [
    Mutant("no barrier behind a k-tile", KERNEL, "__syncthreads();  // everybody's is", "// everybody's is", ragged),
    Mutant("stored into the slot that is read", KERNEL, "copy_a.store(held_a, smem + slot * kStageBytes)",
           "copy_a.store(held_a, smem + (1 - slot) * kStageBytes)", ragged),
    Mutant("the tile before is stored again", KERNEL, "if (more) load_tile();", "", ragged),
    Mutant("loaded before it is stored", KERNEL, "} else {\n      copy_a.store",
           "} else {\n      if (more) load_tile();\n      copy_a.store", ragged),
    Mutant("loads the tile after the next", KERNEL, "if (more) load_tile();", "if (more) load_tile(), load_tile();", ragged),
    Mutant("loads over the end of a segment", KERNEL, "t + 2 < segment_end", "t + 1 < segment_end", ragged),
    Mutant("a segment starts with nothing", KERNEL, "if constexpr (!Config::kAsync) load_tile();", "", ragged),
    Mutant("rows staged among fragments", KERNEL,
           "if constexpr (!Config::kAsync) __syncthreads();  // rows are staged where", "// rows are staged where", ragged),
    Mutant("a tile stored among staged rows", KERNEL,
           "if constexpr (!Config::kAsync) __syncthreads();  // the next tile", "// the next tile", ragged),
    Mutant("staged rows beside the ring", KERNEL, "gemm_mma_ring_bytes<Config>() : 0;", "0 : gemm_mma_ring_bytes<Config>();",
           ragged),
    Mutant("an edge is read over", TILE, "if (exists) words =", "words =", ragged),
    Mutant("what is beyond an edge is not zero", TILE, "Words words = {};", "Words words = {0x3C00};", ragged),
    Mutant("the second eight bytes always", TILE, "kWidth < exist);\n      return", "true);\n      return", unaligned),
    Mutant("a word twice", TILE, "source + i * kWidth, i * kWidth < exist", "source, i * kWidth < exist", unaligned),
    Mutant("a chunk in the place of another", TILE, "chunk_offset(plane, i)) = held[plane][i];",
           "chunk_offset(plane, i)) = held[plane][kCount - 1 - i];", ragged),
    Mutant("the first half of B twice", FRAGMENTS, SECOND, SECOND.replace("b1", "b0"), ragged),
    Mutant("k descends", FRAGMENTS, f"{FIRST}\n  {SECOND}", f"{SECOND}\n  {FIRST}", order),
]  # fmt: skip

PROBES = probes_of(MUTANTS)


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    caught: dict[str, str] = {}
    yield caught
    print_matrix("gemm_mma on sm_75, mutants", caught)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_kernel_passes(probe: Probe, schedule: str, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_verdict(probe, monkeypatch, [schedule], "sm_75") is None


@pytest.mark.parametrize("mutant", sampled(MUTANTS))
def test_every_mutant_is_caught(
    mutant: Mutant, compiled: None, matrix: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix[mutant.name] = caught_by(mutant, tmp_path, monkeypatch, SCHEDULES, "sm_75")
