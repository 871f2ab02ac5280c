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

static void check_read(const struct fake_executor *f, const struct batch_seq *q, uint32_t from)
{
    const uint32_t *token = q->token - q->pos0; /* the sequence's tokens from its first one */
    for (uint32_t p = from; p < q->pos0; p++) {
        uint64_t v = f->value[slot_of(q, p)];
        assert(v != 0); /* read before it was written */
        uint64_t before = p ? f->value[slot_of(q, p - 1)] : 0;
        /* Rows of the prompt may have been written in either form: by a prefill or by a decode. */
        struct batch_seq form = *q;
        form.expand_below = UINT32_MAX;
        bool ok = row_value(&form, before, p, token[p]) == v;
        form.expand_below = 0;
        assert(ok || row_value(&form, before, p, token[p]) == v);
    }
}

static void claim_pages(struct fake_executor *f, const struct batch_seq *q)
{
    uint32_t first = q->pos0 / KV_PAGE_TOKENS, end = (q->pos0 + q->n_tokens - 1) / KV_PAGE_TOKENS;
    for (uint32_t i = 0; i <= end; i++)
        assert(q->page[i] < f->n_pages);
    for (uint32_t i = 0; i < first; i++) {
        assert(f->n_writers[q->page[i]] == 0);
        f->n_readers[q->page[i]]++;
    }
    for (uint32_t i = first; i <= end; i++) {
        assert(f->n_writers[q->page[i]] == 0);
        assert(f->n_readers[q->page[i]] == 0);
        f->n_writers[q->page[i]]++;
    }
}

static void unclaim_pages(struct fake_executor *f, const struct batch_seq *q)
{
    uint32_t first = q->pos0 / KV_PAGE_TOKENS, end = (q->pos0 + q->n_tokens - 1) / KV_PAGE_TOKENS;
    for (uint32_t i = 0; i < first; i++)
        f->n_readers[q->page[i]]--;
    for (uint32_t i = first; i <= end; i++)
        f->n_writers[q->page[i]]--;
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

static void start(void *self, struct batch *b)
{
    struct fake_executor *f = self;
    uint32_t n_rows = 0;
    assert(!f->out[b->lane]);
    assert(b->n_seqs >= 1);
    bool thorough = f->check_every && f->n_steps % f->check_every == 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        assert(q->row0 == n_rows && q->n_tokens >= 1);
        n_rows += q->n_tokens;
        claim_pages(f, q);
        check_read(f, q, thorough || q->pos0 < KV_PAGE_TOKENS ? 0 : q->pos0 - KV_PAGE_TOKENS);
    }
    assert(n_rows == b->n_rows);
    check_results(b);
    uint64_t begin = f->serial && f->busy_until_us > f->now_us ? f->busy_until_us : f->now_us;
    b->start_us = begin;
    f->end_us[b->lane] = begin + (uint64_t)cost_of(f, b) + 1;
    if (f->serial)
        f->busy_until_us = f->end_us[b->lane];
    f->out[b->lane] = b;
    f->n_steps++;
    f->n_rows += n_rows;
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
    bool failed = f->fail_per_1000 && rng_below(&f->rng, 1000) < f->fail_per_1000;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        uint32_t k = q->out0;
        unclaim_pages(f, q);
        for (uint32_t t = 0; t < q->n_tokens; t++) {
            uint32_t pos = q->pos0 + t;
            uint64_t before = pos ? f->value[slot_of(q, pos - 1)] : 0;
            uint64_t v = row_value(q, before, pos, q->token[t]);
            f->value[slot_of(q, pos)] = failed ? rng_next(&f->rng) : v;
            if (!failed && k < q->out0 + q->n_out && b->out_row[k] == q->row0 + t) {
                choose(f, &b->sample[k], v, &b->out[k]);
                k++;
            }
        }
    }
    if (failed)
        err_set(&b->err, ERR_CUDA, "step of %u rows: the fake failed", b->n_rows);
    b->end_us = f->end_us[b->lane];
    f->out[b->lane] = NULL;
    f->exec.done(f->exec.done_arg, b);
}

void fake_executor_init(struct fake_executor *f, uint32_t n_pages, uint64_t seed)
{
    struct fake_cost usual = {.step_us = 1000, .token_us = 10};
    *f = (struct fake_executor){.exec = {.self = f, .start = start},
                                .cost = {usual, usual},
                                .vocab = 1000,
                                .check_every = 1,
                                .rng = {seed},
                                .n_pages = n_pages};
    f->value = calloc((size_t)n_pages * KV_PAGE_TOKENS, sizeof *f->value);
    f->n_writers = calloc(n_pages, sizeof *f->n_writers);
    f->n_readers = calloc(n_pages, sizeof *f->n_readers);
    assert(f->value && f->n_writers && f->n_readers);
}

void fake_executor_free(struct fake_executor *f)
{
    assert(!f->out[LANE_PREFILL] && !f->out[LANE_DECODE]);
    free(f->value);
    free(f->n_writers);
    free(f->n_readers);
}

uint64_t fake_executor_next_us(const struct fake_executor *f)
{
    uint64_t next = UINT64_MAX;
    for (int l = 0; l < N_LANES; l++)
        if (f->out[l] && f->end_us[l] < next)
            next = f->end_us[l];
    return next;
}

void fake_executor_advance(struct fake_executor *f, uint64_t now_us)
{
    assert(now_us >= f->now_us);
    f->now_us = now_us;
    for (int l = 0; l < N_LANES; l++)
        if (f->out[l] && f->end_us[l] <= now_us)
            finish(f, f->out[l]);
}
