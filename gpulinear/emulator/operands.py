"""Operands of PTX instructions: what names mean in nested scopes, and text to operand (PTX ISA 6.4, 10)."""

from __future__ import annotations

import re

from gpulinear.emulator.errors import NotModelledError, ParseError
from gpulinear.emulator.ir import Addr, Entry, Imm, Not, Operand, Pair, Reg, Sink, Special, Sym, Vec
from gpulinear.emulator.lexer import IDENTIFIER, literal

_VECTORS = ("tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
_SCALARS = (
    "laneid warpid nwarpid smid nsmid gridid is_explicit_cluster cluster_ctarank cluster_nctarank lanemask_eq lanemask_le "
    "lanemask_lt lanemask_ge lanemask_gt clock clock_hi clock64 globaltimer globaltimer_lo globaltimer_hi "
    "reserved_smem_offset_begin reserved_smem_offset_end reserved_smem_offset_cap reserved_smem_offset_0 "
    "reserved_smem_offset_1 total_smem_size aggr_smem_size dynamic_smem_size current_graph_exec"
)
SPECIAL_NAMES = frozenset(
    [f"%{name}{part}" for name in _VECTORS for part in ("", ".x", ".y", ".z", ".w")]
    + [f"%{name}" for name in _SCALARS.split()]
    + [f"%pm{i}" for i in range(8)]
    + [f"%pm{i}_64" for i in range(8)]
    + [f"%envreg{i}" for i in range(32)]
)
"""The special registers of the PTX ISA; which of them have a value here is for the machine to say."""

_NAME = re.compile(rf"({IDENTIFIER})(\.\w+)?", re.ASCII)
_SUM = re.compile(r"([^+]*[^+\s])\s*\+\s*(.*)", re.ASCII)
_BRACKET = re.compile(r"[,{}\[\]()]")
_EXPRESSION = re.compile(r"[-+~!(\d.][-+~!()\d.\s\w*/%<>&^|=?:]*", re.ASCII)

_REGISTER = re.compile(r"%[A-Za-z_$]")


class Scope:
    """The names of one ``{ }``: registers by type, and variables and branch tables as symbols."""

    def __init__(self, parent: Scope | None, suffix: str) -> None:
        self.parent = parent
        self.suffix = suffix
        self.registers: dict[str, str] = {}
        self.symbols: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.operands: dict[str, Operand] = {}  # text already read: kernels repeat their operands

    def unique(self, name: str) -> str:
        """The name as the entry knows it: "@" and a number mark names of inner scopes, or that hide outer ones."""
        hides = self.parent is not None and self.parent.find_symbol(name) is not None
        return f"{name}@{self.suffix}" if hides or self.suffix != "0" else name

    def declare(self, names: dict[str, str], *, registers: bool) -> None:
        """New names of this scope: register -> type, or symbol -> unique name."""
        for known in (self.registers, self.symbols):
            twice = known.keys() & names.keys()
            if twice:
                raise ParseError(f"{min(twice)} is declared twice in one scope")
        (self.registers if registers else self.symbols).update(names)
        self.operands.clear()  # a name may now hide an outer one

    def find_register(self, name: str) -> tuple[Scope, str] | None:
        """The scope that declares a register, and its type; None if a variable hides it or nobody declares it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.registers:
                return scope, scope.registers[name]
            scope = None if name in scope.symbols else scope.parent
        return None

    def find_symbol(self, name: str) -> str | None:
        """The unique name of a variable; None if a register hides it or nobody declares it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.symbols:
                return scope.symbols[name]
            scope = None if name in scope.registers else scope.parent
        return None

    def find_label(self, name: str) -> str | None:
        """The unique name of a label that can be seen from here."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None


def split(text: str) -> list[str]:
    """Text at its commas, but not inside brackets."""
    if not _BRACKET.search(text):
        return [text.strip()]
    parts, depth, start = [], 0, 0
    for match in _BRACKET.finditer(text):
        char = match.group()
        if char == ",":
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if char in "{[(" else -1
    parts.append(text[start:].strip())
    return parts


def read_operands(text: str, scope: Scope, entry: Entry) -> tuple[Operand, ...]:
    """The operands of an instruction, given as the text after its name."""
    if not text:
        return ()
    known = scope.operands
    found = []
    plain = "{" not in text and "[" not in text and "(" not in text
    for part in text.split(",") if plain else split(text):
        part = part.strip()
        operand = known.get(part)
        if operand is None:
            operand = known[part] = _operand(part, scope, entry)
        found.append(operand)
    return tuple(found)


def _operand(text: str, scope: Scope, entry: Entry) -> Operand:
    if text[:1] == "{":
        return _vector(text, scope, entry)
    if text[:1] == "[":
        return _address(text, scope, entry)
    if text[:1] == "!" and re.fullmatch(rf"!\s*{IDENTIFIER}", text, re.ASCII):
        item = _simple(text[1:].strip(), scope, entry)
        if not isinstance(item, Reg):
            raise ParseError(f"only a register can be negated, not in {text}")
        return Not(item)
    if "|" in text and text[0] not in "(~-0123456789":
        halves = [_simple(half.strip(), scope, entry) for half in text.split("|")]
        if len(halves) != 2 or not all(isinstance(half, (Reg, Sink)) for half in halves):
            raise ParseError(f"{text} is no pair of destinations d|p")
        return Pair(halves[0], halves[1])
    return _simple(text, scope, entry)


def _vector(text: str, scope: Scope, entry: Entry) -> Vec:
    if not text.endswith("}"):
        raise ParseError(f"{text} is no vector {{a, b, ...}}")
    return Vec(tuple(_simple(part, scope, entry) for part in split(text[1:-1])))


def _address(text: str, scope: Scope, entry: Entry) -> Addr:
    if not text.endswith("]"):
        raise ParseError(f"{text} is no address [base+offset]")
    first, *rest = split(text[1:-1])
    extras = tuple(_operand(part, scope, entry) for part in rest)
    if not all(isinstance(extra, (Vec, Reg, Imm)) for extra in extras):
        raise ParseError(f"{text} is no address [base, {{coordinates}}]")
    base = _simple(first, scope, entry) if "+" not in first else None
    offset = 0
    if base is None:
        match = _SUM.fullmatch(first)
        shift = literal(match[2]) if match else None
        if match is None or shift is None:
            raise _refuse_expression(match[2] if match else first, f"{text} is no address [base+offset]")
        if shift.kind != "int":
            raise ParseError(f"the offset in {text} is no integer")
        base, offset = _simple(match[1], scope, entry), shift.value
    if not isinstance(base, (Reg, Sym, Imm)) or (isinstance(base, Imm) and base.kind != "int"):
        raise ParseError(f"{first} is no address: the base is a register, a variable or an integer")
    return Addr(base, offset, extras)


def _simple(text: str, scope: Scope, entry: Entry) -> Operand:
    """A register, a literal, a special register, a variable with or without an offset, or ``_``."""
    if text == "_":
        return Sink()
    match = _NAME.fullmatch(text)
    if match is None:
        found = literal(text)
        return _offset_symbol(text, scope) if found is None else found
    name, part = match.groups()
    register = scope.find_register(name)
    if register is not None:
        if part:
            raise NotModelledError(f"{text}: vector registers and selectors of a part of a register are not modelled")
        owner, ptx_type = register
        unique = owner.unique(name)
        entry.registers[unique] = ptx_type
        return Reg(unique)
    symbol = scope.find_symbol(name)
    if symbol is not None and not part:
        return Sym(symbol)
    if text in SPECIAL_NAMES:
        return Special(text)
    if text == "WARP_SZ":
        return Imm("int", 32)
    raise ParseError(f"{text} is not declared")


def _offset_symbol(text: str, scope: Scope) -> Sym:
    match = _SUM.fullmatch(text)
    symbol = scope.find_symbol(match[1]) if match else None
    if match is None or symbol is None:
        raise _refuse_expression(text, f"{text!r} is no operand" if text else "an operand is missing")
    shift = literal(match[2])
    if shift is None or shift.kind != "int":
        raise _refuse_expression(match[2], f"the offset in {text} is no integer")
    return Sym(symbol, shift.value)


def _refuse_expression(text: str, otherwise: str) -> ParseError | NotModelledError:
    """NotModelledError for constant expressions (PTX ISA 4.5.4) and array subscripts, else ParseError."""
    if re.fullmatch(rf"{IDENTIFIER}\s*\[[^\]]*\]", text, re.ASCII):
        return NotModelledError(f"the array subscript {text} is not modelled: write [name+bytes]")
    computes = re.search(r"\d", text) and re.search(r"[^\w.]", text) and not _REGISTER.search(text)
    if computes and _EXPRESSION.fullmatch(text):
        return NotModelledError(f"the constant expression {text} is not modelled: write its value")
    return ParseError(otherwise)
