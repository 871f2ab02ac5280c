/* scheduler.h - requests become sequences, sequences get pages, pages make batches.
 *
 * A passive object: engine.c's scheduler thread feeds it messages and calls scheduler_turn(); the
 * simulator in tests/sim does the same under a virtual clock. Time comes in as an argument, never
 * from a clock.
 *
 * Admission is by worst case: a request enters when the pages that prompt + max_tokens of all its
 * choices may need (less what the prefix cache already holds for it) can be promised; an admitted
 * request never dies for memory and is never preempted. Waiting requests are served by priority,
 * then by their tenant's weighted share (fair.h), then by arrival; a big one at the head is not
 * passed by for ever (no starvation).
 *
 * Groups: pages, prefix cache, promises and batches are per attention group, an array of which this
 * holds; queue, priorities and fairness are common to all. A request's sequences enter one group
 * together and stay in it; with one group all is as if there were none. Where may it enter? Where
 * its worst case can be promised now; of several groups the one where this is least:
 *   prompt tokens of its own that the group's cache does not have
 *   + prompt tokens of others there that are still to be run
 *   + 64 for each sequence that is there (it slows each step for the others)
 *   + 16 for each cached page that would have to go (computing it again would cost 64 tokens);
 * then the one with more room, then the lower index. So equal requests in equal states go the same
 * way, a conversation goes where its beginning is cached, and not if that group is much busier. A
 * request that does not fit anywhere keeps others, after a while, out of one group only.
 *
 * Roles: a group may be there for prefill or for decode alone. Then a request is promised seats and
 * pages in one of each before it enters, and after its prompt its pages go over, checked (moves.c).
 * The prefix cache stays where prefill is: what is decoded elsewhere is not published, and pages
 * that have arrived somewhere are that sequence's alone (the choices of a request, too, get a copy
 * each). A conversation that goes on therefore finds its last prompt and computes the answer to it
 * again, as part of the next one: each answer's tokens are run once more than in a single group.
 *
 * Prefill steps take chunks of several prompts; decode steps take all running sequences. The two
 * lanes run side by side; the prefill chunk is cut so that its step stays within a time budget
 * while sequences are decoding. The hand-over from prefill to decode moves a block table.
 *
 * Pages: whole pages of a prompt are shared through the prefix cache (reference-counted, LRU when
 * memory is needed). A page is published only when all its tokens were computed in canonical form,
 * the form in which a prefill would compute them (prompt rows; and decoded rows when the prompt
 * already reached expand_below), so a cache hit never changes a bit. The cache's key is the chain
 * of token ids, the request's salt and its top-k.
 *
 * Thread: the scheduler's.
 */
#ifndef GAZE_SCHED_SCHEDULER_H
#define GAZE_SCHED_SCHEDULER_H

#include "engine.h"
#include "sched/batch.h"

struct scheduler; /* opaque */

struct scheduler_config {
    uint32_t n_groups;                       /* 0: 1 */
    enum group_role role[ENGINE_MAX_GROUPS]; /* one that prefills, and one that decodes, at least */
    uint32_t n_pages;                        /* of the KV pool of each group */
    uint32_t max_requests;                   /* slots of req_id: queued and running */
    uint32_t max_seqs;                       /* sequences of one group: rows of a decode step */
    uint32_t max_context;                    /* tokens of one sequence */
    uint32_t prefill_tokens;                 /* rows of a prefill step, at most */
    uint32_t max_out;                        /* results of one step, at most (>= max_seqs) */
    bool prefix_cache;
    uint32_t index_topk;    /* the model's; 0: no indexer (rows are dense) */
    uint32_t expand_tokens; /* model_expand_tokens() */
    size_t page_bytes;      /* for kv_byte_seconds */
    const uint32_t *eos_id; /* the model's end ids */
    uint32_t n_eos;
    const struct tokenizer *tok; /* NULL in simulations: events carry tokens and no text */
    struct executor *exec;
    void (*emit)(void *arg, struct gen_event *ev); /* takes ev */
    void *emit_arg;
    /* How long a prefill step may take while sequences decode, where 0.8 decode steps would be
     * little more than what it costs without rows; 0: 30 ms. prefill_plan.c says why. */
    uint64_t decode_budget_us;
};

/* What scheduler_create() will take, but for the requests' own arenas (for the memory plan). */
size_t scheduler_bytes(const struct scheduler_config *c);

MUST_CHECK enum err_code scheduler_create(struct scheduler **out,
                                          const struct scheduler_config *cfg, struct err *e);
/* No batch may be in flight. Requests that are still inside are dropped without events. */
void scheduler_destroy(struct scheduler *s);

/* Whether the request could ever run: ERR_INVALID with both numbers. Static: any thread. */
MUST_CHECK enum err_code scheduler_can_ever_fit(const struct scheduler_config *cfg,
                                                const struct gen_request *req, struct err *e);

void scheduler_submit(struct scheduler *s, struct gen_request *req,
                      uint64_t now_us);                                        /* takes req */
void scheduler_cancel(struct scheduler *s, struct req_id id, uint64_t now_us); /* stale: nothing */
void scheduler_step_done(struct scheduler *s, struct batch *b, uint64_t now_us);
void scheduler_move_done(struct scheduler *s, struct page_move *m, uint64_t now_us);
/* A rank is lost: every request ends by this error at once, whether or not its steps come back, and
 * nothing is started any more. Those that come back are taken; who is submitted ends likewise. */
void scheduler_lose(struct scheduler *s, const struct err *why, uint64_t now_us);

/* Admits, starts a batch in each idle lane that has work, and moves. Returns when it wants to be
 * called again at the latest (UINT64_MAX: only after a message). */
uint64_t scheduler_turn(struct scheduler *s, uint64_t now_us);

/* Since when the step or move is out that went out first, and of which group; UINT64_MAX: none is.
 */
uint64_t scheduler_oldest_us(const struct scheduler *s, uint32_t *group);
bool scheduler_idle(const struct scheduler *s); /* no request inside, no batch in flight */
void scheduler_get_stats(const struct scheduler *s, struct engine_stats *out);
void scheduler_check(const struct scheduler *s); /* asserts all invariants; for tests */

#endif
