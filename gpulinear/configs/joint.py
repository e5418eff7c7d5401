"""Two GEMM variants in one launch: dgrad and wgrad of a layer, each of which alone leaves SMs idle."""

from __future__ import annotations

from dataclasses import dataclass

from ..device import DeviceSpec
from .base import GemmConfig


@dataclass(frozen=True)
class JointConfig:
    """Two variants of one family in one kernel. Blocks, or items of a persistent grid, start with those of ``first``.

    Each computes what it computes in a launch of its own, so that the bits are the same.
    """

    first: GemmConfig
    second: GemmConfig

    @classmethod
    def of(cls, first: GemmConfig, second: GemmConfig) -> JointConfig:
        """The variants as they are launched together."""
        return cls(first.beside(second), second.beside(first))

    @property
    def family(self) -> str:
        """The kernel, as in ``joint_gemm_mma``."""
        return f"joint_{self.first.family}"

    @property
    def tile(self) -> str:
        """The tile of both, or the two of them."""
        same = self.first.tile == self.second.tile
        return self.first.tile if same else f"{self.first.tile} and {self.second.tile}"

    @property
    def threads(self) -> int:
        """Threads of a block, which both share."""
        return self.first.threads

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a block: what the larger one needs."""
        return max(self.first.smem_bytes, self.second.smem_bytes)

    @property
    def registers(self) -> int:
        """The most registers per thread: those of the larger one."""
        return max(self.first.registers, self.second.registers)

    @property
    def min_blocks(self) -> int:
        """Blocks per SM that ptxas must leave registers for."""
        return min(self.first.min_blocks, self.second.min_blocks)

    @property
    def blocks_per_cluster(self) -> int:
        """Blocks of a cluster, the same for both."""
        return self.first.blocks_per_cluster

    def supports(self, spec: DeviceSpec) -> str | None:
        """Why the two cannot share a launch on ``spec``, each being legal alone, as a sentence; None when they can."""
        first, second = self.first, self.second
        if first.family != second.family:
            return f"one kernel is of one family, not of {first.family} and {second.family}"
        if first.threads != second.threads:
            return (
                f"a launch has one number of threads, {first.tile} has {first.threads}, {second.tile} {second.threads}"
            )
        refused = first.joins(second)
        if refused:
            return refused
        registers = self.threads * self.registers
        if registers > spec.regs_per_block or self.smem_bytes > spec.smem_per_block_optin:
            return (
                f"both need {registers} registers and {self.smem_bytes} bytes of shared memory, a block of {spec.arch} "
                f"has {spec.regs_per_block} and {spec.smem_per_block_optin}"
            )
        return None
