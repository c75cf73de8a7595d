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
import socket
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as xml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BENCH = os.path.join(ROOT, "bench")
sys.path.insert(0, BENCH)

import asking  # noqa: E402
import common  # noqa: E402
import masks  # noqa: E402
import results  # noqa: E402
import servers  # noqa: E402
import speculation  # noqa: E402
import turns as turns_tool  # noqa: E402
import users  # noqa: E402

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


# ---- many users -----------------------------------------------------------------------------------


def event(text=None, **more):
    """A chunk of a streamed answer as the servers write it."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": more.pop("finish", None)}
    return b"data: " + json.dumps({"choices": [choice] if not more else [], **more}).encode() + b"\n\n"


def http_chunks(*pieces):
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_timeline(s):
    a, b, c = event("one"), event("two"), event(finish="stop")
    s.equal(servers.unchunk(http_chunks(b"abc", b"defg")), (b"abcdefg", [(3, 6), (7, 15)]), "chunks and where they end")
    s.equal(servers.unchunk(http_chunks(b"abc", b"defg")[:13]), (b"abc", [(3, 6)]), "the last chunk is not whole")
    raw = HEAD + http_chunks(a, b[:5], b[5:] + c)
    # What comes at once, and when: the first event and half of the second; then the rest.
    first = len(HEAD) + len(http_chunks(a, b[:5])) - 5
    got = servers.timeline(raw, [(first, 1.0), (len(raw), 2.5)])
    s.equal([(t, e["choices"][0]["delta"].get("content")) for t, e in got], [(1.0, "one"), (2.5, "two"), (2.5, None)],
            "times of events")
    try:
        servers.timeline(b"HTTP/1.1 503 Busy\r\n\r\n{}", [])
        s.check(False, "an answer that is none")
    except ValueError as error:
        s.check("503" in str(error), "an answer that is none", error)


def fake_server(pieces, connections):
    """A server of so many connections: each gets the pieces, one after the other. Returns what servers.Answer needs of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(connections):
            connection, _ = listener.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                    request += connection.recv(4096)
                for piece in pieces:
                    connection.sendall(piece)
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    made = servers.Server("fake", None)
    made.port = listener.getsockname()[1]
    return made


def test_answers(s):
    body = [event(""), event("a"), event("b"), event(finish="length"), event(usage={"completion_tokens": 2}),
            b"data: [DONE]\n\n"]
    whole = HEAD + http_chunks(*body)
    server = fake_server([whole[:70], whole[70:]], 2)
    answers = [servers.begin(server, f"prompt {i}", 2) for i in range(2)]
    servers.receive(answers, lambda: False)
    for answer in answers:
        times, usage, finish = answer.pieces()
        answer.close()
        s.check(len(times) == 2 and answer.begun <= times[0] <= times[1], "times of the pieces with text", times)
        s.equal((usage, finish, answer.ended), ({"completion_tokens": 2}, "length", True), "the end of an answer")


def test_users(s):
    streams = [([1.0, 2.0, 3.0, 4.0], 8), ([2.0, 3.0, 4.0, 5.0], 4)]
    s.equal(users.rate_together(streams), ((2 * 2 + 2 * 1) / 2.0, 2.0), "tokens while both decode")
    s.equal(users.rate_together([([1.0, 2.0], 2), ([3.0, 4.0], 2)]), (None, 0.0), "never at the same time")
    prompts = users.Prompts()
    seen = prompts.long(40) + [prompts.short() for _ in range(200)]
    s.equal(len(set(seen)), 240, "no prompt twice")
    good = {"qw": {"rates": [300.0, 310.0], "idle": [0.1, 0.1], "busy": [0.29, 0.3], "prompt_tokens": 30},
            "llama-server": {"rates": [90.0, 95.0], "idle": [0.2], "busy": [2.0], "prompt_tokens": 30}}
    s.equal(users.judge(good), [], "goals that are kept")
    slow, late = copy.deepcopy(good), copy.deepcopy(good)
    slow["llama-server"]["rates"] = [150.0]
    late["qw"]["busy"] = [0.31, 0.32]
    s.check(["2.03 times" in f for f in users.judge(slow)] == [True], "too slow", users.judge(slow))
    s.check(["315 ms" in f and "300" in f for f in users.judge(late)] == [True], "too late", users.judge(late))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        users.report(good, type("Options", (), {"streams": 8, "tokens": 128}))
    s.check("3.30x" in out.getvalue() and "while 7 others" in out.getvalue(), "the table", out.getvalue())


def test_turns(s):
    s.equal(turns_tool.plan(20), {5: "edit", 7: "again", 10: "restart", 12: "side request", 15: "kill -9",
                                   17: "restart, edit"},
            "what happens on the way")

    def row(computed, action="", tokens=130, known=100, added=30):
        return {"turn": 2, "action": action, "tokens": tokens, "known": known, "added": added, "computed": computed}

    first = row(3000)
    for good in (row(30), row(160, "edit"), row(1, known=130), row(190, known=70), row(30, "restart"), row(160, "restart, edit")):
        s.equal(turns_tool.judge([first, good], 160), [], f"kept: {good}")
    for bad in (row(31), row(161, "again"), row(2, known=130), row(191, known=70), row(31, "restart"), row(161, "restart, edit"),
                row(60, "kill -9", known=70)):  # what qw forgot and calls new
        s.equal(len(turns_tool.judge([first, bad], 160)), 1, f"broken: {bad}")
    changed = row(80, known=70)
    s.equal(turns_tool.judge([first, changed, row(80, "restart", known=70)], 160), [], "a restart costs what other turns cost")
    s.equal(len(turns_tool.judge([first, changed, row(81, "restart", known=70)], 160)), 1, "and not more")


# ---- guesses ----------------------------------------------------------------------------------------


def test_speculation(s):
    with open(speculation.PROMPTS, encoding="utf-8") as file:
        prompts = speculation.read_prompts(file.read())
    groups = [group for group, _ in prompts]
    s.equal({g: groups.count(g) for g in groups}, {"chat": 7, "code": 7, "edit": 4, "rewrite": 3, "json": 3}, "groups")
    s.check(all(text and not text.startswith("@") and "\n@ " not in text for _, text in prompts), "each has its own text")
    made = speculation.made_prompts(76)
    s.check(len(set(made)) == 76 and made == speculation.made_prompts(76), "made prompts differ, and are always the same")
    s.equal(speculation.differences({"plain": [1, 2, 3], "all": [1, 2, 3]}, "x"), [], "the same")
    s.equal(speculation.differences({"plain": [1, 2, 3], "all": [1, 2]}, "x"),
            ["x: all differs from plain decoding at token 3 (2 tokens, plain 3)"], "one ends early")
    s.equal(speculation.differences({"plain": [1, 2, 3], "all": [1, 4, 3]}, "x"),
            ["x: all differs from plain decoding at token 2 (3 tokens, plain 3)"], "another token")
    s.equal([asking.turns(["a", "b", "c"], i) for i in (0, 1, 5)], [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]], "turns")


def test_gains(s):
    def row(group, plain, other, n=10):
        return {"group": group, "n": n, "decode_us": {"plain": plain, "all": other}, "checked": {"plain": 0, "all": 20},
                "right": {"plain": 0, "all": 5}}

    runs = [[row("chat", 300, 100), row("chat", 100, 100), row("edit", 500, 100), row("edit", 0, 0, 1)],
            [row("chat", 100, 100), row("chat", 100, 50), row("edit", 300, 100), row("edit", 0, 0, 1)]]
    rows = {group: (ratios, slowest, right) for _, group, ratios, slowest, right in
            speculation.table(runs, ["all"], ["chat", "edit"])}
    s.equal(rows["chat"], ([2.0, 200 / 150], 1.5, 0.25), "a group: its times together, and its slowest prompt")
    s.equal(rows["edit"], ([5.0, 3.0], 4.0, 0.25), "an answer of one token has no time")
    s.equal(rows["all"][0], [3.0, 2.0], "all groups")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        speculation.print_table("title", speculation.table(runs, ["all"], ["chat", "edit"]))
    lines = out.getvalue().splitlines()
    s.check(lines[3].endswith("1.50 reached") and "1.67x" in lines[3], "the goal of chat", lines)
    s.check(lines[5].endswith("0.97 reached"), "the goal of all", lines)


class FakeEngine:
    """Answers as told, and says how it was asked."""

    def __init__(self, us, tokens=(1, 2, 3)):
        self.us, self.tokens, self.asked = us, list(tokens), []

    def ask(self, **request):
        self.asked.append(request)
        return {"tokens": self.tokens, "decode_us": self.us, "checked": 4, "right": 2}


def test_runs(s):
    engines = {"plain": FakeEngine(200), "all": FakeEngine(100), "bad": FakeEngine(50, [1, 9, 3])}
    rows, faults = speculation.one_run(engines, [("chat", "p"), ("json", "q")], {"max_tokens": 3}, 0)
    s.equal(rows[1], {"group": "json", "n": 3, "decode_us": {"plain": 200, "all": 100, "bad": 50},
                      "checked": dict.fromkeys(engines, 4), "right": dict.fromkeys(engines, 2)}, "a row of a run")
    s.equal(faults, [f"{where}: bad differs from plain decoding at token 2 (3 tokens, plain 3)"
                     for where in ("chat, prompt 1", "json, prompt 2")], "who differs is told")
    s.equal(engines["all"].asked, [{"prompt": "p", "max_tokens": 3}, {"prompt": "q", "max_tokens": 3}], "what was asked")


def test_masks(s):
    class Engine(FakeEngine):
        def ask(self, **request):
            self.us = 110 if "schema" in request else 100
            return super().ask(**request)

    engine, options = Engine(0, range(160)), type("Options", (), {"runs": 3, "tokens": 160})
    values, rate = masks.measure(engine, "records", options)
    s.equal([round(v, 6) for v in values], [0.1] * 3, "slowdowns of pairs")
    s.equal(rate, 159 / 100e-6, "tokens a second without")
    s.equal(["schema" in r for r in engine.asked], [True, False, False, True, True, False], "each side begins in turn")
    s.check(all(("schema" in r) != ("ignore_eos" in r) for r in engine.asked), "a form ends by itself", engine.asked)
    asked = [{key: r[key] for key in ("prompt", "max_tokens", "temperature", "seed")} for r in engine.asked]
    s.check(all(a == b for a, b in zip(asked[::2], asked[1::2])), "both sides are asked the same", asked)


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
    for test in (test_timeline, test_answers, test_users, test_turns, test_speculation, test_gains, test_runs,
                 test_masks):
        test(s)
    print(f"{s.passed} passed, {s.failed} failed")
    sys.exit(1 if s.failed else 0)


if __name__ == "__main__":
    main()
