/* forward.h - the model: the layers in order, as calls of ops.h.
 *
 * Holds one set of activation buffers per lane, so a prefill step and a decode step may run side by
 * side from two threads. Every member of the family runs through the same lines; what differs is in
 * struct model_config.
 * Thread: one per lane.
 */
#ifndef GAZE_MODEL_FORWARD_H
#define GAZE_MODEL_FORWARD_H

#include "model/ops.h"

struct forward; /* opaque */

/* Where a step's time goes. On a GPU ops are queued, so what they take shows as waiting. */
enum forward_phase {
    PHASE_PROJECT, /* embedding, norms, and the projections into and out of attention */
    PHASE_INDEX,   /* the indexer: keys, scores and the top-k */
    PHASE_ATTEND,
    PHASE_EXPERTS, /* experts, or the dense layers' feed-forward */
    PHASE_OUTPUT,  /* logits and sampling */
    PHASE_WAIT,
    N_PHASES
};
extern const char *const forward_phase_names[N_PHASES];

/* Elements of act that the buffers of both lanes take (for the memory plan). */
size_t forward_act_elements(const struct model_config *cfg, const struct ops_limits *limits);

/* o, cfg and w are borrowed and must outlive it. ERR_NOMEM. The buffers end with o->close(). */
MUST_CHECK enum err_code forward_create(struct forward **out, struct ops *o,
                                        const struct weights *w, struct err *e);
void forward_destroy(struct forward *f);

/* Runs one step in a lane: the layers, the logits of s->out_row, the chosen tokens into s->out.
 * What the back end reports is returned; the slots of the step's rows are undefined then. All ranks
 * of a group run the same step, and its first one alone writes s->out. Where rows travel to their
 * experts all ranks of the model run a step at the same time; one that has no rows runs a step of
 * none, in which it computes for the others. */
MUST_CHECK enum err_code forward_step(struct forward *f, enum lane l, const struct step *s,
                                      struct err *e);

/* The largest n_more of a step. */
uint32_t forward_max_more(const struct forward *f);

/* Microseconds of all steps so far, by lane and phase. Any thread. */
void forward_get_times(const struct forward *f, uint64_t out[N_LANES][N_PHASES]);

/* Of these, what the device had work for, by its own clock; 0 without a device. Any thread. */
uint64_t forward_device_us(const struct forward *f, enum lane l);

/* What the ops have counted so far, added: rows that each expert was given, [n_layers, n_experts],
 * of this rank's rows, or where rows travel of those that it sent; and how selections were alike,
 * [REUSE_LAYERS] (of a group's first rank alone). Either may be NULL. Any thread. Without a device
 * that is now; with one as of the end of a step, at most a second before the latest one's. */
void forward_add_counts(struct forward *f, uint64_t *rows, struct reuse_count *reuse);

/* The two halves of it, for tests that look at logits: layers() between begin and finish gives the
 * residual stream [n_rows, hidden]. */
const act *forward_layers(struct forward *f, enum lane l, const struct step *s);

#endif
