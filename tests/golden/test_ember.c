/* test_ember.c - the bundled model computes here what it computed where it was trained.
 *
 * Goal:   log-probabilities at the last positions of prompts of 512, 4K and 16K tokens agree with
 * the training framework's (fp32, the exported FP8 weights dequantised, exact index scores). Bound:
 * 5e-3. Both sides sum in fp32 in different orders: a logit of magnitude 10 over eight layers and
 * products of 256 to 768 terms keeps about five digits, so 1e-3; at 16K tokens the angle of a
 * rotation carries an argument error of up to 1e-3 (half an ulp of 16384), which the softmax weighs
 * down; and a selection whose last two scores nearly tie may differ in one of 256 positions.
 */
#include "tests/golden/golden.h"

#include <math.h>
#include <unistd.h>

static const char model_dir[] = "config/models/ember";
static const char parity_path[] = "config/models/ember/eval/parity.safetensors";

#ifdef GAZE_DEBUG
enum { MAX_TOKENS = 1024 }; /* a sanitizer build is slower: the longer prompts run in release */
#else
enum { MAX_TOKENS = 32768 };
#endif

struct compare {
    const float *want;
    uint32_t vocab, first;
    double worst, sum_squares;
    uint64_t n;
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
    const float *want = c->want + (size_t)(pos - c->first) * c->vocab;
    double a = log_sum_exp(want, c->vocab), b = log_sum_exp(logits, c->vocab);
    for (uint32_t i = 0; i < c->vocab; i++) {
        double d = fabs((want[i] - a) - (logits[i] - b));
        c->sum_squares += d * d;
        c->n++;
        c->worst = d <= c->worst ? c->worst : d; /* a NaN is the worst */
    }
}

TEST_LIMIT(ember_agrees_with_its_training, 300)
{
    struct golden g;
    uint32_t prompts = 0, compared = 0;
    if (access(parity_path, R_OK) != 0)
        TEST_SKIP("the bundled model is not in this checkout");
    struct golden_options o = {PRECISION_EXACT, LATENT_F32, INDEX_EXACT, 512, 0, MAX_TOKENS + 64};
    golden_open(&g, model_dir, parity_path, &o);
    for (const struct tensor *ids; (ids = golden_tensor(&g, prompts, "ids")); prompts++) {
        const struct tensor *logits = golden_tensor(&g, prompts, "logits");
        uint32_t n = (uint32_t)ids->dim[0], n_want = (uint32_t)logits->dim[0];
        CHECK(logits->dim[1] == g.cfg.vocab_size);
        if (n > MAX_TOKENS)
            continue;
        struct compare c = {.want = logits->data, .vocab = g.cfg.vocab_size, .first = n - n_want};
        golden_run(&g, LANE_PREFILL, ids->data, 0, n, 512, golden_expand(&g), golden_top_k(&g),
                   n - n_want, compare_row, &c);
        printf("     %u tokens: worst %.2e, rms %.2e\n", n, c.worst,
               sqrt(c.sum_squares / (double)c.n));
        CHECK_MSG(c.n && c.worst <= 5e-3, "%u tokens: worst %g", n, c.worst);
        compared++;
    }
    CHECK(compared > 0);
    golden_close(&g);
}
