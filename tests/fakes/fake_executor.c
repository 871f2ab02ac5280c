/* fake_executor.c - see fake_executor.h. */
#include "fake_executor.h"

#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

static uint64_t slot_of(const struct batch_seq *q, uint32_t pos)
{
    return (uint64_t)q->page[pos / KV_PAGE_TOKENS] * KV_PAGE_TOKENS + pos % KV_PAGE_TOKENS;
}

/* What a row writes, given what it sees last. Never 0. */
static uint64_t row_value(const struct batch_seq *q, uint64_t before, uint32_t pos, uint32_t token)
{
    bool expanded = pos < q->expand_below && pos < q->top_k;
    bool sparse = pos >= q->top_k;
    uint64_t form = (uint64_t)token << 2 | (uint64_t)expanded << 1 | sparse;
    uint64_t top_k = sparse ? q->top_k : 0; /* rows that see everything do not depend on it */
    return hash_mix(before ^ hash_mix(form + 0x9E3779B97F4A7C15u * (top_k + 1))) | 1;
}

static void check_read(const struct fake_group *g, const struct batch_seq *q, uint32_t from)
{
    const uint32_t *token = q->token - q->pos0; /* the sequence's tokens from its first one */
    for (uint32_t p = from; p < q->pos0; p++) {
        uint64_t v = g->value[slot_of(q, p)];
        assert(v != 0); /* read before it was written */
        uint64_t before = p ? g->value[slot_of(q, p - 1)] : 0;
        /* Rows of the prompt may have been written in either form: by a prefill or by a decode. */
        struct batch_seq form = *q;
        form.expand_below = UINT32_MAX;
        bool ok = row_value(&form, before, p, token[p]) == v;
        form.expand_below = 0;
        assert(ok || row_value(&form, before, p, token[p]) == v);
    }
}

static void claim_to_read(struct fake_group *g, uint32_t page)
{
    assert(g->n_writers[page] == 0);
    g->n_readers[page]++;
}

static void claim_to_write(struct fake_group *g, uint32_t page)
{
    assert(g->n_writers[page] == 0);
    assert(g->n_readers[page] == 0);
    g->n_writers[page]++;
}

static void claim_pages(struct fake_executor *f, struct fake_group *g, const struct batch_seq *q,
                        uint32_t n_more)
{
    uint32_t first = q->pos0 / KV_PAGE_TOKENS;
    uint32_t end = (q->pos0 + q->n_tokens + n_more - 1) / KV_PAGE_TOKENS;
    for (uint32_t i = 0; i <= end; i++)
        assert(q->page[i] < f->n_pages);
    for (uint32_t i = 0; i < first; i++)
        claim_to_read(g, q->page[i]);
    for (uint32_t i = first; i <= end; i++)
        claim_to_write(g, q->page[i]);
}

static void unclaim_pages(struct fake_group *g, const struct batch_seq *q, uint32_t n_more)
{
    uint32_t first = q->pos0 / KV_PAGE_TOKENS;
    uint32_t end = (q->pos0 + q->n_tokens + n_more - 1) / KV_PAGE_TOKENS;
    for (uint32_t i = 0; i < first; i++)
        g->n_readers[q->page[i]]--;
    for (uint32_t i = first; i <= end; i++)
        g->n_writers[q->page[i]]--;
}

static void check_results(const struct batch *b)
{
    uint32_t n_out = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        assert(q->out0 == n_out);
        n_out += q->n_out;
        for (uint32_t k = q->out0; k < n_out; k++) {
            const struct sample_row *row = &b->sample[k];
            assert(b->out_row[k] >= q->row0 && b->out_row[k] < q->row0 + q->n_tokens);
            assert(k == 0 || b->out_row[k] > b->out_row[k - 1]);
            assert(row->position == q->pos0 + (b->out_row[k] - q->row0) + 1);
            assert(row->n_history == row->position && row->n_prompt <= row->n_history);
            assert(memcmp(row->history + q->pos0, q->token, q->n_tokens * sizeof *q->token) == 0);
        }
    }
    assert(n_out == b->n_out);
    assert(b->n_out <= b->max_out);
}

static double cost_of(const struct fake_executor *f, const struct batch *b)
{
    const struct fake_cost *c = &f->cost[b->lane];
    double us = c->step_us;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        us += q->n_tokens * (c->token_us + c->depth_us * (q->pos0 + q->n_tokens / 2.0) / 1024);
    }
    return us;
}

/* What was left of the lanes' steps is worked on until now; then they may come and go. */
static void share_until(struct fake_group *g, uint64_t now_us)
{
    double speed = g->out[LANE_PREFILL] && g->out[LANE_DECODE] ? 0.5 : 1;
    for (int l = 0; l < N_LANES; l++)
        g->left_us[l] -= g->out[l] ? speed * (double)(now_us - g->since_us) : 0;
    g->since_us = now_us;
}

static void share_ends(struct fake_group *g)
{
    double slow = g->out[LANE_PREFILL] && g->out[LANE_DECODE] ? 2 : 1;
    for (int l = 0; l < N_LANES; l++)
        g->end_us[l] = g->since_us + (uint64_t)(slow * (g->left_us[l] > 0 ? g->left_us[l] : 0)) + 1;
}

static void start(void *self, struct batch *b)
{
    struct fake_executor *f = self;
    struct fake_group *g = &f->group[b->group];
    uint32_t n_rows = 0;
    assert(b->work.kind == WORK_BATCH && b->group < f->n_groups);
    assert(!g->out[b->lane]);
    assert(b->n_seqs >= 1);
    bool thorough = f->check_every && f->n_steps % f->check_every == 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        assert(q->row0 == n_rows && q->n_tokens >= 1);
        n_rows += q->n_tokens;
        claim_pages(f, g, q, b->n_more);
        assert(!b->n_more || (q->n_tokens == 1 && q->n_out == 1));
        check_read(g, q, thorough || q->pos0 < KV_PAGE_TOKENS ? 0 : q->pos0 - KV_PAGE_TOKENS);
    }
    assert(n_rows == b->n_rows);
    assert(b->n_more <= f->exec.max_more);
    check_results(b);
    uint64_t begin = f->serial && g->busy_until_us > f->now_us ? g->busy_until_us : f->now_us;
    b->start_us = begin;
    g->end_us[b->lane] = begin + (uint64_t)(cost_of(f, b) * (1 + b->n_more)) + 1;
    if (f->serial)
        g->busy_until_us = g->end_us[b->lane];
    if (f->shared) {
        share_until(g, f->now_us);
        g->left_us[b->lane] = cost_of(f, b) * (1 + b->n_more);
    }
    g->out[b->lane] = b;
    if (f->shared)
        share_ends(g);
    f->n_steps++;
    f->n_rows += n_rows;
    if (f->die_at_step == f->n_steps) {
        g->dead = true;
        f->dies_us = f->now_us + f->die_after_us;
    }
}

static void move(void *self, struct page_move *m)
{
    struct fake_executor *f = self;
    struct fake_group *g = &f->group[m->source], *t = &f->group[m->target];
    assert(m->work.kind == WORK_MOVE && m->source < f->n_groups && m->target < f->n_groups);
    assert(m->source != m->target && m->n_pages >= 1 && m->n_pages <= m->max_pages);
    assert(!g->move);
    for (uint32_t i = 0; i < m->n_pages; i++) {
        assert(m->from[i] < f->n_pages && m->to[i] < f->n_pages);
        claim_to_read(g, m->from[i]);
        claim_to_write(t, m->to[i]);
    }
    m->start_us = f->now_us;
    g->move = m;
    g->move_end_us = f->now_us + (uint64_t)(f->move_us + f->page_us * m->n_pages) + 1;
    f->n_moves++;
}

static uint64_t page_sum(const uint64_t *value)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < KV_PAGE_TOKENS; i++)
        sum += hash_mix(value[i] + i + 1);
    return sum;
}

static bool happens(struct fake_executor *f, uint32_t per_1000)
{
    return per_1000 && rng_below(&f->rng, 1000) < per_1000;
}

static void finish_move(struct fake_executor *f, struct fake_group *g)
{
    struct page_move *m = g->move;
    struct fake_group *t = &f->group[m->target];
    bool failed = happens(f, f->move_fail_per_1000), corrupt = happens(f, f->move_corrupt_per_1000);
    uint32_t n = failed ? rng_below(&f->rng, m->n_pages) : m->n_pages;
    for (uint32_t i = 0; i < m->n_pages; i++) {
        uint64_t *from = g->value + (uint64_t)m->from[i] * KV_PAGE_TOKENS;
        uint64_t *to = t->value + (uint64_t)m->to[i] * KV_PAGE_TOKENS;
        g->n_readers[m->from[i]]--;
        t->n_writers[m->to[i]]--;
        m->sum_from[i] = page_sum(from);
        for (uint32_t k = 0; k < KV_PAGE_TOKENS; k++)
            to[k] = i < n ? from[k] : rng_next(&f->rng);
        if (corrupt && i + 1 == n) {
            to[rng_below(&f->rng, KV_PAGE_TOKENS)] ^= 2;
            f->n_corrupted++;
        }
        m->sum_to[i] = page_sum(to);
    }
    if (failed)
        err_set(&m->err, ERR_IO, "move of %u pages: the fake failed after %u", m->n_pages, n);
    m->end_us = g->move_end_us;
    g->move = NULL;
    f->exec.moved(f->exec.done_arg, m);
}

static bool is_banned(const struct sample_row *row, uint32_t token)
{
    for (uint32_t i = 0; i < row->n_banned; i++)
        if (row->banned[i] == token)
            return true;
    return false;
}

static void choose(struct fake_executor *f, const struct sample_row *row, uint64_t value,
                   struct sample_out *out)
{
    uint64_t h = hash_mix(
        value ^ hash_mix(row->p->seed ^ hash_mix(row->position) ^ ((uint64_t)row->stream << 40)));
    *out = (struct sample_out){.token = (uint32_t)(h % f->vocab), .rank = 1};
    for (uint32_t tries = 0; is_banned(row, out->token) && tries < f->vocab; tries++)
        out->token = (out->token + 1) % f->vocab;
    if (row->given)
        out->token = row->given_token;
    out->logprob = -(float)(h >> 40) * 1e-6f;
    out->bad_logits = f->bad_per_1000 && rng_below(&f->rng, 1000) < f->bad_per_1000;
}

static void finish(struct fake_executor *f, struct batch *b)
{
    struct fake_group *g = &f->group[b->group];
    bool failed = happens(f, f->fail_per_1000) || g->dead;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        uint32_t k = q->out0;
        unclaim_pages(g, q, b->n_more);
        for (uint32_t t = 0; t < q->n_tokens; t++) {
            uint32_t pos = q->pos0 + t;
            uint64_t before = pos ? g->value[slot_of(q, pos - 1)] : 0;
            uint64_t v = row_value(q, before, pos, q->token[t]);
            g->value[slot_of(q, pos)] = failed ? rng_next(&f->rng) : v;
            if (!failed && k < q->out0 + q->n_out && b->out_row[k] == q->row0 + t) {
                choose(f, &b->sample[k], v, &b->out[k]);
                k++;
            }
        }
        for (uint32_t pass = 1; pass <= b->n_more; pass++) {
            uint32_t pos = q->pos0 + pass, last = q->out0 + (pass - 1) * b->n_out;
            struct sample_row row = b->sample[q->out0];
            uint64_t v = row_value(q, g->value[slot_of(q, pos - 1)], pos, b->out[last].token);
            g->value[slot_of(q, pos)] = failed ? rng_next(&f->rng) : v;
            row.position += pass;
            if (!failed)
                choose(f, &row, v, &b->out[last + b->n_out]);
        }
    }
    if (failed)
        err_set(&b->err, ERR_CUDA, "step of %u rows: the fake failed", b->n_rows);
    b->end_us = g->end_us[b->lane];
    if (f->shared)
        share_until(g, f->now_us);
    g->out[b->lane] = NULL;
    if (f->shared)
        share_ends(g);
    f->exec.done(f->exec.done_arg, b);
}

void fake_executor_init(struct fake_executor *f, uint32_t n_groups, uint32_t n_pages, uint64_t seed)
{
    struct fake_cost usual = {.step_us = 1000, .token_us = 10};
    *f = (struct fake_executor){.exec = {.self = f, .start = start, .move = move},
                                .cost = {usual, usual},
                                .move_us = 200,
                                .page_us = 20,
                                .vocab = 1000,
                                .check_every = 1,
                                .rng = {seed},
                                .dies_us = UINT64_MAX,
                                .n_groups = n_groups,
                                .n_pages = n_pages};
    for (uint32_t i = 0; i < n_groups; i++) {
        struct fake_group *g = &f->group[i];
        g->value = calloc((size_t)n_pages * KV_PAGE_TOKENS, sizeof *g->value);
        g->n_writers = calloc(n_pages, sizeof *g->n_writers);
        g->n_readers = calloc(n_pages, sizeof *g->n_readers);
        assert(g->value && g->n_writers && g->n_readers);
    }
}

void fake_executor_free(struct fake_executor *f)
{
    for (uint32_t i = 0; i < f->n_groups; i++) {
        struct fake_group *g = &f->group[i];
        assert(!g->out[LANE_PREFILL] && !g->out[LANE_DECODE] && !g->move);
        free(g->value);
        free(g->n_writers);
        free(g->n_readers);
    }
}

/* A move needs both of its groups. */
static bool move_ends(const struct fake_executor *f, const struct fake_group *g)
{
    return g->move && !g->dead && !f->group[g->move->target].dead;
}

uint64_t fake_executor_next_us(const struct fake_executor *f)
{
    uint64_t next = f->dies_us;
    for (uint32_t i = 0; i < f->n_groups; i++) {
        const struct fake_group *g = &f->group[i];
        for (int l = 0; l < N_LANES; l++)
            if (g->out[l] && !g->dead && g->end_us[l] < next)
                next = g->end_us[l];
        if (move_ends(f, g) && g->move_end_us < next)
            next = g->move_end_us;
    }
    return next;
}

void fake_executor_advance(struct fake_executor *f, uint64_t now_us)
{
    assert(now_us >= f->now_us);
    f->now_us = now_us;
    for (uint32_t i = 0; i < f->n_groups; i++) {
        struct fake_group *g = &f->group[i];
        for (int l = 0; l < N_LANES; l++)
            if (g->out[l] && !g->dead && g->end_us[l] <= now_us)
                finish(f, g->out[l]);
        if (move_ends(f, g) && g->move_end_us <= now_us)
            finish_move(f, g);
    }
    if (f->dies_us <= now_us) {
        struct err e;
        f->dies_us = UINT64_MAX;
        err_set(&e, ERR_CLOSED, "a rank does not answer");
        f->exec.lost(f->exec.done_arg, &e);
    }
}

void fake_executor_bury(struct fake_executor *f)
{
    f->dies_us = UINT64_MAX;
    for (uint32_t i = 0; i < f->n_groups; i++) {
        struct fake_group *g = &f->group[i];
        for (int l = 0; l < N_LANES; l++)
            if (g->out[l])
                finish(f, g->out[l]);
        if (g->move)
            finish_move(f, g);
    }
}
