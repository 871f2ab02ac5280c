/* kv_layout.c - the sizes of KV pages that ops.h promises; the same for every back end. */
#include "model/ops.h"

size_t kv_latent_page_bytes(const struct model_config *c, enum latent_form f)
{
    size_t values = (size_t)c->kv_lora_rank + c->rope_dim;
    switch (f) {
    case LATENT_F32:
        return KV_PAGE_TOKENS * values * 4;
    case LATENT_BF16:
        return KV_PAGE_TOKENS * values * 2;
    default: /* e4m3 latent, a scale per 128 of it, the key in bf16 */
        return KV_PAGE_TOKENS *
               ((size_t)c->kv_lora_rank + ((size_t)c->kv_lora_rank + 127) / 128 * 4 +
                (size_t)c->rope_dim * 2);
    }
}

size_t kv_index_page_bytes(const struct model_config *c, enum index_form f)
{
    if (!c->has_indexer)
        return 0;
    return KV_PAGE_TOKENS *
           (f == INDEX_EXACT ? (size_t)c->index_dim * 4 : (size_t)c->index_dim + 4);
}

size_t kv_page_bytes(const struct model_config *c, enum latent_form lf, enum index_form xf)
{
    size_t bytes = kv_latent_page_bytes(c, lf) * c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->has_indexer && c->index_full[i])
            bytes += kv_index_page_bytes(c, xf);
    return bytes;
}
