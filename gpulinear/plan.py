"""What a plan is: which kernels run, with which config, grid and parameters, over which buffers. It prints well."""

from __future__ import annotations

from dataclasses import dataclass, field

from .config import Config, GemmConfig, JointConfig
from .cost import Cost
from .tensormap import TensorMapSpec

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Options:
    """What a caller may limit. ``num_sms`` None means all; ``workspace_limit`` in bytes bounds split-K slabs.

    ``family``, ``tile`` and ``splits`` force the planner's choice, for tests and benches; ``tuned`` False leaves it to
    the cost model, whatever tables hold. A result bit never depends on them, but for ``family`` and ``segment``, which
    is the length of a segment of K in place of the family's own. ``joint``: dgrad and wgrad in one launch always (True,
    an error where they cannot), never (False), or where a gain is predicted (None).
    """

    num_sms: int | None = None
    workspace_limit: int = 1 << 28
    family: str | None = None
    tile: str | None = None
    splits: int | None = None
    segment: int | None = None
    tuned: bool = True
    joint: bool | None = None


@dataclass(frozen=True)
class Ref:
    """An address: ``offset`` bytes into a named buffer."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True)
class MapRef:
    """A tensor map of the matrix at an address."""

    at: Ref
    spec: TensorMapSpec


Value = int | Ref | MapRef | None


@dataclass(frozen=True)
class Step:
    """One kernel launch. ``values`` follow the fields of the family's parameter block."""

    config: Config
    grid: int
    smem_bytes: int
    values: tuple[Value, ...]
    note: str

    @property
    def family(self) -> str:
        """The kernel family, which names its header, entry point and parameter block."""
        return self.config.family

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.config.threads


@dataclass(frozen=True)
class Choice:
    """A variant the planner looked at: its predicted cost, or why it was refused.

    ``tuned`` says what was measured of it where a tuning table has made it the choice.
    """

    config: GemmConfig
    splits: int
    cost: Cost | None
    refused: str | None
    tuned: str | None = None


@dataclass(frozen=True)
class Joint:
    """What the planner made of dgrad and wgrad in one launch: how, and its predicted cost; or why they get two."""

    choices: tuple[Choice, Choice] | None  # dgrad's and wgrad's; None where no two variants can share a launch
    wgrad_first: bool  # its blocks run longer
    config: JointConfig | None
    cost: Cost | None
    apart: float  # predicted seconds of two launches
    refused: str | None

    def __str__(self) -> str:
        text = "dgrad and wgrad in one launch"
        if self.config is not None and self.cost is not None:
            text += f", {self.config.tile}: {self.cost.seconds * 1e6:.1f} us against {self.apart * 1e6:.1f} us in two"
        return text + (f": {self.refused}" if self.refused else "")


@dataclass(frozen=True)
class Plan:
    """Steps over named buffers, in stream order, and the reasons for them."""

    op: str
    arch: str
    steps: tuple[Step, ...]
    workspace_bytes: int
    reads: tuple[str, ...]  # one sentence per operand: read in place or copied
    choices: tuple[Choice, ...] = field(default=(), compare=False)
    joint: Joint | None = field(default=None, compare=False)  # None: there is no such pair

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.arch}: {len(self.steps)} kernel launch(es), {self.workspace_bytes} B workspace"]
        for step in self.steps:
            lines.append(f"  {step.family:<15} grid {step.grid} x {step.threads} threads, {step.smem_bytes} B smem")
            lines.append(f"    {step.note}")
        if not self.steps:
            lines.append("  nothing to launch: the result is empty")
        lines += [f"  {sentence}" for sentence in self.reads]
        if self.choices:
            lines.append("  candidates (predicted, not measured):")
        for choice in self.choices:
            verdict = choice.refused or (f"{choice.cost.seconds * 1e6:.1f} us" if choice.cost else "")
            tuned = f", tuned: {choice.tuned}" if choice.tuned else ""
            lines.append(f"    {choice.config.tile:<18} splits {choice.splits:<3} {verdict}{tuned}")
        if self.joint is not None:
            lines.append(f"  {self.joint} (predicted, not measured)")
        return "\n".join(lines)
