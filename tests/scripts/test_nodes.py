"""Ranks in several processes, as a launcher starts them on several nodes: the answers of one process,
byte for byte, in every layout; and what all of them do when one is killed, frozen or started wrong."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from test_operations import BAD_MODEL, EMBER, FINE, GAZE, ROOT, SETTINGS, environment, free_port

LOST = 5
LOST_S = 10.0  # the time in which all must have ended when one is lost
GREEDY = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
REQUESTS = [
    GREEDY,
    dict(GREEDY, prompt="The dog " * 60, max_tokens=12, logprobs=5),
    dict(GREEDY, prompt="The dog " * 150, max_tokens=6),
    {"prompt": "A king", "max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 7,
     "presence_penalty": 0.5, "frequency_penalty": 0.3, "logprobs": 3},
    {"prompt": "A queen", "max_tokens": 16, "temperature": 0.8, "seed": 8, "n": 3,
     "repetition_penalty": 1.2, "logit_bias": {"100": 4, "200": -100}, "min_tokens": 4},
    dict(GREEDY, max_tokens=0, echo=True, logprobs=2, prompt="The quick brown fox jumps"),
    dict(GREEDY, max_tokens=20, structured_outputs={"regex": "[0-9]{3}-[a-f]{4}"}),
    dict(GREEDY, prompt=["one", "two", "three", "four"], max_tokens=8),
]


class Process:
    """One gaze serve of a launch."""

    def __init__(self, folder, number, arguments, env):
        self.path = os.path.join(folder, "log.%d" % number)
        with open(self.path, "w") as log:
            self.process = subprocess.Popen([GAZE, "serve"] + arguments, stdout=log, stderr=log,
                                            cwd=ROOT, env=environment(env))

    def log(self):
        with open(self.path, encoding="utf-8") as f:
            return f.read()

    def wait(self, seconds):
        return self.process.wait(timeout=seconds)


def torchrun(number, n, port):
    return {"RANK": str(number), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}


class Nodes:
    """with Nodes(2, "--tp", "2") as nodes: nodes.answers(REQUESTS)"""

    def __init__(self, n, *options, launcher=None, options_of=None, up=True):
        self.n, self.options, self.up = n, list(options), up
        self.launcher = launcher or (torchrun if n > 1 else lambda *_: {})
        self.options_of = options_of or {}

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.port, meet = free_port(), free_port()
        base = ["--device", "cpu", "--model", EMBER, "--port", str(self.port), "--threads", "2",
                "--max-context", "2048"]
        self.process = [Process(self.folder.name, i,
                                base + self.options + self.options_of.get(i, []),
                                self.launcher(i, self.n, meet))
                        for i in reversed(range(self.n))][::-1]
        end = time.monotonic() + 60
        while self.up and not self.healthy():
            assert time.monotonic() < end, self.logs()
            assert self.process[0].process.poll() is None, self.logs()
            time.sleep(0.05)
        return self

    def __exit__(self, kind, *_):
        for p in self.process:
            if p.process.poll() is None:
                p.process.terminate() if kind is None else p.process.kill()
        codes = [p.wait(60) for p in self.process]
        logs = self.logs()
        self.folder.cleanup()
        if kind is None and self.up == "to the end":
            assert codes == [FINE] * self.n, (codes, logs)

    def logs(self):
        return "\n".join("process %d:\n%s" % (i, p.log()) for i, p in enumerate(self.process))

    def healthy(self):
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def get(self, path, port=None):
        c = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)
        c.request("GET", path)
        a = c.getresponse()
        status, text = a.status, a.read().decode()
        c.close()
        return status, text

    def ask(self, body):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        c.request("POST", "/v1/completions", json.dumps(body),
                  {"Content-Type": "application/json"})
        a = c.getresponse()
        got = json.loads(a.read())
        c.close()
        assert a.status == 200, got
        return got["choices"], got["usage"]

    def answers(self, requests):
        """Twice, the second time at once; what the cache saves differs."""
        alone = [self.ask(r) for r in requests]
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(self.ask, requests))
        assert [c for c, _ in alone] == [c for c, _ in together]
        return [c for c, _ in alone]

    def moves(self):
        """By result, of all groups; recomputed: prompts run again."""
        out = {"arrived": 0, "failed": 0, "corrupt": 0, "recomputed": 0}
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith("gaze_group_moves_total"):
                out[line.split('result="')[1].split('"')[0]] += int(line.split()[-1])
            elif line.startswith("gaze_group_recomputed_total"):
                out["recomputed"] += int(line.split()[-1])
        return out

    def metric(self, name, port=None):
        """The sum of all its series."""
        return sum(float(line.split()[-1]) for line in self.get("/metrics", port)[1].splitlines()
                   if line.startswith(name + "{"))

    LONG = dict(GREEDY, prompt="The dog " * 300, stream=True, max_tokens=8)

    def events(self, hit=None):
        """Of a stream whose prompt has many pages; hit() is called behind the first token."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        c.request("POST", "/v1/completions", json.dumps(self.LONG),
                  {"Content-Type": "application/json"})
        answer, out = c.getresponse(), []
        assert answer.status == 200
        try:
            for line in answer:
                if line.startswith(b"data: {"):
                    out.append(json.loads(line[6:]))
                    if hit and out[-1]["choices"][0]["text"]:
                        hit()
                        hit = None
        except (OSError, http.client.HTTPException):
            pass  # process 0 itself was killed
        c.close()
        return out

    def first_tokens(self, n):
        return [e["choices"][0]["text"] for e in self.events()][:n]

    def killed_in_a_move(self, number, number_signal):
        began = []

        def hit():
            time.sleep(0.5)  # it stands in its move for three seconds
            began.append(time.monotonic())
            self.process[number].process.send_signal(number_signal)
        return_events = self.events(hit)
        return began[0], return_events

    def stream(self, n_tokens=1500):
        """Opens a stream; returns a function that reads it to its end, and its last event."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        c.request("POST", "/v1/completions", json.dumps(
            dict(GREEDY, stream=True, ignore_eos=True, max_tokens=n_tokens)),
            {"Content-Type": "application/json"})
        answer = c.getresponse()
        assert answer.status == 200
        answer.readline()  # the first event: it is under way

        def rest():
            last = None
            for line in answer:
                if line.startswith(b"data: "):
                    last = line[6:].strip()
            c.close()
            return last
        return rest


def killed(nodes, number, number_signal):
    """What clients, probes and processes see once process `number` is hit."""
    rest = nodes.stream()
    hit = nodes.process[number].process
    began = time.monotonic()
    hit.send_signal(number_signal)
    reasons = []
    while not reasons and nodes.process[0].process.poll() is None:
        try:
            status, text = nodes.get("/health")
        except OSError:
            break
        if status != 200:
            reasons.append((status, text))
        time.sleep(0.02)
    last = rest()
    codes = {i: p.wait(LOST_S) for i, p in enumerate(nodes.process) if i != number}
    took = time.monotonic() - began
    hit.kill()
    return reasons, last, codes, took


@unittest.skipUnless(os.path.exists(GAZE), "no built server")
class NodesTest(unittest.TestCase):
    def equal(self, n, *options, launcher=torchrun):
        with Nodes(1, *options) as one:
            want = one.answers(REQUESTS)
        with Nodes(n, *options, launcher=launcher, up="to the end") as nodes:
            self.assertEqual(nodes.answers(REQUESTS), want)
            self.assertIn("follows process 0 as process %d of %d" % (n - 1, n),
                          nodes.process[n - 1].log())

    def test_tensor_parallel_over_two(self):
        self.equal(2, "--tp", "2")

    def test_groups_over_two(self):
        self.equal(2, "--dp", "2")

    def test_experts_over_two(self):
        self.equal(2, "--dp", "2", "--ep", "2", "--experts", "fp8")

    def test_a_group_of_two_in_each_of_two(self):
        self.equal(2, "--tp", "2", "--dp", "2", "--ep", "4")

    def test_a_group_of_four_over_two_by_mpirun(self):
        def mpirun(number, n, port):
            return {"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_SIZE": str(n),
                    "OMPI_COMM_WORLD_LOCAL_SIZE": str(n), "MASTER_PORT": str(port),
                    "OMPI_COMM_WORLD_LOCAL_RANK": str(number)}
        self.equal(2, "--tp", "4", launcher=mpirun)

    def test_groups_over_three_by_slurm(self):
        def slurm(number, n, port):
            return {"SLURM_PROCID": str(number), "SLURM_STEP_NUM_TASKS": str(n),
                    "SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": str(number),
                    "MASTER_PORT": str(port)}
        self.equal(3, "--dp", "3", launcher=slurm)

    def split(self, n, groups, *options):
        """Pages go from process to process; each kind of group has one process or several."""
        with Nodes(1, "--dp", str(groups), *options) as one:
            want = one.answers(REQUESTS)
        with Nodes(n, "--dp", str(groups), *options, up="to the end") as nodes:
            self.assertEqual(nodes.answers(REQUESTS), want)
            moves = nodes.moves()
            self.assertGreater(moves["arrived"], 2 * len(REQUESTS))
            self.assertEqual((moves["failed"], moves["corrupt"]), (0, 0))

    def test_a_split_over_two(self):
        self.split(2, 2, "--split", "1:1")

    def test_a_split_over_four(self):
        self.split(4, 4, "--split", "2:2")

    def test_a_split_whose_groups_lie_across(self):
        """Groups of two ranks, three ranks a process: it gives, gets and does both at once."""
        self.split(2, 3, "--tp", "2", "--split", "1:2")

    def test_a_split_within_processes(self):
        """Both groups of a move in the other process, which moves pages by itself."""
        self.split(2, 4, "--tp", "1", "--split", "3:1")

    def test_pages_that_arrive_otherwise(self):
        """A bit that is another one, pages that cannot be read: the move is made again, or the
        prompt computed again, and the answers are the same."""
        with Nodes(1, "--split", "1:1") as one:
            want = [one.ask(r)[0] for r in REQUESTS]
        for process, fault, least in ((1, "pages.corrupt:2-3", dict(corrupt=1)),
                                      (1, "pages.corrupt:1-4", dict(corrupt=3, recomputed=1)),
                                      (0, "pages.export:1-2", dict(failed=2)),
                                      (1, "pages.import:3", dict(failed=1))):
            def launcher(number, n, port, process=process, fault=fault):
                env = torchrun(number, n, port)
                return dict(env, GAZE_FAULT=fault) if number == process else env
            with self.subTest(fault=fault), Nodes(2, "--split", "1:1", launcher=launcher,
                                                  up="to the end") as nodes:
                self.assertEqual([nodes.ask(r)[0] for r in REQUESTS], want, nodes.logs())
                moves = nodes.moves()
                for name, count in least.items():
                    self.assertGreaterEqual(moves[name], count, (fault, moves))

    def test_a_process_is_killed_in_the_middle_of_a_move(self):
        """Whoever gives or gets: the stream ends with an error event, and never with a token from
        half of the pages."""
        with Nodes(1, "--split", "1:1") as one:
            want = [one.first_tokens(2)]
        for hit, fault, number_signal in ((1, "mover.take:2", signal.SIGKILL),
                                          (1, "mover.take:2", signal.SIGSTOP),
                                          (0, "mover.give:2", signal.SIGKILL)):
            def launcher(number, n, port, hit=hit, fault=fault):
                env = torchrun(number, n, port)
                return dict(env, GAZE_FAULT=fault) if number == hit else env
            with self.subTest(hit=hit, fault=fault, signal=number_signal), \
                    Nodes(2, "--split", "1:1", launcher=launcher) as nodes:
                began, events = nodes.killed_in_a_move(hit, number_signal)
                self.assertEqual(nodes.process[1 - hit].wait(LOST_S), LOST, nodes.logs())
                took = time.monotonic() - began
                self.assertLess(took, LOST_S)
                print("     all had ended %.2f s after the blow" % took)
                texts = [e["choices"][0]["text"] for e in events if "choices" in e]
                self.assertEqual(texts[:1], want[0][:1])
                self.assertLessEqual(len([t for t in texts if t]), 1, events)
                if hit:
                    self.assertRegex(events[-1]["error"]["message"], "process 1 of 2")
                nodes.process[hit].process.kill()

    def lost(self, number, number_signal, *options):
        with Nodes(2, *options) as nodes:
            reasons, last, codes, took = killed(nodes, number, number_signal)
            self.assertEqual(codes, {1 - number: LOST}, nodes.logs())
            self.assertLess(took, LOST_S)
            print("     all had ended %.2f s after the blow" % took)
            if number == 0:
                self.assertIn("process 0 of 2", nodes.process[1].log())
                return
            self.assertEqual([r[0] for r in reasons], [503])
            if number_signal == signal.SIGKILL:  # a step that does not end shows earlier
                self.assertRegex(reasons[0][1], "(process|rank) 1 of 2")
            self.assertRegex(json.loads(last)["error"]["message"], "(process|rank) 1 of 2")
            self.assertIn("process 1 of 2", nodes.process[0].log())

    def test_a_process_is_killed(self):
        self.lost(1, signal.SIGKILL, "--tp", "2")

    def test_a_process_with_a_group_of_its_own_is_killed(self):
        self.lost(1, signal.SIGKILL, "--dp", "2")

    def test_process_0_is_killed(self):
        self.lost(0, signal.SIGKILL, "--tp", "2")

    def test_a_process_that_decodes_is_killed(self):
        self.lost(1, signal.SIGKILL, "--split", "1:1")

    def test_process_0_of_a_split_is_killed(self):
        self.lost(0, signal.SIGKILL, "--split", "1:1")

    def test_a_process_is_frozen(self):
        self.lost(1, signal.SIGSTOP, "--tp", "2")

    def test_what_fails_in_a_process_ends_all(self):
        """While it opens, in a collective, on the line of its steps, in a step: all end with code 5
        (one that cannot open: 3), in time, and the client of a stream is told."""
        cut, split, wide = ["--tp", "2"], ["--split", "1:1"], ["--split", "2:2"]
        for options, fault in [(cut, "relay.create"), (cut, "meeting.pin:2"), (cut, "line.send:3"),
                               (cut, "comm.all_reduce:60"), (cut, "line.receive:12"),
                               (cut, "wire.grow:2"), (split, "carrier.create"),
                               (split, "mover.create"), (wide, "mover.stage:2"),
                               (wide, "workers.create"), (split, "line.send:4"),
                               (split, "line.receive:3")]:
            def launcher(number, n, port, fault=fault):
                return dict(torchrun(number, n, port), **({"GAZE_FAULT": fault} if number else {}))
            with self.subTest(fault=fault), Nodes(2, *options, launcher=launcher,
                                                  up=False) as nodes:
                end, last = time.monotonic() + 30, None
                while time.monotonic() < end and nodes.process[0].process.poll() is None:
                    if nodes.healthy():
                        try:
                            last = nodes.stream()()
                        except (OSError, AssertionError, http.client.HTTPException):
                            break  # it was lost before the stream began
                        break
                    time.sleep(0.02)
                codes = [p.wait(LOST_S) for p in nodes.process]
                self.assertEqual(codes[0], LOST, nodes.logs())
                self.assertIn(codes[1], (BAD_MODEL, LOST), nodes.logs())
                if last is not None:
                    self.assertIn("error", json.loads(last), fault)

    def test_what_fails_in_process_0_ends_all(self):
        """It does not come up, and the other one hears why."""
        for fault in ["carrier.create", "mover.create", "mover.stage:2"]:
            def launcher(number, n, port, fault=fault):
                return dict(torchrun(number, n, port), **({} if number else {"GAZE_FAULT": fault}))
            with self.subTest(fault=fault), Nodes(2, "--split", "2:2", launcher=launcher,
                                                  up=False) as nodes:
                codes = [p.wait(LOST_S) for p in nodes.process]
                self.assertEqual(codes, [BAD_MODEL, LOST], nodes.logs())
                self.assertRegex(nodes.process[1].log(), "process 0 of 2: (a carrier|mover)")

    def test_a_process_that_follows_has_health(self):
        port = free_port()
        own = {1: ["--health-port", str(port)]}
        with Nodes(2, "--dp", "2", options_of=own, up="to the end") as nodes:
            nodes.answers(REQUESTS)
            status, text = nodes.get("/health", port)
            self.assertEqual((status, json.loads(text)),
                             (200, {"status": "ok", "process": 1, "processes": 2}))
            self.assertEqual(nodes.get("/health/ready", port)[0], 200)
            status, text = nodes.get("/v1/models", port)
            self.assertEqual((status, json.loads(text)["error"]["code"]), (404, "not_found"))
            rows = nodes.metric("gaze_expert_rows_total", port)
            self.assertGreater(rows, 0)
            # each row of both groups has its experts in each layer that has some, counted once
            with open(os.path.join(ROOT, EMBER, "config.json"), encoding="utf-8") as f:
                c = json.load(f)
            times = c["num_experts_per_tok"] * (c["num_hidden_layers"] - c["first_k_dense_replace"])
            self.assertEqual(rows + nodes.metric("gaze_expert_rows_total"),
                             times * nodes.metric("gaze_rows_total"))

    def test_health_of_a_process_whose_leader_is_lost(self):
        port = free_port()
        for number_signal in (signal.SIGKILL, signal.SIGSTOP):
            own = {1: ["--health-port", str(port)]}
            with self.subTest(number_signal), Nodes(2, "--tp", "2", options_of=own) as nodes:
                self.assertEqual(nodes.get("/health", port)[0], 200)
                nodes.process[0].process.send_signal(number_signal)
                began, bad = time.monotonic(), None
                while nodes.process[1].process.poll() is None:
                    try:
                        status, text = nodes.get("/health", port)
                    except OSError:
                        break
                    if status != 200:
                        bad = (status, json.loads(text)["error"])
                    time.sleep(0.02)
                self.assertEqual(bad[0], 503)
                self.assertEqual(bad[1]["code"], "engine_lost")
                self.assertIn("process 0 of 2", bad[1]["message"])
                self.assertEqual(nodes.process[1].wait(LOST_S), LOST)
                self.assertLess(time.monotonic() - began, LOST_S)
                nodes.process[0].process.kill()

    def test_whoever_comes_to_the_port_of_a_process_that_follows(self):
        """Bytes that are no HTTP, many who say nothing or read nothing, bodies, other methods:
        probes are answered meanwhile, nothing stays behind, and the launch ends as ever."""
        port = free_port()

        def call(*parts):
            s = socket.create_connection(("127.0.0.1", port), timeout=20)
            try:
                for p in parts:
                    s.sendall(p)
            except OSError:
                pass  # it was ended meanwhile
            return s

        def told(s):
            out = b""
            try:
                while more := s.recv(65536):
                    out += more
            except ConnectionError:
                pass
            s.close()
            return out

        with Nodes(2, "--dp", "2", options_of={1: ["--health-port", str(port)]},
                   up="to the end") as nodes:
            fds = "/proc/%d/fd" % nodes.process[1].process.pid
            self.assertEqual(nodes.get("/health", port)[0], 200)
            time.sleep(0.2)
            before = len(os.listdir(fds))
            close = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            for bad in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
                        b"\0" * 5000 + b"\n", b"GET / HTTP/9.9\r\n\r\n", b"GET" + close + b"\r\n",
                        b"\r\n" * 3 + b"x\r\n", b"GET /" + b"a" * 100000 + close + b"\r\n",
                        b"GET /health" + close + b"X: " + b"y" * 100000 + b"\r\n\r\n",
                        b"POST /health" + close + b"Content-Length: 1%s\r\n\r\n" % (b"0" * 23)):
                self.assertNotIn(b" 200 ", told(call(bad)), bad[:40])
            head = told(call(b"HEAD /health" + close + b"\r\n"))
            self.assertRegex(head, b"^HTTP/1.1 200 OK\r\n(.*\r\n)+\r\n$")
            posted = told(call(b"POST /health" + close + b"Content-Length: 3\r\n\r\nabc"))
            self.assertTrue(posted.startswith(b"HTTP/1.1 405 "), posted)
            self.assertIn(b"\r\nAllow: GET, HEAD\r\n", posted)
            asked = told(call(b"GET /health" + close + b"Content-Length: 3\r\n\r\nabc"))
            self.assertTrue(asked.startswith(b"HTTP/1.1 200 "), asked)
            deaf = [call(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 400) for _ in range(20)]
            dumb = [call(b"GET /heal") for _ in range(300)]
            for _ in range(20):
                began = time.monotonic()
                self.assertEqual(nodes.get("/health", port)[0], 200)
                self.assertEqual(nodes.get("/metrics", port)[0], 200)
                self.assertLess(time.monotonic() - began, 2)
            self.assertLess(len(os.listdir(fds)), before + 64)
            for s in dumb[:200] + deaf:  # the oldest ones were ended
                told(s)
            for s in dumb[200:]:
                s.close()
            end = time.monotonic() + 15
            while len(os.listdir(fds)) > before and time.monotonic() < end:
                time.sleep(0.1)
            self.assertLessEqual(len(os.listdir(fds)), before)
            with call(b"GET /metr"):
                self.assertEqual(nodes.answers([GREEDY])[0], nodes.answers([GREEDY])[0])
                nodes.process[0].process.terminate()
                self.assertEqual(nodes.process[1].wait(LOST_S), FINE)

    def test_health_says_loading(self):
        """Process 1 waits for process 0 to come, and says so meanwhile."""
        port = free_port()

        def alone(number, n, meet):
            return torchrun(1, 2, meet)
        with Nodes(1, "--tp", "2", "--health-port", str(port), launcher=alone, up=False) as nodes:
            end, seen = time.monotonic() + 20, None
            while seen is None and time.monotonic() < end:
                try:
                    seen = nodes.get("/health", port)
                except OSError:
                    time.sleep(0.02)
            self.assertEqual((seen[0], json.loads(seen[1])["error"]["code"]), (503, "loading"))
            nodes.process[0].process.kill()

    def test_a_drain_ends_all(self):
        with Nodes(2, "--tp", "2") as nodes:
            rest = nodes.stream(150)
            for p in nodes.process:  # as a launcher does it
                p.process.terminate()
            self.assertEqual(rest(), b"[DONE]")
            self.assertEqual([p.wait(20) for p in nodes.process], [FINE, FINE], nodes.logs())
            self.assertNotIn("lost=", nodes.logs())

    def test_other_settings_are_refused(self):
        with Nodes(2, "--tp", "2", options_of={1: ["--max-seqs", "8"]}, up=False) as nodes:
            codes = [p.wait(30) for p in nodes.process]
            self.assertTrue(all(c in (BAD_MODEL, LOST) for c in codes), (codes, nodes.logs()))
            self.assertIn("was started with other settings", nodes.process[0].log())
            self.assertIn("was started with other settings", nodes.process[1].log())

    def test_a_process_without_the_model(self):
        with Nodes(2, "--tp", "2", options_of={1: ["--model", "/nowhere"]}, up=False) as nodes:
            codes = [p.wait(30) for p in nodes.process]
            self.assertEqual(codes, [LOST, BAD_MODEL], nodes.logs())
            self.assertIn("process 1 of 2: ", nodes.process[0].log())
            self.assertIn("/nowhere", nodes.process[0].log())

    def refused(self, says, *options, n=2):
        with Nodes(n, *options, up=False) as nodes:
            self.assertEqual([p.wait(30) for p in nodes.process], [SETTINGS] * n, nodes.logs())
            self.assertIn(says, nodes.process[0].log())

    def test_what_cannot_be_shared(self):
        self.refused("torchrun started 3 processes, among which 2 ranks", "--tp", "2", n=3)

    def test_a_launcher_that_does_not_matter(self):
        def first_of_two(_, __, port):
            return torchrun(0, 2, port)
        for options in [[], ["--tp", "2", "--launcher", "none"]]:
            with Nodes(1, *options, launcher=first_of_two, up="to the end") as nodes:
                self.assertTrue(nodes.healthy())


if __name__ == "__main__":
    unittest.main()
