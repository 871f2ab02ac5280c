/* scheduler.c - see scheduler.h: life, the queue, cancels, the turn. */
#include "sched/scheduler_impl.h"

#include "base/fault.h"

#include <stdlib.h>

enum { DEFAULT_DECODE_BUDGET_US = 30000, RETRY_US = 1000 };

static bool make_batch(struct batch *b, enum lane lane, uint32_t max_seqs, uint32_t max_out)
{
    *b = (struct batch){.lane = lane, .max_seqs = max_seqs, .max_out = max_out};
    b->seq = calloc(max_seqs, sizeof *b->seq);
    b->out_row = calloc(max_out, sizeof *b->out_row);
    b->sample = calloc(max_out, sizeof *b->sample);
    b->out = FAULT("scheduler.batch") ? NULL : calloc(max_out, sizeof *b->out);
    return b->seq && b->out_row && b->sample && b->out;
}

static enum err_code make_tables(struct scheduler *s, struct err *e)
{
    const struct scheduler_config *c = &s->cfg;
    s->request = calloc(c->max_requests, sizeof *s->request);
    s->sequence = calloc(c->max_seqs, sizeof *s->sequence);
    s->free_seq = calloc(c->max_seqs, sizeof *s->free_seq);
    s->share = FAULT("scheduler.tables") ? NULL : calloc(c->max_seqs, sizeof *s->share);
    if (!s->request || !s->sequence || !s->free_seq || !s->share)
        return err_set(e, ERR_NOMEM, "scheduler: tables of %u requests and %u sequences",
                       c->max_requests, c->max_seqs);
    for (uint32_t i = 0; i < c->max_seqs; i++) {
        s->sequence[i].index = i;
        s->free_seq[s->n_free_seqs++] = c->max_seqs - 1 - i;
    }
    for (uint32_t i = 0; i < c->max_requests; i++) {
        s->request[i].last_event = gen_event_new(GEN_DONE, (struct req_id){0}, 0, 0);
        if (!s->request[i].last_event)
            return err_set(e, ERR_NOMEM, "scheduler: %u last events", c->max_requests);
    }
    uint32_t rows = c->prefill_tokens < c->max_seqs ? c->prefill_tokens : c->max_seqs;
    if (!make_batch(&s->batch[LANE_PREFILL], LANE_PREFILL, rows, c->max_out) ||
        !make_batch(&s->batch[LANE_DECODE], LANE_DECODE, c->max_seqs, c->max_out))
        return err_set(e, ERR_NOMEM, "scheduler: batches of %u results", c->max_out);
    return ERR_OK;
}

size_t scheduler_bytes(const struct scheduler_config *c)
{
    size_t page = 2 * sizeof(struct prefix_node) + 2 * sizeof(void *) + 2 * sizeof(uint32_t);
    size_t request = sizeof(struct request) + sizeof(struct gen_event);
    size_t sequence = sizeof(struct sequence) + sizeof(struct share) + sizeof(uint32_t);
    size_t result = sizeof(uint32_t) + sizeof(struct sample_row) + sizeof *((struct batch *)0)->out;
    return c->n_pages * page + c->max_requests * request + c->max_seqs * sequence +
           N_LANES * (c->max_out * result + c->max_seqs * sizeof(struct batch_seq));
}

enum err_code scheduler_create(struct scheduler **out, const struct scheduler_config *cfg,
                               struct err *e)
{
    assert(cfg->max_seqs >= 1 && cfg->max_out >= cfg->max_seqs);
    assert(cfg->max_requests >= 1 && cfg->prefill_tokens >= 1 && cfg->n_pages >= 1);
    struct scheduler *s = FAULT("scheduler.create") ? NULL : calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "scheduler");
    s->cfg = *cfg;
    if (!s->cfg.decode_budget_us)
        s->cfg.decode_budget_us = DEFAULT_DECODE_BUDGET_US;
    pace_init(&s->pace, s->cfg.decode_budget_us);
    fair_init(&s->fair);
    if (kv_pool_create(&s->pool, cfg->n_pages, e) ||
        prefix_cache_create(&s->cache, s->pool, 2 * cfg->n_pages, e) || make_tables(s, e)) {
        scheduler_destroy(s);
        return e->code;
    }
    *out = s;
    return ERR_OK;
}

/* Requests that are still inside go without a word. */
static void drop_all(struct scheduler *s)
{
    for (uint32_t i = 0; s->sequence && i < s->cfg.max_seqs; i++) {
        if (s->sequence[i].state != SEQ_FREE)
            sequence_drop(s, &s->sequence[i], s->sequence[i].kv_since_us);
    }
    for (uint32_t i = 0; s->request && i < s->cfg.max_requests; i++) {
        struct request *r = &s->request[i];
        gen_event_free(r->last_event);
        gen_event_free(r->prompt_event);
        gen_request_free(r->ask);
    }
}

void scheduler_destroy(struct scheduler *s)
{
    if (!s)
        return;
    assert(!s->out[LANE_PREFILL]);
    assert(!s->out[LANE_DECODE]);
    drop_all(s);
    prefix_cache_destroy(s->cache);
    kv_pool_destroy(s->pool); /* asserts that no page was lost */
    for (int l = 0; l < N_LANES; l++) {
        free(s->batch[l].seq);
        free(s->batch[l].out_row);
        free(s->batch[l].sample);
        free(s->batch[l].out);
    }
    free(s->request);
    free(s->sequence);
    free(s->free_seq);
    free(s->share);
    free(s);
}

void list_remove(struct request_list *l, struct request *r)
{
    *(r->prev ? &r->prev->next : &l->head) = r->next;
    *(r->next ? &r->next->prev : &l->tail) = r->prev;
    r->prev = r->next = NULL;
    assert(l->n > 0);
    l->n--;
}

/* After `after`; NULL: at the head. */
static void list_insert(struct request_list *l, struct request *r, struct request *after)
{
    r->prev = after;
    r->next = after ? after->next : l->head;
    *(r->next ? &r->next->prev : &l->tail) = r;
    *(after ? &after->next : &l->head) = r;
    l->n++;
}

void list_append(struct request_list *l, struct request *r)
{
    list_insert(l, r, l->tail);
}

void prefill_list_remove(struct scheduler *s, struct sequence *seq)
{
    *(seq->prev ? &seq->prev->next : &s->prefill_head) = seq->next;
    *(seq->next ? &seq->next->prev : &s->prefill_tail) = seq->prev;
    seq->prev = seq->next = NULL;
}

void scheduler_submit(struct scheduler *s, struct gen_request *req, uint64_t now_us)
{
    assert(req->id.slot < s->cfg.max_requests);
    struct request *r = &s->request[req->id.slot];
    struct err e;
    assert(r->state == REQ_FREE);
    *r = (struct request){
        .id = req->id, .ask = req, .arrival = s->n_arrived++, .last_event = r->last_event};
    r->key = admission_key(s, r);
    r->tag = fair_arrived(&s->fair, req, &r->cost);
    if (scheduler_can_ever_fit(&s->cfg, req, &e)) {
        r->state = REQ_RUNNING;
        request_fail(s, r, &e, now_us);
        return;
    }
    struct request *after = s->queue.tail;
    while (after && request_before(r, after))
        after = after->prev;
    list_insert(&s->queue, r, after);
    r->state = REQ_QUEUED;
    s->try_admission = true;
}

void scheduler_cancel(struct scheduler *s, struct req_id id, uint64_t now_us)
{
    if (id.slot >= s->cfg.max_requests)
        return;
    struct request *r = &s->request[id.slot];
    if (r->state != REQ_FREE && req_id_equal(r->id, id))
        request_cancel(s, r, now_us);
}

static void start(struct scheduler *s, enum lane lane)
{
    struct batch *b = &s->batch[lane];
    b->err.code = ERR_OK;
    b->start_us = b->end_us = 0;
    s->out[lane] = true;
    s->cfg.exec->start(s->cfg.exec->self, b);
}

uint64_t scheduler_turn(struct scheduler *s, uint64_t now_us)
{
    settle_ending(s, now_us);
    admit_requests(s, now_us);
    if (!s->out[LANE_DECODE] && plan_decode(s, now_us))
        start(s, LANE_DECODE);
    if (!s->out[LANE_PREFILL] && plan_prefill(s, now_us))
        start(s, LANE_PREFILL);
    return s->ending.n ? now_us + RETRY_US : UINT64_MAX;
}

bool scheduler_idle(const struct scheduler *s)
{
    return !s->queue.n && !s->ending.n && s->n_free_seqs == s->cfg.max_seqs &&
           !s->out[LANE_PREFILL] && !s->out[LANE_DECODE];
}

void scheduler_get_stats(const struct scheduler *s, struct engine_stats *out)
{
    *out = s->stats;
    out->running = s->cfg.max_seqs - s->n_free_seqs;
    out->waiting = s->queue.n;
    out->pages = s->cfg.n_pages;
    out->pages_cached = prefix_cache_n_idle(s->cache);
    out->pages_used = s->cfg.n_pages - kv_pool_n_free(s->pool) - out->pages_cached;
    out->step_in_flight = s->out[LANE_PREFILL] || s->out[LANE_DECODE];
}
