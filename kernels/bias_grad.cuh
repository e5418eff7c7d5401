// Column sums: the gradient of a bias.
//
// Threads: a block takes 32 columns of one segment of kSegment rows; lane = column, warps fetch rows.
// Shared memory: 32 KB. Preconditions: none; any element strides.
#pragma once

#include "common/column_chain.cuh"
#include "common/params.cuh"

template <class Config>
__device__ void column_sum(const ColumnSumParams& p) {
  using Acc = typename Config::Acc;
  using In = typename Config::In;
  const auto* x = static_cast<const In*>(p.x);
  const int column_blocks = (p.cols + kChainColumns - 1) / kChainColumns;
  const int segment = blockIdx.x / column_blocks;
  const int col = blockIdx.x % column_blocks * kChainColumns + threadIdx.x % 32;
  const bool live = col < p.cols;
  const int first = segment * Config::kSegment;
  const int rows = min(Config::kSegment, p.rows - first);

  const Acc sum = column_chain<Acc>(
      rows, live, [&](int row) { return x[(first + row) * p.row_stride + col * p.col_stride]; },
      [&](int, In loaded) { return to_acc<Acc>(loaded); });

  if (threadIdx.x < 32 && live) {
    store_column(sum, static_cast<typename Config::Out*>(p.out), static_cast<Acc*>(p.slabs), segment, p.cols,
                 col, p.accumulate != 0);
  }
}
