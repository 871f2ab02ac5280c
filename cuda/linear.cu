/* linear.cu - y[n, n_out] = or += x[n, n_in] W^T, for one matrix or a group of them.
 *
 * Four kernels, chosen by W's type and width and the precision alone, so a row's bits never depend
 * on n:
 * - stream (linear_stream.cu): bf16 or e4m3 weights in the fast precision.
 * - odd (linear_odd.cu): such weights of widths that 16-byte copies do not divide.
 * - thin (linear_fp32.cu): fp32 arithmetic for the router.
 * - plain (there, too): fp32 arithmetic for everything else.
 * In PRECISION_FP8 on a GPU that has them, the products of wide.cu come before all of these.
 *
 * Here rows are cut into as many as the workspace takes at once, brought into the form that the
 * kernel wants (linear_rows.cu), and the workspace of each lane is reserved.
 */
#include "cuda/linear.cuh"

enum { LEAST_FORM = 1 << 20, MOST_TILES = 32768 /* of rows, in a grid */ };

static void launch(struct cuda_backend *b, struct cuda_lane *lane, struct product_args &a,
                   enum dtype t, bool exact, uint32_t rows, uint32_t likely, uint32_t groups)
{
    bool fp8 = t == DT_F8_E4M3, tensor = b->fast && !exact && (t == DT_BF16 || fp8);
    cudaStream_t s = lane->stream;
    a.sums = lane->linear->part;
    a.arrived = lane->linear->arrived;
    assert(rows <= MOST_TILES * (tensor ? 64 : 32));
    if (tensor && cuda_takes_split(b, t, a.n_in))
        linear_stream(s, &a, fp8, rows, likely, groups);
    else if (tensor)
        linear_odd(s, &a, fp8, rows, groups);
    else if (exact)
        linear_thin(s, &a, t == DT_BF16 && a.n_in % 4 == 0, rows);
    else
        linear_plain(s, &a, rows, groups);
    cuda_launched(lane, "linear");
}

void cuda_product(struct cuda_backend *b, struct cuda_lane *lane, const struct product *p)
{
    uint32_t n_in = p->w->n_in, n_out = p->w->n_out, n = p->n, at_once = p->n;
    if (!p->exact && !p->factor && !p->rounded && cuda_takes_wide(b, p->w)) {
        cuda_wide_product(b, lane, p);
        linear_rows_written(lane, p->y, (size_t)n * n_out);
        return;
    }
    cuda_meet_early(lane);
    bool split = !p->exact && cuda_takes_split(b, p->w->dtype, n_in);
    bool round = !p->exact && !split && !p->rounded && cuda_rounds(b, p->w->dtype);
    if ((split && !p->factor) || round) {
        size_t fit = lane->linear->form_values / n_in;
        at_once = fit < SPLIT_FORM_ROWS ? (uint32_t)fit : (uint32_t)SPLIT_FORM_ROWS;
    }
    if (split && at_once > SPLIT_ROWS && parts_of(n_out, OUTS) <= MAX_SPLIT_TILES)
        at_once = SPLIT_ROWS;
    for (uint32_t i = 0; i < n; i += at_once) {
        uint32_t k = n - i < at_once ? n - i : at_once;
        struct product_args a = {};
        a.one = *p->w;
        a.x = (const float *)p->x + (size_t)i * n_in;
        a.factor = p->factor ? p->factor + i : NULL;
        if (split && !p->factor) {
            struct split_rows rows = cuda_split(b, lane, p->w->dtype, a.x, k, n_in);
            a.x = rows.x;
            a.factor = rows.factor;
        } else if (round) {
            a.x = cuda_plain_rows(b, lane, p->w->dtype, (const float *)a.x, k, n_in);
        }
        a.y = (float *)p->y + (size_t)i * n_out;
        a.n = k;
        a.n_out = n_out;
        a.n_in = n_in;
        a.add = p->add;
        launch(b, lane, a, p->w->dtype, p->exact, k, k, 1);
    }
    linear_rows_written(lane, p->y, (size_t)n * n_out);
}

void cuda_grouped_product(struct cuda_backend *b, struct cuda_lane *lane,
                          const struct grouped_product *p)
{
    struct product_args a = {};
    a.group = p->w;
    a.w_step = p->w_step;
    a.start = p->start;
    a.row = p->row;
    a.x = p->x;
    a.factor = p->factor;
    a.y = p->y;
    a.second = p->second;
    a.n_out = p->n_out;
    a.n_in = p->n_in;
    a.n_splits = 1;
    if (a.second && !cuda_takes_split(b, p->dtype, p->n_in)) { /* those have one matrix a launch */
        a.second = NULL;
        launch(b, lane, a, p->dtype, false, p->max_group, p->likely_group, p->n_groups);
        a.group = p->w + 1;
        a.y = p->second;
    }
    launch(b, lane, a, p->dtype, false, p->max_group, p->likely_group, p->n_groups);
}

void cuda_part_product(struct cuda_backend *b, struct cuda_lane *lane, const struct part_product *p)
{
    struct product_args a = {};
    a.one = *p->w;
    a.part_outs = p->part_outs;
    a.part_first = p->part_first;
    a.x_pieces = p->n_parts;
    a.y_row = p->n_parts * p->n_out;
    a.x = p->x;
    a.factor = p->factor;
    a.y = p->y;
    a.n = p->n;
    a.n_out = p->n_out;
    a.n_in = p->w->n_in;
    assert(cuda_takes_split(b, p->w->dtype, a.n_in));
    assert(!p->w->scale || (p->part_outs % BLOCK_K == 0 && p->part_first % BLOCK_K == 0));
    launch(b, lane, a, p->w->dtype, false, p->n, p->n, p->n_parts);
}

static void op_linear(struct ops *o, enum lane l, const struct matrix *w, const act *x, uint32_t n,
                      act *y, bool add)
{
    struct product p = {w, x, n, y, add, false, NULL, false};
    assert(n <= o->limits.max_rows[l]);
    cuda_product(cuda_of(o), &cuda_of(o)->lane[l], &p);
}

static enum err_code reserve_linear(struct cuda_backend *b, int l, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    struct linear_scratch *x = (struct linear_scratch *)cuda_reserve_host(b, sizeof *x);
    if (!x)
        return err_set(e, ERR_NOMEM, "products' workspace");
    b->lane[l].linear = x;
    uint32_t max = b->ops.limits.max_rows[l], rows = max < 32 ? 32 : 64 * parts_of(max, 64);
    rows = rows < SPLIT_ROWS ? rows : (uint32_t)SPLIT_ROWS;
    x->part = (float4 *)cuda_reserve(b, sizeof(float) * FILL_BLOCKS * OUTS * rows);
    x->arrived =
        (uint32_t *)cuda_reserve(b, sizeof(uint32_t) * MAX_SPLIT_TILES * parts_of(SPLIT_ROWS, 64));
    size_t widest = c->hidden_size, values = (size_t)c->n_heads * c->v_dim;
    widest = values > widest ? values : widest;
    widest = c->q_lora_rank > widest ? c->q_lora_rank : widest;
    uint32_t most = cuda_most_rows(b, l);
    x->form_values = widest * (most < SPLIT_FORM_ROWS ? most : SPLIT_FORM_ROWS);
    if (x->form_values < LEAST_FORM)
        x->form_values = LEAST_FORM;
    if (b->fast) {
        x->form = (uint4 *)cuda_reserve(b, x->form_values * 4);
        x->factor = (float *)cuda_reserve(b, SPLIT_FORM_ROWS * sizeof(float));
    }
    if (!x->part || !x->arrived || (b->fast && (!x->form || !x->factor)))
        return err_set(e, ERR_NOMEM, "products' workspace of %u rows", max);
    return ERR_OK;
}

enum err_code cuda_linear_init(struct cuda_backend *b, struct err *e)
{
    b->ops.linear = op_linear;
    if (reserve_linear(b, LANE_PREFILL, e) || reserve_linear(b, LANE_DECODE, e))
        return e->code;
    if (b->dry)
        return ERR_OK;
    cudaError_t code = linear_stream_init();
    return code == cudaSuccess
               ? ERR_OK
               : err_set(e, ERR_CUDA, "products: %s", cudaGetErrorString(code));
}
