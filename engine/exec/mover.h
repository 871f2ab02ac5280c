/* mover.h - whole KV pages from one attention group's back end to another's: page_move, made real.
 *
 * A thread for each group that hands sequences on, so that a move takes no time from a step. Pages
 * are summed at the source, copied, and summed at the target; where the target's back end can take
 * them from the source's directly (ops.h: copy_pages) it does, else they pass through host memory,
 * a few at a time. In groups of several ranks each rank hands its pages to the one in its place in
 * the other group, and the sums of all are added up.
 *
 * Ranks may be in several processes: then each has a mover, which does what its own ranks have to
 * do with a move; process 0 starts moves and tells the others (carrier.h).
 *
 * Thread: created and destroyed by the engine's opener; mover_start() from the scheduler's.
 */
#ifndef GAZE_EXEC_MOVER_H
#define GAZE_EXEC_MOVER_H

#include "exec/carrier.h"

struct mover; /* opaque */

struct mover_config {
    struct ops **ops; /* [n_groups * n_ranks] ranks of a group behind each other; copied; NULL: in
                         another process */
    uint32_t n_groups, n_prefill, n_ranks; /* groups; the first ones hand on; ranks of each */
    size_t page_bytes;                     /* of one rank: kv_page_bytes() */
    const struct carriers *carriers;       /* NULL: one process; borrowed */
    bool follows;                          /* this process is told what to move */
    void (*moved)(void *arg, struct page_move *m);
    void (*lost)(void *arg, const struct err *why); /* another process is gone; see executor.lost */
    void *arg;
};

/* Bytes that mover_create() reserves for each group that hands on. */
size_t mover_bytes(size_t page_bytes);

/* ERR_NOMEM. */
MUST_CHECK enum err_code mover_create(struct mover **out, const struct mover_config *cfg,
                                      struct err *e);
/* No move may be out. Process 0 tells the others of the end; they wait until they have heard. */
void mover_destroy(struct mover *m);
/* Takes move; calls moved() from the source's thread. At most one of each source is out. */
void mover_start(struct mover *m, struct page_move *move);

#endif
