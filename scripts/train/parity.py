"""Reference logits of an exported checkpoint, for engines to compare with.

    python3 parity.py MODEL_DIR WORK

A second, plain implementation, from the equations alone: float32, weights as stored (FP8
dequantised), no activation quantised, the exact indexer without Hadamard transform, the top-k by
score and then by position. Writes MODEL_DIR/eval/parity.safetensors: prompt.{i}.ids int32 and
prompt.{i}.logits float32, the last rows, for prompts of 512, 4096, and 16384 tokens; and
parity.json: how far the same in float64, and Hugging Face transformers' own class, are from it.
"""
import json
import math
import os
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

import export

ROWS = 16  # logits kept of a prompt
PROMPTS = [("facts_held", 512), ("facts_held", 4096), ("table_held", 16384)]
CHUNK = 512


class Reference:
    def __init__(self, path, dtype, device):
        with open(os.path.join(path, "config.json")) as f:
            self.c = json.load(f)
        self.w = {k: v.to(device=device, dtype=dtype) for k, v in export.dequantised(path).items()}
        self.dtype, self.device = dtype, device

    def rms(self, x, name):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return y * self.w[name]

    def frequencies(self):
        c, s = self.c, self.c["rope_scaling"]
        d, base = c["qk_rope_head_dim"], float(c["rope_theta"])

        def corr(turns):
            n = s["original_max_position_embeddings"]
            return d * math.log(n / (2 * math.pi * turns)) / (2 * math.log(base))

        low = max(math.floor(corr(s["beta_fast"])), 0)
        high = min(math.ceil(corr(s["beta_slow"])), d - 1)
        out = []
        for i in range(d // 2):
            g = base ** (-2 * i / d)
            ramp = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
            out.append(g * (1 - ramp) + g / s["factor"] * ramp)
        return torch.tensor(out, dtype=torch.float32, device=self.device)

    def angles(self, t):
        a = torch.arange(t, device=self.device, dtype=torch.float32)[:, None] * self.frequencies()
        return a.cos().to(self.dtype), a.sin().to(self.dtype)

    @staticmethod
    def turn(x, cos, sin, halves):
        """x [T, h, d]; pairs (i, i+d/2) or (2i, 2i+1)."""
        cos, sin = cos[:, None], sin[:, None]
        if halves:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def swiglu(self, x, name):
        g, u = (x @ self.w[f"{name}.{n}_proj.weight"].T for n in ("gate", "up"))
        return (F.silu(g) * u) @ self.w[f"{name}.down_proj.weight"].T

    def attention(self, x, name, cos, sin):
        c, w, t = self.c, self.w, x.shape[0]
        n, r, v, h = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                                     "num_attention_heads"))
        rank, hi, di = c["kv_lora_rank"], c["index_n_heads"], c["index_head_dim"]
        cq = self.rms(x @ w[name + "q_a_proj.weight"].T, name + "q_a_layernorm.weight")
        q = (cq @ w[name + "q_b_proj.weight"].T).view(t, h, n + r)
        u = x @ w[name + "kv_a_proj_with_mqa.weight"].T
        kv = self.rms(u[:, :rank], name + "kv_a_layernorm.weight") @ w[name + "kv_b_proj.weight"].T
        kv = kv.view(t, h, n + v)
        kr = self.turn(u[:, None, rank:], cos, sin, False).expand(t, h, r)
        q = torch.cat([q[..., :n], self.turn(q[..., n:], cos, sin, False)], -1)
        k = torch.cat([kv[..., :n], kr], -1)
        s = self.c["rope_scaling"]
        m = 0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1
        scale = (n + r) ** -0.5 * m * m
        ix = name + "indexer."
        qi = (cq @ w[ix + "wq_b.weight"].T).view(t, hi, di)
        ki = F.layer_norm(x @ w[ix + "wk.weight"].T, (di,), w[ix + "k_norm.weight"],
                          w[ix + "k_norm.bias"], 1e-6)[:, None]
        qi, ki = (torch.cat([self.turn(y[..., :r], cos, sin, True), y[..., r:]], -1)
                  for y in (qi, ki))
        wi = x @ w[ix + "weights_proj.weight"].T * hi ** -0.5 * di ** -0.5
        outs = []
        for a in range(0, t, CHUNK):
            b = min(t, a + CHUNK)
            at = torch.arange(a, b, device=self.device)
            ahead = torch.arange(b, device=self.device) > at[:, None]
            score = torch.relu(torch.einsum("qhd,kd->qhk", qi[a:b], ki[:b, 0]))
            score = (score * wi[a:b, :, None]).sum(1).masked_fill(ahead, float("-inf"))
            best = torch.sort(score, dim=-1, descending=True, stable=True)[1][:, : c["index_topk"]]
            hide = torch.ones_like(ahead).scatter(1, best, False) | ahead
            p = torch.einsum("qhd,khd->hqk", q[a:b], k[:b]) * scale
            p = torch.softmax(p.masked_fill(hide, float("-inf")), -1)
            outs.append(torch.einsum("hqk,khd->qhd", p, kv[:b, :, n:]).reshape(b - a, -1))
        return torch.cat(outs) @ w[name + "o_proj.weight"].T

    def experts(self, x, name):
        c = self.c
        p = torch.sigmoid(x @ self.w[name + "gate.weight"].T)
        b = p + self.w[name + "gate.e_score_correction_bias"]
        groups = b.view(len(x), c["n_group"], -1)
        best = groups.topk(2, -1)[0].sum(-1).topk(c["topk_group"], -1)[1]
        off = torch.ones(len(x), c["n_group"], dtype=torch.bool, device=self.device)
        off.scatter_(1, best, False)
        b = groups.masked_fill(off[..., None], float("-inf")).view(len(x), -1)
        chosen = b.topk(c["num_experts_per_tok"], -1)[1]
        weight = torch.zeros_like(p).scatter(1, chosen, p.gather(1, chosen))
        weight = weight / weight.sum(-1, keepdim=True) * c["routed_scaling_factor"]
        y = self.swiglu(x, name + "shared_experts")
        for e in range(c["n_routed_experts"]):
            y = y + weight[:, e, None] * self.swiglu(x, f"{name}experts.{e}")
        return y

    @torch.no_grad()
    def logits(self, ids):
        x = self.w["model.embed_tokens.weight"][ids]
        cos, sin = self.angles(len(ids))
        for i in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{i}."
            h = self.rms(x, name + "input_layernorm.weight")
            x = x + self.attention(h, name + "self_attn.", cos, sin)
            h = self.rms(x, name + "post_attention_layernorm.weight")
            dense = i < self.c["first_k_dense_replace"]
            x = x + (self.swiglu(h, name + "mlp") if dense else self.experts(h, name + "mlp."))
        return self.rms(x[-ROWS:], "model.norm.weight") @ self.w["lm_head.weight"].T


def transformers_logits(path, prompts, device):
    """The same prompts through transformers' DeepseekV32 class, weights dequantised to float32."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    layers = export.EMBER.layers
    weights = {k: v for k, v in export.dequantised(path).items()
               if not k.startswith(f"model.layers.{layers}.")}
    with open(os.path.join(path, "config.json")) as f:
        config = {k: v for k, v in json.load(f).items() if k != "quantization_config"}
    config["torch_dtype"] = "float32"
    with tempfile.TemporaryDirectory() as d:
        save_file(weights, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(d, "config.json"), "w") as f:
            json.dump(config, f)
        model = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32).to(device).eval()
    out = []
    with torch.no_grad():
        for ids in prompts:
            out.append(model(ids[None]).logits[0, -ROWS:].float())
    return out, type(model).__name__


def main(path, work):
    from safetensors.torch import save_file
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    prompts = []
    for kind, length in PROMPTS:
        file = os.path.join(work, "data", f"eval_{kind}_{length}_0.npy")
        if os.path.exists(file):
            ids = (np.load(file)[0, :length] & 0x1FFF).astype(np.int64)
            ids[ids == 2] = 1  # no padding token inside a prompt
            prompts.append(torch.from_numpy(ids).to(device))
    single, double = (Reference(path, d, device) for d in (torch.float32, torch.float64))
    out, report = {}, {"rows": ROWS, "prompts": []}
    for i, ids in enumerate(prompts):
        a, b = single.logits(ids), double.logits(ids)
        out[f"prompt.{i}.ids"] = ids.to(torch.int32).cpu()
        out[f"prompt.{i}.logits"] = a.float().cpu().contiguous()
        report["prompts"].append({
            "tokens": len(ids), "logit_rms": round(float(a.pow(2).mean().sqrt()), 4),
            "float64_max_difference": float((a.double() - b).abs().max()),
            "float64_same_argmax": bool((a.argmax(-1) == b.argmax(-1)).all())})
    os.makedirs(os.path.join(path, "eval"), exist_ok=True)
    save_file(out, os.path.join(path, "eval", "parity.safetensors"))
    try:
        found, name = transformers_logits(path, prompts, device)
        for i, z in enumerate(found):
            d = (z.cpu() - out[f"prompt.{i}.logits"]).abs().max()
            report["prompts"][i]["transformers_max_difference"] = float(d)
        report["transformers_class"] = name
    except Exception as e:  # it is a second opinion: its absence is reported, not fatal
        report["transformers_error"] = repr(e)[:600]
    with open(os.path.join(path, "eval", "parity.json"), "w") as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
