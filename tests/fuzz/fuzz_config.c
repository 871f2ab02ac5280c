/* fuzz_config.c - config.json of any bytes, and behind a NUL generation_config.json: refused with a
 * sentence, or all that the layers rely on holds.
 */
#include "base/log.h"
#include "model/weights.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_promises(const struct model_config *c)
{
    assert(c->n_layers >= 1 && c->n_layers <= MODEL_MAX_LAYERS && c->n_dense_layers <= c->n_layers);
    assert(c->vocab_size && c->hidden_size && c->n_heads && c->kv_lora_rank && c->max_position);
    assert(c->rope_dim % 2 == 0 && c->rope_dim / 2 <= sizeof c->rope_freq / sizeof *c->rope_freq);
    for (uint32_t i = 0; i < c->rope_dim / 2; i++)
        assert(isfinite(c->rope_freq[i]) && c->rope_freq[i] >= 0 && c->rope_freq[i] <= 1);
    assert(isfinite(c->softmax_scale) && c->softmax_scale > 0);
    assert(isfinite(c->rope_gain) && c->rope_gain > 0);
    assert(c->n_group >= 1 && c->n_group_kept >= 1 && c->n_group_kept <= c->n_group);
    if (c->n_experts) {
        assert(c->n_experts % c->n_group == 0 && c->n_shared && c->expert_width);
        assert(c->n_active >= 1 && c->n_active <= c->n_experts / c->n_group * c->n_group_kept);
    }
    if (c->has_indexer)
        assert(c->index_full[0] && c->index_dim >= c->rope_dim && c->q_lora_rank && c->index_topk);
    assert(c->n_eos >= 1 && c->n_eos <= MODEL_MAX_EOS);
    for (uint32_t i = 0; i < c->n_eos; i++)
        assert(c->eos_id[i] < c->vocab_size);
    assert(c->bos_id == UINT32_MAX || c->bos_id < c->vocab_size);
    assert(c->temperature >= 0 && c->top_p > 0 && c->top_p <= 1);
    if ((uint64_t)c->n_layers * c->n_experts < 2000) /* names are printed: more would be slow */
        assert(weights_bytes(c, DT_F8_E4M3) <= weights_bytes(c, DT_F32));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *nul = size ? memchr(text, 0, size) : NULL;
    size_t n = nul ? (size_t)(nul - text) : size;
    struct err e = {0};
    struct model_config c;
    log_set_level(LOG_OFF);
    enum err_code code =
        model_config_parse(&c, text, n, nul ? nul + 1 : NULL, nul ? size - n - 1 : 0, &e);
    if (code)
        assert(e.code == code && e.msg[0]);
    else
        check_promises(&c);
    return 0;
}
