// The bias gradient of a wgrad, on the way: db[m] = the sum over k of A[m, k], so that dy is read once.
//
// A of a wgrad is dy transposed, MN-major: the rows of its k-tile in shared memory are rows of dy. Of the blocks with
// one tile of A the first along N sums it: a thread has a column, and adds the rows of a k-tile once they are there, in
// the order of column_sum: a chain per segment, from +0, then the segments' sums, ascending. The rows beyond K are
// zeros and change no bit: a chain that starts at +0 never is -0.
//
// Cost: three instructions per row, and 4 clocks from one addition of the chain to the next: some 200 clocks per k-tile
// of 32 rows in a warp, while other warps multiply (128 x 128 on sm_80: 512 clocks per warp and k-tile).
#pragma once

#include "common/params.cuh"
#include "gemm_mma/tile.cuh"

// An element in shared memory.
template <class In>
__device__ __forceinline__ float load_element(unsigned address) {
  if constexpr (sizeof(In) == 4) {
    return __uint_as_float(ld_shared_u32(address));
  } else {
    return to_acc<float>(In{ld_shared_u16(address)});
  }
}

template <class Config, class TileA>
struct BiasGrad {
  using In = typename TileA::Element;
  using Db = typename Config::Db;
  static constexpr int kChunk = TileA::kChunk;
  static_assert(TileA::kMajor == Major::MN && Config::kPlanes == 1, "rows of dy lie along M of A");

  const GemmParams& p;
  int col;    // of this thread; p.m where it has none
  float sum;  // of this segment so far
  float total;

  __device__ __forceinline__ BiasGrad(const GemmParams& params, int m0, int n0)
      : p(params), col(p.m), sum(0.0f), total(0.0f) {
    if (n0 == 0 && threadIdx.x < Config::kBlockM) col = min(m0 + static_cast<int>(threadIdx.x), p.m);
    if (col < p.m && p.accumulate && p.splits == 1) total = to_acc<float>(static_cast<const Db*>(p.db)[col]);
  }

  // The rows of the k-tile at shared address `tile`, ascending.
  __device__ __forceinline__ void add_tile(unsigned tile) {
    if (col == p.m) return;
    const int local = threadIdx.x;
    const unsigned first = tile + local % kChunk * sizeof(In);
#pragma unroll
    for (int row = 0; row < Config::kBlockK; ++row) {
      sum = add_rn(sum, load_element<In>(first + TileA::offset(row, local / kChunk)));
    }
  }

  // The segment is complete; is it the last one of K?
  __device__ __forceinline__ void end_segment(int segment, bool last) {
    if (col == p.m) return;
    total = add_rn(total, sum);
    sum = 0.0f;
    if (p.splits > 1) {
      static_cast<float*>(p.db_slabs)[static_cast<long long>(segment) * p.m + col] = total;
      total = 0.0f;
    } else if (last) {
      store_rounded(static_cast<Db*>(p.db) + col, total);
    }
  }
};

struct NoBiasGrad {
  __device__ __forceinline__ NoBiasGrad(const GemmParams&, int, int) {}
  __device__ __forceinline__ void add_tile(unsigned) {}
  __device__ __forceinline__ void end_segment(int, bool) {}
};

template <class Config, class TileA, bool kBiasGrad = Config::kBiasGrad>
struct BiasGradOf {
  using Type = BiasGrad<Config, TileA>;
};
template <class Config, class TileA>
struct BiasGradOf<Config, TileA, false> {
  using Type = NoBiasGrad;
};
