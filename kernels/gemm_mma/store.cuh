// The end of a segment: takes a warp's sums from its accumulators through shared memory to a slab, a running total, or
// the output, in 16-byte accesses of whole rows.
//
// A warp stages eight rows of its tile at a time in its own part of shared memory; nobody else waits for it.
#pragma once

#include "common/chunk.cuh"
#include "common/epilogue.cuh"
#include "common/params.cuh"

constexpr int kStagedRows = 8;
constexpr int kStagedPad = 8;  // sums: lanes' pairs in four rows (double: two) lie in different banks

// Sums in 16 bytes.
template <class Acc>
constexpr int kPerChunk = 16 / sizeof(Acc);

// Where a chunk of 16 bytes lies in the staged rows. Every second line of 128 bytes of a row (row, where it is one line) has
// its pairs of chunks swapped: lanes that read eight floats each, four at a time, then meet in no bank.
template <class Config>
__device__ __forceinline__ int staged_offset(int row, int chunk) {
  using Acc = typename Config::Acc;
  static_assert(Config::kWarpN == 64 || Config::kWarpN == 32, "lanes take whole rows, and a row whole lines");
  const int swap = (Config::kWarpN * sizeof(Acc) > 128 ? chunk / 8 : row) & 1;
  return row * (Config::kWarpN + kStagedPad) + (chunk ^ swap) * kPerChunk<Acc>;
}

// A chunk of sums to shared memory.
__device__ __forceinline__ void stage_chunk(float* to, const float (&sums)[4]) {
  st_shared_v4(to, sums[0], sums[1], sums[2], sums[3]);
}
__device__ __forceinline__ void stage_chunk(double* to, const double (&sums)[2]) {
  st_shared_v2(to, sums[0], sums[1]);
}

// One staged part: rows from row0 on, kWidth columns per lane and pass.
template <class Config, int kWidth>
struct PartWriter {
  static constexpr int kPerRow = Config::kWarpN / kWidth;
  static constexpr int kRowsPerPass = 32 / kPerRow;
  static constexpr int kPasses = kStagedRows / kRowsPerPass;
  static constexpr int kPitch = Config::kWarpN + kStagedPad;
  using Acc = typename Config::Acc;
  static constexpr int kChunk = kPerChunk<Acc>;
  static_assert(32 % kPerRow == 0 && kStagedRows % kRowsPerPass == 0, "the lanes take whole rows");

  const GemmParams& p;
  Acc* staged[kWidth / kChunk];  // where this lane's chunks of pass 0 lie
  int row, col, count;           // count: columns that exist

  __device__ __forceinline__ PartWriter(const GemmParams& params, Acc* part, int row0, int col0) : p(params) {
    const int lane = lane_id();
    row = row0 + lane / kPerRow;
    col = col0 + lane % kPerRow * kWidth;
    count = min(kWidth, p.n - col);
#pragma unroll
    for (int q = 0; q < kWidth / kChunk; ++q) {
      staged[q] = part + staged_offset<Config>(lane / kPerRow, lane % kPerRow * (kWidth / kChunk) + q);
    }
  }

  __device__ __forceinline__ Acc* chunk(int pass, int q) const {
    return staged[q] + pass * kRowsPerPass * kPitch;
  }

  // staged = held + staged, where held is in rows of `ld` elements.
  template <class Held>
  __device__ __forceinline__ void add(const Held* held, long long ld) const {
    Acc before[kPasses][kWidth];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const long long at = row + i * kRowsPerPass;
      if (at < p.m && count > 0) load_values(held + at * ld + col, count, before[i]);
    }
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (row + i * kRowsPerPass >= p.m || count <= 0) continue;
#pragma unroll
      for (int q = 0; q < kWidth / kChunk; ++q) {
        Acc sums[kChunk];
        load_chunk(chunk(i, q), sums);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) sums[e] = add_rn(before[i][kChunk * q + e], sums[e]);
        stage_chunk(chunk(i, q), sums);
      }
    }
  }

  // The staged values, rounded, into rows of `ld` elements.
  template <class Out>
  __device__ __forceinline__ void store(Out* to, long long ld) const {
#pragma unroll 1
    for (int i = 0; i < kPasses; ++i) {
      const long long at = row + i * kRowsPerPass;
      if (at >= p.m || count <= 0) continue;
      Acc values[kWidth];
#pragma unroll
      for (int q = 0; q < kWidth / kChunk; ++q) {
        Acc sums[kChunk];
        load_chunk(chunk(i, q), sums);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) values[kChunk * q + e] = sums[e];
      }
      store_values(to + at * ld + col, count, values);
    }
  }
};

// Calls write(first row) for every eight rows of a warp's tile, once they are staged; clears the sums.
template <class Config, class Acc, int kFragM, int kFragN, class Write>
__device__ __forceinline__ void stage_rows(Acc* staged, int row0, Acc (&acc)[kFragM][kFragN][4],
                                           Write write) {
  constexpr int kChunk = kPerChunk<Acc>;
  const int lane = lane_id();
#pragma unroll 1
  for (int part = 0; part < 2 * kFragM; ++part) {
    // Accumulators have no run-time index: of the unrolled copies one is taken. What follows is compiled once.
#pragma unroll
    for (int h = 0; h < 2 * kFragM; ++h) {
      if (h != part) continue;
#pragma unroll
      for (int j = 0; j < kFragN; ++j) {
        Acc(&two)[4] = acc[h / 2][j];
        // A sum of -0 becomes +0, as the zeros that fill up a ragged k-tile would make it.
        const int chunk = 8 / kChunk * j + lane % 4 * 2 / kChunk;
        Acc* at = staged + staged_offset<Config>(lane / 4, chunk) + lane * 2 % kChunk;
        st_shared_v2(at, add_rn(two[h % 2 * 2], Acc(0)), add_rn(two[h % 2 * 2 + 1], Acc(0)));
        two[h % 2 * 2] = two[h % 2 * 2 + 1] = 0;
      }
    }
    __syncwarp();
    write(row0 + part * kStagedRows);
    __syncwarp();
  }
}

// staged += what the output held or the segments before this one summed to; nothing for a first segment. Each in chunks of
// 16 bytes of where it lies, so that a request takes whole sectors.
template <class Config, class Acc>
__device__ __forceinline__ void add_before(const GemmParams& p, int segment, Acc* staged, int row, int col0) {
  using Out = typename Config::Out;
  if (segment > 0) {
    PartWriter<Config, kPerChunk<Acc>>(p, staged, row, col0).add(static_cast<const Acc*>(p.total), p.n);
  } else if (p.accumulate) {
    PartWriter<Config, 16 / sizeof(Out)>(p, staged, row, col0).add(static_cast<const Out*>(p.d), p.ldd);
  } else {
    return;
  }
  __syncwarp();  // other lanes take these elements now
}

// The sums of a segment that others follow, or that ordered_reduce adds up: into the running total or into their slab.
template <class Config, class Acc, int kFragM, int kFragN>
__device__ __forceinline__ void store_partial(const GemmParams& p, int segment, int row0, int col0,
                                              Acc* staged, Acc (&acc)[kFragM][kFragN][4]) {
  auto* totals = static_cast<Acc*>(p.total);
  if (p.splits > 1) totals += static_cast<long long>(segment) * p.m * p.n;
  stage_rows<Config>(staged, row0, acc, [&](int row) {
    if (p.splits == 1) add_before<Config>(p, segment, staged, row, col0);
    PartWriter<Config, kPerChunk<Acc>>(p, staged, row, col0).store(totals, p.n);
  });
}

// In place on a staged part: value = apply(column, value). Lanes take consecutive columns.
template <class Config, class Acc, class Apply>
__device__ __forceinline__ void transform(const GemmParams& p, Acc* staged, int col0, Apply apply) {
  constexpr int kPerRow = Config::kWarpN / 32, kChunk = kPerChunk<Acc>;
  const int lane = lane_id();
#pragma unroll 4
  for (int i = 0; i < kStagedRows * kPerRow; ++i) {
    const int c = i % kPerRow * 32 + lane;
    Acc* at = staged + staged_offset<Config>(i / kPerRow, c / kChunk) + c % kChunk;
    if (col0 + c < p.n) *at = apply(col0 + c, *at);
  }
}

// The sums of the last segment: through the epilogue into the output.
template <class Config, class Acc, int kFragM, int kFragN>
__device__ __forceinline__ void store_output(const GemmParams& p, int segment, int row0, int col0,
                                             Acc* staged, Acc (&acc)[kFragM][kFragN][4]) {
  using Out = typename Config::Out;
  constexpr int kWidth = 16 / sizeof(Out);
  stage_rows<Config>(staged, row0, acc, [&](int row) {
    add_before<Config>(p, segment, staged, row, col0);
    const PartWriter<Config, kWidth> writer(p, staged, row, col0);
    if (p.bias != nullptr) {
      transform<Config>(p, staged, col0, [&](int col, Acc value) { return add_bias<Config>(p, col, value); });
      __syncwarp();
    }
    if (p.preact != nullptr) writer.store(static_cast<Out*>(p.preact), p.ldp);
    if (p.activation != kNone) {
      __syncwarp();
      transform<Config>(p, staged, col0, [&](int, Acc value) { return activate(value, p.activation); });
      __syncwarp();
    }
    writer.store(static_cast<Out*>(p.d), p.ldd);
  });
}
