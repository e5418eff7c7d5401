// D = A B + C by one wgmma of 64 x N; one warpgroup and one tile per block. A is [64][32 bytes], B [N][32 bytes] (both
// K contiguous), C and D [64][N].
//
// In shared memory rows have 128 bytes, swizzled. K-major, a row is of M or N, and a tile takes 32 bytes of each, the
// (tile % 4)th step along K. MN-major, a row is 64 elements of M or N, a box 64 rows (of K), and the next 64 of M or N
// are the next box; a tile takes 16 rows of each, again the (tile % 4)th. So all start addresses are seen that a kernel
// with k-tiles of 64 uses. The source defines N, KIND, TRANS, A_FROM_REGISTERS, A_MN and B_MN (0 or 1).
#include "ptx.cuh"

constexpr int kWords = 8;  // of a row of A and B, as registers hold them

// Where the 16 bytes `chunk` (0..7) of a row are.
__device__ __forceinline__ int place(int row, int chunk) { return row * 8 + (chunk ^ (row & 7)); }

// Swizzle of 128 bytes; 8 rows have 1024 bytes, which is the stride offset. The leading offset is the distance of two
// boxes MN-major, and does not count K-major.
template <bool kMn>
__device__ __forceinline__ u64 descriptor(const void* p, int step) {
  const u32 address = shared_address(p) + (kMn ? 16 * 128 : 32) * step;
  const u64 leading = kMn ? 64 * 128 >> 4 : 1;
  return (u64)((address & 0x3FFFF) >> 4) | leading << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// The tile's part of an operand, `extent` rows of 32 bytes along K, to where the descriptor says.
template <bool kMn>
__device__ __forceinline__ void fill(uint4* rows, const u32* operand, int extent, int tile, int step) {
  if constexpr (kMn) {
    const u16* from = (const u16*)operand + tile * extent * 16;
    for (int i = threadIdx.x; i < 16 * extent; i += 128) {
      const int mn = i >> 4, k = i & 15, row = 64 * (mn >> 6) + 16 * step + k;
      ((u16*)(rows + place(row, mn >> 3 & 7)))[mn & 7] = from[i];
    }
  } else {
    for (int i = threadIdx.x; i < 2 * extent; i += 128) {
      rows[place(i >> 1, 2 * step + (i & 1))] = ((const uint4*)operand)[tile * 2 * extent + i];
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) micro(const u32* __restrict__ A, const u32* __restrict__ B,
                                                        const float* __restrict__ C, float* __restrict__ D) {
  __shared__ __align__(1024) uint4 rows_a[64 * 8];
  __shared__ __align__(1024) uint4 rows_b[N * 8];
  const int tile = blockIdx.x, t = threadIdx.x, step = tile & 3;
  const int row = (t >> 5) * 16 + (t >> 2 & 7), member = t & 3;

  if (!A_FROM_REGISTERS) fill<A_MN>(rows_a, A, 64, tile, step);
  fill<B_MN>(rows_b, B, N, tile, step);
  fence_proxy_async();
  __syncthreads();

  float d[N / 2];
  const int at = (tile * 64 + row) * N + member * 2;
#pragma unroll
  for (int r = 0; r < N / 2; r++) d[r] = C[at + (r >> 1 & 1) * 8 * N + (r >> 2) * 8 + (r & 1)];
#if A_FROM_REGISTERS
  u32 a[4];
#pragma unroll
  for (int r = 0; r < 4; r++) a[r] = A[(tile * 64 + row + (r & 1) * 8) * kWords + member + (r >> 1) * 4];
  wgmma_rs(d, a, descriptor<B_MN>(rows_b, step));
#else
  wgmma_ss(d, descriptor<A_MN>(rows_a, step), descriptor<B_MN>(rows_b, step));
#endif
#pragma unroll
  for (int r = 0; r < N / 2; r++) D[at + (r >> 1 & 1) * 8 * N + (r >> 2) * 8 + (r & 1)] = d[r];
}
