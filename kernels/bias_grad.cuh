// Column sums: the gradient of a bias.
//
// Threads: a block takes 32 columns of one segment of kSegment rows; lane = column, warps fetch rows.
// Shared memory: 2 * 64 * 32 accumulators. Preconditions: none; any element strides.
#pragma once

#include "common/column_chain.cuh"
#include "common/params.cuh"

template <class Config>
__device__ void column_sum(const ColumnSumParams& p) {
  using Acc = typename Config::Acc;
  const auto* x = static_cast<const typename Config::In*>(p.x);
  const int column_blocks = (p.cols + kChainColumns - 1) / kChainColumns;
  const int segment = blockIdx.x / column_blocks;
  const int col = blockIdx.x % column_blocks * kChainColumns + threadIdx.x % 32;
  const bool live = col < p.cols;
  const int first = segment * Config::kSegment;
  const int rows = min(Config::kSegment, p.rows - first);

  const Acc sum = column_chain<Acc>(
      rows, live, [&](int row) { return to_acc<Acc>(x[(first + row) * p.row_stride + col * p.col_stride]); });

  if (threadIdx.x < 32 && live) {
    store_column(sum, static_cast<typename Config::Out*>(p.out), static_cast<Acc*>(p.slabs), segment, p.cols,
                 col, p.accumulate != 0);
  }
}
