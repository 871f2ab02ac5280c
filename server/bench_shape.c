/* bench_shape.c - see bench_shape.h. */
#include "bench_shape.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const FILES[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                    "generation_config.json"};
enum { N_FILES = sizeof FILES / sizeof *FILES };

struct shape {
    const char *name;
    uint32_t n_layers, n_experts, n_group, topk_group;
    uint32_t n_heads, dense_width, expert_width,
        vocab;        /* what tensor parallel ranks have a part of */
    const char *rest; /* of config.json */
};

static const struct shape SHAPES[] = {
    {"deepseek-v3.2", 61, 256, 8, 4, 128, 18432, 2048, 129280,
     "\"model_type\": \"deepseek_v32\", \"architectures\": [\"DeepseekV32ForCausalLM\"],\n"
     "\"hidden_size\": 7168, \"first_k_dense_replace\": 3, \"moe_layer_freq\": 1,\n"
     "\"q_lora_rank\": 1536,\n"
     "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,\n"
     "\"v_head_dim\": 128, \"n_shared_experts\": 1, \"num_experts_per_tok\": 8,\n"
     "\"topk_method\": \"noaux_tc\", \"scoring_func\": \"sigmoid\", \"norm_topk_prob\": true,\n"
     "\"routed_scaling_factor\": 2.5, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000,\n"
     "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40,\n"
     " \"original_max_position_embeddings\": 4096, \"beta_fast\": 32, \"beta_slow\": 1,\n"
     " \"mscale\": 1.0, \"mscale_all_dim\": 1.0},\n"
     "\"index_n_heads\": 64, \"index_head_dim\": 128, \"index_topk\": 2048,\n"
     "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\",\n"
     " \"weight_block_size\": [128, 128], \"scale_fmt\": \"ue8m0\"}"},
    {"deepseek-v2-lite", 27, 64, 1, 1, 16, 10944, 1408, 102400,
     "\"model_type\": \"deepseek_v2\", \"architectures\": [\"DeepseekV2ForCausalLM\"],\n"
     "\"hidden_size\": 2048, \"first_k_dense_replace\": 1, \"moe_layer_freq\": 1,\n"
     "\"q_lora_rank\": null,\n"
     "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,\n"
     "\"v_head_dim\": 128, \"n_shared_experts\": 2, \"num_experts_per_tok\": 6,\n"
     "\"topk_method\": \"greedy\", \"scoring_func\": \"softmax\", \"norm_topk_prob\": false,\n"
     "\"routed_scaling_factor\": 1.0, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000,\n"
     "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40,\n"
     " \"original_max_position_embeddings\": 4096, \"beta_fast\": 32, \"beta_slow\": 1,\n"
     " \"mscale\": 0.707, \"mscale_all_dim\": 0.707}"},
};

static const struct shape *find_shape(const char *name)
{
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        if (!strcmp(SHAPES[i].name, name))
            return &SHAPES[i];
    return NULL;
}

/* Of how many ranks one has a share, of the experts and of the rest; 1: all of it. */
struct share {
    uint32_t ep, tp;
};

/* False: that is no share, or something does not divide by it. */
static bool parse_share(struct share *out, const char *text, const struct shape *s)
{
    char *end;
    *out = (struct share){1, 1};
    if (!text)
        return true;
    bool tp = !strncmp(text, "tp", 2);
    unsigned long n = tp || !strncmp(text, "ep", 2) ? strtoul(text + 2, &end, 10) : 0;
    if (n < 1 || n > s->n_experts || *end)
        return false;
    *(tp ? &out->tp : &out->ep) = (uint32_t)n;
    return tp ? s->n_heads % n == 0 && s->dense_width % n == 0 && s->expert_width % n == 0 &&
                    s->vocab % n == 0
              : s->n_experts % n == 0;
}

static bool write_config(const char *path, const struct shape *s, struct share share)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return false;
    bool whole = share.ep == 1;
    fprintf(f,
            "{\n%s,\n\"num_hidden_layers\": %u, \"n_routed_experts\": %u, \"n_group\": %u,\n"
            "\"topk_group\": %u, \"num_attention_heads\": %u, \"num_key_value_heads\": %u,\n"
            "\"intermediate_size\": %u, \"moe_intermediate_size\": %u, \"vocab_size\": %u,\n"
            "\"max_position_embeddings\": 163840, \"hidden_act\": \"silu\",\n"
            "\"attention_bias\": false, \"tie_word_embeddings\": false, \"bos_token_id\": 0,\n"
            "\"eos_token_id\": 1, \"torch_dtype\": \"bfloat16\"\n}\n",
            s->rest, s->n_layers, s->n_experts / share.ep, whole ? s->n_group : 1,
            whole ? s->topk_group : 1, s->n_heads / share.tp, s->n_heads / share.tp,
            s->dense_width / share.tp, s->expert_width / share.tp, s->vocab / share.tp);
    return fclose(f) == 0;
}

enum err_code bench_shape_make(struct bench_shape *out, const char *name, const char *share,
                               const char *tokenizer_dir, struct err *e)
{
    const struct shape *s = find_shape(name);
    struct share part;
    char path[96], from[4096], whole[4096];
    if (!s)
        return err_set(e, ERR_INVALID,
                       "model-shape: \"%.40s\" is none of deepseek-v3.2, deepseek-v2-lite", name);
    if (!parse_share(&part, share, s))
        return err_set(
            e, ERR_INVALID,
            "rank-share: \"%.40s\" is no epN with N a divisor of %u experts, nor a tpN of "
            "%u heads and a vocabulary of %u",
            share, s->n_experts, s->n_heads, s->vocab);
    *out = (struct bench_shape){.n_layers = s->n_layers};
    snprintf(out->dir, sizeof out->dir, "/tmp/gaze-shape-XXXXXX");
    if (!mkdtemp(out->dir))
        return err_set(e, ERR_IO, "%s: %s", out->dir, strerror(errno));
    bool ok = realpath(tokenizer_dir, whole) != NULL;
    for (int i = 1; i < N_FILES && ok; i++) {
        snprintf(path, sizeof path, "%s/%s", out->dir, FILES[i]);
        int n = snprintf(from, sizeof from, "%s/%s", whole, FILES[i]);
        ok = n > 0 && (size_t)n < sizeof from && symlink(from, path) == 0;
    }
    snprintf(path, sizeof path, "%s/%s", out->dir, FILES[0]);
    if (!ok || !write_config(path, s, part)) {
        err_set(e, ERR_IO, "%s: %s", out->dir, strerror(errno));
        bench_shape_remove(out);
        return e->code;
    }
    return ERR_OK;
}

void bench_shape_remove(const struct bench_shape *s)
{
    char path[96];
    for (int i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", s->dir, FILES[i]);
        (void)unlink(path);
    }
    (void)rmdir(s->dir);
}
