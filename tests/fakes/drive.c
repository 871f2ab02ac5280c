/* drive.c - see drive.h. */
#include "drive.h"

#include "base/thread.h"
#include "test.h"

#include <unistd.h>

static void submit(struct engine *en, const struct drive_wish *w, struct req_id *id, struct err *e)
{
    struct gen_request *r = gen_request_new();
    CHECK(r != NULL);
    r->prompt = memcpy(arena_alloc(&r->arena, w->n_prompt * sizeof *w->prompt), w->prompt,
                       w->n_prompt * sizeof *w->prompt);
    r->n_prompt = w->n_prompt;
    r->n = w->n ? w->n : 1;
    r->max_tokens = w->max_tokens;
    r->ignore_eos = true;
    r->top_k_dsa = w->top_k_dsa;
    r->sample.temperature = w->temperature;
    r->sample.seed = w->seed;
    r->sample.want_logprob = true;
    r->sample.n_top = w->n_top;
    r->cache_salt = w->salt;
    r->prompt_logprobs = w->prompt_logprobs;
    if (engine_submit(en, r, id, e) == ERR_OK)
        e->code = ERR_OK;
}

static void take(struct engine *en, struct gen_event *ev, const struct drive_wish *w,
                 struct drive_result *r)
{
    struct drive_choice *c = &r->choice[ev->choice];
    switch (ev->kind) {
    case GEN_PROGRESS:
        break;
    case GEN_PROMPT:
        CHECK(ev->n_tokens <= sizeof r->prompt_out / sizeof *r->prompt_out);
        memcpy(r->prompt_out, ev->out, ev->n_tokens * sizeof *ev->out);
        r->n_prompt_out = ev->n_tokens;
        break;
    case GEN_TOKENS:
    case GEN_CHOICE:
        CHECK(ev->choice < DRIVE_MAX_CHOICES && c->n + ev->n_tokens <= DRIVE_MAX_TOKENS);
        memcpy(c->out + c->n, ev->out, ev->n_tokens * sizeof *ev->out);
        c->n += ev->n_tokens;
        strncat(c->text, ev->text, sizeof c->text - strlen(c->text) - 1);
        if (ev->kind == GEN_CHOICE)
            c->finish = ev->finish;
        if (w->cancel_after && c->n >= w->cancel_after)
            engine_cancel(en, ev->id);
        break;
    case GEN_DONE:
        r->usage = ev->usage;
        r->done = true;
        break;
    case GEN_ERROR:
        r->err = ev->err;
        r->done = true;
        break;
    }
}

void drive(struct engine *en, const struct drive_wish *wish, uint32_t n, struct drive_result *out)
{
    struct req_id *id = calloc(n, sizeof *id);
    uint32_t left = n;
    CHECK(id != NULL);
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        submit(en, &wish[i], &id[i], &out[i].err);
        if (out[i].err.code) {
            out[i].done = true;
            left--;
        }
    }
    while (left) {
        struct gen_event *ev = engine_take_events(en);
        if (!ev)
            usleep(200);
        for (struct gen_event *next; ev; ev = next) {
            next = (struct gen_event *)ev->mail.next;
            for (uint32_t i = 0; i < n; i++) {
                if (out[i].done || !req_id_equal(id[i], ev->id))
                    continue;
                take(en, ev, &wish[i], &out[i]);
                left -= out[i].done;
                break;
            }
            gen_event_free(ev);
        }
    }
    free(id);
}

void drive_check_equal(const struct drive_result *a, const struct drive_result *b, const char *what)
{
    CHECK_MSG(!a->err.code && !b->err.code, "%s: %s%s", what, a->err.msg, b->err.msg);
    for (int k = 0; k < DRIVE_MAX_CHOICES; k++) {
        const struct drive_choice *x = &a->choice[k], *y = &b->choice[k];
        CHECK_MSG(x->n == y->n, "%s: choice %d has %u and %u tokens", what, k, x->n, y->n);
        for (uint32_t i = 0; i < x->n; i++) {
            CHECK_MSG(x->out[i].token == y->out[i].token &&
                          memcmp(&x->out[i].logprob, &y->out[i].logprob, sizeof(float)) == 0,
                      "%s: choice %d token %u: %u (%.9g) and %u (%.9g)", what, k, i,
                      x->out[i].token, (double)x->out[i].logprob, y->out[i].token,
                      (double)y->out[i].logprob);
        }
        CHECK_MSG(strcmp(x->text, y->text) == 0, "%s: texts differ", what);
    }
}
