/* answer.c - the parts of an answer that chat and completions share; see generation.h. */
#include "base/json.h"
#include "generation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

uint32_t utf8_chars(const char *s, size_t n)
{
    uint32_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    return chars;
}

float clamp_logprob(float v)
{
    return isfinite(v) && v > -9999.0f ? v : -9999.0f;
}

void answer_head(struct jo *j, const struct generation *g, const char *object)
{
    const struct server *sv = g->call->sv;
    jo_kstr(j, "id", g->id);
    jo_kstr(j, "object", object);
    jo_ku64(j, "created", g->created_s);
    jo_kstr(j, "model", g->p.model);
    jo_kstr(j, "system_fingerprint", sv->api->fingerprint(sv->engine));
    jo_kstr(j, "service_tier", "default");
}

void answer_usage(struct jo *j, const struct generation *g)
{
    uint64_t prompt = 0, reasoning = 0, cached = g->usage.cached_tokens;
    for (uint32_t i = 0; i < g->p.n_prompts; i++)
        prompt += g->p.prompt[i].n;
    for (uint32_t i = 0; i < g->n_choices; i++)
        reasoning += g->choice[i].n_reasoning;
    jo_obj(j);
    jo_ku64(j, "prompt_tokens", prompt);
    jo_ku64(j, "completion_tokens", g->usage.completion_tokens);
    jo_ku64(j, "total_tokens", prompt + g->usage.completion_tokens);
    jo_key(j, "prompt_tokens_details");
    jo_obj(j);
    jo_ku64(j, "cached_tokens", cached);
    jo_ku64(j, "audio_tokens", 0);
    jo_end(j, '}');
    jo_key(j, "completion_tokens_details");
    jo_obj(j);
    jo_ku64(j, "reasoning_tokens", reasoning);
    jo_ku64(j, "audio_tokens", 0);
    jo_ku64(j, "accepted_prediction_tokens", 0);
    jo_ku64(j, "rejected_prediction_tokens", 0);
    jo_end(j, '}');
    jo_ku64(j, "prompt_cache_hit_tokens", cached);
    jo_ku64(j, "prompt_cache_miss_tokens", prompt > cached ? prompt - cached : 0);
    jo_end(j, '}');
}

static double per_second(uint64_t n, uint64_t us)
{
    return us ? (double)n * 1e6 / (double)us : 0;
}

void answer_timings(struct jo *j, const struct generation *g)
{
    const struct gen_usage *u = &g->usage;
    uint64_t prompt = 0;
    for (uint32_t i = 0; i < g->p.n_prompts; i++)
        prompt += g->p.prompt[i].n;
    uint64_t run = prompt > u->cached_tokens ? prompt - u->cached_tokens : 0;
    jo_obj(j);
    jo_kfix(j, "queue_ms", (double)u->queue_us * 1e-3, 3);
    jo_ku64(j, "prompt_n", prompt);
    jo_kfix(j, "prompt_ms", (double)u->prefill_us * 1e-3, 3);
    jo_kfix(j, "prompt_per_second", per_second(run, u->prefill_us), 2);
    jo_ku64(j, "cached_n", u->cached_tokens);
    jo_ku64(j, "predicted_n", u->completion_tokens);
    jo_kfix(j, "predicted_ms", (double)u->decode_us * 1e-3, 3);
    jo_kfix(j, "predicted_per_second", per_second(u->completion_tokens, u->decode_us), 2);
    jo_kfix(j, "ttft_ms", (double)u->ttft_us * 1e-3, 3);
    jo_kfix(j, "total_ms", (double)u->total_us * 1e-3, 3);
    jo_kfix(j, "device_ms", (double)u->busy_us * 1e-3, 3);
    jo_ku64(j, "kv_byte_seconds", u->kv_byte_seconds);
    jo_end(j, '}');
}

void answer_closing(struct jo *j, const struct generation *g, const struct piece *piece)
{
    if (!piece->closes || g->p.include_usage)
        return;
    jo_key(j, "timings");
    answer_timings(j, g);
}

/* bytes_form: a token that is no text by itself is written "bytes:\xe2\x96", so that two of them
 * stay two keys; else with U+FFFD. */
void answer_token_text(struct jo *j, const struct generation *g, uint32_t id, bool bytes_form)
{
    size_t n;
    const char *s = tokenizer_bytes(g->env.tok, id, &n);
    if (!bytes_form || utf8_valid(s, n, NULL)) {
        jo_strn(j, s, n);
        return;
    }
    struct buf b = {0};
    buf_str(&b, "bytes:");
    for (size_t i = 0; i < n; i++)
        buf_fmt(&b, "\\x%02x", (unsigned char)s[i]);
    jo_strn(j, b.s ? b.s : "", b.n);
    buf_free(&b);
}

static void chat_logprob(struct jo *j, const struct generation *g, uint32_t id, float logprob)
{
    size_t n;
    const char *s = tokenizer_bytes(g->env.tok, id, &n);
    jo_key(j, "token");
    answer_token_text(j, g, id, false);
    jo_key(j, "logprob");
    jo_f32(j, clamp_logprob(logprob));
    jo_key(j, "bytes");
    jo_arr(j);
    for (size_t i = 0; i < n; i++)
        jo_u64(j, (unsigned char)s[i]);
    jo_end(j, ']');
}

void answer_chat_logprobs(struct jo *j, const struct generation *g, const struct sample_out *out,
                          uint32_t n)
{
    if (!g->p.logprobs) {
        jo_null(j);
        return;
    }
    jo_obj(j);
    jo_key(j, "content");
    jo_arr(j);
    for (uint32_t i = 0; i < n; i++) {
        jo_obj(j);
        chat_logprob(j, g, out[i].token, out[i].logprob);
        jo_key(j, "top_logprobs");
        jo_arr(j);
        for (uint32_t k = 0; k < out[i].n_top && k < g->p.n_top; k++) {
            jo_obj(j);
            chat_logprob(j, g, out[i].top[k].id, out[i].top[k].logprob);
            jo_end(j, '}');
        }
        jo_end(j, ']');
        jo_end(j, '}');
    }
    jo_end(j, ']');
    jo_knull(j, "refusal");
    jo_end(j, '}');
}

static void prompt_logprob(struct jo *j, const struct generation *g, uint32_t id, float logprob,
                           uint32_t rank)
{
    char key[16];
    snprintf(key, sizeof key, "%u", id);
    jo_key(j, key);
    jo_obj(j);
    jo_key(j, "logprob");
    jo_f32(j, clamp_logprob(logprob));
    jo_ku64(j, "rank", rank);
    jo_key(j, "decoded_token");
    answer_token_text(j, g, id, false);
    jo_end(j, '}');
}

void answer_prompt_logprobs(struct jo *j, const struct generation *g, uint32_t prompt)
{
    const struct prompt_run *run = &g->run[prompt];
    if (!g->p.prompt_logprobs || !run->prompt_out) {
        jo_null(j);
        return;
    }
    jo_arr(j);
    jo_null(j);
    for (uint32_t i = 0; i < run->n_prompt_out; i++) {
        const struct sample_out *o = &run->prompt_out[i];
        jo_obj(j);
        prompt_logprob(j, g, o->token, o->logprob, o->rank);
        for (uint32_t k = 0; k < o->n_top && k < g->p.n_prompt_top; k++)
            if (o->top[k].id != o->token)
                prompt_logprob(j, g, o->top[k].id, o->top[k].logprob, k + 1);
        jo_end(j, '}');
    }
    jo_end(j, ']');
}

void answer_ids(struct jo *j, const struct sample_out *out, uint32_t n)
{
    jo_arr(j);
    for (uint32_t i = 0; i < n; i++)
        jo_u64(j, out[i].token);
    jo_end(j, ']');
}

void answer_finish(struct jo *j, const struct generation *g, const struct choice *ch, bool last)
{
    static const char *const names[] = {[FINISH_NONE] = NULL,
                                        [FINISH_STOP] = "stop",
                                        [FINISH_LENGTH] = "length",
                                        [FINISH_CANCELLED] = "stop"};
    const char *name =
        ch->finish == FINISH_STOP && ch->said.n_complete ? "tool_calls" : names[ch->finish];
    bool stopped = last && ch->finish == FINISH_STOP;
    jo_kstr(j, "finish_reason", last ? name : NULL);
    jo_key(j, "stop_reason");
    if (stopped && ch->stop_reason >= 0)
        jo_i64(j, ch->stop_reason);
    else if (stopped && ch->stop_reason <= -2 &&
             (uint32_t)(-2 - ch->stop_reason) < g->p.like.n_stop)
        jo_str(j, g->p.like.stop[-2 - ch->stop_reason]);
    else
        jo_null(j);
}

void answer_order(const struct generation *g, uint32_t prompt, uint32_t *order)
{
    uint32_t n = g->p.best_of;
    const struct choice *ch = &g->choice[prompt * n];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        double mean = ch[i].n_tokens ? ch[i].sum_logprob / ch[i].n_tokens : -INFINITY;
        while (g->p.best_of > g->p.n && at) {
            const struct choice *before = &ch[order[at - 1]];
            double its = before->n_tokens ? before->sum_logprob / before->n_tokens : -INFINITY;
            if (its >= mean)
                break;
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
}

void answer_send(struct generation *g, struct buf *b)
{
    sse_data(&g->call->sse, b);
    buf_free(b);
}
