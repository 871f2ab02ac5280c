/* scheduler_impl.h - what the scheduler's files share; scheduler.h is the interface.
 *
 *   scheduler.c     life, the queue, cancels, the turn
 *   groups.c        the attention groups: their tables, lists and counters
 *   admission.c     who may enter, and what is promised to it
 *   placement.c     which group it enters
 *   fair.c          whose turn it is among several tenants
 *   pages.c         a sequence takes, adopts, publishes and gives back pages
 *   pace.c          how many prompt tokens fit in a time budget
 *   prefill_plan.c  chunks of several prompts make a prefill batch
 *   decode_plan.c   all running sequences of a group make a decode batch
 *   moves.c         a prompt that was run in one group goes to another to decode
 *   results.c       what a step brought: tokens, text, events
 *   ending.c        how a choice and a request end, whatever the reason
 *   check.c         the invariants
 *
 * A request is queued (in the queue), running (each unfinished choice has a sequence), or ending
 * (`cancelled` or `failed` is set: what is in flight is awaited, then the last event goes out).
 * Pages are given back as soon as a sequence is not in flight.
 *
 * Promises, group by group: n_promised is the sum over sequences of the pages that they may still
 * take there. Whatever happens, free pages + idle cached pages >= n_promised, so taking a page
 * never fails.
 */
#ifndef GAZE_SCHED_SCHEDULER_IMPL_H
#define GAZE_SCHED_SCHEDULER_IMPL_H

#include "event_pool.h"
#include "sched/fair.h"
#include "sched/pace.h"
#include "sched/prefix_cache.h"
#include "sched/scheduler.h"
#include "sched/sequence.h"
#include "sched/stats.h"

/* How often later requests may enter before one that does not fit yet. Then the groups that it is
 * to enter drain until it fits. */
enum { MAX_PASSED = 16 };

enum request_state { REQ_FREE, REQ_QUEUED, REQ_RUNNING, REQ_ENDING };

struct group;
struct seat_pair { /* where a request's sequences run their prompt, and where they decode */
    struct group *home, *target;
};

struct request {
    enum request_state state;
    bool cancelled, failed;
    bool counted; /* its prompt is in stats.prompt_tokens */
    bool told;    /* a rank was lost, and its last event went out before its steps came back */
    struct req_id id;
    struct gen_request *ask;
    struct request *prev, *next; /* in the queue, or among the ending ones */
    uint64_t arrival;
    double tag, cost;      /* fair.h */
    uint32_t n_passed;     /* later requests that entered while this one was at the head */
    struct seat_pair hold; /* groups that drain for it; NULL: none yet */
    uint32_t n_live;       /* sequences that it still has */
    uint32_t n_ended;      /* choices whose GEN_CHOICE is out */
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

struct seq_list {
    struct sequence *head, *tail;
};

/* A sequence's part of the prefill step that is being planned. */
struct share {
    struct sequence *seq;
    uint32_t n_rows, max_rows;
};

/* One attention group: its pages, who is in it, and what it has out. */
struct group {
    uint32_t index;
    enum group_role role;
    struct kv_pool *pool;
    struct prefix_cache *cache; /* empty for ever where nothing is prefilled */
    uint32_t n_promised;
    uint32_t n_seats;        /* taken: by sequences that are here or will be */
    uint32_t n_decoding;     /* sequences in SEQ_DECODE */
    struct seq_list prefill; /* SEQ_PREFILL, in order of service: by request, then choice */
    struct seq_list moving;  /* SEQ_MOVE, in the order of their turn */
    struct seq_list redo;    /* SEQ_REDO, first come first served */
    struct batch batch[N_LANES];
    bool out[N_LANES]; /* that batch is with the executor */
    struct page_move move;
    bool move_out;
    uint64_t out_us[N_LANES], move_out_us; /* since when */
    struct share *share;                   /* [max_seqs] */
    uint32_t n_shares;
    uint64_t n_steps_planned;
    struct pace pace;
    bool overran;     /* in the prefill step planned last a short prompt took more than half */
    uint32_t passed;  /* the oldest prompt, a sequence's index, if that step had no row of it */
    double decode_us; /* how long a decode step takes, lately; 0: there was none */
    struct engine_group_stats stats;
};

struct scheduler {
    struct scheduler_config cfg;
    struct group *group; /* [n_groups] */
    uint32_t n_groups;
    struct request *request;   /* [max_requests], by req_id.slot */
    struct sequence *sequence; /* [n_slots] */
    uint32_t *free_seq;        /* a stack of unused ones */
    uint32_t n_slots, n_free_seqs;
    uint32_t n_runs; /* sequences that ever were */
    struct request_list queue;  /* by priority, tag, arrival */
    struct request_list ending; /* whose last event could not be made yet */
    bool try_admission;         /* something changed since it last failed */
    uint64_t n_arrived;
    struct fair fair;
    struct event_pool *events;
    struct err lost; /* a rank is lost: why; ERR_OK: all are there */
    struct engine_stats stats;
};

static inline bool group_prefills(const struct group *g)
{
    return g->role != GROUP_DECODE;
}

static inline bool group_decodes(const struct group *g)
{
    return g->role != GROUP_PREFILL;
}

static inline uint32_t scheduler_n_groups(const struct scheduler_config *c)
{
    return c->n_groups ? c->n_groups : 1;
}

/* ---- groups.c ---- */
MUST_CHECK enum err_code groups_create(struct scheduler *s, struct err *e);
void groups_destroy(struct scheduler *s); /* nothing is out; each sequence was dropped */
bool group_busy(const struct group *g);   /* a batch or a move is out */
/* Pages that can be had there, cached ones that nobody uses included. */
static inline uint64_t group_room(const struct group *g)
{
    return (uint64_t)kv_pool_n_free(g->pool) + prefix_cache_n_idle(g->cache);
}
void group_get_stats(const struct group *g, struct engine_group_stats *out);
/* Behind `after`; NULL: at the head. */
void seq_list_insert(struct seq_list *l, struct sequence *seq, struct sequence *after);
void seq_list_remove(struct seq_list *l, struct sequence *seq);
/* The list that a sequence in this state is in; NULL: none. */
struct seq_list *group_list(struct group *g, enum seq_state state);
/* Behind those that are served before it. */
void prefill_list_add(struct scheduler *s, struct sequence *seq);

/* ---- admission.c ---- */
void admit_requests(struct scheduler *s, uint64_t now_us);
struct prefix_key admission_key(const struct scheduler *s, const struct request *r);

/* ---- placement.c ---- */
/* Pages in the worst case when nothing is cached: those of the whole prompt are shared by the
 * choices of a request where it is prefilled, and by nobody where it only decodes. */
uint64_t worst_home_pages(const struct gen_request *r, bool decodes);
uint64_t worst_target_pages(const struct gen_request *r);
/* Where r can enter now, the best first by the rule in scheduler.h; false: nowhere. Groups that
 * drain for `head` are left to it. */
bool place_request(const struct scheduler *s, const struct request *r, const struct request *head,
                   struct seat_pair *out);
/* The groups that r is to enter once they have drained: those with the most room, among those that
 * can hold it at all. */
struct seat_pair place_hold(const struct scheduler *s, const struct request *r);

/* ---- pages.c ---- */
/* Holds what the tree has of the prompt, and marks the rest of it as being computed by seq; the
 * promise was checked by admission. */
void pages_attach(struct scheduler *s, struct sequence *seq);
/* How many pages of the prompt g's tree has now; *n_idle: how many of them are idle. */
uint32_t pages_found(const struct group *g, const struct prefix_key *key,
                     const struct gen_request *r, uint32_t *n_idle);
/* Takes pages so that n_tokens have slots. Never fails: they were promised. */
void pages_reserve(struct scheduler *s, struct sequence *seq, uint32_t n_tokens, uint64_t now_us);
/* Adopts pages of others that have become ready; returns how many tokens can be run now (0: it
 * waits). */
uint32_t pages_adopt(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* After a step: pages that have become whole are made known to the tree. */
void pages_publish(struct scheduler *s, struct sequence *seq);
/* Gives everything back that it has in its group; a page that others wait for finds a new owner
 * among them. */
void pages_release(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* The same for the target group, where that is another: pages that it took there, and the promise.
 */
void pages_release_target(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* Takes pages of the target group for what is computed; they were promised. */
void pages_reserve_target(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* They hold what the old ones held: the old ones are given back, and the target is its group. */
void pages_arrive(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* They do not: the new ones are given back, and promised as before. */
void pages_discard(struct scheduler *s, struct sequence *seq, uint64_t now_us);
/* Promises pages for the whole prompt anew; false: there is no room yet. */
bool pages_redo(struct scheduler *s, struct sequence *seq);

/* ---- prefill_plan.c, decode_plan.c: fill the lane's batch; false: nothing to run ---- */
bool plan_prefill(struct scheduler *s, struct group *g, uint64_t now_us);
bool plan_decode(struct scheduler *s, struct group *g, uint64_t now_us);
/* Adds n_tokens of seq to the batch (n_out results are set by the caller). */
struct batch_seq *batch_add(struct batch *b, struct sequence *seq, uint32_t n_tokens,
                            uint32_t expand_below);
/* One more result, of the row `row` of the sequence added last: its next token. */
void batch_want_token(struct batch *b, struct sequence *seq, uint32_t row);

/* ---- moves.c ---- */
/* Its prompt is run: it decodes here, or goes where it shall. */
void prompt_is_run(struct scheduler *s, struct sequence *seq);
bool plan_move(struct scheduler *s, struct group *g, uint64_t now_us);
/* Sequences whose pages would not go run their prompt again once there is room. */
void plan_redo(struct scheduler *s, struct group *g);

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
