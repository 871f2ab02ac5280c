/* reply.c - see reply.h. */
#include "reply.h"

#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The entry of call `index`, which is always the last one; a new one where there is none. */
static struct reply_call *entry(struct reply *r, uint32_t index)
{
    if (r->n_calls && r->call[r->n_calls - 1].index == index)
        return &r->call[r->n_calls - 1];
    if (r->n_calls == r->max_calls) {
        uint32_t max = r->max_calls ? 2 * r->max_calls : 4;
        struct reply_call *more = realloc(r->call, max * sizeof *more);
        if (!more) {
            r->failed = true;
            return NULL;
        }
        r->call = more;
        r->max_calls = max;
    }
    struct reply_call *c = &r->call[r->n_calls++];
    *c = (struct reply_call){.index = index};
    return c;
}

static void begin_call(struct reply *r, const struct output_event *ev)
{
    struct reply_call *c = entry(r, ev->call);
    uint64_t number = hash_mix(r->id_seed + ev->call);
    if (!c)
        return;
    c->begun = true;
    snprintf(c->id, sizeof c->id, "call_%016llx%08llx", (unsigned long long)number,
             (unsigned long long)(hash_mix(~number) >> 32));
    buf_add(&c->name, ev->text, ev->bytes);
}

static void on_event(void *arg, const struct output_event *ev)
{
    struct reply *r = arg;
    struct reply_call *c;
    if (r->full)
        return;
    switch (ev->kind) {
    case OUTPUT_REASONING:
        buf_add(&r->reasoning, ev->text, ev->bytes);
        break;
    case OUTPUT_CONTENT:
        buf_add(&r->content, ev->text, ev->bytes);
        break;
    case OUTPUT_CALL_BEGIN:
        begin_call(r, ev);
        break;
    case OUTPUT_CALL_ARGUMENTS:
        c = entry(r, ev->call);
        if (c)
            buf_add(&c->arguments, ev->text, ev->bytes);
        break;
    case OUTPUT_CALL_END:
        r->n_complete += ev->complete;
        r->full = r->one_call;
        break;
    }
}

struct output_sink reply_sink(struct reply *r)
{
    return (struct output_sink){on_event, r};
}

bool reply_has_text(const struct reply *r)
{
    return r->reasoning.n || r->content.n || r->n_calls;
}

bool reply_failed(const struct reply *r)
{
    bool failed = r->failed || r->reasoning.failed || r->content.failed;
    for (uint32_t i = 0; i < r->n_calls; i++)
        failed |= r->call[i].name.failed || r->call[i].arguments.failed;
    return failed;
}

void reply_clear(struct reply *r)
{
    for (uint32_t i = 0; i < r->n_calls; i++) {
        buf_free(&r->call[i].name);
        buf_free(&r->call[i].arguments);
    }
    r->n_calls = 0;
    buf_free(&r->reasoning);
    buf_free(&r->content);
}

void reply_free(struct reply *r)
{
    reply_clear(r);
    free(r->call);
    *r = (struct reply){0};
}

void reply_calls_json(const struct reply *r, struct jo *j, bool deltas)
{
    jo_key(j, "tool_calls");
    jo_arr(j);
    for (uint32_t i = 0; i < r->n_calls; i++) {
        const struct reply_call *c = &r->call[i];
        jo_obj(j);
        if (deltas)
            jo_ku64(j, "index", c->index);
        if (c->begun) {
            jo_kstr(j, "id", c->id);
            jo_kstr(j, "type", "function");
        }
        jo_key(j, "function");
        jo_obj(j);
        if (c->begun) {
            jo_key(j, "name");
            jo_strn(j, c->name.s ? c->name.s : "", c->name.n);
        }
        jo_key(j, "arguments");
        jo_strn(j, c->arguments.s ? c->arguments.s : "", c->arguments.n);
        jo_end(j, '}');
        jo_end(j, '}');
    }
    jo_end(j, ']');
}
