/* index_form.cuh - what a query or a key of the indexer goes through in the FP8 form. */
#ifndef GAZE_CUDA_TILE_INDEX_FORM_CUH
#define GAZE_CUDA_TILE_INDEX_FORM_CUH

#include "tile/block.cuh"
#include "tile/numbers.cuh"

/* Rounds row[n] (shared memory, n a power of two) to bf16, turns it by the Hadamard matrix over
 * sqrt(n), rounds again and quantises: code[n]. Every thread of the block takes part and gets the
 * scale. row is overwritten. */
static __device__ float cuda_index_quantise(float *row, uint32_t n, uint8_t *code)
{
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        row[i] = bf16_value(bf16_round(row[i]));
    __syncthreads();
    for (uint32_t w = 1; w < n; w *= 2) {
        for (uint32_t i = threadIdx.x; i < n / 2; i += blockDim.x) {
            uint32_t j = i / w * 2 * w + i % w;
            float a = row[j], b = row[j + w];
            row[j] = a + b;
            row[j + w] = a - b;
        }
        __syncthreads();
    }
    float f = (float)(1.0 / sqrt((double)n)), amax = 0.0f;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        row[i] = bf16_value(bf16_round(row[i] * f));
        amax = fmaxf(amax, fabsf(row[i]));
    }
    float s = ue8m0_scale(block_max(amax));
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        code[i] = e4m3_round(row[i] / s);
    return s;
}

/* The same for a row of 128 in a warp's registers, lane l with values 4 l .. 4 l + 3, whose codes
 * it gets in that order; the same bits. */
static __device__ __forceinline__ float cuda_index_quantise_128(float v[4], uint32_t *codes)
{
    uint32_t lane = threadIdx.x % 32;
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = bf16_value(bf16_round(v[i]));
#pragma unroll
    for (int w = 1; w < 4; w *= 2) {
        float u[4] = {v[0], v[1], v[2], v[3]};
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = i & w ? u[i ^ w] - u[i] : u[i] + u[i ^ w];
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float other = __shfl_xor_sync(WARP_ALL, v[i], d);
            v[i] = lane & (uint32_t)d ? other - v[i] : v[i] + other;
        }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = bf16_value(bf16_round(v[i] * (float)(1.0 / sqrt(128.0))));
        amax = fmaxf(amax, fabsf(v[i]));
    }
    float s = ue8m0_scale(warp_max(amax)), per = 1.0f / s; /* powers of two */
    *codes = e4m3_round(v[0] * per) | (uint32_t)e4m3_round(v[1] * per) << 8 |
             (uint32_t)e4m3_round(v[2] * per) << 16 | (uint32_t)e4m3_round(v[3] * per) << 24;
    return s;
}

#endif
