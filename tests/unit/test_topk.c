/* test_topk.c - selection against a full sort, with every table this machine has. */
#include "cpu/kernels.h"
#include "cpu/topk.h"
#include "test.h"

#include <math.h>

static const char *const tables[] = {"portable", "avx2", "avx512"};
enum { N_TABLES = 3 };

struct entry {
    float score;
    uint32_t at;
};

/* By the rule of topk.h, said without keys: NaN last, larger first, lower position first. */
static int better_first(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    bool nx = isnan(x->score), ny = isnan(y->score);
    if (nx != ny)
        return nx ? 1 : -1;
    if (!nx && x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

static int ascending(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

static void check(const float *score, uint32_t n, uint32_t k, const char *what)
{
    struct entry *sorted = malloc(n * sizeof *sorted);
    int32_t *want = malloc(4 * (size_t)n), *got = malloc(4 * ((size_t)n + 1));
    void *scratch = aligned_alloc(64, (topk_scratch_bytes(n) + 63) / 64 * 64);
    uint32_t n_want = n < k ? n : k;
    for (uint32_t i = 0; i < n; i++)
        sorted[i] = (struct entry){score[i], i};
    qsort(sorted, n, sizeof *sorted, better_first);
    for (uint32_t i = 0; i < n_want; i++)
        want[i] = (int32_t)sorted[i].at;
    qsort(want, n_want, sizeof *want, ascending);
    for (int t = 0; t < N_TABLES; t++) {
        if (t && !kernels_by_name(tables[t]))
            continue;
        got[n_want] = 12345;
        uint32_t m = topk_select(dsa_loops_for(tables[t]), score, n, k, got, scratch);
        CHECK_MSG(m == n_want, "%s %s n %u k %u: gave %u", tables[t], what, n, k, m);
        for (uint32_t i = 0; i < m; i++)
            CHECK_MSG(got[i] == want[i], "%s %s n %u k %u: entry %u is %d, not %d", tables[t], what,
                      n, k, i, got[i], want[i]);
        CHECK_MSG(got[n_want] == 12345, "%s %s n %u k %u: wrote beyond", tables[t], what, n, k);
    }
    free(sorted);
    free(want);
    free(got);
    free(scratch);
}

enum { SHAPES = 12 };
static const char *shape_name(int shape)
{
    static const char *const name[SHAPES] = {
        "normal",    "all equal",           "narrow",   "negative", "with -inf", "few values",
        "denormals", "zeros of both signs", "with NaN", "all -inf", "rising",    "mostly zero"};
    return name[shape];
}

static float value(struct rng *r, int shape, uint32_t i)
{
    float x = rng_normal(r);
    switch (shape) {
    case 1:
        return 0.25f;
    case 2:
        return 1.0f + 1e-6f * x;
    case 3:
        return -1.0f - fabsf(x);
    case 4:
        return rng_below(r, 2) ? -INFINITY : x;
    case 5:
        return (float)rng_below(r, 5);
    case 6:
        return x * 1e-41f;
    case 7:
        return rng_below(r, 2) ? -0.0f : 0.0f;
    case 8:
        return rng_below(r, 3) ? x : (rng_below(r, 2) ? NAN : -NAN);
    case 9:
        return -INFINITY;
    case 10:
        return (float)i;
    case 11: /* what a ReLU gives: a plateau of zeros above the negative ones */
        return rng_below(r, 8) ? 0.0f : x;
    default:
        return x;
    }
}

static void check_shape(struct rng *r, int shape, uint32_t n, uint32_t k)
{
    float *x = malloc(4 * (size_t)n);
    for (uint32_t i = 0; i < n; i++)
        x[i] = value(r, shape, i);
    check(x, n, k, shape_name(shape));
    free(x);
}

TEST(topk_sizes_around_k)
{
    struct rng r = {1};
    static const uint32_t ks[] = {1, 2, 7, 64, 256, 2048};
    for (int s = 0; s < SHAPES; s++)
        for (int i = 0; i < 6; i++) {
            uint32_t k = ks[i], ns[] = {1, k - 1, k, k + 1, 2 * k + 3, 5000};
            for (int j = 0; j < 6; j++)
                if (ns[j])
                    check_shape(&r, s, ns[j], k);
        }
}

/* Goal: no buffer limit anywhere. More than 4096 scores are equal and the cut lies among them. */
TEST(topk_wide_ties_and_long_rows)
{
    struct rng r = {2};
    for (int s = 0; s < SHAPES; s++)
        check_shape(&r, s, 163840, 2048);
    enum { N = 20000 };
    float *x = malloc(sizeof(float) * N);
    for (uint32_t i = 0; i < N; i++)
        x[i] = i % 3 ? 1.5f : (float)rng_below(&r, 3); /* 13333 equal, some above, some below */
    for (uint32_t k = 1; k < N; k += 1237)
        check(x, N, k, "ties across the cut");
    free(x);
}

TEST(topk_none_wanted)
{
    float x[3] = {1, 2, 3};
    int32_t out[1] = {7};
    _Alignas(64) static unsigned char scratch[1 << 17];
    CHECK(topk_scratch_bytes(3) <= sizeof scratch);
    CHECK(topk_select(&dsa_loops_portable, x, 3, 0, out, scratch) == 0 && out[0] == 7);
}

TEST(topk_random)
{
    struct rng r = {test_seed()};
    for (int i = 0; i < 400; i++) {
        uint32_t n = 1 + rng_below(&r, i % 10 ? 3000 : 20000), k = 1 + rng_below(&r, n + 2);
        if (rng_below(&r, 2))
            k = 1 + rng_below(&r, 300);
        check_shape(&r, (int)rng_below(&r, SHAPES), n, k);
    }
}
