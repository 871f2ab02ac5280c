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
 * A step that ends with ERR_COMM on any rank means that a rank is lost.
 * Thread: created and destroyed by the engine's opener; start() from the scheduler's.
 */
#ifndef GAZE_EXEC_WORKER_H
#define GAZE_EXEC_WORKER_H

#include "model/forward.h"
#include "sched/batch.h"

struct workers; /* opaque */

struct workers_config {
    struct forward **forward;   /* [n_groups * n_ranks] a group's ranks behind each other; copied */
    uint32_t n_groups, n_ranks; /* groups; ranks of each */
    bool joined;
    uint32_t max_rows[N_LANES];
    uint32_t max_seqs; /* of one batch */
};

/* The forwards are borrowed. ERR_NOMEM. */
MUST_CHECK enum err_code workers_create(struct workers **out, const struct workers_config *cfg,
                                        struct err *e);
/* No batch may be in flight. */
void workers_destroy(struct workers *w);

/* The seam that the scheduler drives, but for moves; set the callbacks before the first start(). */
struct executor *workers_executor(struct workers *w);

#endif
