/* worker.h - the executor on a real model: for each attention group a prefill worker and a decode
 * worker, a thread and a lane each.
 *
 * A worker sleeps until the scheduler starts a batch, runs it through forward.h, and gives it back.
 * None waits for another, but for two cases. Where a group has several ranks, a worker leads a
 * team: a thread for each rank, all of which run the same step. Where groups are joined (rows of
 * one meet experts in another: parallel_joins_groups()), all groups are one team in each lane: a
 * round takes the batches that wait, and groups without one take part with no rows; a batch that
 * comes during a round waits for the next.
 *
 * Ranks may be in several processes. Then process 0, which has the scheduler, runs its own ranks of
 * a team and has the others told (relay.h); in the others a team waits for what it is told, runs
 * its ranks and answers, until it hears of the end.
 *
 * A step that ends with ERR_COMM on any rank means that a rank is lost.
 * Thread: created and destroyed by the engine's opener; start() from the scheduler's.
 */
#ifndef GAZE_EXEC_WORKER_H
#define GAZE_EXEC_WORKER_H

#include "exec/relay.h"
#include "model/forward.h"
#include "sched/batch.h"

struct workers; /* opaque */

struct workers_config {
    struct forward **forward;   /* [n_groups * n_ranks] a group's ranks behind each other; copied;
                                   NULL: in another process */
    uint32_t n_groups, n_ranks; /* groups; ranks of each */
    bool joined;
    uint32_t max_rows[N_LANES];
    uint32_t max_seqs;    /* of one batch */
    struct relays relays; /* all zero: one process; borrowed */
    bool follows;         /* this process is told what to run */
    /* Of one that follows: executor.lost, and a team that has heard of the end. */
    void (*lost)(void *arg, const struct err *why);
    void (*ended)(void *arg);
    void *arg;
};

/* The forwards are borrowed. ERR_NOMEM. */
MUST_CHECK enum err_code workers_create(struct workers **out, const struct workers_config *cfg,
                                        struct err *e);
/* Teams that workers_create() makes in this process: those that have ranks here. */
uint32_t workers_n_teams(const struct workers *w);
/* No batch may be in flight; one that follows: all teams have heard of the end. */
void workers_destroy(struct workers *w);

/* The seam that the scheduler drives, but for moves; set the callbacks before the first start(). */
struct executor *workers_executor(struct workers *w);

#endif
