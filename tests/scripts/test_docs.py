"""The documents say what the program does: every option, command and exit code, in each place."""

import os
import re
import shutil
import subprocess
import unittest

from fixtures import ROOT


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def plain(roff):
    return roff.replace("\\-", "-")


class Documents(unittest.TestCase):
    def setUp(self):
        self.options = re.findall(r'^    \{"([a-z-]+)", [A-Z]+, AT\(', read("server/settings.c"),
                                  re.M)
        self.assertGreater(len(self.options), 30)

    def test_every_option_is_in_the_manual(self):
        told = re.findall(r'^\.BI --([a-z-]+) "', plain(read("server/gaze.1")), re.M)
        self.assertEqual(sorted(told), sorted(self.options + ["config"]))

    def test_every_option_is_in_the_table_of_keys(self):
        text = read("config/README.md")
        told = set()
        for cell in re.findall(r"^\| (`[^|]*`) \|", text, re.M):
            told |= set(re.findall(r"`([a-z_]+)`", cell))
        missing = [o for o in self.options if o.replace("-", "_") not in told]
        self.assertEqual(missing, [])

    def test_live_options_agree(self):
        source = read("server/settings.c")
        body = source[source.index("void settings_take_live"):]
        members = re.findall(r"s->(\w+) = fresh", body[:body.index("\n}")])
        named = {m: o for o, m in re.findall(r'^    \{"([a-z-]+)", [A-Z]+, AT\((\w+)\)', source,
                                             re.M)}
        live = sorted(named[m] for m in members)
        table = sorted(c.replace("_", "-") for c in
                       re.findall(r"^\| `([a-z_]+)` \|.*\(live\) \|$", read("config/README.md"),
                                  re.M))
        self.assertEqual(table, live)
        manual = " ".join(plain(read("server/gaze.1")).split())
        told = re.search(r"of the settings (.*?)\. What", manual)[1]
        self.assertEqual(sorted(re.findall(r"[a-z-]+", told.replace(" and ", " "))), live)

    def test_every_command_is_told(self):
        commands = re.findall(r'\{"([a-z]+)", cli_', read("server/main.c"))
        self.assertGreaterEqual(len(commands), 7)
        manual = plain(read("server/gaze.1"))
        for command in commands:
            self.assertIn(".B gaze " + command, manual)

    def test_every_exit_code_is_told(self):
        codes = re.findall(r"\bEXIT_\w+ = (\d)", read("server/cli.h"))
        self.assertEqual(codes, ["0", "1", "2", "3", "4", "5"])
        manual = read("server/gaze.1")
        self.assertEqual(re.findall(r"^\.B (\d)$", manual, re.M), codes)
        table = read("README.md").split("## Exit codes")[1].split("\n## ")[0]
        self.assertEqual(re.findall(r"^\| (\d) \|", table, re.M), codes)

    def test_the_manual_renders(self):
        if not shutil.which("man"):
            self.skipTest("no man")
        done = subprocess.run(["man", "-l", "--warnings", "server/gaze.1"], cwd=ROOT,
                              capture_output=True, text=True, env=dict(os.environ, MANWIDTH="80"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("EXIT STATUS", re.sub(r".\x08", "", done.stdout))

    def test_versions_agree(self):
        version = re.search(r"^VERSION := (.*)$", read("Makefile"), re.M)[1]
        self.assertIn('"gaze %s"' % version, read("server/gaze.1"))
        self.assertIn("## %s" % version, read("CHANGELOG.md"))

    def test_files_that_the_readme_names_exist(self):
        text = read("README.md") + read("config/README.md")
        for path in set(re.findall(r"`((?:docker|scripts|tests|config|server|engine)/[\w./-]+)`",
                                   text)):
            self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)

    def test_the_readmes_curl_bodies_are_json(self):
        import json
        bodies = re.findall(r"-d '(\{.*?\})'", read("README.md"), re.S)
        self.assertGreaterEqual(len(bodies), 2)
        for body in bodies:
            json.loads(body)


if __name__ == "__main__":
    unittest.main()
