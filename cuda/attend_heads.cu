/* attend_heads.cu - the per-head products around attention on tensor cores: queries into latent
 * space, and the merged sums as rows that a product with W_UV takes.
 *
 * - absorb: q~ = W_UK^T q_nope; a block has a head, OUTS latent values (all of them where a block
 * has the shared memory for it) and the rows of some tiles; a warp has 32 of the values. W_UK lies
 * with its sum's index along rows, so the head's part of it goes to shared memory once, as f16
 * (from e4m3, exact) or bf16, and is read transposed. Queries are split as the rows of any product
 * (tile/split.cuh), each head's part under its own factor; the next tile's come meanwhile.
 * - merge: a block of 128 threads per row and head adds the splits in order and leaves the mean in
 *   split form, where the queries were.
 * Cost: 4 nope kv_lora flops per row and head; W_UK is read once per block.
 */
#include "cuda/attend.cuh"

#include "tile/block.cuh"
#include "tile/split.cuh"

enum { ROWS = 32, MOST_DEPTH = 192, MERGE_THREADS = 128, MERGE_HEADS = 8 };
enum { X_LOADS = MOST_DEPTH / 128 + 1 };
static_assert(CUDA_MAX_LATENT <= 4 * MERGE_THREADS, "a thread has four values");

/* Chunks of 16 bytes from one row in split form to the next: whole eights, among which they change
 * places. */
static __host__ __device__ __forceinline__ uint32_t x_pitch(uint32_t depth)
{
    return (depth + 31) / 32 * 8;
}

/* OUTS latent values of a head, so many threads. Shared memory: W [depth][pitch], then the rows
 * [ROWS][x_pitch] in split form, then their factors and scales. */
template <int OUTS> struct absorb_shape {
    static const uint32_t pitch = OUTS + 8, warps = OUTS / 32, rows_of_warp = ROWS / warps;
    static __host__ __device__ size_t x_at(uint32_t depth)
    {
        return (size_t)depth * pitch * 2;
    }
    static __host__ __device__ size_t bytes(uint32_t depth)
    {
        return x_at(depth) + (size_t)ROWS * x_pitch(depth) * 16 + 2 * ROWS * sizeof(float);
    }
};

static __device__ __forceinline__ uint32_t x_chunk(uint32_t row, uint32_t chunk)
{
    return chunk ^ (row & 1u) << 2;
}

/* The head's part of W_UK, columns [j0, j0 + OUTS), 16 bytes a load. */
template <bool FP8, int OUTS>
static __device__ __forceinline__ void load_w(const struct attend_args &a, uint32_t first,
                                              uint32_t j0, uint16_t *w)
{
    enum { VALUES = FP8 ? 16 : 8, CHUNKS = OUTS / VALUES, AT_ONCE = 8 };
    uint32_t chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS, j = j0 + chunk * VALUES;
    const unsigned char *from =
        (const unsigned char *)a.kv_b.data + ((size_t)first * a.r + j) * (FP8 ? 1 : 2);
    for (uint32_t d0 = row; d0 < a.nope; d0 += AT_ONCE * (OUTS / CHUNKS)) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t d = d0 + k * (OUTS / CHUNKS);
            uint4 none = {0, 0, 0, 0};
            bool there = d < a.nope && j < a.r;
            v[k] = there ? *(const uint4 *)(from + (size_t)d * a.r * (FP8 ? 1 : 2)) : none;
        }
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t d = d0 + k * (OUTS / CHUNKS);
            if (d >= a.nope)
                continue;
            uint4 *to = (uint4 *)(w + (size_t)d * absorb_shape<OUTS>::pitch + chunk * VALUES);
            if (FP8) {
                uint32_t wide[8];
                e4m3_four_f16(wide, v[k].x);
                e4m3_four_f16(wide + 2, v[k].y);
                e4m3_four_f16(wide + 4, v[k].z);
                e4m3_four_f16(wide + 6, v[k].w);
                to[0] = uint4{wide[0], wide[1], wide[2], wide[3]};
                to[1] = uint4{wide[4], wide[5], wide[6], wide[7]};
            } else {
                to[0] = v[k];
            }
        }
    }
}

/* What a lane has of its warp's rows of a tile: four values of each 128. */
template <int N> struct row_part {
    float4 v[N][X_LOADS];
};
template <int N>
static __device__ __forceinline__ void load_rows(const struct attend_args &a, const float *q,
                                                 uint32_t tile, struct row_part<N> &to)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t pitch = (size_t)a.heads * (a.nope + a.d);
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int k = 0; k < X_LOADS; k++) {
            uint32_t row = tile * ROWS + warp * N + (uint32_t)i, at = 128 * (uint32_t)k + 4 * lane;
            float4 none = {0.0f, 0.0f, 0.0f, 0.0f};
            bool there = row < a.n && at < a.nope;
            to.v[i][k] = there ? *(const float4 *)(q + row * pitch + at) : none;
        }
}

template <bool FP8, int N>
static __device__ __forceinline__ void store_rows(const struct attend_args &a,
                                                  const struct row_part<N> &from, uint4 *x,
                                                  float *factor, float *scale)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t row = warp * N + (uint32_t)i;
        float most = 0.0f, f = 1.0f;
#pragma unroll
        for (int k = 0; k < X_LOADS; k++) {
            float4 v = from.v[i][k];
            most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        if (FP8)
            f = f16_row_scale(warp_max(most));
        if (lane == 0) {
            scale[row] = f;
            factor[row] = 1.0f / f;
        }
#pragma unroll
        for (int k = 0; k < X_LOADS; k++) {
            uint32_t chunk = 32 * (uint32_t)k + lane;
            if (4 * chunk < a.nope)
                x[row * x_pitch(a.nope) + x_chunk(row, chunk)] = split_four<FP8>(from.v[i][k], f);
        }
    }
}

/* The rotated part of this block's rows goes along as it is. */
static __device__ __forceinline__ void copy_rope(const struct attend_args &a, const float *q,
                                                 uint32_t h)
{
    uint32_t fours = a.d / 4;
    for (uint32_t tile = blockIdx.y; tile * ROWS < a.n; tile += gridDim.y)
#pragma unroll 4
        for (uint32_t k = threadIdx.x; k < ROWS * fours; k += blockDim.x) {
            uint32_t row = tile * ROWS + k / fours, at = k % fours * 4;
            if (row < a.n)
                *(float4 *)(a.q + ((size_t)row * a.heads + h) * a.width + a.r + at) =
                    *(const float4 *)(q + (size_t)row * a.heads * (a.nope + a.d) + a.nope + at);
        }
}

template <bool FP8, int OUTS>
static __global__ void __launch_bounds__(OUTS, 1)
    absorb_kernel(const float *q, struct attend_args a)
{
    typedef absorb_shape<OUTS> S;
    DYNAMIC_SHARED(unsigned char, shared);
    uint16_t *w = (uint16_t *)shared;
    uint4 *x = (uint4 *)(shared + S::x_at(a.nope));
    float *factor = (float *)(x + ROWS * x_pitch(a.nope)), *scale = factor + ROWS;
    uint32_t h = blockIdx.x, j0 = blockIdx.z * OUTS, first = h * (a.nope + a.v);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    struct row_part<S::rows_of_warp> next;
    q += ((size_t)a.row0 * a.heads + h) * (a.nope + a.d);
    load_rows(a, q, blockIdx.y, next);
    load_w<FP8, OUTS>(a, first, j0, w);
    if (blockIdx.z == 0)
        copy_rope(a, q, h);
    float unit = 1.0f; /* the scale of the warp's columns of W */
    if (FP8) {
        uint32_t column = (j0 + 32 * warp) / GROUP, columns = parts_of(a.r, GROUP);
        unit = column < columns ? a.kv_b.scale[(size_t)(first / GROUP) * columns + column] : 0.0f;
    }
    for (uint32_t tile = blockIdx.y; tile * ROWS < a.n; tile += gridDim.y) {
        uint32_t n = a.n - tile * ROWS < ROWS ? a.n - tile * ROWS : ROWS;
        float acc[ROWS / 8][2][4] = {};
        __syncthreads(); /* everyone has read the tile before */
        store_rows<FP8>(a, next, x, factor, scale);
        load_rows(a, q, tile + gridDim.y, next);
        __syncthreads();
#pragma unroll 4
        for (uint32_t k = 0; k < a.nope / 16; k++) {
            uint32_t m[2][4], i = lane % 8, quarter = lane / 8;
            /* lane t's k are 4t .. 4t + 3, as the rows' chunks have them */
            const uint16_t *at = w + (16 * k + i / 2 * 4 + i % 2 + quarter / 2 * 2) * S::pitch +
                                 32 * warp + quarter % 2 * 8;
            ldmatrix_transposed(m[0], at);
            ldmatrix_transposed(m[1], at + 16);
#pragma unroll
            for (uint32_t p = 0; p < ROWS / 8; p++) {
                if (8 * p >= n)
                    continue;
                uint4 v = x[(8 * p + g) * x_pitch(a.nope) + x_chunk(8 * p + g, 4 * k + t)];
                uint32_t hi[2] = {v.x, v.y}, lo[2] = {v.z, v.w};
#pragma unroll
                for (uint32_t c = 0; c < 2; c++) {
                    if (FP8) {
                        mma_f16(acc[p][c], m[c], hi);
                        mma_f16(acc[p][c], m[c], lo);
                    } else {
                        mma_bf16(acc[p][c], m[c], hi);
                        mma_bf16(acc[p][c], m[c], lo);
                    }
                }
            }
        }
#pragma unroll
        for (uint32_t p = 0; p < ROWS / 8; p++)
#pragma unroll
            for (uint32_t c = 0; c < 8; c++) {
                uint32_t j = j0 + 32 * warp + c / 4 * 16 + g + c % 4 / 2 * 8;
                uint32_t r = 8 * p + 2 * t + c % 2;
                if (r < n && j < a.r)
                    a.q[((size_t)(tile * ROWS + r) * a.heads + h) * a.width + j] =
                        acc[p][c / 4][c % 4] * unit * factor[r];
            }
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

/* Whether a block has room for all of a head's columns. */
static bool has_room(const struct cuda_backend *b)
{
    return b->shared_bytes >= absorb_shape<512>::bytes(MOST_DEPTH);
}

bool cuda_attend_heads_fit(const struct cuda_backend *b, const struct matrix *kv_b)
{
    const struct model_config *c = b->ops.cfg;
    if (!cuda_takes_split(b, kv_b->dtype, c->kv_lora_rank) || c->nope_dim % 16 ||
        c->nope_dim > MOST_DEPTH || c->rope_dim % 4)
        return false;
    return kv_b->dtype == DT_BF16 ||
           (c->nope_dim == GROUP && (c->nope_dim + c->v_dim) % GROUP == 0);
}

template <bool FP8, int OUTS> static cudaError_t allow(void)
{
    size_t bytes = absorb_shape<OUTS>::bytes(FP8 ? (uint32_t)GROUP : (uint32_t)MOST_DEPTH);
    return cudaFuncSetAttribute(absorb_kernel<FP8, OUTS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

enum err_code cuda_attend_heads_init(const struct cuda_backend *b, struct err *e)
{
    cudaError_t code = allow<true, 128>();
    if (code == cudaSuccess)
        code = allow<false, 128>();
    if (code == cudaSuccess && has_room(b))
        code = allow<true, 512>();
    if (code == cudaSuccess && has_room(b))
        code = allow<false, 512>();
    return code == cudaSuccess ? ERR_OK
                               : err_set(e, ERR_CUDA, "attention: %s", cudaGetErrorString(code));
}

template <bool FP8, int OUTS>
static void launch_absorb(cudaStream_t s, const float *q, const struct attend_args &a)
{
    uint32_t tiles = parts_of(a.n, ROWS), columns = parts_of(a.r, OUTS);
    uint32_t fill = parts_of(ATTEND_FILL_BLOCKS, (size_t)a.heads * columns);
    dim3 grid(a.heads, tiles < fill ? tiles : fill, columns);
    CUDA_LAUNCH((absorb_kernel<FP8, OUTS>), grid, OUTS, absorb_shape<OUTS>::bytes(a.nope), s, q,
                a);
}

void cuda_attend_absorb(const struct cuda_backend *b, cudaStream_t s, const float *q,
                        const struct attend_args &a)
{
    bool fp8 = a.kv_b.dtype == DT_F8_E4M3;
    if (has_room(b) && fp8)
        launch_absorb<true, 512>(s, q, a);
    else if (has_room(b))
        launch_absorb<false, 512>(s, q, a);
    else if (fp8)
        launch_absorb<true, 128>(s, q, a);
    else
        launch_absorb<false, 128>(s, q, a);
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
