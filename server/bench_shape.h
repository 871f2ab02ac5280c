/* bench_shape.h - model folders for `gaze bench --model-shape`: a published model's dimensions, or
 * what one GPU of several holds of them, without its weights (they are made up: --load dummy).
 */
#ifndef GAZE_SERVER_BENCH_SHAPE_H
#define GAZE_SERVER_BENCH_SHAPE_H

#include "engine.h"

struct bench_shape {
    char dir[64];      /* the folder: config.json, and links to another model's tokenizer */
    uint32_t n_layers; /* of the whole model */
};

/* name: deepseek-v3.2 or deepseek-v2-lite. share: NULL, or "epN": a GPU holds 1 / N of the experts
 * and all the rest; each of its tokens takes as many experts as ever, which is what the GPU gets
 * when all N run as many tokens; or "tpN": 1 / N of heads, widths and vocabulary, and all of the
 * latents and the indexer. No bytes travel: see tests/bench/node_model.py. tokenizer_dir: whose
 * tokenizer is linked. ERR_INVALID: no such shape or share; ERR_IO. End it with
 * bench_shape_remove(). */
MUST_CHECK enum err_code bench_shape_make(struct bench_shape *out, const char *name,
                                          const char *share, const char *tokenizer_dir,
                                          struct err *e);
void bench_shape_remove(const struct bench_shape *s);

#endif
