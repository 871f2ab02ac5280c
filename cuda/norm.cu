/* norm.cu - embedding rows, RMSNorm, and the logits of the rows that want them.
 *
 * embed: 256 threads per 256 values of a row. rms_norm: a block of NORM_THREADS threads per row,
 * the sum of squares in a fixed order (per thread in rising order, then warps). Both are memory
 * bound: one read and one write of the row; a few rows are bound by the time of a load, so a thread
 * has few values and asks for all of them at once.
 */
#include "cuda/backend.cuh"

#include "tile/block.cuh"
#include "tile/weight.cuh"

enum { NORM_THREADS = 1024 };

template <typename T>
static __global__ void embed_kernel(struct matrix w, const uint32_t *token, T *x)
{
    uint32_t id = token[blockIdx.x];
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < w.n_in)
        put(x + (size_t)blockIdx.x * w.n_in + i, weight_at(w, id, i));
}

template <typename T>
static __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_kernel(const T *x, const uint32_t *row, const float *gain, float eps, uint32_t dim,
                    T *y)
{
    x += (size_t)(row ? row[blockIdx.x] : blockIdx.x) * dim;
    y += (size_t)blockIdx.x * dim;
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < dim; i += NORM_THREADS)
        sum = fmaf(get(x + i), get(x + i), sum);
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < dim; i += NORM_THREADS)
        put(y + i, gain[i] * (get(x + i) * scale));
}

static void norm_rows(struct cuda_backend *b, struct cuda_lane *lane, const void *x,
                      const uint32_t *row, const float *gain, float eps, uint32_t n, uint32_t dim,
                      void *y)
{
    CUDA_LAUNCH((rms_norm_kernel<float>), n, NORM_THREADS, 0, lane->stream, (const float *)x, row,
                gain, eps, dim, (float *)y);
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
