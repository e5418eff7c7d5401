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

// wgmma: the file that includes this gives N (columns), KIND (shape and types) and TRANS (", 0" for each operand in
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
