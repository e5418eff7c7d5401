"""tensormap.py: the documented rules of cuTensorMapEncodeTiled, the encoding, boxes at the border, and swizzles.

Expected boxes come from loops over Python ints, swizzles from the tables of PTX ISA 9.0, 5.5.7.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpulinear.emulator import tensormap
from gpulinear.emulator.errors import LaunchError, NotModelledError
from gpulinear.emulator.tensormap import DataType, Interleave, L2Promotion, OobFill, Swizzle, decode, encode_tiled

GOOD = {
    "tensorDataType": DataType.BFLOAT16,
    "tensorRank": 2,
    "globalAddress": 0x7F0000000100,
    "globalDim": [100, 37],
    "globalStrides": [208],
    "boxDim": [64, 8],
    "elementStrides": [1, 1],
    "interleave": Interleave.NONE,
    "swizzle": Swizzle.BYTES_128,
    "l2Promotion": L2Promotion.BYTES_128,
    "oobFill": OobFill.NONE,
}


def encode(**changes):
    return encode_tiled(**(GOOD | changes))


def test_the_encoding_keeps_all_fields():
    data = encode()
    assert isinstance(data, bytes) and len(data) == 128
    found = decode(data)
    assert (found.type, found.address, found.dims, found.strides) == ("bf16", 0x7F0000000100, (100, 37), (208,))
    assert (found.box, found.swizzle, found.nan_fill) == ((64, 8), Swizzle.BYTES_128, False)
    assert (found.rank, found.item, found.box_bytes) == (2, 2, 1024)
    five = decode(
        encode(
            tensorDataType=DataType.FLOAT32,
            tensorRank=5,
            globalDim=[2**32, 1, 2, 3, 4],
            globalStrides=[2**34, 2**34, 2**35, 2**35 * 3],
            boxDim=[4, 1, 2, 256, 4],
            elementStrides=[1] * 5,
            swizzle=Swizzle.NONE,
            oobFill=OobFill.NAN_REQUEST_ZERO_FMA,
        )
    )
    assert five.dims == (2**32, 1, 2, 3, 4) and five.strides == (2**34, 2**34, 2**35, 2**35 * 3)
    assert five.box == (4, 1, 2, 256, 4) and five.nan_fill and five.type == "f32"


@pytest.mark.parametrize("at", [0, 9, 16, 60, 127])
def test_a_changed_byte_makes_it_no_tensor_map(at):
    data = bytearray(encode())
    data[at] ^= 4
    assert decode(bytes(data)) is None


def test_other_bytes_are_no_tensor_map():
    assert decode(b"\xff" * 128) is None and decode(bytes(128)) is None and decode(encode()[:-1]) is None


def test_the_arguments_are_those_of_cuda_bindings():
    """One host function calls either: same order, and the enumerations and integer wrappers of cuda.bindings work."""
    driver = pytest.importorskip("cuda.bindings.driver")
    signature = driver.cuTensorMapEncodeTiled.__doc__.splitlines()[0]
    names = [
        part.split(":")[0].strip()
        for part in signature.partition("(")[2].split(", ")
        if ":" in part or part.isidentifier()
    ]
    assert [name for name in names if name in GOOD] == list(GOOD)
    data = encode_tiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        0x7F0000000100,
        [driver.cuuint64_t(100), driver.cuuint64_t(37)],
        [driver.cuuint64_t(208)],
        [driver.cuuint32_t(64), driver.cuuint32_t(8)],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    assert data == encode()
    for ours, theirs in (
        (DataType, driver.CUtensorMapDataType),
        (Interleave, driver.CUtensorMapInterleave),
        (Swizzle, driver.CUtensorMapSwizzle),
        (L2Promotion, driver.CUtensorMapL2promotion),
        (OobFill, driver.CUtensorMapFloatOOBfill),
    ):
        assert [m.value for m in ours] == [int(m) for m in theirs if int(m) < len(ours)]


RULES = {
    "type": ({"tensorDataType": 16}, "tensorDataType"),
    "rank 0": ({"tensorRank": 0}, "tensorRank"),
    "rank 6": ({"tensorRank": 6}, "tensorRank"),
    "interleaved rank 2": ({"interleave": Interleave.BYTES_16}, "tensorRank must be 3"),
    "entries": ({"globalDim": [100]}, "globalDim must have 2"),
    "stride entries": ({"globalStrides": [208, 4096]}, "globalStrides must have 1"),
    "address": ({"globalAddress": 0x108}, "globalAddress must be a multiple of 16"),
    "dim 0": ({"globalDim": [100, 0]}, r"globalDim\[1\]"),
    "dim 2^32 + 1": ({"globalDim": [100, 2**32 + 1]}, r"globalDim\[1\]"),
    "stride 8": ({"globalStrides": [216]}, r"globalStrides\[0\] must be a multiple of 16"),
    "stride 2^40": ({"globalStrides": [2**40]}, r"globalStrides\[0\] must be a multiple of 16 bytes below 2\^40"),
    "stride too short": ({"globalStrides": [192]}, r"globalStrides\[0\] must hold dimension 0 \(200 bytes\)"),
    "box 0": ({"boxDim": [64, 0]}, r"boxDim\[1\]"),
    "box 257": ({"boxDim": [64, 257]}, r"boxDim\[1\]"),
    "box of 8 bytes": ({"boxDim": [4, 8], "swizzle": 0}, "multiple of 16 bytes, got 8"),
    "box past span": ({"boxDim": [72, 8]}, "swizzle's span"),
    "box past span 64": ({"swizzle": Swizzle.BYTES_64}, r"span \(64 bytes\)"),
    "box past span 32": ({"swizzle": Swizzle.BYTES_32}, r"span \(32 bytes\)"),
    "element stride 0": ({"elementStrides": [1, 0]}, r"elementStrides\[1\]"),
    "element stride 9": ({"elementStrides": [1, 9]}, r"elementStrides\[1\]"),
    "interleave": ({"interleave": 3}, "interleave must be one of"),
    "swizzle": ({"swizzle": 7}, "swizzle must be one of"),
    "promotion": ({"l2Promotion": 4}, "l2Promotion must be one of"),
    "fill": ({"oobFill": 2}, "oobFill must be one of"),
    "NaN integers": ({"tensorDataType": DataType.UINT16, "oobFill": 1}, "floating-point"),
    "padded address": ({"tensorDataType": DataType.U4_ALIGN16B, "globalAddress": 0x110}, "multiple of 32"),
    "padded dim": ({"tensorDataType": DataType.U4_ALIGN16B, "globalDim": [100, 37]}, "multiple of 128"),
    "packed dim": ({"tensorDataType": DataType.U4_ALIGN8B, "globalDim": [101, 37]}, "multiple of 2"),
    "padded box": (
        {"tensorDataType": DataType.U6_ALIGN16B, "globalDim": [128, 37], "globalStrides": [224]},
        r"boxDim\[0\] must be 128",
    ),
    "padded swizzle": (
        {
            "tensorDataType": DataType.U4_ALIGN16B,
            "globalDim": [128, 37],
            "globalStrides": [224],
            "boxDim": [128, 8],
            "swizzle": Swizzle.BYTES_64,
        },
        "does not support swizzle",
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_each_documented_rule_is_enforced(case):
    changes, message = RULES[case]
    with pytest.raises(LaunchError, match=message):
        encode(**changes)


THREE = {"tensorRank": 3, "globalDim": [64, 8, 4], "globalStrides": [256, 2048], "boxDim": [16, 8, 1]}
THREE |= {"elementStrides": [1, 1, 1], "globalAddress": 0x200}


def test_strides_include_the_dimensions_below():
    encode(**THREE, swizzle=0)
    with pytest.raises(LaunchError, match=r"globalStrides\[1\] must hold dimension 1 \(2048 bytes\)"):
        encode(**(THREE | {"globalStrides": [256, 2032]}), swizzle=0)


def test_the_wide_interleave_needs_its_swizzle_and_alignment():
    wide = THREE | {"interleave": Interleave.BYTES_32}
    with pytest.raises(LaunchError, match="needs swizzle BYTES_32"):
        encode(**wide, swizzle=Swizzle.NONE)
    with pytest.raises(LaunchError, match="globalAddress must be a multiple of 32"):
        encode(**(wide | {"globalAddress": 0x210}), swizzle=Swizzle.BYTES_32)
    with pytest.raises(LaunchError, match="multiple of 32 bytes below"):
        encode(**(wide | {"globalStrides": [272, 2304]}), swizzle=Swizzle.BYTES_32)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorDataType": DataType.TFLOAT32, "boxDim": [32, 8], "globalStrides": [416]},
        {"tensorDataType": DataType.FLOAT32_FTZ, "boxDim": [32, 8], "globalStrides": [416]},
        {"swizzle": Swizzle.BYTES_128_ATOM_32},
        {"elementStrides": [1, 2]},
        {"boxDim": [32, 8]},
        THREE | {"interleave": Interleave.BYTES_16, "swizzle": Swizzle.NONE},
    ],
)
def test_what_is_not_modelled_is_refused_and_not_taken_for_something_else(changes):
    with pytest.raises(NotModelledError, match="not modelled"):
        encode(**changes)


def the_map(dims, box, swizzle=Swizzle.NONE, data_type=DataType.UINT16, fill=OobFill.NONE, pad=0):
    item = {DataType.UINT16: 2, DataType.FLOAT16: 2, DataType.FLOAT32: 4, DataType.FLOAT64: 8}[data_type]
    strides, size = [], dims[0] * item
    for dim in dims[1:]:
        size = -(-size // 16) * 16 + pad
        strides.append(size)
        size *= dim
    data = encode_tiled(data_type, len(dims), 4096, dims, strides, box, [1] * len(dims), 0, swizzle, 0, fill)
    return decode(data)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_a_window_holds_exactly_the_elements_inside_the_tensor(rank):
    rng = np.random.default_rng(rank)
    for _ in range(30):
        dims = [int(d) for d in rng.integers(1, 7, rank)]
        dims[0] = int(rng.integers(1, 30))
        box = [int(b) for b in rng.integers(1, 5, rank)]
        box[0] = 8 * int(rng.integers(1, 3))
        start = [int(c) for c in rng.integers(-6, 8, rank)]
        start[0] = int(rng.integers(-20, 32))
        tensor = the_map(dims, box, pad=16)
        expected = {}
        for index in itertools.product(*(range(b) for b in box)):
            at = [c + i for c, i in zip(start, index, strict=True)]
            if all(0 <= a < d for a, d in zip(at, dims, strict=True)):
                address = 4096 + at[0] * 2 + sum(a * s for a, s in zip(at[1:], tensor.strides, strict=True))
                expected[index] = address
        window = tensor.window(start)
        if not expected:
            assert window is None
            continue
        found = np.full(tensor.box_shape, -1, np.int64)
        inside = window.address + sum(
            np.arange(n).reshape([-1 if i == axis else 1 for i in range(rank)]) * stride
            for axis, (n, stride) in enumerate(zip(window.shape, window.strides, strict=True))
        )
        found[window.place] = inside
        assert (found >= 0).sum() == 2 * len(expected)
        for index, address in expected.items():
            row = found[tuple(index[:0:-1])]
            assert list(row[2 * index[0] : 2 * index[0] + 2]) == [address, address + 1]


def test_a_box_has_its_outermost_dimension_first():
    tensor = the_map([64, 5, 3], [16, 4, 2])
    assert tensor.box_shape == (2, 4, 32) and tensor.box_bytes == 256


def test_fill_is_zero_or_a_nan_of_the_type():
    assert not the_map([8], [8]).empty_box().any()
    for data_type, dtype in (
        (DataType.FLOAT16, np.float16),
        (DataType.FLOAT32, np.float32),
        (DataType.FLOAT64, np.float64),
    ):
        box = the_map([8], [8], data_type=data_type, fill=OobFill.NAN_REQUEST_ZERO_FMA).empty_box()
        values = box.view(dtype)
        assert np.isnan(values).all() and not np.signbit(values).any() and values.size == 8


TABLES = {
    Swizzle.BYTES_32: ["01234567", "10325476"],
    Swizzle.BYTES_64: ["01234567", "10325476", "23016745", "32107654"],
    Swizzle.BYTES_128: [
        "01234567",
        "10325476",
        "23016745",
        "32107654",
        "45670123",
        "54761032",
        "67452301",
        "76543210",
    ],
}


@pytest.mark.parametrize("swizzle", TABLES)
@pytest.mark.parametrize("base", [0, 1024, 128, 384, 1024 + 7 * 128])
def test_swizzles_follow_the_tables(swizzle, base):
    """Cell j of line i of a table names the source chunk that lies there; the pattern starts at an aligned address."""
    span = {Swizzle.BYTES_32: 32, Swizzle.BYTES_64: 64, Swizzle.BYTES_128: 128}[swizzle]
    tensor = the_map([span // 2, 64], [span // 2, 64], swizzle)
    chunks = tensor.chunks(base)
    table = TABLES[swizzle]
    assert len(chunks) == tensor.box_bytes // 16
    assert sorted(chunks.tolist()) == list(range(base, base + tensor.box_bytes, 16))
    for number, address in enumerate(chunks.tolist()):
        line = address // 128
        source = table[line % len(table)].index(str(address % 128 // 16))
        assert line * 128 + source * 16 - base == number * 16


def test_without_a_swizzle_a_box_is_linear():
    assert the_map([64, 4], [32, 4]).chunks(256).tolist() == list(range(256, 512, 16))


def test_box_address_counts_from_the_tensor():
    tensor = the_map([64, 5, 3], [16, 4, 2])
    assert tensor.box_address([16, 2, 1]) == 4096 + 32 + 2 * 128 + 640
    assert tensor.box_address([-8, 0, 0]) == 4080


def test_alignment_and_size_are_those_of_the_driver():
    assert (tensormap.SIZE, tensormap.ALIGNMENT) == (128, 64)
