"""Tuning tables: what an entry serves, what comes before it, and never another bit."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.builder import Builder
from gpulinear.calls import BUILDERS
from gpulinear.config import NUMERICS_VERSION, GemmConfig, JointConfig
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.launch import launches
from gpulinear.plan import Choice, Options
from gpulinear.planner import as_read, considered
from gpulinear.problem import Gemm
from gpulinear.tuning import table
from gpulinear.tuning.entry import Entry, parse

from .tuning_tables import ARCH, GOOD, LINEAR, SPEC, S, fresh, plan, put, taken, tuned, user_file

__all__ = ["fresh"]  # a fixture for every test here

# ---- a good table ------------------------------------------------------------------------------


def test_a_table_decides_and_the_plan_says_what_was_measured() -> None:
    without = plan(LINEAR)
    assert taken(without) != (LINEAR.tile, LINEAR.splits) and not tuned(without)
    put(LINEAR)
    made = plan(LINEAR)
    assert taken(made) == (LINEAR.tile, LINEAR.splits)
    text = str(made)
    assert "tuned: measured 1234567.0 us at 512x384x4096 on a GPU of the tests, 2001-02-03, commit 000000000000" in text
    assert text.count("tuned") == 1 and "predicted" in text


def test_a_table_survives_writing_and_reading() -> None:
    assert parse(GOOD.to_json().encode()) == GOOD
    assert parse(replace(GOOD, entries=()).to_json().encode()) == replace(GOOD, entries=())


@pytest.mark.parametrize(
    "entry",
    [
        replace(LINEAR, op="dgrad", layout="NN"),
        replace(LINEAR, op="wgrad", layout="TN"),
        replace(
            LINEAR,
            op="wgrad",
            layout="TN",
            dtype="float64",
            out_dtype="float64",
            precision=None,
            family="gemm_mma",
            tile="32x32x8/16x32",
        ),
    ],
    ids=lambda e: f"{e.op} {e.dtype}",
)
def test_every_op_finds_its_entry(entry: Entry) -> None:
    put(LINEAR, entry)
    made = plan(entry)
    assert taken(made) == (entry.tile, entry.splits) and tuned(made)


def test_the_backward_pass_finds_both_entries() -> None:
    """wgrad's tokens are its k; both gradients of one plan are decided, each by its own entry."""
    dgrad = replace(LINEAR, op="dgrad", layout="NN", m=300, n=2048, k=4096, tile="64x64x16/4x4", splits=2)
    wgrad = replace(LINEAR, op="wgrad", layout="TN", m=4096, n=2048, k=300, tile="32x64x16/4x4", splits=1)
    put(dgrad, wgrad)
    arrays = [gl.ShapeDtype(shape, "float32") for shape in ((300, 4096), (300, 2048), (4096, 2048))]
    made = gl.explain("linear_backward", *arrays, needs=("dx", "dw"), arch=ARCH)
    assert [step.config.tile for step in made.steps if step.family == "gemm_simt"] == [dgrad.tile, wgrad.tile]
    assert made.joint is not None and "number of threads" in str(made.joint.refused)
    put(dgrad, replace(wgrad, tile=dgrad.tile))
    with gemm.planning(Options(joint=True)):
        together = gl.explain("linear_backward", *arrays, needs=("dx", "dw"), arch=ARCH)
    assert [step.config.tile for step in together.steps if isinstance(step.config, JointConfig)] == [dgrad.tile]
    with gemm.planning(Options(joint=False)):
        made = gl.explain("linear_backward", *arrays, needs=("dx", "dw"), arch=ARCH)
    configs = [step.config for step in made.steps if isinstance(step.config, GemmConfig)]
    assert [(config.k_major_a, config.k_major_b) for config in configs] == [(True, False), (False, False)]


def test_a_changed_table_is_seen_after_a_reload() -> None:
    put(LINEAR)
    assert tuned(plan(LINEAR))
    user_file().write_text(replace(GOOD, entries=(replace(LINEAR, splits=2),)).to_json())
    assert taken(plan(LINEAR)) == (LINEAR.tile, 4)
    gemm.reload_tuning()
    assert taken(plan(LINEAR)) == (LINEAR.tile, 2)


# ---- what an entry serves ----------------------------------------------------------------------


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
def test_an_entry_serves_token_counts_within_the_square_root_of_two(op: str) -> None:
    entry = replace(LINEAR, op=op, layout={"linear": "NT", "dgrad": "NN", "wgrad": "TN"}[op], splits=1)
    put(entry)
    tokens = entry.tokens
    low, high = math.isqrt(tokens * tokens // 2) + 1, math.isqrt(2 * tokens * tokens)
    for count, served in ((tokens, True), (low, True), (low - 1, False), (high, True), (high + 1, False)):
        assert tuned(plan(entry, tokens=count)) == served, count


def test_the_nearest_count_of_tokens_decides() -> None:
    put(replace(LINEAR, m=400, tile="64x64x16/4x4"), LINEAR, replace(LINEAR, m=700, tile="128x64x16/8x8"))
    for tokens, tile in ((390, "64x64x16/4x4"), (440, "64x64x16/4x4"), (500, LINEAR.tile), (699, "128x64x16/8x8")):
        assert taken(plan(LINEAR, tokens=tokens))[0] == tile


@pytest.mark.parametrize(
    "change",
    [
        {"n": 388},
        {"k": 4100},
        {"layout": "NN"},
        {"dtype": "float64"},
        {"out_dtype": "float16"},
        {"precision": "tf32"},
        {"precision": None},
        {"vec_a": 4},
        {"vec_b": 4},
        {"op": "dgrad"},
        {"sms": SPEC.sm_count - 1},
    ],
    ids=str,
)
def test_an_entry_of_another_problem_or_chip_does_not_decide(change: dict[str, Any]) -> None:
    put(replace(LINEAR, **change))
    assert not tuned(plan(LINEAR))


@pytest.mark.parametrize(
    "change", [{"tile": "31x32x16/4x4"}, {"family": "gemm_nothing"}, {"tile": "32x32x8/4x4"}], ids=str
)
def test_an_entry_that_names_no_legal_variant_is_ignored(change: dict[str, Any]) -> None:
    """Silently: a table may be older than the kernels. The next entry gets its turn."""
    put(replace(LINEAR, **change))
    assert not tuned(plan(LINEAR))
    put(replace(LINEAR, **change), replace(LINEAR, m=600))
    assert taken(plan(LINEAR)) == (LINEAR.tile, LINEAR.splits)


def test_a_variant_that_supports_refuses_is_never_taken() -> None:
    refused = replace(LINEAR, tile="128x256x16/8x16", splits=1)
    assert any(choice.config.tile == refused.tile and choice.refused for choice in plan(LINEAR).choices)
    put(refused)
    assert not tuned(plan(LINEAR))


def test_limits_of_the_caller_come_before_the_table() -> None:
    put(LINEAR)
    with gl.options(num_sms=SPEC.sm_count - 1):
        assert not tuned(plan(LINEAR))
    put(LINEAR, replace(LINEAR, sms=SPEC.sm_count - 1))
    with gl.options(num_sms=SPEC.sm_count - 1):
        assert not tuned(plan(LINEAR))  # a part of a large chip is not a small chip
    with gl.options(num_sms=SPEC.sm_count):
        assert tuned(plan(LINEAR))
    with gl.options(workspace_limit=0):
        assert taken(plan(LINEAR))[1] == 1 and not tuned(plan(LINEAR))
    with gemm.planning(Options(tuned=False)):
        assert not tuned(plan(LINEAR))
    with gemm.planning(Options(tile=LINEAR.tile)):
        assert not tuned(plan(LINEAR))  # its splits are the cost model's too
    with gemm.planning(Options(tile="64x64x16/4x4")):
        assert taken(plan(LINEAR))[0] == "64x64x16/4x4"
    with gemm.planning(Options(splits=2)):
        assert taken(plan(LINEAR))[1] == 2


def test_splits_are_bounded_by_the_segments_at_hand() -> None:
    wgrad = replace(LINEAR, op="wgrad", layout="TN", k=4 * S, splits=4)
    put(wgrad)
    assert taken(plan(wgrad)) == (wgrad.tile, 4)
    assert taken(plan(wgrad, tokens=3 * S)) == (wgrad.tile, 3)
    put(replace(wgrad, splits=10**9))
    assert taken(plan(wgrad)) == (wgrad.tile, 4)
    put(replace(wgrad, splits=3))  # two segments each: the third part would be empty
    assert taken(plan(wgrad)) == (wgrad.tile, 2)


def test_the_users_table_comes_first_then_this_gpu_then_the_shipped_one() -> None:
    shipped = table.shipped_path(ARCH)
    shipped.write_text(replace(GOOD, entries=(replace(LINEAR, tile="64x64x16/4x4"),)).to_json())
    gemm.reload_tuning()
    assert taken(plan(LINEAR))[0] == "64x64x16/4x4"
    put(replace(LINEAR, m=600))
    assert taken(plan(LINEAR))[0] == LINEAR.tile
    put(LINEAR, replace(LINEAR, m=600, gpu=SPEC.name, tile="32x64x16/4x4"))
    assert taken(plan(LINEAR))[0] == "32x64x16/4x4"


def test_another_version_of_the_numbers_or_another_arch_counts_nothing() -> None:
    for head in ({"numerics_version": NUMERICS_VERSION + 1}, {"arch": "sm_80"}):
        put(LINEAR, **head)
        assert not tuned(plan(LINEAR))


def test_a_shipped_table_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text(GOOD.to_json())
    table.shipped_path(ARCH).symlink_to(tmp_path / "elsewhere.json")
    gemm.reload_tuning()
    assert tuned(plan(LINEAR))


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tile_names_one_variant(arch: str) -> None:
    """Family and tile are all that an entry says: they must be enough."""
    spec = DeviceSpec.preset(arch)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for shape in ((512, 512), (511, 509)):
            call = gl.explain("linear", gl.ShapeDtype(shape, dtype), gl.ShapeDtype(shape, dtype), arch=arch)
            names = [(choice.config.family, choice.config.tile) for choice in call.choices]
            assert len(set(names)) == len(names), spec.arch


@pytest.mark.parametrize("arch", ARCHS)
def test_the_shipped_tables_are_good(arch: str) -> None:
    path = Path(gl.__file__).parent / "tuning" / f"{arch}.json"
    found = table.read(path)
    assert found is None or (found.arch == arch and found.numerics_version == NUMERICS_VERSION)


def test_nothing_is_read_before_the_first_plan(tmp_path: Path) -> None:
    code = (
        "import sys, gpulinear\n"
        "assert not [name for name in sys.modules if name.startswith('gpulinear.tuning')]\n"
        "from gpulinear.tuning import table\n"
        "assert table._indexes.cache_info().currsize == 0\n"
        "a = gpulinear.ShapeDtype((8, 8), 'float32')\n"
        "gpulinear.explain('linear', a, a)\n"
        "assert table._indexes.cache_info().currsize == 1\n"
        "gpulinear.explain('linear', a, a)\n"
        "gpulinear.explain('dgrad', a, a)\n"
        "assert table._indexes.cache_info().misses == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- D4: a table never changes a bit -----------------------------------------------------------


def entry_for(problem: Gemm, family: str, tile: str, splits: int) -> Entry:
    """An entry that serves a problem, made with the fields of the planner's own key."""
    op, layout, dtype, out_dtype, precision, vec_a, vec_b = table.key_of(problem)[:7]
    made = replace(LINEAR, op=op, layout=layout, dtype=dtype, out_dtype=out_dtype, precision=precision)
    made = replace(made, m=problem.m, n=problem.n, k=problem.k, vec_a=vec_a, vec_b=vec_b)
    return replace(made, family=family, tile=tile, splits=splits)


def operand_shapes(op: str, depth: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the first and the second argument of a small product whose K is ``depth``."""
    return {
        "linear": ((5, depth), (24, depth)),
        "dgrad": ((5, depth), (depth, 24)),
        "wgrad": ((depth, 8), (depth, 24)),
    }[op]


def variants(op: str, *arrays: Any) -> tuple[Gemm, list[Choice]]:
    """A call's product as its kernel reads it, and what the planner may choose from."""
    (problem,) = BUILDERS[op](*arrays).problems
    assert isinstance(problem, Gemm)
    builder = Builder(SPEC, Options(tuned=False))
    ready = as_read(builder, problem)
    return ready, [choice for choice in considered(builder, ready) if choice.refused is None]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
def test_no_legal_entry_changes_a_bit(op: str, dtype: str, compiled: None) -> None:
    """Random legal variants and splits, K of three segments, against the bits without a table."""
    _, choices = variants(op, *[gl.ShapeDtype(shape, dtype) for shape in operand_shapes(op, 64)])
    depth = 2 * choices[0].config.segment + 8
    first, second = (testing.normal(shape, dtype, seed) for seed, shape in enumerate(operand_shapes(op, depth)))
    problem, choices = variants(op, first, second)
    rng = np.random.default_rng(sum(map(ord, op + dtype)))
    with gl.host_backend("emulator", arch=ARCH):
        with gemm.planning(Options(tuned=False)):
            want = getattr(gl, op)(first, second)
        for choice in rng.choice(np.array(choices, object), 2, replace=False):
            put(entry_for(problem, choice.config.family, choice.config.tile, choice.splits))
            with launches() as counted:
                got = getattr(gl, op)(first, second)
            assert f"{choice.config.family} {choice.config.tile}" in counted
            assert taken(gl.explain(op, first, second, arch=ARCH)) == (choice.config.tile, choice.splits)
            testing.assert_same_bits(got, want)
