/* event_pool.c - see event_pool.h. */
#include "event_pool.h"

#include "base/fault.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    struct gen_event ev; /* first: an event is its slot */
    struct sample_out out;
    char text[EVENT_POOL_TEXT + 1];
    struct slot *next;
};

struct event_pool {
    struct slot *slot;            /* [n] */
    struct slot *stock;           /* the taker's */
    struct slot *_Atomic brought; /* what has come back since */
    uint32_t n;
};

enum err_code event_pool_create(struct event_pool **out, uint32_t n_events, struct err *e)
{
    struct event_pool *p = FAULT("event_pool.create") ? NULL : calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "events");
    p->n = n_events;
    p->slot = calloc(n_events, sizeof *p->slot);
    if (!p->slot) {
        free(p);
        return err_set(e, ERR_NOMEM, "%u events", n_events);
    }
    for (uint32_t i = 0; i < n_events; i++) {
        p->slot[i].next = p->stock;
        p->stock = &p->slot[i];
    }
    *out = p;
    return ERR_OK;
}

static uint32_t length(const struct slot *s)
{
    uint32_t n = 0;
    for (; s; s = s->next)
        n++;
    return n;
}

void event_pool_destroy(struct event_pool *p)
{
    if (!p)
        return;
    assert(length(p->stock) + length(atomic_load(&p->brought)) == p->n);
    free(p->slot);
    free(p);
}

size_t event_pool_bytes(uint32_t n_events)
{
    return sizeof(struct event_pool) + n_events * sizeof(struct slot);
}

struct gen_event *event_pool_new(struct event_pool *p, enum gen_event_kind kind, struct req_id id,
                                 uint32_t n_tokens, size_t text_bytes)
{
    if (!p->stock)
        p->stock = atomic_exchange_explicit(&p->brought, NULL, memory_order_acquire);
    if (!p->stock || n_tokens > 1 || text_bytes > EVENT_POOL_TEXT)
        return gen_event_new(kind, id, n_tokens, text_bytes);
    if (FAULT("event.new"))
        return NULL;
    struct slot *s = p->stock;
    p->stock = s->next;
    s->out = (struct sample_out){0};
    s->text[text_bytes] = '\0';
    s->ev = (struct gen_event){.home = p,
                               .id = id,
                               .kind = kind,
                               .n_tokens = n_tokens,
                               .out = &s->out,
                               .text = s->text,
                               .text_bytes = text_bytes,
                               .stop_reason = -1};
    return &s->ev;
}

void event_pool_put(struct event_pool *p, struct gen_event *ev)
{
    struct slot *s = (struct slot *)ev;
    s->next = atomic_load_explicit(&p->brought, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&p->brought, &s->next, s, memory_order_release,
                                                  memory_order_relaxed)) {
    }
}
