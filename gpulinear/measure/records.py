"""The bench's rows: what one may say, and files of them that only ever grow.

Rules: record.schema.json, and what a schema cannot say (percentiles in order, a name that is its case's). A row without
its error or its provenance is refused, and so is a time of a wrong result. Files: ``<root>/<gpu>/<date>-<commit>.jsonl``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import GpuLinearError
from .case import Case
from .schema import violations

SCHEMA = 1
_MAX_BYTES = 256 << 20


class RecordError(GpuLinearError, ValueError):
    """A row that breaks a rule, or a file that is not one of rows; the message says which and where."""


@dataclass(frozen=True)
class Row:
    """A row, and the file (as given to ``read``) and line (from 1) that it stands in."""

    data: dict[str, Any]
    file: Path
    line: int


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a row (draft 2020-12)."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("record.schema.json").read_text(encoding="utf-8"))
    return loaded


def validate(row: Any) -> None:
    """Raise RecordError, with every reason, unless ``row`` is one."""
    kinds = schema()["$defs"]
    kind = row.get("kind") if isinstance(row, dict) else None
    known = [part["$ref"].removeprefix("#/$defs/") for part in schema()["oneOf"]]
    if kind not in known:
        raise RecordError(f"a row is an object whose kind is one of {', '.join(known)}, got {row!r}")
    wrong = list(violations(row, kinds[kind], schema()))
    # Only what the schema allows can be asked further questions.
    wrong = wrong or list(_beyond_schema(row))
    if wrong:
        raise RecordError("; ".join(wrong))


def _beyond_schema(row: Mapping[str, Any]) -> Iterator[str]:
    """Rules between fields."""
    if "us_p50" in row and not row["us_p20"] <= row["us_p50"] <= row["us_p80"]:
        yield f"us_p20 <= us_p50 <= us_p80 must hold, got {row['us_p20']}, {row['us_p50']}, {row['us_p80']}"
    if row["kind"] == "regret" and row["us_best"] > row["us_chosen"]:
        yield f"us_best must be the least time, got {row['us_best']} beside the chosen {row['us_chosen']}"
    if "case" in row:
        try:
            case = Case.from_json(row["case"])
        except GpuLinearError as error:
            yield str(error)
            return
        for field, value in {"name": case.name, "flops": case.flops}.items():
            if row.get(field, value) != value:
                yield f"{field} must be its case's, {value!r}, got {row[field]!r}"


def slug(gpu: str) -> str:
    """The directory's name of a GPU: "NVIDIA H200" is "nvidia-h200"."""
    found = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    if not found:
        raise RecordError(f"a GPU's name must hold a letter or a digit, got {gpu!r}")
    return found


def results_path(root: Path, provenance: Mapping[str, Any]) -> Path:
    """Where the rows of a run go: ``root``/<gpu>/<date>-<commit, 7 digits>.jsonl."""
    return root / slug(provenance["gpu"]) / f"{provenance['time'][:10]}-{provenance['commit'][:7]}.jsonl"


class Recorder:
    """Appends rows to a file, each on the disk before ``write`` returns. What the file holds already is never touched."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and make its directory; OSError where that fails, RecordError if its last line is torn."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115 - closed by __exit__
        if size := self._file.seek(0, os.SEEK_END):
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.close()
                raise RecordError(f"{path} ends in the middle of a row: end or remove its last line, or move it away")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; RecordError, and nothing written, for one that breaks a rule."""
        validate(row)
        line = json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        RecordError: a line is no valid row; the message names file and line. OSError: the file cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise RecordError(f"{path} has {path.stat().st_size} bytes; results files have at most {_MAX_BYTES}")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            data = json.loads(line.decode())
            validate(data)
        except (ValueError, RecursionError) as error:  # RecordError, UnicodeDecodeError and JSONDecodeError among them
            raise RecordError(f"{path}:{number}: {error}") from error
        rows.append(Row(data, path, number))
    return rows


def read_all(root: Path) -> list[Row]:
    """The rows under ``root``, file by file; none where the directory is missing or empty.

    Raises:
        RecordError: as ``read``, or a row stands in a directory or a file that is not its GPU's or its commit's.
    """
    rows = [row for path in sorted(root.glob("*/*.jsonl")) if path.parent.name != "independent" for row in read(path)]
    for row in rows:
        where, commit = slug(row.data["gpu"]), row.data["commit"][:7]
        if row.file.parent.name != where or not re.fullmatch(rf"20\d\d-\d\d-\d\d-{commit}", row.file.stem):
            raise RecordError(f"{row.file}:{row.line}: its rows must be of {where} and commit {commit}")
    return rows
