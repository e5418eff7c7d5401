"""The parsed form of a PTX module: instructions, operands, variables, source locations."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpulinear.emulator.errors import LaunchError

WIDTHS = {"pred": 1, "b128": 128} | {kind + str(bits): bits for kind in "bus" for bits in (8, 16, 32, 64)}
WIDTHS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32, "tf32": 32}


@dataclass(frozen=True)
class Location:
    """A line of the CUDA source; ``inlined_at`` is the line that the code was inlined into."""

    file: str
    line: int
    inlined_at: Location | None = None

    def __str__(self) -> str:
        here = f"{self.file}:{self.line}"
        return here if self.inlined_at is None else f"{here} (inlined at {self.inlined_at})"


@dataclass(frozen=True)
class Reg:
    """A virtual register; the name is unique in its entry (scopes are resolved)."""

    name: str


@dataclass(frozen=True)
class Imm:
    """A literal: ``kind`` is "int" (any sign), or "f32"/"f64" with the IEEE bits as ``value``."""

    kind: str
    value: int


@dataclass(frozen=True)
class Sym:
    """A variable, parameter, label or branch list by name; ``offset`` in bytes, as in ``mov.u64 %rd1, table+8``."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Special:
    """A special register such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Sink:
    """The destination ``_``: the result is dropped."""


@dataclass(frozen=True)
class Vec:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """``a|b``: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Not:
    """``!p``: a negated predicate source."""

    item: Operand


@dataclass(frozen=True)
class Addr:
    """``[base + offset, extra...]``; a base of ``Imm`` is an absolute address, a base of ``Sym`` has no offset of its own."""

    base: Operand
    offset: int
    extras: tuple[Operand, ...] = ()


Operand = Reg | Imm | Sym | Special | Sink | Vec | Pair | Not | Addr


@dataclass
class Instruction:
    """One PTX instruction; ``index`` is its place in the entry, ``line`` its line in the PTX."""

    index: int
    name: str
    operands: tuple[Operand, ...]
    text: str
    line: int
    location: Location | None = None
    guard: Reg | None = None
    guard_negated: bool = False

    @property
    def opcode(self) -> str:
        """The part before the first dot."""
        return self.name.split(".", 1)[0]

    def where(self) -> str:
        """Where it is, for messages: the CUDA line if known, and the PTX line."""
        text = self.text if len(self.text) <= 120 else self.text[:117] + "..."
        ptx = f"PTX line {self.line}: {text}"
        return ptx if self.location is None else f"{self.location}, {ptx}"


@dataclass(frozen=True)
class Variable:
    """A variable of a state space; ``size`` in bytes (None: ``.extern .shared``, sized by the launch).

    ``data`` has ``size`` bytes, or is None where the text has no initialiser: global and const variables then hold
    zeros (PTX ISA 5.4.4), the others nothing defined.
    """

    name: str
    space: str
    size: int | None
    align: int
    data: bytes | None = None


@dataclass(frozen=True)
class Param:
    """A kernel parameter at its byte offset in the parameter space."""

    name: str
    offset: int
    size: int


@dataclass
class Entry:
    """A kernel; ``labels`` maps a label to an instruction index, ``targets`` a branch list to labels.

    ``registers`` has the type of every register that an instruction names. ``directives`` has the numbers of
    ``.maxntid`` and its like by name, without the dot: three for sizes, none for flags. Names of inner scopes end in
    "@" and a number, everywhere alike.
    """

    name: str
    params: list[Param] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    directives: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Module:
    """A parsed PTX file."""

    version: str
    target: str
    entries: dict[str, Entry] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)

    def entry(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            LaunchError: there is none; with the names of those there are.
        """
        found = self.entries.get(name)
        if found is None:
            there = ", ".join(sorted(self.entries)) or "none"
            raise LaunchError(f"the module has no entry {name!r}; its entries: {there}")
        return found
