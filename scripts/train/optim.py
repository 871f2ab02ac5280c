"""Muon for the matrices inside the layers, AdamW for the rest.

Muon: momentum, made nearly orthogonal by five Newton-Schulz steps, scaled so that an update has a
root mean square of 0.2 x learning rate, like AdamW's; so both use one learning rate.
"""
import torch

NOT_MUON = ("embed", "head", "gate", "index_q", "index_k", "index_w")


def orthogonal(g):
    x = g.to(torch.bfloat16)
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if turned else x).float()


class Optimiser:
    def __init__(self, named, momentum=0.95, decay=0.1):
        """named: (name, parameter) pairs to train."""
        self.momentum, self.decay, self.groups, rest = momentum, decay, {}, []
        named = list(named)
        on_gpu = named[0][1].is_cuda
        self.orthogonal = torch.compile(orthogonal, dynamic=False) if on_gpu else orthogonal
        for name, p in named:
            last = name.split(".")[-1]
            if p.ndim >= 2 and last not in NOT_MUON:
                key = (last == "gate_up", *p.shape[-2:])
                self.groups.setdefault(key, []).append(p)
            else:
                rest.append(p)
        self.moments = {}
        self.adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0,
                                      fused=on_gpu) if rest else None

    @torch.no_grad()
    def step(self, rate):
        for key, ps in self.groups.items():
            halves, a, b = key
            shape = (-1, a // 2, b) if halves else (-1, a, b)  # gate and up are two matrices
            g = torch.cat([p.grad.reshape(shape) for p in ps])
            if key not in self.moments:
                self.moments[key] = torch.zeros_like(g)
            m = self.moments[key].lerp_(g, 1 - self.momentum)
            u = self.orthogonal(g.lerp(m, self.momentum)) * (0.2 * max(g.shape[-2:]) ** 0.5 * rate)
            at = 0
            for p in ps:
                n = p.numel() // (shape[1] * shape[2])
                p.mul_(1 - self.decay * rate).sub_(u[at: at + n].reshape(p.shape))
                at += n
        if self.adam:
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()

    def state(self):
        return {"moments": self.moments, "adam": self.adam.state_dict() if self.adam else None}

    def load(self, state):
        self.moments = state["moments"]
        if self.adam:
            self.adam.load_state_dict(state["adam"])
