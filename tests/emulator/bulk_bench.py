"""A CTA (or a cluster) with an mbarrier and some global memory, for tests of bulk copies and TMA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.emulator.fakes import Bench

BAR = 16384
POLICIES = pytest.mark.parametrize("policy", ["late", "early", "random"])


def at(address: int) -> Any:
    return np.array([address], np.int64)


def u32(value: int) -> Any:
    return np.array([value], np.uint32)


class Case(Bench):
    """24 KiB of shared memory with an mbarrier at BAR (count 1), and 8 KiB of global memory that hold random bytes."""

    def __init__(self, policy: str = "late", *, count: int = 1, fenced: bool = True, **options: Any) -> None:
        super().__init__(**({"smem": 24576, "proxies": True} | options))
        self.cta.cluster.engine.policy = policy
        self.bytes = np.random.default_rng(3).integers(0, 256, 8192).astype(np.uint8)
        self.src = self.memory.alloc(self.bytes, name="src")
        self.out = self.memory.alloc(8192, initialised=False, name="out")
        for cta in range(len(self.ctas)):
            self.run("mbarrier.init.shared::cta.b64", at(BAR), u32(count), threads=0, cta=cta)
            if fenced:
                self.ctas[cta].cluster.clocks.fence_inits(np.array([self.ctas[cta].first_agent]))
        self.everyone()

    def everyone(self) -> None:
        clocks = self.cta.cluster.clocks
        clocks.barrier(np.arange(clocks.agents))

    def finish(self) -> None:
        self.cta.cluster.engine.drain()

    def expect(self, nbytes: int, cta: int = 0) -> None:
        self.run("mbarrier.arrive.expect_tx.shared::cta.b64", at(BAR), u32(nbytes), threads=0, cta=cta)

    def done(self, thread: int = 40, parity: int = 0, cta: int = 0) -> bool:
        name = "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64"
        return bool(self.run(name, at(BAR), u32(parity), threads=thread, cta=cta)[0])

    def read(self, thread: int, offset: int, cta: int = 0) -> None:
        self.run("ld.shared.u32", at(offset), None, threads=thread, cta=cta)

    def write(self, thread: int, offset: int, cta: int = 0) -> None:
        self.run("st.shared.u32", at(offset), [u32(1)], None, threads=thread, cta=cta)

    def put(self, offset: int, data: Any, thread: int = 0, cta: int = 0) -> None:
        """Thread writes bytes to shared memory, then fences for the async proxy."""
        for i in range(0, len(data), 16):
            words = [data[i + 4 * k : i + 4 * k + 4].view(np.uint32) for k in range(4)]
            self.run("st.shared.v4.u32", at(offset + i), words, None, threads=thread, cta=cta)
        self.ctas[cta].cluster.clocks.fence_proxy(np.array([thread + self.ctas[cta].first_agent]))

    def shared(self, offset: int, nbytes: int, cta: int = 0) -> Any:
        return self.ctas[cta].shared.bytes[offset : offset + nbytes]

    def result(self, nbytes: int, start: int = 0) -> Any:
        return self.memory.view(self.out + start, nbytes)

    def leave(self, cta: int = 0) -> None:
        self.ctas[cta].live[:] = False
        self.ctas[cta].exit()


LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.global.shared::cta.bulk_group"


def load(case: Case, to: int, start: int, nbytes: int, thread: int = 0, name: str = LOAD, bar: int = BAR) -> None:
    case.run(name, at(to), at(case.src + start), u32(nbytes), at(bar), threads=thread)


def commit(case: Case, thread: int = 0) -> None:
    case.run("cp.async.bulk.commit_group", threads=thread)


def wait(case: Case, recent: int = 0, read: str = "", thread: int = 0) -> None:
    case.run(f"cp.async.bulk.wait_group{read}", recent, threads=thread)
