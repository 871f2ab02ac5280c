/* attend.cu - attention of a step's rows over their cached latents, in latent space.
 *
 * Rows go in chunks of at most CHUNK_ROWS (WIDE_CHUNK_ROWS, whose sums take half the room); a
 * chunk is four launches, in the fast precision of attend_heads.cu and attend_tensor.cu where they
 * take the sizes, and otherwise:
 * - absorb: q~ = W_UK^T q_nope; a block per head, ROWS rows and SLICE values, so W is read once for
 * those rows.
 * - attend_wide.cu's or attend_tensor.cu's, or stream: a block of 8 warps per (row, 16 heads,
 * split); warp w has heads 2 w and 2 w + 1. Tiles of 16 latents in shared memory as fp32; each lane
 * keeps every 32nd value of queries and sums, and a running softmax closes each tile. A row's past
 * is cut into at most SPLITS parts, by its length alone.
 * - merge: the parts in order, divided by their sum.
 * - values: out = W_UV z; a block per head, ROWS rows and OUT_SLICE outputs, a warp per output.
 * Rows at the positions of the expanded form take the same path: the same sum, in another order.
 * Cost: 2 (2 kv_lora + rope) flops per (row, head, position) in fp32 lanes.
 */
#include "cuda/attend.cuh"

#include "tile/block.cuh"
#include "tile/weight.cuh"

enum { CHUNK_ROWS = 64, WIDE_CHUNK_ROWS = 128, ROWS = 8, SLICE = 128, OUT_SLICE = 32 };
enum { TILE = 16, WARPS = 8 };
enum { HEADS = 2 * WARPS, MAX_WIDTH = 768, PER_LANE = MAX_WIDTH / 32 };
enum { Z_PER_LANE = CUDA_MAX_LATENT / 32 };
static_assert(TILE * MAX_WIDTH * 4 <= 48 << 10, "a tile fits in what every device gives a block");

struct attend_scratch {
    uint32_t rows;
    bool tensor, wide;
    float *q;   /* [rows, heads, kv_lora + rope] queries in latent space; then sums */
    float *z;   /* [rows, heads, SPLITS, kv_lora]; wide: f16 */
    float *max; /* [rows, heads, SPLITS] and sums after them */
    float *sum;
    float *factor; /* [rows, heads] of the merged sums in split form */
};

template <typename T> static __global__ void absorb_kernel(const T *q, struct attend_args a)
{
    DYNAMIC_SHARED(float, x); /* [ROWS][nope] */
    uint32_t h = blockIdx.x, i0 = blockIdx.y * ROWS, n = a.n - i0 < ROWS ? a.n - i0 : ROWS;
    uint32_t qk = a.nope + a.d, first = h * (a.nope + a.v);
    q += ((size_t)(a.row0 + i0) * a.heads + h) * qk;
    for (uint32_t i = threadIdx.x; i < ROWS * a.nope; i += blockDim.x) {
        uint32_t row = i / a.nope;
        x[i] = row < n ? get(q + (size_t)row * a.heads * qk + i % a.nope) : 0.0f;
    }
    __syncthreads();
    uint32_t j = blockIdx.z * SLICE + threadIdx.x;
    float acc[ROWS] = {};
    if (j >= a.width)
        return;
#pragma unroll 8
    for (uint32_t d = 0; j < a.r && d < a.nope; d++) {
        float w = weight_at(a.kv_b, first + d, j);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            acc[i] = fmaf(w, x[i * a.nope + d], acc[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
        if (i >= n)
            continue;
        float *to = a.q + ((size_t)(i0 + i) * a.heads + h) * a.width + j;
        *to = j < a.r ? acc[i] : get(q + (size_t)i * a.heads * qk + a.nope + j - a.r);
    }
}

/* One value of a record. */
static __device__ __forceinline__ float record_value(const struct attend_args &a,
                                                     const unsigned char *at, uint32_t i)
{
    if (a.form == LATENT_F32)
        return ((const float *)at)[i];
    if (a.form == LATENT_BF16)
        return bf16_value(((const uint16_t *)at)[i]);
    const unsigned char *scale = at + a.r;
    if (i >= a.r) {
        const unsigned char *h = scale + 4 * ((a.r + GROUP - 1) / GROUP) + 2 * (i - a.r);
        return bf16_value((uint16_t)(h[0] | h[1] << 8));
    }
    scale += 4 * (i / GROUP); /* bytes: it may be at an odd address */
    uint32_t s = scale[0] | scale[1] << 8 | scale[2] << 16 | (uint32_t)scale[3] << 24;
    return e4m3_value(at[i]) * __uint_as_float(s);
}

static __global__ void __launch_bounds__(WARPS * 32) stream_kernel(struct attend_args a)
{
    DYNAMIC_SHARED(float, tile); /* [TILE][width] */
    const int32_t *list;
    uint32_t i = blockIdx.z, row = a.row0 + i, split = blockIdx.x, lane = threadIdx.x % 32;
    uint32_t n = row_length(a, row, &list), each = split_length(a, n), begin = split * each;
    uint32_t end = begin + each < n ? begin + each : n, warp = threadIdx.x / 32;
    uint32_t h0 = blockIdx.y * HEADS + 2 * warp;
    if (begin >= n)
        return;
    float q[2][PER_LANE], z[2][Z_PER_LANE], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int g = 0; g < 2; g++) {
        const float *from = a.q + ((size_t)i * a.heads + h0 + g) * a.width;
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            uint32_t at = j * 32 + lane;
            q[g][j] = h0 + g < a.heads && at < a.width ? from[at] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < Z_PER_LANE; j++)
            z[g][j] = 0.0f;
    }
    for (uint32_t t = begin; t < end; t += TILE) {
        uint32_t n_tile = end - t < TILE ? end - t : TILE;
        __syncthreads();
        for (uint32_t p = warp; p < n_tile; p += WARPS) {
            uint32_t pos = list ? (uint32_t)list[t + p] : t + p;
            const unsigned char *at = a.plane + (size_t)page_of(a.view, row, pos) * a.page_bytes +
                                      a.page_bytes / KV_PAGE_TOKENS * (pos % KV_PAGE_TOKENS);
            for (uint32_t j = lane; j < a.width; j += 32)
                tile[p * a.width + j] = record_value(a, at, j);
        }
        __syncthreads();
        float s[2][TILE], top[2] = {max[0], max[1]};
#pragma unroll
        for (int p = 0; p < TILE; p++) {
            float dot[2] = {0.0f, 0.0f};
#pragma unroll
            for (int j = 0; j < PER_LANE; j++) {
                uint32_t at = j * 32 + lane;
                float k = p < (int)n_tile && at < a.width ? tile[p * a.width + at] : 0.0f;
                dot[0] = fmaf(q[0][j], k, dot[0]);
                dot[1] = fmaf(q[1][j], k, dot[1]);
            }
#pragma unroll
            for (int g = 0; g < 2; g++) {
                float x = warp_sum(dot[g]) * a.scale;
                s[g][p] = p < (int)n_tile ? x : -INFINITY;
                top[g] = s[g][p] > top[g] ? s[g][p] : top[g];
            }
        }
#pragma unroll
        for (int g = 0; g < 2; g++) {
            float shrink = max[g] == top[g] ? 1.0f : expf(max[g] - top[g]);
            max[g] = top[g];
            sum[g] *= shrink;
#pragma unroll
            for (int j = 0; j < Z_PER_LANE; j++)
                z[g][j] *= shrink;
        }
#pragma unroll
        for (int p = 0; p < TILE; p++) {
            if (p >= (int)n_tile)
                continue;
            float w[2];
#pragma unroll
            for (int g = 0; g < 2; g++) {
                w[g] = expf(s[g][p] - max[g]);
                sum[g] += w[g];
            }
#pragma unroll
            for (int j = 0; j < Z_PER_LANE; j++) {
                uint32_t at = j * 32 + lane;
                float k = at < a.r ? tile[p * a.width + at] : 0.0f;
                z[0][j] = fmaf(w[0], k, z[0][j]);
                z[1][j] = fmaf(w[1], k, z[1][j]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < 2; g++) {
        if (h0 + g >= a.heads)
            continue;
        size_t at = ((size_t)i * a.heads + h0 + g) * SPLITS + split;
#pragma unroll
        for (int j = 0; j < Z_PER_LANE; j++)
            if (j * 32 + lane < a.r)
                a.z[at * a.r + j * 32 + lane] = z[g][j];
        if (lane == 0) {
            a.max[at] = max[g];
            a.sum[at] = sum[g];
        }
    }
}

static __global__ void merge_kernel(struct attend_args a)
{
    const int32_t *list;
    uint32_t i = blockIdx.x, h = blockIdx.y, n = row_length(a, a.row0 + i, &list);
    uint32_t each = split_length(a, n), n_splits = (n + each - 1) / each;
    size_t at = ((size_t)i * a.heads + h) * SPLITS;
    float max = -INFINITY, sum = 0.0f, w[SPLITS];
    for (uint32_t s = 0; s < n_splits; s++)
        max = a.max[at + s] > max ? a.max[at + s] : max;
    for (uint32_t s = 0; s < n_splits; s++) {
        w[s] = a.max[at + s] == max ? 1.0f : expf(a.max[at + s] - max);
        sum = fmaf(a.sum[at + s], w[s], sum);
        w[s] *= a.means ? a.sum[at + s] : 1.0f;
    }
    float f = sum == 0.0f ? 0.0f : 1.0f / sum; /* 0: a row that selects nothing */
    for (uint32_t j = threadIdx.x; j < a.r; j += blockDim.x) {
        float z = 0.0f;
        for (uint32_t s = 0; s < n_splits; s++) {
            size_t from = (at + s) * a.r;
            z = fmaf(a.means ? f16_value(((const uint16_t *)a.z)[from + mean_place(j)])
                             : a.z[from + j],
                     w[s], z);
        }
        a.q[((size_t)i * a.heads + h) * a.width + j] = z * f;
    }
}

template <typename T> static __global__ void values_kernel(T *out, struct attend_args a)
{
    __shared__ float x[ROWS][CUDA_MAX_LATENT];
    uint32_t h = blockIdx.x, i0 = blockIdx.y * ROWS, n = a.n - i0 < ROWS ? a.n - i0 : ROWS;
    uint32_t first = h * (a.nope + a.v) + a.nope, lane = threadIdx.x % 32;
    for (uint32_t i = threadIdx.x; i < ROWS * a.r; i += blockDim.x) {
        uint32_t row = i / a.r, j = i % a.r;
        x[row][j] = row < n ? a.q[((size_t)(i0 + row) * a.heads + h) * a.width + j] : 0.0f;
    }
    __syncthreads();
    uint32_t end = (blockIdx.z + 1) * OUT_SLICE < a.v ? (blockIdx.z + 1) * OUT_SLICE : a.v;
    for (uint32_t o = blockIdx.z * OUT_SLICE + threadIdx.x / 32; o < end; o += blockDim.x / 32) {
        float acc[ROWS] = {};
#pragma unroll 8
        for (uint32_t j = lane; j < a.r; j += 32) {
            float w = weight_at(a.kv_b, first + o, j);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                acc[i] = fmaf(w, x[i][j], acc[i]);
        }
#pragma unroll
        for (uint32_t i = 0; i < ROWS; i++) {
            float y = warp_sum(acc[i]);
            if (lane == 0 && i < n)
                put(out + ((size_t)(a.row0 + i0 + i) * a.heads + h) * a.v + o, y);
        }
    }
}

static void op_attend(struct ops *o, enum lane l, uint32_t layer, const struct matrix *kv_b,
                      const act *q, const int32_t *sel, act *out)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    const struct model_config *c = o->cfg;
    struct attend_scratch *x = lane->attend;
    struct attend_args a = {};
    cudaStream_t s = lane->stream;
    a.view = view_of(lane);
    a.kv_b = *kv_b;
    a.plane = b->latent[layer];
    a.page_bytes = b->latent_page_bytes;
    a.sel = sel;
    a.q = x->q;
    a.z = x->z;
    a.max = x->max;
    a.sum = x->sum;
    a.scale = c->softmax_scale;
    a.heads = c->n_heads;
    a.nope = c->nope_dim;
    a.r = c->kv_lora_rank;
    a.d = c->rope_dim;
    a.v = c->v_dim;
    a.width = a.r + a.d;
    a.topk = c->index_topk;
    a.form = o->limits.latent;
    a.split_min = x->wide     ? CUDA_WIDE_SPLIT_MIN
                  : x->tensor ? CUDA_TENSOR_SPLIT_MIN
                              : CUDA_SPLIT_MIN;
    a.split_step = x->wide ? WIDE_SPLIT_STEP : SPLIT_STEP;
    a.means = x->wide;
    uint32_t n_splits = most_splits(sel ? lane->attended : lane->longest, a.split_min);
    bool heads = cuda_attend_heads_fit(b, kv_b);
    for (a.row0 = 0; a.row0 < lane->step->n_rows; a.row0 += x->rows) {
        a.n = lane->step->n_rows - a.row0 < x->rows ? lane->step->n_rows - a.row0 : x->rows;
        uint32_t groups = parts_of(a.n, ROWS);
        dim3 absorb(a.heads, groups, parts_of(a.width, SLICE)), per_row(a.n, a.heads);
        dim3 values(a.heads, groups, parts_of(a.v, OUT_SLICE));
        dim3 parts(n_splits, parts_of(a.heads, HEADS), a.n);
        size_t queries = sizeof(float) * ROWS * a.nope;
        if (heads)
            cuda_attend_absorb(b, s, (const float *)q, a);
        else
            CUDA_LAUNCH((absorb_kernel<float>), absorb, SLICE, queries, s, (const float *)q, a);
        if (!a.row0)
            cuda_meet(lane); /* selections and records are made beside the queries */
        if (x->wide)
            cuda_attend_wide(s, a, n_splits);
        else if (x->tensor)
            cuda_attend_tensor(s, a, n_splits);
        else
            CUDA_LAUNCH(stream_kernel, parts, WARPS * 32, sizeof(float) * TILE * a.width, s, a);
        if (heads) {
            cuda_attend_values(b, lane, a, x->factor, (float *)out);
        } else {
            CUDA_LAUNCH(merge_kernel, per_row, 128, 0, s, a);
            CUDA_LAUNCH((values_kernel<float>), values, 256, 0, s, (float *)out, a);
        }
        cuda_launched(lane, "attend");
    }
    cuda_meet(lane); /* of a step without rows, too */
    cuda_forget_split(lane);
}

enum err_code cuda_attend_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    size_t width = c->kv_lora_rank + c->rope_dim, heads = c->n_heads;
    if (c->kv_lora_rank > CUDA_MAX_LATENT || width > MAX_WIDTH || c->nope_dim > 1024)
        return err_set(e, ERR_INVALID,
                       "kv_lora_rank=%u, qk_rope_head_dim=%u, qk_nope_head_dim=%u: over %d, %d "
                       "together, or 1024",
                       c->kv_lora_rank, c->rope_dim, c->nope_dim, CUDA_MAX_LATENT, MAX_WIDTH);
    for (int l = 0; l < N_LANES; l++) {
        struct attend_scratch *x = (struct attend_scratch *)cuda_reserve_host(b, sizeof *x);
        if (!x)
            return err_set(e, ERR_NOMEM, "attention workspace");
        b->lane[l].attend = x;
        x->tensor = cuda_attend_tensor_fits(b);
        x->wide = cuda_attend_wide_fits(b);
        uint32_t rows = b->ops.limits.max_rows[l];
        uint32_t chunk = x->wide ? WIDE_CHUNK_ROWS : CHUNK_ROWS;
        x->rows = rows < chunk ? rows : chunk;
        size_t parts = (size_t)x->rows * heads * SPLITS;
        x->q = (float *)cuda_reserve(b, sizeof(float) * x->rows * heads * width);
        /* Of so many rows in f16, or half of them in fp32: a plan does not know which. */
        size_t least = x->rows < CHUNK_ROWS ? x->rows : (size_t)CHUNK_ROWS;
        size_t each = 4 * least > 2 * (size_t)x->rows ? 4 * least : 2 * (size_t)x->rows;
        x->z = (float *)cuda_reserve(b, each * heads * SPLITS * c->kv_lora_rank);
        x->max = (float *)cuda_reserve(b, sizeof(float) * parts);
        x->sum = (float *)cuda_reserve(b, sizeof(float) * parts);
        x->factor = (float *)cuda_reserve(b, sizeof(float) * x->rows * heads);
        if (!x->q || !x->z || !x->max || !x->sum || !x->factor)
            return err_set(e, ERR_NOMEM, "attention workspace of %u rows", x->rows);
    }
    b->ops.attend = op_attend;
    if (!b->dry &&
        (cuda_attend_heads_init(b, e) ||
         (b->lane[0].attend->tensor && cuda_attend_tensor_init(e)) ||
         (b->lane[0].attend->wide && cuda_attend_wide_init(e))))
        return e->code;
    return ERR_OK;
}
