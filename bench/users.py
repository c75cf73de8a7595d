#!/usr/bin/env python3
"""Many users at once: what eight of them get together, and how long a new one waits, beside llama.cpp's server.

Use:   bench/users.py --model NAME|FILE.gguf [--qw build/qw] [--llama-server PATH] [--streams 8] [--tokens 128] [--runs 5]
                      [--probes 6] [--threads N] [--context 4096] [--settle S] [--json FILE]

Speed. So many streamed answers to different prompts at the same time, greedy, over HTTP on loopback. Counted are the tokens
that came while all of them decoded: from the first token of the last to begin to the last of the first to end. The client is
one thread that only receives; what came is taken apart afterwards. The servers take turns (A B A B ...), and are qw as it
comes, qw with --plain-decoding (so that one sees what its guesses add), and llama.cpp's server with as many slots, the same
file, threads and context for each slot, flash attention, and keys and values in f16.

First token. A new short request is sent while all but one of the streams decode, and to the idle server, in turn; its time goes
from before the connection to the first piece of text. No two prompts are the same.

Printed are medians with smallest and largest, and the cores that others kept busy. Exit code 0 when qw keeps its goals: at
least 3 times the tokens of llama.cpp's server, where there is one; and the first token among others, by the medians, within
twice the time of an idle server and one piece of a prompt (100 ms).
"""

import argparse
import os
import signal
import statistics
import sys
import time

import common
import servers
from common import fail, say

GOAL = 3.0
ROUNDS_MAX = 5  # of a run
PIECE_S = 0.1  # QW_PIECE_US of src/engine/core.h
BEGUN_EVENTS = 4  # a stream decodes, for sure
SUBJECTS = ["a lighthouse keeper", "a lost map", "two brothers who build a boat", "a village without a well",
            "an old clockmaker", "a winter in the mountains", "a train that never stops", "a garden on a roof",
            "the last letter of a pilot", "a bridge and its builder", "a thief who returns things", "a doctor on an island",
            "a song that nobody wrote", "a school by the sea", "a forest that walks", "a baker who cannot sleep"]
QUESTIONS = ["the capital of {}", "a river in {}", "a dish from {}", "a song from {}", "a city in {}", "the money of {}"]
PLACES = ["Peru", "Norway", "Kenya", "Japan", "Chile", "Poland", "Egypt", "Laos", "Cuba", "Nepal", "Ghana", "Malta"]


def long_prompt(number):
    """One whose answer is long; another for each number."""
    return f"Story {number + 1}. Write a long story of at least 1500 words about {SUBJECTS[number % len(SUBJECTS)]}, in many " \
           "chapters with different scenes and people."


def short_prompt(number):
    """One of a few words; another for each number, from the first word on."""
    question = QUESTIONS[number % len(QUESTIONS)].format(PLACES[number // len(QUESTIONS) % len(PLACES)])
    return f"{number + 1}: name {question}."


def rate_together(streams):
    """(tokens a second of all streams, seconds) while all of them gave tokens. streams: ([seconds of each piece], tokens)."""
    begin, end = max(times[0] for times, _ in streams), min(times[-1] for times, _ in streams)
    if end <= begin:
        return None, 0.0
    tokens = sum(sum(begin < t <= end for t in times) * n / len(times) for times, n in streams)
    return tokens / (end - begin), end - begin


class Prompts:
    """Every call gives numbers that none had before, so that nothing is known of a prompt but its beginning."""

    def __init__(self):
        self.n_long = self.n_short = 0

    def long(self, n):
        self.n_long += n
        return [long_prompt(i) for i in range(self.n_long - n, self.n_long)]

    def short(self):
        self.n_short += 1
        return short_prompt(self.n_short - 1)


class Watch:
    """Cores that others kept busy: neither this process nor the servers."""

    def __init__(self, compared):
        self.compared, self.begun, self.before = compared, time.monotonic(), self.used(compared)

    @staticmethod
    def used(compared):
        own = os.times()
        return common.busy_seconds() - own.user - own.system - sum(server.cpu_seconds() for server in compared)

    def others(self):
        return max(0.0, (self.used(self.compared) - self.before) / (time.monotonic() - self.begun))


class EndedEarly(Exception):
    """A model had nothing more to say to a prompt."""


def answer_all(server, prompts, n_tokens):
    """Answers at the same time, whole."""
    answers = [servers.begin(server, prompt, n_tokens) for prompt in prompts]
    servers.receive(answers, lambda: False)
    return answers


def speed(server, prompts, n_tokens):
    """(tokens a second of all streams together, for so many seconds)."""
    answers, streams = answer_all(server, prompts, n_tokens), []
    for answer, prompt in zip(answers, prompts):
        times, usage, finish = answer.pieces()
        answer.close()
        if finish != "length":
            raise EndedEarly(f"{server.name}: an answer ended by itself ({finish}) after {len(times)} pieces: {prompt}")
        streams.append((times, usage["completion_tokens"]))
    rate, seconds = rate_together(streams)
    if rate is None:
        fail(f"{server.name}: the streams were never all there at the same time: more --tokens")
    return rate, seconds


def first_token(server, prompt, others=()):
    """Seconds until the first piece of an answer, beside others that go on."""
    probe = servers.begin(server, prompt, 4)
    servers.receive([probe, *others], lambda: probe.ended)
    times, usage, _ = probe.pieces()
    probe.close()
    if not times:
        fail(f"{server.name}: no answer to {prompt!r}")
    return times[0] - probe.begun, usage["prompt_tokens"]


def wait_idle(server):
    """Until what its clients left has ended: it uses no processor any more."""
    for _ in range(100):
        before = server.cpu_seconds()
        time.sleep(0.2)
        if server.cpu_seconds() - before < 0.02:
            return
    fail(f"{server.name} does not come to rest")


def first_tokens(server, prompts, n_others, n_probes, n_tokens):
    """([seconds on the idle server], [seconds beside n_others], tokens of a prompt)."""
    wait_idle(server)
    idle = [first_token(server, prompts.short()) for _ in range(n_probes)]
    others = [servers.begin(server, prompt, n_tokens) for prompt in prompts.long(n_others)]
    servers.receive(others, lambda: all(other.n_events >= BEGUN_EVENTS for other in others))
    busy = [first_token(server, prompts.short(), others) for _ in range(n_probes)]
    if any(other.ended for other in others):
        fail(f"{server.name}: one of the streams ended before the last new request: fewer --probes")
    for other in others:
        other.close()
    wait_idle(server)
    return [s for s, _ in idle], [s for s, _ in busy], busy[0][1]


def speed_of_all(compared, prompts, options):
    """{name: (tokens a second, seconds, cores that others used)} with the same prompts for all. A prompt to which an answer
    is too short is put aside, and the others of its round with it."""
    for _ in range(ROUNDS_MAX):
        of_round, found = prompts.long(options.streams), {}
        try:
            for server in compared:
                common.settle(options.settle)
                watch = Watch(compared)
                found[server.name] = (*speed(server, of_round, options.tokens), watch.others())
            return found
        except EndedEarly as ended:
            say(f"{ended}; with other prompts again")
            for server in compared:
                wait_idle(server)
    fail(f"in {ROUNDS_MAX} rounds an answer ended by itself: fewer --tokens")


def measure(compared, options):
    """{name: {"rates", "idle", "busy", "prompt_tokens"}} and the cores that others used, for each sample."""
    found = {server.name: {"rates": [], "idle": [], "busy": []} for server in compared}
    prompts, disturbed = Prompts(), []
    for server in compared:  # first use of everything: not counted
        answer_all(server, prompts.long(options.streams), 8)
        first_token(server, prompts.short())
    for run in range(options.runs):
        speeds = speed_of_all(compared, prompts, options)
        for server in compared:
            common.settle(options.settle)
            watch = Watch(compared)
            rate, seconds, others = speeds[server.name]
            idle, busy, n = first_tokens(server, prompts, options.streams - 1, options.probes, options.others_tokens)
            disturbed.append(max(others, watch.others()))
            row = found[server.name]
            row["rates"].append(rate)
            row["idle"] += idle
            row["busy"] += busy
            row["prompt_tokens"] = n
            say(f"run {run + 1} of {options.runs}: {server.name} {rate:.1f} tokens/s for {seconds:.1f} s; first token "
                f"{1000 * statistics.median(idle):.0f} ms idle, {1000 * statistics.median(busy):.0f} ms beside others "
                f"(others {disturbed[-1]:.2f} cores)")
    return found, disturbed


def spread(values, places=1, scale=1):
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{scale * middle:9.{places}f}  {scale * least:8.{places}f} .. {scale * most:<8.{places}f}"


def judge(found):
    """Sentences about goals that qw misses."""
    faults, qw = [], found["qw"]
    if "llama-server" in found:
        ratio = statistics.median(qw["rates"]) / statistics.median(found["llama-server"]["rates"])
        if ratio < GOAL:
            faults.append(f"{ratio:.2f} times the tokens of llama-server, the goal is {GOAL:.0f}")
    idle, busy = statistics.median(qw["idle"]), statistics.median(qw["busy"])
    if busy > 2 * idle + PIECE_S:
        faults.append(f"a first token beside others after {1000 * busy:.0f} ms, the goal is at most "
                      f"{1000 * (2 * idle + PIECE_S):.0f}")
    return faults


def report(found, options):
    qw, most = statistics.median(found["qw"]["rates"]), f"2 x idle + {1000 * PIECE_S:.0f}"
    print(f"\n{options.streams} streams, {options.tokens} tokens each: tokens a second of all together")
    print(f"{'':22}{'median':>9}  {'min .. max':^20}  qw / it")
    for name, row in found.items():
        ratio = "" if name == "qw" else f"{qw / statistics.median(row['rates']):.2f}x"
        print(f"{name:22}{spread(row['rates'])}  {ratio}".rstrip())
    print(f"\nfirst token of a new request, ms: of an idle server, and while {options.streams - 1} others decode")
    print(f"{'':22}{'prompt':>6}{'idle':>9}  {'min .. max':^20}{'beside':>9}  {'min .. max':^20}  {most}")
    for name, row in found.items():
        print(f"{name:22}{row['prompt_tokens']:>6}{spread(row['idle'], 0, 1000)}{spread(row['busy'], 0, 1000)}  "
              f"{1000 * (2 * statistics.median(row['idle']) + PIECE_S):.0f}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"))
    parser.add_argument("--llama-server", metavar="PATH")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer whose speed is measured")
    parser.add_argument("--others-tokens", type=int, default=600, help="of the others that a new request meets, at most")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--probes", type=int, default=6, help="new requests for each run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--context", type=int, default=4096, help="tokens of each conversation")
    parser.add_argument("--settle", type=float, default=0, metavar="S", help="wait for an idle machine, at most S seconds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.streams < 2 or min(options.runs, options.probes, options.threads) < 1:
        fail("--streams begins at 2, --runs, --probes and --threads at 1")
    return options


def main():
    options = parse()
    path = common.find_model(options.qw, options.model)["path"]
    more = ["-c", str(options.context), "--parallel", str(options.streams)]
    compared = [servers.qw_server("qw", options.qw, path, options.threads, *more),
                servers.qw_server("qw --plain-decoding", options.qw, path, options.threads, *more, "--plain-decoding")]
    if options.llama_server:
        compared.append(servers.llama_server(options.llama_server, path, options.threads, options.streams, options.context))
    with servers.Home():
        try:
            for server in compared:
                server.start()
            found, disturbed = measure(compared, options)
        finally:
            for server in compared:
                server.stop(signal.SIGKILL)
    facts = common.machine()
    print(f"machine  {facts['cpu']}, {facts['cores']} cores, {facts['system']}")
    print(f"model    {os.path.basename(path)}, {options.threads} threads, {options.runs} runs; others kept "
          f"{statistics.mean(disturbed):.2f} cores busy, at most {max(disturbed):.2f}")
    report(found, options)
    return common.conclude(found, judge(found), "qw misses its goal", options.json)


if __name__ == "__main__":
    sys.exit(main())
