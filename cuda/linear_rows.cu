/* linear_rows.cu - what rows become before linear.cu's products take them.
 *
 * - split form: as sums of two f16 under a power of two of the row's own for e4m3 weights, whose
 *   codes f16 holds exactly (22 bits of mantissa), of two bf16 for bf16 weights (16 bits). What was
 *   split last is held, and products of the same rows share it until somebody writes them.
 * - rounded, in the deployed precision: to the weights' type first, for whoever takes fp32.
 *
 * Both lie in the lane's linear_scratch, one at a time. Thread: the worker's.
 * Cost: 4 bytes a value in (twice where the row's largest is looked for), 4 out; memory bound.
 */
#include "cuda/linear.cuh"

#include "tile/block.cuh"
#include "tile/rounding.cuh"
#include "tile/split.cuh"

/* A block a row: for each 4 values 16 bytes, 4 high parts and 4 low ones. f16: times a power of two
 * that brings the row's largest to [2^14, 2^15), whose inverse is the row's factor. ROUND: rounded
 * to the weights' type first, which makes the largest 2^15 at most. */
template <bool F16, bool ROUND>
static __global__ void __launch_bounds__(THREADS)
    split_kernel(const float *x, uint32_t n_in, uint4 *form, float *factor)
{
    const float4 *from = (const float4 *)(x + (size_t)blockIdx.x * n_in);
    uint4 *to = form + (size_t)blockIdx.x * (n_in / 4);
    float f = 1.0f;
    if (F16) {
        float most = 0.0f;
#pragma unroll 8
        for (uint32_t i = threadIdx.x; i < n_in / 4; i += THREADS) {
            float4 v = from[i];
            most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        f = f16_row_scale(block_max(most));
        if (threadIdx.x == 0)
            factor[blockIdx.x] = 1.0f / f;
    }
#pragma unroll 8
    for (uint32_t i0 = 0; i0 < n_in / 4; i0 += THREADS) { /* whole warps, for round_four() */
        uint32_t i = i0 + threadIdx.x;
        float4 v = i < n_in / 4 ? from[i] : float4{};
        if (ROUND)
            v = round_four<F16>(v);
        if (i < n_in / 4)
            to[i] = split_four<F16>(v, f);
    }
}

/* A block a row, a warp 128 values, of any width. y may be x. */
template <bool FP8>
static __global__ void __launch_bounds__(THREADS) round_kernel(const float *x, uint32_t n_in,
                                                               float *y)
{
    const float *from = x + (size_t)blockIdx.x * n_in;
    float *to = y + (size_t)blockIdx.x * n_in;
    for (uint32_t k0 = 0; k0 < n_in; k0 += 4 * THREADS) {
        uint32_t k = k0 + 4 * threadIdx.x;
        float v[4];
        for (uint32_t i = 0; i < 4; i++)
            v[i] = k + i < n_in ? from[k + i] : 0.0f;
        float4 r = round_four<FP8>(float4{v[0], v[1], v[2], v[3]});
        float w[4] = {r.x, r.y, r.z, r.w};
        for (uint32_t i = 0; i < 4; i++)
            if (k + i < n_in)
                to[k + i] = w[i];
    }
}

bool cuda_takes_split(const struct cuda_backend *b, enum dtype t, uint32_t n_in)
{
    return b->fast && ((t == DT_BF16 && n_in % 8 == 0) || (t == DT_F8_E4M3 && n_in % 16 == 0));
}

bool cuda_rounds(const struct cuda_backend *b, enum dtype t)
{
    return b->deployed && (t == DT_BF16 || t == DT_F8_E4M3);
}

void cuda_round_rows(struct cuda_lane *lane, enum dtype t, const float *x, uint32_t n,
                     uint32_t n_in, float *y)
{
    if (t == DT_F8_E4M3)
        CUDA_LAUNCH((round_kernel<true>), n, THREADS, 0, lane->stream, x, n_in, y);
    else
        CUDA_LAUNCH((round_kernel<false>), n, THREADS, 0, lane->stream, x, n_in, y);
}

const float *cuda_plain_rows(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const float *x, uint32_t n, uint32_t n_in)
{
    if (!cuda_rounds(b, t))
        return x;
    assert((size_t)n * n_in <= lane->linear->form_values);
    lane->linear->held = NULL;
    cuda_round_rows(lane, t, x, n, n_in, (float *)lane->linear->form);
    return (const float *)lane->linear->form;
}

struct split_rows cuda_split(struct cuda_backend *b, struct cuda_lane *lane, enum dtype t,
                             const void *x, uint32_t n, uint32_t n_in)
{
    struct linear_scratch *l = lane->linear;
    bool f16 = t == DT_F8_E4M3;
    assert(n <= SPLIT_FORM_ROWS && (size_t)n * n_in <= l->form_values);
    if (!lane->step || l->held != x || l->held_rows != n || l->held_in != n_in ||
        l->held_f16 != f16) {
        bool round = cuda_rounds(b, t);
        const float *from = (const float *)x;
        if (f16 && round)
            CUDA_LAUNCH((split_kernel<true, true>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else if (f16)
            CUDA_LAUNCH((split_kernel<true, false>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else if (round)
            CUDA_LAUNCH((split_kernel<false, true>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        else
            CUDA_LAUNCH((split_kernel<false, false>), n, THREADS, 0, lane->stream, from, n_in,
                        l->form, l->factor);
        l->held = x;
        l->held_rows = n;
        l->held_in = n_in;
        l->held_f16 = f16;
    }
    return (struct split_rows){l->form, l->factor};
}

void cuda_forget_split(struct cuda_lane *lane)
{
    lane->linear->held = NULL;
    cuda_wide_forget(lane);
}

void linear_rows_written(struct cuda_lane *lane, const void *y, size_t values)
{
    struct linear_scratch *l = lane->linear;
    const float *held = (const float *)l->held, *to = (const float *)y;
    if (held && to < held + (size_t)l->held_rows * l->held_in && held < to + values)
        l->held = NULL;
    cuda_wide_written(lane, y, values);
}
