/* request.c - see request.h. */
#include "request.h"

#include "base/fault.h"
#include "event_pool.h"
#include "grammar/grammar.h"

#include <stdlib.h>
#include <string.h>

struct gen_request *gen_request_new(void)
{
    struct gen_request *r = FAULT("request.new") ? NULL : calloc(1, sizeof *r);
    if (!r)
        return NULL;
    arena_init(&r->arena, 1024); /* a longer prompt has a block of its own */
    r->n = 1;
    r->grammar_after_id = UINT32_MAX;
    r->sample = (struct sample_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    return r;
}

void gen_request_free(struct gen_request *r)
{
    if (!r)
        return;
    grammar_close(r->grammar);
    arena_free(&r->arena);
    free(r);
}

/* One block: the event, its results, its text. */
struct gen_event *gen_event_new(enum gen_event_kind kind, struct req_id id, uint32_t n_tokens,
                                size_t text_bytes)
{
    size_t out_bytes = n_tokens * sizeof(struct sample_out);
    struct gen_event *ev =
        FAULT("event.new") ? NULL : calloc(1, sizeof *ev + out_bytes + text_bytes + 1);
    if (!ev)
        return NULL;
    ev->kind = kind;
    ev->id = id;
    ev->n_tokens = n_tokens;
    ev->out = (struct sample_out *)(ev + 1);
    ev->text = (char *)(ev + 1) + out_bytes;
    ev->text_bytes = text_bytes;
    ev->stop_reason = -1;
    return ev;
}

void gen_event_free(struct gen_event *ev)
{
    if (ev && ev->home)
        event_pool_put(ev->home, ev);
    else
        free(ev);
}
