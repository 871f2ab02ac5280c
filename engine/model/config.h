/* config.h - what a checkpoint says of itself: config.json and generation_config.json.
 *
 * One struct for the whole family; everything that differs between V2-Lite, V3, V3.2 and GLM-5's
 * DSA is a value here, so the layers are written once. Read once, then immutable.
 * Thread: any.
 */
#ifndef GAZE_MODEL_CONFIG_H
#define GAZE_MODEL_CONFIG_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MODEL_MAX_LAYERS = 128,
    MODEL_MAX_EOS = 8,
    /* Prompt rows up to this position use the expanded form where no indexer sets its own bound:
     * the published top-k, so that every model of the family changes form at the same length. */
    MODEL_EXPAND_TOKENS = 2048
};

enum model_family { MODEL_DEEPSEEK_V2, MODEL_DEEPSEEK_V3, MODEL_DEEPSEEK_V32, MODEL_GLM_DSA };

struct model_config {
    enum model_family family;
    char model_type[32]; /* as in the file */
    uint32_t vocab_size, hidden_size, n_layers;
    uint32_t n_dense_layers; /* the first ones have a plain feed-forward network */
    uint32_t dense_width;    /* intermediate_size */
    bool tie_embeddings;
    float rms_eps;
    float low_rank_eps; /* of q_a_layernorm and kv_a_layernorm: 1e-6, whatever rms_norm_eps says */

    uint32_t n_heads, q_lora_rank /* 0: plain q_proj */, kv_lora_rank;
    uint32_t nope_dim, rope_dim, v_dim; /* per head */
    float softmax_scale;                /* (nope + rope)^-1/2 * m^2 */

    uint32_t n_experts /* 0: no MoE layers */, n_active, n_shared, expert_width;
    /* Set where the model is cut over ranks (parallel.h): what this rank has of the shared experts'
     * width, and how many experts it holds. 0: all. n_experts stays what the router chooses from.
     */
    uint32_t shared_width, n_held;
    uint32_t n_group, n_group_kept; /* 1, 1: no group stage */
    bool sigmoid_router;            /* else softmax */
    bool router_bias;               /* e_score_correction_bias: selects, does not weigh */
    bool group_by_best_two;         /* a group's score: its two best (V3); else its best (V2) */
    bool norm_topk;                 /* renormalise the chosen weights */
    float routed_scale;

    bool has_indexer;
    uint32_t index_heads, index_dim, index_topk;
    bool index_rope_interleaved;
    bool index_full[MODEL_MAX_LAYERS]; /* false: the layer reuses the last full layer's selection */

    uint32_t max_position; /* tokens of context */
    uint32_t n_mtp_layers;
    /* RoPE: angle of pair i at position p is (float)p * rope_freq[i], in fp32 as the reference */
    float rope_freq[128]; /* [rope_dim / 2]; YaRN holds at all positions, short ones too */
    float rope_gain;      /* on cos and sin; 1 in all released files */
    bool fp8_blocks;      /* quantization_config: fp8, 128x128 */
    bool scale_pow2;      /* scale_fmt "ue8m0" */

    /* generation_config.json, where present; then config.json */
    uint32_t bos_id, eos_id[MODEL_MAX_EOS], n_eos; /* bos UINT32_MAX: none */
    float temperature, top_p;                      /* 1, 1 when not given */
    uint32_t top_k;                                /* 0: off */
};

/* Reads dir/config.json and, if there, dir/generation_config.json. ERR_IO; ERR_INVALID names the
 * file, the field and both numbers (also for an architecture that is not of this family). */
MUST_CHECK enum err_code model_config_read(struct model_config *out, const char *dir,
                                           struct err *e);
/* The same from the two texts (generation may be NULL); for tests and fuzzing. */
MUST_CHECK enum err_code model_config_parse(struct model_config *out, const char *config,
                                            size_t bytes, const char *generation,
                                            size_t generation_bytes, struct err *e);

/* How YaRN stretches the frequencies: those that turn more than beta_fast times within the original
 * context stay, those that turn less than beta_slow times are divided by factor. */
struct model_yarn {
    double factor, original_positions, beta_fast, beta_slow;
    bool whole_bounds; /* the ramp's ends are whole dimensions; "truncate": false gives false */
};
/* freq[rope_dim / 2] in double, before it is rounded to rope_freq; y NULL: plain RoPE. */
void model_rope_table(double *freq, uint32_t rope_dim, double theta, const struct model_yarn *y);

/* Positions below this are attended densely by a prompt row in expanded form. */
static inline uint32_t model_expand_tokens(const struct model_config *c)
{
    return c->has_indexer ? c->index_topk : (uint32_t)MODEL_EXPAND_TOKENS;
}
static inline uint32_t model_qk_dim(const struct model_config *c)
{
    return c->nope_dim + c->rope_dim;
}
/* Of the shared experts side by side. */
static inline uint32_t model_shared_width(const struct model_config *c)
{
    return c->shared_width ? c->shared_width : c->n_shared * c->expert_width;
}
static inline uint32_t model_held_experts(const struct model_config *c)
{
    return c->n_held ? c->n_held : c->n_experts;
}
static inline bool model_is_moe(const struct model_config *c, uint32_t layer)
{
    return c->n_experts && layer >= c->n_dense_layers;
}
/* Cuts depth to the first n layers (n >= 1), for timing; the MTP layers go. */
void model_config_cut(struct model_config *c, uint32_t n_layers);

#endif
