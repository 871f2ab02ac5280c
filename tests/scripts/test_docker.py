"""docker/: the files hold together, the real haproxy and promtool take them, and the proxy keeps
its promises in front of two replicas on loopback. The replicas are stand-ins; where the server is
built, two of it are run too."""

import glob
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

from fixtures import ROOT, StandIn, loadtest

DOCKER = os.path.join(ROOT, "docker")
GAZE = os.path.join(ROOT, os.environ.get("GAZE_BUILD", "build/release"), "gaze")


def read(*path):
    with open(os.path.join(DOCKER, *path), encoding="utf-8") as f:
        return f.read()


def load_yaml(text):
    try:
        import yaml
    except ImportError:
        raise unittest.SkipTest("no PyYAML") from None
    return yaml.safe_load(text)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, path, status=200, seconds=20):
    """Until GET path answers so; False if it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", path)
            if connection.getresponse().status == status:
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


class Images(unittest.TestCase):
    def test_dockerfiles(self):
        for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
            text = read(name)
            self.assertGreaterEqual(len(re.findall(r"^FROM ", text, re.M)), 2, "multi-stage")
            last = text.split("\nFROM ")[-1]
            self.assertRegex(last, r"\nUSER [1-9]\d*:[1-9]\d*\n")
            self.assertIn("HEALTHCHECK", last)
            self.assertIn("STOPSIGNAL SIGTERM", last)
            self.assertIn('ENTRYPOINT ["gaze"]', last)  # no shell between signal and program
            self.assertNotRegex(last, r"\blib\S+-dev\b")
            self.assertNotRegex(last, r"\b(curl|wget|gcc|tini)\b")
            self.assertEqual(len(re.findall("apt-get update", text)),
                             len(re.findall("rm -rf /var/lib/apt/lists", text)))

    def test_what_is_copied_exists_and_is_not_ignored(self):
        for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
            kept = re.findall(r"^!(\S+)", read(name + ".dockerignore"), re.M)
            for line in re.findall(r"^COPY (?!--from)(.*)", read(name), re.M):
                sources = [w for w in line.split()[:-1] if not w.startswith("--")]
                for source in sources:
                    self.assertTrue(any(source == k or source.startswith(k + "/") for k in kept),
                                    source)
                    self.assertTrue(source == "cuda" or os.path.exists(os.path.join(ROOT, source)),
                                    source)

    def test_run_time_libraries(self):
        if not os.path.exists(GAZE):
            self.skipTest("no built server")
        linked = subprocess.run(["ldd", GAZE], capture_output=True, text=True).stdout
        installed = read("Dockerfile.cpu").split("\nFROM ")[-1]
        for library, package in (("libmicrohttpd", "libmicrohttpd12"), ("libuv", "libuv1"),
                                 ("libcjson", "libcjson1"), ("libpcre2-8", "libpcre2-8-0"),
                                 ("libgnutls", "libgnutls30")):
            self.assertIn(library, linked)
            self.assertIn(package, installed)

    def test_healthcheck(self):
        check = os.path.join(DOCKER, "healthcheck")
        self.assertTrue(os.access(check, os.X_OK))

        def health(*arguments):
            return subprocess.run([check] + [str(a) for a in arguments]).returncode

        with StandIn() as server:
            self.assertEqual(health(server.port), 0)
            self.assertNotEqual(health(server.port, "/nowhere"), 0)
            by_environment = dict(os.environ, GAZE_PORT=str(server.port))
            self.assertEqual(subprocess.run([check], env=by_environment).returncode, 0)
        self.assertNotEqual(health(server.port), 0)
        with socket.socket() as silent:  # accepts and says nothing: a stuck server
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            began = time.monotonic()
            self.assertNotEqual(health(silent.getsockname()[1]), 0)
            self.assertLess(time.monotonic() - began, 3)  # the HEALTHCHECK's own limit


def interpolate(text, values=None):
    """${NAME:-default} as compose does it; numbers stay numbers, as after its conversion."""
    text = re.sub(r"\$\{(\w+):?-([^}]*)\}", lambda m: (values or {}).get(m[1], m[2]), text)
    return text


class Compose(unittest.TestCase):
    def setUp(self):
        self.file = load_yaml(interpolate(read("compose.yaml")))
        self.services = self.file["services"]

    def test_schema(self):
        path = os.path.join(ROOT, os.environ.get("COMPOSE_SCHEMA", ""))
        if not os.path.isfile(path):
            self.skipTest("no schema; name one by COMPOSE_SCHEMA")
        try:
            import jsonschema
        except ImportError:
            self.skipTest("no jsonschema")
        with open(path, encoding="utf-8") as f:
            schema = json.load(f)
        checked = dict(self.file)
        checked.pop("name")  # newer than the packaged schema
        errors = [(list(e.path), e.message)
                  for e in jsonschema.Draft7Validator(schema).iter_errors(checked)]
        self.assertEqual(errors, [])

    def test_profiles(self):
        by_profile = {}
        for name, service in self.services.items():
            for profile in service["profiles"]:
                by_profile.setdefault(profile, set()).add(name)
        self.assertEqual(by_profile, {"cpu": {"gaze"}, "gpu": {"gaze-gpu"},
                                      "replicas": {"replica", "proxy"},
                                      "observability": {"prometheus", "grafana"}})
        self.assertIn("COMPOSE_PROFILES=cpu", read(".env"))

    def test_nothing_is_public_or_privileged(self):
        for name, service in self.services.items():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), (name, port))
            self.assertEqual(service["cap_drop"], ["ALL"], name)
            self.assertNotIn("privileged", service)
            if name != "grafana":  # which writes beside its data
                self.assertTrue(service["read_only"], name)
            self.assertRegex(service.get("image", ""), r".+:.+")
            self.assertNotIn("latest", service["image"])

    def test_what_is_mounted_exists(self):
        for service in self.services.values():
            for volume in service.get("volumes", []):
                if isinstance(volume, str) and volume.startswith("."):
                    self.assertTrue(os.path.exists(os.path.join(DOCKER, volume.split(":")[0])))
            if "build" in service:
                build = service["build"]
                self.assertTrue(os.path.exists(os.path.join(DOCKER, build["context"],
                                                            build["dockerfile"])))

    def test_settings_are_the_servers(self):
        with open(os.path.join(ROOT, "server/settings.c"), encoding="utf-8") as f:
            known = set(re.findall(r'^    \{"([a-z-]+)", [A-Z]+, AT\(', f.read(), re.M))
        for service in self.services.values():
            for name in service.get("environment", {}):
                if name.startswith("GAZE_"):
                    self.assertIn(name[5:].lower().replace("_", "-"), known)
        for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
            command = json.loads(re.search(r"^CMD (\[.*\])", read(name), re.M)[1])
            flags = [w[2:] for w in command if w.startswith("--")]
            self.assertTrue(set(flags) <= known, flags)

    def test_ports_agree(self):
        self.assertIn("replica:8000", read("proxy/haproxy.cfg"))
        scraped = load_yaml(read("prometheus/prometheus.yml"))["scrape_configs"]
        names = {j["job_name"]: j["dns_sd_configs"][0] for j in scraped if "dns_sd_configs" in j}
        self.assertEqual(set(names["gaze"]["names"]), {"gaze", "gaze-gpu", "replica"})
        self.assertTrue(set(names["gaze"]["names"]) < set(self.services))
        self.assertEqual((names["gaze"]["port"], names["proxy"]["port"]), (8000, 8405))


class Observability(unittest.TestCase):
    def test_promtool(self):
        if not shutil.which("promtool"):
            self.skipTest("no promtool")
        for what, path in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
            path = os.path.join(DOCKER, "prometheus", path)
            done = subprocess.run(["promtool", "check", what, path], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)

    def expressions(self):
        board = json.loads(read("grafana/dashboards/gaze.json"))
        out = [t["expr"] for p in board["panels"] for t in p.get("targets", ())]
        return [e.replace("$__rate_interval", "1m").replace("$instance", ".*") for e in out]

    def test_dashboard(self):
        board = json.loads(read("grafana/dashboards/gaze.json"))
        ids = [p["id"] for p in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        source = load_yaml(read("grafana/provisioning/datasources/prometheus.yaml"))
        source = source["datasources"][0]
        places = set()
        for p in board["panels"]:
            at = p["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            for i in range(at["w"] * at["h"]):
                cell = (at["x"] + i % at["w"], at["y"] + i // at["w"])
                self.assertNotIn(cell, places, p["title"])
                places.add(cell)
            for target in p.get("targets", ()):
                self.assertEqual(target["datasource"]["uid"], source["uid"])
        self.assertGreaterEqual(len(self.expressions()), 25)

    def test_expressions_parse(self):
        """promtool reads each as a rule: a slip of the pen fails here and not in Grafana."""
        if not shutil.which("promtool"):
            self.skipTest("no promtool")
        rules = [{"record": "r%d" % i, "expr": e} for i, e in enumerate(self.expressions())]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as f:
            json.dump({"groups": [{"name": "g", "rules": rules}]}, f)  # JSON is YAML too
            f.flush()
            done = subprocess.run(["promtool", "check", "rules", f.name], capture_output=True,
                                  text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_metrics_exist(self):
        """Every metric that a panel or an alert names is one that the server's source names."""
        source = "".join(open(p, encoding="utf-8").read()
                         for p in glob.glob(os.path.join(ROOT, "server/*.c")))
        if "vllm:" not in source:
            self.skipTest("the server has no metrics page yet")
        text = " ".join(self.expressions()) + read("prometheus/alerts.yml")
        missing = []
        for name in sorted(set(re.findall(r"\b(?:vllm:|gaze_|process_|http_)[a-z0-9_]+", text))):
            stem = re.sub(r"^(vllm:|gaze_)", "", re.sub(r"_(bucket|sum|count)$", "", name))
            if stem not in source:
                missing.append(name)
        self.assertEqual(missing, [])


class Proxy:
    """with Proxy(ports): haproxy with our configuration, listening on self.port."""

    def __init__(self, ports):
        self.folder = tempfile.TemporaryDirectory()
        self.port, self.metrics = free_port(), free_port()
        servers = "\n".join("    server s%d 127.0.0.1:%d" % (i, p) for i, p in enumerate(ports))
        text = read("proxy/haproxy.cfg")
        text = text.replace("bind :8000", "bind 127.0.0.1:%d" % self.port)
        text = text.replace("bind :8405", "bind 127.0.0.1:%d" % self.metrics)
        text = re.sub(r"^    server-template .*", servers, text, flags=re.M)
        self.path = os.path.join(self.folder.name, "haproxy.cfg")
        with open(self.path, "w", encoding="utf-8") as f:
            f.write(text)
        self.log = open(os.path.join(self.folder.name, "log"), "w")

    def __enter__(self):
        self.process = subprocess.Popen(["haproxy", "-f", self.path], stdout=self.log,
                                        stderr=self.log)
        wait_for(self.port, "/health", seconds=3)
        time.sleep(2.5)  # each replica has been checked by then
        return self

    def __exit__(self, kind, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()
        if kind:  # a failed test: what did the proxy say?
            with open(self.log.name, encoding="utf-8") as f:
                print(f.read()[-20000:])
        self.folder.cleanup()

    def ask(self, body, **headers):
        """(status, replica that answered, headers)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps(body),
                           dict(headers, **{"Content-Type": "application/json"}))
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-served-by"), answer.headers


def turns(first, n, system=None, parts=False):
    """The messages of a conversation that has had n turns."""
    content = [{"type": "text", "text": first}] if parts else first
    out = [{"role": "system", "content": system}] if system else []
    out.append({"role": "user", "content": content})
    for i in range(n - 1):
        out += [{"role": "assistant", "content": "answer %d" % i},
                {"role": "user", "content": "more %d" % i}]
    return out


@unittest.skipUnless(shutil.which("haproxy"), "no haproxy")
class ProxyOfStandIns(unittest.TestCase):
    def test_configuration(self):
        done = subprocess.run(["haproxy", "-c", "-f", os.path.join(DOCKER, "proxy/haproxy.cfg")],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("WARNING", done.stderr)

    def test_conversations_stay(self):
        with StandIn(name="a") as a, StandIn(name="b") as b, Proxy((a.port, b.port)) as proxy:
            for kind in ({}, {"system": "be brief"}, {"parts": True},
                         {"system": "s", "parts": True}):
                used = set()
                for i in range(16):
                    places = {proxy.ask({"messages": turns("hello %d" % i, n, **kind),
                                         "max_tokens": 1})[1] for n in (1, 2, 3)}
                    self.assertEqual(len(places), 1, (kind, i))
                    used |= places
                self.assertEqual(len(used), 2, "both replicas have work")
            long = "word " * 20000  # 100 KB: still looked into
            places = {proxy.ask({"messages": turns(long, n), "max_tokens": 1})[1]
                      for n in (1, 2, 3)}
            self.assertEqual(len(places), 1)
            for headers, body in (({"x-session-id": "s"}, {}), ({}, {"prompt_cache_key": "k"})):
                places = {proxy.ask(dict(body, messages=turns("m %d" % i, 1), max_tokens=1),
                                    **headers)[1] for i in range(8)}
                self.assertEqual(len(places), 1)

    def test_too_long_to_look_into(self):
        with StandIn(name="a") as a, StandIn(name="b") as b, Proxy((a.port, b.port)) as proxy:
            status, _, _ = proxy.ask({"messages": turns("word " * 200000, 1), "max_tokens": 1})
            self.assertEqual(status, 200)

    def test_busy_is_passed_on(self):
        with StandIn(name="a") as a, StandIn(name="b") as b, Proxy((a.port, b.port)) as proxy:
            status, _, headers = proxy.ask({"messages": turns("x", 1), "stand_in": "busy_once"})
            self.assertEqual((status, headers["retry-after"]), (429, "0"))

    def test_not_repeated_once_begun(self):
        with StandIn(name="a") as a, StandIn(name="b") as b, Proxy((a.port, b.port)) as proxy:
            result, _ = loadtest("--url", "http://127.0.0.1:%d/v1" % proxy.port, "--clients", 1,
                                 "--requests", 1, "--warmup", 0, "--extra", '{"stand_in":"cut"}',
                                 "--metrics", "none", check=1)
            self.assertEqual(result["stages"][0]["errors"], {"answer cut off": 1})
            seen = 0
            for server in (a, b):
                connection = http.client.HTTPConnection("127.0.0.1", server.port)
                connection.request("GET", "/seen")
                seen += sum(json.loads(connection.getresponse().read()).values())
            self.assertEqual(seen, 1)

    def test_nobody_ready(self):
        with Proxy((free_port(), free_port())) as proxy:
            status, _, headers = proxy.ask({"messages": turns("x", 1)})
            self.assertEqual((status, headers["content-type"]), (503, "application/json"))
            self.assertTrue(headers["retry-after"])

    def test_rolling_restart(self):
        """Replicas end one after the other under load; nobody notices."""
        with StandIn(name="a", token_ms=20) as a, StandIn(name="b", token_ms=20) as b:
            with Proxy((a.port, b.port)) as proxy:
                stop = threading.Timer(1.5, lambda: a.process.send_signal(signal.SIGTERM))
                stop.start()
                result, _ = loadtest("--url", "http://127.0.0.1:%d/v1" % proxy.port, "--clients",
                                     12, "--seconds", 5, "--output", 30, "--metrics", "none")
                stop.cancel()
        stage = result["stages"][0]
        self.assertEqual(stage["errors"], {})
        self.assertGreater(stage["completed"], 40)


class Replicas(unittest.TestCase):
    """Real servers: random weights, but all of HTTP, drain and health."""

    def start(self, port, *options):
        model = os.path.join(ROOT, "tests/fixtures/v32-bf16")
        server = subprocess.Popen([GAZE, "serve", "--model", model, "--port", str(port),
                                   "--threads", "1", "--max-queued", "256"] + list(options),
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        return server


@unittest.skipUnless(shutil.which("haproxy") and os.path.exists(GAZE), "no haproxy or no server")
class ProxyOfGaze(Replicas):

    def test_rolling_restart(self):
        ports = [free_port(), free_port()]
        servers = [self.start(p) for p in ports]
        for port in ports:
            self.assertTrue(wait_for(port, "/health/ready"))
        codes = []

        def restart():
            for i, port in enumerate(ports):
                time.sleep(1.0)
                servers[i].send_signal(signal.SIGTERM)
                codes.append(servers[i].wait(timeout=30))
                servers[i] = self.start(port)
                wait_for(port, "/health/ready")
                time.sleep(1.5)  # the proxy has seen it come back

        with Proxy(ports) as proxy:
            rolling = threading.Thread(target=restart)
            rolling.start()
            result, _ = loadtest("--url", "http://127.0.0.1:%d/v1" % proxy.port, "--clients", 8,
                                 "--seconds", 9, "--output", 64, "--ignore-eos", "--metrics",
                                 "none")
            rolling.join()
            stage = result["stages"][0]
            self.assertEqual(stage["errors"], {})
        self.assertGreater(stage["completed"], 40)
        self.assertEqual(codes, [0, 0])


@unittest.skipUnless(shutil.which("prometheus") and shutil.which("haproxy") and
                     os.path.exists(GAZE), "no prometheus, no haproxy or no server")
class PrometheusOfGaze(Replicas):
    """Our configuration in the real program, over two replicas behind the proxy; one asks for a
    key. What it has read is asked for as the dashboard and the alerts do."""

    KEY = "a-key-for-the-test"

    def ask(self, query):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/api/v1/query?query=" + urllib.parse.quote(query))
        answer = json.loads(connection.getresponse().read())
        self.assertEqual(answer["status"], "success", query)
        return answer["data"]["result"]

    def write_configuration(self, folder, replicas, proxy):
        """As in the repository, but addresses instead of names, and a scrape each second."""
        config = load_yaml(read("prometheus/prometheus.yml"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        targets = {"gaze": ["127.0.0.1:%d" % p for p in replicas],
                   "proxy": ["127.0.0.1:%d" % proxy], "prometheus": ["127.0.0.1:%d" % self.port]}
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": targets[job["job_name"]]}]
            if job["job_name"] == "gaze":
                job["authorization"] = {"credentials": self.KEY}
        shutil.copy(os.path.join(DOCKER, "prometheus/alerts.yml"), folder)
        path = os.path.join(folder, "prometheus.yml")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)  # JSON is YAML too
        return path

    def test_scrapes_and_rules(self):
        ports = [free_port(), free_port()]
        self.start(ports[0])
        self.start(ports[1], "--api-key", self.KEY)
        for port in ports:
            self.assertTrue(wait_for(port, "/health/ready"))
        self.port = free_port()
        with tempfile.TemporaryDirectory() as folder, Proxy(ports[:1]) as proxy:
            path = self.write_configuration(folder, ports, proxy.metrics)
            server = subprocess.Popen(
                ["prometheus", "--config.file=" + path, "--storage.tsdb.path=" + folder + "/data",
                 "--web.listen-address=127.0.0.1:%d" % self.port],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                self.assertTrue(wait_for(self.port, "/-/ready"))
                for i in range(6):
                    status, _, _ = proxy.ask({"messages": turns("question %d" % i, 1),
                                              "max_tokens": 20})
                    self.assertEqual(status, 200)
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    up = self.ask("up == 1")
                    tokens = self.ask("sum(vllm:generation_tokens_total)")
                    if len(up) == 4 and tokens and float(tokens[0]["value"][1]) >= 6:
                        break
                    time.sleep(0.5)
                self.assertEqual(len(up), 4, up)  # two replicas, the proxy, Prometheus itself
                time.sleep(3)  # rates need two scrapes
                self.assertEqual(len(self.ask("gaze_build_info")), 2)
                self.assertEqual(self.ask("ALERTS"), [])
                empty = []
                for expression in Observability().expressions():
                    if not self.ask(expression):
                        empty.append(expression)
                # A quotient of zero by zero, and what nobody has counted yet, have no value.
                print("%d of %d expressions of the dashboard have values" %
                      (len(Observability().expressions()) - len(empty),
                       len(Observability().expressions())))
                self.assertLess(len(empty), len(Observability().expressions()) / 4, empty)
                rules = json.loads(self.get("/api/v1/rules"))["data"]["groups"][0]["rules"]
                self.assertEqual({r["health"] for r in rules}, {"ok"})
            finally:
                server.terminate()
                server.wait()

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        return connection.getresponse().read()
