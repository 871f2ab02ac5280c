/* test_attend.c - attention against the formulas in double, in every form, and its independence of
 * chunks, lanes, threads and pages. */
#include "cpu/kv.h"
#include "dsa_rig.h"

/* kv_b of some dtype, and the same values as fp32. */
struct kv_b {
    struct matrix m;
    void *data;
    float *scale, *value;
};

static void kv_b_init(struct kv_b *w, const struct model_config *c, enum dtype t, struct rng *r)
{
    uint32_t n_out = c->n_heads * (c->nope_dim + c->v_dim), n_in = c->kv_lora_rank;
    size_t n = (size_t)n_out * n_in, blocks = (n_in + 127) / 128;
    w->data = malloc(4 * n);
    w->value = malloc(4 * n);
    w->scale = malloc(4 * blocks * ((n_out + 127) / 128));
    CHECK(w->data && w->value && w->scale);
    for (size_t i = 0; i < blocks * ((n_out + 127) / 128); i++)
        w->scale[i] = 0.001f + 0.0005f * (float)(i % 7);
    for (size_t i = 0; i < n; i++) {
        float x = 0.1f * rng_normal(r), *v = &w->value[i];
        if (t == DT_F32) {
            ((float *)w->data)[i] = *v = x;
        } else if (t == DT_BF16) {
            *v = bf16_value(((uint16_t *)w->data)[i] = bf16_round(x));
        } else if (t == DT_F16) {
            *v = f16_value(((uint16_t *)w->data)[i] =
                               (uint16_t)(0x2800 + rng_below(r, 4096) + (rng_below(r, 2) << 15)));
        } else {
            ((uint8_t *)w->data)[i] = e4m3_round(x * 500.0f);
            *v = e4m3_value(((uint8_t *)w->data)[i]) *
                 w->scale[i / n_in / 128 * blocks + i % n_in / 128];
        }
    }
    w->m = (struct matrix){w->data, t, t == DT_F8_E4M3 ? w->scale : NULL, n_out, n_in, 0};
}

static void kv_b_free(struct kv_b *w)
{
    free(w->data);
    free(w->value);
    free(w->scale);
}

/* out[heads * v] of position t of s over list[0, n), from the stored latents. */
static void reference(const struct cpu_backend *b, const struct rig_seq *s, const float *value,
                      uint32_t t, const int32_t *list, uint32_t n, double *out)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank, dn = c->nope_dim, dr = c->rope_dim, dv = c->v_dim;
    struct step_seq seq = {.page = s->page};
    float *lat = malloc(4 * (size_t)n * (r + dr));
    double *p = malloc(8 * (size_t)n), *qt = malloc(8 * (size_t)r), *z = malloc(8 * (size_t)r);
    CHECK(lat && p && qt && z);
    for (uint32_t i = 0; i < n; i++)
        kv_load(b, 0, &seq, list ? (uint32_t)list[i] : i, lat + (size_t)i * (r + dr));
    for (uint32_t h = 0; h < c->n_heads; h++) {
        const float *q = s->q + ((size_t)t * c->n_heads + h) * (dn + dr);
        const float *w = value + (size_t)h * (dn + dv) * r;
        double qr[128], max = -1e300, sum = 0;
        for (uint32_t i = 0; i < dr / 2; i++) {
            double a = (double)q[dn + 2 * i], e = (double)q[dn + 2 * i + 1];
            double cs = (double)b->rope_cos[t * (dr / 2) + i],
                   sn = (double)b->rope_sin[t * (dr / 2) + i];
            qr[2 * i] = a * cs - e * sn;
            qr[2 * i + 1] = a * sn + e * cs;
        }
        for (uint32_t k = 0; k < r; k++) {
            qt[k] = z[k] = 0;
            for (uint32_t d = 0; d < dn; d++)
                qt[k] += (double)q[d] * (double)w[d * r + k];
        }
        for (uint32_t i = 0; i < n; i++) {
            const float *x = lat + (size_t)i * (r + dr);
            p[i] = 0;
            for (uint32_t k = 0; k < r; k++)
                p[i] += qt[k] * (double)x[k];
            for (uint32_t d = 0; d < dr; d++)
                p[i] += qr[d] * (double)x[r + d];
            p[i] *= (double)c->softmax_scale;
            max = p[i] > max ? p[i] : max;
        }
        for (uint32_t i = 0; i < n; i++)
            sum += p[i] = exp(p[i] - max);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t k = 0; k < r; k++)
                z[k] += p[i] / sum * (double)lat[(size_t)i * (r + dr) + k];
        for (uint32_t d = 0; d < dv; d++) {
            double o = 0;
            for (uint32_t k = 0; k < r; k++)
                o += (double)w[(dn + d) * r + k] * z[k];
            out[h * dv + d] = o;
        }
    }
    free(lat);
    free(p);
    free(qt);
    free(z);
}

/* fp32 sums of some hundred terms: 1e-4 of the largest output leaves an order of magnitude. */
static void check_row(const struct cpu_backend *b, const struct rig_seq *s, const float *value,
                      uint32_t t, double tolerance, const char *what)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t width = c->n_heads * c->v_dim, n = t + 1;
    double want[4096], largest = 0;
    const int32_t *list = NULL;
    if (c->has_indexer && t >= s->top_k) {
        list = s->sel + (size_t)t * c->index_topk;
        for (n = 0; n < c->index_topk && list[n] >= 0; n++)
            CHECK((uint32_t)list[n] <= t && (!n || list[n] > list[n - 1]));
        CHECK_MSG(n == (s->top_k < c->index_topk ? s->top_k : c->index_topk),
                  "%s t %u: %u selected", what, t, n);
    }
    reference(b, s, value, t, list, n, want);
    for (uint32_t i = 0; i < width; i++)
        largest = fabs(want[i]) > largest ? fabs(want[i]) : largest;
    for (uint32_t i = 0; i < width; i++) {
        double got = (double)s->out[(size_t)t * width + i];
        CHECK_MSG(fabs(got - want[i]) <= tolerance * largest, "%s t %u value %u: %g, not %g", what,
                  t, i, got, want[i]);
    }
}

enum { N_SEQS = 4 };
static void make_seqs(struct rig_seq *s, const struct model_config *c, struct rng *r)
{
    rig_seq_init(&s[0], c, r, 210, 40, 40);           /* expanded up to the top-k, then sparse */
    rig_seq_init(&s[1], c, r, 130, 24, 0);            /* a smaller top-k, all absorbed */
    rig_seq_init(&s[2], c, r, 261, TOP_K_DENSE, 150); /* dense: expanded, then absorbed */
    rig_seq_init(&s[3], c, r, 65, 500, 30);           /* never gets to its top-k */
    rig_pages(s, N_SEQS, r);
}

/* All combinations, or a quarter of them that has every value of each. */
static void every_form(bool all)
{
    struct rng r = {test_seed()};
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_F16, DT_F8_E4M3};
    for (int lf = 0; lf < 3; lf++)
        for (int xf = 0; xf < 2; xf++)
            for (int precision = 0; precision < 2; precision++)
                for (int d = 0; d < 4; d++) {
                    if (!all && (lf + 2 * xf + precision + d) % 4)
                        continue;
                    struct model_config c = rig_config();
                    struct ops_limits lim =
                        rig_limits((enum latent_form)lf, (enum index_form)xf, 2);
                    lim.precision = (enum precision)precision;
                    struct cpu_backend *b = rig_open(&c, &lim);
                    struct rig_seq s[N_SEQS];
                    struct kv_b w;
                    char what[64];
                    kv_b_init(&w, &c, dtypes[d], &r);
                    make_seqs(s, &c, &r);
                    rig_run(b, LANE_PREFILL, s, N_SEQS, 100, &w.m);
                    snprintf(what, sizeof what, "latent %s index %d precision %d weights %s",
                             latent_name((enum latent_form)lf), xf, precision,
                             dtype_name(dtypes[d]));
                    for (int i = 0; i < N_SEQS; i++)
                        for (uint32_t t = 0; t < s[i].n; t += t < 20 ? 1 : 17)
                            check_row(b, &s[i], w.value, t, precision ? 2e-2 : 1e-4, what);
                    for (int i = 0; i < N_SEQS; i++)
                        rig_seq_free(&s[i]);
                    kv_b_free(&w);
                    b->ops.close(&b->ops);
                }
}

TEST_LIMIT(attend_every_form, 60)
{
    every_form(true);
}

TEST_LIMIT(attend_every_form_avx2, 60)
{
    rig_use_table("avx2");
    every_form(false);
}

TEST_LIMIT(attend_every_form_portable, 60)
{
    rig_use_table("portable");
    every_form(false);
}

/* Goal:   a row's bits are its own.
 * Method: the same sequences in steps of 1, 7, 64, 100 and 300 tokens, in both lanes, with 1 and 2
 * threads, on other pages, alone and together; unreferenced slots hold NaN throughout. */
static void same_bits(int n_runs)
{
    struct rng r = {test_seed()};
    static const uint32_t chunks[] = {300, 1, 7, 64, 100};
    for (int lf = 0; lf < 3; lf++)
        for (int precision = 0; precision < 2; precision++) {
            struct model_config c = rig_config();
            struct rig_seq s[N_SEQS];
            struct kv_b w;
            float *first[N_SEQS];
            kv_b_init(&w, &c, lf == 2 ? DT_F8_E4M3 : DT_BF16, &r);
            make_seqs(s, &c, &r);
            for (int k = 0; k < n_runs; k++) {
                struct ops_limits lim = rig_limits(
                    (enum latent_form)lf, lf ? INDEX_FP8 : INDEX_EXACT, 1 + (uint32_t)k % 2);
                lim.precision = (enum precision)precision;
                struct cpu_backend *b = rig_open(&c, &lim);
                rig_pages(s, N_SEQS, &r);
                enum lane l = k % 3 ? LANE_PREFILL : LANE_DECODE;
                if (k == 4)
                    for (int i = 0; i < N_SEQS; i++)
                        rig_run(b, l, &s[i], 1, chunks[k % 5], &w.m);
                else
                    rig_run(b, l, s, N_SEQS, chunks[k % 5], &w.m);
                for (int i = 0; i < N_SEQS; i++) {
                    size_t bytes = sizeof(float) * s[i].n * c.n_heads * c.v_dim;
                    if (!k) {
                        first[i] = malloc(bytes);
                        CHECK(first[i]);
                        memcpy(first[i], s[i].out, bytes);
                    }
                    for (size_t j = 0; j < bytes / 4; j++)
                        CHECK_MSG(!memcmp(&first[i][j], &s[i].out[j], 4),
                                  "run %d latent %s sequence %d position %zu: %a, first %a", k,
                                  latent_name((enum latent_form)lf), i, j / (c.n_heads * c.v_dim),
                                  (double)s[i].out[j], (double)first[i][j]);
                }
                b->ops.close(&b->ops);
            }
            for (int i = 0; i < N_SEQS; i++) {
                free(first[i]);
                rig_seq_free(&s[i]);
            }
            kv_b_free(&w);
        }
}

TEST_LIMIT(attend_same_bits_however_it_is_cut, 60)
{
    same_bits(10);
}

TEST_LIMIT(attend_same_bits_however_it_is_cut_avx2, 60)
{
    rig_use_table("avx2");
    same_bits(3);
}

TEST_LIMIT(attend_same_bits_however_it_is_cut_portable, 60)
{
    rig_use_table("portable");
    same_bits(3);
}

/* Partial results are merged every 1024 positions, and a model without an indexer sees everything.
 */
TEST_LIMIT(attend_dense_long, 60)
{
    struct rng r = {5};
    struct model_config c = rig_config();
    c.has_indexer = false;
    c.index_full[0] = false;
    c.kv_lora_rank = 40;
    struct ops_limits lim = rig_limits(LATENT_F32, INDEX_EXACT, 2);
    struct cpu_backend *b = rig_open(&c, &lim);
    struct rig_seq s;
    struct kv_b w;
    kv_b_init(&w, &c, DT_F32, &r);
    rig_seq_init(&s, &c, &r, 2200, TOP_K_DENSE, 0);
    rig_pages(&s, 1, &r);
    rig_run(b, LANE_PREFILL, &s, 1, 500, &w.m);
    static const uint32_t at[] = {0, 1, 62, 63, 64, 1022, 1023, 1024, 1025, 1087, 2047, 2048, 2199};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        check_row(b, &s, w.value, at[i], 1e-4, "dense");
    /* one long row at a time, as decode has it, and with one thread */
    float *first = malloc(4 * (size_t)s.n * c.n_heads * c.v_dim);
    CHECK(first);
    memcpy(first, s.out, 4 * (size_t)s.n * c.n_heads * c.v_dim);
    s.pos0 = 2030; /* from 2048 on, splits run side by side when there are threads to spare */
    memset(s.out + (size_t)s.pos0 * c.n_heads * c.v_dim, 0,
           4 * (size_t)(s.n - s.pos0) * c.n_heads * c.v_dim);
    rig_run(b, LANE_DECODE, &s, 1, 1, &w.m);
    CHECK(!memcmp(first, s.out, 4 * (size_t)s.n * c.n_heads * c.v_dim));
    free(first);
    rig_seq_free(&s);
    kv_b_free(&w);
    b->ops.close(&b->ops);
}

/* The two forms are the same mathematics: they agree to rounding. */
TEST(attend_expanded_equals_absorbed)
{
    struct rng r = {6};
    struct model_config c = rig_config();
    struct ops_limits lim = rig_limits(LATENT_FP8, INDEX_FP8, 2);
    struct cpu_backend *b = rig_open(&c, &lim);
    struct rig_seq s;
    struct kv_b w;
    kv_b_init(&w, &c, DT_F8_E4M3, &r);
    rig_seq_init(&s, &c, &r, 300, TOP_K_DENSE, 300);
    rig_pages(&s, 1, &r);
    rig_run(b, LANE_PREFILL, &s, 1, 300, &w.m);
    size_t n = (size_t)s.n * c.n_heads * c.v_dim;
    float *expanded = malloc(4 * n);
    CHECK(expanded);
    memcpy(expanded, s.out, 4 * n);
    s.expand_below = 0;
    rig_run(b, LANE_PREFILL, &s, 1, 300, &w.m);
    for (size_t i = 0; i < n; i++)
        CHECK_MSG(fabsf(expanded[i] - s.out[i]) < 2e-4f, "value %zu: %g and %g", i,
                  (double)expanded[i], (double)s.out[i]);
    free(expanded);
    rig_seq_free(&s);
    kv_b_free(&w);
    b->ops.close(&b->ops);
}
