"""The parser: variables, parameters, directives and whole modules; shipped kernels, speed, and mutated text."""

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
    Module,
    Sym,
    Variable,
)
from gpulinear.emulator.parser import parse
from gpulinear.source import entry_name, render
from tests.emulator.ptx_text import HEAD, entry, kernel, refuse


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
    dtype="float32",
    out_dtype="float32",
    bias_dtype="float32",
    k_major_a=True,
    k_major_b=True,
    block_m=32,
    block_n=32,
    block_k=16,
    thread_m=4,
    thread_n=4,
    stages=3,
    vec_a=16,
    vec_b=16,
    asynchronous=True,
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
