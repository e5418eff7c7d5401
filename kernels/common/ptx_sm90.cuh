// Inline assembly of sm_90a: mbarriers, tensor copies (TMA), warpgroup registers, clusters. One function per
// instruction, named after it; the multiplication itself is in common/wgmma.cuh. Shared-memory operands are
// 32-bit addresses of the shared window (shared_address in ptx.cuh). Section numbers are those of the PTX ISA.
#pragma once

#include "common/types.cuh"

// ---- mbarriers (9.7.13.15) ----

// A barrier in shared memory: a phase ends when `arrivals` have come and no announced byte is missing.
__device__ __forceinline__ void mbarrier_init(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes inits visible to the other CTAs of the cluster and to TMA, once a barrier of threads has followed.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrive, and announce bytes that TMA will deliver before the phase may end.
__device__ __forceinline__ void mbarrier_arrive_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The same on the barrier at this address in CTA `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_at(unsigned barrier, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Wait until the phase of this parity has ended. kCluster: arrivals may come from other CTAs.
template <bool kCluster>
__device__ __forceinline__ void mbarrier_wait(unsigned barrier, unsigned parity) {
  if constexpr (kCluster) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN%=:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN%=;\n}" ::
            "r"(barrier),
        "r"(parity)
        : "memory");
  } else {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN%=:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN%=;\n}" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
  }
}

// ---- TMA (9.7.9.25.5) ----

// A box of a matrix into shared memory; x counts elements of the contiguous dimension. What lies outside the
// matrix arrives as zeros, and counts among the bytes delivered to the barrier.
__device__ __forceinline__ void tma_load(unsigned smem, const TensorMap* map, int x, int y,
                                         unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(smem),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same of matrix `z` among several of one shape.
__device__ __forceinline__ void tma_load_3d(unsigned smem, const TensorMap* map, int x, int y, int z,
                                            unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// A box of a matrix, to this place and this barrier in every CTA of the cluster whose bit is set.
__device__ __forceinline__ void tma_load_multicast(unsigned smem, const TensorMap* map, int x, int y,
                                                   unsigned barrier, unsigned short ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(ctas)
      : "memory");
}

// A box from shared memory; what lies outside the matrix is not written.
__device__ __forceinline__ void tma_store(const TensorMap* map, int x, int y, unsigned smem) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
               "r"(x), "r"(y), "r"(smem)
               : "memory");
}

// Close the group of stores issued by this thread since the last commit.
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Wait until at most kPending of this thread's groups still have to read shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Wait until at most kPending of this thread's groups are unfinished.
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// Make this thread's writes to shared memory visible to TMA and wgmma, once a barrier of threads has followed.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- threads ----

// Barrier number `name` among `threads` threads of the block; 0 is __syncthreads.
__device__ __forceinline__ void named_barrier(unsigned name, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Give registers back to the block's pool, or take them (9.7.19.5); all four warps of a warpgroup.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all CTAs of the cluster.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// All threads of the block, or of the cluster where there is one.
template <int kCluster>
__device__ __forceinline__ void sync_cluster() {
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
}

// ---- fragments to storage ----

// Two floats, rounded to nearest even, as a pair with `low` at the lower address; NaN becomes 0x7FFF.
__device__ __forceinline__ unsigned cvt_rn_bf16x2_f32(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ unsigned cvt_rn_f16x2_f32(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// ---- stores of fragments (9.7.14.5.16) ----

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// The same, each matrix transposed on the way.
__device__ __forceinline__ void stmatrix_x4_trans(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
