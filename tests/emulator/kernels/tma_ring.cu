// C[M,N] (f32) = A[M,K] B (bf16) on Hopper. The CTAs share out the 128x128 tiles; one warpgroup fills a ring of TMA
// boxes (64 deep, 128-byte swizzle), two others multiply them with wgmma, 64 rows each.
//
// B_MAJOR_N   0: B is [N,K], so K is contiguous; 1: B is [K,N].
// EPILOGUE    0: plain stores; 1: through shared memory and TMA stores; 2: the same, added to C.
#include "ptx.cuh"

constexpr int kStages = 3, kTile = 128 * 64 * 2, kPatch = 64 * 32 * 4;

extern "C" __global__ void __launch_bounds__(384, 1)
    tma_ring(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
             const __grid_constant__ TensorMap map_c, float* __restrict__ C, int M, int N, int K) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 ring_a = shared_address(shared), ring_b = ring_a + kStages * kTile;
  const u32 patches = ring_b + kStages * kTile;  // of the epilogue: one for each of the two consumers
  const u32 full = patches + 2 * kPatch, empty = full + 8 * kStages;
  const int steps = (K + 63) / 64, across = (N + 127) / 128, tiles = (M + 127) / 128 * across;
  const int group = threadIdx.x / 128, t = threadIdx.x % 128;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, 2);
    }
    fence_mbarrier_init();
  }
  __syncthreads();  // the barriers exist

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (t != 0) return;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int m0 = tile / across * 128, n0 = tile % across * 128;
      for (int step = 0; step < steps; step++, turn++) {
        const int slot = turn % kStages;
        const u32 parity = turn / kStages & 1;
        mbarrier_wait(empty + 8 * slot, parity ^ 1);  // the first turn finds empty slots
        mbarrier_expect(full + 8 * slot, 2 * kTile);
        tma_load(ring_a + slot * kTile, &map_a, 64 * step, m0, full + 8 * slot);
#if B_MAJOR_N
        tma_load(ring_b + slot * kTile, &map_b, n0, 64 * step, full + 8 * slot);
        tma_load(ring_b + slot * kTile + kTile / 2, &map_b, n0 + 64, 64 * step, full + 8 * slot);
#else
        tma_load(ring_b + slot * kTile, &map_b, 64 * step, n0, full + 8 * slot);
#endif
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int consumer = group - 1;
  int turn = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float d[64];
    for (int step = 0; step < steps; step++, turn++) {
      const int slot = turn % kStages;
      mbarrier_wait(full + 8 * slot, turn / kStages & 1);
      // A: K contiguous, 8 rows of 128 bytes are 1024 apart.
      const u64 a = descriptor(ring_a + slot * kTile + consumer * (kTile / 2), 16, 1024, 1);
#if B_MAJOR_N
      // 64 columns are kTile / 2 apart, 8 steps of k 1024; 16 steps of k are 2048 bytes.
      const u64 b = descriptor(ring_b + slot * kTile, kTile / 2, 1024, 1);
      const int b_step = 2048 >> 4;
#else
      const u64 b = descriptor(ring_b + slot * kTile, 16, 1024, 1);
      const int b_step = 32 >> 4;
#endif
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) wgmma<B_MAJOR_N>(d, a + k * (32 >> 4), b + k * b_step, (step | k) != 0);
      wgmma_commit();
      wgmma_wait<0>();
      if (t == 0) mbarrier_arrive(empty + 8 * slot);
    }

    const int m0 = tile / across * 128 + 64 * consumer, n0 = tile % across * 128;
    const int row = 16 * (t / 32) + t % 32 / 4, col = 2 * (t % 4);
#if EPILOGUE == 0
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const int m = m0 + row, n = n0 + 8 * j + col;
      if (n < N) {
        if (m < M) *(float2*)(C + m * N + n) = make_float2(d[4 * j], d[4 * j + 1]);
        if (m + 8 < M) *(float2*)(C + (m + 8) * N + n) = make_float2(d[4 * j + 2], d[4 * j + 3]);
      }
    }
#else
    // 32 columns at a time: rows of 128 bytes in the 128-byte swizzle, as map_c has it.
    unsigned char* patch = shared + 2 * kStages * kTile + consumer * kPatch;
#pragma unroll
    for (int part = 0; part < 4; part++) {
      if (t == 0) bulk_wait_read();
      named_barrier(1 + consumer, 128);  // the patch is free
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int at = 4 * (8 * j + col), chunk = (at >> 4) ^ (row & 7), i = 16 * part + 4 * j;
        float2* to = (float2*)(patch + 128 * row + 16 * chunk + (at & 15));
        to[0] = make_float2(d[i], d[i + 1]);
        to[8 * 128 / 8] = make_float2(d[i + 2], d[i + 3]);
      }
      fence_proxy_async();
      named_barrier(1 + consumer, 128);  // the patch is written
      if (t == 0) {
#if EPILOGUE == 1
        tma_store(&map_c, n0 + 32 * part, m0, shared_address(patch));
#else
        tma_add(&map_c, n0 + 32 * part, m0, shared_address(patch));
#endif
        bulk_commit();
      }
    }
#endif
  }
#if EPILOGUE != 0
  if (t == 0) bulk_wait();  // shared memory is read until then
#endif
}
