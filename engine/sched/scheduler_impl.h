/* scheduler_impl.h - what the scheduler's files share; scheduler.h is the interface.
 *
 *   scheduler.c     life, the queue, cancels, the turn
 *   admission.c     who may enter, and what is promised to it
 *   fair.c          whose turn it is among several tenants
 *   pages.c         a sequence takes, adopts, publishes and gives back pages
 *   pace.c          how many prompt tokens fit in a time budget
 *   prefill_plan.c  chunks of several prompts make a prefill batch
 *   decode_plan.c   all running sequences make a decode batch
 *   results.c       what a step brought: tokens, text, events
 *   ending.c        how a choice and a request end, whatever the reason
 *   check.c         the invariants
 *
 * A request is queued (in the queue), running (each unfinished choice has a sequence), or ending
 * (`cancelled` or `failed` is set: what is in flight is awaited, then the last event goes out).
 * Pages are given back as soon as a sequence is not in flight.
 *
 * Promises: n_promised is the sum over sequences of the pages they may still take. Whatever
 * happens, free pages + idle cached pages >= n_promised, so taking a page never fails.
 */
#ifndef GAZE_SCHED_SCHEDULER_IMPL_H
#define GAZE_SCHED_SCHEDULER_IMPL_H

#include "sched/fair.h"
#include "sched/pace.h"
#include "sched/prefix_cache.h"
#include "sched/scheduler.h"
#include "sched/sequence.h"
#include "sched/stats.h"

/* How often later requests may enter before one that does not fit yet. Then the pool drains until
 * the big one fits. */
enum { MAX_PASSED = 16 };

enum request_state { REQ_FREE, REQ_QUEUED, REQ_RUNNING, REQ_ENDING };

struct request {
    enum request_state state;
    bool cancelled, failed;
    bool counted; /* its prompt is in stats.prompt_tokens */
    struct req_id id;
    struct gen_request *ask;
    struct request *prev, *next; /* in the queue, or among the ending ones */
    uint64_t arrival;
    double tag, cost;  /* fair.h */
    uint32_t n_passed; /* later requests that entered while this one was at the head */
    uint32_t n_live;   /* sequences that it still has */
    uint32_t n_ended;  /* choices whose GEN_CHOICE is out */
    bool choice_ended[REQUEST_MAX_N];
    struct prefix_key key;
    struct err err; /* when failed */
    struct gen_event
        *last_event; /* kept for the end, so that it can always be told; see ending.c */
    struct gen_event *prompt_event;     /* GEN_PROMPT while it is filled */
    struct sample_params prompt_sample; /* of the prompt's log-probabilities */
    struct gen_usage usage;
    uint64_t first_chunk_us, first_token_us; /* 0: not yet */
    double busy_us, kv_page_us;
};

struct request_list {
    struct request *head, *tail;
    uint32_t n;
};

/* A sequence's part of the prefill step that is being planned. */
struct share {
    struct sequence *seq;
    uint32_t n_rows, max_rows;
};

struct scheduler {
    struct scheduler_config cfg;
    struct kv_pool *pool;
    struct prefix_cache *cache;
    struct request *request;   /* [max_requests], by req_id.slot */
    struct sequence *sequence; /* [max_seqs] */
    uint32_t *free_seq;        /* a stack of unused ones */
    uint32_t n_free_seqs, n_decoding, n_promised;
    struct request_list queue;                    /* by priority, tag, arrival */
    struct request_list ending;                   /* whose last event could not be made yet */
    struct sequence *prefill_head, *prefill_tail; /* likewise, then choice */
    bool try_admission;                           /* something changed since it last failed */
    uint64_t n_arrived, n_steps_planned;
    struct batch batch[N_LANES];
    bool out[N_LANES];   /* that batch is with the executor */
    struct share *share; /* [max_seqs] */
    uint32_t n_shares;
    struct pace pace;
    struct fair fair;
    double decode_us;  /* how long a decode step takes, lately */
    double budget_us;  /* of the prefill step planned last */
    double planned_us; /* what the prefill step that is out should take; 0: not known */
    struct engine_stats stats;
};

/* ---- admission.c ---- */
void admit_requests(struct scheduler *s, uint64_t now_us);
struct prefix_key admission_key(const struct scheduler *s, const struct request *r);

/* ---- pages.c ---- */
/* Holds what the tree has of the prompt, and marks the rest of it as being computed by seq; the
 * promise was checked by admission. */
void pages_attach(struct scheduler *s, struct sequence *seq);
/* How many pages of the prompt the tree has now; *n_idle: how many of them are idle. */
uint32_t pages_found(const struct scheduler *s, const struct prefix_key *key,
                     const struct gen_request *r, uint32_t *n_idle);
/* Takes pages so that n_tokens have slots. Never fails: they were promised. */
void pages_reserve(struct scheduler *s, struct sequence *seq, uint32_t n_tokens, uint64_t now_us);
/* Adopts pages of others that have become ready; returns how many tokens can be run now (0: it
 * waits). */
uint32_t pages_adopt(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* After a step: pages that have become whole are made known to the tree. */
void pages_publish(struct scheduler *s, struct sequence *seq);
/* Gives everything back; a page that others wait for finds a new owner among them. */
void pages_release(struct scheduler *s, struct sequence *seq, uint64_t now_us);

/* ---- prefill_plan.c, decode_plan.c: fill the lane's batch; false: nothing to run ---- */
bool plan_prefill(struct scheduler *s, uint64_t now_us);
bool plan_decode(struct scheduler *s, uint64_t now_us);
/* Adds n_tokens of seq to the batch (n_out results are set by the caller). */
struct batch_seq *batch_add(struct batch *b, struct sequence *seq, uint32_t n_tokens,
                            uint32_t expand_below);
/* One more result, of the row `row` of the sequence added last: its next token. */
void batch_want_token(struct batch *b, struct sequence *seq, uint32_t row);

/* ---- ending.c ---- */
/* The choice has a finish: GEN_CHOICE with the rest of its text; its sequence goes. */
void choice_end(struct scheduler *s, struct sequence *seq, enum gen_finish finish,
                int32_t stop_reason, uint64_t now_us);
/* Ends the request by an error, or by its client's wish, as soon as nothing of it is in flight. */
void request_fail(struct scheduler *s, struct request *r, const struct err *why, uint64_t now_us);
void request_cancel(struct scheduler *s, struct request *r, uint64_t now_us);
/* Lets a sequence of an ending request go; not in flight. */
void sequence_drop(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* Emits what is left when the request is over. */
void request_settle(struct scheduler *s, struct request *r, uint64_t now_us);
void settle_ending(struct scheduler *s, uint64_t now_us); /* those that lacked memory for it */

static inline bool request_is_over(const struct request *r)
{
    return r->cancelled || r->failed;
}

/* ---- scheduler.c ---- */
void list_remove(struct request_list *l, struct request *r);
void list_append(struct request_list *l, struct request *r);
void prefill_list_remove(struct scheduler *s, struct sequence *seq);
/* Whether a is served before b: by priority, then by its tenant's turn, then by arrival. */
static inline bool request_before(const struct request *a, const struct request *b)
{
    if (a->ask->priority != b->ask->priority)
        return a->ask->priority < b->ask->priority;
    if (a->tag < b->tag || a->tag > b->tag)
        return a->tag < b->tag;
    return a->arrival < b->arrival;
}

#endif
