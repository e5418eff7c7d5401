// The parameter block of each kernel: one struct by value, pointers first. gpulinear/params.py is its Python
// twin; every generated source asserts that sizes and offsets agree.
#pragma once

#include "common/types.cuh"

enum Activation { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

// D (m, n) = act(A (m, k) B (k, n) + bias), or D += A B.
struct GemmParams {
  const void* a;     // In (m, k): K-major a[i * lda + l], else a[l * lda + i]
  const void* b;     // In (k, n): K-major b[j * ldb + l], else b[l * ldb + j]
  void* d;           // Out (m, n): d[i * ldd + j]
  const void* bias;  // Bias (n), or null
  void* preact;      // Out (m, n): preact[i * ldp + j], or null
  void* total;  // Acc: running totals (m, n) when splits == 1, else slabs [segments][m][n]; null when K <= S
  void* db;     // Db (m): the sums over k of A; only where the kernel's kBiasGrad is set
  void* db_slabs;                             // Acc [segments][m] of db where splits > 1, else null
  long long lda, ldb, ldd, ldp, bias_stride;  // elements; lda and ldb may be zero or negative
  int m, n, k;
  int activation, accumulate;
  int splits, segments_per_split;  // blocks along K, and the segments each of them sums
  int tiles_m, tiles_n, group;     // block tiles, and how many tiles of M share a strip of B
};

// The same on sm_90a. A map's boxes are those of wgmma/tile.cuh; of D and preact, those of wgmma/box.cuh. Where an operand
// is planes, they are the third dimension of its map.
struct GemmWgmmaParams {
  TensorMap map_a;                  // In (m, k)
  TensorMap map_b;                  // In (k, n)
  TensorMap map_d;                  // Out (m, n); only used where the kernel stores by TMA
  TensorMap map_preact;             // Out (m, n), likewise
  void* d;                          // Out (m, n): d[i * ldd + j]
  const void* bias;                 // Bias (n), or null
  void* preact;                     // Out (m, n): preact[i * ldp + j], or null
  float* slabs;                     // [segments][m][n], or null where no sum is left to ordered_reduce
  void* db;                         // Db (m): the sums over k of A; only where kBiasGrad is set
  float* db_slabs;                  // [segments][m] of db, or null likewise
  long long ldd, ldp, bias_stride;  // elements
  int m, n, k;
  int activation, accumulate;   // accumulate: never with slabs
  int segments;                 // of K; of a running total, not read
  int tiles_m, tiles_n, group;  // cluster tiles, and how many tiles of M share a strip of B
};

// Two problems in one launch, such as dgrad and wgrad of a layer. What runs longer is the first.
template <class Params>
struct JointParams {
  Params first, second;
};

// out (cols) = column sums of x (rows, cols).
struct ColumnSumParams {
  const void* x;  // In (rows, cols) by row_stride, col_stride
  void* out;      // Out (cols)
  void* slabs;    // Acc [segments][cols], or null when one segment writes out itself
  long long row_stride, col_stride;
  int rows, cols, accumulate, segments;
};

// dz = dy * act'(preact), and on request db = column sums of the rounded dz.
struct ActGradParams {
  const void* dy;      // In (rows, cols)
  const void* preact;  // Preact (rows, cols)
  void* dz;            // In (rows, cols)
  void* db;            // Out (cols), or null
  void* slabs;         // Acc [segments][cols], or null
  long long dy_row, dy_col, z_row, z_col, dz_row, dz_col;
  int rows, cols, activation, accumulate, segments, want_db, rows_per_block, reserved;
};

// d (m, n) = act(slab 0 + slab 1 + ... + bias), ascending; with accumulate the sum starts from d.
struct OrderedReduceParams {
  const void* slabs;  // Acc [count][m][n], slab_stride apart
  void* d;            // Out (m, n)
  const void* bias;   // Bias (n), or null
  void* preact;       // Out (m, n), or null
  long long slab_stride, ldd, ldp, bias_stride;
  int m, n, count, activation, accumulate, reserved;
};

// dst = the planes of src (split_planes.cuh): [planes][rows][pitch].
struct SplitPlanesParams {
  const void* src;  // float (rows, cols) by row_stride, col_stride
  void* dst;        // pitch >= cols, a multiple of 4
  long long row_stride, col_stride, pitch;
  int rows, cols;
};

// dst = src, element by element, over one shape and two sets of byte strides.
struct StridedCopyParams {
  const void* src;
  void* dst;
  long long shape[16], src_stride[16], dst_stride[16];
  int ndim, reserved;
};
