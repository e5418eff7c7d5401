// How one operand's k-tile lies in shared memory: what TMA writes there and what wgmma's descriptor says of it.
//
// A k-tile is 128 bytes deep, one row of the 128-byte swizzle: 64 elements of 16 bits, 32 of float32. TMA stores the
// 16-byte chunk c of row r of a box at chunk c ^ (r % 8), so that neither TMA's writes nor wgmma's reads, which
// go down a column of chunks, ever meet in a bank. wgmma undoes it: the swizzle is a field of the descriptor.
//
//   K-major    one box: kExtent rows of M or N, each 128 bytes of K. wgmma sees groups of 8 rows, 1024 bytes
//              apart. The next step of K (16 elements; 8 of float32) is 32 bytes further.
//   MN-major   16 bits only: boxes of 64 elements of M or N: 64 rows of K, 128 bytes each. wgmma sees groups of 8 rows, 1024
//              bytes apart along K, and boxes 8192 bytes apart along M or N. The next 16 of K are 2048 bytes
//              further. The instruction's transpose bit says that it is so: no copy is ever transposed.
//
// In a cluster the CTAs load kParts equal parts of a tile that they share: rows of M or N of a K-major one, rows
// of K of an MN-major one. Either is a whole number of 1024-byte groups, so the pattern does not notice.
#pragma once

#include "common/layout.cuh"
#include "common/ptx_sm90.cuh"

constexpr int kRow = 128;         // bytes of a swizzled row
constexpr int kGroup = 8 * kRow;  // bytes of the eight rows after which the swizzle repeats
constexpr int kBox = 64 * kRow;   // bytes of 64 rows: of an MN-major box, of a consumer's rows of A

template <class In>
constexpr int kDepth = kRow / static_cast<int>(sizeof(In));  // elements of K in a k-tile
constexpr int kSteps = kRow / 32;                            // instructions along K in it

template <class In, Major kMajor, int kExtent, int kParts>
struct WgmmaTile {
  static constexpr int kBytes = kExtent * kRow;
  static constexpr int kTrans = kMajor == Major::MN;
  // What the descriptor's address field, which counts 16 bytes, advances for the next step of K and the next plane.
  static constexpr int kStep = (kMajor == Major::K ? 32 : 16 * kRow) / 16;
  static constexpr int kPlane = kBytes / 16;
  static_assert(kMajor == Major::K || sizeof(In) == 2, "wgmma transposes 16-bit elements only");
  static_assert(kMajor == Major::K || kExtent % 64 == 0, "MN-major tiles are made of boxes of 64");
  static_assert(kExtent % (8 * kParts) == 0, "a part holds whole groups of eight rows");

  // Issue the copies of this CTA's part; `mn` and `k` are the tile's first element.
  template <class Copy>
  static __device__ __forceinline__ void load(unsigned smem, int mn, int k, int part, const Copy& copy) {
    if constexpr (kMajor == Major::K) {
      constexpr int kRows = kExtent / kParts;
      copy(smem + part * kRows * kRow, k, mn + part * kRows);
    } else {
      constexpr int kRows = kDepth<In> / kParts;
#pragma unroll
      for (int i = 0; i < kExtent / 64; ++i) {
        copy(smem + i * kBox + part * kRows * kRow, mn + 64 * i, k + part * kRows);
      }
    }
  }

  // The matrix descriptor (PTX ISA 9.7.15.5.1.2.2): address, leading and stride byte offsets in units of 16
  // bytes, and the swizzle in the upper two bits (1: 128 bytes).
  static __device__ __forceinline__ unsigned long long descriptor(unsigned smem) {
    constexpr unsigned long long kLeading = kMajor == Major::K ? 1 : kBox / 16;  // K-major: not used
    constexpr unsigned long long kStride = kGroup / 16;
    return (smem & 0x3FFFF) >> 4 | kLeading << 16 | kStride << 32 | 1ull << 62;
  }
};
