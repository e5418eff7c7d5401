// The producer: one thread that keeps the ring full. TMA does the addressing, the bounds and the swizzle.
#pragma once

#include "wgmma/previous.cuh"
#include "wgmma/ring.cuh"
#include "wgmma/scheduler.cuh"

// A box of the operand, or of one of its planes: the map then has these as its third dimension, so that what lies
// beyond the edge of one plane arrives as zeros, not as the next one.
template <int kPlanes>
__device__ __forceinline__ void load_box(unsigned smem, const TensorMap* map, int x, int y, int plane,
                                         unsigned full) {
  if constexpr (kPlanes == 1) {
    tma_load(smem, map, x, y, full);
  } else {
    tma_load_3d(smem, map, x, y, plane, full);
  }
}

template <class Config>
__device__ __forceinline__ void produce(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                        Scheduler<Config>& scheduler, RingPlace<Config::kStages>& place) {
  using TileA = typename Ring<Config>::TileA;
  using TileB = typename Ring<Config>::TileB;
  constexpr int kTileDepth = kDepth<typename Config::In>;
  constexpr unsigned short kEveryCta = (1 << Config::kCluster) - 1;
  static_assert(Config::kPlanes == 1 || Config::kCluster == 1, "multicasts are of matrices, not of planes");
  WorkItem work;
  while (scheduler.next(work)) {
    const int first_end = min(work.k_end, work.k_begin + Config::kSegment);
    for (int k = work.k_begin; k < work.k_end; k += kTileDepth) {
      const unsigned full = ring.full(place.slot);
      mbarrier_wait<(Config::kCluster > 1)>(ring.empty(place.slot), place.parity ^ 1);
      // Announced before it is asked for. Boxes at an edge count whole: TMA delivers their zeros.
      mbarrier_arrive_expect(full, Ring<Config>::kSlotBytes);
#pragma unroll
      for (int plane = 0; plane < Config::kPlanes; ++plane) {
        const unsigned tile_a = ring.a(place.slot) + plane * TileA::kBytes;
        const unsigned tile_b = ring.b(place.slot) + plane * TileB::kBytes;
        TileA::load(tile_a, work.m0, k, 0, [&](unsigned smem, int x, int y) {
          load_box<Config::kPlanes>(smem, &p.map_a, x, y, plane, full);
        });
        TileB::load(tile_b, work.n0, k, scheduler.rank, [&](unsigned smem, int x, int y) {
          if constexpr (Config::kCluster == 1) {
            load_box<Config::kPlanes>(smem, &p.map_b, x, y, plane, full);
          } else {
            tma_load_multicast(smem, &p.map_b, x, y, full, kEveryCta);
          }
        });
      }
      place.advance();
      // What D holds follows the first segment, whose sum it goes in front of.
      if constexpr (Config::kTmaStore) {
        if (p.accumulate && k < first_end && k + kTileDepth >= first_end) {
          load_previous<Config>(p, ring, place, work);
        }
      }
    }
  }
}
