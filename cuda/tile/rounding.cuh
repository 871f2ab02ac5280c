/* rounding.cuh - rows as a deployed model rounds them for a product: values of the weights' type.
 */
#ifndef GAZE_CUDA_TILE_ROUNDING_CUH
#define GAZE_CUDA_TILE_ROUNDING_CUH

#include "tile/block.cuh"
#include "tile/numbers.cuh"

/* Four values of a row; the warp's lanes have 128 in order (absent ones are 0), which for e4m3
 * share a power-of-two scale. Every lane takes part. */
template <bool FP8> static __device__ __forceinline__ float4 round_four(float4 v)
{
    if (!FP8)
        return float4{bf16_value(bf16_round(v.x)), bf16_value(bf16_round(v.y)),
                      bf16_value(bf16_round(v.z)), bf16_value(bf16_round(v.w))};
    float s = ue8m0_scale(
        warp_max(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)))));
    return float4{e4m3_value(e4m3_round(v.x / s)) * s, e4m3_value(e4m3_round(v.y / s)) * s,
                  e4m3_value(e4m3_round(v.z / s)) * s, e4m3_value(e4m3_round(v.w / s)) * s};
}

#endif
