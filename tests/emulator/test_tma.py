"""TMA in tile mode (PTX ISA 9.0, 9.7.9.25.5): boxes, swizzles, borders, multicast, reductions, and misuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gpulinear.emulator.ir import Param
from gpulinear.emulator.spaces import PARAM_BASE
from gpulinear.emulator.tensormap import DataType, OobFill, Swizzle, encode_tiled
from tests.emulator.bulk_bench import BAR, POLICIES, Case, at, commit, wait

TILE = "cp.async.bulk.tensor.{}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"


class Tensor(Case):
    """A case with a tensor of 16-bit elements in global memory, its map as a parameter."""

    def __init__(
        self,
        dims: list[int],
        box: list[int],
        policy: str = "early",
        swizzle: Swizzle = Swizzle.NONE,
        data_type: DataType = DataType.BFLOAT16,
        fill: OobFill = OobFill.NONE,
        **options: Any,
    ) -> None:
        item = {DataType.FLOAT32: 4, DataType.UINT32: 4}.get(data_type, 2)
        strides, size = [], dims[0] * item
        for dim in dims[1:]:
            size = -(-size // 16) * 16
            strides.append(size)
            size *= dim
        # The address must be known before the memory exists: the first allocations of a Bench are always the same.
        probe = Case()
        where = probe.memory.alloc(size)
        steps = [1] * len(dims)
        self.map = encode_tiled(data_type, len(dims), where, dims, strides, box, steps, 0, swizzle, 0, fill)
        super().__init__(
            policy, params=[(Param("map", 0, 128), self.map), (Param("bad", 128, 128), bytes(128))], **options
        )
        self.dims, self.box, self.item, self.strides = dims, box, item, strides
        raw = np.random.default_rng(9).integers(0, 256, size).astype(np.uint8)
        self.tensor = self.memory.alloc(raw, name="tensor")
        assert self.tensor == where
        self.raw = raw

    def expected_box(self, start: list[int], fill: bytes = b"\0\0\0\0") -> Any:
        out = bytearray()
        for index in itertools.product(*(range(b) for b in self.box[::-1])):
            place = [c + i for c, i in zip(start, index[::-1], strict=True)]
            if all(0 <= p < d for p, d in zip(place, self.dims, strict=True)):
                byte = place[0] * self.item + sum(p * s for p, s in zip(place[1:], self.strides, strict=True))
                out += bytes(self.raw[byte : byte + self.item])
            else:
                out += fill[: self.item]
        return np.frombuffer(bytes(out), np.uint8)

    def where(self, coordinates: list[int], offset: int = 0) -> Any:
        return (at(PARAM_BASE + offset), [[np.array([c], np.int32) for c in coordinates]])

    def tile(self, to: int, coordinates: list[int], rank: int | None = None, offset: int = 0) -> None:
        name = TILE.format(len(self.dims) if rank is None else rank)
        self.run(name, at(to), self.where(coordinates, offset), at(BAR), threads=0)


@POLICIES
@pytest.mark.parametrize(
    ("dims", "box", "start"),
    [
        ([40], [16], [8]),
        ([40], [16], [32]),
        ([40, 9], [16, 4], [8, 2]),
        ([37, 9], [16, 4], [24, 7]),
        ([37, 9], [16, 4], [-8, -3]),
        ([37, 9], [16, 4], [-16, 0]),
        ([37, 9], [16, 4], [40, 0]),
        ([24, 5, 4], [8, 3, 2], [16, 3, 3]),
        ([16, 3, 3, 3], [8, 2, 2, 2], [8, -1, 2, 1]),
        ([16, 3, 2, 2, 3], [8, 2, 2, 1, 2], [8, 2, 1, 1, -1]),
    ],
)
def test_tile_loads(policy: str, dims: list[int], box: list[int], start: list[int]) -> None:
    """Every element inside arrives, all others are zero, and whole boxes are counted."""
    case = Tensor(dims, box, policy)
    nbytes = 2 * int(np.prod(box))
    case.expect(nbytes)
    case.tile(1024, start)
    case.finish()
    assert case.done()
    assert case.shared(1024, nbytes).tobytes() == case.expected_box(start).tobytes()
    case.read(40, 1024)
    case.leave()
    assert case.found == []


@pytest.mark.parametrize("swizzle", [Swizzle.BYTES_32, Swizzle.BYTES_64, Swizzle.BYTES_128])
@pytest.mark.parametrize("to", [1024, 1024 + 128 * 3])
def test_swizzled_tile_loads_and_stores(swizzle: Swizzle, to: int) -> None:
    span = {Swizzle.BYTES_32: 32, Swizzle.BYTES_64: 64, Swizzle.BYTES_128: 128}[swizzle]
    case = Tensor([100, 40], [span // 2, 24], swizzle=swizzle)
    nbytes = span * 24
    case.expect(nbytes)
    case.tile(to, [56, 30])
    assert case.done()
    want = case.expected_box([56, 30])
    mask = span // 16 - 1
    for byte in range(0, nbytes, 16):
        address = to + byte
        address ^= (address >> 7 & mask) << 4
        assert (case.shared(address, 16) == want[byte : byte + 16]).all()
    before = case.raw.copy()
    case.memory.fill(case.tensor, np.zeros(len(before), np.uint8))
    case.cta.cluster.clocks.barrier(np.arange(64))
    case.run("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group", case.where([56, 30]), at(to), threads=0)
    commit(case)
    wait(case)
    tensor = case.memory.view(case.tensor, len(before)).reshape(40, -1)
    kept = np.zeros_like(tensor)
    kept[30:, 112 : 112 + span] = before.reshape(40, -1)[30:, 112 : 112 + span]
    kept[:, 200:] = 0
    assert (tensor == kept).all()
    case.leave()
    assert case.found == []


def test_out_of_bounds_elements_may_be_nan() -> None:
    case = Tensor([37, 9], [16, 4], fill=OobFill.NAN_REQUEST_ZERO_FMA)
    case.tile(1024, [32, 7])
    assert case.shared(1024, 128).tobytes() == case.expected_box([32, 7], b"\xff\x7f").tobytes()


def test_stores_write_only_what_is_inside() -> None:
    case = Tensor([37, 9], [16, 4])
    data = np.random.default_rng(1).integers(0, 256, 128).astype(np.uint8)
    case.put(1024, data)
    case.run("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group", case.where([32, 7]), at(1024), threads=0)
    commit(case)
    wait(case)
    want = case.raw.reshape(9, -1).copy()
    want[7:9, 64:74] = data.reshape(4, 32)[:2, :10]
    assert (case.memory.view(case.tensor, len(case.raw)).reshape(9, -1) == want).all() and case.found == []


def test_a_store_of_a_box_outside_writes_nothing() -> None:
    case = Tensor([37, 9], [16, 4])
    case.put(1024, np.zeros(128, np.uint8))
    case.run("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group", case.where([48, 0]), at(1024), threads=0)
    commit(case)
    wait(case)
    assert (case.memory.view(case.tensor, len(case.raw)) == case.raw).all() and case.found == []


def test_only_the_elements_that_are_stored_have_to_be_written() -> None:
    case = Tensor([37, 9], [16, 4])
    case.put(1024, np.zeros(64, np.uint8))
    name = "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group.L2::cache_hint"
    case.run(name, case.where([16, 7]), at(1024), np.zeros(1, np.uint64), threads=0)
    assert case.found == []
    case = Tensor([37, 9], [16, 4])
    case.put(1024, np.zeros(64, np.uint8))
    case.run(name, case.where([16, 6]), at(1024), np.zeros(1, np.uint64), threads=0)
    assert case.only().kind == "uninitialised read"


@pytest.mark.parametrize(("start", "rows", "columns"), [([16, 3], 3, 4), ([8, 0], 4, 8)])
def test_reducing_stores(start: list[int], rows: int, columns: int) -> None:
    case = Tensor([20, 6], [8, 4], data_type=DataType.FLOAT32)
    old = np.random.default_rng(2).standard_normal((6, 20)).astype(np.float32)
    new = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    case.memory.fill(case.tensor, old)
    case.put(1024, new.reshape(-1).view(np.uint8))
    name = "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group"
    case.run(name, case.where(start), at(1024), threads=0)
    commit(case)
    wait(case)
    want = old.copy()
    x, y = start
    want[y : y + rows, x : x + columns] += new[:rows, :columns]
    assert (case.memory.view(case.tensor, 480).view(np.float32).reshape(6, 20) == want).all() and case.found == []
    case.run(name.replace("add", "min"), case.where([16, 3]), at(1024), threads=0)
    assert case.only().kind == "invalid operand" and "f32" in case.only().message


def test_coordinates_and_addresses_of_tiles() -> None:
    good = Tensor([40, 9], [16, 4])
    good.tile(1024 + 128, [0, 0])
    assert good.found == []
    for kind, act in {
        "misaligned address": lambda c: c.tile(1024 + 64, [0, 0]),
        "out of bounds": lambda c: c.tile(24576 - 64 * 2, [0, 0], None),
        "not a tensor map": lambda c: c.tile(1024, [0, 0], 2, 128),
        "invalid operand": lambda c: c.run(
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group", c.where([-16, 0]), at(1024), threads=0
        ),
    }.items():
        case = Tensor([40, 9], [16, 8])
        case.put(1024, np.zeros(256, np.uint8))
        act(case)
        assert case.found == [kind]
    for start in ([4, 0], [-2, 0]):
        case = Tensor([40, 9], [16, 4])
        case.tile(1024, start)
        assert case.only().kind == "misaligned address" and "16" in case.only().message


def test_the_rank_of_the_instruction_is_the_maps() -> None:
    case = Tensor([40, 9], [16, 4])
    case.tile(1024, [0, 0, 0], rank=3)
    assert case.only().kind == "not a tensor map" and "2 dimensions" in case.only().message
    case = Tensor([40, 9], [16, 4])
    case.tile(1024, [0, 0, 0], rank=2)
    assert case.only().kind == "invalid operand"
    case = Tensor([40, 9], [16, 4])
    case.tile(1024, [0, 0], offset=32)
    assert case.only().kind == "not a tensor map" and "multiple of 64" in case.only().message


def test_a_map_survives_a_copy_to_global_memory() -> None:
    case = Tensor([40, 9], [16, 4])
    there = case.memory.alloc(np.frombuffer(case.map, np.uint8))
    where = (at(there), [[np.array([8], np.int32), np.array([2], np.int32)]])
    case.run(TILE.format(2), at(1024), where, at(BAR), threads=0)
    assert case.shared(1024, 128).tobytes() == case.expected_box([8, 2]).tobytes() and case.found == []


def test_a_tensor_larger_than_its_allocation_is_reported() -> None:
    case = Tensor([40, 9], [16, 4])
    case.tile(1024, [0, 0])
    assert case.found == []
    beyond = encode_tiled(9, 2, case.tensor, [40, 20], [80], [16, 4], [1, 1], 0, 0, 0, 0)
    there = case.memory.alloc(np.frombuffer(beyond, np.uint8))
    where = (at(there), [[np.array([0], np.int32), np.array([8], np.int32)]])
    case.run(TILE.format(2), at(4096), where, at(BAR), threads=0)
    assert case.only().kind == "out of bounds"


@POLICIES
def test_multicast_of_tiles(policy: str) -> None:
    case = Tensor([40, 9], [16, 4], policy, ctas=2)
    for cta in range(2):
        case.expect(128, cta)
    mask, hint = np.array([3], np.uint16), np.zeros(1, np.uint64)
    name = f"{TILE.format(2)}.multicast::cluster.L2::cache_hint"
    case.run(name, at(1024), case.where([8, 2]), at(BAR), mask, hint, threads=0)
    case.finish()
    want = case.expected_box([8, 2]).tobytes()
    for cta in range(2):
        assert case.done(9, cta=cta) and case.shared(1024, 128, cta).tobytes() == want
    assert case.found == []


def test_tensor_prefetches() -> None:
    case = Tensor([40, 9], [16, 4])
    case.run("cp.async.bulk.prefetch.tensor.2d.L2.global.tile", case.where([0, 0]), threads=0)
    case.run(
        "cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint",
        case.where([0, 0]),
        np.zeros(1, np.uint64),
        threads=0,
    )
    assert case.found == []
    case.run("cp.async.bulk.prefetch.tensor.2d.L2.global.tile", case.where([0, 0], 128), threads=0)
    assert case.only().kind == "not a tensor map"


def test_bytes_are_counted() -> None:
    case = Tensor([37, 9], [16, 4])
    case.tile(1024, [32, 7])
    moved = case.launch.counters.moved_bytes
    assert moved["global", "read"] == 2 * 5 * 2 and moved["shared", "write"] == 128
