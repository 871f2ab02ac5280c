/* test_config.c - config.json of the whole family: values, schedules, RoPE tables, refusals. */
#include "base/fault.h"
#include "model/config.h"
#include "test.h"

#include <math.h>

/* DeepSeek-V3.2's sizes without the final brace: tests put members behind, and of members of one
 * name the last counts (null: as if it were not there). */
static const char V32[] =
    "{\"architectures\":[\"DeepseekV32ForCausalLM\"],\"model_type\":\"deepseek_v32\","
    "\"vocab_size\":129280,\"hidden_size\":7168,\"intermediate_size\":18432,"
    "\"moe_intermediate_size\":2048,\"num_hidden_layers\":61,\"num_nextn_predict_layers\":1,"
    "\"first_k_dense_replace\":3,\"moe_layer_freq\":1,\"num_attention_heads\":128,"
    "\"num_key_value_heads\":128,\"q_lora_rank\":1536,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,"
    "\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":8,\"n_group\":8,"
    "\"topk_group\":4,\"topk_method\":\"noaux_tc\",\"scoring_func\":\"sigmoid\","
    "\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"hidden_act\":\"silu\","
    "\"rms_norm_eps\":1e-6,\"attention_bias\":false,\"rope_theta\":10000,"
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"
    "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0},"
    "\"max_position_embeddings\":163840,\"index_n_heads\":64,\"index_head_dim\":128,"
    "\"index_topk\":2048,\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,"
    "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
    "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128],\"scale_fmt\":\"ue8m0\"}";

#define AS_V3 "\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\""
#define AS_V2                                                                                      \
    "\"architectures\":[\"DeepseekV2ForCausalLM\"],\"model_type\":\"deepseek_v2\","                \
    "\"topk_method\":\"greedy\",\"scoring_func\":\"softmax\",\"norm_topk_prob\":false"
#define AS_GLM                                                                                     \
    "\"architectures\":[\"GlmMoeDsaForCausalLM\"],\"model_type\":\"glm_moe_dsa\","                 \
    "\"num_hidden_layers\":78,\"hidden_size\":6144,\"qk_nope_head_dim\":192,\"v_head_dim\":256,"   \
    "\"n_group\":1,\"topk_group\":1,\"rope_scaling\":null,\"rope_parameters\":"                    \
    "{\"rope_type\":\"default\",\"rope_theta\":8000000},\"index_n_heads\":null"

static enum err_code parse(struct model_config *c, const char *members, const char *generation,
                           struct err *e)
{
    char text[8192];
    int n = snprintf(text, sizeof text, "%s%s%s}", V32, *members ? "," : "", members);
    CHECK(n > 0 && n < (int)sizeof text);
    return model_config_parse(c, text, (size_t)n, generation, generation ? strlen(generation) : 0,
                              e);
}

static struct model_config accept(const char *members)
{
    struct model_config c;
    struct err e = {0};
    CHECK_OK(parse(&c, members, NULL, &e), e);
    return c;
}

static void refuse(const char *members, const char *message)
{
    struct model_config c;
    struct err e = {0};
    CHECK_MSG(parse(&c, members, NULL, &e) == ERR_INVALID, "accepted: %s", members);
    CHECK_MSG(strstr(e.msg, "config.json: ") == e.msg && strstr(e.msg, message), "%s: %s", members,
              e.msg);
}

static bool near(double a, double b, double tolerance)
{
    return fabs(a - b) <= tolerance * fabs(b);
}

static struct model_config fixture(const char *name)
{
    struct model_config c;
    struct err e = {0};
    CHECK_OK(model_config_read(&c, test_fixture(name), &e), e);
    return c;
}

TEST(fixtures_say_what_they_are)
{
    struct model_config c = fixture("v2-lite-bf16");
    CHECK(c.family == MODEL_DEEPSEEK_V2 && strcmp(c.model_type, "deepseek_v2") == 0);
    CHECK(c.q_lora_rank == 0 && c.n_group == 1 && !c.norm_topk && !c.sigmoid_router);
    CHECK(!c.router_bias && !c.group_by_best_two && c.routed_scale == 1 && !c.has_indexer);
    CHECK(c.vocab_size == 384 && c.hidden_size == 160 && c.n_layers == 2 && c.n_dense_layers == 1);
    CHECK(c.dense_width == 224 && c.expert_width == 48 && c.n_experts == 16 && c.n_active == 4);
    CHECK(c.max_position == 8192 && c.rms_eps == 1e-6f && c.n_eos == 1 && c.eos_id[0] == 1);
    CHECK(model_expand_tokens(&c) == MODEL_EXPAND_TOKENS);

    c = fixture("v3-bf16");
    CHECK(c.family == MODEL_DEEPSEEK_V3 && c.q_lora_rank == 80 && c.n_group == 4);
    CHECK(c.n_group_kept == 2 && c.norm_topk && c.sigmoid_router && c.router_bias);
    CHECK(c.group_by_best_two && c.routed_scale == 2.5f && !c.has_indexer && !c.fp8_blocks);

    c = fixture("v32-bf16");
    CHECK(c.family == MODEL_DEEPSEEK_V32 && c.has_indexer && c.index_heads == 4);
    CHECK(c.index_dim == 64 && c.index_topk == 32 && !c.index_rope_interleaved);
    CHECK(c.index_full[0] && c.index_full[1] && model_expand_tokens(&c) == 32);
    double m = 0.1 * log(8) + 1;
    CHECK(near(c.softmax_scale, m * m / sqrt(80), 1e-7) && c.rope_gain == 1);

    c = fixture("v32-fp8");
    CHECK(c.fp8_blocks && !c.scale_pow2 && near(c.softmax_scale, 1 / sqrt(80), 1e-7));
    CHECK(near(c.rope_freq[1], pow(10000, -2.0 / 32), 1e-7));

    c = fixture("v32-true-heads-fp8");
    CHECK(c.fp8_blocks && c.index_heads == 64 && c.index_dim == 128 && c.index_topk == 256);
    CHECK(c.kv_lora_rank == 512 && c.rope_dim == 64 && c.nope_dim == 128 && c.v_dim == 128);

    c = fixture("glm-dsa-bf16");
    CHECK(c.family == MODEL_GLM_DSA && c.index_rope_interleaved && c.n_layers == 4);
    CHECK(c.index_full[0] && c.index_full[1] && !c.index_full[2] && !c.index_full[3]);
    CHECK(c.rms_eps == 1e-5f && c.low_rank_eps == 1e-6f && c.rope_gain == 1);
    CHECK(near(c.softmax_scale, 1 / sqrt(80), 1e-7));
}

TEST(softmax_scales_of_the_published_models)
{
    struct model_config c = accept("");
    CHECK(near(c.softmax_scale, 0.1352337788608801, 1e-7) && c.fp8_blocks && c.scale_pow2);
    CHECK(c.n_mtp_layers == 1 && c.max_position == 163840 && c.bos_id == 0);
    c = accept("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"mscale\":0.707,"
               "\"mscale_all_dim\":0.707,\"original_max_position_embeddings\":4096}," AS_V2);
    CHECK(near(c.softmax_scale, 0.1147213867929261, 1e-7) && c.rope_gain == 1);
    c = accept(
        "\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"kimi_k2\","
        "\"rope_theta\":50000,\"n_routed_experts\":384,\"n_group\":1,\"topk_group\":1,"
        "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":32,\"mscale\":1,\"mscale_all_dim\":1,"
        "\"beta_fast\":1,\"beta_slow\":1,\"original_max_position_embeddings\":4096}");
    CHECK(c.family == MODEL_DEEPSEEK_V3 && near(c.softmax_scale, 0.1308607999629501, 1e-7));
    /* The ramp begins at 19 and ends at 20. */
    CHECK(near(c.rope_freq[19], pow(5e4, -38.0 / 64), 1e-7));
    CHECK(near(c.rope_freq[20], pow(5e4, -40.0 / 64) / 32, 1e-7));
    c = accept(
        "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":64,\"mscale\":1,\"mscale_all_dim\":1,"
        "\"original_max_position_embeddings\":4096}");
    CHECK(near(c.softmax_scale, 0.1446796258026892, 1e-7));
    c = accept(AS_GLM);
    CHECK(c.softmax_scale == 0.0625f && c.index_heads == 32 && c.index_rope_interleaved);
    CHECK(near(c.rope_freq[31], pow(8e6, -62.0 / 64), 1e-7));
}

/* The table of DeepSeek-V3, nine digits each, and exact expressions for both ends of the ramp. */
TEST(yarn_table_of_deepseek_v3)
{
    static const double table[32] = {1,
                                     0.749894209,
                                     0.562341325,
                                     0.421696503,
                                     0.316227766,
                                     0.237137371,
                                     0.177827941,
                                     0.133352143,
                                     0.1,
                                     0.0749894209,
                                     0.0562341325,
                                     0.0390069266,
                                     0.0268793601,
                                     0.0183781462,
                                     0.0124479559,
                                     0.00833450895,
                                     0.0055,
                                     0.00356199749,
                                     0.0022493653,
                                     0.00137051364,
                                     0.000790569415,
                                     0.000414990398,
                                     0.000177827941,
                                     3.33380358e-05,
                                     2.5e-05,
                                     1.87473552e-05,
                                     1.40585331e-05,
                                     1.05424126e-05,
                                     7.90569415e-06,
                                     5.92843426e-06,
                                     4.44569853e-06,
                                     3.33380358e-06};
    const struct model_yarn y = {40, 4096, 32, 1, true};
    double freq[32];
    model_rope_table(freq, 64, 10000, &y);
    struct model_config c = accept("");
    for (int i = 0; i < 32; i++) {
        double g = pow(10000, -i / 32.0);
        double half_digit = 0.5 * pow(10, floor(log10(table[i])) - 8);
        CHECK_MSG(fabs(freq[i] - table[i]) <= half_digit * 1.0001, "%d: %.12g, not %.12g", i,
                  freq[i], table[i]);
        if (i <= 10 || i >= 23)
            CHECK(near(freq[i], i <= 10 ? g : g / 40, 1e-14));
        else
            CHECK(near(freq[i], g * (1 - (i - 10) / 13.0) + g / 40 * ((i - 10) / 13.0), 1e-14));
        CHECK(c.rope_freq[i] == (float)freq[i]);
    }
    const struct model_yarn unrounded = {40, 4096, 32, 1, false};
    model_rope_table(freq, 64, 10000, &unrounded); /* from 10.4722 to 22.5134 */
    CHECK(near(freq[10], pow(10000, -10 / 32.0), 1e-14) && freq[11] > table[11]);
}

TEST(both_spellings_of_rope_agree)
{
    const char *same[] = {
        "\"rope_scaling\":null,\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"yarn\","
        "\"rope_theta\":10000,\"factor\":40,\"original_max_position_embeddings\":4096,"
        "\"mscale\":1,\"mscale_all_dim\":1}",
        "\"rope_scaling\":null,\"rope_parameters\":{\"type\":\"yarn\",\"factor\":40,"
        "\"original_max_position_embeddings\":4096,\"mscale\":1,\"mscale_all_dim\":1}",
        "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":40.0,\"beta_fast\":32.0,"
        "\"original_max_position_embeddings\":4096,\"mscale\":1,\"mscale_all_dim\":1}",
    };
    struct model_config a = accept("");
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        struct model_config b = accept(same[i]);
        CHECK(memcmp(a.rope_freq, b.rope_freq, sizeof a.rope_freq) == 0);
        CHECK(a.softmax_scale == b.softmax_scale && a.rope_gain == b.rope_gain);
    }
    a = accept("\"rope_scaling\":{\"type\":\"default\"}");
    struct model_config b = accept("\"rope_scaling\":null");
    CHECK(memcmp(a.rope_freq, b.rope_freq, sizeof a.rope_freq) == 0 && a.rope_gain == 1);
    CHECK(near(a.softmax_scale, 1 / sqrt(192), 1e-7));
}

TEST(rope_gain_by_the_two_mscales)
{
#define YARN_40(more)                                                                              \
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,"                                           \
    "\"original_max_position_embeddings\":4096" more "}"
    double l = 0.1 * log(40);
    struct model_config c = accept(YARN_40(",\"mscale\":0.5,\"mscale_all_dim\":1"));
    CHECK(near(c.rope_gain, (0.5 * l + 1) / (l + 1), 1e-7));
    c = accept(YARN_40(""));
    CHECK(near(c.rope_gain, l + 1, 1e-7) && near(c.softmax_scale, 1 / sqrt(192), 1e-7));
    c = accept(YARN_40(",\"attention_factor\":1.5,\"mscale_all_dim\":1"));
    CHECK(c.rope_gain == 1.5f && near(c.softmax_scale, 0.1352337788608801, 1e-7));
}

static uint32_t count_full(const struct model_config *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_layers; i++)
        n += c->index_full[i];
    return n;
}

TEST(schedule_of_glm_5_2_in_all_three_forms)
{
    struct model_config c = accept(AS_GLM ",\"index_topk_freq\":4,\"index_skip_topk_offset\":3");
    CHECK(count_full(&c) == 21);
    for (uint32_t i = 0; i < 78; i++)
        CHECK(c.index_full[i] == (i < 3 || (i % 4 == 2)));
    char text[2048] = AS_GLM ",\"index_topk_pattern\":\"FFFSSS";
    for (uint32_t i = 6; i < 78; i++)
        strcat(text, i % 4 == 2 ? "F" : "S");
    struct model_config b = accept(strcat(text, "\""));
    CHECK(memcmp(c.index_full, b.index_full, sizeof c.index_full) == 0);
    snprintf(text, sizeof text, "%s", AS_GLM ",\"index_topk_freq\":2,\"indexer_types\":[");
    for (uint32_t i = 0; i < 79; i++) /* with the MTP layer's, which is passed over */
        strcat(text, i < 3 || i % 4 == 2 ? ",\"full\"" + !i : ",\"shared\"");
    b = accept(strcat(text, "]"));
    CHECK(memcmp(c.index_full, b.index_full, sizeof c.index_full) == 0);
    c = accept("");
    CHECK(count_full(&c) == 61);
    c = accept("\"index_topk_freq\":0,\"index_n_heads\":null,\"index_topk\":null");
    CHECK(count_full(&c) == 61 && c.index_heads == 64 && c.index_topk == 2048);
    c = accept("\"index_topk_freq\":4");
    CHECK(count_full(&c) == 16 && c.index_full[1] && !c.index_full[2] && c.index_full[5]);
    c = accept("\"indexer_rope_interleave\":true");
    CHECK(c.index_rope_interleaved);
    c = accept("\"num_hidden_layers\":3,\"index_topk_pattern\":[\"F\",\"shared\",\"full\"]");
    CHECK(c.index_full[0] && !c.index_full[1] && c.index_full[2]);
}

TEST(router_rules_by_family)
{
    struct model_config c = accept(AS_V2 ",\"norm_topk_prob\":true");
    CHECK(!c.norm_topk && c.n_group == 1 && c.n_group_kept == 1); /* greedy looks at all */
    c = accept(AS_V2 ",\"topk_method\":\"group_limited_greedy\",\"topk_group\":3");
    CHECK(c.n_group == 8 && c.n_group_kept == 3 && !c.group_by_best_two);
    c = accept(AS_V3 ",\"norm_topk_prob\":false,\"n_group\":null,\"topk_group\":null");
    CHECK(!c.norm_topk && c.n_group == 1);
    c = accept("\"norm_topk_prob\":null,\"topk_method\":null,\"scoring_func\":null");
    CHECK(c.norm_topk && c.sigmoid_router);
    c = accept("\"n_routed_experts\":null");
    CHECK(c.n_experts == 0 && !model_is_moe(&c, 60) && c.n_dense_layers == 61);
    c = accept("\"num_hidden_layers\":3,\"mlp_layer_types\":[\"dense\",\"sparse\",\"sparse\"]");
    CHECK(c.n_dense_layers == 1 && !model_is_moe(&c, 0) && model_is_moe(&c, 1));
    c = accept("\"first_k_dense_replace\":0,\"intermediate_size\":null");
    CHECK(model_is_moe(&c, 0) && c.dense_width == 0);
}

TEST(families_by_either_name)
{
    struct model_config c = accept("\"architectures\":null");
    CHECK(c.family == MODEL_DEEPSEEK_V32);
    c = accept("\"model_type\":null");
    CHECK(c.family == MODEL_DEEPSEEK_V32 && strcmp(c.model_type, "deepseek_v32") == 0);
    c = accept(AS_V3);
    CHECK(c.family == MODEL_DEEPSEEK_V3 && !c.has_indexer);
}

TEST(refusals_name_the_field_and_the_numbers)
{
    static const struct {
        const char *members, *message;
    } bad[] = {
        {"\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"",
         "architecture LlamaForCausalLM with model_type llama is not of this family"},
        {"\"model_type\":\"deepseek_v4\"", "model_type deepseek_v4 is not of this family"},
        {"\"model_type\":\"deepseek_v3\"", "DeepseekV32ForCausalLM with model_type deepseek_v3"},
        {"\"model_type\":null,\"architectures\":null", "neither architectures nor model_type"},
        {"\"architectures\":[]", "architectures: must be a list of strings"},
        {"\"hidden_size\":null", "hidden_size: missing"},
        {"\"hidden_size\":0", "hidden_size: 0 is outside 1..65536"},
        {"\"hidden_size\":\"7168\"", "hidden_size: must be a number"},
        {"\"hidden_size\":1.5", "hidden_size: 1.5 is not a whole number"},
        {"\"vocab_size\":1e300", "vocab_size: 1e+300 is outside"},
        {"\"num_hidden_layers\":129", "num_hidden_layers: 129 is outside 1..128"},
        {"\"num_attention_heads\":1025", "num_attention_heads: 1025 is outside 1..1024"},
        {"\"kv_lora_rank\":null", "kv_lora_rank: missing"},
        {"\"qk_rope_head_dim\":63", "qk_rope_head_dim: 63 is odd"},
        {"\"qk_rope_head_dim\":258", "qk_rope_head_dim: 258 is outside 2..256"},
        {"\"max_position_embeddings\":null", "max_position_embeddings: missing"},
        {"\"rms_norm_eps\":0", "rms_norm_eps: 0 is outside"},
        {"\"hidden_act\":\"gelu\"", "hidden_act: \"gelu\" is not supported, only \"silu\""},
        {"\"attention_bias\":true", "attention_bias: true is not supported"},
        {"\"tie_word_embeddings\":1", "tie_word_embeddings: must be true or false"},
        {"\"moe_layer_freq\":2", "moe_layer_freq: 2 is outside 1..1"},
        {"\"first_k_dense_replace\":62", "first_k_dense_replace: 62 is outside 0..61"},
        {"\"first_k_dense_replace\":null", "first_k_dense_replace: missing"},
        {"\"n_shared_experts\":0", "n_shared_experts: 0 is outside 1..64"},
        {"\"n_shared_experts\":64,\"moe_intermediate_size\":1048576", "are wider than 1048576"},
        {"\"n_routed_experts\":6", "num_experts_per_tok: 8 is more than n_routed_experts 6"},
        {"\"n_group\":7", "n_routed_experts: 256 cannot be split into n_group 7"},
        {"\"topk_group\":9", "topk_group: 9 is more than n_group 8"},
        {"\"n_group\":256,\"topk_group\":8", "256 groups of 1 expert have no two best"},
        {"\"n_group\":64,\"topk_group\":1", "num_experts_per_tok: 8 is more than the 4 experts"},
        {"\"topk_method\":\"greedy\"", "topk_method: \"greedy\" is not supported"},
        {AS_V2 ",\"topk_method\":\"noaux_tc\"", "topk_method: \"noaux_tc\" is not supported"},
        {"\"scoring_func\":\"softmax\"", "scoring_func: \"softmax\" is not supported"},
        {AS_V2 ",\"scoring_func\":\"sigmoid\"", "only \"softmax\""},
        {"\"mlp_layer_types\":[\"dense\"]", "mlp_layer_types: 1 entries for 61 layers"},
        {"\"mlp_layer_types\":[\"sparse\",\"dense\"]", "layer 1 is dense after layer 0 was not"},
        {"\"mlp_layer_types\":[3]", "entry 0 is neither"},
        {"\"mlp_layer_types\":3", "mlp_layer_types: must be a list"},
        {"\"rope_scaling\":{\"type\":\"linear\"}",
         "rope_scaling: rope type \"linear\" is not supported"},
        {"\"rope_parameters\":{\"rope_type\":\"llama3\"}", "rope_parameters: rope type \"llama3\""},
        {"\"rope_parameters\":{},\"rope_theta\":null", "rope_parameters: rope_theta: missing"},
        {"\"rope_parameters\":{\"rope_theta\":1}", "rope_parameters: rope_theta: 1 is outside 2"},
        {"\"rope_interleave\":false", "rope_interleave: false is not supported"},
        {"\"rope_scaling\":[]", "rope_scaling: must be an object or null"},
        {"\"rope_scaling\":{\"type\":\"yarn\"}", "rope_scaling: factor: missing"},
        {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}",
         "rope_scaling: original_max_position_embeddings: missing"},
        {YARN_40(",\"factor\":0.5"), "rope_scaling: factor: 0.5 is outside 1.."},
        {YARN_40(",\"beta_fast\":0"), "beta_fast: 0 is outside"},
        {"\"index_head_dim\":32", "index_head_dim: 32 is less than qk_rope_head_dim 64"},
        {"\"q_lora_rank\":null", "q_lora_rank: 0, but the indexer's 64 heads"},
        {"\"index_topk\":0", "index_topk: 0 is outside 1.."},
        {"\"index_skip_topk_offset\":0,\"index_topk_freq\":4",
         "index_skip_topk_offset: layer 0 shares a selection"},
        {"\"index_topk_pattern\":\"FSF\"", "index_topk_pattern: 3 entries for 61 layers"},
        {"\"num_hidden_layers\":3,\"index_topk_pattern\":\"SFF\"", "index_topk_pattern: layer 0"},
        {"\"index_topk_pattern\":\"FX\"", "index_topk_pattern: entry 1 (\"X\") is neither"},
        {"\"indexer_types\":[\"full\",7]", "indexer_types: entry 1 (\"\") is neither"},
        {"\"indexer_types\":{}", "indexer_types: must be a list or a string"},
        {"\"quantization_config\":{\"quant_method\":\"awq\"}",
         "quant_method \"awq\" is not supported, only \"fp8\""},
        {"\"quantization_config\":{}", "quant_method \"(none)\" is not supported"},
        {"\"quantization_config\":7", "quantization_config: must be an object"},
        {"\"quantization_config\":{\"quant_method\":\"fp8\"}", "weight_block_size: must be two"},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[64,128]}",
         "weight_block_size: [64, 128] is not supported"},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128,1]}",
         "weight_block_size: must be two"},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}",
         "quantization_config: fmt: \"e5m2\" is not supported, only \"e4m3\""},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         "activation_scheme: \"static\""},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],"
         "\"scale_fmt\":\"e5\"}",
         "scale_fmt \"e5\" is not supported"},
        {"\"eos_token_id\":129280", "eos_token_id: 129280 is no id of vocab_size 129280"},
        {"\"eos_token_id\":[1,1.5]", "eos_token_id: 1.5 is no id"},
        {"\"eos_token_id\":[\"a\"]", "eos_token_id: must be a number or a list of numbers"},
        {"\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", "eos_token_id: more than 8 ids"},
        {"\"eos_token_id\":null", "eos_token_id: missing"},
        {"\"bos_token_id\":129280", "bos_token_id: 129280 is outside 0..129279"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse(bad[i].members, bad[i].message);
    struct model_config c;
    struct err e = {0};
    CHECK(model_config_parse(&c, "[]", 2, NULL, 0, &e) == ERR_INVALID);
    CHECK(strcmp(e.msg, "config.json: must be a JSON object") == 0);
    CHECK(model_config_parse(&c, "{", 1, NULL, 0, &e) == ERR_INVALID);
    CHECK(strstr(e.msg, "config.json: JSON"));
}

TEST(generation_config_wins_and_falls_back)
{
    struct model_config c;
    struct err e = {0};
    CHECK_OK(parse(&c, "", "{\"eos_token_id\":[5,6],\"temperature\":0.6,\"top_p\":0.95}", &e), e);
    CHECK(c.n_eos == 2 && c.eos_id[0] == 5 && c.eos_id[1] == 6);
    CHECK(c.temperature == 0.6f && c.top_p == 0.95f && c.top_k == 0 && c.bos_id == 0);
    CHECK_OK(parse(&c, "", "{\"top_k\":20,\"bos_token_id\":9}", &e), e);
    CHECK(c.n_eos == 1 && c.eos_id[0] == 1 && c.top_k == 20 && c.bos_id == 9);
    CHECK_OK(parse(&c, "\"bos_token_id\":null,\"eos_token_id\":null",
                   "{\"top_k\":-1,\"eos_token_id\":7}", &e),
             e);
    CHECK(c.bos_id == UINT32_MAX && c.n_eos == 1 && c.eos_id[0] == 7 && c.top_k == 0);
    CHECK_OK(parse(&c, "", NULL, &e), e);
    CHECK(c.temperature == 1 && c.top_p == 1);
    static const char *const bad[][2] = {
        {"{\"temperature\":-1}", "temperature: -1 is outside"},
        {"{\"top_p\":2}", "top_p: 2 is outside"},
        {"{\"top_k\":1.5}", "top_k: 1.5 is not a whole number"},
        {"{\"eos_token_id\":-2}", "eos_token_id: -2 is no id"},
        {"{\"eos_token_id\":{}}", "eos_token_id: must be"},
        {"[]", "must be a JSON object"},
        {"{", "JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(parse(&c, "", bad[i][0], &e) == ERR_INVALID);
        CHECK_MSG(strstr(e.msg, "generation_config.json: ") == e.msg && strstr(e.msg, bad[i][1]),
                  "%s", e.msg);
    }
}

static void write_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

TEST(reading_a_folder)
{
    struct model_config c;
    struct err e = {0};
    char text[8192], *dir = test_tmpdir();
    CHECK(model_config_read(&c, dir, &e) == ERR_IO && strstr(e.msg, "config.json: "));
    snprintf(text, sizeof text, "%s}", V32);
    write_text(dir, "config.json", text);
    CHECK_OK(model_config_read(&c, dir, &e), e);
    CHECK(c.eos_id[0] == 1);
    write_text(dir, "generation_config.json", "{\"eos_token_id\":3}");
    CHECK_OK(model_config_read(&c, dir, &e), e);
    CHECK(c.eos_id[0] == 3);
    write_text(dir, "generation_config.json", "{\"top_p\":0}");
    CHECK(model_config_read(&c, dir, &e) == ERR_INVALID);
    CHECK(strstr(e.msg, dir) == e.msg && strstr(e.msg, "/generation_config.json: top_p: 0"));
    char *long_dir = malloc(5001);
    memset(long_dir, 'd', 5000);
    long_dir[5000] = '\0';
    CHECK(model_config_read(&c, long_dir, &e) == ERR_IO && strstr(e.msg, "5000 bytes is too long"));
    free(long_dir);
}

TEST(cutting_depth)
{
    struct model_config c = accept("");
    model_config_cut(&c, 100);
    CHECK(c.n_layers == 61 && c.n_mtp_layers == 1);
    model_config_cut(&c, 2);
    CHECK(c.n_layers == 2 && c.n_dense_layers == 2 && c.n_mtp_layers == 0);
}

TEST(faults_leave_nothing_behind)
{
    for (int n = 1;; n++) {
        char spec[32];
        struct model_config c;
        struct err e = {0};
        snprintf(spec, sizeof spec, "*:%d", n);
        fault_arm(spec);
        enum err_code code = model_config_read(&c, test_fixture("v3-bf16"), &e);
        bool passed = fault_passages() >= (uint64_t)n;
        fault_arm(NULL);
        CHECK(passed == (code != ERR_OK));
        if (!passed)
            break;
    }
}
