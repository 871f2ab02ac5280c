/* test_scheduler.c - promises of the scheduler one by one, on a fake executor and a virtual clock.
 */
#include "sim.h"

#include "base/fault.h"
#include "base/log.h"

enum { K = 1024 };

static const struct scheduler_config large = {.n_pages = 4096,
                                              .max_seqs = 16,
                                              .prefill_tokens = 512,
                                              .max_context = 160 * K,
                                              .max_out = 512,
                                              .prefix_cache = true,
                                              .index_topk = 2048,
                                              .expand_tokens = 2048};

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The q-th part of a record's gaps between tokens, from its token `from` on. */
static uint64_t gap_quantile(const struct sim_record *r, uint32_t from, double q)
{
    uint32_t n = r->choice[0].n - 1 - from;
    uint64_t *gap = malloc(n * sizeof *gap);
    CHECK(gap != NULL);
    for (uint32_t i = 0; i < n; i++)
        gap[i] = r->token_us[from + i + 1] - r->token_us[from + i];
    qsort(gap, n, sizeof *gap, by_size);
    uint64_t v = gap[(uint32_t)(q * (n - 1))];
    free(gap);
    return v;
}

/* How the device treats the two lanes, and what steps cost on it. */
static const struct pace_case {
    const char *name;
    bool serial, shared;
    struct fake_cost decode, prefill;
} pace_case[] = {
    {"lanes apart",
     false,
     false,
     {.step_us = 20000, .token_us = 100},
     {.step_us = 500, .token_us = 100, .depth_us = 3}},
    {"one lane at a time",
     true,
     false,
     {.step_us = 22000, .token_us = 200},
     {.step_us = 2000, .token_us = 100, .depth_us = 3}},
    /* Two cores and a model of 24 million parameters, as tests/bench/pace.py measures it. */
    {"lanes share two cores",
     false,
     true,
     {.step_us = 1200, .token_us = 200},
     {.step_us = 1500, .token_us = 130, .depth_us = 4}},
    /* Steps much longer and much shorter than the scheduler's decode_budget_us. */
    {"lanes share a slow machine",
     false,
     true,
     {.step_us = 90000, .token_us = 5000},
     {.step_us = 90000, .token_us = 1000, .depth_us = 20}},
    {"lanes share a fast machine",
     false,
     true,
     {.step_us = 150, .token_us = 5},
     {.step_us = 150, .token_us = 2, .depth_us = 0.05}},
};
enum { N_PACE_CASES = sizeof pace_case / sizeof *pace_case, N_SHORT = 40 };

static void open_pace(struct sim *m, const struct pace_case *c)
{
    struct scheduler_config cfg = large;
    cfg.n_pages = 3 * large.n_pages;
    sim_open(m, cfg, 1);
    m->check = false;
    m->f.serial = c->serial;
    m->f.shared = c->shared;
    m->f.check_every = 100;
    m->f.cost[LANE_DECODE] = c->decode;
    m->f.cost[LANE_PREFILL] = c->prefill;
}

static void submit_streams(struct sim *m, struct sim_record *d, uint32_t n, const uint32_t *prompt,
                           uint32_t max_tokens)
{
    for (uint32_t i = 0; i < n; i++) {
        struct sim_wish w = {.prompt = prompt,
                             .n_prompt = 20,
                             .max_tokens = max_tokens,
                             .seed = 10u + i,
                             .ignore_eos = true};
        CHECK(sim_submit(m, &d[i], &w));
    }
}

static void run_until(struct sim *m, uint64_t us)
{
    while (m->now_us < us)
        sim_next(m, us);
}

/* Goal:   a request of 20 tokens beside two prefills of 50K gets its first token within the time of
 * 5 decode steps. Method: four sequences decode; then forty short requests, one after the other, at
 * random moments; the scheduler knows none of the costs beforehand, so the first quarter of the
 * long prompts is left to it to learn them. Each first token is held against the decode steps, as
 * they are beside the long prompts, in which no short one has a part. */
TEST_LIMIT(sched_short_request_beside_long_prefills, 60)
{
    uint32_t *p = sim_prompt(1, 50 * K), *q = sim_prompt(2, 50 * K), *t = sim_prompt(3, 20);
    for (uint32_t k = 0; k < N_PACE_CASES; k++) {
        const struct pace_case *c = &pace_case[k];
        struct sim m;
        struct rng g = {77 + k};
        static struct sim_record d[4], big[2], small[N_SHORT];
        open_pace(&m, c);
        submit_streams(&m, d, 4, t, 60000);
        double step = c->decode.step_us + 4 * c->decode.token_us;
        run_until(&m, (uint64_t)(50 * step));
        for (int i = 0; i < 2; i++)
            CHECK(sim_submit(
                &m, &big[i],
                &(struct sim_wish){.prompt = i ? q : p, .n_prompt = 50 * K, .max_tokens = 2}));
        while (big[0].prompt_done < 12 * K)
            sim_next(&m, UINT64_MAX);
        uint32_t from = d[0].choice[0].n;
        run_until(&m, m.now_us + (uint64_t)(100 * step));
        double beside = (double)gap_quantile(&d[0], from, 0.5), most = 0;
        for (int i = 0; i < N_SHORT; i++) {
            struct sim_wish w = {
                .prompt = t, .n_prompt = 20, .max_tokens = 4, .salt = 1u + (uint32_t)i};
            CHECK(sim_submit(&m, &small[i], &w));
            while (!small[i].ended)
                sim_next(&m, UINT64_MAX);
            double first = (double)(small[i].first_token_us - small[i].submit_us);
            most = first > most ? first : most;
            run_until(&m, m.now_us + rng_below(&g, (uint32_t)(3 * step)));
            sim_record_free(&small[i]);
        }
        printf("  %s: first token after %.1f decode steps of %.2f ms at most\n", c->name,
               most / beside, beside / 1e3);
        CHECK_MSG(most <= 5 * beside, "%s: %.1f steps", c->name, most / beside);
        CHECK(!big[0].first_token_us && !big[1].first_token_us);
        for (int i = 0; i < 4; i++)
            sim_cancel(&m, &d[i]);
        sim_finish(&m);
        for (int i = 0; i < 4; i++)
            sim_record_free(&d[i]);
        sim_record_free(&big[0]);
        sim_record_free(&big[1]);
        sim_close(&m);
    }
    free(p);
    free(q);
    free(t);
}

/* Goal:   with a prefill of 100K running, p99 of the others' time between tokens stays within 2 x.
 * Method: eight sequences decode on each kind of device. Where it runs one lane at a time, a
 * prefill step delays a decode step by all of its time; costs grow with depth, and the scheduler
 * knows none of them beforehand. */
TEST_LIMIT(sched_pace_beside_a_long_prefill, 60)
{
    uint32_t *p = sim_prompt(1, 100 * K), *t = sim_prompt(3, 20);
    for (uint32_t k = 0; k < N_PACE_CASES; k++) {
        const struct pace_case *c = &pace_case[k];
        struct sim m;
        struct sim_record d[8], big;
        open_pace(&m, c);
        submit_streams(&m, d, 8, t, 60000);
        while (d[0].choice[0].n < 300)
            sim_next(&m, UINT64_MAX);
        double alone = (double)gap_quantile(&d[0], 50, 0.99);
        uint32_t from = d[0].choice[0].n;
        CHECK(sim_submit(&m, &big,
                         &(struct sim_wish){.prompt = p, .n_prompt = 100 * K, .max_tokens = 2}));
        while (!big.first_token_us && d[0].choice[0].n < 50000)
            sim_next(&m, UINT64_MAX);
        CHECK_MSG(big.first_token_us, "%s: %u tokens of the prompt", c->name, big.prompt_done);
        double beside = (double)gap_quantile(&d[0], from, 0.99);
        printf("  %s: p99 between tokens %.2f ms, with the prefill %.2f ms; it took %.1f s\n",
               c->name, alone / 1e3, beside / 1e3,
               (double)(big.first_token_us - big.submit_us) / 1e6);
        CHECK_MSG(beside <= 2 * alone, "%s: %.2f x", c->name, beside / alone);
        for (int i = 0; i < 8; i++)
            sim_cancel(&m, &d[i]);
        sim_finish(&m);
        for (int i = 0; i < 8; i++)
            sim_record_free(&d[i]);
        sim_record_free(&big);
        sim_close(&m);
    }
    free(p);
    free(t);
}

/* Goal: where every step has a large fixed cost, prefill still moves in chunks worth that cost.
 * Method: 150 ms to begin a prefill step, 250 ms a decode step, against the default budget of 30
 * ms. */
TEST(sched_prefill_moves_on_a_slow_machine)
{
    struct sim m;
    struct sim_record d, big;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 5 * K);
    sim_open(&m, large, 1);
    m.f.cost[LANE_DECODE] = (struct fake_cost){.step_us = 250000};
    m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 150000, .token_us = 300};
    CHECK(sim_submit(
        &m, &d,
        &(struct sim_wish){.prompt = p, .n_prompt = 20, .max_tokens = 100, .ignore_eos = true}));
    while (m.now_us < 2000000)
        sim_next(&m, 2000000);
    CHECK(
        sim_submit(&m, &big, &(struct sim_wish){.prompt = p, .n_prompt = 5 * K, .max_tokens = 1}));
    sim_finish(&m);
    scheduler_get_stats(m.s, &st);
    printf("  5K tokens beside decoding: %llu steps\n", (unsigned long long)st.prefill_steps - 1);
    CHECK(st.prefill_steps < 50); /* of 16 rows each there would be 320 */
    sim_record_free(&d);
    sim_record_free(&big);
    sim_close(&m);
    free(p);
}

/* Goal: many short prompts beside decoding go in steps of decode_budget_us (30 ms), of which each
 * holds a dozen decode steps: cut to 1.75 decode steps they would take more than a hundred, and
 * each its fixed cost. Method: 16 prompts of 100 tokens, 13 ms each, come at once on two cores. */
TEST(sched_short_prompts_are_not_cut_for_each_other)
{
    struct sim m;
    struct sim_record d[4], r[16];
    struct engine_stats before, after;
    uint32_t *t = sim_prompt(3, 20), *p[16];
    open_pace(&m, &pace_case[2]);
    submit_streams(&m, d, 4, t, 60000);
    while (d[0].choice[0].n < 300)
        sim_next(&m, UINT64_MAX);
    scheduler_get_stats(m.s, &before);
    for (uint32_t i = 0; i < 16; i++) {
        p[i] = sim_prompt(100 + i, 100);
        CHECK(sim_submit(&m, &r[i],
                         &(struct sim_wish){.prompt = p[i], .n_prompt = 100, .max_tokens = 1}));
    }
    for (int i = 0; i < 16; i++)
        while (!r[i].first_token_us)
            sim_next(&m, UINT64_MAX);
    scheduler_get_stats(m.s, &after);
    uint64_t steps = after.prefill_steps - before.prefill_steps;
    printf("  16 prompts of 100 tokens: %llu steps\n", (unsigned long long)steps);
    CHECK(steps >= 4 && steps <= 24);
    for (int i = 0; i < 4; i++)
        sim_cancel(&m, &d[i]);
    sim_finish(&m);
    for (int i = 0; i < 4; i++)
        sim_record_free(&d[i]);
    for (int i = 0; i < 16; i++) {
        sim_record_free(&r[i]);
        free(p[i]);
    }
    sim_close(&m);
    free(t);
}

/* Goal: with nothing decoding a prefill takes steps of prefill_tokens, whatever they cost. */
TEST(sched_prefill_alone_takes_whole_steps)
{
    struct sim m;
    struct sim_record r;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 10 * K);
    sim_open(&m, large, 1);
    m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 1000, .token_us = 10000};
    CHECK(sim_submit(&m, &r, &(struct sim_wish){.prompt = p, .n_prompt = 10 * K, .max_tokens = 1}));
    sim_finish(&m);
    scheduler_get_stats(m.s, &st);
    CHECK(st.prefill_steps == 20 && st.decode_steps == 0);
    CHECK(st.prompt_tokens == 10 * K && st.generation_tokens == 1);
    CHECK(st.rows_dense == 2048 && st.rows_sparse == 8 * K);
    CHECK(r.prompt_done == 10 * K - 512);
    sim_record_free(&r);
    sim_close(&m);
    free(p);
}

/* Goal: a second request with the same prefix waits for the first one's pages and computes only
 * what is its own; warm or cold, its tokens are the same. */
TEST(sched_concurrent_prefixes_are_computed_once)
{
    struct sim m;
    struct sim_record r[3], again;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 3000), *q = sim_prompt(1, 3000);
    struct sim_wish w = {.prompt = p, .n_prompt = 3000, .max_tokens = 30, .seed = 5};
    sim_open(&m, large, 1);
    CHECK(sim_submit(&m, &r[0], &w));
    CHECK(sim_submit(&m, &r[1], &w));
    q[2000] = SIM_VOCAB; /* shares 31 pages */
    w.prompt = q;
    CHECK(sim_submit(&m, &r[2], &w));
    sim_finish(&m);
    sim_check_equal(&r[0], &r[1], "first and second");
    CHECK(r[0].usage.cached_tokens == 0);
    CHECK(r[1].usage.cached_tokens == 46 * 64 && r[2].usage.cached_tokens == 31 * 64);
    scheduler_get_stats(m.s, &st);
    uint64_t n_rows =
        3 * 3000 - 77 * 64 + r[0].choice[0].n + r[1].choice[0].n + r[2].choice[0].n - 3;
    CHECK_MSG(m.f.n_rows == n_rows, "%llu rows", (unsigned long long)m.f.n_rows);
    CHECK(st.prefix_queries == 9000 && st.prefix_hits == 77 * 64 && st.cached_tokens == 77 * 64);
    CHECK(st.pages_cached > 0 && st.pages_used == 0);
    w.prompt = p;
    CHECK(sim_submit(&m, &again, &w));
    sim_finish(&m);
    CHECK(again.usage.cached_tokens == 46 * 64);
    sim_check_equal(&r[0], &again, "cold and warm");
    w.salt = 1;
    sim_record_free(&again);
    CHECK(sim_submit(&m, &again, &w));
    sim_finish(&m);
    CHECK(again.usage.cached_tokens == 0); /* another salt shares nothing */
    sim_check_equal(&r[0], &again, "another salt");
    for (int i = 0; i < 3; i++)
        sim_record_free(&r[i]);
    sim_record_free(&again);
    sim_close(&m);
    free(p);
    free(q);
}

/* Goal: when the one that computes a shared prefix goes, one of those that wait goes on with it. */
TEST(sched_a_waiting_request_inherits_the_prefix)
{
    for (int fail = 0; fail < 2; fail++) {
        struct sim m;
        struct sim_record r[4];
        uint32_t *p = sim_prompt(1, 4000);
        struct sim_wish w = {.prompt = p, .n_prompt = 4000, .max_tokens = 3, .ignore_eos = true};
        log_set_level(LOG_OFF);
        sim_open(&m, large, 1);
        for (int i = 0; i < 4; i++)
            CHECK(sim_submit(&m, &r[i], &w));
        for (int step = 0; step < 3; step++)
            sim_next(&m, UINT64_MAX);
        if (fail) {
            m.f.fail_per_1000 = 1000;
            sim_next(&m, UINT64_MAX);
            m.f.fail_per_1000 = 0;
        } else {
            sim_turn(&m);
            sim_cancel(&m, &r[0]);
        }
        sim_finish(&m);
        CHECK(r[0].failed == fail && r[0].cancelled == !fail && r[0].choice[0].n == 0);
        for (int i = 1; i < 4; i++)
            CHECK(!r[i].failed && r[i].choice[0].n == 3);
        CHECK(r[2].usage.cached_tokens == 62 * 64 && r[1].usage.cached_tokens >= 3 * 512 / 64 * 64);
        CHECK(m.f.n_rows < 4000 + 512 + 4 * 100);
        for (int i = 0; i < 4; i++)
            sim_record_free(&r[i]);
        sim_close(&m);
        free(p);
    }
}

/* Goal: choices share the prompt's whole pages, with the cache or without, and choice k is what a
 *       single request with stream k would be (here: the same in both settings, and different among
 *       themselves). */
TEST(sched_choices_share_their_prompt)
{
    struct sim_record r[2];
    uint32_t *p = sim_prompt(1, 1000);
    for (int cache = 0; cache < 2; cache++) {
        struct sim m;
        struct scheduler_config cfg = large;
        struct sim_wish w = {
            .prompt = p, .n_prompt = 1000, .n = 8, .max_tokens = 20, .ignore_eos = true};
        cfg.prefix_cache = cache;
        sim_open(&m, cfg, 1);
        CHECK(sim_submit(&m, &r[cache], &w));
        sim_finish(&m);
        CHECK(m.f.n_rows == 1000 + 7 * (1000 - 15 * 64) + 8 * 19);
        struct engine_stats st;
        scheduler_get_stats(m.s, &st);
        CHECK(st.finished_length == 8 && st.pages_cached == (cache ? 15 : 0));
        sim_close(&m);
    }
    sim_check_equal(&r[0], &r[1], "without and with the cache");
    CHECK(memcmp(r[0].choice[0].token, r[0].choice[1].token, 20 * sizeof(uint32_t)) != 0);
    sim_record_free(&r[0]);
    sim_record_free(&r[1]);
    free(p);
}

/* Goal: pages of the output are shared only when a prefill would have written the same bits. */
TEST(sched_only_canonical_pages_are_published)
{
    static const struct {
        uint32_t n_prompt, n_cached;
    } row[] = {
        {100, 64},    /* below expand_tokens: rows of the output are of another form */
        {2048, 2240}, /* from there on of a prefill's: all whole pages of 2247 slots */
        {1999, 1984}, /* the prompt alone, whatever the output reached */
    };
    for (int i = 0; i < 3; i++) {
        struct sim m;
        struct sim_record a, b;
        uint32_t n = row[i].n_prompt, *p = sim_prompt(1, n),
                 *next = malloc((n + 300) * sizeof *next);
        CHECK(next != NULL);
        sim_open(&m, large, 1);
        CHECK(sim_submit(
            &m, &a,
            &(struct sim_wish){.prompt = p, .n_prompt = n, .max_tokens = 200, .ignore_eos = true}));
        sim_finish(&m);
        memcpy(next, p, n * sizeof *p);
        memcpy(next + n, a.choice[0].token, 200 * sizeof *p);
        next[n + 200] = 1;
        CHECK(sim_submit(&m, &b,
                         &(struct sim_wish){.prompt = next, .n_prompt = n + 201, .max_tokens = 5}));
        sim_finish(&m);
        CHECK_MSG(b.usage.cached_tokens == row[i].n_cached, "%u", b.usage.cached_tokens);
        sim_record_free(&a);
        sim_record_free(&b);
        sim_close(&m);
        free(p);
        free(next);
    }
}

/* Goal: a prompt's log-probabilities come once, complete, whatever chunks and results fit a step.
 */
TEST(sched_prompt_logprobs)
{
    struct scheduler_config cfg = large;
    cfg.max_out = 20;
    for (uint32_t max_tokens = 0; max_tokens < 3; max_tokens += 2) {
        for (uint32_t n = 1; n <= 3; n += 2) {
            struct sim m;
            struct sim_record r, other;
            uint32_t *p = sim_prompt(1, 777);
            struct sim_wish w = {.prompt = p,
                                 .n_prompt = 777,
                                 .n = n,
                                 .max_tokens = max_tokens,
                                 .ignore_eos = true,
                                 .prompt_logprobs = true};
            sim_open(&m, cfg, 1);
            CHECK(sim_submit(&m, &r, &w));
            w.prompt_logprobs = false;
            CHECK(sim_submit(&m, &other, &w));
            sim_finish(&m);
            CHECK(r.prompt_seen && !r.failed && r.usage.cached_tokens == 0);
            for (uint32_t k = 0; k < n; k++)
                CHECK(r.choice[k].finish == FINISH_LENGTH && r.choice[k].n == max_tokens);
            sim_check_equal(&r, &other, "with and without");
            sim_record_free(&r);
            sim_record_free(&other);
            sim_close(&m);
            free(p);
        }
    }
}

/* Goal: a request that needs the whole pool gets in although small ones keep coming. */
TEST(sched_a_big_request_does_not_starve)
{
    struct sim m;
    static struct sim_record small[400];
    struct sim_record big;
    struct scheduler_config cfg = large;
    uint32_t *p = sim_prompt(1, 63 * 64), *t = sim_prompt(2, 100);
    uint32_t n = 0, n_ended_first = 0;
    cfg.n_pages = 64;
    cfg.max_context = 64 * 64;
    sim_open(&m, cfg, 1);
    m.check = false;
    while (n < 400) {
        if (n == 20)
            CHECK(sim_submit(
                &m, &big, &(struct sim_wish){.prompt = p, .n_prompt = 63 * 64, .max_tokens = 60}));
        CHECK(sim_submit(
            &m, &small[n],
            &(struct sim_wish){
                .prompt = t, .n_prompt = 100, .seed = n, .max_tokens = 200, .ignore_eos = true}));
        n++;
        uint64_t until = m.now_us + 30000;
        while (m.now_us < until)
            sim_next(&m, until);
        if (m.n_inside > SIM_MAX_SLOTS - 4)
            sim_finish(&m);
    }
    sim_finish(&m);
    CHECK(!big.failed && big.choice[0].n > 0);
    for (uint32_t i = 21; i < n; i++)
        n_ended_first += small[i].first_token_us < big.first_token_us;
    printf("  %u later requests began before the big one\n", n_ended_first);
    CHECK(n_ended_first <= 16);
    for (uint32_t i = 0; i < n; i++)
        sim_record_free(&small[i]);
    sim_record_free(&big);
    sim_close(&m);
    free(p);
    free(t);
}

TEST(sched_priority_before_arrival)
{
    struct sim m;
    struct sim_record r[3];
    struct scheduler_config cfg = large;
    static const int32_t priority[] = {0, 5, -5};
    uint32_t *p[3];
    cfg.max_seqs = 1;
    sim_open(&m, cfg, 1);
    for (uint32_t i = 0; i < 3; i++) {
        p[i] = sim_prompt(i + 1, 100);
        CHECK(sim_submit(&m, &r[i],
                         &(struct sim_wish){.prompt = p[i],
                                            .n_prompt = 100,
                                            .max_tokens = 3,
                                            .priority = priority[i],
                                            .ignore_eos = true}));
    }
    sim_finish(&m);
    CHECK(r[2].first_token_us < r[0].first_token_us && r[0].end_us < r[1].first_token_us);
    for (int i = 0; i < 3; i++) {
        free(p[i]);
        sim_record_free(&r[i]);
    }
    sim_close(&m);
}

/* Goal: a cancel frees everything when the step in flight ends, at every stage of a request's life.
 */
TEST(sched_cancel_at_every_step)
{
    uint32_t *p = sim_prompt(1, 1500);
    for (int at = 0; at < 40; at++) {
        struct sim m;
        struct sim_record r;
        struct engine_stats st;
        sim_open(&m, large, 1);
        CHECK(sim_submit(
            &m, &r,
            &(struct sim_wish){
                .prompt = p, .n_prompt = 1500, .n = 3, .max_tokens = 20, .ignore_eos = true}));
        for (int k = 0; k < at / 2; k++)
            sim_next(&m, UINT64_MAX);
        if (at % 2)
            sim_turn(&m); /* a batch is in flight */
        sim_cancel(&m, &r);
        scheduler_check(m.s);
        uint64_t next = fake_executor_next_us(&m.f);
        if (next != UINT64_MAX) {
            m.now_us = next;
            fake_executor_advance(&m.f, next);
            next = fake_executor_next_us(&m.f); /* the other lane's */
            if (next != UINT64_MAX) {
                m.now_us = next;
                fake_executor_advance(&m.f, next);
            }
        }
        CHECK(r.ended && !r.failed);
        scheduler_get_stats(m.s, &st);
        CHECK(st.pages_used == 0 && st.running == 0 && st.cancelled == 1);
        sim_cancel(&m, &r); /* late: nothing */
        CHECK(scheduler_idle(m.s));
        sim_record_free(&r);
        sim_close(&m);
    }
    free(p);
}

/* Goal: 1000 quick cancels leave nothing behind. */
TEST(sched_a_thousand_cancels)
{
    struct sim m;
    struct sim_record *r = calloc(1000, sizeof *r);
    struct rng g = {test_seed()};
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 2000);
    CHECK(r != NULL);
    sim_open(&m, large, 1);
    for (uint32_t i = 0; i < 1000; i++) {
        while (!sim_submit(&m, &r[i],
                           &(struct sim_wish){.prompt = p,
                                              .n_prompt = 1 + rng_below(&g, 2000),
                                              .max_tokens = 50,
                                              .ignore_eos = true}))
            sim_next(&m, UINT64_MAX);
        if (rng_below(&g, 2))
            sim_next(&m, UINT64_MAX);
        sim_cancel(&m, &r[i]);
    }
    sim_finish(&m);
    scheduler_get_stats(m.s, &st);
    CHECK(st.cancelled == 1000 && st.pages_used == 0 && m.n_events >= 2000);
    for (uint32_t i = 0; i < 1000; i++) {
        CHECK(r[i].ended);
        sim_record_free(&r[i]);
    }
    sim_close(&m);
    free(r);
    free(p);
}

/* Goal: a step that fails ends its own sequences; bad logits end one request. */
TEST(sched_failures_stay_where_they_are)
{
    struct sim m;
    struct sim_record a, b;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 3000), *q = sim_prompt(2, 50);
    log_set_level(LOG_OFF);
    sim_open(&m, large, 1);
    m.f.cost[LANE_PREFILL].step_us = 100000;
    CHECK(sim_submit(
        &m, &b,
        &(struct sim_wish){.prompt = q, .n_prompt = 50, .max_tokens = 2000, .ignore_eos = true}));
    while (!b.first_token_us)
        sim_next(&m, UINT64_MAX);
    CHECK(sim_submit(&m, &a, &(struct sim_wish){.prompt = p, .n_prompt = 3000, .max_tokens = 5}));
    sim_turn(&m);
    m.f.fail_per_1000 = 1000; /* the decode step that is out fails; the prefill goes on */
    sim_next(&m, UINT64_MAX);
    m.f.fail_per_1000 = 0;
    CHECK(b.ended && b.failed && b.code == ERR_CUDA && !a.ended);
    while (!a.first_token_us)
        sim_next(&m, UINT64_MAX);
    CHECK(!a.failed);
    sim_record_free(&b);
    CHECK(sim_submit(
        &m, &b,
        &(struct sim_wish){.prompt = q, .n_prompt = 50, .max_tokens = 20, .ignore_eos = true}));
    m.f.bad_per_1000 = 1000;
    sim_finish(&m);
    CHECK(b.failed || a.failed);
    scheduler_get_stats(m.s, &st);
    CHECK(st.failed >= 2 && st.pages_used == 0);
    sim_record_free(&a);
    sim_record_free(&b);
    sim_close(&m);
    free(p);
    free(q);
}

TEST(sched_can_ever_fit_says_both_numbers)
{
    struct scheduler_config cfg = {.n_pages = 10, .max_seqs = 4, .max_context = 600};
    struct gen_request r = {.n_prompt = 599, .n = 1, .max_tokens = 1};
    struct err e;
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_OK);
    r.max_tokens = 2;
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_INVALID);
    CHECK(strstr(e.msg, "599") && strstr(e.msg, "600") && strstr(e.msg, "is 2"));
    r = (struct gen_request){.n_prompt = 600, .n = 1};
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_INVALID);
    r = (struct gen_request){.n_prompt = 100, .n = 5, .max_tokens = 1};
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_INVALID);
    CHECK(strstr(e.msg, "n is 5") && strstr(e.msg, "most 4"));
    r = (struct gen_request){.n_prompt = 320, .n = 4, .max_tokens = 64};
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_INVALID); /* 4 + 4 * 2 pages */
    CHECK(strstr(e.msg, "12") && strstr(e.msg, "10"));
    r.n = 3;
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_OK);
    r = (struct gen_request){.n_prompt = UINT32_MAX, .n = 1, .max_tokens = UINT32_MAX};
    CHECK(scheduler_can_ever_fit(&cfg, &r, &e) == ERR_INVALID);
}

/* Goal: usage adds up. Method: costs that are easy to sum by hand. */
TEST(sched_usage_and_times)
{
    struct sim m;
    struct sim_record r;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 100);
    sim_open(&m, large, 1);
    for (int l = 0; l < N_LANES; l++)
        m.f.cost[l] = (struct fake_cost){.step_us = 999999};
    CHECK(sim_submit(
        &m, &r,
        &(struct sim_wish){.prompt = p, .n_prompt = 100, .max_tokens = 11, .ignore_eos = true}));
    sim_finish(&m);
    CHECK(r.usage.prompt_tokens == 100 && r.usage.completion_tokens == 11);
    CHECK(r.usage.queue_us == 0 && r.usage.prefill_us == 1000000 && r.usage.ttft_us == 1000000);
    CHECK(r.usage.decode_us == 10000000 && r.usage.total_us == 11000000);
    CHECK(r.usage.busy_us == 11000000);
    CHECK(r.usage.kv_byte_seconds == 11ull * 2 * 65536);
    scheduler_get_stats(m.s, &st);
    CHECK(st.ttft_s.n == 1 && st.inter_token_s.n == 10 && st.e2e_s.n == 1 && st.e2e_s.sum > 10.99);
    CHECK(st.inter_token_s.count[11] == 10); /* (0.75 s, 1 s] */
    CHECK(st.prompt_len.count[7] == 1);      /* (64, 128] */
    CHECK(st.finished_length == 1 && st.decode_steps == 10 && st.step_tokens.n == 11);
    sim_record_free(&r);
    sim_close(&m);
    free(p);
}

TEST(sched_create_without_memory)
{
    struct fake_executor f;
    struct scheduler_config cfg = large;
    uint32_t n_failed = 0;
    cfg.n_pages = 16;
    cfg.max_requests = 4;
    fake_executor_init(&f, 1, 16, 1);
    cfg.exec = &f.exec;
    for (int at = 1;; at++) {
        struct scheduler *s = NULL;
        struct err e;
        char spec[16];
        snprintf(spec, sizeof spec, "*:%d", at);
        fault_arm(spec);
        enum err_code rc = scheduler_create(&s, &cfg, &e);
        fault_arm(NULL);
        CHECK((rc == ERR_OK) == (s != NULL));
        if (rc == ERR_OK) {
            scheduler_destroy(s);
            break;
        }
        CHECK(rc == ERR_NOMEM);
        n_failed++;
    }
    CHECK(n_failed >= 8);
    fake_executor_free(&f);
}

/* Goal:   what requests are told of their share of the device adds up to the time it was busy.
 * Method: prompts of all lengths, some with several choices, some cancelled, both lanes at once. A
 * request's share is rounded down to a microsecond. */
TEST(sched_shares_of_busy_time_add_up)
{
    enum { N = 60 };
    static struct sim_record rec[N];
    static uint32_t *prompt[N];
    struct sim m;
    struct rng g = {77};
    uint64_t sum_us = 0;
    sim_open(&m, large, 5);
    m.f.cost[LANE_DECODE] = (struct fake_cost){.step_us = 900, .token_us = 37};
    m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 300, .token_us = 11, .depth_us = 2};
    for (uint32_t i = 0; i < N; i++) {
        uint32_t n = 1 + rng_below(&g, 3000);
        prompt[i] = sim_prompt(100 + i, n);
        struct sim_wish w = {.prompt = prompt[i],
                             .n_prompt = n,
                             .n = 1 + rng_below(&g, 4),
                             .max_tokens = 1 + rng_below(&g, 60),
                             .seed = i,
                             .ignore_eos = true};
        CHECK(sim_submit(&m, &rec[i], &w));
        for (uint32_t k = rng_below(&g, 30); k; k--)
            sim_next(&m, m.now_us + 100000);
        if (i && rng_below(&g, 6) == 0 && !rec[i - 1].ended)
            sim_cancel(&m, &rec[i - 1]);
    }
    sim_finish(&m);
    for (uint32_t i = 0; i < N; i++) {
        CHECK(rec[i].ended && !rec[i].failed);
        sum_us += rec[i].usage.busy_us;
        sim_record_free(&rec[i]);
        free(prompt[i]);
    }
    printf("  busy %.3f s, shares %.3f s\n", (double)m.busy_us * 1e-6, (double)sum_us * 1e-6);
    CHECK(m.busy_us > 1000000 && sum_us <= m.busy_us && m.busy_us - sum_us <= N);
    sim_close(&m);
}
