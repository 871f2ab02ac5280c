/* groups.c - the attention groups: their tables, lists and counters. */
#include "sched/scheduler_impl.h"

#include "base/fault.h"

#include <stdlib.h>

static bool make_batch(struct batch *b, const struct group *g, enum lane lane, uint32_t max_seqs,
                       uint32_t max_out)
{
    *b = (struct batch){.work.kind = WORK_BATCH,
                        .group = g->index,
                        .lane = lane,
                        .max_seqs = max_seqs,
                        .max_out = max_out};
    b->seq = calloc(max_seqs, sizeof *b->seq);
    b->out_row = calloc(max_out, sizeof *b->out_row);
    b->sample = calloc(max_out, sizeof *b->sample);
    uint32_t passes = lane == LANE_DECODE ? 1 + OPS_MAX_MORE : 1;
    size_t results = (size_t)passes * max_seqs > max_out ? (size_t)passes * max_seqs : max_out;
    b->out = FAULT("scheduler.batch") ? NULL : calloc(results, sizeof *b->out);
    return b->seq && b->out_row && b->sample && b->out;
}

static bool make_move(struct page_move *m, const struct group *g, uint32_t max_pages)
{
    *m = (struct page_move){.work.kind = WORK_MOVE, .source = g->index, .max_pages = max_pages};
    m->sum_from = calloc(max_pages, sizeof *m->sum_from);
    m->sum_to = FAULT("scheduler.move") ? NULL : calloc(max_pages, sizeof *m->sum_to);
    return m->sum_from && m->sum_to;
}

static enum err_code group_open(struct scheduler *s, struct group *g, struct err *e)
{
    const struct scheduler_config *c = &s->cfg;
    uint32_t rows = c->prefill_tokens < c->max_seqs ? c->prefill_tokens : c->max_seqs;
    if (kv_pool_create(&g->pool, c->n_pages, e) ||
        prefix_cache_create(&g->cache, g->pool, group_prefills(g) ? 2 * c->n_pages : 0, e))
        return e->code;
    pace_init(&g->pace, (double)c->decode_budget_us);
    g->passed = UINT32_MAX;
    g->share = FAULT("scheduler.tables") ? NULL : calloc(c->max_seqs, sizeof *g->share);
    if (!g->share || !make_batch(&g->batch[LANE_PREFILL], g, LANE_PREFILL, rows, c->max_out) ||
        !make_batch(&g->batch[LANE_DECODE], g, LANE_DECODE, c->max_seqs, c->max_out) ||
        (!group_decodes(g) && !make_move(&g->move, g, kv_pages_for(c->max_context))))
        return err_set(e, ERR_NOMEM, "scheduler: batches of %u results", c->max_out);
    return ERR_OK;
}

enum err_code groups_create(struct scheduler *s, struct err *e)
{
    uint32_t n = scheduler_n_groups(&s->cfg), n_prefill = 0, n_decode = 0;
    s->group = calloc(n, sizeof *s->group);
    if (!s->group)
        return err_set(e, ERR_NOMEM, "scheduler: %u groups", n);
    s->n_groups = n;
    for (uint32_t i = 0; i < n; i++) {
        struct group *g = &s->group[i];
        g->index = i;
        g->role = s->cfg.role[i];
        n_prefill += group_prefills(g);
        n_decode += group_decodes(g);
        if (group_open(s, g, e))
            return e->code;
    }
    assert(n_prefill > 0);
    assert(n_decode > 0);
    s->n_slots = n_decode * s->cfg.max_seqs; /* each sequence has a seat in a group that decodes */
    return ERR_OK;
}

void groups_destroy(struct scheduler *s)
{
    for (uint32_t i = 0; i < s->n_groups; i++) {
        struct group *g = &s->group[i];
        assert(!group_busy(g));
        prefix_cache_destroy(g->cache);
        kv_pool_destroy(g->pool); /* asserts that no page was lost */
        for (int l = 0; l < N_LANES; l++) {
            free(g->batch[l].seq);
            free(g->batch[l].out_row);
            free(g->batch[l].sample);
            free(g->batch[l].out);
        }
        free(g->move.sum_from);
        free(g->move.sum_to);
        free(g->share);
    }
    free(s->group);
}

bool group_busy(const struct group *g)
{
    return g->out[LANE_PREFILL] || g->out[LANE_DECODE] || g->move_out;
}

void group_get_stats(const struct group *g, struct engine_group_stats *out)
{
    *out = g->stats;
    out->role = g->role;
    out->running = g->n_seats;
    out->pages = kv_pool_n_pages(g->pool);
    out->pages_cached = prefix_cache_n_idle(g->cache);
    out->pages_used = out->pages - kv_pool_n_free(g->pool) - out->pages_cached;
}

void seq_list_insert(struct seq_list *l, struct sequence *seq, struct sequence *after)
{
    seq->prev = after;
    seq->next = after ? after->next : l->head;
    *(seq->next ? &seq->next->prev : &l->tail) = seq;
    *(after ? &after->next : &l->head) = seq;
}

void seq_list_remove(struct seq_list *l, struct sequence *seq)
{
    *(seq->prev ? &seq->prev->next : &l->head) = seq->next;
    *(seq->next ? &seq->next->prev : &l->tail) = seq->prev;
    seq->prev = seq->next = NULL;
}

struct seq_list *group_list(struct group *g, enum seq_state state)
{
    switch (state) {
    case SEQ_PREFILL:
        return &g->prefill;
    case SEQ_MOVE:
        return &g->moving;
    case SEQ_REDO:
        return &g->redo;
    case SEQ_FREE:
    case SEQ_DECODE:
        break;
    }
    return NULL;
}

void prefill_list_add(struct scheduler *s, struct sequence *seq)
{
    struct seq_list *l = &s->group[seq->group].prefill;
    struct sequence *after = l->tail;
    while (after && request_before(seq->req, after->req))
        after = after->prev;
    seq_list_insert(l, seq, after);
}
