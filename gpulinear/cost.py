"""Predicts how long a GEMM variant takes, to choose between legal ones. Never a claim of speed.

The model: compute time of the fullest SM, or memory time, whichever is larger, plus the ordered second pass of split-K.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import GemmSimtConfig, registers
from .device import DeviceSpec
from .problem import ITEMSIZE, Gemm, accumulator_dtype

# FMA issue slots per SM and clock by (major, minor), float32 then float64: the arithmetic-throughput table of the
# CUDA C++ Programming Guide.
_FMA_PER_CLOCK = {
    (7, 5): (64, 2),
    (8, 0): (64, 32),
    (8, 6): (128, 2),
    (8, 9): (128, 2),
    (9, 0): (128, 64),
    (10, 0): (128, 64),
    (12, 0): (128, 2),
}

# Share of issue slots that the main loop gives to FMA, by outputs per thread: each k step loads thread_m + thread_n
# values and does thread_m * thread_n FMAs.
_FMA_SHARE = {128: 0.90, 64: 0.85, 16: 0.60}

_LAUNCH_SECONDS = 3e-6  # one more kernel in the stream
_L2_REUSE = 0.7  # share of the re-read tile traffic that the L2 serves


@dataclass(frozen=True)
class Cost:
    """Predicted seconds and what they are made of. ``fill`` is the busy share of the SMs in the last wave."""

    seconds: float
    compute: float
    memory: float
    waves: float
    blocks_per_sm: int


def ceil_div(a: int, b: int) -> int:
    """The least integer >= a / b."""
    return -(-a // b)


def blocks_per_sm(config: GemmSimtConfig, spec: DeviceSpec) -> int:
    """Resident blocks of one SM, from registers (allocated by 8 per thread), shared memory and threads."""
    by_registers = spec.regs_per_sm // (ceil_div(registers(config), 8) * 8 * config.threads)
    by_smem = spec.smem_per_sm // (config.smem_bytes + 1024)  # 1 KB per block is the system's
    by_threads = spec.max_threads_per_sm // config.threads
    return max(1, min(by_registers, by_smem, by_threads))


def predict(gemm: Gemm, config: GemmSimtConfig, splits: int, spec: DeviceSpec, num_sms: int) -> Cost:
    """Predict one GEMM of ``splits`` parts of K on ``num_sms`` SMs of ``spec``."""
    acc = accumulator_dtype(gemm.dtype)
    peak = _FMA_PER_CLOCK.get(spec.compute_capability, (128, 2))[acc == "float64"]
    tiles = ceil_div(gemm.m, config.block_m) * ceil_div(gemm.n, config.block_n)
    segments = ceil_div(gemm.k, config.segment)
    k_per_split = min(gemm.k, ceil_div(segments, splits) * config.segment)
    resident = blocks_per_sm(config, spec)
    # A wave is one block on every SM; resident blocks share the SM's issue slots, so time grows with blocks per SM.
    per_sm = ceil_div(tiles * splits, num_sms)
    outputs = config.thread_m * config.thread_n
    share = _FMA_SHARE.get(outputs, 0.6)
    # Few warps cannot hide latency: an SM with less than 8 warps issues proportionally less.
    warps = min(per_sm, resident) * config.threads / 32
    share *= min(1.0, warps / 8)
    clocks = per_sm * config.block_m * config.block_n * (k_per_split + config.block_k) / (peak * share)
    compute = clocks / (spec.clock_ghz * 1e9)

    item = ITEMSIZE[gemm.dtype]
    unique = (gemm.m * gemm.k + gemm.k * gemm.n) * item + gemm.m * gemm.n * ITEMSIZE[gemm.d.dtype]
    tile_reads = tiles * (config.block_m + config.block_n) * gemm.k * item
    traffic = unique + max(0, tile_reads - unique) * (1 - _L2_REUSE) * 0.1
    # Running totals or slabs: written and read once per segment beyond the first.
    totals = (segments if splits > 1 else segments - 1) * gemm.m * gemm.n * ITEMSIZE[acc] * 2
    memory = (traffic + totals) / (spec.dram_gbps * 1e9)
    seconds = max(compute, memory) + (_LAUNCH_SECONDS if splits > 1 else 0.0)
    return Cost(seconds, compute, memory, tiles * splits / num_sms, resident)
