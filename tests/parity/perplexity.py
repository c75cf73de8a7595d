#!/usr/bin/env python3
"""Perplexity of a text: qw beside llama.cpp, same file, same tokens, same windows, same positions.

    tests/parity/perplexity.py --qw build/qw --model NAME|FILE.gguf [--text FILE] [--context 512] [--threads 2]

`qw eval` cuts the text's tokens into windows of --context tokens, reads each from position 0 and scores its second
half. The same is done here with llama.cpp's low-level interface, on the token ids of `qw tokenize`: token i of a window
is scored with the logits after token i - 1, for i from half a window on. What is left at the end is not read. llama.cpp
runs with flash attention and keys and values in f16 (scripts/llama_peer.py). Without --text it is
tests/fixtures/text-mixed.txt: prose, code and several languages.

Prints both perplexities and their difference. Exit code 0 when qw's is at most 0.2% above or below llama.cpp's, else 1.
"""
import argparse
import json
import math
import os
import subprocess
import sys

import common

sys.path.insert(0, os.path.join(common.ROOT, "scripts"))

PERCENT_MAX = 0.2
WINDOWS_MIN = 8


def qw_output(qw, *arguments, **more):
    """Standard output of one command of qw; ends the program when it fails."""
    run = subprocess.run([*qw.split(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["(no message)"])[-1]
        common.fail(f"qw {arguments[0]} ended with exit code {run.returncode}: {last}")
    return run.stdout


def llama_nll(model, tokens, window, threads):
    """(sum of negative log-likelihoods in nats, number of scored tokens) of llama.cpp."""
    import llama_peer
    import numpy
    peer = llama_peer.Peer(model, window, threads, all_logits=True)
    total, n_scored, first = 0.0, 0, window // 2
    for begin in range(0, len(tokens) - window + 1, window):
        piece = tokens[begin:begin + window]
        peer.clear()
        for at in range(0, window, peer.n_batch):
            part = piece[at:at + peer.n_batch]
            n = len(part)
            # Row r of this batch is what follows token at + r of the window.
            peer.decode(part, range(at, at + n), [0] * n, [True] * n)
            low, high = max(0, first - at - 1), min(n, window - 1 - at)
            if low >= high:
                continue
            wanted = numpy.array(piece[at + low + 1:at + high + 1])
            logs = common.log_softmax(peer.logits(n)[low:high])
            total -= float(logs[numpy.arange(high - low), wanted].sum())
            n_scored += high - low
    peer.close()
    return total, n_scored


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qw", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", default=os.path.join(common.FIXTURES, "text-mixed.txt"))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    common.enter("peer")
    common.check_program(options.qw)
    if options.context < 4:
        common.fail("--context starts at 4")
    model = common.model_path(options.qw, options.model)
    try:
        with open(options.text, "rb") as file:
            tokens = json.loads(qw_output(options.qw, "tokenize", "--json", "-m", model, stdin=file))
    except OSError as error:
        common.fail(f"{options.text}: {error.strerror}")
    n_windows = len(tokens) // options.context
    if n_windows < WINDOWS_MIN:
        common.fail(f"{options.text} has {len(tokens)} tokens: at least {WINDOWS_MIN} windows of {options.context} are "
                    "needed")

    ours = json.loads(qw_output(options.qw, "eval", "--json", "-m", model, "--text", options.text, "-c",
                                str(options.context), "-t", str(options.threads), stdin=subprocess.DEVNULL))
    total, n_scored = llama_nll(model, tokens, options.context, options.threads)
    if (ours["tokens"], ours["scored"]) != (len(tokens), n_scored):
        common.fail(f"not the same positions: qw scored {ours['scored']} of {ours['tokens']} tokens, here {n_scored} "
                    f"of {len(tokens)}")
    theirs = math.exp(total / n_scored)
    percent = 100 * (ours["perplexity"] / theirs - 1)
    good = abs(percent) <= PERCENT_MAX
    print(f"text       {os.path.relpath(options.text)}, {len(tokens)} tokens, {n_windows} windows of "
          f"{options.context}, {n_scored} scored")
    print(f"llama.cpp  {theirs:.5f}")
    print(f"qw         {ours['perplexity']:.5f} +/- {ours['stderr']:.3f} (what the choice of text leaves open)")
    print(f"difference {percent:+.4f}%, at most {PERCENT_MAX}%: {'PASS' if good else 'FAIL'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
