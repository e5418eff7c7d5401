"""Tuning tables: every field checked, a bad file ignored by name, what an entry serves, and never another bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.builder import Builder
from gpulinear.calls import BUILDERS
from gpulinear.config import NUMERICS_VERSION, SEGMENT, GemmConfig
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.errors import TuningWarning
from gpulinear.launch import launches
from gpulinear.plan import Choice, Options, Plan
from gpulinear.planner import as_read, considered
from gpulinear.problem import Gemm
from gpulinear.tuning import entry as entry_module
from gpulinear.tuning import store, table
from gpulinear.tuning.entry import RULES, Entry, Table, TableError, parse

ARCH = "sm_90a"
SPEC = DeviceSpec.preset(ARCH)
S = SEGMENT["gemm_simt"]

LINEAR = Entry(
    op="linear",
    layout="NT",
    dtype="float32",
    out_dtype="float32",
    precision="ieee",
    m=512,
    n=384,
    k=4096,
    vec_a=16,
    vec_b=16,
    family="gemm_simt",
    tile="32x32x16/4x4",
    splits=4,
    measured_us=1234567.0,  # made up, as every number in this file
    predicted_us=7654321.0,
    gpu="a GPU of the tests",
    sms=SPEC.sm_count,
    driver="1.2",
    commit="0" * 40,
    time="2001-02-03T04:05:06+00:00",
)
GOOD = Table(ARCH, NUMERICS_VERSION, (LINEAR,))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No table but those that a test writes."""
    (tmp_path / "shipped").mkdir()
    monkeypatch.setattr(table, "shipped_path", lambda arch: tmp_path / "shipped" / f"{arch}.json")
    monkeypatch.setenv("GPULINEAR_CACHE", str(tmp_path / "cache"))
    gemm.reload_tuning()
    yield
    gemm.reload_tuning()


def user_file(arch: str = ARCH) -> Path:
    path = table.user_path(arch)
    assert path is not None
    path.parent.mkdir(exist_ok=True)
    return path


def put(*entries: Entry, **head: Any) -> Path:
    """Write the user's table and make the planner read it."""
    path = user_file()
    path.write_text(replace(GOOD, entries=entries, **head).to_json())
    gemm.reload_tuning()
    return path


def plan(entry: Entry, tokens: int | None = None, arch: str = ARCH, **kwargs: Any) -> Plan:
    """The plan of the call that an entry is about, possibly with other tokens."""
    t = tokens or entry.tokens
    sizes = {
        "linear": ((t, entry.k), (entry.n, entry.k)),
        "dgrad": ((t, entry.k), (entry.k, entry.n)),
        "wgrad": ((t, entry.m), (t, entry.n)),
    }[entry.op]
    out_dtype = None if entry.out_dtype == entry.dtype else entry.out_dtype
    arrays = [gl.ShapeDtype(size, entry.dtype) for size in sizes]
    return gl.explain(entry.op, *arrays, arch=arch, out_dtype=out_dtype, precision=entry.precision, **kwargs)


def taken(made: Plan) -> tuple[str, int]:
    """Tile and splits of a plan's only GEMM."""
    steps = [step for step in made.steps if step.family.startswith("gemm")]
    assert len(steps) == 1
    note = steps[0].note
    return steps[0].config.tile, int(note[: note.index(" split(s)")].split()[-1])


def tuned(made: Plan) -> bool:
    return any(choice.tuned for choice in made.choices)


def decides(entry: Entry, **kwargs: Any) -> bool:
    """Whether the table in place makes the choice, judged by what is launched."""
    made = plan(entry, **kwargs)
    if tuned(made):
        assert taken(made)[0] == entry.tile
    return tuned(made)


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
            LINEAR, op="wgrad", layout="TN", dtype="float64", out_dtype="float64", precision=None, tile="32x32x8/4x4"
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
    put(dgrad, replace(wgrad, tile=dgrad.tile))
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


# ---- a bad table -------------------------------------------------------------------------------


def ignored(path: Path) -> str:
    """Plan with the table in place: it must be the plan without one, and one warning names the file."""
    gemm.reload_tuning()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not tuned(plan(LINEAR))
        assert not tuned(plan(replace(LINEAR, op="dgrad", layout="NN")))  # the second plan is silent
    assert len(caught) == 1 and caught[0].category is TuningWarning
    text = str(caught[0].message)
    assert str(path) in text and "ignored" in text and "mend or remove" in text
    assert len(text) < 400 + len(str(path))
    return text


def with_field(name: str, value: Any) -> Path:
    """A table whose second entry has a field changed."""
    rows = [asdict(LINEAR), asdict(LINEAR) | {name: value}]
    found = json.loads(GOOD.to_json()) | {"entries": rows}
    path = user_file()
    path.write_text(json.dumps(found))
    return path


JUNK = [None, True, False, -1, 0, 1.5, 10**30, -(10**30), "", "x" * 1000, "a\x1b[2J", [], [1], {}, {"a": 1}]
FINE: dict[str, Callable[[Any], bool]] = {
    "precision": lambda v: v is None,
    "measured_us": lambda v: v == 1.5 and v is not True,
    "predicted_us": lambda v: v == 1.5 and v is not True,
}


@pytest.mark.parametrize("name", RULES)
def test_every_field_of_an_entry_is_checked(name: str) -> None:
    for value in JUNK:
        if FINE.get(name, lambda _: False)(value):
            continue
        text = ignored(with_field(name, value))
        assert f"entries[1].{name} must be " in text, value
        assert ascii(value)[:40] in text


@pytest.mark.parametrize("name", ["m", "n", "k", "splits", "sms"])
def test_whole_numbers_are_whole_and_in_range(name: str) -> None:
    for value in (2**31, 2**63, 1.0, "512", 512.0, 1e300):
        assert f"entries[1].{name} must be a whole number" in ignored(with_field(name, value))


@pytest.mark.parametrize("name", ["measured_us", "predicted_us"])
def test_times_are_positive_and_finite(name: str) -> None:
    for value in (-1.0, 0.0, "1.0", 1e13):
        assert f"entries[1].{name} must be a positive, finite number" in ignored(with_field(name, value))
    path = with_field(name, 77.0)
    for literal in ("NaN", "Infinity", "-Infinity"):
        path.write_text(with_field(name, 77.0).read_text().replace("77.0", literal))
        assert literal in ignored(path)
    path.write_text(with_field(name, 77.0).read_text().replace("77.0", "1e999"))
    assert f"entries[1].{name}" in ignored(path) and "inf" in ignored(path)


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-13-01T00:00:00+00:00", "2026-01-01", "2026-01-01T00:00:00", "20260101T000000+0000" * 3]
)
def test_a_time_is_a_time_with_its_offset(value: str) -> None:
    assert "entries[1].time must be an ISO 8601 time" in ignored(with_field("time", value))


@pytest.mark.parametrize("name", ["schema", "arch", "numerics_version", "entries"])
def test_every_field_of_the_file_is_checked(name: str) -> None:
    path = user_file()
    for value in JUNK:
        if name == "entries" and value == []:
            continue
        path.write_text(json.dumps(json.loads(GOOD.to_json()) | {name: value}))
        text = ignored(path)
        # a list of something else than entries is named by its element
        assert f"{name} must be " in text or (name == "entries" and "entries[0] must be an object" in text)
    for value in (2, True, 1.0, "1"):
        path.write_text(json.dumps(json.loads(GOOD.to_json()) | {"schema": value}))
        assert f"schema must be 1, got {value!a}" in ignored(path)


@pytest.mark.parametrize("name", RULES)
def test_a_missing_field_is_named(name: str) -> None:
    found = json.loads(GOOD.to_json())
    del found["entries"][0][name]
    path = user_file()
    path.write_text(json.dumps(found))
    assert f"entries[0].{name} must be" in ignored(path)


def test_unknown_and_repeated_fields_are_named() -> None:
    assert "entries[1].'wishes' is not a field, its value is 3" in ignored(with_field("wishes", 3))
    path = user_file()
    path.write_text(json.dumps(json.loads(GOOD.to_json()) | {"extra\x07": [1]}))
    assert "'extra\\x07' is not a field, its value is [1]" in ignored(path)
    path.write_text(GOOD.to_json().replace('"m": 512', '"m": 512, "m": 513'))
    assert "'m' is given twice, the last value is 513" in ignored(path)


def test_files_that_are_no_json_object_are_ignored() -> None:
    path = user_file()
    whole = GOOD.to_json().encode()
    for data in (b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"3", b'"x"', b"[" * 100_000, b"9" * 5000, whole + b"x"):
        path.write_bytes(data)
        ignored(path)
    for cut in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:cut])
        ignored(path)


def test_random_damage_is_ignored_or_harmless() -> None:
    """Bytes changed at random: a warning, or a table that is as good as any; never another error."""
    rng = np.random.default_rng(0)
    path, whole = user_file(), np.frombuffer(GOOD.to_json().encode(), np.uint8)
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(0, len(data), rng.integers(1, 4))] = rng.integers(0, 256)
        path.write_bytes(data.tobytes())
        gemm.reload_tuning()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TuningWarning)
            plan(LINEAR)


def test_what_is_no_plain_file_is_ignored(tmp_path: Path) -> None:
    path = user_file()
    path.mkdir()
    assert "cannot be read" in ignored(path)
    path.rmdir()
    (tmp_path / "good.json").write_text(GOOD.to_json())
    path.symlink_to(tmp_path / "good.json")  # planted by somebody else's hand
    assert "cannot be read" in ignored(path)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in ignored(path)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    assert "cannot be read" in ignored(path)


def test_a_file_that_may_not_be_read_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(LINEAR)

    def refuse(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(table, "read_regular", refuse)  # root may read any mode
    assert "Permission denied" in ignored(path)


def test_a_cache_that_others_can_write_has_no_say(tmp_path: Path) -> None:
    put(LINEAR)
    (tmp_path / "cache").chmod(0o777)
    gemm.reload_tuning()
    with pytest.warns(RuntimeWarning, match="nobody else can write"):
        assert not tuned(plan(LINEAR))


def test_a_bad_file_of_the_user_leaves_the_shipped_table_in_force() -> None:
    table.shipped_path(ARCH).write_text(GOOD.to_json())
    user_file().write_text("{")
    gemm.reload_tuning()
    with pytest.warns(TuningWarning):
        assert tuned(plan(LINEAR))


def test_info_says_which_tables_there_are() -> None:
    from gpulinear.info import collect

    assert collect()["tuning tables"] == ["none: the cost model chooses"]
    path = put(LINEAR)
    assert collect()["tuning tables"] == [f"{path}: 1 entries"]
    put(LINEAR, numerics_version=NUMERICS_VERSION + 1)
    assert "ignored" in collect()["tuning tables"][0]
    path.write_text("{")
    assert collect()["tuning tables"][0].startswith(f"{path} is ignored: it is not JSON")


# ---- writing -----------------------------------------------------------------------------------


def test_new_winners_replace_older_ones_of_the_same_problem_and_gpu() -> None:
    path = user_file()
    other = replace(LINEAR, m=1024)
    assert store.save(path, ARCH, [LINEAR, other]).entries == (LINEAR, other)
    newer = replace(LINEAR, splits=2, time="2002-02-03T04:05:06+00:00")
    elsewhere = replace(LINEAR, gpu="another")
    saved = store.save(path, ARCH, [elsewhere, newer])
    assert set(saved.entries) == {newer, other, elsewhere}
    assert table.read(path) == saved
    assert store.save(path, ARCH, []) == saved
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_entries_of_older_numbers_are_dropped() -> None:
    path = put(LINEAR, numerics_version=NUMERICS_VERSION + 1)
    newer = replace(LINEAR, m=1024)
    assert store.save(path, ARCH, [newer]).entries == (newer,)


def test_a_bad_file_is_never_written_over() -> None:
    path = user_file()
    path.write_text("my notes")
    with pytest.raises(TableError, match="not JSON"):
        store.save(path, ARCH, [LINEAR])
    assert path.read_text() == "my notes"


def test_an_entry_that_would_not_be_read_is_not_written() -> None:
    path = user_file()
    store.save(path, ARCH, [LINEAR])
    for wrong in (replace(LINEAR, measured_us=0.0), replace(LINEAR, gpu=""), replace(LINEAR, m=True)):
        with pytest.raises(TableError, match=r"entries\[\d\]"):
            store.save(path, ARCH, [wrong])
    with pytest.raises(ValueError):
        store.save(path, ARCH, [replace(LINEAR, measured_us=math.nan)])
    assert table.read(path) == GOOD


def test_a_write_that_fails_leaves_the_old_table(monkeypatch: pytest.MonkeyPatch) -> None:
    path = user_file()
    store.save(path, ARCH, [LINEAR])

    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        store.save(path, ARCH, [replace(LINEAR, m=1024)])
    assert table.read(path) == GOOD
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_writers_at_the_same_time_lose_nothing_and_readers_see_whole_files() -> None:
    path = user_file()
    store.save(path, ARCH, [])
    stop, seen = threading.Event(), []

    def reader() -> None:
        while not stop.is_set():
            found = table.read(path)  # raises TableError on a torn file
            assert found is not None
            seen.append(len(found.entries))

    def writer(start: int) -> None:
        for number in range(10):
            store.save(path, ARCH, [replace(LINEAR, m=start + number)])

    threads = [threading.Thread(target=writer, args=(1 + 100 * index,)) for index in range(4)]
    watch = threading.Thread(target=reader)
    for thread in [watch, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watch.join()
    final = table.read(path)
    assert final is not None and len(final.entries) == 40
    assert seen == sorted(seen)


def test_the_file_is_one_entry_a_line() -> None:
    path = user_file()
    store.save(path, ARCH, [LINEAR, replace(LINEAR, m=1024)])
    lines = path.read_text().splitlines()
    assert sum('"op"' in line for line in lines) == 2 and len(lines) == 9
    assert path.stat().st_mode & 0o777 == 0o644


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
        for choice in rng.choice(np.array(choices, object), 3, replace=False):
            put(entry_for(problem, choice.config.family, choice.config.tile, choice.splits))
            with launches() as counted:
                got = getattr(gl, op)(first, second)
            assert f"{choice.config.family} {choice.config.tile}" in counted
            assert taken(gl.explain(op, first, second, arch=ARCH)) == (choice.config.tile, choice.splits)
            testing.assert_same_bits(got, want)


def test_rules_cover_the_fields_of_an_entry() -> None:
    assert list(RULES) == [field.name for field in entry_module.fields(Entry)]
