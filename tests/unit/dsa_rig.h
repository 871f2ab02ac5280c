/* dsa_rig.h - a small back end and random sequences, for the tests of KV, indexer and attention.
 *
 * A sequence's inputs are random but fixed per position, so the same sequence can be run again in
 * other chunks, on other pages, with other threads, and must give the same bits.
 */
#ifndef GAZE_TEST_DSA_RIG_H
#define GAZE_TEST_DSA_RIG_H

#include "cpu/backend.h"
#include "cpu/cpu_ops.h"
#include "cpu/fp8.h"
#include "test.h"

#include <math.h>

enum { RIG_PAGES = 96, RIG_CONTEXT = 2560, RIG_ROWS = 512 };

/* Sizes that no vector length divides. */
static inline struct model_config rig_config(void)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = 96,
                             .hidden_size = 48,
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
                             .max_position = RIG_CONTEXT,
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

static inline struct ops_limits rig_limits(enum latent_form lf, enum index_form xf,
                                           uint32_t threads)
{
    return (struct ops_limits){.precision = PRECISION_EXACT,
                               .latent = lf,
                               .index = xf,
                               .n_pages = RIG_PAGES,
                               .max_rows = {RIG_ROWS, RIG_ROWS},
                               .max_context = RIG_CONTEXT,
                               .max_out_rows = 4,
                               .n_threads = threads};
}

/* For the rest of this test's process. */
static inline void rig_use_table(const char *name)
{
    if (!kernels_by_name(name))
        TEST_SKIP("this machine does not have the table");
    setenv("GAZE_SIMD", name, 1);
}

static inline struct cpu_backend *rig_open(const struct model_config *c,
                                           const struct ops_limits *lim)
{
    struct ops *o;
    struct err e;
    CHECK_OK(cpu_ops_open(&o, c, lim, &e), e);
    struct cpu_backend *b = cpu_of(o);
    memset(b->latent[0], 0xFF, b->latent_page_bytes * lim->n_pages); /* NaN in every form */
    if (b->index && b->index[0])
        memset(b->index[0], 0xFF, b->index_page_bytes * lim->n_pages);
    return b;
}

struct rig_seq {
    uint32_t n, pos0; /* tokens in all; where to begin */
    uint32_t top_k, expand_below;
    uint32_t page[RIG_PAGES];
    float *kv_raw, *k_raw, *q, *iq, *iw; /* inputs, a row per position */
    int32_t *sel;                        /* results, likewise */
    float *out;
};

static inline float *rig_random(struct rng *r, size_t n, float scale)
{
    float *x = malloc(sizeof(float) * (n ? n : 1));
    CHECK(x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * rng_normal(r);
    return x;
}

static inline void rig_seq_init(struct rig_seq *s, const struct model_config *c, struct rng *r,
                                uint32_t n, uint32_t top_k, uint32_t expand_below)
{
    *s = (struct rig_seq){.n = n, .top_k = top_k, .expand_below = expand_below};
    s->kv_raw = rig_random(r, (size_t)n * (c->kv_lora_rank + c->rope_dim), 2.0f);
    s->k_raw = rig_random(r, (size_t)n * c->index_dim, 1.5f);
    s->q = rig_random(r, (size_t)n * c->n_heads * model_qk_dim(c), 1.0f);
    s->iq = rig_random(r, (size_t)n * c->index_heads * c->index_dim, 1.0f);
    s->iw = rig_random(r, (size_t)n * c->index_heads, 1.0f);
    s->sel = calloc((size_t)n * c->index_topk + 1, sizeof(int32_t));
    s->out = calloc((size_t)n * c->n_heads * c->v_dim, sizeof(float));
    CHECK(s->sel && s->out);
}

static inline void rig_seq_free(struct rig_seq *s)
{
    free(s->kv_raw);
    free(s->k_raw);
    free(s->q);
    free(s->iq);
    free(s->iw);
    free(s->sel);
    free(s->out);
}

/* Gives the sequences pages of the pool in random order. */
static inline void rig_pages(struct rig_seq *s, uint32_t n_seqs, struct rng *r)
{
    uint32_t free_page[RIG_PAGES], left = RIG_PAGES;
    for (uint32_t i = 0; i < RIG_PAGES; i++)
        free_page[i] = i;
    for (uint32_t i = 0; i < n_seqs; i++)
        for (uint32_t p = 0; p * KV_PAGE_TOKENS < s[i].n; p++) {
            CHECK(left);
            uint32_t k = rng_below(r, left);
            s[i].page[p] = free_page[k];
            free_page[k] = free_page[--left];
        }
}

/* The gains of all rigs' norms. */
static inline const float *rig_gain(uint32_t which)
{
    static float gain[3][4096];
    if (gain[0][0] == 0.0f) {
        struct rng r = {99};
        for (uint32_t i = 0; i < 3; i++)
            for (uint32_t d = 0; d < 4096; d++)
                gain[i][d] = (i < 2 ? 1.0f : 0.0f) + 0.2f * rng_normal(&r);
    }
    return gain[which];
}

/* Runs all sequences in steps of at most `chunk` tokens of each: KV, indexer and attention of layer
 * 0. */
static inline void rig_run(struct cpu_backend *b, enum lane l, struct rig_seq *s, uint32_t n_seqs,
                           uint32_t chunk, const struct matrix *kv_b)
{
    const struct model_config *c = b->ops.cfg;
    struct ops *o = &b->ops;
    size_t lat = c->kv_lora_rank + c->rope_dim, ldq = c->n_heads * model_qk_dim(c);
    size_t ldi = c->index_heads * c->index_dim, ldo = c->n_heads * c->v_dim;
    float *kv = malloc(4 * RIG_ROWS * lat),
          *key = malloc(4 * RIG_ROWS * (size_t)(c->index_dim + 1));
    float *q = malloc(4 * RIG_ROWS * ldq), *iq = malloc(4 * RIG_ROWS * (ldi + 1));
    float *iw = malloc(4 * RIG_ROWS * (size_t)(c->index_heads + 1)),
          *out = malloc(4 * RIG_ROWS * ldo);
    int32_t *sel = malloc(4 * RIG_ROWS * (size_t)(c->index_topk + 1));
    CHECK(kv && key && q && iq && iw && out && sel);
    uint32_t done[16];
    CHECK(n_seqs <= 16);
    for (uint32_t i = 0; i < n_seqs; i++)
        done[i] = s[i].pos0;
    for (;;) {
        struct step_seq part[16];
        uint32_t who[16];
        struct step st = {.seq = part};
        for (uint32_t i = 0; i < n_seqs; i++) {
            uint32_t n = s[i].n - done[i] < chunk ? s[i].n - done[i] : chunk, row = st.n_rows;
            if (n > RIG_ROWS / n_seqs)
                n = RIG_ROWS / n_seqs;
            if (!n)
                continue;
            who[st.n_seqs] = i;
            part[st.n_seqs++] = (struct step_seq){.row0 = row,
                                                  .n_rows = n,
                                                  .pos0 = done[i],
                                                  .page = s[i].page,
                                                  .top_k = s[i].top_k,
                                                  .expand_below = s[i].expand_below};
            memcpy(kv + row * lat, s[i].kv_raw + done[i] * lat, 4 * n * lat);
            memcpy(key + (size_t)row * c->index_dim, s[i].k_raw + (size_t)done[i] * c->index_dim,
                   4 * (size_t)n * c->index_dim);
            memcpy(q + row * ldq, s[i].q + done[i] * ldq, 4 * n * ldq);
            memcpy(iq + row * ldi, s[i].iq + done[i] * ldi, 4 * n * ldi);
            memcpy(iw + (size_t)row * c->index_heads, s[i].iw + (size_t)done[i] * c->index_heads,
                   4 * (size_t)n * c->index_heads);
            st.n_rows += n;
        }
        if (!st.n_seqs)
            break;
        static uint32_t token[RIG_ROWS];
        struct err e;
        st.token = token;
        memset(sel, 0x55, 4 * RIG_ROWS * (size_t)(c->index_topk + 1));
        o->begin(o, l, &st);
        o->rope_q(o, l, q);
        o->kv_store(o, l, 0, kv, rig_gain(0));
        if (c->has_indexer) {
            o->index_store(o, l, 0, key, rig_gain(1), rig_gain(2));
            o->index_select(o, l, 0, iq, iw, sel);
        }
        if (kv_b)
            o->attend(o, l, 0, kv_b, q, c->has_indexer ? sel : NULL, out);
        CHECK_OK(o->finish(o, l, &e), e);
        for (uint32_t i = 0; i < st.n_seqs; i++) {
            struct rig_seq *to = &s[who[i]];
            uint32_t n = part[i].n_rows, row = part[i].row0, at = part[i].pos0;
            memcpy(to->sel + (size_t)at * c->index_topk, sel + (size_t)row * c->index_topk,
                   4 * (size_t)n * c->index_topk);
            if (kv_b)
                memcpy(to->out + at * ldo, out + row * ldo, 4 * n * ldo);
            done[who[i]] += n;
        }
    }
    free(kv);
    free(key);
    free(q);
    free(iq);
    free(iw);
    free(out);
    free(sel);
}

#endif
