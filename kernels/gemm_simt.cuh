// GEMM on CUDA cores: D = act(A B + bias) in float32 or float64 FMAs, for all three layouts of a linear layer.
//
// Tiles      A block computes kBlockM x kBlockN outputs, a thread kThreadM x kThreadN of them, a warp
//            4 x 8 threads. Which rows and columns a thread owns follows from the operands' majors:
//            Tile::row in common/layout.cuh.
// Pipeline   kStages k-tiles of A and B in shared memory. kAsync: a cp.async ring, one barrier per k-tile.
//            Otherwise the next tile waits in registers, where 16-bit inputs are converted (and where sm_75
//            has to).
// Reduction  K is cut into segments of kSegment. Inside one an output is a single FMA chain, k ascending,
//            from +0. Segment sums are added ascending: by this block through p.total (splits == 1), or by
//            ordered_reduce from slabs. Nothing here depends on the tile: every variant gives the same bits.
// Smem       sizeof(Acc) * (kStages * (kBlockM + kBlockN) * kBlockK
//                           + (kBlockM / kThreadM) * (kBlockN + 8)) bytes.
// Registers  kThreadM * kThreadN accumulators, kThreadN * 16 bytes of B, one row of A, and addresses.
// Needs      16-byte base and pitch of an operand where its kVec is 16; otherwise nothing.
#pragma once

#include "common/block_work.cuh"
#include "common/epilogue.cuh"
#include "common/layout.cuh"
#include "common/params.cuh"

template <class Config>
__device__ constexpr int gemm_simt_threads() {
  return (Config::kBlockM / Config::kThreadM) * (Config::kBlockN / Config::kThreadN);
}

// Eight elements of padding shift the staged rows of a warp into different banks.
constexpr int kStagePad = 8;

template <class Config>
__device__ constexpr int gemm_simt_ring_elements() {
  return Config::kStages * (Config::kBlockM + Config::kBlockN) * Config::kBlockK;
}

template <class Config>
__device__ constexpr int gemm_simt_smem_bytes() {
  return sizeof(typename Config::Acc) * (gemm_simt_ring_elements<Config>() +
                                         Config::kBlockM / Config::kThreadM * (Config::kBlockN + kStagePad));
}

// ---- mainloop ----

// acc += A B over one k-tile in shared memory; k ascends for every output.
template <class Config, class TileA, class TileB, class Acc>
__device__ __forceinline__ void multiply_tile(const Acc* smem_a, const Acc* smem_b, int lane_m, int lane_n,
                                              Acc (&acc)[Config::kThreadM][Config::kThreadN]) {
  constexpr int kChunk = TileA::kChunk, kTM = Config::kThreadM, kTN = Config::kThreadN;
  const auto load_b_row = [&](int k, Acc(&b)[kTN]) {  // MN-major: kTN elements of one k
#pragma unroll
    for (int j = 0; j < kTN; j += kChunk) {
      Acc chunk[kChunk];
      load_chunk(smem_b + TileB::offset(TileB::row(lane_n, j), k), chunk);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) b[j + e] = chunk[e];
    }
  };
#pragma unroll
  for (int k = 0; k < Config::kBlockK; k += kChunk) {
    Acc b[kChunk][kTN];
    if constexpr (Config::kMajorB == Major::K) {
#pragma unroll
      for (int j = 0; j < kTN; ++j) {
        Acc chunk[kChunk];
        load_chunk(smem_b + TileB::offset(TileB::row(lane_n, j), k), chunk);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) b[e][j] = chunk[e];
      }
    }
    if constexpr (Config::kMajorA == Major::K) {
      if constexpr (Config::kMajorB == Major::MN) {
#pragma unroll
        for (int e = 0; e < kChunk; ++e) load_b_row(k + e, b[e]);
      }
#pragma unroll
      for (int i = 0; i < kTM; ++i) {
        Acc a[kChunk];
        load_chunk(smem_a + TileA::offset(TileA::row(lane_m, i), k), a);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
#pragma unroll
          for (int j = 0; j < kTN; ++j) acc[i][j] = fma_rn(a[e], b[e][j], acc[i][j]);
        }
      }
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        if constexpr (Config::kMajorB == Major::MN) load_b_row(k + e, b[e]);
#pragma unroll
        for (int i = 0; i < kTM; i += kChunk) {
          Acc a[kChunk];
          load_chunk(smem_a + TileA::offset(TileA::row(lane_m, i), k + e), a);
#pragma unroll
          for (int r = 0; r < kChunk; ++r) {
#pragma unroll
            for (int j = 0; j < kTN; ++j) acc[i + r][j] = fma_rn(a[r], b[e][j], acc[i + r][j]);
          }
        }
      }
    }
  }
}

// ---- end of a segment ----

// Take the segment's sums out of the registers: to its slab, into the running total, or through the epilogue.
// Row by row of the thread tile through shared memory, so that each warp stores consecutive columns.
template <class Config, class TileA, class TileB, class Acc>
__device__ __forceinline__ void finish_segment(const GemmParams& p, const BlockWork& work, int segment,
                                               int segments, Acc* staged, int lane_m, int lane_n,
                                               Acc (&acc)[Config::kThreadM][Config::kThreadN]) {
  constexpr int kRows = TileA::kLanes, kPitch = Config::kBlockN + kStagePad;
  constexpr int kThreads = gemm_simt_threads<Config>(), kBN = Config::kBlockN;
  // A thread stores one column of every kRowStep-th staged row. What is added to its outputs is loaded for kAhead
  // of them at a time, so that the latencies overlap, as far as registers allow.
  constexpr int kRowStep = kThreads / kBN;
  constexpr int kAhead = sizeof(Acc) == 8 ? 1 : Config::kThreadM * Config::kThreadN >= 16 ? 2 : 4;
  static_assert(kThreads % kBN == 0 && kRows % (kAhead * kRowStep) == 0,
                "threads share the staged rows evenly");
  const int col = work.n0 + threadIdx.x % kBN;
  auto* totals = static_cast<Acc*>(p.total);
  const long long slab = p.splits > 1 ? static_cast<long long>(segment) * p.m * p.n : 0;
#pragma unroll
  for (int i = 0; i < Config::kThreadM; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kThreadN; ++j) {
      // A sum of -0 (all products underflowed from below) becomes +0, as the zeros that fill up a ragged
      // k-tile would make it: the tile's depth must not show in the bits.
      staged[lane_m * kPitch + TileB::row(lane_n, j)] = add_rn(acc[i][j], Acc(0));
      acc[i][j] = 0;
    }
    __syncthreads();
    if (col < p.n) {
#pragma unroll 1
      for (int begin = threadIdx.x / kBN; begin < kRows; begin += kAhead * kRowStep) {
        Acc before[kAhead] = {};  // ptxas adds before it selects
#pragma unroll
        for (int r = 0; r < kAhead; ++r) {
          const int row = work.m0 + TileA::row(begin + r * kRowStep, i);
          if (row >= p.m || p.splits > 1) continue;
          if (segment > 0) {
            before[r] = totals[static_cast<long long>(row) * p.n + col];
          } else if (p.accumulate) {
            before[r] = previous<Config>(p, row, col);
          }
        }
#pragma unroll
        for (int r = 0; r < kAhead; ++r) {
          const int row = work.m0 + TileA::row(begin + r * kRowStep, i);
          if (row >= p.m) continue;
          Acc value = staged[(begin + r * kRowStep) * kPitch + threadIdx.x % kBN];
          Acc* total = totals + static_cast<long long>(row) * p.n + col;
          if (p.splits > 1) {
            total[slab] = value;
            continue;
          }
          if (segment > 0 || p.accumulate) value = add_rn(before[r], value);
          if (segment + 1 < segments) {
            *total = value;
          } else {
            finish<Config>(p, row, col, value);
          }
        }
      }
    }
    __syncthreads();
  }
}

// ---- the kernel ----

template <class Config>
__device__ void gemm_simt(const GemmParams& p, unsigned block = blockIdx.x) {
  using In = typename Config::In;
  using Acc = typename Config::Acc;
  constexpr int kBM = Config::kBlockM, kBN = Config::kBlockN, kBK = Config::kBlockK,
                kStages = Config::kStages;
  constexpr int kThreads = gemm_simt_threads<Config>();
  using TileA = Tile<Acc, Config::kMajorA, kBM, kBK, Config::kThreadM>;
  using TileB = Tile<Acc, Config::kMajorB, kBN, kBK, Config::kThreadN>;
  using FetchA = Fetcher<TileA, In, Acc, Config::kMajorA, kBM, kBK, Config::kVecA, kThreads>;
  using FetchB = Fetcher<TileB, In, Acc, Config::kMajorB, kBN, kBK, Config::kVecB, kThreads>;
  static_assert(Config::kSegment % kBK == 0, "a segment holds whole k-tiles");
  static_assert(TileA::kLanes % 4 == 0 && TileB::kLanes % 8 == 0, "warps are 4 x 8 threads");
  static_assert(Config::kAsync || kStages == 2, "register prefetch alternates between two stages");

  extern __shared__ __align__(16) char smem_bytes[];
  auto* smem = reinterpret_cast<Acc*>(smem_bytes);  // kStages x [A tile | B tile], then the staging rows
  Acc* staged = smem + gemm_simt_ring_elements<Config>();
  const auto stage_a = [&](int s) { return smem + s * (TileA::kElements + TileB::kElements); };
  const auto stage_b = [&](int s) { return stage_a(s) + TileA::kElements; };

  const BlockWork work = block_work<Config>(p, block);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarpsN = TileB::kLanes / 8;
  const int lane_m = warp / kWarpsN * 4 + lane / 8, lane_n = warp % kWarpsN * 8 + lane % 8;

  const int segments = (p.k + Config::kSegment - 1) / Config::kSegment;
  const int first_segment = work.split * p.segments_per_split;
  const int last_segment = min(first_segment + p.segments_per_split, segments);
  const int k_begin = first_segment * Config::kSegment;
  const int k_end = min(last_segment * Config::kSegment, p.k);
  const int k_tiles = (k_end - k_begin + kBK - 1) / kBK;
  constexpr int kTilesPerSegment = Config::kSegment / kBK;

  const FetchA fetch_a{static_cast<const In*>(p.a), p.lda, p.m, p.k, work.m0};
  const FetchB fetch_b{static_cast<const In*>(p.b), p.ldb, p.n, p.k, work.n0};
  Acc acc[Config::kThreadM][Config::kThreadN] = {};

  if constexpr (Config::kAsync) {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < k_tiles) {
        fetch_a.copy(stage_a(s), k_begin + s * kBK);
        fetch_b.copy(stage_b(s), k_begin + s * kBK);
      }
      cp_async_commit();  // also an empty group: the wait below counts groups, not tiles
    }
    int slot = 0, next_slot = kStages - 1;
    for (int t = 0, segment = first_segment; segment < last_segment; ++segment) {
      const int segment_end = min(t + kTilesPerSegment, k_tiles);
      for (; t < segment_end; ++t) {
        cp_async_wait<kStages - 2>();  // this thread's part of tile t has arrived
        __syncthreads();  // everybody's has, and everybody is done with the slot that is refilled next
        if (t + kStages - 1 < k_tiles) {
          fetch_a.copy(stage_a(next_slot), k_begin + (t + kStages - 1) * kBK);
          fetch_b.copy(stage_b(next_slot), k_begin + (t + kStages - 1) * kBK);
        }
        cp_async_commit();
        multiply_tile<Config, TileA, TileB>(stage_a(slot), stage_b(slot), lane_m, lane_n, acc);
        slot = slot + 1 == kStages ? 0 : slot + 1;
        next_slot = next_slot + 1 == kStages ? 0 : next_slot + 1;
      }
      finish_segment<Config, TileA, TileB>(p, work, segment, segments, staged, lane_m, lane_n, acc);
    }
    cp_async_wait<0>();
  } else {
    typename FetchA::Raw raw_a[FetchA::kPerThread];
    typename FetchB::Raw raw_b[FetchB::kPerThread];
    fetch_a.load(raw_a, k_begin);
    fetch_b.load(raw_b, k_begin);
    for (int t = 0, segment = first_segment; segment < last_segment; ++segment) {
      const int segment_end = min(t + kTilesPerSegment, k_tiles);
      for (; t < segment_end; ++t) {
        const int slot = t % 2;
        fetch_a.store(raw_a, stage_a(slot));
        fetch_b.store(raw_b, stage_b(slot));
        __syncthreads();  // tile t is complete; the other slot was read before this barrier
        if (t + 1 < k_tiles) {
          fetch_a.load(raw_a, k_begin + (t + 1) * kBK);
          fetch_b.load(raw_b, k_begin + (t + 1) * kBK);
        }
        multiply_tile<Config, TileA, TileB>(stage_a(slot), stage_b(slot), lane_m, lane_n, acc);
      }
      finish_segment<Config, TileA, TileB>(p, work, segment, segments, staged, lane_m, lane_n, acc);
    }
  }
}
