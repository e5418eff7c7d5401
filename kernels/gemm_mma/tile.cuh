// How the k-tile of one operand lies in shared memory, and how a block copies it there.
//
// A tile keeps the major of its operand, so that 16-byte copies need no transposition:
//   K-major   kBlockMN rows of kBlockK elements        MN-major   kBlockK rows of kBlockMN elements
// Rows are cut into 16-byte chunks, and chunk c of row r lies at c ^ swizzle(r): the eight rows of an 8x8 matrix, at
// one chunk, then lie in eight different groups of four banks (ldmatrix), and so do eight consecutive chunks (copies).
// ldmatrix transposes 16-bit elements only, and has none of 64 bits: MN-major float32 and all of float64 are read element
// by element, where all banks serve 32 bytes of four rows at a time.
#pragma once

#include "common/layout.cuh"
#include "common/types.cuh"

template <class In, Major kMajorOf, int kBlockMN, int kBlockK>
struct MmaTile {
  using Element = In;
  static constexpr Major kMajor = kMajorOf;
  static constexpr int kRows = kMajor == Major::K ? kBlockMN : kBlockK;
  static constexpr int kRowBytes = (kMajor == Major::K ? kBlockK : kBlockMN) * sizeof(In);
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kChunk = 16 / sizeof(In);  // elements
  static constexpr int kChunksPerRow = kRowBytes / 16;
  static constexpr int kRowsPerLine = kRowBytes >= 128 ? 1 : 128 / kRowBytes;  // rows in all 32 banks
  static constexpr int kMask = (kChunksPerRow < 8 ? kChunksPerRow : 8) - 1;
  static constexpr bool kByElements = sizeof(In) == 8 || (kMajor == Major::MN && sizeof(In) == 4);
  static constexpr int kApart = kByElements ? 2 : 1;  // chunks of a row that are read together
  static constexpr int kPeriod = kRowsPerLine * (kMask + 1) / kApart;  // rows so far apart have one swizzle
  static_assert(kRowBytes == 64 || kRowBytes % 128 == 0, "a row is 64 bytes or whole lines of 128");

  __device__ static constexpr int swizzle(int row) { return row / kRowsPerLine * kApart & kMask; }

  // Byte offset of a chunk.
  __device__ static constexpr unsigned offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ swizzle(row)) << 4);
  }
};

// Copies the tiles of one operand, k-tile after k-tile, in pieces of kVec bytes, of which rows of the matrix hold a whole
// number. Elements beyond an edge become zeros and are not read. A thread copies one chunk of every kPass-th row: by
// cp.async, or (load, then store) through registers.
// kPlanes: the operand is so many matrices of this size, one after the other, and so are its tiles in a stage.
template <class Tile, int kVec, int kBlockK, int kThreads, int kPlanes>
struct TileCopier {
  using In = typename Tile::Element;
  static constexpr bool kAlongK = Tile::kMajor == Major::K;
  static constexpr int kPass = kThreads / Tile::kChunksPerRow;  // rows that all threads copy together
  static constexpr int kCount = Tile::kRows / kPass;            // chunks of a thread
  static_assert(kThreads % Tile::kChunksPerRow == 0 && Tile::kRows % kPass == 0,
                "every thread copies as much");
  static_assert(kPass % Tile::kPeriod == 0 || Tile::kPeriod % kPass == 0,
                "the swizzle of a row is that of the thread's first row XOR one known to the compiler");
  static_assert(kVec == 16 || kVec == 8 || kVec == 4 || kVec == sizeof(In), "cp.async, or single elements");

  const In* from;            // this thread's first chunk in the next k-tile
  long long row_step;        // elements from one of its chunks to the next
  long long tile_step;       // elements from one k-tile to the next
  unsigned to;               // byte offset of the first chunk in the tile
  long long plane_step;      // elements from one plane to the next
  int rows_left, cols_left;  // rows and elements of a row from the thread's first chunk on that exist

  // base (size_mn, size_k), stride ld between its rows; the tile starts at (mn0, k0).
  __device__ __forceinline__ TileCopier(const void* base, long long ld, int mn0, int k0, int size_mn,
                                        int size_k) {
    const int row = threadIdx.x / Tile::kChunksPerRow, chunk = threadIdx.x % Tile::kChunksPerRow;
    const int col = chunk * Tile::kChunk;
    const long long row0 = (kAlongK ? mn0 : k0) + row, col0 = (kAlongK ? k0 : mn0) + col;
    from = static_cast<const In*>(base) + (row0 * ld + col0);
    row_step = kPass * ld;
    tile_step = kAlongK ? kBlockK : kBlockK * ld;
    plane_step = (kAlongK ? size_mn : size_k) * ld;
    to = Tile::offset(row, chunk);
    rows_left = (kAlongK ? size_mn - mn0 : size_k - k0) - row;
    cols_left = (kAlongK ? size_k - k0 : size_mn - mn0) - col;
  }

  // A thread's chunks of a k-tile in registers.
  using Held = uint4[kPlanes][kCount];

  // Copy the next k-tile into the stage, and step on.
  __device__ __forceinline__ void copy(char* stage) {
    next_tile([&](int plane, int i, const In* source, int exist) {
      copy_chunk(stage + chunk_offset(plane, i), source, exist);
    });
  }

  // The same in two parts, between which the tile is on its way.
  __device__ __forceinline__ void load(Held& held) {
    next_tile(
        [&](int plane, int i, const In* source, int exist) { held[plane][i] = load_chunk(source, exist); });
  }
  __device__ __forceinline__ void store(const Held& held, char* stage) const {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        *reinterpret_cast<uint4*>(stage + chunk_offset(plane, i)) = held[plane][i];
      }
    }
  }

 private:
  // Byte offset in a stage of this thread's chunk i.
  __device__ __forceinline__ unsigned chunk_offset(int plane, int i) const {
    return (to ^ Tile::swizzle(i * kPass) << 4) + plane * Tile::kBytes + i * kPass * Tile::kRowBytes;
  }

  // Calls each(plane, i, source, elements that exist) for this thread's chunks of the next k-tile, and steps on.
  template <class Each>
  __device__ __forceinline__ void next_tile(Each each) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      const In* source = from + plane * plane_step;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        each(plane, i, source, i * kPass < rows_left ? cols_left : 0);
        source += row_step;
      }
    }
    from += tile_step;
    (kAlongK ? cols_left : rows_left) -= kBlockK;
  }

  // The first `exist` elements of a chunk, and zeros.
  __device__ static __forceinline__ void copy_chunk(char* smem, const In* source, int exist) {
    if constexpr (kVec >= 4) {
#pragma unroll
      for (int piece = 0; piece < 16; piece += kVec) {
        const int element = piece / sizeof(In);
        cp_async_or_zero<kVec>(smem + piece, source + element, element < exist);
      }
    } else {
      *reinterpret_cast<uint4*>(smem) = load_chunk(source, exist);
    }
  }

  // The same into registers.
  __device__ static __forceinline__ uint4 load_chunk(const In* source, int exist) {
    constexpr int kWidth = kVec / sizeof(In);  // elements of an access
    if constexpr (kVec == 16) {
      return load_or_zero<uint4>(source, 0 < exist);
    } else if constexpr (kVec == 8) {
      const uint2 low = load_or_zero<uint2>(source, 0 < exist);
      const uint2 high = load_or_zero<uint2>(source + kWidth, kWidth < exist);
      return make_uint4(low.x, low.y, high.x, high.y);
    } else {
      unsigned words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kVec == 4) {
          words[i] = load_or_zero<unsigned>(source + i * kWidth, i * kWidth < exist);
        } else {
          const unsigned low = 2 * i < exist ? source[2 * i].bits : 0;
          const unsigned high = 2 * i + 1 < exist ? source[2 * i + 1].bits : 0;
          words[i] = low | high << 16;
        }
      }
      return make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  template <class Words>
  __device__ static __forceinline__ Words load_or_zero(const In* source, bool exists) {
    Words words = {};
    if (exists) words = *reinterpret_cast<const Words*>(source);
    return words;
  }
};
