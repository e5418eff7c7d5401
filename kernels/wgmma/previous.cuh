// The previous values of an accumulating output come through the ring, while the main loop still multiplies.
//
// The producer runs ahead of the consumers: after the last k-tile of an item's first segment it fills the next slots
// with boxes of D (wgmma/box.cuh), under the same barriers, so that they are there when the sum they go in front of is
// finished. A slot holds kPerSlot boxes of every consumer; a consumer reads those of its own 64 rows. In a cluster each
// CTA brings its own tile's boxes, but its consumers release the slot to all CTAs, as they do with any slot: all
// fill and release the same slots in the same order, so that the counts of `empty` and `full` stay what they are.
//
// No fence orders these reads of D with the stores of this launch, and none has to: tiles do not overlap, TMA stores
// exactly the elements of one, and a consumer stores its rows after it has read them. What an earlier launch stored is
// there before this one starts.
//
// TMA could also add to D in memory, and nothing would be read (cp.reduce.async.bulk.tensor). But its float32 sum
// flushes subnormals, and it adds the total of all segments to D, where the contract starts the total from D: these
// are other bits.
#pragma once

#include "wgmma/box.cuh"
#include "wgmma/ring.cuh"
#include "wgmma/scheduler.cuh"

template <class Config>
struct PreviousSlots {
  using Box = ::Box<typename Config::Out>;
  static constexpr int kBoxes = Config::kBlockN / Box::kCols;  // of a consumer
  static constexpr int kPerSlot = 2;  // of a consumer: what registers can take over at a time
  static constexpr int kSlots = (kBoxes + kPerSlot - 1) / kPerSlot;
  static_assert(Config::kBlockN % Box::kCols == 0, "a tile is whole boxes wide");
  static_assert(kPerSlot * Config::kConsumers * kBox <= Ring<Config>::kSlotBytes, "the boxes of a slot fit");

  // Of boxes `first` and up.
  __device__ static constexpr int in_slot(int first) {
    return kBoxes - first < kPerSlot ? kBoxes - first : kPerSlot;
  }
  __device__ static constexpr int offset(int box, int consumer) {
    return (box % kPerSlot * Config::kConsumers + consumer) * kBox;
  }
};

// The producing thread's part. Boxes beyond an edge of D are asked for as well: zeros come, and count.
template <class Config>
__device__ __forceinline__ void load_previous(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                              RingPlace<Config::kStages>& place, const WorkItem& work) {
  using Slots = PreviousSlots<Config>;
  for (int first = 0; first < Slots::kBoxes; first += Slots::kPerSlot) {
    const int count = Slots::in_slot(first);
    const unsigned full = ring.full(place.slot);
    mbarrier_wait<(Config::kCluster > 1)>(ring.empty(place.slot), place.parity ^ 1);
    mbarrier_arrive_expect(full, count * Config::kConsumers * kBox);
    for (int i = first; i < first + count; ++i) {
      for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
        tma_load(ring.a(place.slot) + Slots::offset(i, consumer), &p.map_d, work.n0 + i * Slots::Box::kCols,
                 work.m0 + 64 * consumer, full);
      }
    }
    place.advance();
  }
}

// A consumer's part: sum = previous + sum.
template <class Config>
__device__ __forceinline__ void add_previous(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                             RingPlace<Config::kStages>& place, int n0, int consumer,
                                             int thread, float (&sum)[Config::kBlockN / 2]) {
  using Slots = PreviousSlots<Config>;
  constexpr int kValues = Slots::Box::kValues;
#pragma unroll
  for (int first = 0; first < Slots::kBoxes; first += Slots::kPerSlot) {
    mbarrier_wait<false>(ring.full(place.slot), place.parity);
#pragma unroll
    for (int i = first; i < first + Slots::in_slot(first); ++i) {
      // Boxes beyond D need not be added. Where there is no running total, this branch keeps ptxas from fetching all
      // boxes before it adds the first, which spills; where there is one, it would cost the registers it saves.
      if (Config::kRunningTotal || n0 + i * Slots::Box::kCols < p.n) {
        float previous[kValues];
        Slots::Box::read(ring.a(place.slot) + Slots::offset(i, consumer), thread, previous);
#pragma unroll
        for (int v = 0; v < kValues; ++v) sum[i * kValues + v] = add_rn(previous[v], sum[i * kValues + v]);
      }
    }
    // One thread releases the slot for all: they must have read it.
    named_barrier(1 + consumer, 128);
    ring.release(place.slot, thread);
    place.advance();
  }
}
