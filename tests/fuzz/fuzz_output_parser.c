/* fuzz_output_parser.c - model output of any bytes, in any pieces: the result is that of one piece,
 * and what output_parser.h promises holds.
 *
 * Byte 0 chooses the format, byte 1 the flags, byte 2 seeds the split; the rest is the output. With
 * FLAG_WORDS each byte from 0x80 stands for a piece of markup, so that random bytes are rich in it.
 */
#include "base/json.h"
#include "base/rng.h"
#include "text/output_parser.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FLAG_THINKING = 1,
    FLAG_TOOLS = 2,
    FLAG_WORDS = 4,
    FLAG_CUT = 8,
    FLAG_BYTES = 16,
    FLAG_LEFT_OUT = 32 /* without FLAG_TOOLS: calls are read, and not told of */
};

static enum output_markup markup_of(unsigned flags)
{
    return flags & FLAG_TOOLS      ? OUTPUT_MARKUP_CALLS
           : flags & FLAG_LEFT_OUT ? OUTPUT_MARKUP_LEFT_OUT
                                   : OUTPUT_MARKUP_TEXT;
}

static const char *const formats[] = {
    "deepseek-v3",       "deepseek-r1",   "deepseek-r1-0528", "deepseek-v3.1",
    "deepseek-v3.2-exp", "deepseek-v3.2", "glm-4.6",          "glm-5",
    "glm-5.2",           "kimi-k2"};
enum { N_FORMATS = sizeof formats / sizeof *formats };

#define D "｜DSML｜"
static const char *const shared_words[] = {"<think>",    "</think>",
                                           "\n",         "\n\n",
                                           " ",          "<",
                                           "</",         ">",
                                           "{",          "}",
                                           "{\"a\": 1}", "[1, \"x\"]",
                                           "run",        "code",
                                           "n",          "any",
                                           "null",       "true",
                                           "007",        "-1.5e3",
                                           "\"q\"",      "\\",
                                           "你好",       "😀",
                                           "text",       "               "};
static const char *const deepseek_words[] = {"<｜tool▁calls▁begin｜>",
                                             "<｜tool▁call▁begin｜>",
                                             "<｜tool▁sep｜>",
                                             "<｜tool▁call▁end｜>",
                                             "<｜tool▁calls▁end｜>",
                                             "<｜tool▁outputs▁begin｜>",
                                             "function",
                                             "\n```json\n",
                                             "\n```",
                                             "```",
                                             "`",
                                             "<｜tool▁call"};
static const char *const kimi_words[] = {"<|tool_calls_section_begin|>",
                                         "<|tool_call_begin|>",
                                         "<|tool_call_argument_begin|>",
                                         "<|tool_call_end|>",
                                         "<|tool_calls_section_end|>",
                                         "functions.",
                                         ":0",
                                         ":12",
                                         "<|tool_"};
static const char *const dsml_words[] = {"\n\n<" D "function_calls>\n",
                                         "<" D "invoke name=\"",
                                         "<" D "invoke",
                                         "\">",
                                         "<" D "parameter name=\"",
                                         "\" string=\"true\">",
                                         "\" string=\"false\">",
                                         "</" D "parameter>\n",
                                         "</" D "invoke>\n",
                                         "</" D "function_calls>",
                                         D,
                                         "\"",
                                         " string=\"",
                                         "<" D "parameter"};
static const char *const glm_words[] = {
    "<tool_call>", "\n<tool_call>", "</tool_call>",   "<arg_key>", "</arg_key>", "</arg_key>\n",
    "<arg_value>", "</arg_value>",  "</arg_value>\n", "<arg",      "<tool_"};

static const char *word(unsigned format, unsigned i)
{
    const char *const *own = format <= 4   ? deepseek_words
                             : format == 5 ? dsml_words
                             : format <= 8 ? glm_words
                                           : kimi_words;
    unsigned n_own = format <= 4   ? sizeof deepseek_words / sizeof *own
                     : format == 5 ? sizeof dsml_words / sizeof *own
                     : format <= 8 ? sizeof glm_words / sizeof *own
                                   : sizeof kimi_words / sizeof *own;
    unsigned n_shared = sizeof shared_words / sizeof *shared_words;
    i %= n_own + n_shared;
    return i < n_own ? own[i] : shared_words[i - n_own];
}

struct text {
    char *s;
    size_t n, max;
};

static void append(struct text *t, const char *s, size_t n)
{
    if (t->n + n > t->max) {
        t->max = 2 * (t->n + n);
        t->s = realloc(t->s, t->max);
        assert(t->s);
    }
    if (n)
        memcpy(t->s + t->n, s, n);
    t->n += n;
}

/* Everything in one text: each stretch of one kind with its kind before it. */
struct record {
    struct text all, content, arguments;
    int kind;
    uint32_t n_calls;
    bool in_call, valid_utf8, no_brace, typed;
};

static void on_event(void *arg, const struct output_event *ev)
{
    struct record *r = arg;
    bool delta = ev->kind == OUTPUT_REASONING || ev->kind == OUTPUT_CONTENT ||
                 ev->kind == OUTPUT_CALL_ARGUMENTS;
    assert(!delta || ev->bytes);
    assert(!r->valid_utf8 || utf8_valid(ev->text, ev->bytes, NULL));
    assert(r->in_call == (ev->kind == OUTPUT_CALL_ARGUMENTS || ev->kind == OUTPUT_CALL_END));
    char head[4] = {'\n', (char)('A' + ev->kind), (char)('0' + ev->complete), '\n'};
    if (!delta || r->kind != (int)ev->kind)
        append(&r->all, head, sizeof head);
    r->kind = (int)ev->kind;
    append(&r->all, ev->text, ev->bytes);
    switch (ev->kind) {
    case OUTPUT_CALL_BEGIN:
        assert(ev->call == r->n_calls && ev->bytes && ev->bytes <= OUTPUT_MAX_KEY);
        r->n_calls++;
        r->in_call = true;
        r->arguments.n = 0;
        break;
    case OUTPUT_CALL_ARGUMENTS:
        append(&r->arguments, ev->text, ev->bytes);
        break;
    case OUTPUT_CALL_END:
        r->in_call = false;
        assert(!ev->complete || r->arguments.n);
        assert(!ev->complete || !r->typed || !r->no_brace || ev->valid_json);
        struct err e = {0};
        cJSON *tree = NULL;
        bool reads =
            json_parse(&tree, r->arguments.s, r->arguments.n, JSON_MAX_DEPTH, &e) == ERR_OK;
        /* The other way round would not hold: cJSON reads 01. Its bounds lie beyond 64 bytes. */
        assert(!ev->valid_json || reads || !r->valid_utf8 || r->arguments.n >= 64 ||
               memchr(r->arguments.s, '\\', r->arguments.n));
        cJSON_Delete(tree);
        break;
    case OUTPUT_CONTENT:
        append(&r->content, ev->text, ev->bytes);
        break;
    default:
        break;
    }
    if (ev->kind == OUTPUT_CALL_ARGUMENTS || ev->kind == OUTPUT_CALL_END)
        assert(ev->call + 1 == r->n_calls);
}

static cJSON *tools(void)
{
    static cJSON *tree;
    static const char text[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"run\",\"parameters\":{\"$defs\":{\"s\":"
        "{\"anyOf\":[{\"type\":\"string\"},{\"$ref\":\"#/$defs/s\"}]}},\"properties\":{\"code\":"
        "{\"type\":\"string\"},\"n\":{\"type\":[\"integer\",\"null\",\"string\"]},\"{\":{\"$ref\":"
        "\"#/$defs/s\"}}}}}]";
    struct err e = {0};
    if (!tree && json_parse(&tree, text, sizeof text - 1, JSON_MAX_DEPTH, &e))
        abort();
    return tree;
}

static void run(unsigned format, unsigned flags, const struct text *in, struct rng *rng,
                struct record *r)
{
    struct err e = {0};
    struct output_parser *p = NULL;
    struct output_parser_config cfg = {.format = formats[format],
                                       .thinking_open = flags & FLAG_THINKING,
                                       .markup = markup_of(flags),
                                       .tools = tools(),
                                       .sink = {on_event, r}};
    r->kind = -1;
    r->valid_utf8 = utf8_valid(in->s, in->n, NULL);
    r->no_brace = in->n == 0 || !memchr(in->s, '{', in->n);
    r->typed = format >= 5 && format <= 8;
    if (output_parser_create(&p, &cfg, &e))
        abort();
    for (size_t at = 0; at < in->n;) {
        size_t n = !rng ? in->n : flags & FLAG_BYTES ? 1 : 1 + rng_below(rng, 12);
        if (n > in->n - at)
            n = in->n - at;
        char *piece = malloc(n); /* of its own: reading past it is seen */
        assert(piece);
        memcpy(piece, in->s + at, n);
        enum err_code code = output_parser_put(p, piece, n, &e);
        assert(code == ERR_OK);
        free(piece);
        at += n;
    }
    enum err_code code = output_parser_finish(p, flags & FLAG_CUT, &e);
    assert(code == ERR_OK && output_parser_calls(p) == r->n_calls && !r->in_call);
    output_parser_destroy(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    unsigned format = data[0] % N_FORMATS, flags = data[1];
    struct rng rng = {data[2]};
    struct text in = {0};
    append(&in, "", 0);
    for (size_t i = 3; i < size; i++) {
        if ((flags & FLAG_WORDS) && data[i] >= 0x80) {
            const char *w = word(format, data[i] - 0x80u);
            append(&in, w, strlen(w));
        } else {
            append(&in, (const char *)&data[i], 1);
        }
    }
    struct record whole = {0}, parts = {0};
    run(format, flags, &in, NULL, &whole);
    run(format, flags, &in, &rng, &parts);
    assert(whole.all.n == parts.all.n);
    assert(whole.all.n == 0 || memcmp(whole.all.s, parts.all.s, whole.all.n) == 0);
    if (markup_of(flags) == OUTPUT_MARKUP_LEFT_OUT) { /* all else is as with calls */
        struct record with = {0};
        run(format, flags | FLAG_TOOLS, &in, &rng, &with);
        assert(whole.n_calls == 0 && whole.content.n == with.content.n);
        assert(!with.content.n || !memcmp(whole.content.s, with.content.s, with.content.n));
        free(with.all.s);
        free(with.content.s);
        free(with.arguments.s);
    }
    if (markup_of(flags) == OUTPUT_MARKUP_TEXT && !(flags & FLAG_THINKING) &&
        (format == 0 || format == 9)) /* no markup at all */
        assert(whole.content.n == in.n && (!in.n || memcmp(whole.content.s, in.s, in.n) == 0));
    free(in.s);
    free(whole.all.s);
    free(whole.content.s);
    free(whole.arguments.s);
    free(parts.all.s);
    free(parts.content.s);
    free(parts.arguments.s);
    return 0;
}
