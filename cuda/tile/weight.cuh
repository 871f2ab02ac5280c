/* weight.cuh - one value of a matrix on the device, widened; e4m3 with its 128x128 block's scale.
 */
#ifndef GAZE_CUDA_TILE_WEIGHT_CUH
#define GAZE_CUDA_TILE_WEIGHT_CUH

#include "cuda/backend.cuh"

static __device__ __forceinline__ float weight_at(const struct matrix &w, uint32_t out, uint32_t k)
{
    size_t at = (size_t)out * w.n_in + k;
    switch (w.dtype) {
    case DT_F32:
        return ((const float *)w.data)[at];
    case DT_F16:
        return f16_value(((const uint16_t *)w.data)[at]);
    case DT_BF16:
        return bf16_value(((const uint16_t *)w.data)[at]);
    default:
        return e4m3_value(((const uint8_t *)w.data)[at]) *
               w.scale[(size_t)(out / 128) * ((w.n_in + 127) / 128) + k / 128];
    }
}

#endif
