"""Which cases are measured, and in which order: an early stop leaves a spread over groups, ops and dtypes.

Every case has a score: its place among those of its group, op and arithmetic, plus what those three weigh. The list is
sorted by score, so that the first few of everything come before the many of anything. All of it is deterministic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from .case import OPS, Case

# What is computed with, as a user names it: a dtype, or the precision of float32 operands. The number is how much later
# a case of it comes: the dtypes that layers are trained in first, then float32 accuracy by other means.
ARITHMETIC = {
    "bfloat16": 0.0,
    "float32": 0.0,
    "bf16x6": 0.5,
    "tf32": 0.5,
    "float16": 1.0,
    "tf32x3": 2.0,
    "float64": 2.0,
}
_OP_WEIGHT = {"linear": 0.0, "backward": 0.0, "wgrad": 0.25, "dgrad": 0.25}

# name -> (most cases, most flops of a case). The session stops by the clock; these keep a short run from spending it on
# a few giants.
TIERS = {"quick": (64, 5 * 10**11), "main": (400, 3 * 10**12), "full": (10**9, 10**15)}
BUDGET_SECONDS = {"quick": 90.0, "main": 480.0, "full": 3600.0}

_GEMMS = ("linear", "wgrad", "dgrad")
_TRAINED_FROM = 512  # tokens from which a gradient of a real model's layer is measured
_DECODE_UP_TO = 64  # tokens up to which a forward pass counts as decoding
_SQUARES = (4096, 1024, 8192, 2048, 512, 16384, 256)
_VIEW_SHAPES = ((2048, 2048, 2048), (1000, 4096, 1024))
_MISALIGNED = ("misaligned", "misaligned_three")
_STRIDED = ("padded", "transposed", "column_sliced", "row_sliced", "columns_stepped", "rows_stepped", "rows_reversed")


@dataclass(frozen=True)
class Shape:
    """A layer of real use: sizes (0 is possible), class and source as ``shapes.json`` has them."""

    kind: str
    tokens: int
    out_features: int
    in_features: int
    source: str


@lru_cache(maxsize=1)
def shapes() -> tuple[Shape, ...]:
    """Every shape in ``shapes.json``, zero sizes included; (m, n, k) there is (tokens, out, in)."""
    entries: list[dict[str, Any]] = json.loads((Path(__file__).parent / "shapes.json").read_text())
    return tuple(Shape(entry["class"], m, n, k, entry["source"]) for entry in entries for m, n, k in entry["mnk"])


@dataclass(frozen=True)
class _Group:
    """Cases of one purpose: every op and arithmetic on every template, a case without those two."""

    weight: float
    ops: Sequence[str]
    arithmetic: Sequence[str]
    templates: Sequence[Case]


def arithmetic(case: Case) -> str:
    """The case's key in ``ARITHMETIC``."""
    return case.precision or case.dtype


def _dtype(name: str) -> dict[str, str | None]:
    return {"dtype": name, "precision": None} if "float" in name else {"dtype": "float32", "precision": name}


def _spread(items: Iterable[Shape]) -> list[Shape]:
    """The items so that each prefix spans all sizes: by flops, visited in bit-reversed order."""
    ranked = sorted(items, key=lambda s: (s.tokens * s.out_features * s.in_features, s.tokens, s.out_features))
    bits = max(1, (len(ranked) - 1).bit_length())
    order = sorted(range(len(ranked)), key=lambda i: int(f"{i + 1:0{bits + 1}b}"[::-1], 2))
    return [ranked[i] for i in order]


def _templates(items: Iterable[Shape]) -> list[Case]:
    return [
        Case("linear", "float32", s.tokens, s.out_features, s.in_features, source=s.source)
        for s in items
        if min(s.tokens, s.out_features, s.in_features) > 0  # zero sizes launch no GEMM: nothing to time
    ]


def _square(n: int, source: str = "square ladder") -> Shape:
    return Shape("square", n, n, n, source)


def _groups() -> dict[str, _Group]:
    of: dict[str, list[Shape]] = {}
    for shape in shapes():
        of.setdefault(shape.kind, []).append(shape)
    trained = _spread(s for s in of["llm"] if s.tokens >= _TRAINED_FROM)
    # The layers of Llama-3-8B at one training batch, first wherever a real model stands for all.
    anchors = [
        Shape("llm", 4096, out, inner, "Llama-3-8B")
        for out, inner in ((14336, 4096), (4096, 14336), (4096, 4096), (6144, 4096))
    ]
    models = [*anchors, *trained]
    decoded = _spread(s for s in of["llm"] if s.tokens <= _DECODE_UP_TO)
    decoded = [replace(anchors[i], tokens=tokens) for tokens in (16, 1, 64) for i in (0, 1)] + decoded
    ladder = [_square(n) for n in _SQUARES]
    edges = [_square(n, "one off a tile's edge") for n in (4097, 1023, 2047, 4095)]
    up, down = ("float32", "bf16x6", "bfloat16", "float16"), ("bfloat16", "float32", "bf16x6", "tf32", "float16")
    everything = tuple(ARITHMETIC)
    # hugek names a GEMM whose reduction is long; in a layer that is the weight's gradient over a long batch.
    long = [replace(s, tokens=s.in_features, out_features=s.tokens, in_features=s.out_features) for s in of["hugek"]]
    viewed = _templates(Shape("", *sizes, "bench") for sizes in _VIEW_SHAPES)
    fused = [
        replace(case, bias=True, activation=activation)
        for case in _templates(models)
        for activation in ("gelu_tanh", "gelu", None, "relu")  # tanh first: it is what the peers' epilogues compute
    ]
    accumulating = [replace(case, op="wgrad", accumulate=True) for case in _templates([*models, *ladder])]
    sweeps = [s for s in of["llm"] if _DECODE_UP_TO < s.tokens < _TRAINED_FROM]
    return {
        "square": _Group(0.0, _GEMMS, everything, _templates([*ladder, *_spread(of["square"])])),
        "model": _Group(0.0, _GEMMS, everything, _templates(models)),
        "decode": _Group(
            0.5, ("linear",), down, _templates(_spread(s for s in of["llm"] if s.tokens <= _DECODE_UP_TO))
        ),
        "backward": _Group(0.5, ("backward",), down, _templates([*ladder[1:2], *models, *ladder])),
        "fused": _Group(0.5, ("linear",), down, fused),
        "accumulate": _Group(0.5, ("wgrad",), down, accumulating),
        "odd": _Group(1.0, _GEMMS, down, _templates([*edges, *_spread(of["odd"])])),
        "skinny": _Group(1.0, _GEMMS, down, _templates(_spread(of["skinny"]))),
        "misaligned": _Group(1.0, _GEMMS, up, [replace(c, view=v) for v in _MISALIGNED for c in viewed]),
        "batch": _Group(1.0, ("linear",), down, _templates(_spread(sweeps))),
        "deepbench": _Group(1.5, _GEMMS, ("bfloat16", "float32", "float16"), _templates(_spread(of["deepbench"]))),
        "strided": _Group(1.5, _GEMMS, up, [replace(c, view=v) for c in viewed for v in _STRIDED]),
        "hugek": _Group(2.5, ("wgrad",), up, _templates(_spread(long))),
        "tiny": _Group(3.0, ("linear",), ("float32", "bfloat16"), _templates(_spread(of["tiny"]))),
    }


GROUPS = (
    "square",
    "model",
    "decode",
    "backward",
    "fused",
    "accumulate",
    "odd",
    "skinny",
    "misaligned",
    "batch",
    "deepbench",
    "strided",
    "hugek",
    "tiny",
)


def _scored() -> Iterator[tuple[float, Case]]:
    for name, group in _groups().items():
        for op in group.ops:
            for numbers in group.arithmetic:
                weight = group.weight + _OP_WEIGHT[op] * (1 + 2 * group.weight) + ARITHMETIC[numbers]
                for place, template in enumerate(group.templates):
                    fields: dict[str, Any] = {**vars(template), **_dtype(numbers), "op": op, "group": name}
                    if template.accumulate:  # the sum over micro-batches is kept in float32, as training does
                        fields["out_dtype"] = "float64" if numbers == "float64" else "float32"
                    yield place + weight, Case(**fields)


@lru_cache(maxsize=1)
def universe() -> tuple[Case, ...]:
    """All cases, most telling first; names are unique (a shape that two groups have counts for the earlier one)."""
    ranked = sorted(_scored(), key=lambda item: item[0])  # stable: equal scores stay in the order of the groups
    first: dict[str, Case] = {}
    for _, case in ranked:
        first.setdefault(case.name, case)
    return tuple(first.values())


def _check(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    unknown = [name for name in given if name not in tuple(known)]
    if unknown:
        raise ArgumentError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")


def _share(cases: list[Case], shard: str | None) -> list[Case]:
    if shard is None:
        return cases
    index, _, count = shard.partition("/")
    if not (
        index.isascii() and index.isdigit() and count.isascii() and count.isdigit() and 1 <= int(index) <= int(count)
    ):
        raise ArgumentError(f"shard must be i/n with 1 <= i <= n, such as 2/4, got {shard!r}")
    return cases[int(index) - 1 :: int(count)]


def select(
    tier: str = "quick",
    *,
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    groups: Sequence[str] = (),
    match: str | None = None,
    limit: int | None = None,
    shard: str | None = None,
) -> list[Case]:
    """The cases of a tier, most telling first.

    Args:
        tier: "quick", "main" or "full": how many cases, and how large. What was filtered out does not count, so that
            "quick" with a filter is as long as without, if there are enough.
        ops, dtypes, groups: keep only these (empty: all). dtypes are the keys of ``ARITHMETIC``: float32 is strict
            float32, "tf32" and "bf16x6" are float32 operands in that precision.
        match: keep names that contain this, or match it if it holds a wildcard (* ? [).
        limit: at most this many.
        shard: "i/n": every n-th case from the i-th on, so that n runs together cover all.

    Raises:
        ArgumentError: an unknown name or a malformed shard.
    """
    _check("tier", [tier], TIERS)
    _check("ops", ops, OPS)
    _check("dtypes", dtypes, ARITHMETIC)
    _check("groups", groups, GROUPS)
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit must be at least 1, got {limit}")
    most, flops = TIERS[tier]
    wild = match is not None and any(c in match for c in "*?[")
    kept = [
        case
        for case in universe()
        if (not ops or case.op in ops)
        and (not dtypes or arithmetic(case) in dtypes)
        and (not groups or case.group in groups)
        and (match is None or (fnmatchcase(case.name, match) if wild else match in case.name))
        and case.flops <= flops
    ]
    return _share(kept[:most], shard)[:limit]
