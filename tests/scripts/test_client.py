"""The parsers give the same, however the network cuts the bytes."""

import itertools
import json
import random
import unittest

from loadtest_lib.client import BadAnswer, HttpParser, SseParser, content_of, error_kind

STREAM = ("\ufeffdata: one\n\n: a comment\ndata:two\r\n\r\nevent: x\rid: 7\rdata: thr\xe9e\r\r"
          "data: a\ndata: b\ndata\n\nretry: 10\n\n"
          "data: {\"t\":\"日本\"}\n\ndata: unfinished\n").encode()
EVENTS = ["one", "two", "thr\xe9e", "a\nb\n", '{"t":"日本"}']


def feed_all(parser, pieces):
    out = []
    for piece in pieces:
        out += parser.feed(piece)
    return out


class Sse(unittest.TestCase):
    def test_whole(self):
        parser = SseParser()
        self.assertEqual(parser.feed(STREAM), EVENTS)
        self.assertEqual(parser.comments, 1)

    def test_every_pair_of_cuts(self):
        for a, b in itertools.combinations(range(len(STREAM) + 1), 2):
            got = feed_all(SseParser(), (STREAM[:a], STREAM[a:b], STREAM[b:]))
            self.assertEqual(got, EVENTS, (a, b))

    def test_a_byte_at_a_time(self):
        got = feed_all(SseParser(), (STREAM[i:i + 1] for i in range(len(STREAM))))
        self.assertEqual(got, EVENTS)

    def test_random_streams(self):
        rng = random.Random(5)
        for _ in range(300):
            events = ["".join(rng.choice("ab:é \U0001f600") for _ in range(rng.randrange(1, 9)))
                      for _ in range(5)]
            raw = "".join("data: %s%s" % (e, rng.choice(("\n", "\r", "\r\n")) * 2)
                          for e in events).encode()
            cuts = sorted(rng.randrange(len(raw)) for _ in range(6))
            pieces = [raw[a:b] for a, b in zip([0] + cuts, cuts + [len(raw)])]
            self.assertEqual(feed_all(SseParser(), pieces), events)

    def test_invalid_utf8(self):
        with self.assertRaises(BadAnswer):
            SseParser().feed(b"data: \xff\n\n")


CHUNKED = (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: a\r\nTransfer-Encoding: "
           b"chunked\r\n\r\n5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\nX-Trailer: 1\r\n\r\n")
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 12\r\n\r\nhello, world"


class Http(unittest.TestCase):
    def read(self, pieces):
        parser = HttpParser()
        body = b"".join(parser.feed(p) for p in pieces)
        return parser, body

    def test_every_pair_of_cuts(self):
        for raw, status in ((CHUNKED, 200), (SIZED, 404)):
            for a, b in itertools.combinations(range(len(raw) + 1), 2):
                parser, body = self.read((raw[:a], raw[a:b], raw[b:]))
                self.assertEqual((parser.status, body), (status, b"hello, world"))
                self.assertTrue(parser.done)
                self.assertTrue(parser.keep_alive)

    def test_until_close(self):
        parser, body = self.read((b"HTTP/1.0 200 OK\r\n\r\nab", b"c"))
        self.assertEqual((body, parser.done, parser.eof(), parser.keep_alive),
                         (b"abc", False, True, False))

    def test_cut_off(self):
        for end in range(len(b"HTTP/1.1 100 Continue\r\n\r\n"), len(CHUNKED)):
            parser, _ = self.read((CHUNKED[:end],))
            self.assertFalse(parser.eof())

    def test_nothing_in_it(self):
        parser, body = self.read((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",))
        self.assertEqual((body, parser.done), (b"", True))

    def test_malformed(self):
        for raw in (b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad\r\n\r\n",
                    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"x" * 70000,
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
                    SIZED + b"more"):
            with self.assertRaises(BadAnswer, msg=raw[:60]):
                HttpParser().feed(raw)


class Words(unittest.TestCase):
    def test_content(self):
        self.assertEqual(content_of({"delta": {"role": "assistant", "content": ""}}), "")
        self.assertEqual(content_of({"delta": {"reasoning_content": "r", "content": None}}), "r")
        self.assertEqual(content_of({"text": "t"}), "t")
        self.assertEqual(content_of({"delta": {}, "finish_reason": "stop"}), "")
        self.assertIn("f", content_of({"delta": {"tool_calls": [{"function": {"name": "f"}}]}}))

    def test_error_kind(self):
        body = json.dumps({"error": {"message": "m", "type": "t", "code": "c"}})
        self.assertEqual(error_kind(429, body), "http 429 c")
        self.assertEqual(error_kind(502, b"<html>"), "http 502")
        self.assertEqual(error_kind(500, b'{"error":"text"}'), "http 500")
