/* bench_tokenizer.c - how fast text becomes tokens, and tokens text.
 *
 *   bench_tokenizer [dir with tokenizer.json]
 *
 * A row per case: what, median and spread (smallest to largest) of the runs in ms, MB/s of text at
 * the median. The text is this repository's own: code, and the prose of its comments and fixtures.
 * The first run of a case warms caches and is left out. Without the genuine tokenizer it takes the
 * small one of tests/fixtures, whose numbers say little. */
#include "base/clock.h"
#include "text/detok.h"
#include "text/tokenizer.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RUNS = 15, SIZE = 4 << 20 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void row(const char *what, double *ms, size_t n, size_t bytes)
{
    qsort(ms, n, sizeof *ms, by_value);
    printf("%-26s %10.3f ms  %9.3f-%-9.3f", what, ms[n / 2], ms[0], ms[n - 1]);
    if (bytes)
        printf(" %8.1f MB/s", (double)bytes / 1e3 / ms[n / 2]);
    putchar('\n');
}

static size_t add_file(const char *path, char *text, size_t n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return n;
    n += fread(text + n, 1, (size_t)SIZE - n, f);
    fclose(f);
    return n;
}

/* The sources of a folder one after the other, again and again until SIZE bytes are there. */
static bool fill(const char *dir, const char *suffix, char *text)
{
    size_t n = 0, before = 1;
    while (n < SIZE && n != before) {
        before = n;
        DIR *d = opendir(dir);
        if (!d)
            return false;
        for (struct dirent *x; (x = readdir(d)) && n < SIZE;) {
            char path[512];
            size_t len = strlen(x->d_name), k = strlen(suffix);
            if (len > k && strcmp(x->d_name + len - k, suffix) == 0 &&
                snprintf(path, sizeof path, "%s/%s", dir, x->d_name) < (int)sizeof path)
                n = add_file(path, text, n);
        }
        closedir(d);
    }
    return n == SIZE;
}

static void repeat(const char *unit, char *text)
{
    size_t k = strlen(unit);
    for (size_t i = 0; i < SIZE; i++)
        text[i] = unit[i % k];
}

static double encode_ms(const struct tokenizer *tok, const char *text, size_t bytes,
                        struct token_vec *v)
{
    struct err e = {0};
    struct text_part part = {text, bytes, true};
    v->n = 0;
    uint64_t t0 = clock_us();
    if (tokenizer_encode(tok, &part, 1, v, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    return (double)(clock_us() - t0) / 1e3;
}

static void encode_row(const struct tokenizer *tok, const char *what, const char *text,
                       size_t bytes)
{
    struct token_vec v = {0};
    double ms[RUNS];
    encode_ms(tok, text, bytes, &v);
    for (int i = 0; i < RUNS; i++)
        ms[i] = encode_ms(tok, text, bytes, &v);
    row(what, ms, RUNS, bytes);
    token_vec_free(&v);
}

static void detok_row(const struct tokenizer *tok, const char *what, const char *text,
                      uint32_t n_stop)
{
    static const char *const stop_text[] = {"\n\n\n\n@@", "###", "<|stop|>", "zzzz"};
    static const size_t stop_bytes[] = {6, 3, 8, 4};
    struct stop_list stop = {stop_text, stop_bytes, n_stop, false};
    struct token_vec v = {0};
    struct err e = {0};
    double ms[RUNS];
    encode_ms(tok, text, SIZE / 4, &v);
    for (int i = -1; i < RUNS; i++) {
        struct detok *d = NULL;
        struct arena memory;
        const char *out = NULL;
        size_t bytes = 0;
        uint32_t which = 0;
        bool stopped = false;
        uint64_t t0 = clock_us();
        arena_init(&memory, 0);
        if (detok_create(&d, &memory, tok, &stop, false, &e))
            exit(1);
        for (size_t k = 0; k < v.n; k++)
            detok_put(d, v.id[k], false, &out, &bytes, &stopped, &which);
        arena_free(&memory);
        if (i >= 0)
            ms[i] = (double)(clock_us() - t0) / 1e3;
    }
    row(what, ms, RUNS, SIZE / 4);
    token_vec_free(&v);
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "build/tokenizer-deepseek-v3";
    struct tokenizer *tok = NULL;
    struct err e = {0};
    double ms[RUNS];
    if (argc < 2 && access("build/tokenizer-deepseek-v3/tokenizer.json", R_OK) != 0)
        dir = "tests/fixtures/v32-bf16";
    char *text = malloc(SIZE);
    if (!text)
        return 1;
    printf("tokenizer %s, %d MiB of text, %d runs\n", dir, SIZE >> 20, RUNS);
    for (int i = -1; i < RUNS; i++) {
        tokenizer_close(tok);
        uint64_t t0 = clock_us();
        if (tokenizer_open(&tok, dir, &e)) {
            fprintf(stderr, "%s\n", e.msg);
            return 1;
        }
        if (i >= 0)
            ms[i] = (double)(clock_us() - t0) / 1e3;
    }
    row("load", ms, RUNS, 0);
    if (fill("engine/text", ".c", text)) {
        encode_row(tok, "encode code", text, SIZE);
        encode_row(tok, "encode code, 2 KiB", text, 2048);
        detok_row(tok, "detok code", text, 0);
        detok_row(tok, "detok code, 4 stops", text, 4);
    }
    if (fill("docs", ".md", text) || fill(".", ".md", text))
        encode_row(tok, "encode prose", text, SIZE);
    repeat(
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
        "age of foolishness, it was the epoch of belief, and nobody had asked the lexicographers. ",
        text);
    encode_row(tok, "encode one sentence", text, SIZE);
    repeat("你好，世界。今天的天气很好，我们去公园散步吧。", text);
    encode_row(tok, "encode Chinese", text, SIZE);
    repeat("a", text);
    encode_row(tok, "encode one letter", text, SIZE);
    tokenizer_close(tok);
    free(text);
    return 0;
}
