"""The training stages, in the order of DeepSeek-V3.2's recipe.

    pretrain   dense attention, 512 to 2K tokens; all but the indexer
    extend     dense, 2K to 16K, then to 32K
    warmup     the indexer alone learns the dense attention; everything else is frozen
    sparse     attention through the selected tokens: the model by its language-model loss, the
               indexer by its own loss over the selected set, its input detached
    tune       the same with conversations; what the assistant says is supervised
    quantise   the same, seeing the weights as FP8 will store them (straight-through)
    mtp        the multi-token-prediction layer and its indexer; everything else is frozen

A stage is given seconds, and its schedule follows the share of them that has passed; so it can stop
anywhere and go on in another process from the checkpoint.
"""
import json
import os
import time

import torch

import batches
import team
from ember import EMBER
from evaluate import held_out, look_up
from model import INDEXER
from optim import Optimiser

BALANCE = 1e-3  # step of the router's balancing bias
CHECK_LENGTH = 16384  # the longest context that is checked while training: 32K takes too long


class Run:
    """What outlives a stage: the model, the data, the log, the checkpoint."""

    def __init__(self, model, pool, folder, tokens, deadline):
        self.model, self.pool, self.folder = model, pool, folder
        self.tokens, self.deadline = tokens, deadline
        first = team.RANK == 0
        self.log = open(os.path.join(folder, "train.jsonl"), "a") if first else None
        self.start = time.time()
        self.done = []  # stages finished

    def say(self, **kw):
        if not self.log:
            return
        line = json.dumps({"t": round(time.time() - self.start, 1), **kw})
        self.log.write(line + "\n")
        self.log.flush()
        print(line, flush=True)

    def path(self):
        return os.path.join(self.folder, "checkpoint.pt")

    def save(self, current=None, progress=None, optimisers=None):
        if not self.log:
            return
        torch.save({"model": self.model.state_dict(), "done": self.done, "current": current,
                    "progress": progress, "optimisers": optimisers}, self.path() + ".part")
        os.rename(self.path() + ".part", self.path())


def main_parameters(model):
    return [(n, p) for n, p in model.named_parameters()
            if not n.startswith("mtp.") and n.split(".")[-1] not in INDEXER]


def index_parameters(model, mtp=False):
    return [(n, p) for n, p in model.named_parameters()
            if n.startswith("mtp.") == mtp and n.split(".")[-1] in INDEXER]


def index_rows(length, n, device):
    """Positions of n queries: half of them anywhere, half in the last quarter, where the tasks'
    questions are."""
    late = torch.randperm(length // 4, device=device)[: n // 2] + length - length // 4
    return torch.cat([torch.randperm(length, device=device)[: n - len(late)], late]).sort()[0]


def rate(f, peak, decay_from, floor):
    """Constant, then linear down to `floor` of the peak."""
    return peak * (1 if f < decay_from else 1 - (1 - floor) * (f - decay_from) / (1 - decay_from))


STAGES = {
    # lengths: (share of the stage's time at which the pattern begins, the steps' lengths)
    "pretrain": dict(
        kind="dense", rate=(5e-3, 0.80, 0.3), warm=100, balance=True,
        lengths=[(0, [512]), (0.36, [1024]), (0.62, [2048])],
        shares={"task": 0.48, "chat": 0.12, "prose": 0.40}),
    "extend": dict(
        kind="dense", rate=(1.8e-3, 0.45, 0.12), warm=40, balance=True,
        lengths=[(0, [2048, 8192, 8192]), (0.2, [2048, 8192, 16384]),
                 (0.55, [2048, 32768, 8192, 16384])],
        shares={"task": 0.52, "chat": 0.10, "prose": 0.38}),
    "warmup": dict(
        kind="warmup", rate=None, index_rate=(1e-3, 0.5, 0.1), warm=10, queries=8192,
        lengths=[(0, [2048, 8192]), (0.4, [8192, 16384])],
        shares={"task": 0.5, "chat": 0.12, "prose": 0.38}),
    "sparse": dict(
        kind="sparse", rate=(3.5e-4, 0.5, 0.3), index_rate=(5e-4, 0.5, 0.3), warm=20, queries=4096,
        balance=True, topk=[256, 128, 256, 512],
        lengths=[(0, [8192, 2048, 16384, 8192, 32768])],
        shares={"task": 0.55, "chat": 0.10, "prose": 0.35}),
    "tune": dict(
        kind="sparse", rate=(5e-4, 0.3, 0.1), index_rate=(3e-4, 0.3, 0.1), warm=20, queries=4096,
        balance=True, topk=[256, 256, 128, 512],
        lengths=[(0, [2048, 2048, 8192, 2048, 16384, 2048, 8192, 32768])],
        shares={"tune": 0.64, "task": 0.20, "chat": 0.04, "prose": 0.12}),
    "quantise": dict(
        kind="sparse", rate=(1e-4, 0.0, 0.1), index_rate=(1e-4, 0.0, 0.1), warm=5, queries=4096,
        topk=[256], fp8=True, lengths=[(0, [2048, 8192, 2048, 16384, 2048, 8192, 32768])],
        shares={"tune": 0.60, "task": 0.24, "chat": 0.04, "prose": 0.12}),
    "mtp": dict(
        kind="mtp", rate=(3e-3, 0.3, 0.05), index_rate=(1e-3, 0.5, 0.1), warm=20, queries=4096,
        fp8=True, lengths=[(0, [2048, 2048, 8192])],
        shares={"tune": 0.45, "task": 0.20, "chat": 0.15, "prose": 0.20}),
}
ROW_STREAMS = ("task", "tune")  # whose rows are made for one length
NO_TUNE_AT = 32768  # no conversations are packed that long: tasks take their place


def stream_shares(shares, length):
    out = {}
    for name, share in shares.items():
        if name == "tune" and length >= NO_TUNE_AT:
            name = "task"
        key = f"{name}_{length}" if name in ROW_STREAMS else name
        out[key] = out.get(key, 0) + share
    return out


def language_loss(model, ids, weights, hidden, norm):
    total = model.f["token_loss"](hidden, norm, model.head, ids.reshape(-1), weights.reshape(-1))
    return total / weights.sum().clamp_min(1)


def dense_step(run, s, ids, weights, step):
    x, loads, _ = run.model.body(ids[:, :-1].contiguous())
    loss = language_loss(run.model, ids[:, 1:], weights, x, run.model.norm)
    loss.backward()
    return loss.detach(), loads, None


def warmup_step(run, s, ids, weights, step):
    m, (b, t) = run.model, (ids.shape[0], ids.shape[1] - 1)
    with torch.no_grad():
        _, _, losses = m.body(ids[:, :-1].contiguous(),
                              index_rows=index_rows(t, s["queries"] // b, ids.device))
    sum(losses).backward()
    return sum(losses).detach(), [], losses


def sparse_step(run, s, ids, weights, step):
    m, (b, t) = run.model, (ids.shape[0], ids.shape[1] - 1)
    x, loads, losses = m.body(ids[:, :-1].contiguous(), topk=s["topk"][step % len(s["topk"])],
                              index_rows=index_rows(t, s["queries"] // b, ids.device))
    loss = language_loss(m, ids[:, 1:], weights, x, m.norm)
    (loss + sum(losses)).backward()
    return loss.detach(), loads, losses


def mtp_step(run, s, ids, weights, step):
    """The layer is trained with dense attention; its indexer learns that attention."""
    m, (b, t) = run.model, (ids.shape[0], ids.shape[1] - 1)
    with torch.no_grad():
        x, _, _ = m.body(ids[:, :-1].contiguous(), topk=EMBER.index_topk)
    u, load, index_loss = m.draft(x, ids, index_rows=index_rows(t, s["queries"] // b, ids.device))
    target = torch.cat([ids[:, 2:], ids[:, -1:]], 1)
    w = torch.cat([weights[:, 1:], torch.zeros_like(weights[:, :1])], 1)
    loss = language_loss(m, target, w, u, m.mtp.norm)
    (loss + index_loss).backward()
    return loss.detach(), [load], [index_loss]


STEPS = {"dense": dense_step, "warmup": warmup_step, "sparse": sparse_step, "mtp": mtp_step}


def prepare(run, name):
    """Freezes what the stage leaves alone; gives the optimisers (main, indexer)."""
    m, s = run.model, STAGES[name]
    m.fp8 = bool(s.get("fp8"))
    mtp = s["kind"] == "mtp"
    index = index_parameters(m, mtp) if s.get("index_rate") else []
    main = [] if s["rate"] is None else main_parameters(m)
    if mtp:
        skip = {id(p) for _, p in index}
        main = [(n, p) for n, p in m.named_parameters()
                if n.startswith("mtp.") and id(p) not in skip]
    train = {id(p) for _, p in main + index}
    for p in m.parameters():
        p.requires_grad_(id(p) in train)
    return [Optimiser(g) if g else None for g in (main, index)]


def balance(model, loads, mtp, amount=BALANCE):
    layers = [model.mtp.layer] if mtp else [x for x in model.layers if x.moe]
    with torch.no_grad():
        for layer, load in zip(layers, loads):
            layer.gate_bias += amount * torch.sign(load.mean() - load)


def train(run, name, seconds, resume=None, steps=None, log_every=25, check_every=75.0):
    """Runs one stage, for so many seconds or, in trials, steps. True when they are up; False when
    the deadline came first (then the checkpoint holds what is needed to go on)."""
    s, m, pool = STAGES[name], run.model, run.pool
    optimisers = prepare(run, name)
    p = {"seconds": 0.0, "step": 0, "tokens": 0}
    if resume:
        p = dict(resume["progress"])
        for o, state in zip(optimisers, resume["optimisers"]):
            if o:
                o.load(state)
    warm_until = p["step"] + s["warm"]
    m.train()
    last = (time.time(), p["tokens"])
    began, before, first = time.time(), p["seconds"], True
    next_check, sums, index_sums, n = time.time() + check_every, 0.0, None, 0
    log_every, times = max(1, steps // 3) if steps else log_every, {}
    while True:
        now = (before + time.time() - began, time.time() > run.deadline, time.time() > next_check)
        p["seconds"], late, check = team.share(now, pool.device)
        f = p["step"] / steps if steps else p["seconds"] / seconds
        if f >= 1 or late:
            break
        pattern = [x for at, x in s["lengths"] if f >= at][-1]
        length = pattern[p["step"] % len(pattern)]
        shares = stream_shares(s["shares"], length)
        pool.wait(*shares)
        rows, row_weights = pool.batch(shares, length, run.tokens)
        ids, weights = batches.split(rows, row_weights)
        loss, loads, index_losses = STEPS[s["kind"]](run, s, ids, weights, p["step"])
        ramp = min(1.0, (p["step"] + 1 - warm_until + s["warm"]) / s["warm"])
        rates = [ramp * rate(f, *r) if r else 0.0 for r in (s["rate"], s.get("index_rate"))]
        team.gradients(m)
        team.average(loads)
        for o, r in zip(optimisers, rates):
            if o:
                o.step(r)
        m.zero_grad(set_to_none=True)
        if loads and s["rate"] and (s.get("balance") or s["kind"] == "mtp") and f < 0.9:
            balance(m, loads, s["kind"] == "mtp", BALANCE if length <= 2048 else 0.3 * BALANCE)
        p["step"] += 1
        p["tokens"] += rows.shape[0] * length * team.SIZE
        if first and not steps:  # what compiling took is not the stage's time
            if rows.is_cuda:
                torch.cuda.synchronize()
            run.say(what="compiled", stage=name, seconds=round(time.time() - began, 1))
            began, first = time.time(), False
            last = (began, p["tokens"])
        if steps and rows.is_cuda:  # a trial: milliseconds of each step
            torch.cuda.synchronize()
            passed = time.time() - began
            times.setdefault(length, []).append(round(1000 * (passed - sum(map(sum, times.values()))
                                                              / 1000)))
        sums, n = sums + loss, n + 1
        if index_losses:
            now = torch.stack([x.detach() for x in index_losses])
            index_sums = now if index_sums is None else index_sums + now
        early = p["step"] - warm_until + s["warm"] in (2, 5)
        if early or p["step"] % log_every == 0:
            speed = (p["tokens"] - last[1]) / max(1e-9, time.time() - last[0])
            extra = {}
            if index_sums is not None:
                extra["index_loss"] = [round(float(x) / n, 4) for x in index_sums]
            if loads:
                worst = max(float((x / x.mean()).max()) for x in loads)
                extra["worst_load"] = round(worst, 2)
            run.say(what="step", stage=name, step=p["step"], length=length,
                    seconds=round(p["seconds"], 1), tokens=p["tokens"],
                    loss=round(float(sums) / n, 4), rate=round(max(rates), 6),
                    tokens_per_second=round(speed), **extra)
            sums, index_sums, n = 0.0, None, 0
            last = (time.time(), p["tokens"])
        if check and f < 0.95:
            next_check = time.time() + check_every
            if team.RANK:
                continue
            lengths = sorted(set(pattern) | {512} if s["kind"] in ("dense", "sparse") else ())
            lengths = [n for n in lengths if n <= CHECK_LENGTH]
            topk = EMBER.index_topk if s["kind"] == "sparse" else None
            with torch.no_grad():
                found = {f"{k}_{n}": look_up(m, pool.folder, k, n, run.tokens, topk, 16)
                         for n in lengths for k in ("table", "table_held", "facts_held")}
                text = held_out(m, pool.folder, "held_books", min(2048, max(pattern)), run.tokens,
                                topk, 1)
            m.train()
            run.say(what="check", stage=name, step=p["step"], tokens=p["tokens"], held_out=text,
                    **{k: v["accuracy"] for k, v in found.items() if v})
            last = (time.time(), p["tokens"])
    finished = f >= 1
    run.say(what="stage", stage=name, finished=finished, steps=p["step"], tokens=p["tokens"],
            seconds=round(p["seconds"], 1), data=pool.tokens(), ms=times,
            peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1)
            if torch.cuda.is_available() else None)
    if not finished:
        run.save(name, p, [o.state() if o else None for o in optimisers])
    return finished
