"""A server on loopback and clients that cost little, for the scripts beside this file.

Sockets and epoll alone: one thread watches all streams and notes when bytes came. How many tokens a
stream has is known from what it asked for; each is an event of its own.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SMALL = os.path.join(ROOT, "tests/fixtures/bench-24m")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def request(path, body=None):
    if body is None:
        return ("GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path).encode()
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" \
           b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


class Server:
    """gaze serve as a child; a context manager."""

    def __init__(self, gaze, *options):
        self.port = free_port()
        self.process = subprocess.Popen(
            [gaze, "serve", "--port", str(self.port), "--log-level", "warn"] + list(options),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)

    def __enter__(self):
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.ask(request("/health/ready"))[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.01)
        self.__exit__()
        sys.exit("the server does not come up")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def ask(self, data, s=None):
        """(status, body) of an answer with a Content-Length."""
        mine = s is None
        s = s or self.connect()
        s.sendall(data)
        got = b""
        while b"\r\n\r\n" not in got:
            more = s.recv(65536)
            if not more:
                raise OSError("closed")
            got += more
        head, body = got.split(b"\r\n\r\n", 1)
        length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n")
                      if x.lower().startswith(b"content-length:"))
        while len(body) < length:
            body += s.recv(65536)
        if mine:
            s.close()
        return int(head.split()[1]), body

    def complete(self, s=None, **body):
        status, text = self.ask(request("/v1/completions", body), s)
        if status != 200:
            sys.exit("%d: %s" % (status, text.decode()))
        return json.loads(text)

    def resident_mib(self):
        with open("/proc/%d/status" % self.process.pid, encoding="utf-8") as f:
            return next(int(x.split()[1]) / 1024 for x in f if x.startswith("VmRSS:"))


class Stream:
    def __init__(self, server, **body):
        self.times = []  # of each event with a token
        self.begun, self.ended, self.tail = time.monotonic(), None, b""
        self.s = server.connect()
        # A token may add no text; with its id each one is an event.
        self.s.sendall(request("/v1/completions", dict(body, stream=True, temperature=0,
                                                       ignore_eos=True,
                                                       return_token_ids=True)))
        self.s.setblocking(False)

    def read(self):
        """False: the stream has ended."""
        try:
            got = self.s.recv(1 << 18)
        except BlockingIOError:
            return True
        now = time.monotonic()
        text = self.tail + got
        n = text.count(b"data: {")
        self.times += [now] * n
        at = text.rfind(b"data: ")
        self.tail = text[at + 6:] if at >= 0 else text
        if b"data: [DONE]" in text or not got:
            self.tail = b""
            self.ended = now
            self.s.close()
            return False
        self.tail = self.tail[-64:]
        return True


def watch(streams, until=None):
    """Reads all streams until each has ended, or until() says so."""
    with selectors.DefaultSelector() as sel:
        open_ = 0
        for x in streams:
            if x.ended is None:
                sel.register(x.s, selectors.EVENT_READ, x)
                open_ += 1
        while open_ and not (until and until()):
            for key, _ in sel.select(0.05):
                fd = key.fileobj
                before = key.data.s.fileno()
                if not key.data.read():
                    sel.unregister(fd if fd.fileno() >= 0 else before)
                    open_ -= 1


def gaps_ms(stream, begin=0.0, end=float("inf")):
    t = [x for x in stream.times if begin <= x <= end]
    return [(b - a) * 1e3 for a, b in zip(t, t[1:])]


def percentile(values, share):
    v = sorted(values)
    return v[min(len(v) - 1, int(len(v) * share))] if v else float("nan")


def ids(n, salt=0):
    return [10 + (salt * 7919 + i * 31 + i * i % 97) % 360 for i in range(n)]


def target(what, value, unit, at_least=None, at_most=None):
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    t = {"what": what, "value": round(value, 4), "unit": unit, "met": met}
    if at_least is not None:
        t["at_least"] = at_least
    if at_most is not None:
        t["at_most"] = at_most
    print(json.dumps(t), flush=True)


class LongModel:
    """The small shape with room for 131,072 positions, in a folder of its own."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="gaze-bench-")
        for name in os.listdir(SMALL):
            shutil.copy(os.path.join(SMALL, name), self.folder)
        path = os.path.join(self.folder, "config.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config["max_position_embeddings"] = 131072
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)
        return self.folder

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)
