"""Bugs put into the emulator itself: each must make one quick check fail that passes without it.

A check runs a clean kernel (it must have right numbers and no finding), or one with a bug (it must be found as such), or
compares with a known result. ``-s`` shows which check notices what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator import (
    EmulatorError,
    GlobalMemory,
    block,
    bulk,
    descriptors,
    floats,
    fragments,
    loader,
    memory_faults,
    program,
    reductions,
    run,
    tensorcore,
    tensormap,
)
from gpulinear.emulator.barriers import NamedBarriers
from gpulinear.emulator.clocks import Clocks
from gpulinear.emulator.isa import async_copy, barrier, control, tma, warp, wgmma
from gpulinear.emulator.mbarrier import MBarrier
from gpulinear.emulator.race import SharedRaces
from tests.emulator import ring_kernels as kernels
from tests.emulator import test_mutants as bugs
from tests.emulator.ring_kernels import Outcome
from tests.emulator.test_mutants import CLUSTER, MMA_RING, TMA_RING, Mutant, verdict

Check = tuple[str, Callable[[], bool]]
Patch = Callable[[pytest.MonkeyPatch], None]

pytestmark = pytest.mark.usefixtures("compiled")


def clean(probe: Callable[..., Outcome], **options: Any) -> Check:
    """The kernel as it is passes."""
    shown = "".join(f", {name} {value}" for name, value in options.items())
    return f"clean {probe.__name__}{shown}", lambda: verdict(probe, [], options) is None


def found(mutants: list[Mutant], name: str, kind: str, **more: Any) -> Check:
    """A bug of test_mutants.py is found as this kind."""
    probe = {id(MMA_RING): bugs.mma_ring, id(TMA_RING): bugs.tma_ring, id(CLUSTER): bugs.cluster_sum}[id(mutants)]
    ((_, changes, options),) = [mutant for mutant in mutants if mutant[0] == name]
    return f"{kind}: {name}", lambda: (verdict(probe, changes, {**options, **more}) or "").startswith(kind)


SMALL = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out, .param .f32 a, .param .f32 b, .param .f32 c)
{
    .reg .b32 %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %d<4>;
    ld.param.u64 %d1, [out];
    ld.param.f32 %f1, [a];
    ld.param.f32 %f2, [b];
    ld.param.f32 %f3, [c];
    mov.u32 %r1, %tid.x;
    fma.rn.f32 %f4, %f1, %f2, %f3;
    shfl.sync.bfly.b32 %r2, %r1, 3, 31, -1;
    mul.wide.u32 %d2, %r1, 8;
    add.s64 %d3, %d1, %d2;
    st.global.v2.b32 [%d3], {%f4, %r2};
    ret;
}
"""


def small() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An fma whose exact sum lies just below a tie that float64 rounds to, and a shuffle."""
    memory = GlobalMemory()
    out = memory.alloc(8 * 32, initialised=False)
    operands = (2.0**-12 * (1 + 2.0**-15), 2.0**-12 * (1 - 2.0**-15), 1 + 2.0**-23)
    run(SMALL, None, 1, 32, 0, [out, *(np.float32(x) for x in operands)], memory=memory)
    pairs = memory.view(out, 8 * 32).view(np.uint32).reshape(32, 2).copy()
    return pairs[:, 0].view(np.float32), pairs[:, 1]


def two_small_products() -> bool:
    """1 + 2^-24 + 2^-24: 24 fraction bits hold both small products, 23 neither."""
    a, b = np.zeros((1, 8), np.float32), np.zeros((8, 8), np.float32)
    a[0, :3], b[:3, 0] = (1, 2.0**-12, 2.0**-12), (1, 2.0**-12, 2.0**-12)
    return bool(kernels.mma_ring(a, b).got[0, 0] == 1 + 2.0**-23)


FMA: Check = ("fma rounds once", lambda: bool((small()[0] == np.float32(1 + 2.0**-23)).all()))
SHUFFLE: Check = ("shfl.bfly", lambda: bool((small()[1] == np.arange(32) ^ 3).all()))
TENSOR: Check = ("sum of two small products", two_small_products)


def attribute(owner: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def item(table: Any, key: Any, value: Any) -> Patch:
    return lambda patch: patch.setitem(table, key, value)


def both(*patches: Patch) -> Patch:
    def apply(patch: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(patch)

    return apply


def nothing(*args: Any, **options: Any) -> None:
    return None


def yes(*args: Any, **options: Any) -> bool:
    return True


_from_rows, _targets, _reduce, _source = fragments.from_rows, bulk.targets, reductions.reduce_global, async_copy._source

MUTANTS: list[tuple[str, Patch, Check]] = [
    ("a barrier joins no clocks", attribute(Clocks, "barrier", Clocks.tick), clean(bugs.mma_ring)),
    ("__syncwarp orders nothing", attribute(Clocks, "warp_sync", nothing), clean(bugs.mma_ring)),
    ("barriers open at once", attribute(NamedBarriers, "_is_full", yes), clean(bugs.mma_ring, schedule="warps")),
    ("cp.async is no access", attribute(SharedRaces, "async_write", nothing),
     found(MMA_RING, "cp.async waits for one group too few", "shared race", completion="early")),
    ("cp.async waits are forgotten", attribute(Clocks, "learn_copies", nothing), clean(bugs.mma_ring)),
    ("cp.async ignores its source size", attribute(async_copy, "_source", lambda lanes, at, size, sizes: _source(
        lanes, at, size, np.full_like(sizes, size))), clean(bugs.mma_ring)),
    ("reads are no accesses", attribute(SharedRaces, "read", nothing),
     found(MMA_RING, "no barrier before the ring is reused", "shared race")),
    ("ldmatrix ignores .trans", attribute(fragments, "from_rows", lambda rows, trans: _from_rows(rows, False)),
     clean(bugs.mma_ring)),
    ("fragments of B as for 32 bits", attribute(fragments, "_right16", fragments._right32), clean(bugs.mma_ring)),
    ("one fraction bit less", item(tensorcore.STEPS[80], "bf16", tensorcore.Step(8, 23)), TENSOR),
    ("fma rounds twice", attribute(floats, "fma", lambda a, b, c, **options: (
        a.astype(np.float64) * b + c).astype(np.float32)), FMA),
    ("shuffles are off by one", item(warp._SOURCE, "bfly", lambda lane, b, low, high: (lane ^ b ^ 1, lane >= 0)), SHUFFLE),
    ("out of bounds is not reported", attribute(memory_faults, "out_of_bounds", nothing),
     found(MMA_RING, "no row guard of A", "out of bounds")),
    ("all bytes count as written", attribute(block.Block, "initialised", yes),
     found(MMA_RING, "a row of B is never written", "uninitialised read")),
    ("registers are not watched", attribute(loader, "maybe_unwritten", lambda program: frozenset()),
     found(MMA_RING, "accumulators are not cleared", "uninitialised register")),
    ("TMA does not swizzle", attribute(tensormap.TensorMap, "chunks", lambda self, offset: np.arange(
        offset, offset + self.box_bytes, 16)), clean(bugs.tma_ring)),
    ("TMA fills with ones", attribute(tensormap.TensorMap, "empty_box", lambda self: np.full(
        (*self.box[:0:-1], self.box_bytes // int(np.prod(self.box[1:]))), 0x3F, np.uint8)), clean(bugs.tma_ring)),
    ("wgmma does not swizzle", attribute(descriptors, "_MASK", (0, 0, 0, 0)), clean(bugs.tma_ring)),
    ("wgmma takes LBO for SBO", attribute(descriptors.Descriptor, "stride", property(lambda self: self[1])),
     clean(bugs.tma_ring)),
    ("wgmma ignores the major-ness of B", attribute(wgmma, "Operand", lambda extent, size, mn: descriptors.Operand(
        extent, size, False)), clean(bugs.tma_ring, n_major=True)),
    ("waits for wgmma are forgotten", attribute(Clocks, "learn", nothing), clean(bugs.tma_ring)),
    ("wgmma.fence is not asked for", attribute(loader, "missing_wgmma_fences", lambda program: []),
     found(TMA_RING, "no wgmma.fence", "missing wgmma.fence")),
    ("mbarrier ignores the parity", attribute(MBarrier, "phase_of_parity", lambda self, parity: self.previous),
     clean(bugs.tma_ring)),
    ("mbarrier ignores transactions", both(attribute(MBarrier, "expect", nothing), attribute(
        MBarrier, "complete_tx", nothing)), clean(bugs.tma_ring)),
    ("setmaxnreg has all registers", attribute(control.RegisterPool, "has", yes),
     found(TMA_RING, "setmaxnreg beyond the pool", "DeadlockError")),
    ("everything is fenced", both(attribute(Clocks, "knows_fenced", lambda self, agents, columns, values: np.ones(
        np.broadcast(agents, columns, values).shape, bool)), attribute(Clocks, "least_fenced", lambda self, agents:
        np.full(self.columns, 2**31 - 1))), found(TMA_RING, "no fence.proxy.async", "missing proxy fence")),
    ("a proxy fence does nothing", attribute(Clocks, "fence_proxy", nothing), clean(bugs.tma_ring, epilogue=1)),
    ("bulk.wait_group does nothing", attribute(bulk.BulkGroups, "wait", nothing), clean(bugs.tma_ring, epilogue=1)),
    ("reductions take the minimum of the bits", attribute(tma, "reduce_global", lambda lanes, at, data, unit, op, type_: _reduce(
        lanes, at, data, unit, "min", "u32")), clean(bugs.tma_ring, epilogue=2)),
    ("the cluster barrier orders nothing", attribute(barrier.ClusterBarrier, "leave", lambda self, lanes:
        self._joined.__setitem__(lanes.threads + lanes.cta.first_agent, -1)), clean(bugs.cluster_sum)),
    ("multicast goes to its own CTA only", attribute(tma, "targets", lambda *args: _targets(*args[:6])),
     clean(bugs.cluster_sum)),
]  # fmt: skip


def passes(check: Check) -> bool:
    """Whether a check passes; one that the emulator cannot finish does not."""
    forget()
    try:
        return check[1]()
    except EmulatorError:
        return False


def forget() -> None:
    """What was made with other semantics must not be used again."""
    loader.load.cache_clear()
    program._semantics.cache_clear()
    wgmma._form.cache_clear()
    fragments.mma.cache_clear()
    descriptors._relative.cache_clear()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, str]]:
    noticed: dict[str, str] = {}
    yield noticed
    width = max((len(name) for name in noticed), default=0)
    print("\nmutants of the emulator: noticed by")
    for name, check in noticed.items():
        print(f"  {name:<{width}}  {check}")


CHECKS = {check[0]: check for _, _, check in MUTANTS}


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_pass(name: str) -> None:
    assert passes(CHECKS[name])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant[0])
def test_every_mutant_is_noticed(
    mutant: tuple[str, Patch, Check], matrix: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, patch, check = mutant
    with monkeypatch.context() as context:
        patch(context)
        assert not passes(check), "the check does not notice"
    matrix[name] = check[0]
