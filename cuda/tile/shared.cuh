/* shared.cuh - a block's shared memory as instructions name it, and as others than its own stores
 * see it.
 *
 * Instructions that take an address in shared memory take 32 bits from the beginning of the block's
 * window; on the emulated device that is the beginning of its dynamic shared memory.
 */
#ifndef GAZE_CUDA_TILE_SHARED_CUH
#define GAZE_CUDA_TILE_SHARED_CUH

#include <cuda_runtime.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
#ifdef __CUDACC__
    return (uint32_t)__cvta_generic_to_shared(p);
#else
    return (uint32_t)((const unsigned char *)p - (const unsigned char *)emulated_shared());
#endif
}

/* What this thread's ordinary stores left in shared memory is seen by tensor copies and products of
 * a warpgroup (sm_90 on) that start after a barrier. */
static __device__ __forceinline__ void shared_written(void)
{
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#endif
}

#endif
