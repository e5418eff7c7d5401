// The only inline assembly of the project: one function per instruction, named after it.
#pragma once

// ---- asynchronous copies (sm_80) ----

// A 32-bit shared-space address, as the instructions below take it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copy kBytes to shared memory without passing registers; bytes from valid_bytes on are filled with zeros and
// not read.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* smem, const void* gmem, int valid_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async moves 4, 8 or 16 bytes");
  if constexpr (kBytes == 16) {
    // .cg keeps tiles out of the L1, which they would only pass through.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(smem)), "l"(gmem),
                 "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(smem)), "l"(gmem),
                 "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
}

// The same for a copy that exists as a whole or not at all (zeros, then): without arithmetic on byte counts.
template <int kBytes>
__device__ __forceinline__ void cp_async_or_zero(void* smem, const void* gmem, bool exists) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async moves 4, 8 or 16 bytes");
  if constexpr (kBytes == 16) {
    asm volatile(
        "{\n.reg .pred ignore;\nsetp.eq.u32 ignore, %2, 0;\n"
        "cp.async.cg.shared.global [%0], [%1], 16, ignore;\n}" ::"r"(shared_address(smem)),
        "l"(gmem), "r"(static_cast<unsigned>(exists))
        : "memory");
  } else {
    asm volatile(
        "{\n.reg .pred ignore;\nsetp.eq.u32 ignore, %3, 0;\n"
        "cp.async.ca.shared.global [%0], [%1], %2, ignore;\n}" ::"r"(shared_address(smem)),
        "l"(gmem), "n"(kBytes), "r"(static_cast<unsigned>(exists))
        : "memory");
  }
}

// Close the group of copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most kPending of this thread's groups are still in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- 16-bit floats ----

__device__ __forceinline__ float cvt_f32_f16(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ unsigned short cvt_rn_f16_f32(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// ---- who a thread is ----

// Lane and thread, volatile: what is computed from them stays where it is written, and does not move in front of a main
// loop, where its registers are missing.
__device__ __forceinline__ int lane_id() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
__device__ __forceinline__ int thread_id() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- memory, where a compiler would cut a vector access into its elements ----

__device__ __forceinline__ void st_global_v2(void* to, unsigned x, unsigned y) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void st_global_v4(void* to, unsigned x, unsigned y, unsigned z, unsigned w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}

// Not moved over a barrier, and not before a copy that it waits for.
__device__ __forceinline__ unsigned ld_shared_u32(unsigned shared_address) {
  unsigned value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(shared_address) : "memory");
  return value;
}
__device__ __forceinline__ unsigned short ld_shared_u16(unsigned shared_address) {
  unsigned short value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(shared_address) : "memory");
  return value;
}

__device__ __forceinline__ void ld_shared_v2(unsigned shared_address, float& x, float& y) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(shared_address) : "memory");
}
__device__ __forceinline__ void ld_shared_v2(unsigned shared_address, unsigned& x, unsigned& y) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(shared_address) : "memory");
}

__device__ __forceinline__ void st_shared_v2(unsigned shared_address, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared_address), "f"(x), "f"(y) : "memory");
}
__device__ __forceinline__ void st_shared_v2(float* smem, float x, float y) {
  st_shared_v2(shared_address(smem), x, y);
}
__device__ __forceinline__ void st_shared_v2(double* smem, double x, double y) {
  asm volatile("st.shared.v2.f64 [%0], {%1, %2};" ::"r"(shared_address(smem)), "d"(x), "d"(y) : "memory");
}
__device__ __forceinline__ void st_shared_v4(float* smem, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(smem)), "f"(x), "f"(y), "f"(z),
               "f"(w)
               : "memory");
}

// ---- tf32 (sm_80) ----

// To 10 bits of fraction, to nearest, ties away from zero; the low 13 bits are zero.
__device__ __forceinline__ unsigned cvt_rna_tf32_f32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// ---- warp-wide matrix instructions (sm_75; 16x8x16, tf32 and 8x8x4 of float64: sm_80; 16x8x4: sm_90) ----

// Four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones) from shared memory: lane l gives the address of row
// l % 8 of matrix l / 8, and gets of matrix i the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 in out[i].
__device__ __forceinline__ void ldmatrix_x4(unsigned (&out)[4], unsigned row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row_address)
               : "memory");
}

// The same of the transposed matrices: the lane gets elements of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&out)[4], unsigned row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row_address)
               : "memory");
}

// d (16, 8) += a (16, 8) b (8, 8), float32 accumulators: on sm_75 too.
__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}
// d (16, 8) += a (16, 16) b (16, 8), float32 accumulators.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                  unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d (16, 8) += a (16, 8) b (8, 8) of float32 numbers whose 13 low bits are zero (or are ignored).
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d (8, 8) += a (8, 4) b (4, 8) in float64.
__device__ __forceinline__ void mma_m8n8k4_f64(double& d0, double& d1, double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(d0), "+d"(d1)
      : "d"(a), "d"(b));
}
// d (16, 8) += a (16, 4) b (4, 8) in float64.
__device__ __forceinline__ void mma_m16n8k4_f64(double (&d)[4], double a0, double a1, double b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
      : "d"(a0), "d"(a1), "d"(b));
}
