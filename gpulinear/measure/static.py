"""What is known of each kernel without a GPU: resources, what fits on an SM, its hot loop, and its memory requests.

Resources are ptxas's own report. The hot loop is read from the machine code by nvdisasm, where that is installed. Requests
are counted by the emulator on one tile. Nothing here is a time, and none can be derived from it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backends import emulator
from ..compile import Artifact, compile_kernel
from ..device import DeviceSpec
from ..errors import BackendError, KernelFault
from ..source import entry_name, render
from . import sass
from .occupancy import occupancy
from .variants import DTYPES, Variant, variants

# The instruction that does a family's work: its hot loop is the one with most of them. A kernel that only moves data
# works by loading it.
WORK = {
    "gemm_simt": "FFMA",
    "gemm_mma": "HMMA",
    "gemm_wgmma": "HGMMA",
    "joint_gemm_simt": "FFMA",
    "joint_gemm_mma": "HMMA",
    "joint_gemm_wgmma": "HGMMA",
    "column_sum": "LDG",
    "act_grad": "LDG",
    "ordered_reduce": "LDG",
    "strided_copy": "LDG",
    "split_planes": "LDG",
}
_IN_FLOAT64 = {"FFMA": "DFMA", "HMMA": "DMMA"}


@dataclass(frozen=True)
class Row:
    """One kernel. Sizes in bytes; figures that could not be had are None, and ``notes`` says why."""

    name: str
    family: str
    layout: str
    tile: str
    dtype: str
    precision: str | None
    arch: str
    threads: int
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_smem: int
    dynamic_smem: int
    blocks_per_sm: int
    warps_per_sm: int
    limits: tuple[str, ...]
    compiler: str  # version of NVRTC, as in "13.5.37"
    work: str  # the opcode that does the work
    loop: dict[str, int] | None  # instructions of the hot loop by kind (sass.kind)
    local_accesses: int | None  # loads and stores of local memory in the whole kernel
    bank_ratio: float | None  # wavefronts of shared memory over the fewest possible; None: no such requests
    sector_ratio: float | None  # sectors of global memory over the fewest possible
    notes: tuple[str, ...]

    @property
    def smem(self) -> int:
        """Shared memory of a block, static and dynamic."""
        return self.static_smem + self.dynamic_smem

    @property
    def loop_instructions(self) -> int | None:
        """Instructions of one pass of the hot loop."""
        return None if self.loop is None else sum(self.loop.values())

    def share(self, *kinds: str) -> float | None:
        """Share of the hot loop that these kinds have, whatever their width."""
        if self.loop is None or self.loop_instructions is None:
            return None
        chosen = sum(count for kind, count in self.loop.items() if kind.partition(".")[0] in kinds)
        return chosen / max(1, self.loop_instructions)

    @property
    def defects(self) -> tuple[str, ...]:
        """What no kernel may have, whatever compiled it."""
        found = [
            f"{count} {what}"
            for count, what in (
                (self.spill_stores, "bytes of spill stores"),
                (self.spill_loads, "bytes of spill loads"),
                (self.stack, "bytes of stack"),
                (self.local_accesses or 0, "accesses to local memory"),
            )
            if count
        ]
        return tuple(found + ([] if self.blocks_per_sm else ["no block fits on an SM"]))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def work_opcode(variant: Variant) -> str:
    """The opcode that does the work of a kernel; empty for a family that ``WORK`` does not know."""
    opcode = WORK.get(variant.config.family, "")
    return _IN_FLOAT64.get(opcode, opcode) if variant.call.dtype == "float64" else opcode


def compiled(variant: Variant) -> Artifact:
    """The kernel, from memory, disk or NVRTC."""
    return compile_kernel(render(variant.config), entry=entry_name(variant.config.family), arch=variant.arch)


def compiler_version(artifact: Artifact) -> str:
    """The version of NVRTC that made a kernel, down to the patch: another patch may allocate registers otherwise."""
    found = re.search(r"release [0-9.]+, V([0-9.]+)", artifact.ptx)
    return found.group(1) if found else artifact.nvrtc


def _machine_code(
    variant: Variant, cubin: Path, opcode: str, notes: list[str]
) -> tuple[dict[str, int] | None, int | None]:
    """The mix of the hot loop and the accesses to local memory."""
    try:
        text = sass.disassemble(cubin)
    except BackendError as error:
        notes.append(str(error))
        return None, None
    # The epilogue of a product has FMAs too, in a loop that stores.
    loop = sass.hot_loop(text, opcode, never=("STG",) if variant.layout else ())
    if not opcode:
        notes.append("WORK in measure/static.py does not know this family")
    elif loop is None and variant.layout:  # a kernel that moves data may do without a loop
        notes.append(f"no loop holds {opcode}")
    return None if loop is None else dict(sorted(loop.mix.items())), sass.local_accesses(text)


def _requests(variant: Variant, notes: list[str]) -> tuple[float | None, float | None]:
    """Wavefronts and sectors over the fewest possible, in the emulator; not of more than a segment of K, which takes long."""
    if variant.long:
        return None, None
    call = variant.call.build()
    try:
        emulator.execute(variant.call.plan(call, variant.arch), call.problems, call.arrays)
    except KernelFault as error:
        notes.append(" ".join(str(error).splitlines()[:2]))  # the first finding of maybe hundreds
        return None, None
    counters = emulator.last_results()[variant.step][1].counters
    totals = (counters.total("shared"), counters.total("global"))
    banks, sectors = (round(total.ratio, 4) if total.requests else None for total in totals)
    return banks, sectors


def examine(variant: Variant, *, resources_only: bool = False) -> Row:
    """Compile one kernel, and unless ``resources_only`` disassemble it and run it in the emulator.

    Raises:
        BackendError: NVRTC is missing or does not know the arch. CompileError: the kernel does not compile.
    """
    notes: list[str] = []
    config, work = variant.config, work_opcode(variant)
    artifact = compiled(variant)
    used = artifact.resources
    dynamic = getattr(config, "smem_bytes", 0)
    resident = occupancy(used.registers, used.static_smem + dynamic, config.threads, DeviceSpec.preset(variant.arch))
    loop, local = (None, None) if resources_only else _machine_code(variant, artifact.cubin_path, work, notes)
    banks, sectors = (None, None) if resources_only else _requests(variant, notes)
    return Row(
        name=variant.name,
        family=config.family,
        layout=variant.layout,
        tile=variant.tile,
        dtype=variant.call.dtype,
        precision=variant.precision,
        arch=variant.arch,
        threads=config.threads,
        registers=used.registers,
        spill_stores=used.spill_stores,
        spill_loads=used.spill_loads,
        stack=used.stack_frame,
        static_smem=used.static_smem,
        dynamic_smem=dynamic,
        blocks_per_sm=resident.blocks,
        warps_per_sm=resident.warps,
        limits=resident.limits,
        compiler=compiler_version(artifact),
        work=work,
        loop=loop,
        local_accesses=local,
        bank_ratio=banks,
        sector_ratio=sectors,
        notes=tuple(notes),
    )


def examine_all(chosen: Sequence[Variant], workers: int | None = None) -> Iterator[Row]:
    """The rows of ``chosen``, in order, as they become known.

    ``workers`` is the number of processes (NVRTC compiles one kernel at a time in each); 1 stays in this one, None takes
    as many as there are CPUs.
    """
    workers = min(workers or os.cpu_count() or 1, len(chosen))
    if workers <= 1:
        yield from map(examine, chosen)
        return
    # Not forked: this process may hold NVRTC's locks, or a driver.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(examine, chosen)


def collect(
    archs: Iterable[str],
    families: Iterable[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    views: Sequence[str] = ("contiguous",),
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """What is known of every kernel that plans for ``archs`` may launch.

    Args:
        archs: such as "sm_90a".
        families, dtypes, views: as for ``variants``.
        workers: as for ``examine_all``.
        progress: called with (done, total) after each kernel.

    Raises:
        BackendError: unknown arch, or NVRTC is missing or does not know it. CompileError: a kernel does not compile.
    """
    known = None if families is None else tuple(families)
    chosen = [variant for arch in archs for variant in variants(arch, known, dtypes, views)]
    rows = []
    for row in examine_all(chosen, workers):
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(chosen))
    return rows
