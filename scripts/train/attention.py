"""Attention and selection over long contexts.

dense()      causal attention, by PyTorch's fused kernels
masked()     attention through a selection: a byte per query and key, the same for all heads
select()     index scores and an exact top-k of them, as such a selection
Triton kernels on a GPU; on a CPU (and as the yardstick in check()) plain tensor code. Layouts:
q, k [B, T, H, Dqk], v [B, T, H, Dv]; index q [B, T, h, d], k [B, T, d], w [B, T, h] float32.
"""
import math

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

LOG2E = 1.4426950408889634


# ---- dense -------------------------------------------------------------------------------------

def dense(q, k, v, scale):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.is_cuda:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
        with sdpa_kernel(order, set_priority=True):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        o = plain_attention(q, k, v, scale, None)[0]
    return o.transpose(1, 2)


@torch.no_grad()
def dense_with_lse(q, k, v, scale):
    """Also the log of the softmax denominators, [B, H, T]; without a gradient."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.is_cuda:
        wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        o, lse = flash(q, k, wide, 0.0, True, False, scale=scale)[:2]
        o = o[..., : v.shape[-1]]
    else:
        o, lse = plain_attention(q, k, v, scale, None)
    return o.transpose(1, 2), lse


def plain_attention(q, k, v, scale, keep):
    """[B, H, T, D]; keep: bool [B, T, T] or None for causal."""
    if keep is None:
        keep = torch.ones(1, q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    s = (q.float() @ k.float().transpose(-1, -2)) * scale
    s = s.masked_fill(~keep[:, None], float("-inf"))
    return (torch.softmax(s, -1) @ v.float()).to(v.dtype), torch.logsumexp(s, -1).detach()


# ---- attention through a selection -------------------------------------------------------------

if triton:
    @triton.jit
    def forward_kernel(Q, K, V, KEEP, O, LSE, scale, T, H: tl.constexpr, D: tl.constexpr,
                       DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
        block, b, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
        block = tl.num_programs(0) - 1 - block  # the longest first
        rows = block * BM + tl.arange(0, BM)
        d, dv = tl.arange(0, D), tl.arange(0, DV)
        base = (b.to(tl.int64) * T * H + h)
        q = tl.load(Q + base * D + rows[:, None] * (H * D) + d[None, :])
        keep_row = KEEP + b.to(tl.int64) * T * T + rows[:, None].to(tl.int64) * T
        m = tl.full([BM], -1.0e6, tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, DV], tl.float32)
        for start in range(0, (block + 1) * BM, BN):
            cols = start + tl.arange(0, BN)
            k = tl.load(K + base * D + cols[None, :] * (H * D) + d[:, None])
            s = tl.dot(q, k) * scale
            keep = tl.load(keep_row + cols[None, :])
            s = tl.where(keep != 0, s, -1.0e6)
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(V + base * DV + cols[:, None] * (H * DV) + dv[None, :])
            acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v)
            m = m_new
        acc = acc / total[:, None]
        tl.store(O + base * DV + rows[:, None] * (H * DV) + dv[None, :],
                 acc.to(O.dtype.element_ty))
        tl.store(LSE + (b.to(tl.int64) * H + h) * T + rows, m + tl.log2(total))

    @triton.jit
    def backward_kv_kernel(Q, K, V, KEEP, DO, LSE, DELTA, DK, DV_OUT, scale, T, H: tl.constexpr,
                           D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr,
                           BN: tl.constexpr):
        block, b, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
        cols = block * BN + tl.arange(0, BN)
        d, dv = tl.arange(0, D), tl.arange(0, DV)
        base = (b.to(tl.int64) * T * H + h)
        stats = (b.to(tl.int64) * H + h) * T
        k = tl.load(K + base * D + cols[:, None] * (H * D) + d[None, :])
        v = tl.load(V + base * DV + cols[:, None] * (H * DV) + dv[None, :])
        dk = tl.zeros([BN, D], tl.float32)
        dvs = tl.zeros([BN, DV], tl.float32)
        keep_base = KEEP + b.to(tl.int64) * T * T
        for start in range((block * BN) // BM * BM, T, BM):
            rows = start + tl.arange(0, BM)
            q = tl.load(Q + base * D + rows[:, None] * (H * D) + d[None, :])
            do = tl.load(DO + base * DV + rows[:, None] * (H * DV) + dv[None, :])
            lse = tl.load(LSE + stats + rows)
            delta = tl.load(DELTA + stats + rows)
            keep = tl.load(keep_base + rows[:, None].to(tl.int64) * T + cols[None, :])
            s = tl.dot(q, tl.trans(k)) * scale
            p = tl.where(keep != 0, tl.exp2(s - lse[:, None]), 0.0)
            dvs += tl.dot(tl.trans(p.to(do.dtype)), do)
            ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
        dk = dk * (scale / 1.4426950408889634)
        tl.store(DK + base * D + cols[:, None] * (H * D) + d[None, :], dk.to(DK.dtype.element_ty))
        tl.store(DV_OUT + base * DV + cols[:, None] * (H * DV) + dv[None, :],
                 dvs.to(DV_OUT.dtype.element_ty))

    @triton.jit
    def backward_q_kernel(Q, K, V, KEEP, DO, LSE, DELTA, DQ, scale, T, H: tl.constexpr,
                          D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
        block, b, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
        block = tl.num_programs(0) - 1 - block
        rows = block * BM + tl.arange(0, BM)
        d, dv = tl.arange(0, D), tl.arange(0, DV)
        base = (b.to(tl.int64) * T * H + h)
        stats = (b.to(tl.int64) * H + h) * T
        q = tl.load(Q + base * D + rows[:, None] * (H * D) + d[None, :])
        do = tl.load(DO + base * DV + rows[:, None] * (H * DV) + dv[None, :])
        lse = tl.load(LSE + stats + rows)
        delta = tl.load(DELTA + stats + rows)
        keep_row = KEEP + b.to(tl.int64) * T * T + rows[:, None].to(tl.int64) * T
        dq = tl.zeros([BM, D], tl.float32)
        for start in range(0, (block + 1) * BM, BN):
            cols = start + tl.arange(0, BN)
            k = tl.load(K + base * D + cols[:, None] * (H * D) + d[None, :])
            v = tl.load(V + base * DV + cols[:, None] * (H * DV) + dv[None, :])
            keep = tl.load(keep_row + cols[None, :])
            s = tl.dot(q, tl.trans(k)) * scale
            p = tl.where(keep != 0, tl.exp2(s - lse[:, None]), 0.0)
            ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
            dq += tl.dot(ds.to(k.dtype), k)
        dq = dq * (scale / 1.4426950408889634)
        tl.store(DQ + base * D + rows[:, None] * (H * D) + d[None, :], dq.to(DQ.dtype.element_ty))

    @triton.jit
    def index_scores_kernel(Q, K, W, OUT, start, T, ROWS, COLS, H: tl.constexpr, D: tl.constexpr,
                            BM: tl.constexpr, BN: tl.constexpr):
        """OUT [B, ROWS, COLS]: scores of queries start..start+ROWS-1; what lies ahead is -inf."""
        i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        r = i * BM + tl.arange(0, BM)
        rows, cols = start + r, j * BN + tl.arange(0, BN)
        d = tl.arange(0, D)
        if start + (i + 1) * BM > j * BN:
            k = tl.load(K + (b * T + cols[None, :]) * D + d[:, None])
            s = tl.zeros([BM, BN], tl.float32)
            for h in tl.static_range(H):
                q = tl.load(Q + ((b * T + rows[:, None]) * H + h) * D + d[None, :])
                w = tl.load(W + (b * T + rows) * H + h)
                s += tl.maximum(tl.dot(q, k), 0.0) * w[:, None]
            s = tl.where(s == 0.0, 0.0, s)  # one zero only, so that ties are ties
            s = tl.where(cols[None, :] <= rows[:, None], s, float("-inf"))
            tl.store(OUT + (b * ROWS + r[:, None]) * COLS + cols[None, :], s)

    @triton.jit
    def top_kernel(S, KEEP, start, T, ROWS, COLS, K, WIDE: tl.constexpr):
        """Marks each row's K best columns; equal scores go to the lower column. The threshold is
        found by halving the range of the scores' bits, read as ordered integers."""
        r, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
        row = start + r
        cols = tl.arange(0, WIDE)
        seen = cols <= row
        s = tl.load(S + (b * ROWS + r) * COLS + cols, mask=seen, other=float("-inf"))
        bits = s.to(tl.int32, bitcast=True)
        order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        low, high = (row * 0).to(tl.int64) - 2147483648, (row * 0).to(tl.int64) + 2147483647
        for _step in range(32):
            middle = (low + high) >> 1
            count = tl.sum(((order >= middle.to(tl.int32)) & seen).to(tl.int32), 0)
            enough = count >= K
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        edge = low.to(tl.int32)
        above = (order > edge) & seen
        ties = (order == edge) & seen
        room = K - tl.sum(above.to(tl.int32), 0)
        keep = above | (ties & (tl.cumsum(ties.to(tl.int32), 0) <= room))
        keep = tl.where(row < K, seen, keep)
        tl.store(KEEP + (b * T + row) * T + cols, keep.to(tl.int8), mask=cols < COLS)


class Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, keep, scale):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        b, t, h, d = q.shape
        o = torch.empty_like(v)
        lse = torch.empty(b, h, t, device=q.device, dtype=torch.float32)  # in powers of two
        bm = 128 if t % 128 == 0 else 64
        forward_kernel[(t // bm, b * h)](q, k, v, keep, o, lse, scale * LOG2E, t, h, d, v.shape[-1],
                                         bm, 64, num_warps=4, num_stages=3)
        ctx.save_for_backward(q, k, v, keep, o, lse)
        ctx.scale = scale
        lse_out = lse / LOG2E
        ctx.mark_non_differentiable(lse_out)
        return o, lse_out

    @staticmethod
    def backward(ctx, do, _):
        q, k, v, keep, o, lse = ctx.saved_tensors
        b, t, h, d = q.shape
        do = do.contiguous()
        delta = (do.float() * o.float()).sum(-1).transpose(1, 2).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        args = (q, k, v, keep, do, lse, delta)
        tail = (ctx.scale * LOG2E, t, h, d, v.shape[-1])
        backward_kv_kernel[(t // 64, b * h)](*args, dk, dv, *tail, 64, 64, num_warps=4,
                                             num_stages=2)
        backward_q_kernel[(t // 64, b * h)](*args, dq, *tail, 64, 64, num_warps=4, num_stages=2)
        return dq, dk, dv, None, None


def masked(q, k, v, keep, scale):
    """keep: int8 [B, T, T], nothing ahead of a query set, at least one key a query.
    Gives the output and the log of the softmax denominators over the selection."""
    if q.is_cuda:
        return Masked.apply(q, k, v, keep, scale)
    o, lse = plain_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale, keep.bool())
    return o.transpose(1, 2), lse


# ---- index scores and the selection ------------------------------------------------------------

def index_scores(q, k, w, rows):
    """Scores of the queries at positions `rows` [R] (q, w hold only those), differentiable; -inf
    ahead of the query. [B, R, h, d], [B, T, d], [B, R, h] -> float32 [B, R, T]."""
    b, r, h, d = q.shape
    s = torch.bmm(q.reshape(b, r * h, d), k.transpose(1, 2)).view(b, r, h, -1)
    s = (F.relu(s).float() * w[..., None]).sum(2)
    ahead = torch.arange(k.shape[1], device=k.device) > rows[:, None]
    return s.masked_fill(ahead, float("-inf"))


@torch.no_grad()
def select(q, k, w, topk):
    """int8 [B, T, T]: the topk best-scored keys of each query, all while there are no more."""
    b, t, h, d = q.shape
    keep = torch.zeros(b, t, t, dtype=torch.int8, device=q.device)
    chunk = min(t, max(256, 2 ** 28 // (b * t)))
    for start in range(0, t, chunk):
        cols = start + chunk
        if q.is_cuda:
            s = torch.empty(b, chunk, cols, device=q.device)
            grid = (chunk // 64, cols // 64, b)
            index_scores_kernel[grid](q, k, w, s, start, t, chunk, cols, h, d, 64, 64, num_warps=4)
            wide = 1 << (cols - 1).bit_length()
            warps = 4 if wide <= 4096 else 8 if wide <= 16384 else 16
            top_kernel[(chunk, b)](s, keep, start, t, chunk, cols, topk, wide, num_warps=warps)
        else:
            rows = torch.arange(start, cols, device=q.device)
            s = index_scores(q[:, start:cols], k[:, :cols], w[:, start:cols], rows)
            top = torch.sort(s, dim=-1, descending=True, stable=True)[1][..., :topk]
            keep[:, start:cols, :cols].scatter_(-1, top, 1)
            keep[:, start:cols, :cols] *= (s > float("-inf")).to(torch.int8)
    return keep


def attention_target(q, k, lse, scale, rows, keep=None):
    """What the indexer learns: attention of the queries at `rows`, summed over heads and
    L1-normalised. q [B, R, H, D] of those rows, k [B, T, H, D], lse [B, H, R] -> [B, R, T]."""
    b, r, h, d = q.shape
    q, k = q.transpose(1, 2).reshape(b * h, r, d), k.transpose(1, 2).reshape(b * h, -1, d)
    s = torch.bmm(q, k.transpose(1, 2)).view(b, h, r, -1).float() * scale
    p = torch.exp(s - lse[..., None]).mean(1)
    hide = torch.arange(p.shape[-1], device=p.device) > rows[:, None]
    if keep is not None:
        hide = hide | (keep == 0)
    p = p.masked_fill(hide, 0.0)
    return p / (p.sum(-1, keepdim=True) + 1e-9)


def index_loss(qi, ki, wi, q, k, lse, scale, rows, keep=None):
    """Sum over the queries of KL(attention || softmax of the index scores), over all keys seen or
    over the selected ones."""
    p = attention_target(q, k, lse, scale, rows, keep).detach()
    s = index_scores(qi, ki, wi, rows)
    if keep is not None:
        s = s.masked_fill(keep == 0, float("-inf"))
    log_q = s - torch.logsumexp(s, -1, keepdim=True)
    log_q = torch.where(p > 0, log_q, torch.zeros_like(log_q))
    return (p * (torch.log(p + 1e-9) - log_q)).sum()


def check(device="cuda", t=512, topk=64):
    """Compares the kernels with plain tensor code; returns the relative errors."""
    torch.manual_seed(0)
    b, h, hi = 2, 8, 4
    shape = dict(device=device, dtype=torch.bfloat16)
    q, k = (torch.randn(b, t, h, 64, **shape).requires_grad_() for _ in range(2))
    v = torch.randn(b, t, h, 32, **shape).requires_grad_()
    qi, ki = torch.randn(b, t, hi, 64, **shape), torch.randn(b, t, 64, **shape)
    wi = torch.randn(b, t, hi, device=device)
    keep = select(qi, ki, wi, topk)
    s = index_scores(qi.float(), ki.float(), wi, torch.arange(t, device=device))
    best = torch.topk(s, topk, -1)[1]
    want = torch.zeros_like(keep).scatter_(-1, best, 1) * (s > float("-inf")).to(torch.int8)
    counts = keep.sum(-1, dtype=torch.int32)
    expected = torch.arange(1, t + 1, device=device).clamp(max=topk).expand_as(counts)
    out = {"selection_differs": float((keep != want).float().sum() / want.float().sum()),
           "wrong_counts": int((counts != expected).sum())}
    scale = 0.15
    g = torch.randn(b, t, h, 32, **shape)

    def error(x, y):
        return float((x.float() - y.float()).norm() / y.float().norm())

    for name, mask in (("masked", keep), ("dense", None)):
        if mask is None:
            o, lse = dense(q, k, v, scale), dense_with_lse(q.detach(), k.detach(), v.detach(),
                                                           scale)[1]
        else:
            o, lse = masked(q, k, v, mask, scale)
        got = torch.autograd.grad(o, (q, k, v), g)
        o2, lse2 = plain_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale,
                                   None if mask is None else mask.bool())
        ref = torch.autograd.grad(o2.transpose(1, 2), (q, k, v), g)
        out[name] = [round(error(o, o2.transpose(1, 2)), 5), round(error(lse, lse2), 6)]
        out[name] += [round(error(x, y), 5) for x, y in zip(got, ref)]
    return out


def yarn(c):
    """Rotation frequencies and the softmax scale with its YaRN correction; always on."""
    i = torch.arange(0, c.rope, 2).float()
    base = 1.0 / c.theta ** (i / c.rope)
    scale = (c.nope + c.rope) ** -0.5
    if c.yarn_factor <= 1:
        return base, scale

    def turn(n):
        return c.rope * math.log(c.yarn_original / (n * 2 * math.pi)) / (2 * math.log(c.theta))

    low = max(math.floor(turn(c.yarn_fast)), 0)
    high = min(math.ceil(turn(c.yarn_slow)), c.rope - 1)
    ramp = ((torch.arange(c.rope // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    m = 0.1 * math.log(c.yarn_factor) + 1.0
    return base * (1 - ramp) + base / c.yarn_factor * ramp, scale * m * m
