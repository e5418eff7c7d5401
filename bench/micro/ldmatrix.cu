// The registers of one ldmatrix of four 8x8 matrices of 16-bit elements; one warp and one tile per block.
// A is [4][8][8], D [4][32]: register, lane. The source defines LOAD, the instruction.
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(32) micro(const uint4* __restrict__ A, u32* __restrict__ D) {
  __shared__ __align__(128) uint4 rows[32];
  const int tile = blockIdx.x, lane = threadIdx.x;
  rows[lane] = A[tile * 32 + lane];
  __syncthreads();
  u32 r[4];
  LOAD(r, shared_address(rows + lane));
#pragma unroll
  for (int i = 0; i < 4; i++) D[(tile * 4 + i) * 32 + lane] = r[i];
}
