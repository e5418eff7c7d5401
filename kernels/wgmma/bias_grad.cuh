// The bias gradient of a wgrad, on the way: db[m] = the sum over k of A[m, k], so that dy is read once.
//
// A of a wgrad is dy transposed, M-major: a box of a k-tile is 64 rows of dy, 64 columns each (wgmma/tile.cuh). One
// warp for each box, idle otherwise beside the producer, reads the boxes in the ring as consumers do, two columns per
// lane, and adds rows in the order of column_sum: a chain per segment, from +0, then the segments' sums, ascending.
// The rows that TMA fills up with zeros change no bit: a chain that starts at +0 never is -0.
//
// All tiles of D in one row of tiles have the same A: the first along N is summed. Of the others, and of a problem without
// db in one launch with one that has it (joint_wgmma.cuh), the warps only count the k-tiles, for they release every slot,
// also those that bring what D holds (wgmma/previous.cuh): an arrival for each phase is what lets anybody know which
// phase it is.
//
// Cost: 64 loads, 128 conversions and 128 additions per warp and k-tile, and 4 clocks from one addition of a chain to
// the next: some 350 clocks, beside 4 kBlockN of multiplication for two consumers and 2 kBlockN for one.
#pragma once

#include "common/chunk.cuh"
#include "wgmma/previous.cuh"
#include "wgmma/ring.cuh"
#include "wgmma/scheduler.cuh"

// sums += the rows of a box at shared address `box`, ascending: this lane's two columns.
template <class In>
__device__ __forceinline__ void add_box(unsigned box, int lane, float (&sums)[2]) {
  const unsigned word = box + 4 * lane;
#pragma unroll
  for (int row = 0; row < kDepth<In>; ++row) {
    // Chunk c of row r lies at chunk c ^ (r % 8): the lanes read all 32 banks.
    float pair[2];
    unpack(ld_shared_u32((word ^ (row % 8) << 4) + row * kRow), static_cast<const In*>(nullptr), pair);
    sums[0] = add_rn(sums[0], pair[0]);
    sums[1] = add_rn(sums[1], pair[1]);
  }
}

// By all lanes of the warp of box number `box`.
template <class Config>
__device__ __forceinline__ void sum_bias_grad(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                              Scheduler<Config>& scheduler, RingPlace<Config::kStages>& place,
                                              int box, int lane) {
  static_assert(!Config::kBiasGrad || (Config::kMajorA == Major::MN && !Config::kSwapped),
                "rows of dy lie along M of A");
  static_assert(64 * Config::kBiasGradWarps == Config::kBlockM, "a warp for each box of A");
  static_assert(Config::kPlanes == 1, "the sum of dy's planes is not that of dy");
  auto* db = static_cast<typename Config::Db*>(p.db);
  WorkItem work;
  while (scheduler.next(work)) {
    const bool summed = Config::kBiasGrad && work.n0 == 0;
    const int col = work.m0 + 64 * box + 2 * lane;
    const int live = summed ? min(2, p.m - col) : 0;  // of this lane's columns; none where it is negative
    float totals[2] = {};
    if (p.accumulate) {
      for (int e = 0; e < live; ++e) totals[e] = to_acc<float>(db[col + e]);
    }
    for (int begin = work.k_begin; begin < work.k_end; begin += Config::kSegment) {
      const int end = min(begin + Config::kSegment, work.k_end);
      float sums[2] = {};
      for (int k = begin; k < end; k += kDepth<typename Config::In>) {
        mbarrier_wait<false>(ring.full(place.slot), place.parity);
        if (summed) add_box<typename Config::In>(ring.a(place.slot) + box * kBox, lane, sums);
        ring.release_warp(place.slot, lane);
        place.advance();
      }
      if constexpr (Config::kTmaStore) {
        if (p.accumulate && begin == work.k_begin) {
          for (int i = 0; i < PreviousSlots<Config>::kSlots; ++i) {  // what D holds, for the consumers
            mbarrier_wait<false>(ring.full(place.slot), place.parity);
            ring.release_warp(place.slot, lane);
            place.advance();
          }
        }
      }
      totals[0] = add_rn(totals[0], sums[0]);
      totals[1] = add_rn(totals[1], sums[1]);
    }
    for (int e = 0; e < live; ++e) {
      if (p.db_slabs != nullptr) {
        p.db_slabs[static_cast<long long>(work.segment) * p.m + col + e] = totals[e];
      } else {
        store_rounded(db + col + e, totals[e]);
      }
    }
  }
}
