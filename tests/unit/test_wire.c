/* test_wire.c - steps go to another process and come out as they were; what is none is refused. */
#include "base/fault.h"
#include "base/rng.h"
#include "exec/wire.h"
#include "test.h"

#include <stdlib.h>

enum { ROWS = 96, SEQS = 12, OUTS = 40, CONTEXT = 1000, PAGES = 64, VOCAB = 300, MOST_BIAS = 5 };
enum { TABLE = (CONTEXT + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS, WORDS = (VOCAB + 31) / 32 };

static const struct wire_limits limits = {.max_rows = ROWS,
                                          .max_seqs = SEQS,
                                          .max_out = OUTS,
                                          .max_context = CONTEXT,
                                          .n_pages = PAGES,
                                          .vocab = VOCAB};

struct made {
    struct step s;
    uint32_t token[ROWS], out_row[OUTS], page[SEQS][TABLE], history[OUTS][50], banned[OUTS][3];
    uint32_t allowed[OUTS][WORDS];
    struct step_seq seq[SEQS];
    struct sample_row sample[OUTS];
    struct sample_params params[OUTS];
    struct sample_bias bias[OUTS][MOST_BIAS];
    struct sample_out out[OUTS];
};

static void make_sample(struct made *m, uint32_t i, struct rng *g)
{
    struct sample_params *p = &m->params[i];
    *p = (struct sample_params){.temperature = 0.5f,
                                .top_p = 0.9f,
                                .repetition_penalty = rng_below(g, 2) ? 1.0f : 1.5f,
                                .seed = rng_next(g),
                                .bias = m->bias[i],
                                .n_bias = rng_below(g, MOST_BIAS + 1),
                                .allowed = rng_below(g, 2) ? m->allowed[i] : NULL,
                                .n_top = rng_below(g, SAMPLE_MAX_TOP + 1)};
    for (uint32_t k = 0; k < MOST_BIAS; k++)
        m->bias[i][k] = (struct sample_bias){rng_below(g, VOCAB), (float)rng_below(g, 100)};
    for (uint32_t k = 0; k < WORDS; k++)
        m->allowed[i][k] = (uint32_t)rng_next(g);
    for (uint32_t k = 0; k < 50; k++)
        m->history[i][k] = rng_below(g, VOCAB);
    for (uint32_t k = 0; k < 3; k++)
        m->banned[i][k] = rng_below(g, VOCAB);
    m->sample[i] = (struct sample_row){.p = p,
                                       .position = rng_below(g, CONTEXT),
                                       .stream = rng_below(g, 4),
                                       .history = m->history[i],
                                       .n_prompt = rng_below(g, 20),
                                       .n_history = rng_below(g, 51),
                                       .banned = m->banned[i],
                                       .n_banned = rng_below(g, 4),
                                       .given = rng_below(g, 4) == 0,
                                       .given_token = rng_below(g, VOCAB)};
}

static void make_step(struct made *m, struct rng *g)
{
    struct step *s = &m->s;
    *s = (struct step){.token = m->token,
                       .seq = m->seq,
                       .out_row = m->out_row,
                       .sample = m->sample,
                       .out = m->out};
    uint32_t want = rng_below(g, SEQS + 1);
    while (s->n_seqs < want && s->n_rows < ROWS) {
        struct step_seq *q = &m->seq[s->n_seqs];
        uint32_t n = 1 + rng_below(g, rng_below(g, 2) ? 1 : ROWS - s->n_rows);
        *q = (struct step_seq){.row0 = s->n_rows,
                               .n_rows = n,
                               .pos0 = rng_below(g, CONTEXT - n + 1),
                               .page = m->page[s->n_seqs],
                               .top_k = rng_below(g, 2) ? TOP_K_DENSE : 64,
                               .expand_below = rng_below(g, 100),
                               .run = rng_below(g, 1000)};
        for (uint32_t i = 0; i < TABLE; i++)
            m->page[s->n_seqs][i] = rng_below(g, PAGES);
        s->n_seqs++;
        s->n_rows += n;
    }
    s->most_rows = s->n_rows + rng_below(g, 5);
    for (uint32_t i = 0; i < s->n_rows; i++) {
        m->token[i] = rng_below(g, VOCAB);
        if (s->n_out < OUTS && rng_below(g, 2))
            m->out_row[s->n_out++] = i;
    }
    for (uint32_t i = 0; i < s->n_out; i++)
        make_sample(m, i, g);
}

static bool same(const void *a, const void *b, size_t n)
{
    return !n || !memcmp(a, b, n);
}

static void check_sample(const struct sample_row *a, const struct sample_row *b)
{
    const struct sample_params *p = a->p, *q = b->p;
    bool penalties = p->repetition_penalty != 1.0f;
    CHECK(a->position == b->position && a->stream == b->stream && a->n_prompt == b->n_prompt);
    CHECK(a->given == b->given && a->given_token == b->given_token);
    CHECK(b->n_history == (penalties ? a->n_history : 0));
    CHECK(same(a->history, b->history, b->n_history * sizeof *a->history));
    CHECK(a->n_banned == b->n_banned && same(a->banned, b->banned, a->n_banned * 4));
    CHECK(p->temperature == q->temperature && p->seed == q->seed && p->n_top == q->n_top);
    CHECK(p->n_bias == q->n_bias && same(p->bias, q->bias, p->n_bias * sizeof *p->bias));
    CHECK(!p->allowed == !q->allowed && (!p->allowed || same(p->allowed, q->allowed, 4 * WORDS)));
}

static void check_step(const struct step *a, const struct step *b, bool samples)
{
    CHECK(a->n_rows == b->n_rows && a->n_seqs == b->n_seqs && a->n_out == b->n_out);
    CHECK(a->most_rows == b->most_rows && !b->n_more);
    CHECK(same(a->token, b->token, a->n_rows * sizeof *a->token));
    CHECK(same(a->out_row, b->out_row, a->n_out * sizeof *a->out_row));
    for (uint32_t i = 0; i < a->n_seqs; i++) {
        const struct step_seq *q = &a->seq[i], *r = &b->seq[i];
        size_t pages = (q->pos0 + q->n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
        CHECK(q->row0 == r->row0 && q->n_rows == r->n_rows && q->pos0 == r->pos0);
        CHECK(q->top_k == r->top_k && q->expand_below == r->expand_below);
        CHECK(q->run == r->run);
        CHECK(same(q->page, r->page, pages * sizeof *q->page));
    }
    for (uint32_t i = 0; i < a->n_out; i++) {
        CHECK(b->sample[i].p);
        if (samples)
            check_sample(&a->sample[i], &b->sample[i]);
        else
            CHECK(b->sample[i].p->temperature == 0.0f && !b->sample[i].n_history);
    }
}

static struct made made;

/* Goal: any step arrives as it was, several in one message, and so do its results. */
TEST(wire_random_steps)
{
    struct rng g = {test_seed()};
    struct wire w = {0}, back = {0};
    struct wire_room room;
    struct err e;
    CHECK_OK(wire_room_create(&room, &limits, &e), e);
    for (int k = 0; k < 2000; k++) {
        bool samples = rng_below(&g, 2);
        struct step got;
        struct err why = {0}, heard;
        make_step(&made, &g);
        wire_clear(&w);
        wire_put_step(&w, &made.s, samples, VOCAB);
        CHECK(!w.failed);
        CHECK_OK(wire_get_step(&w, &got, &room, &limits, &e), e);
        CHECK(w.pos == w.n);
        check_step(&made.s, &got, samples);
        for (uint32_t i = 0; i < got.n_out; i++)
            got.out[i] = (struct sample_out){.token = rng_below(&g, VOCAB), .n_top = 1};
        if (rng_below(&g, 4) == 0)
            err_set(&why, ERR_CUDA, "it is on fire");
        wire_clear(&back);
        wire_put_result(&back, &got, samples, &why);
        CHECK(wire_get_result(&back, &made.s, samples, &heard));
        CHECK(heard.code == why.code && !strcmp(heard.msg, why.msg));
        for (uint32_t i = 0; samples && !why.code && i < got.n_out; i++)
            CHECK(made.out[i].token == got.out[i].token);
    }
    wire_free(&w);
    wire_free(&back);
    wire_room_free(&room);
}

/* Goal: bytes that are changed or cut are a step within the limits, or refused; never read beyond.
 */
TEST_LIMIT(wire_broken_steps, 60)
{
    struct rng g = {test_seed()};
    struct wire w = {0};
    struct wire_room room;
    struct err e;
    uint32_t n_refused = 0;
    CHECK_OK(wire_room_create(&room, &limits, &e), e);
    for (int k = 0; k < 20000; k++) {
        struct step got;
        make_step(&made, &g);
        wire_clear(&w);
        wire_put_step(&w, &made.s, rng_below(&g, 2), VOCAB);
        struct wire cut = {0}; /* of its exact size, so that a sanitizer sees a byte beyond */
        size_t n = rng_below(&g, 2) ? w.n : rng_below(&g, (uint32_t)w.n + 1);
        cut.at = malloc(n ? n : 1);
        cut.n = n;
        CHECK(cut.at);
        memcpy(cut.at, w.at, n);
        for (uint32_t i = rng_below(&g, 4); n >= 4 && i-- > 0;) {
            uint32_t at = rng_below(&g, (uint32_t)n / 4) * 4, v = (uint32_t)rng_next(&g);
            v = rng_below(&g, 2) ? v : v % 200;
            memcpy(cut.at + at, &v, 4);
        }
        if (wire_get_step(&cut, &got, &room, &limits, &e)) {
            CHECK(e.code == ERR_COMM);
            n_refused++;
        } else {
            CHECK(got.n_rows <= ROWS && got.n_seqs <= SEQS && got.n_out <= OUTS);
            for (uint32_t i = 0; i < got.n_rows; i++)
                CHECK(got.token[i] < VOCAB);
            for (uint32_t i = 0; i < got.n_seqs; i++)
                for (uint32_t p = 0; p * KV_PAGE_TOKENS < got.seq[i].pos0 + got.seq[i].n_rows; p++)
                    CHECK(got.seq[i].page[p] < PAGES);
            for (uint32_t i = 0; i < got.n_out; i++)
                CHECK(got.out_row[i] < got.n_rows);
        }
        free(cut.at);
    }
    CHECK(n_refused > 5000 && n_refused < 19000);
    wire_free(&w);
    wire_room_free(&room);
}

TEST(wire_without_memory)
{
    struct wire w = {0};
    struct wire_room room;
    struct err e;
    struct rng g = {test_seed()};
    fault_arm("wire.room");
    CHECK(wire_room_create(&room, &limits, &e) == ERR_NOMEM);
    fault_arm("wire.grow");
    make_step(&made, &g);
    wire_put_step(&w, &made.s, true, VOCAB);
    CHECK(w.failed && !w.at);
    fault_arm(NULL);
}
