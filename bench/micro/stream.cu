// How fast few blocks can read memory: block b reads bytes [b * chunk, (b + 1) * chunk) of `data` once.
//
// 256 threads with kFlight loads of 16 bytes in flight each: 4096 * kFlight bytes per block. By Little's law a GPU of
// 4.8 TB/s and 0.7 us of latency needs about 3.4 MB in flight, so 64 blocks need about 52 KB each: kFlight = 16 has 64.
constexpr int kThreads = 256, kFlight = 16;

// chunk_words: 16-byte words per block, a multiple of kThreads * kFlight. sink: one word per block, the exclusive or of all
// that was read, so that no load can be left out.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    micro(const uint4* __restrict__ data, long long chunk_words, unsigned* __restrict__ sink) {
  const uint4* mine = data + blockIdx.x * chunk_words + threadIdx.x;
  unsigned seen = 0;
  for (long long word = 0; word < chunk_words; word += kThreads * kFlight) {
    uint4 loaded[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; i++) loaded[i] = mine[word + i * kThreads];
#pragma unroll
    for (int i = 0; i < kFlight; i++) seen ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
  }
  __shared__ unsigned parts[kThreads];
  parts[threadIdx.x] = seen;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; i++) seen ^= parts[i];
    sink[blockIdx.x] = seen;
  }
}
