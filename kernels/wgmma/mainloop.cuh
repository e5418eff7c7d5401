// The main loop of a consumer warpgroup: 64 rows of the tile, multiplied k-tile by k-tile as the ring fills.
//
// wgmma is asynchronous. A k-tile's instructions are one group; while they run, the warpgroup issues those
// of the next one and only then waits for the first, so that the tensor cores are never without work. A slot may
// be released only after that wait: until then wgmma reads it.
#pragma once

#include "common/plane_pairs.cuh"
#include "common/wgmma.cuh"
#include "wgmma/ring.cuh"

// acc = A B over k_tiles of the ring, in one chain from +0: k ascending, in each step the pairs of planes (where there
// are planes). `thread` is the number in the warpgroup.
template <class Config>
__device__ __forceinline__ void multiply_chain(const Ring<Config>& ring, RingPlace<Config::kStages>& place,
                                               int k_tiles, int consumer, int thread,
                                               float (&acc)[Config::kBlockN / 2]) {
  using TileA = typename Ring<Config>::TileA;
  using TileB = typename Ring<Config>::TileB;
  using Pairs = PlanePairs<Config::kPlanes>;
  using Instruction = Wgmma<Config::kBlockN>;
  int last = place.slot;
  for (int t = 0; t < k_tiles; ++t) {
    mbarrier_wait<false>(ring.full(place.slot), place.parity);
    // 64 rows are 8192 bytes of A in either major.
    const unsigned long long a = TileA::descriptor(ring.a(place.slot) + consumer * kBox);
    const unsigned long long b = TileB::descriptor(ring.b(place.slot));
    wgmma_fence();  // orders the accumulators' last use in registers before what follows
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int pair = 0; pair < Pairs::kCount; ++pair) {
        // The order is that of the layer's A and B, also where they have changed places.
        const int plane_a = Config::kSwapped ? Pairs::b(pair) : Pairs::a(pair);
        const int plane_b = Config::kSwapped ? Pairs::a(pair) : Pairs::b(pair);
        // The first instruction of a chain does not read the accumulators: they need not be cleared.
        Instruction::template multiply<typename Config::In, TileA::kTrans, TileB::kTrans>(
            acc, a + step * TileA::kStep + plane_a * TileA::kPlane,
            b + step * TileB::kStep + plane_b * TileB::kPlane, step + pair > 0 ? 1 : t);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (t > 0) ring.release(last, thread);
    last = place.slot;
    place.advance();
  }
  wgmma_wait<0>();
  pin_registers(acc);
  ring.release(last, thread);
}
