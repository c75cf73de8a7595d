#!/usr/bin/env python3
"""Constrained output of a real model, judged by the package jsonschema: what clients of `qw serve` get.

    tests/parity/constrained.py --qw build/qw --model MODEL [--outputs N] [--streams N] [--max-tokens N] [--seed N]
                                [--only WORD]

Every group of the official JSON-Schema-Test-Suite (grammar.py fetches it) whose schema is supported is asked for in turn, with
another seed each time, until there are so many outputs (1000), at temperature 1, several streams at a time. The prompt shows
the schema and, as clients do, an example: one of the suite's instances that are valid. Each output must be whole, JSON
without a key twice, and valid, formats included; one that is cut by the limit of tokens, or stopped because it said the same
for ever, counts as invalid. What is not supported must be refused by name. Minutes; `make constrained` runs it with the
default model. Prints one line per failure and `N passed, M failed`.
"""
import argparse
import concurrent.futures
import json
import os
import sys
import time

import grammar
from grammar import common

sys.path.insert(0, os.path.join(common.ROOT, "tests", "clients"))
from service import Reader, Service, http_request  # noqa: E402

ANSWER_SECONDS = 1800  # one that is cut may take long, among others
SHOWN_MAX = 600  # characters of a schema or an example in the prompt


def prompt_of(group, seed):
    """What a client would say; the example is another one with another seed."""
    valid = [test["data"] for test in group["tests"] if test["valid"]]
    example = f"For example: {json.dumps(valid[seed % len(valid)])[:SHOWN_MAX]}\n" if valid else ""
    return f"Give one short JSON value for this schema: {json.dumps(group['schema'])[:SHOWN_MAX]}\n{example}JSON only."


def request_of(group, seed, max_tokens):
    """The body of a request."""
    schema = group["schema"]
    return {"messages": [{"role": "user", "content": prompt_of(group, seed)}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            "temperature": 1, "seed": seed, "max_tokens": max_tokens, "chat_template_kwargs": {"enable_thinking": False}}


def ask(service, group, seed, max_tokens):
    """(text, or None when it was cut; tokens; None), or (None, 0, why the schema is refused)."""
    with service.connect() as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(http_request("POST", "/v1/chat/completions", request_of(group, seed, max_tokens)))
        reply = Reader(connection).reply("POST")
    if reply.status == 400:
        return None, 0, reply.error()["message"]
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.body[:600]!r}")
    found = reply.json()
    choice = found["choices"][0]
    whole = choice["finish_reason"] == "stop"
    return choice["message"]["content"] if whole else None, found["usage"]["completion_tokens"], None


class Outputs:
    """Asks for outputs of groups, several at a time, and judges them."""

    def __init__(self, service, report, args):
        self.service, self.report, self.args, self.lengths = service, report, args, []

    def take(self, pool, groups, seed):
        """One output of each group; returns the groups that are supported."""
        answers = pool.map(lambda row: ask(self.service, row[1], seed, self.args.max_tokens), groups)
        supported = []
        for (name, group), (text, n_tokens, refused) in zip(groups, answers):
            if refused is not None:
                grammar.judge_refusal(self.report, name, group, refused)
                continue
            supported.append((name, group))
            self.lengths.append(n_tokens)
            grammar.judge(self.report, group["schema"], [text], f"{name}, {group['description']}, seed {seed}")
        return supported


def run(service, report, args):
    groups = [(name, group) for name, rows in sorted(grammar.fetch_suite().items()) for group in rows if args.only in name]
    begun, outputs, seed = time.monotonic(), Outputs(service, report, args), args.seed
    with concurrent.futures.ThreadPoolExecutor(args.streams) as pool:
        supported = outputs.take(pool, groups, seed)
        while supported and len(outputs.lengths) < args.outputs:
            seed += 1
            rows = supported[:args.outputs - len(outputs.lengths)]
            again = outputs.take(pool, rows, seed)
            report.check(again == rows, f"{len(rows) - len(again)} schemas are refused the second time")
            common.say(f"{len(outputs.lengths)} outputs, {report.failed} failures, {time.monotonic() - begun:.0f} s")
            if again != rows:
                break
    print(f"suite: {len(supported)} groups, {len(groups) - len(supported)} refused by name; {len(outputs.lengths)} outputs of "
          f"{sum(outputs.lengths)} tokens, the longest {max(outputs.lengths, default=0)}, in {time.monotonic() - begun:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="WORD", help="files of the suite whose name has this in it")
    args = parser.parse_args()
    report = grammar.Report()
    service = Service(args.qw, common.model_path(args.qw, args.model), "--parallel", str(args.streams), "-c", "4096")
    try:
        run(service, report, args)
    finally:
        service.stop()
    print(f"{report.passed} passed, {report.failed} failed")
    return report.failed


if __name__ == "__main__":
    grammar.run_deep(main)
