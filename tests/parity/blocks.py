#!/usr/bin/env python3
"""Compares our block codecs with the `gguf` Python package, bit for bit.

Use:   blocks.py --tool build/tests/blocks_tool [--seed N] [--blocks N]

Dequantisation of every type: random bytes with sane scales, random bytes throughout, scales that are NaN,
infinite, subnormal, zero or the largest; and every value of every quant byte. Any NaN equals any NaN; all other
values must have equal bits. Quantisation: equal bytes for the types whose method the package implements the same
way; for MXFP4, which we search, an error no larger than the package's; for the other searched types the package
must read what we wrote with an error below a bound. Needs: gguf, numpy.
"""

import argparse
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

# Byte offsets of the binary16 scales of each block.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.IQ1_S: [0], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.TQ1_0: [52], T.TQ2_0: [64],
}
# IQ1_M's half lies in pieces; MXFP4 and NVFP4 have bytes as scales.
TYPES = [T.F32, T.F16, T.BF16, *HALVES, T.IQ1_M, T.MXFP4, T.NVFP4]
SAME_METHOD = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
# Searched types: largest relative error (RMS) on normally distributed data; see docs/blocks.md.
SEARCHED = {T.Q2_K: 0.265, T.Q3_K: 0.147, T.Q4_K: 0.072, T.Q5_K: 0.0355, T.Q6_K: 0.0172,
            T.IQ4_NL: 0.075, T.IQ4_XS: 0.0755}
SPECIAL_HALVES = np.array([0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE00, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400,
                           0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x3C00], dtype=np.uint16)


class Run:
    """Counts, and calls the tool."""

    def __init__(self, tool):
        self.tool = tool
        self.passed = self.failed = 0

    def call(self, verb, kind, n, data, *more):
        """The tool's output for these bytes."""
        done = subprocess.run([self.tool, verb, kind.name, str(n), *more], input=data, stdout=subprocess.PIPE,
                              check=False)
        if done.returncode:
            raise SystemExit(f"{self.tool} {verb} {kind.name} {n}: exit {done.returncode}")
        return done.stdout

    def check(self, ok, line):
        """One test; `line` is printed when it fails."""
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {line}")


def first_difference(ours, theirs):
    """Index of the first value that is not the same bits (NaN equals NaN), or -1; and the number of them."""
    a, b = ours.view(np.uint32), theirs.view(np.uint32)
    bad = (a != b) & ~(np.isnan(ours) & np.isnan(theirs))
    return (int(np.argmax(bad)), int(bad.sum())) if bad.any() else (-1, 0)


def compare_decode(run, kind, blocks, what):
    """blocks [n, bytes]: our floats and the package's."""
    block_n = GGML_QUANT_SIZES[kind][0]
    n = blocks.shape[0] * block_n
    ours = np.frombuffer(run.call("dequantize", kind, n, blocks.tobytes()), dtype=np.float32)
    with np.errstate(all="ignore"):
        theirs = np.ascontiguousarray(dequantize(blocks, kind)).reshape(-1)
    at, count = first_difference(ours, theirs)
    run.check(at < 0, f"dequantize {kind.name}, {what}: {count} of {n} values differ, first at {at}: "
                      f"ours {ours[at]!r}, theirs {theirs[at]!r}")


def decode_cases(kind, n_blocks, rng):
    """(description, blocks) for one type."""
    size = GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
    yield "random bytes", blocks
    if kind == T.F16:
        yield "all 65,536 halves", np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    if kind == T.BF16:
        yield "all 65,536 values", np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    if kind == T.MXFP4:
        every = blocks.copy()
        every[:, 0] = np.arange(n_blocks) % 256
        yield "every exponent", every
    if kind == T.NVFP4:
        every = blocks.copy()
        every[:, :4] = (np.arange(n_blocks * 4) % 256).reshape(-1, 4)
        yield "every scale", every
    for name, choose in (
            ("finite scales", lambda: (rng.standard_normal(n_blocks) * 0.05).astype(np.float16).view(np.uint16)),
            ("special scales", lambda: rng.choice(SPECIAL_HALVES, n_blocks))):
        if kind not in HALVES:
            continue
        case = rng.integers(0, 256, (n_blocks, size), dtype=np.uint8)
        for offset in HALVES[kind]:
            case[:, offset:offset + 2] = choose().reshape(-1, 1).view(np.uint8)
        yield name, case
    # Every value of every byte that is no scale, the others as they come.
    if kind in HALVES:
        scale_bytes = {o + k for o in HALVES[kind] for k in (0, 1)}
        sweep = np.repeat(rng.integers(0, 256, (1, size), dtype=np.uint8), 256, axis=0)
        for column in range(size):
            if column not in scale_bytes:
                sweep[:, column] = np.arange(256) + column
        for offset in HALVES[kind]:
            sweep[:, offset:offset + 2] = np.array([0x2E66], dtype=np.uint16).view(np.uint8)
        yield "every byte value", sweep


def encode_cases(n_blocks, block_n, rng):
    """(description, floats [n_blocks, block_n])."""
    normal = rng.standard_normal((n_blocks, block_n)).astype(np.float32)
    yield "normal", normal
    scale = np.exp(rng.uniform(-14, 8, (n_blocks, 1))).astype(np.float32)
    yield "normal, scales from 1e-6 to 3e3", normal * scale
    yield "heavy tails", (rng.standard_t(2, (n_blocks, block_n)) * 0.02).astype(np.float32)
    yield "few distinct values", (rng.integers(-8, 9, (n_blocks, block_n)) * np.float32(0.125)).astype(np.float32)
    yield "constant blocks", np.repeat(rng.standard_normal((n_blocks, 1)).astype(np.float32), block_n, axis=1)
    yield "positive", np.abs(normal) + np.float32(0.5)
    ties = (rng.integers(-253, 254, (n_blocks, block_n)) * np.float32(0.5)).astype(np.float32)
    ties[:, 5] = rng.choice(np.array([-127, 127], dtype=np.float32), n_blocks)
    yield "ties of Q8_0", ties
    yield "zeros", np.zeros((n_blocks, block_n), dtype=np.float32)


def compare_encode(run, kind, x, what):
    """Equal bytes (NaN cannot occur: x is finite)."""
    ours = np.frombuffer(run.call("quantize", kind, x.size, x.tobytes()), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = np.ascontiguousarray(quantize(x.reshape(1, -1), kind)).reshape(-1).view(np.uint8)
    bad = np.flatnonzero(ours != theirs)
    where = int(bad[0]) if bad.size else 0
    run.check(bad.size == 0, f"quantize {kind.name}, {what}: {bad.size} of {ours.size} bytes differ, first at {where}: "
                             f"ours {ours[where]}, theirs {theirs[where]}")


def plain_number_cases(rng):
    """Floats for the F16 and BF16 converters: every exponent, ties, overflow, subnormals, not finite."""
    bits = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    halves = np.arange(65536, dtype=np.uint32)
    exact = halves.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    near = np.concatenate([exact + np.uint32(d & 0xFFFFFFFF) for d in (0x0FFF, 0x1000, 0x1001)])
    brain = np.concatenate([(halves << np.uint32(16)) + np.uint32(d) for d in (0, 0x7FFF, 0x8000, 0x8001)])
    return np.concatenate([bits, exact, near, brain]).view(np.float32)


def compare_numbers(run, kind, x):
    """F16, BF16 of any floats, NaN equal to NaN."""
    ours = np.frombuffer(run.call("quantize", kind, x.size, x.tobytes()), dtype=np.uint16)
    with np.errstate(all="ignore"):
        theirs = np.ascontiguousarray(quantize(x.reshape(1, -1), kind)).reshape(-1).view(np.uint16)
    nan = np.isnan(x)
    exponent = 0x7C00 if kind == T.F16 else 0x7F80
    is_nan = ((ours & exponent) == exponent) & ((ours & (0x7FFF ^ exponent)) != 0)
    run.check(bool((ours[~nan] == theirs[~nan]).all()), f"quantize {kind.name}: a number of {x.size} differs")
    run.check(bool(is_nan[nan].all()) and not is_nan[~nan].any(), f"quantize {kind.name}: NaN is not kept")


def relative_error(x, y):
    """RMS of the difference over RMS of x."""
    x, y = x.astype(np.float64).reshape(-1), y.astype(np.float64).reshape(-1)
    return float(np.sqrt(((x - y) ** 2).sum() / (x ** 2).sum()))


def read_back(run, kind, x):
    """What the package reads from our quantisation of x [n_blocks, block_n]."""
    size = GGML_QUANT_SIZES[kind][1]
    rows = np.frombuffer(run.call("quantize", kind, x.size, x.tobytes()), dtype=np.uint8).reshape(-1, size)
    return dequantize(rows, kind).reshape(x.shape)


def main():
    """All comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tool", required=True, help="path of blocks_tool")
    parser.add_argument("--seed", type=int, default=20240607)
    parser.add_argument("--blocks", type=int, default=2048, help="blocks a case (at least 2,000 in the tests)")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.blocks} blocks a case, {len(TYPES)} types")
    rng = np.random.default_rng(args.seed)
    run = Run(args.tool)

    for kind in TYPES:
        for what, blocks in decode_cases(kind, args.blocks, rng):
            compare_decode(run, kind, blocks, what)
    for kind in SAME_METHOD:
        block_n = max(GGML_QUANT_SIZES[kind][0], 32)
        for what, x in encode_cases(args.blocks, block_n, rng):
            compare_encode(run, kind, x, what)
    numbers = plain_number_cases(rng)
    for kind in (T.F16, T.BF16):
        compare_numbers(run, kind, numbers)
    for what, x in encode_cases(args.blocks, 32, rng):
        ours = relative_error(x, read_back(run, T.MXFP4, x)) if x.any() else 0.0
        theirs = relative_error(x, dequantize(quantize(x, T.MXFP4), T.MXFP4)) if x.any() else 0.0
        run.check(ours <= theirs, f"quantize MXFP4, {what}: error {ours:.6f}, the package's {theirs:.6f}")
    for kind, bound in SEARCHED.items():
        for scale in (1.0, 0.02, 0.002):
            x = (rng.standard_normal((max(args.blocks // 8, 64), 256)) * scale).astype(np.float32)
            error = relative_error(x, read_back(run, kind, x.reshape(-1, GGML_QUANT_SIZES[kind][0])).reshape(x.shape))
            run.check(error <= bound, f"quantize {kind.name}, scale {scale}: error {error:.5f}, bound {bound}")

    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
