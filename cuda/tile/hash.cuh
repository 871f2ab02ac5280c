/* hash.cuh - base/hash.h's hash_mix() on the device: sums that both sides make have to be equal. */
#ifndef GAZE_CUDA_TILE_HASH_CUH
#define GAZE_CUDA_TILE_HASH_CUH

#include <cuda_runtime.h>

static __device__ __forceinline__ unsigned long long device_hash_mix(unsigned long long h)
{
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
    return h ^ (h >> 31);
}

#endif
