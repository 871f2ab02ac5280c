/* test_parses.c - the output parser against what the public parsers make of the same texts.
 *
 * tests/fixtures/parses/parses.jsonl: model output in, message out, for every chat format. Each row
 * is fed whole, byte by byte, and in two parts at every byte; all must give the same. A call that
 * was cut off is left out where the row expects that, and must then be a beginning of the row's
 * `incomplete`. */
#include "base/json.h"
#include "test.h"
#include "text/output_parser.h"

enum { MAX_CALLS = 16 };

struct text {
    char *s;
    size_t n;
};

struct result {
    struct text content, reasoning, name[MAX_CALLS], arguments[MAX_CALLS];
    bool complete[MAX_CALLS], valid[MAX_CALLS], ended[MAX_CALLS];
    uint32_t n_calls;
};

static void append(struct text *t, const char *s, size_t n)
{
    t->s = realloc(t->s, t->n + n + 1);
    CHECK(t->s);
    if (n)
        memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = '\0';
}

static void on_event(void *arg, const struct output_event *ev)
{
    struct result *r = arg;
    switch (ev->kind) {
    case OUTPUT_REASONING:
        append(&r->reasoning, ev->text, ev->bytes);
        return;
    case OUTPUT_CONTENT:
        append(&r->content, ev->text, ev->bytes);
        return;
    case OUTPUT_CALL_BEGIN:
        CHECK(ev->call == r->n_calls && ev->call < MAX_CALLS);
        append(&r->name[ev->call], ev->text, ev->bytes);
        append(&r->arguments[ev->call], "", 0);
        r->n_calls++;
        return;
    case OUTPUT_CALL_ARGUMENTS:
        CHECK(ev->call + 1 == r->n_calls && !r->ended[ev->call]);
        append(&r->arguments[ev->call], ev->text, ev->bytes);
        return;
    case OUTPUT_CALL_END:
        CHECK(ev->call + 1 == r->n_calls && !r->ended[ev->call]);
        r->ended[ev->call] = true;
        r->complete[ev->call] = ev->complete;
        r->valid[ev->call] = ev->valid_json;
        return;
    }
}

static void result_free(struct result *r)
{
    free(r->content.s);
    free(r->reasoning.s);
    for (uint32_t i = 0; i < r->n_calls; i++) {
        free(r->name[i].s);
        free(r->arguments[i].s);
    }
}

struct row {
    const cJSON *json;
    const char *id, *text;
    size_t bytes;
    bool cut;
};

/* Feeds the row in pieces of `step` bytes, the first of `first`; 0 stands for everything. */
static void run(const struct row *row, enum output_markup markup, size_t first, size_t step,
                struct result *r)
{
    struct err e = {0};
    struct output_parser *p = NULL;
    struct output_parser_config cfg = {.format = json_get(row->json, "format")->valuestring,
                                       .thinking_open =
                                           cJSON_IsTrue(json_get(row->json, "thinking_open")),
                                       .markup = markup,
                                       .tools = json_get(row->json, "tools"),
                                       .sink = {on_event, r}};
    *r = (struct result){0};
    append(&r->content, "", 0);
    append(&r->reasoning, "", 0);
    CHECK_OK(output_parser_create(&p, &cfg, &e), e);
    for (size_t at = 0, n = first; at < row->bytes; at += n, n = step) {
        if (n == 0 || n > row->bytes - at)
            n = row->bytes - at;
        CHECK_OK(output_parser_put(p, row->text + at, n, &e), e);
    }
    CHECK_OK(output_parser_finish(p, row->cut, &e), e);
    CHECK(output_parser_calls(p) == r->n_calls);
    output_parser_destroy(p);
    for (uint32_t i = 0; i < r->n_calls; i++)
        CHECK_MSG(r->ended[i], "%s: call %u has no end", row->id, i);
}

static bool same_text(const struct text *a, const struct text *b)
{
    return a->n == b->n && memcmp(a->s, b->s, a->n) == 0;
}

static bool same_result(const struct result *a, const struct result *b)
{
    bool same = a->n_calls == b->n_calls && same_text(&a->content, &b->content) &&
                same_text(&a->reasoning, &b->reasoning);
    for (uint32_t i = 0; same && i < a->n_calls; i++)
        same = same_text(&a->name[i], &b->name[i]) &&
               same_text(&a->arguments[i], &b->arguments[i]) && a->complete[i] == b->complete[i] &&
               a->valid[i] == b->valid[i];
    return same;
}

/* Of members given twice the last counts. */
static void drop_duplicates(cJSON *value)
{
    for (cJSON *m = value->child, *next; m; m = next) {
        next = m->next;
        drop_duplicates(m);
        if (cJSON_IsObject(value) && json_get(value, m->string) != m)
            cJSON_Delete(cJSON_DetachItemViaPointer(value, m));
    }
}

static bool same_arguments(const char *a, const char *b)
{
    struct err e = {0};
    cJSON *x = NULL, *y = NULL;
    bool same = strcmp(a, b) == 0;
    if (!same && !json_parse(&x, a, strlen(a), JSON_MAX_DEPTH, &e) &&
        !json_parse(&y, b, strlen(b), JSON_MAX_DEPTH, &e)) {
        drop_duplicates(x);
        drop_duplicates(y);
        same = cJSON_Compare(x, y, true);
    }
    cJSON_Delete(x);
    cJSON_Delete(y);
    return same;
}

static bool same_edges(const char *a, const char *b, bool edge_space)
{
    size_t n = strlen(a), m = strlen(b);
    if (edge_space) {
        static const char space[] = " \n\r\t";
        size_t skip = strspn(a, space), skip_b = strspn(b, space);
        a += skip, n -= skip;
        b += skip_b, m -= skip_b;
        while (n && strchr(space, a[n - 1]))
            n--;
        while (m && strchr(space, b[m - 1]))
            m--;
    }
    return n == m && memcmp(a, b, n) == 0;
}

/* n_calls: how many of r's calls count. */
static bool is(const struct result *r, uint32_t n_calls, const cJSON *expect, bool edge_space)
{
    const cJSON *calls = json_get(expect, "tool_calls");
    if (!same_edges(r->content.s, json_get(expect, "content")->valuestring, edge_space) ||
        !same_edges(r->reasoning.s, json_get(expect, "reasoning")->valuestring, edge_space) ||
        cJSON_GetArraySize(calls) != (int)n_calls)
        return false;
    for (uint32_t i = 0; i < n_calls; i++) {
        const cJSON *call = cJSON_GetArrayItem(calls, (int)i);
        if (strcmp(r->name[i].s, json_get(call, "name")->valuestring) != 0 ||
            !same_arguments(r->arguments[i].s, json_get(call, "arguments")->valuestring))
            return false;
    }
    return true;
}

static bool is_expected(const struct row *row, const struct result *r, uint32_t n_calls)
{
    bool edge = cJSON_IsTrue(json_get(row->json, "edge_space"));
    if (is(r, n_calls, json_get(row->json, "expect"), edge))
        return true;
    const cJSON *other = NULL;
    cJSON_ArrayForEach(
        other, json_get(row->json, "also_accept")) if (is(r, n_calls, other, edge)) return true;
    return false;
}

static bool check_row(const struct row *row)
{
    struct result whole, part;
    run(row, OUTPUT_MARKUP_CALLS, 0, 0, &whole);
    run(row, OUTPUT_MARKUP_CALLS, 1, 1, &part);
    CHECK_MSG(same_result(&whole, &part), "%s: byte by byte gives another result", row->id);
    result_free(&part);
    for (size_t at = 1; at < row->bytes; at++) {
        run(row, OUTPUT_MARKUP_CALLS, at, 0, &part);
        CHECK_MSG(same_result(&whole, &part), "%s: split at %zu gives another result", row->id, at);
        result_free(&part);
        /* Where no tools were offered: the same, but for the calls. */
        run(row, OUTPUT_MARKUP_LEFT_OUT, at, 0, &part);
        CHECK_MSG(part.n_calls == 0 && same_text(&part.content, &whole.content) &&
                      same_text(&part.reasoning, &whole.reasoning),
                  "%s: calls are not left out, split at %zu: %s", row->id, at, part.content.s);
        result_free(&part);
    }

    uint32_t n = whole.n_calls;
    const cJSON *incomplete = json_get(row->json, "incomplete");
    bool ok = true, last_is_cut = n && !whole.complete[n - 1];
    for (uint32_t i = 0; i + 1 < n; i++)
        ok = ok && whole.complete[i];
    if (last_is_cut && incomplete) {
        const cJSON *name = json_get(incomplete, "name");
        const char *rest = json_get(incomplete, "arguments")->valuestring;
        ok = ok && cJSON_IsString(name) && strcmp(name->valuestring, whole.name[n - 1].s) == 0 &&
             strncmp(rest, whole.arguments[n - 1].s, whole.arguments[n - 1].n) == 0;
        ok = ok && is_expected(row, &whole, n - 1);
    } else {
        ok = ok && is_expected(row, &whole, n);
        if (last_is_cut) /* reported or left out: both must be right */
            ok = ok && row->cut && is_expected(row, &whole, n - 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct err e = {0};
        cJSON *tree = NULL;
        bool reads = json_parse(&tree, whole.arguments[i].s, whole.arguments[i].n, JSON_MAX_DEPTH,
                                &e) == ERR_OK;
        ok = ok && reads == whole.valid[i];
        cJSON_Delete(tree);
    }
    if (!ok) {
        printf("%s\n  content %s\n  reasoning %s\n", row->id, whole.content.s, whole.reasoning.s);
        for (uint32_t i = 0; i < n; i++)
            printf("  %s %s complete=%d valid=%d\n", whole.name[i].s, whole.arguments[i].s,
                   whole.complete[i], whole.valid[i]);
    }
    result_free(&whole);
    return ok;
}

static void check_format(const char *format, unsigned n_rows)
{
    FILE *f = fopen(test_fixture("parses/parses.jsonl"), "rb");
    CHECK(f);
    char *line = NULL;
    size_t room = 0;
    ssize_t len;
    unsigned rows = 0, passed = 0;
    while ((len = getline(&line, &room, f)) > 0) {
        struct err e = {0};
        cJSON *json = NULL;
        CHECK_OK(json_parse(&json, line, (size_t)len, JSON_MAX_DEPTH, &e), e);
        if (strcmp(json_get(json, "format")->valuestring, format) == 0) {
            const char *text = json_get(json, "text")->valuestring;
            struct row row = {json, json_get(json, "id")->valuestring, text, strlen(text),
                              cJSON_IsTrue(json_get(json, "partial"))};
            rows++;
            passed += check_row(&row);
        }
        cJSON_Delete(json);
    }
    free(line);
    fclose(f);
    CHECK_MSG(rows == n_rows, "%u rows instead of %u", rows, n_rows);
    CHECK_MSG(passed == rows, "%u of %u rows", passed, rows);
}

#define FORMAT(test_name, format, n_rows)                                                          \
    TEST_LIMIT(test_name, 60)                                                                      \
    {                                                                                              \
        check_format(format, n_rows);                                                              \
    }
FORMAT(deepseek_v3, "deepseek-v3", 29)
FORMAT(deepseek_r1, "deepseek-r1", 35)
FORMAT(deepseek_r1_0528, "deepseek-r1-0528", 35)
FORMAT(deepseek_v31, "deepseek-v3.1", 40)
FORMAT(deepseek_v32_exp, "deepseek-v3.2-exp", 40)
FORMAT(deepseek_v32, "deepseek-v3.2", 48)
FORMAT(glm_46, "glm-4.6", 40)
FORMAT(glm_5, "glm-5", 42)
FORMAT(glm_52, "glm-5.2", 42)
FORMAT(kimi_k2, "kimi-k2", 21)
