/* params.c - see params.h: the fields in the order of the API's documentation. */
#include "params.h"
#include "guide.h"
#include "messages.h"
#include "responses.h"
#include "schema.h"

#include "base/hash.h"
#include "base/json.h"
#include "base/rng.h"
#include "grammar/grammar.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BAD_WORDS = 1024, MAX_WORD_BYTES = 1024, MAX_STOP_IDS = 256, MAX_BIAS = 4096 };

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

/* A double holds only 53 bits; the tree keeps the spelling of what is longer. */
static bool read_seed(struct params *p, const struct field_reader *r)
{
    const cJSON *v = field_get(r, "seed");
    char *end = NULL;
    if (!v) {
        p->like.sample.seed = rng_entropy();
        return true;
    }
    if (!cJSON_IsNumber(v))
        return field_fail(r, "seed", "expected an integer");
    const char *text = v->valuestring;
    errno = 0;
    if (!text)
        p->like.sample.seed = (uint64_t)(int64_t)v->valuedouble;
    else
        p->like.sample.seed =
            *text == '-' ? (uint64_t)strtoll(text, &end, 10) : strtoull(text, &end, 10);
    if (text && (*end || errno))
        return field_fail(r, "seed", "expected an integer of at most 64 bits");
    return true;
}

static bool read_sampling(struct params *p, const struct field_reader *r,
                          const struct param_env *env)
{
    struct sample_params *s = &p->like.sample;
    const struct model_config *m = env->model;
    double temperature = m->temperature, top_p = m->top_p > 0 ? m->top_p : 1, min_p = 0;
    double presence = 0, frequency = 0, repetition = 1;
    int64_t top_k = m->top_k;
    if (!field_number(r, "temperature", &temperature) || !field_number(r, "top_p", &top_p) ||
        !field_int(r, "top_k", &top_k) || !field_number(r, "min_p", &min_p) ||
        !field_number(r, "presence_penalty", &presence) ||
        !field_number(r, "frequency_penalty", &frequency) ||
        !field_number(r, "repetition_penalty", &repetition))
        return false;
    s->temperature = (float)temperature;
    s->top_p = (float)top_p;
    s->min_p = (float)min_p;
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0; /* -1 and 0: off, as elsewhere */
    s->presence_penalty = (float)presence;
    s->frequency_penalty = (float)frequency;
    s->repetition_penalty = (float)repetition;
    return true;
}

static bool read_stop(struct params *p, const struct field_reader *r)
{
    struct gen_request *g = &p->like;
    const cJSON *v = field_get(r, "stop");
    bool is_array = cJSON_IsArray(v);
    if (!v)
        return true;
    if (!is_array && !cJSON_IsString(v))
        return field_fail(r, "stop", "expected a string or an array of strings");
    for (const cJSON *s = is_array ? v->child : v; s; s = is_array ? s->next : NULL) {
        if (!cJSON_IsString(s) || !s->valuestring[0])
            return field_fail(r, "stop", "expected strings that are not empty");
        if (g->n_stop == REQUEST_MAX_STOP)
            return field_fail(r, "stop", "at most %d strings", REQUEST_MAX_STOP);
        size_t n = strlen(s->valuestring);
        g->stop[g->n_stop] = arena_strndup(&p->arena, s->valuestring, n);
        if (!g->stop[g->n_stop])
            return no_memory(r->ae);
        g->stop_bytes[g->n_stop++] = n;
    }
    return true;
}

static bool token_id(const struct field_reader *r, const char *key, const cJSON *v, uint32_t n_ids,
                     uint32_t *out)
{
    if (!cJSON_IsNumber(v) || v->valuedouble < 0 || v->valuedouble >= n_ids ||
        v->valuedouble != (double)(uint32_t)v->valuedouble)
        return field_fail(r, key, "expected token ids in 0..%u", n_ids - 1);
    *out = (uint32_t)v->valuedouble;
    return true;
}

/* The ids of an array field; *n 0 when it is missing. */
static bool read_id_array(struct params *p, const struct field_reader *r, const char *key,
                          const struct param_env *env, uint32_t **out, uint32_t *n)
{
    const cJSON *v = field_get(r, key);
    *n = 0;
    if (!v)
        return true;
    if (!cJSON_IsArray(v))
        return field_fail(r, key, "expected an array of token ids");
    *out = arena_alloc(&p->arena, (size_t)cJSON_GetArraySize(v) * sizeof **out);
    if (!*out)
        return no_memory(r->ae);
    for (const cJSON *one = v->child; one; one = one->next)
        if (!token_id(r, key, one, tokenizer_n_ids(env->tok), &(*out)[(*n)++]))
            return false;
    return true;
}

static bool read_allowed(struct params *p, const struct field_reader *r,
                         const struct param_env *env)
{
    uint32_t *id = NULL, n, *bits;
    if (!read_id_array(p, r, "allowed_token_ids", env, &id, &n))
        return false;
    if (!field_get(r, "allowed_token_ids"))
        return true;
    if (!n)
        return field_fail(r, "allowed_token_ids", "it is empty, so nothing could be said");
    bits = arena_zalloc(&p->arena, (env->model->vocab_size + 31) / 32 * sizeof *bits);
    if (!bits)
        return no_memory(r->ae);
    for (uint32_t i = 0; i < n; i++)
        bits[id[i] / 32] |= 1u << (id[i] % 32);
    p->like.sample.allowed = bits;
    return true;
}

static bool read_bias(struct params *p, const struct field_reader *r, const struct param_env *env)
{
    const cJSON *v = field_get(r, "logit_bias");
    uint32_t n = 0, n_ids = tokenizer_n_ids(env->tok);
    if (!v)
        return true;
    if (!cJSON_IsObject(v))
        return field_fail(r, "logit_bias", "expected an object from token ids to numbers");
    int size = cJSON_GetArraySize(v);
    if (size > MAX_BIAS)
        return field_fail(r, "logit_bias", "%d entries, at most %d", size, MAX_BIAS);
    struct sample_bias *bias = arena_alloc(&p->arena, (size_t)size * sizeof *bias);
    if (!bias)
        return no_memory(r->ae);
    for (const cJSON *one = v->child; one; one = one->next) {
        char *end;
        unsigned long id = strtoul(one->string, &end, 10);
        if (one->string[0] < '0' || one->string[0] > '9' || *end || id >= n_ids)
            return field_fail(r, "logit_bias", "\"%.24s\" is not a token id in 0..%u", one->string,
                              n_ids - 1);
        if (!cJSON_IsNumber(one) || !(one->valuedouble >= -100 && one->valuedouble <= 100))
            return field_fail(r, "logit_bias", "the bias of %lu is no number in -100..100", id);
        uint32_t at = 0;
        while (at < n && bias[at].id != id)
            at++; /* of duplicate keys the last one wins */
        bias[at] = (struct sample_bias){(uint32_t)id, (float)one->valuedouble};
        n += at == n;
    }
    p->like.sample.bias = bias;
    p->like.sample.n_bias = n;
    return true;
}

static bool read_bad_words(struct params *p, const struct field_reader *r,
                           const struct param_env *env)
{
    const cJSON *v = field_get(r, "bad_words");
    uint32_t n = 0;
    if (!v)
        return true;
    if (!cJSON_IsArray(v))
        return field_fail(r, "bad_words", "expected an array of strings");
    int size = cJSON_GetArraySize(v);
    if (size > MAX_BAD_WORDS)
        return field_fail(r, "bad_words", "%d words, at most %d", size, MAX_BAD_WORDS);
    struct token_span *span = arena_alloc(&p->arena, 2 * (size_t)size * sizeof *span);
    if (!span)
        return no_memory(r->ae);
    for (const cJSON *w = v->child; w; w = w->next) {
        if (!cJSON_IsString(w) || !w->valuestring[0])
            return field_fail(r, "bad_words", "expected strings that are not empty");
        for (int space = 0; space < 2; space++) { /* at the start of a text, and inside it */
            size_t len = strlen(w->valuestring);
            if (len > MAX_WORD_BYTES)
                return field_fail(r, "bad_words", "a word of %zu bytes, at most %d", len,
                                  MAX_WORD_BYTES);
            char *text = arena_alloc(&p->arena, len + 1);
            if (!text)
                return no_memory(r->ae);
            text[0] = ' ';
            memcpy(text + space, w->valuestring, len);
            struct text_part part = {text, len + (size_t)space, false};
            struct params_prompt ids;
            if (!prompt_encode(&p->arena, env->tok, &part, 1, false, &ids, r->ae))
                return false;
            if (ids.n)
                span[n++] = (struct token_span){ids.id, ids.n};
        }
    }
    p->like.bad_word = span;
    p->like.n_bad_words = n;
    return true;
}

static bool read_logprobs(struct params *p, const struct field_reader *r)
{
    int64_t top = -1;
    if (p->api == API_CHAT) {
        if (!field_bool(r, "logprobs", &p->logprobs) || !field_int(r, "top_logprobs", &top))
            return false;
        if (top > 0 && !p->logprobs)
            return field_fail(r, "top_logprobs", "only with logprobs: true");
        p->n_top = top > 0 ? (uint32_t)top : 0;
    } else {
        if (!field_int(r, "logprobs", &top))
            return false;
        p->logprobs = top >= 0;
        p->n_top = top > 0 ? (uint32_t)top : 0;
    }
    top = -1;
    if (!field_int(r, "prompt_logprobs", &top))
        return false;
    p->prompt_logprobs = top >= 0;
    p->n_prompt_top = top > 0 ? (uint32_t)top : 0;
    if (p->prompt_logprobs && p->stream)
        return field_fail(r, "prompt_logprobs", "not in a stream");
    p->like.sample.want_logprob = p->logprobs;
    p->like.sample.n_top = p->n_top;
    p->like.prompt_logprobs = p->prompt_logprobs;
    p->like.n_prompt_top = p->n_prompt_top;
    if (p->echo && p->logprobs) { /* the prompt's, in the shape of the answer's */
        p->like.prompt_logprobs = true;
        if (p->n_top > p->n_prompt_top)
            p->like.n_prompt_top = p->n_top;
    }
    return true;
}

static bool read_stream(struct params *p, const struct field_reader *r)
{
    const cJSON *options = field_get(r, "stream_options");
    struct field_reader o = {options, "stream_options.", r->ae};
    if (!field_bool(r, "stream", &p->stream) ||
        !field_bool(r, "return_progress", &p->return_progress) ||
        !field_bool(r, "return_token_ids", &p->return_token_ids) ||
        !field_bool(r, "resumable", &p->resumable))
        return false;
    if (p->resumable && !p->stream)
        return field_fail(r, "resumable", "only with stream: true");
    if (!options)
        return true;
    if (!cJSON_IsObject(options))
        return field_fail(r, "stream_options", "expected an object");
    if (!p->stream)
        return field_fail(r, "stream_options", "only with stream: true");
    return field_bool(&o, "include_usage", &p->include_usage) &&
           field_bool(&o, "continuous_usage_stats", &p->continuous_usage);
}

static bool read_sparse(struct params *p, const struct field_reader *r, const struct param_env *env)
{
    const cJSON *v = field_get(r, "sparse");
    struct field_reader s = {v, "sparse.", r->ae};
    const char *mode = "sparse";
    uint32_t top_k = 0;
    if (!v)
        return true;
    if (!cJSON_IsObject(v))
        return field_fail(r, "sparse", "expected an object");
    if (!env->model->has_indexer)
        return field_fail(r, "sparse", "this model has no indexer");
    if (!field_u32_within(&s, "top_k", 1, env->model->index_topk, &top_k) ||
        !field_text(&s, "mode", &mode))
        return false;
    if (strcmp(mode, "dense") != 0 && strcmp(mode, "sparse") != 0)
        return field_fail(&s, "mode", "expected \"sparse\" or \"dense\"");
    p->like.top_k_dsa = !strcmp(mode, "dense") ? TOP_K_DENSE : top_k;
    return true;
}

/* Fields that would bind the answer's form: taking one in silence would promise what is not kept.
 */
static bool refuse_unkept(const struct field_reader *r)
{
    static const char *const keys[] = {"return_gaze", "use_beam_search"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (field_get(r, keys[i]) && !cJSON_IsFalse(field_get(r, keys[i])))
            return field_fail(r, keys[i], "not supported by this server");
    return true;
}

/* thinking_token_budget, or the same as thinking.budget_tokens; after the prompt. */
static bool read_budget(struct params *p, const struct field_reader *r, const struct param_env *env)
{
    const cJSON *thinking = field_get(r, "thinking");
    struct field_reader t = {cJSON_IsObject(thinking) ? thinking : NULL, "thinking.", r->ae};
    uint32_t budget = UINT32_MAX;
    if (!field_u32(&t, "budget_tokens", &budget) || !field_u32(r, "thinking_token_budget", &budget))
        return false;
    if (budget == UINT32_MAX)
        return true;
    p->like.limit_thinking = true;
    p->like.thinking_open = p->thinking_open;
    p->like.max_thinking = budget;
    p->like.think_begin = tokenizer_find(env->tok, "<think>", 7);
    p->like.think_end = tokenizer_find(env->tok, "</think>", 8);
    return p->like.think_end != UINT32_MAX ||
           field_fail(r, "thinking_token_budget", "this model has no token that ends reasoning");
}

static bool read_counts(struct params *p, const struct field_reader *r, const struct param_env *env)
{
    struct gen_request *g = &p->like;
    int64_t priority = 0;
    const char *salt = NULL, *user = NULL;
    bool skip_special = true;
    uint32_t least = p->api == API_COMPLETIONS && p->echo ? 0 : 1;
    p->n = p->best_of = 1;
    p->max_tokens = p->api == API_COMPLETIONS ? 16 : UINT32_MAX;
    if (!field_u32_within(r, "max_tokens", least, INT32_MAX, &p->max_tokens) ||
        (p->api == API_CHAT && !field_u32(r, "max_completion_tokens", &p->max_tokens)) ||
        !field_u32(r, "min_tokens", &g->min_tokens) || !field_u32(r, "n", &p->n))
        return false;
    if (g->min_tokens > p->max_tokens)
        return field_fail(r, "min_tokens", "%u is more than max_tokens, %u", g->min_tokens,
                          p->max_tokens);
    p->best_of = p->n;
    if (p->api == API_COMPLETIONS && !field_u32(r, "best_of", &p->best_of))
        return false;
    if (p->best_of < p->n)
        return field_fail(r, "best_of", "%u is less than n, %u", p->best_of, p->n);
    if (p->best_of > env->max_seqs)
        return field_fail(r, p->best_of > p->n ? "best_of" : "n",
                          "%u, but this server runs at most %u sequences at once", p->best_of,
                          env->max_seqs);
    if (p->best_of > p->n && p->stream)
        return field_fail(r, "best_of", "more than n, which a stream cannot have");
    g->n = p->best_of;
    if (!field_bool(r, "ignore_eos", &g->ignore_eos) ||
        !field_bool(r, "include_stop_str_in_output", &g->include_stop) ||
        !field_bool(r, "skip_special_tokens", &skip_special) ||
        !field_int(r, "priority", &priority) || !field_text(r, "cache_salt", &salt) ||
        !field_text(r, "user", &user))
        return false;
    g->keep_special = !skip_special;
    g->priority = (int32_t)priority;
    g->cache_salt = salt ? hash_bytes(1, salt, strlen(salt)) : 0;
    return true;
}

static bool read_model(struct params *p, const struct field_reader *r, const struct param_env *env)
{
    const char *name = env->default_model;
    if (!field_text(r, "model", &name))
        return false;
    if (!env->knows_model(env->knows_arg, name))
        return api_fail(r->ae, 404, "model", "model_not_found",
                        "The model \"%.100s\" does not exist.", name);
    p->model = arena_strndup(&p->arena, name, strlen(name));
    return p->model || no_memory(r->ae);
}

bool params_fits(const struct params *p, uint64_t prompt_tokens, bool at_least,
                 const struct param_env *env, struct api_error *ae)
{
    const char *field = p->api == API_CHAT ? "messages" : "prompt",
               *as = at_least ? "at least " : "";
    uint64_t want = p->max_tokens == UINT32_MAX ? 1 : p->max_tokens, all = prompt_tokens + want;
    return all <= env->max_context ||
           api_fail(ae, 400, field, "context_length_exceeded",
                    "This model's context is %u tokens, but the request wants %s%" PRIu64
                    " (%s%" PRIu64 " in the %s, %" PRIu64 " in the answer).",
                    env->max_context, as, all, as, prompt_tokens, field, want);
}

/* How long it may become, against what fits. */
static bool check_lengths(struct params *p, const struct param_env *env, struct api_error *ae)
{
    const char *field = p->api == API_CHAT ? "messages" : "prompt";
    if ((uint64_t)p->n_prompts * p->best_of > PARAMS_MAX_CHOICES)
        return api_fail(ae, 400, "n", "invalid_value",
                        "n: %u prompts with %u choices each, at most %d "
                        "choices go in one request",
                        p->n_prompts, p->best_of, PARAMS_MAX_CHOICES);
    for (uint32_t i = 0; i < p->n_prompts; i++) {
        if (!p->prompt[i].n)
            return api_fail(ae, 400, field, "invalid_value", "%s: it has no tokens", field);
        if (!params_fits(p, p->prompt[i].n, false, env, ae))
            return false;
    }
    return true;
}

static bool read_fields(struct params *p, cJSON *root, const struct param_env *env,
                        struct api_error *ae)
{
    struct field_reader r = {root, "", ae};
    uint32_t *ids = NULL;
    if (!read_model(p, &r, env) || !read_stream(p, &r))
        return false;
    if (p->api == API_COMPLETIONS) {
        const char *suffix = NULL;
        if (!field_bool(&r, "echo", &p->echo) || !field_text(&r, "suffix", &suffix))
            return false;
        if (suffix)
            return field_fail(&r, "suffix", "this model has no fill-in-the-middle tokens");
    }
    if (!refuse_unkept(&r) || !read_counts(p, &r, env) || !read_sampling(p, &r, env) ||
        !read_seed(p, &r) || !read_stop(p, &r) ||
        !read_id_array(p, &r, "stop_token_ids", env, &ids, &p->like.n_stop_id))
        return false;
    p->like.stop_id = ids;
    if (p->like.n_stop_id > MAX_STOP_IDS)
        return field_fail(&r, "stop_token_ids", "at most %d ids", MAX_STOP_IDS);
    if (!read_allowed(p, &r, env) || !read_bias(p, &r, env) || !read_bad_words(p, &r, env) ||
        !read_logprobs(p, &r) || !read_sparse(p, &r, env))
        return false;
    if (p->best_of > p->n)
        p->like.sample.want_logprob = true; /* the best are chosen by it */
    return guide_read(p, root, env, ae) &&
           (p->api == API_CHAT ? prompt_from_chat(p, root, env, ae)
                               : prompt_from_completion(p, root, env, ae)) &&
           read_budget(p, &r, env) && check_lengths(p, env, ae) && guide_settle(p, env, ae);
}

bool params_read(struct params *p, enum api_kind api, const char *body, size_t bytes,
                 const struct param_env *env, struct api_error *ae)
{
    static const struct body_schema *const schemas[] = {[API_CHAT] = &schema_chat,
                                                        [API_COMPLETIONS] = &schema_completion,
                                                        [API_MESSAGES] = &schema_messages,
                                                        [API_RESPONSES] = &schema_responses};
    cJSON *root;
    *p = (struct params){.api = api == API_COMPLETIONS ? api : API_CHAT, .bounded = true};
    arena_init(&p->arena, 1024);
    p->like.sample = (struct sample_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    if (!params_parse_json(&root, body, bytes, ae))
        return false;
    bool ok = schema_check(schemas[api], root, ae) &&
              (api != API_MESSAGES || messages_to_chat(&root, ae)) &&
              (api != API_RESPONSES || responses_to_chat(&root, p, env, ae)) &&
              read_fields(p, root, env, ae);
    if (!ok && api == API_RESPONSES)
        responses_rename(ae);
    cJSON_Delete(root);
    return ok;
}

void params_free(struct params *p)
{
    cJSON_Delete(p->tools);
    p->tools = NULL;
    cJSON_Delete(p->guide.tree);
    p->guide.tree = NULL;
    grammar_close(p->like.grammar);
    p->like.grammar = NULL;
    arena_free(&p->arena);
}

static const void *copy(struct gen_request *g, const void *from, size_t bytes, bool *ok)
{
    if (!from || !bytes)
        return NULL;
    void *to = arena_alloc(&g->arena, bytes);
    if (!to)
        *ok = false;
    else
        memcpy(to, from, bytes);
    return to;
}

/* Without a limit of the client's: what the context leaves, and what the pool holds for all choices
 * (which a request must fit into even at its longest). */
static uint32_t most_tokens(const struct params *p, uint32_t n_prompt, const struct param_env *env)
{
    uint64_t most = env->max_context - n_prompt;
    if (env->kv_tokens) {
        uint64_t each = env->kv_tokens / p->best_of / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        uint64_t room = each > n_prompt + 1 ? each - n_prompt - 1 : 1;
        most = room < most ? room : most;
    }
    return (uint32_t)most;
}

struct gen_request *params_request(const struct params *p, uint32_t i, const struct param_env *env)
{
    struct gen_request *g = gen_request_new();
    bool ok = true;
    if (!g)
        return NULL;
    struct arena arena = g->arena;
    *g = p->like;
    g->arena = arena;
    if (g->grammar)
        (void)grammar_ref(g->grammar);
    g->n_prompt = p->prompt[i].n;
    g->prompt = copy(g, p->prompt[i].id, g->n_prompt * sizeof *g->prompt, &ok);
    g->max_tokens = p->max_tokens == UINT32_MAX ? most_tokens(p, g->n_prompt, env) : p->max_tokens;
    g->stop_id = copy(g, g->stop_id, g->n_stop_id * sizeof *g->stop_id, &ok);
    for (uint32_t k = 0; k < g->n_stop; k++)
        g->stop[k] = copy(g, g->stop[k], g->stop_bytes[k] + 1, &ok);
    g->sample.bias = copy(g, g->sample.bias, g->sample.n_bias * sizeof *g->sample.bias, &ok);
    g->sample.allowed = copy(g, g->sample.allowed, (env->model->vocab_size + 31) / 32 * 4, &ok);
    g->never = copy(g, g->never, g->n_never * sizeof *g->never, &ok);
    struct token_span *span = arena_alloc(&g->arena, g->n_bad_words * sizeof *span);
    for (uint32_t k = 0; span && k < g->n_bad_words; k++)
        span[k] = (struct token_span){
            copy(g, g->bad_word[k].id, g->bad_word[k].n * sizeof(uint32_t), &ok), g->bad_word[k].n};
    g->bad_word = span;
    if (!ok || !span) {
        gen_request_free(g);
        return NULL;
    }
    return g;
}
