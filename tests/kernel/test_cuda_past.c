/* test_cuda_past.c - what a step reads of the past, at the published models' sizes: attention over
 * 656-byte records for many heads, the indexer's FP8 scores, the selection of the largest.
 *
 * Goal:   the CPU's results at one position, a tile and its neighbours, a split and its neighbours,
 *         and several splits; a row's bits alone and among others, as a prompt's and as a decode
 *         row; the exact k largest of any scores.
 * Method: the CPU back end beside the GPU's on fresh random inputs, outputs poisoned; selections
 *         against a sort.
 */
#include "cpu/cpu_ops.h"
#include "cuda/cuda_ops.h"
#include "cuda/topk.h"
#include "test.h"
#include "tests/kernel/rows.h"

#include <math.h>

enum { CONTEXT = 1408, PAGES = CONTEXT / 64, VOCAB = 64, MOST_ROWS = 512, SEQS = 16 };

static struct model_config config(uint32_t heads, uint32_t per_head)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = VOCAB,
                             .hidden_size = 64,
                             .n_layers = 1,
                             .n_dense_layers = 1,
                             .dense_width = 64,
                             .rms_eps = 1e-6f,
                             .low_rank_eps = 1e-6f,
                             .n_heads = heads,
                             .q_lora_rank = 32,
                             .kv_lora_rank = 512,
                             .nope_dim = per_head,
                             .rope_dim = 64,
                             .v_dim = per_head,
                             .softmax_scale = 0.01f,
                             .n_group = 1,
                             .n_group_kept = 1,
                             .has_indexer = true,
                             .index_heads = 64,
                             .index_dim = 128,
                             .index_topk = CONTEXT,
                             .max_position = CONTEXT,
                             .rope_gain = 1.0f,
                             .eos_id = {1},
                             .n_eos = 1,
                             .temperature = 1.0f,
                             .top_p = 1.0f};
    c.index_full[0] = true;
    for (uint32_t i = 0; i < 32; i++)
        c.rope_freq[i] = powf(10000.0f, -(float)i / 32.0f);
    return c;
}

struct pair {
    struct model_config c;
    struct ops *cpu, *gpu;
    struct rng r;
    uint32_t page[PAGES];
};

static void pair_open(struct pair *p)
{
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    struct ops_limits lim = {.precision = PRECISION_EXACT,
                             .latent = LATENT_FP8,
                             .index = INDEX_FP8,
                             .n_pages = PAGES,
                             .max_rows = {MOST_ROWS, SEQS},
                             .max_context = CONTEXT,
                             .max_out_rows = 1,
                             .n_threads = 1};
    p->r = (struct rng){test_seed()};
    CHECK_OK(cpu_ops_open(&p->cpu, &p->c, &lim, &e), e);
    lim.precision = PRECISION_FAST;
    CHECK_OK(cuda_ops_open(&p->gpu, &p->c, &lim, 0, &e), e);
    for (uint32_t i = 0; i < PAGES; i++)
        p->page[i] = (i * 5 + 3) % PAGES;
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

/* Fills the slots [0, n) of both back ends with the same values. */
static void fill(struct pair *p, uint32_t n)
{
    const struct model_config *c = &p->c;
    size_t lat = c->kv_lora_rank + c->rope_dim, dim = c->index_dim;
    float *kv = random_row(p, n * lat), *key = random_row(p, n * dim), *gain = random_row(p, 512);
    uint32_t token[MOST_ROWS] = {0};
    void *dg = up(gain, 512 * 4);
    for (uint32_t at = 0; at < n; at += MOST_ROWS) {
        uint32_t m = n - at < MOST_ROWS ? n - at : (uint32_t)MOST_ROWS;
        struct step_seq s = {.n_rows = m, .pos0 = at, .page = p->page, .top_k = TOP_K_DENSE};
        struct step st = {.n_rows = m, .n_seqs = 1, .token = token, .seq = &s};
        void *dk = up(kv + at * lat, m * lat * 4), *di = up(key + at * dim, m * dim * 4);
        for (int gpu = 0; gpu < 2; gpu++) {
            struct ops *o = gpu ? p->gpu : p->cpu;
            float *g = gpu ? dg : gain;
            struct err e;
            o->begin(o, LANE_PREFILL, &st);
            o->kv_store(o, LANE_PREFILL, 0, gpu ? dk : kv + at * lat, g);
            o->index_store(o, LANE_PREFILL, 0, gpu ? di : key + at * dim, g, g);
            CHECK_OK(o->finish(o, LANE_PREFILL, &e), e);
        }
        cuda_test_free(dk);
        cuda_test_free(di);
    }
    cuda_test_free(dg);
    free(kv);
    free(key);
    free(gain);
}

/* Rows that see all of n_filled tokens and attend to n[i] of them each, in one step; out[n_rows].
 */
static void attend(struct pair *p, bool gpu, enum lane l, uint32_t n_filled, uint32_t n_rows,
                   const uint32_t *n, const struct matrix *w, const float *q, const int32_t *sel,
                   float *out)
{
    const struct model_config *c = &p->c;
    struct ops *o = gpu ? p->gpu : p->cpu;
    size_t ldq = c->n_heads * model_qk_dim(c), ldo = c->n_heads * c->v_dim;
    uint32_t token[SEQS] = {0};
    struct step_seq s[SEQS];
    struct err e;
    for (uint32_t i = 0; i < n_rows; i++)
        s[i] = (struct step_seq){
            .row0 = i, .n_rows = 1, .pos0 = n_filled - 1, .page = p->page, .top_k = n[i]};
    struct step st = {.n_rows = n_rows, .n_seqs = n_rows, .token = token, .seq = s};
    memset(out, 0xFF, n_rows * ldo * 4);
    void *dq = up(q, n_rows * ldq * 4), *ds = up(sel, n_rows * c->index_topk * 4);
    void *dout = up(out, n_rows * ldo * 4);
    o->begin(o, l, &st);
    o->attend(o, l, 0, w, gpu ? dq : (void *)(uintptr_t)q, gpu ? ds : sel, gpu ? dout : out);
    CHECK_OK(o->finish(o, l, &e), e);
    if (gpu)
        cuda_test_read(out, dout, n_rows * ldo * 4);
    cuda_test_free(dq);
    cuda_test_free(ds);
    cuda_test_free(dout);
}

/* Queries and weights are f16 (2^-12 of them), a code may fall either way between the back ends
 * (2^-4 of one of 576 values): 5e-3 of the largest output, as with the sums of two. */
static void check_attention(uint32_t heads)
{
    enum { FILLED = 1300, CASES = 10 };
    static const uint32_t length[CASES] = {1, 63, 64, 65, 511, 512, 513, 640, 1025, 1300};
    struct pair p = {.c = config(heads, 32)};
    pair_open(&p);
    fill(&p, FILLED);
    const struct model_config *c = &p.c;
    size_t ldq = heads * model_qk_dim(c), ldo = heads * c->v_dim, k = c->index_topk;
    uint32_t n_out = heads * (c->nope_dim + c->v_dim);
    float *w = random_row(&p, (size_t)n_out * 512), *q = random_row(&p, CASES * ldq);
    float *want = malloc(CASES * ldo * 4), *have = malloc(CASES * ldo * 4);
    float *alone = malloc(CASES * ldo * 4);
    int32_t *sel = malloc(CASES * k * 4);
    CHECK(want && have && alone && sel);
    for (uint32_t i = 0; i < CASES; i++) { /* ascending, of all that is there */
        uint32_t left = length[i];
        memset(sel + i * k, 0xFF, k * 4);
        for (uint32_t t = 0; t < FILLED && left; t++)
            if (rng_below(&p.r, FILLED - t) < left)
                sel[i * k + length[i] - left--] = (int32_t)t;
    }
    struct matrix host = {.data = w, .dtype = DT_F32, .n_out = n_out, .n_in = 512}, dev = host;
    dev.data = up(w, (size_t)n_out * 512 * 4);
    attend(&p, false, LANE_DECODE, FILLED, CASES, length, &host, q, sel, want);
    attend(&p, true, LANE_DECODE, FILLED, CASES, length, &dev, q, sel, have);
    for (uint32_t i = 0; i < CASES; i++) {
        double d = distance(want + i * ldo, have + i * ldo, ldo);
        printf("     %u heads, %u positions: distance %.1e\n", heads, length[i], d);
        CHECK_MSG(d <= 5e-3, "%u heads, %u positions: distance %g", heads, length[i], d);
        attend(&p, true, i % 2 ? LANE_PREFILL : LANE_DECODE, FILLED, 1, length + i, &dev,
               q + i * ldq, sel + i * k, alone);
        CHECK_MSG(!memcmp(alone, have + i * ldo, ldo * 4), "%u heads, %u positions: other bits",
                  heads, length[i]);
    }
    pair_close(&p);
}
TEST_LIMIT(attention_of_one_head, 240)
{
    check_attention(1);
}
TEST_LIMIT(attention_of_17_heads, 240)
{
    check_attention(17);
}
TEST_LIMIT(attention_of_33_heads, 240)
{
    check_attention(33);
}
TEST_LIMIT(attention_of_128_heads, 400)
{
    check_attention(128);
}

/* n_rows rows of one sequence at [first, first + n_rows), or, single, a step for each. */
static void choose(struct pair *p, bool gpu, bool single, uint32_t first, uint32_t n_rows,
                   uint32_t top_k, const float *q, const float *w, int32_t *sel)
{
    const struct model_config *c = &p->c;
    struct ops *o = gpu ? p->gpu : p->cpu;
    size_t ldq = c->index_heads * c->index_dim, ldw = c->index_heads, k = c->index_topk;
    uint32_t token[SEQS] = {0}, each = single ? 1 : n_rows;
    enum lane l = single ? LANE_DECODE : LANE_PREFILL;
    struct err e;
    for (uint32_t i = 0; i < n_rows; i += each) {
        struct step_seq s = {.n_rows = each, .pos0 = first + i, .page = p->page, .top_k = top_k};
        struct step st = {.n_rows = each, .n_seqs = 1, .token = token, .seq = &s};
        void *dq = up(q + i * ldq, each * ldq * 4), *dw = up(w + i * ldw, each * ldw * 4);
        float *hq = malloc(each * ldq * 4); /* the op writes into it */
        int32_t *to = sel + i * k;
        CHECK(hq != NULL);
        memcpy(hq, q + i * ldq, each * ldq * 4);
        memset(to, 0xFF, each * k * 4);
        void *dsel = up(to, each * k * 4);
        o->begin(o, l, &st);
        o->index_select(o, l, 0, gpu ? dq : hq, gpu ? dw : (void *)(uintptr_t)(w + i * ldw),
                        gpu ? dsel : to);
        CHECK_OK(o->finish(o, l, &e), e);
        if (gpu)
            cuda_test_read(to, dsel, each * k * 4);
        cuda_test_free(dq);
        cuda_test_free(dw);
        cuda_test_free(dsel);
        free(hq);
    }
}

/* Hopper's FP8 sums keep some 13 bits below a dot product's largest term, so scores move by 1e-4 of
 * their size, and of the some 4 positions within that of the threshold (700 scores spread over 3
 * deviations have 0.1 of them there) a few may change sides: 1 % of the selected, at most. */
static void check_selection(uint32_t heads, bool interleaved)
{
    enum { FILLED = 701, ROWS = 11, TOP_K = 200 };
    struct pair p = {.c = config(2, 32)};
    p.c.index_heads = heads;
    p.c.index_rope_interleaved = interleaved;
    pair_open(&p);
    fill(&p, FILLED);
    const struct model_config *c = &p.c;
    size_t k = c->index_topk;
    float *q = random_row(&p, ROWS * heads * c->index_dim), *w = random_row(&p, ROWS * heads);
    int32_t *want = malloc(ROWS * k * 4), *have = malloc(ROWS * k * 4);
    int32_t *alone = malloc(ROWS * k * 4);
    uint32_t other = 0;
    CHECK(want && have && alone);
    choose(&p, false, false, FILLED - ROWS, ROWS, TOP_K, q, w, want);
    choose(&p, true, false, FILLED - ROWS, ROWS, TOP_K, q, w, have);
    choose(&p, true, true, FILLED - ROWS, ROWS, TOP_K, q, w, alone);
    CHECK_MSG(!memcmp(have, alone, ROWS * k * 4), "%u heads: a row alone chooses others", heads);
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t a = 0, b = 0; a < TOP_K; a++) {
            while (b < TOP_K && have[i * k + b] < want[i * k + a])
                b++;
            other += b == TOP_K || have[i * k + b] != want[i * k + a];
        }
    printf("     %u heads: %u of %u selected positions differ\n", heads, other, ROWS * TOP_K);
    CHECK_MSG(other * 100 <= ROWS * TOP_K, "%u heads: %u positions differ", heads, other);
    pair_close(&p);
}
TEST_LIMIT(selection_of_64_heads, 240)
{
    check_selection(64, false);
}
TEST_LIMIT(selection_of_20_heads, 240)
{
    check_selection(20, true);
}

/* ---- the largest of any scores ---- */

static const float *sorted_by;
static int by_score(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    float u = sorted_by[a], v = sorted_by[b];
    bool nan_u = isnan(u), nan_v = isnan(v);
    if (nan_u != nan_v)
        return nan_u ? 1 : -1;
    if (!nan_u && u != v)
        return u < v ? 1 : -1;
    return a < b ? -1 : 1;
}
static int by_position(const void *x, const void *y)
{
    return *(const int32_t *)x < *(const int32_t *)y ? -1 : 1;
}

enum scores { NORMAL, NARROW, TIED, PLATEAU, EQUAL, RISING, COMB, BAD, N_SCORES };
static float score_of(enum scores kind, struct rng *r, uint32_t i, uint32_t n)
{
    float x = rng_normal(r);
    switch (kind) {
    case NARROW:
        return 10.0f + 0.05f * x;
    case TIED:
        return (float)(int)(2.0f * x); /* -0, too */
    case PLATEAU:                      /* many rows end on exact zeros */
        return x > 2.2f ? x : x > -1.0f ? 0.0f : x;
    case EQUAL:
        return -3.0f;
    case RISING:
        return (float)i / (float)n;
    case COMB: /* all large ones in few chunks */
        return i % 4096 < 64 ? 100.0f + x : x;
    case BAD:
        return i % 3 == 0 ? NAN : i % 5 == 0 ? -INFINITY : x;
    default:
        return x;
    }
}

static void check_largest(uint32_t n, uint32_t k)
{
    struct rng r = {test_seed()};
    size_t ld = (n + 63) / 64 * 64;
    float *x = malloc(N_SCORES * ld * 4);
    int32_t *want = malloc(n * 4), *have = malloc(N_SCORES * k * 4);
    struct err e;
    if (!cuda_device_count())
        TEST_SKIP("no GPU here");
    CHECK(x && want && have);
    memset(x, 0x7F, N_SCORES * ld * 4); /* behind the ends: huge values */
    for (uint32_t s = 0; s < N_SCORES; s++)
        for (uint32_t i = 0; i < n; i++)
            x[s * ld + i] = score_of((enum scores)s, &r, i, n);
    memset(have, 0xFF, N_SCORES * k * 4);
    void *dx = up(x, N_SCORES * ld * 4), *dout = up(have, N_SCORES * k * 4);
    CHECK_OK(cuda_topk_rows(dx, ld, N_SCORES, n, k, dout, &e), e);
    cuda_test_read(have, dout, N_SCORES * k * 4);
    for (uint32_t s = 0; s < N_SCORES; s++) {
        sorted_by = x + s * ld;
        for (uint32_t i = 0; i < n; i++)
            want[i] = (int32_t)i;
        qsort(want, n, 4, by_score);
        qsort(want, k, 4, by_position);
        for (uint32_t i = 0; i < k; i++)
            CHECK_MSG(have[s * k + i] == want[i],
                      "%u of %u, scores of kind %u: entry %u is %d, not %d", k, n, s, i,
                      have[s * k + i], want[i]);
    }
    cuda_test_free(dx);
    cuda_test_free(dout);
    free(x);
    free(want);
    free(have);
}
TEST_LIMIT(largest_of_few, 120)
{
    check_largest(1, 1);
    check_largest(65, 64);
    check_largest(2049, 2048);
    check_largest(8191, 2048);
    check_largest(8192, 2048);
}
TEST_LIMIT(largest_of_many, 240)
{
    check_largest(8193, 2048);
    check_largest(12289, 1);
    check_largest(16384, 5000);
    check_largest(33001, 2048);
    check_largest(131072, 2048);
    check_largest(163840, 2048);
}
