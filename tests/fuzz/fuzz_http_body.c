/* fuzz_http_body.c - a request body of any bytes: refused with a status and a sentence, or a
 * request whose every number lies within what the engine relies on. The first byte chooses the
 * endpoint, and whether the form that is asked for is compiled, too. Of earlier responses there is
 * one, "resp_1".
 */
#include "base/log.h"
#include "server/errors.h"
#include "server/guide.h"
#include "server/json_out.h"
#include "server/params.h"
#include "server/response_store.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char tokenizer_json[] =
    "{\"added_tokens\":[{\"id\":256,\"content\":\"<s>\",\"special\":true},"
    "{\"id\":257,\"content\":\"</think>\",\"special\":false}],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{%s},\"merges\":[]}"
    "}";

static bool knows(const void *arg, const char *name)
{
    return !strcmp(name, arg);
}

/* A byte-level vocabulary without merges: ids 0 .. 255 are the bytes, spelt by GPT-2's table. */
static struct tokenizer *make_tokenizer(void)
{
    struct buf vocab = {0};
    struct tokenizer *tok = NULL;
    struct err e = {0};
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool plain = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        buf_fmt(&vocab, "%s\"\\u%04x\":%u", b ? "," : "", plain ? b : next, b);
        next += !plain;
    }
    size_t n = sizeof tokenizer_json + vocab.n;
    char *text = malloc(n);
    assert(text);
    int len = snprintf(text, n, tokenizer_json, vocab.s);
    if (tokenizer_parse(&tok, text, (size_t)len, NULL, 0, &e)) {
        fprintf(stderr, "fuzz_http_body: %s\n", e.msg);
        abort();
    }
    free(text);
    buf_free(&vocab);
    return tok;
}

static void check_request(const struct params *p, const struct param_env *env)
{
    assert(p->n_prompts >= 1 && p->n >= 1 && p->n <= REQUEST_MAX_N && p->best_of >= p->n);
    for (uint32_t i = 0; i < p->n_prompts; i++) {
        struct gen_request *g = params_request(p, i, env);
        assert(g && g->n_prompt >= 1 && g->n_prompt + g->max_tokens <= env->max_context);
        assert(g->sample.temperature >= 0 && g->sample.temperature <= 2);
        assert(g->sample.top_p > 0 && g->sample.top_p <= 1);
        assert(g->sample.repetition_penalty > 0 && isfinite(g->sample.repetition_penalty));
        assert(g->sample.n_top <= SAMPLE_MAX_TOP && g->n_prompt_top <= SAMPLE_MAX_TOP);
        assert(g->n_stop <= REQUEST_MAX_STOP && g->min_tokens <= p->max_tokens);
        for (uint32_t k = 0; k < g->n_prompt; k++)
            assert(g->prompt[k] < env->model->vocab_size);
        for (uint32_t k = 0; k < g->sample.n_bias; k++)
            assert(g->sample.bias[k].id < env->model->vocab_size);
        for (uint32_t k = 0; k < g->n_stop; k++)
            assert(strlen(g->stop[k]) == g->stop_bytes[k] && g->stop_bytes[k]);
        gen_request_free(g);
    }
}

static void open_shared(struct guides **guides, struct response_store **store)
{
    static const char *const text[RESPONSE_PARTS] = {
        [RESPONSE_ANSWER] = "{}",
        [RESPONSE_TALK] =
            "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"tool_calls\":[{"
            "\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
            "\"{}\"}}]}]"};
    struct err e = {0};
    if (guides_open(guides, &e) || response_store_open(store, 2, 1 << 20, &e) ||
        !response_store_put(*store, "resp_1", 0, text,
                            (const size_t[]){strlen(text[0]), strlen(text[1])}))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tok;
    static struct guides *guides;
    static struct response_store *store;
    static struct model_config model = {
        .vocab_size = 384, .has_indexer = true, .index_topk = 64, .temperature = 1, .top_p = 1};
    struct params p;
    struct api_error ae = {0};
    if (!tok) {
        log_set_level(LOG_OFF);
        tok = make_tokenizer();
        open_shared(&guides, &store);
    }
    struct param_env env = {.model = &model,
                            .tok = tok,
                            .format = chat_format_by_name("deepseek-v3.1"),
                            .max_context = 4096,
                            .max_seqs = 64,
                            .kv_tokens = 8192,
                            .knows_model = knows,
                            .knows_arg = "m",
                            .default_model = "m",
                            .responses = store,
                            .guides = guides};
    if (!size)
        return 0;
    bool compiles = data[0] == 'g' || data[0] == 'M' || data[0] == 'R';
    enum api_kind api = (data[0] | 32) == 'm'   ? API_MESSAGES
                        : (data[0] | 32) == 'r' ? API_RESPONSES
                        : data[0] & 1           ? API_CHAT
                                                : API_COMPLETIONS;
    if (params_read(&p, api, (const char *)data + 1, size - 1, &env, &ae) &&
        (!compiles || guide_make(&p, &env, &ae))) {
        assert(!ae.status);
        check_request(&p, &env);
    } else {
        struct buf b = {0};
        assert(ae.status >= 400 && ae.status < 600 && ae.type && ae.message[0]);
        api_error_json(&b, &ae);
        cJSON *v = cJSON_Parse(b.s); /* whatever the client sent, our answer is JSON */
        assert(v);
        cJSON_Delete(v);
        buf_free(&b);
    }
    params_free(&p);
    return 0;
}
