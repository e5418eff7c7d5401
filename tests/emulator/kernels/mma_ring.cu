// C[M,N] (f32) = A[M,K] (bf16) B[K,N] (bf16) on sm_80: a ring of three cp.async stages, XOR-swizzled rows of 64 bytes,
// ldmatrix and mma.sync. A tile is 32x32x32, with two warps of 16x32 each; K and N are multiples of 8.
// The results pass through shared memory, so that every warp stores whole rows.
#include "ptx.cuh"

constexpr int kStages = 3, kTile = 2048, kStage = 2 * kTile;

// Where the 16 bytes `chunk` (0..3) of a row are: the eight rows of an 8x8 matrix lie in different banks.
__device__ __forceinline__ u32 place(int row, int chunk) {
  return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

extern "C" __global__ void __launch_bounds__(64)
    mma_ring(const u16* __restrict__ A, const u16* __restrict__ B, float* __restrict__ C, int M, int N,
             int K) {
  __shared__ __align__(128) unsigned char ring[kStages * kStage];
  const u32 base = shared_address(ring);
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  const int m0 = blockIdx.y * 32, n0 = blockIdx.x * 32;

  auto load = [&](int stage, int k0) {
    const u32 a = base + stage * kStage, b = a + kTile;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = (t + 64 * i) >> 2, chunk = t & 3;
      const bool in_a = m0 + row < M && k0 + 8 * chunk < K;
      const bool in_b = k0 + row < K && n0 + 8 * chunk < N;
      cp_async(a + place(row, chunk), in_a ? A + (m0 + row) * K + k0 + 8 * chunk : A, in_a ? 16 : 0);
      cp_async(b + place(row, chunk), in_b ? B + (k0 + row) * N + n0 + 8 * chunk : B, in_b ? 16 : 0);
    }
  };

  float acc[4][4] = {};
  const int steps = (K + 31) / 32;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; stage++) {
    if (stage < steps) load(stage, 32 * stage);
    cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // everybody's copies are here, and everybody has read the slot that is filled next
    const int next = step + kStages - 1;
    if (next < steps) load(next % kStages, 32 * next);
    cp_async_commit();
    const u32 a = base + step % kStages * kStage, b = a + kTile;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      u32 fa[4];
      ldmatrix(fa, a + place(16 * warp + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < 2; j++) {
        u32 fb[4];
        ldmatrix_trans(fb, b + place(16 * k + (lane & 15), 2 * j + (lane >> 4)));
        mma(acc[2 * j], fa, fb[0], fb[1]);
        mma(acc[2 * j + 1], fa, fb[2], fb[3]);
      }
    }
  }

  cp_async_wait<0>();
  __syncthreads();  // the ring is free
  float* mine = (float*)ring + 16 * 32 * warp;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float* at = mine + (lane >> 2) * 32 + 8 * j + 2 * (lane & 3);
    *(float2*)at = make_float2(acc[j][0], acc[j][1]);
    *(float2*)(at + 8 * 32) = make_float2(acc[j][2], acc[j][3]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = 4 * i + (lane >> 3), col = 4 * (lane & 7);
    const int m = m0 + 16 * warp + row, n = n0 + col;
    if (m < M && n < N) *(float4*)(C + m * N + n) = *(float4*)(mine + 32 * row + col);
  }
}
