/* test_moe.c - the router's choices and the experts' sums against a naive reference in double. */
#include "base/arena.h"
#include "cpu/backend.h"
#include "cpu/cpu_ops.h"
#include "cpu/fp8.h"
#include "test.h"

#include <math.h>

enum { HIDDEN = 96, MAX_EXPERTS = 32, MAX_ROWS = 700 };

static struct model_config config(void)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V3,
                             .model_type = "deepseek_v3",
                             .vocab_size = 64,
                             .hidden_size = HIDDEN,
                             .n_layers = 1,
                             .dense_width = 200,
                             .rms_eps = 1e-6f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = 2,
                             .q_lora_rank = 32,
                             .kv_lora_rank = 32,
                             .nope_dim = 16,
                             .rope_dim = 16,
                             .v_dim = 16,
                             .softmax_scale = 0.2f,
                             .n_experts = 16,
                             .n_active = 4,
                             .n_shared = 1,
                             .expert_width = 72,
                             .n_group = 4,
                             .n_group_kept = 2,
                             .sigmoid_router = true,
                             .router_bias = true,
                             .group_by_best_two = true,
                             .norm_topk = true,
                             .routed_scale = 2.5f,
                             .max_position = 4096,
                             .rope_gain = 1.0f};
    return c;
}

static struct ops *open_ops(const struct model_config *c, enum precision p, uint32_t n_threads)
{
    struct ops_limits lim = {.precision = p,
                             .latent = LATENT_F32,
                             .index = INDEX_EXACT,
                             .n_pages = 4,
                             .max_rows = {MAX_ROWS, 8},
                             .max_context = 256,
                             .max_out_rows = 1,
                             .n_threads = n_threads};
    struct ops *o;
    struct err e;
    CHECK_OK(cpu_ops_open(&o, c, &lim, &e), e);
    return o;
}

/* ---- weights ---- */

static struct arena memory; /* of the test */

static void *room(size_t bytes)
{
    void *p = arena_zalloc(&memory, bytes);
    CHECK(p);
    return p;
}

static struct matrix random_matrix(struct rng *r, enum dtype t, uint32_t n_out, uint32_t n_in)
{
    size_t n = (size_t)n_out * n_in, n_scale = (n_out + 127) / 128 * (size_t)((n_in + 127) / 128);
    void *data = room(n * dtype_bytes(t));
    float *scale = t == DT_F8_E4M3 ? room(n_scale * sizeof *scale) : NULL;
    for (size_t i = 0; i < n; i++) {
        float v = rng_normal(r) * 0.15f;
        if (t == DT_F32)
            ((float *)data)[i] = v;
        else if (t == DT_BF16)
            ((uint16_t *)data)[i] = bf16_round(v);
        else
            ((uint8_t *)data)[i] = e4m3_round(v * 16);
    }
    for (size_t i = 0; scale && i < n_scale; i++)
        scale[i] = 0.0625f * (1.0f + rng_unit((uint32_t)rng_next(r)));
    return (struct matrix){data, t, scale, n_out, n_in, 0};
}

static double at(const struct matrix *m, uint32_t j, uint32_t k)
{
    size_t i = (size_t)j * m->n_in + k;
    switch (m->dtype) {
    case DT_F32:
        return (double)((const float *)m->data)[i];
    case DT_BF16:
        return (double)bf16_value(((const uint16_t *)m->data)[i]);
    default:
        return (double)e4m3_value(((const uint8_t *)m->data)[i]) *
               (double)m->scale[j / 128 * ((m->n_in + 127) / 128) + k / 128];
    }
}

static struct ffn_weights random_ffn(struct rng *r, enum dtype t, uint32_t width)
{
    return (struct ffn_weights){random_matrix(r, t, width, HIDDEN),
                                random_matrix(r, t, width, HIDDEN),
                                random_matrix(r, t, HIDDEN, width)};
}

static struct layer_weights random_layer(struct rng *r, const struct model_config *c, enum dtype t)
{
    struct layer_weights w = {.router = random_matrix(r, DT_F32, c->n_experts, HIDDEN)};
    w.router_bias = room(c->n_experts * sizeof(float));
    w.expert = room(c->n_experts * sizeof *w.expert);
    for (uint32_t e = 0; e < c->n_experts; e++) {
        w.router_bias[e] = rng_normal(r) * 0.3f;
        w.expert[e] = random_ffn(r, t, c->expert_width);
    }
    if (c->n_shared)
        w.shared = random_ffn(r, t, c->n_shared * c->expert_width);
    return w;
}

/* ---- the reference ---- */

static double fast_value(bool fast, double x)
{
    float hi = bf16_value(bf16_round((float)x));
    return fast ? (double)hi + (double)bf16_value(bf16_round((float)x - hi)) : x;
}

static void ref_ffn(const struct ffn_weights *w, const float *x, bool fast, double scale, double *y)
{
    double mid[512];
    for (uint32_t j = 0; j < w->gate.n_out; j++) {
        double g = 0, u = 0;
        for (uint32_t k = 0; k < HIDDEN; k++) {
            g += at(&w->gate, j, k) * fast_value(fast, (double)x[k]);
            u += at(&w->up, j, k) * fast_value(fast, (double)x[k]);
        }
        mid[j] = fast_value(fast, g / (1 + exp(-g)) * u);
    }
    for (uint32_t j = 0; j < HIDDEN; j++) {
        double sum = 0;
        for (uint32_t k = 0; k < w->gate.n_out; k++)
            sum += at(&w->down, j, k) * mid[k];
        y[j] += scale * sum;
    }
}

/* Which experts a row gets, by sorting pairs (score, index) in the plainest way. */
static void ref_route(const struct model_config *c, const struct layer_weights *w, const float *x,
                      uint32_t chosen[], double weight[])
{
    double score[MAX_EXPERTS], biased[MAX_EXPERTS], group[MAX_EXPERTS], sum = 0;
    uint32_t size = c->n_experts / c->n_group;
    for (uint32_t e = 0; e < c->n_experts; e++) {
        double z = 0;
        for (uint32_t k = 0; k < HIDDEN; k++)
            z += at(&w->router, e, k) * (double)x[k];
        score[e] = c->sigmoid_router ? 1 / (1 + exp(-z)) : exp(z);
        sum += score[e];
    }
    for (uint32_t e = 0; e < c->n_experts; e++) {
        score[e] = c->sigmoid_router ? score[e] : score[e] / sum;
        biased[e] = score[e] + (c->router_bias ? (double)w->router_bias[e] : 0);
    }
    for (uint32_t g = 0; g < c->n_group; g++) {
        double best = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * size; e < (g + 1) * size; e++) {
            if (biased[e] > best) {
                second = best;
                best = biased[e];
            } else {
                second = fmax(second, biased[e]);
            }
        }
        group[g] = c->group_by_best_two && size > 1 ? best + second : best;
    }
    for (uint32_t g = 0; g < c->n_group; g++) {
        uint32_t better = 0;
        for (uint32_t h = 0; h < c->n_group; h++)
            better += group[h] > group[g] || (group[h] == group[g] && h < g);
        for (uint32_t e = g * size; better >= c->n_group_kept && e < (g + 1) * size; e++)
            biased[e] = -INFINITY;
    }
    double total = 0;
    for (uint32_t e = 0; e < c->n_experts; e++) {
        uint32_t better = 0;
        for (uint32_t f = 0; f < c->n_experts; f++)
            better += biased[f] > biased[e] || (biased[f] == biased[e] && f < e);
        if (better < c->n_active) {
            chosen[better] = e;
            weight[better] = score[e];
            total += score[e];
        }
    }
    for (uint32_t i = 0; i < c->n_active; i++)
        weight[i] = weight[i] / (c->norm_topk ? total : 1) * (double)c->routed_scale;
}

static void check_rows(const struct model_config *c, const struct layer_weights *w, bool fast,
                       const float *x, const float *was, const float *y, uint32_t n, uint32_t step)
{
    for (uint32_t i = 0; i < n; i += step) {
        double want[HIDDEN], weight[16], size = 0;
        uint32_t chosen[16];
        for (uint32_t k = 0; k < HIDDEN; k++)
            want[k] = (double)was[i * HIDDEN + k];
        ref_route(c, w, x + i * HIDDEN, chosen, weight);
        for (uint32_t a = 0; a < c->n_active; a++)
            ref_ffn(&w->expert[chosen[a]], x + i * HIDDEN, fast, weight[a], want);
        if (c->n_shared)
            ref_ffn(&w->shared, x + i * HIDDEN, fast, 1, want);
        for (uint32_t k = 0; k < HIDDEN; k++)
            size = fmax(size, fabs(want[k]));
        /* exact: fp32 sums; fast: a middle value may round the other way, 2^-9 of one of ~72 terms
         */
        for (uint32_t k = 0; k < HIDDEN; k++)
            CHECK_MSG(fabs((double)y[i * HIDDEN + k] - want[k]) <= size * (fast ? 2e-3 : 1e-5),
                      "row %u column %u: %g, not %g", i, k, (double)y[i * HIDDEN + k], want[k]);
    }
}

/* ---- tests ---- */

enum { N_VARIANTS = 6 };
static struct model_config variant(int i)
{
    struct model_config c = config(); /* 0: V3, groups by two best, bias */
    if (i == 1) {                     /* one group: Kimi, GLM */
        c.n_group = c.n_group_kept = 1;
    } else if (i == 2) { /* V2-Lite: softmax, greedy, two shared, not renormalised */
        c.n_group = c.n_group_kept = 1;
        c.sigmoid_router = c.router_bias = c.norm_topk = false;
        c.n_shared = 2;
        c.routed_scale = 1.0f;
    } else if (i == 3) { /* V2: softmax, groups by best */
        c.sigmoid_router = c.router_bias = c.norm_topk = c.group_by_best_two = false;
        c.routed_scale = 16.0f;
    } else if (i == 4) { /* no shared expert, all experts of the kept groups */
        c.n_shared = 0;
        c.n_active = 8;
    } else if (i == 5) { /* groups of one */
        c.n_group = 16;
        c.n_group_kept = 6;
    }
    return c;
}

/* Goal:   every router of the family, every weight format, in both precisions.
 * Method: many rows at once against the reference; the same rows one by one and in pieces, on other
 * numbers of threads and in the other lane, give the same bits. */
TEST_LIMIT(moe_variants, 60)
{
    static const enum dtype DTYPES[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    struct rng r = {test_seed()};
    float *x = room(MAX_ROWS * HIDDEN * sizeof *x), *was = room(MAX_ROWS * HIDDEN * sizeof *x);
    float *y = room(MAX_ROWS * HIDDEN * sizeof *x), *z = room(MAX_ROWS * HIDDEN * sizeof *x);
    for (int i = 0; i < MAX_ROWS * HIDDEN; i++) {
        x[i] = rng_normal(&r);
        was[i] = rng_normal(&r);
    }
    size_t bytes = MAX_ROWS * HIDDEN * sizeof *x;
    for (int v = 0; v < N_VARIANTS; v++) {
        for (int d = 0; d < 3; d++) {
            struct model_config c = variant(v);
            struct layer_weights w = random_layer(&r, &c, DTYPES[d]);
            for (int fast = 0; fast < 2; fast++) {
                struct ops *o = open_ops(&c, fast ? PRECISION_FAST : PRECISION_EXACT, 1);
                struct ops *many = open_ops(&c, fast ? PRECISION_FAST : PRECISION_EXACT, 3);
                memcpy(y, was, bytes);
                o->moe(o, LANE_PREFILL, 0, &w, x, MAX_ROWS, y, true);
                check_rows(&c, &w, fast && d > 0, x, was, y, MAX_ROWS, 23);
                memcpy(z, was, bytes);
                many->moe(many, LANE_PREFILL, 0, &w, x, MAX_ROWS, z, true);
                CHECK(!memcmp(y, z, bytes));
                memcpy(z, was, bytes);
                for (uint32_t i = 0, n; i < MAX_ROWS; i += n) {
                    n = i < 20 ? 1 : 1 + rng_below(&r, 8);
                    n = n < MAX_ROWS - i ? n : MAX_ROWS - i;
                    many->moe(many, LANE_DECODE, 0, &w, x + i * HIDDEN, n, z + i * HIDDEN, true);
                }
                CHECK(!memcmp(y, z, bytes));
                o->close(o);
                many->close(many);
            }
        }
    }
    arena_free(&memory);
}

/* Goal: on equal scores the lower group and the lower expert win: a zero router chooses 0, 1, 2, 3,
 * and equal experts in a later group never beat those of an earlier one. */
TEST(moe_ties)
{
    struct rng r = {test_seed()};
    for (int v = 0; v < N_VARIANTS; v++) {
        struct model_config c = variant(v);
        struct layer_weights w = random_layer(&r, &c, DT_F32);
        float *router = (float *)(uintptr_t)w.router.data, x[HIDDEN], y[HIDDEN], was[HIDDEN] = {0};
        for (uint32_t k = 0; k < HIDDEN; k++)
            x[k] = rng_normal(&r);
        for (int equal = 0; equal < 3; equal++) {
            for (uint32_t e = 0; e < c.n_experts;
                 e++) { /* all equal; pairs equal; two kinds of group */
                w.router_bias[e] = 0;
                for (uint32_t k = 0; k < HIDDEN; k++)
                    router[e * HIDDEN + k] = equal == 0   ? 0.0f
                                             : equal == 1 ? (float)(e / 2 * 37 % 8) * x[k] * 0.01f
                                                          : (float)(e / 4 % 2) * x[k] * 0.01f;
            }
            struct ops *o = open_ops(&c, PRECISION_EXACT, 2);
            memset(y, 0, sizeof y);
            o->moe(o, LANE_DECODE, 0, &w, x, 1, y, true);
            check_rows(&c, &w, false, x, was, y, 1, 1);
            o->close(o);
        }
    }
    arena_free(&memory);
}

/* Goal: a bias decides who is chosen and not how much it weighs, also when all biased scores are
 * negative (dropped groups are out, not zero). */
TEST(moe_negative_biased_scores)
{
    struct rng r = {test_seed()};
    struct model_config c = variant(0);
    struct layer_weights w = random_layer(&r, &c, DT_F32);
    float *x = room(40 * HIDDEN * sizeof *x), *y = room(40 * HIDDEN * sizeof *y),
          *was = room(40 * HIDDEN * sizeof *was);
    for (int i = 0; i < 40 * HIDDEN; i++)
        x[i] = rng_normal(&r);
    for (uint32_t e = 0; e < c.n_experts; e++)
        w.router_bias[e] -= 10.0f;
    struct ops *o = open_ops(&c, PRECISION_EXACT, 2);
    o->moe(o, LANE_PREFILL, 0, &w, x, 40, y, true);
    check_rows(&c, &w, false, x, was, y, 40, 1);
    o->close(o);
    arena_free(&memory);
}

/* Goal: the dense network adds down(silu(gate x) up x), whatever the pieces. */
TEST(ffn_dense)
{
    static const enum dtype DTYPES[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    struct rng r = {test_seed()};
    struct model_config c = variant(0);
    float *x = room(MAX_ROWS * HIDDEN * 4), *y = room(MAX_ROWS * HIDDEN * 4),
          *z = room(MAX_ROWS * HIDDEN * 4);
    for (int i = 0; i < MAX_ROWS * HIDDEN; i++)
        x[i] = rng_normal(&r);
    for (int d = 0; d < 3; d++) {
        struct ffn_weights w = random_ffn(&r, DTYPES[d], c.dense_width);
        for (int fast = 0; fast < 2; fast++) {
            struct ops *o = open_ops(&c, fast ? PRECISION_FAST : PRECISION_EXACT, 3);
            memcpy(y, x, MAX_ROWS * HIDDEN * 4);
            memcpy(z, x, MAX_ROWS * HIDDEN * 4);
            o->ffn(o, LANE_PREFILL, &w, x, MAX_ROWS, y, true);
            for (uint32_t i = 0; i < MAX_ROWS; i++)
                o->ffn(o, LANE_DECODE, &w, x + i * HIDDEN, 1, z + i * HIDDEN, true);
            CHECK(!memcmp(y, z, MAX_ROWS * HIDDEN * 4));
            for (uint32_t i = 0; i < MAX_ROWS; i += 31) {
                double want[HIDDEN], size = 0;
                for (uint32_t k = 0; k < HIDDEN; k++)
                    want[k] = (double)x[i * HIDDEN + k];
                ref_ffn(&w, x + i * HIDDEN, fast && d > 0, 1, want);
                for (uint32_t k = 0; k < HIDDEN; k++)
                    size = fmax(size, fabs(want[k]));
                for (uint32_t k = 0; k < HIDDEN; k++)
                    CHECK(fabs((double)y[i * HIDDEN + k] - want[k]) <= size * (fast ? 2e-3 : 1e-5));
            }
            o->close(o);
        }
    }
    arena_free(&memory);
}
