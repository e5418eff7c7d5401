// Two problems of gemm_wgmma.cuh in one persistent launch: dgrad and wgrad of a layer, each of which alone leaves SMs idle.
//
// Items     Those of the first problem, then those of the second: CTA c takes the items c, c + grid, ... of both. So no
//           CTA waits where one problem ends, and what runs longer is the first: the tail is short.
// Sharing   The tiles of both are of one size. One ring serves both, whose slots only differ in how the bytes lie in them:
//           the majors, which are template parameters, so that every role is compiled twice, one after the other. The place
//           in the ring goes on from the first problem to the second, for the producer and the consumers alike.
// Reduction, threads, registers: as in a launch of its own; each of the two may have a running total or not.
// Smem      Ring and barriers once, and for each consumer what the larger of the two needs.
#pragma once

#include "gemm_wgmma.cuh"

template <class First, class Second>
__device__ constexpr int joint_gemm_wgmma_smem_bytes() {
  return WgmmaSmem<First, Second>::kBytes;
}

// The items of both problems, in turn: the second's list goes on where the first's ends.
template <class First, class Second>
__device__ __forceinline__ Scheduler<Second> following(const GemmWgmmaParams& second,
                                                       const Scheduler<First>& first) {
  return {second, first.rank, first.item - first.items()};
}

template <class First, class Second>
__device__ __forceinline__ void joint_gemm_wgmma(const JointParams<GemmWgmmaParams>& p) {
  using Smem = WgmmaSmem<First, Second>;
  static_assert(Ring<First>::kSlotBytes == Ring<Second>::kSlotBytes &&
                    Ring<First>::kStages == Ring<Second>::kStages &&
                    Ring<First>::TileA::kBytes == Ring<Second>::TileA::kBytes,
                "one ring serves both");
  static_assert(First::kConsumers == Second::kConsumers && First::kCluster == Second::kCluster &&
                    First::kBiasGradWarps == Second::kBiasGradWarps,
                "as many read a slot of either problem");
  extern __shared__ __align__(1024) char smem[];
  const int rank = First::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const unsigned barriers = shared_address(smem + Smem::kBarriers);
  const Ring<First> ring{shared_address(smem), barriers, rank};
  const Ring<Second> same_ring{shared_address(smem), barriers, rank};
  Scheduler<First> first{p.first, rank};
  RingPlace<First::kStages> place;
  run_roles<Smem>(
      smem, ring,
      [&] {
        produce<First>(p.first, ring, first, place);
        auto second = following<First, Second>(p.second, first);
        produce<Second>(p.second, same_ring, second, place);
      },
      [&](int box, int lane) {
        if constexpr (First::kBiasGradWarps > 0) {
          sum_bias_grad<First>(p.first, ring, first, place, box, lane);
          auto second = following<First, Second>(p.second, first);
          sum_bias_grad<Second>(p.second, same_ring, second, place, box, lane);
        }
      },
      [&](char* staging, int consumer, int thread) {
        int buffer = 0;
        consume<First>(p.first, ring, first, place, staging, buffer, consumer, thread);
        if constexpr (First::kTmaStore && !Second::kTmaStore) {
          // The second problem does not look whether TMA still reads what it writes.
          if (thread == 0) bulk_wait_read<0>();
          named_barrier(1 + consumer, 128);
        }
        auto second = following<First, Second>(p.second, first);
        consume<Second>(p.second, same_ring, second, place, staging, buffer, consumer, thread);
      });
}
