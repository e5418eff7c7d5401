"""PTX text to a Module: the head, the variables and the kernels of a module (PTX ISA 4.3, 11).

Legal PTX that the emulator does not model (functions, calls, textures, vector registers, ...) is refused here by a
NotModelledError, everything else that is no PTX by a ParseError; both name the line.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gpulinear.emulator.body import FILE, Body, declare, declare_variables, read_pragma
from gpulinear.emulator.declarations import read_alignment, read_parameters, read_variables
from gpulinear.emulator.ir import Entry, Module
from gpulinear.emulator.lexer import Cursor
from gpulinear.emulator.operands import Scope

# How many numbers follow each directive between a kernel's parameters and its body (PTX ISA 11.4, 11.7).
_ENTRY_DIRECTIVES = {
    "maxntid": (1, 3),
    "reqntid": (1, 3),
    "minnctapersm": (1, 1),
    "maxnctapersm": (1, 1),
    "maxnreg": (1, 1),
    "reqnctapercluster": (1, 3),
    "maxclusterrank": (1, 1),
    "explicitcluster": (0, 0),
    "blocksareclusters": (0, 0),
}

_SECTION = re.compile(r"\.section\s+[.\w]+\s*\{[^{}]*\}", re.ASCII)
_VERSION = re.compile(r"\d{1,3}\.\d{1,3}\b", re.ASCII)
_TARGET = re.compile(r"sm_\d{2,3}[af]?\b", re.ASCII)


def parse(text: str) -> Module:
    """The module that a PTX text defines.

    Raises:
        ParseError: the text is not PTX. NotModelledError: it is, but has what the emulator does not model.
    """
    cursor = Cursor(text)
    module = _head(cursor)
    scope = Scope(None, "0")
    # The .file lines stand at the end of what NVRTC writes, after their first use.
    files = {int(match[1]): match[2] for match in FILE.finditer(cursor.text)}
    cursor.skip()
    while cursor.at < len(cursor.text):
        if cursor.match(FILE) is None and cursor.match(_SECTION) is None:
            _declaration(cursor, scope, files, module)
        cursor.skip()
    return module


def _head(cursor: Cursor) -> Module:
    """``.version``, ``.target``, ``.address_size`` (PTX ISA 11.1)."""
    cursor.expect(".version")
    version = cursor.match(_VERSION)
    if version is None:
        raise cursor.error("expected a version such as 9.0")
    cursor.expect(".target")
    target = cursor.match(_TARGET)
    if target is None:
        raise cursor.error("expected a target such as sm_90a")
    while cursor.accept(","):
        at = cursor.at
        option = cursor.identifier("an option of the target")
        if option not in ("debug", "texmode_unified", "texmode_independent"):
            raise cursor.error(f"the target option {option} is not modelled", at, modelled=False)
    if not cursor.accept(".address_size") or cursor.integer("an address size") != 64:
        raise cursor.error("expected .address_size 64: 32-bit addresses are not modelled", modelled=False)
    return Module(version.group(), target.group())


def _declaration(cursor: Cursor, scope: Scope, files: dict[int, str], module: Module) -> None:
    at = cursor.at
    linkage, align, word = "", 0, cursor.word()
    while word in ("visible", "extern", "weak", "common", "align"):
        if word == "align":
            align = read_alignment(cursor)
        else:
            linkage = word
        word = cursor.word()
    if word == "entry" and linkage in ("", "visible", "weak") and not align:
        entry = _entry(cursor, scope, files)
        if entry.name in module.entries:
            raise cursor.error(f"the entry {entry.name} is defined twice", at)
        module.entries[entry.name] = entry
    elif word in ("shared", "global", "const"):
        found = read_variables(cursor, word, linkage=linkage, align=align)
        module.variables += declare_variables(cursor, scope, found, at)
    elif word == "pragma" and not linkage and not align:
        read_pragma(cursor)
    elif word == "func":
        raise cursor.error("functions are not modelled: they have to be inlined", at, modelled=False)
    elif word in ("entry", "alias", "tex"):
        raise cursor.error(f".{word} is not modelled here", at, modelled=False)
    else:
        raise cursor.error("expected a declaration or a kernel", at)


def _entry(cursor: Cursor, outer: Scope, files: dict[int, str]) -> Entry:
    """A kernel (PTX ISA 11.2.1), with the cursor after ``.entry``."""
    entry = Entry(cursor.identifier("a kernel"))
    scope = Scope(outer, "0")
    if cursor.accept("("):
        at = cursor.at
        for param in read_parameters(cursor):
            unique = scope.unique(param.name)
            declare(cursor, scope, {param.name: unique}, at, registers=False)
            entry.params.append(replace(param, name=unique))
    while not cursor.accept("{"):
        _entry_directive(cursor, entry)
    Body(cursor, scope, files, entry).read()
    return entry


def _entry_directive(cursor: Cursor, entry: Entry) -> None:
    cursor.skip()
    at = cursor.at
    name = cursor.word()
    if name == "pragma":
        read_pragma(cursor)
        return
    if name not in _ENTRY_DIRECTIVES:
        raise cursor.error("expected a directive of a kernel, or its body in { }", at)
    if name in entry.directives:
        raise cursor.error(f".{name} is given twice", at)
    least, most = _ENTRY_DIRECTIVES[name]
    numbers = [cursor.integer(f"the value of .{name}")] if least else []
    while numbers and len(numbers) < most and cursor.accept(","):
        numbers.append(cursor.integer(f"the value of .{name}"))
    entry.directives[name] = numbers + [1] * (most - len(numbers))  # sizes that are not given are 1
