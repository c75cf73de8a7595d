#!/usr/bin/env python3
"""The measuring tools of bench/, without measuring: arithmetic, results, comparison, picture, limits.

    tests/bench/tools.py --limits build/bench/limits

Results are made up; bench/limits.c is run on a small buffer, and what it prints is read, not judged. Needs no package.
Prints one line per failure and `N passed, M failed`.
"""
import argparse
import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BENCH = os.path.join(ROOT, "bench")
sys.path.insert(0, BENCH)

import common  # noqa: E402
import results  # noqa: E402

WORK = {"weight_bytes": 1000_000_000, "kv_token_bytes": 10_000, "layer_macs": 1500_000_000, "silent_macs": 1400_000_000,
        "head_macs": 500_000_000}


class Suite:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, ok, what, detail=""):
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        if not ok:
            print(f"FAIL {what}: {str(detail)[:600]}")

    def equal(self, got, want, what):
        self.check(got == want, what, f"got {got!r}, want {want!r}")


def run(program, *arguments):
    """(exit code, standard output, standard error) of a program of bench/."""
    done = subprocess.run([sys.executable, os.path.join(BENCH, program), *arguments], capture_output=True, text=True,
                          timeout=60)
    return done.returncode, done.stdout, done.stderr


def samples(values, read=50.0, integer=400.0):
    return [{"value": value, "others": 0.0, "read_gb_per_s": read, "gmac_per_s": integer} for value in values]


def made_up(commit, decode=(30.0, 31.0, 32.0), read=50.0, name="a-model:1b", peer=False):
    """One record."""
    rows = [common.row(common.prefill(512), "qw", samples([190.0, 200.0, 210.0])),
            common.row(common.decode(64), "qw", samples(decode, read)),
            common.row(common.start(), "qw", [{"value": value, "others": 0.0} for value in (0.08, 0.09, 0.1)]),
            common.row(dict(common.start(), test="memory"), "qw", [{"value": 1050.0, "others": 0.0}] * 2)]
    if peer:
        rows += [common.row(common.prefill(512), "llama.cpp", samples([60.0, 61.0])),
                 common.row(common.start(), "llama.cpp", [{"value": 0.6, "others": 0.0}])]
    common.add_shares(rows, WORK)
    return {"date": "2026-01-02T03:04:05+00:00", "program": "bench", "commit": commit, "changed": False,
            "machine": {"cpu": "A processor", "flags": ["avx2"], "cores": 2, "system": "Linux"}, "threads": 2,
            "limits": [{"limit": "read", "threads": 2, "gb_per_s": 50.0, "how": "somehow"}], "work": WORK,
            "model": {"name": name, "bytes": 1000_000_000, "sha256": name}, "rows": rows,
            "peers": {"llama.cpp": "1.2.3, features"} if peer else {}}


def write(folder, *records):
    """A file of results."""
    path = os.path.join(folder, f"results-{len(os.listdir(folder))}.jsonl")
    for found in records:
        results.append(path, found)
    return path


def test_limit(s):
    s.equal(common.limit(common.decode(64), WORK, 50.0, 400.0), (50e9 / (1e9 + 10_000 * 32), "read"), "one stream")
    s.equal(common.limit(common.decode(32, depth=4096), WORK, 50.0, 400.0),
            (50e9 / (1e9 + 10_000 * (4096 + 16)), "read"), "the context is read too")
    s.equal(common.limit(common.decode(32, streams=8), WORK, 50.0, 400.0), (400e9 / 2e9, "integer"),
            "eight streams multiply more than they read")
    s.equal(common.limit(common.decode(32, streams=8), WORK, 20.0, 400.0), (20e9 / (1e9 / 8 + 10_000 * 16), "read"),
            "eight streams read the weights once")
    s.equal(common.limit(common.prefill(500), WORK, 50.0, 400.0), (400e9 / (1.4e9 + 0.6e9 / 500), "integer"),
            "a prompt takes the head once")
    s.equal(common.limit(common.decode(64), WORK, 50.0, None)[1], "read", "no integer instructions that are known")
    row = made_up("a")["rows"][1]
    s.equal(row["bound"], "read", "what bounds a row")
    s.equal(row["shares"], [round(v * (1e9 + 320_000) / 50e9, 4) for v in (30, 31, 32)], "shares of a row")
    s.check("shares" not in made_up("a")["rows"][2], "a start has no share")
    labels = [common.label(t) for t in common.whole_table()]
    s.equal(labels, ["prefill 512", "prefill 2048", "decode 64", "decode 32 at 4096", "decode 32, 8 streams",
                     "start to first token"], "the table")


def test_samples(s):
    with contextlib.redirect_stderr(io.StringIO()):
        children(s)
        turns(s)


def children(s):
    code = "import sys; sys.stdout.write('x'); sys.stdout.flush(); a = bytearray(200_000_000); sys.exit(%d)"
    took = common.start_once([sys.executable, "-c", code % 0])
    s.check(took and took[0] > 0 and 200e6 < took[1] < 400e6, "seconds and memory of a child", took)
    s.equal(common.start_once([sys.executable, "-c", code % 3]), None, "a child that fails is no sample")
    s.equal(common.start_once([sys.executable, "-c", ""]), None, "a child that says nothing is no sample")
    s.equal(common.run_json(["printf", "words\n{\"a\": 1}\n"]), {"a": 1}, "the last line counts")
    s.equal(common.numbers("1,2,8"), [1, 2, 8], "a list of numbers")


def turns(s):
    class Engine:
        name = "qw"

        def __init__(self, values):
            self.values = list(values)

        def can(self, test):
            return test["streams"] == 1

        def sample(self, test):
            return self.values.pop(0)

    class Limits:
        reads = [(40.0, 300.0), (60.0, 500.0)] * 2

        def now(self):
            return self.reads.pop(0)

    one = [dict(common.decode(64), runs=2), dict(common.decode(64, streams=2), runs=1)]
    rows, good = common.measure(one, [Engine([5.0, None])], 0, Limits())
    s.check(not good, "a sample that failed is told")
    s.equal([(r["test"], r["values"], r["read_gb_per_s"], r["gmac_per_s"]) for r in rows],
            [("decode 64", [5.0], [50.0], [400.0])], "limits around a sample, and no row for what an engine cannot do")


def test_results(s, folder):
    path = write(folder, made_up("1111aaaa"), made_up("2222bbbb", peer=True))
    s.equal(results.load(path), [made_up("1111aaaa"), made_up("2222bbbb", peer=True)], "results are read as written")
    for text, what in (("", "holds no results"), ("{}\n", ":1: not a result"), ("{", ":1: not a result")):
        bad = os.path.join(folder, "bad.jsonl")
        with open(bad, "w") as file:
            file.write(text)
        code, out, err = run("compare.py", "--file", bad)
        s.check(code == 1 and out == "" and what in err and err.count("\n") == 1, f"a file with {text!r}", err)
    code, out, err = run("chart.py", "--file", os.path.join(folder, "none.jsonl"))
    s.check(code == 1 and "No such file" in err and err.count("\n") == 1, "no file of results", err)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        results.print_head(made_up("2222bbbb", peer=True))
        results.print_table(made_up("2222bbbb", peer=True))
    table = out.getvalue()
    for words in ("3.31x", "62% of 50.0 t/s (read 50.0 GB/s)", "1.05x the file", "6.67x", "1.2.3, features"):
        s.check(words in table, f"the table says {words}", table)


def test_compare(s, folder):
    def compared(*arguments, records):
        return run("compare.py", "--file", write(folder, *records), *arguments)

    def verdict(out, test):
        return re.search(rf"^  {re.escape(test)} .*?([\d.]+)x .*?  (\S[^%\n]*)$", out, re.M).groups()

    old, faster = made_up("1111aaaa"), made_up("2222bbbb", decode=(40.0, 41.0, 42.0))
    code, out, err = compared(records=[faster, old, faster])
    s.check(code == 0 and err == "" and "1111aaaa of" in out and "-> 2222bbbb of" in out, "the last two", out + err)
    s.equal(verdict(out, "decode 64"), ("1.323", "better"), "faster")
    s.equal(verdict(out, "prefill 512"), ("1.000", "within the spread"), "the same")
    s.equal(verdict(out, "start to first token"), ("1.000", "within the spread"), "the same time")
    code, out, err = compared("2222", "1111", "--fail-below", "0.9", records=[old, faster])
    s.check(code == 1 and "1 test below 0.9x, the lowest 0.756x" in out, "slower fails on request", out + err)
    s.equal(verdict(out, "decode 64"), ("0.756", "worse"), "slower")
    s.equal(compared("2222", "1111", "--fail-below", "0.7", records=[old, faster])[0], 0, "slower, and allowed")
    s.equal(compared("2222", "1111", records=[old, faster])[0], 0, "slower, and nobody asked")
    moved = made_up("3333cccc", decode=(40.0, 41.0, 42.0), read=66.0)
    s.equal(verdict(compared(records=[old, moved])[1], "decode 64"), ("1.323", "machine changed"), "more bandwidth")
    single = made_up("3333cccc", decode=(60.0,))
    s.equal(verdict(compared(records=[old, single])[1], "decode 64")[1], "one sample", "one sample")
    slow_start = copy.deepcopy(old)
    slow_start["rows"][2]["values"] = [0.2, 0.21]
    code, out, err = compared("--fail-below", "1", records=[old, slow_start])
    s.check(code == 1, "a slower start fails", out)
    s.equal(verdict(out, "start to first token"), ("0.439", "worse"), "a longer time is worse")
    code, out, err = compared(records=[old, made_up("2222bbbb", name="other")])
    s.check(code == 1 and "no two results" in err and err.count("\n") == 1, "two models are not compared", err)
    code, out, err = compared("9999", "1111", records=[old, faster])
    s.check(code == 1 and "no result of commit 9999" in err, "an unknown commit", err)
    code, out, err = compared("--model", "other", records=[old, faster] + [made_up(c, name="other") for c in "34"])
    s.check(code == 0 and "other:" in out and "a-model" not in out, "one model", out)


def test_chart(s, folder):
    picture = os.path.join(folder, "picture.svg")
    both = write(folder, made_up("1111aaaa", name="old & <odd>"), made_up("2222bbbb", peer=True))
    code, out, err = run("chart.py", "--file", both, "--out", picture)
    s.check(code == 0 and out == picture + "\n" and err == "", "chart.py", (code, out, err))
    root = xml.parse(picture).getroot()
    spans = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for words in ("old & <odd>", "a-model:1b", "Prefill, 512 tokens", "Decode", "Start to first token", "Peak memory",
                  "3.31x", "90 ms", "62% of bandwidth", "1.05x the file"):
        s.check(words in spans, f"the picture says {words}", spans)
    width, height = float(root.get("width")), float(root.get("height"))
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    inside = [0 <= float(b.get("x")) and float(b.get("x")) + float(b.get("width")) <= width
              and float(b.get("y")) + float(b.get("height")) <= height for b in boxes]
    s.check(all(inside), "bars are in the picture", inside)
    bars = [b for b in boxes if b.get("class") == "c1" and float(b.get("width")) > 12]
    s.equal(len(bars), 2, "bars of the peer")
    code, out, err = run("chart.py", "--file", both, "--out", picture, "--model", "a-model:1b", "--commit", "1111")
    s.check(code == 1 and "no such results" in err, "nothing to draw", err)


def test_limits(s, program):
    done = subprocess.run([program, "--json", "--mib", "64", "--threads", "2", "--quick"], capture_output=True,
                          text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    s.check(done.returncode == 0 and [line["limit"] for line in lines] == ["read", "integer"]
            and all(line["threads"] == 2 and line["how"] for line in lines), "limits --quick", done.stdout)
    s.check(all(line.get("gb_per_s", 0) + line.get("gmac_per_s", 0) > 0 for line in lines), "numbers", lines)
    limits = common.Limits(program, 1)
    s.check(limits.now()[0] > 0, "one thread")
    for arguments in (["--mib", "1"], ["--threads", "0"], ["--threads"], ["--nope"], ["--mib", "9x"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        good = done.returncode == 2 and done.stderr.startswith("use: limits") and not done.stdout
        s.check(good, f"limits {arguments}", done)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limits", required=True, help="the built bench/limits.c")
    args = parser.parse_args()
    s = Suite()
    with tempfile.TemporaryDirectory() as folder:
        test_limit(s)
        test_samples(s)
        test_results(s, folder)
        test_compare(s, folder)
        test_chart(s, folder)
        test_limits(s, args.limits)
    print(f"{s.passed} passed, {s.failed} failed")
    sys.exit(1 if s.failed else 0)


if __name__ == "__main__":
    main()
