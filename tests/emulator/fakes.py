"""A CTA (or a cluster of them) without the machine, for tests of what instructions do to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.counters import Counters
from gpulinear.emulator.global_memory import GlobalMemory
from gpulinear.emulator.ir import Addr, Imm, Instruction, Operand, Param, Reg, Variable, Vec
from gpulinear.emulator.isa import resolve
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.machine import AsyncEngine
from gpulinear.emulator.race import SharedRaces
from gpulinear.emulator.report import Finding, Report
from gpulinear.emulator.shared_memory import SharedMemory


class Stateful:
    """``state`` as the machine's classes have it."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def state(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._states:
            self._states[key] = make()
        return self._states[key]


class FakeLaunch(Stateful):
    def __init__(self, memory: GlobalMemory, params: Sequence[tuple[Param, bytes]], local: Sequence[Variable]) -> None:
        super().__init__()
        self.memory = memory
        self.report = Report("kernel")
        self.counters = Counters()
        self.arch, self.capability, self.entry = "sm_90a", 90, "kernel"
        self.tensor, self.schedule, self.completion = "model", "lockstep", "late"
        self.rng = np.random.default_rng(0)
        self.params = np.full(max((p.offset + p.size for p, _ in params), default=0), 0xFF, np.uint8)
        for param, data in params:
            self.params[param.offset : param.offset + param.size] = np.frombuffer(data, np.uint8)
        offsets = {v.name: ("local", 256 * i) for i, v in enumerate(local)}
        entry = SimpleNamespace(params=[p for p, _ in params], variables=list(local))
        program = SimpleNamespace(module=SimpleNamespace(variables=[]), entry=entry, symbols=offsets)
        self.code = SimpleNamespace(program=program)


class FakeCluster(Stateful):
    def __init__(self, launch: Any, threads: int, ctas: int, proxies: bool) -> None:
        super().__init__()
        self.ctas: list[FakeCta] = []
        self.clocks = Clocks(threads, ctas, proxies=proxies)
        self.engine = AsyncEngine(launch)


class FakeCta(Stateful):
    def __init__(
        self, launch: FakeLaunch, cluster: FakeCluster, index: int, rank: int, threads: int, shared: SharedMemory
    ) -> None:
        super().__init__()
        self.launch, self.cluster, self.rank = launch, cluster, rank
        self.index = (index, 0, 0)
        self.thread_count = threads
        self.first_agent = rank * threads
        self.live = np.ones(threads, bool)
        self.shared = shared
        self.races = SharedRaces(shared.size, cluster.clocks, launch.report, self.index, rank)
        self.exit_callbacks: list[Callable[[Any], None]] = []

    def at_exit(self, callback: Callable[[Any], None]) -> None:
        self.exit_callbacks.append(callback)

    def exit(self) -> None:
        """All threads are done."""
        for callback in self.exit_callbacks:
            callback(self)


class Bench:
    """``clusters`` clusters of ``ctas`` CTAs of ``threads`` threads, with what a launch has."""

    def __init__(
        self,
        threads: int = 64,
        *,
        ctas: int = 1,
        clusters: int = 1,
        smem: int = 4096,
        variables: Sequence[Variable] = (),
        params: Sequence[tuple[Param, bytes]] = (),
        local: Sequence[Variable] = (),
        memory: GlobalMemory | None = None,
        proxies: bool = False,
    ) -> None:
        self.memory = memory or GlobalMemory()
        self.launch = FakeLaunch(self.memory, params, local)
        self.ctas: list[FakeCta] = []
        for number in range(clusters):
            cluster = FakeCluster(self.launch, threads, ctas, proxies)
            for rank in range(ctas):
                shared = SharedMemory(variables, smem)
                cta = FakeCta(self.launch, cluster, number * ctas + rank, rank, threads, shared)
                cluster.ctas.append(cta)
                self.ctas.append(cta)
        self.cta = self.ctas[0]
        self._lines = 0

    def lanes(self, threads: Any = None, cta: int = 0, name: str = "test") -> Lanes:
        """Threads (all if not given) at an instruction of their own."""
        self._lines += 1
        line = Instruction(self._lines, name, (), name, self._lines)
        owner: Any = self.ctas[cta]
        chosen = np.arange(owner.thread_count) if threads is None else np.atleast_1d(threads)
        return Lanes(owner, chosen, line)

    def run(self, text: str, *operands: Any, threads: Any = None, cta: int = 0) -> Any:
        """Execute an instruction by its name on operands as the machine passes them (None: absent)."""
        lanes = self.lanes(threads, cta, text)
        rule, form = resolve(instruction_of(text, *operands))
        with np.errstate(all="ignore"):
            return rule.factory(form)(lanes, *operands)

    def barrier(self, cta: int = 0) -> None:
        """All threads of a CTA meet."""
        owner = self.ctas[cta]
        owner.cluster.clocks.barrier(np.arange(owner.thread_count) + owner.first_agent)

    @property
    def found(self) -> list[str]:
        """The kinds of the findings."""
        return [finding.kind for finding in self.launch.report.findings]

    def only(self) -> Finding:
        """The single finding."""
        (finding,) = self.launch.report.findings
        return finding


_RETURNING = (
    *("ld", "atom", "createpolicy", "isspacep", "mapa", "getctarank"),
    *("mbarrier.arrive", "mbarrier.test", "mbarrier.try", "mbarrier.pending"),
)


def instruction_of(text: str, *operands: Any) -> Instruction:
    """An instruction with operands of the shapes of these values."""
    return Instruction(0, text, shapes(text, operands), text, 0)


def shapes(text: str, operands: Sequence[Any]) -> tuple[Operand, ...]:
    """Operands in the text for values of these shapes: a destination where the instruction has one, then the rest."""
    parts: list[Operand] = []
    addressed = False
    values_are_s64 = text.endswith("s64") and not text.startswith("cp.")
    vector = next((int(p[1:]) for p in text.split(".") if p in ("v2", "v4", "v8")), 0)
    if text.startswith(_RETURNING):
        parts.append(Vec((Reg("%d"),) * vector) if vector else Reg("%d"))
    for operand in operands:
        if operand is None:
            continue
        if isinstance(operand, tuple):
            parts.append(Addr(Reg("%a"), 0, tuple(Vec((Reg("%v"),) * len(part)) for part in operand[1])))
        elif isinstance(operand, list):
            parts.append(Vec((Reg("%v"),) * len(operand)) if vector else Reg("%v"))
        elif isinstance(operand, int):
            parts.append(Imm("int", operand))
        elif isinstance(operand, np.ndarray) and operand.dtype == np.int64 and not (addressed and values_are_s64):
            addressed = True
            parts.append(Addr(Reg("%a"), 0))
        else:
            parts.append(Reg("%r"))
    return tuple(parts)
