"""Facts about registers that follow from the text: which reads may see a register that was never written, and which
wgmma instructions lack a fence.

Both are forward analyses over the blocks. What cannot be decided here (a write under a guard) is tracked at run time,
for those registers only.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpulinear.emulator.ir import Instruction
from gpulinear.emulator.program import Block, Bound, Key, Program, Rows

_NO_FENCE: Key = (0, "no wgmma.fence yet")


def _successors(block: Block, count: int) -> list[int]:
    after = [*block.end.targets]
    if block.end.kind == "next" or block.end.guard is not None:
        after.append(block.index + 1)
    return [index for index in after if index < count]


def _is_register(key: Key, program: Program) -> bool:
    return key[1] in program.entry.registers


def _in_place(bound: Bound) -> frozenset[Key]:
    """Accumulators of a wgmma, and its fragment of A where that comes from registers."""
    return frozenset(key for item in bound.sources if isinstance(item, Rows) for key in item.keys)


def _accumulators(bound: Bound) -> frozenset[Key]:
    """The registers in place that the instruction writes: the first such operand. Further ones are only read."""
    rows = [item for item in bound.sources if isinstance(item, Rows)]
    return frozenset(rows[0].keys) if rows else frozenset()


def _end_reads(block: Block) -> Iterator[Key]:
    for source in (block.end.guard, block.end.index):
        if source is not None and source.key is not None:
            yield source.key


def maybe_unwritten(program: Program) -> frozenset[Key]:
    """Registers that some path may read before it has written them.

    wgmma accumulators count as written and not as read: a first wgmma ignores what they held.
    """
    blocks = program.blocks
    everything = frozenset(key for block in blocks for bound in block.body for key in bound.writes)
    entering: list[frozenset[Key] | None] = [None] * len(blocks)
    suspects: set[Key] = set()
    if blocks:
        entering[0] = frozenset()
    work = [0] if blocks else []
    while work:
        block = blocks[work.pop()]
        known = set(entering[block.index] or ())
        for bound in block.body:
            if bound.guard is None:
                known |= bound.writes
        for after in _successors(block, len(blocks)):
            before = entering[after]
            merged = frozenset(known) if before is None else before & known
            if merged != before:
                entering[after] = merged
                work.append(after)
    for block in blocks:
        known = set(entering[block.index] if entering[block.index] is not None else everything)  # type: ignore[arg-type]
        for bound in block.body:
            suspects |= bound.reads - _accumulators(bound) - known
            if bound.guard is None:
                known |= bound.writes
        suspects |= set(_end_reads(block)) - known
    return frozenset(key for key in suspects if _is_register(key, program))


def registers_in_place(program: Program) -> frozenset[Key]:
    """All registers whose contents arrive asynchronously."""
    return frozenset(key for block in program.blocks for bound in block.body for key in _in_place(bound))


def missing_wgmma_fences(program: Program) -> list[tuple[Instruction, tuple[str, ...]]]:
    """wgmma instructions that some path reaches with registers touched since its last wgmma.fence (PTX ISA 9.7.15.7).

    Returns the instruction and the registers; none are named where there was no fence at all before it.
    """
    blocks = program.blocks
    relevant = frozenset(
        key
        for block in blocks
        for bound in block.body
        if bound.instruction.name.startswith("wgmma.mma_async")
        for key in _in_place(bound)
    )
    if not relevant:
        return []
    entering: list[frozenset[Key]] = [frozenset()] * len(blocks)
    entering[0] = frozenset({_NO_FENCE})
    found: dict[int, tuple[Instruction, tuple[str, ...]]] = {}
    work = [0]
    seen: set[int] = set()
    while work:
        block = blocks[work.pop()]
        seen.add(block.index)
        touched = set(entering[block.index])
        for bound in block.body:
            name = bound.instruction.name
            if name.startswith("wgmma.fence"):
                touched.clear()
            elif name.startswith("wgmma.mma_async"):
                bad = touched & (_in_place(bound) | {_NO_FENCE})
                if bad:
                    names = tuple(sorted(key[1] for key in bad if key != _NO_FENCE))
                    found[bound.instruction.index] = (bound.instruction, names)
            else:
                touched |= bound.writes & relevant
        for after in _successors(block, len(blocks)):
            if after not in seen or not touched <= entering[after]:
                entering[after] = entering[after] | touched
                work.append(after)
    return [found[index] for index in sorted(found)]
