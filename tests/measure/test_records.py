"""Rows of the bench: each rule of the schema, held against the jsonschema package; files that only grow."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulinear.measure import records
from gpulinear.measure import schema as judge
from gpulinear.measure.case import Case
from gpulinear.measure.records import Recorder, RecordError, read, read_all, results_path, validate

CASE = Case("linear", "bfloat16", 4096, 11008, 4096, bias=True, group="model", source="a fake")
PROVENANCE = {
    "gpu": "Fake GPU", "arch": "sm_90a", "sms": 7, "driver": "13.2", "driver_release": "580.1.2", "cuda": "13.0",
    "nvrtc": "13.0", "cupy": "14.2.0", "cublas": "13.0.1", "torch": "2.9.0+cu130", "numpy": "2.3.0", "python": "3.12.1",
    "gpulinear": "0.1.0", "commit": "0123456789abcdef", "dirty": False, "time": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
OK = {
    "schema": 1, "kind": "time", "run": "0" * 32, "case": CASE.to_json(), "name": CASE.name, "flops": CASE.flops,
    "least_bytes": CASE.least_bytes, "provider": "gpulinear", "ours": True, "kernel": "fake 1x1", "status": "ok",
    "error_units": 0.25, "same_bits": True, "us_p20": 1.0, "us_p50": 2.0, "us_p80": 3.0, "samples": 50,
    "late_batches": 0, "host_us": 7.5, "graph_us": 2, "sets": 3, "sm_clock_mhz": 1000, "power_w": 5.5,
    "temperature_c": 40, **PROVENANCE,
}  # fmt: skip
TIMES = ("us_p20", "us_p50", "us_p80", "samples", "late_batches", "host_us", "graph_us")
NOT_TIMED = {key: value for key, value in OK.items() if key not in TIMES}
NOT_RUN = {key: value for key, value in NOT_TIMED.items() if key not in ("error_units", "same_bits")}
ROWS: dict[str, dict[str, Any]] = {
    "ok": OK,
    "peer": {**OK, "provider": "torch", "ours": False, "kernel": "", "same_bits": False},
    "WRONG": {**NOT_TIMED, "status": "WRONG", "error_units": 3.5},
    "NaN": {**NOT_RUN, "status": "WRONG", "reason": "NaN in 3 outputs"},
    "error": {**NOT_RUN, "status": "error", "reason": "out of memory"},
    "unavailable": {**NOT_RUN, "status": "unavailable", "reason": "no float64"},
    "skipped": {**NOT_RUN, "status": "skipped", "reason": "budget"},
    "ceiling": {"schema": 1, "kind": "ceiling", "run": "f" * 32, "ceiling": "copy", "value": 3.5, "unit": "GB/s", **PROVENANCE},
    "regret": {
        "schema": 1, "kind": "regret", "run": "f" * 32, "case": CASE.to_json(), "name": CASE.name, "chosen": "a",
        "us_chosen": 2.0, "best": "b", "us_best": 2.0, "candidates": 9, **PROVENANCE,
    },
}  # fmt: skip
OPTIONAL = {
    "ok": {"reason", "host_us", "graph_us"}, "WRONG": {"same_bits"}, "NaN": set(),
}  # fmt: skip
ANYWHERE = {"driver_release", "cublas", "torch", "nvmath", "sm_clock_mhz", "power_w", "temperature_c", "sets"}


def refused(row: Any) -> bool:
    try:
        validate(row)
    except RecordError:
        return True
    return False


def refused_by_jsonschema(row: Any) -> bool:
    validator = jsonschema.Draft202012Validator(records.schema())
    return not validator.is_valid(row)


def test_the_schema_is_one_and_says_nothing_that_is_not_judged() -> None:
    jsonschema.Draft202012Validator.check_schema(records.schema())

    def keywords(schema: Any) -> Iterator[str]:
        if not isinstance(schema, dict):
            return
        for key, value in schema.items():
            yield key
            if key in ("properties", "$defs"):
                for part in value.values():
                    yield from keywords(part)
            elif key not in ("const", "enum", "required"):
                for part in value if isinstance(value, list) else [value]:
                    yield from keywords(part)

    assert set(keywords(records.schema())) <= judge.APPLICATORS | judge.NOTES | set(judge.RULES) | {"oneOf"}


@pytest.mark.parametrize("kind", ROWS)
def test_good_rows_are_accepted(kind: str) -> None:
    validate(ROWS[kind])
    assert not refused_by_jsonschema(ROWS[kind])


@pytest.mark.parametrize("kind", ROWS)
def test_no_field_may_be_missing_but_the_optional_ones(kind: str) -> None:
    row = ROWS[kind]
    for field in row:
        less = {key: value for key, value in row.items() if key != field}
        optional = field in ANYWHERE | OPTIONAL.get(kind, set()) and not (kind in ("ok", "peer") and field == "sets")
        if kind == "peer":
            optional = optional or field in OPTIONAL["ok"]
        assert refused(less) is not optional, field
        assert refused_by_jsonschema(less) is not optional, field


@pytest.mark.parametrize("kind", ROWS)
def test_unknown_fields_are_refused(kind: str) -> None:
    for row in ({**ROWS[kind], "note": 1}, {**ROWS[kind], "us_p50 ": 1.0}):
        with pytest.raises(RecordError, match="unknown field"):
            validate(row)
        assert refused_by_jsonschema(row)


@pytest.mark.parametrize("kind", ["WRONG", "NaN", "error", "unavailable", "skipped"])
@pytest.mark.parametrize("field", TIMES)
def test_what_is_not_right_holds_no_time(kind: str, field: str) -> None:
    with pytest.raises(RecordError, match=f"{field} is not allowed here"):
        validate({**ROWS[kind], field: OK[field]})


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "an error above the bound is no ok": ("ok", {"error_units": 1.0000001}),
    "our bits differ from run to run": ("ok", {"same_bits": False}),
    "a negative error": ("ok", {"error_units": -0.1}),
    "no time at all": ("ok", {"us_p50": 0}),
    "text for a number": ("ok", {"us_p50": "2.0"}),
    "true for a number": ("ok", {"us_p50": True}),
    "null for a number": ("ok", {"host_us": None}),
    "no sample": ("ok", {"samples": 0}),
    "half a sample": ("ok", {"samples": 1.5}),
    "an error where nothing ran": ("skipped", {"error_units": 0.5}),
    "no reason": ("skipped", {"reason": " "}),
    "an unknown status": ("ok", {"status": "fast"}),
    "an unknown kind": ("ok", {"kind": "guess"}),
    "another schema": ("ok", {"schema": 2}),
    "true for the schema": ("ok", {"schema": True}),
    "a run that is no uuid": ("ok", {"run": "first"}),
    "a commit that is none": ("ok", {"commit": "main"}),
    "no time of day": ("ok", {"time": "2026-01-02"}),
    "a time of another zone": ("ok", {"time": "2026-01-02T03:04:05+01:00"}),
    "no GPU": ("ceiling", {"gpu": ""}),
    "an arch that is none": ("ok", {"arch": "hopper"}),
    "a unit that is none": ("ceiling", {"unit": "fps"}),
    "a case field too many": ("ok", {"case": {**CASE.to_json(), "m": 3}}),
    "a case of size zero": ("ok", {"case": {**CASE.to_json(), "tokens": 0}}),
    "a case that is none": ("ok", {"case": "linear"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_each_rule_is_refused_by_the_schema(name: str) -> None:
    kind, change = BAD[name]
    row = {**ROWS[kind], **change}
    with pytest.raises(RecordError):
        validate(row)
    assert refused_by_jsonschema(row)


BETWEEN_FIELDS = {
    "percentiles out of order": ("ok", {"us_p20": 2.5}, "us_p20 <= us_p50"),
    "another case's name": ("ok", {"name": "linear bfloat16 1x1x1"}, "name must be its case's"),
    "another case's flops": ("ok", {"flops": 1}, "flops must be its case's"),
    "a case that cannot be": ("ok", {"case": {**CASE.to_json(), "precision": "tf32"}}, "precision is for float32"),
    "a best that is not": ("regret", {"us_best": 2.5}, "us_best must be the least"),
}


@pytest.mark.parametrize("name", BETWEEN_FIELDS)
def test_each_rule_between_fields(name: str) -> None:
    kind, change, words = BETWEEN_FIELDS[name]
    with pytest.raises(RecordError, match=words):
        validate({**ROWS[kind], **change})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    for row in ROWS.values():
        for field in row:
            if isinstance(row[field], float):
                with pytest.raises(RecordError):
                    validate({**row, field: value})
    with pytest.raises(RecordError, match="kind"):
        validate(value)


def test_a_number_that_json_cannot_write_is_refused() -> None:
    with pytest.raises(RecordError, match="us_p50 must be of type"):
        validate({**OK, "us_p50": np.float32(2)})
    validate({**OK, "us_p50": np.float64(2)})


@given(
    st.sampled_from(sorted(ROWS)),
    st.sampled_from(sorted({field for row in ROWS.values() for field in row})),
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(-2, 2)
    | st.sampled_from(["", "x", "WRONG", "ok", [], {}]),
)
def test_the_verdicts_are_jsonschemas(kind: str, field: str, value: Any) -> None:
    row = {**ROWS[kind], field: value}
    wrong = list(judge.violations(row, records.schema()["$defs"][ROWS[kind]["kind"]], records.schema()))
    if field != "kind":
        assert bool(wrong) is refused_by_jsonschema(row), wrong


def test_the_message_gives_every_reason() -> None:
    with pytest.raises(RecordError) as caught:
        validate({**OK, "us_p50": -1, "commit": "?", "case": {**CASE.to_json(), "tokens": 0}, "note": 1})
    for words in ("us_p50 must be of exclusiveMinimum 0, got -1", "commit must", "case.tokens must", "field 'note'"):
        assert words in str(caught.value)


# Files


def test_rows_come_back_with_their_place(tmp_path: Path) -> None:
    path = results_path(tmp_path, PROVENANCE)
    assert path == tmp_path / "fake-gpu" / "2026-01-02-0123456.jsonl"
    with Recorder(path) as recorder:
        for row in ROWS.values():
            recorder.write(row)
    rows = read(path)
    assert [row.data for row in rows] == list(ROWS.values())
    assert [row.line for row in rows] == list(range(1, len(ROWS) + 1)) and {row.file for row in rows} == {path}
    assert read_all(tmp_path) == rows


def test_a_row_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r.jsonl") as recorder:
        recorder.write(OK)
        assert len(read(tmp_path / "r.jsonl")) == 1


def test_files_only_grow(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Recorder(path) as recorder:
        recorder.write(OK)
    before = path.read_bytes()
    with Recorder(path) as recorder:
        recorder.write(ROWS["skipped"])
    assert path.read_bytes().startswith(before) and len(read(path)) == 2


def test_a_refused_row_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Recorder(path) as recorder:
        recorder.write(OK)
        with pytest.raises(RecordError):
            recorder.write({**OK, "status": "WRONG"})
        recorder.write(OK)
    assert [row.data for row in read(path)] == [OK, OK]


def test_a_torn_last_line_is_not_written_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(OK) + '\n{"schema": 1, "ki')
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"r\.jsonl ends in the middle"):
        Recorder(path)
    assert path.read_bytes() == before


LINES = {
    "torn": '{"schema": 1', "empty": "", "not a row": "[]", "not finite": json.dumps(OK).replace("0.25", "NaN"),
    "too large to be finite": json.dumps(OK).replace("0.25", "1e999"), "not text": "\udcff",
    "nested": "[" * 100_000, "refused": json.dumps({**OK, "gpu": ""}),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_corrupt_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    text = f"{json.dumps(OK)}\n{LINES[line]}\n{json.dumps(OK)}\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=r"r\.jsonl:2: "):
        read(path)


def test_a_file_too_large_to_be_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(OK) + "\n")
    monkeypatch.setattr(records, "_MAX_BYTES", 100)
    with pytest.raises(RecordError, match="at most 100"):
        read(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    "name", ["other-gpu/2026-01-02-0123456.jsonl", "fake-gpu/2026-01-02-fffffff.jsonl", "fake-gpu/rows.jsonl"]
)
def test_a_row_in_the_wrong_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(json.dumps(OK) + "\n")
    with pytest.raises(RecordError, match=r":1: its rows must be of fake-gpu and commit 0123456"):
        read_all(tmp_path)


def test_rows_by_other_hands_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "independent").mkdir()
    (tmp_path / "independent" / "theirs.jsonl").write_text("anything\n")
    assert read_all(tmp_path) == [] and read_all(tmp_path / "absent") == []


@pytest.mark.parametrize(("gpu", "want"), [("NVIDIA H200", "nvidia-h200"), ("../x (y)", "x-y")])
def test_a_gpus_directory(gpu: str, want: str) -> None:
    assert records.slug(gpu) == want
    with pytest.raises(RecordError):
        records.slug("/..")


def test_rows_here_are_not_changed_by_judging() -> None:
    row = copy.deepcopy(OK)
    validate(row)
    assert row == OK
