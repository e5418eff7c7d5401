"""The parser: operands, statements, scopes and source lines, from the grammar of the PTX ISA."""

from __future__ import annotations

import struct

import pytest

from gpulinear.emulator.errors import NotModelledError, ParseError
from gpulinear.emulator.ir import (
    Addr,
    Imm,
    Location,
    Not,
    Operand,
    Pair,
    Reg,
    Sink,
    Special,
    Sym,
    Vec,
)
from gpulinear.emulator.parser import parse
from tests.emulator.ptx_text import HEAD, entry, kernel, operands, refuse


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
