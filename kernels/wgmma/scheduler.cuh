// Which tile a CTA computes next: the same list for producer and consumers, who walk it without talking.
//
// The grid is persistent: it holds as many CTAs as the planner gives SMs, and CTA c takes the items c, c + grid,
// ... An item is a tile of D and, where segments of K are summed apart (no running total), a segment of it. Tiles
// are numbered down groups of p.group rows, so that the CTAs that run at one time share strips of A and B in the
// L2. The CTAs of a cluster take neighbours in M, which share their tile of B. A tile outside D (an odd number of
// rows of tiles) is computed on zeros and not stored.
#pragma once

#include "common/params.cuh"

struct WorkItem {
  int m0, n0;          // the first element of the tile
  int segment;         // of the first k-tile
  int k_begin, k_end;  // elements of K
};

template <class Config>
struct Scheduler {
  const GemmWgmmaParams& p;
  int rank;  // in the cluster
  int item = blockIdx.x / Config::kCluster;

  __device__ __forceinline__ int tiles() const { return p.tiles_m * p.tiles_n; }  // tiles_m counts clusters
  __device__ __forceinline__ int items() const { return tiles() * (Config::kRunningTotal ? 1 : p.segments); }

  __device__ __forceinline__ bool next(WorkItem& work) {
    const int tiles = this->tiles();
    if (item >= items()) return false;
    work.segment = item / tiles;
    const int tile = item % tiles;
    const int first_m = tile / (p.group * p.tiles_n) * p.group;
    const int rows = min(p.group, p.tiles_m - first_m);
    const int local = tile - first_m * p.tiles_n;
    work.m0 = ((first_m + local % rows) * Config::kCluster + rank) * Config::kBlockM;
    work.n0 = local / rows * Config::kBlockN;
    work.k_begin = work.segment * Config::kSegment;
    work.k_end = Config::kRunningTotal ? p.k : min(p.k - work.k_begin, Config::kSegment) + work.k_begin;
    item += gridDim.x / Config::kCluster;
    return true;
  }
};
