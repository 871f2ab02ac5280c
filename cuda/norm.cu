/* norm.cu - embedding rows, RMSNorm, and the logits of the rows that want them.
 *
 * embed: 256 threads per 256 values of a row. rms_norm: a block of NORM_THREADS threads per row,
 * the sum of squares in a fixed order (per thread in rising order, then warps). Both are memory
 * bound: one read and one write of the row; a few rows are bound by the time of a load, so a thread
 * asks for all of its values at once, 16 bytes each time, and keeps those of rows of up to
 * 4 * KEPT * NORM_THREADS.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"
#include "tile/weight.cuh"

enum { NORM_THREADS = 512 };

template <typename T>
static __global__ void embed_kernel(struct matrix w, const uint32_t *token, T *x)
{
    uint32_t id = token[blockIdx.x];
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < w.n_in)
        put(x + (size_t)blockIdx.x * w.n_in + i, weight_at(w, id, i));
}

static __device__ __forceinline__ float4 four_at(const float *x, uint32_t i, uint32_t dim,
                                                 bool whole)
{
    if (whole)
        return i < dim ? *(const float4 *)(x + i) : float4{};
    return float4{i < dim ? x[i] : 0.0f, i + 1 < dim ? x[i + 1] : 0.0f,
                  i + 2 < dim ? x[i + 2] : 0.0f, i + 3 < dim ? x[i + 3] : 0.0f};
}

/* KEPT: so many times four values of a thread stay in registers; 0: the row is read twice. whole:
 * rows are whole numbers of 16 bytes, at multiples of them. */
template <int KEPT>
static __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_kernel(const float *x, const uint32_t *row, const float *gain, float eps, uint32_t dim,
                    bool whole, float *y)
{
    enum { STEP = 4 * NORM_THREADS, N = KEPT ? KEPT : 1 };
    float4 kept[N], by[N];
    x += (size_t)(row ? row[blockIdx.x] : blockIdx.x) * dim;
    y += (size_t)blockIdx.x * dim;
    float sum = 0.0f;
    uint32_t end = KEPT ? KEPT * STEP : dim, first = 4 * threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; KEPT && i < KEPT; i++) {
        kept[i] = four_at(x, first + i * STEP, dim, whole);
        by[i] = four_at(gain, first + i * STEP, dim, whole);
    }
#pragma unroll
    for (uint32_t i = first, k = 0; i < end; i += STEP, k++) {
        float4 v = KEPT ? kept[KEPT ? k : 0] : four_at(x, i, dim, whole);
        sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    }
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
#pragma unroll
    for (uint32_t i = first, k = 0; i < end; i += STEP, k++) {
        float4 v = KEPT ? kept[KEPT ? k : 0] : four_at(x, i, dim, whole);
        float4 g = KEPT ? by[KEPT ? k : 0] : four_at(gain, i, dim, whole);
        float4 z = {g.x * (v.x * scale), g.y * (v.y * scale), g.z * (v.z * scale),
                    g.w * (v.w * scale)};
        if (whole && i < dim)
            *(float4 *)(y + i) = z;
        const float each[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
        for (uint32_t c = 0; c < 4; c++)
            if (!whole && i + c < dim)
                y[i + c] = each[c];
    }
}

static void norm_rows(struct cuda_backend *b, struct cuda_lane *lane, const void *x,
                      const uint32_t *row, const float *gain, float eps, uint32_t n, uint32_t dim,
                      void *y)
{
    const float *from = (const float *)x;
    bool whole = dim % 4 == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)y % 16 == 0 &&
                 (uintptr_t)gain % 16 == 0;
    if (dim <= 4 * NORM_THREADS)
        CUDA_LAUNCH(rms_norm_kernel<1>, n, NORM_THREADS, 0, lane->stream, from, row, gain, eps, dim,
                    whole, (float *)y);
    else if (dim <= 4 * 4 * NORM_THREADS)
        CUDA_LAUNCH(rms_norm_kernel<4>, n, NORM_THREADS, 0, lane->stream, from, row, gain, eps, dim,
                    whole, (float *)y);
    else
        CUDA_LAUNCH(rms_norm_kernel<0>, n, NORM_THREADS, 0, lane->stream, from, row, gain, eps, dim,
                    whole, (float *)y);
    cuda_launched(lane, "rms_norm");
    cuda_forget_split(lane);
}

static void op_embed(struct ops *o, enum lane l, const struct matrix *w, act *x)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    uint32_t n = lane->step->n_rows;
    assert(w->n_out >= o->cfg->vocab_size); /* begin() has held the tokens against that */
    CUDA_LAUNCH((embed_kernel<float>), dim3(n, parts_of(w->n_in, 256)), 256, 0, lane->stream, *w,
                lane->dev.token, (float *)x);
    cuda_launched(lane, "embed");
    cuda_forget_split(lane);
}

static void op_rms_norm(struct ops *o, enum lane l, const act *x, const float *gain, float eps,
                        uint32_t n, uint32_t dim, act *y)
{
    norm_rows(cuda_of(o), &cuda_of(o)->lane[l], x, NULL, gain, eps, n, dim, y);
}

static float *op_logits(struct ops *o, enum lane l, const act *x, const float *gain,
                        const struct matrix *head, uint32_t i0, uint32_t n)
{
    struct cuda_backend *b = cuda_of(o);
    struct cuda_lane *lane = &b->lane[l];
    assert(n <= o->limits.max_out_rows && i0 + n <= lane->step->n_out);
    norm_rows(b, lane, x, lane->dev.out_row + i0, gain, o->cfg->rms_eps, n, head->n_in,
              lane->normed);
    struct product p = {head, lane->normed, n, lane->logits, false, false, NULL, false};
    cuda_product(b, lane, &p);
    if (head->n_out < o->cfg->vocab_size)
        return cuda_gather_logits(b, l, n, head->n_out);
    return lane->logits;
}

enum err_code cuda_norm_init(struct cuda_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    size_t rows = b->ops.limits.max_out_rows;
    b->ops.embed = op_embed;
    b->ops.rms_norm = op_rms_norm;
    b->ops.logits = op_logits;
    for (int l = 0; l < N_LANES; l++) {
        struct cuda_lane *lane = &b->lane[l];
        lane->normed = cuda_reserve(b, rows * c->hidden_size * sizeof(float));
        lane->logits = (float *)cuda_reserve(b, rows * c->vocab_size * sizeof(float));
        if (!lane->normed || !lane->logits)
            return err_set(e, ERR_NOMEM, "logits: %zu rows of %u", rows, c->vocab_size);
    }
    return ERR_OK;
}
