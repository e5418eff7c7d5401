"""The list of cases: complete, unique, deterministic, and spread so that an early stop keeps something of everything."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from gpulinear.errors import ArgumentError
from gpulinear.measure import cases
from gpulinear.measure.case import Case


def test_a_name_says_everything_but_group_and_source() -> None:
    case = Case(
        "linear", "bfloat16", 4096, 11008, 4096, bias=True, activation="gelu", group="fused", source="somewhere"
    )
    assert case.name == "linear bfloat16 4096x11008x4096 +bias +gelu"
    assert case.name == Case("linear", "bfloat16", 4096, 11008, 4096, bias=True, activation="gelu").name
    assert Case("wgrad", "float16", 3, 2, 1, accumulate=True, out_dtype="float32", view="misaligned").name == (
        "wgrad float16->float32 3x2x1 +accumulate misaligned"
    )
    assert Case("dgrad", "float32", 3, 2, 1, precision="tf32").name == "dgrad float32 tf32 3x2x1"


def test_spelling_out_a_default_is_the_same_case() -> None:
    assert Case("linear", "float32", 3, 2, 1, precision="ieee", out_dtype="float32") == Case(
        "linear", "float32", 3, 2, 1
    )


def test_every_field_but_group_and_source_is_in_the_name() -> None:
    plain = Case("wgrad", "float32", 3, 2, 1)
    others = [
        Case("dgrad", "float32", 3, 2, 1),
        Case("wgrad", "float64", 3, 2, 1),
        Case("wgrad", "float32", 4, 2, 1),
        Case("wgrad", "float32", 3, 4, 1),
        Case("wgrad", "float32", 3, 2, 4),
        Case("wgrad", "float32", 3, 2, 1, precision="tf32"),
        Case("wgrad", "float32", 3, 2, 1, accumulate=True),
        Case("wgrad", "float32", 3, 2, 1, view="padded"),
        Case("wgrad", "bfloat16", 3, 2, 1),
        Case("wgrad", "bfloat16", 3, 2, 1, out_dtype="float32"),
        Case("linear", "float32", 3, 2, 1),
        Case("linear", "float32", 3, 2, 1, bias=True),
        Case("linear", "float32", 3, 2, 1, activation="relu"),
        Case("linear", "float32", 3, 2, 1, activation="silu"),
    ]
    names = {case.name for case in [plain, *others]}
    assert len(names) == len(others) + 1


def test_flops_and_bytes_by_hand() -> None:
    y = Case("linear", "bfloat16", 3, 5, 7, bias=True, out_dtype="float32")
    assert (y.flops, y.least_bytes) == (2 * 3 * 5 * 7, 2 * (3 * 7 + 5 * 7 + 5) + 4 * 3 * 5)
    dx = Case("dgrad", "float64", 3, 5, 7)
    assert (dx.flops, dx.least_bytes) == (210, 8 * (3 * 5 + 5 * 7 + 3 * 7))
    dw = Case("wgrad", "float16", 3, 5, 7, accumulate=True, out_dtype="float32")
    assert dw.least_bytes == 2 * (3 * 5 + 3 * 7) + 4 * 5 * 7 * 2
    both = Case("backward", "float16", 3, 5, 7, accumulate=True, out_dtype="float32")
    assert (both.flops, both.least_bytes) == (420, 2 * (3 * 5 + 3 * 7 + 5 * 7) + 2 * 3 * 7 + 4 * 5 * 7 * 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "bgrad"},
        {"dtype": "int8"},
        {"tokens": 0},
        {"precision": "fp8"},
        {"precision": "tf32", "dtype": "float16"},
        {"op": "dgrad", "bias": True},
        {"op": "wgrad", "activation": "relu"},
        {"accumulate": True},
        {"out_dtype": "float16"},
        {"view": "sideways"},
    ],
)
def test_a_case_outside_the_rules_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        Case(**{"op": "linear", "dtype": "float32", "tokens": 3, "out_features": 2, "in_features": 1, **fields})  # type: ignore[arg-type]


def test_json_round_trip_of_every_case_and_refusal_of_what_is_not_one() -> None:
    for case in cases.universe():
        assert Case.from_json(case.to_json()) == case
    good = cases.universe()[0].to_json()
    for bad in ({"tokens": True}, {"tokens": "3"}, {"tokens": 3.0}, {"bias": 1}, {"colour": "red"}, {"op": None}):
        with pytest.raises(ArgumentError):
            Case.from_json({**good, **bad})
    with pytest.raises(ArgumentError, match="lacks dtype"):
        Case.from_json({k: v for k, v in good.items() if k != "dtype"})


def test_names_are_unique_and_every_group_op_and_arithmetic_is_there() -> None:
    everything = cases.universe()
    assert len({case.name for case in everything}) == len(everything)
    assert {case.group for case in everything} == set(cases.GROUPS) == set(cases._groups())
    assert {case.op for case in everything} == {"linear", "dgrad", "wgrad", "backward"}
    assert {cases.arithmetic(case) for case in everything} == set(cases.ARITHMETIC)
    sides = {c.tokens for c in everything if c.group == "square" and c.tokens == c.out_features == c.in_features}
    assert sides >= {256, 512, 1024, 2048, 4096, 8192, 16384}
    tokens = {c.tokens for c in everything if c.group in ("model", "decode", "batch")}
    assert min(tokens) == 1 and 8191 in tokens and 8192 in tokens


def test_every_real_shape_that_can_be_timed_is_in_the_full_tier() -> None:
    sizes = {
        (tuple(sorted((c.tokens, c.out_features, c.in_features)))) for c in cases.universe() if c.view == "contiguous"
    }
    zero = 0
    for shape in cases.shapes():
        size = (shape.tokens, shape.out_features, shape.in_features)
        zero += 0 in size
        assert 0 in size or tuple(sorted(size)) in sizes, shape
    assert zero > 0  # the file has them, the bench does not


def test_what_the_issue_asks_for_is_there() -> None:
    everything = cases.universe()
    assert any(c.bias and c.activation == "gelu" for c in everything)
    assert any(c.bias and c.activation == "gelu_tanh" for c in everything)
    for case in everything:
        if case.group == "accumulate":
            assert case.op == "wgrad" and case.accumulate
            assert (case.out_dtype or case.dtype) in ("float32", "float64")
    assert {c.view for c in everything if c.group in ("misaligned", "strided")} > {"misaligned", "padded", "transposed"}


@pytest.mark.parametrize("count", [12, 24, 64])
def test_an_early_stop_leaves_a_spread(count: int) -> None:
    first = cases.select("quick")[:count]
    assert {"linear", "dgrad", "wgrad"} <= {case.op for case in first}
    assert {"bfloat16", "float32"} <= {cases.arithmetic(case) for case in first}
    assert len({case.group for case in first}) >= {12: 2, 24: 5, 64: 10}[count]
    if count > 12:
        assert {"bf16x6", "tf32"} <= {cases.arithmetic(case) for case in first}


def test_tiers_grow_and_bound_their_cases() -> None:
    quick, main, full = (cases.select(tier) for tier in ("quick", "main", "full"))
    assert len(quick) < len(main) < len(full) == len(cases.universe())
    assert set(quick) <= set(main) <= set(full)
    for tier in ("quick", "main"):
        squares = cases.select(tier, groups=["square"])
        assert (
            max(case.flops for case in squares)
            <= cases.TIERS[tier][1]
            < cases.select("full", match="16384x16384x16384")[0].flops
        )


def test_filters() -> None:
    kept = cases.select("main", ops=["wgrad"], dtypes=["tf32"], groups=["square"])
    assert kept and all((c.op, c.precision, c.group) == ("wgrad", "tf32", "square") for c in kept)
    assert all(c.precision is None and c.dtype == "float32" for c in cases.select("full", dtypes=["float32"]))
    assert all("4096x4096x4096" in c.name for c in cases.select("full", match="4096x4096x4096"))
    assert [c.name for c in cases.select("full", match="wgrad bfloat16 1024x1024x102?")] == [
        "wgrad bfloat16 1024x1024x1024"
    ]
    assert cases.select("quick", limit=3) == cases.select("quick")[:3]
    assert len(cases.select("quick", ops=["wgrad"])) == len(cases.select("quick"))  # filtered first, then cut


def test_shards_are_disjoint_and_cover() -> None:
    whole = cases.select("main")
    parts = [cases.select("main", shard=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(c.name for c in itertools.chain(*parts)) == sorted(c.name for c in whole)
    assert parts[0][:2] == [whole[0], whole[3]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": "huge"},
        {"ops": ["bgrad"]},
        {"dtypes": ["int8"]},
        {"groups": ["zero"]},
        {"limit": 0},
        {"shard": "0/2"},
        {"shard": "3/2"},
        {"shard": "1"},
        {"shard": "a/b"},
        {"shard": "\N{SUPERSCRIPT TWO}/3"},
    ],
)
def test_wrong_filters_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        cases.select(**wrong)  # type: ignore[arg-type]


def test_the_order_does_not_depend_on_the_process() -> None:
    code = "from gpulinear.measure import cases; print(*(c.name for c in cases.universe()), sep='\\n')"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    assert out.splitlines() == [case.name for case in cases.universe()]
