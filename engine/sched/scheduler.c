/* scheduler.c - see scheduler.h: life, the queue, cancels, the turn. */
#include "sched/scheduler_impl.h"

#include "base/fault.h"

#include <stdlib.h>

enum { DEFAULT_DECODE_BUDGET_US = 30000, RETRY_US = 1000 };

/* The last event of each request, and what the running ones say before. */
static uint32_t n_events(const struct scheduler_config *c)
{
    return c->max_requests + scheduler_n_groups(c) * c->max_seqs * EVENT_POOL_EACH;
}

static enum err_code make_tables(struct scheduler *s, struct err *e)
{
    const struct scheduler_config *c = &s->cfg;
    s->request = calloc(c->max_requests, sizeof *s->request);
    s->sequence = calloc(s->n_slots, sizeof *s->sequence);
    s->free_seq = calloc(s->n_slots, sizeof *s->free_seq);
    if (event_pool_create(&s->events, n_events(c), e))
        return e->code;
    if (!s->request || !s->sequence || !s->free_seq)
        return err_set(e, ERR_NOMEM, "scheduler: tables of %u requests and %u sequences",
                       c->max_requests, s->n_slots);
    for (uint32_t i = 0; i < s->n_slots; i++) {
        s->sequence[i].index = i;
        s->free_seq[s->n_free_seqs++] = s->n_slots - 1 - i;
    }
    for (uint32_t i = 0; i < c->max_requests; i++) {
        s->request[i].last_event = event_pool_new(s->events, GEN_DONE, (struct req_id){0}, 0, 0);
        if (!s->request[i].last_event)
            return err_set(e, ERR_NOMEM, "scheduler: %u last events", c->max_requests);
    }
    return ERR_OK;
}

size_t scheduler_bytes(const struct scheduler_config *c)
{
    size_t page = 2 * sizeof(struct prefix_node) + 2 * sizeof(void *) + 2 * sizeof(uint32_t);
    size_t request = sizeof(struct request);
    size_t sequence = sizeof(struct sequence) + sizeof(struct share) + sizeof(uint32_t);
    size_t result = sizeof(uint32_t) + sizeof(struct sample_row) + sizeof *((struct batch *)0)->out;
    size_t group = c->n_pages * page + c->max_seqs * sequence + sizeof(struct group) +
                   N_LANES * (c->max_out * result + c->max_seqs * sizeof(struct batch_seq)) +
                   OPS_MAX_MORE * c->max_seqs * sizeof *((struct batch *)0)->out +
                   2 * sizeof(uint64_t) * kv_pages_for(c->max_context);
    return c->max_requests * request + scheduler_n_groups(c) * group +
           event_pool_bytes(n_events(c));
}

enum err_code scheduler_create(struct scheduler **out, const struct scheduler_config *cfg,
                               struct err *e)
{
    assert(cfg->max_seqs >= 1 && cfg->max_out >= cfg->max_seqs);
    assert(cfg->n_groups <= ENGINE_MAX_GROUPS);
    assert(cfg->max_requests >= 1 && cfg->prefill_tokens >= 1 && cfg->n_pages >= 1);
    struct scheduler *s = FAULT("scheduler.create") ? NULL : calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ERR_NOMEM, "scheduler");
    s->cfg = *cfg;
    if (!s->cfg.decode_budget_us)
        s->cfg.decode_budget_us = DEFAULT_DECODE_BUDGET_US;
    fair_init(&s->fair);
    if (groups_create(s, e) || make_tables(s, e)) {
        scheduler_destroy(s);
        return e->code;
    }
    *out = s;
    return ERR_OK;
}

/* Requests that are still inside go without a word. */
static void drop_all(struct scheduler *s)
{
    for (uint32_t i = 0; s->sequence && i < s->n_slots; i++) {
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
    drop_all(s);
    groups_destroy(s);
    event_pool_destroy(s->events);
    free(s->request);
    free(s->sequence);
    free(s->free_seq);
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
    if (s->lost.code)
        e = s->lost;
    if (s->lost.code || scheduler_can_ever_fit(&s->cfg, req, &e)) {
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

static void start(struct scheduler *s, struct group *g, enum lane lane, uint64_t now_us)
{
    struct batch *b = &g->batch[lane];
    b->err.code = ERR_OK;
    b->start_us = b->end_us = 0;
    g->out[lane] = true;
    g->out_us[lane] = now_us;
    s->cfg.exec->start(s->cfg.exec->self, b);
}

static void start_move(struct scheduler *s, struct group *g, uint64_t now_us)
{
    g->move.err.code = ERR_OK;
    g->move.start_us = g->move.end_us = 0;
    g->move_out = true;
    g->move_out_us = now_us;
    s->cfg.exec->move(s->cfg.exec->self, &g->move);
}

static void start_what_can(struct scheduler *s, struct group *g, uint64_t now_us)
{
    if (!g->move_out && plan_move(s, g, now_us))
        start_move(s, g, now_us);
    if (!g->out[LANE_DECODE] && plan_decode(s, g, now_us))
        start(s, g, LANE_DECODE, now_us);
    if (!g->out[LANE_PREFILL] && plan_prefill(s, g, now_us))
        start(s, g, LANE_PREFILL, now_us);
}

uint64_t scheduler_turn(struct scheduler *s, uint64_t now_us)
{
    settle_ending(s, now_us);
    for (uint32_t i = 0; i < s->n_groups; i++)
        plan_redo(s, &s->group[i]);
    admit_requests(s, now_us);
    for (uint32_t i = 0; i < s->n_groups && !s->lost.code; i++)
        start_what_can(s, &s->group[i], now_us);
    return s->ending.n ? now_us + RETRY_US : UINT64_MAX;
}

void scheduler_lose(struct scheduler *s, const struct err *why, uint64_t now_us)
{
    assert(why->code);
    if (s->lost.code)
        return;
    s->lost = *why;
    for (uint32_t i = 0; i < s->cfg.max_requests; i++) {
        struct request *r = &s->request[i];
        if (r->state == REQ_FREE)
            continue;
        if (r->state == REQ_QUEUED) {
            list_remove(&s->queue, r);
            r->state = REQ_RUNNING;
        }
        if (request_is_over(r))
            request_settle(s, r, now_us);
        else
            request_fail(s, r, why, now_us);
    }
}

uint64_t scheduler_oldest_us(const struct scheduler *s, uint32_t *group)
{
    uint64_t oldest = UINT64_MAX;
    for (uint32_t i = 0; i < s->n_groups; i++) {
        const struct group *g = &s->group[i];
        uint64_t since = g->move_out ? g->move_out_us : UINT64_MAX;
        for (int l = 0; l < N_LANES; l++)
            if (g->out[l] && g->out_us[l] < since)
                since = g->out_us[l];
        if (since < oldest) {
            oldest = since;
            *group = i;
        }
    }
    return oldest;
}

static bool is_busy(const struct scheduler *s)
{
    uint32_t group;
    return scheduler_oldest_us(s, &group) != UINT64_MAX;
}

bool scheduler_idle(const struct scheduler *s)
{
    return !s->queue.n && !s->ending.n && s->n_free_seqs == s->n_slots && !is_busy(s);
}

void scheduler_get_stats(const struct scheduler *s, struct engine_stats *out)
{
    *out = s->stats;
    out->running = s->n_slots - s->n_free_seqs;
    out->waiting = s->queue.n;
    out->n_groups = s->n_groups;
    for (uint32_t i = 0; i < s->n_groups; i++) {
        struct engine_group_stats *g = &out->group[i];
        group_get_stats(&s->group[i], g);
        out->pages += g->pages;
        out->pages_cached += g->pages_cached;
        out->pages_used += g->pages_used;
        out->prefill_steps += g->prefill_steps;
        out->decode_steps += g->decode_steps;
    }
    out->step_in_flight = is_busy(s);
}
