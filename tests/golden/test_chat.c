/* test_chat.c - conversations in, the reference's prompt out, byte for byte, for every format.
 *
 * tests/fixtures/chat/prompts.jsonl holds what the public templates and encoders give (its fields
 * are told in the specification's chat vectors). A row passes when the rendered text is `prompt` or
 * one of `also_accept`; in rows about injection every byte of `text_spans` must lie in a part that
 * is not markup, so that no tokenizer turns it into a special token.
 */
#include "base/json.h"
#include "test.h"
#include "text/chat_format.h"
#include "text/chat_json.h"

struct row {
    cJSON *tree;
    const char *id, *format;
};

static enum tri tri_of(const cJSON *options, const char *key)
{
    const cJSON *v = json_get(options, key);
    return cJSON_IsTrue(v) ? TRI_TRUE : cJSON_IsFalse(v) ? TRI_FALSE : TRI_UNSET;
}

static struct chat_options options_of(const cJSON *o)
{
    const cJSON *effort = json_get(o, "reasoning_effort"), *schema = json_get(o, "response_format");
    return (struct chat_options){
        .add_generation_prompt = cJSON_IsTrue(json_get(o, "add_generation_prompt")),
        .continue_final_message = cJSON_IsTrue(json_get(o, "continue_final_message")),
        .thinking = tri_of(o, "thinking"),
        .clear_thinking = tri_of(o, "clear_thinking"),
        .reasoning_effort = cJSON_IsString(effort) ? effort->valuestring : NULL,
        .response_format = cJSON_IsObject(schema) ? schema : NULL};
}

/* The prompt as one text; span_ok: no byte of text_spans lies in markup. */
static char *join(const struct chat_prompt *p, const cJSON *spans, bool *span_ok)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_parts; i++)
        n += p->part[i].bytes;
    char *all = malloc(n + 1), *markup = malloc(n + 1);
    CHECK(all && markup);
    n = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        memcpy(all + n, p->part[i].text, p->part[i].bytes);
        memset(markup + n, p->part[i].markup, p->part[i].bytes);
        n += p->part[i].bytes;
    }
    all[n] = '\0';
    *span_ok = true;
    for (const cJSON *s = spans ? spans->child : NULL; s; s = s->next) {
        for (int b = s->child->valueint; b < s->child->next->valueint; b++)
            *span_ok = *span_ok && (size_t)b < n && !markup[b];
    }
    free(markup);
    return all;
}

static bool accepted(const cJSON *row, const char *text)
{
    if (strcmp(text, json_get(row, "prompt")->valuestring) == 0)
        return true;
    const cJSON *also = json_get(row, "also_accept");
    for (const cJSON *a = cJSON_IsArray(also) ? also->child : NULL; a; a = a->next) {
        if (cJSON_IsString(a) && strcmp(text, a->valuestring) == 0)
            return true;
    }
    return false;
}

static void show_difference(const struct row *r, const char *want, const char *got)
{
    size_t i = 0;
    while (want[i] && want[i] == got[i])
        i++;
    size_t from = i > 60 ? i - 60 : 0;
    fprintf(stderr, "  %s differs at byte %zu\n    want ...%.200s\n    got  ...%.200s\n", r->id, i,
            want + from, got + from);
}

static bool check_row(const struct row *r)
{
    const cJSON *tools = json_get(r->tree, "tools");
    const struct chat_format *f = chat_format_by_name(r->format);
    struct chat_options opt = options_of(json_get(r->tree, "options"));
    struct chat_prompt prompt;
    struct arena a;
    struct err e = {0};
    bool span_ok = false, ok;
    CHECK_MSG(f, "%s: no format %s", r->id, r->format);
    arena_init(&a, 0);
    if (chat_format_render(f, json_get(r->tree, "messages"), cJSON_IsArray(tools) ? tools : NULL,
                           &opt, &a, &prompt, &e)) {
        fprintf(stderr, "  %s: %s\n", r->id, e.msg);
        arena_free(&a);
        return false;
    }
    char *text = join(&prompt, json_get(r->tree, "text_spans"), &span_ok);
    ok = accepted(r->tree, text);
    if (!ok)
        show_difference(r, json_get(r->tree, "prompt")->valuestring, text);
    else if (!span_ok)
        fprintf(stderr, "  %s: caller's text lies in markup\n", r->id);
    free(text);
    arena_free(&a);
    return ok && span_ok;
}

TEST_LIMIT(every_row_renders_to_the_reference, 60)
{
    const char *const *name = chat_format_names();
    uint32_t passed[16] = {0}, rows[16] = {0}, failed = 0;
    FILE *f = fopen(test_fixture("chat/prompts.jsonl"), "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    CHECK(f != NULL);
    while ((n = getline(&line, &room, f)) > 0) {
        struct row r = {0};
        struct err e = {0};
        CHECK_OK(json_parse(&r.tree, line, (size_t)n, JSON_MAX_DEPTH, &e), e);
        CHECK_OK(chat_json_keep_numbers(r.tree, line, (size_t)n, &e), e);
        r.id = json_get(r.tree, "id")->valuestring;
        r.format = json_get(r.tree, "format")->valuestring;
        uint32_t k = 0;
        while (name[k] && strcmp(name[k], r.format) != 0)
            k++;
        CHECK_MSG(name[k], "%s: unknown format", r.id);
        rows[k]++;
        bool ok = check_row(&r);
        passed[k] += ok;
        failed += !ok;
        cJSON_Delete(r.tree);
    }
    free(line);
    fclose(f);
    for (uint32_t k = 0; name[k]; k++) {
        printf("     %-18s %u of %u rows\n", name[k], passed[k], rows[k]);
        CHECK(rows[k] > 0);
    }
    CHECK_MSG(failed == 0, "%u rows differ", failed);
}

static enum err_code render(const char *format, const char *messages, const char *tools,
                            bool continue_final, struct err *e, bool *open)
{
    cJSON *m = NULL, *t = NULL;
    struct chat_options opt = {.add_generation_prompt = !continue_final,
                               .continue_final_message = continue_final,
                               .thinking = TRI_TRUE,
                               .clear_thinking = TRI_UNSET};
    struct chat_prompt prompt = {0};
    struct arena a;
    CHECK_OK(json_parse(&m, messages, strlen(messages), JSON_MAX_DEPTH, e), *e);
    if (tools)
        CHECK_OK(json_parse(&t, tools, strlen(tools), JSON_MAX_DEPTH, e), *e);
    arena_init(&a, 0);
    enum err_code code =
        chat_format_render(chat_format_by_name(format), m, t, &opt, &a, &prompt, e);
    if (open)
        *open = prompt.thinking_open;
    arena_free(&a);
    cJSON_Delete(t);
    cJSON_Delete(m);
    return code;
}

static void refuse(const char *format, const char *messages, const char *tools, const char *part)
{
    struct err e = {0};
    CHECK_MSG(render(format, messages, tools, false, &e, NULL) == ERR_INVALID, "accepted: %s",
              messages);
    CHECK_MSG(strstr(e.msg, part), "\"%s\" lacks \"%s\"", e.msg, part);
}

#define USER "{\"role\": \"user\", \"content\": \"q\"}"
#define CALL(function)                                                                             \
    "[" USER ", {\"role\": \"assistant\", \"tool_calls\": [{\"function\": " function "}]}]"

TEST(errors_name_the_message_and_the_field)
{
    const char *const *name = chat_format_names();
    for (; *name; name++) {
        refuse(*name, "[]", NULL, "messages: ");
        refuse(*name, "{}", NULL, "messages: ");
        refuse(*name, "[3]", NULL, "messages[0]: ");
        refuse(*name, "[" USER ", {\"content\": \"x\"}]", NULL, "messages[1].role: ");
        refuse(*name, "[{\"role\": \"robot\", \"content\": \"x\"}]", NULL, "messages[0].role: ");
        refuse(*name, "[{\"role\": \"user\", \"content\": 3}]", NULL, "messages[0].content: ");
        refuse(*name,
               "[" USER ", " USER
               ", {\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]",
               NULL, "messages[2].content[0].type: ");
        refuse(*name, "[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]", NULL,
               "messages[0].content[0].text: ");
        refuse(*name, "[{\"role\": \"assistant\", \"reasoning_content\": 1}]", NULL,
               "messages[0].reasoning_content: ");
        refuse(*name, "[{\"role\": \"assistant\", \"tool_calls\": {}}]", NULL,
               "messages[0].tool_calls: ");
        refuse(*name, CALL("{}"), NULL, "messages[1].tool_calls[0].function.name: ");
        refuse(*name, CALL("{\"name\": \"f\", \"arguments\": 3}"), NULL,
               "messages[1].tool_calls[0].function.arguments: ");
        refuse(*name, "[" USER "]", "[{\"type\": \"web\"}]", "tools[0].type: ");
        refuse(*name, "[" USER "]", "[{\"type\": \"function\"}]", "tools[0].function: ");
        refuse(*name, "[" USER "]", "[{\"type\": \"function\", \"function\": {\"name\": 1}}]",
               "tools[0].function.name: ");
        refuse(*name, "[" USER "]", "{}", "tools: ");
        struct err e = {0};
        CHECK(render(*name, "[" USER "]", NULL, true, &e, NULL) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, "messages[0].role: "), "%s", e.msg);
    }
    /* Formats that take arguments apart must be able to read them. */
    refuse("glm-5", CALL("{\"name\": \"f\", \"arguments\": \"{\"}"), NULL,
           "messages[1].tool_calls[0].function.arguments: JSON");
    refuse("deepseek-v3.2", CALL("{\"name\": \"f\", \"arguments\": \"[1]\"}"), NULL,
           ".function.arguments: must be a JSON object");
}

/* Goal: who streams the answer knows whether it begins inside reasoning. */
TEST(the_prompt_says_whether_reasoning_is_open)
{
    static const char *const opens[] = {"deepseek-r1",   "deepseek-v3.1", "deepseek-v3.2-exp",
                                        "deepseek-v3.2", "glm-5",         "glm-5.2"};
    static const char *const not [] = {"deepseek-v3", "deepseek-r1-0528", "glm-4.6", "kimi-k2"};
    struct err e = {0};
    bool open = false;
    for (size_t i = 0; i < sizeof opens / sizeof *opens; i++) {
        CHECK_OK(render(opens[i], "[" USER "]", NULL, false, &e, &open), e);
        CHECK_MSG(open, "%s", opens[i]);
    }
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++) {
        CHECK_OK(render(not [i], "[" USER "]", NULL, false, &e, &open), e);
        CHECK_MSG(!open, "%s", not [i]);
    }
    static const char thought[] =
        "[" USER ", {\"role\": \"assistant\", \"content\": \"<think>\\nI wonder\"}]";
    static const char done[] =
        "[" USER ", {\"role\": \"assistant\", \"content\": \"<think>\\nI wonder</think>So\"}]";
    CHECK_OK(render("deepseek-r1", thought, NULL, true, &e, &open), e);
    CHECK(open);
    CHECK_OK(render("deepseek-r1", done, NULL, true, &e, &open), e);
    CHECK(!open);
}

/* Content in parts is the parts one after the other. */
TEST(content_parts_are_joined)
{
    static const char parts[] =
        "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a \"}, "
        "{\"type\": \"text\", \"text\": \"b\"}]}]";
    cJSON *m = NULL;
    struct chat_options opt = {.thinking = TRI_UNSET, .clear_thinking = TRI_UNSET};
    struct chat_prompt prompt = {0};
    struct arena a;
    struct err e = {0};
    bool ok = false;
    CHECK_OK(json_parse(&m, parts, strlen(parts), JSON_MAX_DEPTH, &e), e);
    arena_init(&a, 0);
    CHECK_OK(chat_format_render(chat_format_by_name("deepseek-v3"), m, NULL, &opt, &a, &prompt, &e),
             e);
    char *text = join(&prompt, NULL, &ok);
    CHECK_MSG(strcmp(text, "<｜begin▁of▁sentence｜><｜User｜>a b") == 0, "%s", text);
    free(text);
    arena_free(&a);
    cJSON_Delete(m);
}

/* What Python's json.dumps writes; numbers keep their spelling only where it was kept. */
TEST(json_is_dumped_as_python_does)
{
    static const char text[] =
        "{\"a\":[1,-2.50,1e-7,12345678901234567890,1E3,-0,0.1,true,null],"
        "\"\\u00e9\\/\":\"\\u0001\\b\\f\\\"\\u007f\\ud83d\\ude00\",\"e\":{},\"f\":[]}";
    static const char kept[] =
        "{\"a\": [1, -2.50, 1e-7, 12345678901234567890, 1E3, -0, 0.1, true, null], "
        "\"é/\": \"\\u0001\\b\\f\\\"\x7f😀\", \"e\": {}, \"f\": []}";
    static const char lost[] =
        "{\"a\": [1, -2.5, 1e-07, 1.2345678901234567e+19, 1000, -0, 0.1, true, null], "
        "\"é/\": \"\\u0001\\b\\f\\\"\x7f😀\", \"e\": {}, \"f\": []}";
    for (int keep = 0; keep < 2; keep++) {
        cJSON *t = NULL;
        struct arena a;
        struct err e = {0};
        arena_init(&a, 0);
        struct chat_buf b = {.arena = &a};
        CHECK_OK(json_parse(&t, text, strlen(text), JSON_MAX_DEPTH, &e), e);
        if (keep)
            CHECK_OK(chat_json_keep_numbers(t, text, strlen(text), &e), e);
        chat_json_dump(&b, t);
        const char *want = keep ? kept : lost;
        CHECK_MSG(b.n == strlen(want) && memcmp(b.s, want, b.n) == 0, "%.*s", (int)b.n, b.s);
        cJSON_Delete(t);
        arena_free(&a);
    }
}
