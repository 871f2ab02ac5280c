/* block.cuh - sums, maxima and counts over a warp or a block, in one fixed order.
 *
 * Every lane of the warp (every thread of the block) takes part and gets the result. A block has at
 * most 1024 threads and a multiple of 32.
 */
#ifndef GAZE_CUDA_TILE_BLOCK_CUH
#define GAZE_CUDA_TILE_BLOCK_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define WARP_ALL 0xFFFFFFFFu

template <typename T> static __device__ __forceinline__ T warp_sum(T x)
{
    for (int d = 16; d > 0; d /= 2)
        x += __shfl_xor_sync(WARP_ALL, x, d);
    return x;
}

template <typename T> static __device__ __forceinline__ T warp_max(T x)
{
    for (int d = 16; d > 0; d /= 2) {
        T y = __shfl_xor_sync(WARP_ALL, x, d);
        x = y > x ? y : x;
    }
    return x;
}

/* The sum of the lanes up to this one. */
template <typename T> static __device__ __forceinline__ T warp_upto(T x)
{
    for (uint32_t d = 1; d < 32; d *= 2) {
        T before = __shfl_up_sync(WARP_ALL, x, d);
        x += threadIdx.x % 32 >= d ? before : T(0);
    }
    return x;
}

template <typename T> static __device__ T block_sum(T x)
{
    __shared__ T part[32];
    uint32_t warp = threadIdx.x / 32, n = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads(); /* part may still be read from the call before */
    if (threadIdx.x % 32 == 0)
        part[warp] = x;
    __syncthreads();
    T sum = part[0];
    for (uint32_t i = 1; i < n; i++)
        sum += part[i];
    return sum;
}

template <typename T> static __device__ T block_max(T x)
{
    __shared__ T part[32];
    uint32_t warp = threadIdx.x / 32, n = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[warp] = x;
    __syncthreads();
    T best = part[0];
    for (uint32_t i = 1; i < n; i++)
        best = part[i] > best ? part[i] : best;
    return best;
}

/* How many of the block's threads before this one (by index) have flag; *total: of all. */
static __device__ uint32_t block_rank(bool flag, uint32_t *total)
{
    __shared__ uint32_t part[32];
    uint32_t warp = threadIdx.x / 32, n = blockDim.x / 32, lane = threadIdx.x % 32;
    uint32_t mask = __ballot_sync(WARP_ALL, flag);
    __syncthreads();
    if (lane == 0)
        part[warp] = (uint32_t)__popc(mask);
    __syncthreads();
    uint32_t mine = lane < n ? part[lane] : 0;
    uint32_t before = warp_sum(lane < warp ? mine : 0);
    *total = warp_sum(mine);
    return before + (uint32_t)__popc(mask & ((1u << lane) - 1u));
}

#endif
