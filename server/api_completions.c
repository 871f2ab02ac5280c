/* api_completions.c - POST /v1/completions: text on from a prompt, in OpenAI's older shape. */
#include "api.h"
#include "generation.h"

#include <string.h>

/* A run of tokens in the older log-probability shape: four arrays side by side. */
struct columns {
    const uint32_t *prompt; /* its first token has no log-probability */
    uint32_t n_prompt;
    const struct sample_out *prompt_out; /* [n_prompt - 1] */
    const struct sample_out *out;
    uint32_t n_out;
    uint32_t first_char; /* where the first token's text begins */
};

static void top_object(struct jo *j, const struct generation *g, const struct sample_out *o)
{
    bool has_own = false;
    jo_obj(j);
    for (uint32_t k = 0; k < o->n_top && k < g->p.n_top; k++) {
        answer_token_text(j, g, o->top[k].id, true);
        buf_add(j->b, ":", 1);
        j->comma = false;
        jo_f32(j, clamp_logprob(o->top[k].logprob));
        has_own |= o->top[k].id == o->token;
    }
    if (!has_own) {
        answer_token_text(j, g, o->token, true);
        buf_add(j->b, ":", 1);
        j->comma = false;
        jo_f32(j, clamp_logprob(o->logprob));
    }
    jo_end(j, '}');
}

static const struct sample_out *nth(const struct columns *c, uint32_t i)
{
    if (i >= c->n_prompt)
        return &c->out[i - c->n_prompt];
    return i ? &c->prompt_out[i - 1] : NULL; /* the first of a prompt */
}

static void logprobs(struct jo *j, const struct generation *g, const struct columns *c)
{
    uint32_t n = c->n_prompt + c->n_out, at = c->first_char;
    jo_key(j, "logprobs");
    if (!g->p.logprobs) {
        jo_null(j);
        return;
    }
    jo_obj(j);
    jo_key(j, "tokens");
    jo_arr(j);
    for (uint32_t i = 0; i < n; i++)
        answer_token_text(j, g, i < c->n_prompt ? c->prompt[i] : nth(c, i)->token, true);
    jo_end(j, ']');
    jo_key(j, "token_logprobs");
    jo_arr(j);
    for (uint32_t i = 0; i < n; i++) {
        const struct sample_out *o = nth(c, i);
        if (o)
            jo_f32(j, clamp_logprob(o->logprob));
        else
            jo_null(j);
    }
    jo_end(j, ']');
    jo_key(j, "top_logprobs");
    if (!g->p.n_top) {
        jo_null(j);
    } else {
        jo_arr(j);
        for (uint32_t i = 0; i < n; i++) {
            const struct sample_out *o = nth(c, i);
            if (o)
                top_object(j, g, o);
            else
                jo_null(j);
        }
        jo_end(j, ']');
    }
    jo_key(j, "text_offset");
    jo_arr(j);
    for (uint32_t i = 0; i < n; i++) {
        size_t bytes;
        uint32_t id = i < c->n_prompt ? c->prompt[i] : nth(c, i)->token;
        const char *s = tokenizer_bytes(g->env.tok, id, &bytes);
        jo_u64(j, at);
        /* A BOS that the server put before the prompt is not in the text. */
        bool unseen = i == 0 && c->n_prompt && id == tokenizer_bos(g->env.tok);
        at += unseen ? 0 : utf8_chars(s, bytes);
    }
    jo_end(j, ']');
    jo_end(j, '}');
}

static void prompt_ids(struct jo *j, const struct params_prompt *p)
{
    jo_key(j, "prompt_token_ids");
    jo_arr(j);
    for (uint32_t i = 0; i < p->n; i++)
        jo_u64(j, p->id[i]);
    jo_end(j, ']');
}

static void begin(struct jo *j, const struct generation *g)
{
    jo_obj(j);
    answer_head(j, g, "text_completion");
}

static void end(struct jo *j, struct generation *g)
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

static void chunk(struct generation *g, uint32_t index, const struct piece *piece)
{
    struct choice *ch = &g->choice[index];
    const struct params_prompt *p = &g->p.prompt[index / g->p.best_of];
    const struct prompt_run *run = &g->run[index / g->p.best_of];
    bool echo = !ch->begun && g->p.echo, first = !ch->begun;
    bool wants_tokens = piece->n_out && (g->p.logprobs || g->p.return_token_ids);
    struct columns c = {.out = piece->out, .n_out = piece->n_out, .first_char = ch->text_chars};
    struct buf b = {0}, text = {0};
    struct jo j = {.b = &b};
    ch->begun = true;
    if (echo)
        buf_add(&text, p->text, p->text_bytes);
    if (echo && run->prompt_out) {
        c.prompt = p->id;
        c.n_prompt = p->n;
        c.prompt_out = run->prompt_out;
    }
    buf_add(&text, piece->said->content.s, piece->said->content.n);
    if (!text.n && !wants_tokens && !piece->last) {
        buf_free(&text);
        return;
    }
    ch->text_chars += utf8_chars(text.s, text.n);
    begin(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_obj(&j);
    jo_ku64(&j, "index", index);
    jo_key(&j, "text");
    jo_strn(&j, text.s, text.n);
    if (c.n_out || c.n_prompt)
        logprobs(&j, g, &c);
    else
        jo_knull(&j, "logprobs");
    answer_finish(&j, g, ch, piece->last);
    if (g->p.return_token_ids) {
        jo_key(&j, "token_ids");
        answer_ids(&j, piece->out, piece->n_out);
        if (first)
            prompt_ids(&j, p);
    }
    jo_end(&j, '}');
    jo_end(&j, ']');
    buf_free(&text);
    answer_closing(&j, g, piece);
    end(&j, g);
}

static void usage_chunk(struct generation *g)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    begin(&j, g);
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
    uint64_t done = 0, total = 0;
    struct buf b = {0};
    struct jo j = {.b = &b};
    for (uint32_t i = 0; i < g->p.n_prompts; i++) {
        done += g->run[i].prompt_done;
        total += g->p.prompt[i].n;
    }
    begin(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    jo_end(&j, ']');
    jo_key(&j, "prompt_progress");
    jo_obj(&j);
    jo_ku64(&j, "total", total);
    jo_ku64(&j, "processed", done);
    jo_end(&j, '}');
    end(&j, g);
}

static void one_choice(struct jo *j, struct generation *g, uint32_t prompt, uint32_t index,
                       const struct choice *ch)
{
    const struct params_prompt *p = &g->p.prompt[prompt];
    const struct prompt_run *run = &g->run[prompt];
    struct columns c = {.out = ch->out, .n_out = ch->n_out};
    struct buf text = {0};
    if (g->p.echo)
        buf_add(&text, p->text, p->text_bytes);
    if (g->p.echo && (run->prompt_out || p->n == 1)) {
        c.prompt = p->id;
        c.n_prompt = p->n;
        c.prompt_out = run->prompt_out;
    }
    buf_add(&text, ch->said.content.s, ch->said.content.n);
    jo_obj(j);
    jo_ku64(j, "index", index);
    jo_key(j, "text");
    jo_strn(j, text.s, text.n);
    logprobs(j, g, &c);
    answer_finish(j, g, ch, true);
    if (g->p.prompt_logprobs) {
        jo_key(j, "prompt_logprobs");
        answer_prompt_logprobs(j, g, prompt);
    }
    if (g->p.return_token_ids) {
        jo_key(j, "token_ids");
        answer_ids(j, ch->out, ch->n_out);
        prompt_ids(j, p);
    }
    jo_end(j, '}');
    buf_free(&text);
}

static void answer(struct generation *g)
{
    struct jo j = {.b = &g->call->answer};
    uint32_t order[REQUEST_MAX_N];
    begin(&j, g);
    jo_key(&j, "choices");
    jo_arr(&j);
    for (uint32_t i = 0; i < g->p.n_prompts; i++) {
        answer_order(g, i, order);
        for (uint32_t k = 0; k < g->p.n; k++)
            one_choice(&j, g, i, i * g->p.n + k, &g->choice[i * g->p.best_of + order[k]]);
    }
    jo_end(&j, ']');
    jo_key(&j, "usage");
    answer_usage(&j, g);
    jo_key(&j, "timings");
    answer_timings(&j, g);
    jo_end(&j, '}');
}

const struct api_shape shape_completions = {.api = API_COMPLETIONS,
                                            .id_prefix = "cmpl-",
                                            .chunk = chunk,
                                            .usage_chunk = usage_chunk,
                                            .progress_chunk = progress_chunk,
                                            .answer = answer};

void api_completions(struct call *c)
{
    generation_begin(c, &shape_completions);
}
