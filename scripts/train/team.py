"""Several GPUs as one trainer: a process each, started by torchrun; alone, nothing here does
anything.

Every process holds the whole model and draws batches of its own; gradients and the experts' loads
are averaged, and what a step depends on besides (the share of the stage's time that has passed, the
deadline) is the first process's. So all of them take the same steps and stay equal.
"""
import os

import torch
import torch.distributed as dist

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join():
    """Call once, before any of the others; gives this process's device."""
    gpu = torch.cuda.is_available()
    place = int(os.environ.get("LOCAL_RANK", 0))
    if gpu:
        torch.cuda.set_device(place)
    if SIZE > 1:
        dist.init_process_group("nccl" if gpu else "gloo")
    return f"cuda:{place}" if gpu else "cpu"


def leave():
    if SIZE > 1:
        dist.barrier()
        dist.destroy_process_group()


def share(values, device):
    """The first process's numbers, for all."""
    if SIZE == 1:
        return values
    t = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(t, 0)
    return t.tolist()


def average(tensors):
    """Each tensor becomes its mean over the processes, in place."""
    if SIZE == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= SIZE
    at = 0
    for t in tensors:
        t.copy_(flat[at: at + t.numel()].view_as(t))
        at += t.numel()


def gradients(model):
    average([p.grad for p in model.parameters() if p.grad is not None])
