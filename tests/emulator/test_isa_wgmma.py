"""isa/wgmma.py on a fake CTA: products from all layouts, groups, registers in flight, races and faults."""

from __future__ import annotations

import numpy as np
import pytest

import gpulinear.emulator.isa.wgmma
from gpulinear.emulator import tensorcore
from gpulinear.emulator.errors import NotModelledError
from gpulinear.emulator.ir import Imm, Instruction, Reg, Vec
from gpulinear.emulator.isa import RegisterRows, resolve
from gpulinear.emulator.isa.wgmma import PENDING
from gpulinear.emulator.lanes import Lanes
from tests.emulator.fakes import Bench
from tests.emulator.test_descriptors import B32, B128, NONE, SPAN, canonical, describe, place, strides
from tests.emulator.test_fragments import a_wgmma_16, a_wgmma_tf32, d_wgmma
from tests.emulator.test_isa_matrix import encode

assert gpulinear.emulator.isa.wgmma  # registers the instructions


class Hopper:
    """``groups`` warpgroups with a matrix of 32-bit registers: accumulators first, then four rows for A."""

    def __init__(self, groups=1, n=16, smem=1 << 16, **kwargs):
        self.bench = Bench(128 * groups, smem=smem, proxies=True, **kwargs)
        self.cta, self.found = self.bench.cta, lambda: self.bench.found
        self.registers = np.zeros((n // 2 + 20, 128 * groups), np.uint32)
        self.n = n
        self.line = 0

    def run(self, name, shapes, values, threads=None):
        self.line += 1
        line = Instruction(self.line, name, tuple(shapes), name, 1)
        rule, form = resolve(line)
        threads = np.arange(self.cta.thread_count) if threads is None else threads
        assert rule.sync == "warpgroup"
        with np.errstate(all="ignore"):
            rule.factory(form)(Lanes(self.cta, threads, line), *values)

    def simple(self, what, *immediates, threads=None):
        self.run(f"wgmma.{what}.sync.aligned", [Imm("int", i) for i in immediates], immediates, threads)

    def wait(self, count=0, threads=None):
        self.simple("commit_group", threads=threads)
        self.simple("wait_group", count, threads=threads)

    def mma(
        self, a, b, kind="bf16", result="f32", scale=(1, 1), trans=(0, 0), keep=False, threads=None, n=None, rows=None
    ):
        """``a`` and ``b``: descriptors, or for a the rows of its registers."""
        n = self.n if n is None else n
        rows = list(range(n // (4 if result == "f16" else 2))) if rows is None else rows
        count = self.cta.thread_count if threads is None else len(threads)
        registers = isinstance(a, list)
        immediates = [*scale] if kind == "tf32" else [*scale, *(trans[1:] if registers else trans)]
        shapes = [
            Vec((Reg("%d"),) * len(rows)),
            Vec((Reg("%a"),) * 4) if registers else Reg("%a"),
            Reg("%b"),
            Reg("%p"),
        ]
        left = RegisterRows(self.registers, a) if registers else np.broadcast_to(np.array(a, np.uint64), count)
        right = np.broadcast_to(np.array(b, np.uint64), count)
        keep = np.broadcast_to(np.array(keep, bool), count)
        k = 8 if kind == "tf32" else 16
        name = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{result}.{kind}.{kind}"
        values = [RegisterRows(self.registers, rows), left, right, keep, *immediates]
        self.run(name, [*shapes, *(Imm("int", i) for i in immediates)], values, threads)

    def put(self, matrix, start, itemsize=2, mn_major=0, mode=B128, extra=0):
        """Places [mn, k] and returns its descriptor."""
        lbo, sbo = strides(mn_major, mode, itemsize, matrix.shape[0])
        place(self.cta.shared, matrix, start, canonical(mn_major, mode, itemsize, lbo, sbo))
        return describe(start, lbo, sbo + extra, mode)

    def accumulators(self, group=0, n=None, dtype=np.float32):
        """D of a warpgroup by the ISA's formula."""
        n = n or self.n
        out = np.zeros((64, n), dtype)
        per = 2 if dtype == np.float16 else 1
        for i, thread in np.ndindex(n // 2, 128):
            bits = int(self.registers[i // per, 128 * group + thread]) >> i % per * 16
            out[d_wgmma(i, thread)] = np.array([bits], np.uint32).view(np.float32)[0] if per == 1 else half(bits)
        return out


def half(bits):
    return np.array([bits & 0xFFFF], np.uint16).view(np.float16)[0]


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(float)


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize("mode", list(SPAN))
@pytest.mark.parametrize("n", [8, 40])
def test_products_of_both_majors(kind, mode, n):
    rng = np.random.default_rng(n)
    itemsize = 4 if kind == "tf32" else 2
    k = 32 // itemsize
    a, b = integers(rng, 64, k), integers(rng, n, k)
    for trans_a, trans_b in ((0, 0),) if kind == "tf32" else ((0, 0), (0, 1), (1, 0), (1, 1)):
        h = Hopper(n=n)
        da = h.put(encode(a, kind), 0, itemsize, trans_a, mode)
        db = h.put(encode(b, kind), 1 << 15, itemsize, trans_b, mode)
        h.mma(da, db, kind, trans=(trans_a, trans_b))
        assert (h.registers[: n // 2] == 0xFFFFFFFF).all()  # not yet there
        h.wait()
        assert h.found() == [] and (h.accumulators() == a @ b.T).all()
        assert h.bench.launch.counters.total_flops == 2 * 64 * n * k
        assert h.bench.launch.counters.moved_bytes == {("shared", "read"): (64 + n) * 32}


def test_the_largest_tile_in_model_bits():
    rng = np.random.default_rng(5)
    a, b = encode(rng.standard_normal((64, 16)), "bf16"), encode(rng.standard_normal((256, 16)), "bf16")
    h = Hopper(n=256)
    h.registers[:128] = np.float32(1.5).view(np.uint32)
    h.mma(h.put(a, 0), h.put(b, 8192), keep=True)
    h.wait()
    want = tensorcore.multiply_add(a, b.T, np.full((64, 256), 1.5, np.float32), "bf16", "sm_90a")
    assert (h.accumulators().view(np.uint32) == want.view(np.uint32)).all() and h.found() == []


def test_scales_and_float16_accumulators():
    rng = np.random.default_rng(6)
    a, b = integers(rng, 64, 16), integers(rng, 16, 16)
    for scale in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        for kind, result, dtype in (("bf16", "f32", np.float32), ("f16", "f16", np.float16)):
            h = Hopper()
            h.mma(h.put(encode(a, kind), 0), h.put(encode(b, kind), 8192), kind, result, scale)
            h.wait()
            assert (h.accumulators(dtype=dtype) == scale[0] * scale[1] * (a @ b.T)).all() and h.found() == []
    for scale, trans in (((2, 1), (0, 0)), ((1, 0), (0, 0)), ((1, 1), (2, 0)), ((1, 1), (0, -1))):
        with pytest.raises(NotModelledError, match="1 or -1"):
            h.mma(0, 0, scale=scale, trans=trans)


@pytest.mark.parametrize(("kind", "formula"), [("bf16", a_wgmma_16), ("f16", a_wgmma_16), ("tf32", a_wgmma_tf32)])
def test_a_from_registers(kind, formula):
    rng = np.random.default_rng(7)
    k = 8 if kind == "tf32" else 16
    a, b = integers(rng, 64, k), integers(rng, 16, k)
    h = Hopper()
    bits, per = encode(a, kind), 1 if kind == "tf32" else 2
    rows = [12, 9, 11, 10]
    for i, thread in np.ndindex(4 * per, 128):
        h.registers[rows[i // per], thread] |= np.uint32(int(bits[formula(i, thread)]) << i % per * 16)
    h.mma(rows, h.put(encode(b, kind), 8192, 4 if kind == "tf32" else 2), kind)
    assert h.cta.state(PENDING, dict)[0] == {*range(8), *rows}
    h.wait()
    assert h.cta.state(PENDING, dict)[0] == set()
    assert h.found() == [] and (h.accumulators() == a @ b.T).all()


def two_tiles(groups=1, n=16):
    rng = np.random.default_rng(8)
    a, b = integers(rng, 64, 16), integers(rng, n, 16)
    h = Hopper(groups, n)
    h.b = b
    return h, h.put(encode(a, "bf16"), 0), h.put(encode(b, "bf16"), 8192), a @ b.T


def test_a_chain_needs_no_wait_and_arrives_with_its_last_group():
    h, a, b, product = two_tiles()
    h.registers[:8] = np.float32(3).view(np.uint32)
    h.mma(a, b, keep=True)
    h.mma(a, b, keep=True)
    h.simple("commit_group")
    h.mma(a, b, keep=True)
    h.wait(1)  # the first group is complete, but the accumulators belong to the second as well
    assert (h.registers[:8] == 0xFFFFFFFF).all() and h.cta.state(PENDING, dict)[0] == set(range(8))
    h.simple("wait_group", 0)
    assert (h.accumulators() == 3 + 3 * product).all() and h.found() == []
    h.mma(a, b)
    h.mma(a, b, keep=False)  # starts anew
    h.wait()
    assert (h.accumulators() == product).all() and h.found() == []


def test_groups_complete_in_order():
    h, a, b, product = two_tiles()
    second = list(range(8, 16))
    h.mma(a, b)
    h.simple("commit_group")
    h.mma(a, b, rows=second)
    h.wait(1)
    assert (h.accumulators() == product).all() and (h.registers[second] == 0xFFFFFFFF).all()
    assert h.cta.state(PENDING, dict)[0] == set(second)
    h.wait(1)  # an empty group: now the second is not among the last one
    assert (h.registers[second] == h.registers[:8]).all() and h.found() == []


def test_what_is_not_committed_is_not_waited_for():
    h, a, b, _ = two_tiles()
    h.mma(a, b)
    h.simple("wait_group", 0)
    assert (h.registers[:8] == 0xFFFFFFFF).all()
    h.cta.exit()
    assert h.found() == ["wgmma in flight at exit"] and "not committed" in h.bench.only().message
    h, a, b, _ = two_tiles()
    h.mma(a, b)
    h.simple("commit_group")
    h.cta.exit()
    assert "not waited for" in h.bench.only().message and h.bench.only().instruction.index == 1
    h, a, b, _ = two_tiles()
    h.simple("fence")
    h.mma(a, b)
    h.wait()
    h.cta.exit()
    assert h.found() == []


def test_warpgroups_are_apart():
    """Two in one call, with operands and scale-d of their own; then one alone."""
    h, a, b, product = two_tiles(groups=2)
    other = h.put(encode(2 * np.eye(64, 16), "bf16"), 16384)
    pair = np.repeat([a, other], 128)
    h.registers[:8] = np.float32(1).view(np.uint32)
    h.mma(pair, b, keep=np.repeat([True, False], 128))
    first = np.arange(128)
    h.wait(threads=first)
    assert (h.accumulators(0) == 1 + product).all() and (h.registers[:8, 128:] == 0xFFFFFFFF).all()
    assert h.cta.state(PENDING, dict) == {0: set(), 1: set(range(8))}
    h.wait(threads=first + 128)
    assert (h.accumulators(1) == 2 * np.eye(64, 16) @ h.b.T).all()
    assert h.found() == []


def kinds_after(*calls, groups=1):
    h, a, b, _ = two_tiles(groups)
    for call in calls:
        call(h, a, b)
    return h.found()


def test_registers_in_flight():
    free = list(range(12, 20))

    def first(h, a, b):
        h.mma(a, b)

    def fragment(h, a, b):
        h.mma([8, 9, 10, 11], b, rows=free)

    assert kinds_after(first, lambda h, a, b: h.mma(a, b, n=8)) == ["wgmma in flight"]
    assert kinds_after(first, lambda h, a, b: h.mma(a, b, rows=list(range(7, 15)))) == ["wgmma in flight"]
    assert kinds_after(first, lambda h, a, b: h.mma(a, b, "f16", "f16", rows=[0, 1, 2, 3])) == ["wgmma in flight"]
    assert kinds_after(first, lambda h, a, b: h.mma([6, 7, 8, 9], b, rows=free)) == ["wgmma in flight"]
    assert kinds_after(fragment, lambda h, a, b: h.mma(a, b, rows=list(range(4, 12)))) == ["wgmma in flight"]
    assert kinds_after(lambda h, a, b: h.mma([5, 8, 9, 10], b)) == ["wgmma in flight"]  # A in its own accumulators
    assert kinds_after(first, lambda h, a, b: h.mma(a, b, "tf32")) == ["wgmma in flight"]  # k8 after k16
    assert kinds_after(fragment, first) == []
    assert kinds_after(fragment, fragment) == []  # two that read the same A
    assert kinds_after(first, lambda h, a, b: h.mma(a, b, "f16")) == []  # the same shape
    assert kinds_after(first, lambda h, a, b: h.wait(), lambda h, a, b: h.mma(a, b, n=8)) == []


def test_a_fragment_is_in_use_until_its_last_group():
    h, _, b, _ = two_tiles()
    shared = [8, 9, 10, 11]
    h.mma(shared, b, rows=list(range(12, 20)))
    h.simple("commit_group")
    h.mma(shared, b)
    h.wait(1)
    assert h.cta.state(PENDING, dict)[0] == {*range(8), *shared}
    h.simple("wait_group", 0)
    assert h.cta.state(PENDING, dict)[0] == set() and h.found() == []


def test_reading_what_is_in_flight_gives_nan():
    h, a, b, _ = two_tiles()
    h.mma(a, b)
    h.mma(a, b, keep=True, n=8, rows=[0, 1, 2, 3])
    h.wait()
    assert np.isnan(h.accumulators(n=8)).all()


def test_operands_must_be_the_same_in_all_threads():
    h, a, b, product = two_tiles()
    odd = np.arange(128) == 77
    h.mma(a + np.where(odd, 2, 0), b)
    assert h.bench.only().kind == "wgmma operand" and h.bench.only().threads == (77,)
    h.wait()
    assert (h.accumulators() == product).all()
    assert kinds_after(lambda h, a, b: h.mma(a, b + odd)) == ["wgmma operand"]
    assert kinds_after(lambda h, a, b: h.mma(a, b, keep=odd)) == ["wgmma operand"]


def test_what_can_be_wrong_with_a_descriptor():
    for bit in (14, 15, 30, 31, 46, 47, 48, *range(52, 62)):
        h, a, b, product = two_tiles()
        h.mma(a, b | 1 << bit)
        assert h.found() == ["wgmma descriptor"] and "reserved bits" in h.bench.only().message
        h.wait()
        assert (h.accumulators() == product).all()
    for bit in (49, 50, 51):
        with pytest.raises(NotModelledError, match="base offset"):
            kinds_after(lambda h, a, b, bit=bit: h.mma(a | 1 << bit, b))
    h, a, b, _ = two_tiles()
    h.mma(a, h.put(np.zeros((16, 16), np.uint16), 16384, mode=NONE) | 1 << 49)
    assert h.found() == ["wgmma descriptor"] and "without a swizzle" in h.bench.only().message
    h, a, b, _ = two_tiles()
    h.mma(a + (1024 >> 4) - (896 >> 4), b)
    assert h.found() == ["wgmma descriptor"] and "A: start address 0x80" in h.bench.only().message


@pytest.mark.parametrize(
    ("descriptor", "trans", "field", "first"),
    [
        (describe(1 << 15, 0, 1024, B128), 0, "start address", 0),
        (describe((1 << 14) - 1024, 0, 1024, B128), 0, "stride dimension byte offset", 8),
        (describe(0, 1 << 14, 128, NONE), 0, "leading dimension byte offset", 0),
        (describe(0, 1 << 14, 512, B32), 1, "leading dimension byte offset", 16),
        (describe(0, 1024, 1 << 15, B32), 1, "stride dimension byte offset", 0),
    ],
)
def test_operands_outside_shared_memory(descriptor, trans, field, first):
    """Columns of D from ``first`` on depend on bytes that are not there."""
    h = Hopper(n=24, smem=1 << 14)
    h.cta.shared.store(0, np.zeros(1 << 14, np.uint8))
    h.mma(describe(0, 0, 1024, B128), descriptor, trans=(0, trans))
    assert h.found() == ["out of bounds"] and "B lies outside" in h.bench.only().message
    assert f"because of its {field}" in h.bench.only().message
    h.wait()
    assert (np.isnan(h.accumulators()) == (np.arange(24) >= first)).all()


def test_uninitialised_operands():
    h, a, b, _ = two_tiles()
    h.cta.shared.erase(8192 + 16, 8192 + 17)
    h.mma(a, b)
    assert h.found() == ["uninitialised read"] and h.bench.only().address == 8192 + 16


def test_operands_may_be_overwritten_after_the_wait_only():
    def overwrite(h, threads, offset):
        agents = np.arange(threads, threads + 1)
        line = Instruction(99, "st.shared", (), "st.shared", 9)
        h.cta.races.write(agents, np.array([offset]), 4, line)

    for offset in (0, 8192 + 128):
        h, a, b, _ = two_tiles()
        h.mma(a, b)
        overwrite(h, 5, offset)
        assert h.found() == ["shared race"]
    h, a, b, _ = two_tiles()
    h.mma(a, b)
    overwrite(h, 5, 20000)  # not an operand
    h.wait()
    overwrite(h, 5, 0)
    assert h.found() == []
    h, a, b, _ = two_tiles()
    h.mma(a, b)
    h.simple("commit_group")
    h.mma(h.put(np.zeros((64, 16), np.uint16), 16384), b, rows=list(range(8, 16)))
    h.wait(1)
    overwrite(h, 5, 0)  # of the first group
    assert h.found() == []
    overwrite(h, 5, 8192)  # of both
    assert h.found() == ["shared race"]
    h, a, b, _ = two_tiles(groups=2)
    h.mma(a, b, threads=np.arange(128))
    h.wait(threads=np.arange(128))
    overwrite(h, 200, 0)  # by a thread that waited for nothing
    assert h.found() == ["shared race"]


def test_all_threads_of_the_warpgroup_must_be_ordered_after_the_writer():
    """Thread 0 fills a tile and fences: the other warps know nothing of it without a barrier."""
    h, a, b, _ = two_tiles()
    h.cta.races.write(np.arange(1), np.array([0]), 16, Instruction(99, "st.shared", (), "st.shared", 9))
    h.cta.cluster.clocks.fence_proxy(np.arange(1))
    h.mma(a, b)
    assert h.found() == ["shared race"]


def test_generic_writes_need_a_proxy_fence():
    for fence in (False, True):
        h, a, b, _ = two_tiles()
        line = Instruction(99, "st.shared", (), "st.shared", 9)
        h.cta.races.write(np.arange(128), np.arange(128) * 16, 16, line)
        if fence:
            h.cta.cluster.clocks.fence_proxy(np.arange(128))
        h.bench.barrier()
        h.mma(a, b)
        assert h.found() == ([] if fence else ["missing proxy fence"])


def test_incomplete_warpgroups():
    for threads in (np.arange(96), np.arange(32, 160)):
        h, a, b, _ = two_tiles(groups=2)
        h.mma(a, b, threads=threads)
        assert h.found() == ["incomplete collective"] and not h.registers.any()
        for what, immediates in (("fence", ()), ("commit_group", ()), ("wait_group", (0,))):
            before = h.bench.launch.report.findings[-1].count
            h.simple(what, *immediates, threads=threads)
            assert len(h.found()) > 1 or h.bench.launch.report.findings[-1].count > before


def test_targets_and_forms():
    h, a, b, _ = two_tiles()
    for arch in ("sm_90", "sm_100a", "sm_80"):
        h.bench.launch.arch = arch
        for call in (lambda: h.mma(a, b), lambda: h.simple("fence"), lambda: h.simple("wait_group", 0)):
            with pytest.raises(NotModelledError, match="needs sm_90a"):
                call()
    h.bench.launch.arch = "sm_90a"
    for n in (0, 4, 12, 264):
        with pytest.raises(NotModelledError, match="multiple of 8"):
            h.mma(a, b, n=n, rows=[0])
    for name in (
        "m64n16k16.f32.f16.bf16",
        "m64n16k16.f16.bf16.bf16",
        "m64n16k8.f32.bf16.bf16",
        "m64n16k32.f32.e4m3.e4m3",
    ):
        operands = (Vec((Reg("%d"),) * 8), Reg("%a"), Reg("%b"), Reg("%p"), *[Imm("int", 1)] * 4)
        with pytest.raises(NotModelledError, match="is not modelled"):
            resolve(Instruction(0, f"wgmma.mma_async.sync.aligned.{name}", operands, name, 1))
