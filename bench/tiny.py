"""A short run of the kernels for tools that watch a process: ``python -m bench.tiny [--case JSON]``. Needs a GPU.

Without a case: every family, layout and tile once on small operands, for compute-sanitizer. With one (a
``measure.case.Case`` as JSON): that call three times, for a profiler, the first of them to compile and load.
"""

from __future__ import annotations

import argparse
import json

from gpulinear import check, gemm
from gpulinear.device import live_spec
from gpulinear.measure.case import Case

from .prove_kernels import arguments_of, case_operands, emulator_cases, results_of


def run_all() -> int:
    """Run every case of every dtype; returns how many calls were made."""
    import cupy

    count, arch = 0, live_spec(0).arch
    for dtype in check.DTYPES:
        for case in emulator_cases(dtype, arch):
            host = case_operands(case, dtype)
            with gemm.planning(case.options):
                results_of(case, arguments_of(case, host, cupy))
            count += 1
    cupy.cuda.runtime.deviceSynchronize()
    return count


def run_case(case: Case) -> int:
    """Run one case three times on the same operands; returns how many calls were made."""
    import cupy

    from gpulinear.measure.operands import operand_sets
    from gpulinear.measure.providers.ours import Ours

    free, _ = cupy.cuda.runtime.memGetInfo()
    sets = operand_sets(case, cupy, 0, free)
    call = Ours(live_spec(0).arch).prepare(case, sets)
    for again in range(3):
        call(again % len(sets))
    cupy.cuda.runtime.deviceSynchronize()
    return 3


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.tiny", description=__doc__)
    parser.add_argument("--case", type=json.loads, help="a measured case as JSON")
    options = parser.parse_args(arguments)
    count = run_case(Case.from_json(options.case)) if options.case else run_all()
    print(f"{count} calls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
