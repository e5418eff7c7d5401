"""The house rules that a machine can check: import directions, import cost, docstrings."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gpulinear as gl

PACKAGE = Path(gl.__file__).parent

# Who may import whom inside the package (docs/design.md, "The house"). Every module is listed.
ALLOWED = {
    "errors": set(),
    "problem": set(),
    "params": set(),
    "reference": set(),
    "cache": set(),
    "ledger": {"cache", "compile", "errors"},
    "views": {"errors", "planes", "problem"},
    "device": {"errors", "compile"},
    "tensormap": {"errors", "problem"},
    "planes": {"configs", "problem"},
    "configs": {"device", "problem", "tensormap"},
    "config": {"configs", "device", "errors", "problem", "tensormap"},
    "cost": {"config", "device", "problem"},
    "plan": {"config", "cost", "tensormap"},
    "tuning": {"cache", "config", "configs", "device", "errors", "problem"},
    "builder": {"config", "cost", "device", "errors", "params", "plan", "problem", "views"},
    "splits": {"builder", "config", "configs", "cost", "plan", "planes", "problem"},
    "wgmma": {"builder", "config", "cost", "plan", "problem", "tensormap"},
    "columns": {"builder", "config", "cost", "plan", "problem"},
    "joint": {"config", "cost", "device", "plan", "problem"},
    "planner": {
        "builder",
        "columns",
        "config",
        "cost",
        "device",
        "errors",
        "joint",
        "plan",
        "problem",
        "splits",
        "tuning",
        "wgmma",
    },
    "source": {"config", "params"},
    "compile": {"cache", "errors"},
    "launch": {"compile", "params", "plan", "source", "tensormap"},
    "gemm": {"device", "errors", "plan", "planner", "problem", "tuning", "views", "backends"},
    "calls": {"configs", "gemm", "errors", "planes", "problem", "views"},
    "linear": {"calls", "gemm", "planes"},
    "layer": {"calls", "gemm", "linear", "errors", "problem", "views"},
    "explain": {"calls", "gemm", "launch", "device", "errors", "plan", "views", "backends"},
    "backends": {
        "emulator",
        "reference",
        "planes",
        "problem",
        "device",
        "errors",
        "launch",
        "plan",
        "tensormap",
        "views",
    },
    "testing": {"reference", "testing"},
    "check": {"backends", "config", "device", "gemm", "linear", "problem", "testing", "views"},
    "train": {"device", "gemm", "launch", "layer", "errors", "views"},
    "info": {"", "ledger", "cache", "compile", "config", "device", "errors", "gemm", "tuning"},
    "measure": {
        "",
        "backends",
        "builder",
        "calls",
        "compile",
        "config",
        "device",
        "errors",
        "explain",
        "gemm",
        "linear",
        "params",
        "plan",
        "planner",
        "problem",
        "reference",
        "source",
        "testing",
        "tuning",
        "views",
    },
    "cli_bench": {"config", "device", "errors", "gemm", "measure", "problem"},
    "cli_tune": {"device", "errors", "gemm", "measure", "problem", "tuning"},
    "cli": {"", "check", "cli_bench", "cli_tune", "errors", "explain", "info", "train", "views"},
    "emulator": {"emulator"},
    "": {"errors", "explain", "gemm", "layer", "linear", "planes", "views"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of the package's modules that a file imports; "" is the package itself."""
    found = set()
    depth = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level <= depth:
                continue  # inside its own sub-package
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found |= {"" if name == "__version__" else name for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpulinear"):
            parts = (node.module or "").split(".")
            found.add(parts[1] if len(parts) > 1 else "")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    module = "" if parts == ("__init__",) else parts[0]
    assert imported(path) <= ALLOWED[module], path
    if "emulator" in imported(path):
        assert parts[0] == "emulator" or parts == ("backends", "emulator")
    text = path.read_text()
    assert "import tests" not in text and "import bench" not in text


def test_import_brings_in_neither_cupy_nor_cuda_nor_the_command_line() -> None:
    code = "import sys, gpulinear; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("cupy", "cuda", "typer", "rich", "sklearn", "matplotlib"):
        assert f"'{name}'" not in loaded
    code = "import sys, gpulinear; print([m for m in sys.modules if m.startswith('gpulinear.emulator')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [n for n in gl.__all__ if inspect.isfunction(inspect.unwrap(getattr(gl, n)))])
def test_public_docstrings_are_complete(name: str) -> None:
    text = inspect.getdoc(getattr(gl, name)) or ""
    for part in ("Args:", "Raises:", "Source:"):
        assert part in text, f"{name} lacks {part}"
