#!/usr/bin/env python3
"""llama.cpp's quantiser, for comparison with `qw quantize`.

Use:   PYTHON tests/parity/llama_quantize.py IN.gguf OUT.gguf FILE_TYPE [--threads 2] [--importances]

PYTHON is the one of the "peer" environment (scripts/venv.py peer). FILE_TYPE is the number of general.file_type: MIXES of
quantize.py. With --importances standard input is a JSON object {tensor: number of values}, and each value counts 1.
"""

import argparse
import ctypes
import json
import os
import sys

import common

sys.path.insert(0, os.path.join(common.ROOT, "scripts"))


def importances(sizes, like):
    """(entries as llama.cpp takes them, what has to be kept while they are used)."""
    import llama_cpp
    entries = (llama_cpp.llama_model_imatrix_data * (len(sizes) + 1))()
    keep = [(ctypes.c_float * n)(*([1.0] * n)) for n in sizes.values()]
    for entry, name, data in zip(entries, sizes, keep):
        entry.name, entry.size = name.encode(), len(data)
        entry.data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
    return ctypes.cast(entries, type(like)), (entries, keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("file_type", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--importances", action="store_true")
    options = parser.parse_args()
    common.enter("peer")
    import llama_cpp
    import llama_peer
    llama_peer.quiet()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = options.file_type, options.threads
    if options.importances:
        params.imatrix, _keep = importances(json.load(sys.stdin), params.imatrix)
    sys.exit(llama_cpp.llama_model_quantize(options.source.encode(), options.out.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    main()
