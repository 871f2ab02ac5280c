/* cost.h - what a step has to do at least: multiply-adds and bytes, from the configuration alone.
 *
 * The floor that a measured time is held against. Weights are read once a step (of the experts
 * those that a step of so many rows is expected to touch), latents and index keys once per
 * sequence. Source: the specification's section on complexity. Thread: any.
 */
#ifndef GAZE_MODEL_COST_H
#define GAZE_MODEL_COST_H

#include "model/ops.h"

struct step_shape {
    uint32_t n_seqs, rows; /* rows of each sequence */
    uint32_t context;      /* tokens that each has behind it before the step */
    uint32_t n_out;        /* rows of logits in all */
    bool dense;            /* no selection */
    bool prompt;           /* rows attend in expanded form where the model's prompts do */
    double weight_bytes;   /* of one weight: 1, 2 or 4 */
    enum latent_form latent;
    enum index_form index;
};

struct step_cost {
    double flops; /* a multiply-add is two */
    double bytes;
};
struct step_cost model_step_cost(const struct model_config *c, const struct step_shape *s);

#endif
