// Purpose: what the stopwatch puts before and between the launches that it times (gpulinear/measure/cuda_device.py).
// Threads: one block of one thread each; no memory is touched.
#pragma once

#include "common/ptx_timer.cuh"

// Keeps the stream busy for that long, whatever the SM clock. Should the timer stand still, the count of SM cycles ends
// it: no SM runs at 16 GHz, so it cannot end a spin that goes well.
extern "C" __global__ void gpulinear_spin(unsigned long long nanoseconds) {
  const unsigned long long start = globaltimer();
  const long long cycle = clock64();
  while (globaltimer() - start < nanoseconds &&
         clock64() - cycle < 16 * static_cast<long long>(nanoseconds)) {
  }
}

extern "C" __global__ void gpulinear_nothing() {}
