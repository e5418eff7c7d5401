// What a warp's matrix instructions take from a tile in shared memory: fragments of 16 (M or N) x 16 (K) elements,
// each one ldmatrix of four 8x8 matrices.
#pragma once

#include "common/ptx.cuh"
#include "gemm_mma/tile.cuh"

enum class Operand { A, B };

// The registers of a fragment of A are the four of one instruction; of B, {b0, b1} of columns 0-7, then of 8-15.
// kExtent: elements of M or N that the warp owns.
template <class Tile, Operand kOperand, int kExtent>
struct FragmentReader {
  static constexpr bool kAlongK = Tile::kMajor == Major::K;
  static constexpr int kCount = kExtent / 16;
  static_assert((kExtent & (kExtent - 1)) == 0 && kExtent >= 16,
                "fragments are told apart by an XOR of their chunks");
  static_assert(16 % (Tile::kRowsPerLine * (Tile::kMask + 1)) == 0, "rows 16 apart have one swizzle");

  unsigned
      first;  // byte offset in a tile of the row that this lane points ldmatrix at, for fragment 0 and step 0

  // mn0: where the warp's part of the tile starts, a multiple of kExtent.
  __device__ __forceinline__ explicit FragmentReader(int mn0) {
    const int matrix = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
    // Matrices 0 to 3 are (0, 0), (1, 0), (0, 1), (1, 1) as (half of M, half of K) for A, as (half of K, half of N) for B.
    const int half_mn = kOperand == Operand::A ? matrix % 2 : matrix / 2;
    const int half_k = kOperand == Operand::A ? matrix / 2 : matrix % 2;
    first = kAlongK ? Tile::offset(mn0 + 8 * half_mn + row, half_k)
                    : Tile::offset(8 * half_k + row, mn0 / 8 + half_mn);
  }

  // Fragment i of k16 step `step` of the tile at shared address `tile`.
  __device__ __forceinline__ void load(unsigned (&out)[4], unsigned tile, int i, int step) const {
    if constexpr (kAlongK) {
      ldmatrix_x4(out, tile + (first ^ step << 5) + i * 16 * Tile::kRowBytes);
    } else {
      ldmatrix_x4_trans(out, tile + (first ^ i << 5) + step * 16 * Tile::kRowBytes);
    }
  }
};

// d (16, 8) += a b, for the element types of tensor cores.
template <class In>
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void multiply<Half>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                               unsigned b1) {
  mma_m16n8k16_f16(d, a, b0, b1);
}
template <>
__device__ __forceinline__ void multiply<Bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                   unsigned b1) {
  mma_m16n8k16_bf16(d, a, b0, b1);
}
