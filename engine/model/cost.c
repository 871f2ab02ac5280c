/* cost.c - see cost.h. */
#include "model/cost.h"

#include <math.h>

/* Sum over a sequence's rows of how many positions each attends to. */
static double visible(const struct step_shape *s, double top_k)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->rows; i++) {
        double n = (double)s->context + i + 1;
        sum += n < top_k ? n : top_k;
    }
    return sum;
}

static double attention_weights(const struct model_config *c)
{
    double q = (double)c->n_heads * model_qk_dim(c), h = c->hidden_size;
    double low = c->q_lora_rank ? c->q_lora_rank * (h + q) : h * q;
    double kv = h * (c->kv_lora_rank + c->rope_dim) +
                (double)c->kv_lora_rank * c->n_heads * (c->nope_dim + c->v_dim);
    return low + kv + (double)c->n_heads * c->v_dim * h;
}

static double indexer_weights(const struct model_config *c)
{
    return (double)c->q_lora_rank * c->index_heads * c->index_dim +
           (double)c->hidden_size * (c->index_dim + c->index_heads);
}

struct step_cost model_step_cost(const struct model_config *c, const struct step_shape *s)
{
    double rows = (double)s->n_seqs * s->rows, macs = 0, weights = 0, cache = 0;
    double top_k = c->has_indexer && !s->dense ? (double)c->index_topk : (double)INFINITY,
           seen = visible(s, top_k);
    double latent = (double)kv_latent_page_bytes(c, s->latent) / KV_PAGE_TOKENS;
    double key = c->has_indexer ? (double)kv_index_page_bytes(c, s->index) / KV_PAGE_TOKENS : 0;
    bool selects = c->has_indexer && !s->dense && s->context + s->rows > c->index_topk;
    bool expanded = s->prompt && s->context + s->rows <= model_expand_tokens(c);
    /* per head and position: 192 + 128 expanded, 576 + 512 absorbed, at the published sizes */
    double per_pair = c->n_heads * (expanded ? model_qk_dim(c) + c->v_dim + 0.0
                                             : 2.0 * c->kv_lora_rank + c->rope_dim);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        double here = attention_weights(c);
        if (c->has_indexer && c->index_full[i])
            here += indexer_weights(c);
        macs += rows * here + s->n_seqs * seen * per_pair;
        if (selects && c->index_full[i]) {
            macs += s->n_seqs * visible(s, (double)INFINITY) * c->index_heads * c->index_dim;
            cache += s->n_seqs * ((double)s->context + s->rows) * key;
        }
        double span = (double)s->context + s->rows, most = seen < span ? seen : span;
        cache += s->n_seqs * most * latent;
        if (!model_is_moe(c, i)) {
            double ffn = 3.0 * c->hidden_size * c->dense_width;
            macs += rows * ffn;
            weights += here + ffn;
            continue;
        }
        double expert = 3.0 * c->hidden_size * c->expert_width;
        double touched = c->n_experts * (1 - pow(1 - (double)c->n_active / c->n_experts, rows));
        macs +=
            rows * (expert * (c->n_active + c->n_shared) + (double)c->n_experts * c->hidden_size);
        weights += here + expert * (touched + c->n_shared) + (double)c->n_experts * c->hidden_size;
    }
    if (s->n_out) {
        double head = (double)c->vocab_size * c->hidden_size;
        macs += s->n_out * head;
        weights += head;
    }
    return (struct step_cost){.flops = 2 * macs, .bytes = weights * s->weight_bytes + cache};
}
