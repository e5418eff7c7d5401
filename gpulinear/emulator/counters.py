"""What a profiler would count: bank conflicts, sectors per request, bytes, the instruction mix, FLOPs.

Everything is counted, nothing sampled. How an access is priced says shape.py. "Ideal" is the price of the same request
without bank conflicts (shared memory) or with its bytes side by side (global memory): a ratio of 1 is perfect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpulinear.emulator.ir import Instruction

SHARED, GLOBAL = "shared", "global"


@dataclass
class Row:
    """The requests of one instruction (or of one CUDA line, or all) to one space: warps, wavefronts or sectors."""

    space: str
    where: str
    requests: int = 0
    cost: int = 0
    ideal: int = 0

    @property
    def ratio(self) -> float:
        """Cost over ideal; 1 if there was nothing."""
        return self.cost / self.ideal if self.ideal else 1.0

    def add(self, requests: int, cost: int, ideal: int) -> None:
        """Count more."""
        self.requests += requests
        self.cost += cost
        self.ideal += ideal

    def __str__(self) -> str:
        unit = "wavefronts" if self.space == SHARED else "sectors"
        return f"{self.where}: {self.requests} {self.space} requests, {self.cost} {unit}, ideal {self.ideal}"


@dataclass
class Counters:
    """The counts of a launch. ``moved_bytes`` is by (space, "read" or "write"), ``mix`` by instruction name."""

    moved_bytes: dict[tuple[str, str], int] = field(default_factory=dict)
    mix: dict[str, tuple[int, int]] = field(default_factory=dict)
    total_flops: int = 0
    _rows: dict[tuple[str, int], tuple[Instruction, Row]] = field(default_factory=dict)

    # Counting

    def shared(self, instruction: Instruction, wavefronts: int, ideal: int, requests: int = 1) -> None:
        """A request to shared memory by some warps: their wavefronts, and the fewest possible."""
        self._count(SHARED, instruction, wavefronts, ideal, requests)

    def sectors(self, instruction: Instruction, sectors: int, ideal: int, requests: int = 1) -> None:
        """A request to global memory by some warps: their sectors of 32 bytes, and the fewest possible."""
        self._count(GLOBAL, instruction, sectors, ideal, requests)

    def _count(self, space: str, instruction: Instruction, cost: int, ideal: int, requests: int) -> None:
        known = self._rows.get((space, instruction.index))
        if known is None:
            known = self._rows[space, instruction.index] = (instruction, Row(space, instruction.where()))
        row = known[1]
        row.requests += requests
        row.cost += cost
        row.ideal += ideal

    def moved(self, space: str, direction: str, nbytes: int) -> None:
        """Bytes that lanes (or an asynchronous copy) read from a space or wrote to it."""
        key = (space, direction)
        self.moved_bytes[key] = self.moved_bytes.get(key, 0) + nbytes

    def executed(self, name: str, warps: int, lanes: int) -> None:
        """Executions of an instruction: warps that issued it, and lanes that were active."""
        before = self.mix.get(name, (0, 0))
        self.mix[name] = (before[0] + warps, before[1] + lanes)

    def flops(self, count: int) -> None:
        """Floating-point operations, an FMA as two."""
        self.total_flops += count

    # Summaries

    def instructions(self, space: str) -> list[Row]:
        """A row for each instruction that accessed a space, in the order of the program."""
        chosen = [(index, row) for (kind, index), (_, row) in self._rows.items() if kind == space]
        return [row for _, row in sorted(chosen, key=lambda item: item[0])]

    def lines(self, space: str) -> list[Row]:
        """A row for each CUDA line (PTX line where that is not known), the most excess cost first."""
        merged: dict[str, Row] = {}
        for (kind, _), (instruction, row) in self._rows.items():
            if kind == space:
                location = instruction.location
                where = f"PTX line {instruction.line}" if location is None else str(location)
                merged.setdefault(where, Row(space, where)).add(row.requests, row.cost, row.ideal)
        return sorted(merged.values(), key=lambda row: (row.ideal - row.cost, row.where))

    def total(self, space: str) -> Row:
        """All requests to a space."""
        total = Row(space, "all")
        for row in self.instructions(space):
            total.add(row.requests, row.cost, row.ideal)
        return total

    @property
    def wavefront_ratio(self) -> float:
        """Shared-memory wavefronts over the ideal: 1 means no bank conflicts."""
        return self.total(SHARED).ratio

    @property
    def sector_ratio(self) -> float:
        """Global-memory sectors over the ideal: 1 means that requests are as dense as can be."""
        return self.total(GLOBAL).ratio

    @property
    def warp_instructions(self) -> int:
        """Instructions executed, once for each warp."""
        return sum(warps for warps, _ in self.mix.values())

    @property
    def active_lanes(self) -> float:
        """The mean of the lanes that were active in a warp's instruction, of 32."""
        return sum(lanes for _, lanes in self.mix.values()) / max(1, self.warp_instructions)

    def __str__(self) -> str:
        out = [f"{self.warp_instructions} warp instructions, {self.active_lanes:.1f} of 32 lanes active"]
        out += [f"{n} bytes: {space} {direction}" for (space, direction), n in sorted(self.moved_bytes.items())]
        for space in (SHARED, GLOBAL):
            if self.total(space).requests:
                out.append(str(self.total(space)))
                out += [f"  {row}" for row in self.lines(space) if row.cost > row.ideal][:8]
        if self.total_flops:
            out.append(f"{self.total_flops} FLOPs")
        return "\n".join(out)
