/* decode_plan.c - all running sequences of a group make a decode batch; and how any batch is
 * filled.
 *
 * A sequence with forced tokens brings as many of them as there are rows that no one needs; its
 * next token is chosen in the step that runs the last of them. Where no choice hangs on what the
 * host knows, a batch of short steps runs several passes before it comes back. */
#include "sched/scheduler_impl.h"

enum { AHEAD_US = 4000 }; /* of steps that are queued behind the first */

struct batch_seq *batch_add(struct batch *b, struct sequence *seq, uint32_t n_tokens,
                            uint32_t expand_below)
{
    assert(b->n_seqs < b->max_seqs);
    assert(!seq->in_flight);
    assert(n_tokens >= 1);
    assert(seq->n_computed + n_tokens <= seq->n_tokens);
    assert(seq->table.n_pages * KV_PAGE_TOKENS >= seq->n_computed + n_tokens);
    struct batch_seq *q = &b->seq[b->n_seqs++];
    *q = (struct batch_seq){.seq_slot = seq->index,
                            .run = seq->run,
                            .row0 = b->n_rows,
                            .n_tokens = n_tokens,
                            .pos0 = seq->n_computed,
                            .token = seq->token + seq->n_computed,
                            .page = seq->table.page,
                            .top_k = seq->top_k,
                            .expand_below = expand_below,
                            .out0 = b->n_out};
    b->n_rows += n_tokens;
    seq->in_flight = true;
    seq->n_step = n_tokens;
    return q;
}

void batch_want_token(struct batch *b, struct sequence *seq, uint32_t row)
{
    struct batch_seq *q = &b->seq[b->n_seqs - 1];
    assert(b->n_out < b->max_out);
    assert(q->seq_slot == seq->index);
    sequence_ban(seq);
    uint32_t closing;
    bool given = sequence_must_close(seq, &closing);
    b->out_row[b->n_out] = row;
    b->sample[b->n_out] = (struct sample_row){.p = &seq->sample,
                                              .position = seq->n_tokens,
                                              .stream = seq->choice,
                                              .history = seq->token,
                                              .n_prompt = seq->n_prompt,
                                              .n_history = seq->n_tokens,
                                              .banned = seq->banned,
                                              .n_banned = seq->n_banned,
                                              .given = given,
                                              .given_token = closing};
    b->n_out++;
    q->n_out++;
}

/* How many passes the batch may run by itself behind the first: so many that the host's turn
 * between two batches is a small part of them, so few that nobody waits long for it. */
static uint32_t passes_behind(const struct scheduler *s, const struct group *g,
                              const struct batch *b)
{
    uint32_t n = s->cfg.exec->max_more;
    if (g->decode_us <= 0 || b->n_out != b->n_rows)
        return 0;
    n = (1 + n) * g->decode_us <= AHEAD_US ? n : (uint32_t)(AHEAD_US / g->decode_us);
    for (uint32_t i = 0; i < b->n_seqs && n; i++) {
        uint32_t more = sequence_unwatched(&s->sequence[b->seq[i].seq_slot]);
        n = n < more ? n : more;
    }
    return n;
}

bool plan_decode(struct scheduler *s, struct group *g, uint64_t now_us)
{
    struct batch *b = &g->batch[LANE_DECODE];
    b->n_seqs = b->n_rows = b->n_out = 0;
    if (!g->n_decoding)
        return false;
    uint32_t spare = s->cfg.max_seqs - g->n_decoding; /* rows beside one for each */
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct sequence *seq = &s->sequence[i];
        if (seq->state != SEQ_DECODE || seq->group != g->index)
            continue;
        assert(!seq->in_flight); /* this lane is idle, and the other one has no such sequence */
        uint32_t more = seq->n_tokens - seq->n_computed - 1; /* forced ones */
        more = more < spare ? more : spare;
        spare -= more;
        pages_reserve(s, seq, seq->n_computed + 1 + more, now_us);
        batch_add(b, seq, 1 + more, 0);
        if (seq->n_computed + 1 + more == seq->n_tokens)
            batch_want_token(b, seq, b->n_rows - 1);
    }
    assert(b->n_seqs == g->n_decoding);
    b->n_more = passes_behind(s, g, b);
    for (uint32_t i = 0; i < b->n_seqs && b->n_more; i++) {
        struct sequence *seq = &s->sequence[b->seq[i].seq_slot];
        pages_reserve(s, seq, seq->n_computed + 1 + b->n_more, now_us);
    }
    return true;
}
