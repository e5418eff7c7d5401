// Products of operands that are given as planes (split_planes.cuh), and the sum that a chain of them is promoted to.
#pragma once

#include "common/plane_pairs.cuh"
#include "gemm_mma/fragments.cuh"

// acc += A B over one step of K, from the fragments of all planes.
template <class In, int kPlanes, int kFragM, int kFragB>
__device__ __forceinline__ void multiply_planes(float (&acc)[kFragM][2 * kFragB][4],
                                                const unsigned (&a)[kPlanes][kFragM][4],
                                                const unsigned (&b)[kPlanes][kFragB][4]) {
  using Pairs = PlanePairs<kPlanes>;
#pragma unroll
  for (int pair = 0; pair < Pairs::kCount; ++pair) {
#pragma unroll
    for (int i = 0; i < kFragM; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kFragB; ++j) {
        const unsigned (&both)[4] = b[Pairs::b(pair)][j / 2];
        multiply<In>(acc[i][j], a[Pairs::a(pair)][i], both[j % 2 * 2], both[j % 2 * 2 + 1]);
      }
    }
  }
}

// sum += acc, rounded to nearest, where tensor cores truncate; acc = 0.
template <int kFragM, int kFragN>
__device__ __forceinline__ void promote(float (&sum)[kFragM][kFragN][4], float (&acc)[kFragM][kFragN][4]) {
#pragma unroll
  for (int i = 0; i < kFragM; ++i) {
#pragma unroll
    for (int j = 0; j < kFragN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[i][j][e] = add_rn(sum[i][j][e], acc[i][j][e]);
        acc[i][j][e] = 0;
      }
    }
  }
}
