/* forward.c - see forward.h. Source: the specification's sections 3 (residual stream), 4 (MLA),
 * 5 (indexer), 6 (sparse attention), 7 (experts). */
#include "model/forward.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <stdatomic.h>
#include <stdlib.h>

const char *const forward_phase_names[N_PHASES] = {"project", "index",  "attend",
                                                   "experts", "output", "wait"};

struct lane_buffers {
    act *x;     /* [rows, hidden] residual stream */
    act *h;     /* [rows, hidden] normalised input of a half layer */
    act *q_low; /* [rows, q_lora] low-rank query, before and after its norm */
    act *q_norm;
    act *q;       /* [rows, heads, nope + rope] */
    act *kv;      /* [rows, kv_lora + rope] */
    act *o;       /* [rows, heads * v] */
    act *index_k; /* [rows, index_dim] */
    act *index_q; /* [rows, index_heads, index_dim] */
    act *index_w; /* [rows, index_heads] */
    act *part;    /* [rows, hidden] in a group of several: this rank's part of what x gets */
    int32_t *sel; /* [rows, index_topk], kept for the layers that share it */
};

struct forward {
    struct ops *ops;
    const struct model_config *cfg;
    const struct weights *w;
    bool joined;  /* rows travel: all ranks run the experts of each layer together */
    bool samples; /* the first rank of its group */
    struct lane_buffers lane[N_LANES];
    _Atomic uint64_t phase_us[N_LANES][N_PHASES]; /* each lane adds to its own */
    /* Counts by the ops: with a device as they were fetched after a step, so that who asks never
     * waits for it. */
    _Atomic uint64_t fetch_us; /* when they are due again */
    pthread_mutex_t counts_lock;
    struct counts {
        uint64_t *rows; /* [n_layers * n_experts] */
        struct reuse_count reuse[REUSE_LAYERS];
    } counts, fetched; /* under the lock; where they come in */
};

enum { FETCH_US = 1000000 };

static size_t n_expert_counts(const struct forward *f)
{
    return (size_t)f->cfg->n_layers * f->cfg->n_experts;
}

static void ask_counts(const struct forward *f, struct counts *c)
{
    if (n_expert_counts(f))
        f->ops->expert_rows(f->ops, c->rows);
    if (f->ops->selection_reuse)
        f->ops->selection_reuse(f->ops, c->reuse);
}

/* One of the two lanes does it. */
static void fetch_counts(struct forward *f)
{
    uint64_t now_us = clock_us(), due_us = atomic_load(&f->fetch_us);
    if (!f->ops->device_us || now_us < due_us ||
        !atomic_compare_exchange_strong(&f->fetch_us, &due_us, UINT64_MAX))
        return;
    ask_counts(f, &f->fetched);
    mutex_lock(&f->counts_lock);
    struct counts t = f->counts;
    f->counts = f->fetched;
    f->fetched = t;
    mutex_unlock(&f->counts_lock);
    atomic_store(&f->fetch_us, now_us + FETCH_US);
}

void forward_add_counts(struct forward *f, uint64_t *rows, struct reuse_count *reuse)
{
    mutex_lock(&f->counts_lock);
    if (!f->ops->device_us)
        ask_counts(f, &f->counts);
    for (size_t i = 0; rows && i < n_expert_counts(f); i++)
        rows[i] += f->counts.rows[i];
    for (int i = 0; reuse && i < REUSE_LAYERS; i++) {
        reuse[i].selected += f->counts.reuse[i].selected;
        reuse[i].again += f->counts.reuse[i].again;
    }
    mutex_unlock(&f->counts_lock);
}

/* What has passed since *since_us belongs to the phase; the next one begins. */
static void end_phase(struct forward *f, enum lane l, enum forward_phase p, uint64_t *since_us)
{
    uint64_t now_us = clock_us();
    atomic_fetch_add_explicit(&f->phase_us[l][p], now_us - *since_us, memory_order_relaxed);
    *since_us = now_us;
}

void forward_get_times(const struct forward *f, uint64_t out[N_LANES][N_PHASES])
{
    for (int l = 0; l < N_LANES; l++)
        for (int p = 0; p < N_PHASES; p++)
            out[l][p] = atomic_load_explicit(&f->phase_us[l][p], memory_order_relaxed);
}

uint64_t forward_device_us(const struct forward *f, enum lane l)
{
    return f->ops->device_us ? f->ops->device_us(f->ops, l) : 0;
}

/* Elements of each buffer per row, in the order of struct lane_buffers. */
enum { N_BUFFERS = 11 };
static void row_elements(const struct model_config *c, const struct ops_limits *limits,
                         size_t out[N_BUFFERS])
{
    bool parted = limits->peers && limits->peers->share->plan->tp > 1;
    size_t q_low = c->q_lora_rank, index = c->has_indexer ? c->index_dim : 0;
    size_t each[N_BUFFERS] = {c->hidden_size,
                              c->hidden_size,
                              q_low,
                              q_low,
                              (size_t)c->n_heads * model_qk_dim(c),
                              c->kv_lora_rank + c->rope_dim,
                              (size_t)c->n_heads * c->v_dim,
                              index,
                              index * c->index_heads,
                              c->has_indexer ? c->index_heads : 0,
                              parted ? c->hidden_size : 0};
    for (int i = 0; i < N_BUFFERS; i++)
        out[i] = each[i];
}

size_t forward_act_elements(const struct model_config *cfg, const struct ops_limits *limits)
{
    size_t each[N_BUFFERS], sum = 0;
    row_elements(cfg, limits, each);
    for (int i = 0; i < N_BUFFERS; i++)
        sum += each[i];
    return sum * ((size_t)limits->max_rows[LANE_PREFILL] + limits->max_rows[LANE_DECODE]);
}

static enum err_code reserve_lane(struct forward *f, enum lane l, struct err *e)
{
    struct lane_buffers *b = &f->lane[l];
    act **buffer[N_BUFFERS] = {&b->x, &b->h,       &b->q_low,   &b->q_norm,  &b->q,   &b->kv,
                               &b->o, &b->index_k, &b->index_q, &b->index_w, &b->part};
    size_t each[N_BUFFERS], rows = f->ops->limits.max_rows[l];
    row_elements(f->cfg, &f->ops->limits, each);
    for (int i = 0; i < N_BUFFERS; i++) {
        if (!each[i])
            continue;
        *buffer[i] = f->ops->alloc_act(f->ops, each[i] * rows);
        if (!*buffer[i])
            return err_set(e, ERR_NOMEM, "activations: %zu rows of %zu values", rows, each[i]);
    }
    if (f->cfg->has_indexer) {
        b->sel = f->ops->alloc_sel(f->ops, l);
        if (!b->sel)
            return err_set(e, ERR_NOMEM, "selections: %zu rows of %u positions", rows,
                           f->cfg->index_topk);
    }
    return ERR_OK;
}

enum err_code forward_create(struct forward **out, struct ops *o, const struct weights *w,
                             struct err *e)
{
    struct forward *f = FAULT("forward.create") ? NULL : calloc(1, sizeof *f);
    if (!f)
        return err_set(e, ERR_NOMEM, "forward");
    f->ops = o;
    f->cfg = o->cfg;
    f->w = w;
    const struct ops_peers *peers = o->limits.peers;
    f->joined = peers && parallel_spreads(peers->share->plan);
    f->samples = !peers || peers->share->tp_rank == 0;
    pthread_mutex_init(&f->counts_lock, NULL);
    f->counts.rows = calloc(n_expert_counts(f) + 1, sizeof(uint64_t));
    f->fetched.rows = calloc(n_expert_counts(f) + 1, sizeof(uint64_t));
    if (!f->counts.rows || !f->fetched.rows) {
        err_set(e, ERR_NOMEM, "counts of %zu experts' rows", n_expert_counts(f));
        forward_destroy(f);
        return e->code;
    }
    for (enum lane l = 0; l < N_LANES; l++) {
        if (reserve_lane(f, l, e)) {
            forward_destroy(f);
            return e->code;
        }
    }
    *out = f;
    return ERR_OK;
}

void forward_destroy(struct forward *f)
{
    if (!f)
        return;
    pthread_mutex_destroy(&f->counts_lock);
    free(f->counts.rows);
    free(f->fetched.rows);
    free(f);
}

/* Whether some row of the step's passes sees more tokens than it may attend to. */
static bool step_selects(const struct step *s)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        if (s->seq[i].top_k != TOP_K_DENSE &&
            s->seq[i].pos0 + s->seq[i].n_rows + s->n_more > s->seq[i].top_k)
            return true;
    }
    return false;
}

enum branch { BRANCH_QUERIES, BRANCH_STORES, BRANCH_SELECTION };
static_assert((int)BRANCH_SELECTION < (int)OPS_BRANCHES, "so many a step may have");

static void in_branch(struct forward *f, enum lane l, enum branch branch, bool after_all)
{
    if (f->ops->beside)
        f->ops->beside(f->ops, l, branch, after_all);
}

/* b->h, normalised, to b->q, not rotated yet; with a low rank on the way, to b->q_norm only. */
static void project_queries(struct forward *f, enum lane l, const struct layer_weights *w,
                            uint32_t n)
{
    struct lane_buffers *b = &f->lane[l];
    struct ops *o = f->ops;
    if (!f->cfg->q_lora_rank) {
        o->linear(o, l, &w->q, b->h, n, b->q, false);
        return;
    }
    o->linear(o, l, &w->q_a, b->h, n, b->q_low, false);
    o->rms_norm(o, l, b->q_low, w->q_a_norm, f->cfg->low_rank_eps, n, f->cfg->q_lora_rank,
                b->q_norm);
}

/* In debug builds, where the group has several ranks. */
static bool compares_selections(const struct forward *f)
{
#ifdef GAZE_DEBUG
    return f->ops->compare_selections != NULL;
#else
    (void)f;
    return false;
#endif
}

/* The indexer's keys are stored by every step, whether or not it selects: later tokens need them.
 */
static void store_index(struct forward *f, enum lane l, uint32_t layer, uint32_t n, bool selects)
{
    struct lane_buffers *b = &f->lane[l];
    const struct layer_weights *w = &f->w->layer[layer];
    struct ops *o = f->ops;
    in_branch(f, l, BRANCH_STORES, false);
    o->linear(o, l, &w->index_k, b->h, n, b->index_k, false);
    o->index_store(o, l, layer, b->index_k, w->index_norm, w->index_norm_bias);
    if (!selects)
        return;
    in_branch(f, l, BRANCH_SELECTION, false);
    o->linear(o, l, &w->index_w, b->h, n, b->index_w, false);
}

static void select_positions(struct forward *f, enum lane l, uint32_t layer, uint32_t n)
{
    struct lane_buffers *b = &f->lane[l];
    const struct layer_weights *w = &f->w->layer[layer];
    struct ops *o = f->ops;
    in_branch(f, l, BRANCH_SELECTION, true);
    o->linear(o, l, &w->index_q, b->q_norm, n, b->index_q, false);
    o->index_select(o, l, layer, b->index_q, b->index_w, b->sel);
    if (l == LANE_DECODE && f->samples && reuse_layer(f->cfg, layer) >= 0)
        o->watch_selections(o, layer, b->sel);
    if (compares_selections(f))
        o->compare_selections(o, l, b->sel);
}

/* From b->h, normalised, to b->o. What needs little of the device runs beside the rest: keys are
 * stored and positions selected while queries are made. */
static void attend(struct forward *f, enum lane l, uint32_t layer, uint32_t n, bool selects,
                   uint64_t *t)
{
    struct lane_buffers *b = &f->lane[l];
    const struct layer_weights *w = &f->w->layer[layer];
    const struct model_config *c = f->cfg;
    struct ops *o = f->ops;
    bool indexes = c->has_indexer && c->index_full[layer];
    if (indexes)
        store_index(f, l, layer, n, selects);
    end_phase(f, l, PHASE_INDEX, t);
    in_branch(f, l, BRANCH_STORES, false);
    o->linear(o, l, &w->kv_a, b->h, n, b->kv, false);
    o->kv_store(o, l, layer, b->kv, w->kv_a_norm);
    in_branch(f, l, BRANCH_QUERIES, false);
    project_queries(f, l, w, n);
    end_phase(f, l, PHASE_PROJECT, t);
    if (indexes && selects)
        select_positions(f, l, layer, n);
    end_phase(f, l, PHASE_INDEX, t);
    in_branch(f, l, BRANCH_QUERIES, false);
    if (c->q_lora_rank)
        o->linear(o, l, &w->q_b, b->q_norm, n, b->q, false);
    o->rope_q(o, l, b->q);
    end_phase(f, l, PHASE_PROJECT, t);
    o->attend(o, l, layer, &w->kv_b, b->q, selects ? b->sel : NULL, b->o);
    end_phase(f, l, PHASE_ATTEND, t);
}

/* x += o W_o, and what the feed-forward gives; in a group of several by way of `part`. */
static void add_attention(struct forward *f, enum lane l, const struct layer_weights *w, uint32_t n)
{
    struct lane_buffers *b = &f->lane[l];
    struct ops *o = f->ops;
    o->linear(o, l, &w->o, b->o, n, b->part ? b->part : b->x, !b->part);
    if (b->part)
        o->reduce(o, l, b->part, n, f->cfg->hidden_size, b->x);
}

static void add_feed_forward(struct forward *f, enum lane l, uint32_t layer, uint32_t n)
{
    struct lane_buffers *b = &f->lane[l];
    const struct layer_weights *w = &f->w->layer[layer];
    struct ops *o = f->ops;
    act *to = b->part ? b->part : b->x;
    if (f->joined && model_is_moe(f->cfg, layer)) {
        o->moe(o, l, layer, w, b->h, n, b->x, true);
        return;
    }
    if (model_is_moe(f->cfg, layer))
        o->moe(o, l, layer, w, b->h, n, to, !b->part);
    else
        o->ffn(o, l, &w->dense, b->h, n, to, !b->part);
    if (b->part)
        o->reduce(o, l, b->part, n, f->cfg->hidden_size, b->x);
}

const act *forward_layers(struct forward *f, enum lane l, const struct step *s)
{
    struct lane_buffers *b = &f->lane[l];
    const struct model_config *c = f->cfg;
    struct ops *o = f->ops;
    uint32_t n = s->n_rows;
    bool selects = c->has_indexer && step_selects(s);
    uint64_t t = clock_us();

    o->embed(o, l, &f->w->embed, b->x);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct layer_weights *w = &f->w->layer[i];
        o->rms_norm(o, l, b->x, w->input_norm, c->rms_eps, n, c->hidden_size, b->h);
        end_phase(f, l, PHASE_PROJECT, &t);
        attend(f, l, i, n, selects, &t);
        add_attention(f, l, w, n);

        o->rms_norm(o, l, b->x, w->post_norm, c->rms_eps, n, c->hidden_size, b->h);
        end_phase(f, l, PHASE_PROJECT, &t);
        add_feed_forward(f, l, i, n);
        end_phase(f, l, PHASE_EXPERTS, &t);
    }
    return b->x;
}

/* A step of other groups whose rows come to this rank's experts. */
static enum err_code help_others(struct forward *f, enum lane l, const struct step *s,
                                 struct err *e)
{
    struct lane_buffers *b = &f->lane[l];
    struct ops *o = f->ops;
    uint64_t t = clock_us();
    o->begin(o, l, s);
    for (uint32_t i = 0; i < f->cfg->n_layers; i++)
        if (model_is_moe(f->cfg, i))
            o->moe(o, l, i, &f->w->layer[i], b->h, 0, b->x, true);
    end_phase(f, l, PHASE_EXPERTS, &t);
    enum err_code code = o->finish(o, l, e);
    end_phase(f, l, PHASE_WAIT, &t);
    return code;
}

/* Ranks that go on together would have to tell each other their tokens. */
uint32_t forward_max_more(const struct forward *f)
{
    return f->ops->advance && !f->ops->limits.peers ? OPS_MAX_MORE : 0;
}

/* One pass: from the rows' tokens to the next ones. */
static void run_pass(struct forward *f, enum lane l, const struct step *s)
{
    struct ops *o = f->ops;
    if (o->recall && !compares_selections(f) &&
        o->recall(o, l, f, f->cfg->has_indexer && step_selects(s)))
        return;
    const act *x = forward_layers(f, l, s);
    uint64_t t = clock_us();
    for (uint32_t i = 0; i < s->n_out; i += o->limits.max_out_rows) {
        uint32_t rest = s->n_out - i;
        uint32_t k = rest < o->limits.max_out_rows ? rest : o->limits.max_out_rows;
        if (!f->samples && f->w->head.n_out == f->cfg->vocab_size)
            break; /* the first rank has the whole head */
        float *logits = o->logits(o, l, x, f->w->final_norm, &f->w->head, i, k);
        if (f->samples)
            o->sample(o, l, logits, i, k);
    }
    end_phase(f, l, PHASE_OUTPUT, &t);
}

enum err_code forward_step(struct forward *f, enum lane l, const struct step *s, struct err *e)
{
    struct ops *o = f->ops;
    assert(s->n_rows <= o->limits.max_rows[l]);
    assert(!s->n_more || (s->n_more <= forward_max_more(f) && s->n_out == s->n_rows));
    if (!s->n_rows) {
        assert(f->joined && s->most_rows);
        return help_others(f, l, s, e);
    }
    o->begin(o, l, s);
    for (uint32_t pass = 0; pass <= s->n_more; pass++) {
        if (pass)
            o->advance(o, l);
        run_pass(f, l, s);
    }
    uint64_t t = clock_us();
    enum err_code code = o->finish(o, l, e);
    end_phase(f, l, PHASE_WAIT, &t);
    if (!code)
        fetch_counts(f);
    return code;
}
