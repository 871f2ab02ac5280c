/* test_sample.c - choosing tokens: against a plain version in double, and the rules one by one. */
#include "cpu/sample.h"
#include "dsa_rig.h"

struct bench_rig {
    struct model_config c;
    struct cpu_backend *b;
};

static void open_rig(struct bench_rig *g, uint32_t vocab, uint32_t threads)
{
    g->c = rig_config();
    g->c.vocab_size = vocab;
    struct ops_limits lim = rig_limits(LATENT_F32, INDEX_EXACT, threads);
    lim.max_out_rows = 8;
    g->b = rig_open(&g->c, &lim);
}

static struct sample_params defaults(void)
{
    return (struct sample_params){
        .temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .want_logprob = true};
}

static struct sample_out choose(struct bench_rig *g, const float *raw, const struct sample_row *row)
{
    struct sample_out out;
    struct step st = {.n_out = 1, .sample = row, .out = &out};
    float *copy = malloc(4 * (size_t)g->c.vocab_size);
    CHECK(copy);
    memcpy(copy, raw, 4 * (size_t)g->c.vocab_size);
    struct err e;
    g->b->ops.begin(&g->b->ops, LANE_DECODE, &st);
    g->b->ops.sample(&g->b->ops, LANE_DECODE, copy, 0, 1);
    CHECK_OK(g->b->ops.finish(&g->b->ops, LANE_DECODE, &e), e);
    free(copy);
    return out;
}

enum { MAX_VOCAB = 3000 };

/* The distribution that a row is drawn from, said in another way: sort everything, then cut. */
static void distribution(const float *raw, uint32_t vocab, const struct sample_row *row,
                         double *prob)
{
    const struct sample_params *p = row->p;
    static double x[MAX_VOCAB];
    static uint32_t order[MAX_VOCAB];
    for (uint32_t i = 0; i < vocab; i++)
        x[i] = (double)raw[i];
    for (uint32_t i = 0; i < p->n_bias; i++)
        x[p->bias[i].id] += (double)p->bias[i].bias;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t n_prompt = 0, n_output = 0;
        for (uint32_t j = 0; j < row->n_history; j++)
            if (row->history[j] == i)
                ++*(j < row->n_prompt ? &n_prompt : &n_output);
        if (n_prompt + n_output)
            x[i] = x[i] > 0 ? x[i] / (double)p->repetition_penalty
                            : x[i] * (double)p->repetition_penalty;
        x[i] -=
            (double)p->frequency_penalty * n_output + (n_output ? (double)p->presence_penalty : 0);
        if (p->allowed && !(p->allowed[i / 32] >> (i % 32) & 1))
            x[i] = -INFINITY;
        for (uint32_t j = 0; j < row->n_banned; j++)
            if (row->banned[j] == i)
                x[i] = -INFINITY;
        order[i] = i;
    }
    for (uint32_t i = 1; i < vocab;
         i++) { /* insertion sort: stable, so ties keep the order of ids */
        uint32_t id = order[i], j = i;
        for (; j && x[order[j - 1]] < x[id]; j--)
            order[j] = order[j - 1];
        order[j] = id;
    }
    uint32_t n = 0;
    double max = x[order[0]], total = 0, reached = 0;
    while (n < vocab && x[order[n]] > -INFINITY)
        n++;
    n = p->top_k && p->top_k < n ? p->top_k : n;
    for (uint32_t i = 0; i < n; i++)
        total += exp((x[order[i]] - max) / (double)p->temperature);
    uint32_t m = 0;
    while (m < n && (!m || p->top_p >= 1.0f || reached < (double)p->top_p * total))
        reached += exp((x[order[m++]] - max) / (double)p->temperature);
    memset(prob, 0, sizeof(double) * vocab);
    double kept = 0;
    for (uint32_t i = 0; i < m; i++) {
        double w = exp((x[order[i]] - max) / (double)p->temperature);
        if (w >= (double)p->min_p)
            kept += prob[order[i]] = w;
    }
    for (uint32_t i = 0; i < vocab; i++)
        prob[i] /= kept;
}

/* Goal:   the token is where the noise falls in the cut distribution, in order of ids.
 * Method: random wishes; the noise is read from Philox here, too. Rows whose noise lies within
 * rounding of a boundary are passed over; they are few. */
TEST_LIMIT(sample_against_plain_version, 60)
{
    struct rng r = {test_seed()};
    struct bench_rig g;
    static float raw[MAX_VOCAB];
    static double prob[MAX_VOCAB];
    uint32_t n_checked = 0, n_all = 0;
    for (int v = 0; v < 4; v++) {
        uint32_t vocab = v == 3 ? MAX_VOCAB : 1 + rng_below(&r, 200);
        open_rig(&g, vocab, 1);
        for (int i = 0; i < (v == 3 ? 60 : 400); i++) {
            struct sample_params p = defaults();
            uint32_t history[40], banned[3], allowed[MAX_VOCAB / 32 + 1];
            struct sample_bias bias[3];
            for (uint32_t k = 0; k < vocab; k++)
                raw[k] = 3.0f * rng_normal(&r);
            for (int k = 0; k < 40; k++)
                history[k] = rng_below(&r, vocab);
            for (int k = 0; k < 3; k++) {
                banned[k] = rng_below(&r, vocab);
                bias[k] = (struct sample_bias){rng_below(&r, vocab), 5.0f * rng_normal(&r)};
            }
            for (uint32_t k = 0; k < vocab / 32 + 1; k++)
                allowed[k] = (uint32_t)rng_next(&r) | 1u;
            p.seed = rng_next(&r);
            p.temperature = 0.3f + rng_unit((uint32_t)rng_next(&r)) * 2.0f;
            p.top_k = rng_below(&r, 2) ? 1 + rng_below(&r, 60) : 0;
            p.top_p = rng_below(&r, 2) ? rng_unit((uint32_t)rng_next(&r)) : 1.0f;
            p.min_p = rng_below(&r, 3) ? 0.0f : 0.3f * rng_unit((uint32_t)rng_next(&r));
            p.bias = bias;
            p.n_bias = rng_below(&r, 4);
            p.presence_penalty = rng_below(&r, 2) ? rng_normal(&r) : 0.0f;
            p.frequency_penalty = rng_below(&r, 2) ? rng_normal(&r) : 0.0f;
            p.repetition_penalty = rng_below(&r, 2) ? 1.3f : 1.0f;
            p.allowed = rng_below(&r, 3) ? NULL : allowed;
            struct sample_row row = {.p = &p,
                                     .position = rng_below(&r, 100000),
                                     .stream = rng_below(&r, 4),
                                     .history = history,
                                     .n_prompt = 25,
                                     .n_history = 40,
                                     .banned = banned,
                                     .n_banned = vocab > 6 ? rng_below(&r, 4) : 0};
            struct sample_out out = choose(&g, raw, &row);
            distribution(raw, vocab, &row, prob);
            uint32_t noise[4], want = 0;
            double mass = 0, reached = 0, gap = 1;
            for (uint32_t k = 0; k < vocab; k++)
                mass += prob[k];
            n_all++;
            if (!(mass > 0.5)) { /* nothing allowed */
                CHECK(out.bad_logits && out.token == 1);
                continue;
            }
            philox4x32(p.seed, row.position, row.stream, noise);
            double u = ((double)(noise[0] >> 5) * 67108864.0 + (double)(noise[1] >> 6)) * 0x1p-53;
            while (want < vocab && (reached += prob[want]) <= u) {
                gap = fabs(reached - u) < gap ? fabs(reached - u) : gap;
                want++;
            }
            gap = fabs(reached - u) < gap ? fabs(reached - u) : gap;
            if (gap < 1e-5 || p.top_p < 1.0f || p.min_p > 0.0f) { /* a cut may fall on a rounding */
                CHECK(!out.bad_logits && (prob[out.token] > 0 || p.top_p < 1.0f || p.min_p > 0.0f));
                if (gap < 1e-5 || out.token != want)
                    continue;
            }
            n_checked++;
            CHECK_MSG(out.token == want, "token %u (%g), not %u (%g)", out.token, prob[out.token],
                      want, prob[want]);
        }
        g.b->ops.close(&g.b->ops);
    }
    CHECK_MSG(n_checked > n_all * 9 / 10, "only %u of %u agree", n_checked, n_all);
}

TEST(sample_greedy)
{
    struct bench_rig g;
    open_rig(&g, 50, 1);
    float raw[50] = {0};
    struct sample_params p = defaults();
    struct sample_row row = {.p = &p};
    p.temperature = 0.0f;
    raw[7] = raw[9] = raw[31] = 2.0f;
    CHECK(choose(&g, raw, &row).token == 7);
    raw[7] = -0.0f;
    raw[9] = 0.0f;
    raw[31] = 0.0f;
    CHECK(choose(&g, raw, &row).token == 0); /* zeros of both signs are equal */
    uint32_t banned[] = {0, 1, 2}, history[] = {3, 3, 4};
    row.banned = banned;
    row.n_banned = 3;
    CHECK(choose(&g, raw, &row).token == 3);
    p.presence_penalty = 1.0f;
    row.history = history;
    row.n_prompt = 2; /* 3 is only in the prompt: presence does not touch it */
    row.n_history = 3;
    CHECK(choose(&g, raw, &row).token == 3);
    row.n_prompt = 0;
    CHECK(choose(&g, raw, &row).token == 5);
    CHECK(choose(&g, raw, &row).token == 5); /* and the counts are clean again */
    struct sample_bias bias = {44, 0.5f};
    p.bias = &bias;
    p.n_bias = 1;
    struct sample_out out = choose(&g, raw, &row);
    CHECK(out.token == 44 && out.rank == 45);
    g.b->ops.close(&g.b->ops);
}

TEST(sample_log_probabilities)
{
    struct rng r = {3};
    struct bench_rig g;
    open_rig(&g, 777, 1);
    float raw[777];
    for (int i = 0; i < 777; i++)
        raw[i] = (float)(int)(4.0f * rng_normal(&r)); /* many ties */
    raw[5] = -INFINITY;
    double sum = 0, max = -INFINITY;
    for (int i = 0; i < 777; i++)
        max = (double)raw[i] > max ? (double)raw[i] : max;
    for (int i = 0; i < 777; i++)
        sum += exp((double)raw[i] - max);
    struct sample_bias bias = {100, 30.0f}; /* log-probabilities are those before it */
    struct sample_params p = defaults();
    p.n_top = 20;
    p.bias = &bias;
    p.n_bias = 1;
    p.temperature = 0.0f;
    struct sample_row row = {.p = &p};
    struct sample_out out = choose(&g, raw, &row);
    CHECK(out.token == 100 && out.n_top == 20);
    CHECK(fabs((double)out.logprob - ((double)raw[100] - max - log(sum))) < 1e-5);
    uint32_t rank = 1;
    for (uint32_t i = 0; i < 777; i++)
        rank += raw[i] > raw[100] || (raw[i] == raw[100] && i < 100);
    CHECK(out.rank == rank);
    for (uint32_t i = 0; i < 20; i++) {
        const struct sample_top *t = &out.top[i];
        CHECK(fabs((double)t->logprob - ((double)raw[t->id] - max - log(sum))) < 1e-5);
        uint32_t before = 0;
        for (uint32_t k = 0; k < 777; k++)
            before += raw[k] > raw[t->id] || (raw[k] == raw[t->id] && k < t->id);
        CHECK_MSG(before == i, "entry %u is number %u", i, before);
    }
    row.given = true;
    row.given_token = 333;
    out = choose(&g, raw, &row);
    CHECK(out.token == 333 &&
          fabs((double)out.logprob - ((double)raw[333] - max - log(sum))) < 1e-5);
    g.b->ops.close(&g.b->ops);
}

TEST(sample_bad_logits)
{
    struct bench_rig g;
    open_rig(&g, 40, 1);
    float raw[40] = {0};
    uint32_t allowed[2] = {0, 0};
    for (int temperature = 0; temperature < 2; temperature++) {
        struct sample_params p = defaults();
        struct sample_row row = {.p = &p};
        p.temperature = (float)temperature;
        CHECK(!choose(&g, raw, &row).bad_logits);
        for (int i = 0; i < 40; i += 13) {
            raw[i] = NAN;
            CHECK(choose(&g, raw, &row).bad_logits && choose(&g, raw, &row).token == 1);
            raw[i] = INFINITY;
            CHECK(choose(&g, raw, &row).bad_logits);
            raw[i] = 0.0f;
        }
        p.allowed = allowed;
        CHECK(choose(&g, raw, &row).bad_logits);
        allowed[1] = 1u << 3;
        CHECK(!choose(&g, raw, &row).bad_logits && choose(&g, raw, &row).token == 35);
        raw[35] = -INFINITY;
        CHECK(choose(&g, raw, &row).bad_logits);
        raw[35] = 0.0f;
        allowed[1] = 0;
    }
    g.b->ops.close(&g.b->ops);
}

/* Wide plateaus: a long top-p prefix needs more than the first 256 candidates, ties go by id. */
TEST(sample_top_p_prefix)
{
    struct bench_rig g;
    enum { V = 20000 };
    open_rig(&g, V, 1);
    float *raw = calloc(V, 4);
    CHECK(raw);
    struct sample_params p = defaults();
    uint32_t largest = 0;
    p.want_logprob = false;
    p.top_p = 0.25f;
    for (uint32_t i = 0; i < 400; i++) {
        struct sample_row row = {.p = &p, .position = i};
        uint32_t t = choose(&g, raw, &row).token;
        CHECK(t < V / 4);
        largest = t > largest ? t : largest;
    }
    CHECK(largest > V / 4 * 9 / 10);
    p.top_k = 300;
    p.top_p = 1.0f;
    for (uint32_t i = 0; i < 100; i++) {
        struct sample_row row = {.p = &p, .position = i};
        CHECK(choose(&g, raw, &row).token < 300);
    }
    free(raw);
    g.b->ops.close(&g.b->ops);
}

/* The frequencies of many draws, and their independence of how rows are shared out. */
TEST_LIMIT(sample_draws, 60)
{
    enum { V = 6, N = 24000 };
    static uint32_t token[2][N];
    const float raw[V] = {0.0f, 1.0f, -1.0f, 2.0f, -INFINITY, 0.5f};
    for (int run = 0; run < 2; run++) {
        struct bench_rig g;
        open_rig(&g, V, run ? 3 : 1);
        struct sample_params p = defaults();
        p.seed = 42;
        float logits[8 * V];
        for (int i = 0; i < 8; i++)
            memcpy(logits + i * V, raw, sizeof raw);
        for (uint32_t i = 0; i < N; i += run ? 8 : 1) {
            struct sample_row row[8];
            struct sample_out out[8];
            uint32_t n = run ? 8 : 1;
            for (uint32_t k = 0; k < n; k++)
                row[k] = (struct sample_row){.p = &p, .position = i + k};
            struct step st = {.n_out = n, .sample = row, .out = out};
            struct err e;
            enum lane l = run ? LANE_PREFILL : LANE_DECODE;
            g.b->ops.begin(&g.b->ops, l, &st);
            g.b->ops.sample(&g.b->ops, l, logits, 0, n);
            CHECK_OK(g.b->ops.finish(&g.b->ops, l, &e), e);
            for (uint32_t k = 0; k < n; k++)
                token[run][i + k] = out[k].token;
        }
        g.b->ops.close(&g.b->ops);
    }
    CHECK(!memcmp(token[0], token[1], sizeof token[0]));
    double sum = 0;
    uint32_t count[V] = {0};
    for (int i = 0; i < N; i++)
        count[token[0][i]]++;
    for (int i = 0; i < V; i++)
        sum += exp((double)raw[i]);
    for (int i = 0; i < V; i++) {
        double want = N * exp((double)raw[i]) / sum;
        CHECK_MSG(fabs(count[i] - want) <= 5 * sqrt(want), "%d came %u times, not %g", i, count[i],
                  want);
    }
}
