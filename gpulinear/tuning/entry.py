"""What a tuning table may say: its fields, each with its rule, and the check of every one of them.

Tables are files and untrusted. The check is written by hand because it runs in the first call of a process, where no
JSON-schema library is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, NoReturn

from ..problem import ITEMSIZE, MAX_DIM, PRECISIONS

SCHEMA = 1

# The dimension of the GEMM that the tokens are; the weight has the other two (docs/design.md, "The problem").
TOKEN_DIM = {"linear": "m", "dgrad": "m", "wgrad": "k"}

Key = tuple[str | int | None, ...]


class TableError(ValueError):
    """A tuning table breaks a rule; the message names the field, the rule and the value."""


@dataclass(frozen=True)
class Entry:
    """The fastest variant that was measured for one GEMM, and where that is known from.

    It speaks of the GEMM as its kernel reads it: ``dtype`` is that of the planes where a precision has planes.
    ``layout`` names the majors of A and B as BLAS does ("NT": A along K, B along K), ``vec_a`` and ``vec_b`` the bytes
    that one load of them may take (16, or one element), ``splits`` the parts of K. ``measured_us`` is a median on
    ``gpu`` with ``sms`` SMs; ``predicted_us`` is what the cost model of that commit said.
    """

    op: str
    layout: str
    dtype: str
    out_dtype: str
    precision: str | None
    m: int
    n: int
    k: int
    vec_a: int
    vec_b: int
    family: str
    tile: str
    splits: int
    measured_us: float
    predicted_us: float
    gpu: str
    sms: int
    driver: str
    commit: str
    time: str

    @property
    def tokens(self) -> int:
        """The extent of the dimension that the tokens are."""
        return int(getattr(self, TOKEN_DIM[self.op]))

    @property
    def key(self) -> Key:
        """What a problem must share with the entry, whatever its tokens."""
        extents = {"m": self.m, "n": self.n, "k": self.k}
        return make_key(
            self.op, self.layout, self.dtype, self.out_dtype, self.precision, self.vec_a, self.vec_b, extents
        )

    def __str__(self) -> str:
        return (
            f"measured {self.measured_us:.1f} us at {self.m}x{self.n}x{self.k} on {self.gpu}, {self.time[:10]}, "
            f"commit {self.commit[:12]}"
        )


def make_key(
    op: str,
    layout: str,
    dtype: str,
    out_dtype: str,
    precision: str | None,
    vec_a: int,
    vec_b: int,
    extents: dict[str, int],
) -> Key:
    """The key of an entry or a problem: everything but the tokens."""
    weight = [extent for name, extent in extents.items() if name != TOKEN_DIM[op]]
    return (op, layout, dtype, out_dtype, precision, vec_a, vec_b, *weight)


@dataclass(frozen=True)
class Table:
    """A whole file. Entries count only for their arch and version of the numbers."""

    arch: str
    numerics_version: int
    entries: tuple[Entry, ...]

    def to_json(self) -> str:
        """The text of the file: one entry per line, so that a diff shows what was measured anew."""
        head = {"schema": SCHEMA, "arch": self.arch, "numerics_version": self.numerics_version}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        rows = ",\n".join(f"    {json.dumps(asdict(entry), allow_nan=False)}" for entry in self.entries)
        return "\n".join(["{", *lines, '  "entries": [', *([rows] if rows else []), "  ]", "}", ""])


# ---- rules -------------------------------------------------------------------------------------

Rule = tuple[str, Callable[[Any], bool]]


def _one_of(*allowed: str | None) -> Rule:
    names = ", ".join("null" if value is None else value for value in allowed)
    return f"one of {names}", lambda value: (value is None or type(value) is str) and value in allowed


def _whole(low: int, high: int) -> Rule:
    # type() because true is an int in Python, and 1.0 == 1
    return f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high


def _text(limit: int) -> Rule:
    # isprintable keeps control sequences out of terminals: the text ends up in explain()
    return (
        f"printable text of 1 to {limit} characters",
        lambda value: type(value) is str and 0 < len(value) <= limit and value.isprintable(),
    )


def _is_time(value: Any) -> bool:
    if type(value) is not str or len(value) > 40:
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_microseconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1e12 and math.isfinite(value)


_DTYPE = _one_of(*ITEMSIZE)
_EXTENT = _whole(1, MAX_DIM)
_BYTES: Rule = ("2, 4, 8 or 16", lambda value: type(value) is int and value in (2, 4, 8, 16))
_MICROSECONDS: Rule = ("a positive, finite number of microseconds", _is_microseconds)

RULES: dict[str, Rule] = {
    "op": _one_of(*TOKEN_DIM),
    "layout": _one_of("NN", "NT", "TN", "TT"),
    "dtype": _DTYPE,
    "out_dtype": _DTYPE,
    "precision": _one_of(None, *PRECISIONS),
    "m": _EXTENT,
    "n": _EXTENT,
    "k": _EXTENT,
    "vec_a": _BYTES,
    "vec_b": _BYTES,
    "family": _text(64),
    "tile": _text(64),
    "splits": _EXTENT,
    "measured_us": _MICROSECONDS,
    "predicted_us": _MICROSECONDS,
    "gpu": _text(200),
    "sms": _whole(1, 1 << 20),
    "driver": _text(64),
    "commit": _text(64),
    "time": ("an ISO 8601 time with its offset from UTC", _is_time),
}

_HEAD: dict[str, Rule] = {
    "schema": (f"{SCHEMA}", lambda value: type(value) is int and value == SCHEMA),
    "arch": _text(16),
    "numerics_version": _whole(1, MAX_DIM),
    "entries": ("a list", lambda value: type(value) is list),
}


def _shown(value: object) -> str:
    """A value for a message, at most a line of it."""
    try:
        text = ascii(value)
    except ValueError:  # an int of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check(place: str, found: Any, rules: dict[str, Rule]) -> None:
    """TableError unless ``found`` is an object with exactly these fields, each within its rule."""
    if type(found) is not dict:
        raise TableError(f"{place or 'the file'} must be an object, got {_shown(found)}")
    dot = f"{place}." if place else ""
    for name in found:
        if name not in rules:
            raise TableError(f"{dot}{_shown(name)} is not a field, its value is {_shown(found[name])}")
    for name, (rule, holds) in rules.items():
        if name not in found:
            raise TableError(f"{dot}{name} must be {rule}, and is missing")
        if not holds(found[name]):
            raise TableError(f"{dot}{name} must be {rule}, got {_shown(found[name])}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TableError(f"{_shown(twice)} is given twice, the last value is {_shown(found[twice])}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise TableError(f"{name} is not a JSON number")


def parse(data: bytes) -> Table:
    """The table in the bytes of a file.

    Raises:
        TableError: not JSON, or a field that is unknown, missing or outside its rule.
    """
    try:
        found = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        raise TableError(f"it is not JSON ({error})") from None
    _check("", found, _HEAD)
    for index, row in enumerate(found["entries"]):
        _check(f"entries[{index}]", row, RULES)
    names = [field.name for field in fields(Entry)]
    entries = tuple(Entry(**{name: row[name] for name in names}) for row in found["entries"])
    return Table(found["arch"], found["numerics_version"], entries)
