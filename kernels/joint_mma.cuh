// Two problems of gemm_mma.cuh in one launch: dgrad and wgrad of a layer, each of which alone leaves SMs idle.
//
// The first blocks work on the first problem, the others on the second; a block does what it does in a launch of its own.
// Smem, registers: of the larger of the two. Needs: blocks of as many threads.
#pragma once

#include "gemm_mma.cuh"

template <class First, class Second>
__device__ constexpr int joint_gemm_mma_smem_bytes() {
  return gemm_mma_smem_bytes<First>() > gemm_mma_smem_bytes<Second>() ? gemm_mma_smem_bytes<First>()
                                                                      : gemm_mma_smem_bytes<Second>();
}

template <class First, class Second>
__device__ void joint_gemm_mma(const JointParams<GemmParams>& p) {
  static_assert(gemm_mma_warps<First>() == gemm_mma_warps<Second>(), "a launch has one number of threads");
  const unsigned of_first = blocks_of(p.first);
  if (blockIdx.x < of_first) {
    gemm_mma<First>(p.first);
  } else {
    gemm_mma<Second>(p.second, blockIdx.x - of_first);
  }
}
