// Storage types, and the arithmetic of the accumulator types with its rounding spelled out.
#pragma once

#include "common/ptx.cuh"

struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

// The driver's CUtensorMap: where a matrix lies, and the box that one TMA instruction copies. Opaque to a kernel.
struct alignas(64) TensorMap {
  char bytes[128];
};

// ---- storage -> accumulator, exact ----

template <class Acc>
__device__ __forceinline__ Acc to_acc(float x) {
  return Acc(x);
}
template <class Acc>
__device__ __forceinline__ Acc to_acc(double x) {
  static_assert(sizeof(Acc) == 8, "a double is only ever accumulated in double");
  return x;
}
template <class Acc>
__device__ __forceinline__ Acc to_acc(Half x) {
  return Acc(cvt_f32_f16(x.bits));
}
template <class Acc>
__device__ __forceinline__ Acc to_acc(Bfloat16 x) {
  return Acc(__uint_as_float(unsigned(x.bits) << 16));
}

// ---- accumulator -> storage, rounded to nearest even, once ----

__device__ __forceinline__ void store_rounded(float* out, float x) { *out = x; }
__device__ __forceinline__ void store_rounded(double* out, double x) { *out = x; }
__device__ __forceinline__ void store_rounded(Half* out, float x) { out->bits = cvt_rn_f16_f32(x); }
__device__ __forceinline__ void store_rounded(Bfloat16* out, float x) {
  // In integers, because sm_75 has no such conversion and the bits must be the same everywhere.
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out->bits = x != x ? 0x7FFF : static_cast<unsigned short>(rounded);
}

// ---- arithmetic that no compiler may contract or reorder ----

__device__ __forceinline__ float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double div_rn(double a, double b) { return __ddiv_rn(a, b); }
