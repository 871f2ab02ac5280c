/* sim.h - the real scheduler on a fake executor and a virtual clock, with a record of each request.
 *
 * A record collects what a client would have heard, and checks the order of events as they come:
 * progress, the prompt's log-probabilities, tokens, each choice's end, and exactly one last event.
 */
#ifndef GAZE_TEST_SIM_H
#define GAZE_TEST_SIM_H

#include "fake_executor.h"
#include "sched/scheduler_impl.h"
#include "test.h"

enum { SIM_MAX_SLOTS = 64, SIM_VOCAB = 1000 };

struct sim_wish { /* one request; zero is the default */
    const uint32_t *prompt;
    uint32_t n_prompt, n, max_tokens, min_tokens;
    uint64_t seed, salt;
    int32_t priority;
    bool prompt_logprobs, ignore_eos;
    uint32_t top_k, tenant, weight;
};

struct sim_choice {
    uint32_t *token, n, max;
    enum gen_finish finish;
};

struct sim_record {
    struct sim_wish wish;
    struct req_id id;
    struct sim_choice choice[8];
    uint32_t n_choices_ended, prompt_done;
    bool ended, failed, prompt_seen, cancelled;
    enum err_code code;
    uint64_t submit_us, first_token_us, end_us;
    struct gen_usage usage;
    uint64_t *token_us; /* of choice 0; as long as its token array */
};

struct sim {
    struct scheduler_config cfg;
    struct scheduler *s;
    struct fake_executor f;
    uint64_t now_us, n_events;
    uint32_t gen[SIM_MAX_SLOTS];
    struct sim_record *at[SIM_MAX_SLOTS]; /* by slot; NULL: free */
    uint32_t n_inside;
    uint64_t busy_us;              /* of all steps that ended */
    bool lost;                     /* the executor said so */
    bool check;                    /* invariants after each turn */
    struct {                       /* of each group */
        uint64_t n_planned;        /* prefill steps so far */
        uint32_t oldest, n_passed; /* the prompt first in order of service; steps without it */
        bool redo;                 /* someone waits to run its prompt again */
        uint32_t n_seats;
    } seen[ENGINE_MAX_GROUPS];
};

static const uint32_t sim_eos[] = {7};

static inline void sim_take(struct sim *m, struct sim_record *r, const struct gen_event *ev)
{
    struct sim_choice *c = &r->choice[ev->choice];
    CHECK(!r->ended);
    CHECK(ev->choice < r->wish.n);
    switch (ev->kind) {
    case GEN_PROGRESS:
        CHECK(ev->prompt_done > r->prompt_done && ev->prompt_done < r->wish.n_prompt);
        r->prompt_done = ev->prompt_done;
        break;
    case GEN_PROMPT:
        CHECK(r->wish.prompt_logprobs && !r->prompt_seen);
        CHECK(ev->n_tokens == r->wish.n_prompt - 1);
        for (uint32_t i = 0; i < ev->n_tokens; i++)
            CHECK(ev->out[i].token == r->wish.prompt[i + 1]);
        r->prompt_seen = true;
        break;
    case GEN_TOKENS:
        CHECK(c->finish == FINISH_NONE);
        CHECK(!r->wish.prompt_logprobs || r->prompt_seen || r->wish.n_prompt == 1);
        if (!r->first_token_us)
            r->first_token_us = m->now_us;
        for (uint32_t i = 0; i < ev->n_tokens; i++) {
            if (c->n == c->max) {
                c->max = c->max ? 2 * c->max : 16;
                c->token = realloc(c->token, c->max * sizeof *c->token);
                CHECK(c->token != NULL);
                if (ev->choice == 0)
                    r->token_us = realloc(r->token_us, c->max * sizeof *r->token_us);
            }
            if (ev->choice == 0)
                r->token_us[c->n] = m->now_us;
            c->token[c->n++] = ev->out[i].token;
        }
        CHECK(c->n <= r->wish.max_tokens);
        break;
    case GEN_CHOICE:
        CHECK(c->finish == FINISH_NONE && ev->finish != FINISH_NONE);
        CHECK(ev->finish != FINISH_CANCELLED || r->cancelled);
        CHECK(ev->finish != FINISH_LENGTH || c->n == r->wish.max_tokens);
        CHECK(ev->finish != FINISH_STOP || (c->n && c->token[c->n - 1] == sim_eos[0]));
        c->finish = ev->finish;
        r->n_choices_ended++;
        break;
    case GEN_DONE:
    case GEN_ERROR:
        r->ended = true;
        r->failed = ev->kind == GEN_ERROR;
        r->code = ev->err.code;
        r->end_us = m->now_us;
        r->usage = ev->usage;
        CHECK(r->failed == (r->code != ERR_OK));
        CHECK(r->failed || r->n_choices_ended == r->wish.n);
        CHECK(ev->usage.cached_tokens < r->wish.n_prompt);
        uint32_t sum = 0;
        for (uint32_t i = 0; i < r->wish.n; i++)
            sum += r->choice[i].n;
        CHECK(ev->usage.completion_tokens == sum && ev->usage.prompt_tokens == r->wish.n_prompt);
        m->at[ev->id.slot] = NULL;
        m->n_inside--;
        break;
    }
}

static inline void sim_emit(void *arg, struct gen_event *ev)
{
    struct sim *m = arg;
    m->n_events++;
    CHECK(ev->id.slot < SIM_MAX_SLOTS && ev->id.gen == m->gen[ev->id.slot]);
    struct sim_record *r = m->at[ev->id.slot];
    CHECK_MSG(r != NULL, "an event after the last one");
    sim_take(m, r, ev);
    gen_event_free(ev);
}

static inline void sim_done(void *arg, struct batch *b)
{
    struct sim *m = arg;
    m->busy_us += b->end_us - b->start_us;
    scheduler_step_done(m->s, b, m->now_us);
}

static inline void sim_moved(void *arg, struct page_move *move)
{
    struct sim *m = arg;
    scheduler_move_done(m->s, move, m->now_us);
}

static inline void sim_lost(void *arg, const struct err *why)
{
    struct sim *m = arg;
    m->lost = true;
    scheduler_lose(m->s, why, m->now_us);
}

/* cfg: sizes; the rest is filled in. */
static inline void sim_open(struct sim *m, struct scheduler_config cfg, uint64_t seed)
{
    struct err e;
    memset(m, 0, sizeof *m);
    fake_executor_init(&m->f, scheduler_n_groups(&cfg), cfg.n_pages, seed);
    m->f.exec.done = sim_done;
    m->f.exec.moved = sim_moved;
    m->f.exec.lost = sim_lost;
    m->f.exec.done_arg = m;
    m->now_us = m->f.now_us = 1000;
    m->check = true;
    cfg.max_requests = SIM_MAX_SLOTS;
    cfg.page_bytes = 1 << 16;
    cfg.eos_id = sim_eos;
    cfg.n_eos = 1;
    cfg.exec = &m->f.exec;
    cfg.emit = sim_emit;
    cfg.emit_arg = m;
    m->cfg = cfg;
    CHECK_OK(scheduler_create(&m->s, &m->cfg, &e), e);
}

static inline void sim_close(struct sim *m)
{
    scheduler_destroy(m->s); /* asserts that no page is lost */
    fake_executor_free(&m->f);
}

/* A request's answer ends in r, which stays at its place until then. False: no slot is free. */
static inline bool sim_submit(struct sim *m, struct sim_record *r, const struct sim_wish *w)
{
    uint32_t slot = 0;
    while (slot < SIM_MAX_SLOTS && m->at[slot])
        slot++;
    struct gen_request *q = slot < SIM_MAX_SLOTS ? gen_request_new() : NULL;
    if (!q)
        return false;
    memset(r, 0, sizeof *r);
    r->wish = *w;
    if (!r->wish.n)
        r->wish.n = 1;
    CHECK(r->wish.n <= 8);
    q->prompt = w->prompt; /* outlives the request */
    q->n_prompt = w->n_prompt;
    q->n = r->wish.n;
    q->max_tokens = w->max_tokens;
    q->min_tokens = w->min_tokens;
    q->sample.seed = w->seed;
    q->cache_salt = w->salt;
    q->priority = w->priority;
    q->prompt_logprobs = w->prompt_logprobs;
    q->ignore_eos = w->ignore_eos;
    q->top_k_dsa = w->top_k;
    q->tenant = w->tenant;
    q->weight = w->weight;
    q->submitted_us = r->submit_us = m->now_us;
    q->id = r->id = (struct req_id){.slot = slot, .gen = ++m->gen[slot]};
    m->at[slot] = r;
    m->n_inside++;
    scheduler_submit(m->s, q, m->now_us);
    return true;
}

static inline void sim_cancel(struct sim *m, struct sim_record *r)
{
    if (!r->ended)
        r->cancelled = true;
    scheduler_cancel(m->s, r->id, m->now_us);
}

/* While someone waits for pages to run its prompt again, nobody new enters its group. */
static inline void sim_check_redo(struct sim *m, const struct group *g)
{
    bool waits = g->redo.head;
    CHECK(!waits || !m->seen[g->index].redo || g->n_seats <= m->seen[g->index].n_seats);
    m->seen[g->index].redo = waits;
    m->seen[g->index].n_seats = g->n_seats;
}

/* Nobody starves: the prompt that is first in order of service and can run is in every second
 * prefill step at least (a step of one row goes to the shortest prompt and to the oldest in turn),
 * and a step is never empty. */
static inline void sim_check_progress(struct sim *m, const struct group *g)
{
    uint32_t *oldest = &m->seen[g->index].oldest, *n_passed = &m->seen[g->index].n_passed;
    if (g->n_steps_planned == m->seen[g->index].n_planned)
        return;
    m->seen[g->index].n_planned = g->n_steps_planned;
    const struct share *first = &g->share[0];
    CHECK(g->out[LANE_PREFILL] && g->n_shares && g->batch[LANE_PREFILL].n_rows);
    bool same = first->seq->index == *oldest;
    *oldest = first->seq->index;
    *n_passed = first->n_rows ? 0 : same ? *n_passed + 1 : 1;
    CHECK_MSG(*n_passed <= 1, "the oldest prompt was passed by %u steps", *n_passed);
}

static inline void sim_check_turn(struct sim *m, const struct group *g)
{
    sim_check_redo(m, g);
    sim_check_progress(m, g);
}

static inline uint64_t sim_turn(struct sim *m)
{
    uint64_t wake = scheduler_turn(m->s, m->now_us);
    if (m->check) {
        scheduler_check(m->s);
        for (uint32_t i = 0; i < m->s->n_groups; i++)
            sim_check_turn(m, &m->s->group[i]);
    }
    return wake;
}

/* One turn, then on to the next thing that happens, until_us at the latest. False: nothing is left.
 */
static inline bool sim_next(struct sim *m, uint64_t until_us)
{
    uint64_t wake = sim_turn(m), next = fake_executor_next_us(&m->f);
    next = wake < next ? wake : next;
    if (next == UINT64_MAX && until_us == UINT64_MAX)
        return false;
    m->now_us = next < until_us ? next : until_us;
    fake_executor_advance(&m->f, m->now_us);
    if (m->check)
        scheduler_check(m->s);
    return true;
}

/* Until everything has ended. */
static inline void sim_finish(struct sim *m)
{
    struct engine_stats st;
    while (sim_next(m, UINT64_MAX))
        continue;
    if (m->lost) { /* every client has heard so; what was out comes back, or goes with the process
                    */
        CHECK_MSG(m->n_inside == 0, "%u requests were not told", m->n_inside);
        fake_executor_bury(&m->f);
        while (sim_next(m, UINT64_MAX))
            continue;
    }
    CHECK_MSG(scheduler_idle(m->s), "it sleeps with %u requests inside", m->n_inside);
    CHECK(m->n_inside == 0);
    scheduler_get_stats(m->s, &st);
    CHECK_MSG(st.pages_used == 0, "%u pages are still held", st.pages_used);
    CHECK(st.running == 0 && st.waiting == 0);
}

static inline void sim_record_free(struct sim_record *r)
{
    for (int i = 0; i < 8; i++)
        free(r->choice[i].token);
    free(r->token_us);
}

/* tokens[n], the same for the same seed */
static inline uint32_t *sim_prompt(uint64_t seed, uint32_t n)
{
    struct rng g = {seed};
    uint32_t *t = malloc((n ? n : 1) * sizeof *t);
    CHECK(t != NULL);
    for (uint32_t i = 0; i < n; i++)
        t[i] = rng_below(&g, SIM_VOCAB);
    return t;
}

static inline void sim_check_equal(const struct sim_record *a, const struct sim_record *b,
                                   const char *what)
{
    for (uint32_t k = 0; k < a->wish.n && k < b->wish.n; k++) {
        const struct sim_choice *x = &a->choice[k], *y = &b->choice[k];
        CHECK_MSG(x->n == y->n, "%s: choice %u has %u and %u tokens", what, k, x->n, y->n);
        for (uint32_t i = 0; i < x->n; i++)
            CHECK_MSG(x->token[i] == y->token[i], "%s: choice %u differs at token %u of %u", what,
                      k, i, x->n);
    }
}

#endif
