"""The PTX parser: every form of statement and operand of the PTX ISA, what it refuses and with which line, real kernels."""

from __future__ import annotations

import re
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulinear.compile import compile_kernel
from gpulinear.config import ColumnSumConfig, Config, GemmSimtConfig, StridedCopyConfig
from gpulinear.emulator.errors import EmulatorError, LaunchError, NotModelledError, ParseError
from gpulinear.emulator.ir import (
    Addr,
    Entry,
    Imm,
    Location,
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
from gpulinear.emulator.parser import parse
from gpulinear.source import entry_name, render

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%r1", Reg("%r1")),
        ("0", Imm("int", 0)),
        ("42", Imm("int", 42)),
        ("-5", Imm("int", -5)),
        ("- 5", Imm("int", -5)),
        ("7U", Imm("int", 7)),
        ("0x1fU", Imm("int", 31)),
        ("0XFF", Imm("int", 255)),
        ("-0x10", Imm("int", -16)),
        ("017", Imm("int", 15)),
        ("0b101", Imm("int", 5)),
        ("0B11U", Imm("int", 3)),
        ("18446744073709551615", Imm("int", 2**64 - 1)),
        ("-9223372036854775808", Imm("int", -(2**63))),
        ("0f3F800000", Imm("f32", 0x3F800000)),
        ("0Fff800000", Imm("f32", 0xFF800000)),
        ("0d3FF0000000000000", Imm("f64", 0x3FF0000000000000)),
        ("0D8000000000000000", Imm("f64", 1 << 63)),
        ("1.5", Imm("f64", int.from_bytes(struct.pack(">d", 1.5), "big"))),
        ("-0.0", Imm("f64", 1 << 63)),
        (".5", Imm("f64", int.from_bytes(struct.pack(">d", 0.5), "big"))),
        ("2.", Imm("f64", int.from_bytes(struct.pack(">d", 2.0), "big"))),
        ("1e3", Imm("f64", int.from_bytes(struct.pack(">d", 1000.0), "big"))),
        ("-2.5E-3", Imm("f64", int.from_bytes(struct.pack(">d", -0.0025), "big"))),
        ("WARP_SZ", Imm("int", 32)),
        ("%tid.x", Special("%tid.x")),
        ("%laneid", Special("%laneid")),
        ("%cluster_ctarank", Special("%cluster_ctarank")),
        ("%lanemask_lt", Special("%lanemask_lt")),
        ("%clock64", Special("%clock64")),
        ("%envreg31", Special("%envreg31")),
        ("a", Sym("a")),
        ("dyn", Sym("dyn")),
        ("dyn+8", Sym("dyn", 8)),
        ("dyn + -8", Sym("dyn", -8)),
        ("_", Sink()),
        ("!%p1", Not(Reg("%p1"))),
        ("! %p1", Not(Reg("%p1"))),
        ("%p1|%p2", Pair(Reg("%p1"), Reg("%p2"))),
        ("%p1 | _", Pair(Reg("%p1"), Sink())),
        ("_|%p2", Pair(Sink(), Reg("%p2"))),
        ("{%r1}", Vec((Reg("%r1"),))),
        ("{ %r1 , _,3, 0f00000000 }", Vec((Reg("%r1"), Sink(), Imm("int", 3), Imm("f32", 0)))),
        ("[%rd1]", Addr(Reg("%rd1"), 0)),
        ("[%rd1+8]", Addr(Reg("%rd1"), 8)),
        ("[%rd1+-16]", Addr(Reg("%rd1"), -16)),
        ("[ %rd1 + 0x10 ]", Addr(Reg("%rd1"), 16)),
        ("[%rd1+4U]", Addr(Reg("%rd1"), 4)),
        ("[dyn]", Addr(Sym("dyn"), 0)),
        ("[dyn+4]", Addr(Sym("dyn"), 4)),
        ("[map+64]", Addr(Sym("map"), 64)),
        ("[16]", Addr(Imm("int", 16), 0)),
        ("[%rd1, {%r1, %r2}]", Addr(Reg("%rd1"), 0, (Vec((Reg("%r1"), Reg("%r2"))),))),
        ("[%rd1, {0, -1, %r2}, {%h1, %h2}]", Addr(Reg("%rd1"), 0, (
            Vec((Imm("int", 0), Imm("int", -1), Reg("%r2"))), Vec((Reg("%h1"), Reg("%h2")))))),
    ],
)  # fmt: skip
def test_operand(text: str, expected: Operand) -> None:
    assert operands(text) == (expected,)
    assert operands(f"%r7, {text}, %r8") == (Reg("%r7"), expected, Reg("%r8"))


def test_operands_together() -> None:
    text = "[dyn+16], [%rd3, {%r4, %r5}], [%r6], %h1, %rd2"
    expected = (
        Addr(Sym("dyn"), 16),
        Addr(Reg("%rd3"), 0, (Vec((Reg("%r4"), Reg("%r5"))),)),
        Addr(Reg("%r6"), 0),
        Reg("%h1"),
        Reg("%rd2"),
    )
    assert operands(text) == expected
    assert entry("bar.sync 0; membar.gl;").instructions[1].operands == ()


@pytest.mark.parametrize(
    "text",
    [
        "%r10",  # declared are %r0 to %r8
        "%tid.q",
        "%foo",
        "nowhere",
        "%r1,",
        "%r1,,%r2",
        "{%r1, {%r2}}",
        "{}",
        "{[%rd1]}",
        "[%rd1-4]",
        "[4+%rd1]",
        "[%rd1+%r2]",
        "[%rd1+1.5]",
        "[0f00000000]",
        "[%tid.x]",
        "[{%r1}]",
        "[%rd1, [%rd2]]",
        "[%rd1",
        "-%r1",
        "!3",
        "!dyn",
        "%p1|%p2|%p3",
        "%p1|3",
        "089",
        "5u",
        "'a'",
        '"a"',
        "0f3F80000",
        "-0f3F800000",
        "1.5f",
        "0x",
        "1e999",
        "18446744073709551616",
        "-9223372036854775809",
        "9" * 5000,
        "é",
        "%r1 %r2",
    ],
)
def test_what_is_no_operand(text: str) -> None:
    kind = NotModelledError if text in ("!3", "-0f3F800000") else ParseError
    message = refuse(kind, kernel(f"\nop.b32 {text};"))
    assert "At PTX line 11:" in message


@pytest.mark.parametrize(
    "text", ["(1+2)", "1+2", "~1", "--1", "+1", "(4)", "0x10*2", "dyn+(4)", "[%rd1+4+4]", "dyn+4-2"]
)
def test_constant_expressions_are_refused_as_not_modelled(text: str) -> None:
    refuse(NotModelledError, kernel(f"op.b32 {text};"), "constant expression", "At PTX line 10: op.b32")


def test_other_legal_operands_that_are_refused() -> None:
    refuse(NotModelledError, kernel("op.b32 %r1, dyn[4];"), "dyn[4]", "PTX line 10")
    refuse(NotModelledError, kernel("op.b32 %r1.x;"), "vector registers", "PTX line 10")


# Instructions


def test_instruction_keeps_text_line_and_guard() -> None:
    found = entry(
        "mov.u32 \t%r1,   %tid.x;\n@%p1 bra  L;\n@ ! %p2 add.s32 %r1, %r2,\n  3; // comment; with }\nL: exit;"
    )
    one, two, three, four, ret = found.instructions
    assert (one.name, one.opcode, one.line, one.text) == ("mov.u32", "mov", 10, "mov.u32 %r1, %tid.x;")
    assert (two.guard, two.guard_negated, two.operands, two.line) == (Reg("%p1"), False, (Sym("L"),), 11)
    assert (three.guard, three.guard_negated, three.line) == (Reg("%p2"), True, 12)
    assert three.text == "@ ! %p2 add.s32 %r1, %r2, 3;"
    assert (four.name, four.line, four.guard) == ("exit", 14, None)
    assert [i.index for i in found.instructions] == [0, 1, 2, 3, 4]
    assert ret.name == "ret" and ret.location is None
    assert found.labels == {"L": 3}


def test_long_names_and_spaces_before_modifiers() -> None:
    name = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    found = entry(f"{name} [%r1], [%rd1, {{%r2, %r3}}], [%r4];\nadd .s32\t.x %r1, %r2, 1;\nL:M:bra.uni L;")
    assert [i.name for i in found.instructions] == [name, "add.s32.x", "bra.uni", "ret"]
    assert found.labels == {"L": 2, "M": 2}


def test_comments_are_no_part_of_the_text_and_lines_stay() -> None:
    body = '/* two\nlines; } */ mov.u32 /* x, */ %r1, 1; // mov.u32 %r1, 2;\n.pragma "no // comment";\nexit;'
    one, two, _ = entry(body).instructions
    assert (one.line, one.text) == (11, "mov.u32 %r1, 1;")
    assert (two.name, two.line) == ("exit", 13)


def test_windows_line_ends() -> None:
    text = kernel("mov.u32 %r1, 1;\nexit;")
    assert [i.line for i in parse(text.replace("\n", "\r\n")).entry("k").instructions] == [10, 11, 12]


@pytest.mark.parametrize(
    "body",
    [
        "mov.u32 %r1, 1\n}",
        "ADD.s32 %r1, %r2, 1;",
        "add. s32 %r1, %r2, 1;",
        ";",
        "@%p1 L: exit;",
        "@%r1 exit;",
        "@%p9 exit;",
        "@ exit;",
        "@%p1 { exit; }",
        "mov.u32 %r1, {%r2;",
        "mov.u32 %r1, %r2};",
        "bra;",
        "bra 3;",
        "bra L+1;",
        "bra L, M;",
        "L: L: exit;",
        ".maxntid 32;",
        ".file 1 \"a.cu\"",
        ".extern .shared .b8 x[];",
        ".reg .b32 z = 3;",
        ".reg .b32 %r1;",
        ".reg .b32 z, z;",
        ".reg .b32 z<3>, z2;",
        ".reg .f33 z;",
        ".reg .bf16 z;",
        ".reg .tf32 z;",
        ".reg z;",
        ".reg .b32 z<9999999999>;",
        ".reg .b32 z<3;",
        "mov.u32 z, 1; .reg .b32 z;",
        ".shared .b8 z; .reg .b32 z;",
        "{ exit;",
        "} exit;",
        ".section .debug { }",
        "3: exit;",
    ],
)  # fmt: skip
def test_what_is_no_statement(body: str) -> None:
    refuse(ParseError, kernel(body), "PTX line 1")


@pytest.mark.parametrize(
    "body",
    [
        "call.uni (%r1), f, (%r2);",
        "call f;",
        ".param .b32 param0;",
        "p: .callprototype (.param .b32 _) _ (.param .b32 _);",
        "t: .calltargets f;",
        ".reg .v4 .f32 z;",
        ".shared .b32 z<4>;",
        "T: .branchtargets L<99999999>; brx.idx %r1, T;",
    ],
)
def test_statements_that_are_not_modelled(body: str) -> None:
    refuse(NotModelledError, kernel(f"exit;\n{body}"), "At PTX line 11: ", body.split()[0])


# Scopes, labels, branch tables


def test_scopes_of_inline_assembly() -> None:
    body = """
    { .reg .pred p; .reg .b32 u<3>, %r1;
    L0: @p bra D0;
    @!p bra L0;
    mov.b32 u1, %r1;
    D0: }
    { .reg .pred p; L0: @p bra L0; bra End; }
    mov.b32 %r1, %r2;
    End:
    """
    found = entry(body)
    first, again = found.instructions[0].guard, found.instructions[3].guard
    assert isinstance(first, Reg) and found.instructions[1].guard == first
    assert isinstance(again, Reg) and first != again
    assert found.registers[first.name] == found.registers[again.name] == "pred"
    inner = found.instructions[2].operands[1]
    assert isinstance(inner, Reg) and inner != Reg("%r1") and found.registers[inner.name] == "b32"
    assert found.instructions[5].operands == (Reg("%r1"), Reg("%r2"))
    target = [i.operands[0] for i in found.instructions if i.opcode == "bra"]
    assert all(isinstance(t, Sym) for t in target)
    assert [found.labels[t.name] for t in target if isinstance(t, Sym)] == [3, 0, 3, 6]
    assert found.labels["End"] == 6 and len(found.labels) == 4


def test_inner_declaration_hides_only_from_there_on() -> None:
    found = entry("{ mov.b32 %r1, 0; .reg .f32 %r1; mov.f32 %r1, 0f00000000; { mov.f32 %r1, 0f00000000; } }")
    outer, inner, deeper = (i.operands[0] for i in found.instructions[:3])
    assert outer == Reg("%r1") and inner == deeper != outer
    assert isinstance(inner, Reg) and found.registers == {"%r1": "b32", inner.name: "f32"}


def test_registers_hide_variables_and_the_other_way_round() -> None:
    found = entry("{ .reg .b32 dyn; mov.b32 dyn, 1; { .shared .b32 dyn; mov.b32 %r1, dyn; } mov.b32 %r2, dyn; }")
    hidden, variable, again = (i.operands[n] for i, n in zip(found.instructions, (0, 1, 1), strict=False))
    assert isinstance(hidden, Reg) and hidden == again
    assert isinstance(variable, Sym) and variable.name == found.variables[0].name != "dyn"
    refuse(ParseError, kernel("{ .reg .b32 dyn; mov.b32 %r1, dyn+4; }"), "dyn+4")


def test_special_names_can_be_declared() -> None:
    assert entry(".reg .b32 %tid; mov.b32 %r1, %tid;").instructions[0].operands[1] == Reg("%tid")


def test_registers_are_those_that_instructions_name() -> None:
    found = entry(".reg .b128 $wide; .reg .f16x2 _half; mov.b128 $wide, {%rd1, %rd8}; op _half, %fd3;\n@!%p0 exit;")
    assert found.registers == {
        "$wide": "b128", "%rd1": "b64", "%rd8": "b64", "_half": "f16x2", "%fd3": "f64", "%p0": "pred",
    }  # fmt: skip


def test_branch_into_a_scope_is_refused() -> None:
    refuse(ParseError, kernel("\nbra L;\n{ L: exit; }"), "label L is not defined", "PTX line 11: bra L;")


def test_branch_tables() -> None:
    found = entry("T: .branchtargets A, N<2>,\n B;\n brx.idx %r1, T; A: N0: exit; N1: B: exit;")
    assert found.instructions[0].operands == (Reg("%r1"), Sym("T"))
    assert found.targets == {"T": ["A", "N0", "N1", "B"]}
    assert found.labels == {"A": 1, "N0": 1, "N1": 2, "B": 2}
    refuse(ParseError, kernel("brx.idx %r1, T; T: .branchtargets A; A:"), "T is not declared")
    refuse(ParseError, kernel("\nT: .branchtargets A, C; A:"), "label C is not defined", "PTX line 11")


# Source lines


def test_source_lines_and_where_they_were_inlined() -> None:
    body = """exit;
    .loc 1 10 3
    exit;
    .loc 2 5 1, function_name $L__info_string0, inlined_at 1 10 3
    exit;
    .loc 2 7 9, function_name $L__info_string1+4, inlined_at 2 5 1
    exit;
    .loc 1 11 0
    .loc 2 5 1, function_name $L__info_string0, inlined_at 1 11 0
    .loc 2 7 9, function_name $L__info_string1, inlined_at 2 5 1
    L: exit;
    .loc 2 8 8, function_name $L__info_string1, inlined_at 1 99 1
    exit;
    """
    files = '\n.file 1 "kernel.cu"\n.file 2 "common/x; y.cuh", 123, 456\n'
    section = ".section .debug_str\n{\n$L__info_string0:\n.b8 95,90,0\n$L__info_string1:\n.b8 95,0\n}\n"
    found = parse(kernel(body) + files + section).entry("k").instructions
    ten, header = Location("kernel.cu", 10), "common/x; y.cuh"
    assert [i.location for i in found[:4]] == [
        None, ten, Location(header, 5, ten), Location(header, 7, Location(header, 5, ten)),
    ]  # fmt: skip
    assert str(found[4].location) == f"{header}:7 (inlined at {header}:5 (inlined at kernel.cu:11))"
    assert found[5].location == Location(header, 8, Location("kernel.cu", 99))
    assert found[6].location == found[5].location  # until the next .loc
    assert found[4].where() == f"{found[4].location}, PTX line 20: exit;"


def test_a_kernel_begins_without_a_source_line() -> None:
    second = ".entry second { exit; }\n"
    module = parse('.file 1 "a.cu"\n'.join((HEAD, kernel(".loc 1 2 3\nexit;").removeprefix(HEAD))) + second)
    assert module.entry("k").instructions[-1].location == Location("a.cu", 2)
    assert module.entry("second").instructions[0].location is None


@pytest.mark.parametrize("line", [".loc 3 1 1", ".loc 1 2", ".loc 1 2 3, inlined_at 1 3 4", ".loc 1 2 3 4"])
def test_wrong_source_lines(line: str) -> None:
    refuse(ParseError, kernel(f"{line}\nexit;") + '.file 1 "a.cu"\n', "PTX line 10: .loc")


# Variables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".global .u32 x = -5;", Variable("x", "global", 4, 4, struct.pack("<i", -5))),
        (".visible .global .align 16 .b8 x[3] = {1, 0xFF, -1};", Variable("x", "global", 3, 16, b"\x01\xff\xff")),
        (".align 16 .global .b8 x;", Variable("x", "global", 1, 16)),
        (".weak .const .align 8 .b8 x[6] = {7,8};", Variable("x", "const", 6, 8, bytes([7, 8, 0, 0, 0, 0]))),
        (".const .b16 x[2][3] = {{1, 2}, {3}};", Variable("x", "const", 12, 2, struct.pack("<6H", 1, 2, 0, 3, 0, 0))),
        (".const .s64 x[] = {-1, 2};", Variable("x", "const", 16, 8, struct.pack("<2q", -1, 2))),
        (".const .u8 x[][2] = {{1, 2}, {3}};", Variable("x", "const", 4, 1, bytes([1, 2, 3, 0]))),
        (".global .b32 x[4] = {};", Variable("x", "global", 16, 4, bytes(16))),
        (".global .f32 x = 1.5;", Variable("x", "global", 4, 4, struct.pack("<f", 1.5))),
        (".global .f32 x[3] = {0f7fc00001, -0.1, 0d3FF8000000000000};",
            Variable("x", "global", 12, 4, struct.pack("<I2f", 0x7FC00001, -0.1, 1.5))),
        (".global .f64 x[2] = {0d4000000000000000, 0f3F800000};",
            Variable("x", "global", 16, 8, struct.pack("<2d", 2.0, 1.0))),
        (".global .b32 x = 0f3F800000;", Variable("x", "global", 4, 4, struct.pack("<f", 1.0))),
        (".global .v2 .f32 x[2] = {{1.0, 2.0}, {3.0, 4.0}};",
            Variable("x", "global", 16, 8, struct.pack("<4f", 1, 2, 3, 4))),
        (".global .v4 .u16 x = {1, 2, 3, 4};", Variable("x", "global", 8, 8, struct.pack("<4H", 1, 2, 3, 4))),
        (".global .b128 x;", Variable("x", "global", 16, 16)),
        (".shared .align 4 .f16 x[0x10];", Variable("x", "shared", 32, 4)),
        (".extern .shared .align 16 .b8 x[];", Variable("x", "shared", None, 16)),
        (".extern .shared .f64 x[];", Variable("x", "shared", None, 8)),
    ],
)  # fmt: skip
def test_module_variable(text: str, expected: Variable) -> None:
    module = parse(f"{HEAD}{text}\n")
    assert module.variables == [expected]


def test_variables_of_a_kernel() -> None:
    body = """.local .align 16 .b8 __local_depot0[112]; .shared .align 4 .b8 _ZZ4miscE1a[40];
    .shared .b32 q, w[4]; .local .v2 .f32 v[3]; .const .b32 c = 3; .global .b32 g;
    { .shared .b64 q; mov.u32 %r1, q; } mov.u32 %r2, q; mov.u32 %r3, w+4;"""
    found = entry(body)
    inner = found.variables[-1]
    assert found.variables[:-1] == [
        Variable("__local_depot0", "local", 112, 16),
        Variable("_ZZ4miscE1a", "shared", 40, 4),
        Variable("q", "shared", 4, 4),
        Variable("w", "shared", 16, 4),
        Variable("v", "local", 24, 8),
        Variable("c", "const", 4, 4, b"\x03\0\0\0"),
        Variable("g", "global", 4, 4),
    ]
    assert inner == Variable(inner.name, "shared", 8, 8) and inner.name != "q"
    assert [i.operands[1] for i in found.instructions[:3]] == [Sym(inner.name), Sym("q"), Sym("w", 4)]


def test_a_kernel_may_hide_a_module_variable() -> None:
    found = parse(kernel(".shared .b32 x; mov.u32 %r1, x;", ".shared .b64 x;"))
    (own,) = found.entry("k").variables
    assert found.variables[0].name == "x" != own.name
    assert found.entry("k").instructions[0].operands[1] == Sym(own.name)
    found = parse(kernel("ld.param.u64 %rd1, [a];", ".shared .b64 a;"))
    param = found.entry("k").params[0]
    assert found.variables[0].name == "a" != param.name
    assert found.entry("k").instructions[0].operands[1] == Addr(Sym(param.name), 0)


@pytest.mark.parametrize(
    "text",
    [
        ".shared .b32 x = 4;",
        ".shared .b32 x[];",
        ".global .b8 x[] = {};",
        ".global .b8 x[2] = {1, 2, 3};",
        ".global .b8 x[2][2] = {1, 2, 3, 4};",
        ".global .b8 x[2][] = {{1}, {2}};",
        ".global .b8 x[2] = {1,};",
        ".global .b32 x = {5};",
        ".global .b32 x[2] = 5;",
        ".global .v2 .f32 x[2] = {1.0, 2.0};",
        ".global .b8 x = 256;",
        ".global .s8 x = -129;",
        ".global .u32 x = 1.5;",
        ".global .u32 x = 0f3F800000;",
        ".global .b64 x = 0f3F800000;",
        ".global .b32 x = 1.5;",
        ".global .f32 x = 1;",
        ".global .f32 x = 1e300;",
        ".global .f16 x = 1.0;",
        ".global .b64 x = 18446744073709551616;",
        ".global .pred x;",
        ".global .bf16 x;",
        ".global x;",
        ".global .b8 x[0];",
        ".global .b8 x[3",
        ".global .b8 x[2*3];",
        ".global .b8 x[99999999999999999999];",
        ".global .align 3 .b8 x;",
        ".global .b32 .align 8 x;",
        ".global .b32 x; .global .b64 x;",
        ".global .b32 x, x;",
        ".global .b32 x",
        ".visible .reg .b32 x;",
        '.visible .pragma "x";',
        "stray",
        ";",
    ],
)
def test_wrong_variables(text: str) -> None:
    refuse(ParseError, f"{HEAD}\n{text}", "PTX line 5")


@pytest.mark.parametrize(
    "text",
    [
        ".global .u64 x = generic(y);",
        ".global .u64 x[2] = {0, y};",
        ".global .u8 x = 0xff(y);",
        ".global .b32 x = 1+2;",
        ".extern .global .b32 x;",
        ".extern .const .b32 x[];",
        ".extern .shared .b32 x;",
        ".extern .shared .b32 x[4];",
        ".common .global .b32 x;",
        ".global .attribute(.managed) .b32 x;",
        ".const[2] .b32 x;",
        ".global .texref x;",
        ".global .b8 x[100000000] = {1};",
        ".global .b8 x[1][1][1][1][1][1][1][1][1];",
        ".func f() { ret; }",
        ".visible .func (.param .b32 r) f (.param .b32 a) { ret; }",
        ".extern .func vprintf;",
        ".alias f, g;",
        ".extern .entry f;",
        ".tex .u64 x;",
    ],
)
def test_declarations_that_are_not_modelled(text: str) -> None:
    refuse(NotModelledError, f"{HEAD}\n{text}\n", "PTX line 5: " + text.split()[0])


# Kernels and modules


def test_parameters_are_laid_out_at_their_alignments() -> None:
    text = f"""{HEAD}.visible .entry k(
    .param .u8 a, .param .u64 .ptr .global .align 16 b, .param .align 64 .b8 c[128], .param .u16 d, .param .f64 e,
    .param .u64 .ptr f, .param .u64 .ptr .align 4 g, .param .b8 .align 8 h[3], .param .f32 i[2], .param .b128 j
    ) {{ ret; }}"""
    found = parse(text).entry("k").params
    assert [(p.name, p.offset, p.size) for p in found] == [
        ("a", 0, 1), ("b", 8, 8), ("c", 64, 128), ("d", 192, 2), ("e", 200, 8), ("f", 208, 8), ("g", 216, 8),
        ("h", 224, 3), ("i", 228, 8), ("j", 240, 16),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [".reg .b32 a", ".param .b32", ".param a", ".param .pred a", ".param .b32 a, .param .b32 a", ".param .b32 a,",
     ".param .b8 a[]", ".param .b8 a[0]", ".param .b8 a[2][2]", ".param .b32 .foo a", ".param .b8 a[99999999]"],
)  # fmt: skip
def test_wrong_parameters(text: str) -> None:
    refuse(ParseError, f"{HEAD}.entry k({text})\n{{ ret; }}", "PTX line 4")


def test_directives_of_a_kernel() -> None:
    text = f"""{HEAD}.pragma "module", "hint";
    .weak .entry one .maxntid 128, 1, 1 .minnctapersm 2 .maxnreg 0x20 .pragma "x"; {{ }}
    .entry two() .reqntid 32 .reqnctapercluster 2,1 .explicitcluster {{ }}
    .entry three .maxclusterrank 4 .blocksareclusters .maxnctapersm 1 {{ }}"""
    module = parse(text)
    assert module.entry("one").directives == {"maxntid": [128, 1, 1], "minnctapersm": [2], "maxnreg": [32]}
    assert module.entry("two").directives == {
        "reqntid": [32, 1, 1],
        "reqnctapercluster": [2, 1, 1],
        "explicitcluster": [],
    }
    assert module.entry("three").directives == {"maxclusterrank": [4], "blocksareclusters": [], "maxnctapersm": [1]}
    assert all(not e.instructions and not e.params for e in module.entries.values())


@pytest.mark.parametrize(
    "text",
    [
        ".maxntid {}",
        ".maxntid 1,1,1,1 {}",
        ".maxntid 32 .maxntid 32 {}",
        ".minnctapersm 2, 2 {}",
        ".noreturn {}",
        "ret;",
    ],
)
def test_wrong_directives(text: str) -> None:
    refuse(ParseError, f"{HEAD}.entry k {text}", "PTX line 4")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("", ParseError),
        (".target sm_90a\n.address_size 64\n", ParseError),
        (".version 9\n.target sm_90a\n.address_size 64\n", ParseError),
        (".version 9.0\n.address_size 64\n", ParseError),
        (".version 9.0\n.target compute_90\n.address_size 64\n", ParseError),
        (".version 9.0\n.target sm_90ab\n.address_size 64\n", ParseError),
        (".version 9.0\n.target sm_90a, map_f64_to_f32\n.address_size 64\n", NotModelledError),
        (".version 9.0\n.target sm_90a\n", NotModelledError),
        (".version 9.0\n.target sm_90a\n.address_size 32\n", NotModelledError),
    ],
)
def test_wrong_heads(head: str, kind: type[EmulatorError]) -> None:
    refuse(kind, kernel("", head=head), "PTX line")


def test_heads() -> None:
    for version, target, option in (("8.8", "sm_75", ""), ("9.5", "sm_90a", ", debug"), ("9.0", "sm_120", "")):
        text = f"//\n// a comment\n//\n.version {version}\n.target {target}{option}\n.address_size 64\n"
        module = parse(kernel("", head=text))
        assert (module.version, module.target) == (version, target)


def test_entries_by_name() -> None:
    module = parse(f"{HEAD}.entry one {{ ret; }} .entry two {{ ret; }}")
    assert module.entry("two") is module.entries["two"]
    with pytest.raises(LaunchError, match="no entry 'three'; its entries: one, two"):
        module.entry("three")
    with pytest.raises(LaunchError, match="its entries: none"):
        parse(HEAD).entry("k")
    refuse(ParseError, f"{HEAD}.entry one {{ ret; }}\n.entry one {{ ret; }}", "defined twice", "PTX line 5")


def test_errors_show_the_line() -> None:
    message = refuse(ParseError, kernel("exit;\nmov.u32\t%r1, %zz; exit;"))
    assert message == "%zz is not declared. At PTX line 11: mov.u32 %r1, %zz;"
    message = refuse(ParseError, kernel("exit;\n   .foo   7;"))
    assert message == "expected a statement. At PTX line 11: .foo 7;"
    refuse(ParseError, f"{HEAD}.entry k {{ exit; \n\n", "the body of k does not end", "PTX line 6")
    refuse(ParseError, kernel("exit;\n/* for ever"), "a comment that does not end", "PTX line 11")


# Real kernels

SMALL_GEMM = GemmSimtConfig(
    "float32", "float32", "float32", True, True, 32, 32, 16, 4, 4, stages=3, vec_a=16, vec_b=16, asynchronous=True
)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("config", "arch"),
    [(SMALL_GEMM, "sm_90a"), (ColumnSumConfig("bfloat16", "float32"), "sm_120"), (StridedCopyConfig(2), "sm_75")],
    ids=["gemm_simt", "column_sum", "strided_copy"],
)
def test_shipped_kernels(config: Config, arch: str) -> None:
    ptx = compile_kernel(render(config), entry=entry_name(config.family), arch=arch).ptx
    module = parse(ptx)
    found = module.entry(entry_name(config.family))
    assert module.target == arch
    assert [p.offset for p in found.params] == [0] and found.params[0].size % 8 == 0
    assert found.directives["maxntid"] == [config.threads, 1, 1]
    # Counted another way: NVRTC writes one instruction a line.
    lines = ptx.split("\n")
    code = [n for n, line in enumerate(lines, 1) if re.match(r"\s*(\{\s*)?(@!?%p\d+ )?\s*[a-z][\w.:]*\s*[^:]*;", line)]
    assert [i.line for i in found.instructions] == code
    for instruction in found.instructions:
        assert instruction.name in lines[instruction.line - 1]
        assert instruction.location is not None
    assert found.labels.keys() == {m[1] for m in re.finditer(r"^(\$L__BB\w+):", ptx, re.MULTILINE)}
    assert {str(i.location).split(":")[0] for i in found.instructions} >= {f"{config.family}.cuh"} - {"column_sum.cuh"}
    chain = found.instructions[-2].location
    while chain is not None and chain.inlined_at is not None:
        chain = chain.inlined_at
    assert chain is not None and chain.file == "kernel.cu"


def test_ten_thousand_lines_are_quick() -> None:
    line = ".loc 1 7 3\nfma.rn.f32 %f1, %f{0}, %f{1}, %f1;\nld.global.v2.f32 {{%f2, %f3}}, [%rd{0}+{1}];\n@%p1 bra L{2};\nL{2}:\n"
    body = "".join(line.format(n % 9, n % 7, n) for n in range(2000))
    text = kernel(body) + '.file 1 "a.cu"\n'
    assert text.count("\n") > 10_000
    start = time.process_time()
    found = parse(text).entry("k")
    assert time.process_time() - start < 0.5
    assert len(found.instructions) == 6001


VALID = kernel(
    """.shared .align 16 .b8 sm[64]; .local .b8 depot[16]; .pragma "nounroll";
    .loc 1 7 3
    mov.u32 %r1, %tid.x; T: .branchtargets A, B; brx.idx %r1, T;
    A: @!%p1 ld.global.v4.f32 {%f1, %f2, _, %f3}, [%rd1+-16];
    .loc 1 9 1, function_name info, inlined_at 1 7 3
    { .reg .pred p; .reg .b32 t<2>; setp.lt.and.s32 p|%p2, t1, 0x1F, !%p3; L: @p bra L; }
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
    B: mov.u64 %rd2, sm+8; fma.rn.f32 %f1, %f2, 0f3F800000, %f3; st.shared.b64 [sm+8], 1.5; // end""",
    ".const .align 4 .b8 table[2][4] = {{1, 2}, {3}}; .global .f32 g = 0f3F800000;",
)
VALID += '.file 1 "a.cu"\n.section .debug_str { info: .b8 1,2,0 }\n'
TOKENS = re.findall(r"\w+|\s+|.", VALID)
CHAOS = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    '"',
    "/*",
    "//",
    ";",
    ":",
    ",",
    "<9>",
    "@",
    "!",
    "|",
    "+",
    "-",
    "9" * 30,
    "é",
    "\0",
]


def test_the_valid_module_is_valid() -> None:
    assert len(parse(VALID).entry("k").instructions) == 10


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(TOKENS) - 1), st.integers(0, 6), st.sampled_from(CHAOS)), max_size=3),
    stop=st.one_of(st.none(), st.integers(0, len(VALID))),
)
def test_mutated_text_gives_a_module_or_an_error_that_says_where(
    edits: list[tuple[int, int, str]], stop: int | None
) -> None:
    tokens = list(TOKENS)
    for place, width, new in edits:
        tokens[place : place + width] = [new] if width % 2 else []
    text = "".join(tokens)[:stop]
    try:
        assert isinstance(parse(text), Module)
    except (ParseError, NotModelledError) as error:
        assert "PTX line" in str(error)
