/* bench_engine.c - the whole engine, timed: prefill and decode by streams and context, sparse and
 * dense.
 *
 *   bench_engine [model directory [repeats]]
 *
 * Without a directory it takes tests/fixtures/bench-24m (a shape that other engines were measured
 * on: 23.8 M parameters, six layers), with random weights. A row: what, streams, context, top-k,
 * then median, least and most tokens/s over the repeats. Prefill at a context of C: the first C
 * tokens come from the prefix cache, 512 more are run. Decode: tokens of all streams together, from
 * the moment that each has its first to the first end.
 */
#include "base/clock.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_REPEATS = 16, PREFILL = 512, DECODE = 96, MAX_STREAMS = 16 };

static uint32_t prompt[65536];

static void die(const struct err *e)
{
    fprintf(stderr, "bench_engine: %s\n", e->msg);
    exit(1);
}

static struct req_id submit(struct engine *en, uint32_t n_prompt, uint32_t max_tokens,
                            uint32_t top_k)
{
    struct gen_request *r = gen_request_new();
    struct req_id id;
    struct err e = {0};
    if (!r)
        exit(1);
    r->prompt = memcpy(arena_alloc(&r->arena, n_prompt * sizeof *prompt), prompt,
                       n_prompt * sizeof *prompt);
    r->n_prompt = n_prompt;
    r->max_tokens = max_tokens;
    r->ignore_eos = true;
    r->top_k_dsa = top_k;
    r->sample.temperature = 0;
    if (engine_submit(en, r, &id, &e))
        die(&e);
    return id;
}

struct run {
    struct req_id id[MAX_STREAMS];
    bool started[MAX_STREAMS];
    uint32_t streams, n_started, n_ended;
    uint64_t begin_us, end_us, tokens; /* counted from when all have begun to the first end */
    struct gen_usage usage;            /* of the last one that ended */
};

static void take(struct run *r, const struct gen_event *ev)
{
    if (ev->kind == GEN_ERROR)
        die(&ev->err);
    if (ev->kind == GEN_TOKENS || ev->kind == GEN_CHOICE) {
        if (r->begin_us && !r->end_us)
            r->tokens += ev->n_tokens;
        for (uint32_t i = 0; i < r->streams; i++) {
            if (!r->started[i] && req_id_equal(r->id[i], ev->id)) {
                r->started[i] = true;
                r->n_started++;
            }
        }
        if (r->n_started == r->streams && !r->begin_us)
            r->begin_us = clock_us();
        if (ev->kind == GEN_CHOICE && !r->end_us)
            r->end_us = clock_us();
    }
    if (ev->kind == GEN_DONE) {
        r->n_ended++;
        r->usage = ev->usage;
    }
}

static void run(struct engine *en, struct run *r, uint32_t n_prompt, uint32_t max_tokens,
                uint32_t top_k)
{
    for (uint32_t i = 0; i < r->streams; i++)
        r->id[i] = submit(en, n_prompt, max_tokens, top_k);
    while (r->n_ended < r->streams) {
        struct gen_event *ev = engine_take_events(en), *next;
        if (!ev)
            usleep(50);
        for (; ev; ev = next) {
            next = (struct gen_event *)ev->mail.next;
            take(r, ev);
            gen_event_free(ev);
        }
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const char *what, uint32_t streams, uint32_t context, const char *top_k,
                      double *rate, int n)
{
    qsort(rate, (size_t)n, sizeof *rate, by_value);
    printf("%-8s %7u %8u %7s %10.0f %10.0f %10.0f\n", what, streams, context, top_k, rate[n / 2],
           rate[0], rate[n - 1]);
    fflush(stdout);
}

static void bench_prefill(struct engine *en, uint32_t context, uint32_t top_k, int repeats)
{
    double rate[MAX_REPEATS];
    for (int i = 0; i < repeats; i++) {
        struct run warm = {.streams = 1}, r = {.streams = 1};
        prompt[0] = (uint32_t)i % 300 + (top_k ? 300 : 0); /* another prefix each time */
        if (context) {
            run(en, &warm, context + 1, 1, top_k);
        }
        prompt[context + 1] = (uint32_t)i; /* nothing beyond the context is cached */
        run(en, &r, context + PREFILL, 1, top_k);
        uint32_t run_tokens = r.usage.prompt_tokens - r.usage.cached_tokens;
        rate[i] = run_tokens * 1e6 / (double)r.usage.prefill_us;
    }
    print_row("prefill", 1, context, top_k ? "dense" : "model", rate, repeats);
}

static void bench_decode(struct engine *en, uint32_t streams, uint32_t context, uint32_t top_k,
                         int repeats)
{
    double rate[MAX_REPEATS];
    prompt[0] = top_k ? 301 : 1;
    for (int i = 0; i < repeats; i++) {
        struct run warm = {.streams = 1}, r = {.streams = streams};
        run(en, &warm, context ? context : 16, 1, top_k); /* so that all begin together */
        run(en, &r, context ? context : 16, DECODE, top_k);
        rate[i] = (double)r.tokens * 1e6 / (double)(r.end_us - r.begin_us);
    }
    print_row("decode", streams, context, top_k ? "dense" : "model", rate, repeats);
}

int main(int argc, char **argv)
{
    static const uint32_t contexts[] = {0, 1024, 4096, 8192, 16384};
    static const uint32_t streams[] = {1, 4, MAX_STREAMS};
    struct engine_options o;
    struct engine *en = NULL;
    struct err e = {0};
    engine_options_default(&o);
    o.model_dir = argc > 1 ? argv[1] : "tests/fixtures/bench-24m";
    o.load_dummy = argc < 2;
    int repeats = argc > 2 ? atoi(argv[2]) : 3;
    if (repeats < 1 || repeats > MAX_REPEATS)
        repeats = 3;
    uint64_t start = clock_us();
    if (engine_open(&en, &o, &e))
        die(&e);
    printf("start: %.0f ms to an open engine (%s)\n", (double)(clock_us() - start) / 1e3,
           engine_backend_name(en));
    for (uint32_t i = 0; i < sizeof prompt / sizeof *prompt; i++)
        prompt[i] = (i * 31 + 7) % 350;
    printf("%-8s %7s %8s %7s %10s %10s %10s\n", "what", "streams", "context", "top-k", "tokens/s",
           "least", "most");
    for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++) {
        if (contexts[c] + PREFILL + DECODE >= engine_get_plan(en)->max_context)
            continue;
        for (uint32_t dense = 0; dense < 2; dense++) {
            uint32_t top_k = dense ? TOP_K_DENSE : 0;
            bench_prefill(en, contexts[c], top_k, repeats);
            for (size_t k = 0; k < sizeof streams / sizeof *streams; k++)
                bench_decode(en, streams[k], contexts[c], top_k, repeats);
        }
    }
    engine_close(en);
    return 0;
}
