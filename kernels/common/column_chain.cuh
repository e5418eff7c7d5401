// Column sums in the canonical order: one chain of additions per column, rows ascending, from +0.
//
// A block takes 32 columns. All its warps fetch rows (many loads in flight), and warp 0 adds them in order
// from shared memory while the others fetch the next rows: the chain costs its latency, not the memory's.
#pragma once

#include "common/types.cuh"

constexpr int kChainColumns = 32;
constexpr int kChainThreads = 256;
constexpr int kChainRows = 64;  // rows fetched between two barriers

// The sum over rows [0, rows) of fetch(row), for the column of this lane; valid in warp 0. fetch is called
// once for every row and by lanes of real columns only (live).
template <class Acc, class Fetch>
__device__ __forceinline__ Acc column_chain(int rows, bool live, Fetch fetch) {
  constexpr int kWarps = kChainThreads / 32;
  constexpr int kRowsPerWarp = kChainRows / kWarps;
  __shared__ Acc chunk[2][kChainRows][kChainColumns];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = (rows + kChainRows - 1) / kChainRows;
  Acc sum = 0;
  for (int c = 0; c <= chunks; ++c) {
    if (c < chunks && live) {
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int row = c * kChainRows + r * kWarps + warp;
        if (row < rows) chunk[c % 2][r * kWarps + warp][lane] = fetch(row);
      }
    }
    if (c > 0 && warp == 0 && live) {
      const int filled = min(kChainRows, rows - (c - 1) * kChainRows);
#pragma unroll 8
      for (int r = 0; r < filled; ++r) sum = add_rn(sum, chunk[(c - 1) % 2][r][lane]);
    }
    __syncthreads();
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
