// GEMM on Hopper's tensor cores: D = act(A B + bias) for float16 and bfloat16, all four pairs of majors, and for float32
// operands that split_planes has made into planes of bfloat16 or tf32.
//
// A reader who knows CUDA but not Hopper needs six words:
//   warpgroup     four consecutive warps that execute one wgmma together. The accumulators of a 64-row tile are
//                 spread over their 128 threads (wgmma/epilogue.cuh says how).
//   wgmma         multiplies two tiles in shared memory, asynchronously: it is issued, committed in groups, and
//                 waited for like cp.async (common/wgmma.cuh, wgmma/mainloop.cuh).
//   descriptor    64 bits that tell wgmma where a tile lies and how it is swizzled (wgmma/tile.cuh).
//   TMA           copies a box of a matrix to shared memory when one thread asks for it. A tensor map, made on the
//                 host, holds address, shape and strides: beyond the edges of the matrix it delivers zeros.
//   mbarrier      a barrier in shared memory that also counts bytes which TMA has delivered. Its phase, even or
//                 odd, is the only thing that a waiting thread has to know (wgmma/ring.cuh).
//   proxy         ordinary loads and stores are the generic proxy; TMA and wgmma are the async proxy, which does
//                 not see the generic one's writes by itself. A proxy fence stands where data goes from one to the
//                 other: after mbarrier.init, and before TMA stores what threads wrote (wgmma/epilogue.cuh). TMA
//                 to wgmma needs none: both are async, and the full barrier orders them.
//
// Roles      Warpgroup 0 is the producer: one thread of it fills a ring of kStages k-tiles (wgmma/producer.cuh)
//            and its other registers go to the kConsumers consumer warpgroups, 64 rows of the tile each
//            (wgmma/mainloop.cuh, wgmma/segment.cuh, wgmma/epilogue.cuh). All of them walk one list of tiles (wgmma/scheduler.cuh),
//            so that the ring runs full across tiles, and a tile's stores overlap the next one's loads.
// Reduction  K is cut into segments of kSegment. Inside one an output is one chain of wgmma steps of 16 (tf32: 8), k
//            ascending, from +0. kRunningTotal: the sums are added ascending, in registers (beyond 104 per thread
//            in shared memory). Otherwise each item of work is one segment, and its sum is finished (K <= S) or
//            goes to a slab for ordered_reduce. Nothing here depends on tile, stages, cluster or grid.
// Accumulate The first sum is added to what D holds, which comes through the ring (wgmma/previous.cuh) or, without
//            kTmaStore, from memory when it is needed.
// db         kBiasGrad: warps of the producer's warpgroup sum A over k on its way through the ring (wgmma/bias_grad.cuh).
// Few tokens kSwapped: A and B change places, so that the weight has the 64 rows of a wgmma and a few tokens are its
//            columns; D is stored transposed. The products and their order are the same.
// Planes     kPlanes > 1: a slot holds the k-tile of every plane, and each step multiplies all pairs of planes, the small
//            products first (common/plane_pairs.cuh); every kPromote elements of K the chain is added to the segment's
//            sum and starts anew (wgmma/segment.cuh). tf32 is one plane: rounded, because wgmma truncates.
// Threads    128 (1 + kConsumers). Tile kBlockM = 64 kConsumers by kBlockN, k-tiles of 128 bytes.
// Smem       kStages * kPlanes * 128 (kBlockM + kBlockN) + kConsumers * max(16384, the totals kept there) + 16 kStages
//            bytes.
// Registers  kBlockN / 2 accumulators, the same again with kPromote, and with kRunningTotal up to 104 totals.
// Needs      maps of A and B: bases and pitches in multiples of 16 bytes; of planes in three dimensions. kTmaStore: the
//            same of D and preact, in two.
#pragma once

#include "wgmma/bias_grad.cuh"
#include "wgmma/epilogue.cuh"
#include "wgmma/previous.cuh"
#include "wgmma/producer.cuh"
#include "wgmma/segment.cuh"

// ---- the running total over segments ----

// kBlockN / 2 totals per thread: the first kInRegisters of them in registers, the rest in shared memory, where
// consecutive threads lie in consecutive banks.
template <class Config>
struct RunningTotal {
  static constexpr int kValues = Config::kBlockN / 2;
  static constexpr int kInRegisters = !Config::kRunningTotal ? 0 : kValues <= 104 ? kValues : 64;
  static constexpr int kBytes = Config::kRunningTotal ? (kValues - kInRegisters) * 128 * 4 : 0;

  const Epilogue<Config>& epilogue;
  float registers[kInRegisters > 0 ? kInRegisters : 2];

  __device__ __forceinline__ float* shared(int i) const {
    return epilogue.scratch + 128 * (i - kInRegisters) + epilogue.thread;
  }

  // sum = total + sum.
  __device__ __forceinline__ void add_to(float (&sum)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum[i] = add_rn(i < kInRegisters ? registers[i] : *shared(i), sum[i]);
  }

  // The total is this sum.
  __device__ __forceinline__ void keep(const float (&sum)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (i < kInRegisters) {
        registers[i] = sum[i];
      } else {
        *shared(i) = sum[i];
      }
    }
  }
};

// ---- shared memory ----

__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Of a launch for two problems (joint_wgmma.cuh) Other is the second; they share all of it.
template <class Config, class Other = Config>
struct WgmmaSmem {
  static constexpr int kPerConsumer =
      larger(kStageBytes, larger(RunningTotal<Config>::kBytes, RunningTotal<Other>::kBytes));
  static constexpr int kStaging = Ring<Config>::kBytes;
  static constexpr int kBarriers = kStaging + Config::kConsumers * kPerConsumer;
  static constexpr int kBytes = kBarriers + Ring<Config>::kBarrierBytes;
  static constexpr bool kTmaStore = Config::kTmaStore || Other::kTmaStore;
};

template <class Config>
__device__ constexpr int gemm_wgmma_smem_bytes() {
  return WgmmaSmem<Config>::kBytes;
}

// ---- the consumers ----

// What the first segment's sum is added to: what an accumulating output holds, else +0, so that a chain that ends in -0
// becomes +0.
template <class Config>
__device__ __forceinline__ void start_total(const Epilogue<Config>& epilogue, const Ring<Config>& ring,
                                            RingPlace<Config::kStages>& place, const WorkItem& work,
                                            float (&sum)[Config::kBlockN / 2]) {
  if (!epilogue.p.accumulate) {
#pragma unroll
    for (int i = 0; i < Config::kBlockN / 2; ++i) sum[i] = add_rn(0.0f, sum[i]);
  } else if constexpr (Config::kTmaStore) {
    add_previous<Config>(epilogue.p, ring, place, work.n0, epilogue.consumer, epilogue.thread, sum);
  } else {
    epilogue.add_from_memory(work, sum);
  }
}

// Of the segment that begins at k.
template <class Config>
__device__ __forceinline__ int k_tiles_of(const WorkItem& work, int k) {
  constexpr int kTileDepth = kDepth<typename Config::In>;
  return (min(work.k_end - k, Config::kSegment) + kTileDepth - 1) / kTileDepth;
}

// All items that the scheduler gives. `buffer` is the half of the staging memory that is written next.
template <class Config>
__device__ __forceinline__ void consume(const GemmWgmmaParams& p, const Ring<Config>& ring,
                                        Scheduler<Config>& scheduler, RingPlace<Config::kStages>& place,
                                        char* staging, int& buffer, int consumer, int thread) {
  constexpr int kValues = Config::kBlockN / 2;
  Epilogue<Config> epilogue{
      p, shared_address(staging), reinterpret_cast<float*>(staging), consumer, thread, buffer};
  RunningTotal<Config> total{epilogue};
  WorkItem work;
  while (scheduler.next(work)) {
    float acc[kValues] = {};  // not read by the first wgmma, but the compiler cannot know
    multiply_segment<Config>(ring, place, k_tiles_of<Config>(work, work.k_begin), consumer, thread, acc);
    start_total(epilogue, ring, place, work, acc);
    if constexpr (Config::kRunningTotal) {
      if (RunningTotal<Config>::kBytes > 0) epilogue.reclaim();
      for (int k = work.k_begin + Config::kSegment; k < work.k_end; k += Config::kSegment) {
        total.keep(acc);
        multiply_segment<Config>(ring, place, k_tiles_of<Config>(work, k), consumer, thread, acc);
        total.add_to(acc);
      }
    }
    if (!Config::kRunningTotal && p.segments > 1) {
      epilogue.store_slab(work, acc);
    } else {
      epilogue.store(work, acc);
    }
  }
  buffer = epilogue.buffer;
}

// ---- the kernel ----

// Three warpgroups start with 168 registers per thread; 128 * 40 + 256 * 232 = 384 * 168, and so is 128 * 56 + 256 * 224
// where warps beside the producer sum db. One consumer has enough without.
template <class Config>
constexpr int kProducerRegisters = Config::kBiasGradWarps > 0 ? 56 : 40;
template <class Config>
constexpr int kConsumerRegisters = Config::kBiasGradWarps > 0 ? 224 : 232;

// What a launch for one problem and one for two have in common. produce() runs in one thread, sum(box, lane) in the warps
// that sum db, consume(staging memory, consumer, thread) in all threads of the other warpgroups.
template <class Smem, class Config, class Produce, class Sum, class Consume>
__device__ __forceinline__ void run_roles(char* smem, const Ring<Config>& ring, Produce produce, Sum sum,
                                          Consume consume) {
  static_assert(Config::kBlockM == 64 * Config::kConsumers, "a consumer has 64 rows");
  static_assert(Config::kSegment % kDepth<typename Config::In> == 0, "a segment holds whole k-tiles");
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0), thread = threadIdx.x % 128;

  if (threadIdx.x == 0) ring.init();
  sync_cluster<Config::kCluster>();  // the barriers exist, in every CTA that may arrive at them

  if (warpgroup == 0) {
    if constexpr (Config::kConsumers > 1) setmaxnreg_dec<kProducerRegisters<Config>>();
    if (thread == 0) produce();
    if constexpr (Config::kBiasGradWarps > 0) {
      const int box = thread / 32 - 1;
      if (box >= 0 && box < Config::kBiasGradWarps) sum(box, thread % 32);
    }
  } else {
    if constexpr (Config::kConsumers > 1) setmaxnreg_inc<kConsumerRegisters<Config>>();
    consume(smem + Smem::kStaging + (warpgroup - 1) * Smem::kPerConsumer, warpgroup - 1, thread);
    if (Smem::kTmaStore && thread == 0) bulk_wait<0>();  // the stores are done before the kernel is
  }
  // A CTA's shared memory must outlive the copies and arrivals that come from others.
  if constexpr (Config::kCluster > 1) {
    __syncwarp();  // the producing thread meets its warp again
    cluster_sync();
  }
}

template <class Config>
__device__ __forceinline__ void gemm_wgmma(const GemmWgmmaParams& p) {
  using Smem = WgmmaSmem<Config>;
  extern __shared__ __align__(1024) char smem[];  // the swizzle's pattern repeats every 1024 bytes
  const int rank = Config::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const Ring<Config> ring{shared_address(smem), shared_address(smem + Smem::kBarriers), rank};
  Scheduler<Config> scheduler{p, rank};
  RingPlace<Config::kStages> place;
  run_roles<Smem>(
      smem, ring, [&] { produce<Config>(p, ring, scheduler, place); },
      [&](int box, int lane) {
        if constexpr (Config::kBiasGradWarps > 0) {
          sum_bias_grad<Config>(p, ring, scheduler, place, box, lane);
        }
      },
      [&](char* staging, int consumer, int thread) {
        int buffer = 0;
        consume<Config>(p, ring, scheduler, place, staging, buffer, consumer, thread);
      });
}
