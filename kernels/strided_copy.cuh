// Copies between two strided layouts of one shape, for operands whose strides no GEMM can read in place.
//
// Threads: four elements each, consecutive threads on consecutive elements of the last dimension.
#pragma once

#include "common/params.cuh"

template <int kBytes>
struct Item;
template <>
struct Item<1> {
  using Type = unsigned char;
};
template <>
struct Item<2> {
  using Type = unsigned short;
};
template <>
struct Item<4> {
  using Type = unsigned;
};
template <>
struct Item<8> {
  using Type = unsigned long long;
};

template <class Config>
__device__ void strided_copy(const StridedCopyParams& p) {
  using T = typename Item<Config::kItemBytes>::Type;
  constexpr int kItemsPerThread = 4;
  long long count = 1;
  for (int d = 0; d < p.ndim; ++d) count *= p.shape[d];
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x * kItemsPerThread + threadIdx.x;
  for (int item = 0; item < kItemsPerThread; ++item) {
    long long rest = first + static_cast<long long>(item) * blockDim.x;
    if (rest >= count) return;
    long long from = 0, to = 0;
    for (int d = p.ndim - 1; d >= 0; --d) {
      const long long index = rest % p.shape[d];
      rest /= p.shape[d];
      from += index * p.src_stride[d];
      to += index * p.dst_stride[d];
    }
    *reinterpret_cast<T*>(static_cast<char*>(p.dst) + to) =
        *reinterpret_cast<const T*>(static_cast<const char*>(p.src) + from);
  }
}
