/* worker.h - the executor on a real model: a prefill worker and a decode worker, a thread and a
 * lane each.
 *
 * A worker sleeps until the scheduler starts a batch, runs it through forward.h, and gives it back.
 * Neither waits for the other. A step that ends with ERR_COMM means that a rank is lost.
 * Thread: created and destroyed by the engine's opener; start() from the scheduler's.
 */
#ifndef GAZE_EXEC_WORKER_H
#define GAZE_EXEC_WORKER_H

#include "model/forward.h"
#include "sched/batch.h"

struct workers; /* opaque */

/* fw is borrowed. max_seqs: sequences of one batch at most. ERR_NOMEM. */
MUST_CHECK enum err_code workers_create(struct workers **out, struct forward *fw,
                                        const struct ops_limits *limits, uint32_t max_seqs,
                                        struct err *e);
/* No batch may be in flight. */
void workers_destroy(struct workers *w);

/* The seam that the scheduler drives; set the callbacks before the first start(). */
struct executor *workers_executor(struct workers *w);

#endif
