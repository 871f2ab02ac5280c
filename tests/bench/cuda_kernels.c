/* cuda_kernels.c - timed rows of the GPU back end at DeepSeek-V3.2's sizes: ops, decode steps,
 * prompt steps, against what the device could do at most.
 *
 *   cuda_kernels [load|ops|past|topk|decode|prefill|once ...] [--layers N] [--longest TOKENS]
 *                [--most ROWS] [--prompt ROWS] [--fast] [--tp8]
 *
 * ops: products and what reads the past; past: the latter alone, with prompt rows, too; topk: the
 * selection alone, on rows of scores of several kinds; once: one decode step, or with --prompt one
 * of so many rows of a prompt, for a profiler:
 *   ncu --profile-from-start off --clock-control none --metrics gpu__time_duration.sum ...
 *
 * The model has one GPU's share of eight: all 128 heads, 32 experts of which each token takes 8 (as
 * many pairs of token and expert as the GPU gets when all eight run as many tokens), random FP8
 * weights, filled KV pages in a scattered order. Layers are all sparse ones; what a step takes is
 * also given for 61 of them ("x61"), head and sampling once. --tp8: heads, widths and vocabulary
 * cut over eight instead, all experts.
 *
 * Products as deployed (PRECISION_FP8), or with --fast rows as two bf16.
 *
 * Floor: the larger of bytes at COPY_RATE (each weight, record, key and activation once) and
 * operations at BF16_RATE, two a multiply-add (the indexer's and products of e4m3 with e4m3 at
 * FP8_RATE; whole steps all at BF16_RATE); the rates were measured on an H200 with a copy and large
 * matrix products. A second bf16 of activations does not count. Times are of queued repetitions
 * over the layers' weights in turn, so caches hold nothing of use; median of 5, warm-up left out.
 */
#include "base/clock.h"
#include "base/rng.h"
#include "cuda/cuda_ops.h"
#include "cuda/topk.h"
#include "model/cost.h"
#include "model/forward.h"
#include "tests/kernel/device_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double COPY_RATE = 4.3e12, BF16_RATE = 788e12, FP8_RATE = 1500e12;
enum { RUNS = 5, MOST_ROWS = 2048, SEQS = 128, MOST_OUTS = 32768 /* of a layer's product */ };
static double rate_now = 788e12;         /* of the operations of the rows that come */
static enum lane lane_now = LANE_DECODE; /* steps of more rows than that takes: LANE_PREFILL */

struct bench {
    enum precision precision;
    bool tp8;
    struct model_config cfg;
    struct weights *w;
    struct ops *ops;
    struct forward *forward;
    uint32_t longest, context;
    uint32_t *page[SEQS];
    /* [rows, ...] activations of normal values */
    void *hidden, *low, *q, *kv, *key, *iq, *iw, *o, *out;
    int32_t *sel;
    uint32_t n; /* rows of the case */
    uint32_t token[MOST_ROWS], out_row[MOST_ROWS];
    struct step_seq seq[SEQS];
    struct sample_row sample[MOST_ROWS];
    struct sample_out answer[MOST_ROWS];
};

static void must(enum err_code code, const struct err *e)
{
    if (code) {
        fprintf(stderr, "%s\n", e->msg);
        exit(1);
    }
}

static struct model_config shape_of(uint32_t layers)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = 129280,
                             .hidden_size = 7168,
                             .n_layers = layers,
                             .dense_width = 18432,
                             .rms_eps = 1e-6f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = 128,
                             .q_lora_rank = 1536,
                             .kv_lora_rank = 512,
                             .nope_dim = 128,
                             .rope_dim = 64,
                             .v_dim = 128,
                             .softmax_scale = 0.1352f,
                             .n_experts = 32,
                             .n_active = 8,
                             .n_shared = 1,
                             .expert_width = 2048,
                             .n_group = 1,
                             .n_group_kept = 1,
                             .sigmoid_router = true,
                             .router_bias = true,
                             .norm_topk = true,
                             .routed_scale = 2.5f,
                             .has_indexer = true,
                             .index_heads = 64,
                             .index_dim = 128,
                             .index_topk = 2048,
                             .rope_gain = 1.0f,
                             .fp8_blocks = true,
                             .eos_id = {1},
                             .n_eos = 1,
                             .temperature = 1.0f,
                             .top_p = 1.0f};
    for (uint32_t i = 0; i < layers; i++)
        c.index_full[i] = true;
    for (uint32_t i = 0; i < 32; i++)
        c.rope_freq[i] = (float)(1.0 / (1.0 + (double)i * 30.0)); /* any will do for timing */
    return c;
}

static void *normal_rows(struct bench *b, size_t n)
{
    enum { POOL = 1 << 20 };
    static float *pool;
    struct rng r = {5};
    if (!pool) {
        pool = malloc(POOL * sizeof *pool);
        for (size_t i = 0; pool && i < POOL; i++)
            pool[i] = rng_normal(&r);
    }
    char *at = b->ops->alloc_act(b->ops, n);
    if (!at || !pool) {
        fprintf(stderr, "no memory for %zu activations\n", n);
        exit(1);
    }
    for (size_t i = 0; i < n; i += POOL - 7) /* out of step with any row */
        cuda_test_write(at + 4 * i, pool, 4 * (n - i < POOL - 7 ? n - i : POOL - 7));
    return at;
}

static void open_bench(struct bench *b, uint32_t layers, uint32_t longest)
{
    struct err e;
    struct weights *shapes;
    const struct model_config *c = &b->cfg;
    b->longest = longest;
    b->cfg = shape_of(layers);
    if (b->tp8) {
        b->cfg.vocab_size /= 8;
        b->cfg.dense_width /= 8;
        b->cfg.n_heads /= 8;
        b->cfg.expert_width /= 8;
        b->cfg.n_experts = 256;
    }
    b->cfg.max_position = longest + 64;
    uint32_t pages = longest / KV_PAGE_TOKENS + 1;
    struct ops_limits lim = {.precision = b->precision,
                             .latent = LATENT_FP8,
                             .index = INDEX_FP8,
                             .n_pages = pages * SEQS,
                             .max_rows = {MOST_ROWS, SEQS},
                             .max_context = longest + 64,
                             .max_out_rows = SEQS};
    uint64_t begun_us = clock_us();
    must(weights_dummy_shapes(&shapes, c, DT_F8_E4M3, 1, &e), &e);
    must(cuda_weights_dummy(&b->w, shapes, c, 0, NULL, NULL, &e), &e);
    must(cuda_ops_open(&b->ops, c, &lim, 0, &e), &e);
    must(forward_create(&b->forward, b->ops, b->w, &e), &e);
    struct ops_plan plan = cuda_ops_plan(c, &lim);
    printf("# %s; %u layers, weights %zu MiB, pages for %u x %u tokens %zu MiB, workspace %zu MiB; "
           "ready in %.1f s\n",
           b->ops->name, layers, weights_bytes(c, DT_F8_E4M3) >> 20, SEQS, longest,
           plan.kv_bytes >> 20, plan.workspace_bytes >> 20, (double)(clock_us() - begun_us) * 1e-6);
    size_t rows = MOST_ROWS;
    b->hidden = normal_rows(b, rows * c->hidden_size);
    b->low = normal_rows(b, rows * c->q_lora_rank);
    b->q = normal_rows(b, rows * c->n_heads * model_qk_dim(c));
    b->kv = normal_rows(b, rows * (c->kv_lora_rank + c->rope_dim));
    b->key = normal_rows(b, rows * c->index_dim);
    b->iq = normal_rows(b, rows * c->index_heads * c->index_dim);
    b->iw = normal_rows(b, rows * c->index_heads);
    b->o = normal_rows(b, rows * c->n_heads * c->v_dim);
    b->out = normal_rows(b, rows * MOST_OUTS);
    b->sel = b->ops->alloc_sel(b->ops, LANE_PREFILL);
    for (uint32_t s = 0; s < SEQS; s++) {
        b->page[s] = malloc(pages * sizeof **b->page);
        for (uint32_t i = 0; b->page[s] && i < pages; i++)
            b->page[s][i] = i * SEQS + (s * 37 + i * 11) % SEQS;
    }
}

/* Fills the slots [0, n_tokens) of a sequence in all layers. */
static void fill_sequence(struct bench *b, uint32_t s, uint32_t n_tokens)
{
    struct ops *o = b->ops;
    struct err e;
    for (uint32_t at = 0; at < n_tokens; at += MOST_ROWS) {
        uint32_t n = n_tokens - at < MOST_ROWS ? n_tokens - at : (uint32_t)MOST_ROWS;
        struct step_seq q = {.n_rows = n, .pos0 = at, .page = b->page[s], .top_k = 2048};
        struct step st = {.n_rows = n, .n_seqs = 1, .token = b->token, .seq = &q};
        o->begin(o, LANE_PREFILL, &st);
        for (uint32_t i = 0; i < b->cfg.n_layers; i++) {
            const struct layer_weights *w = &b->w->layer[i];
            o->kv_store(o, LANE_PREFILL, i, b->kv, w->kv_a_norm);
            o->index_store(o, LANE_PREFILL, i, b->key, w->index_norm, w->index_norm_bias);
        }
        must(o->finish(o, LANE_PREFILL, &e), &e);
    }
}

/* n sequences of one row each behind `context` tokens. */
static struct step decode_step(struct bench *b, uint32_t n, uint32_t context)
{
    static struct sample_params greedy = {.repetition_penalty = 1.0f, .top_p = 1.0f};
    b->n = n;
    b->context = context;
    for (uint32_t i = 0; i < n; i++) {
        b->token[i] = (i * 977 + 11) % b->cfg.vocab_size;
        b->out_row[i] = i;
        b->seq[i] = (struct step_seq){
            .row0 = i, .n_rows = 1, .pos0 = context - 1, .page = b->page[i], .top_k = 2048};
        b->sample[i] = (struct sample_row){.p = &greedy, .position = context};
    }
    return (struct step){.n_rows = n,
                         .n_seqs = n,
                         .token = b->token,
                         .seq = b->seq,
                         .n_out = n,
                         .out_row = b->out_row,
                         .sample = b->sample,
                         .out = b->answer};
}

typedef void run(struct bench *b, uint32_t layer);

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, c = *(const double *)y;
    return (a > c) - (a < c);
}

static double time_once(struct bench *b, const struct step *s, run *f, uint32_t n)
{
    struct err e;
    b->ops->begin(b->ops, lane_now, s);
    uint64_t begun_us = clock_us();
    for (uint32_t i = 0; i < n; i++)
        f(b, i % b->cfg.n_layers);
    must(b->ops->finish(b->ops, lane_now, &e), &e);
    return (double)(clock_us() - begun_us) / n;
}

static double time_op(struct bench *b, const struct step *s, run *f, double *spread)
{
    double us[RUNS], first;
    time_once(b, s, f, 2);
    first = time_once(b, s, f, 4);
    uint32_t n = first > 5000 ? 4 : first < 50 ? 400 : (uint32_t)(20000 / first);
    for (int i = 0; i < RUNS; i++)
        us[i] = time_once(b, s, f, n);
    qsort(us, RUNS, sizeof *us, by_value);
    *spread = (us[RUNS - 1] - us[0]) / us[RUNS / 2] * 100;
    return us[RUNS / 2];
}

static void op_row(struct bench *b, const struct step *s, const char *name, run *f, double bytes,
                   double flops)
{
    double spread, us = time_op(b, s, f, &spread);
    double read = bytes / COPY_RATE, compute = flops / rate_now;
    double floor_us = 1e6 * (read > compute ? read : compute);
    printf("%-28s %5u %7u %10.1f %5.1f %8.0f %8.1f %9.1f %8.2f\n", name, b->n, b->context, us,
           spread, bytes / us * 1e-3, flops / us * 1e-6, floor_us, us / floor_us);
    fflush(stdout);
}

/* ---- products ---- */

#define PRODUCT(name, matrix, x)                                                                   \
    static void run_##name(struct bench *b, uint32_t layer)                                        \
    {                                                                                              \
        b->ops->linear(b->ops, lane_now, &b->w->layer[layer].matrix, (x), b->n, b->out, false);    \
    }
PRODUCT(q_a, q_a, b->hidden)
PRODUCT(q_b, q_b, b->low)
PRODUCT(kv_a, kv_a, b->hidden)
PRODUCT(o, o, b->o)
PRODUCT(index_q, index_q, b->low)
PRODUCT(index_k, index_k, b->hidden)
PRODUCT(index_w, index_w, b->hidden)
PRODUCT(gate, shared.gate, b->hidden)
static void run_norm(struct bench *b, uint32_t layer)
{
    b->ops->rms_norm(b->ops, lane_now, b->hidden, b->w->layer[layer].input_norm, 1e-6f, b->n,
                     b->cfg.hidden_size, b->out);
}
static void run_head(struct bench *b, uint32_t layer)
{
    (void)layer;
    (void)b->ops->logits(b->ops, lane_now, b->hidden, b->w->final_norm, &b->w->head, 0, b->n);
}
static void run_moe(struct bench *b, uint32_t layer)
{
    b->ops->moe(b->ops, lane_now, layer, &b->w->layer[layer], b->hidden, b->n, b->out, true);
}

static double matrix_bytes(const struct matrix *m)
{
    return (double)m->n_out * m->n_in * (double)dtype_bytes(m->dtype);
}

static void product_row(struct bench *b, const struct step *s, const char *what, run *f,
                        const struct matrix *m)
{
    char name[64];
    snprintf(name, sizeof name, "%s %ux%u %s", what, m->n_out, m->n_in,
             m->dtype == DT_BF16 ? "bf16" : "fp8");
    rate_now = m->dtype != DT_BF16 && b->precision == PRECISION_FP8 ? FP8_RATE : BF16_RATE;
    op_row(b, s, name, f, matrix_bytes(m) + 4.0 * b->n * ((double)m->n_in + m->n_out),
           2.0 * b->n * m->n_out * m->n_in);
    rate_now = BF16_RATE;
}

static void product_rows(struct bench *b, uint32_t n)
{
    const struct layer_weights *w = &b->w->layer[0];
    const struct model_config *c = &b->cfg;
    struct step s = decode_step(b, n < SEQS ? n : SEQS, 1024);
    lane_now = n > SEQS ? LANE_PREFILL : LANE_DECODE;
    b->n = n; /* products take any number of rows, whatever the step has */
    b->context = 0;
    product_row(b, &s, "q_a", run_q_a, &w->q_a);
    product_row(b, &s, "q_b", run_q_b, &w->q_b);
    product_row(b, &s, "kv_a", run_kv_a, &w->kv_a);
    product_row(b, &s, "o", run_o, &w->o);
    product_row(b, &s, "index_q", run_index_q, &w->index_q);
    product_row(b, &s, "index_k", run_index_k, &w->index_k);
    product_row(b, &s, "index_w", run_index_w, &w->index_w);
    product_row(b, &s, "shared gate", run_gate, &w->shared.gate);
    op_row(b, &s, "rms_norm", run_norm, 8.0 * n * c->hidden_size, 0);
    if (n <= SEQS)
        product_row(b, &s, "head", run_head, &b->w->head);
    double expert = 3.0 * c->expert_width * c->hidden_size, hit = 1;
    for (uint32_t i = 0; i < n; i++)
        hit *= 1.0 - (double)c->n_active / c->n_experts;
    rate_now = b->precision == PRECISION_FP8 ? FP8_RATE : BF16_RATE;
    op_row(b, &s, "moe 32x2048 +1", run_moe,
           expert * (c->n_experts * (1 - hit) + 1) + 2.0 * c->n_experts * c->hidden_size +
               8.0 * n * c->hidden_size,
           2.0 * n * expert * (c->n_active + 1));
    rate_now = BF16_RATE;
    lane_now = LANE_DECODE;
}

/* ---- the past ---- */

static void run_select(struct bench *b, uint32_t layer)
{
    b->ops->index_select(b->ops, lane_now, layer, b->iq, b->iw, b->sel);
}
static void run_attend(struct bench *b, uint32_t layer)
{
    b->ops->attend(b->ops, lane_now, layer, &b->w->layer[layer].kv_b, b->q, b->sel, b->o);
}
static void run_stores(struct bench *b, uint32_t layer)
{
    b->ops->kv_store(b->ops, lane_now, layer, b->kv, b->w->layer[layer].kv_a_norm);
    b->ops->index_store(b->ops, lane_now, layer, b->key, b->w->layer[layer].index_norm,
                        b->w->layer[layer].index_norm_bias);
}

static void past_rows(struct bench *b, uint32_t n, uint32_t context)
{
    const struct model_config *c = &b->cfg;
    struct step s = decode_step(b, n, context);
    double seen = context < c->index_topk ? context : c->index_topk;
    double keys = (double)n * context, pairs = (double)n * seen * c->n_heads;
    op_row(b, &s, "kv_store + index_store", run_stores, n * (656.0 + 132 + 4 * 704), 0);
    if (context > c->index_topk)
        op_row(b, &s, "index_select", run_select, keys * 132 + 4.0 * n * 8192,
               2.0 * keys * c->index_heads * c->index_dim * BF16_RATE / FP8_RATE);
    op_row(b, &s, "attend", run_attend,
           n * seen * 656.0 + matrix_bytes(&b->w->layer[0].kv_b) + 4.0 * n * 128 * (192 + 128),
           2.0 * pairs * (2 * c->kv_lora_rank + c->rope_dim) +
               2.0 * n * c->n_heads * c->kv_lora_rank * (double)(c->nope_dim + c->v_dim));
}

/* A prompt's last n rows of `context` tokens. */
static void past_prompt_rows(struct bench *b, uint32_t n, uint32_t context)
{
    const struct model_config *c = &b->cfg;
    struct step s = decode_step(b, 1, context);
    b->seq[0].pos0 = context - n;
    b->seq[0].n_rows = n;
    b->n = n;
    s.n_rows = n;
    s.n_out = 0;
    lane_now = LANE_PREFILL;
    double keys = (double)n * (context - n / 2.0), pairs = (double)n * c->index_topk * c->n_heads;
    op_row(b, &s, "index_select, prompt", run_select, context * 132.0 + 4.0 * n * 8192,
           2.0 * keys * c->index_heads * c->index_dim * BF16_RATE / FP8_RATE);
    op_row(b, &s, "attend, prompt", run_attend, context * 656.0 + 4.0 * n * 128 * (192 + 128),
           2.0 * pairs * (2 * c->kv_lora_rank + c->rope_dim) +
               2.0 * n * c->n_heads * c->kv_lora_rank * (double)(c->nope_dim + c->v_dim));
    lane_now = LANE_DECODE;
}

/* ---- the selection alone ---- */

static float score_of(int kind, float x, uint32_t i)
{
    return kind == 0   ? x
           : kind == 1 ? 10.0f + 0.05f * x
           : kind == 2 ? (float)(int)(2.0f * x)
           : x > 2.2f  ? x
                       : (float)(i % 2) * -x * x;
}

static double time_topk(const float *score, size_t ld, uint32_t rows, uint32_t n, int32_t *out,
                        uint32_t times)
{
    struct err e;
    int32_t first;
    cuda_test_read(&first, out, sizeof first); /* waits for all before */
    uint64_t begun_us = clock_us();
    for (uint32_t i = 0; i < times; i++)
        must(cuda_topk_rows(score, ld, rows, n, 2048, out, &e), &e);
    cuda_test_read(&first, out, sizeof first);
    return (double)(clock_us() - begun_us) / times;
}

static void topk_rows(void)
{
    static const char *const KIND[] = {"normal", "narrow", "tied", "plateau"};
    static const uint32_t N[] = {8192, 32768, 65536, 131072},
                          ROWS[] = {1, 4, 16, 32, 64, 128, 4096};
    enum { DRAWN = 128 };
    struct rng r = {9};
    printf("\n%-10s %6s %7s %10s %5s %9s %8s\n", "top-2048", "rows", "scores", "us", "+-%",
           "floor_us", "ratio");
    for (int kind = 0; kind < 4; kind++)
        for (int k = 0; k < 4; k++) {
            uint32_t n = N[k];
            float *drawn = malloc((size_t)DRAWN * n * sizeof *drawn);
            float *score = cuda_test_alloc((size_t)4096 * n * 4);
            int32_t *out = cuda_test_alloc(4096u * 2048u * 4u);
            for (size_t i = 0; drawn && i < (size_t)DRAWN * n; i++)
                drawn[i] = score_of(kind, rng_normal(&r), (uint32_t)i);
            for (uint32_t i = 0; drawn && i < 4096; i += DRAWN)
                cuda_test_write(score + (size_t)i * n, drawn, (size_t)DRAWN * n * 4);
            for (int i = 0; drawn && i < 7; i++) {
                double us[RUNS], first = time_topk(score, n, ROWS[i], n, out, 3);
                for (int t = 0; t < RUNS; t++)
                    us[t] = time_topk(score, n, ROWS[i], n, out, first > 500 ? 4 : 100);
                qsort(us, RUNS, sizeof *us, by_value);
                double least = 4.0 * ROWS[i] * (n + 2048.0) / COPY_RATE * 1e6;
                printf("%-10s %6u %7u %10.1f %5.1f %9.2f %8.2f\n", KIND[kind], ROWS[i], n,
                       us[RUNS / 2], (us[RUNS - 1] - us[0]) / us[RUNS / 2] * 100, least,
                       us[RUNS / 2] / least);
                fflush(stdout);
            }
            free(drawn);
            cuda_test_free(score);
            cuda_test_free(out);
        }
}

/* ---- whole steps ---- */

static void step_row(struct bench *b, enum lane l, const char *name, const struct step *s,
                     struct step_shape shape)
{
    double us[RUNS + 2], spread, head_us = 0;
    struct err e;
    struct model_config c = b->cfg;
    shape.weight_bytes = 1;
    shape.latent = LATENT_FP8;
    shape.index = INDEX_FP8;
    struct step_cost all = model_step_cost(&b->cfg, &shape);
    if (l == lane_now)
        head_us = time_op(b, s, run_head, &spread);
    for (int i = -3; i < RUNS; i++) { /* the third of a shape is the first from a graph */
        uint64_t begun_us = clock_us();
        must(forward_step(b->forward, l, s, &e), &e);
        if (i >= 0)
            us[i] = (double)(clock_us() - begun_us);
    }
    for (uint32_t i = 0; i < s->n_out; i++)
        if (b->answer[i].bad_logits) {
            fprintf(stderr, "row %u of a step has unusable logits\n", i);
            exit(1);
        }
    qsort(us, RUNS, sizeof *us, by_value);
    double read = all.bytes / COPY_RATE, compute = all.flops / BF16_RATE, mid = us[RUNS / 2];
    double floor_us = 1e6 * (read > compute ? read : compute);
    double whole = head_us + (mid - head_us) * 61 / c.n_layers;
    printf("%-10s %5u %7u %10.1f %5.1f %9.1f %8.2f %10.1f %10.0f\n", name, s->n_rows, b->context,
           mid, (us[RUNS - 1] - us[0]) / mid * 100, floor_us, mid / floor_us, whole * 1e-3,
           s->n_rows / whole * 1e6);
    fflush(stdout);
}

static void decode_rows(struct bench *b, uint32_t most)
{
    static const uint32_t CONTEXT[] = {1024, 8192, 32768, 131072}, N[] = {1, 16, 64, 128};
    printf("\n%-10s %5s %7s %10s %5s %9s %8s %10s %10s\n", "step", "rows", "context", "us", "+-%",
           "floor_us", "ratio", "x61_ms", "tokens/s");
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) {
            if (CONTEXT[k] > b->longest || N[i] > most)
                continue;
            struct step s = decode_step(b, N[i], CONTEXT[k]);
            struct step_shape shape = {
                .n_seqs = N[i], .rows = 1, .context = CONTEXT[k] - 1, .n_out = N[i]};
            step_row(b, lane_now, "decode", &s, shape);
        }
}

/* n rows of a prompt behind `at` tokens. */
static struct step prompt_step(struct bench *b, uint32_t n, uint32_t at)
{
    struct step s = decode_step(b, 1, at + n);
    b->seq[0].pos0 = at;
    b->seq[0].n_rows = n;
    for (uint32_t i = 0; i < n; i++)
        b->token[i] = (i * 977 + 11) % b->cfg.vocab_size;
    s.n_rows = n;
    b->out_row[0] = n - 1;
    return s;
}

static void prefill_rows(struct bench *b)
{
    static const uint32_t CONTEXT[] = {0, 8192, 32768, 131072};
    for (int k = 0; k < 4; k++)
        for (uint32_t n = 512; n <= MOST_ROWS; n *= 4) {
            if (CONTEXT[k] > b->longest || (CONTEXT[k] && CONTEXT[k] < n))
                continue;
            uint32_t at = CONTEXT[k] ? CONTEXT[k] - n : 0;
            struct step s = prompt_step(b, n, at);
            struct step_shape shape = {.n_seqs = 1, .rows = n, .context = at, .n_out = 1};
            step_row(b, LANE_PREFILL, "prompt", &s, shape);
        }
}

/* Weights of one layer from host memory to the device; the upload prints its rate and the link's.
 */
static void load_row(void)
{
    struct model_config c = shape_of(1);
    struct weights *host, *device;
    struct err e;
    c.n_experts = 64;
    must(weights_dummy(&host, &c, DT_F8_E4M3, 1, &e), &e);
    for (int i = 0; i < 2; i++) { /* the second time all of it is in the machine's memory */
        must(cuda_weights_upload(&device, host, &c, 0, NULL, NULL, &e), &e);
        cuda_weights_close(device);
    }
    weights_close(host);
}

int main(int argc, char **argv)
{
    static struct bench b;
    b.precision = PRECISION_FP8;
    uint32_t layers = 4, longest = 8192, most = SEQS, prompt = 0;
    bool load = false, ops = false, past = false, topk = false, decode = false, prefill = false,
         once = false;
    for (int i = 1; i < argc; i++) {
        uint32_t *number = !strcmp(argv[i], "--layers")    ? &layers
                           : !strcmp(argv[i], "--longest") ? &longest
                           : !strcmp(argv[i], "--most")    ? &most
                           : !strcmp(argv[i], "--prompt")  ? &prompt
                                                           : NULL;
        if (number && i + 1 < argc) {
            *number = (uint32_t)strtoul(argv[++i], NULL, 10);
            continue;
        }
        if (!strcmp(argv[i], "--fast"))
            b.precision = PRECISION_FAST;
        b.tp8 = b.tp8 || !strcmp(argv[i], "--tp8");
        ops = ops || !strcmp(argv[i], "ops");
        load = load || !strcmp(argv[i], "load");
        past = past || !strcmp(argv[i], "past");
        topk = topk || !strcmp(argv[i], "topk");
        decode = decode || !strcmp(argv[i], "decode");
        prefill = prefill || !strcmp(argv[i], "prefill");
        once = once || !strcmp(argv[i], "once");
    }
    if (layers < 1 || layers > MODEL_MAX_LAYERS || longest < 2048 || longest % 64 || most > SEQS ||
        prompt > MOST_ROWS)
        return 2;
    if (!load && !ops && !past && !topk && !decode && !prefill && !once)
        ops = topk = decode = prefill = true;
    if (topk)
        topk_rows();
    if (load)
        load_row();
    if (!ops && !past && !decode && !prefill && !once)
        return 0;
    open_bench(&b, layers, longest);
    for (uint32_t s = 0; s < most; s++)
        fill_sequence(&b, s, longest);
    if (ops || past) {
        static const uint32_t N[] = {1, 16, 64, 128, 512, 2048};
        printf("%-28s %5s %7s %10s %5s %8s %8s %9s %8s\n", "op", "rows", "context", "us", "+-%",
               "GB/s", "TFLOP/s", "floor_us", "ratio");
        for (size_t i = 0; ops && i < sizeof N / sizeof *N; i++)
            product_rows(&b, N[i]);
        for (uint32_t context = 1024; context <= longest; context *= 8)
            for (int i = 0; i < 4 && N[i] <= most; i++)
                past_rows(&b, N[i], context);
        if (longest >= 131072)
            for (int i = 0; i < 4 && N[i] <= most; i++)
                past_rows(&b, N[i], 131072);
        for (uint32_t context = 8192; context <= longest; context *= 4)
            past_prompt_rows(&b, MOST_ROWS, context);
    }
    if (once) {
        struct step s = prompt ? prompt_step(&b, prompt, longest - prompt)
                               : decode_step(&b, most, longest);
        struct err e;
        cuda_test_profile(true);
        must(forward_step(b.forward, prompt ? LANE_PREFILL : LANE_DECODE, &s, &e), &e);
        cuda_test_profile(false);
    }
    if (decode)
        decode_rows(&b, most);
    if (prefill)
        prefill_rows(&b);
    forward_destroy(b.forward);
    b.ops->close(b.ops);
    cuda_weights_close(b.w);
    return 0;
}
