"""Reads the machine code of compiled kernels: ``python -m bench.sass [--arch sm_90a]``.

For each ``gemm_simt`` tile and layout: registers, spills, shared memory, and the share of FMAs among the instructions of
the hot loop. What a machine without a GPU can know; no time is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gpulinear.compile import compile_kernel
from gpulinear.config import candidates
from gpulinear.device import DeviceSpec
from gpulinear.errors import BackendError
from gpulinear.problem import Gemm, Matrix
from gpulinear.source import entry_name, render

LAYOUTS = {"NT": (True, True), "NN": (True, False), "TN": (False, False)}
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop, by opcode without modifiers."""

    mix: Counter[str]

    def share(self, *opcodes: str) -> float:
        """Share of these opcodes among all instructions of the loop."""
        return sum(self.mix[opcode] for opcode in opcodes) / max(1, self.mix.total())


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


def parse(text: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(opcode, operands) in order, and at which of them each label stands."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = _LABEL.match(line.strip())
        if label:
            labels[label.group(1)] = len(instructions)
        match = _INSTRUCTION.search(line)
        if match:
            instructions.append((match.group(2), match.group(3)))
    return instructions, labels


def hot_loop(text: str, opcode: str) -> Loop:
    """The shortest loop that holds at least half of all ``opcode``: from a label to the branch back to it."""
    instructions, labels = parse(text)
    wanted = sum(name.split(".")[0] == opcode for name, _ in instructions) / 2
    best: list[tuple[str, str]] = []
    for end, (name, operands) in enumerate(instructions):
        target = re.search(r"\.L_\w+", operands)
        if name.split(".")[0] != "BRA" or target is None or labels.get(target.group(0), end + 1) > end:
            continue
        body = instructions[labels[target.group(0)] : end + 1]
        if sum(n.split(".")[0] == opcode for n, _ in body) >= wanted and (not best or len(body) < len(best)):
            best = body
    return Loop(Counter(name.split(".")[0] for name, _ in best))


def disassemble(cubin: Path) -> str:
    """The machine code of a cubin as text."""
    done = subprocess.run([disassembler(), "-c", str(cubin)], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=__doc__)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    options = parser.parse_args()
    opcode = "FFMA" if options.dtype == "float32" else "DFMA"
    table = Table(title=f"gemm_simt, {options.dtype}, {options.arch}: hot loop (no GPU needed, no time measured)")
    for column in ("layout", "tile", "registers", "spills", "smem B", f"{opcode} share", "LDS share", "instructions"):
        table.add_column(column, justify="right")
    size = 4096
    for layout, (k_major_a, k_major_b) in LAYOUTS.items():
        a = Matrix("a", size, size, *((size, 1) if k_major_a else (1, size)), options.dtype)
        b = Matrix("b", size, size, *((1, size) if k_major_b else (size, 1)), options.dtype)
        d = Matrix("d", size, size, size, 1, options.dtype)
        gemm = Gemm("linear", a, b, d, "ieee" if options.dtype == "float32" else None)
        for config, refused in candidates(gemm, DeviceSpec.preset(options.arch)):
            if refused:
                continue
            artifact = compile_kernel(render(config), entry=entry_name(config.family), arch=options.arch)
            loop = hot_loop(disassemble(artifact.cubin_path), opcode)
            used = artifact.resources
            table.add_row(
                layout,
                config.tile,
                str(used.registers),
                str(used.spill_stores),
                str(config.smem_bytes),
                f"{100 * loop.share(opcode):.1f} %",
                f"{100 * loop.share('LDS'):.1f} %",
                str(loop.mix.total()),
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
