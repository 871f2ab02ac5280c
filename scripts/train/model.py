"""ember's network: DeepSeek-V3.2's architecture for training.

What works on single tokens is a function over [N, ...], N = batch x length; with N fixed, one
compiled graph serves every context length. Weights are [out, in] as in the checkpoint, except that
an expert's gate and up projections are one matrix (the two halves of its rows), its down projection
is stored transposed, and the shared expert is the last of the stack, with weight one.

All experts are computed and multiplied by their routing weight, zero where not chosen: at this size
that is faster than sorting tokens.
"""
import torch
import torch.nn.functional as F

import attention as att
from ember import EMBER

FP8_NAMES = {"q_a", "q_b", "kv_a", "kv_b", "o", "gate_up", "down", "index_q", "index_k"}
INDEXER = ("index_q", "index_k", "index_norm", "index_bias", "index_w")


def rms(x, gain):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EMBER.eps) * gain).to(x.dtype)


def linear(x, w):
    return F.linear(x, w.to(x.dtype))


def rotate_pairs(x, cos, sin):
    """RoPE on neighbouring pairs (2i, 2i+1), as in MLA. x [N, h, d], cos and sin [N, d/2]."""
    y = x.float().unflatten(-1, (-1, 2))
    a, b, c, s = y[..., 0], y[..., 1], cos[:, None], sin[:, None]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2).to(x.dtype)


def rotate_halves(x, cos, sin):
    """RoPE on pairs (i, i + d/2), as in the indexer."""
    a, b = x.float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, a * s + b * c], -1).to(x.dtype)


def before_attention(x, cos, sin, norm, q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b):
    """Queries, keys, values; and the indexer's two inputs."""
    c, n = EMBER, x.shape[0]
    h = rms(x, norm)
    cq = rms(linear(h, q_a), q_a_norm)
    q = linear(cq, q_b).view(n, c.heads, c.nope + c.rope)
    u = linear(h, kv_a)
    latent = rms(u[:, : c.kv_rank], kv_a_norm)
    kv = linear(latent, kv_b).view(n, c.heads, c.nope + c.value)
    kr = rotate_pairs(u[:, None, c.kv_rank:], cos, sin).expand(n, c.heads, c.rope)
    q = torch.cat([q[..., : c.nope], rotate_pairs(q[..., c.nope:], cos, sin)], -1)
    k = torch.cat([kv[..., : c.nope], kr], -1)
    return q, k, kv[..., c.nope:].contiguous(), h, cq


def place(s):
    """Each score's place in its row, 0 for the best; equal ones in order. Fuses, unlike sort."""
    i = torch.arange(s.shape[-1], device=s.device)
    mine, other = s[..., :, None], s[..., None, :]
    return ((other > mine) | ((other == mine) & (i[None, :] < i[:, None]))).sum(-1)


def route(h, gate, bias):
    """Weights [N, experts] (zero where not chosen) and the choice. The bias only chooses."""
    c = EMBER
    p = torch.sigmoid(F.linear(h.float(), gate.float()))
    b = (p + bias).detach().view(-1, c.groups, c.experts // c.groups)
    group = (b * (place(b) < 2)).sum(-1)
    b = b.masked_fill((place(group) >= c.groups_kept)[..., None], float("-inf"))
    chosen = place(b.reshape(-1, c.experts)) < c.active
    w = p * chosen
    return w / (w.sum(-1, keepdim=True) + 1e-20) * c.route_scale, chosen


def after_attention_moe(x, o, w_o, norm, gate, bias, gate_up, down):
    c, n = EMBER, x.shape[0]
    x = x + linear(o.reshape(n, -1), w_o)
    h = rms(x, norm)
    w, chosen = route(h, gate, bias)
    w = torch.cat([w, torch.ones_like(w[:, :1])], 1).to(x.dtype)
    y = linear(h, gate_up.reshape(-1, c.dim)).view(n, c.experts + 1, 2, c.expert_ffn)
    y = F.silu(y[:, :, 0]) * y[:, :, 1] * w[..., None]
    return x + y.reshape(n, -1) @ down.reshape(-1, c.dim).to(x.dtype), chosen.float().mean(0)


def after_attention_dense(x, o, w_o, norm, gate_up, down):
    x = x + linear(o.reshape(x.shape[0], -1), w_o)
    g, u = linear(rms(x, norm), gate_up).chunk(2, -1)
    return x + (F.silu(g) * u) @ down.to(x.dtype)


def token_loss(x, norm, head, target, weight):
    """Sum of weighted cross entropies."""
    z = linear(rms(x, norm), head).float()
    loss = torch.logsumexp(z, -1) - z.gather(1, target[:, None])[:, 0]
    return (loss * weight).sum()


def index_inputs(h, cq, cos, sin, index_q, index_k, gain, bias, index_w):
    """Index queries [N, h, d], keys [N, d], and head weights [N, h]; the rotated part is first."""
    c, n = EMBER, h.shape[0]
    q = linear(cq, index_q).view(n, c.index_heads, c.index_dim)
    k = F.layer_norm(linear(h, index_k).float(), (c.index_dim,), gain, bias, c.eps).to(h.dtype)
    q, k = (torch.cat([rotate_halves(t[..., : c.rope], cos, sin), t[..., c.rope:]], -1)
            for t in (q, k[:, None]))
    w = F.linear(h.float(), index_w.float()) * (c.index_heads * c.index_dim) ** -0.5
    return q, k[:, 0], w


PLAIN = {f.__name__: f for f in (before_attention, after_attention_moe, after_attention_dense,
                                 token_loss, index_inputs)}


def compiled():
    """Compiled forms of the functions above, and of the indexer's loss."""
    torch._dynamo.config.recompile_limit = 64
    out = {n: torch.compile(f, dynamic=False) for n, f in PLAIN.items()}
    out["index_loss"] = torch.compile(att.index_loss, dynamic=True)
    return out


def parameter(*shape, std=None):
    return torch.nn.Parameter(torch.randn(*shape) * (shape[-1] ** -0.5 if std is None else std))


def ones(n):
    return torch.nn.Parameter(torch.ones(n))


class Layer(torch.nn.Module):
    def __init__(self, c, moe):
        super().__init__()
        small = (2 * c.layers) ** -0.5  # what is added to the residual starts small
        self.moe = moe
        self.attn_norm, self.ffn_norm = ones(c.dim), ones(c.dim)
        self.q_a, self.q_a_norm = parameter(c.q_rank, c.dim), ones(c.q_rank)
        self.q_b = parameter(c.heads * (c.nope + c.rope), c.q_rank)
        self.kv_a, self.kv_a_norm = parameter(c.kv_rank + c.rope, c.dim), ones(c.kv_rank)
        self.kv_b = parameter(c.heads * (c.nope + c.value), c.kv_rank)
        self.o = parameter(c.dim, c.heads * c.value, std=small * (c.heads * c.value) ** -0.5)
        if moe:
            n, f = c.experts + 1, c.expert_ffn
            self.gate = parameter(c.experts, c.dim, std=0.02)
            self.register_buffer("gate_bias", torch.zeros(c.experts))
            self.gate_up = parameter(n, 2 * f, c.dim)
            self.down = parameter(n, f, c.dim, std=small * f ** -0.5)
        else:
            self.gate_up = parameter(2 * c.ffn, c.dim)
            self.down = parameter(c.ffn, c.dim, std=small * c.ffn ** -0.5)
        self.index_q = parameter(c.index_heads * c.index_dim, c.q_rank)
        self.index_k = parameter(c.index_dim, c.dim)
        self.index_norm = ones(c.index_dim)
        self.index_bias = torch.nn.Parameter(torch.zeros(c.index_dim))
        self.index_w = parameter(c.index_heads, c.dim)

    def weight(self, name, fp8):
        w = getattr(self, name)
        if fp8 and name in FP8_NAMES:
            from fp8 import fake
            return fake(w)
        return w


class Ember(torch.nn.Module):
    def __init__(self, c=EMBER):
        super().__init__()
        self.embed = parameter(c.vocab, c.dim, std=0.1)
        self.head, self.norm = parameter(c.vocab, c.dim, std=0.01), ones(c.dim)
        self.layers = torch.nn.ModuleList(Layer(c, moe=i > 0) for i in range(c.layers))
        self.mtp = torch.nn.Module()
        self.mtp.embed_norm, self.mtp.hidden_norm = ones(c.dim), ones(c.dim)
        self.mtp.join, self.mtp.norm = parameter(c.dim, 2 * c.dim), ones(c.dim)
        self.mtp.layer = Layer(c, moe=True)
        frequencies, self.scale = att.yarn(c)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.f = dict(PLAIN, index_loss=att.index_loss)  # or compiled()
        self.fp8 = False  # see the weights as they will be stored

    def angles(self, b, t):
        angle = torch.outer(torch.arange(t, device=self.embed.device).float(), self.frequencies)
        return angle.cos().repeat(b, 1), angle.sin().repeat(b, 1)

    def dtype(self):
        return torch.bfloat16 if self.embed.is_cuda else torch.float32

    def run_layer(self, layer, x, shape, angles, topk=None, index_rows=None, probe=None):
        """topk None: dense attention, else through the selected tokens. index_rows: positions whose
        indexer loss is wanted. Gives x, the experts' loads and that loss (a mean over queries).
        probe(q, k, v, index, layer) may look on."""
        b, t = shape

        def get(*names):
            return [layer.weight(n, self.fp8) for n in names]

        q, k, v, h, cq = self.f["before_attention"](x, *angles, *get(
            "attn_norm", "q_a", "q_a_norm", "q_b", "kv_a", "kv_a_norm", "kv_b"))
        q, k, v = (y.view(b, t, *y.shape[1:]) for y in (q, k, v))
        index, keep, loss = None, None, 0.0
        sparse = topk is not None and topk < t
        if sparse or index_rows is not None or probe:
            with torch.set_grad_enabled(index_rows is not None):
                index = self.f["index_inputs"](h.detach(), cq.detach(), *angles, *get(*INDEXER))
                index = [y.view(b, t, *y.shape[1:]) for y in index]
        if sparse:
            keep = att.select(*(y.detach().contiguous() for y in index), topk)
            o, lse = att.masked(q, k, v, keep, self.scale)
        elif index_rows is not None and not torch.is_grad_enabled():
            o, lse = att.dense_with_lse(q, k, v, self.scale)
        else:
            o = att.dense(q, k, v, self.scale)
            lse = None
        if index_rows is not None:
            if lse is None:
                lse = att.dense_with_lse(q.detach(), k.detach(), v.detach(), self.scale)[1]
            r = index_rows
            with torch.enable_grad():
                total = self.f["index_loss"](
                    index[0][:, r], index[1], index[2][:, r], q.detach()[:, r], k.detach(),
                    lse.detach()[:, :, r], self.scale, r, keep[:, r] if sparse else None)
                loss = total / (b * len(r))
        if probe:
            probe(q, k, v, index, layer)
        o = o.reshape(b * t, -1)
        if layer.moe:
            x, load = self.f["after_attention_moe"](x, o, *get("o", "ffn_norm", "gate"),
                                                    layer.gate_bias, *get("gate_up", "down"))
            return x, load, loss
        return self.f["after_attention_dense"](
            x, o, *get("o", "ffn_norm", "gate_up", "down")), None, loss

    def body(self, ids, **how):
        """ids [B, T] -> hidden states [B*T, dim] before the last norm, loads and indexer losses by
        layer."""
        shape = ids.shape
        angles = self.angles(*shape)
        x = F.embedding(ids.reshape(-1), self.embed).to(self.dtype())
        loads, losses = [], []
        for layer in self.layers:
            x, load, loss = self.run_layer(layer, x, shape, angles, **how)
            losses.append(loss)
            if load is not None:
                loads.append(load)
        return x, loads, losses

    def draft(self, x, ids, **how):
        """The MTP layer: hidden state of p and token p+1 -> hidden states before the head's norm,
        that predict token p+2. ids [B, T+1]."""
        shape = (ids.shape[0], ids.shape[1] - 1)
        e = F.embedding(ids[:, 1:].reshape(-1), self.embed).to(x.dtype)
        u = torch.cat([rms(e, self.mtp.embed_norm), rms(rms(x, self.norm), self.mtp.hidden_norm)],
                      -1)
        return self.run_layer(self.mtp.layer, linear(u, self.mtp.join), shape,
                              self.angles(*shape), **how)

    def index_parameters(self, mtp=False):
        layers = [self.mtp.layer] if mtp else self.layers
        return [getattr(layer, n) for layer in layers for n in INDEXER]
