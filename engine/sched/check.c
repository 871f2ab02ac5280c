/* check.c - what must be true between any two calls; for tests, O(pages + sequences). */
#include "sched/scheduler_impl.h"

#include <stdlib.h>

/* Its prompt is run, and its pages are all in its group or on their way out of it. */
static void check_moving(const struct scheduler *s, const struct sequence *seq)
{
    const struct group *g = &s->group[seq->group];
    assert(seq->target != seq->group);
    assert(group_prefills(g));
    assert(group_decodes(&s->group[seq->target]));
    assert(seq->moved.n_pages + seq->n_moved_promised == seq->moved.max_pages);
    assert(seq->table.max_pages == kv_pages_for(seq->n_prompt));
    if (seq->state == SEQ_MOVE) {
        assert(seq->n_computed == seq->n_prompt);
        assert(!seq->in_flight || (g->move_out && g->move.seq_slot == seq->index));
    } else {
        assert(seq->moved.n_pages == 0);
    }
    if (seq->state == SEQ_REDO) {
        assert(!seq->in_flight);
        assert(seq->n_computed == 0 && seq->n_promised == 0 && seq->table.n_pages == 0);
    }
    assert(seq->n_redos || seq->state != SEQ_REDO);
    assert(!seq->n_redos || seq->n_nodes == 0);
}

static void check_sequence(const struct scheduler *s, const struct sequence *seq)
{
    const struct request *r = seq->req;
    uint32_t i = 0;
    assert(r->state == REQ_RUNNING || s->lost.code);
    assert(!request_is_over(r) || seq->in_flight);
    assert(!seq->in_flight || group_busy(&s->group[seq->group]));
    assert(seq->n_computed < seq->n_tokens);
    assert(seq->n_tokens <= s->cfg.max_context);
    assert(seq->table.n_pages * KV_PAGE_TOKENS >= seq->n_computed);
    assert(seq->table.n_pages <= seq->table.max_pages);
    assert((seq->state == SEQ_PREFILL) == (seq->n_tokens == seq->n_prompt) || seq->n_redos);
    assert(group_list(&s->group[seq->group], seq->state) || seq->state == SEQ_DECODE);
    if (seq->state == SEQ_DECODE)
        assert(seq->target == seq->group && seq->moved.n_pages == 0 && !seq->n_moved_promised);
    else if (seq->target != seq->group)
        check_moving(s, seq);
    for (; i < seq->n_nodes; i++) {
        const struct prefix_node *node = seq->node[i];
        assert(node->used && node->n_users > 0);
        assert(node->parent == (i ? seq->node[i - 1] : NULL));
        if (i < seq->n_computed / KV_PAGE_TOKENS)
            assert(node->ready && node->page == seq->table.page[i]);
        if (!node->ready) {
            const struct sequence *owner = &s->sequence[node->owner];
            assert(owner->state == SEQ_PREFILL && owner->n_nodes > i);
            assert(owner->node[i] == node && owner->group == seq->group);
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
    assert(!s->queue.n || s->try_admission || s->n_free_seqs < s->n_slots);
}

static void check_list(const struct group *g, const struct seq_list *l, enum seq_state state,
                       uint32_t n)
{
    uint32_t n_listed = 0;
    for (const struct sequence *q = l->head; q; q = q->next) {
        assert(q->state == state && q->group == g->index);
        assert(q->next ? q->next->prev == q : l->tail == q);
        n_listed++;
    }
    assert(n_listed == n);
}

static void check_group(const struct scheduler *s, struct group *g, uint32_t *held)
{
    uint32_t n[SEQ_DECODE + 1] = {0}, n_seats = 0;
    uint64_t n_promised = 0;
    kv_pool_check(g->pool);
    for (uint32_t p = 0; p < s->cfg.n_pages; p++)
        held[p] = 0;
    prefix_cache_check(g->cache, held);
    for (uint32_t i = 0; i < s->n_slots; i++) {
        const struct sequence *seq = &s->sequence[i];
        bool here = seq->state != SEQ_FREE && seq->group == g->index;
        bool comes = seq->state != SEQ_FREE && !here && seq->target == g->index;
        const struct block_table *t = here ? &seq->table : &seq->moved;
        n[seq->state] += here;
        n_seats += here || comes;
        n_promised += here ? seq->n_promised : comes ? seq->n_moved_promised : 0;
        for (uint32_t p = 0; (here || comes) && p < t->n_pages; p++)
            held[t->page[p]]++;
    }
    for (uint32_t p = 0; p < s->cfg.n_pages; p++)
        assert(held[p] == kv_pool_holders(g->pool, p));
    for (enum seq_state state = SEQ_PREFILL; state < SEQ_DECODE; state++)
        check_list(g, group_list(g, state), state, n[state]);
    assert(n[SEQ_DECODE] == g->n_decoding);
    assert(n_seats == g->n_seats && n_seats <= s->cfg.max_seqs);
    assert(n_promised == g->n_promised);
    assert(group_room(g) >= n_promised);
    assert(group_prefills(g) || (!n[SEQ_PREFILL] && prefix_cache_n_nodes(g->cache) == 0));
    assert(group_decodes(g) || !n[SEQ_DECODE]);
}

void scheduler_check(const struct scheduler *s)
{
    uint32_t n_used = 0;
    uint32_t *held = calloc(s->cfg.n_pages ? s->cfg.n_pages : 1, sizeof *held);
    assert(held);
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->sequence[i].state == SEQ_FREE)
            continue;
        n_used++;
        check_sequence(s, &s->sequence[i]);
    }
    for (uint32_t i = 0; i < s->n_groups; i++)
        check_group(s, &s->group[i], held);
    free(held);
    assert(n_used + s->n_free_seqs == s->n_slots);
    check_queue(s);
}
