/* test_api.c - the API's shapes and fields, over a fake engine whose every token is known. */
#include "rig.h"

#define CHAT "/v1/chat/completions"
#define COMPLETIONS "/v1/completions"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"

enum { MAX_EVENTS = 600 };

TEST(chat_answer_has_every_field)
{
    static const char *const want[] = {"id",
                                       "object",
                                       "created",
                                       "model",
                                       "system_fingerprint",
                                       "service_tier",
                                       "choices.0.index",
                                       "choices.0.message.role",
                                       "choices.0.message.content",
                                       "choices.0.message.refusal",
                                       "choices.0.logprobs",
                                       "choices.0.finish_reason",
                                       "usage.prompt_tokens",
                                       "usage.completion_tokens",
                                       "usage.prompt_tokens_details.cached_tokens",
                                       "usage.completion_tokens_details.reasoning_tokens",
                                       "usage.prompt_cache_hit_tokens",
                                       "timings.queue_ms",
                                       "timings.device_ms",
                                       "timings.kv_byte_seconds"};
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT, "{" USER ",\"max_tokens\":3,\"model\":\"gpt-4o\"}");
    cJSON *v = body_of(a);
    CHECK(status_of(a) == 200);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECK_MSG(at(v, want[i]), "no %s in %s", want[i], a);
    CHECK(!strcmp(text_at(v, "object"), "chat.completion"));
    CHECK(!strncmp(text_at(v, "id"), "chatcmpl-", 9));
    CHECK(!strcmp(text_at(v, "model"), "gpt-4o"));
    CHECK(!strcmp(text_at(v, "choices.0.message.content"), "tok tok tok "));
    CHECK(!strcmp(text_at(v, "choices.0.finish_reason"), "length"));
    CHECK(number_at(v, "usage.completion_tokens") == 3);
    CHECK(number_at(v, "usage.total_tokens") == number_at(v, "usage.prompt_tokens") + 3);
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

TEST(chat_stream_is_what_sdks_read)
{
    struct rig r;
    cJSON *ev[MAX_EVENTS];
    bool done;
    fake.text = "Gr\xc3\xbc\xc3\x9f \"dich\"\n";
    fake.piece_bytes =
        2; /* the real engine never cuts a character; here the server must survive it */
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_stream(&r, CHAT,
                         "{" USER ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    CHECK(strcasestr(a, "content-type: text/event-stream"));
    int n = events_of(a, ev, MAX_EVENTS, &done);
    CHECK(done && n >= 4);
    CHECK(!strcmp(text_at(ev[0], "choices.0.delta.role"), "assistant"));
    for (int i = 0; i < n; i++) {
        CHECK(!strcmp(text_at(ev[i], "object"), "chat.completion.chunk"));
        CHECK(!strcmp(text_at(ev[i], "id"), text_at(ev[0], "id")));
        CHECK(i == n - 1 ? cJSON_IsObject(at(ev[i], "usage")) : cJSON_IsNull(at(ev[i], "usage")));
    }
    CHECK(!strcmp(text_at(ev[n - 2], "choices.0.finish_reason"), "stop"));
    CHECK(cJSON_GetArraySize(at(ev[n - 1], "choices")) == 0 && at(ev[n - 1], "timings.ttft_ms"));
    for (int i = 0; i < n; i++)
        cJSON_Delete(ev[i]);
    free(a);
    rig_stop(&r);
}

TEST(reasoning_has_its_own_fields)
{
    struct rig r;
    fake.text = "I think</think>I say";
    fake.piece_bytes = 3;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT, "{" USER ",\"thinking\":{\"type\":\"enabled\"}}");
    cJSON *v = body_of(a);
    CHECK(!strcmp(text_at(v, "choices.0.message.reasoning_content"), "I think"));
    CHECK(!strcmp(text_at(v, "choices.0.message.reasoning"), "I think"));
    CHECK(!strcmp(text_at(v, "choices.0.message.content"), "I say"));
    CHECK(number_at(v, "usage.completion_tokens_details.reasoning_tokens") > 0);
    cJSON_Delete(v);
    free(a);
    a = rig_stream(&r, CHAT,
                   "{" USER ",\"stream\":true,\"chat_template_kwargs\":{\"thinking\":true}}");
    cJSON *ev[MAX_EVENTS];
    bool done;
    struct buf reasoning = {0}, content = {0};
    int n = events_of(a, ev, MAX_EVENTS, &done);
    for (int i = 0; i < n; i++) {
        const cJSON *t = at(ev[i], "choices.0.delta.reasoning_content");
        const cJSON *c = at(ev[i], "choices.0.delta.content");
        buf_str(&reasoning, t ? t->valuestring : "");
        buf_str(&content, c ? c->valuestring : "");
        cJSON_Delete(ev[i]);
    }
    CHECK(!strcmp(reasoning.s, "I think") && !strcmp(content.s, "I say"));
    buf_free(&reasoning);
    buf_free(&content);
    free(a);
    rig_stop(&r);
}

TEST(chat_logprobs_and_token_ids)
{
    struct rig r;
    fake.token = 77;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT,
                       "{" USER ",\"max_tokens\":2,\"logprobs\":true,\"top_logprobs\":2,"
                       "\"return_token_ids\":true,\"prompt_logprobs\":1}");
    cJSON *v = body_of(a);
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.content")) == 2);
    CHECK(number_at(v, "choices.0.logprobs.content.0.logprob") == -0.5);
    CHECK(cJSON_IsArray(at(v, "choices.0.logprobs.content.1.bytes")));
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.content.1.top_logprobs")) == 2);
    CHECK(number_at(v, "choices.0.token_ids.1") == 77);
    CHECK(cJSON_GetArraySize(at(v, "prompt_token_ids")) == number_at(v, "usage.prompt_tokens"));
    CHECK(cJSON_GetArraySize(at(v, "prompt_logprobs")) == number_at(v, "usage.prompt_tokens"));
    CHECK(cJSON_IsNull(at(v, "prompt_logprobs.0")));
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

TEST(completions_take_prompts_in_four_forms)
{
    static const struct {
        const char *prompt;
        int choices, tokens;
    } forms[] = {{"\"Hi\"", 2, -1},
                 {"[5,6,7]", 2, 3},
                 {"[\"Hi\",\"Ho\",\"Ha\"]", 6, -1},
                 {"[[5,6],[7]]", 4, 3}};
    struct rig r;
    char body[200];
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        snprintf(body, sizeof body, "{\"prompt\":%s,\"n\":2,\"max_tokens\":1}", forms[i].prompt);
        char *a = rig_post(&r, COMPLETIONS, body);
        cJSON *v = body_of(a);
        CHECK_MSG(cJSON_GetArraySize(at(v, "choices")) == forms[i].choices, "%s", a);
        for (int k = 0; k < forms[i].choices; k++) {
            char path[40];
            snprintf(path, sizeof path, "choices.%d.index", k);
            CHECK(number_at(v, path) == k);
        }
        if (forms[i].tokens > 0)
            CHECK(number_at(v, "usage.prompt_tokens") == forms[i].tokens);
        CHECK(!strcmp(text_at(v, "object"), "text_completion"));
        cJSON_Delete(v);
        free(a);
    }
    rig_stop(&r);
}

TEST(echo_with_logprobs_gives_the_whole_prompt)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, COMPLETIONS,
                       "{\"prompt\":\"Hi there\",\"echo\":true,\"max_tokens\":0,"
                       "\"logprobs\":2}");
    cJSON *v = body_of(a);
    int n = (int)number_at(v, "usage.prompt_tokens");
    CHECK(!strcmp(text_at(v, "choices.0.text"), "Hi there"));
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.tokens")) == n);
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.token_logprobs")) == n);
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.top_logprobs")) == n);
    CHECK(cJSON_GetArraySize(at(v, "choices.0.logprobs.text_offset")) == n);
    CHECK(cJSON_IsNull(at(v, "choices.0.logprobs.token_logprobs.0")));
    CHECK(number_at(v, "choices.0.logprobs.token_logprobs.1") == -0.5);
    CHECK(number_at(v, "usage.completion_tokens") == 0);
    cJSON_Delete(v);
    free(a);
    a = rig_stream(&r, COMPLETIONS,
                   "{\"prompt\":\"Hi\",\"echo\":true,\"max_tokens\":1,\"stream\":true}");
    CHECK(strstr(a, "\"text\":\"Hitok \""));
    free(a);
    rig_stop(&r);
}

TEST(best_of_gives_the_likeliest)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    /* The fake's last choice is the likeliest, and the only one with that log-probability. */
    char *a = rig_post(&r, COMPLETIONS,
                       "{\"prompt\":\"x\",\"best_of\":4,\"n\":2,\"max_tokens\":1,"
                       "\"logprobs\":0}");
    cJSON *v = body_of(a);
    CHECK(cJSON_GetArraySize(at(v, "choices")) == 2);
    CHECK(number_at(v, "choices.0.logprobs.token_logprobs.0") == -0.5);
    CHECK(number_at(v, "choices.1.logprobs.token_logprobs.0") == -1.5);
    CHECK(number_at(v, "choices.1.index") == 1);
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

TEST(fields_reach_the_engine)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(
        &r, COMPLETIONS,
        "{\"prompt\":[5],\"max_tokens\":7,\"min_tokens\":2,\"temperature\":0.25,\"top_p\":0.5,"
        "\"seed\":9223372036854775807,\"stop\":[\"a\",\"b\"],\"stop_token_ids\":[3],"
        "\"logit_bias\":{\"5\":-1,\"6\":2.5},\"bad_words\":[\"cat\"],\"allowed_token_ids\":[1,2],"
        "\"priority\":-3,\"cache_salt\":\"s\",\"ignore_eos\":true,\"skip_special_tokens\":false,"
        "\"include_stop_str_in_output\":true,\"sparse\":{\"mode\":\"dense\"},\"user\":\"u\","
        "\"metadata\":{},\"store\":true,\"service_tier\":\"auto\",\"unknown_field\":1}");
    CHECK_MSG(status_of(a) == 200, "%s", a);
    CHECK(fake_count.max_tokens == 7 && fake_count.min_tokens == 2);
    CHECK(fake_count.temperature == 0.25f && fake_count.top_p == 0.5f);
    CHECK(fake_count.seed == UINT64_C(9223372036854775807));
    CHECK(fake_count.n_stop == 2 && fake_count.n_stop_id == 1 && fake_count.n_bias == 2);
    CHECK(fake_count.n_bad_words == 2 && fake_count.has_allowed);
    CHECK((int32_t)fake_count.priority == -3 && fake_count.salt != 0);
    CHECK(fake_count.ignore_eos && fake_count.keep_special && fake_count.include_stop);
    CHECK(fake_count.top_k_dsa == TOP_K_DENSE);
    free(a);
    a = rig_post(&r, COMPLETIONS, "{\"prompt\":[5],\"sparse\":{\"top_k\":4},\"seed\":-1}");
    CHECK(fake_count.top_k_dsa == 4 && fake_count.max_tokens == 16);
    CHECK(fake_count.seed == UINT64_MAX && fake_count.salt == 0);
    free(a);
    a = rig_post(&r, CHAT, "{" USER ",\"max_completion_tokens\":5,\"stop\":null}");
    CHECK(fake_count.max_tokens == 5);
    free(a);
    rig_stop(&r);
}

TEST(wrong_fields_are_named)
{
    static const struct {
        const char *path, *body, *param;
        int status;
    } bad[] = {
        {CHAT, "{}", "messages", 400},
        {CHAT, "{\"messages\":[]}", "messages", 400},
        {CHAT, "{\"messages\":\"x\"}", "messages", 400},
        {CHAT, "{\"messages\":[{\"role\":5,\"content\":\"x\"}]}", "messages[0].role", 400},
        {CHAT, "{" USER ",\"model\":\"nope\"}", "model", 404},
        {CHAT, "{" USER ",\"model\":5}", "model", 400},
        {CHAT, "{" USER ",\"temperature\":2.1}", "temperature", 400},
        {CHAT, "{" USER ",\"temperature\":\"1\"}", "temperature", 400},
        {CHAT, "{" USER ",\"top_p\":0}", "top_p", 400},
        {CHAT, "{" USER ",\"top_p\":1.5}", "top_p", 400},
        {CHAT, "{" USER ",\"top_k\":1.5}", "top_k", 400},
        {CHAT, "{" USER ",\"min_p\":-1}", "min_p", 400},
        {CHAT, "{" USER ",\"presence_penalty\":3}", "presence_penalty", 400},
        {CHAT, "{" USER ",\"frequency_penalty\":-3}", "frequency_penalty", 400},
        {CHAT, "{" USER ",\"repetition_penalty\":0}", "repetition_penalty", 400},
        {CHAT, "{" USER ",\"n\":0}", "n", 400},
        {CHAT, "{" USER ",\"n\":129}", "n", 400},
        {CHAT, "{" USER ",\"n\":17}", "n", 400}, /* the fake runs 16 at once */
        {CHAT, "{" USER ",\"max_tokens\":0}", "max_tokens", 400},
        {CHAT, "{" USER ",\"max_completion_tokens\":0}", "max_completion_tokens", 400},
        {CHAT, "{" USER ",\"max_tokens\":5,\"min_tokens\":6}", "min_tokens", 400},
        {CHAT, "{" USER ",\"max_tokens\":9000}", "messages", 400},
        {CHAT, "{" USER ",\"stream\":\"yes\"}", "stream", 400},
        {CHAT, "{" USER ",\"stream_options\":{}}", "stream_options", 400},
        {CHAT, "{" USER ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
         "stream_options.include_usage", 400},
        {CHAT, "{" USER ",\"stop\":[\"\"]}", "stop", 400},
        {CHAT, "{" USER ",\"stop\":5}", "stop", 400},
        {CHAT, "{" USER ",\"stop_token_ids\":[100000]}", "stop_token_ids", 400},
        {CHAT, "{" USER ",\"logit_bias\":{\"x\":1}}", "logit_bias", 400},
        {CHAT, "{" USER ",\"logit_bias\":{\"5\":101}}", "logit_bias", 400},
        {CHAT, "{" USER ",\"logit_bias\":{\"99999\":1}}", "logit_bias", 400},
        {CHAT, "{" USER ",\"bad_words\":[1]}", "bad_words", 400},
        {CHAT, "{" USER ",\"allowed_token_ids\":[]}", "allowed_token_ids", 400},
        {CHAT, "{" USER ",\"logprobs\":5}", "logprobs", 400},
        {CHAT, "{" USER ",\"top_logprobs\":5}", "top_logprobs", 400},
        {CHAT, "{" USER ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", 400},
        {CHAT, "{" USER ",\"prompt_logprobs\":1,\"stream\":true}", "prompt_logprobs", 400},
        {CHAT, "{" USER ",\"sparse\":{\"top_k\":0}}", "sparse.top_k", 400},
        {CHAT, "{" USER ",\"sparse\":{\"mode\":\"x\"}}", "sparse.mode", 400},
        {CHAT, "{" USER ",\"seed\":1.5}", "seed", 400},
        {CHAT, "{" USER ",\"seed\":99999999999999999999}", "seed", 400},
        {CHAT, "{" USER ",\"cache_salt\":1}", "cache_salt", 400},
        {CHAT, "{" USER ",\"thinking\":{\"type\":\"x\"}}", "thinking.type", 400},
        {CHAT, "{" USER ",\"tools\":{}}", "tools", 400},
        {CHAT, "{" USER ",\"response_format\":{\"type\":\"yaml\"}}", "response_format.type", 400},
        {CHAT, "{" USER ",\"structured_outputs\":{\"regex\":\"(a\"}}", "structured_outputs.regex",
         400},
        {COMPLETIONS, "{}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[[]]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[\"a\",5]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[1,\"a\"]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[1.5]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":[100000]}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":{}}", "prompt", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"max_tokens\":0}", "max_tokens", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"logprobs\":21}", "logprobs", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"logprobs\":true}", "logprobs", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"best_of\":1,\"n\":2}", "best_of", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"best_of\":2,\"stream\":true}", "best_of", 400},
        {COMPLETIONS, "{\"prompt\":\"x\",\"echo\":1}", "echo", 400},
        {"/tokenize", "{}", "prompt", 400},
        {"/tokenize", "{\"prompt\":5}", "prompt", 400},
        {"/detokenize", "{\"tokens\":[-1]}", "tokens", 400},
        {"/detokenize", "{}", "tokens", 400},
    };
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *a = rig_post(&r, bad[i].path, bad[i].body);
        cJSON *v = body_of(a);
        CHECK_MSG(status_of(a) == bad[i].status, "%s: %s", bad[i].body, a);
        CHECK_MSG(!strcmp(text_at(v, "error.param"), bad[i].param), "%s: %s", bad[i].body, a);
        cJSON_Delete(v);
        free(a);
    }
    char *a = rig_post(&r, COMPLETIONS, "{\"prompt\":\"x\",\"max_tokens\":9000}");
    CHECK(strstr(a, "context_length_exceeded") && strstr(a, "8192") && strstr(a, "9002"));
    free(a);
    CHECK(fake_count.submitted == 0);
    rig_stop(&r);
}

TEST(tokenize_and_detokenize_are_inverse)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, "/tokenize",
                       "{\"prompt\":\"Gr\xc3\xbc\xc3\x9f dich\","
                       "\"add_special_tokens\":false,\"return_token_strs\":true}");
    cJSON *v = body_of(a);
    CHECK(number_at(v, "count") == cJSON_GetArraySize(at(v, "tokens")));
    CHECK(number_at(v, "count") == cJSON_GetArraySize(at(v, "token_strs")));
    CHECK(number_at(v, "max_model_len") == 8192);
    char *ids = cJSON_PrintUnformatted(at(v, "tokens")), body[400];
    snprintf(body, sizeof body, "{\"tokens\":%s}", ids);
    cJSON_free(ids);
    cJSON_Delete(v);
    free(a);
    a = rig_post(&r, "/detokenize", body);
    v = body_of(a);
    CHECK(!strcmp(text_at(v, "prompt"), "Gr\xc3\xbc\xc3\x9f dich"));
    cJSON_Delete(v);
    free(a);
    a = rig_post(&r, "/tokenize", "{" USER "}");
    v = body_of(a);
    CHECK(status_of(a) == 200 && number_at(v, "count") > 0);
    cJSON_Delete(v);
    free(a);
    rig_stop(&r);
}

/* The tokens of a prompt, as text. */
static char *tokens_of(struct rig *r, const char *fields)
{
    char body[1000];
    snprintf(body, sizeof body, "{%s}", fields);
    char *a = rig_post(r, "/tokenize", body);
    cJSON *v = body_of(a);
    CHECK_MSG(status_of(a) == 200, "%s", a);
    char *ids = cJSON_PrintUnformatted(at(v, "tokens"));
    cJSON_Delete(v);
    free(a);
    return ids;
}

#define FROM(fields)                                                                               \
    "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\"," fields "}]"
#define THINK "\"thinking\":{\"type\":\"enabled\"},"

/* DeepSeek's field asks for the same as continue_final_message, in every format. */
TEST(prefix_is_gone_on_from)
{
    static const char *const formats[] = {"deepseek-v3",   "deepseek-r1", "deepseek-v3.1",
                                          "deepseek-v3.2", "glm-4.6",     "glm-5.2",
                                          "kimi-k2"};
    static const char *const same[][2] = {
        {FROM("\"content\":\"Well\",\"prefix\":true"),
         FROM("\"content\":\"Well\"") ",\"continue_final_message\":true"},
        {THINK FROM("\"content\":\"Well\",\"prefix\":true"),
         THINK FROM("\"content\":\"Well\"") ",\"continue_final_message\":true"}};
    struct rig r;
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        fake.format = formats[f];
        rig_prepare(&r);
        rig_start(&r);
        for (int i = 0; i < 2; i++) {
            char *with = tokens_of(&r, same[i][0]), *by = tokens_of(&r, same[i][1]);
            char *ended = tokens_of(&r, FROM("\"content\":\"Well\""));
            CHECK_MSG(!strcmp(with, by) && strcmp(with, ended), "%s: %s", formats[f], with);
            cJSON_free(with);
            cJSON_free(by);
            cJSON_free(ended);
        }
        rig_stop(&r);
    }
    fake.format = "deepseek-v3.1"; /* thoughts to go on from, alone and with an answer begun */
    fake.text = " more</think>and so";
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT,
                       "{" THINK FROM("\"content\":\"\",\"prefix\":true,"
                                      "\"reasoning_content\":\"I see\"") "}");
    cJSON *v = body_of(a);
    CHECK_MSG(!strcmp(text_at(v, "choices.0.message.reasoning_content"), " more"), "%s", a);
    CHECK(!strcmp(text_at(v, "choices.0.message.content"), "and so"));
    cJSON_Delete(v);
    free(a);
    a = rig_post(&r, CHAT,
                 "{" THINK FROM("\"content\":\"So\",\"prefix\":true,"
                                "\"reasoning_content\":\"I see\"") "}");
    v = body_of(a);
    CHECK_MSG(!strcmp(text_at(v, "choices.0.message.content"), " more</think>and so"), "%s", a);
    cJSON_Delete(v);
    free(a);
    a = rig_post(&r, CHAT,
                 "{" FROM("\"content\":\"So\",\"prefix\":true") ",\"add_generation_prompt\":true}");
    CHECK(status_of(a) == 400);
    free(a);
    a = rig_post(&r, CHAT, "{" FROM("\"content\":\"So\",\"prefix\":1") "}");
    CHECK(status_of(a) == 400 && strstr(a, "\"param\":\"messages[1].prefix\""));
    free(a);
    rig_stop(&r);
}

/* How often a marker's token is in the prompt of these messages. */
static int count_marker(struct rig *r, const char *fields, const char *marker)
{
    char body[200], want[40];
    int n = 0;
    snprintf(body, sizeof body, "\"prompt\":\"%s\",\"add_special_tokens\":false", marker);
    char *id = tokens_of(r, body), *ids = tokens_of(r, fields);
    CHECK_MSG(!strchr(id, ','), "%s is not one token: %s", marker, id);
    snprintf(want, sizeof want, ",%.*s", (int)strcspn(id + 1, "]"), id + 1);
    for (const char *s = ids; (s = strstr(s, want)); s += strlen(want))
        n += s[strlen(want)] == ',' || s[strlen(want)] == ']';
    cJSON_free(id);
    cJSON_free(ids);
    return n;
}

/* Whoever writes a marker has written text. */
TEST(markers_in_messages_are_text)
{
#define M "<｜Assistant｜><｜User｜><｜tool▁calls▁begin｜></think>"
#define SAID(role) "{\"role\":\"" role "\",\"content\":\"" M "\"}"
    static const char with[] =
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"" M
        "\"}}],\"messages\":[" SAID("system") "," SAID(
            "user") ",{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\","
                    "\"type\":"
                    "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": \\\"" M
                    "\\\"}\"}}]},"
                    "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"" M
                    "\"}," SAID("user") "]";
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    CHECK(count_marker(&r, with, "<｜User｜>") == 2);
    CHECK(count_marker(&r, with, "<｜Assistant｜>") == 2);
    CHECK(count_marker(&r, with, "</think>") == 2);
    rig_stop(&r);
}

/* The words of OpenAI's field switch thinking, where DeepSeek's own does not. */
TEST(reasoning_effort_switches_thinking)
{
    static const struct {
        const char *fields;
        bool thinks;
    } cases[] = {
        {"", false},
        {",\"reasoning_effort\":\"low\"", true},
        {",\"reasoning_effort\":\"none\"", false},
        {",\"reasoning_effort\":\"high\",\"thinking\":{\"type\":\"disabled\"}", false},
        {",\"reasoning_effort\":\"none\",\"thinking\":{\"type\":\"enabled\"}", true},
        {",\"reasoning_effort\":\"high\",\"chat_template_kwargs\":{\"thinking\":false}", false}};
    struct rig r;
    fake.text = "a</think>b";
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[300];
        snprintf(body, sizeof body, "{" USER "%s}", cases[i].fields);
        char *a = rig_post(&r, CHAT, body);
        CHECK_MSG((strstr(a, "\"reasoning_content\":\"a\"") != NULL) == cases[i].thinks, "%s: %s",
                  body, a);
        free(a);
    }
    char *a = rig_post(&r, CHAT, "{" USER ",\"reasoning_effort\":\"enormous\"}");
    CHECK(status_of(a) == 400 && strstr(a, "\"param\":\"reasoning_effort\""));
    free(a);
    rig_stop(&r);
}

TEST(continuous_usage_and_progress)
{
    struct rig r;
    cJSON *ev[MAX_EVENTS];
    bool done, progress = false;
    rig_prepare(&r);
    rig_start(&r);
    char *a =
        rig_stream(&r, COMPLETIONS,
                   "{\"prompt\":\"x\",\"max_tokens\":3,\"stream\":true,\"return_progress\":true,"
                   "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}}");
    int n = events_of(a, ev, MAX_EVENTS, &done);
    double last = 0;
    for (int i = 0; i < n; i++) {
        double tokens = number_at(ev[i], "usage.completion_tokens");
        CHECK(tokens >= last);
        last = tokens;
        progress |= number_at(ev[i], "prompt_progress.processed") == 2;
        cJSON_Delete(ev[i]);
    }
    CHECK(done && last == 3 && progress);
    free(a);
    rig_stop(&r);
}

TEST(json_writer_escapes)
{
    struct buf b = {0};
    struct jo j = {.b = &b};
    jo_arr(&j);
    jo_strn(&j, "\"\\\b\f\n\r\t\x01\x7f\0z", 11);
    jo_strn(&j, "\xff\xc3\x28\xe2\x82\xf0\x9f\x98\x80\xed\xa0\x80\xc0\xaf", 15);
    jo_num(&j, 0.1);
    jo_num(&j, 1.0 / 0.0);
    jo_f32(&j, 0.1f);
    jo_i64(&j, INT64_MIN);
    jo_u64(&j, UINT64_MAX);
    jo_end(&j, ']');
    cJSON *v = NULL;
    CHECK(strstr(b.s, "\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u007f\\u0000z\""));
    CHECK(strstr(b.s, ",0.1,null,0.1,-9223372036854775808,18446744073709551615]"));
    CHECK(strstr(b.s, "\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd"));
    CHECK(utf8_valid(b.s, b.n, NULL));
    v = cJSON_Parse(b.s);
    CHECK(v);
    cJSON_Delete(v);
    buf_free(&b);
}

/* --- settings -----------------------------------------------------------------------------------
 */

static void write_file(char *path, size_t n, const char *text)
{
    snprintf(path, n, "%s/s.json", test_tmpdir());
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

TEST(settings_flag_beats_environment_beats_file)
{
    char path[200];
    struct settings s;
    struct err e = {0};
    write_file(path, sizeof path,
               "{\"port\": 1, \"max_seqs\": 2, \"kv_memory\": \"3MiB\", \"host\": \"h\","
               "\"prefix_cache\": false, \"cors\": null}");
    char *argv[] = {"--config", path, "--port=7", "--max-context", "99"};
    setenv("GAZE_PORT", "5", 1);
    setenv("GAZE_MAX_SEQS", "6", 1);
    CHECK_OK(settings_load(&s, argv, 5, NULL, NULL, &e), e);
    CHECK(s.port == 7 && s.max_seqs == 6 && s.max_context == 99 && s.kv_memory == 3u << 20);
    CHECK(!strcmp(s.host, "h") && !s.prefix_cache && s.max_queued == 64);
    settings_free(&s);
}

TEST(settings_refuse_by_name)
{
    static const struct {
        const char *file, *flag, *value, *say;
    } bad[] = {
        {NULL, "--prot", "1", "did you mean --port?"},
        {NULL, "--quite-another-thing", "1", "--quite-another-thing is not an option"},
        {NULL, "--port", "65536", "outside 0..65535"},
        {NULL, "--port", "x", "not a whole number"},
        {NULL, "--precision", "good", "none of: auto exact fast fp8"},
        {NULL, "--kv-memory", "2 bananas", "no size"},
        {NULL, "--max-seqs", NULL, "needs a value"},
        {NULL, "port", NULL, "begin with --"},
        {"{\"max_sequences\": 1, \"prot\": 2}", NULL, NULL, "\"max_sequences\" is not a setting"},
        {"{\"max_seq\": 1}", NULL, NULL, "did you mean \"max-seqs\"?"},
        {"{\"port\": 1.5}", NULL, NULL, "wrong type"},
        {"{\"port\": [1]}", NULL, NULL, "wrong type"},
        {"[1]", NULL, NULL, "one object"},
        {"{\"port\": ", NULL, NULL, "s.json"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[200];
        struct settings s;
        struct err e = {0};
        write_file(path, sizeof path, bad[i].file ? bad[i].file : "{}");
        char *argv[] = {"--config", path, (char *)(uintptr_t)bad[i].flag,
                        (char *)(uintptr_t)bad[i].value};
        int argc = bad[i].value ? 4 : bad[i].flag ? 3 : 2;
        CHECK(settings_load(&s, argv, argc, NULL, NULL, &e) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, bad[i].say), "%zu: %s", i, e.msg);
        settings_free(&s);
    }
}

TEST(settings_become_engine_options)
{
    struct settings s;
    struct engine_options o;
    struct err e = {0};
    settings_default(&s);
    CHECK_OK(settings_set(&s, "model", "/a/b/", &e), e);
    CHECK_OK(settings_engine(&s, &o, &e), e);
    CHECK(o.precision == PRECISION_FAST && o.precision_by_model && o.latent_by_precision);
    CHECK(o.prefix_cache && o.prefill_tokens == 0); /* by the device */
    CHECK_OK(settings_set(&s, "precision", "exact", &e), e);
    CHECK_OK(settings_engine(&s, &o, &e), e);
    CHECK(o.precision == PRECISION_EXACT && !o.precision_by_model && o.latent_by_precision);
    CHECK(o.index == INDEX_EXACT);
    CHECK_OK(settings_set(&s, "kv", "fp8", &e), e);
    CHECK_OK(settings_set(&s, "index", "fp8", &e), e);
    CHECK_OK(settings_set(&s, "load", "dummy", &e), e);
    CHECK_OK(settings_engine(&s, &o, &e), e);
    CHECK(o.latent == LATENT_FP8 && !o.latent_by_precision);
    CHECK(o.index == INDEX_FP8 && o.load_dummy);
    char name[40];
    settings_model_name(&s, name, sizeof name);
    CHECK(!strcmp(name, "b"));
    CHECK_OK(settings_set(&s, "device", "cuda", &e), e);
    CHECK(settings_engine(&s, &o, &e) == ERR_INVALID && strstr(e.msg, "cuda"));
    settings_free(&s);
}
