"""What a launch found: findings of the sanitizers, each with kernel, CUDA line, threads, address and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpulinear.emulator.errors import SanitizerError
from gpulinear.emulator.ir import Instruction


@dataclass
class Finding:
    """One kind of fault at one instruction; ``count`` says how many accesses showed it, the rest is the first one's."""

    kind: str  # such as "shared race", "out of bounds", "uninitialised read"
    message: str
    fix: str
    entry: str
    instruction: Instruction | None
    cta: tuple[int, int, int] | None = None
    threads: tuple[int, ...] = ()
    address: int | None = None
    count: int = 1

    def __str__(self) -> str:
        where = self.instruction.where() if self.instruction is not None else "the launch"
        who = ""
        if self.cta is not None:
            shown = ", ".join(str(t) for t in self.threads[:4]) + (", ..." if len(self.threads) > 4 else "")
            who = f" in CTA {self.cta}" + (f", threads {shown}" if self.threads else "")
        at = f" at address {self.address:#x}" if self.address is not None else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.kind}: {self.message}{at}{times}\n  {self.entry}{who}, {where}\n  fix: {self.fix}"


@dataclass
class Report:
    """The findings of a launch, one for each kind and instruction."""

    entry: str
    findings: list[Finding] = field(default_factory=list)
    _seen: dict[tuple[str, int], Finding] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        message: str,
        fix: str,
        instruction: Instruction | None = None,
        cta: tuple[int, int, int] | None = None,
        threads: tuple[int, ...] = (),
        address: int | None = None,
        count: int = 1,
    ) -> None:
        """Note a fault; a second one of the same kind at the same instruction only counts."""
        key = (kind, -1 if instruction is None else instruction.index)
        known = self._seen.get(key)
        if known is not None:
            known.count += count
            return
        finding = Finding(kind, message, fix, self.entry, instruction, cta, threads, address, count)
        self._seen[key] = finding
        self.findings.append(finding)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings) or f"{self.entry}: nothing found"

    def raise_if_any(self) -> None:
        """SanitizerError with all findings, if there are any."""
        if self.findings:
            error = SanitizerError(str(self))
            error.findings = tuple(self.findings)
            raise error
