/* linear.c - embedding, norms, products of activations and weights, logits.
 *
 * A product is cut into chunks of W's rows, and for many rows of x of those as well. How it is cut
 * changes no bit: each output is one sum whose order the kernels fix.
 */
#include "cpu/backend.h"
#include "cpu/fp8.h"

#include <math.h>

enum { ALONE_NS = 4000 }; /* below this nobody is asked to help */
enum {
    SMALL_CHUNK_NS = 3000
}; /* of short jobs: several for each thread, yet dear beside taking one */
enum {
    LARGE_CHUNK_NS = 200000
}; /* of long ones: decode's chunks wait no longer than this for a thread */
enum { W_ROWS = 8, X_ROWS = 12 }; /* parts are multiples of these, so that tiles are full */

void cpu_run(struct cpu_backend *b, enum lane l, uint32_t n_chunks, double cost_ns, pool_fn *fn,
             void *arg)
{
    if (cost_ns >= ALONE_NS) {
        pool_run(b->pool, l, n_chunks, fn, arg);
        return;
    }
    uint32_t worker = pool_n_threads(b->pool) - 1 + (uint32_t)l;
    for (uint32_t c = 0; c < n_chunks; c++)
        fn(arg, c, worker);
}

/* The larger of reading W (16 bytes a nanosecond) and multiplying (64 products a nanosecond). */
double cpu_product_cost_ns(const struct matrix *w, uint32_t n_out, uint32_t n)
{
    double weights = (double)n_out * w->n_in;
    double read = weights * (double)dtype_bytes(w->dtype) / 16.0, multiply = weights * n / 64.0;
    return read > multiply ? read : multiply;
}

static bool is_small(const struct matrix *w)
{
    return w->dtype == DT_BF16 || w->dtype == DT_F8_E4M3;
}

bool cpu_takes_split(const struct cpu_backend *b, const struct matrix *w)
{
    return b->ops.limits.precision == PRECISION_FAST && b->k->gemm_bf16_split && is_small(w);
}

bool cpu_rounds(const struct cpu_backend *b, const struct matrix *w)
{
    return b->ops.limits.precision == PRECISION_FP8 && is_small(w);
}

void cpu_round_row(const struct matrix *w, const float *x, float *y)
{
    if (w->dtype == DT_BF16) {
        for (uint32_t i = 0; i < w->n_in; i++)
            y[i] = bf16_value(bf16_round(x[i]));
        return;
    }
    for (uint32_t i = 0; i < w->n_in; i += 128) {
        uint8_t code[128];
        uint32_t n = w->n_in - i < 128 ? w->n_in - i : 128;
        float scale = e4m3_quantise(x + i, n, code);
        for (uint32_t k = 0; k < n; k++)
            y[i + k] = e4m3_value(code[k]) * scale;
    }
}

void cpu_block_product(const struct kernels *k, const struct block_product *p)
{
    const struct matrix *w = p->w;
    size_t first = (size_t)p->out0 * w->n_in, scale_stride = ((size_t)w->n_in + 127) / 128;
    switch (w->dtype) {
    case DT_F32:
        k->gemm_f32_f32((const float *)w->data + first, p->n_out, w->n_in, p->x, p->ldx, p->n, p->y,
                        p->ldy, p->add);
        return;
    case DT_F16:
        k->gemm_f16_f32((const uint16_t *)w->data + first, p->n_out, w->n_in, p->x, p->ldx, p->n,
                        p->y, p->ldy, p->add);
        return;
    case DT_BF16:
        if (p->split)
            k->gemm_bf16_split((const uint16_t *)w->data + first, p->n_out, w->n_in, p->x, p->ldx,
                               p->n, p->y, p->ldy, p->add);
        else
            k->gemm_bf16_f32((const uint16_t *)w->data + first, p->n_out, w->n_in, p->x, p->ldx,
                             p->n, p->y, p->ldy, p->add);
        return;
    default:
        assert(w->dtype == DT_F8_E4M3);
        if (p->split)
            k->gemm_fp8_split((const uint8_t *)w->data + first, p->out0, p->n_out, w->n_in,
                              w->scale, scale_stride, p->x, p->ldx, p->n, p->y, p->ldy, p->add);
        else
            k->gemm_fp8_f32((const uint8_t *)w->data + first, p->out0, p->n_out, w->n_in, w->scale,
                            scale_stride, p->x, p->ldx, p->n, p->y, p->ldy, p->add);
    }
}

/* ---- products ---- */

struct product_job {
    const struct kernels *k;
    struct block_product p;
    uint32_t w_part, x_part, n_w_parts; /* chunk c: W part c % n_w_parts, x part c / n_w_parts */
};

static void product_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct product_job *j = arg;
    struct block_product p = j->p;
    uint32_t w0 = chunk % j->n_w_parts * j->w_part, x0 = chunk / j->n_w_parts * j->x_part;
    p.out0 += w0;
    p.n_out = p.n_out - w0 < j->w_part ? p.n_out - w0 : j->w_part;
    p.n = p.n - x0 < j->x_part ? p.n - x0 : j->x_part;
    p.x = (const char *)p.x + x0 * p.ldx * (p.split ? sizeof(uint16_t) : sizeof(float));
    p.y += x0 * p.ldy + w0;
    cpu_block_product(j->k, &p);
}

static uint32_t round_up(uint32_t n, uint32_t step)
{
    return (n + step - 1) / step * step;
}

static uint32_t parts_of(uint32_t n, uint32_t part)
{
    return (n + part - 1) / part;
}

static void run_product(struct cpu_backend *b, enum lane l, const struct block_product *p)
{
    double cost = cpu_product_cost_ns(p->w, p->n_out, p->n);
    double few = CPU_CHUNKS_PER_THREAD * pool_n_threads(b->pool), small = cost / SMALL_CHUNK_NS;
    double wanted = small < few ? small : few > cost / LARGE_CHUNK_NS ? few : cost / LARGE_CHUNK_NS;
    if (pool_n_threads(b->pool) == 1 || wanted < 2)
        wanted = 1;
    struct product_job j = {b->k, *p, 0, p->n, 1};
    j.w_part = round_up((uint32_t)ceil(p->n_out / wanted), W_ROWS);
    if (p->n >= 4 * X_ROWS && wanted > few) {
        /* Of all shapes with as many products the one that reads the least: as many bytes of W as
         * of x, whose rows are twice as wide. Thin slices of W would each pass over all of x. */
        uint32_t square = round_up((uint32_t)sqrt(2 * p->n_out / wanted * p->n), W_ROWS);
        if (square > j.w_part)
            j.w_part = square < p->n_out ? square : p->n_out;
    }
    j.n_w_parts = parts_of(p->n_out, j.w_part);
    if (j.n_w_parts * 2 <= wanted && p->n >= 4 * X_ROWS)
        j.x_part = round_up((uint32_t)ceil(p->n * (double)j.n_w_parts / wanted), X_ROWS);
    cpu_run(b, l, j.n_w_parts * parts_of(p->n, j.x_part), cost, product_chunk, &j);
}

enum { SPLIT_CHUNK = 16384 }; /* elements */
struct split_job {
    const struct kernels *k;
    const struct matrix *round; /* NULL: split */
    const float *x;
    size_t ldx;
    uint16_t *to;
    uint32_t n, n_in, rows; /* per chunk */
};

static void split_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct split_job *j = arg;
    uint32_t row0 = chunk * j->rows, row1 = j->n - row0 < j->rows ? j->n : row0 + j->rows;
    for (uint32_t i = row0; i < row1; i++) {
        uint16_t *hi = j->to + (size_t)i * 2 * j->n_in;
        if (j->round)
            cpu_round_row(j->round, j->x + i * j->ldx, (float *)(void *)hi);
        else
            j->k->split_bf16(j->x + i * j->ldx, hi, hi + j->n_in, j->n_in);
    }
}

/* Rows as the product takes them, both forms 4 bytes a value: split, or rounded for `round`. */
static void split_rows(struct cpu_backend *b, enum lane l, const struct matrix *round,
                       const float *x, size_t ldx, uint32_t n, uint32_t n_in, uint16_t *to)
{
    uint32_t rows = n_in < SPLIT_CHUNK ? SPLIT_CHUNK / n_in : 1;
    struct split_job j = {b->k, round, x, ldx, to, n, n_in, rows};
    cpu_run(b, l, parts_of(n, rows), (double)n * n_in / (round ? 1.0 : 8.0), split_chunk, &j);
}

void cpu_product(struct cpu_backend *b, enum lane l, const struct product *p)
{
    struct block_product bp = {p->w,   p->out0, p->n_out, p->x,   false,
                               p->ldx, p->n,    p->y,     p->ldy, p->add};
    assert(p->out0 + p->n_out <= p->w->n_out);
    if (!p->n || !p->n_out)
        return;
    bool round = cpu_rounds(b, p->w) && !p->unrounded;
    if (p->exact || (!round && !(b->lane[l].split && b->k->gemm_bf16_split && is_small(p->w)))) {
        run_product(b, l, &bp);
        return;
    }
    struct cpu_lane *lane = &b->lane[l];
    size_t fit = lane->split_elements / (2 * (size_t)p->w->n_in);
    assert(fit > 0);
    for (uint32_t i = 0; i < p->n; i += bp.n) {
        bp.n = p->n - i < fit ? p->n - i : (uint32_t)fit;
        split_rows(b, l, round ? p->w : NULL, p->x + i * p->ldx, p->ldx, bp.n, p->w->n_in,
                   lane->split);
        bp.x = lane->split;
        bp.split = !round;
        bp.ldx = (round ? 1 : 2) * (size_t)p->w->n_in;
        bp.y = p->y + i * p->ldy;
        run_product(b, l, &bp);
    }
}

/* ---- the ops ---- */

static void op_linear(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                      act *y, bool add)
{
    struct product p = {.w = w,
                        .n_out = w->n_out,
                        .x = x,
                        .ldx = w->n_in,
                        .n = n,
                        .y = y,
                        .ldy = w->n_out,
                        .add = add};
    cpu_product(cpu_of(o), l, &p);
}

static void embed_row(const struct kernels *k, const struct matrix *w, uint32_t id, float *x)
{
    size_t first = (size_t)id * w->n_in, scales = ((size_t)w->n_in + 127) / 128;
    switch (w->dtype) {
    case DT_F32:
        memcpy(x, (const float *)w->data + first, w->n_in * sizeof *x);
        return;
    case DT_F16:
        for (uint32_t i = 0; i < w->n_in; i++)
            x[i] = f16_value(((const uint16_t *)w->data)[first + i]);
        return;
    case DT_BF16:
        k->bf16_to_f32((const uint16_t *)w->data + first, x, w->n_in);
        return;
    default:
        assert(w->dtype == DT_F8_E4M3);
        for (uint32_t i = 0; i < w->n_in; i += 128)
            k->fp8_to_f32((const uint8_t *)w->data + first + i,
                          w->scale[id / 128 * scales + i / 128], x + i,
                          w->n_in - i < 128 ? w->n_in - i : 128);
    }
}

static void op_embed(struct ops *o, enum lane l, const struct matrix *w, act *x)
{
    struct cpu_backend *b = cpu_of(o);
    const struct step *s = b->lane[l].step;
    for (uint32_t i = 0; i < s->n_rows; i++) {
        assert(s->token[i] < w->n_out);
        embed_row(b->k, w, s->token[i], (float *)x + (size_t)i * w->n_in);
    }
}

static void norm_row(const struct kernels *k, const float *x, const float *gain, float eps,
                     uint32_t dim, float *y)
{
    float scale = 1.0f / sqrtf(k->sum_squares(x, dim) / (float)dim + eps);
    for (uint32_t i = 0; i < dim; i++)
        y[i] = gain[i] * (x[i] * scale);
}

enum { NORM_CHUNK = 8192 }; /* elements */
struct norm_job {
    const struct kernels *k;
    const float *x, *gain;
    const uint32_t *row; /* which rows of x; NULL: all in order */
    float eps;
    float *y;
    uint32_t n, dim, rows; /* per chunk */
};

static void norm_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct norm_job *j = arg;
    uint32_t row0 = chunk * j->rows, row1 = j->n - row0 < j->rows ? j->n : row0 + j->rows;
    for (uint32_t i = row0; i < row1; i++)
        norm_row(j->k, j->x + (size_t)(j->row ? j->row[i] : i) * j->dim, j->gain, j->eps, j->dim,
                 j->y + (size_t)i * j->dim);
}

static void norm_rows(struct cpu_backend *b, enum lane l, struct norm_job j)
{
    j.k = b->k;
    j.rows = j.dim < NORM_CHUNK ? NORM_CHUNK / j.dim : 1;
    cpu_run(b, l, parts_of(j.n, j.rows), (double)j.n * j.dim / 4.0, norm_chunk, &j);
}

static void op_rms_norm(struct ops *o, enum lane l, const act *x, const float *gain, float eps,
                        uint32_t n, uint32_t dim, act *y)
{
    struct norm_job j = {.x = x, .gain = gain, .eps = eps, .n = n, .dim = dim, .y = y};
    norm_rows(cpu_of(o), l, j);
}

static float *op_logits(struct ops *o, enum lane l, const act *x, const float *gain,
                        const struct matrix *head, uint32_t i0, uint32_t n)
{
    struct cpu_backend *b = cpu_of(o);
    struct cpu_lane *lane = &b->lane[l];
    assert(n <= o->limits.max_out_rows && i0 + n <= lane->step->n_out);
    struct norm_job j = {.x = x,
                         .row = lane->step->out_row + i0,
                         .gain = gain,
                         .eps = o->cfg->rms_eps,
                         .n = n,
                         .dim = head->n_in,
                         .y = lane->linear_scratch};
    norm_rows(b, l, j);
    struct product p = {.w = head,
                        .n_out = head->n_out,
                        .x = lane->linear_scratch,
                        .ldx = head->n_in,
                        .n = n,
                        .y = lane->logits,
                        .ldy = head->n_out};
    cpu_product(b, l, &p);
    if (head->n_out < o->cfg->vocab_size)
        return cpu_gather_logits(b, l, lane->logits, n, head->n_out);
    return lane->logits;
}

static size_t widest_input(const struct model_config *c)
{
    uint32_t input[] = {c->hidden_size,        c->q_lora_rank, c->kv_lora_rank,
                        c->n_heads * c->v_dim, c->dense_width, c->expert_width,
                        model_shared_width(c)};
    size_t widest = 0;
    for (size_t i = 0; i < sizeof input / sizeof *input; i++)
        widest = input[i] > widest ? input[i] : widest;
    return widest;
}

enum err_code cpu_linear_init(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    const struct ops_limits *lim = &b->ops.limits;
    b->ops.embed = op_embed;
    b->ops.rms_norm = op_rms_norm;
    b->ops.linear = op_linear;
    b->ops.logits = op_logits;
    for (int l = 0; l < N_LANES; l++) {
        struct cpu_lane *lane = &b->lane[l];
        if (lim->precision == PRECISION_FP8 ||
            (lim->precision == PRECISION_FAST && b->k->gemm_bf16_split)) {
            lane->split_elements = lim->max_rows[l] * 2 * widest_input(c);
            lane->split = cpu_reserve(b, lane->split_elements * sizeof *lane->split);
            if (!lane->split)
                return err_set(e, ERR_NOMEM, "split rows of products: %u rows", lim->max_rows[l]);
        }
        lane->linear_scratch = cpu_reserve(b, (size_t)lim->max_out_rows * c->hidden_size * 4);
        lane->logits = cpu_reserve(b, (size_t)lim->max_out_rows * c->vocab_size * 4);
        if (!lane->linear_scratch || !lane->logits)
            return err_set(e, ERR_NOMEM, "logits: %u rows of %u", lim->max_out_rows, c->vocab_size);
    }
    return ERR_OK;
}
