// The ring of k-tiles between the producer and the consumers, and its mbarriers.
//
// A slot has two barriers. `full` ends a phase when the producer has announced the slot's bytes and TMA has
// delivered all of them; `empty` when every consumer has read the slot. Phases are counted by one bit: waiting
// for parity P returns once the phase of parity P has ended. Whoever walks round the ring flips the bit each time
// it passes slot 0, and nothing else needs to be remembered. A new barrier is in phase 0, so that the phase
// before it, of parity 1, counts as ended: a producer that starts with parity 1 finds all slots empty.
#pragma once

#include "common/ptx_sm90.cuh"
#include "wgmma/tile.cuh"

template <class Config>
struct Ring {
  using TileA = WgmmaTile<typename Config::In, Config::kMajorA, Config::kBlockM, 1>;
  using TileB = WgmmaTile<typename Config::In, Config::kMajorB, Config::kBlockN, Config::kCluster>;
  static constexpr int kStages = Config::kStages;
  static constexpr int kSlotBytes = Config::kPlanes * (TileA::kBytes + TileB::kBytes);
  static constexpr int kBytes = kStages * kSlotBytes;
  static constexpr int kBarrierBytes = kStages * 16;
  static_assert(Config::kCluster <= 4, "a warp for each CTA to tell");

  unsigned tiles, barriers;  // shared addresses
  int rank;                  // in the cluster

  // A slot holds the k-tile of A, one plane after the other, then that of B.
  __device__ __forceinline__ unsigned a(int slot) const { return tiles + slot * kSlotBytes; }
  __device__ __forceinline__ unsigned b(int slot) const { return a(slot) + Config::kPlanes * TileA::kBytes; }
  __device__ __forceinline__ unsigned full(int slot) const { return barriers + 16 * slot; }
  __device__ __forceinline__ unsigned empty(int slot) const { return barriers + 16 * slot + 8; }

  // By one thread, before anybody uses the ring.
  __device__ __forceinline__ void init() const {
    for (int slot = 0; slot < kStages; ++slot) {
      mbarrier_init(full(slot), 1);  // the producer; the bytes are counted apart
      // Every consumer warpgroup of every CTA: a slot is filled by multicast from all of them. Warps that sum db read
      // only A, which a CTA loads for itself.
      mbarrier_init(empty(slot), Config::kConsumers * Config::kCluster + Config::kBiasGradWarps);
    }
    fence_mbarrier_init();
  }

  // A consumer warpgroup has read a slot; called by all of its threads. Each CTA is told by one thread of a warp of
  // its own: a release that other CTAs can see waits for a fence, and these waits should not add up.
  __device__ __forceinline__ void release(int slot, int thread) const {
    if (thread == 0) mbarrier_arrive(empty(slot));
#pragma unroll
    for (int other = 1; other < Config::kCluster; ++other) {
      if (thread == 32 * other) mbarrier_arrive_at(empty(slot), (rank + other) % Config::kCluster);
    }
  }

  // A warp that sums db has read a slot; called by all of its lanes.
  __device__ __forceinline__ void release_warp(int slot, int lane) const {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty(slot));
  }
};

// Where somebody is on the way round the ring.
template <int kStages>
struct RingPlace {
  int slot = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};
