/* results.c - what a step brought: written pages, tokens, text, events. */
#include "base/log.h"
#include "sched/scheduler_impl.h"

#include <string.h>

static void fail_nomem(struct scheduler *s, struct request *r, uint64_t now_us)
{
    struct err e;
    err_set(&e, ERR_NOMEM, "no memory for an event");
    request_fail(s, r, &e, now_us);
}

static void count_token_time(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct request *r = seq->req;
    if (!r->first_token_us) {
        r->first_token_us = now_us ? now_us : 1;
        uint64_t from = r->ask->submitted_us;
        hist_add_seconds(&s->stats.ttft_s, now_us > from ? now_us - from : 0);
    }
    if (seq->last_token_us)
        hist_add_seconds(&s->stats.inter_token_s, now_us - seq->last_token_us);
    seq->last_token_us = now_us;
}

static bool check_logits(struct scheduler *s, struct request *r, const struct sample_out *out,
                         uint64_t now_us)
{
    if (!out->bad_logits)
        return true;
    struct err e;
    err_set(&e, ERR_CUDA, "no token can be chosen: a logit is not a number, or nothing is allowed");
    log_error("sched", "request=%s error=\"%s\"", r->ask->name, e.msg);
    request_fail(s, r, &e, now_us);
    return false;
}

/* One new token of a running sequence, chosen or forced; false: the sequence has ended. */
static bool put_token(struct scheduler *s, struct sequence *seq, const struct sample_out *out,
                      uint64_t now_us)
{
    struct request *r = seq->req;
    struct seq_text text;
    struct err e;
    if (sequence_put(seq, out->token, &text, &e)) {
        request_fail(s, r, &e, now_us);
        return false;
    }
    struct gen_event *ev = event_pool_new(s->events, GEN_TOKENS, r->id, 1, text.bytes);
    if (!ev) {
        fail_nomem(s, r, now_us);
        return false;
    }
    count_token_time(s, seq, now_us);
    r->usage.completion_tokens++;
    s->stats.generation_tokens++;
    ev->choice = seq->choice;
    ev->out[0] = *out;
    memcpy(ev->text, text.text, text.bytes);
    s->cfg.emit(s->cfg.emit_arg, ev);
    if (text.finish != FINISH_NONE)
        choice_end(s, seq, text.finish, text.stop_reason, now_us);
    return text.finish == FINISH_NONE;
}

/* The token that a step chose, and those that must follow it; false: the sequence has ended. */
static bool take_token(struct scheduler *s, struct sequence *seq, const struct sample_out *out,
                       uint64_t now_us)
{
    struct sample_out forced = {0};
    if (!check_logits(s, seq->req, out, now_us))
        return false;
    bool more = put_token(s, seq, out, now_us);
    while (more && sequence_forced(seq, &forced.token)) {
        s->stats.forced_tokens++;
        more = put_token(s, seq, &forced, now_us);
    }
    return more;
}

/* Copies log-probabilities of the prompt's own tokens; they belong to tokens pos0 + 1 onwards. */
static bool take_given(struct scheduler *s, struct request *r, const struct batch_seq *q,
                       const struct sample_out *out, uint32_t n, uint64_t now_us)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!check_logits(s, r, &out[i], now_us))
            return false;
        r->prompt_event->out[q->pos0 + i] = out[i];
    }
    return true;
}

static bool emit_progress(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct gen_event *ev = event_pool_new(s->events, GEN_PROGRESS, seq->req->id, 0, 0);
    if (!ev) {
        fail_nomem(s, seq->req, now_us);
        return false;
    }
    ev->choice = seq->choice;
    ev->prompt_done = seq->n_computed;
    s->cfg.emit(s->cfg.emit_arg, ev);
    return true;
}

static void take_prefill(struct scheduler *s, struct sequence *seq, const struct batch_seq *q,
                         const struct sample_out *out, uint64_t now_us)
{
    struct request *r = seq->req;
    bool whole = seq->n_computed == seq->n_prompt, first = seq->choice == 0;
    bool chosen = whole && sequence_wants_first(seq);
    uint32_t n_given = q->n_out - chosen;
    if (n_given && !take_given(s, r, q, out, n_given, now_us))
        return;
    if (!whole) {
        if (first && !seq->n_redos)
            (void)emit_progress(s, seq, now_us);
        return;
    }
    if (first && r->prompt_event) {
        struct gen_event *ev = r->prompt_event;
        r->prompt_event = NULL;
        s->cfg.emit(s->cfg.emit_arg, ev);
    }
    prompt_is_run(s, seq);
    if (chosen)
        (void)take_token(s, seq, out + n_given, now_us);
    else if (!seq->ask->max_tokens)
        choice_end(s, seq, FINISH_LENGTH, -1, now_us);
}

static void count_step(struct scheduler *s, struct group *g, const struct batch *b)
{
    struct engine_stats *st = &s->stats;
    *(b->lane == LANE_PREFILL ? &g->stats.prefill_steps : &g->stats.decode_steps) += 1 + b->n_more;
    for (uint32_t pass = 0; pass <= b->n_more; pass++)
        hist_add_tokens(&st->step_tokens, b->n_rows);
    for (uint32_t i = 0; i < b->n_seqs * (1 + b->n_more); i++) {
        struct batch_seq at = b->seq[i % b->n_seqs], *q = &at;
        q->pos0 += i / b->n_seqs;
        uint32_t end = q->pos0 + q->n_tokens; /* the row at position p sees p + 1 tokens */
        uint32_t dense_end = end < q->top_k ? end : q->top_k;
        uint32_t n_dense = dense_end > q->pos0 ? dense_end - q->pos0 : 0;
        st->rows_dense += n_dense;
        st->rows_sparse += q->n_tokens - n_dense;
    }
}

void scheduler_step_done(struct scheduler *s, struct batch *b, uint64_t now_us)
{
    struct group *g = &s->group[b->group];
    assert(b == &g->batch[b->lane]);
    assert(g->out[b->lane]);
    g->out[b->lane] = false;
    double us = b->end_us > b->start_us ? (double)(b->end_us - b->start_us) : 0;
    s->stats.busy_us[b->lane] += (uint64_t)us;
    if (b->err.code) {
        log_error("sched", "group=%u lane=%d sequences=%u rows=%u error=\"%s\"", b->group,
                  (int)b->lane, b->n_seqs, b->n_rows, b->err.msg);
    } else {
        count_step(s, g, b);
        if (b->lane == LANE_PREFILL)
            pace_learn(&g->pace, us);
        if (b->lane == LANE_DECODE)
            g->decode_us += (g->decode_us > 0 ? 0.1 : 1.0) * (us / (1 + b->n_more) - g->decode_us);
    }
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *q = &b->seq[i];
        struct sequence *seq = &s->sequence[q->seq_slot];
        struct request *r = seq->req;
        assert(seq->state != SEQ_FREE);
        assert(seq->in_flight);
        assert(seq->n_step == q->n_tokens);
        seq->in_flight = false;
        seq->n_step = 0;
        r->busy_us += us * q->n_tokens / b->n_rows;
        if (!b->err.code) {
            seq->n_computed += q->n_tokens;
            pages_publish(s, seq);
        }
        if (request_is_over(r)) {
            sequence_drop(s, seq, now_us);
            request_settle(s, r, now_us);
        } else if (b->err.code) {
            request_fail(s, r, &b->err, now_us);
        } else if (seq->state == SEQ_PREFILL) {
            take_prefill(s, seq, q, b->out + q->out0, now_us);
        } else if (q->n_out) {
            bool more = take_token(s, seq, b->out + q->out0, now_us);
            for (uint32_t pass = 1; pass <= b->n_more && more; pass++) {
                seq->n_computed++;
                pages_publish(s, seq);
                more = take_token(s, seq, b->out + pass * b->n_out + q->out0, now_us);
            }
        }
    }
    s->stats.last_step_us = now_us;
}
