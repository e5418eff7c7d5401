"""PTX text as the parser reads it: comments blanked, a cursor that knows its line, and literals (PTX ISA 4.2 - 4.5)."""

from __future__ import annotations

import math
import re
import struct

from gpulinear.emulator.errors import NotModelledError, ParseError
from gpulinear.emulator.ir import Imm

IDENTIFIER = r"[A-Za-z_$%][\w$]*"

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
_SPACE = re.compile(r"\s*", re.ASCII)
_IDENTIFIER = re.compile(IDENTIFIER, re.ASCII)
_WORD = re.compile(r"\.\w+", re.ASCII)
_STRING = re.compile(r'"[^"\n]*"')
_UNSIGNED = re.compile(r"0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*")
_LITERAL = re.compile(
    r"(?P<sign>-\s*)?(?:(?P<int>0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)U?"
    r"|(?P<real>(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+))"
    r"|0[fF](?P<f32>[0-9a-fA-F]{8})|0[dD](?P<f64>[0-9a-fA-F]{16})"
)
_LONGEST_LITERAL = 400  # characters: longer ones are no number that anybody wrote


def _blank(match: re.Match[str]) -> str:
    found = match.group()
    return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)


class Cursor:
    """A position in a module's text; comments are blanked and take no part."""

    def __init__(self, text: str) -> None:
        self.original = text
        self.text = _COMMENT.sub(_blank, text)
        self.at = 0
        self._counted = (0, 1)  # a position and its line: lines are counted on from there
        for match in _COMMENT.finditer(text):
            if match.group() == "/*":
                raise self.error("a comment that does not end", match.start())

    def line(self, at: int) -> int:
        """The PTX line of a position, from 1."""
        start, line = self._counted if self._counted[0] <= at else (0, 1)
        line += self.text.count("\n", start, at)
        self._counted = (at, line)
        return line

    def error(self, message: str, at: int | None = None, *, modelled: bool = True) -> ParseError | NotModelledError:
        """An error that names the PTX line and shows it; NotModelledError for legal PTX that is not modelled."""
        if at is None:
            self.skip()
            at = self.at
        line = self.line(at)
        begin = self.original.rfind("\n", 0, at) + 1
        end = self.original.find("\n", at)
        shown = " ".join(self.original[begin : end if end >= 0 else None].split())
        if len(shown) > 160:
            shown = f"{shown[:160]} ..."
        kind = ParseError if modelled else NotModelledError
        return kind(f"{message}. At PTX line {line}: {shown or 'the end of a statement or of the text'}")

    def skip(self) -> None:
        """Past white space."""
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The pattern here (after white space), and past it; None where it does not match."""
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def accept(self, literal: str) -> bool:
        """Whether this text comes next; if so, past it."""
        self.skip()
        if not self.text.startswith(literal, self.at):
            return False
        self.at += len(literal)
        return True

    def expect(self, literal: str) -> None:
        """This text has to come next."""
        if not self.accept(literal):
            raise self.error(f"expected {literal!r}")

    def word(self) -> str:
        """A directive or type such as ``.align``, without its dot; "" if none comes next."""
        found = self.match(_WORD)
        return found.group()[1:] if found else ""

    def identifier(self, what: str) -> str:
        """A name."""
        found = self.match(_IDENTIFIER)
        if found is None:
            raise self.error(f"expected the name of {what}")
        return found.group()

    def integer(self, what: str) -> int:
        """An integer without a sign."""
        found = self.match(_UNSIGNED)
        if found is None or len(found.group()) > _LONGEST_LITERAL:
            raise self.error(f"expected {what}, a number")
        return _unsigned(found.group())

    def string(self) -> str:
        """A string in double quotes."""
        found = self.match(_STRING)
        if found is None:
            raise self.error("expected a string")
        return found.group()[1:-1]


def _unsigned(digits: str) -> int:
    if digits[:2] in ("0x", "0X"):
        return int(digits[2:], 16)
    if digits[:2] in ("0b", "0B"):
        return int(digits[2:], 2)
    return int(digits, 8 if digits[0] == "0" else 10)


def literal(text: str) -> Imm | None:
    """A literal (PTX ISA 4.5), with a minus sign or without; None where the text is none.

    Decimal floating-point literals are f64, as in the PTX ISA. An integer that needs more than 64 bits is an error.
    """
    match = _LITERAL.fullmatch(text)
    if match is None or len(text) > _LONGEST_LITERAL:
        return None
    kind = match.lastgroup
    if kind == "int":
        value = _unsigned(match["int"])
        if match["sign"]:
            value = -value
        if not -(1 << 63) <= value < 1 << 64:
            raise ParseError(f"the integer {text} needs more than 64 bits")
        return Imm("int", value)
    if kind == "real":
        real = float(f"{'-' if match['sign'] else ''}{match['real']}")
        if math.isinf(real):
            raise ParseError(f"the number {text} is larger than any f64")
        return Imm("f64", int.from_bytes(struct.pack(">d", real), "big"))
    return Imm("f32", int(match["f32"], 16)) if kind == "f32" else Imm("f64", int(match["f64"], 16))
