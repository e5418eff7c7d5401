// The instructions that only measuring needs; see ptx.cuh for the others.
#pragma once

// Nanoseconds of a clock that does not depend on the SM clock; it ticks at least once in some microseconds.
__device__ __forceinline__ unsigned long long globaltimer() {
  unsigned long long nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}
