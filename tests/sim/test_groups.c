/* test_groups.c - promises of several attention groups one by one: where requests go, how they
 * move, and what a lost rank leaves. test_chaos.c has all of it at once. */
#include "sim.h"

#include "base/log.h"

enum { K = 1024 };

static struct scheduler_config groups(uint32_t n, uint32_t n_prefill, uint32_t n_pages)
{
    struct scheduler_config c = {.n_groups = n,
                                 .n_pages = n_pages,
                                 .max_seqs = 8,
                                 .prefill_tokens = 256,
                                 .max_context = n_pages * KV_PAGE_TOKENS,
                                 .max_out = 256,
                                 .prefix_cache = true,
                                 .index_topk = 2048,
                                 .expand_tokens = 2048};
    for (uint32_t i = 0; n_prefill && i < n; i++)
        c.role[i] = i < n_prefill ? GROUP_PREFILL : GROUP_DECODE;
    return c;
}

/* The group of the request's first sequence; UINT32_MAX: it has none. */
static uint32_t group_of(const struct sim *m, const struct sim_record *r)
{
    for (uint32_t i = 0; i < m->s->n_slots; i++) {
        const struct sequence *q = &m->s->sequence[i];
        if (q->state != SEQ_FREE && req_id_equal(q->req->id, r->id))
            return q->group;
    }
    return UINT32_MAX;
}

static void wait_for_group(struct sim *m, const struct sim_record *r)
{
    while (group_of(m, r) == UINT32_MAX && !r->ended)
        CHECK(sim_next(m, UINT64_MAX));
}

/* Goal: a conversation goes where its beginning is cached; strangers go where there is less to do;
 * a group that is much busier loses even its own. */
TEST(groups_place_by_prefix_and_load)
{
    struct sim m;
    struct sim_record r[30];
    struct scheduler_config cfg = groups(3, 0, 400);
    uint32_t *p[3];
    uint32_t home[3];
    sim_open(&m, cfg, 1);
    for (uint32_t i = 0; i < 3; i++) {
        p[i] = sim_prompt(10 + i, 4 * K);
        struct sim_wish w = {
            .prompt = p[i], .n_prompt = 2 * K, .max_tokens = 40, .ignore_eos = true};
        CHECK(sim_submit(&m, &r[i], &w));
        wait_for_group(&m, &r[i]);
        home[i] = group_of(&m, &r[i]);
        CHECK_MSG(home[i] == i, "prompt %u went to group %u", i, home[i]);
    }
    sim_finish(&m);
    for (uint32_t i = 0; i < 3; i++) { /* the second turn, in another order */
        uint32_t k = 2 - i;
        struct sim_wish w = {
            .prompt = p[k], .n_prompt = 2 * K + 100, .max_tokens = 10, .ignore_eos = true};
        CHECK(sim_submit(&m, &r[3 + k], &w));
        wait_for_group(&m, &r[3 + k]);
        CHECK(group_of(&m, &r[3 + k]) == home[k]);
    }
    sim_finish(&m);
    for (uint32_t i = 3; i < 6; i++)
        CHECK(r[i].usage.cached_tokens == 2 * K);
    /* Group 0 is given prompts of 32 pages; then what it has cached is a third of that. */
    for (uint32_t i = 6; i < 9; i++) {
        struct sim_wish w = {
            .prompt = p[0], .n_prompt = 4 * K, .max_tokens = 2, .salt = i, .ignore_eos = true};
        CHECK(sim_submit(&m, &r[i], &w));
        wait_for_group(&m, &r[i]);
    }
    uint32_t seen[3] = {0};
    for (uint32_t i = 6; i < 9; i++)
        seen[group_of(&m, &r[i])]++;
    CHECK(seen[0] == 1 && seen[1] == 1 && seen[2] == 1);
    sim_finish(&m);
    for (uint32_t i = 0; i < 9; i++)
        sim_record_free(&r[i]);
    for (uint32_t i = 0; i < 3; i++)
        free(p[i]);
    sim_close(&m);
}

/* Goal: equal requests spread evenly, the same way each time. */
TEST(groups_spread_equal_requests_evenly)
{
    uint32_t where[2][24];
    for (int run = 0; run < 2; run++) {
        struct sim m;
        struct sim_record r[24];
        uint32_t n[4] = {0};
        uint32_t *p = sim_prompt(3, 60);
        sim_open(&m, groups(4, 0, 100), 7);
        for (uint32_t i = 0; i < 24; i++) {
            struct sim_wish w = {
                .prompt = p, .n_prompt = 60, .max_tokens = 50, .seed = i, .ignore_eos = true};
            CHECK(sim_submit(&m, &r[i], &w));
            wait_for_group(&m, &r[i]);
            where[run][i] = group_of(&m, &r[i]);
            n[where[run][i]]++;
        }
        for (int g = 0; g < 4; g++)
            CHECK_MSG(n[g] == 6, "group %d got %u of 24", g, n[g]);
        sim_finish(&m);
        for (uint32_t i = 0; i < 24; i++)
            sim_record_free(&r[i]);
        free(p);
        sim_close(&m);
    }
    CHECK(memcmp(where[0], where[1], sizeof where[0]) == 0);
}

/* Goal:   a request that needs a whole group gets one although small ones keep coming, and they go
 *         on in the other group meanwhile.
 * Method: small ones at all times, more than fit; the big one comes when both groups are full. */
TEST_LIMIT(groups_drain_one_for_a_big_request, 60)
{
    enum { N = 400 };
    struct sim m;
    static struct sim_record r[N], big;
    uint32_t n = 0, n_before = 0, *p = sim_prompt(1, 64 * 40), *q = sim_prompt(2, 300);
    sim_open(&m, groups(2, 0, 40), 1);
    struct sim_wish small = {.prompt = q, .n_prompt = 300, .max_tokens = 60, .ignore_eos = true};
    struct sim_wish whole = {
        .prompt = p, .n_prompt = 64 * 38, .max_tokens = 60, .ignore_eos = true};
    while (n < N) {
        if (m.n_inside < 24) {
            small.salt = n; /* nothing is shared */
            CHECK(sim_submit(&m, &r[n], &small));
            n++;
        } else {
            CHECK(sim_next(&m, UINT64_MAX));
        }
        if (n == 40 && !big.wish.n)
            CHECK(sim_submit(&m, &big, &whole));
        if (n > 40 && !big.first_token_us)
            n_before = n - 40;
    }
    sim_finish(&m);
    CHECK(big.ended && !big.failed);
    uint32_t n_beside = 0; /* those that began while the big one waited for its group */
    for (uint32_t i = 40; i < N; i++)
        n_beside += r[i].first_token_us < big.first_token_us;
    printf("  %u came before the big one began, %u of them began before it\n", n_before, n_beside);
    CHECK_MSG(n_before < 80, "%u later requests came before the big one began", n_before);
    CHECK_MSG(n_beside > MAX_PASSED, "the other group stood still");
    for (uint32_t i = 0; i < N; i++)
        sim_record_free(&r[i]);
    sim_record_free(&big);
    free(p);
    free(q);
    sim_close(&m);
}

/* Goal:   long prompts beside decoding do not disturb it at all where groups have roles: the pace
 * of those that decode is that without the prompts. Method: one device a group, whose lanes take
 * turns. */
TEST(groups_of_their_own_keep_the_pace)
{
    uint64_t longest[2] = {0};
    for (int with = 0; with < 2; with++) {
        struct sim m;
        struct sim_record d[4], big[3];
        uint32_t *p = sim_prompt(1, 20 * K), *t = sim_prompt(3, 100);
        sim_open(&m, groups(2, 1, 1200), 1);
        m.check = false;
        m.f.serial = true;
        m.f.check_every = 50;
        m.f.cost[LANE_DECODE] = (struct fake_cost){.step_us = 10000, .token_us = 100};
        m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 2000, .token_us = 100};
        for (uint32_t i = 0; i < 4; i++) {
            struct sim_wish w = {
                .prompt = t, .n_prompt = 100, .max_tokens = 400, .seed = i, .ignore_eos = true};
            CHECK(sim_submit(&m, &d[i], &w));
        }
        while (m.now_us < 200000)
            sim_next(&m, 200000);
        for (uint32_t i = 0; with && i < 3; i++) {
            struct sim_wish w = {.prompt = p, .n_prompt = 19 * K, .max_tokens = 1, .salt = i};
            CHECK(sim_submit(&m, &big[i], &w));
        }
        sim_finish(&m);
        for (uint32_t k = 20; k < 400; k++) {
            uint64_t gap = d[0].token_us[k] - d[0].token_us[k - 1];
            longest[with] = gap > longest[with] ? gap : longest[with];
        }
        for (uint32_t i = 0; i < 4; i++)
            sim_record_free(&d[i]);
        for (uint32_t i = 0; with && i < 3; i++) {
            CHECK(big[i].ended && !big[i].failed);
            sim_record_free(&big[i]);
        }
        free(p);
        free(t);
        sim_close(&m);
    }
    printf("  longest time between tokens: %.2f ms, beside 57K tokens of prompts %.2f ms\n",
           (double)longest[0] / 1e3, (double)longest[1] / 1e3);
    CHECK(longest[1] <= longest[0]);
}

/* Goal: pages that never go over end their request, and it alone, after two times three tries; and
 * the client has heard its first token once. */
TEST(groups_give_up_on_pages_that_never_arrive)
{
    for (int corrupt = 0; corrupt < 2; corrupt++) {
        struct sim m;
        struct sim_record r, fine;
        struct engine_stats st;
        uint32_t *p = sim_prompt(1, 500);
        log_set_level(LOG_OFF);
        sim_open(&m, groups(2, 1, 40), 1);
        *(corrupt ? &m.f.move_corrupt_per_1000 : &m.f.move_fail_per_1000) = 1000;
        struct sim_wish w = {.prompt = p, .n_prompt = 500, .max_tokens = 9, .ignore_eos = true};
        CHECK(sim_submit(&m, &r, &w));
        sim_finish(&m);
        scheduler_get_stats(m.s, &st);
        CHECK(r.failed && r.code == ERR_IO && r.choice[0].n == 1);
        CHECK(m.f.n_moves == 6 && st.group[0].moves_failed == 6 && st.group[0].recomputed == 1);
        CHECK(st.group[0].moves_corrupt == (corrupt ? 6 : 0) && st.group[0].moves == 0);
        m.f.move_fail_per_1000 = m.f.move_corrupt_per_1000 = 0;
        CHECK(sim_submit(&m, &fine, &w));
        sim_finish(&m);
        CHECK(!fine.failed && fine.choice[0].n == 9);
        CHECK(fine.choice[0].token[0] == r.choice[0].token[0]);
        sim_record_free(&r);
        sim_record_free(&fine);
        free(p);
        sim_close(&m);
    }
}

/* Goal:   who waits for pages to run its prompt again gets them before newcomers do.
 * Method: the first one's pages, which would not go over, are held by a second one that has the
 * same beginning and a long way to go; small ones come meanwhile, for which there is room. */
TEST(groups_run_a_prompt_again_before_newcomers)
{
    enum { N = 6 };
    struct sim m;
    struct sim_record first, second, small[N];
    uint32_t *p = sim_prompt(1, 64 * 19), *q = sim_prompt(2, 64);
    uint32_t n_waited = 0, n_sent = 0;
    log_set_level(LOG_OFF);
    sim_open(&m, groups(3, 1, 24), 1); /* the two decode apart */
    m.f.cost[LANE_PREFILL] = (struct fake_cost){.step_us = 1000, .token_us = 100};
    m.f.move_fail_per_1000 = 1000;
    struct sim_wish w = {
        .prompt = p, .n_prompt = 64 * 12, .max_tokens = 5, .ignore_eos = true, .priority = -1};
    CHECK(sim_submit(&m, &first, &w));
    w.n_prompt = 64 * 19;
    w.max_tokens = 1;
    w.priority = 0;
    CHECK(sim_submit(&m, &second, &w));
    while (m.n_inside) {
        if (m.f.n_moves == 3)
            m.f.move_fail_per_1000 = 0;
        bool waits = m.s->group[0].redo.head;
        n_waited += waits;
        if (waits && n_sent < N) {
            struct sim_wish s = {.prompt = q, .n_prompt = 60, .max_tokens = 2, .salt = n_sent};
            CHECK(sim_submit(&m, &small[n_sent++], &s));
        }
        CHECK(sim_next(&m, m.now_us + 500));
        for (uint32_t i = 0; i < n_sent && m.s->group[0].redo.head; i++)
            CHECK_MSG(group_of(&m, &small[i]) == UINT32_MAX, "newcomer %u entered", i);
    }
    CHECK_MSG(n_waited > 0 && n_sent > 0, "nobody waited");
    CHECK(!first.failed && first.choice[0].n == 5);
    sim_finish(&m);
    for (uint32_t i = 0; i < n_sent; i++)
        sim_record_free(&small[i]);
    sim_record_free(&first);
    sim_record_free(&second);
    free(p);
    free(q);
    sim_close(&m);
}

/* Goal: a request that ends with its first token never moves; one that is cancelled while its pages
 * are on their way gives back both ends when they have arrived. */
TEST(groups_take_back_what_a_cancelled_move_holds)
{
    struct sim m;
    struct sim_record r, one;
    struct engine_stats st;
    uint32_t *p = sim_prompt(1, 500);
    sim_open(&m, groups(2, 1, 40), 1);
    m.f.move_us = 50000;
    CHECK(sim_submit(&m, &one, &(struct sim_wish){.prompt = p, .n_prompt = 500, .max_tokens = 1}));
    sim_finish(&m);
    CHECK(one.ended && m.f.n_moves == 0);
    CHECK(sim_submit(
        &m, &r,
        &(struct sim_wish){.prompt = p, .n_prompt = 500, .max_tokens = 90, .ignore_eos = true}));
    while (!m.s->group[0].move_out)
        CHECK(sim_next(&m, m.now_us + 1000));
    sim_cancel(&m, &r);
    CHECK(!r.ended); /* its pages are being read and written */
    scheduler_get_stats(m.s, &st);
    CHECK(st.group[0].pages_used == 8 && st.group[1].pages_used == 8);
    sim_finish(&m);
    CHECK(r.ended && r.choice[0].finish == FINISH_CANCELLED && m.f.n_moves == 1);
    sim_record_free(&r);
    sim_record_free(&one);
    free(p);
    sim_close(&m);
}

/* Goal: when a rank is lost every request is told at once: those in its steps, those in the
 * others', those on the move and those that wait; and what comes back later disturbs nothing. */
TEST(groups_tell_everyone_of_a_lost_rank)
{
    enum { N = 40 };
    for (uint32_t step = 1; step < 60; step += 3) {
        struct sim m;
        static struct sim_record r[N];
        uint32_t *p = sim_prompt(1, 600);
        uint64_t told_us = 0;
        log_set_level(LOG_OFF);
        sim_open(&m, groups(3, 1, 40), 1);
        m.f.die_at_step = step;
        m.f.die_after_us = 7000;
        for (uint32_t i = 0; i < N; i++) {
            struct sim_wish w = {.prompt = p,
                                 .n_prompt = 100 + 10 * i,
                                 .max_tokens = 100,
                                 .salt = i,
                                 .ignore_eos = true};
            CHECK(sim_submit(&m, &r[i], &w));
        }
        while (!m.lost)
            CHECK(sim_next(&m, UINT64_MAX));
        told_us = m.now_us;
        CHECK_MSG(m.n_inside == 0, "%u of %d were not told at once", m.n_inside, (int)N);
        sim_finish(&m);
        for (uint32_t i = 0; i < N; i++) {
            CHECK(r[i].ended && r[i].end_us <= told_us);
            CHECK(!r[i].failed || r[i].code == ERR_CLOSED);
            sim_record_free(&r[i]);
        }
        free(p);
        sim_close(&m);
    }
}

/* Goal: refusals count what a layout needs: each choice has pages of its own where it decodes. */
TEST(groups_refuse_what_no_layout_holds)
{
    struct gen_request q = {.n_prompt = 64 * 10, .n = 4, .max_tokens = 1};
    struct scheduler_config one = groups(1, 0, 20), split = groups(2, 1, 20);
    struct err e;
    CHECK_OK(scheduler_can_ever_fit(&one, &q, &e), e); /* 9 shared pages, 4 of their own */
    CHECK(scheduler_can_ever_fit(&split, &q, &e) == ERR_INVALID);
    CHECK_MSG(strstr(e.msg, "40") && strstr(e.msg, "20"), "%s", e.msg);
    q.n = 2;
    CHECK_OK(scheduler_can_ever_fit(&split, &q, &e), e);
}
