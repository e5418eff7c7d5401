// Operands that are given as planes (split_planes.cuh): which pairs of planes are multiplied, and in which order.
#pragma once

// The planes of A and of B in product number i of a step of K: what is smallest comes first, and pairs whose product
// is below the last bit of float32 are left out.
template <int kPlanes>
struct PlanePairs;
template <>
struct PlanePairs<1> {
  static constexpr int kCount = 1;
  __device__ static constexpr int a(int) { return 0; }
  __device__ static constexpr int b(int) { return 0; }
};
template <>
struct PlanePairs<2> {
  static constexpr int kCount = 3;
  __device__ static constexpr int a(int i) {
    constexpr int plane[kCount] = {1, 0, 0};
    return plane[i];
  }
  __device__ static constexpr int b(int i) {
    constexpr int plane[kCount] = {0, 1, 0};
    return plane[i];
  }
};
template <>
struct PlanePairs<3> {
  static constexpr int kCount = 6;
  __device__ static constexpr int a(int i) {
    constexpr int plane[kCount] = {2, 1, 0, 1, 0, 0};
    return plane[i];
  }
  __device__ static constexpr int b(int i) {
    constexpr int plane[kCount] = {0, 1, 2, 0, 1, 0};
    return plane[i];
  }
};
