/* mover.h - whole KV pages from one attention group's back end to another's: page_move, made real.
 *
 * A thread for each group that hands sequences on, so that a move takes no time from a step. Pages
 * are summed at the source, copied, and summed at the target; where the target's back end can take
 * them from the source's directly (ops.h: copy_pages) it does, else they pass through host memory,
 * a few at a time. In groups of several ranks each rank hands its pages to the one in its place in
 * the other group, and the sums of all are added up.
 *
 * Thread: created and destroyed by the engine's opener; mover_start() from the scheduler's.
 */
#ifndef GAZE_EXEC_MOVER_H
#define GAZE_EXEC_MOVER_H

#include "sched/batch.h"

struct mover; /* opaque */

struct mover_config {
    struct ops **ops; /* [n_groups * n_ranks] ranks of a group behind each other; copied */
    uint32_t n_groups, n_ranks; /* groups; ranks of each */
    size_t page_bytes;          /* of one rank: kv_page_bytes() */
    void (*moved)(void *arg, struct page_move *m);
    void *arg;
};

/* Bytes that mover_create() reserves for each group. */
size_t mover_bytes(size_t page_bytes);

/* ERR_NOMEM. */
MUST_CHECK enum err_code mover_create(struct mover **out, const struct mover_config *cfg,
                                      struct err *e);
/* No move may be out. */
void mover_destroy(struct mover *m);
/* Takes move; calls moved() from the source's thread. At most one of each source is out. */
void mover_start(struct mover *m, struct page_move *move);

#endif
