"""Decides whether dgrad and wgrad of a layer share a launch, and merges their steps where they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .config import GemmConfig, JointConfig
from .cost import ceil_div, predict_apart, predict_pair, seconds_per_block
from .device import DeviceSpec
from .plan import Choice, Joint, Step
from .problem import Gemm

# The gain from which on a joint launch is taken: two kernels in one may cost what the model does not know. It is reached
# where both gradients together fill fewer than about two waves.
_GAIN = 1.05


def _longer_first(choices: tuple[Choice, Choice]) -> tuple[Choice, Choice]:
    """What runs longer must not start last."""
    dgrad, wgrad = choices
    assert dgrad.cost is not None and wgrad.cost is not None
    return (wgrad, dgrad) if seconds_per_block(wgrad.cost) > seconds_per_block(dgrad.cost) else (dgrad, wgrad)


def decide(
    gemms: tuple[Gemm, Gemm],
    considered: tuple[Sequence[Choice], Sequence[Choice]],
    apart: tuple[Choice, Choice],
    spec: DeviceSpec,
    num_sms: int,
    wanted: bool | None,
) -> Joint:
    """The pair of variants that is predicted to be the fastest in one launch, and whether it is taken.

    Args:
        gemms: dgrad and wgrad, on operands as they are read.
        considered: the variants and numbers of K splits of each that may be taken; ``apart``: the best of each alone.
        wanted: True takes the pair wherever it is legal, None where a gain is predicted (``Options.joint``).
    """
    assert apart[0].cost is not None and apart[1].cost is not None
    alone = predict_apart(apart[0].cost, apart[1].cost)
    best: Joint | None = None
    reasons: set[str] = set()
    of_dgrad, of_wgrad = (
        [(choice, _launched(choice, gemm, spec)) for choice in some if choice.cost is not None]
        for gemm, some in zip(gemms, considered, strict=True)
    )
    for dgrad, dgrad_config in of_dgrad:
        for wgrad, wgrad_config in of_wgrad:
            first, second = _longer_first((dgrad, wgrad))
            configs = (dgrad_config, wgrad_config) if first is dgrad else (wgrad_config, dgrad_config)
            config = JointConfig.of(*configs)
            refused = config.supports(spec)
            if refused:
                reasons.add(refused)
                continue
            assert first.cost is not None and second.cost is not None
            cost = predict_pair(first.cost, second.cost, num_sms)
            if best is None or best.cost is None or cost.seconds < best.cost.seconds:
                best = Joint((dgrad, wgrad), first is wgrad, config, cost, alone, None)
    if best is None or best.cost is None:
        return Joint(None, False, None, None, alone, "; ".join(sorted(reasons)))
    if wanted or best.cost.seconds * _GAIN <= alone:
        return best
    return replace(best, refused=f"the gain predicted is less than {_GAIN - 1:.0%}")


def _launched(choice: Choice, gemm: Gemm, spec: DeviceSpec) -> GemmConfig:
    return choice.config.for_work(ceil_div(gemm.k, choice.config.segment), choice.splits, spec)


def merge(first: Sequence[Step], second: Sequence[Step], num_sms: int) -> list[Step]:
    """The steps of two GEMMs with one launch in place of two: what reads operands before it, what finishes results after."""
    at, other_at = _product(first), _product(second)
    one, other = first[at], second[other_at]
    assert isinstance(one.config, GemmConfig) and isinstance(other.config, GemmConfig)
    config = JointConfig.of(one.config, other.config)
    grid = one.grid + other.grid
    if one.config.persistent:
        cluster = config.blocks_per_cluster
        grid = min(grid, max(1, num_sms // cluster) * cluster)
    note = f"first {one.note}; second {other.note}"
    joint = Step(config, grid, config.smem_bytes, one.values + other.values, note)
    return [*first[:at], *second[:other_at], joint, *first[at + 1 :], *second[other_at + 1 :]]


def _product(steps: Sequence[Step]) -> int:
    """Where the matrix product is among the steps of a GEMM."""
    (found,) = (index for index, step in enumerate(steps) if isinstance(step.config, GemmConfig))
    return found
