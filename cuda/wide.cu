/* wide.cu - the products of gemm.cuh as the back end uses them: rows are made once for the products
 * that share them, weights stay where the upload left them.
 *
 * Used where PRECISION_FP8 meets a GPU that has these products; other GPUs do the same arithmetic
 * with linear.cu's kernels on rounded rows.
 */
#include "cuda/backend.cuh"
#include "cuda/gemm.cuh"
#include "cuda/moe.cuh"

enum { GATED_TILES = 100 }; /* so many tiles keep a device busy with gate, up and silu in one */

struct wide_scratch {
    unsigned char *rows;
    float *scale;
    size_t bytes, scales; /* room for values, and for scales */
    /* What they hold; x NULL: nothing that may be used again. */
    const void *x;
    uint32_t n, n_in;
    bool fp8;
};
enum { LEAST_BYTES = 1 << 20, LEAST_SCALES = 1 << 16 };

static uint32_t stride_of(uint32_t n)
{
    return parts_of(n, 4) * 4;
}

bool cuda_takes_wide(const struct cuda_backend *b, const struct matrix *w)
{
    bool aligned = (uintptr_t)w->data % 16 == 0;
    return b->wide && aligned &&
           ((w->dtype == DT_F8_E4M3 && w->n_in % 16 == 0) ||
            (w->dtype == DT_BF16 && w->n_in % 8 == 0));
}

void cuda_wide_forget(struct cuda_lane *lane)
{
    for (uint32_t i = 0; i < OPS_BRANCHES && lane->wide[i]; i++)
        lane->wide[i]->x = NULL;
}

void cuda_wide_written(struct cuda_lane *lane, const void *y, size_t values)
{
    const float *to = (const float *)y;
    for (uint32_t i = 0; i < OPS_BRANCHES && lane->wide[i]; i++) {
        struct wide_scratch *s = lane->wide[i];
        const float *held = (const float *)s->x;
        if (held && to < held + (size_t)s->n * s->n_in && held < to + values)
            s->x = NULL;
    }
}

static void make_rows(struct cuda_lane *lane, const struct gemm_source *from, struct gemm_rows *to)
{
    cuda_lane_check(lane, gemm_make_rows(lane->stream, from, to), "rows of a product");
}

static void multiply(struct cuda_lane *lane, const struct gemm *g)
{
    cuda_lane_check(lane, gemm_launch(lane->stream, g), "product");
}

static struct gemm gemm_of(const struct matrix *w, const struct gemm_rows *x)
{
    struct gemm g = {};
    g.fp8 = w->dtype == DT_F8_E4M3;
    g.w[0] = w->data;
    g.w_scale[0] = w->scale;
    g.n_out = w->n_out;
    g.n_in = w->n_in;
    g.n_groups = g.busy = 1;
    g.likely = x->n;
    g.x = *x;
    g.shape = -1;
    return g;
}

/* How many rows fit, of those that a product wants. */
static uint32_t rows_that_fit(size_t bytes, size_t scales, bool fp8, uint32_t n_in, uint32_t n)
{
    size_t fit = bytes / ((size_t)n_in * (fp8 ? 1 : 2)), scaled = scales / parts_of(n_in, 128);
    if (fp8 && scaled - scaled % 4 < fit)
        fit = scaled - scaled % 4;
    return fit < n ? (uint32_t)fit : n;
}

static struct gemm_rows shared_rows(struct cuda_lane *lane, const struct matrix *w, const float *x,
                                    uint32_t n)
{
    struct wide_scratch *s = lane->wide[lane->at];
    bool fp8 = w->dtype == DT_F8_E4M3;
    struct gemm_rows rows = {s->rows, fp8 ? s->scale : NULL, stride_of(n), n};
    if (lane->step && s->x == x && s->n == n && s->n_in == w->n_in && s->fp8 == fp8)
        return rows;
    struct gemm_source from = {fp8, x, NULL, n, w->n_in, NULL};
    make_rows(lane, &from, &rows);
    s->x = x;
    s->n = n;
    s->n_in = w->n_in;
    s->fp8 = fp8;
    return rows;
}

void cuda_wide_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p)
{
    (void)b;
    struct wide_scratch *s = lane->wide[lane->at];
    uint32_t n_in = p->w->n_in, n_out = p->w->n_out;
    uint32_t fit = rows_that_fit(s->bytes, s->scales, p->w->dtype == DT_F8_E4M3, n_in, p->n);
    assert(fit > 0 || !p->n);
    for (uint32_t i = 0; i < p->n; i += fit) {
        uint32_t k = p->n - i < fit ? p->n - i : fit;
        struct gemm_rows rows =
            shared_rows(lane, p->w, (const float *)p->x + (size_t)i * n_in, k);
        struct gemm g = gemm_of(p->w, &rows);
        g.y = (float *)p->y + (size_t)i * n_out;
        g.add = p->add;
        multiply(lane, &g);
    }
}

/* ---- networks ---- */

bool cuda_takes_network(const struct cuda_backend *b, const struct ffn_weights *w)
{
    return cuda_takes_wide(b, &w->gate) && cuda_takes_wide(b, &w->up) &&
           cuda_takes_wide(b, &w->down) && w->gate.dtype == w->up.dtype;
}

/* Rows in a buffer of 4 bytes a value, which values of 1 or 2 bytes fill to the half at most. */
static struct gemm_rows rows_in(void *buffer, bool fp8, uint32_t n, uint32_t n_in)
{
    size_t scale_at = ((size_t)n * n_in * 2 + 15) / 16 * 16;
    return (struct gemm_rows){
        buffer, fp8 ? (const float *)(const void *)((unsigned char *)buffer + scale_at) : NULL,
        stride_of(n), n};
}

/* gate and up of g's rows to rows of down: in one pass where there are tiles enough. */
static struct gemm_rows middle(struct cuda_lane *lane, struct moe_scratch *m, struct gemm *g,
                               const struct ffn_weights *w, uint32_t n)
{
    bool fp8 = w->down.dtype == DT_F8_E4M3;
    struct gemm_rows mid = rows_in(m->mid, fp8, n, w->down.n_in);
    size_t tiles = (size_t)g->busy * (w->gate.n_out / 128);
    g->w[1] = w->up.data;
    g->w_scale[1] = w->up.scale;
    if (g->fp8 && fp8 && w->gate.n_out % 128 == 0 && tiles >= GATED_TILES &&
        g->likely <= GEMM_GATED_ROWS) {
        g->mid = (uint8_t *)(uintptr_t)mid.value;
        g->mid_scale = (float *)(uintptr_t)mid.scale;
        g->mid_stride = mid.scale_stride;
        multiply(lane, g);
        return mid;
    }
    g->y = m->gate;
    g->second = m->up;
    multiply(lane, g);
    struct gemm_source from = {fp8, m->gate, m->up, n, w->gate.n_out, NULL};
    make_rows(lane, &from, &mid);
    return mid;
}

bool cuda_wide_network(struct cuda_backend *b, struct cuda_lane *lane, const struct ffn_weights *w,
                       const float *x, uint32_t n, float *y, bool add)
{
    struct wide_scratch *s = lane->wide[lane->at];
    if (!cuda_takes_network(b, w))
        return false;
    uint32_t fit =
        rows_that_fit(s->bytes, s->scales, w->gate.dtype == DT_F8_E4M3, w->gate.n_in, n);
    for (uint32_t i = 0; i < n; i += fit) {
        uint32_t k = n - i < fit ? n - i : fit;
        struct gemm_rows rows = shared_rows(lane, &w->gate, x + (size_t)i * w->gate.n_in, k);
        struct gemm g = gemm_of(&w->gate, &rows);
        struct gemm_rows mid = middle(lane, lane->moe, &g, w, k);
        struct gemm down = gemm_of(&w->down, &mid);
        down.y = y + (size_t)i * w->down.n_out;
        down.add = add;
        multiply(lane, &down);
    }
    cuda_wide_written(lane, y, (size_t)n * w->down.n_out);
    return true;
}

/* Whether the matrices at this place of all groups' networks lie a fixed step apart; the steps. */
static bool even_steps(const struct ffn_weights *w, uint32_t n, size_t place, size_t *step,
                       size_t *scale_step)
{
    auto at = [&](uint32_t i) {
        return (const struct matrix *)(const void *)((const char *)&w[i] + place);
    };
    const struct matrix *first = at(0), *next = at(n > 1 ? 1 : 0);
    ptrdiff_t by = (const char *)next->data - (const char *)first->data;
    ptrdiff_t scales = first->scale ? next->scale - first->scale : 0;
    for (uint32_t i = 1; i < n; i++) {
        const struct matrix *m = at(i);
        if (m->dtype != first->dtype || m->n_out != first->n_out || m->n_in != first->n_in ||
            (const char *)m->data != (const char *)first->data + (ptrdiff_t)i * by ||
            (first->scale && m->scale != first->scale + (ptrdiff_t)i * scales))
            return false;
    }
    *step = (size_t)by;
    *scale_step = (size_t)scales;
    return by >= 0 && scales >= 0 && by % 16 == 0;
}

bool cuda_wide_experts(struct cuda_backend *b, struct cuda_lane *lane, struct moe_scratch *m,
                       const struct ffn_weights *w, const float *x, uint32_t n_pairs)
{
    uint32_t n_groups = model_held_experts(b->ops.cfg);
    size_t step[3], scale_step[3];
    const size_t place[3] = {offsetof(struct ffn_weights, gate), offsetof(struct ffn_weights, up),
                             offsetof(struct ffn_weights, down)};
    if (!cuda_takes_network(b, w))
        return false;
    for (int i = 0; i < 3; i++)
        if (!even_steps(w, n_groups, place[i], &step[i], &scale_step[i]))
            return false;
    if (step[0] != step[1] || scale_step[0] != scale_step[1])
        return false;
    bool fp8 = w->gate.dtype == DT_F8_E4M3;
    /* Until the last product writes there, the rows that the first ones read lie in out. */
    struct gemm_rows rows = rows_in(m->out, fp8, n_pairs, w->gate.n_in);
    struct gemm_source from = {fp8, x, NULL, n_pairs, w->gate.n_in, m->row};
    make_rows(lane, &from, &rows);
    struct gemm g = gemm_of(&w->gate, &rows);
    g.n_groups = n_groups;
    g.busy = n_groups < n_pairs ? n_groups : n_pairs;
    g.start = m->start;
    g.likely = parts_of(n_pairs, n_groups);
    g.step = step[0];
    g.scale_step = scale_step[0];
    struct gemm_rows mid = middle(lane, m, &g, w, n_pairs);
    struct gemm down = gemm_of(&w->down, &mid);
    down.n_groups = n_groups;
    down.busy = g.busy;
    down.start = m->start;
    down.likely = g.likely;
    down.step = step[2];
    down.scale_step = scale_step[2];
    down.y = m->out;
    multiply(lane, &down);
    return true;
}

/* ---- opening ---- */

/* A branch other than the lane's own has rows of hidden_size or q_lora_rank. */
static enum err_code reserve_rows(struct cuda_backend *b, int l, int branch, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    struct wide_scratch *s = (struct wide_scratch *)cuda_reserve_host(b, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "products' rows");
    b->lane[l].wide[branch] = s;
    size_t max = b->ops.limits.max_rows[l], values = branch ? 0 : (size_t)c->n_heads * c->v_dim;
    size_t widest = c->hidden_size > values ? c->hidden_size : values;
    widest = c->q_lora_rank > widest ? c->q_lora_rank : widest;
    s->bytes = widest * max * (c->fp8_blocks ? 1 : 2);
    s->bytes = s->bytes > LEAST_BYTES ? s->bytes : (size_t)LEAST_BYTES;
    s->scales = parts_of(widest, 128) * (max + 4);
    s->scales = s->scales > LEAST_SCALES ? s->scales : (size_t)LEAST_SCALES;
    s->rows = (unsigned char *)cuda_reserve(b, s->bytes);
    s->scale = (float *)cuda_reserve(b, s->scales * sizeof(float));
    if (!s->rows || !s->scale)
        return err_set(e, ERR_NOMEM, "products' rows: %zu of %zu values", max, widest);
    return ERR_OK;
}

enum err_code cuda_wide_init(struct cuda_backend *b, struct err *e)
{
    for (int l = 0; b->deployed && l < N_LANES; l++)
        for (int i = 0; i < OPS_BRANCHES; i++)
            if (reserve_rows(b, l, i, e))
                return e->code;
    return ERR_OK;
}

bool cuda_device_multiplies_fp8(uint32_t device)
{
    return cudaSetDevice((int)device) == cudaSuccess && gemm_runs_here();
}
