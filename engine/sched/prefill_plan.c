/* prefill_plan.c - chunks of several prompts make a prefill batch.
 *
 * Half of a step goes to the prompts with the least left to run, so that a short one gets in beside
 * long ones at once; the rest goes in order of service (priority, then arrival), so that the oldest
 * always moves on. What one half does not need the other gets.
 *
 * While sequences are decoding the step is cut to a time budget (pace.h); otherwise to
 * prefill_tokens.
 */
#include "sched/scheduler_impl.h"

#include <math.h>

struct room {                 /* what is left of the step */
    uint32_t n_rows, n_given; /* rows; results for prompt log-probabilities */
    double us;
};

static bool wants_given(const struct sequence *seq)
{
    return seq->choice == 0 && seq->req->prompt_event;
}

static void collect(struct scheduler *s, struct group *g, uint64_t now_us)
{
    g->n_shares = 0;
    for (struct sequence *q = g->prefill.head; q; q = q->next) {
        assert(q->state == SEQ_PREFILL);
        assert(!q->in_flight);
        if (q->choice && q->req->prompt_event)
            continue; /* GEN_PROMPT comes before the tokens of any choice */
        uint32_t n = pages_adopt(s, q, now_us);
        if (n)
            g->share[g->n_shares++] = (struct share){.seq = q, .max_rows = n};
    }
}

/* Gives sh as much of the room as it can use. */
static void give(const struct group *g, struct share *sh, struct room *room)
{
    uint32_t pos = sh->seq->n_computed + sh->n_rows, n = sh->max_rows - sh->n_rows;
    double us = pace_token_us(&g->pace, pos), fit = room->us > 0 ? floor(room->us / us) : 0;
    n = n < room->n_rows ? n : room->n_rows;
    n = fit < n ? (uint32_t)fit : n;
    if (wants_given(sh->seq)) {
        n = n < room->n_given ? n : room->n_given;
        room->n_given -= n;
    }
    sh->n_rows += n;
    room->n_rows -= n;
    room->us -= n * us;
}

/* Least left to run first; the order of service decides ties. O(rows * prompts) at most. */
static void give_shortest(struct group *g, struct room *room)
{
    for (;;) {
        struct share *best = NULL;
        uint32_t least = UINT32_MAX;
        for (uint32_t i = 0; i < g->n_shares; i++) {
            struct share *sh = &g->share[i];
            uint32_t left = sh->seq->n_prompt - sh->seq->n_computed;
            if (sh->n_rows == 0 && left < least) {
                best = sh;
                least = left;
            }
        }
        if (!best)
            return;
        give(g, best, room);
        if (best->n_rows == 0)
            return;
    }
}

/* Where decode steps are long, a prefill step may be nearly as long as one: then the others' tokens
 * come at half their pace at worst, and a machine that is slow to start any step still gets
 * through. */
static void set_budget(const struct scheduler *s, struct group *g)
{
    double least = (double)s->cfg.decode_budget_us, usual = 0.8 * g->decode_us;
    g->budget_us = usual > least ? usual : least;
}

static void share_out(const struct scheduler *s, struct group *g)
{
    struct room room = {.n_rows = s->cfg.prefill_tokens,
                        .n_given = s->cfg.max_out > g->n_shares ? s->cfg.max_out - g->n_shares : 1,
                        .us = INFINITY};
    if (g->n_decoding) {
        /* At least PACE_MIN_ROWS rows, whatever they cost. */
        double us = pace_token_us(&g->pace, g->share[0].seq->n_computed) * PACE_MIN_ROWS;
        room.us = us > g->budget_us ? us : g->budget_us;
    }
    /* With an odd number of rows, or results, the halves take turns to have one more: with a single
     * one, too, both move. */
    struct room half = room;
    uint32_t turn = (uint32_t)(g->n_steps_planned++ & 1);
    half.n_rows = (room.n_rows + turn) / 2;
    half.n_given = (room.n_given + turn) / 2;
    half.us = room.us / 2;
    struct room left = half;
    give_shortest(g, &left);
    room.n_rows -= half.n_rows - left.n_rows;
    room.n_given -= half.n_given - left.n_given;
    if (room.us < INFINITY)
        room.us -= half.us - left.us;
    for (uint32_t i = 0; i < g->n_shares; i++)
        give(g, &g->share[i], &room);
    if (room.n_rows == s->cfg.prefill_tokens) { /* rounding left nothing: one row moves on */
        g->share[0].n_rows = 1;
    }
}

/* Results of a chunk: the prompt's own tokens where they are wanted, and the first new token. */
static void want_results(struct batch *b, struct sequence *seq, const struct batch_seq *q)
{
    bool given = wants_given(seq);
    struct batch_seq *mine = &b->seq[b->n_seqs - 1];
    for (uint32_t i = 0; given && i < q->n_tokens; i++) {
        uint32_t next = q->pos0 + i + 1;
        if (next == seq->n_prompt)
            break;
        assert(b->n_out < b->max_out);
        b->out_row[b->n_out] = q->row0 + i;
        b->sample[b->n_out] = (struct sample_row){.p = &seq->req->prompt_sample,
                                                  .position = next,
                                                  .stream = seq->choice,
                                                  .history = seq->token,
                                                  .n_prompt = next,
                                                  .n_history = next,
                                                  .given = true,
                                                  .given_token = seq->token[next]};
        b->n_out++;
        mine->n_out++;
    }
    if (q->pos0 + q->n_tokens == seq->n_prompt && sequence_wants_first(seq))
        batch_want_token(b, seq, q->row0 + q->n_tokens - 1);
}

bool plan_prefill(struct scheduler *s, struct group *g, uint64_t now_us)
{
    struct batch *b = &g->batch[LANE_PREFILL];
    b->n_seqs = b->n_rows = b->n_out = 0;
    g->planned_us = 0;
    set_budget(s, g);
    collect(s, g, now_us);
    if (!g->n_shares)
        return false;
    share_out(s, g);
    pace_begin_step(&g->pace);
    for (uint32_t i = 0; i < g->n_shares; i++) {
        struct share *sh = &g->share[i];
        struct sequence *seq = sh->seq;
        if (!sh->n_rows)
            continue;
        g->planned_us += sh->n_rows * pace_token_us(&g->pace, seq->n_computed);
        pace_add_rows(&g->pace, seq->n_computed);
        pages_reserve(s, seq, seq->n_computed + sh->n_rows, now_us);
        if (!seq->req->first_chunk_us)
            seq->req->first_chunk_us = now_us ? now_us : 1;
        struct batch_seq *q = batch_add(b, seq, sh->n_rows, s->cfg.expand_tokens);
        want_results(b, seq, q);
    }
    assert(b->n_rows >= 1);
    assert(b->n_rows <= s->cfg.prefill_tokens);
    return true;
}
