#!/usr/bin/env python3
"""What guesses gain: answers of one user with each source of guesses, and with all, beside plain decoding.

Use:   bench/speculation.py --model NAME|FILE.gguf [--tokens 192] [--runs 3] [--temperatures 0,0.7] [--groups chat,code,...]
                            [--sources ngrams,recycled,all] [--draft NAME|FILE.gguf] [--equal 100] [--equal-tokens 96]
                            [--threads N] [--json FILE]

The prompts are those of tests/drafts/prompts.txt. For each of them every setting answers in turn (plain, n-grams, recycled,
all; then another begins), so that a machine that slows down slows all of them. Each setting has a process of its own; a run
begins with new ones, so that nothing was learned from the same answer before. With --draft, a small model that guesses, two
settings more: it alone (model), and with all others (all+model). A model that has a layer of its own for that can be asked
for --sources ngrams,recycled,model,all. A group's number is plain decoding's time for
its answers divided by the setting's; prompts are not counted, they are computed in the same way. The median of the runs
stands beside the smallest and the largest, and the slowest single prompt.

Every answer must be the same, token for token, whoever guesses: in all these runs, drawn ones too, and in --equal further
greedy answers, to the prompts of the file and to others made here, with all sources beside plain decoding. Exit code 0 when
they are. The goals (2.5 for rewriting and editing, 1.5 for chat, never below 0.97) are reported either way.

A random model (bench/make_model.py) says next to nothing about what real ones gain: its text cannot be guessed, or goes round
in circles. It shows that answers stay the same, and what guessing costs where it does not pay.
"""

import argparse
import os
import random
import re
import statistics
import sys

import asking
import common
from common import fail, say

PROMPTS = os.path.join(common.ROOT, "tests", "drafts", "prompts.txt")
# Who may guess, by the name that ask.c knows; a source that is added there is added here.
SOURCES = ("ngrams", "recycled", "all")
OF_DRAFT = {"model": "model", "all+model": "all"}  # who guesses where there is a small model: ask.c's name for it
GOALS = {"edit": 2.5, "rewrite": 2.5, "chat": 1.5}
FLOOR = 0.97


def read_prompts(text):
    """[(group, prompt)] of a file in the format of tests/drafts/prompts.txt."""
    parts = re.split(r"^@ (\w+)\n", text, flags=re.M)[1:]
    return [(group, prompt.rstrip("\n")) for group, prompt in zip(parts[::2], parts[1::2])]


def made_prompts(n):
    """n further prompts of all groups, always the same."""
    r = random.Random(20261129)
    things = ["boats", "clocks", "lamps", "maps", "seeds", "tents", "violins", "wheels"]
    names = ["Ada", "Bo", "Chen", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June"]
    cities = ["Bergen", "Cusco", "Dakar", "Espoo", "Fukuoka", "Galway", "Hobart"]

    def rows(n_rows):
        return [(r.choice(names), r.randrange(18, 80), r.choice(cities), r.choice(things)) for _ in range(n_rows)]

    def chat():
        return f"Why do people in {r.choice(cities)} collect {r.choice(things)}? Answer in {r.randrange(2, 6)} sentences."

    def code():
        return f"Write a Python function that sorts {r.choice(things)} by {r.choice(['price', 'age', 'weight'])} and returns " \
               f"the {r.randrange(2, 9)} largest, with a test."

    def edit():
        body = "\n".join(f"    total_{i} = count * {r.randrange(2, 99)} + offset" for i in range(r.randrange(3, 8)))
        return f"Rename count to n_{r.choice(things)} in this function and give it back whole:\n\n" \
               f"def sums(count, offset):\n{body}\n"

    def rewrite():
        lines = "\n".join(f"- {name}, {age}, from {city}, sells {thing}" for name, age, city, thing in rows(r.randrange(3, 8)))
        return f"Give this list back sorted by age, and nothing else:\n\n{lines}"

    def as_json():
        lines = "\n".join(f"{name} is {age}, lives in {city} and repairs {thing}." for name, age, city, thing in rows(3))
        return f"As a JSON array with the keys name, age, city, trade, and nothing else:\n{lines}"

    kinds = [chat, code, edit, rewrite, as_json]
    return [kinds[i % len(kinds)]() for i in range(n)]


def differences(answers, where):
    """Sentences about answers that are not plain decoding's. answers: {setting: tokens}."""
    plain, found = answers["plain"], []
    for name, tokens in answers.items():
        if tokens != plain:
            same = next((i for i, (a, b) in enumerate(zip(plain, tokens)) if a != b), min(len(plain), len(tokens)))
            found.append(f"{where}: {name} differs from plain decoding at token {same + 1} "
                         f"({len(tokens)} tokens, plain {len(plain)})")
    return found


def one_run(engines, prompts, request, run):
    """([{"group", "n": tokens, "decode_us", "checked", "right": each by setting}], sentences about differences)."""
    rows, faults, names = [], [], list(engines)
    for i, (group, prompt) in enumerate(prompts):
        got = {name: engines[name].ask(prompt=prompt, **request) for name in asking.turns(names, i + run)}
        faults += differences({name: got[name]["tokens"] for name in names}, f"{group}, prompt {i + 1}")
        rows.append({"group": group, "n": len(got["plain"]["tokens"]),
                     **{key: {name: got[name][key] for name in names} for key in ("decode_us", "checked", "right")}})
    return rows, faults


def ratio(rows, name):
    """How much faster than plain decoding the answers of these rows came; None when they are too short to have a time."""
    plain, other = sum(row["decode_us"]["plain"] for row in rows), sum(row["decode_us"][name] for row in rows)
    return plain / other if other else None


def table(runs, names, groups):
    """[(setting, group or "all", [ratio of each run], the lowest ratio of a prompt over all runs, share of guesses right)]."""
    found = []
    for name in names:
        for group in [*groups, "all"]:
            of_runs = [[row for row in rows if group in (row["group"], "all") and row["n"] > 1] for rows in runs]
            ratios = [r for r in (ratio(rows, name) for rows in of_runs) if r]
            if not ratios:
                continue
            singles = [statistics.median(ratio([row], name) for row in same) for same in zip(*of_runs)]
            checked = sum(row["checked"][name] for rows in of_runs for row in rows)
            right = sum(row["right"][name] for rows in of_runs for row in rows)
            found.append((name, group, ratios, min(singles), right / checked if checked else 0.0))
    return found


def print_table(title, rows):
    print(f"\n{title}")
    print(f"{'guesses':12}{'prompts':10}{'median':>7}  {'min .. max':^14}  {'slowest prompt':>14}  {'right':>6}  goal")
    for name, group, ratios, slowest, right in rows:
        middle, goal = statistics.median(ratios), GOALS.get(group, FLOOR) if name.startswith("all") else FLOOR
        note = f"{goal:.2f} {'reached' if middle >= goal else 'missed'}"
        print(f"{name:12}{group:10}{middle:6.2f}x  {min(ratios):5.2f} .. {max(ratios):<5.2f}  {slowest:13.2f}x  "
              f"{100 * right:5.0f}%  {note}", flush=True)


def settings(options):
    """{name: what asking.Engines takes for it}; plain decoding first."""
    chosen = {"plain": ("none", None), **{name: (name, None) for name in options.sources}}
    if options.draft:
        chosen.update({name: (guess, options.draft) for name, guess in OF_DRAFT.items()})
    return chosen


def measure(options, path, prompts, groups):
    """([(temperature, runs)], sentences about differences); each temperature's table is printed when its runs are done."""
    found, faults = [], []
    guesses = settings(options)
    for temperature in options.temperatures:
        runs = []
        for run in range(options.runs):
            with asking.Engines(options.ask, path, options.threads, guesses) as engines:
                request = {"max_tokens": options.tokens, "temperature": temperature, "seed": 1}
                rows, different = one_run(engines, prompts, request, run)
            runs.append(rows)
            faults += different
            rate = sum(row["n"] - 1 for row in rows) / sum(row["decode_us"]["plain"] for row in rows) * 1e6
            say(f"temperature {temperature}, run {run + 1} of {options.runs}: plain {rate:.1f} tokens/s; " +
                ", ".join(f"{name} {ratio(rows, name):.2f}x" for name in guesses if name != "plain"))
        found.append((temperature, runs))
        if runs:
            print_table(f"temperature {temperature}: times faster than plain decoding",
                        table(runs, [name for name in guesses if name != "plain"], groups))
    return found, faults


def check_equal(options, path, prompts):
    """Sentences about greedy answers that are not the same with all sources as with none. A small model that guesses is one."""
    made = made_prompts(max(0, options.equal - len(prompts)))
    chosen, faults = [*(prompt for _, prompt in prompts), *made][:options.equal], []
    with asking.Engines(options.ask, path, options.threads, {"plain": ("none", None), "all": ("all", options.draft)}) as engines:
        for i, prompt in enumerate(chosen):
            got = {name: engine.ask(prompt=prompt, max_tokens=options.equal_tokens)["tokens"]
                   for name, engine in engines.items()}
            faults += differences(got, f"further answer {i + 1}")
            if (i + 1) % 10 == 0:
                say(f"{i + 1} of {len(chosen)} further answers, {len(faults)} differ")
    return faults


def words(text):
    return [part for part in text.split(",") if part]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="to find a model by its name")
    parser.add_argument("--ask", default=asking.PROGRAM, metavar="PATH", help="the built bench/ask.c")
    parser.add_argument("--tokens", type=int, default=192, help="of an answer, at most")
    parser.add_argument("--runs", type=int, default=3, help="0: no times, only --equal")
    parser.add_argument("--temperatures", type=words, default=["0", "0.7"], metavar="T,..")
    parser.add_argument("--groups", type=words, metavar="NAME,..", help="kinds of prompts (all)")
    parser.add_argument("--sources", type=words, default=list(SOURCES), metavar="NAME,..")
    parser.add_argument("--draft", metavar="NAME|FILE.gguf", help="a small model with the same vocabulary that guesses, too")
    parser.add_argument("--equal", type=int, default=100, metavar="N", help="further greedy answers that are compared; 0: none")
    parser.add_argument("--equal-tokens", type=int, default=96, help="of each of those, at most")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    options.temperatures = [float(t) for t in options.temperatures]
    if "plain" in options.sources or not options.sources:
        fail(f"--sources takes some of {', '.join(SOURCES)}")
    return options


def main():
    options = parse()
    path = common.find_model(options.qw, options.model)["path"]
    if options.draft:
        options.draft = common.find_model(options.qw, options.draft)["path"]
    with open(PROMPTS, encoding="utf-8") as file:
        prompts = read_prompts(file.read())
    groups = options.groups or list(dict.fromkeys(group for group, _ in prompts))
    chosen = [(group, prompt) for group, prompt in prompts if group in groups]
    if not chosen:
        fail(f"no such groups: {','.join(groups)}")
    facts = common.machine()
    print(f"machine  {facts['cpu']}, {facts['cores']} cores, {facts['system']}")
    print(f"model    {os.path.basename(path)}, {options.threads} threads, {options.tokens} tokens, {options.runs} runs")
    found, faults = measure(options, path, chosen, groups)
    n_compared = len(chosen) * (len(settings(options)) - 1) * len(options.temperatures) * options.runs
    faults += check_equal(options, path, prompts)
    print(f"\n{n_compared} answers with guesses beside plain ones, and {options.equal} further greedy ones: "
          f"{len(faults)} differ")
    return common.conclude(found, faults, "differs", options.json)


if __name__ == "__main__":
    sys.exit(main())
