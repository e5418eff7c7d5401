// D = A B + C by one mma.sync; one warp and one tile per block. A is [M][K], B [8][K] (K contiguous), C and D [M][8].
//
// Operands are read as words, the contents of one register: a pair of 16-bit elements, a tf32, a double. In words all
// shapes have one fragment: lane = 4 * group + member holds row `group` (and group + 8), word `member` (and + 4).
// The source defines M, WORDS (words in a row of A and B), WORD, ACC and MMA (the instruction).
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(32) micro(const WORD* __restrict__ A, const WORD* __restrict__ B,
                                                       const ACC* __restrict__ C, ACC* __restrict__ D) {
  constexpr int kA = M * WORDS / 32, kB = 8 * WORDS / 32, kC = M * 8 / 32;
  const int tile = blockIdx.x, group = threadIdx.x >> 2, member = threadIdx.x & 3;
  WORD a[kA], b[kB];
  ACC d[kC];
#pragma unroll
  for (int r = 0; r < kA; r++) a[r] = A[(tile * M + group + (r & 1) * 8) * WORDS + member + (r >> 1) * 4];
#pragma unroll
  for (int r = 0; r < kB; r++) b[r] = B[(tile * 8 + group) * WORDS + member + r * 4];
  const int at = (tile * M + group) * 8 + member * 2;
#pragma unroll
  for (int r = 0; r < kC; r++) d[r] = C[at + (r >> 1) * 64 + (r & 1)];
  MMA(d, a, b);
#pragma unroll
  for (int r = 0; r < kC; r++) D[at + (r >> 1) * 64 + (r & 1)] = d[r];
}
