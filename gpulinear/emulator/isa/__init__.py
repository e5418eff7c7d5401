"""The instruction table: what each PTX instruction form does, and how to add one.

An instruction is one small function in one of the files of this folder, under one of two
decorators. Both take a *pattern* of the instruction's name, the *operands* in PTX order, and the
section of the PTX ISA that says what it does. A form that no pattern matches is refused when the
module is loaded.

Pattern: written as the PTX ISA writes its syntax lines::

    "fma.<rnd:rn|rz|rm|rp>[.ftz][.sat].f32"     <name:a|b> one of, [.flag] may be absent
    "ld[.<sem:weak|volatile>].global.<T:b32|f32>"   [.<name:a|b>] one of, or absent

The function under the decorator is called once per instruction, at load, with a dict of what the
pattern captured ("" where absent), and returns the function that is called at run time.

Operands: a comma-separated list. Each item is a PTX type ("u32"), or a name captured by the pattern
("T"), or "wide(T)" (twice the width), with these marks:

    =T      a destination; the run-time function returns its value (a tuple if there are several)
    T?      may be absent in the text; the function then gets None (or its result is dropped)
    V:T     a vector {a, b, ...} or one register; the function gets (or returns) a list of arrays
    =A|B?   two destinations d|p
    addr    [base+offset]; the function gets byte addresses (int64)
    coords  [base, {x, y}]; the function gets (addresses, [[x, y], ...])
    imm     a literal; the function gets a Python int
    &V:T    register rows in place (see ``RegisterRows``), for results that arrive later

Values are NumPy arrays with an entry for each lane; the dtype follows the type: s32 int32, f32
float32, b32/u32/f16x2 uint32, f16/bf16/b16 uint16 (raw bits), pred bool.

``@elementwise``: a pure function of its inputs, lane by lane; it has to work on arrays of any shape
(the emulator runs many independent instructions of one form in one call), with NumPy scalars among
them where the text has literals::

    @elementwise("xor.<T:b16|b32|b64>", "=T, T, T", "9.7.8.4")
    def xor(form: Form) -> Semantics:
        return lambda a, b: a ^ b

``@effect``: everything else. The run-time function gets the executing ``Lanes`` first: which
threads, their CTA, its memory, its race detector (see machine.py). Guards (@p) are applied outside:
the function sees only the lanes that execute. Further arguments of the decorator:

    sync="warp" | "warpgroup"   .aligned: only complete warps (warpgroups) may execute it
    sync="mask"                 .sync with a member mask: waits for the rest of the warp if it can
    blocks=True                 may call ``lanes.park``; gets a basic block of its own
    uniform=True                the cohort is split so that all inputs are equal in all lanes
    fence=True                  no other instruction is moved across it in its block
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import WIDTHS, Instruction

Form = dict[str, str]
Semantics = Callable[..., Any]
Factory = Callable[[Form], Semantics]

FILES = (
    "arith",
    "logic",
    "floating",
    "convert",
    "compare",
    "memory",
    "atomics",
    "control",
    "barrier",
    "warp",
    "async_copy",
)
"""The files of this folder that hold instructions; ``load_tables`` imports each that exists."""


@dataclass(frozen=True)
class Slot:
    """One operand of an instruction as the table declares it."""

    kind: str  # "value", "vector", "addr", "coords", "imm", "rows"
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
    if text.startswith("&V:"):
        return Slot("rows", text[3:], True, optional)
    if text.startswith("V:"):
        return Slot("vector", text[2:], written, optional)
    if text in ("addr", "coords", "imm"):
        return Slot(text, "", False, optional)
    return Slot("value", text, written, optional)


def _add(pattern: str, operands: str, section: str, pure: bool, **flags: Any) -> Any:
    slots = tuple(tuple(_slot(part) for part in item.split("|")) for item in operands.split(",") if item)

    def register(factory: Factory) -> Factory:
        rule = Rule(pattern, _regex(pattern), slots, section, factory, pure, **flags)
        _TABLE.setdefault(pattern.split(".")[0].split("[")[0], []).append(rule)
        return factory

    return register


def elementwise(pattern: str, operands: str, section: str) -> Callable[[Factory], Factory]:
    """Registers a pure, lane-by-lane instruction (see the module docstring)."""
    decorator: Callable[[Factory], Factory] = _add(pattern, operands, section, True)
    return decorator


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
    decorator: Callable[[Factory], Factory] = _add(
        pattern, operands, section, False, sync=sync, blocks=blocks, uniform=uniform, fence=fence
    )
    return decorator


def load_tables() -> None:
    """Imports the files of this folder, once."""
    for name in FILES:
        import_module(f"{__name__}.{name}")


def resolve(instruction: Instruction) -> tuple[Rule, Form]:
    """The table's row for an instruction and what its pattern captured; an error if there is none.

    Raises:
        NotModelledError: with the line, and the known patterns of the same opcode.
    """
    rules = _TABLE.get(instruction.opcode, [])
    for rule in rules:
        match = rule.regex.fullmatch(instruction.name)
        if match:
            return rule, {key: value or "" for key, value in match.groupdict().items()}
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
