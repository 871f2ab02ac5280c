/* test_chaos.c - seeded chaos: whatever arrives, leaves or fails, and whenever, each request is
 * answered once, its tokens are those it gets alone, and no page is lost. */
#include "sim.h"

#include "base/fault.h"
#include "base/log.h"

enum { N_REQUESTS = 40, MAX_PROMPTS = 6, MAX_UNREAD = 8 };

struct chaos {
    struct sim m;
    struct rng g;
    struct sim_record rec[N_REQUESTS];
    bool submitted[N_REQUESTS];
    uint32_t *root[MAX_PROMPTS]; /* prompts are prefixes of these, with a tail of their own */
    uint32_t *prompt[N_REQUESTS];
    uint32_t read_us[N_REQUESTS]; /* a slow client: how long it reads at one token; 0: no time */
    uint32_t n_cut;
};

/* One group; several that do all; some for prefill or decode alone, perhaps beside some that do
 * all.
 */
static void random_groups(struct rng *g, struct scheduler_config *cfg)
{
    uint32_t form = rng_below(g, 4);
    cfg->n_groups = form ? 1 + rng_below(g, 4) : 0;
    if (form < 2 || cfg->n_groups < 2)
        return;
    for (uint32_t i = 0; i < cfg->n_groups; i++)
        cfg->role[i] = form == 2 && rng_below(g, 3) == 0 ? GROUP_BOTH
                       : rng_below(g, 2)                 ? GROUP_PREFILL
                                                         : GROUP_DECODE;
    uint32_t first = rng_below(g, cfg->n_groups);
    cfg->role[first] = GROUP_PREFILL;
    cfg->role[(first + 1) % cfg->n_groups] = GROUP_DECODE;
}

static struct scheduler_config random_config(struct rng *g)
{
    static const uint32_t pages[] = {12, 20, 48, 200}, rows[] = {1, 7, 64, 100, 512};
    struct scheduler_config cfg = {.n_pages = pages[rng_below(g, 4)],
                                   .max_seqs = 4 + rng_below(g, 12),
                                   .prefill_tokens = rows[rng_below(g, 5)],
                                   .prefix_cache = rng_below(g, 5) != 0,
                                   .index_topk = rng_below(g, 4) ? 128 : 0,
                                   .expand_tokens = 128,
                                   .decode_budget_us = rng_below(g, 2) ? 1500 : 0};
    random_groups(g, &cfg);
    cfg.max_context = cfg.n_pages * KV_PAGE_TOKENS < 1200 ? cfg.n_pages * KV_PAGE_TOKENS : 1200;
    cfg.max_out = cfg.max_seqs + rng_below(g, 40);
    return cfg;
}

/* A conversation goes on: an earlier prompt with its answer, then new tokens. False: there is none.
 */
static bool continue_earlier(struct chaos *c, uint32_t i, uint32_t n, uint32_t *token)
{
    for (uint32_t tries = 0; i && tries < 4; tries++) {
        const struct sim_record *r = &c->rec[rng_below(&c->g, i)];
        uint32_t n_out = r->choice[0].n;
        if (!n_out)
            continue;
        uint32_t n_prompt = r->wish.n_prompt < n ? r->wish.n_prompt : n;
        memcpy(token, r->wish.prompt, n_prompt * sizeof *token);
        n_out = n_out < n - n_prompt ? n_out : n - n_prompt;
        memcpy(token + n_prompt, r->choice[0].token, n_out * sizeof *token);
        return true;
    }
    return false;
}

static struct sim_wish random_wish(struct chaos *c, uint32_t i)
{
    struct rng *g = &c->g;
    uint32_t limit = c->m.cfg.max_context - 1, n = 1 + rng_below(g, 200);
    if (rng_below(g, 4) == 0)
        n = 1 + rng_below(g, limit);
    if (rng_below(g, 4) == 0)
        n = (n + 63) / 64 * 64; /* whole pages: the last token's page is never shared */
    n = n < limit ? n : limit;
    c->prompt[i] = sim_prompt(1000 + rng_below(g, 1u << 30), n);
    uint32_t common = rng_below(g, n + 1);
    if (rng_below(g, 3) || !continue_earlier(c, i, n, c->prompt[i]))
        memcpy(c->prompt[i], c->root[rng_below(g, MAX_PROMPTS)], common * sizeof(uint32_t));
    uint32_t left = c->m.cfg.max_context - n, most = left < 100 ? left : 100;
    struct sim_wish w = {.prompt = c->prompt[i],
                         .n_prompt = n,
                         .n = 1,
                         .max_tokens = rng_below(g, most + 1),
                         .seed = rng_below(g, 3),
                         .salt = rng_below(g, 8) == 0,
                         .priority = (int32_t)rng_below(g, 3) - 1,
                         .prompt_logprobs = rng_below(g, 8) == 0,
                         .ignore_eos = rng_below(g, 2),
                         .min_tokens = rng_below(g, 3) ? 0 : rng_below(g, 20),
                         .top_k = rng_below(g, 4) ? 0 : 64};
    if (rng_below(g, 3) == 0)
        w.n = 1 + rng_below(g, c->m.cfg.max_seqs < 8 ? c->m.cfg.max_seqs : 8);
    for (;;) { /* it must be able to fit */
        struct err e;
        struct gen_request q = {.n_prompt = n, .n = w.n, .max_tokens = w.max_tokens};
        if (scheduler_can_ever_fit(&c->m.cfg, &q, &e) == ERR_OK)
            return w;
        w.n = w.n > 1 ? w.n - 1 : w.n;
        w.max_tokens /= 2;
    }
}

/* The same request, alone in a new world of one group. */
static void check_alone(struct chaos *c, uint32_t i)
{
    struct sim alone;
    struct sim_record r;
    struct scheduler_config cfg = c->m.cfg;
    cfg.prefill_tokens = 64;
    cfg.n_groups = 1;
    cfg.role[0] = GROUP_BOTH;
    sim_open(&alone, cfg, 1);
    CHECK(sim_submit(&alone, &r, &c->rec[i].wish));
    sim_finish(&alone);
    CHECK(!r.failed);
    struct sim_record *was = &c->rec[i];
    if (was->failed || was->cancelled) { /* what came before that is right all the same */
        for (uint32_t k = 0; k < r.wish.n; k++) {
            CHECK(was->choice[k].n <= r.choice[k].n);
            for (uint32_t t = 0; t < was->choice[k].n; t++)
                CHECK(was->choice[k].token[t] == r.choice[k].token[t]);
        }
    } else {
        sim_check_equal(was, &r, "in chaos and alone");
    }
    sim_record_free(&r);
    sim_close(&alone);
}

static void chaos_open(struct chaos *c, uint64_t seed)
{
    memset(c, 0, sizeof *c);
    log_set_level(LOG_OFF); /* failures are the point here */
    c->g.state = seed;
    sim_open(&c->m, random_config(&c->g), seed);
    c->m.f.serial = rng_below(&c->g, 2);
    c->m.f.exec.max_more = rng_below(&c->g, 2) * OPS_MAX_MORE;
    c->m.f.fail_per_1000 = rng_below(&c->g, 3) ? 0 : 30;
    c->m.f.bad_per_1000 = rng_below(&c->g, 6) ? 0 : 3;
    c->m.f.move_us = rng_below(&c->g, 4) ? 200 : 20000;
    c->m.f.move_fail_per_1000 = rng_below(&c->g, 3) ? 0 : 1 + rng_below(&c->g, 700);
    c->m.f.move_corrupt_per_1000 = rng_below(&c->g, 3) ? 0 : 1 + rng_below(&c->g, 700);
    c->m.f.die_at_step = rng_below(&c->g, 8) ? 0 : 1 + rng_below(&c->g, 1500);
    c->m.f.die_after_us = rng_below(&c->g, 20000);
    for (uint32_t i = 0; i < MAX_PROMPTS; i++)
        c->root[i] = sim_prompt(i / 2 + 1, 1200); /* some are equal */
}

static void chaos_close(struct chaos *c)
{
    for (uint32_t i = 0; i < MAX_PROMPTS; i++)
        free(c->root[i]);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        free(c->prompt[i]);
        sim_record_free(&c->rec[i]);
    }
    sim_close(&c->m);
}

/* A client that is further behind than its buffer holds is cut off, as the server does. */
static void cut_slow_clients(struct chaos *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct sim_record *r = &c->rec[i];
        uint64_t n_heard = 0;
        if (!c->submitted[i] || !c->read_us[i] || r->ended || r->cancelled || !r->first_token_us)
            continue;
        for (uint32_t k = 0; k < r->wish.n; k++)
            n_heard += r->choice[k].n;
        if (n_heard > MAX_UNREAD + (c->m.now_us - r->first_token_us) / c->read_us[i]) {
            sim_cancel(&c->m, r);
            c->n_cut++;
        }
    }
}

static void chaos_run(struct chaos *c)
{
    uint32_t next = 0, cancel_one_in = rng_below(&c->g, 3) ? 60 : 8;
    while (next < N_REQUESTS) {
        uint64_t pause = rng_below(&c->g, 4) ? rng_below(&c->g, 3000) : rng_below(&c->g, 30000);
        uint64_t until = c->m.now_us + pause;
        while (c->m.now_us < until) {
            CHECK(sim_next(&c->m, until));
            if (c->m.lost) /* the server takes no more */
                return;
            cut_slow_clients(c, next);
            if (next && rng_below(&c->g, cancel_one_in) == 0) {
                uint32_t i = rng_below(&c->g, next);
                if (c->submitted[i])
                    sim_cancel(&c->m, &c->rec[i]); /* late ones are harmless */
            }
        }
        struct sim_wish w = random_wish(c, next);
        c->read_us[next] = rng_below(&c->g, 6) ? 0 : 1 + rng_below(&c->g, 4000);
        c->submitted[next] = sim_submit(&c->m, &c->rec[next], &w);
        next++;
    }
    while (sim_next(&c->m, UINT64_MAX))
        cut_slow_clients(c, next);
}

/* Nobody's request fails for nothing, or for another reason than what was made to fail. */
static void check_failures(const struct chaos *c)
{
    const struct fake_executor *f = &c->m.f;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        const struct sim_record *r = &c->rec[i];
        if (!c->submitted[i])
            continue;
        CHECK(r->ended);
        CHECK(r->code != ERR_CUDA || f->fail_per_1000 || f->bad_per_1000);
        CHECK(r->code != ERR_IO || f->move_fail_per_1000 || f->move_corrupt_per_1000);
        CHECK(r->code != ERR_CLOSED || c->m.lost);
        CHECK(r->code == ERR_OK || r->code == ERR_CUDA || r->code == ERR_IO ||
              r->code == ERR_CLOSED || r->code == ERR_NOMEM);
    }
}

static uint32_t n_of_role(const struct scheduler_config *cfg, enum group_role role)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < scheduler_n_groups(cfg); i++)
        n += cfg->role[i] == role;
    return n;
}

/* How many seeds: SIM_SEEDS in the environment for a long night, else a few seconds' worth. */
static uint32_t n_seeds(uint32_t usual)
{
    const char *text = getenv("SIM_SEEDS");
    return text ? (uint32_t)strtoul(text, NULL, 10) : usual;
}

/* Goal:   every request ends once, with the tokens it would get alone; pages come home.
 * Method: worlds of all sizes by seed; invariants after every turn: pages are conserved and within
 *         their bounds, queue and events are in order (scheduler_check, sim_take), nobody starves
 *         (sim_check_progress, n_passed), and at the end every client has been answered
 * (sim_finish). SIM_SEEDS and SIM_FROM choose the seeds (`make sim`); a failure prints its own.
 * Proof:  tests/sim/mutants breaks the scheduler in one place after the other; each is found. */
TEST_LIMIT(chaos_keeps_every_promise, 14400)
{
    static struct chaos c;
    const char *from = getenv("SIM_FROM");
    uint32_t n = getenv("SEED") ? 1 : n_seeds(60), n_cut = 0;
    uint64_t n_events = 0, n_steps = 0, n_hits = 0, n_moves = 0, n_failed = 0, n_corrupt = 0;
    uint64_t n_redone = 0, n_lost = 0, n_split = 0, n_several = 0;
    uint64_t seed = from && n > 1 ? strtoull(from, NULL, 10) : test_seed();
    for (uint32_t k = 0; k < n; k++) {
        char text[32];
        snprintf(text, sizeof text, "%llu", (unsigned long long)(seed + k));
        setenv("SEED", text, 1);
        (void)test_seed(); /* a failure names this one */
        chaos_open(&c, seed + k);
        chaos_run(&c);
        sim_finish(&c.m);
        check_failures(&c);
        for (uint32_t i = 0; i < N_REQUESTS; i++)
            if (c.submitted[i])
                check_alone(&c, i);
        n_events += c.m.n_events;
        n_steps += c.m.f.n_steps;
        struct engine_stats st;
        scheduler_get_stats(c.m.s, &st);
        n_hits += st.prefix_hits;
        for (uint32_t i = 0; i < st.n_groups; i++) {
            n_moves += st.group[i].moves;
            n_failed += st.group[i].moves_failed;
            n_corrupt += st.group[i].moves_corrupt;
            n_redone += st.group[i].recomputed;
        }
        n_lost += c.m.lost;
        n_split += n_of_role(&c.m.cfg, GROUP_PREFILL) > 0;
        n_several += c.m.cfg.n_groups > 1;
        n_cut += c.n_cut;
        chaos_close(&c);
        if ((k + 1) % 5000 == 0)
            printf("  %u worlds\n", k + 1);
    }
    printf(
        "  %u worlds, %llu steps, %llu events, %llu tokens from the cache, %u slow clients cut\n",
        n, (unsigned long long)n_steps, (unsigned long long)n_events, (unsigned long long)n_hits,
        n_cut);
    printf(
        "  %llu worlds had several groups, %llu roles, %llu lost a rank; %llu moves, %llu failed "
        "(%llu corrupt), %llu prompts run again\n",
        (unsigned long long)n_several, (unsigned long long)n_split, (unsigned long long)n_lost,
        (unsigned long long)n_moves, (unsigned long long)n_failed, (unsigned long long)n_corrupt,
        (unsigned long long)n_redone);
}

/* Goal:   a failed allocation ends one request and nothing else.
 * Method: the same world again and again, each time with the next passage of any FAULT place
 * failing. */
TEST_LIMIT(chaos_survives_every_failed_allocation, 600)
{
    static struct chaos c;
    uint64_t seed = test_seed();
    uint32_t n = n_seeds(120), n_failed = 0;
    for (uint32_t at = 1; at <= n; at++) {
        char spec[32];
        chaos_open(&c, seed);
        c.m.f.fail_per_1000 = c.m.f.bad_per_1000 = c.m.f.move_fail_per_1000 =
            c.m.f.move_corrupt_per_1000 = 0;
        c.m.f.die_at_step = 0;
        snprintf(spec, sizeof spec, "*:%u", at * 7);
        fault_arm(spec);
        chaos_run(&c);
        sim_finish(&c.m);
        uint64_t passages = fault_passages();
        fault_arm(NULL);
        uint32_t failed = 0;
        for (uint32_t i = 0; i < N_REQUESTS; i++) {
            if (!c.submitted[i])
                continue;
            failed += c.rec[i].failed;
            CHECK(!c.rec[i].failed || c.rec[i].code == ERR_NOMEM);
        }
        CHECK_MSG(failed <= 1, "%u requests failed by one fault", failed);
        n_failed += failed;
        chaos_close(&c);
        if (passages < at * 7)
            break;
    }
    CHECK(n_failed > 0);
}

/* Goal: no order of failing allocations loses a page or a request: many fail in a row. */
TEST(chaos_survives_a_machine_without_memory)
{
    static struct chaos c;
    uint64_t seed = test_seed();
    for (uint32_t k = 0; k < 10; k++) {
        chaos_open(&c, seed + k);
        c.m.f.die_at_step = 0;
        uint32_t next = 0;
        while (next < N_REQUESTS) {
            struct sim_wish w = random_wish(&c, next);
            c.submitted[next] = sim_submit(&c.m, &c.rec[next], &w);
            next++;
            for (int t = 0; t < 4; t++) {
                fault_arm(rng_below(&c.g, 2) ? "event.new:1" : "arena.alloc:1");
                sim_next(&c.m, c.m.now_us + 5000);
                fault_arm(NULL);
            }
        }
        sim_finish(&c.m);
        chaos_close(&c);
    }
}
