"""Declarations of a PTX module: registers, variables with their initial bytes, parameters (PTX ISA 5.1.6, 5.4)."""

from __future__ import annotations

import math
import re
import struct

from gpulinear.emulator.errors import ParseError
from gpulinear.emulator.ir import WIDTHS, Imm, Param, Variable
from gpulinear.emulator.lexer import Cursor, literal

_MEMORY_TYPES = WIDTHS.keys() - {"pred", "bf16", "bf16x2", "tf32"}
_REGISTER_TYPES = WIDTHS.keys() - {"bf16", "bf16x2", "tf32"}
_MOST_REGISTERS = 1 << 20  # of one declaration; no kernel comes near
_MOST_BYTES = 1 << 40  # of a variable
_MOST_INITIAL = 1 << 26  # bytes of a variable with an initialiser
_MOST_DIMENSIONS = 8
_VALUE = re.compile(r"[^,{};\s]+(?:[^,{};]*[^,{};\s])?")


def read_registers(cursor: Cursor) -> dict[str, str]:
    """Names -> type of ``.reg .type a, b<4>;`` (PTX ISA 5.1.1, 5.4.6), with the cursor after ``.reg``."""
    if cursor.accept(".align"):
        cursor.integer("an alignment")
    at = cursor.at
    ptx_type = cursor.word()
    if ptx_type in ("v2", "v4", "v8"):
        raise cursor.error("vector registers are not modelled", at, modelled=False)
    if ptx_type not in _REGISTER_TYPES:
        raise cursor.error(f"registers have a type such as .b32, not {ptx_type or 'none'}", at)
    names: dict[str, str] = {}
    while True:
        at = cursor.at
        name = cursor.identifier("a register")
        if cursor.accept("<"):
            count = cursor.integer("the number of registers")
            if count > _MOST_REGISTERS:
                raise cursor.error(f"more than {_MOST_REGISTERS} registers in one declaration", at)
            cursor.expect(">")
            new = {f"{name}{number}": ptx_type for number in range(count)}
        else:
            new = {name: ptx_type}
        twice = names.keys() & new.keys()
        if twice:
            raise cursor.error(f"{min(twice)} is declared twice in one scope", at)
        names |= new
        if not cursor.accept(","):
            break
    cursor.expect(";")
    return names


def read_alignment(cursor: Cursor) -> int:
    """A power of two."""
    align = cursor.integer("an alignment")
    if align < 1 or align & (align - 1) or align > 1 << 20:
        raise cursor.error("an alignment is a power of two")
    return align


def read_variables(cursor: Cursor, space: str, *, linkage: str = "", align: int = 0) -> list[Variable]:
    """The variables of ``.space [.align n] .type name[n] = {...};``, with the cursor after ``.space``."""
    begin = cursor.at
    if cursor.accept("["):
        raise cursor.error("constant banks are not modelled", begin, modelled=False)
    length, ptx_type = 1, cursor.word()
    while ptx_type in ("align", "attribute", "v2", "v4", "v8"):
        if ptx_type == "align":
            align = read_alignment(cursor)
        elif ptx_type == "attribute":
            raise cursor.error("attributes of variables are not modelled", begin, modelled=False)
        else:
            length = int(ptx_type[1])
        ptx_type = cursor.word()
    if ptx_type in ("texref", "samplerref", "surfref"):
        raise cursor.error(f".{ptx_type} variables are not modelled", begin, modelled=False)
    if ptx_type not in _MEMORY_TYPES:
        raise cursor.error(f"variables in memory have a type such as .b32, not {ptx_type or 'none'}", begin)
    variables = []
    while True:
        variables.append(_variable(cursor, space, linkage, align, ptx_type, length))
        if not cursor.accept(","):
            break
    cursor.expect(";")
    return variables


def _variable(cursor: Cursor, space: str, linkage: str, align: int, ptx_type: str, length: int) -> Variable:
    at = cursor.at
    name = cursor.identifier("a variable")
    if cursor.accept("<"):
        raise cursor.error("families of variables in memory are not modelled", at, modelled=False)
    item = WIDTHS[ptx_type] // 8
    align = align or item * length
    dims: list[int | None] = []
    while cursor.accept("["):
        unknown = not dims and cursor.accept("]")
        dims.append(None if unknown else cursor.integer("the size of an array"))
        if not unknown:
            cursor.expect("]")
    if linkage == "extern" and space == "shared" and dims == [None]:
        return Variable(name, space, None, align)
    if linkage in ("extern", "common"):
        raise cursor.error(f".{linkage} .{space} variables of this kind are not modelled", at, modelled=False)
    if len(dims) > _MOST_DIMENSIONS:
        raise cursor.error(f"arrays of more than {_MOST_DIMENSIONS} dimensions are not modelled", at, modelled=False)
    sizes = dims + ([length] if length > 1 else [])
    fixed = item * math.prod(size for size in sizes if size is not None)
    if not 0 < fixed <= _MOST_BYTES:
        raise cursor.error(f"{name} has {fixed} bytes", at)
    if not cursor.accept("="):
        if dims[:1] == [None]:
            raise cursor.error(f"the size of {name} is missing: only .extern .shared leaves it to the launch", at)
        return Variable(name, space, fixed, align)
    if space not in ("global", "const"):
        raise cursor.error(f".{space} variables have no initial value", at)
    if fixed > _MOST_INITIAL:
        raise cursor.error(f"initial values of more than {_MOST_INITIAL} bytes are not modelled", at, modelled=False)
    data = _initial(cursor, sizes, ptx_type)
    return Variable(name, space, len(data), align, data)


def _initial(cursor: Cursor, sizes: list[int | None], ptx_type: str) -> bytes:
    """The bytes of an initialiser, nested as deep as there are dimensions; what is not given is zero (5.4.4)."""
    if not sizes:
        return _scalar(cursor, ptx_type)
    cursor.expect("{")
    count, inner = sizes[0], sizes[1:]
    size = WIDTHS[ptx_type] // 8 * math.prod(s for s in inner if s is not None)
    out = bytearray()
    more = not cursor.accept("}")
    while more:
        if count is not None and len(out) == size * count:
            raise cursor.error("more initial values than elements")
        if len(out) > _MOST_INITIAL:
            raise cursor.error(f"initial values of more than {_MOST_INITIAL} bytes are not modelled", modelled=False)
        out += _initial(cursor, inner, ptx_type)
        more = cursor.accept(",")
        if not more:
            cursor.expect("}")
    if count is None and not out:
        raise cursor.error("the size of an array is missing, and it has no initial values")
    return bytes(out) + bytes(0 if count is None else size * count - len(out))


def _scalar(cursor: Cursor, ptx_type: str) -> bytes:
    match = cursor.match(_VALUE)
    if match is None:
        raise cursor.error("expected an initial value")
    try:
        value = literal(match.group())
        if value is not None:
            return _bytes(value, ptx_type)
    except (OverflowError, ParseError):
        raise cursor.error(f"{match.group()} is no initial value for .{ptx_type}", match.start()) from None
    message = "initial values other than numbers (addresses, expressions) are not modelled"
    raise cursor.error(message, match.start(), modelled=False)


def _bytes(value: Imm, ptx_type: str) -> bytes:
    """An initial value as little-endian bytes; OverflowError where the type cannot hold it."""
    width = WIDTHS[ptx_type]
    kind = ptx_type[0]
    if kind == "f":
        if value.kind == "int" or ptx_type not in ("f32", "f64"):
            raise OverflowError
        if value.kind == ptx_type:
            return value.value.to_bytes(width // 8, "little")
        source, target = ("<f", "<d") if value.kind == "f32" else ("<d", "<f")
        number = struct.unpack(source, value.value.to_bytes(struct.calcsize(source), "little"))[0]
        return struct.pack(target, number)
    if value.kind != "int" and (kind != "b" or value.kind != f"f{width}"):
        raise OverflowError
    if not -(1 << width - 1) <= value.value < 1 << width:
        raise OverflowError
    return (value.value & ((1 << width) - 1)).to_bytes(width // 8, "little")


def read_parameters(cursor: Cursor) -> list[Param]:
    """The parameters of an entry, laid out one after the other at their alignments, with the cursor after ``(``."""
    params: list[Param] = []
    end = 0
    if cursor.accept(")"):
        return params
    while True:
        at = cursor.at
        if cursor.word() != "param":
            raise cursor.error("the parameters of a kernel are in .param space", at)
        align, ptx_type = 0, cursor.word()
        while ptx_type == "align":
            align, ptx_type = read_alignment(cursor), cursor.word()
        if ptx_type not in _MEMORY_TYPES:
            raise cursor.error(f"parameters have a type such as .b32, not {ptx_type or 'none'}", at)
        item = WIDTHS[ptx_type] // 8
        qualifier = cursor.word()
        while qualifier:
            if qualifier == "align":
                align, qualifier = read_alignment(cursor), cursor.word()
            elif qualifier == "ptr":  # of what the pointer points to: space and alignment
                qualifier = cursor.word()
                if qualifier in ("global", "shared", "const", "local"):
                    qualifier = cursor.word()
                if qualifier == "align":
                    read_alignment(cursor)
                    qualifier = cursor.word()
            else:
                raise cursor.error(f".{qualifier} is no qualifier of a parameter", at)
        name = cursor.identifier("a parameter")
        count = 1
        if cursor.accept("["):
            count = cursor.integer("the size of a parameter")
            cursor.expect("]")
        if not 0 < count * item <= 1 << 16:
            raise cursor.error(f"the parameter {name} has {count * item} bytes", at)
        align = align or item
        offset = -(-end // align) * align
        params.append(Param(name, offset, count * item))
        end = offset + count * item
        if not cursor.accept(","):
            break
    cursor.expect(")")
    return params
