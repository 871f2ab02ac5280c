/* test_allocations.c - a request's memory is its arena, and all of it is there when it is admitted.
 *
 * Method: the whole engine on a small random checkpoint. The linker puts the functions below in the
 * place of the allocator's in our own code (the Makefile's --wrap), where they count what the
 * engine's threads ask for; this test's thread stands for the loop and is not counted. First
 * requests of many kinds run among each other, then the same ones again, counted; then again on a
 * machine that has no byte left from the moment that each has its first token.
 *
 * Not among them: a grammar, whose matcher grows within the bounds of grammar.h, and the prompt's
 * log-probabilities, which are one event made at admission.
 */
#include "drive.h"
#include "test.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static _Thread_local bool here;       /* the test's own thread */
static _Thread_local unsigned arenas; /* inside an arena's function */
static _Atomic bool empty;            /* no memory is left */
static _Atomic unsigned n_blocks;     /* that arenas have asked for */
static _Atomic unsigned n_others;     /* allocations beside them */
static _Atomic unsigned n_refused;

static bool refuse(void)
{
    if (here)
        return false;
    atomic_fetch_add(arenas ? &n_blocks : &n_others, 1);
    if (!atomic_load(&empty))
        return false;
    atomic_fetch_add(&n_refused, 1);
    return true;
}

#define WRAP(type, name, params, args)                                                             \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params                                                                      \
    {                                                                                              \
        return refuse() ? NULL : __real_##name args;                                               \
    }
WRAP(void *, malloc, (size_t n), (n))
WRAP(void *, calloc, (size_t n, size_t each), (n, each))
WRAP(void *, realloc, (void *p, size_t n), (p, n))
WRAP(void *, aligned_alloc, (size_t align, size_t n), (align, n))
WRAP(char *, strdup, (const char *s), (s))

#define WRAP_ARENA(type, name, params, args)                                                       \
    type __real_##name params;                                                                     \
    type __wrap_##name params;                                                                     \
    type __wrap_##name params                                                                      \
    {                                                                                              \
        arenas++;                                                                                  \
        type p = __real_##name args;                                                               \
        arenas--;                                                                                  \
        return p;                                                                                  \
    }
WRAP_ARENA(void *, arena_alloc, (struct arena * a, size_t n), (a, n))
WRAP_ARENA(void *, arena_zalloc, (struct arena * a, size_t n), (a, n))
WRAP_ARENA(char *, arena_strndup, (struct arena * a, const char *s, size_t n), (a, s, n))

enum { N = 12, PROMPT = 200, ANSWER = 20, SEQS = 16 };
static_assert(PROMPT / 64 + 1 + ANSWER + 2 <= 32, "what one says fits its share of the events");

struct heard {
    uint32_t token[2][ANSWER], n[2];
    char text[2][1024];
    bool first, done;
    struct err err;
};

static uint32_t prompt[N][PROMPT], bad[2] = {7, 9};
static const struct token_span words[] = {{bad, 2}, {bad + 1, 1}};

/* Greedy and sampled, with log-probabilities, two choices, penalties, bad words, stop strings that
 * hold text back, ids that end it; long and short. */
static struct gen_request *request(uint32_t i, uint64_t salt)
{
    struct gen_request *r = gen_request_new();
    CHECK(r);
    r->n_prompt = i % 3 ? PROMPT - i : 3 + i;
    r->prompt = memcpy(arena_alloc(&r->arena, sizeof prompt[i]), prompt[i], sizeof prompt[i]);
    r->max_tokens = ANSWER;
    r->n = i == 4 ? 2 : 1;
    r->ignore_eos = i % 2;
    r->sample.temperature = i % 2 ? 0.9f : 0;
    r->sample.seed = i;
    r->sample.want_logprob = i % 4 == 1;
    r->sample.n_top = i % 4 == 1 ? SAMPLE_MAX_TOP : 0;
    r->sample.presence_penalty = i == 5 ? 0.5f : 0;
    r->bad_word = words;
    r->n_bad_words = i == 6 ? 2 : 0;
    r->stop[0] = "a long text that will hardly come";
    r->stop_bytes[0] = strlen(r->stop[0]);
    r->stop[1] = "\x7f";
    r->stop_bytes[1] = 1;
    r->n_stop = i == 7 ? 2 : 0;
    r->min_tokens = i == 8 ? 5 : 0;
    r->cache_salt = salt;
    return r;
}

static void take(struct heard *h, const struct gen_event *ev)
{
    uint32_t c = ev->choice;
    if (ev->kind == GEN_TOKENS)
        h->token[c][h->n[c]++] = ev->out[0].token;
    if (ev->kind == GEN_TOKENS || ev->kind == GEN_CHOICE)
        strncat(h->text[c], ev->text, sizeof h->text[c] - strlen(h->text[c]) - 1);
    h->first |= ev->kind == GEN_TOKENS;
    h->done |= ev->kind == GEN_DONE || ev->kind == GEN_ERROR;
    if (ev->kind == GEN_ERROR)
        h->err = ev->err;
}

/* Runs all of them at once; `late` gets what was allocated after the last of the first tokens. From
 * then on, if `starve`, there is no memory. */
static void run(struct engine *en, uint64_t salt, bool starve, struct heard *h, unsigned late[2])
{
    struct req_id id[N];
    struct err e = {0};
    uint32_t n_first = 0, n_done = 0;
    memset(h, 0, N * sizeof *h);
    for (uint32_t i = 0; i < N; i++)
        CHECK_OK(engine_submit(en, request(i, salt), &id[i], &e), e);
    while (n_done < N) {
        struct gen_event *ev = engine_take_events(en);
        if (!ev)
            usleep(200);
        for (struct gen_event *next; ev; ev = next) {
            uint32_t i = 0;
            next = (struct gen_event *)ev->mail.next;
            while (i < N && !req_id_equal(id[i], ev->id))
                i++;
            CHECK(i < N);
            bool first = h[i].first;
            take(&h[i], ev);
            gen_event_free(ev);
            n_done += h[i].done;
            n_first += !first && (h[i].first || h[i].done);
            if (n_first == N && !first) {
                late[0] = atomic_load(&n_blocks);
                late[1] = atomic_load(&n_others);
                atomic_store(&empty, starve);
            }
        }
    }
    atomic_store(&empty, false);
    late[0] = atomic_load(&n_blocks) - late[0];
    late[1] = atomic_load(&n_others) - late[1];
}

static void check_equal(const struct heard *a, const struct heard *b)
{
    for (uint32_t i = 0; i < N; i++) {
        CHECK_MSG(!a[i].err.code && !b[i].err.code, "%u: %s%s", i, a[i].err.msg, b[i].err.msg);
        CHECK_MSG(!memcmp(a[i].n, b[i].n, sizeof a[i].n) &&
                      !memcmp(a[i].token, b[i].token, sizeof a[i].token) &&
                      !memcmp(a[i].text, b[i].text, sizeof a[i].text),
                  "request %u says something else", i);
    }
}

TEST_LIMIT(all_memory_of_a_request_is_its_arena, 120)
{
    static struct heard warm[N], counted[N], starved[N];
    struct engine_options o;
    struct engine *en = NULL;
    struct err e = {0};
    struct rng g = {5};
    unsigned late[2];
    here = true;
    for (uint32_t i = 0; i < N * PROMPT; i++)
        prompt[i / PROMPT][i % PROMPT] = rng_below(&g, 250);
    engine_options_default(&o);
    o.model_dir = test_fixture("v32-bf16");
    o.prefill_tokens = 64;
    o.max_context = 512;
    o.max_seqs = SEQS;
    CHECK_OK(engine_open(&en, &o, &e), e);
    run(en, 1, false, warm, late);
    for (uint64_t salt = 1; salt <= 2; salt++) { /* with a warm cache, and with a cold one */
        unsigned blocks = atomic_load(&n_blocks), others = atomic_load(&n_others);
        run(en, salt, false, counted, late);
        printf("  %d requests: %u blocks of arenas, %u other allocations; from the last first "
               "token on %u and %u\n",
               N, atomic_load(&n_blocks) - blocks, atomic_load(&n_others) - others, late[0],
               late[1]);
        CHECK(atomic_load(&n_blocks) > blocks); /* they are counted */
        CHECK(atomic_load(&n_others) == others && late[0] == 0 && late[1] == 0);
        check_equal(warm, counted);
    }
    run(en, 3, true, starved, late);
    CHECK(atomic_load(&n_refused) == 0);
    check_equal(warm, starved);
    engine_close(en);
}
