"""How many blocks of a kernel fit on an SM at once, and what keeps it from more.

Rules: the occupancy calculator of the CUDA toolkit (cuda_occupancy.h) and the compute-capability tables of the CUDA C++
Programming Guide. Clusters are not modelled: they may leave SMs idle, they do not change what fits on one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..device import DeviceSpec

WARP = 32
_REGISTERS_PER_STEP = 256  # a warp's registers are handed out in steps of this many
_WARPS_PER_STEP = 4  # one for each quarter of an SM

# Resident blocks of an SM, whatever their size, by compute capability.
_BLOCK_SLOTS = {
    (7, 5): 16,
    (8, 0): 32,
    (8, 6): 16,
    (8, 9): 24,
    (9, 0): 32,
    (10, 0): 32,
    (12, 0): 24,
}


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one SM; ``limits`` names what would have to give for one more block."""

    blocks: int
    warps: int
    limits: tuple[str, ...]


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def occupancy(registers: int, smem_bytes: int, threads: int, spec: DeviceSpec) -> Occupancy:
    """What fits on an SM of ``spec``.

    Args:
        registers: of a thread. smem_bytes: of a block, static and dynamic. threads: of a block.
    """
    warps = _round_up(threads, WARP) // WARP
    warp_registers = _round_up(registers * WARP, _REGISTERS_PER_STEP)
    warps_by_registers = spec.regs_per_sm // warp_registers // _WARPS_PER_STEP * _WARPS_PER_STEP
    # sm_80 and later keep 1 KB of each block for the system.
    reserved, step = (1024, 128) if spec.compute_capability >= (8, 0) else (0, 256)
    smem = _round_up(smem_bytes + reserved, step)
    room = {
        "registers": warps_by_registers // warps,
        "shared memory": spec.smem_per_sm // max(1, smem),
        "threads": spec.max_threads_per_sm // (warps * WARP),
        "block slots": _BLOCK_SLOTS[spec.compute_capability],
    }
    blocks = min(room.values())
    return Occupancy(blocks, blocks * warps, tuple(name for name, fits in room.items() if fits == blocks))
