"""A launch: checks its arguments, packs the parameters, runs all clusters, and says what was found.

Clusters run one after the other; one that spends its share of instructions without ending (it may spin on another's
store) is put aside for the next, and all of them take turns from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.counters import Counters
from gpulinear.emulator.errors import EmulatorError, LaunchError
from gpulinear.emulator.global_memory import GlobalMemory
from gpulinear.emulator.loader import Code, load
from gpulinear.emulator.machine import Cluster, Cta, Stateful, budget_error
from gpulinear.emulator.race import SharedRaces
from gpulinear.emulator.report import Report
from gpulinear.emulator.shared_memory import SharedMemory, layout_shared

Shape = tuple[int, int, int]

SCHEDULES = {"lockstep": "late", "warps": "early", "random": "random"}
"""Each schedule with the way in which it completes asynchronous work."""

SMEM_LIMITS = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Shared memory that a block may have, in bytes (CUDA C++ Programming Guide, compute capabilities)."""

_STATIC_LIMIT = 49152
_SHARE = 100_000  # instructions after which the next cluster gets a turn


@dataclass(frozen=True)
class Result:
    """What a launch gave: the findings (empty for a clean one) and the counters."""

    report: Report
    counters: Counters


def _shape(value: int | Sequence[int], what: str) -> Shape:
    parts = (value,) if isinstance(value, int) else tuple(value)
    parts += (1,) * (3 - len(parts))
    if len(parts) != 3 or any(part < 1 for part in parts):
        raise LaunchError(f"{what} must have one to three extents of at least 1, got {value}")
    return parts[0], parts[1], parts[2]


def pack_params(code: Code, params: Sequence[Any]) -> npt.NDArray[np.uint8]:
    """The parameter block of a launch.

    A Python int takes the width of its parameter; NumPy scalars and arrays, and bytes, must have it exactly.
    """
    declared = code.program.entry.params
    if len(params) != len(declared):
        raise LaunchError(f"{code.program.entry.name} takes {len(declared)} parameters, got {len(params)}")
    block = np.full(max((p.offset + p.size for p in declared), default=0), 0xFF, np.uint8)
    for param, value in zip(declared, params, strict=True):
        if isinstance(value, (bool, float)):
            raise LaunchError(f"{param.name} needs a value of {param.size} bytes; give a NumPy scalar, not {value!r}")
        if isinstance(value, int):
            try:
                data = value.to_bytes(param.size, "little", signed=value < 0)
            except OverflowError:
                raise LaunchError(f"{param.name} has {param.size} bytes, {value} does not fit") from None
        else:
            data = bytes(value) if isinstance(value, (bytes, bytearray)) else np.asarray(value).tobytes()
        if len(data) != param.size:
            raise LaunchError(f"{param.name} has {param.size} bytes, the value has {len(data)}")
        block[param.offset : param.offset + param.size] = np.frombuffer(data, np.uint8)
    return block


class Launch(Stateful):
    """One launch of a loaded entry."""

    def __init__(
        self,
        code: Code,
        grid: Shape,
        block: Shape,
        smem_bytes: int,
        params: Sequence[Any],
        memory: GlobalMemory,
        *,
        schedule: str,
        seed: int,
        tensor: str,
        completion: str | None,
        registers_per_thread: int | None,
        budget: int,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise LaunchError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if tensor not in ("model", "exact"):
            raise LaunchError(f"tensor must be model or exact, got {tensor!r}")
        self.code = code
        self.entry = code.program.entry.name
        self.arch = code.program.module.target.partition(",")[0].strip()
        self.capability = int("".join(c for c in self.arch if c.isdigit()))
        self.grid, self.block = grid, block
        self.threads = math.prod(block)
        self.dynamic_smem = smem_bytes
        directives = code.program.entry.directives
        required = directives.get("reqnctapercluster")
        self.explicit_cluster = required is not None or "explicitcluster" in directives
        self.cluster_shape = _shape(required, "the cluster") if required else (1, 1, 1)
        self.cluster_size = math.prod(self.cluster_shape)
        self.schedule, self.tensor = schedule, tensor
        self.completion = completion or SCHEDULES[schedule]
        self.rng = np.random.default_rng(seed)
        self.memory = memory
        self.registers_per_thread = registers_per_thread
        self.report = Report(self.entry)
        self.counters = Counters()
        self.params = pack_params(code, params)
        used = {key[1] for key in code.constants}
        self.symbols = {v.name: memory.place(v) for v in code.program.placed if v.name in used}
        self._budget = self._left = budget
        self._check_limits(directives)

    def _check_limits(self, directives: dict[str, list[int]]) -> None:
        if self.threads > 1024:
            raise LaunchError(f"a block has at most 1024 threads, got {self.threads}")
        limit = directives.get("maxntid")
        if limit and self.threads > math.prod(limit):
            raise LaunchError(
                f"{self.entry} is compiled for at most {math.prod(limit)} threads, got block {self.block}"
            )
        required = directives.get("reqntid")
        if required and self.block != _shape(required, "reqntid"):
            raise LaunchError(f"{self.entry} is compiled for blocks of {tuple(required)}, got {self.block}")
        for extent, part in zip(self.grid, self.cluster_shape, strict=True):
            if extent % part:
                raise LaunchError(f"grid {self.grid} must be a multiple of the cluster {self.cluster_shape}")
        if self.grid[0] > 2**31 - 1 or max(self.grid[1:]) > 65535:
            raise LaunchError(f"a grid has at most 2147483647, 65535 and 65535 blocks, got {self.grid}")
        static = layout_shared(self.code.shared)[1]
        most = SMEM_LIMITS.get(self.capability, _STATIC_LIMIT)
        if static > _STATIC_LIMIT or static + self.dynamic_smem > most:
            raise LaunchError(
                f"{self.arch} allows {most} bytes of shared memory ({_STATIC_LIMIT} static), "
                f"got {static} static and {self.dynamic_smem} dynamic"
            )
        if self.registers_per_thread is not None and self.registers_per_thread * self.threads > 65536:
            raise LaunchError(
                f"{self.registers_per_thread} registers x {self.threads} threads do not fit an SM's 65536 registers"
            )
        for instruction, names in self.code.missing_fences:
            what = f"{', '.join(names[:4])} are touched" if names else "nothing was fenced"
            self.report.add(
                "missing wgmma.fence",
                f"{what} before this wgmma.mma_async without wgmma.fence in between",
                "put wgmma.fence.sync.aligned between the last access of the registers and the wgmma",
                instruction,
            )

    def make_shared(self, cta: Cta) -> SharedMemory:
        """The shared memory of a CTA."""
        return SharedMemory(self.code.shared, self.dynamic_smem)

    def make_races(self, cta: Cta) -> SharedRaces:
        """The race detector over it."""
        return SharedRaces(cta.shared.size, cta.cluster.clocks, self.report, cta.index, cta.rank)

    def spend(self, instructions: int, cta: Cta) -> None:
        """Count executed instructions against the budget."""
        self._left -= instructions
        if self._left < 0:
            raise budget_error(self.entry, self._budget)

    def _clusters(self) -> Iterator[Cluster]:
        shape, grid = self.cluster_shape, self.grid
        counts = [extent // part for extent, part in zip(grid, shape, strict=True)]
        order = np.arange(math.prod(counts))
        if self.schedule == "random":
            self.rng.shuffle(order)
        for number in order.tolist():
            at = (number % counts[0], number // counts[0] % counts[1], number // (counts[0] * counts[1]))
            cluster = Cluster(self)
            for rank in range(self.cluster_size):
                inside = (rank % shape[0], rank // shape[0] % shape[1], rank // (shape[0] * shape[1]))
                x, y, z = (a * s + i for a, s, i in zip(at, shape, inside, strict=True))
                cluster.ctas.append(Cta(self, (x, y, z), rank, cluster))
            cluster.start()
            yield cluster

    def run(self) -> Result:
        """Run all CTAs to their end."""
        waiting: list[Cluster] = []
        with np.errstate(all="ignore"):
            try:
                for cluster in self._clusters():
                    if self._turn(cluster):
                        waiting.append(cluster)
                        self._take_turns(waiting)
                while waiting:
                    self._take_turns(waiting)
            except EmulatorError as error:
                error.findings = tuple(self.report.findings)
                if self.report.findings:
                    error.args = (f"{error.args[0]}\nfound before that:\n{self.report}",)
                raise
        self.code.count(self.counters)
        return Result(self.report, self.counters)

    def _turn(self, cluster: Cluster) -> bool:
        """Run a cluster for its share; whether it has more to do."""
        until = self._left - _SHARE
        while self._left > until:
            if not cluster.step():
                cluster.engine.drain()
                return False
        return True

    def _take_turns(self, waiting: list[Cluster]) -> None:
        waiting[:] = [cluster for cluster in waiting if self._turn(cluster)]


def run(
    ptx: str,
    entry: str | None,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    smem_bytes: int,
    params: Sequence[Any],
    *,
    memory: GlobalMemory | None = None,
    schedule: str = "lockstep",
    seed: int = 0,
    tensor: str = "model",
    completion: str | None = None,
    registers_per_thread: int | None = None,
    budget: int = 50_000_000,
) -> Result:
    """Run a kernel given as PTX.

    Args:
        ptx: the module's text; its ``.target`` is the architecture that is modelled.
        entry: the kernel's name; None if there is only one.
        grid: CTAs in x, y, z.
        block: threads of a CTA in x, y, z.
        smem_bytes: dynamic shared memory in bytes.
        params: a value for each parameter (see ``pack_params``); pointers are addresses in ``memory``.
        memory: where the pointers point to.
        schedule: "lockstep", "warps" or "random" (see machine.py).
        seed: of the random schedule.
        tensor: "model" for the bit-level model of the tensor cores (not yet confirmed on hardware), "exact" for
            float64 sums rounded once.
        completion: when asynchronous work completes: "late", "early" or "random"; None: as the schedule says.
        registers_per_thread: what ptxas gave the kernel, for the rules of setmaxnreg; None: not checked.
        budget: executed instructions after which the launch is stopped.

    Returns:
        The findings and the counters. ``result.report.raise_if_any()`` turns findings into an error.

    Raises:
        ParseError, NotModelledError, LaunchError: before anything runs. DeadlockError, BudgetError, EmulatorError:
        while it runs, with the findings so far.
    """
    launch = Launch(
        load(ptx, entry),
        _shape(grid, "grid"),
        _shape(block, "block"),
        smem_bytes,
        params,
        memory if memory is not None else GlobalMemory(),
        schedule=schedule,
        seed=seed,
        tensor=tensor,
        completion=completion,
        registers_per_thread=registers_per_thread,
        budget=budget,
    )
    launch.code.reset_counts()
    return launch.run()
