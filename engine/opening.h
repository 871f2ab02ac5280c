/* opening.h - from options to a model that can run: what an engine, and a process that follows
 * another one's engine, begin with. Private to engine/.
 *
 * Thread: started and ended by one.
 */
#ifndef GAZE_OPENING_H
#define GAZE_OPENING_H

#include "comm/launch.h"
#include "comm/meeting.h"
#include "exec/mover.h"
#include "exec/worker.h"
#include "plan.h"
#include "ranks.h"

struct opening {
    struct engine_options options; /* as given, and then as decided */
    struct launch launch;
    struct meeting *meeting; /* NULL: one process */
    struct model_config cfg;
    struct plan_detail detail;
    struct tokenizer *tok;
    const struct chat_format *format;
    struct ranks *ranks;
    struct relays relays;
    struct carriers carriers;
    char fingerprint[24]; /* of process 0 */
};

/* *m is all zero. With a launcher's environment all processes of it do this together. lost: from a
 * thread of the meeting's, once, when a process is lost. On an error opening_fail() and
 * opening_end() are left to do. ERR_INVALID, ERR_IO, ERR_NOMEM, ERR_CUDA, ERR_COMM. */
MUST_CHECK enum err_code opening_start(struct opening *m, const struct engine_options *o,
                                       void (*lost)(void *arg, const struct err *why), void *arg,
                                       struct err *e);
void opening_end(struct opening *m);
/* The other processes learn that this one does not come up, and why; before opening_end(). */
void opening_fail(const struct opening *m, const struct err *why);

/* Which process of how many this is; one of one where the ranks are not shared. */
MUST_CHECK enum err_code opening_launch(struct launch *out, const struct engine_options *o,
                                        struct err *e);
/* How long a step may be out; 0: for ever. */
uint32_t opening_step_limit_s(const struct engine_options *o);
/* For the ranks that are here. forward: [PARALLEL_MAX_RANKS], the caller's, which it points at. */
struct workers_config opening_workers(const struct opening *m, struct forward **forward);
/* Likewise; ops: as many. Without callbacks. */
struct mover_config opening_mover(const struct opening *m, struct ops **ops);
/* What the ranks here have counted: engine.h, engine_get_expert_rows(),
 * engine_get_selection_reuse().
 */
void opening_expert_rows(const struct opening *m, uint64_t *rows);
void opening_selection_reuse(const struct opening *m, struct reuse_count *count);

#endif
