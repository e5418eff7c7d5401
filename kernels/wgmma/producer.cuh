// The producer: one thread that keeps the ring full. TMA does the addressing, the bounds and the swizzle.
#pragma once

#include "wgmma/previous.cuh"
#include "wgmma/ring.cuh"
#include "wgmma/scheduler.cuh"

template <class Config>
__device__ __forceinline__ void produce(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                        Scheduler<Config> scheduler) {
  using TileA = typename Ring<Config>::TileA;
  using TileB = typename Ring<Config>::TileB;
  constexpr unsigned short kEveryCta = (1 << Config::kCluster) - 1;
  RingPlace<Config::kStages> place;
  WorkItem work;
  while (scheduler.next(work)) {
    const int first_end = min(work.k_end, work.k_begin + Config::kSegment);
    for (int k = work.k_begin; k < work.k_end; k += kDepth) {
      const unsigned full = ring.full(place.slot);
      mbarrier_wait<(Config::kCluster > 1)>(ring.empty(place.slot), place.parity ^ 1);
      // Announced before it is asked for. Boxes at an edge count whole: TMA delivers their zeros.
      mbarrier_arrive_expect(full, Ring<Config>::kSlotBytes);
      TileA::load(ring.a(place.slot), work.m0, k, 0,
                  [&](unsigned smem, int x, int y) { tma_load(smem, &p.map_a, x, y, full); });
      TileB::load(ring.b(place.slot), work.n0, k, scheduler.rank, [&](unsigned smem, int x, int y) {
        if constexpr (Config::kCluster == 1) {
          tma_load(smem, &p.map_b, x, y, full);
        } else {
          tma_load_multicast(smem, &p.map_b, x, y, full, kEveryCta);
        }
      });
      place.advance();
      // What D holds follows the first segment, whose sum it goes in front of.
      if constexpr (Config::kTmaStore) {
        if (p.accumulate && k < first_end && k + kDepth >= first_end) {
          load_previous<Config>(p, ring, place, work);
        }
      }
    }
  }
}
