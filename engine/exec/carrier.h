/* carrier.h - moves of pages (mover.c) whose groups are in several processes: process 0 tells the
 * others which pages go where, the pages go from the process that has them straight to the one that
 * gets them, and process 0 hears the sums of both.
 *
 * Each group that prefills has a carrier in each process that has ranks of it or of a group that
 * decodes, with lines (comm/line.h) of its own: one from process 0 to each other process for what
 * is said, and one for the pages between each two processes where one may give to the other. A
 * carrier has one move out at a time.
 *
 * Ranks give one after the other, in order, in all processes, so nobody waits in a circle: who gets
 * says that it is ready, who gives sends parcels of pages, and the last one, which is empty, says
 * whether all went well. What goes wrong with pages is an error of that move, and the lines are in
 * order behind it; a line that ends is ERR_COMM, and the launch is lost.
 *
 * Ranks are numbered through: process p has the ranks [p * n_here, (p + 1) * n_here).
 *
 * Thread: a carrier is its porter's (mover.c); carriers_shut() from any.
 */
#ifndef GAZE_EXEC_CARRIER_H
#define GAZE_EXEC_CARRIER_H

#include "comm/meeting.h"
#include "sched/batch.h"

struct carrier; /* opaque; of one group that prefills */

struct carriers_config {
    struct meeting *meeting; /* borrowed for the opening */
    uint32_t process, n_processes;
    uint32_t n_groups, n_prefill, n_ranks; /* all groups; the first ones prefill; ranks of each */
    uint32_t n_pages, max_pages;           /* of a group's pool; of a move */
    uint32_t open_ms;
};
struct carriers {
    uint32_t n;          /* groups that prefill; 0: one process, or no group hands sequences on */
    struct carrier **of; /* [n]; NULL: this process has nothing to do with that group's moves */
    uint32_t process, n_processes;
};

/* All processes together. ERR_COMM: who did not come; ERR_IO, ERR_NOMEM. */
MUST_CHECK enum err_code carriers_open(struct carriers *out, const struct carriers_config *c,
                                       struct err *e);
/* Ends all lines; whoever waits at one gets ERR_COMM. */
void carriers_shut(const struct carriers *c);
/* Process 0 waits for those that carrier_end() told, for two seconds at most. */
void carriers_close(struct carriers *c);

/* The process of a rank of all. */
uint32_t carrier_process(const struct carrier *c, uint32_t rank);

/* ---- what is said ---- */

/* Process 0: m to all others that have ranks of its groups. ERR_COMM. */
MUST_CHECK enum err_code carrier_tell(struct carrier *c, const struct page_move *m, struct err *e);
/* Waits for all that were told; adds their sums to m's; where nothing went wrong here, theirs is
 * m->err. ERR_COMM: one is gone. */
MUST_CHECK enum err_code carrier_hear(struct carrier *c, struct page_move *m, struct err *e);
void carrier_end(struct carrier *c); /* no move comes any more */

/* The others. *m: the next move, whose arrays are the carrier's until the next call. *end: there is
 * none. ERR_COMM: process 0 is gone, or says what is no move. */
MUST_CHECK enum err_code carrier_next(struct carrier *c, struct page_move *m, bool *end,
                                      struct err *e);
MUST_CHECK enum err_code carrier_answer(struct carrier *c, const struct page_move *m,
                                        struct err *e);

/* ---- pages ---- */

/* Who gives waits for the other side to be ready. ERR_COMM. */
MUST_CHECK enum err_code carrier_await(struct carrier *c, uint32_t process, uint32_t rank,
                                       struct err *e);
/* A parcel of n pages, from number `first` of the move on, page_bytes each; n = 0: the last one,
 * and what went wrong (ERR_OK: nothing). ERR_COMM. */
MUST_CHECK enum err_code carrier_give(struct carrier *c, uint32_t process, uint32_t first,
                                      uint32_t n, const void *bytes, size_t page_bytes,
                                      const struct err *why, struct err *e);
/* Who gets. */
MUST_CHECK enum err_code carrier_ready(struct carrier *c, uint32_t process, uint32_t rank,
                                       struct err *e);
/* The next parcel, of at most max_n pages; *n = 0: the last one, and *why. ERR_COMM. */
MUST_CHECK enum err_code carrier_take(struct carrier *c, uint32_t process, uint32_t *first,
                                      uint32_t *n, void *bytes, size_t page_bytes, uint32_t max_n,
                                      struct err *why, struct err *e);

#endif
