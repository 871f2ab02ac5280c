/* kv.cu - rope_q, kv_store and index_store: what a step leaves in the slots of its rows.
 *
 * A block of 128 threads per row (rope_q: per row and head), the row in shared memory as fp32.
 *   latent record  F32, BF16: kv_lora + rope values | FP8: kv_lora e4m3, a power-of-two f32 scale
 *                  per 128 of them, rope bf16: 656 bytes in the published models
 *   index page     64 keys, then (FP8) 64 f32 scales
 * Cost: memory bound, one read of the row and one write of the slot.
 */
#include "cuda/backend.cuh"

#include "tile/index_form.cuh"

enum { THREADS = 128, GROUP = LATENT_GROUP, MAX_RECORD = 4096, MAX_INDEX_DIM = 1024 };

struct rope_table {
    const float *cos, *sin; /* [positions, half] */
    uint32_t half;
};

template <typename T>
static __global__ void rope_q_kernel(T *q, const uint32_t *pos, struct rope_table r, uint32_t nope)
{
    uint32_t width = nope + 2 * r.half, i = threadIdx.x;
    size_t p = pos[blockIdx.x];
    T *x = q + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * width + nope;
    if (i >= r.half)
        return;
    float c = r.cos[p * r.half + i], s = r.sin[p * r.half + i];
    float u = get(x + 2 * i), v = get(x + 2 * i + 1);
    put(x + 2 * i, u * c - v * s);
    put(x + 2 * i + 1, u * s + v * c);
}

/* Rotates row[0, 2 half) in shared memory; the caller has synchronised. */
static __device__ void rotate(float *row, const struct rope_table &r, size_t pos, bool interleaved)
{
    for (uint32_t i = threadIdx.x; i < r.half; i += blockDim.x) {
        uint32_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + r.half;
        float c = r.cos[pos * r.half + i], s = r.sin[pos * r.half + i];
        float u = row[a], v = row[b];
        row[a] = u * c - v * s;
        row[b] = u * s + v * c;
    }
    __syncthreads();
}

struct kv_store_args {
    struct row_view view;
    struct rope_table rope;
    unsigned char *plane;
    size_t page_bytes;
    const float *gain;
    float eps;
    uint32_t r, d; /* kv_lora_rank, rope_dim */
    enum latent_form form;
};

template <typename T> static __global__ void kv_store_kernel(const T *x, struct kv_store_args a)
{
    __shared__ float row[MAX_RECORD];
    uint32_t pos = a.view.pos[blockIdx.x], n = a.r + a.d;
    unsigned char *at = a.plane + (size_t)page_of(a.view, blockIdx.x, pos) * a.page_bytes +
                        a.page_bytes / KV_PAGE_TOKENS * (pos % KV_PAGE_TOKENS);
    float sum = 0.0f;
    x += (size_t)blockIdx.x * n;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        row[i] = get(x + i);
        if (i < a.r)
            sum = fmaf(row[i], row[i], sum);
    }
    float f = 1.0f / sqrtf(block_sum(sum) / (float)a.r + a.eps);
    for (uint32_t i = threadIdx.x; i < a.r; i += THREADS)
        row[i] = row[i] * f * a.gain[i];
    __syncthreads();
    rotate(row + a.r, a.rope, pos, true);
    if (a.form == LATENT_F32) {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            ((float *)at)[i] = row[i];
        return;
    }
    if (a.form == LATENT_BF16) {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            ((uint16_t *)at)[i] = bf16_round(row[i]);
        return;
    }
    uint32_t n_groups = (a.r + GROUP - 1) / GROUP, lane = threadIdx.x % 32;
    unsigned char *scales = at + a.r, *key = scales + 4 * n_groups;
    for (uint32_t g = threadIdx.x / 32; g < n_groups; g += THREADS / 32) {
        uint32_t end = (g + 1) * GROUP < a.r ? (g + 1) * GROUP : a.r;
        float amax = 0.0f;
        for (uint32_t i = g * GROUP + lane; i < end; i += 32)
            amax = fmaxf(amax, fabsf(row[i]));
        float s = ue8m0_scale(warp_max(amax));
        for (uint32_t i = g * GROUP + lane; i < end; i += 32)
            at[i] = e4m3_round(row[i] / s);
        if (lane < 4) /* bytes: a scale may be at an odd address */
            scales[4 * g + lane] = (unsigned char)(__float_as_uint(s) >> (8 * lane));
    }
    for (uint32_t i = threadIdx.x; i < a.d; i += THREADS) {
        uint16_t h = bf16_round(row[a.r + i]);
        key[2 * i] = (unsigned char)h;
        key[2 * i + 1] = (unsigned char)(h >> 8);
    }
}

struct index_store_args {
    struct row_view view;
    struct rope_table rope;
    unsigned char *plane;
    size_t page_bytes;
    const float *gain, *bias;
    uint32_t dim;
    bool interleaved;
    enum index_form form;
};

template <typename T>
static __global__ void index_store_kernel(const T *x, struct index_store_args a)
{
    __shared__ float row[MAX_INDEX_DIM];
    uint32_t pos = a.view.pos[blockIdx.x], slot = pos % KV_PAGE_TOKENS;
    unsigned char *page = a.plane + (size_t)page_of(a.view, blockIdx.x, pos) * a.page_bytes;
    float sum = 0.0f;
    x += (size_t)blockIdx.x * a.dim;
    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS)
        sum += row[i] = get(x + i);
    float mean = block_sum(sum) / (float)a.dim, var = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS)
        var = fmaf(row[i] - mean, row[i] - mean, var);
    float f = 1.0f / sqrtf(block_sum(var) / (float)a.dim + 1e-6f); /* whatever rms_norm_eps says */
    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS)
        row[i] = (row[i] - mean) * f * a.gain[i] + a.bias[i];
    __syncthreads();
    rotate(row, a.rope, pos, a.interleaved);
    if (a.form == INDEX_EXACT) {
        for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS)
            ((float *)page)[(size_t)slot * a.dim + i] = row[i];
        return;
    }
    float s = cuda_index_quantise(row, a.dim, page + (size_t)slot * a.dim);
    if (threadIdx.x == 0)
        ((float *)(page + (size_t)KV_PAGE_TOKENS * a.dim))[slot] = s;
}

static struct rope_table table_of(const struct cuda_backend *b)
{
    return (struct rope_table){b->rope_cos, b->rope_sin, b->ops.cfg->rope_dim / 2};
}

static void op_rope_q(struct ops *o, enum lane l, act *q)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    dim3 grid(lane->step->n_rows, o->cfg->n_heads);
    uint32_t threads = (o->cfg->rope_dim / 2 + 31) / 32 * 32;
    CUDA_LAUNCH((rope_q_kernel<float>), grid, threads, 0, lane->stream, (float *)q, lane->dev.pos,
                table_of(b), o->cfg->nope_dim);
    cuda_launched(lane, "rope_q");
    cuda_forget_split(lane);
}

static void op_kv_store(struct ops *o, enum lane l, uint32_t layer, const act *kv_raw,
                        const float *gain)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    struct kv_store_args a = {
        view_of(lane),        table_of(b),          b->latent[layer], b->latent_page_bytes, gain,
        o->cfg->low_rank_eps, o->cfg->kv_lora_rank, o->cfg->rope_dim, o->limits.latent};
    CUDA_LAUNCH((kv_store_kernel<float>), lane->step->n_rows, THREADS, 0, lane->stream,
                (const float *)kv_raw, a);
    cuda_launched(lane, "kv_store");
}

static void op_index_store(struct ops *o, enum lane l, uint32_t layer, const act *k_raw,
                           const float *gain, const float *bias)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    assert(b->index[layer]);
    struct index_store_args a = {
        view_of(lane),  table_of(b), b->index[layer],   b->index_page_bytes,
        gain,           bias,        o->cfg->index_dim, o->cfg->index_rope_interleaved,
        o->limits.index};
    CUDA_LAUNCH((index_store_kernel<float>), lane->step->n_rows, THREADS, 0, lane->stream,
                (const float *)k_raw, a);
    cuda_launched(lane, "index_store");
}

enum err_code cuda_kv_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    if (c->kv_lora_rank + c->rope_dim > MAX_RECORD)
        return err_set(e, ERR_INVALID, "kv_lora_rank=%u and qk_rope_head_dim=%u: over %d together",
                       c->kv_lora_rank, c->rope_dim, MAX_RECORD);
    b->ops.rope_q = op_rope_q;
    b->ops.kv_store = op_kv_store;
    if (!c->has_indexer)
        return ERR_OK;
    if (c->index_dim > MAX_INDEX_DIM || c->rope_dim > c->index_dim)
        return err_set(e, ERR_INVALID, "index_head_dim=%u: over %d, or under %u", c->index_dim,
                       MAX_INDEX_DIM, c->rope_dim);
    if (b->ops.limits.index == INDEX_FP8 &&
        (c->index_dim < 4 || (c->index_dim & (c->index_dim - 1))))
        return err_set(e, ERR_INVALID,
                       "index_head_dim=%u: the FP8 index form needs a power of two from 4 on",
                       c->index_dim);
    b->ops.index_store = op_index_store;
    return ERR_OK;
}
