"""Predicts how long a GEMM variant takes, to choose between legal ones. Never a claim of speed.

The model: compute time of the fullest SM, or memory time, whichever is larger, plus the ordered second pass of split-K.
How fast the main loop of a variant is, is said by its family (``GemmConfig.macs_per_clock``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import GemmConfig
from .device import DeviceSpec
from .problem import ITEMSIZE, Gemm, accumulator_dtype

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


def blocks_per_sm(config: GemmConfig, spec: DeviceSpec) -> int:
    """Resident blocks of one SM, from registers (allocated by 8 per thread), shared memory and threads."""
    by_registers = spec.regs_per_sm // (ceil_div(config.registers, 8) * 8 * config.threads)
    reserved = 1024 if spec.compute_capability >= (8, 0) else 0  # of each block for the system
    by_smem = spec.smem_per_sm // max(1, config.smem_bytes + reserved)
    by_threads = spec.max_threads_per_sm // config.threads
    return max(1, min(by_registers, by_smem, by_threads))


def predict(gemm: Gemm, config: GemmConfig, splits: int, spec: DeviceSpec, num_sms: int) -> Cost:
    """Predict one GEMM of ``splits`` parts of K on ``num_sms`` SMs of ``spec``."""
    acc = accumulator_dtype(gemm.dtype)
    tiles = ceil_div(gemm.m, config.block_m) * ceil_div(gemm.n, config.block_n)
    segments = ceil_div(gemm.k, config.segment)
    k_per_split = min(gemm.k, ceil_div(segments, splits) * config.segment)
    resident = blocks_per_sm(config, spec)
    # A wave is one block on every SM; resident blocks share the SM's issue slots, so time grows with blocks per SM.
    per_sm = ceil_div(tiles * splits, num_sms)
    warps = min(per_sm, resident) * config.threads / 32
    rate = config.macs_per_clock(spec, warps)
    clocks = per_sm * config.block_m * config.block_n * (k_per_split + config.block_k) / rate
    compute = clocks / (spec.clock_ghz * 1e9)

    item = ITEMSIZE[gemm.dtype] * config.planes
    unique = (gemm.m * gemm.k + gemm.k * gemm.n) * item + gemm.m * gemm.n * ITEMSIZE[gemm.d.dtype]
    tile_reads = tiles * (config.block_m + config.block_n) * gemm.k * item
    traffic = unique + max(0, tile_reads - unique) * (1 - _L2_REUSE) * 0.1
    # Running totals or slabs: written and read once per segment beyond the first.
    totals = (segments if splits > 1 else segments - 1) * gemm.m * gemm.n * ITEMSIZE[acc] * 2
    memory = (traffic + totals) / (spec.dram_gbps * 1e9)
    seconds = max(compute, memory) + (_LAUNCH_SECONDS if splits > 1 else 0.0)
    return Cost(seconds, compute, memory, tiles * splits / num_sms, resident)
