/* ending.c - how a choice and a request end, whatever the reason: exactly one last event each.
 *
 * A request's last event (GEN_DONE or GEN_ERROR) is reserved before it is needed, so that a machine
 * without memory can still say so. Should even that reservation be missing, the request stays in
 * the list of ending ones, without pages, and each turn tries again.
 *
 * Where a rank is lost, a request ends although its sequences are in steps that may never come
 * back: it is told so at once, and only its memory waits for them.
 */
#include "base/log.h"
#include "sched/scheduler_impl.h"

#include <string.h>

/* What is known of the request so far. */
static struct gen_usage usage_now(const struct scheduler *s, const struct request *r,
                                  uint64_t now_us)
{
    struct gen_usage u = r->usage;
    uint64_t from = r->ask->submitted_us, first = r->first_chunk_us, token = r->first_token_us;
    u.prompt_tokens = r->ask->n_prompt;
    u.total_us = now_us > from ? now_us - from : 0;
    u.queue_us = !first ? u.total_us : first > from ? first - from : 0;
    u.prefill_us = first ? (token ? token : now_us) - first : 0;
    u.decode_us = token && now_us > token ? now_us - token : 0;
    u.ttft_us = token > from ? token - from : 0;
    u.busy_us = (uint64_t)r->busy_us;
    u.kv_byte_seconds = (uint64_t)(r->kv_page_us * 1e-6 * (double)s->cfg.page_bytes);
    return u;
}

void sequence_drop(struct scheduler *s, struct sequence *seq, uint64_t now_us)
{
    struct request *r = seq->req;
    assert(seq->state != SEQ_FREE);
    assert(!seq->in_flight);
    struct group *home = &s->group[seq->group], *target = &s->group[seq->target];
    struct seq_list *list = group_list(home, seq->state);
    pages_release(s, seq, now_us);
    pages_release_target(s, seq, now_us);
    r->kv_page_us += seq->kv_page_us;
    if (list) {
        seq_list_remove(list, seq);
    } else {
        assert(home->n_decoding > 0);
        home->n_decoding--;
    }
    assert(home->n_seats > 0);
    home->n_seats--;
    assert(target == home || target->n_seats > 0);
    target->n_seats -= target != home;
    sequence_close(seq);
    assert(r->n_live > 0);
    r->n_live--;
    s->free_seq[s->n_free_seqs++] = seq->index;
}

void choice_end(struct scheduler *s, struct sequence *seq, enum gen_finish finish,
                int32_t stop_reason, uint64_t now_us)
{
    struct request *r = seq->req;
    struct seq_text rest;
    uint32_t choice = seq->choice;
    assert(!r->choice_ended[choice]);
    sequence_flush(seq, &rest);
    struct gen_event *ev = event_pool_new(s->events, GEN_CHOICE, r->id, 0, rest.bytes);
    if (!ev) {
        struct err e;
        err_set(&e, ERR_NOMEM, "no memory for an event");
        request_fail(s, r, &e, now_us);
        return;
    }
    memcpy(ev->text, rest.text, rest.bytes);
    sequence_drop(s, seq, now_us);
    ev->choice = choice;
    ev->finish = finish;
    ev->stop_reason = stop_reason;
    ev->usage = usage_now(s, r, now_us);
    r->choice_ended[choice] = true;
    r->n_ended++;
    *(finish == FINISH_STOP ? &s->stats.finished_stop : &s->stats.finished_length) += 1;
    s->cfg.emit(s->cfg.emit_arg, ev);
    request_settle(s, r, now_us);
}

/* Lets go of all sequences that are not in flight; the others follow when their step ends. */
static void drop_idle_sequences(struct scheduler *s, struct request *r, uint64_t now_us)
{
    for (uint32_t i = 0; i < s->n_slots && r->n_live; i++) {
        struct sequence *seq = &s->sequence[i];
        if (seq->state != SEQ_FREE && seq->req == r && !seq->in_flight)
            sequence_drop(s, seq, now_us);
    }
}

void request_fail(struct scheduler *s, struct request *r, const struct err *why, uint64_t now_us)
{
    if (request_is_over(r))
        return; /* it ends for an earlier reason */
    assert(r->state == REQ_RUNNING);
    assert(why->code);
    r->failed = true;
    r->err = *why;
    drop_idle_sequences(s, r, now_us);
    request_settle(s, r, now_us);
}

void request_cancel(struct scheduler *s, struct request *r, uint64_t now_us)
{
    if (request_is_over(r))
        return;
    r->cancelled = true;
    if (r->state == REQ_QUEUED) {
        list_remove(&s->queue, r);
        s->try_admission = true; /* it may have been in the way */
        r->state = REQ_RUNNING;
    }
    drop_idle_sequences(s, r, now_us);
    request_settle(s, r, now_us);
}

/* Every choice that is still open ends as cancelled. */
static void end_cancelled_choices(struct scheduler *s, struct request *r, uint64_t now_us)
{
    for (uint32_t i = 0; i < r->ask->n && !r->failed; i++) {
        if (r->choice_ended[i])
            continue;
        struct gen_event *ev = event_pool_new(s->events, GEN_CHOICE, r->id, 0, 0);
        if (!ev) {
            r->failed = true;
            err_set(&r->err, ERR_NOMEM, "no memory for an event");
            return;
        }
        ev->choice = i;
        ev->finish = FINISH_CANCELLED;
        ev->usage = usage_now(s, r, now_us);
        r->choice_ended[i] = true;
        r->n_ended++;
        s->cfg.emit(s->cfg.emit_arg, ev);
    }
}

static void count_ended(struct scheduler *s, const struct request *r, const struct gen_usage *u)
{
    struct engine_stats *st = &s->stats;
    st->cancelled += r->cancelled && !r->failed;
    st->failed += r->failed;
    if (request_is_over(r))
        return;
    hist_add_seconds(&st->e2e_s, u->total_us);
    hist_add_seconds(&st->queue_s, u->queue_us);
    hist_add_seconds(&st->prefill_s, u->prefill_us);
    hist_add_seconds(&st->decode_s, u->decode_us);
    hist_add_tokens(&st->prompt_len, u->prompt_tokens);
    hist_add_tokens(&st->generation_len, u->completion_tokens);
}

/* Nothing of it is left. */
static void request_forget(struct scheduler *s, struct request *r)
{
    gen_event_free(r->prompt_event);
    gen_request_free(r->ask);
    /* The next request of this slot finds its last event reserved. */
    *r = (struct request){.last_event = event_pool_new(s->events, GEN_DONE, r->id, 0, 0)};
}

void request_settle(struct scheduler *s, struct request *r, uint64_t now_us)
{
    if (!request_is_over(r) && r->n_ended < r->ask->n)
        return;
    if (r->told && !r->n_live)
        request_forget(s, r);
    if (r->told || r->state == REQ_FREE || (r->n_live && !s->lost.code))
        return;
    if (r->cancelled)
        end_cancelled_choices(s, r, now_us);
    if (!r->last_event)
        r->last_event = event_pool_new(s->events, GEN_DONE, r->id, 0, 0);
    if (!r->last_event) {
        if (r->state != REQ_ENDING)
            list_append(&s->ending, r);
        r->state = REQ_ENDING;
        return;
    }
    struct gen_event *ev = r->last_event;
    ev->id = r->id;
    ev->kind = r->failed ? GEN_ERROR : GEN_DONE;
    ev->err = r->err;
    ev->usage = usage_now(s, r, now_us);
    count_ended(s, r, &ev->usage);
    fair_ended(&s->fair, r->ask, r->cost, r->counted ? ev->usage.prompt_tokens : 0,
               ev->usage.completion_tokens);
    log_debug("sched",
              "request=%s prompt_tokens=%u cached_tokens=%u output_tokens=%u total_us=%llu",
              r->ask->name, ev->usage.prompt_tokens, ev->usage.cached_tokens,
              ev->usage.completion_tokens, (unsigned long long)ev->usage.total_us);
    if (r->state == REQ_ENDING)
        list_remove(&s->ending, r);
    r->state = REQ_RUNNING;
    r->told = true;
    r->last_event = NULL;
    if (!r->n_live)
        request_forget(s, r);
    s->cfg.emit(s->cfg.emit_arg, ev);
}

void settle_ending(struct scheduler *s, uint64_t now_us)
{
    for (struct request *r = s->ending.head, *next; r; r = next) {
        next = r->next;
        request_settle(s, r, now_us);
    }
}
