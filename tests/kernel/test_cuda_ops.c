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
#include "tests/kernel/rows.h"

#include <math.h>

enum { ROWS = 70, CONTEXT = 448, PAGES = 8, VOCAB = 1500 };

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
    enum precision precision; /* the GPU's */
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
    p->r = (struct rng){test_seed()};
    CHECK_OK(cpu_ops_open(&p->cpu, &p->c, &lim, &e), e);
    lim.precision = p->precision;
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

/* One sequence of n tokens through KV, indexer and attention in chunks; out[n, heads * v]. */
static void run_attention(struct pair *p, bool gpu, uint32_t n, uint32_t chunk, const float *kv,
                          const float *key, const float *q, const float *iq, const float *iw,
                          const float *gain, struct matrix w, float *out, int32_t *sel)
{
    const struct model_config *c = &p->c;
    struct ops *o = gpu ? p->gpu : p->cpu;
    uint32_t page[PAGES] = {5, 2, 7, 0, 6, 1, 4, 3};
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

/* A matrix of a type on both sides, and its values in double. */
static struct matrix random_matrix(struct pair *p, enum dtype t, uint32_t n_out, uint32_t n_in,
                                   double *value)
{
    size_t n = (size_t)n_out * n_in, blocks = (n_in + 127) / 128;
    size_t n_scales = (n_out + 127) / 128 * blocks;
    unsigned char *data = malloc(n * dtype_bytes(t));
    float *scale = malloc(n_scales * sizeof *scale);
    CHECK(data && scale);
    for (size_t i = 0; i < n_scales; i++)
        scale[i] = 0.5f + 0.01f * (float)(i % 7);
    for (size_t i = 0; i < n; i++) {
        uint32_t code = (uint32_t)rng_next(&p->r);
        if (t == DT_BF16) {
            float x = rng_normal(&p->r);
            uint32_t bits;
            memcpy(&bits, &x, 4);
            bits &= 0xFFFF0000u;
            memcpy(&x, &bits, 4);
            ((uint16_t *)(void *)data)[i] = (uint16_t)(bits >> 16);
            value[i] = (double)x;
        } else { /* codes of values under 2, denormals among them */
            uint32_t e = code >> 3 & 7, m = code & 7;
            double x = e ? ldexp(1.0 + m / 8.0, (int)e - 7) : ldexp(m / 8.0, -6);
            data[i] = (unsigned char)(code & 0xBF);
            value[i] =
                (code & 0x80 ? -x : x) * (double)scale[i / n_in / 128 * blocks + i % n_in / 128];
        }
    }
    struct matrix w = {up(data, n * dtype_bytes(t)), t, NULL, n_out, n_in, 0};
    if (t == DT_F8_E4M3)
        w.scale = up(scale, n_scales * sizeof *scale);
    free(data);
    free(scale);
    return w;
}
static void free_matrix(struct matrix *w)
{
    cuda_test_free((void *)(uintptr_t)w->data);
    if (w->scale)
        cuda_test_free((void *)(uintptr_t)w->scale);
}

/* The last n of the rows at dx, alone, have the bits that they have in `all`, the product of all
 * `most` of them; dy holds as many rows of outputs. */
static void same_as_among(struct pair *p, const struct matrix *w, float *dx, uint32_t most,
                          uint32_t n, const float *all, void *dy)
{
    size_t bytes = 4 * (size_t)n * w->n_out, from = most - n;
    float *some = malloc(bytes);
    CHECK(some);
    memset(some, 0xFF, bytes);
    cuda_test_write(dy, some, bytes);
    p->gpu->linear(p->gpu, LANE_DECODE, w, dx + from * w->n_in, n, dy, false);
    cuda_test_read(some, dy, bytes);
    CHECK_MSG(!memcmp(some, all + from * w->n_out, bytes), "%u x %u: other bits among %u rows",
              w->n_out, w->n_in, n);
    free(some);
}

struct attention_case {
    enum precision precision;
    enum latent_form lf;
    enum index_form xf;
    uint32_t n, heads, kv_lora, index_heads, top_k;
    double tolerance;
    enum dtype kv_b;   /* DT_F32 is 0 */
    uint32_t per_head; /* nope and v; 0: the config's */
};

static void check_attention(const struct attention_case *t)
{
    const uint32_t N = t->n;
    struct pair p = {.c = config(), .precision = t->precision};
    p.c.n_heads = t->heads;
    p.c.kv_lora_rank = t->kv_lora;
    p.c.index_heads = t->index_heads;
    p.c.index_topk = t->top_k;
    if (t->per_head)
        p.c.nope_dim = p.c.v_dim = t->per_head;
    pair_open(&p, t->lf, t->xf);
    const struct model_config *c = &p.c;
    size_t ldo = c->n_heads * c->v_dim, ws = c->n_heads * (c->nope_dim + c->v_dim);
    float *kv = random_row(&p, N * (c->kv_lora_rank + c->rope_dim)), *gain = random_row(&p, 256);
    float *key = random_row(&p, N * c->index_dim), *iw = random_row(&p, N * c->index_heads);
    float *q = random_row(&p, N * c->n_heads * model_qk_dim(c));
    float *iq = random_row(&p, N * c->index_heads * c->index_dim);
    float *w = random_row(&p, ws * c->kv_lora_rank), *out[3];
    int32_t *sel[3];
    struct matrix host = {w, DT_F32, NULL, (uint32_t)ws, c->kv_lora_rank, 0}, dev = host;
    if (t->kv_b == DT_F32) {
        dev.data = up(w, 4 * ws * c->kv_lora_rank);
    } else {
        double *value = malloc(ws * c->kv_lora_rank * sizeof *value);
        CHECK(value != NULL);
        dev = random_matrix(&p, t->kv_b, (uint32_t)ws, c->kv_lora_rank, value);
        for (size_t i = 0; i < ws * c->kv_lora_rank; i++)
            w[i] = (float)value[i];
        free(value);
    }
    for (int i = 0; i < 3; i++) {
        out[i] = calloc(N * ldo, 4);
        sel[i] = calloc(N * c->index_topk, 4);
    }
    run_attention(&p, false, N, ROWS, kv, key, q, iq, iw, gain, host, out[0], sel[0]);
    run_attention(&p, true, N, ROWS, kv, key, q, iq, iw, gain, dev, out[1], sel[1]);
    run_attention(&p, true, N, 13, kv, key, q, iq, iw, gain, dev, out[2], sel[2]);
    CHECK_MSG(!memcmp(out[1], out[2], 4 * N * ldo), "chunks change a row's bits");
    size_t selecting = (size_t)c->index_topk * c->index_topk; /* rows before see all */
    uint32_t other = 0;
    for (size_t i = selecting; i < N * (size_t)c->index_topk; i++)
        other += sel[0][i] != sel[1][i];
    double d = distance(out[0], out[1], N * ldo);
    printf("     latent %d index %d, %u heads: distance %.2e, %u selected entries differ\n", t->lf,
           t->xf, t->heads, d, other);
    CHECK_MSG(other == 0, "%u entries of the selections differ", other);
    CHECK_MSG(d <= t->tolerance, "distance %g", d);
    pair_close(&p);
}

/* Sums of some hundred fp32 products in two orders: 2^-24 times a few dozen. */
TEST_LIMIT(attention_exact, 120)
{
    check_attention(&(struct attention_case){PRECISION_EXACT, LATENT_F32, INDEX_EXACT, 70, 5, 136,
                                             3, 40, 2e-5, DT_F32, 0});
}
/* A value between two codes may fall either way: 2^-4 of one of 136 values. */
TEST_LIMIT(attention_fp8, 120)
{
    check_attention(&(struct attention_case){PRECISION_EXACT, LATENT_FP8, INDEX_FP8, 70, 5, 136, 3,
                                             40, 5e-3, DT_F32, 0});
}
/* The tensor cores' path against the CPU's fp32: queries and weights to 17 bits of mantissa, 2^-17
 * of the terms. Rows that see one split and several, tiles that are full and not, heads of one tile
 * and of several blocks. */
TEST_LIMIT(attention_tensor, 240)
{
    static const struct attention_case cases[] = {
        {PRECISION_FAST, LATENT_FP8, INDEX_FP8, 140, 5, 128, 3, 96, 5e-3, DT_F32, 0},
        {PRECISION_FAST, LATENT_BF16, INDEX_FP8, 140, 37, 144, 20, 96, 5e-3, DT_F32, 0},
        {PRECISION_FAST, LATENT_FP8, INDEX_FP8, 350, 18, 64, 17, 330, 5e-3, DT_F32, 0},
        {PRECISION_FAST, LATENT_FP8, INDEX_FP8, 70, 3, 256, 3, 60, 5e-3, DT_F8_E4M3, 128},
        {PRECISION_FAST, LATENT_BF16, INDEX_FP8, 70, 5, 144, 3, 60, 5e-3, DT_BF16, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_attention(&cases[i]);
}

TEST_LIMIT(linear_sizes, 120)
{
    struct pair p = {.c = config(), .precision = PRECISION_EXACT};
    pair_open(&p, LATENT_F32, INDEX_EXACT);
    const uint32_t sizes[] = {1, 31, 32, 33, 63, 64, 65, 70};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint32_t n = sizes[i], n_in = sizes[7 - i] + 3, n_out = sizes[(i + 3) % 8];
        float *w = random_row(&p, (size_t)n_in * n_out), *x = random_row(&p, (size_t)n * n_in);
        float *want = malloc(4 * (size_t)n * n_out), *have = malloc(4 * (size_t)n * n_out);
        struct matrix host = {w, DT_F32, NULL, n_out, n_in, 0}, dev = host;
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

/* The fast precision's products: activations to 17 bits of mantissa, sums in fp32, so 2^-17 of the
 * terms' size and 2^-24 times the square root of their number: 1e-5 of the largest output. A row
 * has the same bits among any number of others, whichever tile and however many blocks share K. */
TEST_LIMIT(linear_fast, 240)
{
    enum { MOST = 200 };
    static const uint32_t sizes[][2] = {{200, 1040}, {64, 520}, {130, 24}, {72, 100}, {300, 256}};
    static const uint32_t rows[] = {1, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, MOST};
    struct pair p;
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    struct ops_limits lim = {.precision = PRECISION_FAST,
                             .latent = LATENT_BF16,
                             .index = INDEX_FP8,
                             .n_pages = PAGES,
                             .max_rows = {MOST, MOST},
                             .max_context = CONTEXT,
                             .max_out_rows = 16,
                             .n_threads = 1};
    p.c = config();
    p.r = (struct rng){test_seed()};
    CHECK_OK(cuda_ops_open(&p.gpu, &p.c, &lim, 0, &e), e);
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        uint32_t n_out = sizes[i / 2][0], n_in = sizes[i / 2][1];
        double *value = malloc(sizeof *value * n_out * n_in);
        float *x = random_row(&p, (size_t)MOST * n_in), *all = malloc(4 * (size_t)MOST * n_out);
        float *want = malloc(4 * (size_t)MOST * n_out);
        CHECK(value && all && want);
        struct matrix w = random_matrix(&p, i % 2 ? DT_BF16 : DT_F8_E4M3, n_out, n_in, value);
        void *dx = up(x, 4 * (size_t)MOST * n_in), *dy = cuda_test_alloc(4 * (size_t)MOST * n_out);
        for (uint32_t r = 0; r < MOST; r++)
            for (uint32_t o = 0; o < n_out; o++) {
                double sum = 0;
                for (uint32_t k = 0; k < n_in; k++)
                    sum += (double)x[(size_t)r * n_in + k] * value[(size_t)o * n_in + k];
                want[(size_t)r * n_out + o] = (float)sum;
            }
        p.gpu->linear(p.gpu, LANE_DECODE, &w, dx, MOST, dy, false);
        cuda_test_read(all, dy, 4 * (size_t)MOST * n_out);
        double d = distance(want, all, (size_t)MOST * n_out);
        printf("     %u x %u %s: distance %.1e\n", n_out, n_in, i % 2 ? "bf16" : "e4m3", d);
        CHECK_MSG(d <= 1e-5, "%u x %u: distance %g", n_out, n_in, d);
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
            same_as_among(&p, &w, dx, MOST, rows[k], all, dy);
        cuda_test_free(dx);
        cuda_test_free(dy);
        free_matrix(&w);
        free(value);
        free(x);
        free(all);
        free(want);
    }
    p.gpu->close(p.gpu);
}

/* As a deployed model rounds a row for weights of type t: one bf16, or e4m3 under the smallest
 * power of two that holds the largest of 128 values. Written plainly, in double. */
static void round_plainly(enum dtype t, const float *x, uint32_t n, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = i / 128 * 128, end = first + 128 < n ? first + 128 : n;
        double most = 1e-4, v = fabs((double)x[i]);
        for (uint32_t k = first; k < end; k++)
            most = fabs((double)x[k]) > most ? fabs((double)x[k]) : most;
        double scale = t == DT_BF16 ? 1.0 : exp2(ceil(log2(most / 448.0)));
        int digits = t == DT_BF16 ? 8 : 4, least = t == DT_BF16 ? -126 : -6, exponent;
        (void)frexp(v / scale, &exponent);
        exponent = exponent - 1 < least ? least + 1 : exponent;
        double unit = ldexp(1.0, exponent - digits);
        y[i] = copysign(rint(v / scale / unit) * unit * scale, (double)x[i]);
    }
}

/* Products of PRECISION_FP8 against rounded rows in double. Sums in fp32 as in the fast precision:
 * 1e-5. A Hopper's tensor cores keep 14 bits of an e4m3 sum, four times within 128 values: 2^-13 of
 * a block's largest sum each, or some 5e-4 of the largest output; of a bf16 sum 24 bits, cut off,
 * n_in / 16 times. */
TEST_LIMIT(linear_deployed, 240)
{
    enum { MOST = 300 };
    static const uint32_t sizes[][2] = {{200, 1040}, {64, 528}, {130, 48}, {576, 128}, {72, 100}};
    static const uint32_t rows[] = {1, 7, 16, 17, 32, 33, 64, 65, 127, 128, 129, 257, MOST};
    struct pair p;
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    struct ops_limits lim = {.precision = PRECISION_FP8,
                             .latent = LATENT_BF16,
                             .index = INDEX_FP8,
                             .n_pages = PAGES,
                             .max_rows = {MOST, MOST},
                             .max_context = CONTEXT,
                             .max_out_rows = 16,
                             .n_threads = 1};
    p.c = config();
    p.r = (struct rng){test_seed()};
    CHECK_OK(cuda_ops_open(&p.gpu, &p.c, &lim, 0, &e), e);
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        enum dtype t = i % 2 ? DT_BF16 : DT_F8_E4M3;
        uint32_t n_out = sizes[i / 2][0], n_in = sizes[i / 2][1];
        double *value = malloc(sizeof *value * n_out * n_in), *row = malloc(sizeof *row * n_in);
        float *x = random_row(&p, (size_t)MOST * n_in), *all = malloc(4 * (size_t)MOST * n_out);
        float *want = malloc(4 * (size_t)MOST * n_out);
        CHECK(value && row && all && want);
        struct matrix w = random_matrix(&p, t, n_out, n_in, value);
        for (uint32_t k = 0; k < n_in; k++) /* a row of small values, one of nothing, a large one */
            x[k] *= 1e-7f, x[n_in + k] = 0.0f, x[2 * (size_t)n_in + k] *= 1e4f;
        void *dx = up(x, 4 * (size_t)MOST * n_in), *dy = cuda_test_alloc(4 * (size_t)MOST * n_out);
        for (uint32_t r = 0; r < MOST; r++) {
            round_plainly(t, x + (size_t)r * n_in, n_in, row);
            for (uint32_t o = 0; o < n_out; o++) {
                double sum = 0;
                for (uint32_t k = 0; k < n_in; k++)
                    sum += row[k] * value[(size_t)o * n_in + k];
                want[(size_t)r * n_out + o] = (float)sum;
            }
        }
        p.gpu->linear(p.gpu, LANE_DECODE, &w, dx, MOST, dy, false);
        cuda_test_read(all, dy, 4 * (size_t)MOST * n_out);
        double bound = !cuda_device_multiplies_fp8(0) ? 1e-5 : t == DT_BF16 ? 5e-5 : 2e-3;
        for (uint32_t r = 0; r < MOST; r = r < 3 ? r + 1 : MOST) {
            size_t at = (size_t)r * n_out, n = r < 3 ? n_out : (size_t)(MOST - r) * n_out;
            double d = distance(want + at, all + at, n);
            CHECK_MSG(d <= bound, "%u x %u, row %u: distance %g", n_out, n_in, r, d);
        }
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
            same_as_among(&p, &w, dx, MOST, rows[k], all, dy);
        cuda_test_free(dx);
        cuda_test_free(dy);
        free_matrix(&w);
        free(value);
        free(row);
        free(x);
        free(all);
        free(want);
    }
    p.gpu->close(p.gpu);
}

/* Experts and dense networks of PRECISION_FP8 against the CPU's. On a Hopper sums differ by up to
 * 1e-3, so that one in fifty middle values rounds to the neighbouring code, 2^-4 of it off, and a
 * scale that turns over rounds 128 of them anew, 2^-5 off: 2^-4 / sqrt(50) of the outputs' size is
 * usual, 1e-2 (2.6e-2 was seen on an H200), and 5e-2 of the largest bounds it. Elsewhere only
 * the order of fp32 sums differs, and turns over one code in some thousand. Rows have the same bits
 * among any number of others. */
TEST_LIMIT(moe_deployed, 240)
{
    enum { MOST = 300, HIDDEN = 256, EXPERTS = 12 };
    static const uint32_t widths[] = {128, 384, 72}, rows[] = {MOST, 1, 3, 40, 130};
    for (int i = 0; i < 6; i++) {
        struct pair p = {.c = config()};
        struct weights *host, *dev;
        struct err e;
        if (!cuda_device_count())
            TEST_SKIP("no GPU here");
        p.c.hidden_size = HIDDEN;
        p.c.n_layers = 2;
        p.c.dense_width = 3 * widths[i % 3];
        p.c.n_experts = EXPERTS;
        p.c.n_active = 3;
        p.c.n_shared = 1;
        p.c.expert_width = widths[i % 3];
        p.c.sigmoid_router = p.c.norm_topk = p.c.router_bias = true;
        p.c.routed_scale = 1.5f;
        p.c.index_full[1] = true;
        p.c.fp8_blocks = i < 3;
        struct ops_limits lim = {.precision = PRECISION_FP8,
                                 .latent = LATENT_BF16,
                                 .index = INDEX_FP8,
                                 .n_pages = PAGES,
                                 .max_rows = {MOST, MOST},
                                 .max_context = CONTEXT,
                                 .max_out_rows = 16,
                                 .n_threads = 1};
        p.r = (struct rng){test_seed()};
        CHECK_OK(weights_dummy(&host, &p.c, i < 3 ? DT_F8_E4M3 : DT_BF16, 3, &e), e);
        CHECK_OK(cuda_weights_upload(&dev, host, &p.c, 0, NULL, NULL, &e), e);
        CHECK_OK(cpu_ops_open(&p.cpu, &p.c, &lim, &e), e);
        CHECK_OK(cuda_ops_open(&p.gpu, &p.c, &lim, 0, &e), e);
        size_t n = (size_t)MOST * HIDDEN;
        float *x = random_row(&p, n), *want = calloc(n, 4), *have = malloc(4 * n);
        float *all = malloc(4 * n);
        CHECK(want && have && all);
        void *dx = up(x, 4 * n), *dy = cuda_test_alloc(4 * n);
        for (int network = 0; network < 2; network++) {
            if (network)
                p.cpu->ffn(p.cpu, LANE_PREFILL, &host->layer[0].dense, x, MOST, want, false);
            else
                p.cpu->moe(p.cpu, LANE_PREFILL, 1, &host->layer[1], x, MOST, want, false);
            for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
                uint32_t from = MOST - rows[k], m = rows[k] * HIDDEN;
                float *in = (float *)dx + (size_t)from * HIDDEN;
                memset(have, 0xFF, 4 * n);
                cuda_test_write(dy, have, 4 * n);
                if (network)
                    p.gpu->ffn(p.gpu, LANE_PREFILL, &dev->layer[0].dense, in, rows[k], dy, false);
                else
                    p.gpu->moe(p.gpu, LANE_PREFILL, 1, &dev->layer[1], in, rows[k], dy, false);
                cuda_test_read(have, dy, 4 * (size_t)m);
                if (k == 0) {
                    double d = distance(want, have, n);
                    printf("     width %u %s %s: distance %.1e\n", widths[i % 3],
                           i < 3 ? "e4m3" : "bf16", network ? "dense" : "experts", d);
                    double bound = cuda_device_multiplies_fp8(0) ? 5e-2 : 5e-3;
                    CHECK_MSG(d <= bound, "width %u, case %d: distance %g", widths[i % 3], i, d);
                    memcpy(all, have, 4 * n);
                }
                CHECK_MSG(!memcmp(all + (size_t)from * HIDDEN, have, 4 * (size_t)m),
                          "width %u, case %d: other bits among %u rows", widths[i % 3], i, rows[k]);
            }
        }
        cuda_test_free(dx);
        cuda_test_free(dy);
        p.cpu->close(p.cpu);
        p.gpu->close(p.gpu);
        cuda_weights_close(dev);
        weights_close(host);
        free(x);
        free(want);
        free(have);
        free(all);
    }
}

/* The same token wherever the draw is further from a boundary than rounding: all but one in 400. */
TEST_LIMIT(sample_as_the_cpu, 120)
{
    enum { N = 16 };
    struct pair p = {.c = config(), .precision = PRECISION_EXACT};
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
        struct step st = {.n_rows = N,
                          .n_seqs = 1,
                          .token = token,
                          .seq = &s,
                          .n_out = N,
                          .out_row = out_row,
                          .sample = row,
                          .out = want};
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
