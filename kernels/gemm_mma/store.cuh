// The end of a segment: takes a warp's sums from its accumulators through shared memory to a slab, a running total, or
// the output, in 16-byte accesses of whole rows.
//
// A warp stages eight rows of its tile at a time in its own part of shared memory; nobody else waits for it.
#pragma once

#include "common/chunk.cuh"
#include "common/epilogue.cuh"
#include "common/params.cuh"

constexpr int kStagedRows = 8;
constexpr int kStagedPad = 8;  // floats: the float2 of four rows lie in different banks

// Where four floats lie in the staged rows. Every second half of a row (row, where rows are half as long) has its pairs of
// chunks swapped: lanes that read eight floats each, four at a time, then meet in no bank.
template <class Config>
__device__ __forceinline__ int staged_offset(int row, int chunk) {
  static_assert(Config::kWarpN == 64 || Config::kWarpN == 32, "a row is one or two lines of 128 bytes");
  const int swap = (Config::kWarpN == 64 ? chunk / 8 : row) & 1;
  return row * (Config::kWarpN + kStagedPad) + (chunk ^ swap) * 4;
}

// One staged part: rows from row0 on, kWidth columns per lane and pass.
template <class Config, int kWidth>
struct PartWriter {
  static constexpr int kPerRow = Config::kWarpN / kWidth;
  static constexpr int kRowsPerPass = 32 / kPerRow;
  static constexpr int kPasses = kStagedRows / kRowsPerPass;
  static constexpr int kPitch = Config::kWarpN + kStagedPad;
  static_assert(32 % kPerRow == 0 && kStagedRows % kRowsPerPass == 0, "the lanes take whole rows");

  const GemmParams& p;
  float* staged[kWidth / 4];  // where this lane's chunk of pass 0 lies, four floats each
  int row, col, count;        // count: columns that exist

  __device__ __forceinline__ PartWriter(const GemmParams& params, float* part, int row0, int col0)
      : p(params) {
    const int lane = lane_id();
    row = row0 + lane / kPerRow;
    col = col0 + lane % kPerRow * kWidth;
    count = min(kWidth, p.n - col);
#pragma unroll
    for (int q = 0; q < kWidth / 4; ++q) {
      staged[q] = part + staged_offset<Config>(lane / kPerRow, lane % kPerRow * (kWidth / 4) + q);
    }
  }

  __device__ __forceinline__ float* chunk(int pass, int q) const {
    return staged[q] + pass * kRowsPerPass * kPitch;
  }

  // staged = held + staged, where held is in rows of `ld` elements.
  template <class Held>
  __device__ __forceinline__ void add(const Held* held, long long ld) const {
    float before[kPasses][kWidth];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const long long at = row + i * kRowsPerPass;
      if (at < p.m && count > 0) load_values(held + at * ld + col, count, before[i]);
    }
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (row + i * kRowsPerPass >= p.m || count <= 0) continue;
#pragma unroll
      for (int q = 0; q < kWidth / 4; ++q) {
        const float* held4 = before[i] + 4 * q;
        const float4 v = *reinterpret_cast<const float4*>(chunk(i, q));
        st_shared_v4(chunk(i, q), add_rn(held4[0], v.x), add_rn(held4[1], v.y), add_rn(held4[2], v.z),
                     add_rn(held4[3], v.w));
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
      float values[kWidth];
#pragma unroll
      for (int q = 0; q < kWidth / 4; ++q) {
        const float4 v = *reinterpret_cast<const float4*>(chunk(i, q));
        values[4 * q] = v.x, values[4 * q + 1] = v.y, values[4 * q + 2] = v.z, values[4 * q + 3] = v.w;
      }
      store_values(to + at * ld + col, count, values);
    }
  }
};

// Calls write(first row) for every eight rows of a warp's tile, once they are staged; clears the sums.
template <class Config, int kFragM, int kFragN, class Write>
__device__ __forceinline__ void stage_rows(float* staged, int row0, float (&acc)[kFragM][kFragN][4],
                                           Write write) {
  const int lane = lane_id();
#pragma unroll 1
  for (int part = 0; part < 2 * kFragM; ++part) {
    // Accumulators have no run-time index: of the unrolled copies one is taken. What follows is compiled once.
#pragma unroll
    for (int h = 0; h < 2 * kFragM; ++h) {
      if (h != part) continue;
#pragma unroll
      for (int j = 0; j < kFragN; ++j) {
        float (&two)[4] = acc[h / 2][j];
        // A sum of -0 becomes +0, as the zeros that fill up a ragged k-tile would make it.
        float* at = staged + staged_offset<Config>(lane / 4, 2 * j + lane % 4 / 2) + lane % 2 * 2;
        st_shared_v2(at, add_rn(two[h % 2 * 2], 0.f), add_rn(two[h % 2 * 2 + 1], 0.f));
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
template <class Config>
__device__ __forceinline__ void add_before(const GemmParams& p, int segment, float* staged, int row,
                                           int col0) {
  using Out = typename Config::Out;
  if (segment > 0) {
    PartWriter<Config, 4>(p, staged, row, col0).add(static_cast<const float*>(p.total), p.n);
  } else if (p.accumulate) {
    PartWriter<Config, 16 / sizeof(Out)>(p, staged, row, col0).add(static_cast<const Out*>(p.d), p.ldd);
  } else {
    return;
  }
  __syncwarp();  // other lanes take these elements now
}

// The sums of a segment that others follow, or that ordered_reduce adds up: into the running total or into their slab.
template <class Config, int kFragM, int kFragN>
__device__ __forceinline__ void store_partial(const GemmParams& p, int segment, int row0, int col0,
                                              float* staged, float (&acc)[kFragM][kFragN][4]) {
  auto* totals = static_cast<float*>(p.total);
  if (p.splits > 1) totals += static_cast<long long>(segment) * p.m * p.n;
  stage_rows<Config>(staged, row0, acc, [&](int row) {
    if (p.splits == 1) add_before<Config>(p, segment, staged, row, col0);
    PartWriter<Config, 4>(p, staged, row, col0).store(totals, p.n);
  });
}

// In place on a staged part: value = apply(column, value). Lanes take consecutive columns.
template <class Config, class Apply>
__device__ __forceinline__ void transform(const GemmParams& p, float* staged, int col0, Apply apply) {
  constexpr int kPerRow = Config::kWarpN / 32;
  const int lane = lane_id();
#pragma unroll 4
  for (int i = 0; i < kStagedRows * kPerRow; ++i) {
    const int c = i % kPerRow * 32 + lane;
    float* at = staged + staged_offset<Config>(i / kPerRow, c / 4) + c % 4;
    if (col0 + c < p.n) *at = apply(col0 + c, *at);
  }
}

// The sums of the last segment: through the epilogue into the output.
template <class Config, int kFragM, int kFragN>
__device__ __forceinline__ void store_output(const GemmParams& p, int segment, int row0, int col0,
                                             float* staged, float (&acc)[kFragM][kFragN][4]) {
  using Out = typename Config::Out;
  constexpr int kWidth = 16 / sizeof(Out);
  stage_rows<Config>(staged, row0, acc, [&](int row) {
    add_before<Config>(p, segment, staged, row, col0);
    const PartWriter<Config, kWidth> writer(p, staged, row, col0);
    if (p.bias != nullptr) {
      transform<Config>(p, staged, col0,
                        [&](int col, float value) { return add_bias<Config>(p, col, value); });
      __syncwarp();
    }
    if (p.preact != nullptr) writer.store(static_cast<Out*>(p.preact), p.ldp);
    if (p.activation != kNone) {
      __syncwarp();
      transform<Config>(p, staged, col0, [&](int, float value) { return activate(value, p.activation); });
      __syncwarp();
    }
    writer.store(static_cast<Out*>(p.d), p.ldd);
  });
}
