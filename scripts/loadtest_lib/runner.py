"""Runs stages: closed loops of clients, or arrivals at a rate; watches the client itself too."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
from time import perf_counter

from .client import Answer
from .stats import Sample, quantile, stage_summary, summary
from .workload import arrivals

# The server's own account, summed over labels: counters as differences, gauges at begin and end.
COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total",
            "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
            "vllm:request_success_total", "vllm:num_preemptions_total",
            "process_cpu_seconds_total")
GAUGES = ("process_resident_memory_bytes", "process_open_fds", "vllm:num_requests_running",
          "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def read_metrics(text):
    """Prometheus text to {name: sum over labels}."""
    out = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        name = line.split("{", 1)[0].split(" ", 1)[0]
        rest = line.rsplit("}", 1)[1] if "}" in line else line[len(name):]
        try:
            out[name] = out.get(name, 0.0) + float(rest.split()[0])
        except (ValueError, IndexError):
            continue
    return out


class Stage:
    """One load: `clients` at once (closed loop) or `rate` arrivals a second (open loop), until
    `seconds` have passed or `requests` have been begun."""

    def __init__(self, name, clients=None, rate=None, kind="poisson", seconds=None, requests=None):
        self.name = name
        self.clients = clients
        self.rate = rate
        self.kind = kind
        self.seconds = seconds
        self.requests = requests


class Runner:
    def __init__(self, client, root, plan, path, options):
        self.client = client
        self.root = root  # where /metrics is: beside /v1
        self.plan = plan
        self.path = path
        self.options = options
        self.samples = []
        self.live = set()    # samples under way
        self.begun = 0
        self.ended = {"done": 0, "failed": 0, "chunks": 0}
        self.lag_ms = []
        self.watched = []
        self.tasks = set()
        self.number = 0  # of requests in this run, for x-request-id

    # One request, with the tries that a 429 or 503 and --retries allow.
    async def ask(self, sample, body):
        options = self.options
        data = json.dumps(body, ensure_ascii=False).encode()
        self.number += 1
        headers = (("x-request-id", "load-%s-%d" % (options.seed, self.number)),)
        leave = None
        chance = random.Random("%s leave %d" % (options.seed, self.number))
        if options.vanish and chance.random() < options.vanish:
            leave = chance.uniform(0, options.vanish_after)
        keep_text = self.plan.turns.high > 1
        while True:
            answer = Answer(keep_text)
            sample.answer = answer
            await self.client.send("POST", self.path, data, answer, self.plan.stream, headers,
                                   leave)
            if answer.status not in (429, 503) or sample.tries > options.retries:
                break
            sample.tries += 1
            try:
                wait = float(answer.retry_after or 1)
            except ValueError:
                wait = 1.0  # a date; a second is as good a guess
            await asyncio.sleep(wait)
        sample.left = answer.error == "left"

    async def converse(self, stage, client, number, start, may_begin=lambda: True):
        """All turns of one conversation."""
        conversation = self.plan.conversation(stage.name, number)
        for turn in range(conversation.turns):
            if turn and not may_begin():
                return
            body, asked = conversation.body(turn)
            sample = Sample(client, turn, start if turn == 0 else perf_counter(), asked)
            sample.answer = Answer()
            self.samples.append(sample)
            self.begun += 1
            self.live.add(sample)
            try:
                await self.ask(sample, body)
            except asyncio.CancelledError:  # the stage's end: what came so far still counts
                now = perf_counter()
                sample.left = True
                sample.answer.end = now
                sample.answer.sent = sample.answer.sent or now
                raise
            finally:
                self.live.discard(sample)
                self.ended["done"] += 1
                self.ended["failed"] += 0 if sample.ok or sample.left else 1
                self.ended["chunks"] += sample.answer.chunks
            if not sample.ok:
                return
            if turn + 1 < conversation.turns:
                conversation.reply("".join(sample.answer.text))
                if self.options.think_time:
                    await asyncio.sleep(self.options.think_time.draw(conversation.rng) / 1e3)

    async def closed_loop(self, stage, begin):
        """Each client starts its next conversation when the last one has ended."""
        taken = 0

        def may_begin():
            if stage.seconds and perf_counter() - begin >= stage.seconds:
                return False
            return not stage.requests or self.begun < stage.requests

        async def one(client):
            nonlocal taken
            if self.options.ramp:  # a thousand connects at one moment would measure the backlog
                await asyncio.sleep(self.options.ramp * client / stage.clients)
            while may_begin():
                number, taken = taken, taken + 1
                before = len(self.samples)
                await self.converse(stage, client, number, perf_counter(), may_begin)
                if len(self.samples) > before and not self.samples[-1].ok:
                    await asyncio.sleep(0.05)  # a server that refuses is not to be hammered

        for client in range(stage.clients):
            self.spawn(one(client))

    async def open_loop(self, stage, begin):
        """Conversations arrive at their own times, whether the server keeps up or not."""
        due, number = begin, 0
        for wait in arrivals(stage.kind, stage.rate, self.options.seed, stage.name):
            if stage.seconds and due - begin >= stage.seconds:
                return
            if stage.requests and number >= stage.requests:
                return
            delay = due - perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            while self.options.max_running and len(self.live) >= self.options.max_running:
                await asyncio.sleep(0.005)
            self.spawn(self.converse(stage, number, number, due))
            number += 1
            due += wait

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self, stage, record=True):
        self.samples, self.begun, self.lag_ms, self.watched = [], 0, [], []
        self.ended = dict.fromkeys(self.ended, 0)
        # The collector would stop every stream for tens of milliseconds at a time; there are next
        # to no cycles here, and what there is goes between the stages.
        gc.collect()
        gc.freeze()
        gc.disable()
        helpers = [asyncio.ensure_future(self.watch_lag())]
        before = await self.metrics() if record else None
        begin = perf_counter()
        if record:
            helpers.append(asyncio.ensure_future(self.progress(stage, begin)))
            if before is not None:
                helpers.append(asyncio.ensure_future(self.watch_server(begin)))
        cut_after = (stage.seconds or 0) + self.options.drain if self.options.drain else None
        try:
            await (self.closed_loop if stage.clients else self.open_loop)(stage, begin)
            while self.tasks:
                left = None
                if cut_after and stage.seconds:
                    left = max(0.0, begin + cut_after - perf_counter())
                _, late = await asyncio.wait(set(self.tasks), timeout=left)
                if late and left is not None:
                    for task in late:
                        task.cancel()
                    await asyncio.gather(*late, return_exceptions=True)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            gc.enable()
            gc.unfreeze()
        ends = [s.answer.end for s in self.samples]
        end = begin + stage.seconds if stage.seconds and not stage.requests else max(ends + [begin])
        if not record:
            return None
        after = await self.metrics() if before is not None else None
        return self.report(stage, begin, end, before, after)

    def report(self, stage, begin, end, before, after):
        out = {"name": stage.name,
               "kind": "concurrency" if stage.clients else "rate",
               "value": stage.clients or stage.rate,
               "arrivals": "closed loop" if stage.clients else stage.kind}
        out.update(stage_summary(self.samples, begin, end, self.options.goodput,
                                 bool(stage.clients)))
        out["client_lag_ms"] = {"p99": quantile(sorted(self.lag_ms), 0.99),
                                "max": max(self.lag_ms or [0.0])}
        if after is not None:
            server = {"delta": {k: after[k] - before[k] for k in COUNTERS
                                if k in after and k in before},
                      "begin": {k: before[k] for k in GAUGES if k in before},
                      "end": {k: after[k] for k in GAUGES if k in after}}
            server["series"] = {"seconds": [round(t, 2) for t, _ in self.watched]}
            for key in GAUGES:
                if any(key in m for _, m in self.watched):
                    server["series"][key] = [m.get(key) for _, m in self.watched]
            out["server"] = server
        return out

    async def metrics(self):
        if not self.options.metrics:
            return None
        status, body = await self.root.fetch("GET", self.options.metrics)
        return read_metrics(body.decode("utf-8", "replace")) if status == 200 else None

    async def watch_server(self, begin):
        while True:
            await asyncio.sleep(1.0)
            now = await self.metrics()
            if now is not None:
                self.watched.append((perf_counter() - begin, now))

    async def watch_lag(self):
        """How late our own timers fire: times below this say more about us than of the server."""
        while True:
            due = perf_counter() + 0.02
            await asyncio.sleep(0.02)
            self.lag_ms.append((perf_counter() - due) * 1e3)

    async def progress(self, stage, begin):
        if self.options.quiet:
            return
        live = sys.stderr.isatty()
        seen_chunks, seen_at, seen_n = 0, begin, 0
        while True:
            await asyncio.sleep(1.0 if live else 10.0)
            now = perf_counter()
            chunks = self.ended["chunks"] + sum(s.answer.chunks for s in self.live)
            fresh = [s for s in self.samples[-2000:] if s.answer.chunks]
            ttft = summary([(s.answer.first - s.start) * 1e3 for s in fresh])
            done = self.ended["done"]
            line = "%s  %4.0f s  running %d  done %d  failed %d  %.1f req/s  %.0f pieces/s" % (
                stage.name, now - begin, len(self.live), done, self.ended["failed"],
                (done - seen_n) / (now - seen_at), (chunks - seen_chunks) / (now - seen_at))
            if ttft["n"]:
                line += "  first token p50 %.0f p99 %.0f ms" % (ttft["p50"], ttft["p99"])
            seen_chunks, seen_at, seen_n = chunks, now, done
            sys.stderr.write("\r\x1b[K" + line if live else line + "\n")
            sys.stderr.flush()
