/* attend.c - attention of a step's rows over their cached latents; see attend in ops.h.
 *
 * Both forms stream over tiles of 64 positions with a running softmax, so what a row computes
 * depends on where it stands and what it sees, never on who shares the call.
 *
 * - expanded: keys and values of EXPAND_BLOCK positions are made once for all rows that see them.
 * - absorbed (attend_absorbed.c): queries go to latent space; all heads of a row, and neighbours
 *   that see everything, share the latents they read. Every SPLIT positions a partial result is
 *   closed and merged into the total, in order, whether or not another thread made it.
 */
#include "cpu/attend.h"

#include "cpu/fp8.h"

#include <math.h>

static bool is_expanded(const struct attend_job *j, uint32_t row)
{
    const struct step_seq *s = &j->lane->step->seq[j->lane->row_seq[row]];
    uint32_t pos = j->lane->row_pos[row];
    bool sees_all = !j->sel || pos < s->top_k; /* pos + 1 <= top_k */
    return sees_all && pos < s->expand_below;
}

/* ---- expanded ---- */

static void load_latents(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    size_t width = c->kv_lora_rank + c->rope_dim;
    uint32_t i = chunk * TILE, end = i + TILE < j->n_pos ? i + TILE : j->n_pos;
    (void)worker;
    for (; i < end; i++)
        kv_load(j->b, j->layer, j->seq, j->pos0 + i, j->x->latent + i * width);
}

/* One head, up to EXPAND_ROWS rows, the positions [pos0, pos0 + n_pos). */
static void expanded_rows(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    struct attend_worker *w = &j->x->worker[worker];
    const uint32_t *pos = j->lane->row_pos;
    uint32_t h = chunk % j->n_heads, row0 = j->row0 + chunk / j->n_heads * EXPAND_ROWS;
    uint32_t row1 = row0 + EXPAND_ROWS < j->row1 ? row0 + EXPAND_ROWS : j->row1;
    size_t qk = model_qk_dim(c), ldq = c->n_heads * qk, ldo = (size_t)c->n_heads * c->v_dim;
    size_t lat = c->kv_lora_rank + c->rope_dim, head = c->nope_dim + c->v_dim;
    size_t ldx = j->n_heads * head;
    const float *q = j->q + (j->head0 + h) * qk, *kv = j->x->expanded + h * head;
    float *out = j->out + (j->head0 + h) * (size_t)c->v_dim;
    float *max = j->x->max + j->head0 + h, *sum = j->x->sum + j->head0 + h;

    if (j->pos0 == 0)
        for (uint32_t r = row0; r < row1; r++) {
            memset(out + r * ldo, 0, sizeof(float) * c->v_dim);
            max[(size_t)r * c->n_heads] = -INFINITY;
            sum[(size_t)r * c->n_heads] = 0.0f;
        }
    for (uint32_t t = 0; t < j->n_pos; t += TILE) {
        uint32_t p = j->pos0 + t, n_tile = j->n_pos - t < TILE ? j->n_pos - t : TILE, r0 = row0;
        while (r0 < row1 && pos[r0] < p)
            r0++;
        if (r0 == row1)
            break;
        j->loops->transpose(kv + t * ldx, ldx, n_tile, c->nope_dim, w->kt);
        j->loops->transpose(j->x->latent + t * lat + c->kv_lora_rank, lat, n_tile, c->rope_dim,
                            w->kt + (size_t)c->nope_dim * TILE);
        j->loops->scores(q + r0 * ldq, ldq, row1 - r0, (uint32_t)qk, w->kt, w->s);
        for (uint32_t r = r0; r < row1; r++) {
            uint32_t n = pos[r] - p + 1 < n_tile ? pos[r] - p + 1 : n_tile;
            size_t at = (size_t)r * c->n_heads;
            w->n[r - r0] = n;
            j->loops->softmax(w->s + (size_t)(r - r0) * TILE, n, c->softmax_scale, &max[at],
                              &sum[at], &w->shrink[r - r0]);
        }
        j->loops->values(w->s, TILE, w->n, row1 - r0, kv + t * ldx + c->nope_dim, ldx, c->v_dim,
                         w->shrink, out + r0 * ldo, ldo);
    }
    for (uint32_t r = row0; r < row1; r++) /* this was the last block of some rows */
        if (pos[r] >= j->pos0 && pos[r] < j->pos0 + j->n_pos)
            for (uint32_t d = 0; d < c->v_dim; d++)
                out[r * ldo + d] /= sum[(size_t)r * c->n_heads];
}

/* Keys and values of the block, for some heads; the product's input buffer holds a step's rows. */
static void expand_heads(const struct attend_job *j, enum lane l)
{
    const struct model_config *c = j->b->ops.cfg;
    uint32_t head = c->nope_dim + c->v_dim, step = j->b->ops.limits.max_rows[l];
    size_t width = c->kv_lora_rank + c->rope_dim, ldy = (size_t)j->n_heads * head;
    for (uint32_t i = 0; i < j->n_pos; i += step) {
        struct product p = {.w = j->kv_b,
                            .out0 = j->head0 * head,
                            .n_out = j->n_heads * head,
                            .x = j->x->latent + i * width,
                            .ldx = width,
                            .n = j->n_pos - i < step ? j->n_pos - i : step,
                            .y = j->x->expanded + i * ldy,
                            .ldy = ldy,
                            .unrounded = true};
        cpu_product(j->b, l, &p);
    }
}

static void attend_expanded(struct attend_job *j, enum lane l, const struct step_seq *s)
{
    const struct model_config *c = j->b->ops.cfg;
    uint32_t end = s->row0; /* expanded rows are a sequence's first ones */
    while (end < s->row0 + s->n_rows && is_expanded(j, end))
        end++;
    if (end == s->row0)
        return;
    uint32_t n_seen = j->lane->row_pos[end - 1] + 1;
    j->seq = s;
    for (uint32_t p = 0; p < n_seen; p += EXPAND_BLOCK) {
        j->pos0 = p;
        j->n_pos = n_seen - p < EXPAND_BLOCK ? n_seen - p : EXPAND_BLOCK;
        j->row0 = p > s->pos0 ? s->row0 + (p - s->pos0) : s->row0;
        j->row1 = end;
        uint32_t n_blocks = (j->row1 - j->row0 + EXPAND_ROWS - 1) / EXPAND_ROWS;
        pool_run(j->b->pool, l, (j->n_pos + TILE - 1) / TILE, load_latents, j);
        for (j->head0 = 0; j->head0 < c->n_heads; j->head0 += j->x->expand_heads) {
            j->n_heads = c->n_heads - j->head0 < j->x->expand_heads ? c->n_heads - j->head0
                                                                    : j->x->expand_heads;
            expand_heads(j, l);
            pool_run(j->b->pool, l, n_blocks * j->n_heads, expanded_rows, j);
        }
    }
}

/* ---- the op ---- */

static void op_attend(struct ops *o, enum lane l, uint32_t layer, const struct matrix *kv_b,
                      const act *q, const int32_t *sel, act *out)
{
    struct cpu_backend *b = cpu_of(o);
    struct cpu_lane *lane = &b->lane[l];
    struct attend_job j = {.b = b,
                           .lane = lane,
                           .x = lane->attend_scratch,
                           .layer = layer,
                           .loops = dsa_loops_for(b->k->name),
                           .kv_b = kv_b,
                           .q = q,
                           .sel = sel,
                           .out = out};
    assert(kv_b->n_in == o->cfg->kv_lora_rank &&
           kv_b->n_out == o->cfg->n_heads * (o->cfg->nope_dim + o->cfg->v_dim));
    for (uint32_t i = 0; i < lane->step->n_seqs; i++)
        attend_expanded(&j, l, &lane->step->seq[i]);
    for (uint32_t row = 0; row < lane->step->n_rows;) {
        uint32_t end = row;
        while (end < lane->step->n_rows && !is_expanded(&j, end))
            end++;
        if (end > row)
            attend_absorbed(&j, l, row, end);
        row = end + 1;
    }
}

static struct attend_worker *reserve_workers(struct cpu_backend *b)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = pool_n_workers(b->pool);
    uint32_t heads = c->n_heads < ABSORB_HEADS ? c->n_heads : ABSORB_HEADS;
    size_t lat = c->kv_lora_rank + c->rope_dim, qk = model_qk_dim(c), rows = ABSORB_ROWS * heads;
    rows = rows > EXPAND_ROWS ? rows : EXPAND_ROWS;
    struct attend_worker *w = cpu_reserve(b, n * sizeof *w);
    for (uint32_t i = 0; w && i < n; i++) {
        w[i].kt = cpu_reserve(b, sizeof(float) * TILE * (lat > qk ? lat : qk));
        w[i].s = cpu_reserve(b, sizeof(float) * TILE * rows);
        w[i].n = cpu_reserve(b, sizeof(uint32_t) * rows);
        w[i].shrink = cpu_reserve(b, sizeof(float) * rows);
        w[i].latent = cpu_reserve(b, sizeof(float) * TILE * lat);
        w[i].w_uk = cpu_reserve(b, sizeof(float) * c->nope_dim * c->kv_lora_rank);
        w[i].q = cpu_reserve(b, sizeof(float) * rows * lat);
        w[i].z = cpu_reserve(b, sizeof(float) * rows * c->kv_lora_rank);
        w[i].z_part = cpu_reserve(b, sizeof(float) * rows * c->kv_lora_rank);
        w[i].state = cpu_reserve(b, sizeof(float) * 4 * rows);
        if (!w[i].kt || !w[i].s || !w[i].n || !w[i].shrink || !w[i].latent || !w[i].w_uk ||
            !w[i].q || !w[i].z || !w[i].z_part || !w[i].state)
            return NULL;
    }
    return w;
}

static bool reserve_long_row(struct cpu_backend *b, struct attend_scratch *x)
{
    const struct model_config *c = b->ops.cfg;
    size_t n = (size_t)(b->ops.limits.max_context + SPLIT - 1) / SPLIT * c->n_heads;
    x->long_q = cpu_reserve(b, sizeof(float) * c->n_heads * (c->kv_lora_rank + c->rope_dim));
    x->long_z = cpu_reserve(b, sizeof(float) * n * c->kv_lora_rank);
    x->long_max = cpu_reserve(b, sizeof(float) * n);
    x->long_sum = cpu_reserve(b, sizeof(float) * n);
    return x->long_q && x->long_z && x->long_max && x->long_sum;
}

enum err_code cpu_attend_init(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    size_t head = sizeof(float) * EXPAND_BLOCK * (c->nope_dim + c->v_dim);
    struct attend_worker *w = reserve_workers(b);
    if (!w)
        return err_set(e, ERR_NOMEM, "attention scratch of %u workers", pool_n_workers(b->pool));
    for (int l = 0; l < N_LANES; l++) {
        size_t rows = b->ops.limits.max_rows[l];
        struct attend_scratch *x = cpu_reserve(b, sizeof *x);
        if (!x)
            return err_set(e, ERR_NOMEM, "attention scratch of lane %d", l);
        uint32_t fit = head < EXPAND_BYTES ? (uint32_t)(EXPAND_BYTES / head) : 1;
        x->worker = w;
        x->expand_heads = fit < c->n_heads ? fit : c->n_heads;
        x->latent = cpu_reserve(b, sizeof(float) * EXPAND_BLOCK * (c->kv_lora_rank + c->rope_dim));
        x->expanded = cpu_reserve(b, head * x->expand_heads);
        x->max = cpu_reserve(b, sizeof(float) * rows * c->n_heads);
        x->sum = cpu_reserve(b, sizeof(float) * rows * c->n_heads);
        if (!x->latent || !x->expanded || !x->max || !x->sum)
            return err_set(e, ERR_NOMEM, "attention scratch of %zu rows", rows);
        if (l == LANE_DECODE && pool_n_threads(b->pool) > 1 && !reserve_long_row(b, x))
            return err_set(e, ERR_NOMEM, "attention scratch of a long row");
        b->lane[l].attend_scratch = x;
    }
    b->ops.attend = op_attend;
    return ERR_OK;
}
