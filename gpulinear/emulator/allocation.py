"""Allocations in global memory: where they lie, their bytes, and the host's access to them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.block import ROUND, Block, Region, regions_of
from gpulinear.emulator.errors import LaunchError
from gpulinear.emulator.ir import Variable
from gpulinear.emulator.shape import Shape
from gpulinear.emulator.spaces import GLOBAL_BASE

Array = npt.NDArray[Any]

RED_ZONE = 512
"""Bytes at least between two allocations."""


class Allocation(Block):
    """One allocation: its bytes, who wrote them in the present launch, and what was read as read-only data."""

    def __init__(self, start: int, nbytes: int, valid: Array | None, label: str, readonly: bool, space: str) -> None:
        self.base = start // ROUND * ROUND
        self.start = start
        self.nbytes = nbytes
        self.label = label
        self.readonly = readonly
        self.space = space
        lead = start - self.base
        regions = [Region(lead, lead + nbytes, self.label)] if nbytes else []
        super().__init__(lead + nbytes, regions if valid is None else regions_of(valid, self.label, lead))
        self.stamps: Array | None = None
        self.nc_reads: set[tuple[Shape, int]] = set()
        self._nc: Array | None = None

    def begin_launch(self) -> None:
        """Forget who accessed what."""
        self.stamps = None
        self.nc_reads.clear()
        self._nc = None

    def stamps_of(self, shape: Shape, base: int) -> Array:
        """The stamps of the accessed bytes, [lanes, bytes]."""
        assert self.stamps is not None
        if shape.run:
            return self.stamps[base : base + len(shape.units) * shape.nbytes].reshape(-1, shape.nbytes)
        if shape.aligned:
            rows = self.stamps.reshape(-1, shape.nbytes)
            return rows.take(shape.units + (base >> shape.shift), axis=0)
        found: Array = self.stamps[(shape.relative + base)[:, None] + np.arange(shape.nbytes)]
        return found

    def mark(self, shape: Shape, base: int, stamps: Array) -> None:
        """Stamp the accessed bytes: one stamp for each lane."""
        assert self.stamps is not None
        if shape.run:
            self.stamps[base : base + len(stamps) * shape.nbytes].reshape(-1, shape.nbytes)[:] = stamps[:, None]
        elif shape.aligned:
            self.stamps.reshape(-1, shape.nbytes)[shape.units + (base >> shape.shift)] = stamps[:, None]
        else:
            self.stamps[(shape.relative + base)[:, None] + np.arange(shape.nbytes)] = stamps[:, None]

    def read_by_nc(self, shape: Shape, base: int) -> Array:
        """For each lane whether it accesses bytes that ld.global.nc has read."""
        if self._nc is None:
            self._nc = np.zeros(len(self.bytes), bool)
        for other, at in self.nc_reads:
            self._nc[(other.relative + at)[:, None] + np.arange(other.nbytes)] = True
        self.nc_reads.clear()
        return np.asarray(self._nc[(shape.relative + base)[:, None] + np.arange(shape.nbytes)].any(axis=1))

    @property
    def nc_read(self) -> bool:
        """Whether ld.global.nc has read anything here."""
        return bool(self.nc_reads) or self._nc is not None


class Arena:
    """All allocations, ascending, and what the host does with them."""

    def __init__(self) -> None:
        self._allocations: list[Allocation] = []
        self._starts: list[int] = []
        self._end = GLOBAL_BASE

    def alloc(
        self,
        data: int | npt.ArrayLike,
        *,
        align: int = 256,
        initialised: bool = True,
        valid_mask: Array | None = None,
        readonly: bool = False,
        name: str = "",
        space: str = "global",
    ) -> int:
        """Allocate memory.

        Args:
            data: a number of bytes, or an array whose bytes are copied.
            align: the address is a multiple of this, and not of more: a kernel may not rely on more either.
            initialised: False: the bytes count as never written (and hold 0xFF) whatever ``data`` is.
            valid_mask: a bool for each byte: which may be accessed (the gaps of a strided view may not).
            readonly: writes are reported.
            name: for reports.
            space: "global" or "const".

        Returns:
            The address.
        """
        if align < 1 or align & (align - 1):
            raise LaunchError(f"align must be a power of two, got {align}")
        content = None if isinstance(data, int) else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        nbytes = data if isinstance(data, int) else np.asarray(data).nbytes
        if valid_mask is not None and len(valid_mask) != nbytes:
            raise LaunchError(f"valid_mask must have an entry for each of the {nbytes} bytes, got {len(valid_mask)}")
        start = -(-(self._end + RED_ZONE) // (2 * align)) * 2 * align + align
        label = f"allocation '{name}'" if name else f"the allocation at {start:#x}"
        block = Allocation(start, nbytes, valid_mask, label, readonly, space)
        if initialised:
            block.store(start - block.base, np.zeros(nbytes, np.uint8) if content is None else content)
            block.complete = True
        self._allocations.append(block)
        self._starts.append(start)
        self._end = start + nbytes
        return start

    def place(self, variable: Variable) -> int:
        """Allocate a .global or .const variable of a module; without initial values it is zero (PTX ISA 5.4.4)."""
        data = np.frombuffer(variable.data, np.uint8) if variable.data is not None else variable.size or 0
        address = self.alloc(
            data, align=variable.align, readonly=variable.space == "const", name=variable.name, space=variable.space
        )
        self._allocations[-1].label = f"variable '{variable.name}'"
        return address

    def view(self, address: int, nbytes: int) -> Array:
        """The bytes of a part of an allocation, in place."""
        block = self._host_block(address, nbytes)
        return block.bytes[address - block.base : address - block.base + nbytes]

    def fill(self, address: int, data: npt.ArrayLike) -> None:
        """Copy an array into an allocation; the bytes count as written."""
        content = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        block = self._host_block(address, len(content))
        block.store(address - block.base, content)

    def _host_block(self, address: int, nbytes: int) -> Allocation:
        block = self.allocation_at(address)
        if block is None or address + nbytes > block.start + block.nbytes:
            raise LaunchError(f"{nbytes} bytes at {address:#x} are not in one allocation")
        return block

    def allocation_at(self, address: int) -> Allocation | None:
        """The allocation that an address lies in."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._starts[index] + self._allocations[index].nbytes:
            return None
        return self._allocations[index]
