// How the accumulators of a warpgroup lie in a box of D in shared memory, which TMA takes away or brings.
//
// A box is 64 rows of 128 bytes in the 128-byte swizzle (wgmma/tile.cuh): 64 columns of 16 bits, or 32 of float32.
// A thread holds pairs of neighbours: value 4j + e is at row 16 (thread / 32) + thread % 32 / 4 + 8 (e / 2), column
// 8j + 2 (thread % 4) + e % 2. Neither way of a box has a bank conflict:
//   16 bits   eight rows of one j are an 8x8 matrix of stmatrix and ldmatrix, whose rows are one 16-byte chunk
//             each, and the swizzle has put them into eight different places.
//   float32   four threads have 32 bytes of a row. Eight bytes per thread are served by half warps, four rows, and
//             the swizzle keeps the pairs of chunks of rows 2i and 2i + 1 in one place: so odd rows turn to j ^ 2
//             while even ones turn to j. A select per value is a quarter of what the conflicts would cost.
#pragma once

#include "common/ptx_sm90.cuh"
#include "wgmma/tile.cuh"

// ---- pairs of 16-bit neighbours in a register ----

__device__ __forceinline__ unsigned pack(const Bfloat16*, float low, float high) {
  return cvt_rn_bf16x2_f32(low, high);
}
__device__ __forceinline__ unsigned pack(const Half*, float low, float high) {
  return cvt_rn_f16x2_f32(low, high);
}

template <class T>
__device__ __forceinline__ void unpack(const T*, unsigned pair, float& low, float& high) {
  low = to_acc<float>(T{static_cast<unsigned short>(pair)});
  high = to_acc<float>(T{static_cast<unsigned short>(pair >> 16)});
}

// ---- boxes ----

// `box` is the shared address of one, `thread` the number in the warpgroup.
template <class T>
struct Box {
  static constexpr int kCols = kRow / sizeof(T);
  static constexpr int kValues = kCols / 2;  // of a thread

  // What lane l tells of matrices i / 4 and i / 4 + 1: row l % 8 of matrix l / 8, which are two groups of eight
  // rows, then the next eight columns.
  static __device__ __forceinline__ unsigned matrix_row(unsigned box, int thread, int i) {
    const int lane = thread % 32, r = 16 * (thread / 32) + lane % 16;
    return box + r * kRow + ((i / 4 + lane / 16) ^ (r % 8)) * 16;
  }

  static __device__ __forceinline__ void write(unsigned box, int thread, const float (&v)[kValues]) {
    constexpr const T* kType = nullptr;
#pragma unroll
    for (int i = 0; i < kValues; i += 8) {
      const unsigned pairs[4] = {pack(kType, v[i], v[i + 1]), pack(kType, v[i + 2], v[i + 3]),
                                 pack(kType, v[i + 4], v[i + 5]), pack(kType, v[i + 6], v[i + 7])};
      stmatrix_x4(matrix_row(box, thread, i), pairs);
    }
  }

  static __device__ __forceinline__ void read(unsigned box, int thread, float (&v)[kValues]) {
    constexpr const T* kType = nullptr;
#pragma unroll
    for (int i = 0; i < kValues; i += 8) {
      unsigned pairs[4];
      ldmatrix_x4(pairs, matrix_row(box, thread, i));
#pragma unroll
      for (int e = 0; e < 4; ++e) unpack(kType, pairs[e], v[i + 2 * e], v[i + 2 * e + 1]);
    }
  }
};

template <>
struct Box<float> {
  static constexpr int kCols = kRow / sizeof(float);
  static constexpr int kValues = kCols / 2;

  // Turn `j` of this thread, which an even row's thread gives to its pair j, an odd row's to j ^ 2.
  static __device__ __forceinline__ unsigned pair(unsigned box, int thread, int j, int half) {
    const int lane = thread % 32, r = lane / 4;
    const unsigned first = (lane % 4 / 2 ^ r) * 16 + lane % 2 * 8 ^ r % 2 * 64;
    return box + (16 * (thread / 32) + r + 8 * half) * kRow + (first ^ j * 32);
  }
  static __device__ __forceinline__ bool odd(int thread) { return thread / 4 % 2 != 0; }

  static __device__ __forceinline__ void write(unsigned box, int thread, const float (&v)[kValues]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int even = 4 * j + 2 * half, other = 4 * (j ^ 2) + 2 * half;
        st_shared_v2(pair(box, thread, j, half), odd(thread) ? v[other] : v[even],
                     odd(thread) ? v[other + 1] : v[even + 1]);
      }
    }
  }

  static __device__ __forceinline__ void read(unsigned box, int thread, float (&v)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues / 2; i += 2) {
      float low[2], high[2];  // of pairs i / 4 and i / 4 + 2
      ld_shared_v2(pair(box, thread, i / 4, i / 2 % 2), low[0], high[0]);
      ld_shared_v2(pair(box, thread, i / 4 + 2, i / 2 % 2), low[1], high[1]);
      v[i] = odd(thread) ? low[1] : low[0], v[i + 1] = odd(thread) ? high[1] : high[0];
      v[i + 8] = odd(thread) ? low[0] : low[1], v[i + 9] = odd(thread) ? high[0] : high[1];
    }
  }
};
