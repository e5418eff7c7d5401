// The second pass of split-K and of long column sums: adds the segments' sums in ascending order, then the
// epilogue.
//
// Threads: one per output element, consecutive threads on consecutive columns. No shared memory. With count
// == 0 the sum is zero: a GEMM with K = 0.
#pragma once

#include "common/epilogue.cuh"
#include "common/params.cuh"

template <class Config>
__device__ void ordered_reduce(const OrderedReduceParams& p) {
  using Acc = typename Config::Acc;
  const auto* slabs = static_cast<const Acc*>(p.slabs);  // [count][m][n]
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(p.m) * p.n) return;
  const int row = static_cast<int>(index / p.n), col = static_cast<int>(index % p.n);

  Acc total = p.count > 0 ? slabs[index] : Acc(0);
  if (p.count > 0 && p.accumulate) total = add_rn(previous<Config>(p, row, col), total);
#pragma unroll 8  // eight loads in flight before the first addition
  for (int segment = 1; segment < p.count; ++segment) {
    total = add_rn(total, slabs[segment * p.slab_stride + index]);
  }
  finish<Config>(p, row, col, total);
}
