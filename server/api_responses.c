/* api_responses.c - POST /v1/responses, its events, and what is kept of it. See responses.h.
 *
 * An answer is a list of items in the order in which the model wrote them: reasoning, messages,
 * function calls. A stream and a whole answer come from the same list; a stream tells of each
 * change to it. Events are numbered from 0.
 */
#include "api.h"
#include "base/json.h"
#include "generation.h"
#include "http.h"
#include "response_store.h"
#include "stream.h"

#include <stdlib.h>
#include <string.h>

static const char path_of_one[] = "/v1/responses/";

struct item {
    enum block kind;
    char id[56];
    char call_id[REPLY_ID_BYTES];
    struct buf name, text; /* of a call: its tool and its arguments */
};

struct output {
    struct item *item;
    uint32_t n, max;
    bool open; /* the last item may still grow */
    uint64_t n_events;
};

static void release(struct generation *g)
{
    struct output *o = g->own;
    if (!o)
        return;
    for (uint32_t i = 0; i < o->n; i++) {
        buf_free(&o->item[i].name);
        buf_free(&o->item[i].text);
    }
    free(o->item);
    free(o);
    g->own = NULL;
}

/* NULL without memory, which the call then knows of. */
static struct output *output_of(struct generation *g)
{
    if (!g->own)
        g->own = calloc(1, sizeof(struct output));
    if (!g->own)
        g->call->sse.buf.failed = g->call->answer.failed = true;
    return g->own;
}

static const char *const prefixes[] = {
    [BLOCK_NONE] = "", [BLOCK_THINKING] = "rs_", [BLOCK_TEXT] = "msg_", [BLOCK_TOOL] = "fc_"};

static void text_field(struct jo *j, const char *key, const struct buf *b)
{
    jo_key(j, key);
    jo_strn(j, b->s ? b->s : "", b->n);
}

static void empty_list(struct jo *j, const char *key)
{
    jo_key(j, key);
    jo_arr(j);
    jo_end(j, ']');
}

/* --- the answer --------------------------------------------------------------------------------
 */

static void part_json(struct jo *j, const struct item *it, const struct buf *text)
{
    jo_obj(j);
    jo_kstr(j, "type", it->kind == BLOCK_THINKING ? "reasoning_text" : "output_text");
    text_field(j, "text", text);
    if (it->kind == BLOCK_TEXT) {
        empty_list(j, "annotations");
        empty_list(j, "logprobs");
    }
    jo_end(j, '}');
}

/* begun: it has just begun, without its text. */
static void item_json(struct jo *j, const struct item *it, bool begun, const char *status)
{
    static const struct buf nothing;
    jo_obj(j);
    jo_kstr(j, "id", it->id);
    jo_kstr(j, "status", status);
    if (it->kind == BLOCK_TOOL) {
        jo_kstr(j, "type", "function_call");
        jo_kstr(j, "call_id", it->call_id);
        text_field(j, "name", &it->name);
        text_field(j, "arguments", begun ? &nothing : &it->text);
    } else {
        jo_kstr(j, "type", it->kind == BLOCK_TEXT ? "message" : "reasoning");
        if (it->kind == BLOCK_TEXT)
            jo_kstr(j, "role", "assistant");
        else
            empty_list(j, "summary");
        jo_key(j, "content");
        jo_arr(j);
        if (!begun)
            part_json(j, it, &it->text);
        jo_end(j, ']');
    }
    jo_end(j, '}');
}

/* Only the last item can have been cut off. */
static const char *item_status(const struct generation *g, const struct output *o, uint32_t i)
{
    const struct choice *ch = &g->choice[0];
    if (i + 1 < o->n)
        return "completed";
    return !ch->ended ? "in_progress" : ch->finish == FINISH_STOP ? "completed" : "incomplete";
}

static const char *status_of(const struct generation *g)
{
    const struct choice *ch = &g->choice[0];
    return !ch->ended                       ? "in_progress"
           : ch->finish == FINISH_LENGTH    ? "incomplete"
           : ch->finish == FINISH_CANCELLED ? "cancelled"
                                            : "completed";
}

static void usage(struct jo *j, const struct generation *g)
{
    uint64_t prompt = g->p.prompt[0].n;
    jo_key(j, "usage");
    jo_obj(j);
    jo_ku64(j, "input_tokens", prompt);
    jo_key(j, "input_tokens_details");
    jo_obj(j);
    jo_ku64(j, "cached_tokens", g->usage.cached_tokens);
    jo_end(j, '}');
    jo_ku64(j, "output_tokens", g->usage.completion_tokens);
    jo_key(j, "output_tokens_details");
    jo_obj(j);
    jo_ku64(j, "reasoning_tokens", g->choice[0].n_reasoning);
    jo_end(j, '}');
    jo_ku64(j, "total_tokens", prompt + g->usage.completion_tokens);
    jo_end(j, '}');
}

static void response_json(struct jo *j, const struct generation *g, const char *status,
                          const struct api_error *ae)
{
    const struct output *o = g->own;
    const struct server *sv = g->call->sv;
    jo_obj(j);
    jo_kstr(j, "id", g->id);
    jo_kstr(j, "object", "response");
    jo_ku64(j, "created_at", g->created_s);
    jo_kstr(j, "status", status);
    jo_kbool(j, "background", false);
    jo_key(j, "error");
    if (ae) {
        jo_obj(j);
        jo_kstr(j, "code", ae->code ? ae->code : "server_error");
        jo_kstr(j, "message", ae->message);
        jo_end(j, '}');
    } else {
        jo_null(j);
    }
    jo_key(j, "incomplete_details");
    if (!strcmp(status, "incomplete")) {
        jo_obj(j);
        jo_kstr(j, "reason", "max_output_tokens");
        jo_end(j, '}');
    } else {
        jo_null(j);
    }
    jo_kstr(j, "model", g->p.model);
    jo_kstr(j, "system_fingerprint", sv->api->fingerprint(sv->engine));
    jo_key(j, "output");
    jo_arr(j);
    for (uint32_t i = 0; o && i < o->n; i++)
        item_json(j, &o->item[i], false, item_status(g, o, i));
    jo_end(j, ']');
    buf_str(j->b, g->p.responses.echo); /* begins with its comma */
    jo_kbool(j, "store", g->p.responses.store);
    jo_key(j, "temperature");
    jo_f32(j, g->p.like.sample.temperature);
    jo_key(j, "top_p");
    jo_f32(j, g->p.like.sample.top_p);
    jo_ku64(j, "top_logprobs", 0);
    jo_knull(j, "max_tool_calls");
    jo_kstr(j, "service_tier", "default");
    if (!strcmp(status, "in_progress") || ae) {
        jo_knull(j, "usage");
    } else {
        usage(j, g);
        jo_key(j, "timings");
        answer_timings(j, g);
    }
    jo_end(j, '}');
}

/* --- events ------------------------------------------------------------------------------------
 */

struct event {
    struct buf b;
    struct jo j;
    const char *type;
};

static void begin_event(struct generation *g, struct event *ev, const char *type)
{
    struct output *o = g->own;
    *ev = (struct event){.type = type};
    ev->j.b = &ev->b;
    jo_obj(&ev->j);
    jo_kstr(&ev->j, "type", type);
    jo_ku64(&ev->j, "sequence_number", o->n_events++);
}

static void send_event(struct generation *g, struct event *ev)
{
    jo_end(&ev->j, '}');
    sse_event(&g->call->sse, ev->type, &ev->b);
    buf_free(&ev->b);
}

/* Of the last item. content: the event is about its only part of content. */
static void begin_item_event(struct generation *g, struct event *ev, const char *type, bool content)
{
    const struct output *o = g->own;
    begin_event(g, ev, type);
    jo_kstr(&ev->j, "item_id", o->item[o->n - 1].id);
    jo_ku64(&ev->j, "output_index", o->n - 1);
    if (content)
        jo_ku64(&ev->j, "content_index", 0);
}

static void send_response(struct generation *g, const char *type, const char *status,
                          const struct api_error *ae)
{
    struct event ev;
    begin_event(g, &ev, type);
    jo_key(&ev.j, "response");
    response_json(&ev.j, g, status, ae);
    send_event(g, &ev);
}

static void send_item(struct generation *g, const char *type, bool begun, const char *status)
{
    const struct output *o = g->own;
    struct event ev;
    begin_event(g, &ev, type);
    jo_ku64(&ev.j, "output_index", o->n - 1);
    jo_key(&ev.j, "item");
    item_json(&ev.j, &o->item[o->n - 1], begun, status);
    send_event(g, &ev);
}

static void send_part(struct generation *g, const char *type, const struct buf *text)
{
    const struct output *o = g->own;
    struct event ev;
    begin_item_event(g, &ev, type, true);
    jo_key(&ev.j, "part");
    part_json(&ev.j, &o->item[o->n - 1], text);
    send_event(g, &ev);
}

/* The item's text: its next piece (done false), or all of it. */
static void send_text(struct generation *g, bool done, const struct buf *text)
{
    static const char *const types[][2] = {
        [BLOCK_THINKING] = {"response.reasoning_text.delta", "response.reasoning_text.done"},
        [BLOCK_TEXT] = {"response.output_text.delta", "response.output_text.done"},
        [BLOCK_TOOL] = {"response.function_call_arguments.delta",
                        "response.function_call_arguments.done"}};
    const struct output *o = g->own;
    const struct item *it = &o->item[o->n - 1];
    struct event ev;
    begin_item_event(g, &ev, types[it->kind][done], it->kind != BLOCK_TOOL);
    if (done && it->kind == BLOCK_TOOL)
        text_field(&ev.j, "name", &it->name);
    text_field(&ev.j, !done ? "delta" : it->kind == BLOCK_TOOL ? "arguments" : "text", text);
    if (it->kind == BLOCK_TEXT)
        empty_list(&ev.j, "logprobs");
    send_event(g, &ev);
}

/* --- items -------------------------------------------------------------------------------------
 */

static void end_item(struct generation *g)
{
    struct output *o = g->own;
    struct item *it = &o->item[o->n - 1];
    if (!o->open)
        return;
    o->open = false;
    if (!g->p.stream)
        return;
    const struct choice *ch = &g->choice[0];
    bool cut = ch->ended && ch->finish != FINISH_STOP;
    send_text(g, true, &it->text);
    if (it->kind != BLOCK_TOOL)
        send_part(g, "response.content_part.done", &it->text);
    send_item(g, "response.output_item.done", false, cut ? "incomplete" : "completed");
}

static bool begin_item(struct generation *g, enum block kind, const struct reply_call *call)
{
    static const struct buf nothing;
    struct output *o = g->own;
    if (o->open)
        end_item(g);
    if (o->n == o->max) {
        uint32_t max = o->max ? 2 * o->max : 4;
        struct item *more = realloc(o->item, max * sizeof *more);
        if (!more) {
            g->call->sse.buf.failed = g->call->answer.failed = true;
            return false;
        }
        o->item = more;
        o->max = max;
    }
    struct item *it = &o->item[o->n];
    *it = (struct item){.kind = kind};
    snprintf(it->id, sizeof it->id, "%s%s%02u", prefixes[kind], strchr(g->id, '_') + 1, o->n);
    if (call) {
        memcpy(it->call_id, call->id, sizeof it->call_id);
        buf_add(&it->name, call->name.s, call->name.n);
    }
    o->n++;
    o->open = true;
    if (!g->p.stream)
        return true;
    send_item(g, "response.output_item.added", true, "in_progress");
    if (kind != BLOCK_TOOL)
        send_part(g, "response.content_part.added", &nothing);
    return true;
}

static void add_text(struct generation *g, const struct buf *text)
{
    struct output *o = g->own;
    struct item *it = &o->item[o->n - 1];
    if (!text->n)
        return;
    buf_add(&it->text, text->s, text->n);
    if (it->text.failed)
        g->call->sse.buf.failed = g->call->answer.failed = true;
    if (g->p.stream)
        send_text(g, false, text);
}

static void add_plain(struct generation *g, enum block kind, const struct buf *text)
{
    const struct output *o = g->own;
    bool goes_on = o->open && o->item[o->n - 1].kind == kind;
    if (text->n && (goes_on || begin_item(g, kind, NULL)))
        add_text(g, text);
}

static void absorb(struct generation *g, const struct reply *said)
{
    uint32_t i = 0;
    for (; i < said->n_calls && !said->call[i].begun; i++) /* what the open call still lacked */
        add_text(g, &said->call[i].arguments);
    add_plain(g, BLOCK_THINKING, &said->reasoning);
    add_plain(g, BLOCK_TEXT, &said->content);
    for (; i < said->n_calls; i++)
        if (begin_item(g, BLOCK_TOOL, &said->call[i]))
            add_text(g, &said->call[i].arguments);
}

/* --- what is kept ------------------------------------------------------------------------------
 */

static bool is_json(const struct buf *b)
{
    cJSON *v = NULL;
    struct err e = {0};
    bool ok = b->n && !json_parse(&v, b->s, b->n, JSON_MAX_DEPTH, &e);
    cJSON_Delete(v);
    return ok;
}

static void said_field(struct jo *j, const char *key, const struct output *o, enum block kind)
{
    struct buf all = {0};
    for (uint32_t i = 0; i < o->n; i++)
        if (o->item[i].kind == kind)
            buf_add(&all, o->item[i].text.s, o->item[i].text.n);
    j->b->failed |= all.failed;
    if (all.n || kind == BLOCK_TEXT)
        text_field(j, key, &all);
    buf_free(&all);
}

/* The answer as a message of the conversation. A call that was cut off could not be rendered. */
static void message_json(struct jo *j, const struct output *o)
{
    bool calls = false;
    jo_obj(j);
    jo_kstr(j, "role", "assistant");
    said_field(j, "content", o, BLOCK_TEXT);
    said_field(j, "reasoning_content", o, BLOCK_THINKING);
    for (uint32_t i = 0; i < o->n; i++) {
        const struct item *it = &o->item[i];
        if (it->kind != BLOCK_TOOL || !is_json(&it->text))
            continue;
        if (!calls) {
            jo_key(j, "tool_calls");
            jo_arr(j);
        }
        calls = true;
        jo_obj(j);
        jo_kstr(j, "id", it->call_id);
        jo_kstr(j, "type", "function");
        jo_key(j, "function");
        jo_obj(j);
        text_field(j, "name", &it->name);
        text_field(j, "arguments", &it->text);
        jo_end(j, '}');
        jo_end(j, '}');
    }
    if (calls)
        jo_end(j, ']');
    jo_end(j, '}');
}

/* Without memory or room it is not kept, and a later request will be told so. */
static void keep(struct generation *g, const struct buf *answer)
{
    struct buf talk = {0}, own = {0};
    struct jo j = {.b = &own};
    const char *before = g->p.responses.talk;
    if (!g->p.responses.store)
        return;
    message_json(&j, g->own);
    size_t n = strlen(before);
    buf_add(&talk, before, n - 1); /* without its ']' */
    if (n > 2)
        buf_add(&talk, ",", 1);
    buf_add(&talk, own.s, own.n);
    buf_add(&talk, "]", 1);
    if (!talk.failed && !own.failed && !answer->failed)
        (void)response_store_put(g->env.responses, g->id, g->env.owner,
                                 (const char *const[]){answer->s, talk.s},
                                 (const size_t[]){answer->n, talk.n});
    buf_free(&talk);
    buf_free(&own);
}

/* --- the shape ---------------------------------------------------------------------------------
 */

static void begin(struct generation *g)
{
    if (!output_of(g))
        return;
    send_response(g, "response.created", "in_progress", NULL);
    send_response(g, "response.in_progress", "in_progress", NULL);
}

static void chunk(struct generation *g, uint32_t index, const struct piece *piece)
{
    struct output *o = output_of(g);
    (void)index;
    if (!o)
        return;
    absorb(g, piece->said);
    if (piece->last && o->open)
        end_item(g);
}

static void end(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    struct event ev;
    if (!output_of(g))
        return;
    bool whole = !strcmp(status_of(g), "completed");
    response_json(&j, g, status_of(g), NULL);
    begin_event(g, &ev, whole ? "response.completed" : "response.incomplete");
    jo_key(&ev.j, "response");
    jo_raw(&ev.j, b.s ? b.s : "null", b.s ? b.n : 4);
    keep(g, &b);
    buf_free(&b);
    send_event(g, &ev);
}

static void answer(struct generation *g)
{
    struct jo j = {.b = &g->call->answer};
    if (!output_of(g))
        return;
    absorb(g, &g->choice[0].said);
    ((struct output *)g->own)->open = false;
    response_json(&j, g, status_of(g), NULL);
    keep(g, &g->call->answer);
}

static void fail(struct generation *g, const struct api_error *ae)
{
    struct event ev;
    if (!output_of(g))
        return;
    begin_event(g, &ev, "error");
    jo_kstr(&ev.j, "code", ae->code);
    jo_kstr(&ev.j, "message", ae->message);
    jo_kstr(&ev.j, "param", ae->param[0] ? ae->param : NULL);
    send_event(g, &ev);
    send_response(g, "response.failed", "failed", ae);
}

static const struct api_shape shape_responses = {.api = API_RESPONSES,
                                                 .id_prefix = "resp_",
                                                 .begin = begin,
                                                 .chunk = chunk,
                                                 .end = end,
                                                 .answer = answer,
                                                 .fail = fail,
                                                 .release = release};

void api_responses(struct call *c)
{
    generation_begin(c, &shape_responses);
}

/* --- one of them -------------------------------------------------------------------------------
 */

/* A response that is being made, of the same client. */
static struct generation *running(struct call *c, const char *id)
{
    uint64_t owner = generation_owner(c);
    for (struct call *other = c->sv->calls; other; other = other->next) {
        struct generation *g = other->gen;
        if (!g || other->working || other->gone || !g->n_live || g->shape != &shape_responses)
            continue;
        if (g->env.owner == owner && !strcmp(g->id, id))
            return g;
    }
    struct call *alone = stream_detached(c->sv, id, owner);
    return alone && alone->gen->n_live && alone->gen->shape == &shape_responses ? alone->gen : NULL;
}

static void not_there(struct call *c, const char *id)
{
    http_fail(c, 404, "response_id", "response_not_found", "The response \"%.64s\" is not there.",
              id);
}

/* ?stream=true&starting_after=N: the events behind number N of a resumable stream. */
static void read_on(struct call *c, const char *id)
{
    uint64_t after = 0;
    if (http_query_number(c, "starting_after", &after))
        stream_read(c, id, generation_owner(c), http_query(c, "starting_after") ? after + 1 : 0);
}

void api_response(struct call *c)
{
    const char *id = c->path + sizeof path_of_one - 1, *stream = http_query(c, "stream");
    struct generation *g = running(c, id);
    struct jo j = {.b = &c->answer};
    size_t n = 0;
    if (stream && !strcmp(stream, "true")) {
        read_on(c, id);
        return;
    }
    if (g) {
        response_json(&j, g, "in_progress", NULL);
        http_json(c, 200);
        return;
    }
    char *text = c->sv->responses ? response_store_get(c->sv->responses, id, generation_owner(c),
                                                       RESPONSE_ANSWER, &n)
                                  : NULL;
    if (!text) {
        not_there(c, id);
        return;
    }
    c->answer = (struct buf){.s = text, .n = n, .max = n + 1};
    http_json(c, 200);
}

void api_response_delete(struct call *c)
{
    const char *id = c->path + sizeof path_of_one - 1;
    struct jo j = {.b = &c->answer};
    if (!c->sv->responses || !response_store_delete(c->sv->responses, id, generation_owner(c))) {
        not_there(c, id);
        return;
    }
    jo_obj(&j);
    jo_kstr(&j, "id", id);
    jo_kstr(&j, "object", "response");
    jo_kbool(&j, "deleted", true);
    jo_end(&j, '}');
    http_json(c, 200);
}

/* POST /v1/responses/{id}/cancel: the tokens stop, and the one who waits gets what there is. */
void api_response_cancel(struct call *c)
{
    static const char verb[] = "/cancel";
    char id[64];
    const char *from = c->path + sizeof path_of_one - 1, *last = strrchr(from, '/');
    struct jo j = {.b = &c->answer};
    size_t n = 0;
    if (!last || strcmp(last, verb) != 0) {
        http_fail(c, 404, NULL, "not_found", "There is nothing at %.100s.", c->path);
        return;
    }
    snprintf(id, sizeof id, "%.*s", (int)(last - from), from);
    struct generation *g = running(c, id);
    if (g) {
        generation_stop(g->call);
        response_json(&j, g, "cancelled", NULL);
        http_json(c, 200);
        return;
    }
    char *text = c->sv->responses ? response_store_get(c->sv->responses, id, generation_owner(c),
                                                       RESPONSE_ANSWER, &n)
                                  : NULL;
    if (text)
        http_fail(c, 400, "response_id", "response_not_cancellable",
                  "The response \"%.64s\" has already ended.", id);
    else
        not_there(c, id);
    free(text);
}
