// Column sums in the canonical order: one chain of additions per column, rows ascending, from +0.
//
// A block takes 32 columns. All its warps fetch a chunk of rows, and warp 0 adds the chunk's rows in order from
// shared memory while the next chunk is in flight: the chain costs its own latency, not the memory's.
#pragma once

#include "common/types.cuh"

constexpr int kChainColumns = 32;
constexpr int kChainThreads = 256;
constexpr int kChainWarps = kChainThreads / 32;

// Rows of a chunk: 16 KB of accumulators, two chunks at a time.
template <class Acc>
constexpr int kChainRows = 16384 / (kChainColumns * sizeof(Acc));

// The sum over rows [0, rows) for the column of this lane; valid in warp 0. Every row of a real column (live)
// is first loaded, load(row), and later, when it has arrived, turned into what is added, finish(row, loaded).
template <class Acc, class Load, class Finish>
__device__ __forceinline__ Acc column_chain(int rows, bool live, Load load, Finish finish) {
  constexpr int kRows = kChainRows<Acc>, kPerWarp = kRows / kChainWarps;
  using Loaded = decltype(load(0));
  __shared__ Acc chunk[2][kRows][kChainColumns];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = (rows + kRows - 1) / kRows;
  Loaded ahead[kPerWarp];
  const auto fetch = [&](int c) {
#pragma unroll
    for (int r = 0; r < kPerWarp; ++r) {
      const int row = c * kRows + r * kChainWarps + warp;
      if (live && row < rows) ahead[r] = load(row);
    }
  };
  Acc sum = 0;
  if (chunks > 0) fetch(0);
  for (int c = 0; c < chunks; ++c) {
#pragma unroll
    for (int r = 0; r < kPerWarp; ++r) {
      const int row = c * kRows + r * kChainWarps + warp;
      if (live && row < rows) chunk[c % 2][r * kChainWarps + warp][lane] = finish(row, ahead[r]);
    }
    __syncthreads();  // the chunk is complete, and warp 0 is done with the one before, which is refilled next
    if (c + 1 < chunks) fetch(c + 1);
    if (warp == 0 && live) {
      const int filled = min(kRows, rows - c * kRows);
#pragma unroll 8
      for (int r = 0; r < filled; ++r) sum = add_rn(sum, chunk[c % 2][r][lane]);
    }
  }
  return sum;
}

// One segment's sum goes to its slab, or is the result when it is the only one.
template <class Out, class Acc>
__device__ __forceinline__ void store_column(Acc sum, Out* out, Acc* slabs, int segment, int cols, int col,
                                             bool accumulate) {
  if (slabs != nullptr) {
    slabs[static_cast<long long>(segment) * cols + col] = sum;
  } else {
    if (accumulate) sum = add_rn(to_acc<Acc>(out[col]), sum);
    store_rounded(out + col, sum);
  }
}
