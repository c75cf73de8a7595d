#!/usr/bin/env python3
"""How fast qw is on this machine, and how near to what the machine allows.

Use:   bench/bench.py [--model NAME|FILE.gguf]... [--qw build/qw] [--threads N] [--runs N] [--settle S] [--json FILE]

Prints the machine's limits (bench/limits.c) and then, for each model, prefill of 512 and 2048 tokens, decode, decode
after 4096 tokens, decode of 8 streams together, time from process start to the first answered token, and the most
memory that process held beside the size of the model file. Speeds stand beside their share of the limit, measured
before and after every sample. Without --model: the default model, and qwen2.5-coder:1.5b where it is installed. Each
model's result is one line in build/bench/results.jsonl (--json: another file), for bench/compare.py and bench/chart.py.
"""

import argparse
import os
import sys

import common
import results

MODELS = ["qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b"]  # the first one must be there


def chosen_models(qw, wanted):
    """The models to measure."""
    if wanted:
        return [common.find_model(qw, model) for model in wanted]
    return [common.find_model(qw, name) for name in MODELS if name == MODELS[0] or common.installed(qw, name)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="the program")
    parser.add_argument("--model", action="append", help="installed name or GGUF file; may be repeated")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, help="samples of each test (3 to 5)")
    parser.add_argument("--settle", type=float, default=5, metavar="S",
                        help="wait for an idle machine before each sample, at most S seconds (5)")
    parser.add_argument("--limits", metavar="PATH", help="the built bench/limits.c (made when not given)")
    parser.add_argument("--json", default=results.RESULTS, metavar="FILE", help="append the results to this file")
    options = parser.parse_args()
    if not (options.qw.split() and os.access(options.qw.split()[-1], os.R_OK)):
        common.fail(f"no such program: {options.qw} (build it first)")
    if options.threads < 1 or (options.runs is not None and options.runs < 1):
        common.fail("--threads and --runs start at 1")
    limits = common.Limits(options.limits, options.threads)
    models = chosen_models(options.qw, options.model)
    lines, all_good = limits.measure(), True
    for number, model in enumerate(models):
        common.read_model(model)
        engines = [common.Qw(options.qw, model["path"], options.threads)]
        tests = common.whole_table()
        for test in tests:
            test["runs"] = options.runs or test["runs"]
        rows, good = common.measure(tests, engines, options.settle, limits)
        found = results.record("bench", model, options.threads, lines, rows, engines)
        results.append(options.json, found)
        if number:
            print()
        results.print_head(found)
        results.print_table(found)
        sys.stdout.flush()
        all_good = all_good and good
    sys.exit(0 if all_good else 1)


if __name__ == "__main__":
    main()
