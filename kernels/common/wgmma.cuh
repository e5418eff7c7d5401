// wgmma.mma_async for sm_90a (PTX ISA 9.7.15): a warpgroup multiplies tiles in shared memory, asynchronously.
//
// An instruction's text cannot be a template, and it names every accumulator: hence the macros, which end with
// this file.
#pragma once

#include "common/types.cuh"

// Before the first wgmma, and between any other access to the accumulators and the next wgmma.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Close the group of wgmmas issued since the last commit.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Wait until at most kPending groups are in flight: the others have read shared memory and written registers.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The compiler knows nothing of asynchronous registers: it may not move a use of the accumulators across this.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// multiply<In, kTransA, kTransB>: d (64 x kN of the warpgroup) = A B + (keep ? d : 0). A and B are matrix
// descriptors of 64 x 16 and 16 x kN elements; kTrans: the operand is stored along M or N, not along K. For float:
// 64 x 8 and 8 x kN elements, always along K, of which the low 13 bits are ignored (tf32).
template <int kN>
struct Wgmma;

template <class T>
constexpr bool kIsBfloat16 = false;
template <>
constexpr bool kIsBfloat16<Bfloat16> = true;
template <class T>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;

#define TEN(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define TO_9 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
#define TO_29 TO_9 TEN(1) TEN(2)
#define TO_59 TO_29 TEN(3) TEN(4) TEN(5)
#define TO_89 TO_59 TEN(6) TEN(7) TEN(8)
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define TEXT(N, KIND, REGISTERS, A, B, KEEP, TRANS_A, TRANS_B)                                  \
  "{\n.reg .pred keep;\nsetp.ne.b32 keep, " KEEP                                                \
  ", 0;\n"                                                                                      \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." KIND "." KIND " {" REGISTERS "}, " A ", " B \
  ", keep, 1, 1, " TRANS_A ", " TRANS_B ";\n}"
#define TEXT_TF32(N, REGISTERS, A, B, KEEP, ...) \
  "{\n.reg .pred keep;\nsetp.ne.b32 keep, " KEEP \
  ", 0;\n"                                       \
  "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" REGISTERS "}, " A ", " B ", keep, 1, 1;\n}"
// REGISTERS names the N / 2 accumulators, LIST binds them; the five operands that follow have the next numbers.
#define WGMMA(N, REGISTERS, LIST, ...)                                                         \
  template <>                                                                                  \
  struct Wgmma<N> {                                                                            \
    template <class In, int kTransA, int kTransB>                                              \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], unsigned long long a,   \
                                                    unsigned long long b, int keep) {          \
      if constexpr (kIsFloat<In>) {                                                            \
        static_assert(kTransA == 0 && kTransB == 0, "tf32 operands lie along K");              \
        asm volatile(TEXT_TF32(N, REGISTERS, __VA_ARGS__) : LIST : "l"(a), "l"(b), "r"(keep)); \
      } else if constexpr (kIsBfloat16<In>) {                                                  \
        asm volatile(TEXT(N, "bf16", REGISTERS, __VA_ARGS__)                                   \
                     : LIST                                                                    \
                     : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                 \
      } else {                                                                                 \
        asm volatile(TEXT(N, "f16", REGISTERS, __VA_ARGS__)                                    \
                     : LIST                                                                    \
                     : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                 \
      }                                                                                        \
    }                                                                                          \
  };

#define LIST_16 D8(0)
WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", LIST_16, "%8", "%9", "%10", "%11", "%12")
#define LIST_32 D8(0), D8(8)
WGMMA(32, TO_9 "%10, %11, %12, %13, %14, %15", LIST_32, "%16", "%17", "%18", "%19", "%20")
#define LIST_64 D32(0)
WGMMA(64, TO_29 "%30, %31", LIST_64, "%32", "%33", "%34", "%35", "%36")
#define LIST_128 D32(0), D32(32)
WGMMA(128, TO_59 "%60, %61, %62, %63", LIST_128, "%64", "%65", "%66", "%67", "%68")
#define LIST_192 D32(0), D32(32), D32(64)
WGMMA(192, TO_89 "%90, %91, %92, %93, %94, %95", LIST_192, "%96", "%97", "%98", "%99", "%100")
#define LIST_208 D32(0), D32(32), D32(64), D8(96)
WGMMA(208, TO_89 TEN(9) "%100, %101, %102, %103", LIST_208, "%104", "%105", "%106", "%107", "%108")
#define LIST_256 D32(0), D32(32), D32(64), D32(96)
WGMMA(256, TO_89 TEN(9) TEN(10) TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127", LIST_256, "%128",
      "%129", "%130", "%131", "%132")

#undef WGMMA
#undef TEXT
#undef TEXT_TF32
#undef LIST_16
#undef LIST_32
#undef LIST_64
#undef LIST_128
#undef LIST_192
#undef LIST_208
#undef LIST_256
#undef D32
#undef D8
#undef D4
#undef TO_89
#undef TO_59
#undef TO_29
#undef TO_9
#undef TEN
