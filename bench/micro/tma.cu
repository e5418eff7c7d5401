// A box of 64 rows of 128 bytes, copied by TMA with the 128-byte swizzle, as the CTAs of a cluster share one: each asks for
// half of the rows, for both. The map's box is 32 rows of 64 elements; (x, y) is where the whole box starts.
//
// D is [2][64][32]: the words of each CTA's shared memory as they lie there; all kMissing where bytes did not come in time.
#include "ptx.cuh"

constexpr u32 kMissing = 0xDEADDEAD;

struct __align__(64) TensorMap {
  char bytes[128];
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128)
    micro(const __grid_constant__ TensorMap map, u32* __restrict__ D, int x, int y) {
  __shared__ __align__(1024) u32 box[64 * 32];
  __shared__ u64 barrier;
  const u32 rank = cluster_rank(), full = shared_address(&barrier);
  if (threadIdx.x == 0) mbarrier_init(full, 1);
  cluster_sync();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, sizeof(box));
    tma_load_multicast(shared_address(box) + rank * (sizeof(box) / 2), &map, x, y + 32 * rank, full, 3);
  }
  bool done = false;
  for (int tries = 0; tries < 1000 && !done; tries++) done = mbarrier_try_wait(full, 0);
  for (int i = threadIdx.x; i < 64 * 32; i += 128) D[rank * 64 * 32 + i] = done ? box[i] : kMissing;
  __syncwarp();
  cluster_sync();  // the shared memory of a CTA outlives what the other one copies there
}
