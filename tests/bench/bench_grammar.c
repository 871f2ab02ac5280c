/* bench_grammar.c - how long a grammar takes to compile, and a mask to fill.
 *
 *   bench_grammar [dir with tokenizer.json]
 *
 * A row per kind of grammar: how many, then percentiles of compile and mask times in microseconds.
 * A mask is filled before each token of each text that the grammar accepts, as a server would;
 * grammars share the vocabulary and what is cached in it, but nothing else, and nothing is warmed
 * up. One thread. Each token of the text must be in its mask. The genuine vocabulary of 129,280 is
 * build/tokenizer-deepseek-v3; without it the numbers say little.
 * SLOW=us names what took longer. CPU=1 counts the thread's own time, where others run beside it;
 * asking for it takes a microsecond. */
#include "base/json.h"
#include "grammar/ebnf.h"
#include "grammar/grammar.h"
#include "grammar/regex.h"
#include "grammar/schema.h"
#include "text/chat_json.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct times {
    double *us;
    size_t n, max;
};

static void add(struct times *t, double us)
{
    if (t->n == t->max) {
        t->max = t->max ? t->max * 2 : 1024;
        t->us = realloc(t->us, t->max * sizeof *t->us);
        if (!t->us)
            abort();
    }
    t->us[t->n++] = us;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const char *what, struct times *t)
{
    if (!t->n)
        return;
    qsort(t->us, t->n, sizeof *t->us, by_value);
    double sum = 0;
    for (size_t i = 0; i < t->n; i++)
        sum += t->us[i];
    static const double share[] = {0.5, 0.9, 0.99, 0.999};
    printf("%-16s %8zu  mean %9.1f ", what, t->n, sum / (double)t->n);
    for (size_t i = 0; i < 4; i++)
        printf(" p%-4g %9.1f", share[i] * 100, t->us[(size_t)(share[i] * (double)(t->n - 1))]);
    printf("  max %9.1f us\n", t->us[t->n - 1]);
    free(t->us);
}

static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

struct bench {
    struct tokenizer *tok;
    struct grammar_vocab *vocab;
    uint32_t *mask;
    struct times compile, fill;
    size_t wrong, refused;
    const char *id; /* of the row */
};

static const char *token_bytes(const void *arg, uint32_t id, size_t *n)
{
    const struct tokenizer *tok = arg;
    if (tokenizer_is_added(tok, id)) {
        *n = 0;
        return "";
    }
    return tokenizer_bytes(tok, id, n);
}

/* One text, token by token. */
static void run_text(struct bench *b, struct grammar *g, const char *text)
{
    struct grammar_matcher *m;
    struct token_vec ids = {0};
    struct text_part part = {.text = text, .bytes = strlen(text)};
    struct err e;
    if (grammar_matcher_open(&m, g, &e) != ERR_OK ||
        tokenizer_encode(b->tok, &part, 1, &ids, &e) != ERR_OK)
        abort();
    for (size_t i = 0; i < ids.n; i++) {
        double from = now_us();
        grammar_matcher_mask(m, b->mask);
        double us = now_us() - from;
        add(&b->fill, us);
        if (getenv("SLOW") && us > atof(getenv("SLOW"))) {
            printf("slow %.0f us before token %zu of %s '%.300s'\n", us, i, b->id, text);
        }
        size_t n, taken;
        const char *p = tokenizer_bytes(b->tok, ids.id[i], &n);
        bool in = b->mask[ids.id[i] / 32] >> ids.id[i] % 32 & 1;
        bool ok = grammar_matcher_accept(m, p, n, &taken);
        if (in != ok) {
            fprintf(stderr, "mask and bytes disagree at token %zu (%.*s) of %s\n", i, (int)n, p,
                    text);
            abort();
        }
        if (!ok) {
            b->wrong++;
            break;
        }
    }
    token_vec_free(&ids);
    grammar_matcher_close(m);
}

static void report(struct bench *b, const char *what)
{
    printf("%s: %zu refused, %zu texts refused on their way\n", what, b->refused, b->wrong);
    print("  compile", &b->compile);
    print("  mask", &b->fill);
    b->compile = b->fill = (struct times){0};
    b->wrong = b->refused = 0;
}

enum source { PATTERN, STRING, BOUNDED_STRING, NOTATION, SCHEMA };

/* The pattern searched in a JSON string, with bounds of its length or without. */
static enum err_code string_node(gb_node *out, struct grammar_builder *b, const char *pattern,
                                 unsigned flags, bool bounded, struct err *e)
{
    gb_node x;
    if (grammar_regex_search(&x, b, pattern, strlen(pattern), flags | REGEX_JSON, e) != ERR_OK)
        return e->code;
    if (bounded) {
        gb_node any;
        if (grammar_regex(&any, b, "[^]{1,100}", 10, REGEX_JSON, e) != ERR_OK)
            return e->code;
        x = gb_and(b, x, any);
    }
    gb_node quote = gb_bytes(b, "\"", 1);
    *out = gb_seq(b, (gb_node[]){quote, x, quote}, 3);
    return gb_error(b, e);
}

/* One row: a grammar and the texts of `key`. */
static void run_row(struct bench *b, enum source source, const cJSON *row, const char *key)
{
    struct grammar_builder *gb;
    struct grammar *g;
    struct err e;
    gb_node x = GB_NEVER;
    const char *id = cJSON_GetStringValue(json_get(row, "id"));
    b->id = id ? id : "";
    double from = now_us();
    if (gb_open(&gb, &e) != ERR_OK)
        abort();
    const char *flags = cJSON_GetStringValue(json_get(row, "flags"));
    const char *text =
        cJSON_GetStringValue(json_get(row, source == NOTATION ? "grammar" : "regex"));
    unsigned u = flags && *flags == 'u' ? REGEX_UNICODE : 0;
    enum err_code code;
    if (source == SCHEMA)
        code = grammar_schema(&x, gb, json_get(row, "schema"), &e);
    else if (source == NOTATION)
        code = grammar_ebnf(&x, gb, text, strlen(text), &e);
    else if (source == PATTERN)
        code = grammar_regex(&x, gb, text, strlen(text), u, &e);
    else
        code = string_node(&x, gb, text, u, source == BOUNDED_STRING, &e);
    if (code == ERR_OK)
        code = grammar_compile(&g, b->vocab, gb, x, &e);
    gb_close(gb);
    double us = now_us() - from;
    if (getenv("SLOW") && us > atof(getenv("SLOW")))
        printf("slow compile %.0f us: %s\n", us, b->id);
    if (code != ERR_OK) {
        b->refused++;
        if (getenv("SLOW"))
            printf("refused %s: %s\n", b->id, e.msg);
        return;
    }
    add(&b->compile, us);
    const cJSON *one, *form = json_get(row, "valid_form");
    form = form ? form->child : NULL;
    cJSON_ArrayForEach(one, json_get(row, key))
    {
        bool other = form && strcmp(form->valuestring, "compact") != 0;
        form = form ? form->next : NULL;
        if (other) /* not spelled as it is generated */
            continue;
        if (source == SCHEMA || source == PATTERN || source == NOTATION) {
            run_text(b, g, one->valuestring);
            continue;
        }
        char *spelled = cJSON_PrintUnformatted(one);
        run_text(b, g, spelled);
        free(spelled);
    }
    grammar_close(g);
}

static void run_lines(struct bench *b, const char *what, FILE *f, enum source source,
                      const char *key)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    while ((n = getline(&line, &room, f)) > 0) {
        cJSON *row;
        struct err e;
        if (json_parse(&row, line, (size_t)n, JSON_MAX_DEPTH, &e) != ERR_OK)
            continue; /* a text with NUL, which our JSON reader refuses */
        if (chat_json_keep_numbers(row, line, (size_t)n, &e) != ERR_OK)
            abort();
        run_row(b, source, row, key);
        cJSON_Delete(row);
    }
    free(line);
    report(b, what);
}

static void run_file(struct bench *b, const char *what, const char *path, enum source source,
                     const char *key)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        printf("%s is not there\n", path);
        return;
    }
    run_lines(b, what, f, source, key);
    fclose(f);
}

/* The whole set where it is at hand, else the part of it that is kept here. */
static void run_schemas(struct bench *b)
{
    const char *dir = getenv("SCHEMA_SET");
    char path[400], command[420];
    snprintf(path, sizeof path, "%s/schemas.jsonl.xz", dir ? dir : "../shared/goldens/schemas");
    if (access(path, R_OK) != 0) {
        run_file(b, "287 schemas", "tests/fixtures/grammar/schemas.jsonl", SCHEMA, "valid");
        return;
    }
    snprintf(command, sizeof command, "xz -dc '%s'", path);
    FILE *f = popen(command, "r");
    if (!f)
        abort();
    run_lines(b, "622 schemas", f, SCHEMA, "valid");
    if (pclose(f) != 0)
        abort();
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "build/tokenizer-deepseek-v3";
    if (getenv("CPU"))
        clock_id = CLOCK_THREAD_CPUTIME_ID;
    if (argc < 2 && access("build/tokenizer-deepseek-v3/tokenizer.json", R_OK) != 0)
        dir = "tests/fixtures/tokenizer";
    struct bench b = {0};
    struct err e;
    if (tokenizer_open(&b.tok, dir, &e) != ERR_OK) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    double from = now_us();
    uint32_t n_ids = tokenizer_n_ids(b.tok) < 129280 ? 129280 : tokenizer_n_ids(b.tok);
    if (grammar_vocab_open(&b.vocab, n_ids, token_bytes, b.tok, &e) != ERR_OK)
        return 1;
    printf("vocabulary of %u from %s: trie in %.1f ms\n", n_ids, dir, (now_us() - from) / 1e3);
    b.mask = calloc(n_ids / 32 + 1, sizeof *b.mask);
    const char *regex = "tests/fixtures/grammar/regex.jsonl";
    run_schemas(&b);
    run_file(&b, "EBNF", "tests/fixtures/grammar/grammars.jsonl", NOTATION, "accept");
    run_file(&b, "patterns", regex, PATTERN, "match");
    run_file(&b, "JSON strings of patterns", regex, STRING, "match");
    run_file(&b, "the same of 1 to 100 characters", regex, BOUNDED_STRING, "match");
    free(b.mask);
    grammar_vocab_close(b.vocab);
    tokenizer_close(b.tok);
    return 0;
}
