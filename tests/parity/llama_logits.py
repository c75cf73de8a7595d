#!/usr/bin/env python3
"""llama.cpp's logits at every position of a token list, for comparison with qw's.

Use:   PYTHON tests/parity/llama_logits.py --model FILE.gguf --tokens FILE --out OUT.npy [--positions N] [--threads 2]
       [--float-cache]

PYTHON is the one of the "peer" environment (scripts/venv.py peer). Writes float32 logits [n, vocabulary]. Context of
4608 positions or more, flash attention on, keys and values in f16 (--float-cache: off, in f32), default batch sizes
(scripts/llama_peer.py).
"""

import argparse
import os
import sys

import common

sys.path.insert(0, os.path.join(common.ROOT, "scripts"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--positions", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float-cache", action="store_true")
    options = parser.parse_args()
    common.enter("peer")
    import numpy
    import llama_peer
    if not os.path.isfile(options.model):
        common.fail(f"no such model file: {options.model}")
    tokens = common.read_tokens(options.tokens)[:options.positions or None]
    peer = llama_peer.Peer(options.model, max(4608, len(tokens)), options.threads, all_logits=True,
                           float_cache=options.float_cache)
    array = numpy.lib.format.open_memmap(options.out + ".new", mode="w+", dtype=numpy.float32,
                                         shape=(len(tokens), peer.n_vocab))
    for begin in range(0, len(tokens), peer.n_batch):
        piece = tokens[begin:begin + peer.n_batch]
        n = len(piece)
        peer.decode(piece, range(begin, begin + n), [0] * n, [True] * n)
        array[begin:begin + n] = peer.logits(n)
    array.flush()
    os.rename(options.out + ".new", options.out)
    print(f"wrote {len(tokens)} x {peer.n_vocab} llama.cpp logits, {llama_peer.version()}", file=sys.stderr)
    peer.close()


if __name__ == "__main__":
    main()
