"""Renders the translation unit of one kernel variant: a Config struct and an extern "C" stub over a template."""

from __future__ import annotations

from functools import lru_cache

from .config import Config, GemmConfig, JointConfig
from .params import PARAM_BLOCKS

# Header of each family; the header defines a __device__ template of the family's own name.
HEADERS = {
    "gemm_simt": "gemm_simt.cuh",
    "gemm_mma": "gemm_mma.cuh",
    "gemm_wgmma": "gemm_wgmma.cuh",
    "joint_gemm_simt": "joint_simt.cuh",
    "joint_gemm_mma": "joint_mma.cuh",
    "joint_gemm_wgmma": "joint_wgmma.cuh",
    "column_sum": "bias_grad.cuh",
    "act_grad": "act_grad.cuh",
    "ordered_reduce": "ordered_reduce.cuh",
    "split_planes": "split_planes.cuh",
    "strided_copy": "strided_copy.cuh",
}


def entry_name(family: str) -> str:
    """The kernel's name in a profiler and in the cubin."""
    return f"gpulinear_{family}"


def _struct(name: str, members: dict[str, str]) -> list[str]:
    """A Config struct: types, then constants, whose names start with k."""
    types, constants = [], []
    for member, value in members.items():
        if member[0] == "k":
            kind = "Major" if value.startswith("Major") else "bool" if value in ("true", "false") else "int"
            constants.append(f"  static constexpr {kind} {member} = {value};")
        else:
            types.append(f"  using {member} = {value};")
    return [f"struct {name} {{", *types, *constants, "};"]


@lru_cache(maxsize=1024)
def render(config: Config) -> str:
    """The CUDA source of one variant. It asserts that Python and C++ agree on the parameter block and on smem."""
    family = config.family
    block = PARAM_BLOCKS[family]
    if isinstance(config, JointConfig):
        arguments = "First, Second"
        structs = [*_struct("First", config.first.cpp()), *_struct("Second", config.second.cpp())]
    else:
        arguments, structs = "Config", _struct("Config", config.cpp())
    checks = [f'static_assert(sizeof({block.struct_name}) == {block.size}, "params.py and params.cuh differ in size");']
    checks += [
        # Not __builtin_offsetof: NVRTC knows it from 13.5 on, and 13.0 is what drivers of today bring.
        f'static_assert(__INTADDR__(&(({block.struct_name}*)0)->{name}) == {offset}, "params.py and params.cuh differ at {name}");'
        for name, offset in block.offsets
    ]
    min_blocks, clusters = 1, ""
    if isinstance(config, (GemmConfig, JointConfig)):
        min_blocks = config.min_blocks
        if config.blocks_per_cluster > 1:
            clusters = f"__cluster_dims__({config.blocks_per_cluster}, 1, 1) "
        smem = f"{family}_smem_bytes<{arguments}>()"
        checks.append(f'static_assert({smem} == {config.smem_bytes}, "configs/ and {HEADERS[family]} differ in smem");')
    lines = [
        f'#include "{HEADERS[family]}"',
        *structs,
        *checks,
        f'extern "C" __global__ void {clusters}__launch_bounds__({config.threads}, {min_blocks})',
        f"{entry_name(family)}(const __grid_constant__ {block.struct_name} p) {{",
        f"  {family}<{arguments}>(p);",
        "}",
    ]
    return "\n".join(lines) + "\n"
