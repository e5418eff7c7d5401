"""Reads the machine code of a compiled kernel: what its hot loop is made of.

``nvdisasm`` turns a cubin into a listing; everything else here is text. Opcodes: "Instruction Set Reference" of NVIDIA's
CUDA Binary Utilities.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackendError
from .control_flow import Instruction, loops

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*)")

# Opcodes that count by their width, because the width is what one looks for.
_MEMORY = ("LDS", "LDSM", "LDG", "LDGSTS", "LDL", "STS", "STG", "STL")
_WIDTHS = {"U8": "8", "S8": "8", "U16": "16", "S16": "16", "64": "64", "128": "128"}
_MATRICES = {"2": "x2", "4": "x4"}

# Opcodes that count together. "address" is integer arithmetic: in a loop of a GEMM nothing else needs it.
_GROUPS = {
    "address": (
        "IABS IADD IADD3 IMAD IMNMX ISETP LEA LOP3 PLOP3 SEL SHF SHL SHR VIADD VIADDMNMX VIMNMX "
        "UIADD3 UIMAD UISETP ULEA ULOP3 UPLOP3 USEL USHF UVIADD"
    ),
    "move": "CS2R MOV R2UR S2R S2UR UMOV LDC LDCU ULDC",
    "barrier": (
        "ARRIVES BAR DEPBAR ELECT ERRBAR FENCE LDGDEPBAR MEMBAR SYNCS UCGABAR_ARV UCGABAR_WAIT WARPGROUP "
        "WARPGROUPSET WARPSYNC"
    ),
    "control": "BRA BREAK BSSY BSYNC CALL EXIT NOP RET YIELD",
    "convert": "F2F F2FP HADD2 PRMT",
}
_GROUP_OF = {opcode: group for group, opcodes in _GROUPS.items() for opcode in opcodes.split()}


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop, counted by ``kind``."""

    mix: Counter[str]

    @property
    def instructions(self) -> int:
        """All instructions of one pass."""
        return self.mix.total()

    def share(self, *kinds: str) -> float:
        """Share of the instructions whose kind is one of these, whatever their width."""
        chosen = sum(count for name, count in self.mix.items() if name.partition(".")[0] in kinds)
        return chosen / max(1, self.instructions)


def kind(opcode: str) -> str:
    """What an instruction counts as: its group, else its opcode, with the width in bits if it accesses memory."""
    base, *modifiers = opcode.split(".")
    if base == "IMAD" and modifiers[:1] == ["MOV"]:
        return "move"
    if base in _MEMORY:
        names, width = (_MATRICES, "x1") if base == "LDSM" else (_WIDTHS, "32")
        for modifier in modifiers:
            width = names.get(modifier, width)
        return f"{base}.{width}"
    return _GROUP_OF.get(base, base)


def disassembler() -> str:
    """The path of nvdisasm: on the PATH, or in NVIDIA's wheel. BackendError where there is none."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(root).rglob("nvdisasm")):
            if path.is_file():
                return str(path)
    raise BackendError("reading machine code needs nvdisasm; pip install nvidia-cuda-nvdisasm")


def disassemble(cubin: Path) -> str:
    """The machine code of a cubin as text. BackendError: there is no nvdisasm, or it cannot read the cubin."""
    command = [disassembler(), "-c", "-ndf", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"nvdisasm failed on {cubin} with exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions in order, and at which of them each label stands.

    An instruction whose predicate is never true is padding for the hardware and left out.
    """
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = _LABEL.match(line.strip())
        if label:
            labels[label.group(1)] = len(code)
        match = _INSTRUCTION.search(line)
        if match:
            predicate, opcode, operands = match.groups()
            if (predicate or "").strip() not in ("@!PT", "@!UPT"):
                code.append(Instruction(opcode, operands, predicate is not None))
    return code, labels


def local_accesses(text: str) -> int:
    """Loads and stores of local memory in the whole kernel: spilled registers, or an array that is indexed."""
    return sum(one.base in ("LDL", "STL") for one in parse(text)[0])


def hot_loop(text: str, opcode: str, never: tuple[str, ...] = ()) -> Loop | None:
    """Of the loops with ``opcode`` that hold no other such loop, the one with the most of it; None where there is none.

    Loops that hold one of ``never`` are passed over.
    """
    code, labels = parse(text)
    hot = {body: sum(code[index].base == opcode for index in body) for body in loops(code, labels)}
    inner = [body for body in hot if hot[body] and not any(hot[other] and other < body for other in hot)]
    inner = [body for body in inner if not any(code[index].base in never for index in body)]
    if not inner:
        return None
    best = max(inner, key=lambda body: hot[body])
    return Loop(Counter(kind(code[index].opcode) for index in best))
