/* golden.h - a model directory opened with chosen limits, and prompts run through it chunk by
 * chunk.
 *
 * Used by the golden and equality tests: it drives forward.h directly, with pages handed out in a
 * shuffled order, so that nothing can rely on neighbouring slots.
 */
#ifndef GAZE_TEST_GOLDEN_H
#define GAZE_TEST_GOLDEN_H

#include "cpu/cpu_ops.h"
#include "model/forward.h"
#include "test.h"

struct golden {
    struct model_config cfg;
    struct weights *weights;
    struct ops *ops;
    struct forward *forward;
    struct safetensors *expected; /* NULL when the directory has none */
    uint32_t *page;               /* block table of the one sequence */
};

struct golden_options {
    enum precision precision;
    enum latent_form latent;
    enum index_form index;
    uint32_t max_rows, n_threads, context;
};

void golden_open(struct golden *g, const char *dir, const char *expected_path,
                 const struct golden_options *o);
void golden_close(struct golden *g);

/* Runs ids[pos0, pos0 + n) as one step of a lane in chunks of at most chunk rows; calls row(arg,
 * position, logits) for each position at or after from. */
typedef void golden_row(void *arg, uint32_t pos, const float *logits);
void golden_run(struct golden *g, enum lane l, const uint32_t *ids, uint32_t pos0, uint32_t n,
                uint32_t chunk, uint32_t expand_below, uint32_t top_k, uint32_t from,
                golden_row *row, void *arg);
/* What the scheduler would give: the model's own top-k and bound of the expanded form. */
uint32_t golden_top_k(const struct golden *g);
uint32_t golden_expand(const struct golden *g);

/* A tensor of expected.safetensors, or NULL. */
const struct tensor *golden_tensor(struct golden *g, uint32_t prompt, const char *what);

#endif
