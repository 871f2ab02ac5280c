"""FP8 weights as the family stores them: e4m3 in blocks of 128x128, one power-of-two scale a block.

`weight_scale_inv` is the multiplier: w = q * scale. Ragged edges are padded with zeros for the
maximum only. Works on [..., out, in], so a stack of experts is one call.
"""
import torch
import torch.nn.functional as F

BLOCK, E4M3_MAX = 128, 448.0


def scales(w):
    """[..., out, in] -> [..., ceil(out/128), ceil(in/128)]: 2^ceil(log2(amax / 448)), exactly."""
    rows, cols = w.shape[-2:]
    a = F.pad(w.abs(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    a = a.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).amax((-1, -3))
    mantissa, exponent = torch.frexp(a.clamp_min(1e-12) / E4M3_MAX)  # mantissa in [0.5, 1)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    return torch.exp2(exponent.float())


def spread(s, shape):
    """Scales to one value per weight."""
    s = s.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)
    return s[..., : shape[-2], : shape[-1]]


def quantise(w):
    """float [..., out, in] -> (float8_e4m3fn of the same shape, float32 scales)."""
    s = scales(w.float())
    q = (w.float() / spread(s, w.shape)).clamp(-E4M3_MAX, E4M3_MAX)
    return q.to(torch.float8_e4m3fn), s


def dequantise(q, s):
    return q.float() * spread(s.float(), q.shape)


def fake(w):
    """What the weight will be once stored; the gradient goes straight through."""
    with torch.no_grad():
        step = dequantise(*quantise(w)) - w
    return w + step
