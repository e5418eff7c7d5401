"""Finds the loops of machine code: basic blocks, the edges between them, and the natural loop of each back edge.

Source: Aho, Lam, Sethi, Ullman, "Compilers", §9.6. A back edge is one to a block on the path of a depth-first search,
which is the same as one to a dominator for the reducible graphs that compilers emit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_TARGET = re.compile(r"`\((\.L_\w+)\)")
_ENDS = ("EXIT", "RET")  # the thread, or the subroutine, is over
_JUMPS = ("BRA", "CALL")  # a call to a label is how ptxas leaves a loop for code that does not come back


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``conditional``: it stands under a predicate."""

    opcode: str  # with modifiers, as in LDS.128
    operands: str
    conditional: bool

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label that it may jump to."""
        found = _TARGET.search(self.operands) if self.base in _JUMPS else None
        return found.group(1) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow it."""
        if self.conditional or self.base not in (*_JUMPS, *_ENDS):
            return True
        # BRA P0, `(.L_x_1): the condition is an operand. A call of a subroutine, which has another kind of name, returns.
        return self.base not in _ENDS and not self.operands.strip().startswith("`(.L_")


Blocks = dict[int, range]  # by the index of the first instruction
Edges = dict[int, list[int]]


def _blocks(code: Sequence[Instruction], labels: Mapping[str, int]) -> Blocks:
    """Runs of instructions that are entered at their first and left after their last only."""
    starts = {0, *labels.values()}
    starts |= {i + 1 for i, one in enumerate(code) if one.target or not one.falls_through}
    bounds = [*sorted(start for start in starts if start < len(code)), len(code)]
    return {start: range(start, end) for start, end in pairwise(bounds)}


def _edges(code: Sequence[Instruction], labels: Mapping[str, int], blocks: Blocks) -> Edges:
    edges: Edges = {}
    for start, block in blocks.items():
        last = code[block[-1]]
        following = [block.stop] if last.falls_through else []
        jump = [labels[last.target]] if last.target is not None and last.target in labels else []
        edges[start] = [index for index in (*following, *jump) if index in blocks]
    return edges


def _back_edges(edges: Edges) -> list[tuple[int, int]]:
    """(from, to) for each edge to a block on the current path of a search from every block, the first one first."""
    found = []
    done: set[int] = set()
    for root in edges:
        if root in done:
            continue
        path: dict[int, None] = {root: None}
        pending = [(root, iter(edges[root]))]
        while pending:
            block, following = pending[-1]
            other = next(following, None)
            if other is None:
                pending.pop()
                del path[block]
                done.add(block)
            elif other in path:
                found.append((block, other))
            elif other not in done:
                path[other] = None
                pending.append((other, iter(edges[other])))
    return found


def loops(code: Sequence[Instruction], labels: Mapping[str, int]) -> list[frozenset[int]]:
    """The instructions of each loop, as indices into ``code``; back edges to one block are one loop.

    Args:
        labels: at which instruction each label stands.
    """
    blocks = _blocks(code, labels)
    edges = _edges(code, labels, blocks)
    into: dict[int, list[int]] = {start: [] for start in blocks}
    for start, following in edges.items():
        for other in following:
            into[other].append(start)
    bodies: dict[int, set[int]] = {}
    for tail, head in _back_edges(edges):
        body = bodies.setdefault(head, {head})
        pending = [tail]
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending += into[block]
    return [frozenset(index for start in body for index in blocks[start]) for body in bodies.values()]
