// Two problems of gemm_simt.cuh in one launch: dgrad and wgrad of a layer, each of which alone leaves SMs idle.
//
// The first blocks work on the first problem, the others on the second; a block does what it does in a launch of its own.
// Smem, registers: of the larger of the two. Needs: blocks of as many threads.
#pragma once

#include "gemm_simt.cuh"

template <class First, class Second>
__device__ constexpr int joint_gemm_simt_smem_bytes() {
  return gemm_simt_smem_bytes<First>() > gemm_simt_smem_bytes<Second>() ? gemm_simt_smem_bytes<First>()
                                                                        : gemm_simt_smem_bytes<Second>();
}

template <class First, class Second>
__device__ void joint_gemm_simt(const JointParams<GemmParams>& p) {
  static_assert(gemm_simt_threads<First>() == gemm_simt_threads<Second>(),
                "a launch has one number of threads");
  const unsigned of_first = blocks_of(p.first);
  if (blockIdx.x < of_first) {
    gemm_simt<First>(p.first);
  } else {
    gemm_simt<Second>(p.second, blockIdx.x - of_first);
  }
}
