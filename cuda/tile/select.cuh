/* select.cuh - the k largest of n keys, exactly: radix selection over all 32 bits by one block.
 *
 * Four passes of 8 bits from the top, each counting with a 256-bin histogram in shared memory; no
 * candidates are copied, so nothing can overflow, however alike the keys are.
 */
#ifndef GAZE_CUDA_TILE_SELECT_CUH
#define GAZE_CUDA_TILE_SELECT_CUH

#include "tile/block.cuh"
#include "tile/numbers.cuh"

struct selection {
    uint32_t threshold; /* key of the k-th largest: all larger keys are in */
    uint32_t ties;      /* and so many of those equal to it, the lowest positions first */
};

/* 1 <= k <= n. Every thread of the block takes part and gets the result. */
static __device__ struct selection select_largest(const float *x, uint32_t n, uint32_t k)
{
    __shared__ uint32_t count[256], state[2];
    uint32_t prefix = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x)
            count[i] = 0;
        __syncthreads();
        for (uint32_t i0 = threadIdx.x; i0 < n; i0 += 8 * blockDim.x) {
            float v[8];
#pragma unroll
            for (uint32_t j = 0; j < 8; j++)
                v[j] = i0 + j * blockDim.x < n ? x[i0 + j * blockDim.x] : 0.0f;
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                uint32_t key = order_key(v[j]);
                if (i0 + j * blockDim.x < n && (shift == 24 || key >> (shift + 8) == prefix))
                    atomicAdd(&count[key >> shift & 255u], 1u);
            }
        }
        __syncthreads();
        if (threadIdx.x < 32) { /* a lane has 8 bins, the largest keys' the first */
            uint32_t top = 255 - 8 * threadIdx.x, mine = 0, upto;
            for (uint32_t i = 0; i < 8; i++)
                mine += count[top - i];
            upto = mine;
            for (uint32_t d = 1; d < 32; d *= 2) {
                uint32_t before = __shfl_up_sync(WARP_ALL, upto, d);
                upto += threadIdx.x >= d ? before : 0;
            }
            if (upto - mine < left && left <= upto) {
                uint32_t above = upto - mine;
                while (above + count[top] < left)
                    above += count[top--];
                state[0] = top;
                state[1] = left - above;
            }
        }
        __syncthreads();
        prefix = prefix << 8 | state[0];
        left = state[1];
    }
    return (struct selection){prefix, left};
}

#endif
