#!/usr/bin/env python3
"""What constrained output costs: decoding with a JSON schema beside decoding without one.

Use:   bench/masks.py --model NAME|FILE.gguf [--tokens 64] [--runs 25] [--forms records,text,...] [--threads N] [--json FILE]

For each form one user gets the same prompt with and without the schema, in turn (A B, B A, ...), in the same process, by plain
decoding, at temperature 0.7, and is cancelled after so many tokens: the schemas ask for more than that, and max_tokens leaves
room for the shortest text of each, so that none has to be brought to its end. The first token and the prompt are not counted.
A pair's slowdown is the time for a token with the schema divided by that without, less one; printed are the median of the
pairs, the smallest and the largest, and the first, before which the form was never used.
Exit code 0 when the median of every form is below 5%. Pairs are short and many, since the machine's speed moves within a second.
"""

import argparse
import json
import os
import statistics
import sys

import asking
import common
from common import fail, say

GOAL = 0.05
MAX_TOKENS = 3000  # of an answer; ask.c has a context of 4096


def many(n, item):
    """An array of at least n: more than an answer comes to, and as short as fits into MAX_TOKENS bytes."""
    return {"type": "array", "items": item, "minItems": n}


def thing(**properties):
    """Schema of an object with all of these."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT = {"type": "string"}
FORMS = {
    "records": ("List people of a small town: name, age, city and hobbies, as JSON.", many(40, thing(
        name={"type": "string", "maxLength": 60}, age={"type": "integer", "minimum": 0, "maximum": 120}, city=TEXT,
        hobbies={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 5}))),
    "text": ("Tell a long story in the field text of a JSON object.", thing(text={"type": "string", "minLength": 2000})),
    "choices": ("Classify a thousand letters to a town hall: a JSON array of labels.", many(
        200,
        {"enum": ["complaint", "question", "praise", "request", "invoice", "invitation", "notice", "application"]})),
    "formats": ("Make up calendar entries as JSON: id, day, time, organiser's email.", many(18, thing(
        **{key: {"type": "string", "format": name} for key, name in (("id", "uuid"), ("day", "date"), ("at", "time"),
                                                                     ("by", "email"))}))),
    "patterns": ("Make up parts of a shop as JSON: number, name and price.", many(40, thing(
        number={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, name={"type": "string", "pattern": "^[A-Za-z ]{3,40}$"},
        price={"type": "number", "minimum": 0, "maximum": 999.99}))),
    "trees": ("Describe folders inside folders as JSON.", {
        "$defs": {"folder": thing(name=TEXT, folders={"type": "array", "items": {"$ref": "#/$defs/folder"}})},
        **many(80, {"$ref": "#/$defs/folder"})}),
    "anything": ("Write a long JSON array about the planets, with many keys.", many(60, {"type": "object", "minProperties": 4})),
}


def slowdowns(with_us, without_us):
    """Of pairs of times for a token."""
    return [a / b - 1 for a, b in zip(with_us, without_us)]


def measure(engine, name, options):
    """[slowdown] of a form, and tokens a second without it."""
    prompt, schema = FORMS[name]
    times = {"with": [], "without": []}
    for run in range(options.runs):
        for side in asking.turns(list(times), run):
            more = {"schema": schema} if side == "with" else {"ignore_eos": True}
            got = engine.ask(prompt=prompt, max_tokens=MAX_TOKENS, cancel_at=options.tokens, temperature=0.7, seed=run + 1, **more)
            if len(got["tokens"]) < options.tokens:
                fail(f"{name}: an answer {side} the schema ended after {len(got['tokens'])} tokens")
            times[side].append(got["decode_us"] / (len(got["tokens"]) - 1))
    found = slowdowns(times["with"], times["without"])
    rate = 1e6 / statistics.median(times["without"])
    say(f"{name}: {100 * statistics.median(found):.1f}%, {rate:.1f} tokens/s without")
    return found, rate


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="to find a model by its name")
    parser.add_argument("--ask", default=asking.PROGRAM, metavar="PATH", help="the built bench/ask.c")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=25, help="pairs for each form")
    parser.add_argument("--forms", default=",".join(FORMS), metavar="NAME,..")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    options.forms = options.forms.split(",")
    if not set(options.forms) <= set(FORMS) or options.runs < 1 or options.tokens < 2:
        fail(f"--forms takes some of {','.join(FORMS)}; --runs begins at 1, --tokens at 2")
    return options


def main():
    options = parse()
    path = common.find_model(options.qw, options.model)["path"]
    with asking.Engines(options.ask, path, options.threads, {"plain": ("none", None)}) as engines:
        found = {name: measure(engines["plain"], name, options) for name in options.forms}
    facts = common.machine()
    print(f"machine  {facts['cpu']}, {facts['cores']} cores, {facts['system']}")
    print(f"model    {os.path.basename(path)}, {options.threads} threads, {options.tokens} tokens, {options.runs} pairs\n")
    print(f"{'form':12}{'slower by':>10}  {'min .. max':^18}{'first':>8}  tokens/s without")
    for name, (values, rate) in found.items():
        print(f"{name:12}{100 * statistics.median(values):9.1f}%  {100 * min(values):7.1f}% .. {100 * max(values):.1f}%"
              f"{100 * values[0]:7.1f}%{rate:>14.1f}")
    over = [name for name, (values, _) in found.items() if statistics.median(values) >= GOAL]
    print(f"{len(found) - len(over)} of {len(found)} forms below {100 * GOAL:.0f}%" +
          (f"; not: {', '.join(over)}" if over else ""))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
