"""The trained weights as a Hugging Face model directory, and back.

    python3 export.py WORK MODEL_DIR

FP8 128x128 blocks for the tensors that the real checkpoint has in FP8; embedding, head, norms,
router and the indexer's head weights in bf16; the index key's LayerNorm and the router's bias in
fp32. The MTP layer is the one after the last; it shares the embedding and the head, which are
stored once.
"""
import json
import os
import shutil
import sys

import torch

import chat
import fp8
from ember import BOS, EMBER, EOS, PAD, config_json

ATTENTION = {
    "attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "q_a": "self_attn.q_a_proj.weight", "q_a_norm": "self_attn.q_a_layernorm.weight",
    "q_b": "self_attn.q_b_proj.weight", "kv_a": "self_attn.kv_a_proj_with_mqa.weight",
    "kv_a_norm": "self_attn.kv_a_layernorm.weight", "kv_b": "self_attn.kv_b_proj.weight",
    "o": "self_attn.o_proj.weight", "index_q": "self_attn.indexer.wq_b.weight",
    "index_k": "self_attn.indexer.wk.weight", "index_norm": "self_attn.indexer.k_norm.weight",
    "index_bias": "self_attn.indexer.k_norm.bias",
    "index_w": "self_attn.indexer.weights_proj.weight",
}
MTP = {"mtp.embed_norm": "enorm.weight", "mtp.hidden_norm": "hnorm.weight",
       "mtp.join": "eh_proj.weight", "mtp.norm": "shared_head.norm.weight"}
TOP = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight",
       "norm": "model.norm.weight"}
SINGLE = ("index_norm", "index_bias", "gate_bias")  # fp32
BLOCKS = ("q_a", "q_b", "kv_a", "kv_b", "o", "index_q", "index_k", "gate_up", "down")


def places(c=EMBER):
    """Of each tensor in the checkpoint: (its name, the parameter's name, a function that takes its
    part out of the parameter, one that puts it back). A view shares memory, so both are one."""
    out = [(hf, ours, lambda t: t) for ours, hf in TOP.items()]
    out += [(f"model.layers.{c.layers}.{hf}", ours, lambda t: t) for ours, hf in MTP.items()]
    for i in range(c.layers + 1):
        ours = f"layers.{i}." if i < c.layers else "mtp.layer."
        hf = f"model.layers.{i}."
        out += [(hf + name, ours + short, lambda t: t) for short, name in ATTENTION.items()]
        if i == 0:
            out += [(hf + "mlp.gate_proj.weight", ours + "gate_up", lambda t: t[: c.ffn]),
                    (hf + "mlp.up_proj.weight", ours + "gate_up", lambda t: t[c.ffn:]),
                    (hf + "mlp.down_proj.weight", ours + "down", lambda t: t.T)]
            continue
        out += [(hf + "mlp.gate.weight", ours + "gate", lambda t: t),
                (hf + "mlp.gate.e_score_correction_bias", ours + "gate_bias", lambda t: t)]
        f = c.expert_ffn
        for e in range(c.experts + 1):
            name = hf + ("mlp.shared_experts." if e == c.experts else f"mlp.experts.{e}.")
            out += [(name + "gate_proj.weight", ours + "gate_up", lambda t, e=e: t[e, :f]),
                    (name + "up_proj.weight", ours + "gate_up", lambda t, e=e: t[e, f:]),
                    (name + "down_proj.weight", ours + "down", lambda t, e=e: t[e].T)]
    return out


def tensors(state):
    out = {}
    for hf, ours, part in places():
        w = part(state[ours]).detach().float().cpu()
        last = ours.split(".")[-1]
        if last in BLOCKS:
            q, s = fp8.quantise(w)
            out[hf], out[hf + "_scale_inv"] = q.contiguous(), s.contiguous()
        else:
            kind = torch.float32 if last in SINGLE else torch.bfloat16
            out[hf] = w.to(kind).contiguous()
    return out


def dequantised(path):
    """Every tensor of a checkpoint in float32, the scales used up."""
    from safetensors.torch import load_file
    raw = load_file(os.path.join(path, "model.safetensors"))
    out = {}
    for name, t in raw.items():
        if not name.endswith("_scale_inv"):
            s = raw.get(name + "_scale_inv")
            out[name] = fp8.dequantise(t, s) if s is not None else t.float()
    return out


def load(path, device=None):
    """The training network with an exported checkpoint's weights."""
    import model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = model.Ember()
    state, weights = net.state_dict(), dequantised(path)
    for hf, ours, part in places():
        part(state[ours]).copy_(weights.pop(hf))
    assert not weights, list(weights)[:3]
    net.load_state_dict(state)
    return net.to(device)


# Renders what DeepSeek-V3.2-Exp's template renders; a server may instead name the format.
TEMPLATE = (
    "{#- format: deepseek-v3.2-exp -#}"
    "{%- if not add_generation_prompt is defined -%}{%- set add_generation_prompt = false -%}"
    "{%- endif -%}{%- if not thinking is defined -%}{%- set thinking = false -%}{%- endif -%}"
    "{%- set ns = namespace(system='', after_user=false) -%}"
    "{%- for m in messages -%}{%- if m['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m['content'] -%}"
    "{%- endif -%}{%- endfor -%}{{- bos_token -}}{{- ns.system -}}"
    "{%- if tools -%}{{- '\\n\\n## Tools\\nYou have access to the following tools:\\n' -}}"
    "{%- for t in tools -%}{%- set f = t['function'] if 'function' in t else t -%}"
    "{{- '\\n### ' + f['name'] + '\\nDescription: ' + (f['description'] or '')"
    " + '\\n\\nParameters: ' + (f['parameters'] | tojson) + '\\n' -}}{%- endfor -%}"
    "{{- TOOL_RULES -}}{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{- '<｜User｜>' + m['content'] -}}"
    "{%- set ns.after_user = true -%}"
    "{%- elif m['role'] == 'tool' -%}"
    "{{- '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' -}}"
    "{%- set ns.after_user = false -%}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{%- if ns.after_user -%}{{- '<｜Assistant｜></think>' -}}{%- endif -%}"
    "{%- set text = m['content'] or '' -%}"
    "{%- if ns.after_user and '</think>' in text -%}"
    "{%- set text = text.split('</think>', 1)[1] -%}{%- endif -%}{{- text -}}"
    "{%- if m['tool_calls'] -%}{{- '<｜tool▁calls▁begin｜>' -}}"
    "{%- for c in m['tool_calls'] -%}"
    "{{- '<｜tool▁call▁begin｜>' + c['function']['name'] + '<｜tool▁sep｜>' -}}"
    "{%- if c['function']['arguments'] is string -%}{{- c['function']['arguments'] -}}"
    "{%- else -%}{{- c['function']['arguments'] | tojson -}}{%- endif -%}"
    "{{- '<｜tool▁call▁end｜>' -}}{%- endfor -%}{{- '<｜tool▁calls▁end｜>' -}}{%- endif -%}"
    "{{- '<｜end▁of▁sentence｜>' -}}{%- set ns.after_user = false -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt and ns.after_user -%}"
    "{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}{%- endif -%}"
)


def template():
    rules = chat.tool_text([]).split("following tools:\n", 1)[1]
    return TEMPLATE.replace("TOOL_RULES", json.dumps(rules, ensure_ascii=False))


def write(state, tokenizer, path):
    from safetensors.torch import save_file
    os.makedirs(path, exist_ok=True)

    def put(name, value):
        with open(os.path.join(path, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)
            f.write("\n")

    save_file(tensors(state), os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    put("config.json", config_json())
    put("generation_config.json", {
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": True,
        "temperature": 0.6, "top_p": 0.95})
    put("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": EMBER.max_positions,
        "bos_token": chat.BOS, "eos_token": chat.EOS, "pad_token": chat.PAD,
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "chat_template": template()})
    shutil.copy(tokenizer, os.path.join(path, "tokenizer.json"))


if __name__ == "__main__":
    work, target = sys.argv[1:3]
    checkpoint = torch.load(os.path.join(work, "checkpoint.pt"), map_location="cpu")
    write(checkpoint["model"], os.path.join(work, "data", "tokenizer.json"), target)
    size = os.path.getsize(os.path.join(target, "model.safetensors"))
    print(json.dumps({"what": "export", "bytes": size, "stages": checkpoint["done"]}))
