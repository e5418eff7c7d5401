"""What ``import gpulinear`` costs a fresh process, beside NumPy alone and an interpreter that imports nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.parametrize("statement", ["pass", "import numpy", "import gpulinear"])
def test_start_of_a_process(benchmark: Any, statement: str) -> None:
    benchmark.group = "import"
    benchmark.pedantic(
        subprocess.run, ([sys.executable, "-c", statement],), {"check": True}, rounds=10, warmup_rounds=1
    )
