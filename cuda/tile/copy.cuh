/* copy.cuh - copies of 16 bytes from global to shared memory that run while others compute (sm_80
 * on). Both addresses are multiples of 16; where `there` is false zeros are written and nothing is
 * read. What a thread has started forms groups, and it waits until at most N of them are open.
 */
#ifndef GAZE_CUDA_TILE_COPY_CUH
#define GAZE_CUDA_TILE_COPY_CUH

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include "tile/shared.cuh"

static __device__ __forceinline__ void copy_start(void *shared, const void *global, bool there)
{
#ifdef __CUDACC__
    uint32_t to = shared_address(shared), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
#else
    if (there)
        memcpy(shared, global, 16);
    else
        memset(shared, 0, 16);
#endif
}
static __device__ __forceinline__ void copy_close_group(void)
{
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> static __device__ __forceinline__ void copy_wait(void)
{
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
/* Asks for a line of 128 bytes in the second-level cache; nobody waits for it. */
static __device__ __forceinline__ void cache_ahead(const void *global)
{
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#else
    (void)global;
#endif
}

#endif
