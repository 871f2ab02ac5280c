#!/usr/bin/env python3
"""A stand-in for an OpenAI-compatible server: the times and the mistakes are the ones asked for.

  tests/scripts/stand_in.py --port 0 --first-ms 20 --token-ms 5 --name a

Prints `listening PORT`. A request's field `stand_in` picks a mistake: status:CODE, busy_once, cut,
no_done, no_reason, error_event, bad_json, bad_utf8, silent, split (bytes one at a time), close.
SIGTERM drains: new requests get 503, running ones end, then the program does. GET /seen tells how
many requests each conversation (the first two messages) sent here.
"""

import argparse
import asyncio
import json
import os
import signal

WORDS = "the quick brown fox jumps over the lazy dog naïvely — 日本語 and then more".split()


class StandIn:
    def __init__(self, args):
        self.args = args
        self.served = self.running = self.generated = self.prompted = 0
        self.busy_seen = set()
        self.seen = {}
        self.draining = False
        self.idle = asyncio.Event()

    async def client(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:] if h)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path in ("/health", "/health/ready"):
            self.whole(writer, 503 if self.draining else 200, {"status": "ok"})
        elif path == "/v1/models":
            self.whole(writer, 200, {"object": "list", "data": [{"id": "stand-in"}]})
        elif path == "/seen":
            self.whole(writer, 200, self.seen)
        elif path == "/metrics":
            text = ("# TYPE vllm:generation_tokens_total counter\n"
                    "vllm:generation_tokens_total{m=\"a b\"} %d\n"
                    "vllm:prompt_tokens_total %d\nprocess_resident_memory_bytes 5e7\n"
                    % (self.generated, self.prompted))
            self.send(writer, 200, "text/plain; version=0.0.4", text.encode())
        elif path == "/tokenize":
            words = len(json.loads(body)["prompt"].split())
            self.whole(writer, 200, {"count": 2 * words})
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            return await self.complete(writer, path, json.loads(body))
        else:
            self.whole(writer, 404, {"error": {"message": path, "type": "x", "code": "not_found"}})
        await writer.drain()
        return headers.get("connection", "").lower() != "close"

    def send(self, writer, status, kind, data, extra=""):
        writer.write(("HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
                      "x-replica: %s\r\n%s\r\n"
                      % (status, kind, len(data), self.args.name, extra)).encode() + data)

    def whole(self, writer, status, obj, extra=""):
        self.send(writer, status, "application/json", json.dumps(obj).encode(), extra)

    async def complete(self, writer, path, ask):
        chat = path.endswith("chat/completions")
        how = ask.get("stand_in", "")
        if self.draining:
            self.whole(writer, 503, {"error": {"message": "draining", "code": "unavailable"}},
                       "retry-after: 1\r\n")
            return True
        if how.startswith("status:"):
            self.whole(writer, int(how[7:]), {"error": {"message": "m", "code": "asked_for"}})
            return True
        if how == "busy_once" and id(self) not in self.busy_seen:
            self.busy_seen.add(id(self))
            self.whole(writer, 429, {"error": {"message": "m", "code": "rate_limit_exceeded"}},
                       "retry-after: 0\r\n")
            return True
        if how == "close":
            return False
        key = json.dumps(ask.get("messages", [ask.get("prompt")])[:2], ensure_ascii=False)[:200]
        self.seen[key] = self.seen.get(key, 0) + 1
        prompt = ask.get("prompt")
        n_prompt = len(prompt) if isinstance(prompt, list) else len(json.dumps(
            ask.get("messages", prompt)).split())
        n = ask.get("max_tokens", 16)
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n,
                 "prompt_tokens_details": {"cached_tokens": n_prompt // 2}}
        self.running += 1
        self.prompted += n_prompt
        try:
            if not ask.get("stream"):
                await asyncio.sleep((self.args.first_ms + n * self.args.token_ms) / 1e3)
                text = " ".join(WORDS[i % len(WORDS)] for i in range(n))
                part = {"text": text}
                if chat:
                    part = {"message": {"role": "assistant", "content": text}}
                part["finish_reason"] = "length"
                self.generated += n
                self.whole(writer, 200, {"choices": [part], "usage": usage})
                return True
            return await self.stream(writer, chat, how, n, usage)
        finally:
            self.running -= 1
            self.served += 1
            if not self.running:
                self.idle.set()

    async def stream(self, writer, chat, how, n, usage):
        writer.write(("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: "
                      "chunked\r\nx-replica: %s\r\n\r\n" % self.args.name).encode())

        async def put(data):
            piece = b"%x\r\n%s\r\n" % (len(data), data)
            if how == "split":
                for i in range(len(piece)):
                    writer.write(piece[i:i + 1])
                    await asyncio.sleep(0)
            else:
                writer.write(piece)
            await writer.drain()

        def event(text=None, reason=None, **more):
            part = {"index": 0, "finish_reason": reason}
            if chat:
                part["delta"] = {"content": text} if text is not None else {}
            else:
                part["text"] = text or ""
            return ("data: %s\n\n" % json.dumps(dict(more, choices=[part]))).encode()

        if chat:
            await put(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
        if how == "silent":
            await asyncio.sleep(3600)
        await asyncio.sleep(self.args.first_ms / 1e3)
        for i in range(n):
            if i:
                await asyncio.sleep(self.args.token_ms / 1e3)
            if i == 2 and how == "cut":
                return False
            if i == 2 and how in ("error_event", "bad_json", "bad_utf8"):
                await put({"error_event": b'data: {"error":{"code":"step_failed"}}\n\n',
                           "bad_json": b"data: {\n\n",
                           "bad_utf8": b'data: {"choices":[{"text":"\xff"}]}\n\n'}[how])
                break
            self.generated += 1
            await put(b": keep-alive\n\n" + event(WORDS[i % len(WORDS)] + " "))
        if how != "no_reason":
            await put(event(reason="length"))
        await put(("data: %s\n\n" % json.dumps({"choices": [], "usage": usage})).encode())
        if how != "no_done":
            await put(b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def main():
    p = argparse.ArgumentParser()
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--first-ms", type=float, default=5.0)
    p.add_argument("--token-ms", type=float, default=2.0)
    p.add_argument("--name", default="a")
    args = p.parse_args()
    stand_in = StandIn(args)
    server = await asyncio.start_server(stand_in.client, "127.0.0.1", args.port, backlog=4096)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    stand_in.draining = True
    await asyncio.sleep(1.0)  # time for a health check to notice, as a real server gives
    while stand_in.running:
        stand_in.idle.clear()
        await stand_in.idle.wait()
    os._exit(0)  # the connections that idle would each complain of being cancelled


if __name__ == "__main__":
    asyncio.run(main())
