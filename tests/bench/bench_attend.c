/* bench_attend.c - time of the indexer, the selection and attention for one layer.
 *
 *   bench_attend [threads]     default 1
 *
 * A row: what, shape, median and spread (10th to 90th percentile) in microseconds, GB/s of the
 * bytes that must be read, and their share of the machine's read bandwidth as measured by the same
 * program. One layer's planes mostly fit the last-level cache, so a share may exceed 100 %: where
 * it is far below, arithmetic is the limit.
 */
#include "base/rng.h"
#include "cpu/backend.h"
#include "cpu/cpu_ops.h"
#include "cpu/dsa_loops.h"
#include "cpu/fp8.h"
#include "cpu/topk.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_RUNS = 400, MAX_ROWS = 512, CONTEXT = 65536 };
static double read_gbs;

static double now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

typedef void bench_fn(void *arg);

static double measure(bench_fn *fn, void *arg, double *p10, double *p90)
{
    static double t[MAX_RUNS];
    int n = 0;
    fn(arg);
    for (double start = now_us(); n < MAX_RUNS && (n < 15 || now_us() - start < 300e3); n++) {
        double t0 = now_us();
        fn(arg);
        t[n] = now_us() - t0;
    }
    qsort(t, (size_t)n, sizeof *t, by_value);
    *p10 = t[n / 10];
    *p90 = t[n * 9 / 10];
    return t[n / 2];
}

static void row(const char *what, const char *shape, bench_fn *fn, void *arg, double bytes)
{
    double p10, p90, us = measure(fn, arg, &p10, &p90), gbs = bytes / us * 1e-3;
    printf("%-22s %-34s %9.1f us  %8.1f..%-8.1f %7.2f GB/s %5.1f %%\n", what, shape, us, p10, p90,
           gbs, 100.0 * gbs / read_gbs);
    fflush(stdout);
}

/* ---- read bandwidth: one thread sums 256 MiB ---- */

struct stream {
    const uint64_t *x;
    size_t n;
    uint64_t sum;
};

static void read_all(void *arg)
{
    struct stream *s = arg;
    uint64_t a[8] = {0};
    for (size_t i = 0; i < s->n; i += 8)
        for (size_t k = 0; k < 8; k++)
            a[k] += s->x[i + k];
    for (size_t k = 0; k < 8; k++)
        s->sum += a[k];
}

static void measure_bandwidth(void)
{
    size_t bytes = 256u << 20;
    uint64_t *x = malloc(bytes);
    if (!x)
        exit(1);
    memset(x, 1, bytes);
    struct stream s = {x, bytes / 8, 0};
    double p10, p90, us = measure(read_all, &s, &p10, &p90);
    read_gbs = (double)bytes / us * 1e-3;
    printf("read bandwidth, one thread: %.1f GB/s (%.1f..%.1f)%s\n", read_gbs,
           (double)bytes / p90 * 1e-3, (double)bytes / p10 * 1e-3, s.sum ? "" : "!");
    free(x);
}

/* ---- a layer ---- */

struct layer {
    struct model_config c;
    struct cpu_backend *b;
    struct step st;
    struct step_seq seq;
    uint32_t page[CONTEXT / KV_PAGE_TOKENS], token[MAX_ROWS];
    float *iq, *iw, *q, *out;
    int32_t *sel;
    struct matrix kv_b;
    uint16_t *weights;
    float *score;
    int32_t *chosen;
    void *scratch;
    uint32_t n;
};

static float *randoms(size_t n)
{
    struct rng r = {n};
    float *x = malloc(4 * n);
    for (size_t i = 0; x && i < n; i++)
        x[i] = rng_normal(&r);
    return x;
}

static void layer_open(struct layer *y, const struct model_config *c, uint32_t context,
                       enum latent_form lf, uint32_t threads)
{
    struct ops_limits lim = {.precision = PRECISION_FAST,
                             .latent = lf,
                             .index = INDEX_FP8,
                             .n_pages = context / KV_PAGE_TOKENS,
                             .max_rows = {MAX_ROWS, 16},
                             .max_context = context,
                             .max_out_rows = 1,
                             .n_threads = threads};
    struct err e;
    struct ops *o;
    memset(y, 0, sizeof *y);
    y->c = *c;
    if (cpu_ops_open(&o, &y->c, &lim, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    y->b = cpu_of(o);
    struct rng r = {7};
    for (uint32_t i = 0; i < context / KV_PAGE_TOKENS; i++)
        y->page[i] = i;
    for (uint32_t i = context / KV_PAGE_TOKENS - 1; i; i--) {
        uint32_t k = rng_below(&r, i + 1), t = y->page[i];
        y->page[i] = y->page[k];
        y->page[k] = t;
    }
    y->iq = randoms((size_t)MAX_ROWS * c->index_heads * c->index_dim);
    y->iw = randoms((size_t)MAX_ROWS * c->index_heads);
    y->q = randoms((size_t)MAX_ROWS * c->n_heads * model_qk_dim(c));
    y->out = malloc(4 * (size_t)MAX_ROWS * c->n_heads * c->v_dim);
    y->sel = malloc(4 * (size_t)MAX_ROWS * c->index_topk);
    size_t n = (size_t)c->n_heads * (c->nope_dim + c->v_dim) * c->kv_lora_rank;
    y->weights = malloc(2 * n);
    for (size_t i = 0; i < n; i++)
        y->weights[i] = bf16_round(0.05f * rng_normal(&r));
    y->kv_b = (struct matrix){y->weights,      DT_BF16, NULL, c->n_heads * (c->nope_dim + c->v_dim),
                              c->kv_lora_rank, 0};
    y->score = malloc(4 * (size_t)context);
    y->chosen = malloc(4 * (size_t)context);
    y->scratch = aligned_alloc(64, (topk_scratch_bytes(context) + 63) / 64 * 64);
    y->st = (struct step){.n_seqs = 1, .token = y->token, .seq = &y->seq};
    /* fill the cache */
    float *gain = malloc(4 * 4096),
          *kv = randoms((size_t)MAX_ROWS * (c->kv_lora_rank + c->rope_dim));
    float *key = randoms((size_t)MAX_ROWS * c->index_dim);
    for (int i = 0; i < 4096; i++)
        gain[i] = 1.0f;
    for (uint32_t pos = 0; pos < context; pos += MAX_ROWS) {
        for (uint32_t i = 0; i < MAX_ROWS * c->index_dim; i++)
            key[i] = rng_normal(&r);
        y->seq = (struct step_seq){.n_rows = MAX_ROWS, .pos0 = pos, .page = y->page};
        y->st.n_rows = MAX_ROWS;
        o->begin(o, LANE_PREFILL, &y->st);
        o->kv_store(o, LANE_PREFILL, 0, kv, gain);
        o->index_store(o, LANE_PREFILL, 0, key, gain, gain);
        if (o->finish(o, LANE_PREFILL, &e))
            exit(1);
    }
    free(gain);
    free(kv);
    free(key);
}

static void layer_close(struct layer *y)
{
    y->b->ops.close(&y->b->ops);
    free(y->iq);
    free(y->iw);
    free(y->q);
    free(y->out);
    free(y->sel);
    free(y->weights);
    free(y->score);
    free(y->chosen);
    free(y->scratch);
}

static enum lane set_step(struct layer *y, uint32_t pos0, uint32_t n_rows, uint32_t top_k,
                          uint32_t expand_below)
{
    enum lane l = n_rows == 1 ? LANE_DECODE : LANE_PREFILL;
    y->seq = (struct step_seq){.n_rows = n_rows,
                               .pos0 = pos0,
                               .page = y->page,
                               .top_k = top_k,
                               .expand_below = expand_below};
    y->st.n_rows = n_rows;
    y->b->ops.begin(&y->b->ops, l, &y->st);
    return l;
}

static enum lane lane_of(const struct layer *y)
{
    return y->st.n_rows == 1 ? LANE_DECODE : LANE_PREFILL;
}

static void run_select(void *arg)
{
    struct layer *y = arg;
    y->b->ops.index_select(&y->b->ops, lane_of(y), 0, y->iq, y->iw, y->sel);
}

static void run_attend(void *arg)
{
    struct layer *y = arg;
    y->b->ops.attend(&y->b->ops, lane_of(y), 0, &y->kv_b, y->q, y->sel, y->out);
}

static void run_topk(void *arg)
{
    struct layer *y = arg;
    topk_select(dsa_loops_for(y->b->k->name), y->score, y->n, y->c.index_topk, y->chosen,
                y->scratch);
}

static void run_scores(void *arg)
{
    struct layer *y = arg;
    const struct dsa_loops *loops = dsa_loops_for(y->b->k->name);
    static _Alignas(64) float tile[256 * TILE], query[64 * 256];
    loops->index_query(y->iq, y->c.index_heads, y->c.index_dim, query);
    for (uint32_t p = 0; p < y->n / TILE; p++) {
        const unsigned char *page = y->b->index[0] + y->page[p] * y->b->index_page_bytes;
        loops->index_page(query, y->iw, y->c.index_heads, y->c.index_dim, page, TILE,
                          (const float *)(const void *)(page + TILE * y->c.index_dim), tile,
                          y->score + p * TILE);
    }
}

static void index_rows(const struct model_config *c, const char *name, uint32_t threads)
{
    static struct layer y;
    static const uint32_t keys[] = {1024, 16384, 65536};
    char shape[64];
    layer_open(&y, c, CONTEXT, LATENT_BF16, threads);
    for (int i = 0; i < 3; i++) {
        y.n = keys[i];
        double bytes = (double)keys[i] * (c->index_dim + 4);
        snprintf(shape, sizeof shape, "%s %u keys", name, keys[i]);
        row("index scores", shape, run_scores, &y, bytes);
        snprintf(shape, sizeof shape, "%s top %u of %u", name, c->index_topk, keys[i]);
        if (c->index_topk < keys[i])
            row("top-k", shape, run_topk, &y, 4.0 * keys[i]);
        enum lane l = set_step(&y, keys[i] - 1, 1, c->index_topk, 0);
        snprintf(shape, sizeof shape, "%s 1 row, %u keys, %u threads", name, keys[i], threads);
        if (c->index_topk < keys[i])
            row("index_select", shape, run_select, &y, bytes);
        struct err e;
        if (y.b->ops.finish(&y.b->ops, l, &e))
            exit(1);
    }
    enum lane l = set_step(&y, 16384 - 128, 128, c->index_topk, 0);
    snprintf(shape, sizeof shape, "%s 128 rows, 16384 keys", name);
    row("index_select", shape, run_select, &y, 16.0 * 16384 * (c->index_dim + 4));
    struct err e;
    if (y.b->ops.finish(&y.b->ops, l, &e))
        exit(1);
    layer_close(&y);
}

static void attend_rows(const struct model_config *base, const char *name, enum latent_form lf,
                        uint32_t threads)
{
    static struct layer y;
    static const uint32_t top_k[] = {64, 256, 2048};
    static const char *const form[] = {"f32", "bf16", "fp8"};
    char shape[64];
    struct err e;
    for (int i = 0; i < 3; i++) {
        struct model_config c = *base;
        c.index_topk = top_k[i];
        layer_open(&y, &c, 16384, lf, threads);
        for (uint32_t r = 0; r < 64; r++)
            for (uint32_t k = 0; k < top_k[i]; k++)
                y.sel[(size_t)r * top_k[i] + k] = (int32_t)(k * (16000 / top_k[i]) + r % 7);
        double bytes = (double)top_k[i] * (double)y.b->latent_page_bytes / KV_PAGE_TOKENS +
                       2.0 * y.kv_b.n_out * y.kv_b.n_in;
        for (uint32_t rows = 1; rows <= 64; rows *= 64) {
            enum lane l = set_step(&y, 16384 - rows, rows, top_k[i], 0);
            snprintf(shape, sizeof shape, "%s %s top-k %u, %u rows", name, form[lf], top_k[i],
                     rows);
            row("attend absorbed", shape, run_attend, &y, bytes * rows);
            if (y.b->ops.finish(&y.b->ops, l, &e))
                exit(1);
        }
        if (i == 2) {
            enum lane l = set_step(&y, 16383, 1, TOP_K_DENSE, 0);
            snprintf(shape, sizeof shape, "%s %s dense 16384, 1 row", name, form[lf]);
            row("attend absorbed", shape, run_attend, &y,
                16384.0 * (double)y.b->latent_page_bytes / KV_PAGE_TOKENS);
            if (y.b->ops.finish(&y.b->ops, l, &e))
                exit(1);
            l = set_step(&y, 0, 512, TOP_K_DENSE, 2048);
            snprintf(shape, sizeof shape, "%s %s 512 rows at 0", name, form[lf]);
            row("attend expanded", shape, run_attend, &y,
                512.0 * (double)y.b->latent_page_bytes / KV_PAGE_TOKENS);
            if (y.b->ops.finish(&y.b->ops, l, &e))
                exit(1);
        }
        layer_close(&y);
    }
}

int main(int argc, char **argv)
{
    uint32_t threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    struct model_config small = {.family = MODEL_DEEPSEEK_V32,
                                 .vocab_size = 256,
                                 .hidden_size = 384,
                                 .n_layers = 1,
                                 .n_dense_layers = 1,
                                 .dense_width = 64,
                                 .rms_eps = 1e-6f,
                                 .low_rank_eps = 1e-6f,
                                 .n_heads = 8,
                                 .q_lora_rank = 192,
                                 .kv_lora_rank = 64,
                                 .nope_dim = 32,
                                 .rope_dim = 32,
                                 .v_dim = 32,
                                 .softmax_scale = 0.125f,
                                 .n_group = 1,
                                 .n_group_kept = 1,
                                 .has_indexer = true,
                                 .index_heads = 4,
                                 .index_dim = 64,
                                 .index_topk = 64,
                                 .max_position = CONTEXT,
                                 .rope_gain = 1.0f,
                                 .n_eos = 1};
    small.index_full[0] = true;
    struct model_config large = small;
    large.n_heads = 16;
    large.kv_lora_rank = 512;
    large.nope_dim = large.v_dim = large.index_dim = 128;
    large.rope_dim = 64;
    large.index_heads = 64;
    large.index_topk = 2048;
    if (threads < 1)
        return 2;
    measure_bandwidth();
    index_rows(&small, "4 x 64", threads);
    index_rows(&large, "64 x 128", threads);
    attend_rows(&small, "8 x 64", LATENT_BF16, threads);
    attend_rows(&small, "8 x 64", LATENT_FP8, threads);
    attend_rows(&large, "16 x 512", LATENT_BF16, threads);
    attend_rows(&large, "16 x 512", LATENT_FP8, threads);
    return 0;
}
