/* check.c - what must be true between any two calls; for tests, O(pages + sequences). */
#include "sched/scheduler_impl.h"

#include <stdlib.h>

static void check_sequence(const struct scheduler *s, const struct sequence *seq)
{
    const struct request *r = seq->req;
    uint32_t i = 0;
    assert(r->state == REQ_RUNNING);
    assert(!request_is_over(r) || seq->in_flight);
    assert(!seq->in_flight || s->out[LANE_PREFILL] || s->out[LANE_DECODE]);
    assert(seq->n_computed < seq->n_tokens);
    assert(seq->n_tokens <= s->cfg.max_context);
    assert(seq->table.n_pages * KV_PAGE_TOKENS >= seq->n_computed);
    assert(seq->table.n_pages <= seq->table.max_pages);
    assert((seq->state == SEQ_PREFILL) == (seq->n_tokens == seq->n_prompt));
    for (; i < seq->n_nodes; i++) {
        const struct prefix_node *node = seq->node[i];
        assert(node->used && node->n_users > 0);
        assert(node->parent == (i ? seq->node[i - 1] : NULL));
        if (i < seq->n_computed / KV_PAGE_TOKENS)
            assert(node->ready && node->page == seq->table.page[i]);
        if (!node->ready) {
            const struct sequence *owner = &s->sequence[node->owner];
            assert(owner->state == SEQ_PREFILL && owner->n_nodes > i);
            assert(owner->node[i] == node);
        }
    }
}

static void check_queue(const struct scheduler *s)
{
    uint32_t n = 0;
    for (const struct request *r = s->queue.head; r; r = r->next) {
        assert(r->state == REQ_QUEUED);
        assert(!r->next || (r->next->prev == r && request_before(r, r->next)));
        assert(r->n_passed <= MAX_PASSED);
        n++;
    }
    assert(n == s->queue.n);
    /* Nobody waits for pages that are all there: with nothing running, the head must fit. */
    assert(!s->queue.n || s->try_admission || s->n_free_seqs < s->cfg.max_seqs);
}

void scheduler_check(const struct scheduler *s)
{
    uint32_t n_used = 0, n_decoding = 0, n_prefill = 0, n_listed = 0;
    uint64_t n_promised = 0;
    uint32_t *held = calloc(s->cfg.n_pages ? s->cfg.n_pages : 1, sizeof *held);
    assert(held);
    kv_pool_check(s->pool);
    prefix_cache_check(s->cache, held);
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++) {
        const struct sequence *seq = &s->sequence[i];
        if (seq->state == SEQ_FREE)
            continue;
        n_used++;
        n_decoding += seq->state == SEQ_DECODE;
        n_prefill += seq->state == SEQ_PREFILL;
        n_promised += seq->n_promised;
        check_sequence(s, seq);
        for (uint32_t p = 0; p < seq->table.n_pages; p++)
            held[seq->table.page[p]]++;
    }
    for (uint32_t p = 0; p < s->cfg.n_pages; p++)
        assert(held[p] == kv_pool_holders(s->pool, p));
    free(held);
    for (const struct sequence *q = s->prefill_head; q; q = q->next)
        n_listed++;
    assert(n_listed == n_prefill);
    assert(n_decoding == s->n_decoding);
    assert(n_used + s->n_free_seqs == s->cfg.max_seqs);
    assert(n_promised == s->n_promised);
    assert((uint64_t)kv_pool_n_free(s->pool) + prefix_cache_n_idle(s->cache) >= n_promised);
    check_queue(s);
}
