// D = A B + C by one wgmma of 64 x N; one warpgroup and one tile per block. A is [64][32 bytes], B [N][32 bytes] (both
// K contiguous), C and D [64][N].
//
// In shared memory rows have 128 bytes, swizzled; a tile takes 32 of them, the (tile % 4)th step along K, so that
// all start addresses are seen that a kernel with rows of 128 bytes uses. The source defines N, KIND, TRANS, and
// A_FROM_REGISTERS (0 or 1).
#include "ptx.cuh"

constexpr int kWords = 8;  // of a row of A and B, as registers hold them

// Where the 16 bytes `chunk` (0..7) of a row are.
__device__ __forceinline__ int place(int row, int chunk) { return row * 8 + (chunk ^ (row & 7)); }

// K-major, swizzle of 128 bytes; 8 rows have 1024 bytes. The leading offset does not count in this layout.
__device__ __forceinline__ u64 descriptor(const void* p, int step) {
  const u32 address = shared_address(p) + 32 * step;
  return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

extern "C" __global__ void __launch_bounds__(128) micro(const u32* __restrict__ A, const u32* __restrict__ B,
                                                        const float* __restrict__ C, float* __restrict__ D) {
  __shared__ __align__(1024) uint4 rows_a[64 * 8];
  __shared__ __align__(1024) uint4 rows_b[N * 8];
  const int tile = blockIdx.x, t = threadIdx.x, step = tile & 3;
  const int row = (t >> 5) * 16 + (t >> 2 & 7), member = t & 3;

  if (!A_FROM_REGISTERS) rows_a[place(t >> 1, 2 * step + (t & 1))] = ((const uint4*)A)[tile * 128 + t];
  for (int i = t; i < 2 * N; i += 128) {
    rows_b[place(i >> 1, 2 * step + (i & 1))] = ((const uint4*)B)[tile * 2 * N + i];
  }
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
  wgmma_rs(d, a, descriptor(rows_b, step));
#else
  wgmma_ss(d, descriptor(rows_a, step), descriptor(rows_b, step));
#endif
#pragma unroll
  for (int r = 0; r < N / 2; r++) D[at + (r >> 1 & 1) * 8 * N + (r >> 2) * 8 + (r & 1)] = d[r];
}
