#!/usr/bin/env python3
"""Compares the error of our quantisation with llama.cpp's, type by type, on rows of a real model.

Use:   quantizers.py --tool build/tests/blocks_tool --model model.gguf [--lib libggml-base.so] [--seed N] [--rows N]

The same floats go through both quantisers and come back through the `gguf` package. Judged is the squared error, plain and
with an importance for each column (log-normal numbers, as measured inputs have them); ours must not be above
theirs by more than a thousandth. Two kinds of rows: some of each matrix of the first, a middle and the last layer, and
normal numbers with a few large ones. Without --lib it takes llama.cpp's library from the environment `peer`
(scripts/venv.py), made on first use. Needs: gguf, numpy.
"""

import argparse
import ctypes
import glob
import os
import subprocess
import sys

import common
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

TYPES = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS]
# Formats with a closed form, which both have: without importances the errors are those of the same bytes or nearly so.
SLACK = 1.001


def library(path):
    """llama.cpp's quantiser."""
    if not path:
        environment = os.path.dirname(os.path.dirname(common.venv_python("peer")))
        path = glob.glob(os.path.join(environment, "lib/*/site-packages/llama_cpp/lib/libggml-base.so"))[0]
    lib = ctypes.CDLL(path)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                        ctypes.c_int64, ctypes.c_void_p]
    return lib


def theirs(lib, kind, x, weights):
    """Bytes of llama.cpp's quantisation of rows x [n_rows, k]."""
    block_n, block_bytes = GGML_QUANT_SIZES[kind]
    out = np.zeros(x.size // block_n * block_bytes, dtype=np.uint8)
    pointer = weights.ctypes.data if weights is not None else None
    lib.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], pointer)
    return out


def ours(tool, kind, x, weights):
    """Bytes of our quantisation."""
    data, more = x.tobytes(), []
    if weights is not None:
        data, more = data + np.tile(weights, x.shape[0]).tobytes(), ["weights"]
    return np.frombuffer(subprocess.run([tool, "quantize", kind.name, str(x.size), *more], input=data,
                                        stdout=subprocess.PIPE, check=True).stdout, dtype=np.uint8)


def error(kind, data, x, weights):
    """Sum of weighted squared differences over that of the squares."""
    y = dequantize(data.reshape(-1, GGML_QUANT_SIZES[kind][1]), kind).reshape(x.shape).astype(np.float64)
    w = np.ones(x.shape[1]) if weights is None else weights.astype(np.float64)
    return float((((x - y) ** 2) * w).sum() / ((x.astype(np.float64) ** 2) * w).sum())


def model_rows(path, n_rows, rng):
    """(name, floats [n_rows, k]) for the matrices of three layers; k is made a multiple of 256."""
    reader = GGUFReader(path)
    layers = sorted({int(t.name.split(".")[1]) for t in reader.tensors if t.name.startswith("blk.")})
    wanted = {layers[0], layers[len(layers) // 2], layers[-1]}
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) not in wanted or len(tensor.shape) < 2:
            continue
        k = int(tensor.shape[0])
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        pick = np.sort(rng.choice(len(rows), min(n_rows, len(rows)), replace=False))
        x = dequantize(np.ascontiguousarray(rows[pick]), tensor.tensor_type).astype(np.float32).reshape(len(pick), k)
        join = 256 // np.gcd(k, 256)
        yield tensor.name, np.ascontiguousarray(x[:len(pick) // join * join].reshape(-1, k * join))


def main():
    """All types."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tool", required=True, help="path of blocks_tool")
    parser.add_argument("--model", required=True, help="a GGUF file with weights to take rows from")
    parser.add_argument("--lib", help="llama.cpp's libggml-base.so")
    parser.add_argument("--seed", type=int, default=20240607)
    parser.add_argument("--rows", type=int, default=32, help="rows of each matrix")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    lib = library(args.lib)
    samples = list(model_rows(args.model, args.rows, rng))
    made = (rng.standard_t(4, (args.rows, 2048)) * 0.02).astype(np.float32)
    print(f"seed {args.seed}, {sum(x.size for _, x in samples)} weights of {len(samples)} matrices, {made.size} made up")
    print("errors relative to the data, root mean square: ours / llama.cpp's (ratio of the squares)")
    passed = failed = 0
    for kind in TYPES:
        line = []
        for what, rows in (("model", samples), ("made up", [("normal", made)])):
            for weighted in (False, True):
                sums = np.zeros(2)
                for _, x in rows:
                    w = np.exp(rng.standard_normal(x.shape[1]) * 1.5).astype(np.float32) if weighted else None
                    sums += error(kind, ours(args.tool, kind, x, w), x, w), error(kind, theirs(lib, kind, x, w), x, w)
                ok = sums[0] <= sums[1] * SLACK
                passed, failed = passed + ok, failed + (not ok)
                a, b = np.sqrt(sums / len(rows))
                line.append(f"{what}{', importances' if weighted else ''} {a:.5f}/{b:.5f} ({sums[0] / sums[1]:.3f})"
                            + ("" if ok else " FAIL"))
        print(f"{kind.name:7} " + "; ".join(line))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
