"""Compiles and launches the test kernels of tests/emulator/kernels on NumPy data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpulinear.compile import Artifact, compile_kernel
from gpulinear.emulator import GlobalMemory, Result, run, tensorcore
from gpulinear.emulator.tensormap import DataType, Interleave, L2Promotion, OobFill, Swizzle, encode_tiled

Array = np.ndarray[Any, Any]
Change = tuple[str, str]

KERNELS = Path(__file__).parent / "kernels"
RING_BYTES = 3 * 2 * 16384 + 2 * 8192 + 8 * 6  # shared memory of tma_ring.cu


def changed(text: str, changes: Sequence[Change]) -> str:
    """The text with replacements; what is replaced must stand there once, line breaks and indents aside."""
    for old, new in changes:
        pattern = re.compile(r"\s+".join(map(re.escape, re.split(r"\s+", old))))
        places = pattern.findall(text)
        assert len(places) == 1, f"{old!r} stands {len(places)} times in the kernel"
        text = text.replace(places[0], new)
    return text


def build(file: str, entry: str, arch: str, changes: Sequence[Change] = (), **defines: int) -> Artifact:
    """Compile a kernel; its header is pasted in, so that changes may be in either."""
    text = (KERNELS / file).read_text().replace('#include "ptx.cuh"', (KERNELS / "ptx.cuh").read_text())
    head = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return compile_kernel(head + changed(text, changes), entry=entry, arch=arch, include_dir=KERNELS)


def bfloat16(values: Array) -> Array:
    """The bit patterns of float32 values, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: Array = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16)


def integers(shape: tuple[int, ...], seed: int) -> Array:
    """Small integers as float32: every sum of their products is exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def normal(shape: tuple[int, ...], seed: int) -> Array:
    """Normally distributed float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def map_2d(address: int, array: Array, box: tuple[int, int], kind: DataType, swizzle: Swizzle) -> bytes:
    """The tensor map of a row-major matrix; ``box`` is (columns, rows)."""
    rows, columns = array.shape
    plain = (Interleave.NONE, swizzle, L2Promotion.NONE, OobFill.NONE)
    return encode_tiled(kind, 2, address, (columns, rows), (columns * array.itemsize,), box, (1, 1), *plain)


@dataclass(frozen=True)
class Outcome:
    """What a kernel wrote, what it should have written, and what was found."""

    got: Array
    want: Array
    result: Result

    @property
    def right(self) -> bool:
        """Whether all bits are as they should be."""
        return bool((self.got.view(np.uint32) == self.want.view(np.uint32)).all())


def expected(a: Array, b: Array, arch: str, held: Array | None = None) -> Array:
    """A B as the model of the tensor core has it, plus what the output held."""
    product: Array = tensorcore.multiply_add(a, b, np.zeros((len(a), b.shape[1]), np.float32), "bf16", arch)
    if held is not None:
        product += held
    return product


def _output(memory: GlobalMemory, shape: tuple[int, int], held: Array | None) -> int:
    if held is not None:
        return memory.alloc(held, name="C")
    return memory.alloc(4 * shape[0] * shape[1], initialised=False, name="C")


def _read(memory: GlobalMemory, address: int, shape: tuple[int, ...]) -> Array:
    values: Array = memory.view(address, 4 * int(np.prod(shape))).view(np.float32).reshape(shape).copy()
    return values


def mma_ring(a: Array, b: Array, changes: Sequence[Change] = (), **options: Any) -> Outcome:
    """C = A B by mma_ring.cu; a is float32 [M, K], b [K, N], both are rounded to bfloat16."""
    (m, k), n = a.shape, b.shape[1]
    left, right = bfloat16(a), bfloat16(b)
    memory = GlobalMemory()
    params = [memory.alloc(left, name="A"), memory.alloc(right, name="B"), _output(memory, (m, n), None), m, n, k]
    ptx = build("mma_ring.cu", "mma_ring", "sm_80", changes).ptx
    result = run(ptx, None, (-(-n // 32), -(-m // 32)), 64, 0, params, memory=memory, **options)
    return Outcome(_read(memory, params[2], (m, n)), expected(left, right, "sm_80"), result)


def tma_ring(
    a: Array,
    b: Array,
    changes: Sequence[Change] = (),
    *,
    n_major: bool = False,
    epilogue: int = 0,
    ctas: int = 1,
    swizzle: Swizzle = Swizzle.BYTES_128,
    smem: int = RING_BYTES,
    **options: Any,
) -> Outcome:
    """C = A B by tma_ring.cu; a is float32 [M, K], b [K, N]; ``epilogue`` 2 adds to small integers."""
    (m, k), n = a.shape, b.shape[1]
    left, right = bfloat16(a), bfloat16(b)
    stored = right if n_major else np.ascontiguousarray(right.T)
    held = integers((m, n), 9) if epilogue == 2 else None
    memory = GlobalMemory()
    at_a, at_b, at_c = memory.alloc(left, name="A"), memory.alloc(stored, name="B"), _output(memory, (m, n), held)
    maps = [
        map_2d(at_a, left, (64, 128), DataType.BFLOAT16, swizzle),
        map_2d(at_b, stored, (64, 64) if n_major else (64, 128), DataType.BFLOAT16, swizzle),
        map_2d(at_c, np.empty((m, n), np.float32), (32, 64), DataType.FLOAT32, Swizzle.BYTES_128),
    ]
    artifact = build("tma_ring.cu", "tma_ring", "sm_90a", changes, B_MAJOR_N=int(n_major), EPILOGUE=epilogue)
    options = {"registers_per_thread": artifact.resources.registers, **options}
    result = run(artifact.ptx, None, ctas, 384, smem, [*maps, at_c, m, n, k], memory=memory, **options)
    return Outcome(_read(memory, at_c, (m, n)), expected(left, right, "sm_90a", held), result)


def cluster_sum(x: Array, changes: Sequence[Change] = (), **options: Any) -> Outcome:
    """The sums of the columns of float32 x[rows, 32 * clusters] by cluster.cu."""
    rows, columns = x.shape
    memory = GlobalMemory()
    at = memory.alloc(x, name="X")
    out = memory.alloc(4 * columns, initialised=False, name="out")
    tensor_map = map_2d(at, x, (32, 4), DataType.FLOAT32, Swizzle.NONE)
    ptx = build("cluster.cu", "cluster_sum", "sm_90a", changes).ptx
    result = run(ptx, None, columns // 32 * 2, 64, 0, [tensor_map, out, rows], memory=memory, **options)
    parts = [np.zeros(columns, np.float32), np.zeros(columns, np.float32)]
    for i, row in enumerate(x):
        parts[i % 2] += row
    return Outcome(_read(memory, out, (columns,)), parts[0] + parts[1], result)
