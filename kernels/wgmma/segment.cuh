// The sum of a segment of K: one chain of wgmmas, or many short ones, each promoted to a sum in float32.
//
// A tensor core truncates after every step, always towards zero, and over a long chain that adds up. Where the result shall
// be as good as float32's (kPromote > 0), a chain ends after kPromote elements of K, is added to the sum with rounding
// to nearest, and starts anew. While one consumer adds, the tensor cores work for the other.
#pragma once

#include "common/types.cuh"
#include "wgmma/mainloop.cuh"

// sum = A B over k_tiles of the ring.
template <class Config>
__device__ __forceinline__ void multiply_segment(const Ring<Config>& ring, RingPlace<Config::kStages>& place,
                                                 int k_tiles, int consumer, int thread,
                                                 float (&sum)[Config::kBlockN / 2]) {
  if constexpr (Config::kPromote == 0) {
    multiply_chain<Config>(ring, place, k_tiles, consumer, thread, sum);
  } else {
    constexpr int kTileDepth = kDepth<typename Config::In>;
    constexpr int kValues = Config::kBlockN / 2, kChain = Config::kPromote / kTileDepth;
    static_assert(Config::kPromote % kTileDepth == 0 && Config::kSegment % Config::kPromote == 0,
                  "a chain holds whole k-tiles, and a segment whole chains");
    float acc[kValues] = {};  // not read by the first wgmma, but the compiler cannot know
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum[i] = 0.0f;
    for (int t = 0; t < k_tiles; t += kChain) {
      multiply_chain<Config>(ring, place, min(kChain, k_tiles - t), consumer, thread, acc);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sum[i] = add_rn(sum[i], acc[i]);
    }
  }
}
