"""Runs the stages one after another, from the checkpoint if there is one.

    python3 run.py WORK pretrain=330 extend=240 warmup=60 ... [--limit SECONDS] [--out DIR]
                        [--start MODEL_DIR]

WORK/data holds prepare.py's shards (it may still be writing); WORK gets train.jsonl and
checkpoint.pt. After --limit seconds the run stops wherever it is, ready to go on. --out gets the
weights in bf16, cut into pieces of 15 MB, and the log. --start begins with the weights of an
exported model, all but the indexer's, which starts anew for its warm-up; --keep-indexer takes
that, too. --steps N replaces every stage's seconds by N steps, for trials. Under
`torchrun --nproc-per-node N` N GPUs train together (team.py), --tokens a step each.
"""
import argparse
import io
import os
import shutil
import sys
import time

import torch

import attention
import batches
import model
import stages
import team

PIECE = 15_000_000


def keep_copy(run, out):
    """The weights in bf16 and the log, in small files."""
    os.makedirs(out, exist_ok=True)
    f = io.BytesIO()
    torch.save({k: v.to(torch.bfloat16) for k, v in run.model.state_dict().items()}, f)
    data = f.getvalue()
    for i in range(0, len(data), PIECE):
        with open(os.path.join(out, f"weights.bf16.{i // PIECE}"), "wb") as piece:
            piece.write(data[i: i + PIECE])
    shutil.copy(os.path.join(run.folder, "train.jsonl"), os.path.join(out, "train.jsonl"))


def start_from(net, path, indexer):
    """Takes over an exported model's weights, the indexer's only if that is asked for."""
    import export
    old = export.load(path, "cpu").state_dict()
    new = net.state_dict()
    new.update({k: v for k, v in old.items()
                if indexer or k.split(".")[-1] not in model.INDEXER})
    net.load_state_dict(new)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("work")
    p.add_argument("stages", nargs="+")
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--out")
    p.add_argument("--start", help="directory of an exported model to begin with")
    p.add_argument("--keep-indexer", action="store_true")
    p.add_argument("--steps", type=int)
    p.add_argument("--tokens", type=int, default=65536, help="of one step")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    start = time.time()
    device = team.join()
    torch.manual_seed(args.seed)
    net = model.Ember().to(device)
    pool = batches.Pool(os.path.join(args.work, "data"), device, args.seed + team.RANK)
    run = stages.Run(net, pool, args.work, args.tokens, start + args.limit)
    if net.embed.is_cuda:
        net.f = model.compiled()
        torch.set_float32_matmul_precision("high")
        errors = attention.check(device)
        run.say(what="kernels", device=torch.cuda.get_device_name(), n=team.SIZE,
                torch=torch.__version__, **errors)
        assert errors["wrong_counts"] == 0 and max(errors["masked"] + errors["dense"]) < 0.02
    saved = {"done": [], "current": None}
    if os.path.exists(run.path()):
        saved = torch.load(run.path(), map_location=device)
        net.load_state_dict(saved["model"])
        run.say(what="resumed", done=saved["done"], current=saved["current"])
    elif args.start:
        start_from(net, args.start, args.keep_indexer)
        run.say(what="started from an exported model")
    run.done = saved["done"]
    run.say(what="start", parameters=sum(x.numel() for x in net.parameters()))
    for spec in args.stages:
        name, seconds = spec.split("=")
        if name in run.done:
            continue
        resume = saved if saved["current"] == name else None
        if not stages.train(run, name, float(seconds), resume, args.steps):
            break
        run.done = run.done + [name]
        run.save()
    if args.out and team.RANK == 0:
        keep_copy(run, args.out)
    team.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
