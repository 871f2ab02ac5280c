"""A small HTTP/1.1 client for answers that stream: a socket, a request at a time, no copies kept.

Parsers are plain objects fed with bytes, correct wherever the network cut them; the asyncio
protocol only hands bytes over and notes the time. That is what lets one process watch thousands of
streams: a token costs one callback, one line split and one JSON parse.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from array import array
from time import perf_counter
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 64 * 1024
MAX_ERROR_BYTES = 64 * 1024


class BadAnswer(Exception):
    """The server's bytes are not what HTTP, SSE or JSON allow; the text is the error's kind."""


class SseParser:
    """Cuts an event stream into events. feed() returns the data of each event that is complete."""

    def __init__(self):
        self.tail = b""
        self.skip_lf = False
        self.at_start = True
        self.data = []
        self.comments = 0

    def feed(self, chunk):
        if not chunk:
            return []
        if self.skip_lf:  # the LF of a CR LF that was cut in two
            self.skip_lf = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            self.skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self.tail + chunk).split(b"\n")
        self.tail = lines.pop()
        events = []
        for line in lines:
            if self.at_start:
                self.at_start = False
                if line.startswith(b"\xef\xbb\xbf"):
                    line = line[3:]
            if not line:
                if self.data:
                    events.append(self._text())
                    self.data = []
            elif line.startswith(b"data:"):
                self.data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self.data.append(b"")
            elif line.startswith(b":"):
                self.comments += 1
            # event:, id:, retry: and unknown fields say nothing that the completions APIs use
        return events

    def _text(self):
        try:
            return b"\n".join(self.data).decode("utf-8")
        except UnicodeDecodeError:
            raise BadAnswer("invalid UTF-8 in an event") from None


class HttpParser:
    """Reads one response. feed() returns the body bytes in what came; `done` says when it ended."""

    def __init__(self):
        self.buf = b""
        self.state = "head"
        self.status = 0
        self.headers = {}
        self.left = 0
        self.keep_alive = True

    @property
    def done(self):
        return self.state == "done"

    def feed(self, data):
        out = []
        self.buf = self.buf + data if self.buf else data
        while self.buf or self.state == "length":
            step = getattr(self, "_" + self.state)
            if not step(out):
                break
        return b"".join(out)

    def eof(self):
        """The peer closed. True if that is a legal end of this response."""
        if self.state == "until_close":
            self.state = "done"
        return self.state == "done"

    def _head(self, out):
        end = self.buf.find(b"\r\n\r\n")
        if end < 0:
            if len(self.buf) > MAX_HEAD_BYTES:
                raise BadAnswer("response head too long")
            return False
        lines = self.buf[:end].decode("latin-1").split("\r\n")
        self.buf = self.buf[end + 4:]
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise BadAnswer("not an HTTP response")
        self.status = int(parts[1])
        self.headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadAnswer("malformed response header")
            self.headers[name.strip().lower()] = value.strip()
        if 100 <= self.status < 200:
            return True  # an interim answer; the real head follows
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (
            parts[0] == "HTTP/1.1" or "keep-alive" in connection)
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self.state = "chunk_size"
        elif self.status in (204, 304):
            self.state = "done"
        elif "content-length" in self.headers:
            length = self.headers["content-length"]
            if not length.isdigit():
                raise BadAnswer("malformed Content-Length")
            self.left = int(length)
            self.state = "length"
        else:
            self.state = "until_close"
            self.keep_alive = False
        return True

    def _length(self, out):
        part = self.buf[:self.left]
        self.buf = self.buf[len(part):]
        self.left -= len(part)
        if part:
            out.append(part)
        if self.left == 0:
            self.state = "done"
        return self.left == 0

    def _until_close(self, out):
        out.append(self.buf)
        self.buf = b""
        return False

    def _chunk_size(self, out):
        end = self.buf.find(b"\r\n")
        if end < 0:
            if len(self.buf) > 1024:
                raise BadAnswer("malformed chunk")
            return False
        try:
            self.left = int(self.buf[:end].split(b";")[0].strip(), 16)
        except ValueError:
            raise BadAnswer("malformed chunk") from None
        self.buf = self.buf[end + 2:]
        self.state = "chunk_data" if self.left else "trailer"
        return True

    def _chunk_data(self, out):
        if self.left:
            part = self.buf[:self.left]
            self.buf = self.buf[len(part):]
            self.left -= len(part)
            out.append(part)
        if self.left or len(self.buf) < 2:
            return False
        if self.buf[:2] != b"\r\n":
            raise BadAnswer("malformed chunk")
        self.buf = self.buf[2:]
        self.state = "chunk_size"
        return True

    def _trailer(self, out):
        end = self.buf.find(b"\r\n")
        if end < 0:
            return False
        line, self.buf = self.buf[:end], self.buf[end + 2:]
        if not line:
            self.state = "done"
        return True

    def _done(self, out):
        raise BadAnswer("bytes after the response's end")


class Answer:
    """What one request got, with the times of its pieces (perf_counter seconds)."""

    __slots__ = ("status", "error", "sent", "first", "last", "end", "times", "text", "chunks",
                 "prompt_tokens", "output_tokens", "cached_tokens", "finish_reason",
                 "retry_after", "got_bytes", "keep_text", "message", "body")

    def __init__(self, keep_text=False):
        self.status = 0
        self.error = None          # None: answered in full; else the kind
        self.sent = self.first = self.last = self.end = 0.0
        self.times = array("d")    # when each piece of content came
        self.text = []
        self.chunks = 0
        self.prompt_tokens = self.output_tokens = self.cached_tokens = None
        self.finish_reason = None
        self.retry_after = None
        self.got_bytes = False
        self.message = ""          # of an error: the server's own words, shortened
        self.body = b""            # of an answer that is no event stream
        self.keep_text = keep_text  # conversations need the answer's words for their next turn


def content_of(choice):
    """The new text in a streamed or whole choice, or "" if this piece only carries bookkeeping."""
    part = choice.get("delta") or choice.get("message")
    if part is None:
        return choice.get("text") or ""
    text = part.get("content") or part.get("reasoning_content") or part.get("reasoning") or ""
    if not text and part.get("tool_calls"):
        text = json.dumps(part["tool_calls"])
    return text


def error_kind(status, body):
    """`http 429 rate_limit_exceeded`: the status with the code or type of the error's JSON."""
    word = ""
    try:
        error = json.loads(body)["error"]
        word = str(error.get("code") or error.get("type") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return ("http %d %s" % (status, word)).strip()


class Exchange:
    """One request and its answer on one connection; fulfils `done` when there is nothing more."""

    def __init__(self, answer, stream, done, plain=False):
        self.answer = answer
        self.stream = stream
        self.plain = plain  # not a completion: its body is handed over as it is
        self.done = done
        self.http = HttpParser()
        self.sse = None
        self.body = []
        self.body_bytes = 0
        self.saw_done = False

    def on_data(self, now, data):
        answer = self.answer
        answer.got_bytes = True
        try:
            body = self.http.feed(data)
            if not answer.status and self.http.state != "head":
                answer.status = self.http.status
                answer.retry_after = self.http.headers.get("retry-after")
                kind = self.http.headers.get("content-type", "")
                if answer.status == 200 and "text/event-stream" in kind:
                    self.sse = SseParser()
            if body:
                if self.sse:
                    for event in self.sse.feed(body):
                        self.on_event(now, event)
                else:
                    self.body_bytes += len(body)
                    if answer.status == 200 or self.body_bytes <= MAX_ERROR_BYTES:
                        self.body.append(body)
            if self.http.done:
                self.finish(now)
        except BadAnswer as bad:
            self.fail(now, str(bad))
        except (AttributeError, KeyError, TypeError):
            self.fail(now, "answer of an unexpected shape")

    def on_event(self, now, event):
        answer = self.answer
        if event == "[DONE]":
            self.saw_done = True
            return
        try:
            chunk = json.loads(event)
        except ValueError:
            raise BadAnswer("invalid JSON in an event") from None
        if not isinstance(chunk, dict):
            raise BadAnswer("an event that is no object")
        if chunk.get("error"):
            error = chunk["error"]
            word = error.get("code") or error.get("type") if isinstance(error, dict) else ""
            answer.message = json.dumps(error)[:400]
            raise BadAnswer(("error in the stream %s" % (word or "")).strip())
        self.take_usage(chunk)
        fresh = False
        for choice in chunk.get("choices") or ():
            text = content_of(choice)
            if text:
                fresh = True
                if answer.keep_text:
                    answer.text.append(text)
            if choice.get("finish_reason"):
                answer.finish_reason = choice["finish_reason"]
        if fresh:
            if not answer.chunks:
                answer.first = now
            answer.last = now
            answer.chunks += 1
            answer.times.append(now)

    def take_usage(self, chunk):
        usage = chunk.get("usage")
        if not usage:
            return
        answer = self.answer
        answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
        answer.output_tokens = usage.get("completion_tokens", answer.output_tokens)
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        answer.cached_tokens = answer.cached_tokens if cached is None else cached

    def on_close(self, now):
        if self.done.done():
            return
        answer = self.answer
        if not answer.got_bytes:
            self.fail(now, "closed without an answer")
        elif self.http.eof():
            self.finish(now)
        else:
            self.fail(now, "answer cut off")

    def finish(self, now):
        answer = self.answer
        answer.body = b"".join(self.body)
        if answer.status != 200:
            answer.message = answer.body[:400].decode("utf-8", "replace")
            return self.fail(now, error_kind(answer.status, answer.body))
        if self.sse:
            if not self.saw_done:
                return self.fail(now, "stream without [DONE]")
            if not answer.finish_reason:
                return self.fail(now, "stream without finish_reason")
        elif self.stream:
            return self.fail(now, "no event stream")
        elif not self.plain:
            try:
                whole = json.loads(answer.body)
            except ValueError:
                return self.fail(now, "invalid JSON in the answer")
            self.take_usage(whole)
            for choice in whole.get("choices") or ():
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                text = content_of(choice)
                if answer.keep_text:
                    answer.text.append(text)
        self.fail(now, None)

    def fail(self, now, kind):
        if not self.done.done():
            self.answer.error = kind
            self.answer.end = now
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """One socket; `exchange` is what is under way on it, None while it idles in the pool."""

    def __init__(self):
        self.transport = None
        self.exchange = None
        self.open = False

    def connection_made(self, transport):
        self.transport = transport
        self.open = True

    def data_received(self, data):
        if self.exchange:
            self.exchange.on_data(perf_counter(), data)
        else:
            self.close()  # bytes nobody asked for: this connection cannot be trusted any more

    def connection_lost(self, exc):
        self.open = False
        if self.exchange:
            self.exchange.on_close(perf_counter())

    def close(self):
        self.open = False
        if self.transport:
            self.transport.abort()


class Client:
    """Sends requests to one server and keeps idle connections for the next ones."""

    def __init__(self, base_url, headers=(), timeout_s=600.0, connect_timeout_s=10.0, reuse=True,
                 insecure_tls=False):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http or https address: %s" % base_url)
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.prefix = parts.path.rstrip("/")
        self.tls = None
        if parts.scheme == "https":
            self.tls = ssl.create_default_context()
            if insecure_tls:
                self.tls.check_hostname = False
                self.tls.verify_mode = ssl.CERT_NONE
        shown = "[%s]" % self.host if ":" in self.host else self.host
        head = ["Host: %s:%d" % (shown, self.port), "User-Agent: gaze-loadtest"]
        head += ["%s: %s" % pair for pair in headers]
        if not reuse:
            head.append("Connection: close")
        self.head = "".join(line + "\r\n" for line in head)
        self.timeout_s = timeout_s
        self.connect_timeout_s = connect_timeout_s
        self.reuse = reuse
        self.idle = []
        self.opened = 0
        self.address = None

    async def resolve(self):
        """Looks the name up once: a thousand connections need not ask a thousand times."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=1)  # 1: SOCK_STREAM
        self.address = found[0][4][0]

    async def connect(self):
        loop = asyncio.get_running_loop()
        if not self.address:
            await self.resolve()
        name = self.host if self.tls else None
        opening = loop.create_connection(Connection, self.address, self.port, ssl=self.tls,
                                         server_hostname=name)
        _, connection = await asyncio.wait_for(opening, self.connect_timeout_s)
        self.opened += 1
        return connection

    def message(self, method, path, body, headers):
        head = "%s %s%s HTTP/1.1\r\n%s" % (method, self.prefix, path, self.head)
        for pair in headers:
            head += "%s: %s\r\n" % pair
        if body is not None:
            head += "Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        return head.encode("latin-1") + b"\r\n" + (body or b"")

    async def send(self, method, path, body, answer, stream=False, headers=(), leave_after_s=None,
                   plain=False):
        """Fills `answer`; never raises for what the server or the network does. An exchange that
        is cancelled, timed out or left leaves no connection behind."""
        message = self.message(method, path, body, headers)
        loop = asyncio.get_running_loop()
        while True:
            connection, fresh = None, True
            while self.idle and connection is None:
                connection = self.idle.pop()
                fresh = False
                if not connection.open:
                    connection, fresh = None, True
            if connection is None:
                try:
                    connection = await self.connect()
                except asyncio.TimeoutError:
                    return self.failed(answer, "connect timeout")
                except ConnectionRefusedError:
                    return self.failed(answer, "connection refused")
                except (OSError, ssl.SSLError) as bad:
                    return self.failed(answer, "connect: %s" % type(bad).__name__)
            exchange = Exchange(answer, stream, loop.create_future(), plain)
            connection.exchange = exchange
            answer.sent = perf_counter()
            connection.transport.write(message)
            limit = loop.call_later(self.timeout_s, self.give_up, exchange, "timeout")
            leave = None
            if leave_after_s is not None:
                leave = loop.call_later(leave_after_s, self.give_up, exchange, "left")
            try:
                await exchange.done
            except asyncio.CancelledError:
                connection.close()
                raise
            finally:
                limit.cancel()
                if leave:
                    leave.cancel()
                connection.exchange = None
            # The server may close an idle connection just as we use it again: not its fault.
            if not fresh and not answer.got_bytes and answer.error == "closed without an answer":
                answer.error = None
                continue
            whole = exchange.http.done and exchange.http.keep_alive and not exchange.http.buf
            if self.reuse and connection.open and whole:
                self.idle.append(connection)
            else:
                connection.close()
            return answer

    def give_up(self, exchange, kind):
        exchange.fail(perf_counter(), kind)

    def failed(self, answer, kind):
        answer.error = kind
        answer.end = perf_counter()
        answer.sent = answer.sent or answer.end
        return answer

    async def fetch(self, method, path, body=None, headers=()):
        """A plain request: (status, body bytes), (0, b"") when nothing answered."""
        data = json.dumps(body).encode() if body is not None else None
        answer = await self.send(method, path, data, Answer(), headers=headers, plain=True)
        return answer.status, answer.body

    def close(self):
        for connection in self.idle:
            connection.close()
        self.idle = []
