"""The shape of ember: DeepSeek-V3.2's architecture at 21.7 M parameters, and its config.json."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    vocab: int = 8192
    dim: int = 256
    layers: int = 8
    ffn: int = 768  # width of the dense layer 0
    heads: int = 8
    q_rank: int = 192  # one and a half FP8 blocks, so ragged edges are exercised
    kv_rank: int = 128
    nope: int = 32
    rope: int = 32
    value: int = 32
    experts: int = 16
    active: int = 4
    groups: int = 4
    groups_kept: int = 2
    expert_ffn: int = 128
    route_scale: float = 2.5
    index_heads: int = 4
    index_dim: int = 64  # the first `rope` elements of a head are rotated
    index_topk: int = 256
    theta: float = 10000.0
    yarn_factor: float = 8.0
    yarn_original: int = 4096
    yarn_fast: float = 32.0
    yarn_slow: float = 1.0
    max_positions: int = 32768
    eps: float = 1e-6


EMBER = Config()
BOS, EOS, PAD = 0, 1, 2  # token ids


def config_json(c=EMBER):
    """config.json as the family writes it."""
    return {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "torch_dtype": "bfloat16",
        "vocab_size": c.vocab,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "hidden_size": c.dim,
        "hidden_act": "silu",
        "num_hidden_layers": c.layers,
        "num_nextn_predict_layers": 1,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "intermediate_size": c.ffn,
        "moe_intermediate_size": c.expert_ffn,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "q_lora_rank": c.q_rank,
        "kv_lora_rank": c.kv_rank,
        "qk_nope_head_dim": c.nope,
        "qk_rope_head_dim": c.rope,
        "v_head_dim": c.value,
        "n_routed_experts": c.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": c.active,
        "n_group": c.groups,
        "topk_group": c.groups_kept,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": c.route_scale,
        "index_n_heads": c.index_heads,
        "index_head_dim": c.index_dim,
        "index_topk": c.index_topk,
        "rms_norm_eps": c.eps,
        "rope_theta": int(c.theta),
        "rope_scaling": {
            "type": "yarn",
            "factor": c.yarn_factor,
            "original_max_position_embeddings": c.yarn_original,
            "beta_fast": int(c.yarn_fast),
            "beta_slow": int(c.yarn_slow),
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": c.max_positions,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "scale_fmt": "ue8m0",
        },
    }
