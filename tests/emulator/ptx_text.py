"""PTX text for the parser's tests, and what they ask of it."""

from __future__ import annotations

import pytest

from gpulinear.emulator.errors import EmulatorError
from gpulinear.emulator.ir import (
    Entry,
    Operand,
)
from gpulinear.emulator.parser import parse

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"
REGISTERS = ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>; .reg .pred %p<9>; .reg .b16 %h<9>;"


def kernel(body: str, before: str = "", head: str = HEAD) -> str:
    """A module with one kernel; its body begins in line 10."""
    before = " ".join(before.split("\n"))
    return (
        f"{head}{before}\n.extern .shared .align 128 .b8 dyn[];\n"
        f".visible .entry k(\n.param .u64 a,\n.param .align 64 .b8 map[128])\n{{ {REGISTERS}\n{body}\nret;\n}}\n"
    )


def entry(body: str, before: str = "") -> Entry:
    return parse(kernel(body, before)).entry("k")


def operands(text: str, before: str = "") -> tuple[Operand, ...]:
    """The operands of one instruction, given without its name."""
    return entry(f"op.b32 {text};", before).instructions[0].operands


def refuse(kind: type[EmulatorError], text: str, *parts: str) -> str:
    with pytest.raises(EmulatorError) as caught:
        parse(text)
    assert type(caught.value) is kind, caught.value
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# Operands
