// Splits a float32 matrix into planes whose sum it is, for products of float32 accuracy on tensor cores.
//
// bf16x6     x = p0 + p1 + p2 in bfloat16, each nearest to what the ones before leave over. Exact for |x| >= 2^-110;
//            below, up to 2^-134 is lost, half of bfloat16's smallest number.
// tf32x3     x = hi + lo in tf32, ties away from zero as cvt.rna has them. Up to 2^-22 |x| is lost, or 2^-137.
// tf32       One plane: x as cvt.rna rounds it, Inf and NaN too, because wgmma would truncate it.
// Special    The first of several planes of a finite x is finite: near the largest float it is the largest of its format
//            instead of Inf, and the next plane takes the rest. That of a nonzero x is nonzero, if only by the smallest number,
//            which the next plane takes back. Inf becomes (1, 0, Inf) and NaN (1, 0, NaN), with the sign in each: then
//            Inf times y is the product of Inf and y's first plane, which has y's sign and is zero only where y is; and
//            no other plane can make a NaN of it.
// Planes     kPlanes matrices [rows][pitch], one after the other; the columns from cols to the pitch are zeros.
// Threads    256. Four columns of a row at a time, consecutive threads on consecutive ones, four times.
//            kTranspose, for an x whose columns are contiguous: tiles of 64 x 64 through shared memory (16.6 KB), read
//            along the columns and written along the rows.
// Needs      16-byte base and pitch of the planes; where kVec is 16, of x as well, and a unit column stride.
#pragma once

#include "common/params.cuh"
#include "common/types.cuh"

// Planes of bfloat16.
struct Bfloat16Planes {
  static constexpr int kCount = 3;
  using Element = Bfloat16;

  // The nearest bfloat16 of a magnitude (ties to even), as its bits.
  __device__ static __forceinline__ unsigned nearest(unsigned magnitude) {
    return (magnitude + 0x7FFFu + ((magnitude >> 16) & 1u)) >> 16;
  }

  __device__ static __forceinline__ unsigned nearest_signed(float x) {
    const unsigned bits = __float_as_uint(x);
    return nearest(bits & 0x7FFFFFFFu) | (bits >> 16 & 0x8000u);
  }

  __device__ static __forceinline__ void split(float x, unsigned (&planes)[kCount]) {
    const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
    const unsigned first = max(min(nearest(magnitude), 0x7F7Fu), min(magnitude, 1u));
    planes[0] = sign | first;
    float rest = add_rn(x, -__uint_as_float(planes[0] << 16));
    planes[1] = nearest_signed(rest);
    rest = add_rn(rest, -__uint_as_float(planes[1] << 16));
    planes[2] = nearest_signed(rest);
    if (magnitude >= 0x7F800000u) {
      planes[0] = sign | 0x3F80u;
      planes[1] = 0;
      planes[2] = sign | (magnitude > 0x7F800000u ? 0x7FFFu : 0x7F80u);
    }
  }

  __device__ static __forceinline__ void store(Bfloat16* to, const unsigned (&x)[4]) {
    st_global_v2(to, x[0] | x[1] << 16, x[2] | x[3] << 16);
  }
};

// Planes of float32 numbers that tf32 holds.
struct Tf32Planes {
  static constexpr int kCount = 2;
  using Element = float;

  __device__ static __forceinline__ unsigned nearest(unsigned bits) { return (bits + 0x1000u) & 0xFFFFE000u; }

  __device__ static __forceinline__ void split(float x, unsigned (&planes)[kCount]) {
    const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu, sign = bits & 0x80000000u;
    const unsigned first = max(min(nearest(magnitude), 0x7F7FE000u), magnitude != 0 ? 0x2000u : 0u);
    planes[0] = sign | first;
    const unsigned rest = __float_as_uint(add_rn(x, -__uint_as_float(planes[0])));
    // Near the largest float hi + lo stays below 2^128.
    planes[1] = (rest & 0x80000000u) | min(nearest(rest & 0x7FFFFFFFu), 0x79FFE000u);
    if (magnitude >= 0x7F800000u) {
      planes[0] = sign | 0x3F800000u;
      planes[1] = sign | (magnitude > 0x7F800000u ? 0x7FFFFFFFu : 0x7F800000u);
    }
  }

  __device__ static __forceinline__ void store(float* to, const unsigned (&x)[4]) {
    st_global_v4(to, x[0], x[1], x[2], x[3]);
  }
};

// A single one, as gemm_mma rounds fragments.
struct Tf32Plane {
  static constexpr int kCount = 1;
  using Element = float;

  __device__ static __forceinline__ void split(float x, unsigned (&planes)[kCount]) {
    planes[0] = cvt_rna_tf32_f32(x);
  }

  __device__ static __forceinline__ void store(float* to, const unsigned (&x)[4]) {
    st_global_v4(to, x[0], x[1], x[2], x[3]);
  }
};

// The planes of four columns of a row from col on.
template <class Planes>
__device__ __forceinline__ void store_planes(const SplitPlanesParams& p, long long row, long long col,
                                             const float (&x)[4]) {
  auto* dst = static_cast<typename Planes::Element*>(p.dst);
  unsigned planes[4][Planes::kCount];
#pragma unroll
  for (int e = 0; e < 4; ++e) Planes::split(x[e], planes[e]);
#pragma unroll
  for (int plane = 0; plane < Planes::kCount; ++plane) {
    const unsigned bits[4] = {planes[0][plane], planes[1][plane], planes[2][plane], planes[3][plane]};
    Planes::store(dst + (plane * static_cast<long long>(p.rows) + row) * p.pitch + col, bits);
  }
}

template <class Config>
__device__ __forceinline__ void split_rows(const SplitPlanesParams& p) {
  constexpr int kWidth = 4, kPerThread = 4;
  const auto* src = static_cast<const float*>(p.src);
  const unsigned per_row = static_cast<unsigned>(p.pitch / kWidth);
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x * kPerThread;
  const long long first_row = first / per_row;
  const unsigned first_chunk = static_cast<unsigned>(first % per_row) + threadIdx.x;

  float x[kPerThread][kWidth];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned chunk = first_chunk + i * blockDim.x;
    const long long row = first_row + chunk / per_row, col = static_cast<long long>(chunk % per_row) * kWidth;
    const float* from = src + row * p.row_stride + col * p.col_stride;
    const int count = row < p.rows ? static_cast<int>(p.cols - col) : 0;
    if (Config::kVec == 16 && count >= kWidth) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) x[i][e] = e < count ? from[e * p.col_stride] : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned chunk = first_chunk + i * blockDim.x;
    const long long row = first_row + chunk / per_row, col = static_cast<long long>(chunk % per_row) * kWidth;
    if (row >= p.rows) break;
    store_planes<typename Config::Planes>(p, row, col, x[i]);
  }
}

template <class Config>
__device__ __forceinline__ void split_transposed(const SplitPlanesParams& p) {
  constexpr int kTile = 64, kThreads = 256, kChunks = kTile / 4;
  // One element of padding: four columns of eight chunks and four rows lie in 32 different banks.
  __shared__ float tile[kTile][kTile + 1];  // [column][row]
  const auto* src = static_cast<const float*>(p.src);
  const long long tiles = (p.pitch + kTile - 1) / kTile;  // along a row
  const long long row0 = blockIdx.x / tiles * kTile, col0 = blockIdx.x % tiles * kTile;
#pragma unroll 8
  for (int n = 0; n < kTile * kTile / kThreads; ++n) {
    const int i = n * kThreads + threadIdx.x;
    const long long row = row0 + i % kTile, col = col0 + i / kTile;
    const bool exists = row < p.rows && col < p.cols;
    tile[i / kTile][i % kTile] = exists ? src[row * p.row_stride + col * p.col_stride] : 0.f;
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTile * kChunks / kThreads; ++n) {
    const int i = n * kThreads + threadIdx.x;
    // A warp takes eight chunks of four rows.
    const int r = i / 32 / (kChunks / 8) * 4 + i % 32 / 8, c = (i / 32 % (kChunks / 8) * 8 + i % 8) * 4;
    if (row0 + r >= p.rows || col0 + c >= p.pitch) continue;
    const float x[4] = {tile[c][r], tile[c + 1][r], tile[c + 2][r], tile[c + 3][r]};
    store_planes<typename Config::Planes>(p, row0 + r, col0 + c, x);
  }
}

template <class Config>
__device__ void split_planes(const SplitPlanesParams& p) {
  if constexpr (Config::kTranspose) {
    split_transposed<Config>(p);
  } else {
    split_rows<Config>(p);
  }
}
