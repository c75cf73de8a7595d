#!/usr/bin/env python3
"""qw against llama.cpp (and programs you have) on this machine, in one run, alternating.

Use:   bench/peers.py --model FILE.gguf [--qw build/qw | --qw none] [--threads 2] [--runs 5]
                      [-p 512] [-n 64] [--depth 0] [--streams 1] [--start] [--json OUT]
                      [--llama-bench PATH] [--ik-bench PATH] [--ik-args "-rtr 1 -fmoe 1"]

-p, -n, --depth and --streams take lists with commas; -p 0 or -n 0 leaves that test out. Depth and streams concern
decode: n tokens for each of the streams, after depth tokens in each; the rate is the total of all streams.

Every sample is a process of its own and the engines take turns (A B A B ...), so that a machine that slows down slows
all of them. llama.cpp is the package llama-cpp-python, compiled here with this machine's own instruction set into an
environment of its own (scripts/venv.py peer, many minutes the first time), with flash attention, keys and values in
f16 and its default batch sizes. Programs given with --llama-bench (llama.cpp's llama-bench) or --ik-bench (the same
program of ik_llama.cpp) join as further engines, for one stream only. --start adds the time from process start to
the first answered token (warm file cache; for llama-cpp-python that includes the start of Python). --settle S waits
before every sample, at most S seconds, until the rest of the machine is idle, and takes a sample again, at most twice,
when others used more than a tenth of a core meanwhile.

Printed: the machine (processor, instruction sets, load), its read bandwidth at begin and end (best of several access
patterns), then per test the median tokens/s of each engine with min..max, qw's ratio to each peer, and how many cores
other processes kept busy meanwhile (mean over the samples: above 0.1 the numbers are disturbed); for decode of one
stream also the share that the weights alone account for of the read bandwidth (median of quick measurements between
the samples: some virtual machines change theirs by half from one minute to the next). Exit code 0 when every sample
succeeded, else 1.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "bench")
FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
         "avx512vbmi", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
         "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")


def fail(message):
    """Ends the program with one line."""
    print(f"peers: {message}", file=sys.stderr)
    sys.exit(1)


def say(message):
    """One line of progress on standard error."""
    print(f"peers: {message}", file=sys.stderr, flush=True)


def venv_python(name):
    """Path of the python of a named environment of scripts/venv.py, made when missing."""
    run = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "venv.py"), name],
                         stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        fail(f"the Python environment {name!r} could not be made")
    return run.stdout.strip()


def model_path(qw, model):
    """A model given as a file, or by the name under which qw has it installed; fails with one line."""
    if os.path.isfile(model):
        return model
    if qw == "none":
        fail(f"no such model file: {model}")
    run = subprocess.run([*qw.split(), "show", "--json", model], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
    try:
        return json.loads(run.stdout)["path"]
    except (ValueError, KeyError, TypeError):
        fail(f"no such model file, and qw has no model of that name: {model}")


def machine():
    """What this machine says of itself."""
    facts = {"cpu": platform.processor() or platform.machine(), "flags": [], "cores": len(os.sched_getaffinity(0)),
             "system": f"{platform.system()} {platform.release()} {platform.machine()}",
             "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
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


def build_bandwidth():
    """Compiles bandwidth.c with the system's compiler; None when there is none."""
    source, program = os.path.join(HERE, "bandwidth.c"), os.path.join(ROOT, "build", "bench", "bandwidth")
    os.makedirs(os.path.dirname(program), exist_ok=True)
    if os.path.exists(program) and os.path.getmtime(program) > os.path.getmtime(source):
        return program
    compiler = os.environ.get("CC", "cc")
    for flags in (["-march=native"], ["-mcpu=native"], []):
        try:
            run = subprocess.run([compiler, "-O3", *flags, "-pthread", "-w", "-o", program, source],
                                 stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            break
        if run.returncode == 0:
            return program
    say(f"no bandwidth: {compiler} cannot compile bench/bandwidth.c")
    return None


def bandwidth(program, threads, quick=False):
    """Best read bandwidth: {"gb_per_s", "pattern", "all": {pattern: GB/s}}; None when it cannot be measured."""
    if not program:
        return None
    run = subprocess.run([program, str(threads), *(("512", "2", "quick") if quick else ("1024", "4"))],
                         stdout=subprocess.PIPE, text=True)
    lines = [line.split("\t") for line in run.stdout.splitlines() if "\t" in line]
    if run.returncode != 0 or not lines:
        return None
    table = {name: float(rate) for rate, name in lines}
    best = max(table, key=table.get)
    return {"gb_per_s": table[best], "pattern": best, "all": table}


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
    """Waits until others used less than a tenth of a core for one second, at most so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(1)
        if busy_seconds() - before < 0.1:
            return


class Qw:
    """The program of this project."""

    def __init__(self, path, model, threads):
        self.name, self.path, self.model, self.threads = "qw", path, model, threads

    def can(self, test):
        return True

    def sample(self, test):
        """Tokens per second of one process."""
        n = ["-p", str(test["n"]), "-n", "0"] if test["test"] == "prefill" else ["-p", "0", "-n", str(test["n"])]
        got = run_json([*self.path.split(), "bench", "-m", self.model, *n, "-d", str(test["depth"]), "-s",
                        str(test["streams"]), "-r", "1", "-t", str(self.threads), "--json"])
        if not isinstance(got, dict) or got.get("test") != test["test"] or not got.get("tokens_per_s"):
            return None
        return float(got["tokens_per_s"])

    def start_command(self):
        return [*self.path.split(), "run", "-m", self.model, "-t", str(self.threads), "-p", "x", "-n", "1"]


class Package:
    """llama.cpp from llama-cpp-python."""

    def __init__(self, model, threads):
        self.name, self.model, self.threads = "llama.cpp", model, threads
        self.python = venv_python("peer")
        self.system = self.version = None

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
        self.system, self.version = got.get("system"), got.get("version")
        return float(got["tokens_per_s"])

    def start_command(self):
        return self.command("--start")


class BenchProgram:
    """A llama-bench program that the user has."""

    def __init__(self, name, path, more, model, threads):
        self.name, self.path, self.more, self.model, self.threads = name, path, more, model, threads

    def can(self, test):
        return test["streams"] == 1

    def sample(self, test):
        """Tokens per second of one process."""
        n = ["-p", str(test["n"]), "-n", "0"] if test["test"] == "prefill" else ["-p", "0", "-n", str(test["n"])]
        depth = ["-d", str(test["depth"])] if test["depth"] else []
        got = run_json([self.path, "-m", self.model, "-t", str(self.threads), "-r", "1", "-fa", "1", "-o", "json",
                        *n, *depth, *self.more])
        rows = [row for row in got if isinstance(row, dict) and row.get("avg_ts")] if isinstance(got, list) else []
        return float(rows[-1]["avg_ts"]) if rows else None

    def start_command(self):
        return None


def time_start(command):
    """Seconds from process start to the first byte of the answer on standard output; None when there is none."""
    begin = time.perf_counter()
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return None
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begin
    _, errors = process.communicate()
    if process.returncode != 0 or not first:
        last = (errors.decode(errors="replace").strip().splitlines() or ["(no message)"])[-1]
        say(f"{' '.join(command)}: exit code {process.returncode}: {last}")
        return None
    return seconds


def label(test):
    """How a test is called in tables."""
    if test["test"] == "start":
        return "start to first token"
    text = f"{test['test']} {test['n']}"
    if test["depth"]:
        text += f" at {test['depth']}"
    if test["streams"] > 1:
        text += f", {test['streams']} streams"
    return text


def take(test, engine, settle_seconds):
    """One sample and how many cores others kept busy meanwhile; (None, 0) when it failed."""
    for _ in range(3 if settle_seconds else 1):
        settle(settle_seconds)
        begin, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        value = time_start(engine.start_command()) if test["test"] == "start" else engine.sample(test)
        if value is None:
            return None, 0.0
        others = max(0.0, (busy_seconds() - busy - (own_seconds() - own)) / (time.monotonic() - begin))
        if others < 0.1:
            break
    return value, others


def measure(tests, engines, runs, settle_seconds, read_now):
    """Fills test["samples"][engine] and test["others"][engine] in turns; returns False when any sample failed.

    read_now: function without arguments, read bandwidth at this moment, called once a round of decode tests.
    """
    good = True
    for test in tests:
        test["samples"], test["others"], test["read_gb_per_s"] = {}, {}, []
        chosen = [e for e in engines if (e.start_command() if test["test"] == "start" else e.can(test))]
        for run in range(runs):
            if test["test"] == "decode":
                test["read_gb_per_s"] += [now["gb_per_s"] for now in [read_now()] if now]
            for engine in chosen:
                if run > 0 and engine.name not in test["samples"]:
                    continue  # failed the first time: the reason was printed
                value, others = take(test, engine, settle_seconds)
                if value is None:
                    good = False
                    continue
                test["samples"].setdefault(engine.name, []).append(value)
                test["others"].setdefault(engine.name, []).append(round(others, 3))
                unit = "s" if test["test"] == "start" else "t/s"
                say(f"{label(test)}, run {run + 1} of {runs}: {engine.name} {value:.3f} {unit} "
                    f"(others {others:.2f} cores)")
    return good


def print_table(tests, engines, weight_bytes):
    """The readable result."""
    names = [e.name for e in engines]
    print(f"\n{'test':26} {'engine':12} {'median':>9} {'min .. max':>19}  {'n':>2}  {'others':>6}  {'qw / it':>8}  note")
    for test in tests:
        lower = test["test"] == "start"
        own = statistics.median(test["samples"]["qw"]) if "qw" in test["samples"] else None
        for name in names:
            values = test["samples"].get(name)
            if not values:
                continue
            middle = statistics.median(values)
            ratio = ""
            if own is not None and name != "qw":
                ratio = f"{(middle / own) if lower else (own / middle):.2f}x"
            note = ""
            if test["test"] == "decode" and test["streams"] == 1 and weight_bytes and test["read_gb_per_s"]:
                share, limit = middle * weight_bytes / 1e9, statistics.median(test["read_gb_per_s"])
                note = f"weights {share:.1f} GB/s, {100 * share / limit:.0f}% of {limit:.1f}"
            if lower and name == "llama.cpp":
                note = "includes the start of Python"
            digits = 3 if lower else 2
            spread = f"{min(values):.{digits}f} .. {max(values):.{digits}f}"
            print(f"{label(test):26} {name:12} {middle:9.{digits}f} {spread:>19}  {len(values):2}  "
                  f"{statistics.mean(test['others'][name]):6.2f}  {ratio:>8}  {note}".rstrip())
    print("Rates in tokens/s, start in seconds; others: cores that other processes kept busy; \"qw / it\" above 1 means "
          "qw is faster.")


def numbers(text):
    """A list of whole numbers with commas."""
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [-1]
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers")
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", default=os.path.join(ROOT, "build", "qw"), help="the program, or none")
    parser.add_argument("--model", required=True, help="GGUF file, or an installed name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-p", type=numbers, default=[512], metavar="N,..", help="prefill lengths")
    parser.add_argument("-n", type=numbers, default=[64], metavar="N,..", help="decode lengths")
    parser.add_argument("--depth", type=numbers, default=[0], metavar="N,..", help="tokens before decode")
    parser.add_argument("--streams", type=numbers, default=[1], metavar="N,..", help="sequences decoded together")
    parser.add_argument("--start", action="store_true", help="also time process start to first token")
    parser.add_argument("--settle", type=float, default=0, metavar="S",
                        help="wait for an idle machine before each sample, at most S seconds")
    parser.add_argument("--no-package", action="store_true", help="leave llama-cpp-python out")
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--llama-args", default="", help="further arguments for --llama-bench")
    parser.add_argument("--ik-bench", metavar="PATH")
    parser.add_argument("--ik-args", default="", help="further arguments for --ik-bench")
    parser.add_argument("--json", metavar="OUT", help="write everything measured to a file")
    options = parser.parse_args()
    if options.qw != "none" and not (options.qw.split() and os.access(options.qw.split()[-1], os.R_OK)):
        fail(f"no such program: {options.qw} (build it first, or --qw none)")
    called = os.path.basename(options.model)
    options.model = model_path(options.qw, options.model)
    if options.threads < 1 or options.runs < 1:
        fail("--threads and --runs start at 1")

    engines = []
    if options.qw != "none":
        engines.append(Qw(options.qw, options.model, options.threads))
    if not options.no_package:
        engines.append(Package(options.model, options.threads))
    for name, path, more in (("llama-bench", options.llama_bench, options.llama_args),
                             ("ik-bench", options.ik_bench, options.ik_args)):
        if path:
            if not os.access(path, os.X_OK):
                fail(f"no such program: {path}")
            engines.append(BenchProgram(name, path, more.split(), options.model, options.threads))
    if not engines:
        fail("nothing to measure")

    tests = [{"test": "prefill", "n": n, "depth": 0, "streams": 1} for n in options.p if n]
    tests += [{"test": "decode", "n": n, "depth": depth, "streams": streams}
              for n in options.n if n for depth in options.depth for streams in options.streams if streams]
    if options.start:
        tests.append({"test": "start", "n": 1, "depth": 0, "streams": 1})

    facts = machine()
    facts["load_before"] = os.getloadavg()[0]
    run = subprocess.run([venv_python("test"), os.path.join(HERE, "model_bytes.py"), options.model],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    weight_bytes = int(run.stdout) if run.returncode == 0 else 0
    program = build_bandwidth()
    read = {"before": bandwidth(program, options.threads)}
    print(f"machine    {facts['cpu']}, {facts['cores']} cores, {facts['system']}, {facts['date']}")
    print(f"features   {' '.join(facts['flags']) or 'unknown'}")
    print(f"model      {called}, {os.path.getsize(options.model)} bytes; a decode step reads "
          f"{weight_bytes / 1e6:.1f} MB of weights")
    with open(options.model, "rb") as file:  # warm the file cache for everybody
        while file.read(1 << 24):
            pass
    good = measure(tests, engines, options.runs, options.settle,
                   lambda: bandwidth(program, options.threads, quick=True))
    read["after"] = bandwidth(program, options.threads)
    facts["load_after"] = os.getloadavg()[0]
    for engine in engines:
        if isinstance(engine, Package) and engine.version:
            facts["llama_cpp_python"] = f"{engine.version}; {engine.system}"
            print(f"llama.cpp  package {engine.version}, {engine.system}")
    for when in ("before", "after"):
        if read[when]:
            print(f"bandwidth  {when}: {read[when]['gb_per_s']:.1f} GB/s read with {options.threads} threads "
                  f"({read[when]['pattern']})")
    beside = [value for test in tests for value in test["read_gb_per_s"]]
    if beside:
        print(f"           between the samples: {min(beside):.1f} .. {max(beside):.1f}, "
              f"median {statistics.median(beside):.1f} GB/s")
    print(f"load       {facts['load_before']:.2f} before, {facts['load_after']:.2f} after (1 minute average; "
          f"what is above this run's own {options.threads} threads is other work)")
    print_table(tests, engines, weight_bytes)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": facts, "model": called, "weight_bytes": weight_bytes,
                       "threads": options.threads, "bandwidth": read, "tests": tests}, file, indent=1)
            file.write("\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
