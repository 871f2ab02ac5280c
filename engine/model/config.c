/* config.c - see config.h.
 *
 * Every number is bounded here, and those that must agree are compared, so that sizes computed from
 * them later neither overflow nor disagree with each other.
 */
#include "model/config.h"

#include "base/json.h"
#include "base/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_VOCAB = 1 << 22,
    MAX_WIDTH = 1 << 20, /* of hidden states and feed-forward networks */
    MAX_HIDDEN = 1 << 16,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 4096,
    MAX_ROPE_DIM = 256, /* twice rope_freq's length */
    MAX_EXPERTS = 4096,
    MAX_ACTIVE = 64,
    MAX_SHARED = 64,
    MAX_POSITION = 1 << 24 /* fp32 holds every position below */
};

static const struct {
    const char *architecture, *model_type;
    enum model_family family;
} known[] = {
    {"DeepseekV2ForCausalLM", "deepseek_v2", MODEL_DEEPSEEK_V2},
    {"DeepseekV3ForCausalLM", "deepseek_v3", MODEL_DEEPSEEK_V3},
    {"DeepseekV3ForCausalLM", "kimi_k2", MODEL_DEEPSEEK_V3},
    {"DeepseekV32ForCausalLM", "deepseek_v32", MODEL_DEEPSEEK_V32},
    {"GlmMoeDsaForCausalLM", "glm_moe_dsa", MODEL_GLM_DSA},
};
enum { N_KNOWN = sizeof known / sizeof *known };

static bool present(const cJSON *o, const char *key)
{
    const cJSON *m = json_get(o, key);
    return m && !cJSON_IsNull(m);
}

static enum err_code need_u32(const cJSON *o, const char *key, uint32_t min, uint32_t max,
                              uint32_t *out, struct err *e)
{
    if (!present(o, key))
        return err_set(e, ERR_INVALID, "%s: missing", key);
    return json_get_u32(o, key, min, max, out, e);
}

static enum err_code get_f32(const cJSON *o, const char *key, double min, double max, float *out,
                             struct err *e)
{
    double v = (double)*out;
    if (json_get_f64(o, key, min, max, &v, e))
        return e->code;
    *out = (float)v;
    return ERR_OK;
}

/* A string that must be one certain word where it is given. */
static enum err_code only_str(const cJSON *o, const char *key, const char *word, struct err *e)
{
    const char *s = word;
    if (json_get_str(o, key, &s, e))
        return e->code;
    if (strcmp(s, word) != 0)
        return err_set(e, ERR_INVALID, "%s: \"%.60s\" is not supported, only \"%s\"", key, s, word);
    return ERR_OK;
}

static enum err_code only_false(const cJSON *o, const char *key, struct err *e)
{
    bool v = false;
    if (json_get_bool(o, key, &v, e))
        return e->code;
    return v ? err_set(e, ERR_INVALID, "%s: true is not supported", key) : ERR_OK;
}

static enum err_code read_family(struct model_config *c, const cJSON *o, struct err *e)
{
    const char *type = NULL, *arch = NULL;
    const cJSON *list = json_get(o, "architectures");
    if (json_get_str(o, "model_type", &type, e))
        return e->code;
    if (list && !cJSON_IsNull(list)) {
        if (!cJSON_IsArray(list) || !cJSON_IsString(list->child))
            return err_set(e, ERR_INVALID, "architectures: must be a list of strings");
        arch = list->child->valuestring;
    }
    if (!type && !arch)
        return err_set(e, ERR_INVALID, "neither architectures nor model_type is there");
    for (size_t i = 0; i < N_KNOWN; i++) {
        if ((type && strcmp(type, known[i].model_type) != 0) ||
            (arch && strcmp(arch, known[i].architecture) != 0))
            continue;
        c->family = known[i].family;
        snprintf(c->model_type, sizeof c->model_type, "%s", type ? type : known[i].model_type);
        return ERR_OK;
    }
    return err_set(e, ERR_INVALID,
                   "architecture %.60s with model_type %.60s is not of this family (deepseek_v2, "
                   "deepseek_v3, kimi_k2, deepseek_v32, glm_moe_dsa)",
                   arch ? arch : "(none)", type ? type : "(none)");
}

static enum err_code read_sizes(struct model_config *c, const cJSON *o, struct err *e)
{
    c->rms_eps = 1e-6f;
    c->low_rank_eps = 1e-6f;
    if (need_u32(o, "vocab_size", 1, MAX_VOCAB, &c->vocab_size, e) ||
        need_u32(o, "hidden_size", 1, MAX_HIDDEN, &c->hidden_size, e) ||
        need_u32(o, "num_hidden_layers", 1, MODEL_MAX_LAYERS, &c->n_layers, e) ||
        need_u32(o, "max_position_embeddings", 1, MAX_POSITION, &c->max_position, e) ||
        json_get_u32(o, "num_nextn_predict_layers", 0, 16, &c->n_mtp_layers, e) ||
        json_get_bool(o, "tie_word_embeddings", &c->tie_embeddings, e) ||
        get_f32(o, "rms_norm_eps", 1e-12, 1, &c->rms_eps, e) ||
        only_str(o, "hidden_act", "silu", e))
        return e->code;
    if (need_u32(o, "num_attention_heads", 1, MAX_HEADS, &c->n_heads, e) ||
        json_get_u32(o, "q_lora_rank", 0, MAX_HIDDEN, &c->q_lora_rank, e) ||
        need_u32(o, "kv_lora_rank", 1, MAX_HIDDEN, &c->kv_lora_rank, e) ||
        need_u32(o, "qk_nope_head_dim", 1, MAX_HEAD_DIM, &c->nope_dim, e) ||
        need_u32(o, "qk_rope_head_dim", 2, MAX_ROPE_DIM, &c->rope_dim, e) ||
        need_u32(o, "v_head_dim", 1, MAX_HEAD_DIM, &c->v_dim, e) ||
        only_false(o, "attention_bias", e))
        return e->code;
    if (c->rope_dim % 2)
        return err_set(e, ERR_INVALID, "qk_rope_head_dim: %u is odd", c->rope_dim);
    return ERR_OK;
}

/* mlp_layer_types says the same as first_k_dense_replace, layer by layer, and wins over it. */
static enum err_code read_dense_layers(struct model_config *c, const cJSON *o, struct err *e)
{
    const cJSON *list = json_get(o, "mlp_layer_types");
    if (!list || cJSON_IsNull(list))
        return need_u32(o, "first_k_dense_replace", 0, c->n_layers, &c->n_dense_layers, e);
    if (!cJSON_IsArray(list))
        return err_set(e, ERR_INVALID, "mlp_layer_types: must be a list");
    uint32_t i = 0;
    for (const cJSON *m = list->child; m; m = m->next, i++) {
        const char *s = cJSON_IsString(m) ? m->valuestring : "";
        bool dense = strcmp(s, "dense") == 0;
        if (!dense && strcmp(s, "sparse") != 0)
            return err_set(e, ERR_INVALID,
                           "mlp_layer_types: entry %u is neither \"dense\" nor \"sparse\"", i);
        if (dense && c->n_dense_layers < i)
            return err_set(e, ERR_INVALID,
                           "mlp_layer_types: layer %u is dense after layer %u was not", i,
                           c->n_dense_layers);
        c->n_dense_layers += dense;
    }
    if (i != c->n_layers)
        return err_set(e, ERR_INVALID, "mlp_layer_types: %u entries for %u layers", i, c->n_layers);
    return ERR_OK;
}

static enum err_code read_router(struct model_config *c, const cJSON *o, struct err *e)
{
    bool v2 = c->family == MODEL_DEEPSEEK_V2;
    const char *method = v2 ? "greedy" : "noaux_tc";
    bool norm = true, given_norm = present(o, "norm_topk_prob");
    c->n_group = c->n_group_kept = 1;
    c->routed_scale = 1;
    c->sigmoid_router = !v2;
    c->router_bias = !v2;
    c->group_by_best_two = !v2;
    if (json_get_str(o, "topk_method", &method, e) ||
        only_str(o, "scoring_func", v2 ? "softmax" : "sigmoid", e) ||
        json_get_u32(o, "n_group", 1, c->n_experts, &c->n_group, e) ||
        json_get_u32(o, "topk_group", 1, c->n_experts, &c->n_group_kept, e) ||
        json_get_bool(o, "norm_topk_prob", &norm, e) ||
        get_f32(o, "routed_scaling_factor", 1e-6, 1e6, &c->routed_scale, e))
        return e->code;
    bool greedy = v2 && strcmp(method, "greedy") == 0;
    if (!greedy && strcmp(method, v2 ? "group_limited_greedy" : "noaux_tc") != 0)
        return err_set(e, ERR_INVALID, "topk_method: \"%.60s\" is not supported, only %s", method,
                       v2 ? "\"greedy\" and \"group_limited_greedy\"" : "\"noaux_tc\"");
    if (greedy) /* looks at all experts at once, whatever the file says of groups */
        c->n_group = c->n_group_kept = 1;
    /* The V2 reference never renormalises; its released files say false. */
    c->norm_topk = !v2 && norm;
    if (v2 && given_norm && norm)
        log_warn("config", "norm_topk_prob=true ignored model_type=%s", c->model_type);
    if (c->n_experts % c->n_group)
        return err_set(e, ERR_INVALID, "n_routed_experts: %u cannot be split into n_group %u",
                       c->n_experts, c->n_group);
    if (c->n_group_kept > c->n_group)
        return err_set(e, ERR_INVALID, "topk_group: %u is more than n_group %u", c->n_group_kept,
                       c->n_group);
    uint32_t per_group = c->n_experts / c->n_group;
    if (c->group_by_best_two && c->n_group > 1 && per_group < 2)
        return err_set(e, ERR_INVALID, "n_group: %u groups of %u expert have no two best each",
                       c->n_group, per_group);
    if (c->n_active > c->n_group_kept * per_group)
        return err_set(e, ERR_INVALID,
                       "num_experts_per_tok: %u is more than the %u experts of topk_group %u",
                       c->n_active, c->n_group_kept * per_group, c->n_group_kept);
    return ERR_OK;
}

static enum err_code read_feed_forward(struct model_config *c, const cJSON *o, struct err *e)
{
    uint32_t freq = 1;
    if (json_get_u32(o, "n_routed_experts", 0, MAX_EXPERTS, &c->n_experts, e))
        return e->code;
    if (!c->n_experts) {
        c->n_group = c->n_group_kept = 1;
        c->n_dense_layers = c->n_layers;
        return need_u32(o, "intermediate_size", 1, MAX_WIDTH, &c->dense_width, e);
    }
    if (read_dense_layers(c, o, e) || json_get_u32(o, "moe_layer_freq", 1, 1, &freq, e) ||
        need_u32(o, "num_experts_per_tok", 1, MAX_ACTIVE, &c->n_active, e) ||
        need_u32(o, "n_shared_experts", 1, MAX_SHARED, &c->n_shared, e) ||
        need_u32(o, "moe_intermediate_size", 1, MAX_WIDTH, &c->expert_width, e))
        return e->code;
    if (c->n_active > c->n_experts)
        return err_set(e, ERR_INVALID, "num_experts_per_tok: %u is more than n_routed_experts %u",
                       c->n_active, c->n_experts);
    if (c->n_shared * (uint64_t)c->expert_width > MAX_WIDTH)
        return err_set(e, ERR_INVALID,
                       "n_shared_experts: %u of moe_intermediate_size %u are wider than %d",
                       c->n_shared, c->expert_width, (int)MAX_WIDTH);
    if (c->n_dense_layers && need_u32(o, "intermediate_size", 1, MAX_WIDTH, &c->dense_width, e))
        return e->code;
    return read_router(c, o, e);
}

/* m(F, a) of the YaRN paper's attention temperature. */
static double yarn_m(double factor, double a)
{
    return factor > 1 ? 0.1 * a * log(factor) + 1 : 1;
}

/* The dimension that turns `turns` times within the original context. */
static double yarn_dim(uint32_t rope_dim, double theta, double original, double turns)
{
    return rope_dim * log(original / (2 * M_PI * turns)) / (2 * log(theta));
}

void model_rope_table(double *freq, uint32_t rope_dim, double theta, const struct model_yarn *y)
{
    double lo = 0, hi = 0;
    if (y) {
        lo = yarn_dim(rope_dim, theta, y->original_positions, y->beta_fast);
        hi = yarn_dim(rope_dim, theta, y->original_positions, y->beta_slow);
        lo = fmax(y->whole_bounds ? floor(lo) : lo, 0);
        hi = fmin(y->whole_bounds ? ceil(hi) : hi, rope_dim - 1.0);
    }
    for (uint32_t i = 0; i < rope_dim / 2; i++) {
        freq[i] = pow(theta, -2.0 * i / rope_dim);
        if (!y)
            continue;
        double ramp = fmin(fmax((i - lo) / fmax(hi - lo, 0.001), 0), 1);
        freq[i] = freq[i] * (1 - ramp) + freq[i] / y->factor * ramp;
    }
}

static enum err_code read_yarn(struct model_yarn *y, double *gain, double *m, const cJSON *o,
                               struct err *e)
{
    double mscale = 0, mscale_all_dim = 0;
    *y = (struct model_yarn){.beta_fast = 32, .beta_slow = 1, .whole_bounds = true};
    if (!present(o, "factor"))
        return err_set(e, ERR_INVALID, "factor: missing");
    if (!present(o, "original_max_position_embeddings"))
        return err_set(e, ERR_INVALID, "original_max_position_embeddings: missing");
    if (json_get_f64(o, "factor", 1, 1e6, &y->factor, e) ||
        json_get_f64(o, "original_max_position_embeddings", 1, MAX_POSITION, &y->original_positions,
                     e) ||
        json_get_f64(o, "beta_fast", 1e-6, 1e6, &y->beta_fast, e) ||
        json_get_f64(o, "beta_slow", 1e-6, 1e6, &y->beta_slow, e) ||
        json_get_bool(o, "truncate", &y->whole_bounds, e) ||
        json_get_f64(o, "mscale", 0, 100, &mscale, e) ||
        json_get_f64(o, "mscale_all_dim", 0, 100, &mscale_all_dim, e))
        return e->code;
    *gain = mscale > 0 && mscale_all_dim > 0
                ? yarn_m(y->factor, mscale) / yarn_m(y->factor, mscale_all_dim)
                : yarn_m(y->factor, 1);
    if (json_get_f64(o, "attention_factor", 1e-3, 1e3, gain, e))
        return e->code;
    *m = yarn_m(y->factor, mscale_all_dim);
    return ERR_OK;
}

/* Two spellings: rope_parameters with all in it, or rope_scaling beside rope_theta. */
static enum err_code read_rope(struct model_config *c, const cJSON *o, struct err *e)
{
    bool newer = present(o, "rope_parameters");
    const char *where = newer ? "rope_parameters" : "rope_scaling";
    const cJSON *r = present(o, where) ? json_get(o, where) : NULL;
    const char *type = "default";
    double theta = 10000, gain = 1, m = 1;
    bool interleaved = true;
    if (json_get_bool(o, "rope_interleave", &interleaved, e))
        return e->code;
    if (!interleaved) /* its weights would be stored in another order */
        return err_set(e, ERR_INVALID, "rope_interleave: false is not supported");
    if (r && !cJSON_IsObject(r))
        return err_set(e, ERR_INVALID, "%s: must be an object or null", where);
    if (newer && !present(r, "rope_theta") && !present(o, "rope_theta"))
        return err_set(e, ERR_INVALID, "rope_parameters: rope_theta: missing");
    if (json_get_f64(o, "rope_theta", 2, 1e12, &theta, e))
        return e->code;
    if (r && (json_get_f64(r, "rope_theta", 2, 1e12, &theta, e) ||
              json_get_str(r, "type", &type, e) || json_get_str(r, "rope_type", &type, e)))
        return err_prefix(e, "%s", where);
    bool yarn = strcmp(type, "yarn") == 0;
    if (!yarn && strcmp(type, "default") != 0)
        return err_set(e, ERR_INVALID,
                       "%s: rope type \"%.60s\" is not supported, only \"default\" and \"yarn\"",
                       where, type);
    struct model_yarn y;
    if (yarn && read_yarn(&y, &gain, &m, r, e))
        return err_prefix(e, "%s", where);
    double freq[MAX_ROPE_DIM / 2];
    model_rope_table(freq, c->rope_dim, theta, yarn ? &y : NULL);
    for (uint32_t i = 0; i < c->rope_dim / 2; i++)
        c->rope_freq[i] = (float)freq[i];
    c->rope_gain = (float)gain;
    c->softmax_scale = (float)(m * m / sqrt(model_qk_dim(c)));
    return ERR_OK;
}

/* One word of a schedule: full or shared. Anything else is refused by the caller. */
static bool schedule_word(const char *s, bool *full)
{
    *full = strcmp(s, "full") == 0 || strcmp(s, "F") == 0;
    return *full || strcmp(s, "shared") == 0 || strcmp(s, "S") == 0;
}

/* A list of words or a string of letters, one for each layer (and maybe for the MTP layers, which
 * always have their own indexer: those are passed over). */
static enum err_code read_schedule(struct model_config *c, const cJSON *list, const char *key,
                                   struct err *e)
{
    const char *letters = cJSON_IsString(list) ? list->valuestring : NULL;
    if (!letters && !cJSON_IsArray(list))
        return err_set(e, ERR_INVALID, "%s: must be a list or a string", key);
    const cJSON *m = letters ? NULL : list->child;
    uint32_t n = 0;
    for (; letters ? letters[n] != '\0' : m != NULL; n++) {
        char letter[2] = {letters ? letters[n] : '\0', '\0'};
        const char *s = letters ? letter : cJSON_IsString(m) ? m->valuestring : "";
        bool full = false;
        if (!schedule_word(s, &full))
            return err_set(e, ERR_INVALID, "%s: entry %u (\"%.20s\") is neither full nor shared",
                           key, n, s);
        if (n < c->n_layers)
            c->index_full[n] = full;
        m = m ? m->next : NULL;
    }
    if (n != c->n_layers && n != c->n_layers + c->n_mtp_layers)
        return err_set(e, ERR_INVALID, "%s: %u entries for %u layers", key, n, c->n_layers);
    return ERR_OK;
}

static enum err_code read_indexer(struct model_config *c, const cJSON *o, struct err *e)
{
    if (c->family != MODEL_DEEPSEEK_V32 && c->family != MODEL_GLM_DSA) {
        if (present(o, "index_topk"))
            log_warn("config", "index_topk ignored model_type=%s", c->model_type);
        return ERR_OK;
    }
    bool glm = c->family == MODEL_GLM_DSA;
    uint32_t freq = 1, offset = 2;
    c->has_indexer = true;
    c->index_heads = glm ? 32 : 64;
    c->index_dim = 128;
    c->index_topk = 2048;
    c->index_rope_interleaved = glm;
    if (json_get_u32(o, "index_n_heads", 1, MAX_HEADS, &c->index_heads, e) ||
        json_get_u32(o, "index_head_dim", 1, MAX_HEAD_DIM, &c->index_dim, e) ||
        json_get_u32(o, "index_topk", 1, MAX_POSITION, &c->index_topk, e) ||
        json_get_bool(o, "indexer_rope_interleave", &c->index_rope_interleaved, e) ||
        json_get_u32(o, "index_topk_freq", 0, 65536, &freq, e) ||
        json_get_u32(o, "index_skip_topk_offset", 0, 65536, &offset, e))
        return e->code;
    if (c->index_dim < c->rope_dim)
        return err_set(e, ERR_INVALID, "index_head_dim: %u is less than qk_rope_head_dim %u",
                       c->index_dim, c->rope_dim);
    if (!c->q_lora_rank)
        return err_set(e, ERR_INVALID,
                       "q_lora_rank: 0, but the indexer's %u heads need the low-rank query",
                       c->index_heads);
    freq = freq ? freq : 1;
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->index_full[i] = (i + 1 > offset ? i + 1 - offset : 0) % freq == 0;
    const char *key = present(o, "indexer_types")        ? "indexer_types"
                      : present(o, "index_topk_pattern") ? "index_topk_pattern"
                                                         : NULL;
    if (key && read_schedule(c, json_get(o, key), key, e))
        return e->code;
    if (!c->index_full[0])
        return err_set(e, ERR_INVALID,
                       "%s: layer 0 shares a selection, but no layer before it makes one",
                       key ? key : "index_skip_topk_offset");
    return ERR_OK;
}

static enum err_code read_quantization(struct model_config *c, const cJSON *o, struct err *e)
{
    if (!present(o, "quantization_config"))
        return ERR_OK;
    const cJSON *q = json_get(o, "quantization_config");
    const char *method = "(none)", *scale_fmt = NULL;
    if (!cJSON_IsObject(q))
        return err_set(e, ERR_INVALID, "quantization_config: must be an object or null");
    if (json_get_str(q, "quant_method", &method, e))
        return err_prefix(e, "quantization_config");
    if (strcmp(method, "fp8") != 0)
        return err_set(e, ERR_INVALID,
                       "quantization_config: quant_method \"%.60s\" is not supported, only \"fp8\"",
                       method);
    if (only_str(q, "fmt", "e4m3", e) || only_str(q, "activation_scheme", "dynamic", e) ||
        json_get_str(q, "scale_fmt", &scale_fmt, e))
        return err_prefix(e, "quantization_config");
    const cJSON *block = json_get(q, "weight_block_size");
    const cJSON *rows = cJSON_IsArray(block) ? block->child : NULL;
    const cJSON *columns = rows ? rows->next : NULL;
    if (!cJSON_IsNumber(rows) || !cJSON_IsNumber(columns) || columns->next)
        return err_set(e, ERR_INVALID,
                       "quantization_config: weight_block_size: must be two numbers, [128, 128]");
    if (rows->valuedouble != 128 || columns->valuedouble != 128)
        return err_set(e, ERR_INVALID,
                       "quantization_config: weight_block_size: [%g, %g] is not supported, only "
                       "[128, 128]",
                       rows->valuedouble, columns->valuedouble);
    if (scale_fmt && strcmp(scale_fmt, "ue8m0") != 0)
        return err_set(e, ERR_INVALID,
                       "quantization_config: scale_fmt \"%.60s\" is not supported, only \"ue8m0\"",
                       scale_fmt);
    c->fp8_blocks = true;
    c->scale_pow2 = scale_fmt != NULL;
    return ERR_OK;
}

/* One id or a list of ids; leaves c alone where the file has none. */
static enum err_code read_eos(struct model_config *c, const cJSON *o, struct err *e)
{
    if (!present(o, "eos_token_id"))
        return ERR_OK;
    const cJSON *m = json_get(o, "eos_token_id");
    bool list = cJSON_IsArray(m);
    uint32_t n = 0;
    for (m = list ? m->child : m; m; m = list ? m->next : NULL) {
        if (!cJSON_IsNumber(m))
            return err_set(e, ERR_INVALID, "eos_token_id: must be a number or a list of numbers");
        double id = m->valuedouble;
        if (!(id >= 0 && id < c->vocab_size) || id != floor(id))
            return err_set(e, ERR_INVALID, "eos_token_id: %g is no id of vocab_size %u", id,
                           c->vocab_size);
        if (n == MODEL_MAX_EOS)
            return err_set(e, ERR_INVALID, "eos_token_id: more than %d ids", (int)MODEL_MAX_EOS);
        c->eos_id[n++] = (uint32_t)id;
    }
    c->n_eos = n;
    return ERR_OK;
}

static enum err_code read_config(struct model_config *c, const cJSON *o, struct err *e)
{
    if (!cJSON_IsObject(o))
        return err_set(e, ERR_INVALID, "must be a JSON object");
    *c = (struct model_config){.bos_id = UINT32_MAX, .temperature = 1, .top_p = 1};
    if (read_family(c, o, e) || read_sizes(c, o, e) || read_feed_forward(c, o, e) ||
        read_rope(c, o, e) || read_indexer(c, o, e) || read_quantization(c, o, e) ||
        json_get_u32(o, "bos_token_id", 0, c->vocab_size - 1, &c->bos_id, e) || read_eos(c, o, e))
        return e->code;
    return ERR_OK;
}

static enum err_code read_generation(struct model_config *c, const cJSON *o, struct err *e)
{
    double top_k = 0; /* some files say -1 for off */
    if (!cJSON_IsObject(o))
        return err_set(e, ERR_INVALID, "must be a JSON object");
    if (json_get_u32(o, "bos_token_id", 0, c->vocab_size - 1, &c->bos_id, e) || read_eos(c, o, e) ||
        get_f32(o, "temperature", 0, 100, &c->temperature, e) ||
        get_f32(o, "top_p", 1e-6, 1, &c->top_p, e) ||
        json_get_f64(o, "top_k", -1, INT32_MAX, &top_k, e))
        return e->code;
    if (top_k != floor(top_k))
        return err_set(e, ERR_INVALID, "top_k: %g is not a whole number", top_k);
    c->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    return ERR_OK;
}

/* generation may be NULL; the names are for messages. */
static enum err_code read_both(struct model_config *out, const cJSON *config, const char *name,
                               const cJSON *generation, const char *generation_name, struct err *e)
{
    struct model_config c;
    if (read_config(&c, config, e))
        return err_prefix(e, "%s", name);
    if (generation && read_generation(&c, generation, e))
        return err_prefix(e, "%s", generation_name);
    if (!c.n_eos)
        return err_set(e, ERR_INVALID,
                       "%s: eos_token_id: missing, also from generation_config.json", name);
    *out = c;
    return ERR_OK;
}

enum err_code model_config_parse(struct model_config *out, const char *config, size_t bytes,
                                 const char *generation, size_t generation_bytes, struct err *e)
{
    cJSON *c = NULL, *g = NULL;
    enum err_code code = json_parse(&c, config, bytes, JSON_MAX_DEPTH, e);
    if (code)
        return err_prefix(e, "config.json");
    if (generation)
        code = json_parse(&g, generation, generation_bytes, JSON_MAX_DEPTH, e);
    if (code)
        err_prefix(e, "generation_config.json");
    else
        code = read_both(out, c, "config.json", g, "generation_config.json", e);
    cJSON_Delete(g);
    cJSON_Delete(c);
    return code;
}

enum err_code model_config_read(struct model_config *out, const char *dir, struct err *e)
{
    char path[4096], generation_path[4096];
    cJSON *c = NULL, *g = NULL;
    if (snprintf(path, sizeof path, "%s/config.json", dir) >= (int)sizeof path ||
        snprintf(generation_path, sizeof generation_path, "%s/generation_config.json", dir) >=
            (int)sizeof generation_path)
        return err_set(e, ERR_IO, "a folder's name of %zu bytes is too long", strlen(dir));
    enum err_code code = json_parse_file(&c, path, e);
    if (code)
        return code;
    if (access(generation_path, F_OK) == 0)
        code = json_parse_file(&g, generation_path, e);
    if (!code)
        code = read_both(out, c, path, g, generation_path, e);
    cJSON_Delete(g);
    cJSON_Delete(c);
    return code;
}

void model_config_cut(struct model_config *c, uint32_t n_layers)
{
    assert(n_layers >= 1);
    if (n_layers >= c->n_layers)
        return;
    c->n_layers = n_layers;
    if (c->n_dense_layers > n_layers)
        c->n_dense_layers = n_layers;
    c->n_mtp_layers = 0; /* it would read the last layer's output */
}
