/* ranks_rig.h - a model cut over ranks, and prompts run through it chunk by chunk.
 *
 * The first group runs the prompt; where rows travel the other groups help: odd ones with no rows,
 * even ones with the same rows in pages of their own. The CPU's two functions are in the fakes; the
 * GPU's (tests/kernel/ranks_cuda.c) are linked in front of them.
 */
#ifndef GAZE_TEST_RANKS_RIG_H
#define GAZE_TEST_RANKS_RIG_H

#include "ranks.h"
#include "test.h"

struct ranks_rig_options {
    uint32_t tp, dp, ep;
    const char *placement;
    enum precision precision;
    enum latent_form latent;
    enum index_form index;
    enum expert_form expert;
    uint32_t max_rows, context;
};

/* Where ranks of tests run: fills device, ranks_per_gpu and comm, or skips the test. */
void ranks_rig_place(struct ranks_options *o);
/* bytes of a back end's memory. */
void ranks_rig_read(void *to, const void *from, size_t bytes);
void ranks_rig_write(void *to, const void *from, size_t bytes);

void ranks_rig_open(struct ranks **out, struct model_config *cfg, const char *model,
                    const struct ranks_rig_options *o);
/* Runs ids[0, n) in chunks of at most `chunk` rows in a lane; logits[(n - from), vocab] of the
 * positions from `from` on. The step's error is returned: the first rank's that has one. */
MUST_CHECK enum err_code ranks_rig_run(struct ranks *r, const struct model_config *cfg, enum lane l,
                                       const uint32_t *ids, uint32_t n, uint32_t chunk,
                                       uint32_t from, float *logits, struct err *e);

#endif
