"""Training batches, drawn on the GPU from the shards that prepare.py writes while training runs."""
import glob
import os
import re
import time

import numpy as np
import torch

from ember import BOS

TARGET, IDS = 1 << 15, (1 << 13) - 1
ANSWER_WEIGHT = 3.0  # of a supervised token in a synthetic row, against one of prose


class Pool:
    """Every stream's tokens on the device; new shards are taken in when refreshed."""

    def __init__(self, folder, device, seed=0):
        self.folder, self.device = folder, device
        self.taken, self.streams, self.lengths = set(), {}, {}
        self.rng = np.random.default_rng(seed)
        self.next_look = 0.0

    def refresh(self):
        if time.time() < self.next_look:
            return
        self.next_look = time.time() + 2.0
        fresh = {}
        for path in sorted(glob.glob(os.path.join(self.folder, "*.npy"))):
            m = re.match(r"(prose|chat|task_\d+|tune_\d+)_\d+\.npy$", os.path.basename(path))
            if m and path not in self.taken:
                self.taken.add(path)
                array = torch.from_numpy(np.load(path).view(np.int16))
                fresh.setdefault(m.group(1), []).append(array)
        for name, arrays in fresh.items():
            new = torch.cat(arrays).to(self.device)
            old = self.streams.get(name)
            self.streams[name] = new if old is None else torch.cat([old, new])

    def wait(self, *names):
        """Blocks until each stream has something."""
        start = time.time()
        while any(n not in self.streams for n in names):
            self.refresh()
            time.sleep(0.2)
            if time.time() - start > 240:
                raise TimeoutError(f"no shards of {names}")

    def tokens(self):
        return {n: int(s.numel()) for n, s in self.streams.items()}

    def rows(self, name, n, length):
        s = self.streams[name]
        if s.ndim == 2:
            pick = torch.from_numpy(self.rng.integers(0, len(s), n)).to(self.device)
            out = s[pick]
        else:
            at = torch.from_numpy(self.rng.integers(0, len(s) - length - 1, n)).to(self.device)
            out = s[at[:, None] + torch.arange(length + 1, device=self.device)]
            out[:, 0] = BOS  # as every prompt begins; within the stream it is rare
        return out.long() & 0xFFFF

    def batch(self, shares, length, tokens):
        """shares: {stream: share of rows}. Rows [B, length+1] and the weight of each row."""
        self.refresh()
        n = tokens // length
        names = [s for s in shares]
        p = np.array([shares[s] for s in names], dtype=float)
        counts = np.floor(p / p.sum() * n).astype(int)
        for i in self.rng.choice(len(names), n - counts.sum(), p=p / p.sum()):
            counts[i] += 1
        rows, weights = [], []
        for name, count in zip(names, counts):
            if count:
                rows.append(self.rows(name, int(count), length))
                heavy = ANSWER_WEIGHT if name.startswith("task") else 1.0
                weights.append(torch.full((int(count),), heavy, device=self.device))
        return torch.cat(rows), torch.cat(weights)


def split(rows, weights):
    """Packed rows -> ids [B, T+1], loss weights [B, T] of the next tokens."""
    ids = rows & IDS
    return ids, (rows[:, 1:] >= TARGET).float() * weights[:, None]
