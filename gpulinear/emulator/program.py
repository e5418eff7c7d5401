"""An entry bound to the instruction table and cut into basic blocks: what the machine executes.

Every instruction is resolved here, so that a form that is not modelled stops the load and not the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gpulinear.emulator.errors import NotModelledError, ParseError
from gpulinear.emulator.ir import (
    Addr,
    Entry,
    Imm,
    Instruction,
    Module,
    Not,
    Operand,
    Pair,
    Reg,
    Sink,
    Special,
    Sym,
    Variable,
    Vec,
)
from gpulinear.emulator.isa import Form, Rule, Semantics, Slot, resolve, type_of
from gpulinear.emulator.special import SPECIALS
from gpulinear.emulator.types import CLASSES, literal, width_of

Key = tuple[int, str]
"""A register: its width class and its name (of a special register or symbol for those)."""


@dataclass(frozen=True)
class Source:
    """Where a value comes from: a register, or a constant (NumPy scalar). ``type`` is what the instruction reads."""

    type: str
    key: Key | None = None
    value: Any = None
    negated: bool = False


@dataclass(frozen=True)
class Address:
    """``[base + offset]``: the base is a register or a constant (a symbol's address in its own space)."""

    base: Source | int
    offset: int


@dataclass(frozen=True)
class Rows:
    """Registers in place: read and written when the instruction, or its asynchronous result, wants to."""

    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Bound:
    """An instruction with its table row and its operands as sources and destinations.

    ``sources`` are in operand order: a Source, an Address, Rows, an int (literal), None (absent), a list of Sources, or
    for tensor coordinates (Address, [[Source, ...], ...]). ``destinations`` are (register, type written), a list of
    those, or None where the result is dropped.
    """

    instruction: Instruction
    rule: Rule
    semantics: Semantics
    sources: tuple[Any, ...]
    destinations: tuple[Any, ...]
    guard: Source | None
    reads: frozenset[Key]
    writes: frozenset[Key]


@dataclass(frozen=True)
class Terminator:
    """How a block ends: "next", "branch" (guard, target), "table" (index, targets), "exit" (guard)."""

    kind: str
    instruction: Instruction | None = None
    guard: Source | None = None
    targets: tuple[int, ...] = ()
    index: Source | None = None


@dataclass
class Block:
    """Instructions without a branch; ``sync`` is the widest group that must be complete to enter it."""

    index: int
    body: list[Bound]
    end: Terminator
    sync: str = ""

    @property
    def blocking(self) -> bool:
        """Whether its only instruction may have to wait."""
        return len(self.body) == 1 and self.body[0].rule.blocks


@dataclass
class Program:
    """A loaded entry."""

    module: Module
    entry: Entry
    blocks: list[Block]
    symbols: dict[str, tuple[str, int]] = field(default_factory=dict)  # shared, param and local: space and offset
    placed: list[Variable] = field(default_factory=list)  # global and const: they get an address at launch


_JUMPS = ("bra", "brx", "ret", "exit")


@lru_cache(maxsize=4096)
def _semantics(rule: Rule, form: tuple[tuple[str, str], ...]) -> Semantics:
    """One run-time function for all instructions of a form: equal functions can be batched."""
    return rule.factory(dict(form))


class _Binder:
    """Turns operands into sources and destinations."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.registers = program.entry.registers

    def key(self, register: Reg, where: Instruction) -> Key:
        declared = self.registers.get(register.name)
        if declared is None:
            raise ParseError(f"register {register.name} is not declared. At {where.where()}")
        width = width_of(declared)
        if width not in CLASSES:
            raise NotModelledError(f"registers of type .{declared} are not modelled. At {where.where()}")
        return width, register.name

    def source(self, operand: Operand, ptx_type: str, where: Instruction) -> Source:
        if isinstance(operand, Not):
            inner = self.source(operand.item, ptx_type, where)
            return Source(inner.type, inner.key, inner.value, not inner.negated)
        if isinstance(operand, Imm):
            try:
                return Source(ptx_type, value=literal(operand, ptx_type))
            except NotModelledError as error:
                raise NotModelledError(f"{error}. At {where.where()}") from None
        if isinstance(operand, Reg):
            key = self.key(operand, where)
        elif isinstance(operand, Special):
            key = self.special(operand, where)
        elif isinstance(operand, Sym):
            symbol = self.program.symbols.get(operand.name)
            if symbol is not None:
                return Source(ptx_type, value=literal(Imm("int", symbol[1] + operand.offset), ptx_type))
            if operand.offset or not any(v.name == operand.name for v in self.program.placed):
                raise NotModelledError(f"symbol {operand.name} is not modelled here. At {where.where()}")
            key = (64, operand.name)
        else:
            raise NotModelledError(f"operand {operand} is not modelled here. At {where.where()}")
        if (ptx_type == "pred") != (key[0] == 1) or width_of(ptx_type) > key[0]:
            raise ParseError(f"{key[1]} has {key[0]} bits, the instruction reads {ptx_type}. At {where.where()}")
        return Source(ptx_type, key)

    def special(self, operand: Special, where: Instruction) -> Key:
        width = SPECIALS.get(operand.name)
        if width is None:
            raise NotModelledError(f"special register {operand.name} is not modelled. At {where.where()}")
        return width, operand.name

    def address(self, operand: Addr, where: Instruction) -> Address:
        base = operand.base
        if isinstance(base, Imm):
            return Address(base.value, operand.offset)
        if isinstance(base, Sym) and base.name in self.program.symbols:
            return Address(self.program.symbols[base.name][1], base.offset + operand.offset)
        if isinstance(base, Reg):
            width = self.key(base, where)[0]
            return Address(self.source(base, f"u{width}", where), operand.offset)
        return Address(self.source(base, "u64", where), operand.offset)

    def destination(self, operand: Operand, ptx_type: str, where: Instruction) -> tuple[Key, str] | None:
        if isinstance(operand, Sink):
            return None
        if not isinstance(operand, Reg):
            raise ParseError(f"{operand} cannot be written. At {where.where()}")
        key = self.key(operand, where)
        if (ptx_type == "pred") != (key[0] == 1) or width_of(ptx_type) > key[0]:
            raise ParseError(f"{key[1]} has {key[0]} bits, the instruction writes {ptx_type}. At {where.where()}")
        return key, ptx_type

    def operand(self, slot: Slot, operand: Operand | None, form: Form, where: Instruction, out: _Operands) -> None:
        if operand is None:
            (out.destinations if slot.written and slot.kind != "rows" else out.sources).append(None)
            return
        ptx_type = type_of(slot, form)
        if slot.kind == "rows":
            assert isinstance(operand, Vec)
            keys = [self.destination(item, ptx_type, where) for item in operand.items]
            if any(key is None for key in keys):
                raise ParseError(f"`_` cannot stand in this vector. At {where.where()}")
            out.sources.append(Rows(tuple(key[0] for key in keys if key is not None)))
        elif slot.kind in ("vector", "vector1"):
            items = operand.items if isinstance(operand, Vec) else (operand,)
            if slot.written:
                out.destinations.append([self.destination(item, ptx_type, where) for item in items])
            else:
                out.sources.append([self.source(item, ptx_type, where) for item in items])
        elif slot.kind == "imm":
            assert isinstance(operand, Imm)
            out.sources.append(operand.value)
        elif slot.kind in ("addr", "coords"):
            assert isinstance(operand, Addr)
            address = self.address(operand, where)
            if slot.kind == "addr":
                if operand.extras:
                    raise NotModelledError(f"an address with further operands is not modelled here. At {where.where()}")
                out.sources.append(address)
            else:
                vectors = [e for e in operand.extras if isinstance(e, Vec)]
                out.sources.append((address, [[self.source(i, "s32", where) for i in v.items] for v in vectors]))
        elif slot.written:
            out.destinations.append(self.destination(operand, ptx_type, where))
        else:
            out.sources.append(self.source(operand, ptx_type, where))

    def bind(self, instruction: Instruction) -> Bound:
        rule, form = resolve(instruction, self.registers)
        out = _Operands()
        for position, slots in enumerate(rule.operands):
            given = instruction.operands[position] if position < len(instruction.operands) else None
            items = (given.first, given.second) if isinstance(given, Pair) else (given,)
            for number, slot in enumerate(slots):
                self.operand(slot, items[number] if number < len(items) else None, form, instruction, out)
        guard = None
        if instruction.guard is not None:
            guard = self.source(instruction.guard, "pred", instruction)
            guard = Source("pred", guard.key, None, instruction.guard_negated)
        reads: set[Key] = set()
        writes: set[Key] = set()
        _collect_reads(out.sources, reads)
        _collect_writes(out.destinations, writes)
        for item in out.sources:
            if isinstance(item, Rows):
                writes.update(item.keys)
        if guard is not None and guard.key is not None:
            reads.add(guard.key)
        try:
            semantics = _semantics(rule, tuple(sorted(form.items())))
        except NotModelledError as error:
            raise NotModelledError(f"{error}. At {instruction.where()}") from None
        return Bound(
            instruction,
            rule,
            semantics,
            tuple(out.sources),
            tuple(out.destinations),
            guard,
            frozenset(reads),
            frozenset(writes),
        )


@dataclass
class _Operands:
    sources: list[Any] = field(default_factory=list)
    destinations: list[Any] = field(default_factory=list)


def _collect_reads(item: Any, into: set[Key]) -> None:
    if isinstance(item, Source):
        if item.key is not None:
            into.add(item.key)
    elif isinstance(item, Address):
        _collect_reads(item.base, into)
    elif isinstance(item, Rows):
        into.update(item.keys)
    elif isinstance(item, (list, tuple)):
        for part in item:
            _collect_reads(part, into)


def _collect_writes(destinations: list[Any], into: set[Key]) -> None:
    for item in destinations:
        if isinstance(item, list):
            _collect_writes(item, into)
        elif item is not None:
            into.add(item[0])


def _leaders(entry: Entry, bound: dict[int, Bound]) -> list[int]:
    """Where blocks begin: branch targets, after jumps, around what may wait, before a collective after other effects."""
    count = len(entry.instructions)
    leaders = {0, *(index for index in entry.labels.values() if index < count)}
    effects = False  # since the last leader: a collective must not hold back effects that come before it
    for instruction in entry.instructions:
        index = instruction.index
        if index in leaders:
            effects = False
        if instruction.opcode in _JUMPS:
            leaders.add(index + 1)
            continue
        rule = bound[index].rule
        if rule.blocks or rule.sync == "mask":
            leaders |= {index, index + 1}
        elif rule.sync and effects:
            leaders.add(index)
            effects = False
        effects = effects or not (rule.pure or rule.sync)
    return sorted(index for index in leaders if index < count)


def _terminator(instruction: Instruction, binder: _Binder, entry: Entry, block_of: dict[int, int]) -> Terminator:
    guard = None
    if instruction.guard is not None:
        plain = binder.source(instruction.guard, "pred", instruction)
        guard = Source("pred", plain.key, None, instruction.guard_negated)
    if instruction.opcode in ("ret", "exit"):
        return Terminator("exit", instruction, guard)

    def block(label: str) -> int:
        if label not in entry.labels:
            raise ParseError(f"label {label} is not defined. At {instruction.where()}")
        return block_of[entry.labels[label]]

    if instruction.opcode == "bra":
        target = instruction.operands[0]
        if not isinstance(target, Sym):
            raise ParseError(f"a branch needs a label. At {instruction.where()}")
        return Terminator("branch", instruction, guard, (block(target.name),))
    index, table = instruction.operands[0], instruction.operands[1]
    if not isinstance(table, Sym) or table.name not in entry.targets or guard is not None:
        raise NotModelledError(f"{instruction.name} needs a label of .branchtargets. At {instruction.where()}")
    labels = entry.targets[table.name]
    source = binder.source(index, "u32", instruction)
    return Terminator("table", instruction, None, tuple(block(label) for label in labels), source)


_WIDEST = {"": 0, "mask": 1, "warp": 2, "warpgroup": 3}


def bind(program: Program) -> None:
    """Resolve all instructions of the entry and cut it into ``program.blocks``."""
    entry = program.entry
    binder = _Binder(program)
    bound = {i.index: binder.bind(i) for i in entry.instructions if i.opcode not in _JUMPS}
    starts = _leaders(entry, bound)
    block_of = {start: number for number, start in enumerate(starts)}
    block_of[len(entry.instructions)] = len(starts)  # a label at the end: falling off is an exit
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else len(entry.instructions)
        last = entry.instructions[stop - 1]
        end = Terminator("next")
        if last.opcode in _JUMPS:
            end = _terminator(last, binder, entry, block_of)
            stop -= 1
        body = [bound[index] for index in range(start, stop)]
        sync = max((b.rule.sync for b in body), key=_WIDEST.__getitem__, default="")
        program.blocks.append(Block(number, body, end, sync))
