/* test_cuda_ops.c - each op of the GPU back end against the CPU's, in the exact precision.
 *
 * Goal:   the same function: KV bytes equal but for what one unit of rounding may turn over, the
 * same selections, attention and feed-forward within sums of fp32 in another order, the same
 *         tokens; and a row's bits the same alone and among others, in one chunk and in many.
 * Method: random inputs at odd sizes, the CPU back end beside the GPU's, outputs poisoned with NaN.
 */
#include "cpu/cpu_ops.h"
#include "cuda/cuda_ops.h"
#include "test.h"
#include "tests/kernel/device_memory.h"

#include <math.h>

enum { ROWS = 70, CONTEXT = 256, PAGES = 8, VOCAB = 1500 };

static struct model_config config(void)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = VOCAB,
                             .hidden_size = 72,
                             .n_layers = 1,
                             .n_dense_layers = 1,
                             .dense_width = 40,
                             .rms_eps = 1e-6f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = 5,
                             .q_lora_rank = 32,
                             .kv_lora_rank = 136,
                             .nope_dim = 24,
                             .rope_dim = 16,
                             .v_dim = 20,
                             .softmax_scale = 0.2f,
                             .n_group = 1,
                             .n_group_kept = 1,
                             .has_indexer = true,
                             .index_heads = 3,
                             .index_dim = 32,
                             .index_topk = 40,
                             .max_position = CONTEXT,
                             .rope_gain = 1.0f,
                             .eos_id = {1},
                             .n_eos = 1,
                             .temperature = 1.0f,
                             .top_p = 1.0f};
    c.index_full[0] = true;
    for (uint32_t i = 0; i < 8; i++)
        c.rope_freq[i] = powf(10000.0f, -(float)i / 8.0f);
    return c;
}

struct pair { /* the two back ends */
    struct model_config c;
    struct ops *cpu, *gpu;
    struct rng r;
};

static void pair_open(struct pair *p, enum latent_form lf, enum index_form xf)
{
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    struct ops_limits lim = {.precision = PRECISION_EXACT,
                             .latent = lf,
                             .index = xf,
                             .n_pages = PAGES,
                             .max_rows = {ROWS, ROWS},
                             .max_context = CONTEXT,
                             .max_out_rows = 16,
                             .n_threads = 1};
    p->c = config();
    p->r = (struct rng){test_seed()};
    CHECK_OK(cpu_ops_open(&p->cpu, &p->c, &lim, &e), e);
    CHECK_OK(cuda_ops_open(&p->gpu, &p->c, &lim, 0, &e), e);
}

static void pair_close(struct pair *p)
{
    p->cpu->close(p->cpu);
    p->gpu->close(p->gpu);
}

static float *random_row(struct pair *p, size_t n)
{
    float *x = malloc(n * sizeof *x);
    CHECK(x != NULL);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_normal(&p->r);
    return x;
}

static void *up(const void *x, size_t bytes)
{
    void *at = cuda_test_alloc(bytes);
    cuda_test_write(at, x, bytes);
    return at;
}

/* Largest difference of two arrays over the largest value. */
static double distance(const float *a, const float *b, size_t n)
{
    double worst = 0.0, top = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = d <= worst ? worst : d; /* NaN stays */
        top = fabs((double)a[i]) > top ? fabs((double)a[i]) : top;
    }
    return worst / (top > 0.0 ? top : 1.0);
}

/* One sequence of n tokens through KV, indexer and attention in chunks; out[n, heads * v]. */
static void run_attention(struct pair *p, bool gpu, uint32_t n, uint32_t chunk, const float *kv,
                          const float *key, const float *q, const float *iq, const float *iw,
                          const float *gain, struct matrix w, float *out, int32_t *sel)
{
    const struct model_config *c = &p->c;
    struct ops *o = gpu ? p->gpu : p->cpu;
    uint32_t page[PAGES] = {5, 2, 7, 0};
    size_t lat = c->kv_lora_rank + c->rope_dim, ldq = c->n_heads * model_qk_dim(c);
    size_t ldi = c->index_heads * c->index_dim, ldo = c->n_heads * c->v_dim, k = c->index_topk;
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t m = n - at < chunk ? n - at : chunk, token[ROWS] = {0};
        struct step_seq s = {.n_rows = m, .pos0 = at, .page = page, .top_k = c->index_topk};
        struct step st = {.n_rows = m, .n_seqs = 1, .token = token, .seq = &s};
        struct err e;
        /* The ops write into q and iq, so both back ends get copies. */
        void *d[8] = {up(kv + at * lat, 4 * m * lat),
                      up(key + at * c->index_dim, 4 * m * c->index_dim),
                      up(q + at * ldq, 4 * m * ldq),
                      up(iq + at * ldi, 4 * m * ldi),
                      up(iw + at * c->index_heads, 4 * m * c->index_heads),
                      cuda_test_alloc(4 * m * ldo),
                      cuda_test_alloc(4 * m * k),
                      up(gain, 4 * 256)};
        void *h[8] = {malloc(4 * m * lat),
                      malloc(4 * m * c->index_dim),
                      malloc(4 * m * ldq),
                      malloc(4 * m * ldi),
                      malloc(4 * m * c->index_heads),
                      malloc(4 * m * ldo),
                      calloc(m, 4 * k),
                      malloc(4 * 256)};
        size_t bytes[8] = {4 * m * lat,
                           4 * m * c->index_dim,
                           4 * m * ldq,
                           4 * m * ldi,
                           4 * m * c->index_heads,
                           0,
                           0,
                           4 * 256};
        for (int i = 0; i < 8; i++)
            cuda_test_read(h[i], d[i], bytes[i]);
        void **x = gpu ? d : h;
        o->begin(o, LANE_PREFILL, &st);
        o->rope_q(o, LANE_PREFILL, x[2]);
        o->kv_store(o, LANE_PREFILL, 0, x[0], x[7]);
        o->index_store(o, LANE_PREFILL, 0, x[1], x[7], x[7]);
        o->index_select(o, LANE_PREFILL, 0, x[3], x[4], x[6]);
        o->attend(o, LANE_PREFILL, 0, &w, x[2], x[6], x[5]);
        CHECK_OK(o->finish(o, LANE_PREFILL, &e), e);
        if (gpu) {
            cuda_test_read(h[5], d[5], 4 * m * ldo);
            cuda_test_read(h[6], d[6], 4 * m * k);
        }
        memcpy(out + at * ldo, h[5], 4 * m * ldo);
        memcpy(sel + at * k, h[6], 4 * m * k);
        for (int i = 0; i < 8; i++) {
            cuda_test_free(d[i]);
            free(h[i]);
        }
    }
}

static void check_attention(enum latent_form lf, enum index_form xf, double tolerance)
{
    enum { N = 70 };
    struct pair p;
    pair_open(&p, lf, xf);
    const struct model_config *c = &p.c;
    size_t ldo = c->n_heads * c->v_dim, ws = c->n_heads * (c->nope_dim + c->v_dim);
    float *kv = random_row(&p, N * (c->kv_lora_rank + c->rope_dim)), *gain = random_row(&p, 256);
    float *key = random_row(&p, N * c->index_dim), *iw = random_row(&p, N * c->index_heads);
    float *q = random_row(&p, N * c->n_heads * model_qk_dim(c));
    float *iq = random_row(&p, N * c->index_heads * c->index_dim);
    float *w = random_row(&p, ws * c->kv_lora_rank), *out[3];
    int32_t *sel[3];
    struct matrix host = {w, DT_F32, NULL, (uint32_t)ws, c->kv_lora_rank}, dev = host;
    dev.data = up(w, 4 * ws * c->kv_lora_rank);
    for (int i = 0; i < 3; i++) {
        out[i] = calloc(N * ldo, 4);
        sel[i] = calloc(N * c->index_topk, 4);
    }
    run_attention(&p, false, N, N, kv, key, q, iq, iw, gain, host, out[0], sel[0]);
    run_attention(&p, true, N, N, kv, key, q, iq, iw, gain, dev, out[1], sel[1]);
    run_attention(&p, true, N, 13, kv, key, q, iq, iw, gain, dev, out[2], sel[2]);
    CHECK_MSG(!memcmp(out[1], out[2], 4 * N * ldo), "chunks change a row's bits");
    size_t selecting = (size_t)c->index_topk * c->index_topk; /* earlier rows see all */
    uint32_t other = 0;
    for (size_t i = selecting; i < N * (size_t)c->index_topk; i++)
        other += sel[0][i] != sel[1][i];
    double d = distance(out[0], out[1], N * ldo);
    printf("     latent %d index %d: distance %.2e, %u selected entries differ\n", lf, xf, d,
           other);
    CHECK_MSG(other == 0, "%u entries of the selections differ", other);
    CHECK_MSG(d <= tolerance, "distance %g", d);
    pair_close(&p);
}

/* Sums of some hundred fp32 products in two orders: 2^-24 times a few dozen. */
TEST_LIMIT(attention_exact, 120)
{
    check_attention(LATENT_F32, INDEX_EXACT, 2e-5);
}
/* A value between two codes may fall either way: 2^-4 of one of 136 values. */
TEST_LIMIT(attention_fp8, 120)
{
    check_attention(LATENT_FP8, INDEX_FP8, 5e-3);
}

TEST_LIMIT(linear_sizes, 120)
{
    struct pair p;
    pair_open(&p, LATENT_F32, INDEX_EXACT);
    const uint32_t sizes[] = {1, 31, 32, 33, 63, 64, 65, 70};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint32_t n = sizes[i], n_in = sizes[7 - i] + 3, n_out = sizes[(i + 3) % 8];
        float *w = random_row(&p, (size_t)n_in * n_out), *x = random_row(&p, (size_t)n * n_in);
        float *want = malloc(4 * (size_t)n * n_out), *have = malloc(4 * (size_t)n * n_out);
        struct matrix host = {w, DT_F32, NULL, n_out, n_in}, dev = host;
        void *dx = up(x, 4 * (size_t)n * n_in), *dy = cuda_test_alloc(4 * (size_t)n * n_out);
        dev.data = up(w, 4 * (size_t)n_in * n_out);
        p.cpu->linear(p.cpu, LANE_DECODE, &host, x, n, want, false);
        p.gpu->linear(p.gpu, LANE_DECODE, &dev, dx, n, dy, false);
        cuda_test_read(have, dy, 4 * (size_t)n * n_out);
        double d = distance(want, have, (size_t)n * n_out);
        CHECK_MSG(d <= 1e-5, "%u x %u x %u: distance %g", n, n_out, n_in, d);
        p.gpu->linear(p.gpu, LANE_DECODE, &dev, dx, 1, dy, false);
        cuda_test_read(want, dy, 4 * (size_t)n_out);
        CHECK_MSG(!memcmp(want, have, 4 * (size_t)n_out), "%u: a row alone has other bits", n);
        cuda_test_free(dx);
        cuda_test_free(dy);
        cuda_test_free((void *)(uintptr_t)dev.data);
    }
    pair_close(&p);
}

/* The same token wherever the draw is further from a boundary than rounding: all but one in 400. */
TEST_LIMIT(sample_as_the_cpu, 120)
{
    enum { N = 16 };
    struct pair p;
    pair_open(&p, LATENT_F32, INDEX_EXACT);
    uint32_t other = 0, total = 0;
    for (int round = 0; round < 4; round++) {
        float *logits = random_row(&p, (size_t)N * VOCAB);
        struct sample_params sp[N];
        struct sample_row row[N];
        struct sample_out want[N], have[N];
        struct sample_bias bias[2] = {{7, 3.0f}, {7, 1.0f}};
        uint32_t history[5] = {7, 9, 9, 11, 7}, banned[2] = {20, 21}, allowed[(VOCAB + 31) / 32];
        for (size_t i = 0; i < sizeof allowed / 4; i++)
            allowed[i] = (uint32_t)rng_next(&p.r);
        for (uint32_t i = 0; i < N; i++) {
            sp[i] = (struct sample_params){.temperature = i % 4 ? 0.5f + 0.1f * (float)i : 0.0f,
                                           .top_p = i % 3 ? 1.0f : 0.8f,
                                           .min_p = i % 5 ? 0.0f : 0.02f,
                                           .top_k = i % 2 ? 50 : 0,
                                           .presence_penalty = i % 7 ? 0.0f : 0.5f,
                                           .frequency_penalty = i % 6 ? 0.0f : 0.25f,
                                           .repetition_penalty = i % 5 ? 1.0f : 1.3f,
                                           .seed = rng_next(&p.r),
                                           .bias = bias,
                                           .n_bias = i % 2 ? 2 : 0,
                                           .allowed = i % 4 == 3 ? allowed : NULL,
                                           .want_logprob = true,
                                           .n_top = i % 3 ? 5 : 0};
            row[i] = (struct sample_row){.p = &sp[i],
                                         .position = 100 + i,
                                         .stream = i % 3,
                                         .history = history,
                                         .n_prompt = 2,
                                         .n_history = 5,
                                         .banned = banned,
                                         .n_banned = i % 2 ? 2 : 0};
        }
        logits[3 * VOCAB + 5] = NAN;
        logits[4 * VOCAB + 5] = logits[4 * VOCAB + 900] = 50.0f; /* a tie */
        uint32_t token[N] = {0}, page[1] = {0}, out_row[N];
        for (uint32_t i = 0; i < N; i++)
            out_row[i] = i;
        struct step_seq s = {.n_rows = N, .page = page, .top_k = TOP_K_DENSE};
        struct step st = {N, 1, token, &s, N, out_row, row, want};
        struct err e;
        void *d = up(logits, 4 * (size_t)N * VOCAB);
        p.cpu->begin(p.cpu, LANE_DECODE, &st);
        p.cpu->sample(p.cpu, LANE_DECODE, logits, 0, N);
        CHECK_OK(p.cpu->finish(p.cpu, LANE_DECODE, &e), e);
        st.out = have;
        p.gpu->begin(p.gpu, LANE_DECODE, &st);
        p.gpu->sample(p.gpu, LANE_DECODE, d, 0, N);
        CHECK_OK(p.gpu->finish(p.gpu, LANE_DECODE, &e), e);
        cuda_test_free(d);
        for (uint32_t i = 0; i < N; i++, total++) {
            CHECK(want[i].bad_logits == have[i].bad_logits);
            if (want[i].token != have[i].token) {
                other++;
                continue;
            }
            if (want[i].bad_logits)
                continue;
            CHECK(want[i].rank == have[i].rank && want[i].n_top == have[i].n_top);
            CHECK(fabsf(want[i].logprob - have[i].logprob) <= 1e-5f);
            for (uint32_t t = 0; t < want[i].n_top; t++)
                CHECK(want[i].top[t].id == have[i].top[t].id);
        }
    }
    CHECK_MSG(other <= 1 + total / 400, "%u of %u tokens differ", other, total);
    pair_close(&p);
}
