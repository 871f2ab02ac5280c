/* weights.h - a checkpoint's tensors, found, checked and arranged by layer.
 *
 * On a CPU the matrices point into the mapped files: there is no second copy of the model (except
 * of what a file does not align). A rank of several maps its own part alone: rows of a matrix are a
 * view, columns (inputs of o and of the downs) are copied side by side for the CPU, so that its
 * products read them as they read any matrix; for a GPU they stay a view with a stride, and the
 * upload packs them on the way. FP8 parts that begin within a 128 x 128 block have scales that no
 * block fits: they become fp32, exactly (no released model at 2, 4 or 8 ranks has such). Vectors
 * (norm gains, biases) are small and become fp32. All sizes are checked against the config here,
 * once, so the layers need not. Thread: built by one, then read by all.
 */
#ifndef GAZE_MODEL_WEIGHTS_H
#define GAZE_MODEL_WEIGHTS_H

#include "model/config.h"
#include "model/parallel.h"
#include "model/safetensors.h"

/* y = W x. Row-major [n_out, n_in]. FP8 values are multiplied by scale[out / 128][in / 128]. data
 * is aligned to its dtype's size and no better. */
struct matrix {
    const void *data;
    enum dtype dtype;   /* DT_F32, DT_F16, DT_BF16 or DT_F8_E4M3 */
    const float *scale; /* [ceil(n_out / 128), ceil(n_in / 128)] for FP8, else NULL */
    uint32_t n_out, n_in;
    uint32_t stride; /* values from a row to the next; 0: n_in. Else only on the way to a GPU */
};

struct ffn_weights {
    struct matrix gate, up, down;
};

struct layer_weights {
    float *input_norm, *post_norm; /* [hidden] */
    struct matrix q;               /* q_proj, when q_lora_rank is 0 */
    struct matrix q_a, q_b;
    float *q_a_norm;    /* [q_lora] */
    struct matrix kv_a; /* [kv_lora + rope, hidden]: latent rows first */
    float *kv_a_norm;   /* [kv_lora] */
    struct matrix kv_b; /* [heads * (nope + v), kv_lora]: per head W_UK then W_UV */
    struct matrix o;
    /* indexer; only where config->index_full[layer] */
    struct matrix index_q, index_k, index_w; /* wq_b, wk, weights_proj */
    float *index_norm, *index_norm_bias;     /* [index_dim] */
    /* feed-forward: `dense` in dense layers, else the rest */
    struct ffn_weights dense, shared; /* shared: n_shared experts side by side, one wide network */
    struct matrix router;             /* [n_experts, hidden] */
    float *router_bias;               /* [n_experts] or NULL */
    struct ffn_weights *expert;       /* [held experts] */
};

struct weights {
    struct safetensors *files; /* NULL for dummy weights */
    struct matrix embed, head; /* head is embed when tied */
    float *final_norm;
    struct layer_weights *layer; /* [n_layers] */
    size_t file_bytes;           /* of the tensors in use; 0 for dummy weights */
    void *owned;                 /* what weights_close() frees; opaque */
};

/* What a load tells while it works: done and total bytes. May be NULL. */
typedef void weights_progress(void *arg, size_t done_bytes, size_t total_bytes);

/* Opens, checks and (touching each page once) reads in the checkpoint of dir. Tensors that nothing
 * uses are listed at debug level. ERR_IO, ERR_INVALID (the tensor, and both shapes or numbers),
 * ERR_NOMEM. */
MUST_CHECK enum err_code weights_open(struct weights **out, const char *dir,
                                      const struct model_config *cfg, weights_progress *progress,
                                      void *arg, struct err *e);
/* The same for one rank's part of cfg, which is the whole model's; views: columns stay where they
 * lie, with a stride. share is borrowed for the call. */
MUST_CHECK enum err_code weights_open_share(struct weights **out, const char *dir,
                                            const struct model_config *cfg,
                                            const struct rank_share *share, bool views,
                                            weights_progress *progress, void *arg, struct err *e);
/* Random weights of a sane scale in the given dtype (DT_BF16 or DT_F8_E4M3), the same for a seed.
 * ERR_NOMEM. */
MUST_CHECK enum err_code weights_dummy(struct weights **out, const struct model_config *cfg,
                                       enum dtype dtype, uint64_t seed, struct err *e);
/* The same without the matrices' values: each has its type and sizes, and data and scale point at
 * 4096 bytes that nobody may read as a matrix. For a back end that makes them up in its own memory.
 */
MUST_CHECK enum err_code weights_dummy_shapes(struct weights **out, const struct model_config *cfg,
                                              enum dtype dtype, uint64_t seed, struct err *e);
/* Either for one rank's part: of its sizes, but not cut from the whole model's values. */
MUST_CHECK enum err_code weights_dummy_share(struct weights **out, const struct model_config *cfg,
                                             const struct rank_share *share, enum dtype dtype,
                                             uint64_t seed, bool shapes, struct err *e);
void weights_close(struct weights *w);

/* Bytes of parameters that weights_open() would map for cfg if every matrix had this dtype (for
 * DT_F8_E4M3: with scales, and BF16 where the family is never quantised). */
size_t weights_bytes(const struct model_config *cfg, enum dtype dtype);
size_t weights_bytes_share(const struct model_config *cfg, const struct rank_share *share,
                           enum dtype dtype);

/* The list of a model's parameters, walked once for each use: reading, inventing, counting. A walk
 * calls the source with each one's name in a checkpoint, its size and the part that is wanted; the
 * source fills *out.
 */
enum param_use {
    PARAM_LINEAR, /* a matrix that FP8 checkpoints quantise */
    PARAM_PLAIN,  /* one that stays as it was trained: embedding, head, router, weights_proj */
    PARAM_GAIN,   /* a norm's vector */
    PARAM_BIAS
};
struct weights_source {
    enum err_code (*matrix)(struct weights_source *s, const char *name, enum param_use use,
                            const struct cut *cut, struct matrix *out, struct err *e);
    enum err_code (*vector)(struct weights_source *s, const char *name, enum param_use use,
                            uint32_t n, float **out, struct err *e);
};
/* Gives a struct weights whose layer and expert tables are there, all zero, and whose memory comes
 * from weights_alloc(); close it with weights_close() also after a failed walk. */
MUST_CHECK enum err_code weights_create(struct weights **out, const struct model_config *cfg,
                                        const struct rank_share *share, struct err *e);
/* bytes that live as long as w, aligned to 16; NULL: no memory. */
void *weights_alloc(struct weights *w, size_t bytes);
/* Names lack ".weight" for matrices (their scales are called otherwise) and are whole for vectors.
 * w may be NULL: then the source is asked, and what it gives is thrown away. share NULL: whole. */
MUST_CHECK enum err_code weights_walk(struct weights *w, const struct model_config *cfg,
                                      const struct rank_share *share, struct weights_source *s,
                                      struct err *e);

#endif
