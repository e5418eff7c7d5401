// Which tile of the output, and which part of K, a block of a one-dimensional grid works on.
#pragma once

#include "common/params.cuh"

// The tile of block number `block`, and its part of K. Tiles are numbered down groups of rows, so that the blocks of a
// wave share strips of A and B in the L2.
struct BlockWork {
  int m0, n0, split;
};
template <class Config>
__device__ __forceinline__ BlockWork block_work(const GemmParams& p, unsigned block) {
  const int tiles = p.tiles_m * p.tiles_n;
  const int tile = block % tiles;
  const int group = tile / (p.group * p.tiles_n);
  const int first_m = group * p.group;
  const int rows = min(p.group, p.tiles_m - first_m);
  const int local = tile - first_m * p.tiles_n;
  return {(first_m + local % rows) * Config::kBlockM, local / rows * Config::kBlockN,
          static_cast<int>(block) / tiles};
}

// The blocks of a problem.
__device__ __forceinline__ unsigned blocks_of(const GemmParams& p) {
  return static_cast<unsigned>(p.tiles_m * p.tiles_n) * p.splits;
}
