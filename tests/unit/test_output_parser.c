/* test_output_parser.c - the deltas of the output parser: order, what is held back, bounds, random
 * calls in every markup. What the public vectors say is in tests/golden/test_parses.c. */
#include "base/fault.h"
#include "base/json.h"
#include "test.h"
#include "text/output_parser.h"

enum { MAX_CALLS = 512 };

struct text {
    char *s;
    size_t n, max;
};

struct log {
    struct text content, reasoning;
    struct text trace; /* "R(..)C(..)B0(..)A0(..)E0+" in the order of the events */
    struct text arguments[MAX_CALLS];
    char name[MAX_CALLS][OUTPUT_MAX_NAME + 1];
    bool complete[MAX_CALLS], valid[MAX_CALLS];
    uint32_t n_calls;
    uint32_t n_events;
    size_t longest;
    bool in_call;
    bool whole_characters; /* every delta must be valid UTF-8 */
};

static void append(struct text *t, const char *s, size_t n)
{
    if (t->n + n + 1 > t->max) {
        t->max = 2 * (t->n + n + 1);
        t->s = realloc(t->s, t->max);
        CHECK(t->s);
    }
    if (n)
        memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = '\0';
}

static void trace(struct log *l, const char *head, const struct output_event *ev)
{
    append(&l->trace, head, strlen(head));
    append(&l->trace, "(", 1);
    append(&l->trace, ev->text, ev->bytes);
    append(&l->trace, ")", 1);
}

static void on_event(void *arg, const struct output_event *ev)
{
    struct log *l = arg;
    char head[16];
    bool of_call = ev->kind == OUTPUT_CALL_ARGUMENTS || ev->kind == OUTPUT_CALL_END;
    l->n_events++;
    l->longest = ev->bytes > l->longest ? ev->bytes : l->longest;
    CHECK(l->in_call == of_call);
    CHECK(!of_call || ev->call + 1 == l->n_calls);
    CHECK(!l->whole_characters || utf8_valid(ev->text, ev->bytes, NULL));
    switch (ev->kind) {
    case OUTPUT_REASONING:
        CHECK(ev->bytes);
        append(&l->reasoning, ev->text, ev->bytes);
        trace(l, "R", ev);
        break;
    case OUTPUT_CONTENT:
        CHECK(ev->bytes);
        append(&l->content, ev->text, ev->bytes);
        trace(l, "C", ev);
        break;
    case OUTPUT_CALL_BEGIN:
        CHECK(ev->call == l->n_calls && ev->call < MAX_CALLS);
        CHECK(ev->bytes && ev->bytes <= OUTPUT_MAX_NAME);
        memcpy(l->name[ev->call], ev->text, ev->bytes);
        l->name[ev->call][ev->bytes] = '\0';
        append(&l->arguments[ev->call], "", 0);
        l->n_calls++;
        l->in_call = true;
        snprintf(head, sizeof head, "B%u", ev->call);
        trace(l, head, ev);
        break;
    case OUTPUT_CALL_ARGUMENTS:
        CHECK(ev->bytes);
        append(&l->arguments[ev->call], ev->text, ev->bytes);
        snprintf(head, sizeof head, "A%u", ev->call);
        trace(l, head, ev);
        break;
    case OUTPUT_CALL_END:
        l->complete[ev->call] = ev->complete;
        l->valid[ev->call] = ev->valid_json;
        l->in_call = false;
        snprintf(head, sizeof head, "E%u%c", ev->call, ev->complete ? '+' : '-');
        append(&l->trace, head, strlen(head));
        break;
    }
}

static void log_free(struct log *l)
{
    free(l->content.s);
    free(l->reasoning.s);
    free(l->trace.s);
    for (uint32_t i = 0; i < l->n_calls; i++)
        free(l->arguments[i].s);
    free(l);
}

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
    "\"$defs\":{\"city\":{\"type\":\"string\"},\"loop\":{\"$ref\":\"#/$defs/loop\"}},"
    "\"properties\":{\"s\":{\"type\":\"string\"},\"i\":{\"type\":\"integer\"},"
    "\"u\":{\"type\":[\"string\",\"null\"]},\"si\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":"
    "\"integer\"}]},\"e\":{\"enum\":[\"1\",\"2\"]},\"r\":{\"$ref\":\"#/$defs/city\"},"
    "\"l\":{\"$ref\":\"#/$defs/loop\"},\"c\":{\"const\":\"7\"},"
    "\"a\":{\"allOf\":[{\"type\":[\"string\",\"integer\"]},{\"type\":\"string\"}]}}}}}]";

static cJSON *parse(const char *text)
{
    struct err e = {0};
    cJSON *tree = NULL;
    CHECK_OK(json_parse(&tree, text, strlen(text), JSON_MAX_DEPTH, &e), e);
    return tree;
}

static struct output_parser *create(const char *format, bool thinking_open,
                                    enum output_markup markup, const cJSON *tools, struct log *l)
{
    struct err e = {0};
    struct output_parser *p = NULL;
    struct output_parser_config cfg = {format, thinking_open, markup, tools, {on_event, l}};
    append(&l->content, "", 0);
    append(&l->reasoning, "", 0);
    append(&l->trace, "", 0);
    CHECK_OK(output_parser_create(&p, &cfg, &e), e);
    return p;
}

static void put(struct output_parser *p, const char *text)
{
    struct err e = {0};
    CHECK_OK(output_parser_put(p, text, strlen(text), &e), e);
}

static void finish(struct output_parser *p, bool cut)
{
    struct err e = {0};
    CHECK_OK(output_parser_finish(p, cut, &e), e);
    output_parser_destroy(p);
}

/* Feeds pieces separated by '|' ("||" stands for one bar) and gives the log; l must be freed. */
static struct log *feed(const char *format, bool thinking_open, const char *pieces, bool cut)
{
    struct log *l = calloc(1, sizeof *l);
    struct err e = {0};
    CHECK(l);
    cJSON *tools = parse(tools_text);
    struct output_parser *p = create(format, thinking_open, OUTPUT_MARKUP_CALLS, tools, l);
    struct text piece = {0};
    for (const char *s = pieces; *s; s++) {
        bool bar = s[0] == '|' && s[1] == '|';
        if (*s == '|' && !bar) {
            CHECK_OK(output_parser_put(p, piece.s, piece.n, &e), e);
            piece.n = 0;
            continue;
        }
        append(&piece, s, 1);
        s += bar;
    }
    if (piece.n)
        CHECK_OK(output_parser_put(p, piece.s, piece.n, &e), e);
    free(piece.s);
    finish(p, cut);
    cJSON_Delete(tools);
    return l;
}

static void check_trace(const char *format, bool thinking_open, const char *pieces, bool cut,
                        const char *expect)
{
    struct log *l = feed(format, thinking_open, pieces, cut);
    CHECK_MSG(strcmp(l->trace.s, expect) == 0, "%s: %s\n  gives  %s\n  not    %s", format, pieces,
              l->trace.s, expect);
    log_free(l);
}

TEST(deltas_stream_as_soon_as_they_are_certain)
{
    check_trace("glm-5", true,
                "Let |me <|think</th|ink>\n|Well|, <tool|s> <tool_|call>f<arg_|key>s"
                "</arg_key><arg_value>Pa|ris\n|</arg|</arg_value></tool_call>|",
                false,
                "R(Let )R(me )R(<think)C(\nWell)C(, )C(<tools> )B0(f)A0({\"s\": \"Pa)A0(ris\\n)"
                "A0(</arg\"})E0+");
    check_trace("deepseek-v3.1", false,
                "Hi|.<｜tool▁calls▁begin｜>|<｜tool▁call▁begin｜>f|<｜tool▁sep｜>|{\"s\"|: 1}"
                "<｜tool▁call▁end｜>|<｜tool▁calls▁end｜>",
                false, "C(Hi)C(.)B0(f)A0({\"s\")A0(: 1})E0+");
    check_trace(
        "deepseek-v3.2", false,
        "Hi\n|\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" string=\"true\">a|b"
        "</｜DSML｜parameter>|</｜DSML｜invoke>",
        false, "C(Hi)B0(f)A0({\"x\": \"a)A0(b\")A0(})E0+");
    check_trace("kimi-k2", false,
                "<||tool_call_begin||>functions.f:12<||tool_call_argument_begin||>{|}"
                "<||tool_call_end||>",
                false, "B0(f)A0({)A0(})E0+");
}

TEST(a_waiting_value_comes_whole)
{
    check_trace("glm-5", false,
                "<tool_call>f<arg_key>i</arg_key><arg_value>1|2|3</arg_value>|<arg_key>zz</arg_key>"
                "<arg_value> [1,| 2] </arg_value></tool_call>",
                false, "B0(f)A0({\"i\": )A0(123)A0(, \"zz\": )A0([1, 2]})E0+");
}

/* What the model wrote for a parameter, and what the schema makes of it. */
static void check_typed(const char *key, const char *value, const char *expect)
{
    char text[512], arguments[512];
    snprintf(text, sizeof text,
             "<tool_call>f\n<arg_key>%s</arg_key>\n<arg_value>%s</arg_value>\n</tool_call>", key,
             value);
    snprintf(arguments, sizeof arguments, "{\"%s\": %s}", key, expect);
    struct log *l = feed("glm-4.6", false, text, false);
    CHECK_MSG(l->n_calls == 1 && l->valid[0] && strcmp(l->arguments[0].s, arguments) == 0,
              "%s %s: %s instead of %s", key, value, l->arguments[0].s, arguments);
    log_free(l);
}

TEST(the_schema_types_bare_values)
{
    check_typed("s", "12", "\"12\"");
    check_typed("s", "\"q\"", "\"\\\"q\\\"\"");
    check_typed("i", "12", "12");
    check_typed("i", "012", "\"012\"");
    check_typed("i", "1e5", "1e5");
    check_typed("i", "NaN", "\"NaN\"");
    check_typed("i", "", "\"\"");
    check_typed("u", "null", "null");
    check_typed("u", "nullable", "\"nullable\"");
    check_typed("u", "\"q\"", "\"\\\"q\\\"\"");
    check_typed("u", "12", "\"12\"");
    check_typed("si", "12", "12");
    check_typed("si", "1.5", "\"1.5\"");
    check_typed("e", "1", "\"1\"");
    check_typed("c", "7", "\"7\"");
    check_typed("r", "7", "\"7\"");
    check_typed("a", "7", "\"7\"");
    check_typed("l", "7", "7");
    check_typed("unknown", "\"q\"", "\"q\"");
    check_typed("unknown", "q", "\"q\"");
    check_typed("unknown", "\t{\"a\":\n1} ", "{\"a\":\n1}");
    check_typed("unknown", "{\"a\":\n1", "\"{\\\"a\\\":\\n1\"");
    check_typed("unknown", "\x01\x7f\b\f\r", "\"\\u0001\x7f\\b\\f\\r\"");
}

TEST(json_is_checked_strictly)
{
    static const char *const good[] = {"{}",
                                       "[]",
                                       " {\"a\": [1, -0, 1.5e+3, 0E-1, true, null]} ",
                                       "\"\\u00e9\\n\"",
                                       "0",
                                       "-12.5",
                                       "[[[]], {\"\": {}}]"};
    static const char *const bad[] = {
        "{",   "]",        "[1,]",      "{\"a\"}", "{\"a\":1,}", "{a: 1}", "01",    "1.",  "-",
        "1e",  "+1",       ".5",        "\"\\x\"", "\"\\u12\"",  "tru",    "nulll", "1 2", "{}{}",
        "'a'", "\"a\nb\"", "{\"a\" 1}", "[1}",     "{1: 2}",     "{,}",    "[,]",   "NaN"};
    for (size_t i = 0; i < sizeof good / sizeof *good + sizeof bad / sizeof *bad; i++) {
        bool is_good = i < sizeof good / sizeof *good;
        const char *json = is_good ? good[i] : bad[i - sizeof good / sizeof *good];
        char text[256];
        snprintf(text, sizeof text, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>%s<｜tool▁call▁end｜>",
                 json);
        struct log *l = feed("deepseek-v3.1", false, text, false);
        CHECK_MSG(l->n_calls == 1 && l->complete[0] && l->valid[0] == is_good, "%s", json);
        log_free(l);
    }
}

/* Half a call, too, and in reasoning; what only looked like one is content again. */
TEST(markup_is_left_out)
{
    static const struct {
        const char *format, *text, *content;
    } rows[] = {
        {"deepseek-v3", "a <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{", "a "},
        {"deepseek-v3.1",
         "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}"
         "<｜tool▁call▁end｜><｜tool▁calls▁end｜>b",
         "b"},
        {"deepseek-v3.2", "c\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">", "c"},
        {"glm-5", "<tool_call>f</tool_call>\nd", "\nd"},
        {"kimi-k2", "e<|tool_call_begin|>functions.f:0", "e"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int thinking = 0; thinking < 2; thinking++) {
            struct log *l = calloc(1, sizeof *l);
            CHECK(l);
            struct output_parser *p =
                create(rows[i].format, thinking, OUTPUT_MARKUP_LEFT_OUT, NULL, l);
            put(p, thinking ? "hm" : "");
            put(p, rows[i].text);
            finish(p, true);
            struct text all = {0};
            append(&all, l->reasoning.s ? l->reasoning.s : "", l->reasoning.n);
            append(&all, l->content.s ? l->content.s : "", l->content.n);
            CHECK_MSG(l->n_calls == 0 && !strcmp(all.s + (thinking ? 2 : 0), rows[i].content),
                      "%s: %s", rows[i].format, all.s);
            free(all.s);
            log_free(l);
        }
}

TEST(markup_as_text_is_content)
{
    static const char *const text[][2] = {
        {"deepseek-v3", "a <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}"},
        {"deepseek-v3.2", "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">"},
        {"glm-5", "<tool_call>f</tool_call>"},
        {"kimi-k2", "<think></think><|tool_call_begin|>functions.f:0"}};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        struct log *l = calloc(1, sizeof *l);
        CHECK(l);
        struct output_parser *p = create(text[i][0], false, OUTPUT_MARKUP_TEXT, NULL, l);
        put(p, text[i][1]);
        finish(p, false);
        CHECK_MSG(l->n_calls == 0 && strcmp(l->content.s, text[i][1]) == 0, "%s", l->trace.s);
        log_free(l);
    }
}

TEST(reasoning_ends_once)
{
    struct log *l = calloc(1, sizeof *l);
    CHECK(l);
    struct output_parser *p = create("deepseek-v3.1", true, OUTPUT_MARKUP_CALLS, NULL, l);
    CHECK(output_parser_in_reasoning(p));
    put(p, "one");
    CHECK(output_parser_in_reasoning(p));
    put(p, "</think>");
    CHECK(!output_parser_in_reasoning(p));
    put(p, "two</think>");
    CHECK(output_parser_calls(p) == 0);
    finish(p, false);
    CHECK(strcmp(l->trace.s, "R(one)C(two</think>)") == 0 ||
          strcmp(l->trace.s, "R(one)C(two)C(</think>)") == 0);
    log_free(l);
    check_trace("deepseek-r1", true, "\n<think>\nab</think>c", false, "R(\nab)C(c)");
    check_trace("deepseek-r1-0528", false, " \n<think>ab</think>c<think>", false,
                "R(ab)C(c<think>)");
    check_trace("deepseek-v3", false, "<think>ab</think>", false, "C(<think>ab</think>)");
    check_trace("glm-4.6", false, "\n<think>\n</think>\n\nab", false, "C(\nab)");
    /* A call ends it, and its late closing marker is no text. */
    check_trace("glm-5", true, "ab<tool_call>f</tool_call>\n</think>\ncd</think>", false,
                "R(ab)B0(f)A0({})E0+C(\ncd</think>)");
}

TEST(text_beside_calls_is_kept_and_markup_is_not)
{
    check_trace(
        "deepseek-v3.1", false,
        "a<｜tool▁calls▁begin｜> \n<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>\n"
        "<｜tool▁calls▁end｜> b<｜tool▁calls▁end｜><｜tool▁outputs▁begin｜>c",
        false, "C(a)B0(f)A0({})E0+C( bc)");
    check_trace("glm-5", false, "  <tool_call>f</tool_call> \n <tool_call>f</tool_call>\n", false,
                "B0(f)A0({})E0+B1(f)A1({})E1+");
    check_trace("kimi-k2", false, " \n", false, "C( \n)");
    check_trace("deepseek-v3.2", false, "a</｜DSML｜parameter>b\n\n", false, "C(ab)C(\n\n)");
}

TEST(neighbouring_shapes_are_understood)
{
    /* no wrapper, no end, no separator, the other DeepSeek's shape, a tool called function */
    check_trace("deepseek-v3", false,
                "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁begin｜>f\n```json\n{}\n```",
                false, "B0(f)A0({})E0+B1(f)A1({})E1+");
    check_trace(
        "deepseek-v3.1", false,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>\nf\n```\n[\n1]\n```\n<｜tool▁calls▁end｜>",
        false, "B0(f)A0([\n1])E0+");
    check_trace("deepseek-v3.1", false,
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}<｜tool▁call▁end｜>", false,
                "B0(function)A0({})E0+");
    check_trace("deepseek-v3", false, "<｜tool▁call▁begin｜>f<｜tool▁call▁end｜>", false,
                "B0(f)A0({})E0+");
    check_trace("glm-5", false, "<tool_call>f{\"s\": 1} </tool_call>", false,
                "B0(f)A0({\"s\": 1})E0+");
    check_trace(
        "glm-5", false,
        "<tool_call>f<arg_key>s<arg_value>a</tool_call><tool_call>f<tool_call>f</tool_call>", false,
        "B0(f)A0({\"s\": \"a\"})E0+B1(f)A1({})E1+B2(f)A2({})E2+");
    check_trace("deepseek-v3.2", false,
                "<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"i\">5</｜DSML｜invoke>"
                "<｜DSML｜invoke name=\"f\" ><｜DSML｜parameter name=\"a \"b\" string=\"false\">x"
                "</｜DSML｜function_calls>",
                false, "B0(f)A0({\"i\": 5})E0+B1(f)A1({\"a \\\"b\": \"x\"})E1+");
}

TEST(a_cut_call_says_so)
{
    check_trace("glm-5", false, "<tool_call>f", true, "");
    check_trace("glm-5", false, "<tool_call>f", false, "B0(f)A0({})E0+");
    check_trace("glm-5", false, "<tool_call>g", false, "");
    check_trace("glm-5", false, "<tool_call>f\n", true, "B0(f)E0-");
    check_trace("glm-5", false, "<tool_call>f\n", false, "B0(f)A0({})E0+");
    check_trace("glm-5", false, "<tool_call>f\n<arg_key>s</arg_key><arg_value>a</arg_va", true,
                "B0(f)A0({\"s\": \"a)E0-");
    check_trace("glm-5", false, "<tool_call>f\n<arg_key>s</arg_key><arg_value>a</arg_value>", true,
                "B0(f)A0({\"s\": \"a\")A0(})E0-");
    check_trace("glm-5", false, "<tool_call>f\n<arg_key>s</arg_key><arg_value>a</arg_value>", false,
                "B0(f)A0({\"s\": \"a\")A0(})E0+");
    check_trace("deepseek-v3.1", false, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", true,
                "B0(f)A0({})E0-");
    check_trace("deepseek-v3.1", false, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", false,
                "B0(f)A0({})E0+");
    check_trace("deepseek-v3.1", false, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{", false,
                "B0(f)A0({)E0-");
    check_trace("deepseek-v3.1", false, "a<｜tool▁call", true, "C(a)C(<｜tool▁call)");
}

/* A random JSON value as text, with what makes trouble in strings. */
static void random_value(struct rng *r, struct text *t, int depth)
{
    static const char *const atoms[] = {"null", "true",    "false",
                                        "0",    "-1.50e2", "12345678901234567890"};
    static const char *const bits[] = {"a",   "\\\"", "\\\\", "\\n",   "\\u0001", "é",    "你好",
                                       "😀",   " ",    "<",    "</",    "{",       "}",    "`",
                                       "```", "\\t",  "|",    "<tool", "｜",      "&amp;"};
    uint32_t kind = rng_below(r, depth > 3 ? 2 : 4), n = rng_below(r, 5);
    if (kind == 0) {
        const char *a = atoms[rng_below(r, sizeof atoms / sizeof *atoms)];
        append(t, a, strlen(a));
        return;
    }
    append(t, kind == 1 ? "\"" : kind == 2 ? "[" : "{", 1);
    for (uint32_t i = 0; i < n; i++) {
        if (kind == 1) {
            const char *b = bits[rng_below(r, sizeof bits / sizeof *bits)];
            append(t, b, strlen(b));
            continue;
        }
        char key[16];
        append(t, ", ", i ? 2 : 0);
        if (kind == 3)
            append(t, key, (size_t)snprintf(key, sizeof key, "\"k%u\": ", i));
        random_value(r, t, depth + 1);
    }
    append(t, kind == 1 ? "\"" : kind == 2 ? "]" : "}", 1);
}

/* Writes one call of f with the members of arguments in the format's markup. */
static void write_call(struct text *t, const char *format, const cJSON *arguments, const char *json)
{
    char buf[256];
    bool glm = strncmp(format, "glm", 3) == 0, dsml = strcmp(format, "deepseek-v3.2") == 0;
    const char *nl = strcmp(format, "glm-4.6") == 0 ? "\n" : "";
    if (!glm && !dsml) {
        bool kimi = strcmp(format, "kimi-k2") == 0;
        bool fence = strcmp(format, "deepseek-v3") == 0 || strncmp(format, "deepseek-r1", 11) == 0;
        const char *head = kimi ? "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
                           : fence ? "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
                                   : "<｜tool▁call▁begin｜>f<｜tool▁sep｜>";
        const char *tail = kimi    ? "<|tool_call_end|>"
                           : fence ? "\n```<｜tool▁call▁end｜>"
                                   : "<｜tool▁call▁end｜>";
        append(t, head, strlen(head));
        append(t, json, strlen(json));
        append(t, tail, strlen(tail));
        return;
    }
    const char *head = glm ? "<tool_call>f" : "<｜DSML｜invoke name=\"f\">\n";
    append(t, head, strlen(head));
    append(t, nl, strlen(nl));
    for (const cJSON *m = arguments->child; m; m = m->next) {
        bool string = cJSON_IsString(m);
        char *value = string ? NULL : cJSON_PrintUnformatted(m);
        const char *key = string ? "s" : m->string; /* declared to be a string */
        int n = glm ? snprintf(buf, sizeof buf, "<arg_key>%s</arg_key>%s<arg_value>", key, nl)
                    : snprintf(buf, sizeof buf, "<｜DSML｜parameter name=\"%s\" string=\"%s\">",
                               key, string ? "true" : "false");
        append(t, buf, (size_t)n);
        append(t, string ? m->valuestring : value, strlen(string ? m->valuestring : value));
        const char *end = glm ? "</arg_value>" : "</｜DSML｜parameter>\n";
        append(t, end, strlen(end));
        append(t, nl, strlen(nl));
        free(value);
    }
    const char *tail = glm ? "</tool_call>" : "</｜DSML｜invoke>";
    append(t, tail, strlen(tail));
}

/* Goal:   what a model says in any markup arrives, whatever the pieces; deltas are whole
 * characters. Method: random objects, written by a plain writer, fed in random pieces. */
TEST_LIMIT(random_calls_round_trip, 60)
{
    static const char *const formats[] = {"deepseek-v3",   "deepseek-r1", "deepseek-v3.1",
                                          "deepseek-v3.2", "glm-4.6",     "glm-5",
                                          "kimi-k2"};
    struct rng r = {test_seed()};
    cJSON *tools = parse(tools_text);
    struct err e = {0};
    for (int round = 0; round < 2000; round++) {
        const char *format = formats[rng_below(&r, sizeof formats / sizeof *formats)];
        uint32_t n_calls = 1 + rng_below(&r, 3), one_string = 0;
        struct text in = {0};
        cJSON *expect[3];
        append(&in, "vor你", strlen("vor你"));
        for (uint32_t i = 0; i < n_calls; i++) {
            struct text json = {0};
            append(&json, "{", 1);
            one_string = 0;
            for (uint32_t k = 0, n = rng_below(&r, 4); k < n; k++) {
                struct text value = {0};
                random_value(&r, &value, 1);
                char key[32];
                bool string = value.s[0] == '"';
                if (!string || one_string++ == 0) { /* strings go by the name "s", once */
                    append(&json, ", ", json.n > 1 ? 2 : 0);
                    int len = string ? snprintf(key, sizeof key, "\"s\": ")
                                     : snprintf(key, sizeof key, "\"p%u\": ", k);
                    append(&json, key, (size_t)len);
                    append(&json, value.s, value.n);
                }
                free(value.s);
            }
            append(&json, "}", 1);
            expect[i] = parse(json.s);
            write_call(&in, format, expect[i], json.s);
            free(json.s);
        }
        struct log *l = calloc(1, sizeof *l);
        CHECK(l);
        l->whole_characters = true;
        struct output_parser *p = create(format, false, OUTPUT_MARKUP_CALLS, tools, l);
        for (size_t at = 0, n; at < in.n; at += n) {
            n = 1 + rng_below(&r, 9);
            n = n < in.n - at ? n : in.n - at;
            CHECK_OK(output_parser_put(p, in.s + at, n, &e), e);
        }
        finish(p, false);
        CHECK_MSG(l->n_calls == n_calls && strcmp(l->content.s, "vor你") == 0, "%s\n%s", in.s,
                  l->trace.s);
        for (uint32_t i = 0; i < n_calls; i++) {
            cJSON *got = parse(l->arguments[i].s);
            CHECK_MSG(l->valid[i] && l->complete[i] && cJSON_Compare(got, expect[i], true),
                      "%s: %s\n%s", format, in.s, l->arguments[i].s);
            cJSON_Delete(got);
            cJSON_Delete(expect[i]);
        }
        free(in.s);
        log_free(l);
    }
    cJSON_Delete(tools);
}

TEST(a_long_piece_is_cut_between_characters)
{
    for (size_t shift = 0; shift < 4; shift++) {
        struct text in = {0};
        struct err e = {0};
        append(&in, "aaa", shift);
        for (int i = 0; i < 2000; i++)
            append(&in, i % 3 ? "😀" : "你", i % 3 ? 4 : 3);
        struct log *l = calloc(1, sizeof *l);
        CHECK(l);
        l->whole_characters = true;
        struct output_parser *p = create("deepseek-v3.1", shift & 1, OUTPUT_MARKUP_CALLS, NULL, l);
        CHECK_OK(output_parser_put(p, in.s, in.n, &e), e);
        finish(p, false);
        struct text *got = shift & 1 ? &l->reasoning : &l->content;
        CHECK(got->n == in.n && memcmp(got->s, in.s, in.n) == 0 && l->n_events > 5);
        log_free(l);
        free(in.s);
    }
}

TEST(a_value_beyond_the_bound_is_a_string)
{
    struct err e = {0};
    struct log *l = calloc(1, sizeof *l);
    CHECK(l);
    struct output_parser *p = create("glm-5", false, OUTPUT_MARKUP_CALLS, NULL, l);
    put(p, "<tool_call>f<arg_key>a</arg_key><arg_value>[1");
    for (size_t n = 0; n <= OUTPUT_MAX_VALUE; n += 1024) {
        char block[1024];
        memset(block, '0', sizeof block);
        CHECK_OK(output_parser_put(p, block, sizeof block, &e), e);
    }
    CHECK(l->arguments[0].n > OUTPUT_MAX_VALUE / 2);
    put(p, "]</arg_value></tool_call>");
    finish(p, false);
    CHECK(l->n_calls == 1 && l->complete[0] && l->valid[0]);
    CHECK(strncmp(l->arguments[0].s, "{\"a\": \"[100", 11) == 0 && l->longest <= 1024);
    CHECK(strcmp(l->arguments[0].s + l->arguments[0].n - 4, "0]\"}") == 0);
    log_free(l);
}

TEST(names_and_keys_are_bounded)
{
    struct text in = {0};
    append(&in, "<tool_call>", 11);
    for (int i = 0; i < 400; i++)
        append(&in, "é", 2);
    struct log *l = feed("glm-5", false, in.s, false);
    CHECK(l->n_calls == 0 && l->content.n == 800); /* no name is that long: prose */
    log_free(l);
    in.n = 0;
    append(&in, "<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"x",
           strlen("<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"x"));
    for (int i = 0; i < 4000; i++)
        append(&in, "é", 2);
    append(&in, "\">1</｜DSML｜parameter></｜DSML｜invoke>ok",
           strlen("\">1</｜DSML｜parameter></｜DSML｜invoke>ok"));
    l = feed("deepseek-v3.2", false, in.s, false);
    CHECK(l->n_calls == 1 && l->valid[0] && l->arguments[0].n < OUTPUT_MAX_KEY + 16);
    CHECK(utf8_valid(l->arguments[0].s, l->arguments[0].n, NULL));
    CHECK(strcmp(l->content.s, "ok") == 0);
    log_free(l);
    free(in.s);
}

TEST(hostile_output_is_read_in_bounded_memory_and_time)
{
    static const char *const formats[] = {"deepseek-v3", "deepseek-v3.2", "glm-4.6", "kimi-k2"};
    static const char *const bits[] = {
        "<",  "\n", "\n\n<",     "<｜tool▁call▁begin｜",    "`",   " ",
        "\"", "{",  "<tool_cal", "<｜DSML｜invoke name=\"", "\xff"};
    struct err e = {0};
    for (size_t f = 0; f < 4; f++) {
        for (size_t b = 0; b < sizeof bits / sizeof *bits; b++) {
            struct log *l = calloc(1, sizeof *l);
            CHECK(l);
            struct output_parser *p = create(formats[f], b & 1, OUTPUT_MARKUP_CALLS, NULL, l);
            size_t sent = 0, n = strlen(bits[b]);
            for (; sent < 300000; sent += n)
                CHECK_OK(output_parser_put(p, bits[b], n, &e), e);
            finish(p, true);
            CHECK(l->n_calls == 0 && l->content.n + l->reasoning.n + 300 >= sent / 2);
            log_free(l);
        }
    }
    /* JSON deeper than is looked at goes out as written, and is called invalid. */
    struct log *l = calloc(1, sizeof *l);
    CHECK(l);
    struct output_parser *p = create("deepseek-v3.1", false, OUTPUT_MARKUP_CALLS, NULL, l);
    put(p, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>");
    for (int i = 0; i < 2000; i++)
        put(p, i < 1000 ? "[" : "]");
    put(p, "<｜tool▁call▁end｜>");
    finish(p, false);
    CHECK(l->n_calls == 1 && l->arguments[0].n == 2000 && l->complete[0] && !l->valid[0]);
    log_free(l);
}

TEST(errors)
{
    struct err e = {0};
    struct log *l = calloc(1, sizeof *l);
    CHECK(l);
    struct output_parser *p = NULL;
    struct output_parser_config cfg = {"gpt-2", false, OUTPUT_MARKUP_CALLS, NULL, {on_event, l}};
    CHECK(output_parser_create(&p, &cfg, &e) == ERR_INVALID && strstr(e.msg, "gpt-2") && !p);
    cfg.format = NULL;
    CHECK(output_parser_create(&p, &cfg, &e) == ERR_INVALID && !p);
    output_parser_destroy(NULL);

    cfg.format = "glm-5";
    fault_arm("output_parser.create:1");
    CHECK(output_parser_create(&p, &cfg, &e) == ERR_NOMEM && !p);
    fault_arm("markup.value:1");
    CHECK_OK(output_parser_create(&p, &cfg, &e), e);
    static const char text[] = "<tool_call>f<arg_key>a</arg_key><arg_value>12";
    CHECK(output_parser_put(p, text, sizeof text - 1, &e) == ERR_NOMEM && e.msg[0]);
    output_parser_destroy(p);
    fault_arm(NULL);
    log_free(l);
}
