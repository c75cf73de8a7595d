"""Shared by the programs in bench/: the machine and its limits, models, samples, results.

A test is one row of the table: {"test": "prefill" | "decode" | "start" | "memory", "n", "depth", "streams"}. A sample
is one number from one process. Around every timed sample the limits of the machine are measured, because those of a
virtual machine change within minutes; the sample's share of its limit uses the mean of the two measurements.

What a test reads and multiplies at least comes from the sizes in the model file, which `qw bench --json` reports:
weights as stored, each matrix once for a step; keys and values as stored, for the mean depth of the run; the products
of all matrices, but of the head and what only it needs just for the rows whose logits the test asks for. Attention's
products are not counted. The limit of a test is the slower of its reading and its products. qw's decode of one stream
is compared with plain reading more closely: step by step in its own process (`qw bench --read`).
"""

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "bench")
FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
         "avx512vbmi", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
         "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")


def fail(message):
    """Ends the program with one line."""
    print(f"{os.path.splitext(os.path.basename(sys.argv[0]))[0]}: {message}", file=sys.stderr)
    sys.exit(1)


def say(message):
    """One line of progress on standard error."""
    print(f"{os.path.splitext(os.path.basename(sys.argv[0]))[0]}: {message}", file=sys.stderr, flush=True)


def conclude(found, faults, sentence, path=None):
    """Prints the faults, writes what was found to a file as JSON, and returns the exit code."""
    for fault in faults:
        print(f"{sentence}: {fault}")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file)
    return 1 if faults else 0


def venv_python(name):
    """Path of the python of a named environment of scripts/venv.py, made when missing."""
    run = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "venv.py"), name],
                         stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        fail(f"the Python environment {name!r} could not be made")
    return run.stdout.strip()


def run_json(command):
    """The last JSON value a program prints (one line, or the whole output); None and one line when it fails."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return None
    if run.returncode == 0:
        at = re.search(r"^\[", run.stdout, re.M)
        for text in (run.stdout[at.start():] if at else run.stdout, *reversed(run.stdout.strip().splitlines())):
            try:
                return json.loads(text)
            except ValueError:
                continue
    last = (run.stderr.strip().splitlines() or ["(no message)"])[-1]
    say(f"{' '.join(command)}: exit code {run.returncode}: {last}")
    return None


# ---- the machine ------------------------------------------------------------------------------------


def machine():
    """What this machine says of itself."""
    facts = {"cpu": platform.processor() or platform.machine(), "flags": [], "cores": len(os.sched_getaffinity(0)),
             "system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        return facts
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    family = [re.search(rf"^{key}\s*:\s*(\d+)$", text, re.M) for key in ("cpu family", "model", "stepping")]
    if name:
        facts["cpu"] = name.group(1)
        if all(family):
            facts["cpu"] += " (family {}, model {}, stepping {})".format(*(m.group(1) for m in family))
    have = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    if have:
        facts["flags"] = [flag for flag in FLAGS if flag in have.group(1).split()]
    return facts


def busy_seconds():
    """Processor time spent by everybody since boot, stolen time included, in seconds; 0 where it is not known."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(x) for x in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def settle(seconds):
    """Waits until others used less than a tenth of a core for half a second, at most so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before < 0.05:
            return


class Limits:
    """The program bench/limits.c: what the machine can do at most."""

    def __init__(self, path, threads):
        self.path, self.threads = path, threads
        if path is None:
            self.path = os.path.join(ROOT, "build", "bench", "limits")
            made = subprocess.run(["make", "-s", "--no-print-directory", "-C", ROOT, "build/bench/limits"],
                                  stdin=subprocess.DEVNULL, stdout=sys.stderr)
            if made.returncode != 0:
                fail("bench/limits.c could not be compiled")
        if not os.access(self.path, os.X_OK):
            fail(f"no such program: {self.path}")

    def measure(self, *more):
        """All lines of one run, as a list of objects."""
        run = subprocess.run([self.path, "--json", "--threads", str(self.threads), *more], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, text=True)
        if run.returncode != 0:
            fail(f"{self.path} ended with exit code {run.returncode}")
        return [json.loads(line) for line in run.stdout.splitlines()]

    def now(self):
        """(GB/s read, integer GMAC/s) at this moment, with all threads."""
        lines = {line["limit"]: line for line in self.measure("--quick")}
        return lines["read"]["gb_per_s"], lines.get("integer", {}).get("gmac_per_s")


# ---- models and sources -----------------------------------------------------------------------------


def installed(qw, name):
    """What `qw show --json` says of a model, or None."""
    run = subprocess.run([*qw.split(), "show", "--json", name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
    try:
        facts = json.loads(run.stdout)
        return facts if os.path.isfile(facts["path"]) else None
    except (ValueError, KeyError, TypeError):
        return None


def find_model(qw, model):
    """{"name", "path"} of a model given as a file, or by the name under which qw has it; fails with one line."""
    if os.path.isfile(model):
        return {"name": os.path.basename(model), "path": model}
    if qw == "none":
        fail(f"no such model file: {model}")
    facts = installed(qw, model)
    if not facts:
        fail(f"no such model file, and qw has no model of that name: {model}")
    return {"name": facts.get("name", model), "path": facts["path"]}


def read_model(model):
    """Adds size and SHA-256 of the file, and so brings it into the file cache for everybody."""
    digest = hashlib.sha256()
    with open(model["path"], "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    model["bytes"], model["sha256"] = os.path.getsize(model["path"]), digest.hexdigest()


def source():
    """{"commit", "changed"} of the tree, "unknown" outside of git."""
    def git(*arguments):
        try:
            return subprocess.run(["git", "-C", ROOT, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True).stdout.strip()
        except OSError:
            return ""
    return {"commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
            "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}


# ---- engines ----------------------------------------------------------------------------------------


WORK = ("weight_bytes", "kv_token_bytes", "layer_macs", "silent_macs", "head_macs")  # of `qw bench --json`


class Qw:
    """The program of this project."""

    def __init__(self, path, model, threads):
        self.name, self.path, self.model, self.threads = "qw", path, model, threads
        self.work = None  # of the model, known after the first sample
        self.reading = None  # of the last sample: (GB/s of plain reading between its steps, the share they reach)

    def can(self, test):
        return True

    def sample(self, test):
        """Tokens per second of one process."""
        n = ["-p", str(test["n"]), "-n", "0"] if test["test"] == "prefill" else ["-p", "0", "-n", str(test["n"])]
        if test["test"] == "decode" and test["streams"] == 1:
            n.append("--read")
        got = run_json([*self.path.split(), "bench", "-m", self.model, *n, "-d", str(test["depth"]), "-s",
                        str(test["streams"]), "-r", "1", "-t", str(self.threads), "--json"])
        if not isinstance(got, dict) or got.get("test") != test["test"] or not got.get("tokens_per_s"):
            return None
        self.work = {key: got[key] for key in WORK}
        self.reading = (got["read_gb_per_s"], got["read_share"]) if "read_share" in got else None
        return float(got["tokens_per_s"])

    def start_command(self):
        return [*self.path.split(), "run", "-m", self.model, "-t", str(self.threads), "-p", "x", "-n", "1"]


class Package:
    """llama.cpp from llama-cpp-python."""

    def __init__(self, model, threads):
        self.name, self.model, self.threads = "llama.cpp", model, threads
        self.python = venv_python("peer")
        self.about = None  # version and features, known after the first sample

    def can(self, test):
        return True

    def command(self, *more):
        return [self.python, os.path.join(HERE, "llama_runner.py"), "-m", self.model, "-t", str(self.threads), *more]

    def sample(self, test):
        """Tokens per second of one process."""
        got = run_json(self.command("-p" if test["test"] == "prefill" else "-n", str(test["n"]),
                                    "-d", str(test["depth"]), "-s", str(test["streams"])))
        if not isinstance(got, dict) or not got.get("tokens_per_s"):
            return None
        self.about = f"{got['version']}, {got['system']}"
        return float(got["tokens_per_s"])

    def start_command(self):
        return self.command("--start")


class BenchProgram:
    """A llama-bench program that the user has."""

    def __init__(self, name, path, more, model, threads):
        self.name, self.path, self.more, self.model, self.threads = name, path, more, model, threads

    def can(self, test):
        return test["test"] in ("prefill", "decode") and test["streams"] == 1

    def sample(self, test):
        """Tokens per second of one process."""
        n = ["-p", str(test["n"]), "-n", "0"] if test["test"] == "prefill" else ["-p", "0", "-n", str(test["n"])]
        depth = ["-d", str(test["depth"])] if test["depth"] else []
        got = run_json([self.path, "-m", self.model, "-t", str(self.threads), "-r", "1", "-fa", "1", "-o", "json",
                        *n, *depth, *self.more])
        rows = [row for row in got if isinstance(row, dict) and row.get("avg_ts")] if isinstance(got, list) else []
        return float(rows[-1]["avg_ts"]) if rows else None


def start_once(command):
    """(seconds from process start to the first byte of the answer on standard output, most resident bytes of the
    process); None when there is no answer."""
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            return None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == 0 and first:
            return seconds, usage.ru_maxrss * 1024
        errors.seek(0)
        last = (errors.read().decode(errors="replace").strip().splitlines() or ["(no message)"])[-1]
        say(f"{' '.join(command)}: exit code {process.returncode}: {last}")
        return None


# ---- tests ------------------------------------------------------------------------------------------


def prefill(n, depth=0, runs=3):
    return {"test": "prefill", "n": n, "depth": depth, "streams": 1, "runs": runs}


def decode(n, depth=0, streams=1, runs=5):
    return {"test": "decode", "n": n, "depth": depth, "streams": streams, "runs": runs}


def start(runs=5):
    """One kind of sample that fills two rows: time and memory."""
    return {"test": "start", "n": 1, "depth": 0, "streams": 1, "runs": runs}


def whole_table():
    """The rows that say whether qw is fast, with as many samples as their time allows."""
    return [prefill(512), prefill(2048), decode(64), decode(32, depth=4096, runs=3),
            decode(32, streams=8, runs=3), start()]


def label(test):
    """How a test is called in tables."""
    if test["test"] in ("start", "memory"):
        return {"start": "start to first token", "memory": "peak memory"}[test["test"]]
    text = f"{test['test']} {test['n']}"
    if test["depth"]:
        text += f" at {test['depth']}"
    if test["streams"] > 1:
        text += f", {test['streams']} streams"
    return text


def unit(test):
    return {"start": "s", "memory": "MB"}.get(test["test"], "t/s")


def limit(test, work, gb_per_s, gmac_per_s):
    """(tokens a second that the machine allows, "read" or "integer": what keeps it from more)."""
    matrices, kv, streams = work["weight_bytes"], work["kv_token_bytes"], test["streams"]
    if test["test"] == "prefill":
        last = work["layer_macs"] + work["head_macs"] - work["silent_macs"]  # what the last token takes more
        n_bytes, macs = matrices / test["n"], work["silent_macs"] + last / test["n"]
    else:
        n_bytes = matrices / streams + kv * (test["depth"] + test["n"] / 2)
        macs = work["layer_macs"] + work["head_macs"]
    read = gb_per_s * 1e9 / n_bytes
    integer = gmac_per_s * 1e9 / macs if gmac_per_s else float("inf")
    return (read, "read") if read < integer else (integer, "integer")


def take(test, engine, settle_seconds, limits):
    """One sample: {"value", "others", "read_gb_per_s", "gmac_per_s"}, for start also "memory"; None when it failed.

    With settle_seconds it waits for an idle machine before, and tries again, at most twice, when others used more than
    a tenth of a core meanwhile or the read bandwidth before and after differs by more than an eighth.
    """
    for _ in range(3 if settle_seconds else 1):
        settle(settle_seconds)
        begin, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        got, read_moved = {}, False
        if test["test"] == "start":
            values = start_once(engine.start_command())
            if not values:
                return None
            got["value"], got["memory"] = values[0], values[1] / 1e6
        else:
            before = limits.now()
            got["value"] = engine.sample(test)
            after = limits.now()
            if got["value"] is None:
                return None
            got["read_gb_per_s"] = round((before[0] + after[0]) / 2, 2)
            got["gmac_per_s"] = round((before[1] + after[1]) / 2, 2) if before[1] and after[1] else None
            read_moved = max(before[0], after[0]) > 1.125 * min(before[0], after[0])
            if getattr(engine, "reading", None):
                got["read_gb_per_s"], got["read_share"] = engine.reading
        took = time.monotonic() - begin
        got["others"] = round(max(0.0, (busy_seconds() - busy - (own_seconds() - own)) / took), 3)
        if got["others"] < 0.1 and not read_moved:
            break
    return got


def measure(tests, engines, settle_seconds, limits):
    """Samples of all tests, the engines in turns. Returns (rows of results, whether every sample succeeded)."""
    rows, good = [], True
    for test in tests:
        samples = {engine.name: [] for engine in engines if engine.can(test)}
        for run in range(test["runs"]):
            for engine in engines:
                if engine.name not in samples or (run > 0 and not samples[engine.name]):
                    continue  # failed the first time: the reason was printed
                got = take(test, engine, settle_seconds, limits)
                if got is None:
                    good = False
                    continue
                samples[engine.name].append(got)
                say(f"{label(test)}, run {run + 1} of {test['runs']}: {engine.name} {got['value']:.3f} {unit(test)} "
                    f"(others {got['others']:.2f} cores" +
                    (f", read {got['read_gb_per_s']:.1f} GB/s)" if "read_gb_per_s" in got else ")"))
        rows += [row(test, name, got) for name, got in samples.items() if got]
        if test["test"] == "start":
            rows += [row(dict(test, test="memory"), name, [dict(one, value=one["memory"]) for one in got])
                     for name, got in samples.items() if got]
    return rows, good


def row(test, engine, samples):
    """One line of results."""
    found = {"test": label(test), **{key: test[key] for key in ("n", "depth", "streams")}, "kind": test["test"],
             "engine": engine, "unit": unit(test), "values": [round(one["value"], 4) for one in samples],
             "others": [one["others"] for one in samples]}
    if "read_gb_per_s" in samples[0]:
        found["read_gb_per_s"] = [one["read_gb_per_s"] for one in samples]
        found["gmac_per_s"] = [one["gmac_per_s"] for one in samples]
    if all("read_share" in one for one in samples):
        found["read_shares"] = [one["read_share"] for one in samples]
    return found


def add_shares(rows, work):
    """Adds to each timed row the limit of each sample, its kind and the shares."""
    for found in rows:
        if "read_gb_per_s" not in found or not work:
            continue
        test = dict(found, test=found["kind"])
        limits = [limit(test, work, *pair) for pair in zip(found["read_gb_per_s"], found["gmac_per_s"])]
        if "read_shares" in found:
            limits = [(value / share, "read") for value, share in zip(found["values"], found["read_shares"])]
        found["limits"] = [round(rate, 3) for rate, _ in limits]
        found["bound"] = statistics.mode(kind for _, kind in limits)
        found["shares"] = [round(value / rate, 4) for value, (rate, _) in zip(found["values"], limits)]


# ---- options ----------------------------------------------------------------------------------------


def numbers(text):
    """Type of an option: a list of whole numbers with commas."""
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [-1]
    if not values or any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers")
    return values
