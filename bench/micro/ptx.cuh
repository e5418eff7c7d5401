// The instructions whose bits the micro-kernels record, one each; and nothing that computes.
#pragma once

typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long long u64;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// D = A B + D, 16x8x16, 16-bit operands.
#define MMA_M16N8K16(KIND)                                                                                 \
  __device__ __forceinline__ void mma_m16n8k16_##KIND(float (&d)[4], const u32(&a)[4], const u32(&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #KIND "." #KIND                                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                      \
  }
MMA_M16N8K16(f16)
MMA_M16N8K16(bf16)

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ __forceinline__ void mma_m8n8k4_f64(double (&d)[2], const double (&a)[1], const double (&b)[1]) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a[0]), "d"(b[0]));
}

__device__ __forceinline__ void mma_m16n8k4_f64(double (&d)[4], const double (&a)[2], const double (&b)[1]) {
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
      : "d"(a[0]), "d"(a[1]), "d"(b[0]));
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
#define LDMATRIX(NAME, TRANS)                                                                \
  __device__ __forceinline__ void NAME(u32(&r)[4], u32 row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                 : "r"(row)                                                                  \
                 : "memory");                                                                \
  }
LDMATRIX(ldmatrix_x4, "")
LDMATRIX(ldmatrix_x4_trans, ".trans")

// ---- TMA and clusters ----

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(barrier),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool mbarrier_try_wait(u32 barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred done;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}
__device__ __forceinline__ void tma_load_multicast(u32 smem, const void* map, int x, int y, u32 barrier,
                                                   u16 ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(ctas)
      : "memory");
}
#endif

// ---- wgmma ----

// The file that includes this gives N (columns), KIND (shape and types) and TRANS (", 0" for each operand in
// shared memory whose major can be chosen, else ""). Fence, instruction, commit and wait are one statement, so that
// no compiler can touch the accumulators in between.
#ifdef N
#define TEN(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define TO_29 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " TEN(1) TEN(2)
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D32(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12), D4(i + 16), D4(i + 20), D4(i + 24), D4(i + 28)
#if N == 8
#define D_NAMES "%0, %1, %2, %3"
#define D_LIST D4(0)
#define SS_NAMES "%4, %5"
#define RS_NAMES "{%4, %5, %6, %7}, %8"
#elif N == 64
#define D_NAMES TO_29 "%30, %31"
#define D_LIST D32(0)
#define SS_NAMES "%32, %33"
#define RS_NAMES "{%32, %33, %34, %35}, %36"
#elif N == 128
#define D_NAMES TO_29 TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63"
#define D_LIST D32(0), D32(32)
#define SS_NAMES "%64, %65"
#define RS_NAMES "{%64, %65, %66, %67}, %68"
#elif N == 256
#define D_NAMES                                                  \
  TO_29 TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) \
      TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define D_LIST D32(0), D32(32), D32(64), D32(96)
#define SS_NAMES "%128, %129"
#define RS_NAMES "{%128, %129, %130, %131}, %132"
#endif
#define WGMMA(NAMES)                                                                       \
  "{\n.reg .pred accumulate;\nsetp.eq.u32 accumulate, 0, 0;\nwgmma.fence.sync.aligned;\n"  \
  "wgmma.mma_async.sync.aligned." KIND " {" D_NAMES "}, " NAMES ", accumulate, 1, 1" TRANS \
  ";\n"                                                                                    \
  "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n}"

__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], u64 a, u64 b) {
  asm volatile(WGMMA(SS_NAMES) : D_LIST : "l"(a), "l"(b) : "memory");
}
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b) {
  asm volatile(WGMMA(RS_NAMES) : D_LIST : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}
#endif
