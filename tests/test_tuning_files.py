"""Tuning tables as files: every field checked, a bad file ignored by name, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulinear import gemm
from gpulinear.config import NUMERICS_VERSION
from gpulinear.errors import TuningWarning
from gpulinear.tuning import entry as entry_module
from gpulinear.tuning import store, table
from gpulinear.tuning.entry import RULES, Entry, TableError

from .tuning_tables import ARCH, GOOD, LINEAR, fresh, plan, put, tuned, user_file

__all__ = ["fresh"]  # a fixture for every test here

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


def test_rules_cover_the_fields_of_an_entry() -> None:
    assert list(RULES) == [field.name for field in entry_module.fields(Entry)]
