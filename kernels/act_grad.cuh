// The backward pass of an activation: dz = dy * act'(preact), rounded to the dtype of dy, and on request db =
// column sums of the rounded dz, in one pass over memory.
//
// Threads: a block takes 32 columns of rows_per_block rows (one segment when db is wanted); lane = column.
// Shared memory: 2 * 64 * 32 accumulators. Preconditions: none; any element strides.
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

  const auto gradient = [&](int local) {
    const long long row = first + local;
    const Acc slope = activation_slope(to_acc<Acc>(preact[row * p.z_row + col * p.z_col]), p.activation);
    In* place = dz + row * p.dz_row + col * p.dz_col;
    In rounded;
    store_rounded(&rounded, mul_rn(to_acc<Acc>(dy[row * p.dy_row + col * p.dy_col]), slope));
    *place = rounded;
    return to_acc<Acc>(rounded);
  };

  if (p.want_db == 0) {
    for (int row = threadIdx.x / 32; row < rows && live; row += kChainThreads / 32) gradient(row);
    return;
  }
  const Acc sum = column_chain<Acc>(rows, live, gradient);
  if (threadIdx.x < 32 && live) {
    store_column(sum, static_cast<typename Config::Out*>(p.db), static_cast<Acc*>(p.slabs), block_row, p.cols,
                 col, p.accumulate != 0);
  }
}
