/* test_equality.c - the same request gives the same bytes, whatever else is true.
 *
 * Method: the whole engine on small random checkpoints (sparse, dense, shared selections). Each
 * request's tokens and log-probabilities alone, on one thread, with a cold cache, are the
 * yardstick; then company, chunk sizes, threads, a warm cache, a partly evicted one and a restart
 * must not change one bit of them.
 */
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

static struct engine *open_engine(const char *model, uint32_t prefill_tokens, uint32_t threads,
                                  bool cache, uint32_t pages)
{
    struct engine_options o;
    struct engine *en = NULL;
    struct err e = {0};
    engine_options_default(&o);
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
