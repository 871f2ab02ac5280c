/* test_linear.c - opening the CPU back end, its plan, and embed, rms_norm, linear and logits
 * through it. */
#include "base/fault.h"
#include "cpu/backend.h"
#include "cpu/cpu_ops.h"
#include "cpu/fp8.h"
#include "test.h"

#include <math.h>

static struct model_config config(void)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .model_type = "deepseek_v32",
                             .vocab_size = 301,
                             .hidden_size = 160,
                             .n_layers = 3,
                             .n_dense_layers = 1,
                             .dense_width = 333,
                             .rms_eps = 1e-5f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = 4,
                             .q_lora_rank = 96,
                             .kv_lora_rank = 64,
                             .nope_dim = 32,
                             .rope_dim = 16,
                             .v_dim = 32,
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
                             .has_indexer = true,
                             .index_heads = 4,
                             .index_dim = 64,
                             .index_topk = 32,
                             .index_full = {true, false, true},
                             .max_position = 4096,
                             .rope_gain = 1.0f};
    for (uint32_t i = 0; i < c.rope_dim / 2; i++)
        c.rope_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)c.rope_dim);
    return c;
}

static struct ops_limits limits(enum precision p, uint32_t n_threads)
{
    return (struct ops_limits){.precision = p,
                               .latent = p == PRECISION_EXACT ? LATENT_F32 : LATENT_BF16,
                               .index = p == PRECISION_EXACT ? INDEX_EXACT : INDEX_FP8,
                               .n_pages = 40,
                               .max_rows = {200, 8},
                               .max_context = 700,
                               .max_out_rows = 9,
                               .n_threads = n_threads};
}

static struct ops *open_ops(const struct model_config *c, enum precision p, uint32_t n_threads)
{
    struct ops *o;
    struct err e;
    struct ops_limits lim = limits(p, n_threads);
    CHECK_OK(cpu_ops_open(&o, c, &lim, &e), e);
    return o;
}

/* Goal: the plan is what opening reserves, to the byte, for every form; planes and workspace apart.
 */
TEST(plan_is_what_open_reserves)
{
    struct model_config c = config();
    struct err e;
    for (int i = 0; i < 48; i++) {
        struct ops_limits lim = limits((enum precision)((i + i / 3) % 3), 1 + (uint32_t)i % 3);
        lim.latent = (enum latent_form)(i / 2 % 3);
        lim.index = (enum index_form)(i / 6 % 2);
        lim.n_pages =
            i / 12 % 2 ? 700 : 3; /* small planes come from the heap, large ones are mapped */
        c.has_indexer = i < 24;
        c.n_experts = i % 5 ? 16 : 0;
        struct ops_plan plan = cpu_ops_plan(&c, &lim);
        struct ops *o;
        CHECK_OK(cpu_ops_open(&o, &c, &lim, &e), e);
        CHECK(plan.kv_bytes + plan.workspace_bytes == cpu_of(o)->reserved_bytes);
        CHECK(plan.kv_bytes >= kv_page_bytes(&c, lim.latent, lim.index) * lim.n_pages);
        size_t before = cpu_of(o)->reserved_bytes;
        char *x = o->alloc_act(o, 1000);
        CHECK(x && (uintptr_t)x % 64 == 0 && cpu_of(o)->reserved_bytes == before + 4032);
        for (int k = 0; k < 4000; k++)
            CHECK(x[k] == 0);
        o->close(o);
    }
}

TEST(page_bytes)
{
    struct model_config c = config();
    CHECK(kv_latent_page_bytes(&c, LATENT_F32) == 64 * 80 * 4);
    CHECK(kv_latent_page_bytes(&c, LATENT_BF16) == 64 * 80 * 2);
    CHECK(kv_latent_page_bytes(&c, LATENT_FP8) == 64 * (64 + 4 + 32));
    CHECK(kv_index_page_bytes(&c, INDEX_EXACT) == 64 * 64 * 4);
    CHECK(kv_index_page_bytes(&c, INDEX_FP8) == 64 * 68);
    CHECK(kv_page_bytes(&c, LATENT_BF16, INDEX_FP8) == 3 * 64 * 160 + 2 * 64 * 68);
    c.kv_lora_rank = 512;
    c.rope_dim = 64;
    c.index_dim = 128;
    c.n_layers = 61;
    for (int i = 0; i < 61; i++)
        c.index_full[i] = true;
    CHECK(kv_latent_page_bytes(&c, LATENT_FP8) == 64 * 656 &&
          kv_index_page_bytes(&c, INDEX_FP8) == 8448);
    CHECK(kv_page_bytes(&c, LATENT_FP8, INDEX_FP8) == 64 * 48068);
    c.has_indexer = false;
    CHECK(kv_index_page_bytes(&c, INDEX_FP8) == 0);
}

/* Goal: sizes that the ops cannot do are refused by name, and each reservation that fails is
 * ERR_NOMEM with everything given back (a leak checker sees that). */
TEST(open_refuses_and_fails_whole)
{
    struct model_config c = config();
    struct ops_limits lim = limits(PRECISION_FAST, 2);
    struct ops *o = NULL;
    struct err e;
    c.rope_dim = 15;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "15"));
    c = config();
    c.n_group = 3;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "16 experts"));
    c = config();
    c.n_active = 9;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "active experts: 9"));
    c = config();
    lim.n_pages = 0;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "pages 0"));
    lim = limits(PRECISION_FAST, 2);
    setenv("GAZE_SIMD", "mmx", 1);
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "mmx"));
    unsetenv("GAZE_SIMD");
    for (int i = 1; i < 1000; i++) {
        char spec[32];
        snprintf(spec, sizeof spec, "*:%d", i);
        fault_arm(spec);
        enum err_code code = cpu_ops_open(&o, &c, &lim, &e);
        bool reached = fault_passages() >= (uint64_t)i;
        fault_arm(NULL);
        if (!reached) {
            CHECK(code == ERR_OK && i > 20);
            o->close(o);
            return;
        }
        CHECK_MSG(code == ERR_NOMEM, "passage %d", i);
    }
    CHECK(!"more than a thousand reservations");
}

/* Goal: angles are formed in fp32 and turned in double, gain included. */
TEST(rotation_tables)
{
    struct model_config c = config();
    c.rope_gain = 1.5f;
    struct ops *o = open_ops(&c, PRECISION_EXACT, 2);
    for (uint32_t p = 0; p < 700; p += 233) {
        for (uint32_t i = 0; i < 8; i++) {
            float angle = (float)p * c.rope_freq[i];
            CHECK(cpu_of(o)->rope_cos[p * 8 + i] == (float)(cos((double)angle) * 1.5));
            CHECK(cpu_of(o)->rope_sin[p * 8 + i] == (float)(sin((double)angle) * 1.5));
        }
    }
    o->close(o);
}

/* ---- matrices ---- */

static struct matrix random_matrix(struct rng *r, enum dtype t, uint32_t n_out, uint32_t n_in)
{
    size_t n = (size_t)n_out * n_in, n_scale = (n_out + 127) / 128 * (size_t)((n_in + 127) / 128);
    void *data = malloc(n * dtype_bytes(t));
    float *scale = t == DT_F8_E4M3 ? malloc(n_scale * sizeof *scale) : NULL;
    CHECK(data && (scale || t != DT_F8_E4M3));
    for (size_t i = 0; i < n; i++) {
        float v = rng_normal(r) * 0.1f;
        if (t == DT_F32)
            ((float *)data)[i] = v;
        else if (t == DT_BF16)
            ((uint16_t *)data)[i] = bf16_round(v);
        else if (t == DT_F16) /* 2^-4 .. 2^-3 with either sign */
            ((uint16_t *)data)[i] = (uint16_t)((rng_next(r) & 0x83FFu) | 11u << 10);
        else
            ((uint8_t *)data)[i] = e4m3_round(v * 8);
    }
    for (size_t i = 0; scale && i < n_scale; i++)
        scale[i] = 0.1f + 0.1f * rng_unit((uint32_t)rng_next(r));
    return (struct matrix){data, t, scale, n_out, n_in, 0};
}

static void free_matrix(struct matrix *m)
{
    free((void *)(uintptr_t)m->data);
    free((void *)(uintptr_t)m->scale);
}

static double at(const struct matrix *m, uint32_t j, uint32_t k)
{
    size_t i = (size_t)j * m->n_in + k;
    switch (m->dtype) {
    case DT_F32:
        return (double)((const float *)m->data)[i];
    case DT_F16:
        return (double)f16_value(((const uint16_t *)m->data)[i]);
    case DT_BF16:
        return (double)bf16_value(((const uint16_t *)m->data)[i]);
    default:
        return (double)e4m3_value(((const uint8_t *)m->data)[i]) *
               (double)m->scale[j / 128 * ((m->n_in + 127) / 128) + k / 128];
    }
}

static const enum dtype DTYPES[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3};

/* Goal: y = W x for every weight format; x as a sum of two bf16 in the fast precision where W is
 * bf16 or fp8; the same bits for one row, any rows, and any number of threads. */
TEST_LIMIT(linear_every_dtype, 60)
{
    struct rng r = {test_seed()};
    struct model_config c = config();
    enum { N = 150 };
    for (int fast = 0; fast < 2; fast++) {
        struct ops *o = open_ops(&c, fast ? PRECISION_FAST : PRECISION_EXACT, 1);
        struct ops *many = open_ops(&c, fast ? PRECISION_FAST : PRECISION_EXACT, 3);
        for (int d = 0; d < 4; d++) {
            struct matrix w = random_matrix(&r, DTYPES[d], 333, 160);
            float *x = o->alloc_act(o, N * 160), *y = o->alloc_act(o, N * 333),
                  *z = o->alloc_act(o, N * 333);
            for (int i = 0; i < N * 160; i++)
                x[i] = rng_normal(&r);
            o->linear(o, LANE_PREFILL, &w, x, N, y, false);
            bool split = fast && d >= 2;
            for (uint32_t i = 0; i < N; i += 7) {
                for (uint32_t j = 0; j < 333; j++) {
                    double sum = 0, size = 0;
                    for (uint32_t k = 0; k < 160; k++) {
                        float xk = x[i * 160 + k];
                        double term = at(&w, j, k) * (double)xk;
                        sum += term;
                        size += fabs(term);
                    }
                    /* fp32 sums of 160 terms; a split row adds 2^-16 of each term */
                    double limit = split ? 4e-6 + 0x1p-16 : 4e-6;
                    CHECK_MSG(fabs((double)y[i * 333 + j] - sum) <= size * limit, "dtype %d", d);
                }
            }
            many->linear(many, LANE_PREFILL, &w, x, N, z, false);
            CHECK(!memcmp(y, z, N * 333 * sizeof *y));
            for (uint32_t i = 0; i < N; i++)
                many->linear(many, LANE_DECODE, &w, x + i * 160, 1, z + i * 333, false);
            CHECK(!memcmp(y, z, N * 333 * sizeof *y));
            o->linear(o, LANE_PREFILL, &w, x, N, z, true);
            for (int i = 0; i < N * 333; i++)
                CHECK(z[i] == y[i] + y[i]);

            /* more rows than the buffer of rounded rows holds, and a part of W's rows */
            struct product p = {
                .w = &w, .out0 = 130, .n_out = 77, .x = x, .ldx = 160, .n = N, .y = z, .ldy = 90};
            cpu_product(cpu_of(many), LANE_DECODE, &p);
            for (uint32_t i = 0; i < N; i++)
                CHECK(!memcmp(z + i * 90, y + i * 333 + 130, 77 * sizeof *z));
            free_matrix(&w);
        }
        o->close(o);
        many->close(many);
    }
}

/* Goal: PRECISION_FP8 is the exact precision on rows rounded to W's type: bit by bit, since that is
 * how it is defined; and fp32 and f16 weights see the rows as they are. */
TEST(linear_as_deployed)
{
    struct rng r = {test_seed()};
    struct model_config c = config();
    enum { N = 40, IN = 300, OUT = 70 };
    struct ops *exact = open_ops(&c, PRECISION_EXACT, 1), *o = open_ops(&c, PRECISION_FP8, 3);
    for (int d = 0; d < 4; d++) {
        struct matrix w = random_matrix(&r, DTYPES[d], OUT, IN);
        float *x = o->alloc_act(o, N * IN), *rounded = o->alloc_act(o, N * IN),
              *y = o->alloc_act(o, N * OUT), *z = o->alloc_act(o, N * OUT);
        uint8_t code[128];
        for (int i = 0; i < N * IN; i++)
            rounded[i] = x[i] = rng_normal(&r) * (i < IN ? 1e-6f : 1.0f);
        for (int i = 0; DTYPES[d] == DT_BF16 && i < N * IN; i++)
            rounded[i] = bf16_value(bf16_round(x[i]));
        for (int i = 0; DTYPES[d] == DT_F8_E4M3 && i < N; i++)
            for (int k = 0; k < IN; k += 128) {
                int n = IN - k < 128 ? IN - k : 128;
                float scale = e4m3_quantise(x + i * IN + k, (size_t)n, code);
                for (int j = 0; j < n; j++)
                    rounded[i * IN + k + j] = e4m3_value(code[j]) * scale;
            }
        exact->linear(exact, LANE_PREFILL, &w, rounded, N, y, false);
        o->linear(o, LANE_PREFILL, &w, x, N, z, false);
        CHECK(!memcmp(y, z, N * OUT * sizeof *y));
        CHECK((d < 2) == !memcmp(x, rounded, N * IN * sizeof *x));
        for (int i = 0; i < N; i++)
            o->linear(o, LANE_DECODE, &w, x + i * IN, 1, z + i * OUT, false);
        CHECK(!memcmp(y, z, N * OUT * sizeof *y));
        free_matrix(&w);
    }
    o->close(o);
    exact->close(exact);
}

TEST(embed_norm_logits)
{
    struct rng r = {test_seed()};
    struct model_config c = config();
    for (int d = 0; d < 4; d++) {
        struct ops *o = open_ops(&c, PRECISION_EXACT, 2);
        struct matrix w = random_matrix(&r, DTYPES[d], c.vocab_size, c.hidden_size);
        uint32_t token[200], page[4] = {3, 1, 0, 2}, out_row[9];
        float gain[160], *x = o->alloc_act(o, 200 * 160), *y = o->alloc_act(o, 200 * 160);
        for (int i = 0; i < 160; i++)
            gain[i] = rng_normal(&r);
        for (uint32_t i = 0; i < 200; i++)
            token[i] = rng_below(&r, c.vocab_size);
        for (uint32_t i = 0; i < 9; i++)
            out_row[i] = i * 22;
        struct step_seq seq = {.n_rows = 200, .page = page, .top_k = TOP_K_DENSE};
        struct step s = {.n_rows = 200,
                         .n_seqs = 1,
                         .token = token,
                         .seq = &seq,
                         .n_out = 9,
                         .out_row = out_row};
        struct err e;
        o->begin(o, LANE_PREFILL, &s);
        o->embed(o, LANE_PREFILL, &w, x);
        for (uint32_t i = 0; i < 200; i++)
            for (uint32_t k = 0; k < 160; k++)
                CHECK(x[i * 160 + k] == (float)at(&w, token[i], k));
        o->rms_norm(o, LANE_PREFILL, x, gain, 1e-5f, 200, 160, y);
        for (uint32_t i = 0; i < 200; i++) {
            double squares = 0;
            for (uint32_t k = 0; k < 160; k++)
                squares += pow((double)x[i * 160 + k], 2);
            for (uint32_t k = 0; k < 160; k++) {
                double want = (double)x[i * 160 + k] / sqrt(squares / 160 + 1e-5) * (double)gain[k];
                CHECK(fabs((double)y[i * 160 + k] - want) <= fabs(want) * 1e-6);
            }
        }
        const float *logits = o->logits(o, LANE_PREFILL, x, gain, &w, 2, 7);
        for (uint32_t i = 0; i < 7; i++) {
            for (uint32_t j = 0; j < c.vocab_size; j++) {
                double sum = 0, size = 0;
                for (uint32_t k = 0; k < 160; k++) {
                    double term = at(&w, j, k) * (double)y[out_row[i + 2] * 160 + k];
                    sum += term;
                    size += fabs(term);
                }
                CHECK(fabs((double)logits[i * c.vocab_size + j] - sum) <= size * 4e-6);
            }
        }
        CHECK_OK(o->finish(o, LANE_PREFILL, &e), e);
        free_matrix(&w);
        o->close(o);
    }
}
