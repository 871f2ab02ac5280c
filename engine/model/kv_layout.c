/* kv_layout.c - the sizes and the sum of KV pages that ops.h promises; the same for every back end.
 */
#include "model/ops.h"

#include "base/hash.h"

#include <string.h>

size_t kv_latent_page_bytes(const struct model_config *c, enum latent_form f)
{
    size_t values = (size_t)c->kv_lora_rank + c->rope_dim;
    switch (f) {
    case LATENT_F32:
        return KV_PAGE_TOKENS * values * 4;
    case LATENT_BF16:
        return KV_PAGE_TOKENS * values * 2;
    default: /* e4m3 latent, a scale per LATENT_GROUP of it, the key in bf16 */
        return KV_PAGE_TOKENS *
               ((size_t)c->kv_lora_rank +
                ((size_t)c->kv_lora_rank + LATENT_GROUP - 1) / LATENT_GROUP * 4 +
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

uint64_t kv_page_sum(const void *bytes, size_t n_bytes, uint64_t first)
{
    const unsigned char *p = bytes;
    uint64_t sum = 0;
    assert(n_bytes % 8 == 0);
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        uint64_t w;
        memcpy(&w, p + 8 * i, 8);
        sum += hash_mix(w + 0x9E3779B97F4A7C15u * (first + i + 1));
    }
    return sum;
}
