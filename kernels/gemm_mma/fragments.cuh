// What a warp's matrix instructions take from a tile in shared memory: fragments of 16 (M or N) x 32 bytes (K: 16
// elements of 16 bits, 8 of 32, 4 of 64) in four registers, by one ldmatrix of four matrices of 8 rows of 16 bytes where
// there is one for the element and the major.
#pragma once

#include "common/ptx.cuh"
#include "gemm_mma/tile.cuh"

enum class Operand { A, B };

// The registers of a fragment of A are the four of one instruction; of B, {b0, b1} of columns 0-7, then of 8-15. An element
// of 64 bits takes two, the low word first.
// kExtent: elements of M or N that the warp owns.
template <class Tile, Operand kOperand, int kExtent>
struct FragmentReader {
  static constexpr bool kAlongK = Tile::kMajor == Major::K;
  static constexpr int kCount = kExtent / 16;
  static constexpr int kBytes = sizeof(typename Tile::Element);
  static_assert((kExtent & (kExtent - 1)) == 0 && kExtent >= 16,
                "fragments are told apart by an XOR of their chunks");
  static_assert(16 % Tile::kPeriod == 0, "rows 16 apart have one swizzle");

  unsigned
      first;  // byte offset in a tile of what this lane reads (ldmatrix: points at) for fragment 0 and step 0

  // mn0: where the warp's part of the tile starts, a multiple of kExtent.
  __device__ __forceinline__ explicit FragmentReader(int mn0) {
    const int matrix = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
    // By elements: the lane's own element of the fragment's first 8 (M or N) x 4 (K).
    const int mn = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    // Matrices 0 to 3 are (0, 0), (1, 0), (0, 1), (1, 1) as (half of M, half of K) for A, as (half of K, half of N) for B.
    const int half_mn = kOperand == Operand::A ? matrix % 2 : matrix / 2;
    const int half_k = kOperand == Operand::A ? matrix / 2 : matrix % 2;
    if constexpr (Tile::kByElements) {
      const int at_row = kAlongK ? mn0 + mn : k, at = kAlongK ? k : mn0 + mn;
      first = Tile::offset(at_row, at / Tile::kChunk) + at % Tile::kChunk * kBytes;
    } else if constexpr (kAlongK) {
      first = Tile::offset(mn0 + 8 * half_mn + row, half_k);
    } else {
      first = Tile::offset(8 * half_k + row, mn0 / 8 + half_mn);
    }
  }

  // Fragment i of step `step` (32 bytes along K) of the tile at shared address `tile`.
  __device__ __forceinline__ void load(unsigned (&out)[4], unsigned tile, int i, int step) const {
    if constexpr (Tile::kByElements) {
#pragma unroll
      for (int half_mn = 0; half_mn < 2; ++half_mn) {
        if constexpr (kBytes == 8) {
          ld_shared_v2(element(tile, 16 * i + 8 * half_mn, step, 0), out[2 * half_mn], out[2 * half_mn + 1]);
        } else {
#pragma unroll
          for (int half_k = 0; half_k < 2; ++half_k) {
            out[kOperand == Operand::A ? half_mn + 2 * half_k : half_k + 2 * half_mn] =
                ld_shared_u32(element(tile, 16 * i + 8 * half_mn, step, 4 * half_k));
          }
        }
      }
    } else if constexpr (kAlongK) {
      ldmatrix_x4(out, tile + (first ^ step << 5) + i * 16 * Tile::kRowBytes);
    } else {
      ldmatrix_x4_trans(out, tile + (first ^ i << 5) + step * 16 * Tile::kRowBytes);
    }
  }

 private:
  // Shared address of the lane's element that lies mn (a multiple of 8) and k (of 4) from its first one of a step.
  __device__ __forceinline__ unsigned element(unsigned tile, int mn, int step, int k) const {
    if constexpr (kAlongK) return tile + (first ^ (step * 32 + k * kBytes)) + mn * Tile::kRowBytes;
    return tile + (first ^ mn * kBytes) + (step * (32 / kBytes) + k) * Tile::kRowBytes;
  }
};

// float32 elements that were not rounded before become tf32 numbers, to nearest, ties away from zero.
__device__ __forceinline__ void round_tf32(unsigned (&fragment)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) fragment[r] = cvt_rna_tf32_f32(__uint_as_float(fragment[r]));
}

// d (16, 8) += a b over a step of K, for the element types of tensor cores. kMmaK: elements along K of one instruction.
template <class In, int kMmaK = 32 / sizeof(In), class Acc>
__device__ __forceinline__ void multiply(Acc (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void multiply<Half>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                               unsigned b1) {
  mma_m16n8k16_f16(d, a, b0, b1);
}
// Two halves of the step, k ascending.
template <>
__device__ __forceinline__ void multiply<Half, 8>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                  unsigned b1) {
  mma_m16n8k8_f16(d, a[0], a[1], b0);
  mma_m16n8k8_f16(d, a[2], a[3], b1);
}
template <>
__device__ __forceinline__ void multiply<Bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                   unsigned b1) {
  mma_m16n8k16_bf16(d, a, b0, b1);
}
// The elements are tf32 numbers as float32 holds them.
template <>
__device__ __forceinline__ void multiply<float>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                unsigned b1) {
  mma_m16n8k8_tf32(d, a, b0, b1);
}
// An instruction for all 16 rows is from sm_90 on. Of its depths, 4, 8 and 16, all are single DMMAs there: 4 is what sm_80
// has too, and what takes the fewest registers of fragments.
template <>
__device__ __forceinline__ void multiply<double>(double (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1) {
  const double upper = __hiloint2double(a[1], a[0]), lower = __hiloint2double(a[3], a[2]);
  const double b = __hiloint2double(b1, b0);
#if __CUDA_ARCH__ >= 900
  mma_m16n8k4_f64(d, upper, lower, b);
#else
  mma_m8n8k4_f64(d[0], d[1], upper, b);
  mma_m8n8k4_f64(d[2], d[3], lower, b);
#endif
}
