/* gemm_rows.cu - rows for the products of gemm.cuh, from fp32 ones.
 *
 * A block is 8 warps, each with 128 values of a row: for e4m3 they meet in the largest, which makes
 * their scale. Bytes and scales lie where gemm.cu's copies look for them.
 *
 * Cost: 4 bytes a value (8 where two rows make one) in, 1 or 2 out; memory bound.
 */
#include "cuda/gemm.cuh"

#include "tile/block.cuh"
#include "tile/gated.cuh"
#include "tile/launch.cuh"
#include "tile/mma.cuh"
#include "tile/numbers.cuh"

#include <assert.h>

/* A warp has 128 values of a row. GATED: of silu(x) * up. */
template <bool FP8, bool GATED>
static __global__ void __launch_bounds__(256)
    rows_kernel(const float *x, const float *up, uint32_t n_in, const uint32_t *row, void *value,
                float *scale, uint32_t stride)
{
    uint32_t block = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t k = block * GEMM_SCALE_K + 4 * lane;
    if (block * GEMM_SCALE_K >= n_in)
        return;
    float4 v = {};
    size_t to = blockIdx.x, at = (row ? row[to] : to) * (size_t)n_in + k;
    if (k < n_in) {
        v = *(const float4 *)(x + at);
        if (GATED) {
            float4 u = *(const float4 *)(up + at);
            v.x = gated(v.x, u.x);
            v.y = gated(v.y, u.y);
            v.z = gated(v.z, u.z);
            v.w = gated(v.w, u.w);
        }
    }
    float s = 0.0f;
    uint2 out = {};
    if (FP8) {
        float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
        s = ue8m0_scale(warp_max(most));
        float inverse = 1.0f / s; /* exact: a power of two */
        out.x = e4m3_two(v.x * inverse, v.y * inverse) |
                e4m3_two(v.z * inverse, v.w * inverse) << 16;
    } else {
        out = uint2{bf16_two(v.x, v.y), bf16_two(v.z, v.w)};
    }
    if (k < n_in && FP8)
        *(uint32_t *)((uint8_t *)value + to * n_in + k) = out.x;
    else if (k < n_in)
        *(uint2 *)((uint16_t *)value + to * n_in + k) = out;
    if (FP8 && lane == 0)
        scale[(size_t)block * stride + to] = s;
}

cudaError_t gemm_make_rows(cudaStream_t s, const struct gemm_source *from, struct gemm_rows *to)
{
    uint32_t n_in = from->n_in;
    dim3 grid(from->n, parts_of(n_in, 8 * GEMM_SCALE_K));
    void *value = (void *)(uintptr_t)to->value;
    float *scale = (float *)(uintptr_t)to->scale;
    assert(n_in % 4 == 0 && from->n <= to->n);
    if (!from->n)
        return cudaSuccess;
    if (from->fp8 && from->up)
        CUDA_LAUNCH((rows_kernel<true, true>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else if (from->fp8)
        CUDA_LAUNCH((rows_kernel<true, false>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else if (from->up)
        CUDA_LAUNCH((rows_kernel<false, true>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    else
        CUDA_LAUNCH((rows_kernel<false, false>), grid, 256, 0, s, from->x, from->up, n_in,
                    from->row, value, scale, to->scale_stride);
    return cudaGetLastError();
}
