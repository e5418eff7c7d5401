"""Global (and constant) memory: what the threads of a launch do to it, and the checks of every access."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import memory_faults as faults
from gpulinear.emulator.allocation import Allocation, Arena
from gpulinear.emulator.block import Step, unit_type
from gpulinear.emulator.global_order import PLAIN, WEAK, GlobalOrder, How, order_of
from gpulinear.emulator.ir import Instruction
from gpulinear.emulator.lanes import Lanes
from gpulinear.emulator.shape import Shape, shape_of

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

Array = npt.NDArray[Any]


class GlobalMemory(Arena):
    """The device memory that kernels are launched on; it outlives launches."""

    def __init__(self) -> None:
        super().__init__()
        self._launch: Any = None
        self.order = GlobalOrder()

    def begin_launch(self, launch: Any) -> None:
        """Forget who wrote what in the launch before; called by the first access of a launch."""
        self._launch = launch
        self.order = GlobalOrder()
        for block in self._allocations:
            block.begin_launch()

    # Accesses of threads

    def read(
        self,
        lanes: Lanes,
        address: Array,
        nbytes: int,
        *,
        align: int | None = None,
        how: How = PLAIN,
        space: str = "",
        requests: bool = True,
    ) -> Array:
        """What the lanes read: one unit of ``nbytes`` for each; faulting lanes get poison.

        ``space`` is "global" or "const" if the instruction names one. ``requests``: count sectors, not only bytes.
        """
        if lanes.cta.launch is not self._launch:
            self.begin_launch(lanes.cta.launch)
        shape, first = shape_of(address, nbytes, lanes.threads)
        block = self._around(first + shape.low, first + shape.high)
        if block is not None and faults.fits(shape, address, align):
            return self._read_in(lanes, block, shape, first - block.base, address, how, space, requests)
        result = faults.poison(len(address), nbytes)
        for block, which in self._admit(lanes, "reads", address, nbytes, align):
            part, near = _pick(lanes, which), address[which]
            shape, first = shape_of(near, nbytes, part.threads)
            result[which] = self._read_in(part, block, shape, first - block.base, near, how, space, requests)
        return result

    def write(
        self,
        lanes: Lanes,
        address: Array,
        units: Array,
        nbytes: int,
        *,
        align: int | None = None,
        how: How = PLAIN,
        requests: bool = True,
        column: int | None = None,
        value: int = 0,
    ) -> None:
        """The lanes write units of ``nbytes``; faulting lanes write nothing.

        ``column`` and ``value``: of the asynchronous operation (clocks.py) that writes for the lanes.
        """
        if lanes.cta.launch is not self._launch:
            self.begin_launch(lanes.cta.launch)
        shape, first = shape_of(address, nbytes, lanes.threads)
        block = self._around(first + shape.low, first + shape.high)
        if block is not None and faults.fits(shape, address, align):
            self._write_in(lanes, block, shape, first - block.base, address, units, how, requests, column, value)
            return
        for block, which in self._admit(lanes, "writes", address, nbytes, align):
            part, near = _pick(lanes, which), address[which]
            shape, first = shape_of(near, nbytes, part.threads)
            at = first - block.base
            self._write_in(part, block, shape, at, near, units[which], how, requests, column, value)

    def update(
        self,
        lanes: Lanes,
        address: Array,
        dtype: np.dtype[Any],
        count: int,
        step: Step,
        how: How,
        *,
        column: int | None = None,
        value: int = 0,
    ) -> Array:
        """Atomic read-modify-writes of ``count`` elements each (see ``Block.update``); faulting lanes see poison.

        ``column`` and ``value``: as for ``write``.
        """
        if lanes.cta.launch is not self._launch:
            self.begin_launch(lanes.cta.launch)
        nbytes = dtype.itemsize * count
        seen = faults.poison(len(address), nbytes).view(dtype).reshape(-1, count)
        for block, which in self._admit(lanes, "updates", address, nbytes, None):
            part, near = _pick(lanes, which), address[which]
            if block.readonly:
                faults.read_only(part, block.label, near)
                continue
            shape, first = shape_of(near, nbytes, part.threads)
            base = first - block.base
            self._check_read(part, block, shape, base, near, "updates")
            self._note_write(part, block, shape, base, near, how, column, value)

            def turn(old: Array, chosen: Array, which: Array = which) -> Array:
                return step(old, which[chosen])

            seen[which] = block.update(shape, base, dtype, turn)
            self.order.updated(part, near, nbytes, how)
            _count(part, shape, "read", True)
            _count(part, shape, "write", False)
        return seen

    def fence(self, lanes: Lanes, scope: str = "gpu", sem: str = "acq_rel") -> None:
        """A memory fence of these lanes: call it before ``Clocks.fence_memory`` of the same fence."""
        self.order.fence(lanes, scope, sem)

    # Accesses of asynchronous operations

    def async_read(
        self, cta: Cta, thread: int, instruction: Instruction, address: Array, nbytes: int, *, align: int = 1
    ) -> Array:
        """Rows of ``nbytes`` bytes read for a thread, uint8 [rows, nbytes]; call it when the operation reads."""
        lanes = Lanes(cta, np.full(len(address), thread), instruction)
        return self.read(lanes, address, nbytes, align=align, requests=False).view(np.uint8).reshape(-1, nbytes)

    def async_write(
        self,
        cta: Cta,
        thread: int,
        instruction: Instruction,
        address: Array,
        data: Array,
        *,
        align: int = 1,
        column: int | None = None,
        value: int = 0,
    ) -> None:
        """Rows of bytes (uint8 [rows, bytes]) written for a thread; others have to know ``column`` up to ``value``."""
        nbytes = data.shape[1]
        lanes = Lanes(cta, np.full(len(address), thread), instruction)
        units = np.ascontiguousarray(data).reshape(-1).view(unit_type(nbytes))
        self.write(lanes, address, units, nbytes, align=align, requests=False, column=column, value=value)

    def readable(self, lanes: Lanes, address: Array, nbytes: int, align: int) -> None:
        """Report addresses at which ``nbytes`` cannot be read, and read nothing."""
        self._admit(lanes, "points to", address, nbytes, align)

    # Checks

    def _around(self, start: int, stop: int) -> Allocation | None:
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return None
        block = self._allocations[index]
        return block if block.within(start - block.base, stop - block.base) else None

    def _admit(
        self, lanes: Lanes, verb: str, address: Array, nbytes: int, align: int | None
    ) -> list[tuple[Allocation, Array]]:
        """The lanes that may go on, by allocation; the others are reported."""
        ok = faults.aligned(lanes, verb, address, nbytes, nbytes if align is None else align)
        index = np.searchsorted(self._starts, address, side="right") - 1
        parts: list[tuple[Allocation, Array]] = []
        inside = np.zeros(len(address), bool)
        for number in np.unique(index[index >= 0]).tolist():
            block = self._allocations[number]
            which = np.flatnonzero(index == number)
            which = which[block.inside(address[which] - block.base, nbytes)]
            inside[which] = True
            which = which[ok[which]]
            if len(which):
                parts.append((block, which))
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            near = max(0, int(index[first]))
            places = [(b.start, b.nbytes, b.label) for b in self._allocations[near : near + 2]]
            where = faults.nearest(int(address[first]), nbytes, places)
            faults.out_of_bounds(lanes, verb, address, ~inside, nbytes, where)
        return parts

    def _read_in(
        self,
        lanes: Lanes,
        block: Allocation,
        shape: Shape,
        base: int,
        address: Array,
        how: How,
        space: str,
        requests: bool,
    ) -> Array:
        if space and block.space != space:
            faults.wrong_space(lanes, f"ld.{space} reads {block.label} of .{block.space}", address)
        self._check_read(lanes, block, shape, base, address, "reads")
        if block.stamps is not None:
            self._check_order(lanes, block, shape, base, address, how, "reads")
        if how.nc:
            block.nc_reads.add((shape, base))
        units = block.take(shape, base)
        self.order.read(lanes, address, how)
        _count(lanes, shape, "read", requests)
        return units

    def _write_in(
        self,
        lanes: Lanes,
        block: Allocation,
        shape: Shape,
        base: int,
        address: Array,
        units: Array,
        how: How,
        requests: bool,
        column: int | None,
        value: int,
    ) -> None:
        if block.readonly:
            faults.read_only(lanes, block.label, address)
            return
        if how.level == WEAK and not shape.distinct:
            lanes.report(
                "write conflict",
                f"several lanes write the same bytes of {block.label} in one instruction",
                "let one lane write, or use an atomic",
                address=int(address[0]),
            )
        self._note_write(lanes, block, shape, base, address, how, column, value)
        block.put(shape, base, units)
        self.order.wrote(lanes, address, shape.nbytes, how)
        _count(lanes, shape, "write", requests)

    @staticmethod
    def _check_read(lanes: Lanes, block: Allocation, shape: Shape, base: int, address: Array, verb: str) -> None:
        if not block.initialised(shape, base):
            which = block.uninitialised(address - block.base, shape.nbytes)
            faults.uninitialised(lanes, verb, address, which, block.label)

    def _note_write(
        self,
        lanes: Lanes,
        block: Allocation,
        shape: Shape,
        base: int,
        address: Array,
        how: How,
        column: int | None,
        value: int,
    ) -> None:
        """Check a write against the accesses before it, and stamp its bytes."""
        if block.stamps is None:
            block.stamps = np.zeros(len(block.bytes), np.uint32)
        else:
            self._check_order(lanes, block, shape, base, address, how, "writes")
        if block.nc_read and (which := block.read_by_nc(shape, base)).any():
            _report_nc(lanes, block, address, which, "writes bytes that were read with ld.global.nc")
        stamp = self.order.stamp(order_of(lanes.cta), lanes.instruction, how, column, value)
        block.mark(shape, base, (stamp + lanes.threads).astype(np.uint32))

    def _check_order(
        self, lanes: Lanes, block: Allocation, shape: Shape, base: int, address: Array, how: How, verb: str
    ) -> None:
        stamps = block.stamps_of(shape, base)
        if not np.count_nonzero(stamps):
            return
        if how.nc:
            written = np.asarray(stamps.any(axis=1))
            _report_nc(lanes, block, address, written, "reads with ld.global.nc bytes that were written")
        width = 1 if (stamps == stamps[:, :1]).all() else shape.nbytes
        flat = stamps[:, :width].reshape(-1)
        me = order_of(lanes.cta)
        if width == 1 and self.order.own(me, lanes.threads, flat):
            return
        bad = self.order.unordered(me, np.repeat(lanes.threads, width), flat, how)
        if not bad.any():
            return
        writer, thread = self.order.writer(int(flat[bad][0]))
        which = np.asarray(bad.reshape(-1, width).any(axis=1))
        lanes.report(
            "global race",
            f"{verb} bytes of {block.label} that thread {thread} of CTA {writer.cta} wrote at "
            f"{writer.instruction.where()}, with nothing that orders the two",
            "order them: a barrier inside the CTA; between CTAs a fence and a release on the writer's side and an "
            "acquire (and a fence) on the other; or use atomics",
            which=which,
            address=int(address[which][0]),
        )


def _pick(lanes: Lanes, which: Array) -> Lanes:
    return Lanes(lanes.cta, lanes.threads[which], lanes.instruction)


def _count(lanes: Lanes, shape: Shape, direction: str, requests: bool) -> None:
    counters = lanes.cta.launch.counters
    if requests and shape.aligned:
        counters.sectors(lanes.instruction, *shape.sectors, shape.requests)
    counters.moved("global", direction, len(shape.relative) * shape.nbytes)


def _report_nc(lanes: Lanes, block: Allocation, address: Array, which: Array, what: str) -> None:
    lanes.report(
        "non-coherent read",
        f"{what} in the same launch ({block.label})",
        "load with ld.global: no const __restrict__ pointer and no __ldg for data that the kernel writes",
        which=which,
        address=int(address[which][0]),
    )
