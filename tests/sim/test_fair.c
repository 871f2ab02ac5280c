/* test_fair.c - several tenants before one scheduler: each gets its share, and nobody starves. */
#include "sim.h"

enum { PROMPT = 64, ANSWER = 40, MAX_EACH = 20 };

static const struct scheduler_config four_at_once = {
    .n_pages = 400, .max_seqs = 4, .max_context = 512, .prefill_tokens = 256, .max_out = 256};

struct crowd { /* one tenant with `n` requests inside at any time */
    uint32_t tenant, weight, n, max_tokens;
    struct sim_record record[MAX_EACH];
    bool used[MAX_EACH];
    uint64_t tokens, done, max_wait_us;
};

static void reap(struct crowd *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        struct sim_record *r = &c->record[i];
        if (!c->used[i] || !r->ended)
            continue;
        uint64_t wait_us = r->first_token_us - r->submit_us;
        CHECK(!r->failed && r->choice[0].n > 0);
        c->tokens += r->usage.prompt_tokens + r->usage.completion_tokens;
        c->done++;
        c->max_wait_us = wait_us > c->max_wait_us ? wait_us : c->max_wait_us;
        sim_record_free(r);
        c->used[i] = false;
    }
}

static void refill(struct sim *m, struct crowd *c, const uint32_t *prompt, struct rng *g)
{
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->used[i])
            continue;
        struct sim_wish w = {.prompt = prompt,
                             .n_prompt = PROMPT,
                             .max_tokens = 1 + rng_below(g, 2 * c->max_tokens),
                             .seed = m->n_events,
                             .ignore_eos = true,
                             .tenant = c->tenant,
                             .weight = c->weight};
        c->used[i] = sim_submit(m, &c->record[i], &w);
    }
}

static void run(struct crowd *crowd, int n, uint64_t us, uint64_t seed)
{
    struct sim m;
    struct rng g = {seed};
    uint32_t *prompt = sim_prompt(seed, PROMPT);
    sim_open(&m, four_at_once, seed);
    m.f.cost[LANE_DECODE] = (struct fake_cost){.step_us = 2000, .token_us = 200};
    m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 500, .token_us = 20};
    while (m.now_us < us) {
        for (int i = 0; i < n; i++) {
            reap(&crowd[i]);
            refill(&m, &crowd[i], prompt, &g);
        }
        sim_next(&m, us);
    }
    for (int i = 0; i < n; i++) { /* what is still inside does not count */
        reap(&crowd[i]);
        for (uint32_t k = 0; k < crowd[i].n; k++)
            if (crowd[i].used[k])
                sim_cancel(&m, &crowd[i].record[k]);
    }
    sim_finish(&m);
    for (int i = 0; i < n; i++)
        for (uint32_t k = 0; k < crowd[i].n; k++)
            if (crowd[i].used[k])
                sim_record_free(&crowd[i].record[k]);
    sim_close(&m);
    free(prompt);
}

/* Goal: tokens of tenants that always have more to ask are as their weights, whatever each asks
 * for: many requests or few, long answers or short ones. 10 %: the run ends amid some 250 requests
 * of a few hundred tokens, of which each tenant's last four may or may not count. */
TEST_LIMIT(fair_tokens_follow_the_weights, 60)
{
    static const struct {
        uint32_t weight[2], n[2], max_tokens[2];
    } cases[] = {{{1, 1}, {20, 20}, {ANSWER, ANSWER}},     {{1, 3}, {20, 20}, {ANSWER, ANSWER}},
                 {{5, 1}, {20, 20}, {ANSWER, ANSWER}},     {{1, 1}, {20, 6}, {ANSWER, ANSWER}},
                 {{1, 1}, {20, 20}, {ANSWER, 4 * ANSWER}}, {{2, 1}, {8, 20}, {ANSWER, 3 * ANSWER}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct crowd c[2] = {0};
        for (uint32_t k = 0; k < 2; k++)
            c[k] = (struct crowd){.tenant = k + 1,
                                  .weight = cases[i].weight[k],
                                  .n = cases[i].n[k],
                                  .max_tokens = cases[i].max_tokens[k]};
        run(c, 2, 60000000, 7 + i);
        double got = (double)c[1].tokens / (double)c[0].tokens;
        double want = (double)c[1].weight / c[0].weight;
        printf("  weights %u:%u, %u and %u waiting: tokens %llu and %llu, %.3f for %.3f\n",
               c[0].weight, c[1].weight, c[0].n, c[1].n, (unsigned long long)c[0].tokens,
               (unsigned long long)c[1].tokens, got, want);
        CHECK_MSG(got > 0.9 * want && got < 1.1 * want, "case %zu: %.3f for %.3f", i, got, want);
    }
}

/* Goal: with twenty requests of one tenant in the queue another one's single request is next. */
TEST(fair_a_quiet_tenant_does_not_wait_behind_a_crowd)
{
    struct crowd c[2] = {{.tenant = 1, .weight = 1, .n = 20, .max_tokens = ANSWER},
                         {.tenant = 2, .weight = 1, .n = 1, .max_tokens = ANSWER}};
    run(c, 2, 30000000, 3);
    printf("  longest wait: crowd %.0f ms, alone %.0f ms\n", (double)c[0].max_wait_us / 1e3,
           (double)c[1].max_wait_us / 1e3);
    CHECK(c[1].done > 50);
    /* At most the longest answer that runs, of 80 steps of 2.8 ms, and its own prefill. */
    CHECK_MSG(c[1].max_wait_us < 300000, "%llu us", (unsigned long long)c[1].max_wait_us);
    CHECK(c[0].max_wait_us > c[1].max_wait_us);
}

/* Goal: the lightest of many tenants is served, too. Weights 1 to 100: its share is 1 in 111. */
TEST_LIMIT(fair_the_lightest_is_not_starved, 60)
{
    struct crowd c[3] = {{.tenant = 7, .weight = 1, .n = 10, .max_tokens = ANSWER},
                         {.tenant = 8, .weight = 10, .n = 20, .max_tokens = ANSWER},
                         {.tenant = 255, .weight = 100, .n = 20, .max_tokens = ANSWER}};
    run(c, 3, 100000000, 11);
    printf("  tokens %llu, %llu, %llu\n", (unsigned long long)c[0].tokens,
           (unsigned long long)c[1].tokens, (unsigned long long)c[2].tokens);
    CHECK(c[0].done >= 5);
    CHECK(c[1].tokens > 5 * c[0].tokens && c[2].tokens > 5 * c[1].tokens);
}

/* Goal: a tenant that was idle for long does not shut the others out when it comes back. */
TEST(fair_idling_earns_nothing)
{
    struct sim m;
    struct sim_record busy[40], back[10];
    struct rng g = {5};
    uint32_t *prompt = sim_prompt(5, PROMPT), n_busy_before = 0;
    sim_open(&m, four_at_once, 5);
    struct sim_wish w = {
        .prompt = prompt, .n_prompt = PROMPT, .max_tokens = ANSWER, .ignore_eos = true};
    w.tenant = 1;
    for (int i = 0; i < 40; i++) {
        w.seed = rng_below(&g, 1000);
        CHECK(sim_submit(&m, &busy[i], &w));
    }
    while (!busy[19].ended)
        CHECK(sim_next(&m, UINT64_MAX));
    w.tenant = 2;
    for (int i = 0; i < 10; i++)
        CHECK(sim_submit(&m, &back[i], &w));
    sim_finish(&m);
    for (int i = 20; i < 40; i++)
        n_busy_before += busy[i].first_token_us < back[9].first_token_us;
    printf("  %u of the other's 20 came before the last of its 10\n", n_busy_before);
    CHECK(n_busy_before >= 7); /* turn by turn: ten; the four that run when it comes are no turns */
    for (int i = 0; i < 40; i++)
        sim_record_free(&busy[i]);
    for (int i = 0; i < 10; i++)
        sim_record_free(&back[i]);
    sim_close(&m);
    free(prompt);
}

/* Goal: without tenants, and for the requests of one tenant, order of arrival is order of service.
 */
TEST(fair_one_tenant_is_served_in_order)
{
    struct sim m;
    struct sim_record r[40];
    struct rng g = {9};
    uint32_t *prompt = sim_prompt(9, PROMPT);
    sim_open(&m, four_at_once, 9);
    for (uint32_t i = 0; i < 40; i++) {
        struct sim_wish w = {.prompt = prompt,
                             .n_prompt = 1 + rng_below(&g, PROMPT),
                             .max_tokens = 1 + rng_below(&g, 100),
                             .seed = i};
        CHECK(sim_submit(&m, &r[i], &w));
        for (uint32_t k = rng_below(&g, 3); k; k--)
            sim_next(&m, m.now_us + 3000);
    }
    sim_finish(&m);
    for (uint32_t i = 0; i < 40; i++) {
        uint64_t queue_us = r[i].usage.queue_us;
        if (i)
            CHECK(r[i].submit_us + queue_us >= r[i - 1].submit_us + r[i - 1].usage.queue_us);
        sim_record_free(&r[i]);
    }
    sim_close(&m);
    free(prompt);
}
