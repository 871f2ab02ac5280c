/* test_grammar_texts.c - patterns, grammars and choices with texts that others have judged.
 *
 * tests/fixtures/grammar/{regex,grammars,choice}.jsonl: a pattern, a grammar or a list a line, with
 * texts that must be complete and texts that must not.
 */
#include "base/json.h"
#include "grammar/ebnf.h"
#include "grammar/grammar.h"
#include "grammar/regex.h"
#include "test.h"

static const char *no_token(const void *arg, uint32_t id, size_t *n)
{
    (void)arg;
    (void)id;
    *n = 1;
    return "a";
}

static struct grammar_vocab *open_vocab(void)
{
    struct grammar_vocab *v;
    struct err e;
    CHECK_OK(grammar_vocab_open(&v, 1, no_token, NULL, &e), e);
    return v;
}

static bool complete(struct grammar *g, const char *s, size_t n)
{
    struct grammar_matcher *m;
    struct err e;
    size_t taken;
    CHECK_OK(grammar_matcher_open(&m, g, &e), e);
    bool ok = grammar_matcher_accept(m, s, n, &taken) && grammar_matcher_may_end(m);
    CHECK(!grammar_matcher_failed(m));
    grammar_matcher_close(m);
    return ok;
}

/* Each row of a file, with a fresh builder. */
static uint32_t each_row(const char *file, void (*row)(const cJSON *, struct grammar_vocab *,
                                                       struct grammar_builder *))
{
    FILE *f = fopen(test_fixture(file), "rb");
    CHECK_MSG(f, "%s", file);
    struct grammar_vocab *v = open_vocab();
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    uint32_t rows = 0;
    while ((n = getline(&line, &room, f)) > 0) {
        cJSON *j;
        struct grammar_builder *b;
        struct err e;
        CHECK_OK(json_parse(&j, line, (size_t)n, JSON_MAX_DEPTH, &e), e);
        CHECK_OK(gb_open(&b, &e), e);
        row(j, v, b);
        gb_close(b);
        cJSON_Delete(j);
        rows++;
    }
    free(line);
    fclose(f);
    grammar_vocab_close(v);
    return rows;
}

static const char *string(const cJSON *row, const char *key)
{
    const cJSON *s = json_get(row, key);
    CHECK(cJSON_IsString(s));
    return s->valuestring;
}

static void judge(const cJSON *row, const char *key, struct grammar *g, bool want)
{
    const cJSON *text;
    cJSON_ArrayForEach(text, json_get(row, key))
    {
        const char *s = text->valuestring;
        CHECK_MSG(complete(g, s, strlen(s)) == want, "%s: %s: '%s'", string(row, "id"), key, s);
    }
}

/* A text as a JSON string spells it, by the same rule as charset_node(). */
static size_t spell(const char *s, char *out)
{
    char *p = out;
    for (; *s; s++) {
        static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
        const char *at = strchr(from, *s);
        if (at)
            p += sprintf(p, "\\%c", to[at - from]);
        else if ((unsigned char)*s < 0x20)
            p += sprintf(p, "\\u%04x", *s);
        else
            *p++ = *s;
    }
    return (size_t)(p - out);
}

static void judge_json(const cJSON *row, const char *key, struct grammar *g, bool want)
{
    static char spelled[1 << 16];
    const cJSON *text;
    cJSON_ArrayForEach(text, json_get(row, key))
    {
        size_t n = spell(text->valuestring, spelled);
        CHECK_MSG(complete(g, spelled, n) == want, "%s: %s as JSON: '%s'", string(row, "id"), key,
                  text->valuestring);
    }
}

static void regex_row(const cJSON *row, struct grammar_vocab *v, struct grammar_builder *b)
{
    const char *p = string(row, "regex");
    unsigned flags = string(row, "flags")[0] == 'u' ? REGEX_UNICODE : 0;
    for (int i = 0; i < 4; i++) {
        unsigned f = flags | (i & 1 ? REGEX_JSON : 0);
        void (*check)(const cJSON *, const char *, struct grammar *, bool) =
            i & 1 ? judge_json : judge;
        gb_node x;
        struct grammar *g;
        struct err e;
        if (i < 2)
            CHECK_MSG(grammar_regex(&x, b, p, strlen(p), f, &e) == ERR_OK, "%s: %s", p, e.msg);
        else
            CHECK_MSG(grammar_regex_search(&x, b, p, strlen(p), f, &e) == ERR_OK, "%s: %s", p,
                      e.msg);
        CHECK_MSG(grammar_compile(&g, v, b, x, &e) == ERR_OK, "%s: %s", p, e.msg);
        check(row, "match", g, true);
        if (i < 2)
            check(row, "miss", g, false);
        check(row, "search_only", g, i >= 2);
        check(row, "search_miss", g, false);
        grammar_close(g);
    }
}

TEST_LIMIT(grammar_regex_goldens, 60)
{
    CHECK(each_row("grammar/regex.jsonl", regex_row) > 100);
}

static void ebnf_row(const cJSON *row, struct grammar_vocab *v, struct grammar_builder *b)
{
    const char *text = string(row, "grammar");
    gb_node x;
    struct grammar *g;
    struct err e;
    CHECK_MSG(grammar_ebnf(&x, b, text, strlen(text), &e) == ERR_OK, "%s: %s", string(row, "id"),
              e.msg);
    CHECK_MSG(grammar_compile(&g, v, b, x, &e) == ERR_OK, "%s: %s", string(row, "id"), e.msg);
    judge(row, "accept", g, true);
    judge(row, "refuse", g, false);
    grammar_close(g);
}

TEST(grammar_ebnf_goldens)
{
    CHECK(each_row("grammar/grammars.jsonl", ebnf_row) == 25);
}

static void choice_row(const cJSON *row, struct grammar_vocab *v, struct grammar_builder *b)
{
    const cJSON *list = json_get(row, "choice"), *one;
    size_t n = (size_t)cJSON_GetArraySize(list), k = 0;
    const char **choice = calloc(n, sizeof *choice);
    size_t *bytes = calloc(n, sizeof *bytes);
    CHECK(choice && bytes);
    cJSON_ArrayForEach(one, list)
    {
        choice[k] = one->valuestring;
        bytes[k++] = strlen(one->valuestring);
    }
    struct grammar *g;
    struct err e;
    CHECK_OK(grammar_compile(&g, v, b, grammar_choice(b, choice, bytes, n), &e), e);
    judge(row, "choice", g, true);
    judge(row, "refuse", g, false);
    grammar_close(g);
    free(choice);
    free(bytes);
}

TEST(grammar_choice_goldens)
{
    CHECK(each_row("grammar/choice.jsonl", choice_row) == 87);
}
