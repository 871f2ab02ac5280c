/* prefill_plan.c - chunks of several prompts make a prefill batch.
 *
 * Half of a step goes to the prompts with the least left to run, so that a short one gets in beside
 * long ones at once; the rest goes in order of service (priority, then arrival), so that the oldest
 * always moves on; one that a step has passed over has a row of the next. What one half does not
 * need the other gets. The end of a prompt that is nearly through is not cut: it may take the other
 * half, too, of time and of rows, but not of two steps that follow each other.
 *
 * While sequences are decoding the step is cut to a time budget (pace.h); otherwise to
 * prefill_tokens.
 */
#include "sched/scheduler_impl.h"

#include <math.h>

enum { OVER_ROWS = 32 };  /* of a step whose fixed cost alone is more than it may take */
enum { KNOWN_STEPS = 8 }; /* after so many what steps cost is known well enough for a large one */
/* What takes no longer than so many steps' time is not cut: each further step would cost its fixed
 * part. */
static const double WHOLE_STEPS = 2;
/* set_room(): of decode steps; of a prefill step's fixed cost. */
static const double SHORT_STEPS = 1.75, LONG_STEPS = 0.8, WORTH_FIXED = 3;

struct room {                 /* what is left of the step */
    uint32_t n_rows, n_given; /* rows; results for prompt log-probabilities */
    double us;
    double whole_us;     /* what a prompt's end may take instead of that; 0: nothing */
    uint32_t whole_rows; /* likewise; at least n_rows */
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
    double us = pace_row_us(&g->pace, pos), fit = room->us > 0 ? floor(room->us / us) : 0;
    bool whole = room->us > 0 && n == sh->seq->n_prompt - pos && n * us <= room->whole_us;
    uint32_t rows = whole && n <= room->whole_rows ? room->whole_rows : room->n_rows;
    n = n < rows ? n : rows;
    n = fit < n && !whole ? (uint32_t)fit : n;
    if (wants_given(sh->seq)) {
        n = n < room->n_given ? n : room->n_given;
        room->n_given -= n;
    }
    sh->n_rows += n;
    room->n_rows -= n < room->n_rows ? n : room->n_rows;
    room->whole_rows -= n;
    room->us -= n * us;
}

static void give_one(const struct group *g, struct share *sh, struct room *room)
{
    sh->n_rows = 1;
    room->n_rows--;
    room->n_given -= wants_given(sh->seq);
    room->us -= pace_row_us(&g->pace, sh->seq->n_computed);
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

/* What the rows of all prompts that wait would take, but no more than most_us; 0 where one of them
 * alone would take longer. */
static double waiting_us(const struct group *g, double most_us)
{
    double all = 0;
    for (uint32_t i = 0; i < g->n_shares; i++) {
        const struct sequence *seq = g->share[i].seq;
        double us = pace_row_us(&g->pace, seq->n_prompt) * (seq->n_prompt - seq->n_computed);
        if (us > most_us)
            return 0;
        all += us;
    }
    return fmin(all, most_us);
}

/* How long the step's rows may take while others decode.
 *
 * The whole step: a request that comes now waits for what is left of it, then for its own, as long
 * again or half as much more: with SHORT_STEPS decode steps for the first it has its token within
 * five. A device that runs one lane at a time delays a decode step by all of a prefill step: so no
 * more than LONG_STEPS of them, where that is enough for what every step costs to be a small part;
 * else up to WORTH_FIXED times that, but no more than decode_budget_us.
 *
 * Where none of the prompts that wait is long, a step may take decode_budget_us, if it has so much
 * to do: small ones would cost their fixed parts, and nobody who comes later waits for more than
 * one.
 *
 * What every step costs, even of one row, may be more than that: then rows go with it that cost
 * half as much again, or the prompt would never end, but few, in case it is not true. Every fourth
 * step whose rows cost less than that has twice as many: from it pace.h learns what is their part.
 */
static void set_room(const struct scheduler *s, const struct group *g, struct room *room)
{
    double budget = (double)s->cfg.decode_budget_us, step = g->decode_us;
    double fixed = g->pace.us[PACE_FIXED];
    if (step > 0)
        budget =
            fmin(fmax(fmin(budget, WORTH_FIXED * fixed), LONG_STEPS * step), SHORT_STEPS * step);
    double waiting = waiting_us(g, fmax((double)s->cfg.decode_budget_us - fixed, 0));
    if (waiting > 0 && g->pace.n_seen >= KNOWN_STEPS)
        budget = fmax(budget, fixed + waiting);
    room->us = fmax(budget - fixed, fixed / 2);
    if (fixed > budget && room->n_rows > OVER_ROWS)
        room->n_rows = OVER_ROWS;
    if (room->us < fixed && g->n_steps_planned % 4 == 3) {
        room->us *= 2;
        room->n_rows =
            2 * room->n_rows < s->cfg.prefill_tokens ? 2 * room->n_rows : s->cfg.prefill_tokens;
    }
}

static void share_out(const struct scheduler *s, struct group *g)
{
    struct room room = {.n_rows = s->cfg.prefill_tokens,
                        .n_given = s->cfg.max_out > g->n_shares ? s->cfg.max_out - g->n_shares : 1,
                        .us = INFINITY};
    if (g->n_decoding)
        set_room(s, g, &room);
    if (g->passed == g->share[0].seq->index) /* a row before all, where time would be for none */
        give_one(g, &g->share[0], &room);
    uint32_t most_rows = room.n_rows;
    /* With an odd number of rows, or results, the halves take turns to have one more: with a single
     * one, too, both move. */
    struct room half = room;
    uint32_t turn = (uint32_t)(g->n_steps_planned++ & 1);
    half.n_rows = (room.n_rows + turn) / 2;
    half.n_given = (room.n_given + turn) / 2;
    half.us = room.us / 2;
    half.whole_us = WHOLE_STEPS * room.us;
    half.whole_rows = g->overran ? half.n_rows : room.n_rows;
    struct room left = half;
    give_shortest(g, &left);
    uint32_t rows = half.whole_rows - left.whole_rows;
    room.whole_rows = room.n_rows -= rows;
    room.n_given -= half.n_given - left.n_given;
    if (room.us < INFINITY)
        room.us -= g->overran ? fmin(half.us, half.us - left.us) : half.us - left.us;
    for (uint32_t i = 0; i < g->n_shares; i++)
        give(g, &g->share[i], &room);
    g->overran = room.us < 0 || rows > half.n_rows;
    if (room.n_rows == most_rows) /* rounding left nothing: one row moves on */
        g->share[0].n_rows = 1;
    g->passed = g->share[0].n_rows ? UINT32_MAX : g->share[0].seq->index;
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
        pace_add_rows(&g->pace, seq->n_computed, sh->n_rows);
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
