/* batch.h - what runs in one step: the seam between the scheduler and the workers.
 *
 * The scheduler fills a batch and starts it; the executor runs it in its lane and gives it back
 * with the results, from a thread of its own. At most one batch per (group, lane) is in flight, and
 * a sequence is in one batch at a time. Pointers into sequences stay valid while the batch is out.
 *
 * An attention group is a set of ranks that hold the same KV pages (a single GPU or CPU is a group
 * of one); page ids are the group's own. Where one group prefills and another decodes, a sequence's
 * pages go over by a page_move: at most one per source group is out, and neither its source pages
 * nor its target pages are in any batch that writes meanwhile.
 *
 * The real executor is exec/worker.h; tests put fakes here and need no model.
 */
#ifndef GAZE_SCHED_BATCH_H
#define GAZE_SCHED_BATCH_H

#include "base/mailbox.h"
#include "model/ops.h"

/* What stands behind the mail of everything that an executor gives back. */
enum work_kind { WORK_BATCH, WORK_MOVE };
struct work {
    struct mail mail;
    enum work_kind kind;
};

struct batch_seq {
    uint32_t seq_slot; /* the scheduler's own mark */
    uint32_t run;      /* the sequence's own number; not 0 */
    uint32_t row0, n_tokens, pos0;
    const uint32_t *token; /* [n_tokens] */
    const uint32_t *page;  /* block table */
    uint32_t top_k;        /* TOP_K_DENSE, or how many positions a row selects */
    uint32_t expand_below; /* positions below attend in expanded form; 0 for decode rows */
    uint32_t out0, n_out;  /* its results: batch->out[out0, out0 + n_out) */
};

struct batch {
    struct work work; /* WORK_BATCH */
    uint32_t group;
    enum lane lane;
    uint32_t n_seqs, max_seqs;
    struct batch_seq *seq; /* [max_seqs] */
    uint32_t n_rows;
    uint32_t n_out, max_out;
    uint32_t *out_row;         /* [max_out] row of the step, ascending */
    struct sample_row *sample; /* [max_out] */
    struct sample_out *out;    /* [max_out] filled by the executor, pass by pass */
    uint32_t n_more;           /* passes that follow by themselves: ops.h, struct step */
    uint64_t start_us, end_us; /* of the step, by the executor */
    struct err err;            /* ERR_OK, or why the step failed: its sequences end with it */
};

/* Whole pages, all layers and both planes, from one group's pool to another's. The executor copies
 * them and fills both sums: of each page as it was read at the source, and as it lies at the target
 * (ops.h says how a page is summed; where a group has several ranks, the sum of theirs). It does
 * not compare them: the scheduler does, and nothing runs on a page whose two sums differ. */
struct page_move {
    struct work work;        /* WORK_MOVE */
    uint32_t source, target; /* groups; not the same one */
    uint32_t seq_slot;       /* the scheduler's own mark */
    uint32_t n_pages, max_pages;
    const uint32_t *from, *to;   /* [n_pages] ids in the source's and in the target's pool */
    uint64_t *sum_from, *sum_to; /* [max_pages] filled by the executor */
    uint64_t start_us, end_us;   /* by the executor */
    struct err err; /* ERR_OK, or why it failed: the target pages are undefined, the source's as
                       they were */
};

struct executor {
    void *self;
    uint32_t max_more; /* of a batch of single rows; 0: it cannot go on by itself */
    /* Takes b; runs it; calls done(done_arg, b) from another thread (or later, in a fake). */
    void (*start)(void *self, struct batch *b);
    /* Likewise; calls moved(done_arg, m). NULL where no group hands sequences to another. */
    void (*move)(void *self, struct page_move *m);
    void (*done)(void *done_arg, struct batch *b);
    void (*moved)(void *done_arg, struct page_move *m);
    /* Called by the executor, from any thread and at any time, when a rank is lost: no step of its
     * group will succeed any more, and those that are out may never come back. why is borrowed. */
    void (*lost)(void *done_arg, const struct err *why);
    void *done_arg;
};

#endif
