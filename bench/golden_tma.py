"""Golden bits of copies by TMA: boxes over all edges of a matrix, swizzled, shared by the two CTAs of a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulinear.compile import Artifact
from gpulinear.emulator import GlobalMemory, run
from gpulinear.emulator.tensormap import encode_tiled
from gpulinear.tensormap import MAP_BYTES, Encoder, TensorMapSpec, encode_on_driver

Array = np.ndarray[Any, Any]

# Where boxes of 64x64 start, as (column, row): inside a matrix of 70x72, over its edges, and beyond them.
BOXES = ((0, 0), (64, 0), (0, 64), (64, 64), (128, 0), (0, 128))


def expected(matrices: Array) -> Array:
    """What is in the shared memory of both CTAs, uint32 [box, 2 * 64, 32], from uint16 [box, rows, columns].

    PTX ISA 5.5.3.3 (zeros beyond the edges) and 5.5.7 (the swizzle); not the emulator's code.
    """
    boxes, rows, cols = matrices.shape
    around = np.zeros((boxes, 192, 192), np.uint16)
    around[:, :rows, :cols] = matrices
    found = np.stack([around[i, y : y + 64, x : x + 64] for i, (x, y) in enumerate(BOXES)])
    row, chunk = np.arange(64)[:, None], np.arange(8)
    swizzled = np.ascontiguousarray(found.reshape(boxes, 64, 8, 8)[:, row, chunk ^ row % 8])
    return np.tile(swizzled.reshape(boxes, 64, 64).view(np.uint32), (1, 2, 1))


def _map_of(matrix: Array, address: int, encode: Encoder) -> bytes:
    """The tensor map of what one CTA asks for: half a box."""
    rows, cols = matrix.shape
    spec = TensorMapSpec("bfloat16", rows, cols, pitch=matrix.strides[0], box_rows=32, box_cols=64)
    return encode(*spec.arguments(address))


def execute(artifact: Artifact, threads: int, matrices: Array, backend: str) -> Array:
    """The same by bench/micro/tma.cu, run on "cuda" or in the "emulator": a launch for each box."""
    out = np.empty((len(matrices), 2 * 64, 32), np.uint32)
    for i, (x, y) in enumerate(BOXES):
        place = np.int32(x), np.int32(y)
        if backend == "cuda":
            import cupy

            device, result = cupy.asarray(matrices[i]), cupy.empty(out[i].shape, out.dtype)
            kernel = cupy.RawModule(path=str(artifact.cubin_path)).get_function("micro")
            tensor_map = np.frombuffer(_map_of(matrices[i], device.data.ptr, encode_on_driver), f"V{MAP_BYTES}")
            kernel((2,), (threads,), (tensor_map, result, *place))
            out[i] = result.get()
        else:
            memory = GlobalMemory()
            source = memory.alloc(matrices[i], name="A", readonly=True)
            target = memory.alloc(out[i].nbytes, name="D", initialised=False)
            params = [_map_of(matrices[i], source, encode_tiled), target, *place]
            run(artifact.ptx, "micro", 2, threads, 0, params, memory=memory).report.raise_if_any()
            out[i] = memory.view(target, out[i].nbytes).view(out.dtype).reshape(out[i].shape)
    return out
