/* test_tools.c - tool calls and reasoning in chat answers, over a fake engine that writes markup.
 */
#include "glm_model.h"
#include "rig.h"

#define CHAT "/v1/chat/completions"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]"
#define TOOL(name)                                                                                 \
    "{\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"parameters\":{\"type\":"         \
    "\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}}}}" \
    "}"
#define TOOLS "\"tools\":[" TOOL("get_weather") "," TOOL("ping") "]"
#define NO_THINKING "\"thinking\":{\"type\":\"disabled\"}"

#define V31_BEGIN "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
#define V31_SEP "<｜tool▁sep｜>"
#define V31_NEXT "<｜tool▁call▁end｜><｜tool▁call▁begin｜>"
#define V31_END "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define PARIS "{\"city\": \"Paris\"}"
#define ZURICH "{\"city\":\"Zürich\", \"days\": 3}"

enum { MAX_EVENTS = 3000, MAX_CALLS = 8, MAX_CHOICES = 4 };

/* An answer put together as the SDKs do it. */
struct heard {
    struct buf content, reasoning;
    struct {
        struct buf name, arguments;
        char id[64];
    } call[MAX_CALLS];
    int n_calls;
    char finish[20];
};

static void hear_call(struct heard *h, const cJSON *c)
{
    int index = (int)number_at(c, "index");
    CHECK(index >= 0 && index <= h->n_calls && index < MAX_CALLS);
    bool first = index == h->n_calls;
    CHECK(first == !!json_get(c, "id") && first == !!json_get(c, "type"));
    CHECK(first == !!at(c, "function.name") && at(c, "function.arguments"));
    if (first) {
        h->n_calls++;
        CHECK(!strncmp(text_at(c, "id"), "call_", 5) && !strcmp(text_at(c, "type"), "function"));
        snprintf(h->call[index].id, sizeof h->call[index].id, "%s", text_at(c, "id"));
        buf_str(&h->call[index].name, text_at(c, "function.name"));
    }
    buf_str(&h->call[index].arguments, text_at(c, "function.arguments"));
}

static void hear_stream(struct rig *r, const char *body, struct heard *h, cJSON **usage)
{
    static cJSON *ev[MAX_EVENTS];
    bool done;
    char *a = rig_stream(r, CHAT, body);
    CHECK_MSG(status_of(a) == 200, "%s", a);
    int n = events_of(a, ev, MAX_EVENTS, &done);
    CHECK(done);
    memset(h, 0, MAX_CHOICES * sizeof *h);
    for (int i = 0; i < n; i++) {
        const cJSON *choice = at(ev[i], "choices.0"), *d = at(choice, "delta");
        if (choice) {
            struct heard *one = h + (int)number_at(choice, "index");
            if (at(d, "content"))
                buf_str(&one->content, text_at(d, "content"));
            if (at(d, "reasoning"))
                buf_str(&one->reasoning, text_at(d, "reasoning_content"));
            const cJSON *calls = at(d, "tool_calls");
            for (const cJSON *c = calls ? calls->child : NULL; c; c = c->next)
                hear_call(one, c);
            CHECK(!one->finish[0]); /* nothing follows the reason */
            if (cJSON_IsString(at(choice, "finish_reason")))
                snprintf(one->finish, sizeof one->finish, "%s", text_at(choice, "finish_reason"));
        }
        if (usage && cJSON_IsObject(at(ev[i], "usage")))
            *usage = cJSON_Duplicate(at(ev[i], "usage"), true);
        cJSON_Delete(ev[i]);
    }
    free(a);
}

static void hear_free(struct heard *h)
{
    for (int k = 0; k < MAX_CHOICES; k++) {
        buf_free(&h[k].content);
        buf_free(&h[k].reasoning);
        for (int i = 0; i < MAX_CALLS; i++) {
            buf_free(&h[k].call[i].name);
            buf_free(&h[k].call[i].arguments);
        }
    }
}

static bool is(const struct buf *b, const char *text)
{
    return !strcmp(b->s ? b->s : "", text);
}

struct expected {
    const char *content, *reasoning; /* content NULL: null */
    struct {
        const char *name, *arguments;
    } call[MAX_CALLS];
    const char *finish;
};

static void check_message(const cJSON *choice, const struct expected *x)
{
    const cJSON *m = at(choice, "message"), *calls = at(m, "tool_calls");
    int n = 0;
    if (x->content)
        CHECK_MSG(!strcmp(text_at(m, "content"), x->content), "%s", text_at(m, "content"));
    else
        CHECK(cJSON_IsNull(at(m, "content")));
    if (x->reasoning)
        CHECK(!strcmp(text_at(m, "reasoning"), x->reasoning) &&
              !strcmp(text_at(m, "reasoning_content"), x->reasoning));
    for (; x->call[n].name; n++) {
        const cJSON *c = cJSON_GetArrayItem(calls, n);
        CHECK(!strcmp(text_at(c, "type"), "function") && !strncmp(text_at(c, "id"), "call_", 5));
        CHECK(!strcmp(text_at(c, "function.name"), x->call[n].name));
        CHECK_MSG(!strcmp(text_at(c, "function.arguments"), x->call[n].arguments), "%s",
                  text_at(c, "function.arguments"));
        for (int k = 0; k < n; k++)
            CHECK(strcmp(text_at(c, "id"), text_at(cJSON_GetArrayItem(calls, k), "id")) != 0);
    }
    CHECK(n ? cJSON_GetArraySize(calls) == n : !calls);
    CHECK_MSG(!strcmp(text_at(choice, "finish_reason"), x->finish), "%s",
              text_at(choice, "finish_reason"));
}

static void check_heard(const struct heard *h, const struct expected *x)
{
    int n = 0;
    CHECK_MSG(is(&h->content, x->content ? x->content : ""), "%s", h->content.s);
    CHECK(is(&h->reasoning, x->reasoning ? x->reasoning : ""));
    for (; x->call[n].name; n++) {
        CHECK(n < h->n_calls && is(&h->call[n].name, x->call[n].name));
        CHECK_MSG(is(&h->call[n].arguments, x->call[n].arguments), "%s", h->call[n].arguments.s);
    }
    CHECK(h->n_calls == n && !strcmp(h->finish, x->finish));
}

static void check_both(struct rig *r, const char *fields, const struct expected *x)
{
    char body[3000];
    struct heard h[MAX_CHOICES];
    snprintf(body, sizeof body, "{%s}", fields);
    char *a = rig_post(r, CHAT, body);
    CHECK_MSG(status_of(a) == 200, "%s", a);
    cJSON *v = body_of(a);
    check_message(at(v, "choices.0"), x);
    cJSON_Delete(v);
    free(a);
    snprintf(body, sizeof body, "{%s,\"stream\":true}", fields);
    hear_stream(r, body, h, NULL);
    check_heard(h, x);
    hear_free(h);
}

/* A server whose model speaks `format` and writes `text`. */
static void start_writing(struct rig *r, const char *format, const char *text)
{
    fake.format = format;
    fake.text = text;
    rig_prepare(r);
    rig_start(r);
}

/* At every length of the pieces, so that each marker is cut everywhere. */
static void check_cut(const char *format, const char *text, const char *fields,
                      const struct expected *x)
{
    struct rig r;
    start_writing(&r, format, text);
    static const uint32_t pieces[] = {1, 2, 3, 4, 5, 6, 7, 11, 23, 64, 1000};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        atomic_store(&fake.piece_bytes, pieces[i]);
        check_both(&r, fields, x);
    }
    rig_stop(&r);
}

TEST_LIMIT(v31_calls, 60)
{
    check_cut("deepseek-v3.1",
              "Let me see… " V31_BEGIN "get_weather" V31_SEP PARIS V31_NEXT
              "get_weather" V31_SEP ZURICH V31_END,
              USER "," TOOLS,
              &(struct expected){.content = "Let me see… ",
                                 .call = {{"get_weather", PARIS}, {"get_weather", ZURICH}},
                                 .finish = "tool_calls"});
}

TEST_LIMIT(v31_call_alone_has_null_content, 60)
{
    check_cut("deepseek-v3.2-exp", "a plan</think>" V31_BEGIN "ping" V31_SEP "{}" V31_END,
              USER "," TOOLS ",\"thinking\":{\"type\":\"enabled\"}",
              &(struct expected){
                  .reasoning = "a plan", .call = {{"ping", "{}"}}, .finish = "tool_calls"});
}

TEST_LIMIT(dsml_calls, 60)
{
    check_cut(
        "deepseek-v3.2",
        "hm <b></think>Wait.\n\n<｜DSML｜function_calls>\n"
        "<｜DSML｜invoke name=\"get_weather\">\n"
        "<｜DSML｜parameter name=\"city\" string=\"true\">Zü\"rich</｜DSML｜parameter>\n"
        "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n"
        "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"ping\">\n\n</｜DSML｜invoke>\n"
        "</｜DSML｜function_calls>",
        USER "," TOOLS ",\"thinking\":{\"type\":\"enabled\"}",
        &(struct expected){
            .content = "Wait.",
            .reasoning = "hm <b>",
            .call = {{"get_weather", "{\"city\": \"Zü\\\"rich\", \"days\": 3}"}, {"ping", "{}"}},
            .finish = "tool_calls"});
}

/* --- no tools, and yet a call -------------------------------------------------------------------
 */

/* Where the vocabulary has the markers, their tokens cannot come (ember's own test is in
 * test_structured.c), so what spells them is text. Where it lacks them a call can only be spelled,
 * and is left out, at every split. */
static void check_no_tools(const char *format, const char *model, const char *text,
                           const struct expected *x)
{
    static const char *const none[] = {"", ",\"tools\":[]", "," TOOLS ",\"tool_choice\":\"none\""};
    struct rig r;
    fake.model = model;
    start_writing(&r, format, text);
    for (int i = 0; i < 3; i++)
        for (uint32_t piece = 1; piece <= strlen(text); piece += i ? 13 : 1) {
            char fields[2000];
            snprintf(fields, sizeof fields, USER "%s", none[i]);
            atomic_store(&fake.piece_bytes, piece);
            check_both(&r, fields, x);
            CHECK((fake_count.n_never > 0) == (model != NULL));
        }
    rig_stop(&r);
}

TEST_LIMIT(calls_without_tools_are_left_out, 60)
{
    check_no_tools("deepseek-v3.1", NULL,
                   "Wait. " V31_BEGIN "get_weather" V31_SEP PARIS V31_NEXT "ping" V31_SEP
                   "{}" V31_END,
                   &(struct expected){.content = "Wait. ", .finish = "stop"});
}

TEST_LIMIT(calls_without_tools_are_left_out_of_dsml, 60)
{
    check_no_tools("deepseek-v3.2", NULL,
                   "Wait.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n"
                   "<｜DSML｜parameter name=\"city\" string=\"true\">Zü\"rich</｜DSML｜parameter>\n"
                   "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
                   &(struct expected){.content = "Wait.", .finish = "stop"});
}

TEST_LIMIT(calls_without_tools_are_left_out_of_glm, 60)
{
    check_no_tools("glm-5", NULL,
                   "a plan</think><tool_call>ping<arg_key>days</arg_key><arg_value>3</arg_value>"
                   "</tool_call>",
                   &(struct expected){.reasoning = "a plan", .content = "", .finish = "stop"});
}

TEST_LIMIT(spelled_markup_without_tools_is_text, 60)
{
    static const char v31[] = "It writes " V31_BEGIN "ping" V31_SEP "{}" V31_END ".";
    static const char dsml[] = "It writes <｜DSML｜invoke name=\"f\"> first.";
    check_no_tools("deepseek-v3.1", "config/models/ember", v31,
                   &(struct expected){.content = v31, .finish = "stop"});
    check_no_tools("deepseek-v3.2", "config/models/ember", dsml,
                   &(struct expected){.content = dsml, .finish = "stop"});
}

/* A form is kept to the byte, and ids that the client names are the client's. */
TEST(no_tools_and_other_rules)
{
    static const char text[] = "<tool_call>x</tool_call>";
    char *dir = test_tmpdir();
    struct rig r;
    glm_model_make(dir);
    fake.format = "glm-4.6";
    fake.model = dir;
    fake.text = text;
    rig_prepare(&r);
    rig_start(&r);
    check_both(&r, USER "," NO_THINKING ",\"guided_regex\":\".*\"",
               &(struct expected){.content = text, .finish = "stop"});
    uint32_t all = fake_count.n_never;
    check_both(&r, USER "," NO_THINKING ",\"allowed_token_ids\":[8174,8175,100]",
               &(struct expected){.content = text, .finish = "stop"});
    CHECK_MSG(fake_count.n_never == all - 2, "%u %u", fake_count.n_never, all);
    rig_stop(&r);
}

TEST(an_answer_cut_short_says_so)
{
    struct rig r;
    fake.text = V31_BEGIN "get_weather" V31_SEP PARIS V31_END;
    rig_prepare(&r);
    rig_start(&r);
    atomic_store(&fake.piece_bytes, sizeof(V31_BEGIN "get_weather" V31_SEP "{\"city") - 1);
    check_both(&r, USER "," TOOLS ",\"max_tokens\":1",
               &(struct expected){.call = {{"get_weather", "{\"city"}}, .finish = "length"});
    atomic_store(&fake.piece_bytes, 8); /* inside the first marker, which then is text */
    check_both(&r, USER "," TOOLS ",\"max_tokens\":1",
               &(struct expected){.content = "<｜tool", .finish = "length"});
    rig_stop(&r);
}

TEST(choices_have_parsers_of_their_own)
{
    struct rig r;
    struct heard h[MAX_CHOICES];
    cJSON *usage = NULL;
    fake.text = "hm</think>" V31_BEGIN "ping" V31_SEP "{}" V31_END;
    fake.piece_bytes = 1;
    rig_prepare(&r);
    rig_start(&r);
    hear_stream(&r,
                "{" USER "," TOOLS ",\"n\":3,\"stream\":true,\"stream_options\":{\"include_usage\":"
                "true},\"logprobs\":true,\"thinking\":{\"type\":\"enabled\"}}",
                h, &usage);
    for (int i = 0; i < 3; i++) {
        check_heard(&h[i], &(struct expected){.reasoning = "hm",
                                              .call = {{"ping", "{}"}},
                                              .finish = "tool_calls"});
        for (int k = 0; k < i; k++)
            CHECK(strcmp(h[i].call[0].id, h[k].call[0].id) != 0);
    }
    /* A token a byte: the two of "hm", and the mark's eight. */
    CHECK(number_at(usage, "completion_tokens_details.reasoning_tokens") == 3 * (2 + 8));
    CHECK(number_at(usage, "completion_tokens") == 3 * (double)strlen(fake.text));
    cJSON_Delete(usage);
    hear_free(h);
    rig_stop(&r);
}

TEST(one_call_ends_the_answer)
{
    static const char call[] = V31_BEGIN "ping" V31_SEP "{}<｜tool▁call▁end｜>";
    const struct expected x = {.call = {{"ping", "{}"}}, .finish = "tool_calls"};
    struct rig r;
    char text[4000];
    snprintf(text, sizeof text, "%s<｜tool▁call▁begin｜>ping" V31_SEP "{\"x\":1}%02000d", call, 0);
    fake.text = text;
    fake.piece_bytes = 1;
    fake.token_us = 2000;
    rig_prepare(&r);
    rig_start(&r);
    char *a = rig_post(&r, CHAT,
                       "{" USER "," TOOLS ",\"n\":2,\"parallel_tool_calls\":false,"
                       "\"logprobs\":true}");
    cJSON *v = body_of(a);
    check_message(at(v, "choices.0"), &x);
    check_message(at(v, "choices.1"), &x);
    CHECK(number_at(v, "usage.completion_tokens") == 2 * (sizeof call - 1));
    CHECK(cJSON_GetArraySize(at(v, "choices.1.logprobs.content")) == sizeof call - 1);
    CHECK(fake_count.cancelled == 1);
    cJSON_Delete(v);
    free(a);
    check_both(&r, USER "," TOOLS ",\"parallel_tool_calls\":false", &x);
    CHECK(fake_count.cancelled == 3);
    EVENTUALLY(gauge(&r, "gaze_engine_requests") == 0 && gauge(&r, "gaze_calls") == 1);
    rig_stop(&r);
}

/* --- the prompt --------------------------------------------------------------------------------
 */

/* Text of any length; the caller frees it. */
static char *text_with(const char *fmt, ...) PRINTF_LIKE(1, 2);
static char *text_with(const char *fmt, ...)
{
    va_list ap;
    char *s;
    va_start(ap, fmt);
    CHECK(vasprintf(&s, fmt, ap) >= 0);
    va_end(ap);
    return s;
}

static char *text_of(struct rig *r, const cJSON *ids)
{
    char *list = cJSON_PrintUnformatted(ids);
    char *body = text_with("{\"tokens\":%s}", list), *a = rig_post(r, "/detokenize", body);
    cJSON *v = body_of(a);
    char *text = strdup(text_at(v, "prompt"));
    cJSON_Delete(v);
    free(a);
    cJSON_free(list);
    free(body);
    return text;
}

/* The rendered prompt; *answer may be NULL. */
static char *prompt_of(struct rig *r, const char *fields, cJSON **answer)
{
    char *body = text_with("{%s,\"return_token_ids\":true}", fields), *a = rig_post(r, CHAT, body);
    CHECK_MSG(status_of(a) == 200, "%s: %s", body, a);
    cJSON *v = body_of(a);
    char *text = text_of(r, at(v, "prompt_token_ids"));
    if (answer)
        *answer = v;
    else
        cJSON_Delete(v);
    free(a);
    free(body);
    return text;
}

static bool ends(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

TEST(tool_choice_shapes_the_prompt)
{
    struct rig r;
    fake.text = PARIS V31_END;
    rig_prepare(&r);
    rig_start(&r);
    char *p = prompt_of(&r, USER "," TOOLS ",\"tool_choice\":\"auto\"", NULL);
    CHECK(strstr(p, "### get_weather") && strstr(p, "### ping") && ends(p, "</think>"));
    free(p);
    p = prompt_of(&r, USER "," TOOLS ",\"tool_choice\":\"none\"", NULL);
    CHECK(!strstr(p, "get_weather") && !strstr(p, "Tools"));
    free(p);
    p = prompt_of(&r,
                  USER "," TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{"
                       "\"mode\":\"auto\",\"tools\":[{\"type\":\"function\",\"function\":{"
                       "\"name\":\"ping\"}}]}}",
                  NULL);
    CHECK(!strstr(p, "get_weather") && strstr(p, "### ping") && ends(p, "</think>"));
    free(p);
    p = prompt_of(&r, USER "," TOOLS ",\"tool_choice\":\"required\"", NULL);
    CHECK(ends(p, "</think>" V31_BEGIN));
    free(p);
    static const char *const certain[] = {
        "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"get_weather\"}}",
        "\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\"}}]}}"};
    for (int i = 0; i < 2; i++) {
        char fields[1500];
        snprintf(fields, sizeof fields, USER "," TOOLS ",%s", certain[i]);
        p = prompt_of(&r, fields, NULL);
        CHECK(ends(p, "</think>" V31_BEGIN "get_weather" V31_SEP));
        CHECK((strstr(p, "### ping") == NULL) == (i == 1));
        free(p);
        check_both(&r, fields,
                   &(struct expected){.call = {{"get_weather", PARIS}}, .finish = "tool_calls"});
    }
    rig_stop(&r);
}

/* What follows the prompt of each format where ping is required by name. */
static void check_opening(const char *format, const char *opening, const char *rest)
{
    struct rig r;
    start_writing(&r, format, rest);
    static const char fields[] =
        "\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":"
        "null,\"tool_calls\":[{\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":"
        "\"ping\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"call_1\","
        "\"content\":\"ok\"},{\"role\":\"user\",\"content\":\"again\"}]," TOOLS "," NO_THINKING
        ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"ping\"}}";
    char *p = prompt_of(&r, fields, NULL);
    CHECK_MSG(ends(p, opening), "%s", p);
    free(p);
    check_both(&r, fields,
               &(struct expected){.call = {{"ping", "{\"days\": 3}"}}, .finish = "tool_calls"});
    rig_stop(&r);
}

TEST(opening_of_v3)
{
    check_opening("deepseek-v3", V31_BEGIN "function" V31_SEP "ping\n```json\n",
                  "{\"days\": 3}\n```" V31_END);
}

TEST(opening_of_dsml)
{
    check_opening("deepseek-v3.2",
                  "</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"ping\">\n",
                  "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n"
                  "</｜DSML｜invoke>\n</｜DSML｜function_calls>");
}

TEST(opening_of_kimi)
{
    check_opening("kimi-k2",
                  "<|tool_calls_section_begin|><|tool_call_begin|>functions.ping:1"
                  "<|tool_call_argument_begin|>",
                  "{\"days\": 3}<|tool_call_end|><|tool_calls_section_end|>");
}

TEST(opening_of_glm)
{
    check_opening("glm-4.6", "</think>\n<tool_call>ping\n",
                  "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>");
}

static void check_refused(struct rig *r, const char *fields, const char *param)
{
    char body[3000];
    snprintf(body, sizeof body, "{" USER ",%s}", fields);
    char *a = rig_post(r, CHAT, body);
    cJSON *v = body_of(a);
    CHECK_MSG(status_of(a) == 400 && !strcmp(text_at(v, "error.param"), param), "%s: %s", body, a);
    cJSON_Delete(v);
    free(a);
}

TEST(wrong_tool_fields_are_named)
{
    static const struct {
        const char *fields, *param;
    } bad[] = {
        {"\"tools\":5", "tools"},
        {"\"tools\":[5]", "tools[0]"},
        {"\"tools\":[{\"type\":\"retrieval\"}]", "tools[0].type"},
        {TOOLS ",\"tool_choice\":5", "tool_choice"},
        {TOOLS ",\"tool_choice\":\"sometimes\"", "tool_choice"},
        {TOOLS ",\"tool_choice\":{}", "tool_choice.type"},
        {TOOLS ",\"tool_choice\":{\"type\":5}", "tool_choice.type"},
        {TOOLS ",\"tool_choice\":{\"type\":\"function\"}", "tool_choice.function"},
        {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{}}",
         "tool_choice.function.name"},
        {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"no\"}}",
         "tool_choice.function.name"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\"}", "tool_choice.allowed_tools"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"x\"}}",
         "tool_choice.allowed_tools.mode"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"tools\":[]}}",
         "tool_choice.allowed_tools.tools"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"tools\":[{}]}}",
         "tool_choice.allowed_tools.tools"},
        {"\"tool_choice\":\"required\"", "tool_choice"},
        {"\"tools\":[],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"x\"}}",
         "tool_choice"},
        {TOOLS ",\"tool_choice\":\"required\",\"add_generation_prompt\":false", "tool_choice"},
        {TOOLS ",\"parallel_tool_calls\":1", "parallel_tool_calls"},
        {TOOLS ",\"thinking_token_budget\":-1", "thinking_token_budget"}};
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_refused(&r, bad[i].fields, bad[i].param);
    CHECK(fake_count.submitted == 0);
    rig_stop(&r);
}

/* --- a call is required, and the model thinks first ---------------------------------------------
 */

#define R1_CALL                                                                                    \
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function" V31_SEP "ping\n```json\n{\"days\": "     \
    "3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
#define GLM_CALL                                                                                   \
    "\n<tool_call>ping\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"

/* In every way to require it, at every length of the pieces; the prompt ends where reasoning has
 * begun, and what follows it is the grammar's, behind `</think>`. */
static void check_required_behind(const char *format, const char *model, const char *prompt_end,
                                  const char *text)
{
    static const char *const ways[] = {
        "\"required\"", "{\"type\":\"function\",\"function\":{\"name\":\"ping\"}}",
        "{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\",\"tools\":[{\"type\":"
        "\"function\",\"function\":{\"name\":\"ping\"}}]}}"};
    struct rig r;
    fake.model = model;
    start_writing(&r, format, text);
    for (int way = 0; way < 3; way++) {
        char fields[2000];
        snprintf(fields, sizeof fields,
                 USER "," TOOLS ",\"thinking_token_budget\":4000,\"tool_choice\":%s", ways[way]);
        char *p = prompt_of(&r, fields, NULL);
        CHECK_MSG(ends(p, prompt_end), "%s", p);
        free(p);
        CHECK(fake_count.guided == GUIDED_BEHIND_THINKING && fake_count.think_budget == 4000);
        for (uint32_t piece = 1; piece <= strlen(text); piece += way ? 7 : 1) {
            atomic_store(&fake.piece_bytes, piece);
            check_both(&r, fields,
                       &(struct expected){.reasoning = "hm, <b>",
                                          .call = {{"ping", "{\"days\": 3}"}},
                                          .finish = "tool_calls"});
        }
    }
    rig_stop(&r);
}

TEST_LIMIT(r1_calls_behind_its_reasoning, 120)
{
    check_required_behind("deepseek-r1", "config/models/ember", "<｜Assistant｜><think>\n",
                          "hm, <b></think>\n\n" R1_CALL);
}

TEST_LIMIT(r1_0528_calls_behind_its_reasoning, 120)
{
    check_required_behind("deepseek-r1-0528", "config/models/ember", "<｜Assistant｜><think>\n",
                          "hm, <b></think>" R1_CALL);
}

TEST_LIMIT(glm_46_calls_behind_its_reasoning, 120)
{
    char *dir = test_tmpdir();
    glm_model_make(dir);
    check_required_behind("glm-4.6", dir, "<|assistant|>\n<think>", "hm, <b></think>" GLM_CALL);
}

/* Without reasoning, by the client's will or because the conversation stands behind a result, the
 * prompt begins the call itself. */
TEST(r1_0528_calls_at_once_without_reasoning)
{
    static const char named[] =
        ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"ping\"}}";
    static const char behind_result[] =
        "\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":"
        "null,\"tool_calls\":[{\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":"
        "\"ping\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"call_1\","
        "\"content\":\"ok\"}]";
    struct rig r;
    fake.format = "deepseek-r1-0528";
    fake.model = "config/models/ember";
    fake.text = "{\"days\": 3}\n```" V31_END;
    rig_prepare(&r);
    rig_start(&r);
    for (int i = 0; i < 2; i++) {
        char *fields = text_with("%s," TOOLS "%s%s", i ? behind_result : USER, named,
                                 i ? "" : "," NO_THINKING);
        char *p = prompt_of(&r, fields, NULL);
        CHECK_MSG(ends(p, i ? "<｜tool▁outputs▁end｜>" V31_BEGIN "function" V31_SEP
                              "ping\n```json\n"
                            : "<｜Assistant｜>" V31_BEGIN "function" V31_SEP "ping\n```json\n"),
                  "%s", p);
        free(p);
        CHECK(fake_count.guided == GUIDED_AT_ONCE);
        check_both(&r, fields,
                   &(struct expected){.call = {{"ping", "{\"days\": 3}"}}, .finish = "tool_calls"});
        free(fields);
    }
    rig_stop(&r);
}

/* Markers that the vocabulary lacks cannot be held to anything. */
TEST(a_call_behind_reasoning_needs_the_markers)
{
    struct rig r;
    fake.format = "deepseek-r1";
    rig_prepare(&r);
    rig_start(&r);
    check_refused(&r, TOOLS ",\"tool_choice\":\"required\"", "tool_choice");
    rig_stop(&r);
}

TEST(glm_5_can_be_made_to_call_but_not_one_tool)
{
    struct rig r;
    fake.format = "glm-5";
    fake.text = "ping<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>";
    rig_prepare(&r);
    rig_start(&r);
    static const char required[] = TOOLS ",\"tool_choice\":\"required\"";
    check_refused(&r, required, "tool_choice"); /* it thinks when nothing is said */
    check_refused(&r,
                  TOOLS "," NO_THINKING
                        ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"ping\"}}",
                  "tool_choice");
    check_both(&r, USER "," NO_THINKING "," TOOLS ",\"tool_choice\":\"required\"",
               &(struct expected){.call = {{"ping", "{\"days\": 3}"}}, .finish = "tool_calls"});
    rig_stop(&r);
}

TEST(numbers_keep_their_spelling)
{
    struct rig r;
    rig_prepare(&r);
    rig_start(&r);
    char *p = prompt_of(&r,
                        USER ",\"max_tokens\":1,\"tools\":[{\"type\":\"function\",\"function\":{"
                             "\"name\":\"f\",\"parameters\":{\"minimum\":1e-07,\"maximum\":"
                             "12345678901234567890,\"multipleOf\":1.50}}}]",
                        NULL);
    CHECK_MSG(strstr(p, "{\"minimum\": 1e-07, \"maximum\": 12345678901234567890, "
                        "\"multipleOf\": 1.50}"),
              "%s", p);
    free(p);
    rig_stop(&r);
}

/* user -> call -> result: the second prompt begins with the first one and with what the model
 * wrote, byte for byte. */
static void check_loop(const char *format, const char *text, const char *more)
{
    struct rig r;
    cJSON *v;
    start_writing(&r, format, text);
    char *fields = text_with(USER "," TOOLS "%s", more), *first = prompt_of(&r, fields, &v);
    char *message = cJSON_PrintUnformatted(at(v, "choices.0.message"));
    char *again =
        text_with("\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"},%s,{\"role\":"
                  "\"tool\",\"tool_call_id\":\"%s\",\"content\":\"rain\"}]," TOOLS "%s",
                  message, text_at(v, "choices.0.message.tool_calls.0.id"), more);
    char *second = prompt_of(&r, again, NULL), *want = text_with("%s%s" EOS, first, text);
    CHECK_MSG(!strncmp(second, want, strlen(want)), "%s\n\n%s", want, second);
    CHECK(strstr(second + strlen(want), "rain"));
    cJSON_free(message);
    cJSON_Delete(v);
    char *const texts[] = {fields, first, again, second, want};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        free(texts[i]);
    rig_stop(&r);
}

TEST(v31_loop_renders_what_was_written)
{
    check_loop("deepseek-v3.1",
               "I look." V31_BEGIN "get_weather" V31_SEP
               "{\"days\":1.50,  \"city\":\"Zürich\"}" V31_END,
               "");
}

TEST(dsml_loop_renders_what_was_written)
{
    check_loop("deepseek-v3.2",
               "hm</think>I look.\n\n<｜DSML｜function_calls>\n"
               "<｜DSML｜invoke name=\"get_weather\">\n"
               "<｜DSML｜parameter name=\"city\" string=\"true\">Zü\"rich</｜DSML｜parameter>\n"
               "<｜DSML｜parameter name=\"days\" string=\"false\">1.50</｜DSML｜parameter>\n"
               "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
               ",\"thinking\":{\"type\":\"enabled\"}");
}
