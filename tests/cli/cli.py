#!/usr/bin/env python3
"""The command driven as a user does: through pipes and through a pseudo-terminal.

    cli.py --qw build/qw --model tests/fixtures/tiny-q4km.gguf [--fake]

--fake says that the program is linked with tests/cli/fake_engine.c: then answers are known, and slow answers,
errors and a full context are tested as well. What was typed is judged by the conversation that /save writes.
Needs pexpect. Prints one line per failure and `N passed, M failed`.
"""
import argparse
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time

import pexpect

PROMPT = "\x1b[?2004h"  # written before every prompt; a model cannot write an escape character
COMMANDS = ["chat", "run", "tokenize", "logits", "bench", "eval", "serve", "pull", "list", "show", "verify", "rm",
            "version", "help"]
NEEDS_REAL = ["logits", "bench", "eval"]  # not in the program with the test double


class Suite:
    def __init__(self, args):
        self.qw, self.model, self.fake = os.path.abspath(args.qw), os.path.abspath(args.model), args.fake
        self.passed = self.failed = 0
        self.dir = tempfile.mkdtemp(prefix="qw-cli-")
        self.home = os.path.join(self.dir, "home")
        self.env = {"PATH": os.environ["PATH"], "HOME": self.dir, "QW_HOME": self.home, "TERM": "xterm",
                    "LANG": "C.UTF-8"}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LD_LIBRARY_PATH"):
            if name in os.environ:
                self.env[name] = os.environ[name]

    def check(self, ok, what, detail=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {what}: {str(detail)[:600]!r}")
        return ok

    def equal(self, got, want, what):
        return self.check(got == want, what, f"got {got!r}, want {want!r}")

    def run(self, *args, stdin=b"", env=None):
        p = subprocess.run([self.qw, *args], input=stdin, capture_output=True, env={**self.env, **(env or {})},
                           cwd=self.dir, timeout=300)
        return p.returncode, p.stdout, p.stderr

    def one_line_error(self, args, code, part, what, **kw):
        rc, out, err = self.run(*args, **kw)
        text = err.decode("utf-8", "replace")
        self.check(rc == code and text.count("\n") == 1 and text.startswith("qw") and part in text and out == b"",
                   what, f"exit {rc}, stdout {out!r}, stderr {text!r}")

    def short(self, *args):
        return ["-m", self.model, "-n", "8", *args]


# ---- without a terminal ------------------------------------------------------------------------------

def test_help(s):
    rc, out, err = s.run("--help")
    listed = all(f"  {c} ".encode() in out for c in COMMANDS)
    s.check(rc == 0 and err == b"" and listed, "qw --help lists commands", out)
    for c in COMMANDS:
        if s.fake and c in NEEDS_REAL:
            continue
        rc, out, err = s.run(c, "--help")
        text = out.decode()
        s.check(rc == 0 and err == b"" and text.startswith(f"qw {c}: ") and f"Usage: qw {c}" in text
                and "Options:" in text and f"  qw {c}" in text.split("Examples:")[-1] and "Exit codes:" in text,
                f"qw {c} --help", text + err.decode())
        s.check(all(len(line) <= 110 for line in text.split("\n")), f"width of qw {c} --help", text)
        s.equal(s.run("help", c)[1], out, f"qw help {c}")
    rc, out, err = s.run("version")
    s.check(rc == 0 and re.fullmatch(rb"qw \d+\.\d+\.\d+\S*\n", out) is not None, "qw version", out)
    s.equal(s.run("--version")[1], out, "qw --version")


def test_usage_errors(s):
    rc, out, err = s.run()
    s.check(rc == 2 and out == b"" and b"Commands:" in err, "no command", (rc, out, err))
    s.one_line_error(["nope"], 2, 'unknown command "nope"; see qw --help', "unknown command")
    s.one_line_error(["--nope"], 2, 'unknown option "--nope"', "unknown first option")
    for c in COMMANDS:
        if s.fake and c in NEEDS_REAL:
            continue
        s.one_line_error([c, "--foo"], 2, f"qw {c}: unknown option --foo; see qw {c} --help", f"qw {c} --foo")
        s.one_line_error([c, "-%"], 2, f"qw {c}: unknown option -%; see qw {c} --help", f"qw {c} -%")
    for args, part in [
            (["run", "-n"], "option -n needs a value"),
            (["run", "--temp"], "option --temp needs a value"),
            (["run", "-n", "x"], 'option -n takes a whole number, not "x"'),
            (["run", "-n", "3x"], 'option -n takes a whole number, not "3x"'),
            (["run", "-n", "99999999999999999999"], "option -n takes a whole number"),
            (["run", "-n", "-1"], "option -n takes a number from 0 to"),
            (["run", "--temp", "nan"], "option --temp takes a number"),
            (["run", "--temp", "hot"], 'option --temp takes a number, not "hot"'),
            (["run", "--top-p", "1.5"], "option --top-p takes a number from 0 to 1"),
            (["run", "--raw=1"], "option --raw takes no value"),
            (["run", "-t", "0"], "option -t takes a number from 1 to"),
            (["run", "stray"], 'unexpected argument "stray"'),
            (["run", "-p", "x", "--logprobs", "2"], "--logprobs needs --json"),
            (["run", "-p", "x", "--raw", "--suffix", "y"], "--raw and --suffix exclude each other"),
            (["run", "-p", "x", "--raw", "--system", "y"], "--system needs the chat format"),
            (["run", "-p", "x", "--special"], "--special needs --raw"),
            (["help", "nope"], 'unknown command "nope"')]:
        s.one_line_error(args, 2, part, "usage: qw " + " ".join(args))


def test_no_model(s):
    for args in (["run", "-p", "x"], ["chat"], ["tokenize"]):
        s.one_line_error(args, 1, "qw pull", f"qw {args[0]} without a model")
    s.one_line_error(["run", "-p", "x", "-m", "no-such-model"], 1, "no-such-model", "a name that is not installed")
    s.one_line_error(["run", "-p", "x", "-m", "./no-such.gguf"], 1, "no-such.gguf", "a file that is not there")
    junk = os.path.join(s.dir, "junk.gguf")
    with open(junk, "wb") as f:
        f.write(b"\x00" * 100)
    for c in (["run", "-p", "x"], ["chat"], ["tokenize"]):
        s.one_line_error([*c, "-m", junk], 1, "junk.gguf", f"qw {c[0]} with a file that is no GGUF")


def test_tokenize(s):
    data = "Hello, 世界! <|im_end|>\n".encode() + b"\x00\xff\xfe\xc3 end\n\n"
    rc, out, err = s.run("tokenize", "-m", s.model, stdin=data)
    lines = out.decode()
    s.check(rc == 0 and err == b"" and re.fullmatch(r"(\d+\n)+", lines) is not None, "one id a line", (rc, lines, err))
    ids = [int(x) for x in lines.split()]
    rc, out, err = s.run("tokenize", "--json", "-m", s.model, stdin=data)
    s.check(rc == 0 and out.count(b"\n") == 1 and json.loads(out) == ids, "--json has the same ids", out)
    special = json.loads(s.run("tokenize", "--json", "--special", "-m", s.model, stdin=data)[1])
    s.check(len(special) < len(ids), "--special takes <|im_end|> as one token", (len(special), len(ids)))
    s.equal(json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=b"")[1]), [], "an empty text")
    a = json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=b"a\x00b")[1])
    b = json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=b"a")[1])
    s.check(len(a) >= 3 and a[:len(b)] == b, "NUL does not end the text", (a, b))
    n1 = json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=b"x\n")[1])
    n0 = json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=b"x")[1])
    s.check(n1 != n0, "the last newline is kept", (n0, n1))


def test_run(s):
    rc, out, err = s.run("run", *s.short("-p", "Say hello", "--greedy"))
    s.check(rc == 0 and err == b"" and out.endswith(b"\n"), "qw run", (rc, out, err))
    s.equal(s.run("run", *s.short("--greedy"), stdin=b"Say hello\n")[1], out, "the prompt from a pipe")
    prompt = os.path.join(s.dir, "prompt.txt")
    with open(prompt, "w") as f:
        f.write("Say hello\n")
    s.equal(s.run("run", *s.short("--greedy", "-f", prompt))[1], out, "the prompt from a file")
    s.equal(s.run("run", *s.short("--greedy", "-f", "-"), stdin=b"Say hello\n")[1], out, "-f -")
    both = s.run("run", *s.short("--greedy", "-p", "Say hello", "-f", prompt))[1]
    s.equal(both, s.run("run", *s.short("--greedy", "-p", "Say hello\n\nSay hello"))[1], "-p before -f")
    s.equal(s.run("run", *s.short("--greedy", "-pSay hello", "--"))[1], out, "-pVALUE and --")
    s.equal(s.run("run", *s.short("-p", "Say hello", "--greedy", "--draft", s.model))[1], out, "--draft changes no answer")
    s.one_line_error(["run", *s.short("-p", "x", "--draft", "no-such-model")], 1, "no-such-model", "a draft model that is not there")
    s.one_line_error(["run", *s.short("-f", "missing.txt")], 1, "missing.txt", "a prompt file that is not there")
    for args in (["--raw", "-p", "Once"], ["--raw", "--special", "-p", "<|im_start|>x"]):
        rc, out, err = s.run("run", *s.short(*args))
        s.check(rc == 0 and err == b"", "qw run " + args[0], (rc, err))


def test_run_json(s):
    rc, out, err = s.run("run", *s.short("-p", "Count 你好", "--json", "--logprobs", "2", "--greedy", "--ignore-eos"))
    if not s.check(rc == 0 and err == b"" and out.count(b"\n") == 1, "qw run --json", (rc, out, err)):
        return
    r = json.loads(out.decode("utf-8"))
    s.equal(sorted(r), sorted(["text", "finish_reason", "usage", "timings", "tokens"]), "fields")
    s.equal(sorted(r["usage"]), ["cached_tokens", "completion_tokens", "prompt_tokens", "reasoning_tokens"],
            "usage fields")
    s.equal(sorted(r["timings"]), sorted(["queue_ms", "prefill_ms", "decode_ms", "prefill_tokens_per_s",
                                          "decode_tokens_per_s"]), "timings fields")
    s.check(r["finish_reason"] in ("stop", "length"), "finish_reason", r["finish_reason"])
    s.check(r["usage"]["prompt_tokens"] > 0 and 0 < r["usage"]["completion_tokens"] <= 8, "usage", r["usage"])
    s.check(all(len(t["top"]) == 2 and t["logprob"] <= 0 and isinstance(t["id"], int) and isinstance(t["bytes"], list)
                for t in r["tokens"]), "tokens", r["tokens"][:2])
    s.check(0 < len(r["tokens"]) <= 8, "number of tokens", len(r["tokens"]))
    rc, out, err = s.run("run", *s.short("-p", "hi", "--json"))
    s.check(rc == 0 and "tokens" not in json.loads(out), "no tokens without --logprobs", out)


def test_run_form(s):
    """What the tiny model says is noise, and has the form all the same."""
    if s.fake:
        return
    schema, grammar = os.path.join(s.dir, "person.json"), os.path.join(s.dir, "word.ebnf")
    with open(schema, "w") as f:
        json.dump({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                   "required": ["name", "age"], "additionalProperties": False}, f)
    with open(grammar, "w") as f:
        f.write('root ::= "ab"+ "."')
    for args, fits in (
            (["--schema", schema], lambda t: sorted(json.loads(t)) == ["age", "name"]),
            (["--regex", "[a-f]{3,}!"], lambda t: re.fullmatch("[a-f]{3,}!", t)),
            (["--choice", "yes", "--choice", "no"], lambda t: t in ("yes", "no")),
            (["--grammar", grammar], lambda t: re.fullmatch(r"(ab)+\.", t))):
        rc, out, err = s.run("run", "-m", s.model, "-n", "60", "--seed", "5", "--json", "-p", "hi", *args)
        r = json.loads(out) if rc == 0 else {}
        s.check(rc == 0 and fits(r["text"]) and r["finish_reason"] == "stop" and isinstance(r["closed"], bool),
                "qw run " + args[0], (rc, out, err))
    for args, code, part in (
            (["--regex", "a", "--choice", "b"], 2, "one of --schema"),
            (["--schema", "missing.json"], 1, "missing.json"),
            (["--regex", "("], 2, "expression")):
        s.one_line_error(["run", *s.short("-p", "x"), *args], code, part, "qw run " + " ".join(args))


def test_seed(s):
    def text(seed, threads):
        rc, out, _ = s.run("run", "-m", s.model, "-n", "16", "-p", "random", "--temp", "2", "--top-k", "0", "--top-p",
                           "1", "--seed", str(seed), "-t", str(threads), "--ignore-eos")
        return out if rc == 0 else None
    one = text(7, 1)
    s.check(one, "an answer with a seed")
    s.equal(text(7, 2), one, "the same seed gives the same text with 2 threads")
    s.equal(text(7, 1), one, "the same seed gives the same text again")
    s.check(any(text(seed, 1) != one for seed in (8, 9, 10)), "other seeds give other texts", one)


def test_bench(s):
    if s.fake:
        return
    rc, out, err = s.run("bench", "-m", s.model, "-p", "9,3", "-n", "2", "-d", "0,5", "-s", "1,2,4", "-r", "2",
                         "-t", "1", "--json")
    tests = [json.loads(line) for line in out.decode().splitlines()]
    want = [(kind, n, depth, streams) for streams in (1, 2, 4) for depth in (0, 5)
            for kind, n in (("prefill", 9), ("prefill", 3), ("decode", 2))]
    s.check(rc == 0 and err == b"", "qw bench with lists", (rc, err))
    s.equal([(t["test"], t["n"], t["depth"], t["streams"]) for t in tests], want, "a test for each value of the lists")
    s.check(all(t["threads"] == 1 and len(t["samples"]) == 2 and t["samples"][0] > 0
                and min(t["samples"]) <= t["tokens_per_s"] <= max(t["samples"]) for t in tests), "samples", tests[0])
    s.check(all(0 < t["weight_bytes"] < os.path.getsize(s.model) and t["kv_token_bytes"] > 0 and t["head_macs"] > 0
                and t["layer_macs"] > t["silent_macs"] > 0 and "profile" not in t for t in tests), "sizes", tests[0])
    rc, out, err = s.run("bench", "-m", s.model, "-p", "4", "-n", "3", "-r", "1")
    s.check(rc == 0 and re.fullmatch(r"(?:(?:prefill|decode ) +\d+ tokens .* \d+\.\d\d tokens/s\n){2}", out.decode()),
            "qw bench for people", out)
    s.one_line_error(["bench", "-m", s.model, "-p", "0", "-n", "0"], 2, "nothing to measure", "qw bench of nothing")
    s.one_line_error(["bench", "-m", s.model, "-s", "1,,2"], 2, "-s", "a list with a hole")
    s.one_line_error(["bench", "-m", s.model, "-s", "0"], 2, "from 1 to", "no streams")


def test_bench_profile(s):
    if s.fake:
        return
    rc, out, err = s.run("bench", "-m", s.model, "-p", "16", "-n", "8", "-s", "1,2", "-r", "2", "--profile", "--json")
    tests = [json.loads(line) for line in out.decode().splitlines()]
    s.check(rc == 0 and err == b"" and len(tests) == 4, "qw bench --profile --json", (rc, err, len(tests)))
    for t in tests:
        name, rows = f"{t['test']} of {t['streams']}", t["profile"]
        s.check(all(sorted(r) == ["bytes", "calls", "macs", "op", "share", "us", "weights"] for r in rows),
                f"fields, {name}", rows)
        s.equal([r["op"] for r in rows].index("outside"), len(rows) - 1, f"the time outside comes last, {name}")
        s.check(abs(sum(r["share"] for r in rows) - 1) < 1e-3, f"shares add up to the whole, {name}", rows)
        s.check(all(r["us"] >= 0 for r in rows), f"no time is counted twice, {name}", rows)
        asked, silent = (t["streams"], 0) if t["test"] == "decode" else (1, t["n"] - 1)
        want = (t["layer_macs"] + t["head_macs"]) * asked + t["silent_macs"] * silent
        s.equal(sum(r["macs"] for r in rows if r["weights"]), want, f"products of matrices, {name}")
        s.check(sum(r["bytes"] for r in rows) >= t["weight_bytes"], f"bytes of all weights, {name}", rows)
        seconds = sum(t["n"] * t["streams"] / rate for rate in t["samples"])
        n_units = len(t["samples"]) * (t["n"] if t["test"] == "decode" else t["streams"])
        s.check(abs(sum(r["us"] for r in rows) * n_units / 1e6 / seconds - 1) < 0.01, f"the time of a unit, {name}", t)
    rc, out, err = s.run("bench", "-m", s.model, "-p", "0", "-n", "8", "-r", "1", "--profile")
    lines = out.decode().splitlines()
    s.check(rc == 0 and err == b"" and lines[1].split()[:3] == ["one", "decode", "step"] and "ffn_down" in out.decode()
            and lines[-2].startswith("  outside of operations") and re.search(r" 100\.0% ", lines[-1])
            and all(len(line) <= 110 for line in lines), "qw bench --profile for people", out)


def test_eval(s):
    if s.fake:
        return
    text = os.path.join(s.dir, "text.txt")
    with open(text, "w") as f:
        f.write("The quick brown fox jumps over the lazy dog. " * 20)
    ids = json.loads(s.run("tokenize", "--json", "-m", s.model, stdin=open(text, "rb").read())[1])
    rc, out, err = s.run("eval", "-m", s.model, "--text", text, "-c", "32", "--json")
    s.check(rc == 0 and err == b"", "qw eval", (rc, err))
    r = json.loads(out)
    s.equal((r["tokens"], r["scored"], r["context"]), (len(ids), len(ids) // 32 * 16, 32), "half of each window")
    s.check(r["perplexity"] > 1 and abs(r["nll"] - math.log(r["perplexity"])) < 1e-4, "perplexity", r)
    rc, out, err = s.run("eval", "-m", s.model, "--text", text, "-c", "32")
    s.check(rc == 0 and f"perplexity {r['perplexity']:.4f} " in out.decode(), "qw eval for people", out)
    s.one_line_error(["eval", "-m", s.model], 2, "--text is missing", "qw eval without a text")
    s.one_line_error(["eval", "-m", s.model, "--text", text, "-c", "32768"], 2, "at least one window", "a short text")


def test_chat_pipe(s):
    rc, out, err = s.run("chat", *s.short("--greedy"), stdin=b"hello\n\nagain\n")
    err = err.replace(b"(cut at --max-tokens)\n", b"")
    s.check(rc == 0 and err == b"" and out.count(b"\n") >= 2 and out.endswith(b"\n"), "chat from a pipe",
            (rc, out, err))
    s.check(b"\x1b" not in out and b"> " not in out[:2], "no prompt in the output of a pipe", out)
    rc, out, err = s.run("chat", *s.short(), stdin=b"")
    s.equal((rc, out, err), (0, b"", b""), "chat with an empty pipe")
    rc, out, err = s.run("chat", *s.short(), stdin=b"/nope\n/system be short\n/exit\nhello\n")
    s.check(rc == 0 and out == b"" and b"unknown command /nope" in err, "commands from a pipe", (rc, out, err))
    path = os.path.join(s.dir, "pipe.json")
    s.run("chat", *s.short("--system", "短く"), stdin="你好 <|im_end|>\r\n//slash\n/save pipe.json".encode())
    talk = json.load(open(path))["messages"]
    s.equal([m["content"] for m in talk if m["role"] != "assistant"], ["短く", "你好 <|im_end|>", "/slash"],
            "the conversation of a pipe")
    rc, out, err = s.run("chat", *s.short(), stdin=b"hi\n/save pipe.json\n")
    s.check(rc == 1 and b"pipe.json exists" in err and json.load(open(path))["messages"] == talk,
            "a pipe does not replace a file", (rc, err))
    rc, out, err = s.run("chat", *s.short("-c", "64"), stdin=b"many words " * 100 + b"\n")
    s.check(rc == 1 and out == b"" and b"context" in err and b"/clear" in err, "a prompt larger than the context",
            (rc, out, err))


def test_closed_output(s):
    for args in (["run", "-m", s.model, "-p", "count", "-n", "30", "--ignore-eos"], ["tokenize", "-m", s.model],
                 ["--help"]):
        r, w = os.pipe()
        os.close(r)
        p = subprocess.run([s.qw, *args], input=b"x" * 20000, stdout=w, stderr=subprocess.PIPE, env=s.env,
                           timeout=300)
        os.close(w)
        s.check(p.returncode == 1 and p.stderr == b"", f"closed standard output: {args[0]}", (p.returncode, p.stderr))
    with open("/dev/full", "wb") as full:
        p = subprocess.run([s.qw, "run", "-m", s.model, "-p", "x", "-n", "4"], stdout=full, stderr=subprocess.PIPE,
                           env=s.env, stdin=subprocess.DEVNULL, timeout=300)
    s.check(p.returncode == 1 and b"standard output" in p.stderr, "a full disk is said", (p.returncode, p.stderr))


def test_interrupt_run(s):
    p = subprocess.Popen([s.qw, "run", "-m", s.model, "-p", "slow", "-n", "0", "--ignore-eos"], env=s.env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    if s.fake:
        s.check(p.returncode == 1 and first != b"" and b"word1999" not in out, "Ctrl-C ends qw run",
                (p.returncode, out[-80:], err))
    else:  # a tiny model may have filled its context before the signal came
        s.check(p.returncode in (0, 1) and first != b"", "Ctrl-C ends qw run", (p.returncode, err))


# ---- on a terminal -----------------------------------------------------------------------------------

class Chat:
    def __init__(self, s, *args, n="8", cols=80, env=None):
        self.s = s
        self.p = pexpect.spawn(s.qw, ["chat", "-m", s.model, "-n", n, *args], env={**s.env, **(env or {})}, cwd=s.dir,
                               encoding="utf-8", codec_errors="replace", dimensions=(24, cols), timeout=120)
        self.greeting = self.until_prompt()

    def until_prompt(self):
        """Everything up to the next prompt."""
        self.p.expect_exact(PROMPT)
        text = self.p.before
        self.p.expect_exact(["> ", ". "])
        return text

    def ask(self, text):
        self.p.send(text + "\r")
        return self.until_prompt()

    def begin(self, text):
        """Sends a message and waits for the first character of the answer."""
        self.p.send(text + "\r")
        self.p.expect(r"\x1b\[\?2004l[\s\S]")

    def interrupt(self):
        """Ctrl-C, and everything up to the next prompt. A tiny model may have filled its context and shown one before;
        and what waits to be read is dropped by the terminal, be it in the middle of a character."""
        self.p.sendintr()
        self.p.send("/next\r")
        self.p.expect_exact("unknown command /next")
        return self.p.before + self.until_prompt()

    def hold(self):
        """Stops the terminal (Ctrl-S) until nothing more comes: a program in the middle of an answer waits in a write."""
        self.p.send("\x13")
        while self.p.expect([r"[\s\S]", pexpect.TIMEOUT], timeout=0.5) == 0:
            pass

    def talk(self):
        """The conversation so far, as /save writes it."""
        path = os.path.join(self.s.dir, "talk.json")
        if os.path.exists(path):
            os.remove(path)
        self.ask("/save talk.json")
        return json.load(open(path))["messages"] if os.path.exists(path) else None

    def said(self):
        return [m["content"] for m in self.talk() or [] if m["role"] == "user"]

    def close(self):
        if self.p.isalive():
            self.p.send("\x04")
            self.p.expect(pexpect.EOF)
        self.p.close()
        return self.p.exitstatus


def test_terminal_basics(s):
    c = Chat(s)
    s.check("/help" in c.greeting and "context" in c.greeting and "thread" in c.greeting
            and c.greeting.count("\n") <= 2, "greeting", c.greeting)
    out = c.ask("hello 世界")
    s.check(not s.fake or "You said: hello 世界" in out, "an answer", out)
    s.equal(c.said(), ["hello 世界"], "the message arrives")
    out = c.ask("/help")
    s.check(all(w in out for w in ("/help", "/system", "/clear", "/retry", "/stats", "/save", "/exit")), "/help", out)
    s.check("prompt tokens" in (out := c.ask("/stats")) and "tokens/s" in out, "/stats", out)
    s.check("unknown command /foo" in (out := c.ask("/foo bar")), "an unknown command", out)
    c.ask("//etc is a folder")
    s.equal(c.said(), ["hello 世界", "/etc is a folder"], "// sends a slash")
    n = len(c.talk())
    out = c.ask("/retry")
    s.equal(len(c.talk()), n, "/retry keeps the length of the conversation")
    c.ask("/system Sei kurz.")
    s.equal([m["content"] for m in c.talk() if m["role"] == "system"], ["Sei kurz."], "/system")
    s.check("Sei kurz." in (out := c.ask("/system")), "/system shows it", out)
    c.ask("/clear")
    s.equal([m["role"] for m in c.talk()], ["system"], "/clear")
    c.ask("/system -")
    s.equal(c.talk(), [], "/system - removes it")
    s.check("nothing to retry" in (out := c.ask("/retry")), "/retry with nothing", out)
    c.p.send("/exit\r")
    c.p.expect(pexpect.EOF)
    s.equal(c.close(), 0, "/exit")


def test_terminal_editing(s):
    c = Chat(s)
    c.ask("wrold\x1b[D\x1b[D\x1b[D\x7f\x1b[Cr")  # left left left backspace right r: "wold" -> "world"
    c.ask("one two\x17three")                      # ^W
    c.ask("abc\x01X\x05Y")                         # ^A ^E
    c.ask("abd\x1b[D\x04c")                        # ^D deletes under the cursor
    c.ask("éàü ñ 한국어 🙂")
    c.ask("ab\x1b\rcd")                            # Alt-Enter
    s.equal(c.said(), ["world", "one three", "Xabc" + "Y", "abc", "éàü ñ 한국어 🙂", "ab\ncd"], "editing keys")
    c.p.send("你")
    c.p.expect_exact("你")
    c.p.send("\x1b[D")
    c.p.expect_exact("\b\b")                       # one character, two columns
    s.check(True, "a wide character takes two columns")
    c.p.send("\x03")
    c.until_prompt()
    c.p.send("half a line\x03")
    c.until_prompt()
    c.ask("whole")
    s.equal(c.said()[6:], ["whole"], "Ctrl-C clears the line")
    s.equal(c.close(), 0, "Ctrl-D leaves")


def test_terminal_multiline(s):
    c = Chat(s)
    c.p.send("one\\\r")
    c.until_prompt()
    c.ask("two")
    c.p.send('"""first\r')
    c.until_prompt()
    c.p.send("\r")
    c.until_prompt()
    c.p.send("back\\\r")
    c.until_prompt()
    c.ask('last"""')
    c.ask('"""all in one"""')
    c.p.send("dropped\\\r")
    c.until_prompt()
    c.p.send("\x03")
    c.until_prompt()
    c.ask("kept")
    s.equal(c.said(), ["one\ntwo", "first\n\nback\\\nlast", "all in one", "kept"], "continued lines")
    c.close()


def paste(text):
    return "\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~"


def test_terminal_paste(s):
    c = Chat(s)
    code = "int main(void)\n{\n\treturn 0; // 你好，世界\n}"
    c.ask("look: " + paste(code))
    c.ask(paste("/not/a/command\nsecond") + "\x01/")
    c.ask(paste("esc \x1b[31m bell \x07 end\n"))
    long = "\n".join(f"line {i} 长" for i in range(60))  # more than the window holds
    c.ask(paste(long))
    s.equal(c.said(), ["look: " + code, "/not/a/command\nsecond", "esc [31m bell  end", long], "pasted text")
    c.ask("after")
    c.p.send("\x1b[A\x1b[A\x1b[A\r")  # /save, after, the long one again
    c.until_prompt()
    s.equal(c.said()[-1], long, "a pasted message comes back with the up key")
    c.close()


def test_terminal_history(s):
    c = Chat(s)
    c.ask("first question")
    c.ask("second \\ question")
    c.p.send("three\\\r")
    c.until_prompt()
    c.ask("four")
    c.close()
    path = os.path.join(s.home, "history")
    s.equal(stat.S_IMODE(os.stat(path).st_mode), 0o600, "mode of the history file")
    c = Chat(s)
    c.ask("\x1b[A")
    c.ask("\x1bOA\x1b[A")
    s.equal(c.said(), ["three\nfour", "second \\ question"], "history of the last chat")
    c.close()
    with open(path, "a") as f:  # other chats, and an entry cut by a crash
        f.writelines(f"entry {i}\n" for i in range(3000))
        f.write("cut")
    c = Chat(s)
    c.ask("\x1b[A")
    s.equal(c.said(), ["cut"], "the newest entry")
    c.close()
    n = len(open(path).read().split("\n"))
    s.check(990 < n < 1010, "a long history is shortened", n)
    os.remove(path)
    os.mkdir(path)
    c = Chat(s)
    c.ask("still works")
    s.equal(c.said(), ["still works"], "without a history file")
    c.close()
    os.rmdir(path)


def test_terminal_save(s):
    c = Chat(s)
    c.ask("save me")
    for name in ("talk.md", "out.json"):
        path = os.path.join(s.dir, name)
        s.check("saved to" in (out := c.ask("/save " + name)) and os.path.exists(path), "/save " + name, out)
    text = open(os.path.join(s.dir, "talk.md")).read()
    s.check("## User\n\nsave me\n" in text and "## Assistant\n" in text, "Markdown", text)
    with open(os.path.join(s.dir, "talk.md"), "w") as f:
        f.write("mine")
    c.p.send("/save talk.md\r")
    out = c.until_prompt()
    s.check("exists" in out, "an existing file is said", out)
    s.check("not saved" in (out := c.ask("n")), "no keeps it", out)
    s.equal(open(os.path.join(s.dir, "talk.md")).read(), "mine", "the file is kept")
    c.p.send("/save talk.md\r")
    c.until_prompt()
    c.ask("y")
    s.check("save me" in open(os.path.join(s.dir, "talk.md")).read(), "yes replaces it")
    c.ask("/save ~/home.md")
    s.check(os.path.exists(os.path.join(s.dir, "home.md")), "~/ is the home folder")
    s.check("not a regular file" in (out := c.ask("/save /dev/null")), "a device is refused", out)
    s.check("cannot be" in (out := c.ask("/save no/such/folder/x.md")) and c.p.isalive(), "a folder not there", out)
    s.check("needs a file name" in (out := c.ask("/save")), "/save alone", out)
    c.close()


def test_terminal_interrupt(s):
    c = Chat(s, "--ignore-eos", n="0")
    c.begin("slow answer please")
    out = c.interrupt()
    if s.fake:
        s.check("(stopped)" in out and "word1999" not in out, "Ctrl-C stops the answer", out)
        talk = c.talk()
        s.check(len(talk) == 2 and talk[1]["content"].startswith("word0"), "the part that was said is kept", talk)
    s.check(c.p.isalive(), "Ctrl-C does not end the program")
    s.check("prompt tokens" in (out := c.ask("/stats")), "it still takes commands", out)
    c.ask("/clear")
    c.begin("another")
    if s.fake:
        s.check("ou said: another" in (out := c.until_prompt()), "it answers again", out)
    else:
        c.interrupt()
        s.equal(c.said(), ["another"], "it answers again")
    for _ in range(3):
        c.p.sendintr()
        c.until_prompt()
    s.equal(c.close(), 0, "exit code after Ctrl-C")


def test_terminal_interrupt_in_write(s):
    if not s.fake:
        return
    c = Chat(s, "--ignore-eos", n="0")
    c.begin("slow answer please")
    c.hold()
    c.p.sendintr()
    s.check("(stopped)" in (out := c.until_prompt()), "Ctrl-C in a write stops the answer", out)
    s.check(c.talk()[1]["content"].startswith("word0"), "the chat goes on")
    s.equal(c.close(), 0, "exit code after Ctrl-C in a write")


def test_terminal_interrupt_before_answer(s):
    c = Chat(s, "--ignore-eos", n="0")
    path = os.path.join(s.home, "history")
    if os.path.exists(path):
        os.remove(path)
    os.mkfifo(path)  # the message is taken, and the program waits for a reader before it asks
    c.p.send("slow answer please\r")
    c.p.expect_exact("\x1b[?2004l")
    os.kill(c.p.pid, signal.SIGINT)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.remove(path)
    s.check("(stopped)" in (out := c.until_prompt()), "Ctrl-C before the answer stops it", out)
    s.equal(c.close(), 0, "exit code after Ctrl-C before the answer")
    os.close(fd)


def test_terminal_interrupt_editing(s):
    c = Chat(s)
    for keys in ("\x1b", "\x16"):  # what begins a key, and what quotes one
        c.p.send(keys)
        time.sleep(0.2)  # nothing is shown of them
        c.p.send("\x03")
        c.until_prompt()
        s.check("no answer yet" in (out := c.ask("/stats")), f"Ctrl-C after {keys!r} clears the line", out)
    for _ in range(5):
        c.p.send("dropped")
        c.p.expect_exact("dropped")
        c.p.send("\x03/stats\r")
        c.until_prompt()
        s.check("no answer yet" in (out := c.until_prompt()), "keys right behind Ctrl-C are kept", out)
    s.equal(c.close(), 0, "exit code after Ctrl-C while editing")


def test_terminal_odd(s):
    for env in ({"TERM": "dumb"}, {"TERM": "no-such-terminal"}, {"LANG": "C"}, {"LC_ALL": "C"}):
        name = " ".join(f"{k}={v}" for k, v in env.items())
        p = pexpect.spawn(s.qw, ["chat", *s.short()], env={**s.env, **env}, cwd=s.dir, encoding="utf-8", timeout=120)
        path = os.path.join(s.dir, "odd.json")
        if os.path.exists(path):
            os.remove(path)
        p.expect_exact("> ")
        p.send("hé 你\r")
        p.expect_exact("> ")
        p.send("/save odd.json\r")
        p.expect_exact("saved to")
        p.send("\x04")
        p.expect(pexpect.EOF)
        p.close()
        s.check(p.exitstatus == 0 and json.load(open(path))["messages"][0]["content"] == "hé 你", name, p.before)
    c = Chat(s, cols=20)
    c.p.send("一二三四五六七八九十" * 5)
    c.p.setwinsize(30, 40)
    c.ask("!")
    s.equal(c.said(), ["一二三四五六七八九十" * 5 + "!"], "a window that changes its size")
    s.equal(c.close(), 0, "exit code after a resize")
    c = Chat(s)
    c.p.send("bef")
    c.p.expect_exact("bef")
    c.p.send("\x1a")
    for _ in range(600):  # stopped when its state is T
        if open(f"/proc/{c.p.pid}/stat").read().rsplit(")", 1)[1].split()[0] == "T":
            break
        time.sleep(0.1)
    os.kill(c.p.pid, signal.SIGCONT)
    c.until_prompt()
    c.ask("ore")
    s.equal(c.said(), ["before"], "suspended and continued")
    c.p.send("hup")
    c.p.close(force=False)
    s.check(not c.p.isalive(), "the terminal goes away")


def test_first_run(s):
    empty = os.path.join(s.dir, "empty-home")
    for answer in ("n\r", "\x04"):
        p = pexpect.spawn(s.qw, ["chat"], env={**s.env, "QW_HOME": empty}, cwd=s.dir, encoding="utf-8", timeout=120)
        p.expect_exact("[y/n]")
        p.send(answer)
        p.expect(pexpect.EOF)
        p.close()
        s.check(p.exitstatus == 1 and "qw pull" in p.before, "first run, answer no", (p.exitstatus, p.before))


# ---- with the test double ------------------------------------------------------------------------------

def test_fake(s):
    rc, out, err = s.run("run", "-m", s.model, "-p", "fail")
    s.check(rc == 1 and out == b"two words \n" and err == b"qw: the fake engine was told to fail\n",
            "an answer that fails", (rc, out, err))
    rc, out, err = s.run("run", "-m", s.model, "--raw", "-p", "abc\n", stdin=b"")
    s.equal((rc, out), (0, b"raw:abc\n"), "--raw keeps the bytes")
    rc, out, err = s.run("run", "-m", s.model, "--raw", stdin=b"ab\n\n")
    s.equal(out, b"raw:ab\n\n", "--raw keeps the newlines of a pipe")
    rc, out, err = s.run("run", "-m", s.model, "-p", "ab", "--suffix", "cd")
    s.equal(out, b"fim:ab|cd", "--suffix")
    rc, out, err = s.run("run", "-m", s.model, "-p", "one two three", "--stop", "zzz", "--stop", " two")
    s.equal(out, b"You said: one\n", "--stop")
    rc, out, err = s.run("run", "-m", s.model, "-p", "roles", "--system", "abc")
    s.equal(out, b"system:3 user:5\n", "--system")
    rc, out, err = s.run("run", "-m", s.model, "-p", "count", "-n", "3")
    s.equal(out, b"word0 word1 word2 \n", "-n")
    rc, out, err = s.run("run", "-m", s.model, "-p", "control")
    s.equal(out, b"a\x1b[31mred\x07 \xc2\x9bb\r end\n", "a pipe gets the bytes as they are")
    rc, out, err = s.run("run", "-m", s.model, "-p", "count", "-c", "30")
    s.check(rc == 0 and b"context of 30 tokens is full" in err, "a full context is said", (rc, err))
    s.one_line_error(["run", "-m", s.model, "-p", "x" * 100, "-c", "50"], 1, "the context holds 50", "a long prompt")
    rc, out, err = s.run("chat", "-m", s.model, stdin=b"fail\nthen\n")
    s.check(rc == 1 and out == b"two words \nYou said: then\n", "a pipe goes on after a failure", (rc, out, err))
    rc, out, err = s.run("chat", "-m", s.model, "--seed", "5", stdin=b"random\n/retry\n/retry\n")
    s.check(rc == 0 and len(set(out.split(b"\n")[:3])) > 1, "/retry with a seed gives another answer", out)
    base = os.path.join(s.dir, "base.gguf")
    with open(base, "wb") as f:
        f.write(b"GGUF")
    for args in (["chat"], ["run", "-p", "x"]):
        s.one_line_error([*args, "-m", base], 1, "no chat format", f"qw {args[0]}: a model without a chat format")
    rc, out, err = s.run("run", "-m", base, "--raw", "-p", "x")
    s.equal((rc, out, err), (0, b"raw:x", b""), "qw run --raw: a model without a chat format")
    tuned = os.path.join(s.dir, "finetune.gguf")
    os.rename(base, tuned)
    rc, out, err = s.run("run", "-m", tuned, "-p", "x")
    s.check(rc == 0 and out == b"You said: x\n" and b"taken for qwen2.5" in err, "an unknown chat template", err)


def test_fake_terminal(s):
    c = Chat(s, "-c", "200", n="0")
    out = c.ask("control")
    s.check("a^[[31mred^G <9B>b^M end" in out, "control characters are made visible", out)
    narrow = Chat(s, cols=30)
    lines = re.sub(r"\x1b\[\d*m", "", narrow.greeting).split("\r\n")
    s.check(len(lines) >= 4 and all(len(x) <= 30 for x in lines), "remarks are wrapped between words", lines)
    narrow.close()
    s.check("let me see" in (out := c.ask("think about it")), "thinking is shown", out)
    last = c.talk()[-1]
    s.equal((last["content"], last["reasoning_content"]), ("You said: think about it", "let me see"),
            "thinking is kept beside the answer")
    s.check("call broke off" in (out := c.ask("broken")), "a warning is said", out)
    s.check("thinking is off" in (out := c.ask("/think off")), "/think off", out)
    s.check("let me see" not in (out := c.ask("think about it")), "thinking can be switched off", out)
    s.check("told to fail" in (out := c.ask("fail")), "an error is said", out)
    c.ask("/clear")
    c.ask("short")
    out = c.ask("x" * 200)
    s.check("context holds 200" in out and "/clear" in out and "-c" in out, "a full context", out)
    s.check(len(c.talk()) == 2, "the conversation is kept", c.talk())
    c.ask("/clear")
    out = c.ask("slow, past the context")
    s.check("the answer is cut" in out and "/clear" in out, "a context that fills during the answer", out)
    c.ask("/clear")
    s.check("an empty answer" in (out := c.ask("empty")), "an empty answer", out)
    c.ask("/clear")
    c.ask("abc")
    c.ask("abcd")
    out = c.ask("/stats")
    s.check(re.search(r"\([1-9]\d* reused\)", out) is not None, "reused tokens in /stats", out)
    s.equal(c.close(), 0, "exit code")


TESTS = [test_help, test_usage_errors, test_no_model, test_tokenize, test_run, test_run_json, test_run_form, test_seed,
         test_bench, test_bench_profile, test_eval, test_chat_pipe, test_closed_output, test_interrupt_run,
         test_terminal_basics, test_terminal_editing,
         test_terminal_multiline, test_terminal_paste, test_terminal_history, test_terminal_save,
         test_terminal_interrupt, test_terminal_interrupt_in_write, test_terminal_interrupt_before_answer,
         test_terminal_interrupt_editing, test_terminal_odd, test_first_run]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--qw", required=True)
    a.add_argument("--model", required=True)
    a.add_argument("--fake", action="store_true")
    a.add_argument("--only", help="tests whose name holds this")
    args = a.parse_args()
    s = Suite(args)
    for test in TESTS + ([test_fake, test_fake_terminal] if args.fake else []):
        if args.only and args.only not in test.__name__:
            continue
        try:
            test(s)
        except (pexpect.ExceptionPexpect, subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError) as e:
            s.check(False, test.__name__, f"{type(e).__name__}: {e}")
    subprocess.run(["rm", "-rf", s.dir], check=False)
    print(f"{s.passed} passed, {s.failed} failed")
    sys.exit(1 if s.failed else 0)


if __name__ == "__main__":
    main()
