/* attend_heads.cu - the per-head products around attention on tensor cores: queries into latent
 * space, and the merged sums as rows that a product with W_UV takes.
 *
 * - absorb: q~ = W_UK^T q_nope; a block of 8 warps per head, 128 latent values and ROWS rows; a
 * warp has 16 of the values. W_UK lies with its sum's index along rows, so its tile of 128 x 128
 * goes to shared memory as f16 (from e4m3, exact) or bf16 and is read transposed. Queries are split
 * as the rows of any product (tile/split.cuh), each head's part under its own factor.
 * - merge: a block of 128 threads per row and head adds the splits in order and leaves the mean in
 *   split form, where the queries were.
 * Cost: 4 nope kv_lora flops per row and head; W_UK is read once per ROWS rows.
 */
#include "cuda/attend.cuh"

#include "tile/block.cuh"
#include "tile/split.cuh"

enum { ROWS = 32, OUTS = 128, DEPTH = 128, THREADS = 256, PITCH = OUTS + 8, MERGE_THREADS = 128 };
enum { MERGE_HEADS = 8 };
static_assert(CUDA_MAX_LATENT <= 4 * MERGE_THREADS, "a thread has four values");
static_assert((int)OUTS == (int)GROUP && (int)DEPTH == (int)GROUP, "one scale for a tile of W");

struct absorb_tile {
    uint16_t w[DEPTH][PITCH];
    uint4 x[ROWS][DEPTH / 4];
    float factor[ROWS], scale[ROWS];
};
static_assert(sizeof(struct absorb_tile) <= 56 << 10, "raised by cuda_attend_heads_init()");

static __device__ __forceinline__ uint32_t x_chunk(uint32_t row, uint32_t chunk)
{
    return chunk ^ (row & 1u) << 2;
}

/* A warp's rows of a tile of W, four values a lane (e4m3: in x): rows [row, row + depth) from
 * column j0 on. */
template <bool FP8>
static __device__ __forceinline__ void load_w(const struct attend_args &a, uint32_t row,
                                              uint32_t depth, uint32_t j0,
                                              uint2 (&w)[DEPTH / (THREADS / 32)])
{
    uint32_t warp = threadIdx.x / 32, j = j0 + 4 * (threadIdx.x % 32);
#pragma unroll
    for (uint32_t k = 0; k < DEPTH / (THREADS / 32); k++) {
        uint32_t d = warp + k * (THREADS / 32);
        size_t at = (size_t)(row + d) * a.r + j;
        w[k] = uint2{0, 0};
        if (d >= depth || j >= a.r)
            continue;
        if (FP8)
            w[k].x = *(const uint32_t *)((const uint8_t *)a.kv_b.data + at);
        else
            w[k] = *(const uint2 *)((const uint16_t *)a.kv_b.data + at);
    }
}

template <bool FP8>
static __global__ void __launch_bounds__(THREADS, 3)
    absorb_kernel(const float *q, struct attend_args a)
{
    DYNAMIC_SHARED(struct absorb_tile, s);
    uint32_t h = blockIdx.x, i0 = blockIdx.y * ROWS, n = a.n - i0 < ROWS ? a.n - i0 : ROWS;
    uint32_t j0 = blockIdx.z * OUTS, qk = a.nope + a.d, first = h * (a.nope + a.v);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float acc[ROWS / 8][4] = {};
    uint2 w_next[DEPTH / (THREADS / 32)]; /* this warp's rows of the next tile of W */
    q += ((size_t)(a.row0 + i0) * a.heads + h) * qk;
    load_w<FP8>(a, first, a.nope < DEPTH ? a.nope : DEPTH, j0, w_next);
#pragma unroll
    for (uint32_t r = warp; r < ROWS; r += THREADS / 32) {
        const float *from = q + (size_t)r * a.heads * qk;
        float most = 0.0f;
        for (uint32_t k = 4 * lane; FP8 && r < n && k < a.nope; k += 4 * 32) {
            float4 v = *(const float4 *)(from + k);
            most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        float f = FP8 ? f16_row_scale(warp_max(most)) : 1.0f;
        if (lane == 0) {
            s->scale[r] = f;
            s->factor[r] = 1.0f / f;
        }
        for (uint32_t k = lane; blockIdx.z == 0 && r < n && k < a.d; k += 32)
            a.q[((size_t)(i0 + r) * a.heads + h) * a.width + a.r + k] = from[a.nope + k];
    }
    for (uint32_t d0 = 0; d0 < a.nope; d0 += DEPTH) {
        uint32_t depth = a.nope - d0 < DEPTH ? a.nope - d0 : DEPTH;
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < DEPTH / (THREADS / 32); k++) {
            uint32_t wide[2] = {w_next[k].x, w_next[k].y};
            if (FP8)
                e4m3_four_f16(wide, w_next[k].x);
            *(uint2 *)&s->w[warp + k * (THREADS / 32)][4 * lane] = uint2{wide[0], wide[1]};
        }
        if (d0 + DEPTH < a.nope)
            load_w<FP8>(a, first + d0 + DEPTH, a.nope - d0 - DEPTH, j0, w_next);
#pragma unroll
        for (uint32_t r = warp; r < ROWS; r += THREADS / 32) {
            const float *from = q + (size_t)r * a.heads * qk + d0;
            float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
            if (r < n && 4 * lane < depth)
                v = *(const float4 *)(from + 4 * lane);
            s->x[r][x_chunk(r, lane)] = split_four<FP8>(v, s->scale[r]);
        }
        __syncthreads();
        float block[ROWS / 8][4] = {};
#pragma unroll
        for (uint32_t k = 0; k < DEPTH / 16; k++) {
            uint32_t w[4], i = lane % 8, quarter = lane / 8;
            if (16 * k >= depth)
                continue;
            /* lane t's k are 4t .. 4t + 3, as the rows' chunks have them */
            ldmatrix_transposed(
                w,
                &s->w[16 * k + i / 2 * 4 + i % 2 + quarter / 2 * 2][16 * warp + quarter % 2 * 8]);
#pragma unroll
            for (uint32_t p = 0; p < ROWS / 8; p++) {
                uint4 v = s->x[8 * p + g][x_chunk(8 * p + g, 4 * k + t)];
                uint32_t hi[2] = {v.x, v.y}, lo[2] = {v.z, v.w};
                if (FP8) {
                    mma_f16(block[p], w, hi);
                    mma_f16(block[p], w, lo);
                } else {
                    mma_bf16(block[p], w, hi);
                    mma_bf16(block[p], w, lo);
                }
            }
        }
        float f = 1.0f;
        if (FP8)
            f = a.kv_b.scale[(size_t)((first + d0) / GROUP) * parts_of(a.r, GROUP) + blockIdx.z];
#pragma unroll
        for (uint32_t p = 0; p < ROWS / 8; p++)
#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                acc[p][c] = fmaf(block[p][c], f, acc[p][c]);
    }
#pragma unroll
    for (uint32_t p = 0; p < ROWS / 8; p++)
#pragma unroll
        for (uint32_t c = 0; c < 4; c++) {
            uint32_t j = j0 + 16 * warp + g + c / 2 * 8, r = 8 * p + 2 * t + c % 2;
            if (r < n && j < a.r)
                a.q[((size_t)(i0 + r) * a.heads + h) * a.width + j] = acc[p][c] * s->factor[r];
        }
}

/* Row i of heads: kv_lora values, in split form, from a.q on. */
template <bool F16>
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(struct attend_args a, float *factor)
{
    __shared__ float w[SPLITS], share;
    const int32_t *list;
    uint32_t i = blockIdx.x, h = blockIdx.y, n = row_length(a, a.row0 + i, &list);
    uint32_t each = split_length(a, n), n_splits = (n + each - 1) / each;
    size_t row = (size_t)i * a.heads + h, at = row * SPLITS;
    if (threadIdx.x == 0) {
        float max = -INFINITY, sum = 0.0f;
        for (uint32_t s = 0; s < n_splits; s++)
            max = a.max[at + s] > max ? a.max[at + s] : max;
        for (uint32_t s = 0; s < n_splits; s++) {
            w[s] = a.max[at + s] == max ? 1.0f : expf(a.max[at + s] - max);
            sum = fmaf(a.sum[at + s], w[s], sum);
        }
        share = sum == 0.0f ? 0.0f : 1.0f / sum; /* 0: a row that selects nothing */
    }
    __syncthreads();
    float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
    bool mine = 4 * threadIdx.x < a.r;
#pragma unroll 4
    for (uint32_t s = 0; mine && s < n_splits; s++) {
        float4 v = *(const float4 *)(a.z + (at + s) * a.r + 4 * threadIdx.x);
        z.x = fmaf(v.x, w[s], z.x);
        z.y = fmaf(v.y, w[s], z.y);
        z.z = fmaf(v.z, w[s], z.z);
        z.w = fmaf(v.w, w[s], z.w);
    }
    z = float4{z.x * share, z.y * share, z.z * share, z.w * share};
    float f = 1.0f;
    if (F16) {
        f = f16_row_scale(
            block_max(fmaxf(fmaxf(fabsf(z.x), fabsf(z.y)), fmaxf(fabsf(z.z), fabsf(z.w)))));
        if (threadIdx.x == 0)
            factor[row] = 1.0f / f;
    }
    if (mine)
        ((uint4 *)a.q)[row * (a.r / 4) + threadIdx.x] = split_four<F16>(z, f);
}

/* The same for means (attend.cuh): a warp per head, MERGE_HEADS of a row side by side. A lane takes
 * eight values of each half, which are pairs of columns; with its neighbour it makes fours of them.
 */
template <bool F16>
static __global__ void __launch_bounds__(32 * MERGE_HEADS)
    merge_means_kernel(struct attend_args a, float *factor)
{
    const int32_t *list;
    uint32_t i = blockIdx.x, h = blockIdx.y * MERGE_HEADS + threadIdx.x / 32,
             lane = threadIdx.x % 32;
    if (h >= a.heads)
        return;
    uint32_t n = row_length(a, a.row0 + i, &list), each = split_length(a, n);
    uint32_t n_splits = (n + each - 1) / each;
    size_t row = (size_t)i * a.heads + h, at = row * SPLITS;
    float top = lane < n_splits ? a.max[at + lane] : -INFINITY, max = warp_max(top), z[2][8] = {};
    float w = lane < n_splits ? a.sum[at + lane] * expf(top - max) : 0.0f, sum = warp_sum(w);
    w = sum == 0.0f ? 0.0f : w / sum; /* 0: a row that selects nothing */
#pragma unroll 4
    for (uint32_t s = 0; s < n_splits; s++) {
        float f = __shfl_sync(WARP_ALL, w, (int)s);
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            uint4 v = ((const uint4 *)a.z)[(at + s) * (CUDA_MAX_LATENT / 8) + 32 * k + lane];
            uint32_t two[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                z[k][2 * c] = fmaf(f16_value((uint16_t)two[c]), f, z[k][2 * c]);
                z[k][2 * c + 1] = fmaf(f16_value((uint16_t)(two[c] >> 16)), f, z[k][2 * c + 1]);
            }
        }
    }
    float f = 1.0f, most = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
#pragma unroll
        for (uint32_t c = 0; c < 8; c++)
            most = fmaxf(most, fabsf(z[k][c]));
    if (F16) {
        f = f16_row_scale(warp_max(most));
        if (lane == 0)
            factor[row] = 1.0f / f;
    }
    bool odd = lane & 1;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) { /* of pairs c and c + 2 the even lane keeps c */
            float mine[2], other[2];
#pragma unroll
            for (uint32_t b = 0; b < 2; b++) {
                mine[b] = odd ? z[k][2 * c + 4 + b] : z[k][2 * c + b];
                other[b] =
                    __shfl_xor_sync(WARP_ALL, odd ? z[k][2 * c + b] : z[k][2 * c + 4 + b], 1);
            }
            float4 four = {odd ? other[0] : mine[0], odd ? other[1] : mine[1],
                           odd ? mine[0] : other[0], odd ? mine[1] : other[1]};
            uint32_t column = 256 * k + lane / 4 * 32 + (c + (odd ? 2 : 0)) * 8 + lane % 4 / 2 * 4;
            ((uint4 *)a.q)[row * (CUDA_MAX_LATENT / 4) + column / 4] = split_four<F16>(four, f);
        }
}

bool cuda_attend_heads_fit(const struct cuda_backend *b, const struct matrix *kv_b)
{
    const struct model_config *c = b->ops.cfg;
    if (!cuda_takes_split(b, kv_b->dtype, c->kv_lora_rank) || c->nope_dim % 4 || c->rope_dim % 4)
        return false;
    return kv_b->dtype == DT_BF16 ||
           (c->nope_dim % GROUP == 0 && (c->nope_dim + c->v_dim) % GROUP == 0);
}

enum err_code cuda_attend_heads_init(struct err *e)
{
    const cudaFuncAttribute what = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaError_t code = cudaFuncSetAttribute(absorb_kernel<true>, what, sizeof(struct absorb_tile));
    if (code == cudaSuccess)
        code = cudaFuncSetAttribute(absorb_kernel<false>, what, sizeof(struct absorb_tile));
    return code == cudaSuccess ? ERR_OK
                               : err_set(e, ERR_CUDA, "attention: %s", cudaGetErrorString(code));
}

void cuda_attend_absorb(cudaStream_t s, const float *q, const struct attend_args &a)
{
    dim3 grid(a.heads, parts_of(a.n, ROWS), parts_of(a.r, OUTS));
    if (a.kv_b.dtype == DT_F8_E4M3)
        CUDA_LAUNCH((absorb_kernel<true>), grid, THREADS, sizeof(struct absorb_tile), s, q, a);
    else
        CUDA_LAUNCH((absorb_kernel<false>), grid, THREADS, sizeof(struct absorb_tile), s, q, a);
}

void cuda_attend_values(struct cuda_backend *b, struct cuda_lane *lane, const struct attend_args &a,
                        float *factor, float *out)
{
    dim3 per_row(a.n, a.heads), eight(a.n, parts_of(a.heads, MERGE_HEADS));
    if (a.means && a.kv_b.dtype == DT_F8_E4M3)
        CUDA_LAUNCH((merge_means_kernel<true>), eight, 32 * MERGE_HEADS, 0, lane->stream, a,
                    factor);
    else if (a.means)
        CUDA_LAUNCH((merge_means_kernel<false>), eight, 32 * MERGE_HEADS, 0, lane->stream, a,
                    factor);
    else if (a.kv_b.dtype == DT_F8_E4M3)
        CUDA_LAUNCH((merge_kernel<true>), per_row, MERGE_THREADS, 0, lane->stream, a, factor);
    else
        CUDA_LAUNCH((merge_kernel<false>), per_row, MERGE_THREADS, 0, lane->stream, a, factor);
    struct part_product p = {};
    p.w = &a.kv_b;
    p.n_parts = a.heads;
    p.part_outs = a.nope + a.v;
    p.part_first = a.nope;
    p.n_out = a.v;
    p.n = a.n;
    p.x = a.q;
    p.factor = factor;
    p.y = out + (size_t)a.row0 * a.heads * a.v;
    cuda_part_product(b, lane, &p);
}
