#!/usr/bin/env python3
"""One measurement of llama.cpp, printed as one JSON line; bench/peers.py starts it once per sample.

Use:   PYTHON bench/llama_runner.py -m MODEL -t 2 -p 512               prefill of 512 tokens
       PYTHON bench/llama_runner.py -m MODEL -t 2 -n 64 -d 4096 -s 8   64 tokens for each of 8 streams at depth 4096
       PYTHON bench/llama_runner.py -m MODEL -t 2 --start              one answer token, printed as soon as it is there

PYTHON is the one of the "peer" environment (scripts/venv.py peer). A short warm-up (at most 512 tokens, or one step)
comes first and is not timed, as in `qw bench` and in llama.cpp's own llama-bench. Settings: see scripts/llama_peer.py.
"""

import argparse
import json
import os
import sys
import time

BEGIN = time.perf_counter()
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts"))

import llama_peer  # noqa: E402

CHAT = ("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")


def token_list(n, n_vocab):
    """n token ids, always the same, spread over the ordinary part of the vocabulary."""
    span = max(1, min(n_vocab, 151643))
    return [(7919 * i * i + 104729 * i + 1234) % span for i in range(n)]


def measure_prefill(peer, n, depth):
    """Seconds for n tokens after depth tokens."""
    tokens = token_list(depth + n, peer.n_vocab)
    peer.prefill(tokens[:min(n, 512)])
    peer.clear()
    if depth:
        peer.prefill(tokens[:depth])
    begin = time.perf_counter()
    peer.prefill(tokens[depth:], start=depth)
    return time.perf_counter() - begin


def measure_decode(peer, n, depth, streams):
    """Seconds for n steps, each one token for every stream, after depth tokens in each stream."""
    tokens = token_list(depth + n, peer.n_vocab)
    ids = list(range(streams))
    peer.decode([tokens[0]] * streams, [0] * streams, ids, [True] * streams)
    peer.clear()
    for stream in ids if depth else []:
        peer.prefill(tokens[:depth], stream=stream)
    begin = time.perf_counter()
    for step in range(depth, depth + n):
        peer.decode([tokens[step]] * streams, [step] * streams, ids, [True] * streams)
    return time.perf_counter() - begin


def answer_once(path, threads, prompt):
    """Time from process start (of this script) to the first token of an answer; a mark is printed at once."""
    peer = llama_peer.Peer(path, 512, threads)
    peer.prefill(peer.tokenize(CHAT.format(prompt)))
    int(peer.logits(1)[0].argmax())
    seconds = time.perf_counter() - BEGIN
    sys.stdout.write("\n")
    sys.stdout.flush()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("-m", required=True, metavar="MODEL", help="GGUF file")
    parser.add_argument("-t", type=int, default=2, metavar="THREADS")
    parser.add_argument("-p", type=int, default=0, metavar="N", help="prefill N tokens")
    parser.add_argument("-n", type=int, default=0, metavar="N", help="decode N tokens")
    parser.add_argument("-d", type=int, default=0, metavar="DEPTH", help="tokens already in the context")
    parser.add_argument("-s", type=int, default=1, metavar="STREAMS", help="sequences decoded together")
    parser.add_argument("--start", action="store_true", help="one answer token, from a cold process")
    options = parser.parse_args()
    if not os.path.isfile(options.m):
        sys.exit(f"llama_runner: no such file: {options.m}")
    if options.start:
        seconds = answer_once(options.m, options.t, "x")
        print(json.dumps({"test": "start", "seconds_inside": round(seconds, 4)}))
        return
    if (options.p > 0) == (options.n > 0):
        sys.exit("llama_runner: give exactly one of -p N and -n N")
    peer = llama_peer.Peer(options.m, options.d + options.p + options.n, options.t, options.s)
    if options.p:
        kind, n, work = "prefill", options.p, options.p
        seconds = measure_prefill(peer, options.p, options.d)
    else:
        kind, n, work = "decode", options.n, options.n * options.s
        seconds = measure_decode(peer, options.n, options.d, options.s)
    rate = work / seconds
    print(json.dumps({"test": kind, "n": n, "depth": options.d, "streams": options.s, "threads": options.t,
                      "tokens_per_s": rate, "samples": [rate], "system": llama_peer.system_info(),
                      "version": llama_peer.version()}))
    peer.close()


if __name__ == "__main__":
    main()
