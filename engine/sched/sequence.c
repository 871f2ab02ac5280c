/* sequence.c - see sequence.h. */
#include "sched/sequence.h"

#include <string.h>

uint64_t sequence_kv_tokens(const struct gen_request *r)
{
    return (uint64_t)r->n_prompt + (r->max_tokens ? r->max_tokens - 1 : 0);
}

uint32_t sequence_shared_pages(const struct gen_request *r)
{
    assert(r->n_prompt >= 1);
    return (r->n_prompt - 1) / KV_PAGE_TOKENS;
}

/* Stop ids of the request, then the model's end ids unless they are ignored. */
static bool collect_end_ids(struct sequence *s, struct gen_request *r, const uint32_t *eos,
                            uint32_t n_eos)
{
    uint32_t n_model = r->ignore_eos ? 0 : n_eos, n = r->n_stop_id + n_model;
    uint32_t *id = arena_alloc(&r->arena, n * sizeof *id);
    if (!id)
        return false;
    if (r->n_stop_id)
        memcpy(id, r->stop_id, r->n_stop_id * sizeof *id);
    if (n_model)
        memcpy(id + r->n_stop_id, eos, n_model * sizeof *id);
    s->end_id = id;
    s->n_end = n;
    return true;
}

/* Whether the output ends with all of the word but its last token. */
static bool word_is_next(const struct sequence *s, const struct token_span *word)
{
    uint32_t before = word->n - 1, n_out = sequence_n_output(s);
    return before <= n_out &&
           memcmp(s->token + s->n_tokens - before, word->id, before * sizeof *s->token) == 0;
}

void sequence_ban(struct sequence *s)
{
    const struct gen_request *r = s->ask;
    s->n_banned = r->n_never; /* written once, at the front */
    for (uint32_t i = 0; i < r->n_bad_words; i++) {
        const struct token_span *word = &r->bad_word[i];
        if (word->n && word_is_next(s, word))
            s->banned[s->n_banned++] = word->id[word->n - 1];
    }
    if (sequence_n_output(s) >= r->min_tokens)
        return;
    memcpy(s->banned + s->n_banned, s->end_id, s->n_end * sizeof *s->banned);
    s->n_banned += s->n_end;
}

uint32_t sequence_unwatched(const struct sequence *s)
{
    const struct gen_request *r = s->ask;
    const struct sample_params *p = &s->sample;
    bool penalties = p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f ||
                     p->repetition_penalty != 1.0f;
    if (penalties || r->n_bad_words || r->limit_thinking || s->guide.state != GUIDE_OFF ||
        s->forced_at != s->n_forced || sequence_n_output(s) < r->min_tokens)
        return 0;
    return r->max_tokens - sequence_n_output(s) - 1;
}

bool sequence_must_close(const struct sequence *s, uint32_t *id)
{
    *id = s->ask->think_end;
    return s->thinking && s->n_thought >= s->ask->max_thinking;
}

/* After token, with the text that it brought. */
static void count_thinking(struct sequence *s, uint32_t token, const struct seq_text *out)
{
    static const char mark[] = "</think>";
    const struct gen_request *r = s->ask;
    if (!r->limit_thinking)
        return;
    if (!s->thinking) {
        s->thinking = token == r->think_begin;
        return;
    }
    s->n_thought++;
    s->thinking = token != r->think_end;
    for (size_t i = 0; i < out->bytes && s->thinking; i++) {
        char c = out->text[i];
        s->n_spelled = c == mark[s->n_spelled] ? s->n_spelled + 1 : c == mark[0];
        if (s->n_spelled == sizeof mark - 1)
            s->thinking = false;
    }
}

/* What the sampler may choose from next. */
static enum err_code next_mask(struct sequence *s, bool *over, struct err *e)
{
    s->sample = s->ask->sample;
    const struct guide_rules rules = {.allowed = s->sample.allowed,
                                      .banned = s->banned,
                                      .n_banned = s->n_banned,
                                      .end_id = s->end_id,
                                      .n_end = s->n_end,
                                      .may_end = sequence_n_output(s) >= s->ask->min_tokens};
    if (guide_fill(&s->guide, &rules, over, e))
        return e->code;
    if (guide_masks(&s->guide))
        s->sample.allowed = s->guide.mask;
    return ERR_OK;
}

enum err_code sequence_open(struct sequence *s, struct gen_request *r, uint32_t choice,
                            const uint32_t *eos, uint32_t n_eos, const struct tokenizer *tok,
                            struct err *e)
{
    struct arena *a = &r->arena;
    size_t n_tokens = (size_t)r->n_prompt + r->max_tokens;
    uint32_t n_pages = kv_pages_for(sequence_kv_tokens(r));
    *s = (struct sequence){.index = s->index,
                           .choice = choice,
                           .ask = r,
                           .n_prompt = r->n_prompt,
                           .n_tokens = r->n_prompt,
                           .thinking = r->limit_thinking && r->thinking_open,
                           .max_nodes = n_pages};
    s->token = arena_alloc(a, n_tokens * sizeof *s->token);
    s->table = (struct block_table){.page = arena_alloc(a, n_pages * sizeof *s->table.page),
                                    .max_pages = n_pages};
    s->node = arena_alloc(a, n_pages * sizeof(struct prefix_node *));
    if (!s->token || !s->table.page || !s->node || !collect_end_ids(s, r, eos, n_eos))
        return err_set(e, ERR_NOMEM, "no memory for a sequence of %zu tokens", n_tokens);
    s->banned =
        arena_alloc(a, ((size_t)r->n_never + r->n_bad_words + s->n_end) * sizeof *s->banned);
    if (!s->banned)
        return err_set(e, ERR_NOMEM, "no memory for %u bad words", r->n_bad_words);
    if (r->n_never)
        memcpy(s->banned, r->never, r->n_never * sizeof *s->banned);
    memcpy(s->token, r->prompt, r->n_prompt * sizeof *s->token);
    s->stop = (struct stop_list){
        .text = r->stop, .bytes = r->stop_bytes, .n = r->n_stop, .include = r->include_stop};
    if (guide_open(&s->guide, r, e))
        return e->code;
    sequence_ban(s);
    bool over;
    if (next_mask(s, &over, e))
        return e->code;
    if (tok && detok_create(&s->detok, a, tok, &s->stop, !r->keep_special, e))
        return e->code;
    return ERR_OK;
}

void sequence_close(struct sequence *s)
{
    assert(s->table.n_pages == 0);
    assert(s->moved.n_pages == 0);
    assert(s->n_nodes == 0);
    guide_close(&s->guide);
    *s = (struct sequence){.index = s->index};
}

/* The place of token among the end ids; n_end when it is none. */
static uint32_t find_end(const struct sequence *s, uint32_t token)
{
    uint32_t i = 0;
    while (i < s->n_end && s->end_id[i] != token)
        i++;
    return i;
}

/* Log-probabilities need each step; and who rules single tokens is to see them chosen. */
static bool may_jump(const struct gen_request *r)
{
    return !r->sample.want_logprob && !r->sample.n_bias && !r->sample.allowed && !r->n_bad_words;
}

bool sequence_forced(struct sequence *s, uint32_t *token)
{
    if (s->forced_at == s->n_forced)
        return false;
    *token = s->forced[s->forced_at++];
    return true;
}

enum err_code sequence_put(struct sequence *s, uint32_t token, struct seq_text *out, struct err *e)
{
    const struct gen_request *r = s->ask;
    assert(sequence_n_output(s) < r->max_tokens);
    *out = (struct seq_text){.text = "", .stop_reason = -1};
    s->token[s->n_tokens++] = token;
    bool may_end = sequence_n_output(s) > r->min_tokens;
    uint32_t end = find_end(s, token);
    if (end < s->n_end && may_end) {
        out->finish = FINISH_STOP;
        if (end < r->n_stop_id) /* the model's own end ids are no one's wish */
            out->stop_reason = (int32_t)token;
    }
    if (s->detok && (out->finish == FINISH_NONE || r->include_stop)) {
        bool stopped = false;
        uint32_t index = 0;
        detok_put(s->detok, token, may_end, &out->text, &out->bytes, &stopped, &index);
        if (stopped) {
            out->finish = FINISH_STOP;
            out->stop_reason = -2 - (int32_t)index;
        }
    }
    count_thinking(s, token, out);
    bool over = false;
    if (out->finish == FINISH_NONE && guide_put(&s->guide, token, e))
        return e->code;
    if (out->finish == FINISH_NONE && s->guide.state != GUIDE_OFF && s->forced_at == s->n_forced) {
        sequence_ban(s);
        if (next_mask(s, &over, e))
            return e->code;
        s->forced_at = s->n_forced = 0;
        if (!over && may_jump(r) && guide_forced(&s->guide, s->forced, &s->n_forced, e))
            return e->code;
    }
    if (over)
        out->finish = FINISH_STOP;
    if (out->finish == FINISH_NONE && sequence_n_output(s) == r->max_tokens)
        out->finish = FINISH_LENGTH;
    return ERR_OK;
}

void sequence_flush(struct sequence *s, struct seq_text *out)
{
    *out = (struct seq_text){.text = "", .stop_reason = -1};
    if (s->detok)
        detok_flush(s->detok, &out->text, &out->bytes);
}

void sequence_count_pages(struct sequence *s, uint64_t now_us)
{
    if (now_us > s->kv_since_us)
        s->kv_page_us += ((double)s->table.n_pages + (double)s->moved.n_pages) *
                         (double)(now_us - s->kv_since_us);
    s->kv_since_us = now_us;
}
