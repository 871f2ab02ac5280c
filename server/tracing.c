/* tracing.c - see tracing.h. */
#include "tracing.h"

#include "base/clock.h"
#include "base/hash.h"
#include "generation.h"

#include <string.h>
#include <time.h>

enum { MAX_ATTRIBUTES = 12 };

void tracing_begin(struct call *c, const char *traceparent)
{
    c->traced = traceparent || c->sv->otlp;
    if (c->traced)
        trace_begin(&c->trace, traceparent, hash_mix(c->sv->id_seed++));
}

/* What to add to clock_us() for Unix time. */
static uint64_t unix_offset_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000 - clock_us();
}

static void phase(struct call *c, const char *name, uint64_t begin_us, uint64_t us)
{
    struct span s = {.trace_id = c->trace.id,
                     .parent = c->trace.span,
                     .name = name,
                     .kind = SPAN_INTERNAL,
                     .begin_ns = begin_us * 1000,
                     .end_ns = (begin_us + us) * 1000};
    uint64_t seed = hash_bytes(hash_bytes(1, c->trace.span, SPAN_ID), name, strlen(name));
    uint8_t id[SPAN_ID];
    memcpy(id, &seed, sizeof id);
    s.id = id;
    otlp_add(c->sv->otlp, &s);
}

/* One after the other from when the engine had the request. */
static void phases(struct call *c, uint64_t offset_us)
{
    const struct generation *g = c->gen;
    if (!g || !g->submitted_us || !g->usage.total_us)
        return;
    const struct gen_usage *u = &g->usage;
    uint64_t at_us = g->submitted_us + offset_us;
    phase(c, "queue", at_us, u->queue_us);
    phase(c, "prefill", at_us + u->queue_us, u->prefill_us);
    phase(c, "decode", at_us + u->queue_us + u->prefill_us, u->decode_us);
}

void tracing_end(struct call *c, const char *handler, int status)
{
    struct server *sv = c->sv;
    struct span_attribute a[MAX_ATTRIBUTES];
    char name[80];
    uint32_t n = 0;
    if (!sv->otlp || !c->traced || !c->trace.sampled)
        return;
    if (!c->trace.has_parent && !(c->route && c->route->needs_engine))
        return; /* probes and scrapes would be most of it */
    uint64_t offset_us = unix_offset_us(), now_us = clock_us();
    snprintf(name, sizeof name, "%s %s", c->method, handler);
    a[n++] = (struct span_attribute){"http.request.method", c->method, 0};
    a[n++] = (struct span_attribute){"url.path", c->path, 0};
    a[n++] = (struct span_attribute){"http.response.status_code", NULL, status};
    a[n++] = (struct span_attribute){"gaze.request_id", c->request_id, 0};
    if (c->key)
        a[n++] = (struct span_attribute){"gaze.key", c->key->name, 0};
    if (c->gen) {
        const struct gen_usage *u = &c->gen->usage;
        a[n++] = (struct span_attribute){"gen_ai.request.model", sv->name, 0};
        a[n++] = (struct span_attribute){"gen_ai.response.id", c->gen->id, 0};
        a[n++] = (struct span_attribute){"gen_ai.usage.input_tokens", NULL, c->gen->prompt_tokens};
        a[n++] = (struct span_attribute){"gen_ai.usage.output_tokens", NULL, u->completion_tokens};
    }
    struct span s = {.trace_id = c->trace.id,
                     .id = c->trace.span,
                     .parent = c->trace.has_parent ? c->trace.parent : NULL,
                     .name = name,
                     .kind = SPAN_SERVER,
                     .begin_ns = (c->begun_us + offset_us) * 1000,
                     .end_ns = (now_us + offset_us) * 1000,
                     .attribute = a,
                     .n_attributes = n,
                     .error = status >= 500   ? "the server failed"
                              : status == 499 ? "the client left"
                                              : NULL};
    otlp_add(sv->otlp, &s);
    phases(c, offset_us);
}
