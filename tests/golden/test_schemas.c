/* test_schemas.c - schemas with texts that two validators have judged.
 *
 * tests/fixtures/grammar/schemas.jsonl: a schema a line, compact valid texts in the order in which
 * the schema names members, and invalid texts. hostile.jsonl: wrong, unsatisfiable, unresolvable or
 * explosive schemas, with what is to be expected. Where the whole set is at hand (a directory with
 * schemas.jsonl.xz, named by SCHEMA_SET or beside this repository) it is run, too.
 */
#include "base/clock.h"
#include "base/json.h"
#include "grammar/grammar.h"
#include "grammar/schema.h"
#include "grammar_walk.h"
#include "test.h"
#include "text/chat_json.h"

#include <unistd.h>

static const char *byte_token(const void *arg, uint32_t id, size_t *n)
{
    static char one[256];
    (void)arg;
    one[id] = (char)id;
    *n = 1;
    return &one[id];
}

struct counts {
    uint32_t rows, accepted, strict, strict_accepted, common, common_accepted;
    uint32_t valid, valid_refused, invalid, invalid_accepted;
    uint64_t slowest_us;
};

static enum err_code compile(struct grammar **g, const struct grammar_vocab *v, const cJSON *schema,
                             struct err *e)
{
    struct grammar_builder *b;
    gb_node x = GB_NEVER;
    CHECK_OK(gb_open(&b, e), *e);
    enum err_code code = grammar_schema(&x, b, schema, e);
    if (code == ERR_OK)
        code = grammar_compile(g, v, b, x, e);
    gb_close(b);
    if (code != ERR_OK)
        grammar_schema_explain(schema, e);
    return code;
}

static void run_row(struct counts *c, const struct grammar_vocab *v, const cJSON *row)
{
    const char *id = cJSON_GetStringValue(json_get(row, "id"));
    const char *class = cJSON_GetStringValue(json_get(row, "feature_class"));
    bool strict = !strcmp(class, "openai-strict"), common = !strcmp(class, "common");
    struct grammar *g;
    struct err e = {0};
    uint64_t from = clock_us();
    enum err_code code = compile(&g, v, json_get(row, "schema"), &e);
    uint64_t us = clock_us() - from;
    c->slowest_us = us > c->slowest_us ? us : c->slowest_us;
    c->rows++;
    c->strict += strict;
    c->common += common;
    if (code != ERR_OK) {
        CHECK_MSG(code == ERR_INVALID && strstr(e.msg, " at #"), "%s: '%s'", id, e.msg);
        printf("refused: %s: %s\n", id, e.msg);
        return;
    }
    c->accepted++;
    c->strict_accepted += strict;
    c->common_accepted += common;
    const cJSON *text, *form = json_get(row, "valid_form");
    form = form ? form->child : NULL;
    for (text = json_get(row, "valid")->child; text; text = text->next) {
        bool compact = !form || !strcmp(form->valuestring, "compact");
        form = form ? form->next : NULL;
        c->valid += compact;
        if (!compact || complete(g, text->valuestring))
            continue;
        c->valid_refused++;
        printf("valid, but refused: %s: %.200s\n", id, text->valuestring);
    }
    for (text = json_get(row, "invalid")->child; text; text = text->next) {
        c->invalid++;
        CHECK_MSG(!complete(g, text->valuestring), "%s accepts %s", id, text->valuestring);
    }
    grammar_close(g);
}

/* n_deep: NULL, or counts the lines that are nested deeper than a body may be. */
static void each_line(FILE *f, void (*row)(void *arg, const struct grammar_vocab *, const cJSON *),
                      void *arg, uint32_t *n_deep)
{
    struct grammar_vocab *v;
    struct err e;
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    CHECK_OK(grammar_vocab_open(&v, 256, byte_token, NULL, &e), e);
    while ((n = getline(&line, &room, f)) > 0) {
        cJSON *j;
        enum err_code code = json_parse_nul(&j, line, (size_t)n, JSON_MAX_DEPTH, &e);
        if (code != ERR_OK && n_deep && strstr(e.msg, "nested levels")) {
            ++*n_deep;
            continue;
        }
        CHECK_OK(code, e);
        CHECK_OK(chat_json_keep_numbers(j, line, (size_t)n, &e), e);
        row(arg, v, j);
        cJSON_Delete(j);
    }
    free(line);
    grammar_vocab_close(v);
}

static void count_row(void *arg, const struct grammar_vocab *v, const cJSON *row)
{
    run_row(arg, v, row);
}

static void report(const struct counts *c)
{
    printf("%u of %u schemas accepted, slowest %.1f ms; %u of %u valid texts refused, %u of %u "
           "invalid ones accepted\n",
           c->accepted, c->rows, (double)c->slowest_us / 1e3, c->valid_refused, c->valid,
           c->invalid_accepted, c->invalid);
    CHECK(c->strict_accepted == c->strict);
    CHECK(c->common_accepted == c->common);
    CHECK(c->accepted * 100 >= c->rows * 95);
}

TEST_LIMIT(schemas_and_their_texts, 120)
{
    struct counts c = {0};
    FILE *f = fopen(test_fixture("grammar/schemas.jsonl"), "rb");
    CHECK(f);
    each_line(f, count_row, &c, NULL);
    fclose(f);
    report(&c);
    CHECK(c.rows == 287 && c.valid_refused == 0);
}

/* A file of the whole set; NULL: it is not at hand. End it with pclose(). */
static FILE *open_set(const char *name)
{
    const char *dir = getenv("SCHEMA_SET");
    char path[400], command[420];
    snprintf(path, sizeof path, "%s/%s.jsonl.xz", dir ? dir : "../shared/goldens/schemas", name);
    if (access(path, R_OK) != 0)
        return NULL;
    snprintf(command, sizeof command, "xz -dc '%s'", path);
    FILE *f = popen(command, "r");
    CHECK(f);
    return f;
}

TEST_LIMIT(the_whole_set_of_schemas, 120)
{
    struct counts c = {0};
    FILE *f = open_set("schemas");
    if (!f)
        TEST_SKIP("the whole set is not here (SCHEMA_SET names its directory)");
    each_line(f, count_row, &c, NULL);
    CHECK(pclose(f) == 0);
    report(&c);
    CHECK(c.rows == 622 && c.valid_refused <= 1);
}

static void hostile_row(void *arg, const struct grammar_vocab *v, const cJSON *row)
{
    const char *id = cJSON_GetStringValue(json_get(row, "id"));
    const char *expect = cJSON_GetStringValue(json_get(row, "expect"));
    struct grammar *g;
    struct err e = {0};
    enum err_code code = compile(&g, v, json_get(row, "schema"), &e);
    (*(uint32_t *)arg)++;
    if (code == ERR_OK)
        grammar_close(g);
    if (!strcmp(expect, "400"))
        CHECK_MSG(code == ERR_INVALID && strstr(e.msg, " at #"), "%s: '%s'", id, e.msg);
    else if (!strcmp(expect, "answer"))
        CHECK_MSG(code == ERR_OK, "%s: %s", id, e.msg);
    else
        CHECK_MSG(code == ERR_OK || strstr(e.msg, " at #"), "%s: %s", id, e.msg);
}

TEST(hostile_schemas)
{
    uint32_t rows = 0;
    FILE *f = fopen(test_fixture("grammar/hostile.jsonl"), "rb");
    CHECK(f);
    each_line(f, hostile_row, &rows, NULL);
    fclose(f);
    CHECK(rows == 31);
}

/* One of them is nested 2,000 deep: a body that holds it is refused as a whole. */
TEST_LIMIT(the_whole_set_of_hostile_ones, 60)
{
    uint32_t rows = 0, deep = 0;
    FILE *f = open_set("hostile");
    if (!f)
        TEST_SKIP("the whole set is not here (SCHEMA_SET names its directory)");
    each_line(f, hostile_row, &rows, &deep);
    CHECK(pclose(f) == 0);
    CHECK(rows == 36 && deep == 1);
}
