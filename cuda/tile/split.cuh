/* split.cuh - activations as the tensor cores take them: each the sum of two f16 or bf16.
 */
#ifndef GAZE_CUDA_TILE_SPLIT_CUH
#define GAZE_CUDA_TILE_SPLIT_CUH

#include "tile/mma.cuh"

/* The power of two that brings a row's largest value to [2^14, 2^15); 1 for rows of nothing and
 * rows that are not finite. */
static __device__ __forceinline__ float f16_row_scale(float most)
{
    int exponent = (int)(__float_as_uint(most) >> 23 & 0xFFu); /* biased by 127 */
    if (exponent == 0 || exponent == 255)
        return 1.0f;
    int scale = 14 + 127 - exponent + 127;
    scale = scale > 253 ? 253 : scale < 1 ? 1 : scale; /* its inverse is a normal number, too */
    return __uint_as_float((uint32_t)scale << 23);
}

/* Four values: the high parts, then the low ones. F16: times f first. */
template <bool F16> static __device__ __forceinline__ uint4 split_four(float4 v, float f)
{
    struct bf16_twos a = F16 ? f16_split_two(v.x * f, v.y * f) : bf16_split_two(v.x, v.y);
    struct bf16_twos b = F16 ? f16_split_two(v.z * f, v.w * f) : bf16_split_two(v.z, v.w);
    return uint4{a.hi, b.hi, a.lo, b.lo};
}

#endif
