/* generation.c - see generation.h. */
#include "generation.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "guide.h"
#include "http.h"
#include "loop.h"
#include "stream.h"

#include <stdlib.h>
#include <string.h>

enum { LONG_TEXT = 16384 /* bytes of a body that are read off the loop thread */ };

static bool knows_model(const void *arg, const char *name)
{
    return server_knows_model(arg, name);
}

struct param_env server_env(const struct server *sv)
{
    const struct engine_plan *plan = sv->api->get_plan(sv->engine);
    return (struct param_env){.model = sv->api->model(sv->engine),
                              .tok = sv->api->tokenizer(sv->engine),
                              .format = sv->api->chat_format(sv->engine),
                              .max_context = plan->max_context,
                              .max_seqs = plan->max_seqs,
                              .kv_tokens = plan->kv_tokens,
                              .knows_model = knows_model,
                              .knows_arg = sv,
                              .guides = sv->guides,
                              .default_model = sv->name,
                              .responses = sv->responses};
}

uint64_t generation_owner(const struct call *c)
{
    return c->key ? hash_bytes(2, c->key->name, strlen(c->key->name)) : 0;
}

static bool no_memory(struct generation *g)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(&g->ae, &e);
    return false;
}

/* The parsers of a chat's choices. They have seen what the prompt already says of the answer. */
static bool make_parsers(struct generation *g, uint64_t seed)
{
    const struct params *p = &g->p;
    struct err e = {0};
    for (uint32_t i = 0; i < g->n_choices; i++) {
        struct choice *ch = &g->choice[i];
        ch->said.id_seed = hash_mix(seed + i);
        ch->said.one_call = p->one_call;
        struct output_parser_config cfg = {.format = chat_format_name(g->env.format),
                                           .thinking_open = p->thinking_open,
                                           .markup = p->markup,
                                           .tools = p->tools,
                                           .sink = reply_sink(&ch->said)};
        if (output_parser_create(&ch->parser, &cfg, &e) ||
            (p->opening && output_parser_put(ch->parser, p->opening, strlen(p->opening), &e))) {
            api_fail_err(&g->ae, &e);
            return false;
        }
    }
    return true;
}

static bool make_requests(struct generation *g)
{
    uint32_t n = g->p.n_prompts;
    g->n_choices = n * g->p.best_of;
    g->request = calloc(n, sizeof(struct gen_request *));
    g->run = calloc(n, sizeof *g->run);
    g->choice = calloc(g->n_choices, sizeof *g->choice);
    if (!g->request || !g->run || !g->choice)
        return no_memory(g);
    for (uint32_t i = 0; i < n; i++) {
        g->request[i] = params_request(&g->p, i, &g->env);
        if (!g->request[i])
            return no_memory(g);
        snprintf(g->request[i]->name, sizeof g->request[i]->name, "%s", g->id);
    }
    return g->shape->api == API_COMPLETIONS || make_parsers(g, hash_bytes(0, g->id, strlen(g->id)));
}

/* Any thread; touches only g and the call's body. */
static void read_request(struct generation *g)
{
    g->ok = params_read(&g->p, g->shape->api, g->call->body.s, g->call->body.n, &g->env, &g->ae);
    g->was_read = true;
    buf_free(&g->call->body);
}

static void prepare(struct generation *g)
{
    g->ok = g->ok && guide_make(&g->p, &g->env, &g->ae) && make_requests(g);
}

static bool remember(struct server *sv, struct req_id id, struct call *c, uint32_t prompt)
{
    if (id.slot >= sv->n_slots) {
        uint32_t n = id.slot + 64;
        struct engine_slot *slot = realloc(sv->slot, n * sizeof *slot);
        if (!slot)
            return false;
        memset(slot + sv->n_slots, 0, (n - sv->n_slots) * sizeof *slot);
        sv->slot = slot;
        sv->n_slots = n;
    }
    sv->slot[id.slot] = (struct engine_slot){id.gen, c, prompt};
    return true;
}

/* What the client's key says of the request, and what goes on its account. */
static void apply_key(struct generation *g, struct gen_request *r)
{
    struct auth_key *k = g->call->key;
    g->prompt_tokens += r->n_prompt;
    if (!k)
        return;
    r->tenant = k->tenant;
    r->weight = k->limit.weight;
    if (r->priority < k->limit.priority)
        r->priority = k->limit.priority;
    auth_charge(k, clock_us(), r->n_prompt, 0);
}

static void submit_all(struct generation *g)
{
    struct call *c = g->call;
    struct server *sv = c->sv;
    struct err e = {0};
    if (g->p.resumable && !stream_begin(c, g->id, g->env.owner, &g->ae)) {
        http_error(c, &g->ae);
        return;
    }
    g->submitted_us = clock_us();
    for (uint32_t i = 0; i < g->p.n_prompts; i++) {
        struct gen_request *r = g->request[i];
        g->request[i] = NULL;
        apply_key(g, r);
        if (sv->api->submit(sv->engine, r, &g->run[i].id, &e))
            break;
        sv->n_engine_requests++;
        g->run[i].live = true;
        g->n_live++;
        if (!remember(sv, g->run[i].id, c, i)) {
            err_set(&e, ERR_NOMEM, "request table");
            break;
        }
    }
    if (e.code) {
        struct api_error ae;
        api_fail_err(&ae, &e);
        generation_fail(c, &ae);
    } else if (g->p.stream) {
        http_stream(c);
        if (g->shape->begin)
            g->shape->begin(g);
    }
}

static void after_reading(struct call *c)
{
    struct generation *g = c->gen;
    if (c->gone)
        return;
    struct api_error lost;
    if (c->sv->lost)
        api_fail_err(&lost, &c->sv->lost_err);
    if (!g->ok)
        http_error(c, &g->ae);
    else if (c->sv->lost)
        http_error(c, &lost);
    else if (c->sv->hurried)
        http_fail(c, 503, NULL, "draining", "The server is shutting down.");
    else
        submit_all(g);
}

static void on_work(uv_work_t *w)
{
    struct call *c = w->data;
    if (!c->gen->was_read)
        read_request(c->gen);
    prepare(c->gen);
}

static void on_work_done(uv_work_t *w, int status)
{
    struct call *c = w->data;
    struct server *sv = c->sv;
    (void)status; /* nothing is ever cancelled */
    if (http_work_done(c))
        after_reading(c);
    server_turn(sv);
}

void generation_begin(struct call *c, const struct api_shape *shape)
{
    struct server *sv = c->sv;
    struct generation *g = calloc(1, sizeof *g);
    if (!g) {
        http_fail(c, 503, NULL, "out_of_memory", "There is no memory for this request.");
        return;
    }
    c->gen = g;
    g->call = c;
    g->shape = shape;
    g->env = server_env(sv);
    g->env.owner = generation_owner(c);
    g->created_s = clock_unix_s();
    g->think_end_id = tokenizer_find(g->env.tok, "</think>", 8);
    uint64_t number = hash_mix(sv->id_seed++);
    snprintf(g->id, sizeof g->id, "%s%016llx%08llx", shape->id_prefix, (unsigned long long)number,
             (unsigned long long)(hash_mix(~number) >> 32));
    if (c->body.n <= LONG_TEXT) {
        read_request(g);
        if (!g->ok || !guide_is_new(&g->p, &g->env)) {
            prepare(g);
            after_reading(c);
            return;
        }
    }
    c->working = true;
    c->work.data = c;
    if (uv_queue_work(&sv->loop, &c->work, on_work, on_work_done)) {
        c->working = false;
        http_fail(c, 500, NULL, "internal_error", "The request could not be read.");
    }
}

/* --- events -------------------------------------------------------------------------------------
 */

static bool keep_out(struct choice *ch, const struct sample_out *out, uint32_t n)
{
    if (!n)
        return true;
    if (ch->n_out + n > ch->max_out) {
        uint32_t max = (ch->n_out + n) * 2;
        struct sample_out *more = realloc(ch->out, max * sizeof *more);
        if (!more)
            return false;
        ch->out = more;
        ch->max_out = max;
    }
    memcpy(ch->out + ch->n_out, out, n * sizeof *out);
    ch->n_out += n;
    return true;
}

/* Before the parser has the event's text. The token that closes reasoning belongs to it. */
static void count_tokens(struct generation *g, struct choice *ch, const struct gen_event *ev)
{
    bool inside = ch->parser && output_parser_in_reasoning(ch->parser);
    for (uint32_t i = 0; i < ev->n_tokens; i++) {
        ch->n_tokens++;
        ch->sum_logprob += (double)ev->out[i].logprob;
        ch->n_reasoning += inside && !ch->thought;
        ch->thought |= ev->out[i].token == g->think_end_id;
    }
    g->usage.completion_tokens += ev->n_tokens;
    if (g->call->key)
        auth_charge(g->call->key, clock_us(), 0, ev->n_tokens);
}

/* The event's text into what the choice has said; false: no memory. */
static bool hear(struct choice *ch, const struct gen_event *ev)
{
    struct err e;
    bool cut = ev->finish != FINISH_STOP || ev->stop_reason != -1; /* not the model's own end */
    if (!ch->parser)
        buf_add(&ch->said.content, ev->text, ev->text_bytes);
    else if (output_parser_put(ch->parser, ev->text, ev->text_bytes, &e) ||
             (ev->kind == GEN_CHOICE && output_parser_finish(ch->parser, cut, &e)))
        return false;
    return !reply_failed(&ch->said);
}

/* It ends when the engine says so, or with the one call that it may make, if that is whole. */
static void end_choice(struct choice *ch, const struct gen_event *ev)
{
    if (ch->said.full && (ev->kind != GEN_CHOICE || ch->said.n_complete)) {
        ch->finish = FINISH_STOP;
        ch->stop_reason = -1;
    } else if (ev->kind == GEN_CHOICE) {
        ch->finish = ev->finish;
        ch->stop_reason = ev->stop_reason;
    }
    ch->ended = ch->said.full || ev->kind == GEN_CHOICE;
}

/* A choice has ended before the engine knew. The engine stops a request's choices together, so it
 * goes on until the others have ended too; its last event then still brings the usage. */
static void stop_prompt(struct generation *g, uint32_t prompt)
{
    for (uint32_t i = 0; i < g->p.best_of; i++)
        if (!g->choice[prompt * g->p.best_of + i].ended)
            return;
    g->call->sv->api->cancel(g->call->sv->engine, g->run[prompt].id);
}

static void on_tokens(struct generation *g, uint32_t prompt, struct gen_event *ev)
{
    uint32_t index = prompt * g->p.best_of + ev->choice;
    struct choice *ch = &g->choice[index];
    struct piece piece = {.said = &ch->said, .out = ev->out, .n_out = ev->n_tokens};
    bool keeps_out = !g->p.stream && (g->p.logprobs || g->p.return_token_ids);
    if (ch->ended)
        return;
    count_tokens(g, ch, ev);
    if (!hear(ch, ev) || (keeps_out && !keep_out(ch, ev->out, ev->n_tokens))) {
        no_memory(g);
        generation_fail(g->call, &g->ae);
        return;
    }
    end_choice(ch, ev);
    g->n_ended += ch->ended;
    if (ch->ended)
        g->last_choice = index;
    piece.last = ch->ended && g->n_ended < g->n_choices; /* else finish() says it */
    if (g->p.stream) {
        g->shape->chunk(g, index, &piece);
        reply_clear(&ch->said);
    }
    if (ch->ended && ev->kind != GEN_CHOICE)
        stop_prompt(g, prompt);
}

static void add_usage(struct gen_usage *sum, const struct gen_usage *u)
{
    sum->cached_tokens += u->cached_tokens;
    sum->queue_us = sum->queue_us > u->queue_us ? sum->queue_us : u->queue_us;
    sum->prefill_us = sum->prefill_us > u->prefill_us ? sum->prefill_us : u->prefill_us;
    sum->decode_us = sum->decode_us > u->decode_us ? sum->decode_us : u->decode_us;
    sum->ttft_us = sum->ttft_us > u->ttft_us ? sum->ttft_us : u->ttft_us;
    sum->total_us = sum->total_us > u->total_us ? sum->total_us : u->total_us;
    sum->busy_us += u->busy_us;
    sum->kv_byte_seconds += u->kv_byte_seconds;
}

static void finish(struct generation *g)
{
    struct call *c = g->call;
    if (!g->p.stream) {
        g->shape->answer(g);
        http_json(c, 200);
        return;
    }
    struct piece rest = {.said = &g->choice[g->last_choice].said, .last = true, .closes = true};
    g->shape->chunk(g, g->last_choice, &rest);
    if (g->shape->end) {
        g->shape->end(g);
    } else {
        if (g->p.include_usage)
            g->shape->usage_chunk(g);
        sse_text(&c->sse, "[DONE]");
    }
    sse_end(&c->sse);
}

static void on_prompt(struct generation *g, struct prompt_run *run, const struct gen_event *ev)
{
    run->prompt_out = malloc(ev->n_tokens * sizeof *ev->out + 1);
    if (!run->prompt_out) {
        no_memory(g);
        generation_fail(g->call, &g->ae);
        return;
    }
    memcpy(run->prompt_out, ev->out, ev->n_tokens * sizeof *ev->out);
    run->n_prompt_out = ev->n_tokens;
}

static void on_end(struct generation *g, struct prompt_run *run, const struct gen_event *ev)
{
    run->live = false;
    g->n_live--;
    if (ev->kind == GEN_ERROR) {
        struct api_error ae;
        api_fail_err(&ae, &ev->err);
        if (ae.status == 500)
            log_error("generation", "request=%s error=\"%s\" at=%s:%d", g->call->request_id,
                      ev->err.msg, ev->err.file ? ev->err.file : "?", ev->err.line);
        generation_fail(g->call, &ae);
        return;
    }
    run->usage = ev->usage;
    add_usage(&g->usage, &ev->usage);
    if (g->n_live == 0)
        finish(g);
}

static bool was_answered(const struct call *c)
{
    return c->streaming ? c->sse.ended : c->status != 0;
}

void generation_event(struct server *sv, struct gen_event *ev)
{
    struct engine_slot *slot = ev->id.slot < sv->n_slots ? &sv->slot[ev->id.slot] : NULL;
    bool end = ev->kind == GEN_DONE || ev->kind == GEN_ERROR;
    struct call *c = slot && slot->gen == ev->id.gen ? slot->call : NULL;
    if (end)
        sv->n_engine_requests--;
    if (!c)
        return; /* that client has left */
    struct generation *g = c->gen;
    struct prompt_run *run = &g->run[slot->prompt];
    uint32_t prompt = slot->prompt;
    if (end)
        slot->call = NULL;
    if (was_answered(c)) {
        run->live = run->live && !end;
        return;
    }
    switch (ev->kind) {
    case GEN_PROGRESS:
        run->prompt_done = ev->prompt_done;
        if (g->p.stream && g->p.return_progress)
            g->shape->progress_chunk(g);
        break;
    case GEN_PROMPT:
        on_prompt(g, run, ev);
        break;
    case GEN_TOKENS:
    case GEN_CHOICE:
        on_tokens(g, prompt, ev);
        break;
    case GEN_DONE:
    case GEN_ERROR:
        on_end(g, run, ev);
        break;
    }
    if (c->streaming && (sse_waiting(&c->sse) || c->sse.ended))
        http_wake(c);
}

void generation_fail(struct call *c, const struct api_error *ae)
{
    if (was_answered(c))
        return;
    if (c->streaming) {
        struct buf b = {0};
        if (c->gen && c->gen->shape->fail) {
            c->gen->shape->fail(c->gen, ae);
        } else {
            http_write_error(c, &b, ae);
            if (http_speaks_messages(c))
                sse_event(&c->sse, "error", &b);
            else
                sse_data(&c->sse, &b);
        }
        sse_end(&c->sse);
        buf_free(&b);
        http_wake(c);
    } else if (c->gen && !c->working && c->handled) {
        http_error(c, ae);
    } else {
        return; /* still being read: its turn to be refused comes */
    }
    generation_cancel(c);
}

void generation_stop(struct call *c)
{
    const struct generation *g = c->gen;
    for (uint32_t i = 0; g->run && i < g->p.n_prompts; i++)
        if (g->run[i].live)
            c->sv->api->cancel(c->sv->engine, g->run[i].id);
}

void generation_cancel(struct call *c)
{
    struct generation *g = c->gen;
    struct server *sv = c->sv;
    if (!g || c->working)
        return;
    for (uint32_t i = 0; g->run && i < g->p.n_prompts; i++) {
        struct prompt_run *run = &g->run[i];
        if (!run->live)
            continue;
        run->live = false;
        sv->api->cancel(sv->engine, run->id);
        if (run->id.slot < sv->n_slots && sv->slot[run->id.slot].gen == run->id.gen)
            sv->slot[run->id.slot].call = NULL;
    }
    g->n_live = 0;
}

void generation_ping(struct call *c)
{
    const struct generation *g = stream_source(c)->gen;
    uint64_t done = 0, total = 0;
    char text[80];
    if (!g)
        return;
    for (uint32_t i = 0; i < g->p.n_prompts; i++) {
        done += g->run[i].prompt_done;
        total += g->p.prompt[i].n;
    }
    snprintf(text, sizeof text, "keep-alive prompt %llu/%llu", (unsigned long long)done,
             (unsigned long long)total);
    sse_comment(&c->sse, text);
    http_wake(c);
}

void generation_free(struct call *c)
{
    struct generation *g = c->gen;
    if (!g)
        return;
    for (uint32_t i = 0; i < g->p.n_prompts; i++) {
        if (g->request)
            gen_request_free(g->request[i]);
        if (g->run)
            free(g->run[i].prompt_out);
    }
    for (uint32_t i = 0; g->choice && i < g->n_choices; i++) {
        output_parser_destroy(g->choice[i].parser);
        reply_free(&g->choice[i].said);
        free(g->choice[i].out);
    }
    if (g->shape->release)
        g->shape->release(g);
    free(g->request);
    free(g->run);
    free(g->choice);
    params_free(&g->p);
    free(g);
    c->gen = NULL;
}
