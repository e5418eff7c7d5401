"""The instruction table: a pattern, its operands, its PTX ISA section, and one small function that says what it does.

An instruction is one decorated function in a file of this folder. A form that no pattern matches is refused when the
module is loaded.

Pattern: written as the PTX ISA writes its syntax lines::

    "fma.<rnd:rn|rz|rm|rp>[.ftz][.sat].f32"          <name:a|b> one of, [.flag] may be absent
    "ld[.<sem:weak|volatile>].global.<T:b32|f32>"    [.<name:a|b>] one of, or absent

The function under the decorator is called once per instruction, at load, with a dict of what the pattern captured (""
where absent; a flag's key is its name with ``::`` as ``_``), and returns the function that is called at run time.

Operands: a comma-separated list. Each item is a PTX type ("u32"), or a name captured by the pattern ("T"), or
"wide(T)" (twice the width), with these marks:

    =T      a destination; the run-time function returns its value (a tuple if there are several)
    T?      may be absent in the text; the function then gets None (or its result is dropped)
    V:T     a vector {a, b, ...}; the function gets (or returns) a list of arrays
    V1:T    a vector, or one register taken as a vector of one
    =A|B?   two destinations d|p
    addr    [base+offset]; the function gets byte addresses (int64)
    coords  [base, {x, y}, ...]; the function gets (addresses, [[x, y], ...])
    imm     a literal; the function gets a Python int
    &V:T    register rows in place (see ``RegisterRows``), for results that arrive later

Several patterns may be alike and differ in their operands (``mov.b32`` of a register and of a vector): the first row
whose operands fit is taken.

Values are NumPy arrays with an entry for each lane; the dtype follows the type: s32 int32, f32 float32, b32/u32/f16x2
uint32, f16/bf16/b16 uint16 (raw bits), pred bool.

``@elementwise``: a pure function of its inputs, lane by lane; it has to work on arrays of any shape (the emulator runs
many independent instructions of one form in one call), with NumPy scalars among them where the text has literals::

    @elementwise("xor.<T:b16|b32|b64>", "=T, T, T", "9.7.8.4")
    def xor(form: Form) -> Semantics:
        return lambda a, b: a ^ b

``@effect``: everything else. The run-time function gets the executing ``Lanes`` first: which threads, their CTA, its
memory, its race detector (see lanes.py). Guards (@p) are applied outside: the function sees only the lanes that
execute. Further arguments of the decorator:

    sync="warp" | "warpgroup"   .aligned: only complete warps (warpgroups) may execute it
    sync="mask"                 .sync with a member mask: waits for the rest of the warp if it can
    blocks=True                 may return ``Parked`` (lanes.py); it gets a basic block of its own
    uniform=True                the cohort is split so that all inputs are equal in all lanes
    fence=True                  no register computation is moved across it inside its block
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import WIDTHS, Addr, Imm, Instruction, Operand, Pair, Reg, Vec

Form = dict[str, str]
Semantics = Callable[..., Any]
Factory = Callable[[Form], Semantics]

FILES: tuple[str, ...] = (
    "arith",
    "async_copy",
    "atomics",
    "barrier",
    "bits",
    "bulk",
    "cluster",
    "compare",
    "control",
    "convert",
    "floating",
    "half",
    "logic",
    "matrix",
    "mbarrier",
    "memory",
    "move",
    "tma",
    "warp",
    "wgmma",
)
"""The files of this folder that hold instructions."""


@dataclass(frozen=True)
class Slot:
    """One operand of an instruction as the table declares it."""

    kind: str  # "value", "vector", "vector1", "addr", "coords", "imm", "rows"
    type: str
    written: bool
    optional: bool


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    pattern: str
    regex: re.Pattern[str]
    operands: tuple[tuple[Slot, ...], ...]  # an inner tuple of two is a pair d|p
    section: str
    factory: Factory
    pure: bool
    sync: str = ""
    blocks: bool = False
    uniform: bool = False
    fence: bool = False


@dataclass(frozen=True)
class RegisterRows:
    """Registers in place: ``matrix[rows[i], thread]`` is register i of a thread of the CTA."""

    matrix: Any
    rows: list[int]


_TABLE: dict[str, list[Rule]] = {}
_PIECE = re.compile(r"\[\.<(\w+):([^>]*)>\]|\[\.([\w:]+)\]|<(\w+):([^>]*)>")


def _regex(pattern: str) -> re.Pattern[str]:
    out, last = "", 0
    for piece in _PIECE.finditer(pattern):
        out += re.escape(pattern[last : piece.start()])
        optional, options, flag, name, choices = piece.groups()
        if flag:
            key = flag.replace("::", "_")
            out += rf"(?:\.(?P<{key}>{re.escape(flag)}))?"
        elif optional:
            out += rf"(?:\.(?P<{optional}>{options}))?"
        else:
            out += f"(?P<{name}>{choices})"
        last = piece.end()
    return re.compile(out + re.escape(pattern[last:]))


def _slot(text: str) -> Slot:
    text = text.strip()
    written = text.startswith("=")
    optional = text.endswith("?")
    text = text.strip("=?")
    for mark, kind in (("&V:", "rows"), ("V1:", "vector1"), ("V:", "vector")):
        if text.startswith(mark):
            return Slot(kind, text[len(mark) :], written or kind == "rows", optional)
    if text in ("addr", "coords", "imm"):
        return Slot(text, "", False, optional)
    return Slot("value", text, written, optional)


def _add(pattern: str, operands: str, section: str, pure: bool, **flags: Any) -> Callable[[Factory], Factory]:
    slots = tuple(tuple(_slot(part) for part in item.split("|")) for item in operands.split(",") if item.strip())

    def register(factory: Factory) -> Factory:
        rule = Rule(pattern, _regex(pattern), slots, section, factory, pure, **flags)
        _TABLE.setdefault(re.split(r"[.\[<]", pattern, maxsplit=1)[0], []).append(rule)
        return factory

    return register


def elementwise(pattern: str, operands: str, section: str) -> Callable[[Factory], Factory]:
    """Registers a pure, lane-by-lane instruction (see the module docstring)."""
    return _add(pattern, operands, section, True)


def effect(
    pattern: str,
    operands: str,
    section: str,
    *,
    sync: str = "",
    blocks: bool = False,
    uniform: bool = False,
    fence: bool = False,
) -> Callable[[Factory], Factory]:
    """Registers an instruction that needs the machine (see the module docstring)."""
    return _add(pattern, operands, section, False, sync=sync, blocks=blocks, uniform=uniform, fence=fence)


@lru_cache(maxsize=1)
def load_tables() -> None:
    """Imports the files of this folder, once."""
    for name in FILES:
        import_module(f"{__name__}.{name}")


def _fits_slot(slot: Slot, operand: Operand) -> bool:
    if slot.kind in ("vector", "rows"):
        return isinstance(operand, Vec)
    if slot.kind in ("addr", "coords"):
        return isinstance(operand, Addr) and (slot.kind == "coords") == any(isinstance(e, Vec) for e in operand.extras)
    if slot.kind == "imm":
        return isinstance(operand, Imm)
    return slot.kind == "vector1" or not isinstance(operand, (Vec, Addr, Pair))


def fits(rule: Rule, operands: tuple[Operand, ...]) -> bool:
    """Whether the operands of an instruction have the shapes that a row of the table declares."""
    if len(operands) > len(rule.operands):
        return False
    for slots, operand in zip(rule.operands, operands, strict=False):
        items = (operand.first, operand.second) if isinstance(operand, Pair) else (operand,)
        required = sum(not slot.optional for slot in slots)
        if not required <= len(items) <= len(slots):
            return False
        if not all(_fits_slot(slot, item) for slot, item in zip(slots, items, strict=False)):
            return False
    return all(all(slot.optional for slot in slots) for slots in rule.operands[len(operands) :])


def _predicates_fit(rule: Rule, form: Form, operands: tuple[Operand, ...], registers: dict[str, str]) -> bool:
    """Whether predicate registers stand where the row takes predicates, and nowhere else."""
    return not any(
        isinstance(operand, Reg)
        and slots[0].kind == "value"
        and operand.name in registers
        and (registers[operand.name] == "pred") != (type_of(slots[0], form) == "pred")
        for slots, operand in zip(rule.operands, operands, strict=False)
    )


def resolve(instruction: Instruction, registers: dict[str, str] | None = None) -> tuple[Rule, Form]:
    """The table's row for an instruction and what its pattern captured.

    ``registers`` are the declared types; with them, rows that differ only in predicate operands are told apart.

    Raises:
        NotModelledError: no row fits; with the line, and the known patterns of the same opcode.
    """
    load_tables()
    rules = _TABLE.get(instruction.opcode, [])
    for rule in rules:
        match = rule.regex.fullmatch(instruction.name)
        if match and fits(rule, instruction.operands):
            form = {key: value or "" for key, value in match.groupdict().items()}
            if _predicates_fit(rule, form, instruction.operands, registers or {}):
                return rule, form
    known = "; ".join(rule.pattern for rule in rules) or "none of this opcode"
    raise NotModelledError(
        f"instruction {instruction.name} is not modelled. At {instruction.where()}. "
        f"Known forms: {known}. To add it, see gpulinear/emulator/isa/__init__.py."
    )


def patterns() -> list[Rule]:
    """All rows of the table."""
    load_tables()
    return [rule for rules in _TABLE.values() for rule in rules]


def type_of(slot: Slot, form: Form) -> str:
    """The PTX type of an operand in an instruction of this form."""
    text = slot.type
    if text.startswith("wide("):
        base = form.get(text[5:-1], text[5:-1])
        return base.rstrip("0123456789") + str(2 * WIDTHS[base])
    return form.get(text) or text
