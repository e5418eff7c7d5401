"""A bounded, deterministic list of small problems in which every pair of choices meets."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

from ..reference import ACTIVATIONS

OPS = ("linear", "dgrad", "wgrad", "bgrad", "act_grad")
DTYPES = ("float32", "float64", "float16", "bfloat16")
_GEMMS = ("linear", "dgrad", "wgrad")


@dataclass(frozen=True)
class Case:
    """One problem: what is computed, in which sizes, dtypes and layouts.

    m, n, k: sizes of the GEMM D[m,n] = A[m,k] B[k,n], so that (tokens, out, in) is (m, n, k) for
    linear, (m, k, n) for dgrad and (k, m, n) for wgrad. bgrad sums k rows of n columns (m = 1);
    act_grad has m rows and n columns (k = 1).
    a_view, b_view: names in VIEWS for the first and the second array of the layer function.
    """

    op: str
    m: int
    n: int
    k: int
    dtype: str
    out_dtype: str
    precision: str | None = None
    bias: bool = False
    activation: str | None = None
    accumulate: bool = False
    a_view: str = "contiguous"
    b_view: str = "contiguous"

    def __str__(self) -> str:
        words = [self.op, f"{self.m}x{self.n}x{self.k}", self.dtype]
        words += [f"to-{self.out_dtype}"] if self.out_dtype != self.dtype else []
        words += [word for word in (self.precision, self.activation) if word]
        words += ["bias"] * self.bias + ["accumulate"] * self.accumulate
        views = (self.a_view, self.b_view)
        words += ["/".join(views)] if views != ("contiguous", "contiguous") else []
        return "-".join(words)


def edge_sizes(tile: int) -> tuple[int, ...]:
    """Sizes around the edges of a tile: 0, 1, tile-1, tile, tile+1 and two primes, ascending.

    The primes are the largest one below the tile (if any) and the smallest above two tiles.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    below = [p for p in range(2, tile) if _is_prime(p)][-1:]
    above = 2 * tile + 1
    while not _is_prime(above):
        above += 1
    return tuple(sorted({0, 1, tile - 1, tile, tile + 1, *below, above}))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def enumerate_problems(
    tile: tuple[int, int, int] = (32, 32, 8),
    *,
    ops: tuple[str, ...] = OPS,
    dtypes: tuple[str, ...] = DTYPES,
    precisions: tuple[str, ...] = ("ieee",),
    views: tuple[str, ...] = ("contiguous",),
    max_products: int = 200_000,
) -> list[Case]:
    """Cases for each op in which every possible pair of values of two choices occurs together.

    The choices are m, n, k (`edge_sizes` of `tile`, m·n·k at most `max_products`), dtype, output
    dtype, precision (float32 only), bias, activation, accumulate and views. Same arguments, same
    list; a few dozen cases for each op, cheapest first.
    """
    cases: list[Case] = []
    for op in ops:
        cases += _pairwise(op, tile, dtypes, precisions, views, max_products)
    return sorted(cases, key=lambda case: case.m * case.n * case.k)


def _pairwise(
    op: str,
    tile: tuple[int, int, int],
    dtypes: tuple[str, ...],
    precisions: tuple[str, ...],
    views: tuple[str, ...],
    max_products: int,
) -> list[Case]:
    choices: dict[str, tuple[object, ...]] = {
        "m": (1,) if op == "bgrad" else edge_sizes(tile[0]),
        "n": edge_sizes(tile[1]),
        "k": (1,) if op == "act_grad" else edge_sizes(tile[2]),
        # What an input dtype may be combined with goes together as one choice.
        "types": tuple(_types(op, dtypes, precisions)),
        "bias": (False, True) if op == "linear" else (False,),
        "activation": {"linear": (None, *ACTIVATIONS), "act_grad": ACTIVATIONS}.get(op, (None,)),
        "accumulate": (False, True) if op in ("wgrad", "bgrad") else (False,),
        "a_view": views,
        "b_view": ("contiguous",) if op == "bgrad" else views,
    }
    names = list(choices)

    def affordable(row: dict[str, object]) -> bool:
        return _product(row) <= max_products

    def pairs(row: dict[str, object]) -> set[tuple[str, object, str, object]]:
        return {(a, row[a], b, row[b]) for a, b in combinations(names, 2)}

    smallest = {name: values[0] for name, values in choices.items()}
    missing = [
        (a, u, b, v)
        for a, b in combinations(names, 2)
        for u in choices[a]
        for v in choices[b]
        if affordable({**smallest, "m": 1, "n": 1, "k": 1, a: u, b: v})
    ]
    wanted = dict.fromkeys(missing)
    draw = random.Random(0)
    cases: list[Case] = []
    while wanted:
        a, u, b, v = next(iter(wanted))  # this pair is covered now, and with it as much as possible
        rows = [{**smallest, "m": 1, "n": 1, "k": 1, a: u, b: v}]
        for _ in range(12):
            row = {name: draw.choice(values) for name, values in choices.items()}
            rows.append({**row, a: u, b: v})
        best = max(filter(affordable, rows), key=lambda row: len(pairs(row) & wanted.keys()))
        for pair in pairs(best):
            wanted.pop(pair, None)
        cases.append(_case(op, best))
    return cases


def _product(row: dict[str, object]) -> int:
    result = 1
    for name in ("m", "n", "k"):
        value = row[name]
        assert isinstance(value, int)
        result *= value
    return result


def _types(op: str, dtypes: tuple[str, ...], precisions: tuple[str, ...]) -> list[tuple[str, str, str | None]]:
    """(dtype, out_dtype, precision) that belong together."""
    types: list[tuple[str, str, str | None]] = []
    for dtype in dtypes:
        several = precisions if dtype == "float32" and op in _GEMMS else (None,)
        types += [(dtype, dtype, precision) for precision in several]
        if dtype in ("float16", "bfloat16") and op != "act_grad":
            types.append((dtype, "float32", None))
    return types


def _case(op: str, row: dict[str, object]) -> Case:
    types = row["types"]
    assert isinstance(types, tuple)
    dtype, out_dtype, precision = types
    rest = {name: value for name, value in row.items() if name != "types"}
    return Case(op=op, dtype=dtype, out_dtype=out_dtype, precision=precision, **rest)  # type: ignore[arg-type]
