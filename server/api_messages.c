/* api_messages.c - POST /v1/messages: Anthropic's answer, or its events. See messages.h. */
#include "api.h"
#include "base/json.h"
#include "generation.h"

#include <string.h>

static void usage(struct jo *j, const struct generation *g)
{
    uint64_t prompt = g->p.prompt[0].n, cached = g->usage.cached_tokens;
    jo_key(j, "usage");
    jo_obj(j);
    jo_ku64(j, "input_tokens", prompt > cached ? prompt - cached : 0); /* beside the cached ones */
    jo_ku64(j, "cache_creation_input_tokens", 0);
    jo_ku64(j, "cache_read_input_tokens", cached);
    jo_ku64(j, "output_tokens", g->usage.completion_tokens);
    jo_end(j, '}');
}

/* stop_reason and stop_sequence. */
static void stop_fields(struct jo *j, const struct generation *g)
{
    const struct choice *ch = &g->choice[0];
    uint32_t stop = ch->stop_reason <= -2 ? (uint32_t)(-2 - ch->stop_reason) : UINT32_MAX;
    const char *sequence =
        ch->finish == FINISH_STOP && stop < g->p.like.n_stop ? g->p.like.stop[stop] : NULL;
    const char *reason = !ch->ended                    ? NULL
                         : ch->finish == FINISH_LENGTH ? "max_tokens"
                         : ch->said.n_complete         ? "tool_use"
                         : sequence                    ? "stop_sequence"
                                                       : "end_turn";
    jo_kstr(j, "stop_reason", reason);
    jo_kstr(j, "stop_sequence", sequence);
}

static void text_field(struct jo *j, const char *key, const struct buf *b)
{
    jo_key(j, key);
    jo_strn(j, b && b->s ? b->s : "", b ? b->n : 0);
}

/* --- a stream --------------------------------------------------------------------------------- */

static void begin_event(struct jo *j, const char *type)
{
    jo_obj(j);
    jo_kstr(j, "type", type);
}

static void send_event(struct generation *g, const char *type, struct buf *b)
{
    sse_event(&g->call->sse, type, b);
    buf_free(b);
}

static void message_start(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin_event(&j, "message_start");
    jo_key(&j, "message");
    jo_obj(&j);
    jo_kstr(&j, "id", g->id);
    jo_kstr(&j, "type", "message");
    jo_kstr(&j, "role", "assistant");
    jo_kstr(&j, "model", g->p.model);
    jo_key(&j, "content");
    jo_arr(&j);
    jo_end(&j, ']');
    jo_knull(&j, "stop_reason");
    jo_knull(&j, "stop_sequence");
    jo_key(&j, "usage");
    jo_obj(&j); /* what was cached is known at the end: message_delta has it */
    jo_ku64(&j, "input_tokens", g->p.prompt[0].n);
    jo_ku64(&j, "cache_creation_input_tokens", 0);
    jo_ku64(&j, "cache_read_input_tokens", 0);
    jo_ku64(&j, "output_tokens", 0);
    jo_end(&j, '}');
    jo_end(&j, '}');
    jo_end(&j, '}');
    send_event(g, "message_start", &b);
}

static void block_stop(struct generation *g)
{
    struct choice *ch = &g->choice[0];
    struct buf b = {0};
    struct jo j = {.b = &b};
    if (ch->block == BLOCK_NONE)
        return;
    begin_event(&j, "content_block_stop");
    jo_ku64(&j, "index", ch->n_blocks++);
    jo_end(&j, '}');
    ch->block = BLOCK_NONE;
    send_event(g, "content_block_stop", &b);
}

/* Ends the block before it; call: NULL unless it is a tool's. */
static void block_start(struct generation *g, enum block kind, const struct reply_call *call)
{
    struct choice *ch = &g->choice[0];
    struct buf b = {0};
    struct jo j = {.b = &b};
    block_stop(g);
    ch->block = kind;
    begin_event(&j, "content_block_start");
    jo_ku64(&j, "index", ch->n_blocks);
    jo_key(&j, "content_block");
    jo_obj(&j);
    if (call) {
        jo_kstr(&j, "type", "tool_use");
        jo_kstr(&j, "id", call->id);
        text_field(&j, "name", &call->name);
        jo_key(&j, "input");
        jo_obj(&j);
        jo_end(&j, '}');
    } else if (kind == BLOCK_THINKING) {
        jo_kstr(&j, "type", "thinking");
        jo_kstr(&j, "thinking", "");
        jo_kstr(&j, "signature", "");
    } else {
        jo_kstr(&j, "type", "text");
        jo_kstr(&j, "text", "");
    }
    jo_end(&j, '}');
    jo_end(&j, '}');
    send_event(g, "content_block_start", &b);
}

static void block_delta(struct generation *g, const char *type, const char *key,
                        const struct buf *text)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    if (!text->n)
        return;
    begin_event(&j, "content_block_delta");
    jo_ku64(&j, "index", g->choice[0].n_blocks);
    jo_key(&j, "delta");
    jo_obj(&j);
    jo_kstr(&j, "type", type);
    text_field(&j, key, text);
    jo_end(&j, '}');
    jo_end(&j, '}');
    send_event(g, "content_block_delta", &b);
}

static void text_block(struct generation *g, enum block kind, const struct buf *text)
{
    bool thinking = kind == BLOCK_THINKING;
    if (!text->n)
        return;
    if (g->choice[0].block != kind)
        block_start(g, kind, NULL);
    block_delta(g, thinking ? "thinking_delta" : "text_delta", thinking ? "thinking" : "text",
                text);
}

static void chunk(struct generation *g, uint32_t index, const struct piece *piece)
{
    struct choice *ch = &g->choice[index];
    const struct reply *said = piece->said;
    uint32_t i = 0;
    if (!ch->begun)
        message_start(g);
    ch->begun = true;
    for (; i < said->n_calls && !said->call[i].begun; i++) /* what the open block still lacks */
        block_delta(g, "input_json_delta", "partial_json", &said->call[i].arguments);
    text_block(g, BLOCK_THINKING, &said->reasoning);
    text_block(g, BLOCK_TEXT, &said->content);
    for (; i < said->n_calls; i++) {
        block_start(g, BLOCK_TOOL, &said->call[i]);
        block_delta(g, "input_json_delta", "partial_json", &said->call[i].arguments);
    }
    if (piece->last)
        block_stop(g);
}

static void end(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin_event(&j, "message_delta");
    jo_key(&j, "delta");
    jo_obj(&j);
    stop_fields(&j, g);
    jo_end(&j, '}');
    usage(&j, g);
    jo_key(&j, "timings");
    answer_timings(&j, g);
    jo_end(&j, '}');
    send_event(g, "message_delta", &b);
    j = (struct jo){.b = &b};
    begin_event(&j, "message_stop");
    jo_end(&j, '}');
    send_event(g, "message_stop", &b);
}

/* --- a whole answer --------------------------------------------------------------------------- */

/* A call that was cut off has no input that could be read: it is left out, and the reason to stop
 * tells of it. */
static void tool_use(struct jo *j, const struct reply_call *call)
{
    cJSON *input = NULL;
    struct err e = {0};
    const char *text = call->arguments.s ? call->arguments.s : "";
    if (!json_parse(&input, text, call->arguments.n, JSON_MAX_DEPTH, &e)) {
        jo_obj(j);
        jo_kstr(j, "type", "tool_use");
        jo_kstr(j, "id", call->id);
        text_field(j, "name", &call->name);
        jo_key(j, "input");
        jo_raw(j, text, call->arguments.n);
        jo_end(j, '}');
    }
    cJSON_Delete(input);
}

static void content(struct jo *j, const struct reply *said)
{
    jo_key(j, "content");
    jo_arr(j);
    if (said->reasoning.n) {
        jo_obj(j);
        jo_kstr(j, "type", "thinking");
        text_field(j, "thinking", &said->reasoning);
        jo_kstr(j, "signature", "");
        jo_end(j, '}');
    }
    if (said->content.n) {
        jo_obj(j);
        jo_kstr(j, "type", "text");
        text_field(j, "text", &said->content);
        jo_end(j, '}');
    }
    for (uint32_t i = 0; i < said->n_calls; i++)
        tool_use(j, &said->call[i]);
    jo_end(j, ']');
}

static void answer(struct generation *g)
{
    struct jo j = {.b = &g->call->answer};
    jo_obj(&j);
    jo_kstr(&j, "id", g->id);
    jo_kstr(&j, "type", "message");
    jo_kstr(&j, "role", "assistant");
    jo_kstr(&j, "model", g->p.model);
    content(&j, &g->choice[0].said);
    stop_fields(&j, g);
    usage(&j, g);
    jo_key(&j, "timings");
    answer_timings(&j, g);
    jo_end(&j, '}');
}

static const struct api_shape shape_messages = {
    .api = API_MESSAGES, .id_prefix = "msg_", .chunk = chunk, .end = end, .answer = answer};

void api_messages(struct call *c)
{
    generation_begin(c, &shape_messages);
}
