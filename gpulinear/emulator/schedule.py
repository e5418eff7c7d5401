"""Orders a block for speed: independent register computations of one form become one batch, one NumPy call.

Effects (memory, collectives) keep their program order. A computation may move across an effect, since it touches
nothing but registers, and only as far as its registers allow: its level is one more than the level of whatever it
depends on (reads after writes, writes after reads and after writes). At one level effects come first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpulinear.emulator.program import Block, Bound, Key, Source

MAX_BATCH = 64
"""Instructions in one call: 64 x 256 lanes in float64 still fit a core's cache."""


@dataclass(frozen=True)
class Group:
    """Instructions that execute together: one effect, or a batch of computations of one form."""

    items: tuple[Bound, ...]

    @property
    def pure(self) -> bool:
        """Whether it is a batch of computations."""
        return self.items[0].rule.pure


def _shape(source: Any) -> Any:
    if isinstance(source, Source):
        return ("c" if source.key is None else source.key[0], source.type, source.negated)
    return None


def _form(bound: Bound) -> Any:
    """What instructions of one batch have in common; unique where an instruction cannot be batched."""
    simple = all(isinstance(s, Source) for s in bound.sources) and not any(
        isinstance(d, list) for d in bound.destinations
    )
    if not simple:
        return bound.instruction.index
    guard = None if bound.guard is None else (bound.guard.key, bound.guard.negated)
    written = tuple(None if d is None else (d[0][0], d[1]) for d in bound.destinations)
    return (id(bound.semantics), tuple(_shape(s) for s in bound.sources), written, guard)


def _levels(body: list[Bound]) -> list[int]:
    """A level for each instruction; executing level by level, effects first, respects every dependence."""
    written: dict[Key, int] = {}
    read: dict[Key, int] = {}
    levels = []
    effect = floor = top = -1
    for bound in body:
        level = floor + 1
        for key in bound.reads:
            level = max(level, written.get(key, -1) + 1)
        for key in bound.writes:
            level = max(level, written.get(key, -1) + 1, read.get(key, -1) + 1)
        if not bound.rule.pure:
            level = max(level, effect)
            if bound.rule.fence:
                level = max(level, top + 1)
                floor = level
            effect = level
        top = max(top, level)
        for key in bound.reads:
            read[key] = max(read.get(key, -1), level)
        for key in bound.writes:
            written[key] = level
        levels.append(level)
    return levels


def schedule(block: Block, single: frozenset[Key]) -> list[Group]:
    """The groups of a block in the order in which they execute; instructions that touch ``single`` stay alone."""
    effects: dict[int, list[Bound]] = {}
    batches: dict[int, dict[Any, list[Bound]]] = {}
    for bound, level in zip(block.body, _levels(block.body), strict=True):
        if not bound.rule.pure:
            effects.setdefault(level, []).append(bound)
            continue
        touched = not single.isdisjoint(bound.reads) or not single.isdisjoint(bound.writes)
        form = bound.instruction.index if touched else _form(bound)
        batches.setdefault(level, {}).setdefault(form, []).append(bound)
    groups: list[Group] = []
    for level in sorted(effects.keys() | batches.keys()):
        groups += [Group((bound,)) for bound in effects.get(level, [])]
        for items in batches.get(level, {}).values():
            groups += [Group(tuple(items[i : i + MAX_BATCH])) for i in range(0, len(items), MAX_BATCH)]
    return groups


class Layout:
    """Gives each register a row in the matrix of its width; what a batch writes gets consecutive rows."""

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.counts: dict[int, int] = {1: 0, 16: 0, 32: 0, 64: 0}

    def add(self, keys: Iterable[Key]) -> None:
        """Rows for the keys that have none yet, in their order."""
        for key in keys:
            if key not in self.rows:
                self.rows[key] = self.counts[key[0]]
                self.counts[key[0]] += 1
