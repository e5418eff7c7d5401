"""Special registers: their widths, and their values for the threads of a CTA (PTX ISA 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpulinear.emulator.machine import Cta

_AXES = "xyz"
SPECIALS: dict[str, int] = {
    f"%{name}.{axis}": 32
    for name in ("tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
    for axis in _AXES
}
SPECIALS |= dict.fromkeys(
    (
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%lanemask_eq",
        "%lanemask_le",
        "%lanemask_lt",
        "%lanemask_ge",
        "%lanemask_gt",
        "%cluster_ctarank",
        "%cluster_nctarank",
        "%dynamic_smem_size",
        "%total_smem_size",
    ),
    32,
)
SPECIALS["%is_explicit_cluster"] = 1
"""Width in bits. What depends on time or on the placement of CTAs (%clock, %smid, ...) is not modelled."""


def special_values(name: str, cta: Cta) -> npt.NDArray[Any] | int | bool:
    """The value of a special register: one for the CTA, or one for each thread."""
    threads = np.arange(cta.thread_count, dtype=np.uint32)
    lane = threads & 31
    if name == "%is_explicit_cluster":
        return cta.launch.explicit_cluster
    base, _, axis = name[1:].partition(".")
    if axis:
        at = _AXES.index(axis)
        block, grid, cluster = cta.launch.block, cta.launch.grid, cta.launch.cluster_shape
        if base == "tid":
            return [threads % block[0], threads // block[0] % block[1], threads // (block[0] * block[1])][at]
        return {
            "ntid": block[at],
            "ctaid": cta.index[at],
            "nctaid": grid[at],
            "clusterid": cta.index[at] // cluster[at],
            "nclusterid": grid[at] // cluster[at],
            "cluster_ctaid": cta.index[at] % cluster[at],
            "cluster_nctaid": cluster[at],
        }[base]
    bit = np.uint32(1) << lane
    values: dict[str, Any] = {
        "laneid": lane,
        "warpid": threads >> 5,
        "nwarpid": (cta.thread_count + 31) // 32,
        "lanemask_eq": bit,
        "lanemask_lt": bit - np.uint32(1),
        "lanemask_le": bit | (bit - np.uint32(1)),
        "lanemask_ge": ~(bit - np.uint32(1)),
        "lanemask_gt": ~(bit | (bit - np.uint32(1))),
        "cluster_ctarank": cta.rank,
        "cluster_nctarank": len(cta.cluster.ctas),
        "dynamic_smem_size": cta.launch.dynamic_smem,
        "total_smem_size": cta.shared.declared,
    }
    value: npt.NDArray[Any] | int = values[base]
    return value
