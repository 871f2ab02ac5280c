/* batch.h - what runs in one step: the seam between the scheduler and the workers.
 *
 * The scheduler fills a batch and starts it; the executor runs it in its lane and gives it back
 * with the results, from a thread of its own. At most one batch per lane is in flight, and a
 * sequence is in one batch at a time. Pointers into sequences stay valid while the batch is out.
 *
 * The real executor is exec/worker.h; tests put fakes here and need no model.
 */
#ifndef GAZE_SCHED_BATCH_H
#define GAZE_SCHED_BATCH_H

#include "base/mailbox.h"
#include "model/ops.h"

struct batch_seq {
    uint32_t seq_slot; /* the scheduler's own mark */
    uint32_t row0, n_tokens, pos0;
    const uint32_t *token; /* [n_tokens] */
    const uint32_t *page;  /* block table */
    uint32_t top_k;        /* TOP_K_DENSE, or how many positions a row selects */
    uint32_t expand_below; /* positions below attend in expanded form; 0 for decode rows */
    uint32_t out0, n_out;  /* its results: batch->out[out0, out0 + n_out) */
};

struct batch {
    struct mail mail;
    uint32_t mail_kind; /* the scheduler thread's mailbox tells messages apart by it */
    enum lane lane;
    uint32_t n_seqs, max_seqs;
    struct batch_seq *seq; /* [max_seqs] */
    uint32_t n_rows;
    uint32_t n_out, max_out;
    uint32_t *out_row;         /* [max_out] row of the step, ascending */
    struct sample_row *sample; /* [max_out] */
    struct sample_out *out;    /* [max_out] filled by the executor */
    uint64_t start_us, end_us; /* of the step, by the executor */
    struct err err;            /* ERR_OK, or why the step failed: its sequences end with it */
};

struct executor {
    void *self;
    /* Takes b; runs it; calls done(done_arg, b) from another thread (or later, in a fake). */
    void (*start)(void *self, struct batch *b);
    void (*done)(void *done_arg, struct batch *b);
    void *done_arg;
};

#endif
