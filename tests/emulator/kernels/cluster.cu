// out[c] = sum of column c of X[rows, columns] (f32), by clusters of two CTAs: one cluster for 32 columns.
//
// Tiles of 8 rows pass through a ring of two slots in both CTAs: each CTA loads four of the rows by TMA and multicasts
// them to both. CTA r adds up the rows with index % 2 == r, ascending; then the sums of the CTAs are added in rank order
// over distributed shared memory. Warp 0 loads, warp 1 adds.
#include "ptx.cuh"

constexpr int kSlots = 2, kHalf = 4 * 32 * 4, kTile = 2 * kHalf;

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The address of the same place in another CTA of the cluster.
__device__ __forceinline__ u32 map_to(u32 address, u32 rank) {
  u32 mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
__device__ __forceinline__ void arrive_at(u32 barrier, u32 rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(map_to(barrier, rank))
               : "memory");
}
__device__ __forceinline__ void wait_for_cluster(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "AGAIN%=:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra "
      "AGAIN%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void tma_multicast(u32 to, const TensorMap* map, int x, int y, u32 barrier,
                                              u16 ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(ctas)
      : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ float load_from(u32 address, u32 rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(map_to(address, rank)) : "memory");
  return value;
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64)
    cluster_sum(const __grid_constant__ TensorMap map, float* __restrict__ out, int rows) {
  __shared__ __align__(128) float ring[kSlots][8][32];
  __shared__ float sums[32];
  __shared__ u64 barriers[2 * kSlots];
  const u32 rank = cluster_rank(), full = shared_address(barriers), empty = full + 8 * kSlots;
  const int lane = threadIdx.x % 32, first = blockIdx.x / 2 * 32, tiles = (rows + 7) / 8;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; i++) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, 2);  // the slot must be free in both CTAs
    }
    fence_mbarrier_init();
  }
  cluster_sync();  // the barriers exist in both CTAs

  if (threadIdx.x == 0) {
    for (int tile = 0; tile < tiles; tile++) {
      const int slot = tile % kSlots;
      wait_for_cluster(empty + 8 * slot, tile / kSlots & 1 ^ 1);
      mbarrier_expect(full + 8 * slot, kTile);
      tma_multicast(shared_address(ring[slot]) + rank * kHalf, &map, first, 8 * tile + 4 * rank,
                    full + 8 * slot, 3);
    }
  } else if (threadIdx.x >= 32) {
    float sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
      const int slot = tile % kSlots;
      mbarrier_wait(full + 8 * slot, tile / kSlots & 1);
#pragma unroll
      for (int i = 0; i < 4; i++) sum += ring[slot][2 * i + rank][lane];
      __syncwarp();  // all lanes have read
      if (lane < 2) arrive_at(empty + 8 * slot, lane);
    }
    sums[lane] = sum;
  }
  cluster_sync();  // the sums are there

  if (threadIdx.x >= 32 && lane / 16 == rank) {
    const u32 mine = shared_address(&sums[lane]);
    out[first + lane] = load_from(mine, 0) + load_from(mine, 1);
  }
  cluster_sync();  // a CTA's shared memory lives until the other has read it
}
