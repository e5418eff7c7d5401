// Chunks of consecutive elements in global memory: accesses of up to 16 bytes where the address allows it and the chunk
// is whole, single elements at edges.
#pragma once

#include "common/types.cuh"

template <int kBytes>
__device__ __forceinline__ bool aligned(const void* pointer) {
  return (reinterpret_cast<unsigned long long>(pointer) & (kBytes - 1)) == 0;
}

// The value or values that a 32-bit word holds.
__device__ __forceinline__ void unpack(unsigned word, const float*, float* values) {
  values[0] = __uint_as_float(word);
}
template <class In>
__device__ __forceinline__ void unpack(unsigned word, const In*, float* values) {
  values[0] = to_acc<float>(In{static_cast<unsigned short>(word)});
  values[1] = to_acc<float>(In{static_cast<unsigned short>(word >> 16)});
}

// A word of one or two rounded values.
__device__ __forceinline__ unsigned pack(const float* values, const float*) {
  return __float_as_uint(values[0]);
}
template <class Out>
__device__ __forceinline__ unsigned pack(const float* values, const Out*) {
  Out low, high;
  store_rounded(&low, values[0]);
  store_rounded(&high, values[1]);
  return low.bits | static_cast<unsigned>(high.bits) << 16;
}

// The first count of kWidth elements; the others become zero.
template <int kWidth, class In>
__device__ __forceinline__ void load_values(const In* from, int count, float (&values)[kWidth]) {
  constexpr int kBytes = kWidth * sizeof(In) < 16 ? kWidth * sizeof(In) : 16;
  constexpr int kPerWord = 4 / sizeof(In);
  if (count == kWidth && aligned<kBytes>(from)) {
#pragma unroll
    for (int i = 0; i < kWidth; i += kBytes / sizeof(In)) {
      if constexpr (kBytes == 16) {
        const uint4 raw = *reinterpret_cast<const uint4*>(from + i);
        unpack(raw.x, from, values + i);
        unpack(raw.y, from, values + i + kPerWord);
        unpack(raw.z, from, values + i + 2 * kPerWord);
        unpack(raw.w, from, values + i + 3 * kPerWord);
      } else {
        const uint2 raw = *reinterpret_cast<const uint2*>(from + i);
        unpack(raw.x, from, values + i);
        unpack(raw.y, from, values + i + kPerWord);
      }
    }
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) values[e] = e < count ? to_acc<float>(from[e]) : 0.f;
  }
}

// Two of double, which are 16 bytes.
__device__ __forceinline__ void load_values(const double* from, int count, double (&values)[2]) {
  if (count == 2 && aligned<16>(from)) {
    const double2 both = *reinterpret_cast<const double2*>(from);
    values[0] = both.x, values[1] = both.y;
  } else {
    values[0] = count > 0 ? from[0] : 0.;
    values[1] = count > 1 ? from[1] : 0.;
  }
}
__device__ __forceinline__ void store_values(double* to, int count, const double (&values)[2]) {
  if (count == 2 && aligned<16>(to)) {
    *reinterpret_cast<double2*>(to) = make_double2(values[0], values[1]);
  } else {
    if (count > 0) to[0] = values[0];
    if (count > 1) to[1] = values[1];
  }
}

// Rounded to Out; the first count of kWidth elements, which are 16 bytes.
template <int kWidth, class Out>
__device__ __forceinline__ void store_values(Out* to, int count, const float (&values)[kWidth]) {
  static_assert(kWidth * sizeof(Out) == 16, "a chunk is one 16-byte store");
  constexpr int kPerWord = 4 / sizeof(Out);
  if (count == kWidth && aligned<16>(to)) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack(values, to), pack(values + kPerWord, to), pack(values + 2 * kPerWord, to),
                   pack(values + 3 * kPerWord, to));
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      if (e < count) store_rounded(to + e, values[e]);
    }
  }
}
