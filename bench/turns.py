#!/usr/bin/env python3
"""What each turn of a conversation costs: tokens that were computed, beside tokens that were added.

Use:   bench/turns.py --model NAME|FILE.gguf [--qw build/qw] [--llama-server PATH] [--turns 20] [--system-tokens 3000]
                      [--answer-tokens 40] [--threads N] [--json FILE]

A conversation with a long system prompt goes on for so many turns, each sent as the whole history, as clients do. On the
way the client edits its last message, asks for an answer again, sends a short request of its own between two turns (what
chat pages do to find a title), and the server is restarted, in good order and by SIGKILL; once the first thing after that is an
edit. For each turn:

  tokens     of the prompt
  added      of them beyond the last prompt and its answer
  new        of them after what they have in common with anything that was ever computed, as qw says. It is more than was
             added where the template shows an earlier answer in another way than it was given (without thinking, and
             without the empty block that says there was none)
  computed   rows of the prompt that the engine really computed, and the time to the first token

qw reports what it computed as usage.prompt_tokens_details.cached_tokens; llama-server (one that you have) as timings. The
promise: what was added, and one token at least, for a turn that goes on, and one message more where the template shows an
earlier answer in another way; no more than that after a restart; at most one message for an edit or another answer. Thinking
is switched off. Exit code 0 when qw keeps it.
"""
import argparse
import json
import os
import signal
import sys
import time
import urllib.request

import servers
from common import conclude, fail, find_model, machine, say


def system_prompt(words):
    """A text of about so many tokens that says something different in every line."""
    lines, n = ["You are the librarian of a small town. These are the rules of the house."], 15
    things = ["maps", "letters", "novels", "journals", "atlases", "scores", "prints", "diaries", "charts", "poems"]
    i = 0
    while n < words:
        lines.append(f"Rule {i + 1}: {things[i % 10]} from shelf {i * 7 % 97} go back to room {i * 5 % 31} after {i % 9 + 2} days.")
        n += 24
        i += 1
    return "\n".join(lines)


def ask(server, messages, n_tokens):
    """(answer, prompt tokens, of them computed, of them known before, tokens of the answer, seconds until the first)"""
    body = {"model": "default", "messages": messages, "max_tokens": n_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True,
            "chat_template_kwargs": {"enable_thinking": False}}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    begun, first, text, usage, timings, known = time.monotonic(), None, "", None, None, None
    with urllib.request.urlopen(request, timeout=3600) as reply:
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                fail(f"{server.name}: {chunk['error']}")
            usage, timings = chunk.get("usage") or usage, chunk.get("timings") or timings
            known = chunk["qw_cache"]["same_as_known"]["tokens"] if "qw_cache" in chunk else known
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content")
                if piece:
                    first = first or time.monotonic() - begun
                    text += piece
    n = usage["prompt_tokens"]
    reused = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    computed = timings["prompt_n"] if timings else n - reused
    return text, n, computed, known, usage["completion_tokens"], first or time.monotonic() - begun


def plan(turns):
    """What happens before or in a turn, by its number."""
    return {turns // 4: "edit", turns // 4 + 2: "again", turns // 2: "restart", turns // 2 + 2: "side request",
            3 * turns // 4: "kill -9", 3 * turns // 4 + 2: "restart, edit"}


def converse(server, options):
    """Rows of the table: dicts."""
    system = {"role": "system", "content": system_prompt(options.system_tokens)}
    history, rows, before = [system], [], None
    for turn in range(1, options.turns + 1):
        action = plan(options.turns).get(turn, "")
        edits = action.endswith("edit")
        if action.startswith("restart"):
            server.stop()
            server.start()
        elif action == "kill -9":
            time.sleep(options.rest)
            server.stop(signal.SIGKILL)
            server.start()
        elif action == "side request":
            ask(server, [{"role": "user", "content": "Find a title of three words for a talk about a library."}], 8)
        if edits and len(history) > 3:
            history = history[:-2]  # the last question and its answer go
        if action == "again" and len(history) > 2:
            history = history[:-1]  # the answer goes, the question stays
        else:
            history.append({"role": "user", "content": f"Question {turn}{' again' if edits else ''}: where do I bring "
                            f"the {['maps', 'novels', 'letters'][turn % 3]} from shelf {turn * 13 % 97}?"})
        text, n, computed, known, n_answer, first = ask(server, history, options.answer_tokens)
        rows.append({"turn": turn, "action": action, "tokens": n, "computed": computed, "first_s": first,
                     "added": None if before is None else n - before, "known": known})
        before = n + n_answer - 1
        history.append({"role": "assistant", "content": text})
        say(f"{server.name}: turn {turn} {action}: {n} tokens, {computed} computed, {first:.2f} s")
    return rows


def judge(rows, message_tokens):
    """Sentences about turns in which qw computed more than it promises."""
    faults, dearest = [], 0
    for r in rows[1:]:
        new = r["tokens"] - r["known"]
        over = r["computed"] - max(min(new, r["added"]), 1)
        if r["action"] in ("", "side request"):
            most = message_tokens if new > r["added"] else 0  # the template changed what is behind
            dearest = max(dearest, over)
        elif r["action"] in ("restart", "kill -9"):
            most = dearest  # what other turns cost
        else:
            over, most = r["computed"], message_tokens  # at most one message, and what follows it
        if over > most:
            faults.append(f"turn {r['turn']} {r['action']}: {r['computed']} computed, {over - most} more than promised")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--qw", default="build/qw")
    parser.add_argument("--llama-server")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--system-tokens", type=int, default=3000)
    parser.add_argument("--answer-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rest", type=float, default=5, help="seconds before kill -9: state is saved at intervals")
    parser.add_argument("--json")
    options = parser.parse_args()
    path = find_model(options.qw, options.model)["path"]
    compared = [servers.qw_server("qw", options.qw, path, options.threads)]
    if options.llama_server:
        compared.append(servers.llama_server(options.llama_server, path, options.threads, 1, 16384))
    results = {}
    with servers.Home():
        try:
            for server in compared:
                server.start()
                results[server.name] = converse(server, options)
                server.stop()
        finally:
            for server in compared:
                server.stop(signal.SIGKILL)
    facts = machine()
    print(f"machine  {facts['cpu']}, {facts['cores']} cores, {facts['system']}")
    print(f"model    {os.path.basename(path)}, {options.turns} turns, system prompt of about {options.system_tokens} tokens\n")
    print(f"{'turn':>4}  {'':<13}{'tokens':>7}{'added':>7}{'new':>7}" + "".join(f"  {name + ' computed':>22}{'first':>8}" for name in results))
    for i, r in enumerate(results["qw"]):
        print(f"{r['turn']:>4}  {r['action']:<13}{r['tokens']:>7}{'' if r['added'] is None else r['added']:>7}{r['tokens'] - r['known']:>7}" +
              "".join(f"  {rows[i]['computed']:>22}{rows[i]['first_s']:>7.2f}s" for rows in results.values()))
    for name, rows in results.items():
        print(f"{name}: {sum(r['computed'] for r in rows[1:])} tokens computed after the first turn, "
              f"{sum(r['first_s'] for r in rows[1:]):.1f} s until first tokens")
    return conclude(results, judge(results["qw"], options.answer_tokens + 120), "qw broke its promise", options.json)


if __name__ == "__main__":
    sys.exit(main())
