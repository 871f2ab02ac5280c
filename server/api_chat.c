/* api_chat.c - POST /v1/chat/completions: one answer, or a stream of chunks. */
#include "api.h"
#include "generation.h"

static void begin_chunk(struct jo *j, const struct generation *g)
{
    jo_obj(j);
    answer_head(j, g, "chat.completion.chunk");
}

static void end_chunk(struct jo *j, struct generation *g)
{
    if (g->p.continuous_usage) {
        jo_key(j, "usage");
        answer_usage(j, g);
    } else if (g->p.include_usage) {
        jo_knull(j, "usage");
    }
    jo_end(j, '}');
    answer_send(g, j->b);
}

/* Under both names that clients know. */
static void reasoning(struct jo *j, const struct buf *text)
{
    static const char *const names[] = {"reasoning_content", "reasoning"};
    for (int i = 0; i < 2; i++) {
        jo_key(j, names[i]);
        jo_strn(j, text->s ? text->s : "", text->n);
    }
}

static void delta(struct jo *j, const struct piece *piece, bool role)
{
    jo_key(j, "delta");
    jo_obj(j);
    if (role) {
        jo_kstr(j, "role", "assistant");
        jo_kstr(j, "content", "");
        jo_knull(j, "refusal");
    }
    if (piece && piece->said->reasoning.n)
        reasoning(j, &piece->said->reasoning);
    if (piece && piece->said->content.n) {
        jo_key(j, "content");
        jo_strn(j, piece->said->content.s, piece->said->content.n);
    }
    if (piece && piece->said->n_calls)
        reply_calls_json(piece->said, j, true);
    jo_end(j, '}');
}

/* The role, before a choice's first text; the prompt's ids go with it. */
static void first_chunk(struct generation *g, uint32_t index)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin_chunk(&j, g);
    if (g->p.return_token_ids) {
        jo_key(&j, "prompt_token_ids");
        jo_arr(&j);
        for (uint32_t i = 0; i < g->p.prompt[0].n; i++)
            jo_u64(&j, g->p.prompt[0].id[i]);
        jo_end(&j, ']');
    }
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_obj(&j);
    jo_ku64(&j, "index", index);
    delta(&j, NULL, true);
    jo_knull(&j, "logprobs");
    jo_knull(&j, "finish_reason");
    jo_end(&j, '}');
    jo_end(&j, ']');
    end_chunk(&j, g);
}

static void chunk(struct generation *g, uint32_t index, const struct piece *piece)
{
    struct choice *ch = &g->choice[index];
    bool wants_tokens = piece->n_out && (g->p.logprobs || g->p.return_token_ids);
    struct buf b = {0};
    struct jo j = {.b = &b};
    if (!ch->begun) {
        ch->begun = true;
        first_chunk(g, index);
    }
    if (!reply_has_text(piece->said) && !wants_tokens && !piece->last)
        return;
    begin_chunk(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_obj(&j);
    jo_ku64(&j, "index", index);
    delta(&j, piece, false);
    jo_key(&j, "logprobs");
    if (piece->n_out)
        answer_chat_logprobs(&j, g, piece->out, piece->n_out);
    else
        jo_null(&j);
    answer_finish(&j, g, ch, piece->last);
    if (g->p.return_token_ids) {
        jo_key(&j, "token_ids");
        answer_ids(&j, piece->out, piece->n_out);
    }
    jo_end(&j, '}');
    jo_end(&j, ']');
    answer_closing(&j, g, piece);
    end_chunk(&j, g);
}

static void usage_chunk(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin_chunk(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_end(&j, ']');
    jo_key(&j, "usage");
    answer_usage(&j, g);
    jo_key(&j, "timings");
    answer_timings(&j, g);
    jo_end(&j, '}');
    answer_send(g, &b);
}

static void progress_chunk(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin_chunk(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_end(&j, ']');
    jo_key(&j, "prompt_progress");
    jo_obj(&j);
    jo_ku64(&j, "total", g->p.prompt[0].n);
    jo_ku64(&j, "processed", g->run[0].prompt_done);
    jo_end(&j, '}');
    end_chunk(&j, g);
}

static void message(struct jo *j, const struct reply *said, bool thought)
{
    jo_key(j, "message");
    jo_obj(j);
    jo_kstr(j, "role", "assistant");
    jo_key(j, "content");
    if (said->n_calls && !said->content.n)
        jo_null(j);
    else
        jo_strn(j, said->content.s ? said->content.s : "", said->content.n);
    jo_knull(j, "refusal");
    jo_key(j, "annotations");
    jo_arr(j);
    jo_end(j, ']');
    if (thought || said->reasoning.n)
        reasoning(j, &said->reasoning);
    if (said->n_calls)
        reply_calls_json(said, j, false);
    jo_end(j, '}');
}

static void answer(struct generation *g)
{
    struct jo j = {.b = &g->call->answer};
    jo_obj(&j);
    answer_head(&j, g, "chat.completion");
    jo_key(&j, "choices");
    jo_arr(&j);
    for (uint32_t i = 0; i < g->n_choices; i++) {
        const struct choice *ch = &g->choice[i];
        jo_obj(&j);
        jo_ku64(&j, "index", i);
        message(&j, &ch->said, g->p.thinking_open);
        jo_key(&j, "logprobs");
        answer_chat_logprobs(&j, g, ch->out, ch->n_out);
        answer_finish(&j, g, ch, true);
        if (g->p.return_token_ids) {
            jo_key(&j, "token_ids");
            answer_ids(&j, ch->out, ch->n_out);
        }
        jo_end(&j, '}');
    }
    jo_end(&j, ']');
    jo_key(&j, "usage");
    answer_usage(&j, g);
    if (g->p.prompt_logprobs) {
        jo_key(&j, "prompt_logprobs");
        answer_prompt_logprobs(&j, g, 0);
    }
    if (g->p.return_token_ids) {
        jo_key(&j, "prompt_token_ids");
        jo_arr(&j);
        for (uint32_t i = 0; i < g->p.prompt[0].n; i++)
            jo_u64(&j, g->p.prompt[0].id[i]);
        jo_end(&j, ']');
    }
    jo_key(&j, "timings");
    answer_timings(&j, g);
    jo_end(&j, '}');
}

const struct api_shape shape_chat = {.api = API_CHAT,
                                     .id_prefix = "chatcmpl-",
                                     .chunk = chunk,
                                     .usage_chunk = usage_chunk,
                                     .progress_chunk = progress_chunk,
                                     .answer = answer};

void api_chat(struct call *c)
{
    generation_begin(c, &shape_chat);
}
