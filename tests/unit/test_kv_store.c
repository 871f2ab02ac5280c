/* test_kv_store.c - what a step leaves in its slots: values, layout, and nothing anywhere else. */
#include "cpu/kv.h"
#include "dsa_rig.h"

static double gain(uint32_t which, uint32_t i)
{
    return (double)rig_gain(which)[i];
}

/* The latent and the key of position t before any rounding. */
static void latent_reference(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t,
                             double *out)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank, dr = c->rope_dim;
    const float *x = s->kv_raw + (size_t)t * (r + dr);
    double squares = 0;
    for (uint32_t i = 0; i < r; i++)
        squares += (double)x[i] * (double)x[i];
    double f = 1.0 / sqrt(squares / r + (double)c->low_rank_eps);
    for (uint32_t i = 0; i < r; i++)
        out[i] = (double)x[i] * f * gain(0, i);
    for (uint32_t i = 0; i < dr / 2; i++) {
        double angle = (double)((float)t * c->rope_freq[i]), a = (double)x[r + 2 * i];
        double d = (double)x[r + 2 * i + 1];
        out[r + 2 * i] = a * cos(angle) - d * sin(angle);
        out[r + 2 * i + 1] = a * sin(angle) + d * cos(angle);
    }
}

/* The index key of position t before Hadamard and rounding. */
static void key_reference(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t,
                          double *y)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = c->index_dim, half = c->rope_dim / 2;
    const float *x = s->k_raw + (size_t)t * n;
    double mean = 0, var = 0;
    for (uint32_t i = 0; i < n; i++)
        mean += (double)x[i] / n;
    for (uint32_t i = 0; i < n; i++)
        var += ((double)x[i] - mean) * ((double)x[i] - mean) / n;
    for (uint32_t i = 0; i < n; i++)
        y[i] = ((double)x[i] - mean) / sqrt(var + 1e-6) * gain(1, i) + gain(2, i);
    for (uint32_t i = 0; i < half; i++) {
        double angle = (double)((float)t * c->rope_freq[i]);
        uint32_t i0 = c->index_rope_interleaved ? 2 * i : i;
        uint32_t i1 = c->index_rope_interleaved ? 2 * i + 1 : i + half;
        double a = y[i0], d = y[i1];
        y[i0] = a * cos(angle) - d * sin(angle);
        y[i1] = a * sin(angle) + d * cos(angle);
    }
}

static double power_of_two_scale(double amax)
{
    return exp2(ceil(log2((amax > 1e-4 ? amax : 1e-4) / 448.0)));
}

/* One step of e4m3 at |x| (scaled): half of it is the most that rounding may move a value. */
static double e4m3_step(double x)
{
    double a = fabs(x) < 0x1p-6 ? 0x1p-6 : fabs(x);
    return exp2(floor(log2(a)) - 3.0);
}

static void check_latent(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t)
{
    const struct model_config *c = b->ops.cfg;
    enum latent_form form = b->ops.limits.latent;
    uint32_t r = c->kv_lora_rank, n = r + c->rope_dim;
    struct step_seq seq = {.page = s->page};
    double want[4096];
    float got[4096];
    latent_reference(b, s, t, want);
    kv_load(b, 0, &seq, t, got);
    const unsigned char *rec =
        b->latent[0] + s->page[t / 64] * b->latent_page_bytes + t % 64 * kv_record_bytes(c, form);
    for (uint32_t i = 0; i < n; i++) {
        double tolerance = 2e-6 * (1.0 + fabs(want[i]));
        if (form != LATENT_F32 && (i >= r || form == LATENT_BF16)) {
            tolerance += fabs(want[i]) / 256;
        } else if (form == LATENT_FP8) {
            float scale;
            double amax = 0;
            uint32_t g0 = i / 128 * 128, g1 = g0 + 128 < r ? g0 + 128 : r;
            for (uint32_t k = g0; k < g1; k++)
                amax = fabs(want[k]) > amax ? fabs(want[k]) : amax;
            memcpy(&scale, rec + r + i / 128 * 4, 4);
            CHECK_MSG((double)scale == power_of_two_scale(amax), "t %u group %u scale %g for %g", t,
                      i / 128, (double)scale, amax);
            CHECK(got[i] == e4m3_value(rec[i]) * scale);
            tolerance += 0.5 * (double)scale * e4m3_step(want[i] / (double)scale);
        }
        CHECK_MSG(fabs((double)got[i] - want[i]) <= tolerance, "form %d t %u value %u: %g, not %g",
                  (int)form, t, i, (double)got[i], want[i]);
    }
}

static void check_key(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = c->index_dim;
    double key[1024], turned[1024], amax = 0;
    const unsigned char *page = b->index[0] + s->page[t / 64] * b->index_page_bytes;
    key_reference(b, s, t, key);
    if (b->ops.limits.index == INDEX_EXACT) {
        const float *got = (const float *)(const void *)page + t % 64 * n;
        for (uint32_t i = 0; i < n; i++)
            CHECK_MSG(fabs((double)got[i] - key[i]) < 1e-5, "t %u key %u: %g, not %g", t, i,
                      (double)got[i], key[i]);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        turned[i] = 0;
        for (uint32_t k = 0; k < n; k++) /* the matrix as the text defines it */
            turned[i] += (__builtin_popcount(i & k) % 2 ? -1.0 : 1.0) * key[k] / sqrt((double)n);
        amax = fabs(turned[i]) > amax ? fabs(turned[i]) : amax;
    }
    float scale;
    memcpy(&scale, page + 64 * (size_t)n + t % 64 * 4, 4);
    CHECK(scale > 0 && log2((double)scale) == floor(log2((double)scale)));
    CHECK((double)scale >= power_of_two_scale(amax * 0.98) &&
          (double)scale <= power_of_two_scale(amax * 1.02));
    for (uint32_t i = 0; i < n; i++) {
        double got = (double)(e4m3_value(page[t % 64 * n + i]) * scale);
        /* a bf16 rounding of each key (some of them add up), one of the sum, one of e4m3 */
        double tolerance = 0.02 * amax / sqrt((double)n) * 4 + fabs(turned[i]) / 200 +
                           0.51 * (double)scale * e4m3_step(turned[i] / (double)scale * 1.01);
        CHECK_MSG(fabs(got - turned[i]) <= tolerance, "t %u key %u: %g, not %g", t, i, got,
                  turned[i]);
    }
}

/* Copies of both planes, so that two runs can be compared byte by byte. */
static unsigned char *planes(const struct cpu_backend *b)
{
    size_t a = b->latent_page_bytes * RIG_PAGES, n = b->index_page_bytes * RIG_PAGES;
    unsigned char *copy = malloc(a + n);
    CHECK(copy);
    memcpy(copy, b->latent[0], a);
    memcpy(copy + a, b->index[0], n);
    return copy;
}

TEST_LIMIT(kv_store_every_form_and_cut, 60)
{
    struct rng r = {test_seed()};
    static const uint32_t lora[] = {64, 73, 128, 136, 512}, chunks[] = {300, 1, 7, 64, 100};
    for (int lf = 0; lf < 3; lf++)
        for (int xf = 0; xf < 2; xf++)
            for (int k = 0; k < 5; k++) {
                struct model_config c = rig_config();
                struct ops_limits lim = rig_limits((enum latent_form)lf, (enum index_form)xf, 2);
                struct rig_seq s[2];
                unsigned char *first = NULL;
                c.kv_lora_rank = lora[k];
                c.index_rope_interleaved = k % 2;
                c.index_dim = k == 4 ? 128 : 32;
                c.index_topk = 2000;
                rig_seq_init(&s[0], &c, &r, 170, TOP_K_DENSE, 0);
                rig_seq_init(&s[1], &c, &r, 64, TOP_K_DENSE, 0);
                rig_pages(s, 2, &r);
                memset(s[0].kv_raw, 0, 4 * (size_t)c.kv_lora_rank); /* a latent of zeros */
                for (int cut = 0; cut < 5; cut++) {
                    struct cpu_backend *b = rig_open(&c, &lim);
                    rig_run(b, LANE_PREFILL, s, 2, chunks[cut], NULL);
                    for (int i = 0; !cut && i < 2; i++)
                        for (uint32_t t = 0; t < s[i].n; t++) {
                            check_latent(b, &s[i], t);
                            check_key(b, &s[i], t);
                        }
                    unsigned char *now = planes(b);
                    size_t bytes = (b->latent_page_bytes + b->index_page_bytes) * RIG_PAGES, n = 0;
                    CHECK_MSG(!first || !memcmp(first, now, bytes), "chunks of %u", chunks[cut]);
                    for (size_t i = 0; i < bytes; i++)
                        n += now[i] != 0xFF;
                    CHECK(n <= 234 * (b->latent_page_bytes + b->index_page_bytes) / 64);
                    free(first);
                    first = now;
                    b->ops.close(&b->ops);
                }
                free(first);
                rig_seq_free(&s[0]);
                rig_seq_free(&s[1]);
            }
}

TEST(kv_hadamard)
{
    float x[128] = {1.0f}, y[128];
    hadamard(x, 128);
    for (int i = 0; i < 128; i++)
        CHECK(fabsf(x[i] - 0.0883883476f) < 1e-7f);
    struct rng r = {8};
    for (int i = 0; i < 128; i++)
        x[i] = y[i] = rng_normal(&r);
    hadamard(y, 128);
    hadamard(y, 128);
    for (int i = 0; i < 128; i++)
        CHECK(fabsf(x[i] - y[i]) < 1e-5f);
}

TEST(kv_refuses_what_it_cannot_do)
{
    struct ops *o;
    struct err e;
    struct ops_limits lim = rig_limits(LATENT_FP8, INDEX_FP8, 1);
    struct model_config c = rig_config();
    c.index_dim = 48;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "48"));
    c = rig_config();
    c.index_dim = 8;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "16") &&
          strstr(e.msg, "8"));
    c = rig_config();
    c.rope_dim = 15;
    CHECK(cpu_ops_open(&o, &c, &lim, &e) == ERR_INVALID && strstr(e.msg, "15"));
    c = rig_config();
    c.index_dim = 48; /* the exact form has no Hadamard matrix */
    lim.index = INDEX_EXACT;
    CHECK_OK(cpu_ops_open(&o, &c, &lim, &e), e);
    o->close(o);
}
