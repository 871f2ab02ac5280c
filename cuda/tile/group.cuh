/* group.cuh - groups of a block's warps that do different work beside each other: where they wait
 * for each other, and how they share the registers.
 *
 * A warpgroup is 4 warps in a row, the first a multiple of 4 (Hopper's unit of products and of
 * registers). Meeting places have ids 1 .. 15 (0 is __syncthreads()); whole warps come there.
 */
#ifndef GAZE_CUDA_TILE_GROUP_CUH
#define GAZE_CUDA_TILE_GROUP_CUH

#include <cuda_runtime.h>
#include <stdint.h>

enum { WARPGROUP = 128 /* threads */ };

/* Waits until `threads` have come to id, by this or by meet_tell(). What they wrote is seen. */
static __device__ __forceinline__ void meet_wait(uint32_t id, uint32_t threads)
{
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulated_meet(id, threads, true);
#endif
}
/* Says that it is here and goes on. */
static __device__ __forceinline__ void meet_tell(uint32_t id, uint32_t threads)
{
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulated_meet(id, threads, false);
#endif
}

/* A whole warpgroup says how many registers each of its threads needs from now on: a multiple of 8
 * from 24 to 256. Who raises waits until others have lowered theirs. Nothing off sm_90a. */
template <int N> static __device__ __forceinline__ void registers_raise(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> static __device__ __forceinline__ void registers_lower(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

#endif
