#!/usr/bin/env python3
"""Bytes of weights that one decode step reads from a GGUF file of a dense model, printed as one number.

Use:   PYTHON bench/model_bytes.py FILE.gguf          (PYTHON: the "test" environment of scripts/venv.py)

Every tensor counts once, except the token embeddings when the output matrix is a tensor of its own: of those a step
reads one row. Multiplied with tokens per second and divided by the read bandwidth it says how near decode is to the
limit of the machine.
"""

import sys

import gguf


def main():
    if len(sys.argv) != 2:
        sys.exit("use: model_bytes.py FILE.gguf")
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(sys.argv[1]).tensors}
    total = sum(sizes.values())
    if "output.weight" in sizes:
        total -= sizes["token_embd.weight"]
    print(total)


if __name__ == "__main__":
    main()
