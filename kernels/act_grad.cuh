// The backward pass of an activation: dz = dy * act'(preact), rounded to the dtype of dy, and on request db =
// column sums of the rounded dz, in one pass over memory.
//
// Threads: a block takes 32 columns of rows_per_block rows (one segment when db is wanted); lane = column. Rows
// are loaded some at a time before the first of them is used, so that their latencies overlap.
// Shared memory: 32 KB. Preconditions: none; any element strides.
#pragma once

#include "common/activation.cuh"
#include "common/column_chain.cuh"
#include "common/params.cuh"

template <class Config>
__device__ void act_grad(const ActGradParams& p) {
  using Acc = typename Config::Acc;
  using In = typename Config::In;
  const auto* dy = static_cast<const In*>(p.dy);
  const auto* preact = static_cast<const typename Config::Preact*>(p.preact);
  auto* dz = static_cast<In*>(p.dz);
  const int column_blocks = (p.cols + kChainColumns - 1) / kChainColumns;
  const int block_row = blockIdx.x / column_blocks;
  const int col = blockIdx.x % column_blocks * kChainColumns + threadIdx.x % 32;
  const bool live = col < p.cols;
  const int first = block_row * p.rows_per_block;
  const int rows = min(p.rows_per_block, p.rows - first);

  struct Loaded {
    In dy;
    typename Config::Preact preact;
  };
  const auto load = [&](int local) {
    const long long row = first + local;
    return Loaded{dy[row * p.dy_row + col * p.dy_col], preact[row * p.z_row + col * p.z_col]};
  };
  const auto gradient = [&](int local, const Loaded& loaded) {
    const Acc slope = activation_slope(to_acc<Acc>(loaded.preact), p.activation);
    In rounded;
    store_rounded(&rounded, mul_rn(to_acc<Acc>(loaded.dy), slope));
    dz[(first + local) * p.dz_row + col * p.dz_col] = rounded;
    return to_acc<Acc>(rounded);
  };

  if (p.want_db == 0) {
    constexpr int kAhead = 8;
    for (int begin = threadIdx.x / 32; begin < rows && live; begin += kAhead * kChainWarps) {
      Loaded ahead[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (begin + r * kChainWarps < rows) ahead[r] = load(begin + r * kChainWarps);
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        if (begin + r * kChainWarps < rows) gradient(begin + r * kChainWarps, ahead[r]);
      }
    }
    return;
  }
  const Acc sum = column_chain<Acc>(rows, live, load, gradient);
  if (threadIdx.x < 32 && live) {
    store_column(sum, static_cast<typename Config::Out*>(p.db), static_cast<Acc*>(p.slabs), block_row, p.cols,
                 col, p.accumulate != 0);
  }
}
