"""Loads an entry of a PTX module: parse, bind to the table, schedule, give registers their rows, build the closures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gpulinear.emulator.counters import Counters
from gpulinear.emulator.dataflow import maybe_unwritten, missing_wgmma_fences, registers_in_place
from gpulinear.emulator.errors import LaunchError
from gpulinear.emulator.execute import BlockingStep, Fetch, Selection, Step, build_end, build_step
from gpulinear.emulator.ir import Instruction, Module, Variable
from gpulinear.emulator.parser import parse
from gpulinear.emulator.private_memory import layout_local
from gpulinear.emulator.program import Block, Bound, Key, Program, Terminator, bind
from gpulinear.emulator.register_checks import checked
from gpulinear.emulator.schedule import Group, Layout, schedule
from gpulinear.emulator.shared_memory import layout_shared
from gpulinear.emulator.special import SPECIALS


@dataclass
class CodeBlock:
    """A block as the machine runs it. ``warps`` and ``lanes`` count executions."""

    steps: list[Step | BlockingStep]
    end: Terminator
    read_end: Fetch | None
    sync: str
    blocking: bool
    instructions: tuple[Instruction, ...]
    warps: int = 0
    lanes: int = 0

    @property
    def first(self) -> Instruction | None:
        """Its first instruction, for messages."""
        return self.instructions[0] if self.instructions else None

    @property
    def length(self) -> int:
        """How many instructions a run of the block executes."""
        return len(self.instructions)

    def executed(self, selection: Selection) -> None:
        """Count a run."""
        self.lanes += selection.size
        threads = selection.threads
        self.warps += int(threads[-1] >> 5) - int(threads[0] >> 5) + 1


@dataclass
class Code:
    """A loaded entry, ready to launch any number of times, one launch at a time."""

    program: Program
    blocks: list[CodeBlock]
    layout: Layout
    constants: list[Key]  # special registers and symbols whose rows are filled for each CTA
    tracked: frozenset[Key]  # registers whose initialisation is watched at run time
    shared: tuple[Variable, ...]
    proxies: bool
    missing_fences: list[tuple[Instruction, tuple[str, ...]]] = field(default_factory=list)

    def count(self, counters: Counters) -> None:
        """Tell the counters what the blocks executed."""
        for block in self.blocks:
            if block.warps:
                for instruction in block.instructions:
                    counters.executed(instruction.name, block.warps, block.lanes)

    def reset_counts(self) -> None:
        """Forget how often the blocks ran."""
        for block in self.blocks:
            block.warps = block.lanes = 0


def _place_symbols(program: Program) -> tuple[Variable, ...]:
    """Give shared, parameter and local symbols their offsets (global and const ones get an address at launch).

    Returns the shared variables.
    """
    variables = [*program.module.variables, *program.entry.variables]
    shared = tuple(v for v in variables if v.space == "shared")
    local = tuple(v for v in variables if v.space == "local")
    # Where the dynamic part starts does not depend on its size.
    program.symbols |= {name: ("shared", at) for name, at in layout_shared(shared)[0].items()}
    program.symbols |= {name: ("local", at) for name, at in layout_local(local).offsets.items()}
    program.symbols |= {p.name: ("param", p.offset) for p in program.entry.params}
    program.placed += [v for v in variables if v.space in ("global", "const")]
    return shared


def _destination_keys(group: Group) -> Iterator[Key]:
    for position in range(len(group.items[0].destinations)):
        for bound in group.items:
            item = bound.destinations[position]
            for destination in item if isinstance(item, list) else [item]:
                if destination is not None:
                    yield destination[0]


def _uses_async_proxy(block: Block) -> bool:
    return any(
        bound.instruction.name.startswith(("wgmma.", "cp.async.bulk", "cp.reduce.async", "fence.proxy"))
        for bound in block.body
    )


def load_entry(module: Module, name: str | None) -> Code:
    """The code of an entry; the only one if no name is given."""
    if name is None and len(module.entries) == 1:
        name = next(iter(module.entries))
    if name is None or name not in module.entries:
        raise LaunchError(f"entry must be one of {', '.join(module.entries) or 'none'}, got {name!r}")
    program = Program(module, module.entries[name], [])
    shared = _place_symbols(program)
    bind(program)
    tracked = maybe_unwritten(program)
    in_place = registers_in_place(program)
    layout = Layout()
    scheduled = [schedule(block, tracked | in_place) for block in program.blocks]
    for groups in scheduled:
        for group in groups:
            layout.add(_destination_keys(group))
    used: dict[Key, None] = {}
    for block in program.blocks:
        for bound in block.body:
            used |= dict.fromkeys(sorted(bound.reads | bound.writes))
        for source in (block.end.guard, block.end.index):
            if source is not None and source.key is not None:
                used[source.key] = None
    layout.add(used)
    placed = {variable.name for variable in program.placed}
    constants = [key for key in used if key[1] in SPECIALS or key[1] in placed]
    blocks = []
    for block, groups in zip(program.blocks, scheduled, strict=True):
        blocks.append(_code_block(block, groups, layout, tracked, in_place))
    proxies = any(_uses_async_proxy(block) for block in program.blocks)
    return Code(program, blocks, layout, constants, tracked, shared, proxies, missing_wgmma_fences(program))


def _code_block(
    block: Block, groups: list[Group], layout: Layout, tracked: frozenset[Key], in_place: frozenset[Key]
) -> CodeBlock:
    own = block.blocking or block.sync == "mask"
    steps: list[Any] = []
    for group in groups:
        bound: Bound = group.items[0]
        step: Any = BlockingStep(bound, layout) if own else build_step(group, layout)
        if len(group.items) == 1 and not own:
            step = checked(step, bound, layout, tracked, in_place)
        steps.append(step)
    instructions = [bound.instruction for bound in block.body]
    if block.end.instruction is not None:
        instructions.append(block.end.instruction)
    return CodeBlock(steps, block.end, build_end(block.end, layout), block.sync, own, tuple(instructions))


@lru_cache(maxsize=64)
def load(ptx: str, name: str | None = None) -> Code:
    """Parse and load; remembered by the text.

    Raises:
        ParseError: not PTX as this parser knows it. NotModelledError: an instruction or form that the emulator lacks.
        LaunchError: no such entry.
    """
    return load_entry(parse(ptx), name)
