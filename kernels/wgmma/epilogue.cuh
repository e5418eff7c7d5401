// The end of a tile: bias, stored pre-activation, activation, the one rounding, the store; or a segment's slab.
//
// A thread of a wgmma holds pairs of neighbours: value 4j + e is at row 16 (thread / 32) + thread % 32 / 4
// + 8 (e / 2), column 8j + 2 (thread % 4) + e % 2. The tile is finished in chunks of kChunk columns.
//   kTmaStore   a chunk goes through a box in shared memory (wgmma/box.cuh): TMA stores it while the next one is
//               prepared, and clips it at the edges of D.
//   otherwise   pairs are stored from registers: 32 bytes of a row by four threads, for float32 a whole sector.
//   kSwapped    D is stored transposed: the planner gave the weight to the 64-row side, for few tokens.
// Each consumer has kStageBytes of shared memory for it: two boxes on their way out, or the values of one chunk.
#pragma once

#include "common/epilogue.cuh"
#include "common/ptx_sm90.cuh"
#include "wgmma/box.cuh"
#include "wgmma/scheduler.cuh"

constexpr int kStageBytes = 2 * kBox;

// ---- pairs of neighbours in a row ----

__device__ __forceinline__ void store_pair(float* out, float low, float high) {
  *reinterpret_cast<float2*>(out) = make_float2(low, high);
}
template <class Out>
__device__ __forceinline__ void store_pair(Out* out, float low, float high) {
  *reinterpret_cast<unsigned*>(out) = pack(out, low, high);
}

__device__ __forceinline__ void load_pair(const float* in, float& low, float& high) {
  const float2 pair = *reinterpret_cast<const float2*>(in);
  low = pair.x, high = pair.y;
}
template <class T>
__device__ __forceinline__ void load_pair(const T* in, float& low, float& high) {
  unpack(in, *reinterpret_cast<const unsigned*>(in), low, high);
}

// The elements of a row-major matrix in global memory that a thread's values stand for, two at a time where their
// alignment allows.
template <class T>
struct ThreadPairs {
  T* first[2];  // the thread's first column in its two rows, eight apart
  int left[2];  // columns of the matrix from there on; none in a row beyond the last
  bool aligned;

  __device__ __forceinline__ ThreadPairs(void* base, long long ld, int row, int col, int rows, int cols)
      : aligned(((reinterpret_cast<unsigned long long>(base) | ld * sizeof(T)) & (2 * sizeof(T) - 1)) == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      first[half] = static_cast<T*>(base) + (row + 8 * half) * ld + col;
      left[half] = row + 8 * half < rows ? cols - col : 0;
    }
  }

  // Values i and i + 1.
  __device__ __forceinline__ void store(int i, float low, float high) const {
    const int half = i / 2 % 2, rest = left[half] - 8 * (i / 4);
    T* at = first[half] + 8 * (i / 4);
    if (aligned && rest > 1) {
      store_pair(at, low, high);
    } else if (rest > 0) {
      store_rounded(at, low);
      if (rest > 1) store_rounded(at + 1, high);
    }
  }

  __device__ __forceinline__ void load(int i, float& low, float& high) const {
    const int half = i / 2 % 2, rest = left[half] - 8 * (i / 4);
    const T* at = first[half] + 8 * (i / 4);
    low = high = 0.0f;
    if (aligned && rest > 1) {
      load_pair(at, low, high);
    } else if (rest > 0) {
      low = to_acc<float>(at[0]);
      if (rest > 1) high = to_acc<float>(at[1]);
    }
  }
};

// The same of a matrix that is stored transposed: the thread's pairs are neighbours in a column of it.
template <class T>
struct ThreadPairsTransposed {
  T* first;  // element (row, col), which lies at base[col * ld + row]
  long long ld;
  int rows_left, left;  // of the matrix, from there on

  __device__ __forceinline__ ThreadPairsTransposed(void* base, long long ld, int row, int col, int rows,
                                                   int cols)
      : first(static_cast<T*>(base) + col * ld + row), ld(ld), rows_left(rows - row), left(cols - col) {}

  __device__ __forceinline__ T* at(int i, int e) const {
    return first + (8 * (i / 4) + e) * ld + 8 * (i / 2 % 2);
  }
  __device__ __forceinline__ bool has(int i, int e) const {
    return 8 * (i / 4) + e < left && 8 * (i / 2 % 2) < rows_left;
  }
  __device__ __forceinline__ void store(int i, float low, float high) const {
    if (has(i, 0)) store_rounded(at(i, 0), low);
    if (has(i, 1)) store_rounded(at(i, 1), high);
  }
  __device__ __forceinline__ void load(int i, float& low, float& high) const {
    low = has(i, 0) ? to_acc<float>(*at(i, 0)) : 0.0f;
    high = has(i, 1) ? to_acc<float>(*at(i, 1)) : 0.0f;
  }
};

template <class T, bool kSwapped>
struct PairsOf {
  using Type = ThreadPairs<T>;
};
template <class T>
struct PairsOf<T, true> {
  using Type = ThreadPairsTransposed<T>;
};

// ---- the epilogue of one consumer warpgroup ----

template <class Config>
struct Epilogue {
  using Out = typename Config::Out;
  static constexpr int kValues = Config::kBlockN / 2;
  static constexpr int kChunk = Config::kTmaStore ? Box<Out>::kCols : Config::kBlockN % 64 == 0 ? 64 : 16;
  static constexpr int kChunkValues = kChunk / 2;
  static_assert(!Config::kTmaStore || (Config::kBlockN % kChunk == 0 && !Config::kSwapped),
                "stores by TMA are boxes of whole rows of D");

  const GemmWgmmaParams& p;
  unsigned staging;  // shared address of this consumer's kStageBytes
  float* scratch;    // the same memory
  int consumer, thread;
  int buffer;  // the half of the staging memory that is written next

  // Of the thread's first value, in the tile.
  __device__ __forceinline__ int row() const { return 64 * consumer + 16 * (thread / 32) + thread % 32 / 4; }
  __device__ __forceinline__ int col() const { return 2 * (thread % 4); }
  __device__ __forceinline__ void barrier() const { named_barrier(1 + consumer, 128); }

  // This thread's part of a matrix that is stored as D is.
  template <class T>
  __device__ __forceinline__ typename PairsOf<T, Config::kSwapped>::Type pairs(void* base, long long ld,
                                                                               int m0, int n0) const {
    return {base, ld, m0 + row(), n0 + col(), p.m, p.n};
  }

  // sum = what D holds + sum, where it does not come through the ring (wgmma/previous.cuh).
  __device__ __forceinline__ void add_from_memory(const WorkItem& work, float (&sum)[kValues]) const {
    const auto d = pairs<Out>(p.d, p.ldd, work.m0, work.n0);
#pragma unroll
    for (int i = 0; i < kValues; i += 2) {
      float low, high;
      d.load(i, low, high);
      sum[i] = add_rn(low, sum[i]);
      sum[i + 1] = add_rn(high, sum[i + 1]);
    }
  }

  __device__ __forceinline__ void store_slab(const WorkItem& work, const float (&sum)[kValues]) const {
    float* slab = p.slabs + static_cast<long long>(work.segment) * p.m * p.n;
    const auto out = pairs<float>(slab, Config::kSwapped ? p.m : p.n, work.m0, work.n0);
#pragma unroll
    for (int i = 0; i < kValues; i += 2) out.store(i, sum[i], sum[i + 1]);
  }

  // All of D = act(total + bias) that this warpgroup has.
  __device__ __forceinline__ void store(const WorkItem& work, const float (&total)[kValues]) {
#pragma unroll
    for (int first = 0; first < kValues; first += kChunkValues) {
      float v[kChunkValues];
#pragma unroll
      for (int i = 0; i < kChunkValues; ++i) v[i] = total[first + i];
      const int n0 = work.n0 + 2 * first;
      if (n0 >= p.n) return;
      if (p.bias != nullptr) add_bias(work.m0, n0, v);
      if (p.preact != nullptr) put(&p.map_preact, p.preact, p.ldp, work.m0, n0, v);
      if (p.activation != kNone) apply_activation(v);
      put(&p.map_d, p.d, p.ldd, work.m0, n0, v);
    }
  }

  // The staging memory may be written again: TMA has read all of it.
  __device__ __forceinline__ void reclaim() const {
    if constexpr (Config::kTmaStore) {
      if (thread == 0) bulk_wait_read<0>();
      barrier();
    }
  }

 private:
  __device__ __forceinline__ float bias_at(int index, int size) const {
    const auto* bias = static_cast<const typename Config::Bias*>(p.bias);
    return index < size ? to_acc<float>(bias[index * p.bias_stride]) : 0.0f;
  }

  // The bias belongs to D's columns: one for each value of a pair or, where D is stored transposed, for each row.
  __device__ __forceinline__ void add_bias(int m0, int n0, float (&v)[kChunkValues]) const {
    if constexpr (Config::kSwapped) {
      const float bias[2] = {bias_at(m0 + row(), p.m), bias_at(m0 + row() + 8, p.m)};
#pragma unroll
      for (int i = 0; i < kChunkValues; ++i) v[i] = add_rn(v[i], bias[i / 2 % 2]);
    } else {
#pragma unroll
      for (int i = 0; i < kChunkValues; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float bias = bias_at(n0 + col() + 2 * i + e, p.n);
          v[i + e] = add_rn(v[i + e], bias);
          v[i + e + 2] = add_rn(v[i + e + 2], bias);
        }
      }
    }
  }

  // An activation has hundreds of instructions and registers cannot be indexed: a loop over the values, by way of
  // shared memory, keeps one copy of them. Each thread keeps to its own words; put() has the barrier that follows.
  __device__ __forceinline__ void apply_activation(float (&v)[kChunkValues]) const {
    reclaim();
#pragma unroll
    for (int i = 0; i < kChunkValues; ++i) scratch[128 * i + thread] = v[i];
#pragma unroll 1
    for (int i = 0; i < kChunkValues; ++i) {
      scratch[128 * i + thread] = activate(scratch[128 * i + thread], p.activation);
    }
#pragma unroll
    for (int i = 0; i < kChunkValues; ++i) v[i] = scratch[128 * i + thread];
  }

  // A chunk of a finished matrix.
  __device__ __forceinline__ void put(const TensorMap* map, void* base, long long ld, int m0, int n0,
                                      const float (&v)[kChunkValues]) {
    if constexpr (Config::kTmaStore) {
      const unsigned box = staging + buffer * kBox;
      if (thread == 0) bulk_wait_read<1>();  // at most the other half is still being read
      barrier();
      Box<Out>::write(box, thread, v);
      // These writes went through the generic proxy; TMA reads through the async proxy. The fence makes every
      // thread's own writes visible there, the barrier tells the storing thread that all have done so.
      fence_proxy_async();
      barrier();
      if (thread == 0) {
        tma_store(map, n0, m0 + 64 * consumer, box);
        bulk_commit();
      }
      buffer ^= 1;
    } else {
      const auto out = pairs<Out>(base, ld, m0, n0);
#pragma unroll
      for (int i = 0; i < kChunkValues; i += 2) out.store(i, v[i], v[i + 1]);
    }
  }
};
