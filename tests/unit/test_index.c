/* test_index.c - index_select: scores against double, exact selection, independence of the cut. */
#include "cpu/kv.h"
#include "dsa_rig.h"

/* The queries of position t as the scores see them, in double, with their scale folded in. */
static void query_reference(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t,
                            uint32_t h, double *q)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = c->index_dim, half = c->rope_dim / 2;
    const float *x = s->iq + ((size_t)t * c->index_heads + h) * n;
    float y[1024];
    memcpy(y, x, 4 * (size_t)n);
    for (uint32_t i = 0; i < half; i++) {
        float cs = b->rope_cos[(size_t)t * half + i], sn = b->rope_sin[(size_t)t * half + i];
        uint32_t i0 = c->index_rope_interleaved ? 2 * i : i;
        uint32_t i1 = c->index_rope_interleaved ? 2 * i + 1 : i + half;
        y[i0] = x[i0] * cs - x[i1] * sn;
        y[i1] = x[i0] * sn + x[i1] * cs;
    }
    if (b->ops.limits.index == INDEX_EXACT) {
        for (uint32_t i = 0; i < n; i++)
            q[i] = (double)y[i];
        return;
    }
    uint8_t code[1024];
    float scale = index_quantise(y, n, code);
    for (uint32_t i = 0; i < n; i++)
        q[i] = (double)e4m3_value(code[i]) * (double)scale;
}

/* Scores of all positions that t sees, from the keys as they are stored. */
static void score_reference(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t,
                            double *score)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t n = c->index_dim;
    memset(score, 0, sizeof(double) * (t + 1));
    for (uint32_t h = 0; h < c->index_heads; h++) {
        double q[1024];
        query_reference(b, s, t, h, q);
        double w = (double)s->iw[(size_t)t * c->index_heads + h] / sqrt((double)c->index_heads) /
                   sqrt((double)n);
        for (uint32_t p = 0; p <= t; p++) {
            const unsigned char *page = b->index[0] + s->page[p / 64] * b->index_page_bytes;
            double dot = 0;
            float scale;
            memcpy(&scale, page + 64 * (size_t)n + p % 64 * 4, 4);
            for (uint32_t i = 0; i < n; i++)
                dot += q[i] * (b->ops.limits.index == INDEX_EXACT
                                   ? (double)((const float *)(const void *)page)[p % 64 * n + i]
                                   : (double)e4m3_value(page[p % 64 * n + i]) * (double)scale);
            score[p] += w * (dot > 0 ? dot : 0);
        }
    }
}

/* Selected scores are at least, and others at most, the k-th largest, up to the rounding of fp32.
 */
static void check_row(const struct cpu_backend *b, const struct rig_seq *s, uint32_t t)
{
    const struct model_config *c = b->ops.cfg;
    const int32_t *sel = s->sel + (size_t)t * c->index_topk;
    uint32_t k = s->top_k < c->index_topk ? s->top_k : c->index_topk, n_larger = 0;
    if (t < s->top_k) {
        CHECK_MSG(sel[0] == 0x55555555, "t %u sees all: its selection is left alone", t);
        return;
    }
    double *score = malloc(sizeof(double) * (t + 1)), worst = INFINITY, largest = 0;
    bool *in = calloc(t + 1, 1);
    CHECK(score && in);
    score_reference(b, s, t, score);
    for (uint32_t i = 0; i < c->index_topk; i++) {
        if (i >= k) {
            CHECK_MSG(sel[i] == -1, "t %u entry %u is %d, not -1", t, i, sel[i]);
            continue;
        }
        CHECK_MSG(sel[i] >= 0 && (uint32_t)sel[i] <= t && (!i || sel[i] > sel[i - 1]),
                  "t %u entry %u is %d", t, i, sel[i]);
        in[sel[i]] = true;
        worst = score[sel[i]] < worst ? score[sel[i]] : worst;
    }
    for (uint32_t p = 0; p <= t; p++)
        largest = fabs(score[p]) > largest ? fabs(score[p]) : largest;
    for (uint32_t p = 0; p <= t; p++) {
        n_larger += !in[p] && score[p] > worst;
        CHECK_MSG(in[p] || score[p] <= worst + 1e-5 * largest, "t %u: %u has %g, worst taken %g", t,
                  p, score[p], worst);
        /* a ReLU leaves exact zeros, where both sides agree: the lower position comes first */
        if (in[p] && score[p] == 0 && worst == 0)
            for (uint32_t o = 0; o < p; o++)
                CHECK_MSG(in[o] || score[o] < 0, "t %u: %u before its equal %u", t, p, o);
    }
    CHECK_MSG(n_larger <= 1 + k / 20, "t %u: %u larger scores left out", t, n_larger);
    free(score);
    free(in);
}

enum { N_SEQS = 4 };

static void every_form_and_cut(int n_runs)
{
    struct rng r = {test_seed()};
    static const uint32_t heads[] = {3, 4, 4, 9, 1}, dims[] = {32, 64, 128, 16, 64};
    static const uint32_t chunks[] = {300, 1, 7, 64, 100, 500};
    for (int xf = 0; xf < 2; xf++)
        for (int k = 0; k < 5; k++) {
            struct model_config c = rig_config();
            struct rig_seq s[N_SEQS];
            int32_t *first[N_SEQS];
            c.kv_lora_rank = 32;
            c.index_heads = heads[k];
            c.index_dim = dims[k];
            c.index_rope_interleaved = k % 2;
            rig_seq_init(&s[0], &c, &r, 300, 40, 0);
            rig_seq_init(&s[1], &c, &r, 150, 10, 0);
            rig_seq_init(&s[2], &c, &r, 500, 100, 0); /* beyond index_topk */
            rig_seq_init(&s[3], &c, &r, 90, TOP_K_DENSE, 0);
            for (int run = 0; run < n_runs; run++) {
                struct ops_limits lim =
                    rig_limits(LATENT_BF16, (enum index_form)xf, run % 2 ? 3 : 1);
                struct cpu_backend *b = rig_open(&c, &lim);
                rig_pages(s, N_SEQS, &r);
                if (run == 4)
                    for (int i = 0; i < N_SEQS; i++)
                        rig_run(b, LANE_DECODE, &s[i], 1, chunks[run], NULL);
                else
                    rig_run(b, run % 2 ? LANE_DECODE : LANE_PREFILL, s, N_SEQS, chunks[run], NULL);
                for (int i = 0; i < N_SEQS; i++) {
                    size_t bytes = sizeof(int32_t) * s[i].n * c.index_topk;
                    if (!run) {
                        for (uint32_t t = 0; t < s[i].n; t += t < 80 ? 1 : 7)
                            check_row(b, &s[i], t);
                        first[i] = malloc(bytes);
                        CHECK(first[i]);
                        memcpy(first[i], s[i].sel, bytes);
                    }
                    CHECK_MSG(!memcmp(first[i], s[i].sel, bytes),
                              "run %d form %d sequence %d differs", run, xf, i);
                }
                b->ops.close(&b->ops);
            }
            for (int i = 0; i < N_SEQS; i++) {
                free(first[i]);
                rig_seq_free(&s[i]);
            }
        }
}

TEST_LIMIT(index_every_form_and_cut, 60)
{
    every_form_and_cut(6);
}

TEST_LIMIT(index_every_form_and_cut_avx2, 60)
{
    rig_use_table("avx2");
    every_form_and_cut(3);
}

TEST_LIMIT(index_every_form_and_cut_portable, 60)
{
    rig_use_table("portable");
    every_form_and_cut(3);
}

/* Rows of a long context whose pages are split over threads, one at a time and several in a block,
 * and the same in one piece. */
TEST_LIMIT(index_long_row, 60)
{
    static const uint32_t rows[] = {1, 5, 8, 30};
    struct rng r = {11};
    struct model_config c = rig_config();
    struct rig_seq s;
    int32_t *first = NULL;
    c.kv_lora_rank = 32;
    c.index_dim = 64;
    c.index_heads = 4;
    rig_seq_init(&s, &c, &r, 2500, 64, 0);
    rig_pages(&s, 1, &r);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct ops_limits lim = rig_limits(LATENT_F32, INDEX_FP8, threads);
        struct cpu_backend *b = rig_open(&c, &lim);
        s.pos0 = 0;
        rig_run(b, LANE_PREFILL, &s, 1, 500, NULL);
        size_t at = 2470 * (size_t)c.index_topk, bytes = 4 * 30 * (size_t)c.index_topk;
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            memset(s.sel + at, 0, bytes);
            s.pos0 = 2470;
            rig_run(b, rows[i] == 1 ? LANE_DECODE : LANE_PREFILL, &s, 1, rows[i], NULL);
            if (!first) {
                first = malloc(bytes);
                CHECK(first);
                memcpy(first, s.sel + at, bytes);
                for (uint32_t t = 2470; t < s.n; t += 9)
                    check_row(b, &s, t);
            }
            CHECK_MSG(!memcmp(first, s.sel + at, bytes), "%u threads, %u rows", threads, rows[i]);
        }
        b->ops.close(&b->ops);
    }
    free(first);
    rig_seq_free(&s);
}

/* All weights negative or zero: scores are zero or below, and the plateau of zeros is cut by
 * position. */
TEST(index_zero_plateau)
{
    struct rng r = {12};
    for (int xf = 0; xf < 2; xf++) {
        struct model_config c = rig_config();
        struct ops_limits lim = rig_limits(LATENT_F32, (enum index_form)xf, 2);
        struct cpu_backend *b = rig_open(&c, &lim);
        struct rig_seq s;
        rig_seq_init(&s, &c, &r, 200, 40, 0);
        memset(s.iw, 0, 4 * (size_t)s.n * c.index_heads);
        rig_pages(&s, 1, &r);
        rig_run(b, LANE_PREFILL, &s, 1, 64, NULL);
        for (uint32_t t = 40; t < s.n; t++)
            for (uint32_t i = 0; i < c.index_topk; i++)
                CHECK(s.sel[(size_t)t * c.index_topk + i] == (int32_t)i);
        rig_seq_free(&s);
        b->ops.close(&b->ops);
    }
}
