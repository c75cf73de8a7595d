#!/usr/bin/env python3
"""qw against llama.cpp (and programs you have) on this machine, in one run, alternating.

Use:   bench/peers.py --model NAME|FILE.gguf --all
       bench/peers.py --model NAME|FILE.gguf [-p 512] [-n 64] [--depth 0] [--streams 1] [--start] [--runs 5]
                      [--qw build/qw | --qw none] [--threads N] [--settle S] [--json FILE]
                      [--llama-bench PATH] [--ik-bench PATH] [--ik-args "-rtr 1 -fmoe 1"] [--llama-server PATH]

--all measures the whole table: prefill of 512 and 2048 tokens, decode, decode after 4096 tokens, 8 streams together,
start to first token, peak memory. Without it -p, -n, --depth and --streams take lists with commas; -p 0 or -n 0 leaves
that test out. Depth and streams concern decode: n tokens for each of the streams, after depth tokens in each; the rate
is the total of all streams.

Every sample is a process of its own and the engines take turns (A B A B ...), so that a machine that slows down slows
all of them. llama.cpp is the package llama-cpp-python, compiled here with this machine's own instruction set into an
environment of its own (scripts/venv.py peer, many minutes the first time), with flash attention, keys and values in
f16 and its default batch sizes. Programs given with --llama-bench (llama.cpp's llama-bench) or --ik-bench (the same
program of ik_llama.cpp) join as further engines, for one stream only. --start adds the time from process start to
the first answered token and the most memory of that process (warm file cache; for llama-cpp-python both include
Python). --settle S waits before every sample, at most S seconds, until the rest of the machine is idle, and takes a
sample again, at most twice, when others used more than a tenth of a core meanwhile or the read bandwidth moved by more
than an eighth.

With --llama-server (llama.cpp's server) two further tables follow, each of a program of its own: what the turns of a
conversation compute (bench/turns.py), and what many users at once get (bench/users.py, whose goals count for the exit code
as the promise of turns.py does). -p 0 -n 0 leaves those two alone.

Printed: the machine, its limits (bench/limits.c), then per test the median of each engine with min..max, qw's ratio to
each peer, how many cores other processes kept busy meanwhile (above 0.1 the numbers are disturbed), and the share of
what the machine allowed, measured before and after every sample. The result is also one line in
build/bench/results.jsonl (--json: another file). Exit code 0 when every sample succeeded, else 1.
"""

import argparse
import os
import subprocess
import sys

import common
import results
from common import numbers


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="the program, or none")
    parser.add_argument("--model", required=True, help="GGUF file, or an installed name")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--all", action="store_true", help="the whole table")
    parser.add_argument("--runs", type=int, help="samples of each test (5; with --all 3 to 5)")
    parser.add_argument("-p", type=numbers, default=[512], metavar="N,..", help="prefill lengths")
    parser.add_argument("-n", type=numbers, default=[64], metavar="N,..", help="decode lengths")
    parser.add_argument("--depth", type=numbers, default=[0], metavar="N,..", help="tokens before decode")
    parser.add_argument("--streams", type=numbers, default=[1], metavar="N,..", help="sequences decoded together")
    parser.add_argument("--start", action="store_true", help="also start to first token, and peak memory")
    parser.add_argument("--settle", type=float, default=0, metavar="S",
                        help="wait for an idle machine before each sample, at most S seconds")
    parser.add_argument("--no-package", action="store_true", help="leave llama-cpp-python out")
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--llama-args", default="", help="further arguments for --llama-bench")
    parser.add_argument("--ik-bench", metavar="PATH")
    parser.add_argument("--ik-args", default="", help="further arguments for --ik-bench")
    parser.add_argument("--llama-server", metavar="PATH", help="also the tables of bench/turns.py and bench/users.py")
    parser.add_argument("--limits", metavar="PATH", help="the built bench/limits.c (made when not given)")
    parser.add_argument("--json", default=results.RESULTS, metavar="FILE", help="append the result to this file")
    options = parser.parse_args()
    if options.qw != "none" and not (options.qw.split() and os.access(options.qw.split()[-1], os.R_OK)):
        common.fail(f"no such program: {options.qw} (build it first, or --qw none)")
    if options.llama_server and (options.qw == "none" or not os.access(options.llama_server, os.X_OK)):
        common.fail(f"no such program: {options.llama_server}" if options.qw != "none" else "--llama-server needs qw")
    if options.threads < 1 or (options.runs is not None and options.runs < 1):
        common.fail("--threads and --runs start at 1")
    return options


def chosen_tests(options):
    """The tests that the options ask for."""
    if options.all:
        tests = common.whole_table()
    else:
        tests = [common.prefill(n, runs=5) for n in options.p if n]
        tests += [common.decode(n, depth, streams) for n in options.n if n for depth in options.depth
                  for streams in options.streams if streams]
        tests += [common.start()] if options.start else []
    for test in tests:
        test["runs"] = options.runs or test["runs"]
    return tests


def chosen_engines(options, path):
    """The engines that take turns."""
    engines = []
    if options.qw != "none":
        engines.append(common.Qw(options.qw, path, options.threads))
    if not options.no_package:
        engines.append(common.Package(path, options.threads))
    for name, program, more in (("llama-bench", options.llama_bench, options.llama_args),
                                ("ik-bench", options.ik_bench, options.ik_args)):
        if program:
            if not os.access(program, os.X_OK):
                common.fail(f"no such program: {program}")
            engines.append(common.BenchProgram(name, program, more.split(), path, options.threads))
    if not engines:
        common.fail("nothing to measure")
    return engines


def with_servers(options):
    """The tables beside llama.cpp's server; true when both programs end well."""
    good = True
    for program in ("turns.py", "users.py"):
        print(f"\n{program}", flush=True)
        done = subprocess.run([sys.executable, os.path.join(common.HERE, program), "--model", options.model, "--qw", options.qw,
                               "--llama-server", options.llama_server, "--threads", str(options.threads)])
        good = good and done.returncode == 0
    return good


def compare(options, tests):
    """The table of single processes; true when every sample succeeded."""
    model = common.find_model(options.qw, options.model)
    engines = chosen_engines(options, model["path"])
    limits = common.Limits(options.limits, options.threads)
    common.read_model(model)
    lines = limits.measure()
    rows, good = common.measure(tests, engines, options.settle, limits)
    found = results.record("peers", model, options.threads, lines, rows, engines)
    results.append(options.json, found)
    results.print_head(found)
    results.print_table(found)
    return good


def main():
    options = parse()
    tests = chosen_tests(options)
    if not tests and not options.llama_server:
        common.fail("nothing to measure")
    good = compare(options, tests) if tests else True
    if options.llama_server:
        good = with_servers(options) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
