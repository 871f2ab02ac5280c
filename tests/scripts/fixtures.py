"""What several tests need: a stand-in server, a run of the load test, a check of markup."""

import html.parser
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
VOID = {"meta", "br", "hr", "img", "link", "input"}


class StandIn:
    """with StandIn(first_ms=20) as server: ... server.url"""

    def __init__(self, **options):
        self.command = [sys.executable, "-B", os.path.join(ROOT, "tests/scripts/stand_in.py")]
        for key, value in options.items():
            self.command += ["--" + key.replace("_", "-"), str(value)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])
        self.url = "http://127.0.0.1:%d/v1" % self.port
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def loadtest(*arguments, check=0):
    """Runs scripts/loadtest; (result as JSON, standard output). check: the exit code to expect."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out.json")
        command = [sys.executable, "-B", os.path.join(ROOT, "scripts/loadtest"), "--quiet",
                   "--json", path] + [str(a) for a in arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode != check:
            raise AssertionError("exit code %d\n%s%s" % (done.returncode, done.stdout, done.stderr))
        result = None
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                result = json.load(f)
        return result, done.stdout + done.stderr


class Balance(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def check_html(text):
    """Every tag is closed in order, every SVG is well-formed, nothing is fetched from elsewhere."""
    balance = Balance()
    balance.feed(text)
    assert not balance.wrong and not balance.open, (balance.wrong, balance.open)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        xml.etree.ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg.lower().replace("info", "")
    assert not re.search(r"<script|<link|src=|@import", text)
    return balance.count
