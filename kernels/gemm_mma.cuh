// GEMM on tensor cores with mma.sync: D = act(A B + bias), 16-bit operands or float32 ones rounded to tf32 with float32
// sums, or float64, for any majors of A and B.
//
// Tiles      A block computes kBlockM x kBlockN outputs, a warp kWarpM x kWarpN of them in instructions of
//            16 x 8 x 16 (tf32, and float16 on sm_75: 16 x 8 x 8; float64: 16 x 8 x 4). Of such a 16 x 8, lane l owns rows
//            l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
// Pipeline   A cp.async ring of kStages k-tiles, one barrier per k-tile. The fragments of the next step are loaded
//            while the current one is multiplied, over the border of a k-tile too, each into the registers of the one
//            that it replaces: of A after its row of instructions, of B in the last row.
//            Without cp.async (!kAsync, sm_75) there are two slots, and the k-tile after the one that is multiplied next
//            waits in registers.
// Reduction  K is cut into segments of kSegment. Inside one an output is a single chain of instructions, k ascending,
//            from +0. Segment sums are added ascending in Acc: by this block through p.total (splits == 1), or by
//            ordered_reduce from slabs. Nothing here depends on the tile: every variant gives the same bits.
// db         kBiasGrad: the first blocks along N also sum A over k (gemm_mma/bias_grad.cuh).
// Planes     kPlanes > 1: operands are planes (split_planes.cuh), whose pairs are multiplied inside every step, the small
//            products first; every kPromote elements the chain is added into the segment's sum and restarts.
// Smem       kStages * kPlanes * (kBlockM + kBlockN) * kBlockK * sizeof(In) bytes for the ring, then for each warp
//            8 * (kWarpN + 8) * sizeof(Acc) bytes for staged rows. Without cp.async these lie in the ring, which nothing is
//            on its way to at the end of a segment. No bank conflicts (gemm_mma/tile.cuh, gemm_mma/store.cuh).
// Registers  kWarpM * kWarpN / 32 accumulators (of double: twice), (kWarpM + kWarpN) / 4 of fragments, and addresses; over
//            planes twice the accumulators and the fragments of all of them. Without cp.async, a thread's part of a k-tile.
// Needs      sm_80 (!kAsync: sm_75, and 16-bit operands; float64: sm_80 or sm_90); base, pitch and row of an operand are
//            multiples of its kVec bytes: 16, 8, 4, or those of an element, which is then loaded and stored without cp.async.
#pragma once

#include "common/block_work.cuh"
#include "common/params.cuh"
#include "gemm_mma/bias_grad.cuh"
#include "gemm_mma/fragments.cuh"
#include "gemm_mma/planes.cuh"
#include "gemm_mma/store.cuh"
#include "gemm_mma/tile.cuh"

template <class Config>
__device__ constexpr int gemm_mma_warps() {
  return (Config::kBlockM / Config::kWarpM) * (Config::kBlockN / Config::kWarpN);
}

template <class Config>
__device__ constexpr int gemm_mma_ring_bytes() {
  return Config::kStages * Config::kPlanes * (Config::kBlockM + Config::kBlockN) * Config::kBlockK *
         static_cast<int>(sizeof(typename Config::In));
}

template <class Config>
__device__ constexpr int gemm_mma_smem_bytes() {
  const int ring = gemm_mma_ring_bytes<Config>();
  const int staged = gemm_mma_warps<Config>() * kStagedRows * (Config::kWarpN + kStagedPad) *
                     static_cast<int>(sizeof(typename Config::Acc));
  return Config::kAsync ? ring + staged : ring > staged ? ring : staged;
}

template <class Config>
__device__ void gemm_mma(const GemmParams& p, unsigned block = blockIdx.x) {
  using In = typename Config::In;
  using Acc = typename Config::Acc;
  constexpr int kBM = Config::kBlockM, kBN = Config::kBlockN, kBK = Config::kBlockK,
                kStages = Config::kStages, kPlanes = Config::kPlanes;
  constexpr int kStepK = 32 / sizeof(In), kSteps = kBK / kStepK;
  constexpr int kThreads = 32 * gemm_mma_warps<Config>();
  constexpr bool kRound = sizeof(In) == 4 && kPlanes == 1;  // planes are tf32 numbers already
  using TileA = MmaTile<In, Config::kMajorA, kBM, kBK>;
  using TileB = MmaTile<In, Config::kMajorB, kBN, kBK>;
  using ReaderA = FragmentReader<TileA, Operand::A, Config::kWarpM>;
  using ReaderB = FragmentReader<TileB, Operand::B, Config::kWarpN>;
  static_assert(kBM % Config::kWarpM == 0 && kBN % Config::kWarpN == 0, "a block holds whole warp tiles");
  static_assert(Config::kSegment % kBK == 0, "a segment holds whole k-tiles");
  static_assert(kSteps >= 2,
                "fragments of a k-tile are all loaded before its last step, which frees its slot");
  static_assert(kStages >= 2, "one k-tile is copied while another is multiplied");
  static_assert(Config::kAsync || (kStages == 2 && kPlanes == 1),
                "the register prefetch alternates two slots");

  // kStages x [A tile | B tile], then the staged rows of each warp (!kAsync: in the same place).
  extern __shared__ __align__(128) char smem[];
  constexpr int kStagedAt = Config::kAsync ? gemm_mma_ring_bytes<Config>() : 0;
  constexpr int kPartA = kPlanes * TileA::kBytes, kStageBytes = kPartA + kPlanes * TileB::kBytes;
  const unsigned ring = shared_address(smem);
  constexpr int kWarpsN = kBN / Config::kWarpN;

  const BlockWork work = block_work<Config>(p, block);
  const int segments = (p.k + Config::kSegment - 1) / Config::kSegment;
  const int first_segment = work.split * p.segments_per_split;
  const int last_segment = min(first_segment + p.segments_per_split, segments);
  const int k_begin = first_segment * Config::kSegment;
  const int k_end = min(last_segment * Config::kSegment, p.k);
  const int k_tiles = (k_end - k_begin + kBK - 1) / kBK;
  constexpr int kTilesPerSegment = Config::kSegment / kBK;

  using CopierA = TileCopier<TileA, Config::kVecA, kBK, kThreads, kPlanes>;
  using CopierB = TileCopier<TileB, Config::kVecB, kBK, kThreads, kPlanes>;
  CopierA copy_a(p.a, p.lda, work.m0, k_begin, p.m, p.k);
  CopierB copy_b(p.b, p.ldb, work.n0, k_begin, p.n, p.k);
  const int warp = threadIdx.x / 32;
  const ReaderA read_a(warp / kWarpsN * Config::kWarpM);
  const ReaderB read_b(warp % kWarpsN * Config::kWarpN);
  using Sums = Acc[ReaderA::kCount][2 * ReaderB::kCount][4];
  Sums acc = {};
  // kAsync: k-tile t, if there is one, starts on its way into a slot.
  const auto copy_tile = [&](int t, int slot) {
    if constexpr (Config::kAsync) {
      if (t < k_tiles) {
        copy_a.copy(smem + slot * kStageBytes);
        copy_b.copy(smem + slot * kStageBytes + kPartA);
      }
      cp_async_commit();  // also an empty group: the waits count groups, not tiles
    }
  };
  // While tile t is multiplied: the tile that comes kStages - 1 later goes where tile t - 1 was.
  const auto refill = [&](int t, int slot) {
    copy_tile(t + kStages - 1, slot == 0 ? kStages - 1 : slot - 1);
  };
  // !kAsync: the next k-tile, on its way through registers.
  typename CopierA::Held held_a;
  typename CopierB::Held held_b;
  const auto load_tile = [&] {
    copy_a.load(held_a);
    copy_b.load(held_b);
  };
  // The next k-tile arrives in its slot; more: one of the same segment follows.
  const auto arrive = [&](int slot, bool more) {
    if constexpr (Config::kAsync) {
      cp_async_wait<kStages - 2>();  // this thread's part of it is there
    } else {
      copy_a.store(held_a, smem + slot * kStageBytes);
      copy_b.store(held_b, smem + slot * kStageBytes + kPartA);
      if (more) load_tile();
    }
    __syncthreads();  // everybody's is, and everybody has loaded the last fragments before it
  };
  // The end of a segment; true where it is the block's last. (No generic lambda: NVRTC 13.0 takes it for a host function.)
  const auto end_segment = [&](int segment, Sums& sums) {
    const int warp_here = thread_id() / 32;
    const int row0 = work.m0 + warp_here / kWarpsN * Config::kWarpM;
    const int col0 = work.n0 + warp_here % kWarpsN * Config::kWarpN;
    auto* staged =
        reinterpret_cast<Acc*>(smem + kStagedAt) + warp_here * kStagedRows * (Config::kWarpN + kStagedPad);
    if (p.splits > 1 || segment + 1 < segments) {
      store_partial<Config>(p, segment, row0, col0, staged, sums);
      return segment + 1 == last_segment;
    }
    store_output<Config>(p, segment, row0, col0, staged, sums);
    return true;
  };

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copy_tile(s, s);
  int slot = 0;
  if constexpr (kPlanes == 1) {
    typename BiasGradOf<Config, TileA>::Type bias_grad(p, work.m0, work.n0);
    for (int t = 0, segment = first_segment;; ++segment) {
      const int segment_end = min(t + kTilesPerSegment, k_tiles);
      // Fragments and a held tile do not live across the end of a segment, which needs their registers.
      unsigned a[ReaderA::kCount][4], b[ReaderB::kCount][4];
      if constexpr (!Config::kAsync) load_tile();
      arrive(slot, t + 1 < segment_end);
#pragma unroll
      for (int i = 0; i < ReaderA::kCount; ++i) read_a.load(a[i], ring + slot * kStageBytes, i, 0);
#pragma unroll
      for (int j = 0; j < ReaderB::kCount; ++j) {
        read_b.load(b[j], ring + slot * kStageBytes + kPartA, j, 0);
      }
      for (; t < segment_end; ++t) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const int next_step = (step + 1) % kSteps;
          const bool more = next_step > 0 || t + 1 < segment_end;
          if (step == 0) {
            refill(t, slot);
            bias_grad.add_tile(ring + slot * kStageBytes);
          }
          if (next_step == 0 && more) {
            slot = slot + 1 == kStages ? 0 : slot + 1;
            arrive(slot, t + 2 < segment_end);
          }
          const unsigned tile_a = ring + slot * kStageBytes, tile_b = tile_a + kPartA;
#pragma unroll
          for (int i = 0; i < ReaderA::kCount; ++i) {
            if constexpr (kRound) round_tf32(a[i]);
#pragma unroll
            for (int j = 0; j < ReaderB::kCount; ++j) {
              if constexpr (kRound) {
                if (i == 0) round_tf32(b[j]);
              }
              multiply<In, Config::kMmaK>(acc[i][2 * j], a[i], b[j][0], b[j][1]);
              multiply<In, Config::kMmaK>(acc[i][2 * j + 1], a[i], b[j][2], b[j][3]);
              if (more && i + 1 == ReaderA::kCount) read_b.load(b[j], tile_b, j, next_step);
            }
            if (more) read_a.load(a[i], tile_a, i, next_step);
          }
        }
      }
      slot = slot + 1 == kStages ? 0 : slot + 1;
      bias_grad.end_segment(segment, segment + 1 == segments);
      if constexpr (!Config::kAsync) __syncthreads();  // rows are staged where others loaded fragments
      if (end_segment(segment, acc)) return;
      if constexpr (!Config::kAsync) __syncthreads();  // the next tile is stored where others staged rows
    }
  } else {
    constexpr int kTilesPerChain = Config::kPromote / kBK;
    static_assert(Config::kPromote % kBK == 0 && Config::kSegment % Config::kPromote == 0,
                  "a chain holds whole k-tiles, and a segment whole chains");
    unsigned a[kPlanes][ReaderA::kCount][4], b[kPlanes][ReaderB::kCount][4];
    Sums sum = {};
    for (int t = 0, segment = first_segment;; ++segment) {
      const int segment_end = min(t + kTilesPerSegment, k_tiles);
      for (; t < segment_end; ++t) {
        arrive(slot, false);  // and everybody is done with the slot that is refilled next
        refill(t, slot);
        // No fragment waits in registers for the next step, as above: a step has kPairs times the instructions.
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int plane = kPlanes - 1; plane >= 0; --plane) {
            const unsigned tile_a = ring + slot * kStageBytes + plane * TileA::kBytes;
            const unsigned tile_b = ring + slot * kStageBytes + kPartA + plane * TileB::kBytes;
#pragma unroll
            for (int i = 0; i < ReaderA::kCount; ++i) read_a.load(a[plane][i], tile_a, i, step);
#pragma unroll
            for (int j = 0; j < ReaderB::kCount; ++j) read_b.load(b[plane][j], tile_b, j, step);
          }
          multiply_planes<In>(acc, a, b);
        }
        slot = slot + 1 == kStages ? 0 : slot + 1;
        if ((t + 1) % kTilesPerChain == 0 || t + 1 == segment_end) promote(sum, acc);
      }
      if (end_segment(segment, sum)) return;
    }
  }
}
