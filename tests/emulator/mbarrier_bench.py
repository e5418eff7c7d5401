"""A CTA (or a cluster) with an mbarrier that all threads know, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulator.fakes import Bench

BAR = 64
DATA = 256


def at(address: int, lanes: int = 1) -> Any:
    return np.full(lanes, address, np.int64)


def u32(*values: int) -> Any:
    return np.array(values, np.uint32)


class Case(Bench):
    """A bench with an mbarrier at BAR, initialised by thread 0 and known to all."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.run("mbarrier.init.shared::cta.b64", at(BAR), u32(count), threads=0)
        self.everyone()

    def everyone(self) -> None:
        clocks = self.cta.cluster.clocks
        clocks.barrier(np.arange(clocks.agents))

    def arrive(self, threads: Any = 0, form: str = "", address: int = BAR, cta: int = 0) -> Any:
        space = "" if "shared" in form else ".shared::cta"
        lanes = np.size(threads)
        return self.run(f"mbarrier.arrive{form}{space}.b64", at(address, lanes), threads=threads, cta=cta)

    def test(self, parity: int, threads: Any = 0, sem: str = "", cta: int = 0) -> bool:
        lanes = np.size(threads)
        name = f"mbarrier.test_wait.parity{sem}.shared::cta.b64"
        got = self.run(name, at(BAR, lanes), np.full(lanes, parity, np.uint32), threads=threads, cta=cta)
        assert got.dtype == np.bool_ and (got == got[0]).all()
        return bool(got[0])

    def write(self, thread: int, offset: int = DATA, cta: int = 0) -> None:
        self.run("st.shared.u32", at(offset), [u32(1)], None, threads=thread, cta=cta)

    def read(self, thread: int, offset: int = DATA, cta: int = 0) -> None:
        self.run("ld.shared.u32", at(offset), None, threads=thread, cta=cta)

    def leave(self, cta: int = 0) -> None:
        self.ctas[cta].live[:] = False
        self.ctas[cta].exit()
