/* test_equality.c - the same request gives the same bytes, whatever else is true.
 *
 * Method: the whole engine on small random checkpoints (sparse, dense, shared selections). Each
 * request's tokens and log-probabilities alone, on one thread, with a cold cache, are the
 * yardstick; then company, chunk sizes, threads, a warm cache, a partly evicted one and a restart
 * must not change one bit of them. (Each setting is an engine of its own: a restart.)
 */
#include "base/clock.h"
#include "base/fault.h"
#include "cpu/kernels.h"
#include "drive.h"
#include "test.h"

enum { MANY = 16, PROMPT = 300, ANSWER = 40 };

static struct drive_result yard[MANY], got[MANY];
static struct drive_wish wish[MANY];
static uint32_t prompts[MANY][PROMPT];

/* Lengths around page borders, the first half of them with a common start; greedy and sampled. */
static void make_wishes(uint32_t vocab)
{
    static const uint32_t lengths[] = {1,   5,   31,  32,  33,  63,  64,  65,
                                       100, 127, 128, 129, 200, 256, 299, 300};
    struct rng r = {11};
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t n = lengths[i];
        for (uint32_t k = 0; k < n; k++)
            prompts[i][k] =
                i % 2 && k < 150 ? (k * 7 + 3) % (vocab - 10) : rng_below(&r, vocab - 10);
        wish[i] = (struct drive_wish){.prompt = prompts[i],
                                      .n_prompt = n,
                                      .max_tokens = ANSWER,
                                      .n = i == 9 ? 3 : 1,
                                      .n_top = i % 3,
                                      .temperature = i % 2 ? 0.8f : 0,
                                      .seed = 1000 + i};
    }
}

/* layout: tp, dp, ep, groups that only prefill */
static struct engine *open_layout(const char *model, uint32_t prefill_tokens, uint32_t threads,
                                  bool cache, uint32_t pages, const uint32_t layout[4])
{
    struct engine_options o;
    struct engine *en = NULL;
    struct err e = {0};
    engine_options_default(&o);
    o.tp = layout[0];
    o.dp = layout[1];
    o.ep = layout[2];
    o.n_prefill_groups = layout[3];
    o.model_dir = test_fixture(model);
    o.prefill_tokens = prefill_tokens;
    o.n_threads = threads;
    o.prefix_cache = cache;
    o.max_context = 1024;
    o.max_seqs = 20;
    if (pages) { /* the plan tells a page's size */
        struct engine_plan plan;
        CHECK_OK(engine_make_plan(&plan, &o, &e), e);
        o.kv_bytes = plan.page_bytes * pages;
    }
    CHECK_OK(engine_open(&en, &o, &e), e);
    return en;
}

static struct engine *open_groups(const char *model, uint32_t prefill_tokens, uint32_t threads,
                                  bool cache, uint32_t pages, uint32_t dp, uint32_t n_prefill)
{
    const uint32_t layout[] = {1, dp, 1, n_prefill};
    return open_layout(model, prefill_tokens, threads, cache, pages, layout);
}

static struct engine *open_engine(const char *model, uint32_t prefill_tokens, uint32_t threads,
                                  bool cache, uint32_t pages)
{
    return open_groups(model, prefill_tokens, threads, cache, pages, 1, 0);
}

static void check_nothing_held(struct engine *en)
{
    struct engine_stats s;
    engine_get_stats(en, &s);
    for (int i = 0; i < 200 && (s.running || s.pages_used); i++) {
        struct gen_event *none = engine_take_events(en);
        CHECK(!none);
        (void)system("sleep 0.01");
        engine_get_stats(en, &s);
    }
    CHECK_MSG(!s.running && !s.waiting && !s.pages_used, "%u running, %u waiting, %u pages used",
              s.running, s.waiting, s.pages_used);
}

static void together(struct engine *en, const char *what)
{
    char name[64];
    drive(en, wish, MANY, got);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "%s, request %d", what, i);
        drive_check_equal(&yard[i], &got[i], name);
    }
    check_nothing_held(en);
}

/* Each layout of groups: {all, those that only prefill}. */
static void check_groups(const char *model)
{
    static const uint32_t layout[][2] = {{2, 0}, {3, 0}, {2, 1}, {3, 1}, {3, 2}};
    for (size_t k = 0; k < sizeof layout / sizeof *layout; k++) {
        uint32_t n = layout[k][0], n_prefill = layout[k][1], n_used = 0;
        uint64_t n_moves = 0;
        struct engine *en = open_groups(model, 100, 2, true, k % 2 ? 40 : 0, n, n_prefill);
        char what[64];
        snprintf(what, sizeof what, "%u groups, %u for prefill, cold cache", n, n_prefill);
        together(en, what);
        snprintf(what, sizeof what, "%u groups, %u for prefill, warm cache", n, n_prefill);
        together(en, what);
        struct engine_stats s;
        engine_get_stats(en, &s);
        CHECK(s.n_groups == n);
        for (uint32_t i = 0; i < n; i++) {
            const struct engine_group_stats *g = &s.group[i];
            CHECK_MSG(g->moves_failed == 0, "%llu moves failed",
                      (unsigned long long)g->moves_failed);
            CHECK(g->role != GROUP_PREFILL || g->decode_steps == 0);
            CHECK(g->role != GROUP_DECODE || g->prefill_steps == 0);
            n_used += g->prefill_steps + g->decode_steps > 0;
            n_moves += g->moves;
        }
        CHECK_MSG(n_used == n, "%u of %u groups were used", n_used, n);
        CHECK(n_moves == (n_prefill ? 2 * (MANY + 2) : 0)); /* each choice; one request has three */
        engine_close(en);
    }
}

static void check_model(const char *model)
{
    struct engine *en = open_engine(model, 512, 1, false, 0);
    make_wishes(engine_model(en)->vocab_size);
    for (int i = 0; i < MANY; i++) {
        drive(en, &wish[i], 1, &yard[i]);
        CHECK_MSG(!yard[i].err.code, "%s", yard[i].err.msg);
        CHECK(yard[i].choice[0].n == ANSWER);
    }
    together(en, "in company");
    engine_close(en);

    static const uint32_t chunk[] = {512, 33, 7, 64};
    for (int k = 0; k < 4; k++) {
        char what[64];
        en = open_engine(model, chunk[k], 2, true, 0);
        snprintf(what, sizeof what, "2 threads, chunks of %u, cold cache", chunk[k]);
        together(en, what);
        snprintf(what, sizeof what, "2 threads, chunks of %u, warm cache", chunk[k]);
        together(en, what);
        engine_close(en);
    }
    en = open_engine(model, 100, 2, true,
                     24); /* less than the requests together: pages are evicted */
    together(en, "few pages");
    together(en, "few pages, again");
    engine_close(en);
    check_groups(model);
}

TEST_LIMIT(sparse_model, 120)
{
    check_model("v32-bf16");
}
TEST_LIMIT(shared_selections, 120)
{
    check_model("glm-dsa-bf16");
}
TEST_LIMIT(dense_model, 120)
{
    check_model("v3-bf16");
}
TEST_LIMIT(fp8_model, 120)
{
    check_model("v32-fp8");
}

/* Each instruction set is equal to itself; test_models.c holds each against the golden values. */
static void use_simd(const char *name)
{
    if (!kernels_by_name(name))
        TEST_SKIP("this machine does not have the instructions");
    setenv("GAZE_SIMD", name, 1);
}

TEST_LIMIT(sparse_model_avx512, 120)
{
    use_simd("avx512");
    check_model("v32-bf16");
}
TEST_LIMIT(sparse_model_avx2, 120)
{
    use_simd("avx2");
    check_model("v32-bf16");
}
TEST_LIMIT(sparse_model_portable, 240)
{
    use_simd("portable");
    check_model("v32-bf16");
}

/* Goal: a prompt's log-probabilities do not depend on chunks, and agree with what decode said. */
TEST_LIMIT(prompt_logprobs_equal, 60)
{
    static const uint32_t chunk[] = {512, 50};
    static struct drive_result r[2];
    for (int k = 0; k < 2; k++) {
        struct engine *en = open_engine("v32-bf16", chunk[k], 2, true, 0);
        make_wishes(engine_model(en)->vocab_size);
        struct drive_wish w = wish[MANY - 1];
        w.prompt_logprobs = true;
        w.max_tokens = 0;
        drive(en, &w, 1, &r[k]);
        CHECK_MSG(!r[k].err.code, "%s", r[k].err.msg);
        CHECK(r[k].n_prompt_out == w.n_prompt - 1);
        for (uint32_t i = 0; i < r[k].n_prompt_out; i++)
            CHECK(r[k].prompt_out[i].token == w.prompt[i + 1]);
        engine_close(en);
    }
    for (uint32_t i = 0; i < r[0].n_prompt_out; i++)
        CHECK(memcmp(&r[0].prompt_out[i].logprob, &r[1].prompt_out[i].logprob, sizeof(float)) == 0);
}

/* Goal:   with a model that is cut over ranks, too, the same layout gives the same bits, whatever
 * runs beside a request; and which group runs it changes none, nor do moves. Method: each layout's
 * answers alone, one by one, are its yardstick. */
static void check_ranks(const char *model)
{
    static const uint32_t layout[][4] = {/* tp, dp, ep, groups that only prefill */
                                         {2, 1, 1, 0}, {2, 1, 2, 0}, {1, 2, 2, 0},
                                         {2, 2, 4, 0}, {2, 2, 1, 1}, {1, 2, 2, 1}};
    for (size_t k = 0; k < sizeof layout / sizeof *layout; k++) {
        const uint32_t *l = layout[k];
        struct engine *en = open_layout(model, 512, 2, false, 0, l);
        char what[80];
        make_wishes(engine_model(en)->vocab_size);
        for (int i = 0; i < MANY; i++) {
            drive(en, &wish[i], 1, &yard[i]);
            CHECK_MSG(!yard[i].err.code, "%s", yard[i].err.msg);
        }
        engine_close(en);
        en = open_layout(model, 33, 2, true, 0, l);
        snprintf(what, sizeof what, "tp %u dp %u ep %u, %u for prefill, cold", l[0], l[1], l[2],
                 l[3]);
        together(en, what);
        snprintf(what, sizeof what, "tp %u dp %u ep %u, %u for prefill, warm", l[0], l[1], l[2],
                 l[3]);
        together(en, what);
        engine_close(en);
    }
}

TEST_LIMIT(sparse_model_over_ranks, 120)
{
    check_ranks("v32-bf16");
}
TEST_LIMIT(shared_selections_over_ranks, 120)
{
    check_ranks("glm-dsa-bf16");
}

/* Goal:   a move that fails or corrupts is made again; three in a row, and the prompt is run again;
 *         no token changes. When nothing goes over, the request ends with the error, and no other.
 * Method: the n-th passages of the places where a page is read, written, summed and changed fail.
 */
TEST_LIMIT(moves_that_fail_change_nothing, 120)
{
    static const struct {
        const char *fault;
        uint64_t failed, corrupt, recomputed;
        bool ends;
    } cases[] = {
        {"pages.export:1", 1, 0, 0, false},     {"pages.import:4", 1, 0, 0, false},
        {"pages.sum:2", 1, 0, 0, false},        {"pages.corrupt:3", 1, 1, 0, false},
        {"pages.corrupt:1-6", 2, 2, 0, false},  {"pages.import:1-3", 3, 0, 1, false},
        {"pages.corrupt:1-15", 3, 3, 1, false}, {"pages.sum:1-3", 3, 0, 1, false},
        {"pages.corrupt:1-900", 6, 6, 1, true}, {"pages.export:1-900", 6, 0, 1, true},
    };
    struct engine *en = open_engine("v32-bf16", 512, 1, false, 0);
    make_wishes(engine_model(en)->vocab_size);
    drive(en, wish, MANY, yard);
    engine_close(en);
    const struct drive_wish *w = &wish[MANY - 1]; /* 300 tokens, 5 pages */
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct engine_stats s;
        en = open_groups("v32-bf16", 100, 2, true, 0, 2, 1);
        fault_arm(cases[k].fault);
        drive(en, w, 1, got);
        fault_arm(NULL);
        check_nothing_held(en);
        engine_get_stats(en, &s);
        const struct engine_group_stats *g = &s.group[0];
        CHECK_MSG(g->moves_failed == cases[k].failed && g->moves_corrupt == cases[k].corrupt &&
                      g->recomputed == cases[k].recomputed && g->moves == !cases[k].ends,
                  "%s: %llu moves, %llu failed, %llu corrupt, %llu prompts again", cases[k].fault,
                  (unsigned long long)g->moves, (unsigned long long)g->moves_failed,
                  (unsigned long long)g->moves_corrupt, (unsigned long long)g->recomputed);
        if (cases[k].ends)
            CHECK(got[0].done && got[0].err.code == ERR_IO);
        else
            drive_check_equal(&yard[MANY - 1], &got[0], cases[k].fault);
        together(en, "after moves that failed");
        engine_close(en);
    }
}

/* Goal:   a rank that dies ends every request with the reason, at once, and nothing is taken after.
 * Method: a step whose communication fails, one that never ends, and a rank that its peer waits
 * for.
 */
TEST_LIMIT(a_lost_rank_ends_everything, 60)
{
    static const char *const faults[] = {"worker.rank:3", "worker.hang:3", "worker.peer:3"};
    static const uint32_t layout[][4] = {{1, 2, 1, 0}, {1, 2, 1, 1}, {2, 1, 1, 0}};
    for (int k = 0; k < 3; k++) {
        struct engine *en = open_layout("v32-bf16", 100, 2, true, 0, layout[k]);
        struct err why = {0};
        make_wishes(engine_model(en)->vocab_size);
        CHECK(!engine_lost(en, &why));
        fault_arm(faults[k]);
        uint64_t begun_us = clock_us();
        drive(en, wish, MANY, got);
        uint64_t took_us = clock_us() - begun_us;
        fault_arm(NULL);
        int n_told = 0;
        for (int i = 0; i < MANY; i++) {
            bool whole = k > 0 && !got[i].err.code; /* before anyone noticed */
            CHECK_MSG(whole || got[i].err.code == ERR_COMM, "request %d: %s %s", i,
                      err_code_name(got[i].err.code), got[i].err.msg);
            n_told += got[i].err.code == ERR_COMM;
        }
        CHECK(n_told > 0);
        CHECK(engine_lost(en, &why) && why.code == ERR_COMM);
        printf("  %s: told after %.2f s: %s\n", faults[k], (double)took_us / 1e6, why.msg);
        CHECK(took_us < 9500000);
        drive(en, wish, 1, got);
        CHECK(got[0].err.code == ERR_COMM); /* who comes later is told the same */
        engine_close(en);
    }
}

/* Goal: cancelled requests end, hold nothing, and disturb nobody. */
TEST_LIMIT(cancels_leave_nothing, 60)
{
    struct engine *en = open_engine("v32-bf16", 64, 2, true, 0);
    make_wishes(engine_model(en)->vocab_size);
    drive(en, wish, MANY, yard);
    for (int i = 0; i < MANY; i += 2)
        wish[i].cancel_after = 1 + (uint32_t)i;
    drive(en, wish, MANY, got);
    for (int i = 1; i < MANY; i += 2)
        drive_check_equal(&yard[i], &got[i], "beside cancelled requests");
    for (int i = 0; i < MANY; i += 2)
        CHECK(got[i].done && got[i].choice[0].n < ANSWER);
    check_nothing_held(en);
    engine_close(en);
}

TEST(refusals_name_both_numbers)
{
    struct engine *en = open_engine("v32-bf16", 64, 1, true, 0);
    static uint32_t long_prompt[2000];
    struct drive_wish w = {.prompt = long_prompt, .n_prompt = 2000, .max_tokens = 10};
    static struct drive_result r;
    drive(en, &w, 1, &r);
    CHECK_MSG(r.err.code == ERR_INVALID && strstr(r.err.msg, "2000"), "%s", r.err.msg);
    engine_close(en);
}
