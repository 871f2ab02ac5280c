/* spread.c - experts on other ranks: rows go to them, each expert's values come back.
 *
 * A block: each rank has its share of its group's rows. It chooses their experts and sends each row
 * once to every rank that has one of them, with the pairs (row, expert) that it wants there; the
 * ranks compute what came, an expert's rows from all ranks at once, and send each pair's values
 * back; the row's own rank sums them in the order of choice. A product's bits do not depend on what
 * else is computed with it, so the sum is the one that a single rank makes, whatever ep is.
 *
 * A message to a rank: its rows (fp32, or e4m3 codes and then scales), then its pairs. Sizes are
 * exchanged first. Where an expert's width is cut over several ranks each gets the row and gives
 * its part of the values, which are summed in the ranks' order first.
 *
 * In a group of several ranks the shared expert is cut over them: its parts are summed over the
 * ranks, each for its own rows, the experts' sum comes first as everywhere, and all rows go to all
 * ranks. No bit depends on which rank a row was on.
 */
#include "cpu/fp8.h"
#include "cpu/moe.h"

#include <string.h>

enum { BLOCK_ROWS = 256, GROUP = 128 };
enum { COST_PER_VALUE = 4 };

struct pair {
    uint32_t row, expert; /* of the message's rows; of the receiver's experts */
};
struct message_size {
    uint32_t rows, pairs;
};

struct spread_scratch {
    uint32_t max_rows;     /* own rows of a block */
    size_t row_bytes;      /* of a row on its way */
    struct moe_scratch *s; /* for what came */
    /* own rows: */
    uint32_t *part;                 /* [rows, n_active] where each slot's expert is */
    struct pair *slot;              /* [rows, n_active] pair of each slot, in its part's message */
    uint32_t *slot_at;              /* [rows, n_active] its number in that message */
    struct message_size *to, *from; /* [ranks] */
    unsigned char *send, *recv;
    float *value, *back; /* [pairs, hidden] that others asked for; that came back */
    float *in;           /* [rows, hidden] what came, as fp32 */
    uint32_t *order;     /* [pairs] where a pair that came stands in the experts' order */
    /* In a group of several: [all own rows, hidden] sums of them; the same of all ranks' rows. */
    float *own, *whole;
    float *shared; /* [a block's rows, or all own rows, hidden] */
};

struct spread {
    struct cpu_backend *b;
    struct spread_scratch *s;
    enum lane l;
    struct comm *comm;
    const struct rank_share *share;
    const struct layer_weights *w;
    uint32_t layer, n, n_active, hidden, n_ranks, n_width;
    const float *x;
    float *y;
    const float *shared;
    bool add;
    uint32_t rows_in, pairs_in;
    size_t at_to[PARALLEL_MAX_RANKS], bytes_to[PARALLEL_MAX_RANKS];
    size_t at_from[PARALLEL_MAX_RANKS], bytes_from[PARALLEL_MAX_RANKS];
};

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- sending ---- */

/* Chooses the part of each slot, and counts what each rank gets. All ranks of a part get the same.
 */
static void address(struct spread *p, const uint32_t *chosen)
{
    struct spread_scratch *s = p->s;
    const struct parallel *plan = p->share->plan;
    memset(s->to, 0, p->n_ranks * sizeof *s->to);
    for (uint32_t i = 0; i < p->n; i++) {
        uint64_t met = 0; /* parts that this row goes to */
        for (uint32_t a = 0; a < p->n_active; a++) {
            uint32_t k = i * p->n_active + a, n_places;
            const uint32_t *place = parallel_places(plan, p->layer, chosen[k], &n_places);
            uint32_t at = place[(p->share->rank + i) % n_places];
            uint32_t part = at / plan->n_held, first = part * p->n_width;
            if (!(met >> part & 1))
                s->to[first].rows++;
            met |= UINT64_C(1) << part;
            s->part[k] = part;
            s->slot[k] = (struct pair){s->to[first].rows - 1, at % plan->n_held};
            s->slot_at[k] = s->to[first].pairs++;
        }
    }
    for (uint32_t r = 0; r < p->n_ranks; r++)
        s->to[r] = s->to[r / p->n_width * p->n_width];
}

static size_t message_bytes(const struct spread *p, struct message_size m)
{
    return m.rows * p->s->row_bytes + m.pairs * sizeof(struct pair);
}

static void place_messages(const struct spread *p, const struct message_size *m, size_t *at,
                           size_t *bytes)
{
    size_t sum = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        at[r] = sum;
        bytes[r] = message_bytes(p, m[r]);
        sum += bytes[r];
    }
}

static void pack_row(const struct spread *p, const float *x, unsigned char *to)
{
    if (p->b->ops.limits.expert == EXPERT_F32) {
        memcpy(to, x, p->hidden * sizeof *x);
        return;
    }
    unsigned char *scale_at = to + (p->hidden + 3) / 4 * 4;
    for (uint32_t i = 0; i < p->hidden; i += GROUP, scale_at += sizeof(float)) {
        float scale = e4m3_quantise(x + i, least(GROUP, p->hidden - i), to + i);
        memcpy(scale_at, &scale, sizeof scale);
    }
}

static void unpack_row(const struct spread *p, const unsigned char *from, float *x)
{
    if (p->b->ops.limits.expert == EXPERT_F32) {
        memcpy(x, from, p->hidden * sizeof *x);
        return;
    }
    const unsigned char *scale_at = from + (p->hidden + 3) / 4 * 4;
    for (uint32_t i = 0; i < p->hidden; i++) {
        float scale;
        memcpy(&scale, scale_at + i / GROUP * sizeof scale, sizeof scale);
        x[i] = e4m3_table[from[i]] * scale;
    }
}

static void pack_chunk(void *arg, uint32_t rank, uint32_t worker)
{
    (void)worker;
    const struct spread *p = arg;
    const struct spread_scratch *s = p->s;
    unsigned char *to = s->send + p->at_to[rank];
    struct pair *pair = (struct pair *)(void *)(to + s->to[rank].rows * s->row_bytes);
    uint32_t part = rank / p->n_width, n_rows = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        bool met = false;
        for (uint32_t k = i * p->n_active; k < (i + 1) * p->n_active; k++) {
            if (s->part[k] != part)
                continue;
            *pair++ = s->slot[k];
            met = true;
        }
        if (met)
            pack_row(p, p->x + (size_t)i * p->hidden, to + n_rows++ * s->row_bytes);
    }
    assert(n_rows == s->to[rank].rows);
}

/* ---- what came ---- */

/* The pairs of all messages, sorted by expert (in the order of their coming within one), as a job
 * of moe.c. */
static void unpack(struct spread *p, struct moe_job *j)
{
    struct spread_scratch *s = p->s;
    struct moe_scratch *m = s->s;
    uint32_t n_held = p->share->plan->n_held, row0 = 0, at = 0;
    memset(m->start, 0, (n_held + 1) * sizeof *m->start);
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const unsigned char *from = s->recv + p->at_from[r];
        const struct pair *pair =
            (const struct pair *)(const void *)(from + s->from[r].rows * s->row_bytes);
        for (uint32_t i = 0; i < s->from[r].rows; i++)
            unpack_row(p, from + i * s->row_bytes, s->in + (size_t)(row0 + i) * p->hidden);
        for (uint32_t i = 0; i < s->from[r].pairs; i++)
            m->start[pair[i].expert + 1]++;
        row0 += s->from[r].rows;
    }
    for (uint32_t x = 0; x < n_held; x++) {
        if (m->start[x + 1])
            moe_add_group(j, &p->w->expert[x], m->start[x], m->start[x + 1]);
        m->start[x + 1] += m->start[x];
    }
    row0 = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const unsigned char *from = s->recv + p->at_from[r];
        const struct pair *pair =
            (const struct pair *)(const void *)(from + s->from[r].rows * s->row_bytes);
        for (uint32_t i = 0; i < s->from[r].pairs; i++, at++) {
            s->order[at] = m->start[pair[i].expert]++;
            m->row[s->order[at]] = row0 + pair[i].row;
        }
        row0 += s->from[r].rows;
    }
}

struct move_job {
    const float *from;
    float *to;
    const uint32_t *order;
    uint32_t dim;
};

static void move_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    const struct move_job *j = arg;
    memcpy(j->to + (size_t)chunk * j->dim, j->from + (size_t)j->order[chunk] * j->dim,
           j->dim * sizeof *j->to);
}

/* Values of all pairs that came, in the order of their coming, into s->value. */
static void compute(struct spread *p)
{
    struct spread_scratch *s = p->s;
    struct moe_job j = {.b = p->b,
                        .s = s->s,
                        .w = p->w,
                        .expert_x = s->in,
                        .x = s->in,
                        .shared = UINT32_MAX,
                        .hidden = p->hidden,
                        .pair_value = s->back}; /* free until the values come back */
    unpack(p, &j);
    if (!j.n_groups)
        return;
    moe_run(&j, p->l);
    struct move_job m = {s->back, s->value, s->order, p->hidden};
    cpu_run(p->b, p->l, p->pairs_in, (double)p->pairs_in * p->hidden / COST_PER_VALUE, move_chunk,
            &m);
}

/* ---- sums ---- */

/* y of one row = or += its slots in order, then the shared expert. */
static void sum_chunk(void *arg, uint32_t i, uint32_t worker)
{
    (void)worker;
    const struct spread *p = arg;
    const struct spread_scratch *s = p->s;
    const struct kernels *kernels = p->b->k;
    const float *weight = ((struct moe_scratch *)p->b->lane[p->l].moe_scratch)->weight;
    float *y = p->y + (size_t)i * p->hidden, *sum = s->in + (size_t)i * p->hidden;
    memset(sum, 0, p->hidden * sizeof *sum);
    for (uint32_t k = i * p->n_active; k < (i + 1) * p->n_active; k++) {
        uint32_t first = s->part[k] * p->n_width;
        float *value = (float *)(void *)((char *)s->back + p->at_from[first]) +
                       (size_t)s->slot_at[k] * p->hidden;
        for (uint32_t r = 1; r < p->n_width; r++)
            kernels->axpy_f32(1.0f,
                              (float *)(void *)((char *)s->back + p->at_from[first + r]) +
                                  (size_t)s->slot_at[k] * p->hidden,
                              value, p->hidden);
        kernels->axpy_f32(weight[k], value, sum, p->hidden);
    }
    kernels->axpy_f32(1.0f, p->shared + (size_t)i * p->hidden, sum, p->hidden);
    if (p->add)
        kernels->axpy_f32(1.0f, sum, y, p->hidden);
    else
        memcpy(y, sum, p->hidden * sizeof *y);
}

/* ---- a block ---- */

static enum err_code exchange_rows(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    if (comm_all_to_all(p->comm, s->to, s->from, sizeof *s->to, NULL, e))
        return e->code;
    p->rows_in = p->pairs_in = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->rows_in += s->from[r].rows;
        p->pairs_in += s->from[r].pairs;
    }
    assert(p->rows_in <= p->n_ranks * s->max_rows && p->pairs_in <= s->s->max_rows);
    place_messages(p, s->to, p->at_to, p->bytes_to);
    place_messages(p, s->from, p->at_from, p->bytes_from);
    cpu_run(p->b, p->l, p->n_ranks, (double)p->n * p->hidden, pack_chunk, p);
    return comm_all_to_allv(p->comm, s->send, (struct comm_parts){p->at_to, p->bytes_to}, s->recv,
                            (struct comm_parts){p->at_from, p->bytes_from}, NULL, e);
}

static enum err_code exchange_values(struct spread *p, struct err *e)
{
    struct spread_scratch *s = p->s;
    size_t of_pair = p->hidden * sizeof(float), to = 0, from = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->at_to[r] = to;
        to += p->bytes_to[r] = s->from[r].pairs * of_pair;
        p->at_from[r] = from;
        from += p->bytes_from[r] = s->to[r].pairs * of_pair;
    }
    return comm_all_to_allv(p->comm, s->value, (struct comm_parts){p->at_to, p->bytes_to}, s->back,
                            (struct comm_parts){p->at_from, p->bytes_from}, NULL, e);
}

static void run_block(struct spread *p)
{
    struct moe_scratch *own = p->b->lane[p->l].moe_scratch;
    struct moe_job j = {.b = p->b,
                        .s = own,
                        .w = p->w,
                        .x = p->x,
                        .hidden = p->hidden,
                        .n = p->n,
                        .n_active = p->n_active};
    struct err e;
    if (p->n) {
        moe_route(&j, p->l);
        moe_count(p->b, p->layer, own->chosen, p->n);
    }
    address(p, own->chosen);
    if (exchange_rows(p, &e)) {
        cpu_lane_fail(p->b, p->l, &e);
        return;
    }
    compute(p);
    if (exchange_values(p, &e)) {
        cpu_lane_fail(p->b, p->l, &e);
        return;
    }
    cpu_run(p->b, p->l, p->n, (double)p->n * p->n_active * p->hidden / COST_PER_VALUE, sum_chunk,
            p);
}

/* The shared expert of all rows: each rank of the group has its part of the width, and gets the sum
 * for its own rows. */
static enum err_code run_shared(struct spread *p, const float *x, uint32_t n, uint32_t each,
                                struct err *e)
{
    struct spread_scratch *s = p->s;
    moe_network(p->b, p->l, &p->w->shared, x, n, s->whole, false);
    return comm_reduce_scatter(p->b->ops.limits.peers->group[p->l], s->whole, s->shared,
                               (size_t)each * p->hidden, COMM_F32, NULL, e);
}

/* y of all rows += what their ranks made of them. */
static enum err_code gather_rows(struct spread *p, uint32_t n, uint32_t each, float *y,
                                 struct err *e)
{
    struct spread_scratch *s = p->s;
    if (comm_all_gather(p->b->ops.limits.peers->group[p->l], s->own, s->whole,
                        (size_t)each * p->hidden * sizeof *y, NULL, e))
        return e->code;
    for (uint32_t i = 0; i < n; i++)
        p->b->k->axpy_f32(1.0f, s->whole + (size_t)i * p->hidden, y + (size_t)i * p->hidden,
                          p->hidden);
    return ERR_OK;
}

void cpu_spread(struct cpu_backend *b, enum lane l, uint32_t layer, const struct layer_weights *w,
                const float *x, uint32_t n, float *y)
{
    const struct model_config *c = b->ops.cfg;
    struct spread_scratch *s = b->lane[l].spread_scratch;
    const struct rank_share *share = b->ops.limits.peers->share;
    uint32_t tp = share->plan->tp, hidden = c->hidden_size, each = (n + tp - 1) / tp;
    uint32_t begin = least(n, share->tp_rank * each), end = least(n, begin + each);
    uint32_t most = b->lane[l].step->most_rows ? b->lane[l].step->most_rows : n;
    struct err e;
    struct spread p = {.b = b,
                       .s = s,
                       .l = l,
                       .comm = b->ops.limits.peers->all[l],
                       .share = share,
                       .w = w,
                       .layer = layer,
                       .n_active = c->n_active,
                       .hidden = hidden,
                       .n_ranks = share->plan->n_ranks,
                       .n_width = share->plan->n_width};
    if (tp > 1 && n && run_shared(&p, x, n, each, &e)) {
        cpu_lane_fail(b, l, &e);
        return;
    }
    /* As many blocks as the rank with most rows has. */
    for (uint32_t i = 0; i < (most + tp - 1) / tp && !b->lane[l].err.code; i += s->max_rows) {
        uint32_t row = least(begin + i, end);
        p.n = least(end - row, s->max_rows);
        p.x = x + (size_t)row * hidden;
        p.y = tp > 1 ? s->own + (size_t)(row - begin) * hidden : y + (size_t)row * hidden;
        p.add = tp == 1;
        p.shared = tp > 1 ? s->shared + (size_t)(row - begin) * hidden : s->shared;
        if (tp == 1)
            moe_network(b, l, &w->shared, p.x, p.n, s->shared, false);
        run_block(&p);
    }
    if (tp > 1 && n && !b->lane[l].err.code && gather_rows(&p, n, each, y, &e))
        cpu_lane_fail(b, l, &e);
}

static enum err_code reserve_lane(struct cpu_backend *b, enum lane l, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    const struct parallel *plan = b->ops.limits.peers->share->plan;
    struct moe_scratch *own = b->lane[l].moe_scratch;
    size_t each = (b->ops.limits.max_rows[l] + plan->tp - 1) / plan->tp, hidden = c->hidden_size;
    each = each < BLOCK_ROWS ? each : (size_t)BLOCK_ROWS;
    each = each < own->max_rows ? each : own->max_rows;
    size_t slots = each * c->n_active, n_ranks = plan->n_ranks, held = plan->n_held;
    size_t most = c->n_active < held ? c->n_active : held; /* pairs of a row on one rank */
    size_t rows_in = each * n_ranks, pairs_in = rows_in * most;
    size_t pairs_out = slots * plan->n_width, pairs = pairs_in > pairs_out ? pairs_in : pairs_out;
    struct spread_scratch *s = cpu_reserve(b, sizeof *s);
    b->lane[l].spread_scratch = s;
    if (!s)
        return err_set(e, ERR_NOMEM, "experts' exchange");
    s->max_rows = (uint32_t)each;
    s->row_bytes = b->ops.limits.expert == EXPERT_F32
                       ? hidden * sizeof(float)
                       : (hidden + 3) / 4 * 4 + (hidden + GROUP - 1) / GROUP * sizeof(float);
    size_t message = s->row_bytes + most * sizeof(struct pair);
    s->part = cpu_reserve(b, slots * sizeof *s->part);
    s->slot = cpu_reserve(b, slots * sizeof *s->slot);
    s->slot_at = cpu_reserve(b, slots * sizeof *s->slot_at);
    s->to = cpu_reserve(b, n_ranks * sizeof *s->to);
    s->from = cpu_reserve(b, n_ranks * sizeof *s->from);
    s->send = cpu_reserve(b, rows_in * message);
    s->recv = cpu_reserve(b, rows_in * message);
    s->in = cpu_reserve(b, rows_in * hidden * sizeof(float));
    s->value = cpu_reserve(b, pairs * hidden * sizeof(float));
    s->back = cpu_reserve(b, pairs * hidden * sizeof(float));
    s->order = cpu_reserve(b, pairs_in * sizeof *s->order);
    size_t all_own = (b->ops.limits.max_rows[l] + plan->tp - 1) / plan->tp, tp = plan->tp;
    s->shared = cpu_reserve(b, (tp > 1 ? all_own : each) * hidden * sizeof(float));
    s->own = cpu_reserve(b, (tp > 1 ? all_own : 0) * hidden * sizeof(float));
    s->whole = cpu_reserve(b, (tp > 1 ? all_own * tp : 0) * hidden * sizeof(float));
    if (!s->part || !s->slot || !s->slot_at || !s->to || !s->from || !s->send || !s->recv ||
        !s->in || !s->value || !s->back || !s->order || !s->shared || !s->own || !s->whole)
        return err_set(e, ERR_NOMEM, "experts' exchange of %zu rows with %zu ranks", each, n_ranks);
    return moe_reserve(b, &s->s, plan->n_held, pairs_in, e);
}

enum err_code cpu_spread_init(struct cpu_backend *b, struct err *e)
{
    if (!b->ops.cfg->n_shared)
        return err_set(e, ERR_INVALID, "experts over ranks: a model without a shared expert");
    for (int l = 0; l < N_LANES; l++)
        if (reserve_lane(b, (enum lane)l, e))
            return e->code;
    return ERR_OK;
}
