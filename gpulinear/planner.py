"""Turns problems into a plan. Pure: it needs no device, touches no memory, and equal problems give equal plans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from .builder import Builder, placed_name, readable, ref_of, scatter, writable
from .columns import column_slabs, finish_columns, plan_act_grad, plan_column_sum
from .config import (
    FAMILIES,
    GemmConfig,
    GemmWgmmaConfig,
    OrderedReduceConfig,
    candidates,
    family_of,
)
from .cost import ceil_div, predict
from .device import DeviceSpec
from .errors import BackendError
from .joint import decide, merge
from .plan import Choice, Joint, Options, Plan, Ref
from .problem import (
    ACTIVATION_CODES,
    ITEMSIZE,
    ColumnSum,
    Gemm,
    Matrix,
    Problem,
    SplitPlanes,
    Vector,
    accumulator_dtype,
)
from .splits import plan_split, split
from .wgmma import addressable, wgmma_step

_RASTER_GROUP = 8  # tiles of M that share a strip of B in the L2


# ---- GEMM --------------------------------------------------------------------------------------


def as_read(builder: Builder, gemm: Gemm) -> Gemm:
    """The GEMM on operands that its family's kernels can read: as they lie, in planes, or copied where they cannot be."""
    family = builder.options.family or family_of(gemm, builder.spec)
    if family in FAMILIES and gemm.precision in FAMILIES[family].as_planes:
        a, b = split(builder, gemm.a, gemm.precision), split(builder, gemm.b.T, gemm.precision).T
    elif family == GemmWgmmaConfig.family and gemm.precision is None:
        a, b = addressable(builder, gemm.a), addressable(builder, gemm.b)
    else:
        a = readable(builder, gemm.a, need_unit_stride=True)
        b = readable(builder, gemm.b, need_unit_stride=True)
    return replace(gemm, a=a, b=b)


def _split_options(gemm: Gemm, config: GemmConfig, asked: Iterable[int], limit: int | None) -> list[int]:
    """The numbers of K splits that the variant makes of those ``asked`` for, ascending.

    None is above the number of segments, or leaves a split without one; with a ``limit``, the slabs of more than one
    fit into so many bytes.
    """
    segments = ceil_div(gemm.k, config.segment)
    slabs = segments * gemm.m * gemm.n * ITEMSIZE[accumulator_dtype(gemm.dtype)]
    counts = {ceil_div(segments, ceil_div(segments, min(count, segments))) for count in asked}
    return config.split_choices(segments, sorted(c for c in counts if c == 1 or limit is None or slabs <= limit))


def considered(builder: Builder, gemm: Gemm) -> Iterator[Choice]:
    """Every variant for operands ``as_read`` with every number of K splits that the options leave: its predicted cost,
    or why it is refused."""
    options = builder.options
    for config, refused in candidates(gemm, builder.spec, options.family):
        if options.segment is not None:
            config = replace(config, segment=options.segment)
        if options.tile not in (None, config.tile):
            refused = f"only {options.tile} was asked for"
        if refused:
            yield Choice(config, 1, None, refused)
            continue
        if options.splits is not None:
            counts = _split_options(gemm, config, [options.splits], None)
        else:
            asked = (1, 2, 3, 4, 8, 16, 32, 64, gemm.k)
            counts = _split_options(gemm, config, asked, options.workspace_limit)
        for splits in counts:
            yield Choice(config, splits, predict(gemm, config, splits, builder.spec, builder.num_sms), None)


def _tuned(builder: Builder, gemm: Gemm, legal: Iterable[GemmConfig]) -> Choice | None:
    """The measured winner for this problem, if a tuning table names one that is ``legal`` here."""
    from .tuning.table import serving  # when the first GEMM is planned, not when gpulinear is imported

    options = builder.options
    if not options.tuned or options.tile is not None or options.splits is not None:
        return None
    by_name = {(config.family, config.tile): config for config in legal}
    for entry in serving(gemm, builder.spec, builder.num_sms):
        config = by_name.get((entry.family, entry.tile))
        if config is None:
            continue
        for splits in _split_options(gemm, config, [entry.splits], options.workspace_limit):
            cost = predict(gemm, config, splits, builder.spec, builder.num_sms)
            return Choice(config, splits, cost, None, str(entry))
    return None


def _seconds(choice: Choice) -> float:
    return math.inf if choice.cost is None else choice.cost.seconds


def _choose(builder: Builder, gemm: Gemm) -> Choice:
    """The variant and the number of K splits that were measured to be the fastest, else those with the least predicted
    time. Neither may change a bit."""
    found: dict[GemmConfig, Choice] = {}
    for choice in considered(builder, gemm):
        found[choice.config] = min(found.get(choice.config, choice), choice, key=_seconds)
    legal = [config for config, choice in found.items() if choice.refused is None]
    if not legal:
        reasons = "; ".join(sorted({choice.refused for choice in found.values() if choice.refused}))
        raise BackendError(f"no kernel can run this {gemm.op} on {builder.spec.arch}: {reasons}")
    best = _tuned(builder, gemm, legal) or min(found.values(), key=_seconds)
    builder.choices += (found | {best.config: best}).values()
    return best


def _finish_values(gemm: Gemm, d: Matrix, preact: Matrix | None) -> dict[str, Any]:
    """The epilogue's fields, shared by gemm_simt and ordered_reduce."""
    return {
        "d": ref_of(d),
        "bias": ref_of(gemm.bias),
        "preact": ref_of(preact),
        "ldd": d.row_stride,
        "ldp": preact.row_stride if preact else 0,
        "bias_stride": gemm.bias.stride if gemm.bias else 0,
        "activation": ACTIVATION_CODES[gemm.activation],
        "accumulate": int(gemm.accumulate),
    }


def _reduce(builder: Builder, gemm: Gemm, finish: dict[str, Any], slabs: Ref | None, count: int, note: str) -> None:
    config = OrderedReduceConfig(
        accumulator_dtype(gemm.dtype), gemm.d.dtype, gemm.bias.dtype if gemm.bias else gemm.d.dtype
    )
    builder.step(
        config,
        ceil_div(gemm.m * gemm.n, config.threads),
        note,
        slabs=slabs,
        slab_stride=gemm.m * gemm.n,
        m=gemm.m,
        n=gemm.n,
        count=count,
        reserved=0,
        **finish,
    )


def _tiled_step(
    builder: Builder,
    gemm: Gemm,
    config: GemmConfig,
    splits: int,
    total: Ref | None,
    db_slabs: Ref | None,
    finish: dict[str, Any],
    note: str,
) -> None:
    """One block per tile and split."""
    a, b = gemm.a, gemm.b
    tiles_m, tiles_n = ceil_div(gemm.m, config.block_m), ceil_div(gemm.n, config.block_n)
    builder.step(
        config,
        tiles_m * tiles_n * splits,
        note,
        config.smem_bytes,
        a=ref_of(a),
        b=ref_of(b),
        total=total,
        db=ref_of(gemm.db),
        db_slabs=db_slabs,
        lda=a.row_stride if a.row_major else a.col_stride,
        ldb=b.col_stride if b.col_major else b.row_stride,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        splits=splits,
        segments_per_split=ceil_div(ceil_div(gemm.k, config.segment), splits),
        tiles_m=tiles_m,
        tiles_n=tiles_n,
        group=_RASTER_GROUP,
        **finish,
    )


def _sum_apart(builder: Builder, gemm: Gemm, why: str) -> Gemm:
    """The GEMM without its db, which kernels of its own compute."""
    if gemm.db is not None:
        plan_column_sum(builder, ColumnSum(gemm.a.T, gemm.db, gemm.accumulate), f", apart from the {gemm.op}: {why}")
    return replace(gemm, db=None)


def _plan_gemm(builder: Builder, gemm: Gemm, choice: Choice | None = None) -> None:
    """The steps of a GEMM, by its best variant where no other ``choice`` was made."""
    if 0 in (gemm.m, gemm.n, gemm.k):
        gemm = _sum_apart(builder, gemm, "there is nothing to multiply")
    if gemm.m == 0 or gemm.n == 0 or (gemm.k == 0 and gemm.accumulate):
        return
    d, d_final = writable(builder, gemm.d, read=gemm.accumulate)
    preact, preact_final = writable(builder, gemm.preact) if gemm.preact else (None, None)
    finish = _finish_values(gemm, d, preact)
    if gemm.k == 0:
        _reduce(builder, gemm, finish, None, 0, "nothing to sum: zeros, or the activated bias")
    else:
        ready = replace(as_read(builder, gemm), d=d, preact=preact)
        a, b = ready.a, ready.b
        choice = choice or _choose(builder, ready)
        config, splits = choice.config, choice.splits
        acc = accumulator_dtype(gemm.dtype)
        segments = ceil_div(gemm.k, config.segment)
        config = config.for_work(segments, splits, builder.spec)
        db_slabs: Ref | None = None
        if gemm.db is not None:
            refused = config.db_refused(ready)
            if refused:
                _sum_apart(builder, gemm, refused)
                ready = replace(ready, db=None)
            else:
                config = replace(config, db_dtype=gemm.db.dtype)
                db_slabs = column_slabs(builder, gemm.dtype, segments if splits > 1 else 1, gemm.m)
        total: Ref | None = None
        if splits > 1:
            total = builder.alloc(segments * gemm.m * gemm.n * ITEMSIZE[acc])
        elif segments > 1 and not isinstance(config, GemmWgmmaConfig):
            total = builder.alloc(gemm.m * gemm.n * ITEMSIZE[acc])
        layout = ("T" if not a.row_major else "N") + ("T" if not b.row_major else "N")
        what = gemm.dtype if gemm.precision in (None, "ieee") else gemm.precision
        if config.planes > 1:
            what = f"{what} over planes, P={config.promote},"
        note = (
            f"{gemm.op} {gemm.m}x{gemm.n}x{gemm.k} {what} {layout}, tile {config.tile}, {config.stages} stages, "
            f"S={config.segment}, {splits} split(s) of K, loads of {config.vec_a} and {config.vec_b} B"
        ) + (", and db" if config.db_dtype else "")
        if isinstance(config, GemmWgmmaConfig):
            wgmma_step(builder, ready, config, total, db_slabs, finish, note)
        else:
            _tiled_step(builder, ready, config, splits, total, db_slabs, finish, note)
        if splits > 1:
            note = f"add {segments} segment sums in ascending order, then the epilogue"
            _reduce(builder, ready, finish, total, segments, note)
        if db_slabs is not None and gemm.db is not None:
            finish_columns(builder, gemm.dtype, gemm.db, db_slabs, segments, gemm.accumulate)
    scatter(builder, d, d_final)
    if preact is not None:
        scatter(builder, preact, preact_final)


def _joint(builder: Builder, dgrad: Gemm, wgrad: Gemm) -> Joint | None:
    """How both gradients of a layer would share a launch; None where they are not to, or one has nothing to multiply."""
    wanted = builder.options.joint
    if wanted is False or any(0 in (gemm.m, gemm.n, gemm.k) for gemm in (dgrad, wgrad)):
        return None
    # On trial: which operands are copied, and thus which variants are legal, is known when all of it is planned.
    trial = Builder(builder.spec, builder.options)
    one, other = (replace(as_read(trial, gemm), d=writable(trial, gemm.d)[0]) for gemm in (dgrad, wgrad))
    apart = (_choose(trial, one), _choose(trial, other))
    # What was measured to be the fastest alone is taken in a joint launch too, or there is none.
    of_one, of_other = (
        [best] if best.tuned else list(considered(trial, gemm)) for gemm, best in ((one, apart[0]), (other, apart[1]))
    )
    joint = decide((one, other), (of_one, of_other), apart, builder.spec, builder.num_sms, wanted)
    if joint.refused is None:
        builder.choices += trial.choices
    elif wanted:
        raise BackendError(f"{joint}; leave Options.joint to the planner")
    return joint


def _plan_pair(builder: Builder, dgrad: Gemm, wgrad: Gemm) -> None:
    """Both gradients of a layer in one launch, where that is predicted to be faster, else in two. The bits are the same."""
    joint = builder.joint = _joint(builder, dgrad, wgrad)
    if joint is None or joint.choices is None or joint.refused is not None:
        _plan_gemm(builder, dgrad)
        _plan_gemm(builder, wgrad)
        return
    before = len(builder.steps)
    _plan_gemm(builder, dgrad, joint.choices[0])
    between = len(builder.steps)
    _plan_gemm(builder, wgrad, joint.choices[1])
    of_dgrad, of_wgrad = builder.steps[before:between], builder.steps[between:]
    first, second = (of_wgrad, of_dgrad) if joint.wgrad_first else (of_dgrad, of_wgrad)
    builder.steps[before:] = merge(first, second, builder.num_sms)


# ---- calls -------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def make_plan(
    op: str,
    problems: tuple[Problem, ...],
    temporaries: tuple[tuple[str, int], ...],
    spec: DeviceSpec,
    options: Options,
) -> Plan:
    """Plan all problems of one call, in order.

    ``temporaries`` are (name, bytes) of buffers that live only inside the call; they are placed in the workspace.
    Raises BackendError when no kernel can do the work on ``spec``.
    """
    builder = Builder(spec, options)
    placed = {name: placed_name(builder.alloc(nbytes)) for name, nbytes in temporaries}
    waiting = [_place(problem, placed) for problem in problems]
    while waiting:
        problem = waiting.pop(0)
        following = waiting[0] if waiting else None
        if isinstance(problem, Gemm) and isinstance(following, Gemm):  # dgrad and wgrad of one layer
            _plan_pair(builder, problem, following)
            waiting.pop(0)
        elif isinstance(problem, Gemm):
            _plan_gemm(builder, problem)
        elif isinstance(problem, ColumnSum):
            plan_column_sum(builder, problem)
        elif isinstance(problem, SplitPlanes):
            plan_split(builder, problem)
        else:
            plan_act_grad(builder, problem)
    reads = tuple(dict.fromkeys(builder.reads))
    return Plan(op, spec.arch, tuple(builder.steps), builder.top, reads, tuple(builder.choices), builder.joint)


def _place(problem: Problem, placed: dict[str, str]) -> Problem:
    """Point operands that lie in temporaries at the workspace."""
    changes: dict[str, Any] = {
        name: replace(value, buffer=placed[value.buffer])
        for name, value in vars(problem).items()
        if isinstance(value, (Matrix, Vector)) and value.buffer in placed
    }
    return replace(problem, **changes)
