/* moe.c - feed-forward networks: the dense one, and the router with its experts.
 *
 * A block of rows becomes groups: each chosen expert with the rows that chose it, and the shared
 * expert with all. Two fork-joins do the whole block: gate, up and silu of all groups, cut by
 * output columns; then all downs, cut by columns of y, where each chunk has every expert's part of
 * its columns and adds them up. The sum of a row runs over its slots in the order of choice, then
 * the shared expert, whatever else is in the block; each weight is read once per block.
 */
#include "cpu/moe.h"

#include "cpu/fp8.h"

#include <math.h>
#include <string.h>

enum { MAX_ROWS = 512 };         /* of a block */
enum { BLOCK_BYTES = 64 << 20 }; /* of a block's inputs and middles; a block has fewer rows then */
enum { MID_COLUMNS = 64 };       /* of gate and up in a chunk */
enum { MID_ROWS = 192, TILE_ROWS = 48 }; /* rows of a chunk; rows between two uses of its buffers */
enum { SUM_COLUMNS = 32, MAX_COLUMNS = 128 }; /* of y in a chunk: for many pairs, for few */
enum { SUM_BYTES = 256 << 10 };          /* of a chunk's outputs, for them to stay in L2 */
enum { START_ROWS = 8, START_BYTES = 8 << 10 }; /* of a product's weights, fetched before it */
enum { ROUTE_ROWS = 16 };                       /* in a chunk of the router */

/* ---- router ---- */

static uint32_t best_of(const float *score, const bool *out, uint32_t n)
{
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if (!out[i] && (best == n || score[i] > score[best]))
            best = i;
    return best;
}

static float group_score(const struct model_config *c, const float *score, uint32_t n)
{
    float first = score[0], second = -INFINITY;
    for (uint32_t i = 1; i < n; i++) {
        if (score[i] > first) {
            second = first;
            first = score[i];
        } else if (score[i] > second) {
            second = score[i];
        }
    }
    return c->group_by_best_two && n > 1 ? first + second : first;
}

/* Leaves the experts of the best groups in; out[] of all others becomes true. */
static void keep_groups(const struct model_config *c, const float *score, bool *out)
{
    float of_group[CPU_MAX_EXPERTS];
    bool kept[CPU_MAX_EXPERTS] = {false};
    uint32_t size = c->n_experts / c->n_group;
    for (uint32_t g = 0; g < c->n_group; g++)
        of_group[g] = group_score(c, score + g * size, size);
    for (uint32_t i = 0; i < c->n_group_kept; i++)
        kept[best_of(of_group, kept, c->n_group)] = true;
    for (uint32_t e = 0; e < c->n_experts; e++)
        out[e] = !kept[e / size];
}

/* z: logits in, the scores that weigh out. */
static void score_experts(const struct model_config *c, float *z)
{
    if (c->sigmoid_router) {
        for (uint32_t e = 0; e < c->n_experts; e++)
            z[e] = 1.0f / (1.0f + expf(-z[e]));
        return;
    }
    float max = z[0], sum = 0.0f;
    for (uint32_t e = 1; e < c->n_experts; e++)
        max = z[e] > max ? z[e] : max;
    for (uint32_t e = 0; e < c->n_experts; e++)
        sum += z[e] = expf(z[e] - max);
    for (uint32_t e = 0; e < c->n_experts; e++)
        z[e] /= sum;
}

static void route_row(const struct model_config *c, const float *bias, float *z, uint32_t *chosen,
                      float *weight)
{
    float biased[CPU_MAX_EXPERTS], sum = 0.0f;
    bool out[CPU_MAX_EXPERTS] = {false};
    score_experts(c, z);
    for (uint32_t e = 0; e < c->n_experts; e++)
        biased[e] = bias ? z[e] + bias[e] : z[e];
    if (c->n_group > 1)
        keep_groups(c, biased, out);
    for (uint32_t i = 0; i < c->n_active; i++) {
        chosen[i] = best_of(biased, out, c->n_experts);
        out[chosen[i]] = true;
        weight[i] = z[chosen[i]];
        sum += weight[i];
    }
    for (uint32_t i = 0; i < c->n_active; i++)
        weight[i] = (c->norm_topk ? weight[i] / (sum + 1e-20f) : weight[i]) * c->routed_scale;
}

static void route_rows(const struct moe_job *j, uint32_t row0, uint32_t row1)
{
    const struct model_config *c = j->b->ops.cfg;
    const float *bias = c->router_bias ? j->w->router_bias : NULL;
    for (uint32_t i = row0; i < row1; i++)
        route_row(c, bias, j->s->router + (size_t)i * c->n_experts,
                  j->s->chosen + (size_t)i * c->n_active, j->s->weight + (size_t)i * c->n_active);
}

static void route_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct moe_job *j = arg;
    uint32_t row0 = chunk * ROUTE_ROWS, row1 = j->n - row0 < ROUTE_ROWS ? j->n : row0 + ROUTE_ROWS;
    struct block_product p = {.w = &j->w->router,
                              .n_out = j->w->router.n_out,
                              .x = j->x + (size_t)row0 * j->hidden,
                              .ldx = j->hidden,
                              .n = row1 - row0,
                              .y = j->s->router + (size_t)row0 * j->w->router.n_out,
                              .ldy = j->w->router.n_out};
    cpu_block_product(j->b->k, &p);
    route_rows(j, row0, row1);
}

/* Always fp32. Few rows split the router's columns, many are split themselves. */
void moe_route(struct moe_job *j, enum lane l)
{
    const struct matrix *r = &j->w->router;
    if (j->n <= ROUTE_ROWS) {
        struct product p = {.w = r,
                            .n_out = r->n_out,
                            .x = j->x,
                            .ldx = j->hidden,
                            .n = j->n,
                            .y = j->s->router,
                            .ldy = r->n_out,
                            .exact = true};
        cpu_product(j->b, l, &p);
        route_rows(j, 0, j->n);
        return;
    }
    double cost = 4 * cpu_product_cost_ns(r, r->n_out, j->n);
    cpu_run(j->b, l, (j->n + ROUTE_ROWS - 1) / ROUTE_ROWS, cost, route_chunk, j);
}

/* ---- groups ---- */

void moe_add_group(struct moe_job *j, const struct ffn_weights *w, uint32_t first, uint32_t n)
{
    struct group *g = &j->s->group[j->n_groups];
    *g =
        (struct group){.w = w,
                       .first = first,
                       .n = n,
                       .in_split = cpu_takes_split(j->b, &w->gate) && cpu_takes_split(j->b, &w->up),
                       .mid_split = cpu_takes_split(j->b, &w->down),
                       .in_round = cpu_rounds(j->b, &w->gate) && w->gate.dtype == w->up.dtype,
                       .mid_round = cpu_rounds(j->b, &w->down)};
    if (j->n_groups) {
        const struct group *last = g - 1;
        uint32_t width = last->w->gate.n_out;
        g->mid = last->mid + (size_t)last->n * width;
        g->chunk0 = last->chunk0 +
                    (width + MID_COLUMNS - 1) / MID_COLUMNS * ((last->n + MID_ROWS - 1) / MID_ROWS);
    }
    j->n_groups++;
    j->n_pairs = first + n;
    j->cost_ns += cpu_product_cost_ns(&w->gate, w->gate.n_out, n);
}

static uint32_t gate_chunks(const struct moe_job *j)
{
    const struct group *g = &j->s->group[j->n_groups - 1];
    return g->chunk0 +
           (g->w->gate.n_out + MID_COLUMNS - 1) / MID_COLUMNS * ((g->n + MID_ROWS - 1) / MID_ROWS);
}

/* Sorts the chosen slots by expert (rows ascending within one) and makes the groups. */
static void group_experts(struct moe_job *j)
{
    const struct model_config *c = j->b->ops.cfg;
    struct moe_scratch *s = j->s;
    uint32_t n_slots = j->n * c->n_active;
    memset(s->start, 0, (c->n_experts + 1) * sizeof *s->start);
    for (uint32_t i = 0; i < n_slots; i++)
        s->start[s->chosen[i] + 1]++;
    for (uint32_t e = 0; e < c->n_experts; e++) {
        if (s->start[e + 1])
            moe_add_group(j, &j->w->expert[e], s->start[e], s->start[e + 1]);
        s->start[e + 1] += s->start[e];
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        s->pair[i] = s->start[s->chosen[i]]++;
        s->row[s->pair[i]] = i / c->n_active;
    }
    j->shared = UINT32_MAX;
    if (c->n_shared) {
        j->shared = j->n_groups;
        for (uint32_t i = 0; i < j->n; i++)
            s->row[n_slots + i] = i;
        moe_add_group(j, &j->w->shared, n_slots, j->n);
    }
}

/* ---- inputs ---- */

static void *in_row(const struct moe_job *j, uint32_t pair)
{
    return j->s->in + (size_t)pair * j->hidden * sizeof(float);
}

static void gather_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct moe_job *j = arg;
    const struct group *g = &j->s->group[chunk];
    const struct kernels *k = j->b->k;
    const float *from = chunk == j->shared ? j->x : j->expert_x;
    for (uint32_t i = 0; i < g->n; i++) {
        const float *x = from + (size_t)j->s->row[g->first + i] * j->hidden;
        unsigned char *to = in_row(j, g->first);
        if (g->in_split) {
            uint16_t *hi = (uint16_t *)(void *)to + (size_t)i * 2 * j->hidden;
            k->split_bf16(x, hi, hi + j->hidden, j->hidden);
        } else if (g->in_round) {
            cpu_round_row(&g->w->gate, x, (float *)(void *)to + (size_t)i * j->hidden);
        } else {
            memcpy(to + (size_t)i * j->hidden * sizeof *x, x, j->hidden * sizeof *x);
        }
    }
}

/* Asks memory for where a product with W's rows from out0 on will begin: the kernels fetch within
 * their own rows alone. */
static void fetch_start(const struct matrix *w, uint32_t out0, uint32_t n_out)
{
    size_t row_bytes = w->n_in * dtype_bytes(w->dtype);
    size_t each = row_bytes < START_BYTES / START_ROWS ? row_bytes : START_BYTES / START_ROWS;
    const char *row = (const char *)w->data + out0 * row_bytes;
    for (uint32_t r = 0; r < START_ROWS && r < n_out; r++, row += row_bytes)
        for (size_t k = 0; k < each; k += 64)
            __builtin_prefetch(row + k, 0, 2);
}

/* ---- gate, up, silu ---- */

static const struct group *group_of(const struct moe_job *j, uint32_t chunk)
{
    uint32_t low = 0, high = j->n_groups;
    while (high - low > 1) {
        uint32_t mid = (low + high) / 2;
        if (j->s->group[mid].chunk0 <= chunk)
            low = mid;
        else
            high = mid;
    }
    return &j->s->group[low];
}

static void gate_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct moe_job *j = arg;
    const struct kernels *k = j->b->k;
    const struct group *g = group_of(j, chunk);
    uint32_t width = g->w->gate.n_out, n_columns = (width + MID_COLUMNS - 1) / MID_COLUMNS;
    uint32_t c0 = (chunk - g->chunk0) % n_columns * MID_COLUMNS;
    uint32_t r0 = (chunk - g->chunk0) / n_columns * MID_ROWS;
    uint32_t r1 = g->n - r0 < MID_ROWS ? g->n : r0 + MID_ROWS;
    uint32_t n_c = width - c0 < MID_COLUMNS ? width - c0 : MID_COLUMNS;
    float gate[TILE_ROWS * MID_COLUMNS], up[TILE_ROWS * MID_COLUMNS];

    for (uint32_t r = r0; r < r1; r += TILE_ROWS) {
        struct block_product p = {.w = &g->w->gate,
                                  .out0 = c0,
                                  .n_out = n_c,
                                  .split = g->in_split,
                                  .ldx = g->in_split ? 2 * (size_t)j->hidden : j->hidden,
                                  .n = r1 - r < TILE_ROWS ? r1 - r : TILE_ROWS,
                                  .y = gate,
                                  .ldy = MID_COLUMNS};
        p.x = (unsigned char *)in_row(j, g->first) + (size_t)r * j->hidden * sizeof(float);
        fetch_start(&g->w->up, c0, n_c);
        cpu_block_product(k, &p);
        p.w = &g->w->up;
        p.y = up;
        cpu_block_product(k, &p);
        for (uint32_t i = 0; i < p.n; i++) {
            float *gi = gate + i * MID_COLUMNS;
            size_t at = (size_t)(r + i) * width + c0;
            float *mid = (float *)(void *)j->s->mid + g->mid;
            if (g->mid_split) {
                k->silu_mul(gi, up + i * MID_COLUMNS, gi, n_c);
                uint16_t *hi = (uint16_t *)(void *)mid + (size_t)(r + i) * 2 * width + c0;
                k->split_bf16(gi, hi, hi + width, n_c);
            } else {
                k->silu_mul(gi, up + i * MID_COLUMNS, mid + at, n_c);
            }
        }
    }
}

/* Scales are those of 128 columns of a row, which chunks of gate and up may share. */
static void round_mid_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct moe_job *j = arg;
    const struct group *g = &j->s->group[chunk];
    float *mid = (float *)(void *)j->s->mid + g->mid;
    for (uint32_t i = 0; g->mid_round && i < g->n; i++) {
        float *row = mid + (size_t)i * g->w->down.n_in;
        cpu_round_row(&g->w->down, row, row);
    }
}

/* ---- down, and the sum of a row's experts ---- */

static void down_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct moe_job *j = arg;
    const struct kernels *k = j->b->k;
    const struct moe_scratch *s = j->s;
    uint32_t c0 = chunk * j->columns,
             n_c = j->hidden - c0 < j->columns ? j->hidden - c0 : j->columns;
    float *out = j->w && !j->pair_value ? s->out[worker] : NULL;
    for (uint32_t i = 0; i < j->n_groups; i++) {
        const struct group *g = &s->group[i];
        struct block_product p = {.w = &g->w->down,
                                  .out0 = c0,
                                  .n_out = n_c,
                                  .split = g->mid_split,
                                  .x = (float *)(void *)s->mid + g->mid,
                                  .ldx = (g->mid_split ? 2 : 1) * (size_t)g->w->down.n_in,
                                  .n = g->n,
                                  .ldy = out ? j->columns : j->hidden,
                                  .add = !j->w && j->add};
        if (out)
            p.y = out + (size_t)g->first * j->columns;
        else
            p.y = j->w ? j->pair_value + (size_t)g->first * j->hidden + c0 : j->y + c0;
        if (i + 1 < j->n_groups)
            fetch_start(&g[1].w->down, c0, n_c);
        cpu_block_product(k, &p);
    }
    if (!out)
        return;
    for (uint32_t i = 0; i < j->n; i++) {
        float sum[MAX_COLUMNS] = {0};
        for (uint32_t a = 0; a < j->n_active; a++) {
            size_t slot = (size_t)i * j->n_active + a;
            k->axpy_f32(s->weight[slot], out + (size_t)s->pair[slot] * j->columns, sum, n_c);
        }
        if (j->shared != UINT32_MAX)
            k->axpy_f32(1.0f, out + (size_t)(s->group[j->shared].first + i) * j->columns, sum, n_c);
        float *y = j->y + (size_t)i * j->hidden + c0;
        if (j->add)
            k->axpy_f32(1.0f, sum, y, n_c);
        else
            memcpy(y, sum, n_c * sizeof *y);
    }
}

/* Long stretches of each expert's weights where the threads and the place for outputs allow them:
 * what a core reads ahead by itself beyond a short one is another thread's. */
static uint32_t down_columns(const struct moe_job *j)
{
    size_t pair_bytes = (size_t)j->n_pairs * sizeof(float);
    if (pair_bytes * SUM_COLUMNS > SUM_BYTES)
        return SUM_COLUMNS / 2;
    uint32_t columns = j->hidden / (CPU_CHUNKS_PER_THREAD * pool_n_threads(j->b->pool));
    size_t fit = j->n_pairs ? j->s->out_elements / j->n_pairs : 0;
    columns = columns < MAX_COLUMNS ? columns : MAX_COLUMNS;
    columns = columns < fit ? columns : (uint32_t)fit;
    return columns > SUM_COLUMNS ? columns / SUM_COLUMNS * SUM_COLUMNS : SUM_COLUMNS;
}

void moe_run(struct moe_job *j, enum lane l)
{
    j->columns = down_columns(j);
    cpu_run(j->b, l, j->n_groups, (double)j->n_pairs * j->hidden / 8.0, gather_chunk, j);
    cpu_run(j->b, l, gate_chunks(j), 2 * j->cost_ns, gate_chunk, j);
    if (j->b->ops.limits.precision == PRECISION_FP8)
        cpu_run(j->b, l, j->n_groups, (double)j->n_pairs * j->s->group[0].w->down.n_in,
                round_mid_chunk, j);
    cpu_run(j->b, l, (j->hidden + j->columns - 1) / j->columns, j->cost_ns, down_chunk, j);
}

/* ---- what the routed experts read ---- */

struct round_job {
    const float *x;
    float *to;
    uint32_t dim;
};

static void round_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    enum { GROUP = 128 };
    const struct round_job *j = arg;
    const float *x = j->x + (size_t)chunk * j->dim;
    float *to = j->to + (size_t)chunk * j->dim;
    for (uint32_t i = 0; i < j->dim; i += GROUP) {
        uint8_t code[GROUP];
        uint32_t n = j->dim - i < GROUP ? j->dim - i : (uint32_t)GROUP;
        float scale = e4m3_quantise(x + i, n, code);
        for (uint32_t k = 0; k < n; k++)
            to[i + k] = e4m3_table[code[k]] * scale;
    }
}

static const float *expert_rows(const struct moe_job *j, enum lane l)
{
    if (j->b->ops.limits.expert == EXPERT_F32)
        return j->x;
    struct round_job r = {j->x, j->s->rounded, j->hidden};
    cpu_run(j->b, l, j->n, (double)j->n * j->hidden, round_chunk, &r);
    return j->s->rounded;
}

void moe_count(struct cpu_backend *b, uint32_t layer, const uint32_t *chosen, uint32_t n)
{
    _Atomic uint64_t *rows = b->expert_rows + (size_t)layer * b->ops.cfg->n_experts;
    for (uint32_t i = 0; i < n * b->ops.cfg->n_active; i++)
        atomic_fetch_add_explicit(&rows[chosen[i]], 1, memory_order_relaxed);
}

static void op_expert_rows(struct ops *o, uint64_t *rows)
{
    struct cpu_backend *b = cpu_of(o);
    size_t n = (size_t)o->cfg->n_layers * o->cfg->n_experts;
    for (size_t i = 0; i < n; i++)
        rows[i] = atomic_load_explicit(&b->expert_rows[i], memory_order_relaxed);
}

/* ---- the ops ---- */

void moe_network(struct cpu_backend *b, enum lane l, const struct ffn_weights *w, const float *x,
                 uint32_t n, float *y, bool add)
{
    struct moe_scratch *s = b->lane[l].moe_scratch;
    uint32_t hidden = b->ops.cfg->hidden_size;
    for (uint32_t i = 0; i < n; i += s->max_rows) {
        struct moe_job j = {.b = b,
                            .s = s,
                            .x = x + (size_t)i * hidden,
                            .expert_x = x + (size_t)i * hidden,
                            .y = y + (size_t)i * hidden,
                            .add = add,
                            .shared = UINT32_MAX,
                            .hidden = hidden,
                            .n = n - i < s->max_rows ? n - i : s->max_rows};
        for (uint32_t r = 0; r < j.n; r++)
            s->row[r] = r;
        moe_add_group(&j, w, 0, j.n);
        moe_run(&j, l);
    }
}

static void op_ffn(struct ops *o, enum lane l, const struct ffn_weights *w, const act *x,
                   uint32_t n, act *y, bool add)
{
    moe_network(cpu_of(o), l, w, x, n, y, add);
}

static void op_moe(struct ops *o, enum lane l, uint32_t layer, const struct layer_weights *w,
                   const act *x, uint32_t n, act *y, bool add)
{
    struct cpu_backend *b = cpu_of(o);
    struct moe_scratch *s = b->lane[l].moe_scratch;
    uint32_t hidden = o->cfg->hidden_size;
    if (o->limits.peers && o->limits.peers->all[l]) {
        assert(add);
        cpu_spread(b, l, layer, w, x, n, y);
        return;
    }
    for (uint32_t i = 0; i < n; i += s->max_rows) {
        struct moe_job j = {.b = b,
                            .s = s,
                            .w = w,
                            .x = (const float *)x + (size_t)i * hidden,
                            .y = (float *)y + (size_t)i * hidden,
                            .add = add,
                            .hidden = hidden,
                            .n = n - i < s->max_rows ? n - i : s->max_rows,
                            .n_active = o->cfg->n_active};
        moe_route(&j, l);
        moe_count(b, layer, s->chosen, j.n);
        j.expert_x = expert_rows(&j, l);
        group_experts(&j);
        moe_run(&j, l);
    }
}

static size_t mid_elements(const struct model_config *c)
{
    size_t moe = c->n_experts ? (size_t)c->n_active * c->expert_width + model_shared_width(c) : 0;
    return moe > c->dense_width ? moe : c->dense_width;
}

static enum err_code reserve_lane(struct cpu_backend *b, enum lane l, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    size_t slots = c->n_experts ? c->n_active : 0, pairs = slots + 1;
    size_t row_bytes = sizeof(float) * (pairs * c->hidden_size + mid_elements(c));
    size_t rows = b->ops.limits.max_rows[l], fit = BLOCK_BYTES / row_bytes;
    rows = rows < MAX_ROWS ? rows : MAX_ROWS;
    rows = fit < 1 ? 1 : rows < fit ? rows : fit;

    struct moe_scratch *s = cpu_reserve(b, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "feed-forward workspace");
    uint32_t n_workers = pool_n_workers(b->pool);
    s->max_rows = (uint32_t)rows;
    s->router = cpu_reserve(b, rows * c->n_experts * sizeof *s->router);
    s->chosen = cpu_reserve(b, rows * slots * sizeof *s->chosen);
    s->weight = cpu_reserve(b, rows * slots * sizeof *s->weight);
    s->pair = cpu_reserve(b, rows * slots * sizeof *s->pair);
    s->row = cpu_reserve(b, rows * pairs * sizeof *s->row);
    s->start = cpu_reserve(b, (c->n_experts + 1) * sizeof *s->start);
    s->group = cpu_reserve(b, (c->n_experts + 1) * sizeof *s->group);
    s->in = cpu_reserve(b, rows * pairs * c->hidden_size * sizeof(float));
    s->mid = cpu_reserve(b, rows * mid_elements(c) * sizeof(float));
    s->out = cpu_reserve(b, n_workers * sizeof *s->out);
    s->out_elements = pairs * (rows * SUM_COLUMNS > MAX_COLUMNS ? rows * SUM_COLUMNS : MAX_COLUMNS);
    bool rounds = slots && b->ops.limits.expert != EXPERT_F32;
    s->rounded = rounds ? cpu_reserve(b, rows * c->hidden_size * sizeof(float)) : NULL;
    bool whole = (s->rounded || !rounds) && s->router && s->chosen && s->weight && s->pair &&
                 s->row && s->start && s->group && s->in && s->mid && s->out;
    for (uint32_t i = 0; whole && slots && i < n_workers; i++) {
        /* a pool thread's buffer serves both lanes, one after the other */
        if (l > 0 && i + 1 < pool_n_threads(b->pool)) {
            const struct moe_scratch *first = b->lane[0].moe_scratch;
            if (first->max_rows >= s->max_rows) {
                s->out[i] = first->out[i];
                continue;
            }
        }
        s->out[i] = cpu_reserve(b, s->out_elements * sizeof(float));
        whole = s->out[i] != NULL;
    }
    if (!whole)
        return err_set(e, ERR_NOMEM, "feed-forward workspace of %zu rows", rows);
    b->lane[l].moe_scratch = s;
    return ERR_OK;
}

enum err_code moe_reserve(struct cpu_backend *b, struct moe_scratch **out, uint32_t n_held,
                          size_t n_pairs, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    struct moe_scratch *s = cpu_reserve(b, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "experts' workspace");
    s->max_rows = (uint32_t)n_pairs;
    s->row = cpu_reserve(b, n_pairs * sizeof *s->row);
    s->start = cpu_reserve(b, (n_held + (size_t)1) * sizeof *s->start);
    s->group = cpu_reserve(b, (n_held + (size_t)1) * sizeof *s->group);
    s->in = cpu_reserve(b, n_pairs * c->hidden_size * sizeof(float));
    s->mid = cpu_reserve(b, n_pairs * c->expert_width * sizeof(float));
    if (!s->row || !s->start || !s->group || !s->in || !s->mid)
        return err_set(e, ERR_NOMEM, "experts' workspace of %zu pairs", n_pairs);
    *out = s;
    return ERR_OK;
}

enum err_code cpu_moe_init(struct cpu_backend *b, struct err *e)
{
    b->ops.ffn = op_ffn;
    b->ops.moe = op_moe;
    b->ops.expert_rows = op_expert_rows;
    b->expert_rows = cpu_reserve(b, (size_t)b->ops.cfg->n_layers * b->ops.cfg->n_experts *
                                        sizeof *b->expert_rows);
    if (!b->expert_rows)
        return err_set(e, ERR_NOMEM, "counts of experts' rows");
    for (int l = 0; l < N_LANES; l++)
        if (reserve_lane(b, (enum lane)l, e))
            return e->code;
    return b->ops.limits.peers && b->ops.limits.peers->all[0] ? cpu_spread_init(b, e) : ERR_OK;
}
