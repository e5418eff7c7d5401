"""The body of a kernel: statements to instructions, with their scopes, labels and source lines (PTX ISA 4.3, 11.3, 11.5)."""

from __future__ import annotations

import re

from gpulinear.emulator.declarations import read_registers, read_variables
from gpulinear.emulator.errors import EmulatorError, NotModelledError, ParseError
from gpulinear.emulator.ir import Entry, Instruction, Location, Operand, Reg, Sym, Variable
from gpulinear.emulator.lexer import IDENTIFIER, Cursor
from gpulinear.emulator.operands import Scope, read_operands

FILE = re.compile(r'\.file\s+(\d{1,9})\s+"([^"\n]*)"(?:\s*,\s*\d+\s*,\s*\d+)?', re.ASCII)

_MOST_TARGETS = 1 << 16  # of one prefix

_LOC = re.compile(
    rf"\.loc\s+(\d{{1,9}})\s+(\d{{1,9}})\s+(\d{{1,9}})(?:\s*,\s*function_name\s+{IDENTIFIER}(?:\s*\+\s*\d+)?"
    r"\s*,\s*inlined_at\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9}))?(?!\S)",
    re.ASCII,
)
_LABEL = re.compile(rf"({IDENTIFIER})\s*:(?!:)", re.ASCII)
_NAME = re.compile(IDENTIFIER, re.ASCII)
_INSTRUCTION = re.compile(
    rf"(?:@\s*(!?)\s*({IDENTIFIER})\s+)?([a-z]\w*(?:(?:\.|::)\w+|\s+\.[a-z]\w*)*)(?![\w$.:%]|\s*:)"
    r"([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);",
    re.ASCII,
)


def read_pragma(cursor: Cursor) -> None:
    """Compiler hints, with the cursor after ``.pragma``: they change no result (PTX ISA 11.4)."""
    cursor.string()
    while cursor.accept(","):
        cursor.string()
    cursor.expect(";")


def declare_variables(cursor: Cursor, scope: Scope, found: list[Variable], at: int) -> list[Variable]:
    """Makes variables known in a scope; returns them under their unique names."""
    renamed = []
    for variable in found:
        unique = scope.unique(variable.name)
        declare(cursor, scope, {variable.name: unique}, at, registers=False)
        renamed.append(Variable(unique, variable.space, variable.size, variable.align, variable.data))
    return renamed


def declare(cursor: Cursor, scope: Scope, names: dict[str, str], at: int, *, registers: bool) -> None:
    """Makes names known in a scope; ParseError with the line where one is known already."""
    try:
        scope.declare(names, registers=registers)
    except ParseError as error:
        raise cursor.error(str(error), at) from None


class Body:
    """Reads the statements of one kernel into its Entry, with the cursor after the first ``{``."""

    def __init__(self, cursor: Cursor, scope: Scope, files: dict[int, str], entry: Entry) -> None:
        self.cursor = cursor
        self.scope = scope
        self.files = files
        self.entry = entry
        self.location: Location | None = None
        self.locations: dict[tuple[str, ...], Location] = {}  # the last one given for each file, line and column
        self.branches: list[tuple[Instruction, Scope, str]] = []
        self.tables: list[tuple[str, Scope, list[str], int]] = []
        self.scopes = 0

    def read(self) -> None:
        """All statements up to the closing ``}``, then the labels, which may be used before they are defined."""
        cursor, text = self.cursor, self.cursor.text
        outermost = self.scope
        while True:
            cursor.skip()
            at = cursor.at
            char = text[at : at + 1]
            if char == ".":
                self.directive(at)
            elif char == "{":
                cursor.at += 1
                self.scopes += 1
                self.scope = Scope(self.scope, str(self.scopes))
            elif char == "}":
                cursor.at += 1
                if self.scope is outermost:
                    break
                assert self.scope.parent is not None
                self.scope = self.scope.parent
            elif not char:
                raise cursor.error(f"the body of {self.entry.name} does not end", at)
            else:
                label = cursor.match(_LABEL)
                if label is not None:
                    self.label(label[1], at)
                else:
                    self.instruction(at)
        self.resolve_labels()

    def directive(self, at: int) -> None:
        cursor = self.cursor
        loc = cursor.match(_LOC)
        if loc is not None:
            self.locate(loc, at)
            return
        word = cursor.word()
        if word == "reg":
            declare(cursor, self.scope, read_registers(cursor), at, registers=True)
        elif word in ("shared", "local", "global", "const"):
            found = read_variables(cursor, word)
            self.entry.variables += declare_variables(cursor, self.scope, found, at)
        elif word == "pragma":
            read_pragma(cursor)
        elif word == "param":
            raise cursor.error("parameters of calls are not modelled", at, modelled=False)
        else:
            raise cursor.error("expected a statement", at)

    def locate(self, loc: re.Match[str], at: int) -> None:
        """``.loc`` (PTX ISA 11.5.4). The line of ``inlined_at`` was given by a .loc before, which may be inlined too."""
        groups = loc.groups()
        own, outer = groups[:3], groups[3:]
        names = [self.files.get(int(number)) for number in (own[0], outer[0]) if number is not None]
        if None in names:
            raise self.cursor.error("the .file of this .loc is missing", at)
        parent = None
        if outer[0] is not None:
            parent = self.locations.get(outer)
            if parent is None:
                parent = Location(self.files[int(outer[0])], int(outer[1]))
        self.location = self.locations[own] = Location(self.files[int(own[0])], int(own[1]), parent)

    def label(self, name: str, at: int) -> None:
        cursor, scope = self.cursor, self.scope
        if name in scope.labels:
            raise cursor.error(f"the label {name} is defined twice in one scope", at)
        if cursor.accept(".branchtargets"):
            unique = scope.unique(name)
            declare(cursor, scope, {name: unique}, at, registers=False)
            self.tables.append((unique, scope, self.branch_targets(), at))
        elif cursor.accept(".call"):
            raise cursor.error("calls are not modelled", at, modelled=False)
        else:
            unique = scope.unique(name)
            scope.labels[name] = unique
            self.entry.labels[unique] = len(self.entry.instructions)

    def branch_targets(self) -> list[str]:
        """The labels of ``.branchtargets A, B, N<3>;`` (PTX ISA 11.3.1)."""
        cursor = self.cursor
        targets: list[str] = []
        more = True
        while more:
            name = cursor.identifier("a label")
            if cursor.accept("<"):
                count = cursor.integer("the number of labels")
                if count > _MOST_TARGETS:
                    raise cursor.error(f"more than {_MOST_TARGETS} branch targets are not modelled", modelled=False)
                cursor.expect(">")
                targets += [f"{name}{number}" for number in range(count)]
            else:
                targets.append(name)
            more = cursor.accept(",")
        cursor.expect(";")
        return targets

    def instruction(self, at: int) -> None:
        cursor, entry = self.cursor, self.entry
        match = cursor.match(_INSTRUCTION)
        if match is None:
            raise cursor.error("expected an instruction that ends in ';'", at)
        negated, guard_name, name, rest = match.groups()
        text = " ".join(match.group().split())
        line = cursor.line(at)
        name = "".join(name.split())
        rest = rest.strip()
        guard: Reg | None = None
        operands: tuple[Operand, ...] = ()
        try:
            if guard_name is not None:
                guard = self.guard(guard_name)
            if name.startswith("call"):
                raise NotModelledError("calls are not modelled: functions have to be inlined")
            if name.startswith("bra.") or name == "bra":
                if not _NAME.fullmatch(rest):
                    raise ParseError("a branch needs one label")
            else:
                operands = read_operands(rest, self.scope, entry)
        except EmulatorError as error:
            raise type(error)(f"{error}. At PTX line {line}: {text}") from None
        index = len(entry.instructions)
        found = Instruction(index, name, operands, text, line, self.location, guard, bool(negated))
        entry.instructions.append(found)
        if not operands and name.startswith("bra"):
            self.branches.append((found, self.scope, rest))

    def guard(self, name: str) -> Reg:
        (operand,) = read_operands(name, self.scope, self.entry)
        if not isinstance(operand, Reg) or self.entry.registers[operand.name] != "pred":
            raise ParseError(f"the guard {name} is no predicate register")
        return operand

    def resolve_labels(self) -> None:
        for instruction, scope, name in self.branches:
            unique = scope.find_label(name)
            if unique is None:
                raise ParseError(f"the label {name} is not defined here. At {instruction.where()}")
            instruction.operands = (Sym(unique),)
        for table, scope, names, at in self.tables:
            found = [scope.find_label(name) for name in names]
            if None in found:
                raise self.cursor.error(f"the label {names[found.index(None)]} is not defined here", at)
            self.entry.targets[table] = [label for label in found if label is not None]
