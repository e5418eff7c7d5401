// How an operand's tile lies in shared memory, how it is fetched, and how a thread reads its fragment.
// The only place that knows about bounds: everything beyond an edge of the matrix is zero in the tile.
//
// A tile keeps the major of its operand, so that 16-byte copies need no transposition:
//   K-major   rows of kBlockK elements, in 16-byte chunks whose order is swizzled
//   MN-major  rows of kBlockMN elements, one row per k
#pragma once

#include "common/types.cuh"

enum class Major { K, MN };

// Acc: element type in shared memory. kLanes: how many threads share the MN dimension of the tile;
// kPerThread: elements of it that each of them owns.
template <class Acc, Major kMajor, int kBlockMN, int kBlockK, int kPerThread>
struct Tile {
  static constexpr int kChunk = 16 / sizeof(Acc);  // elements of a 16-byte access
  static constexpr int kElements = kBlockMN * kBlockK;
  static constexpr int kLanes = kBlockMN / kPerThread;

  static constexpr int kChunksPerRow = kBlockK / kChunk;
  static constexpr int kRowsPerLine =
      kChunksPerRow >= 8 ? 1 : 8 / kChunksPerRow;  // rows in 128 bytes: all 32 banks
  static_assert(kBlockK % kChunk == 0, "a k-tile holds whole 16-byte chunks");
  static_assert(kMajor == Major::K || kPerThread % kChunk == 0,
                "a thread owns whole 16-byte chunks of an MN-major operand");

  // Where element (mn, k) lies. The swizzle puts one chunk of eight consecutive rows into eight different
  // groups of four banks, and so do eight consecutive chunks of the fill: neither has a bank conflict.
  __device__ static constexpr int offset(int mn, int k) {
    if constexpr (kMajor == Major::MN) {
      return k * kBlockMN + mn;
    } else {
      const int chunk = (k / kChunk) ^ ((mn / kRowsPerLine) % kChunksPerRow);
      return mn * kBlockK + chunk * kChunk + k % kChunk;
    }
  }

  // Which row of the tile is element i of thread lane: interleaved for K-major (eight lanes read eight
  // consecutive rows), groups of one chunk for MN-major (eight lanes read 128 consecutive bytes).
  __device__ static constexpr int row(int lane, int i) {
    if constexpr (kMajor == Major::MN) {
      return i / kChunk * (kChunk * kLanes) + lane * kChunk + i % kChunk;
    } else {
      return i * kLanes + lane;
    }
  }
};

// A 16-byte shared-memory load of kChunk consecutive elements.
__device__ __forceinline__ void load_chunk(const float* smem, float (&out)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(smem);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
__device__ __forceinline__ void load_chunk(const double* smem, double (&out)[2]) {
  const double2 v = *reinterpret_cast<const double2*>(smem);
  out[0] = v.x, out[1] = v.y;
}
__device__ __forceinline__ void store_chunk(float* smem, const float* in) {
  *reinterpret_cast<float4*>(smem) = make_float4(in[0], in[1], in[2], in[3]);
}
__device__ __forceinline__ void store_chunk(double* smem, const double* in) {
  *reinterpret_cast<double2*>(smem) = make_double2(in[0], in[1]);
}

// Fetches the tiles of one operand, k-tile by k-tile, with accesses of kVec bytes of gmem.
template <class Tile, class In, class Acc, Major kMajor, int kBlockMN, int kBlockK, int kVec, int kThreads>
struct Fetcher {
  static constexpr int kWidth = kVec / sizeof(In);  // elements of an access
  static constexpr int kPerRow = (kMajor == Major::K ? kBlockK : kBlockMN) / kWidth;
  static constexpr int kAccesses = Tile::kElements / kWidth;
  static constexpr int kPerThread = (kAccesses + kThreads - 1) / kThreads;
  static_assert(kWidth >= 1 && kWidth * sizeof(In) == kVec, "an access holds whole elements");
  static_assert((kMajor == Major::K ? kBlockK : kBlockMN) % kWidth == 0, "a tile row holds whole accesses");

  union Raw {
    uint4 vector;
    In items[kVec == 16 ? kWidth : 16 / sizeof(In)];
    __device__ Raw() {}
  };

  const In* base;  // (size_mn, size_k), stride ld between its rows
  long long ld;
  int size_mn, size_k, mn0;

  // Coordinates in the tile of access number i of this thread; false when it has none.
  __device__ __forceinline__ bool place(int i, int& mn, int& k) const {
    const int access = threadIdx.x + i * kThreads;
    const int outer = access / kPerRow, inner = access % kPerRow * kWidth;
    mn = kMajor == Major::K ? outer : inner;
    k = kMajor == Major::K ? inner : outer;
    return kAccesses % kThreads == 0 || access < kAccesses;
  }

  // Elements of an access at (mn, k0 + k) that exist, from the first on.
  __device__ __forceinline__ int valid(int mn, int k) const {
    const int left = kMajor == Major::K ? size_k - k : size_mn - (mn0 + mn);
    const bool row_exists = kMajor == Major::K ? mn0 + mn < size_mn : k < size_k;
    return row_exists ? max(0, min(left, kWidth)) : 0;
  }

  __device__ __forceinline__ const In* address(int mn, int k) const {
    const long long m = mn0 + mn;
    return base + (kMajor == Major::K ? m * ld + k : k * ld + m);
  }

  // Asynchronously into shared memory; needs In == Acc.
  __device__ __forceinline__ void copy(Acc* smem, int k0) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      int mn, k;
      if (!place(i, mn, k)) continue;
      const int count = valid(mn, k0 + k);
      // An access with nothing to read still needs an address inside the matrix.
      cp_async<kVec>(smem + Tile::offset(mn, k), count > 0 ? address(mn, k0 + k) : base,
                     count * static_cast<int>(sizeof(In)));
    }
  }

  // Into registers, to be stored after the current tile has been used up.
  __device__ __forceinline__ void load(Raw (&raw)[kPerThread], int k0) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      int mn, k;
      if (!place(i, mn, k)) continue;
      const int count = valid(mn, k0 + k);
      const In* from = address(mn, k0 + k);
      if (kVec == 16 && count == kWidth) {
        raw[i].vector = *reinterpret_cast<const uint4*>(from);
      } else {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          raw[i].items[e] = In();
          if (e < count) raw[i].items[e] = from[e];
        }
      }
    }
  }

  __device__ __forceinline__ void store(const Raw (&raw)[kPerThread], Acc* smem) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      int mn, k;
      if (!place(i, mn, k)) continue;
      Acc values[kWidth];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) values[e] = to_acc<Acc>(raw[i].items[e]);
      if constexpr (kWidth % Tile::kChunk == 0) {
#pragma unroll
        for (int e = 0; e < kWidth; e += Tile::kChunk) {
          store_chunk(smem + (kMajor == Major::K ? Tile::offset(mn, k + e) : Tile::offset(mn + e, k)),
                      values + e);
        }
      } else {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          smem[kMajor == Major::K ? Tile::offset(mn, k + e) : Tile::offset(mn + e, k)] = values[e];
        }
      }
    }
  }
};
