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

#endif
