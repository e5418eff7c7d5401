"""Predicts how long a GEMM variant takes, to choose between legal ones. Never a claim of speed.

The model: compute time of the fullest SM, or memory time, whichever is larger, plus the ordered second pass of split-K.
How fast the main loop of a variant is, is said by its family (``GemmConfig.macs_per_clock``).
"""

from __future__ import annotations

import math
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


def seconds_per_block(cost: Cost) -> float:
    """Predicted seconds of one block, or item of a persistent grid, on an SM."""
    return cost.compute / math.ceil(cost.waves)


def predict_apart(first: Cost, second: Cost) -> float:
    """Predicted seconds of two GEMMs, one launch after the other."""
    return first.seconds + second.seconds + _LAUNCH_SECONDS


def predict_pair(first: Cost, second: Cost, num_sms: int) -> Cost:
    """Predict two GEMMs in one launch, whose blocks are dealt out to the SMs in turn, those of ``first`` first."""
    blocks = round(first.waves * num_sms)
    together = blocks + round(second.waves * num_sms)

    def load(sm: int) -> float:
        of_first, of_both = ceil_div(blocks - sm, num_sms), ceil_div(together - sm, num_sms)
        return of_first * seconds_per_block(first) + (of_both - of_first) * seconds_per_block(second)

    # The fullest SM is the first of those with a block more of ``first``, or the first of those without.
    compute, memory = max(load(0), load(blocks % num_sms)), first.memory + second.memory
    passes = sum(cost.seconds - max(cost.compute, cost.memory) for cost in (first, second))  # of split-K
    resident = min(first.blocks_per_sm, second.blocks_per_sm)
    return Cost(max(compute, memory) + passes, compute, memory, first.waves + second.waves, resident)


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
