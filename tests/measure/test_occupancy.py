"""What fits on an SM, against cases worked out by hand from the tables that occupancy.py names."""

from __future__ import annotations

import pytest

from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.measure.occupancy import occupancy


@pytest.mark.parametrize(
    ("arch", "registers", "smem", "threads", "blocks", "limits"),
    [
        # 65536 registers, 8 warps of 128 x 32: two blocks. One more register is 136 x 32 a warp: 15 warps, so 12.
        ("sm_90a", 128, 0, 256, 2, ("registers",)),
        ("sm_90a", 129, 0, 256, 1, ("registers",)),
        ("sm_90a", 43, 0, 128, 10, ("registers",)),  # handed out by 8 per thread: 48, 42 warps, so 40
        # Blocks of two warps: 14 warps have registers, but each quarter of the SM holds three of them.
        ("sm_90a", 144, 0, 64, 6, ("registers",)),
        # 2048 threads of 32 registers fill both.
        ("sm_90a", 32, 0, 256, 8, ("registers", "threads")),
        ("sm_90a", 16, 0, 1024, 2, ("threads",)),
        ("sm_86", 16, 0, 512, 3, ("threads",)),  # 1536 threads
        # 228 KB: 227 KB and the system's 1 KB are one block; 113 KB and 1 KB are two, 128 bytes more are one.
        ("sm_90a", 64, 227 * 1024, 256, 1, ("shared memory",)),
        ("sm_90a", 64, 113 * 1024, 256, 2, ("shared memory",)),
        ("sm_90a", 64, 113 * 1024 + 1, 256, 1, ("shared memory",)),
        # sm_75 keeps nothing for the system.
        ("sm_75", 64, 32 * 1024, 128, 2, ("shared memory",)),
        # 32 threads of few registers: the slots for blocks.
        ("sm_90a", 16, 0, 32, 32, ("block slots",)),
        ("sm_75", 16, 0, 32, 16, ("block slots",)),
        ("sm_89", 16, 0, 32, 24, ("block slots",)),
        # 168 registers a thread, 384 threads: one block of 12 warps.
        ("sm_90a", 168, 200 * 1024, 384, 1, ("registers", "shared memory")),
        ("sm_90a", 255, 0, 512, 0, ("registers",)),  # does not fit at all
    ],
)
def test_known_cases(arch: str, registers: int, smem: int, threads: int, blocks: int, limits: tuple[str, ...]) -> None:
    found = occupancy(registers, smem, threads, DeviceSpec.preset(arch))
    assert (found.blocks, found.warps, found.limits) == (blocks, blocks * threads // 32, limits)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_known_arch_has_its_block_slots(arch: str) -> None:
    assert occupancy(16, 0, 32, DeviceSpec.preset(arch)).blocks >= 16
