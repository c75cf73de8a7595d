#!/usr/bin/env python3
"""Logits parity for `make test`: the committed fixtures against `qw logits`; needs numpy only.

Use:   python3 tests/parity/logits_small.py --qw build/qw [--model QWEN2.5-CODER-0.5B.gguf] [--positions 512]

1. The tiny models of tests/fixtures, --exact: every logit within 2e-4 of transformers float32 (logits reach 18; the
   reference itself is within 2e-5 of float64).
2. The tiny models, default mode: the distance that quantised activations may cost, as mean KL and equal best tokens.
3. Token files: ids between commas, spaces and line ends give the same bytes.
4. The real 0.5B model, --exact, when --model is given: logarithm of the sum, best ids, best logits and 64 sampled
   logits at the fixture's positions below --positions, within 5e-4.

Runs in the "test" environment (made on first use). Prints one line a check and ends with "N passed, M failed"; exit
code 0 when nothing failed. make_fixtures.py beside this file made the fixtures.
"""

import argparse
import os
import sys
import tempfile

import common

LIMIT_TINY = 2e-4
LIMIT_CODER = 5e-4
TINY = ("tiny-f32", "tiny-tied-f16", "tiny-q4km", "tiny-mix")
# llama.cpp on the same files: 1e-7, 3e-6, 2e-3, 5e-3 and 100, 100, 97, 94 %.
KL_MEAN_MAX = {"tiny-f32": 1e-3, "tiny-tied-f16": 1e-3, "tiny-q4km": 1e-2, "tiny-mix": 2e-2}
TOP1_MIN = 0.90


class Count:
    """Passed and failed checks."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, line):
        """One check, one line."""
        self.passed += bool(good)
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {line}", flush=True)
        return good


def check_tiny(count, qw, threads, folder):
    """The committed small models, exact and default."""
    import numpy
    for name in TINY:
        model = os.path.join(common.FIXTURES, name + ".gguf")
        want = numpy.load(os.path.join(common.FIXTURES, name + ".logits.npy"))
        tokens = common.read_tokens(os.path.join(common.FIXTURES, name + ".tokens.json"))
        listed = os.path.join(folder, "tokens.txt")
        common.write_tokens(listed, tokens)
        have = {}
        for mode in ("exact", "default"):
            have[mode] = common.run_qw(qw, model, listed, len(tokens), os.path.join(folder, f"{name}-{mode}.npy"),
                                       threads, mode == "exact")
            if have[mode] is not None and have[mode].shape != want.shape:
                common.say(f"{name}: qw wrote {have[mode].shape}, the fixture is {want.shape}")
                have[mode] = None
        if have["exact"] is None:
            count.check(False, f"{name} --exact: no logits")
        else:
            d = common.distances(want, have["exact"], want_kl=False)
            count.check(d["max_abs"] <= LIMIT_TINY, f"{name} --exact: max |d| {d['max_abs']:.2e} at position "
                        f"{d['where'][0]} id {d['where'][1]} (limit {LIMIT_TINY:.0e})")
        if have["default"] is None:
            count.check(False, f"{name}: no logits")
        else:
            d = common.distances(want, have["default"])
            kl, top = float(d["kl"].mean()), float(d["same_top"].mean())
            count.check(kl <= KL_MEAN_MAX[name] and top >= TOP1_MIN and numpy.isfinite(d["max_abs"]),
                        f"{name}: mean KL {kl:.2e} (limit {KL_MEAN_MAX[name]:.0e}), top-1 {100 * top:.1f}% "
                        f"(limit {100 * TOP1_MIN:.0f}%), max |d| {d['max_abs']:.2e}")


def check_token_files(count, qw, threads, folder):
    """Separators in a token file change nothing."""
    name = "tiny-f32"
    model = os.path.join(common.FIXTURES, name + ".gguf")
    tokens = common.read_tokens(os.path.join(common.FIXTURES, name + ".tokens.json"))[:40]
    seen = []
    for i, text in enumerate((" ".join(map(str, tokens)), ",".join(map(str, tokens)) + "\n",
                              "\n".join(map(str, tokens)) + "\n", ", ".join(map(str, tokens)))):
        listed = os.path.join(folder, f"list{i}.txt")
        with open(listed, "w") as file:
            file.write(text)
        out = os.path.join(folder, f"list{i}.npy")
        array = common.run_qw(qw, model, listed, len(tokens), out, threads, True)
        seen.append(None if array is None else array.tobytes())
    count.check(None not in seen and len(set(seen)) == 1, "token files: spaces, commas and lines give the same logits")


def check_coder(count, qw, model, n_positions, threads, folder):
    """The real model against its sampled fixture."""
    import numpy
    part = {short: numpy.load(os.path.join(common.FIXTURES, f"coder05b.{short}.npy"))
            for short in ("tokens", "positions", "lse", "top_ids", "top_logits", "sample_ids", "sample_logits")}
    n_positions = min(n_positions, len(part["tokens"]))
    listed = os.path.join(folder, "coder.txt")
    common.write_tokens(listed, [int(x) for x in part["tokens"][:n_positions]])
    have = common.run_qw(qw, model, listed, n_positions, os.path.join(folder, "coder.npy"), threads, True)
    if have is None or have.shape[1] <= max(part["top_ids"].max(), part["sample_ids"].max()):
        count.check(False, "0.5B --exact: no logits of the right shape")
        return
    kept = numpy.flatnonzero(part["positions"] < n_positions)
    worst = {"sampled logits": 0.0, "best logits": 0.0, "log-sum": 0.0}
    wrong_best = 0
    for k in kept:
        row = numpy.asarray(have[part["positions"][k]]).astype(numpy.float64)
        top = row.max()
        lse = top + numpy.log(numpy.exp(row - top).sum())
        gaps = {"sampled logits": numpy.abs(row[part["sample_ids"]] - part["sample_logits"][k]).max(),
                "best logits": numpy.abs(row[part["top_ids"][k]] - part["top_logits"][k]).max(),
                "log-sum": abs(lse - part["lse"][k])}
        for what, gap in gaps.items():
            worst[what] = max(worst[what], float(gap) if numpy.isfinite(gap) else numpy.inf)
        # A tie within twice the limit may fall either way.
        wrong_best += row[part["top_ids"][k, 0]] < top - 2 * LIMIT_CODER
    for what, gap in worst.items():
        count.check(gap <= LIMIT_CODER, f"0.5B --exact: {what}, max |d| {gap:.2e} over {len(kept)} of {n_positions} "
                    f"positions (limit {LIMIT_CODER:.0e})")
    count.check(wrong_best == 0, f"0.5B --exact: best token differs at {wrong_best} positions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"), help="the program under test")
    parser.add_argument("--model", help="the real 0.5B model, a file or an installed name; else that part is left out")
    parser.add_argument("--positions", type=int, default=512, metavar="N", help="how far into the text (at most 4096)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    common.check_program(options.qw)
    common.enter("test")
    if options.model:
        options.model = common.model_path(options.qw, options.model)
    count = Count()
    os.makedirs(common.WORK, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as folder:
        check_tiny(count, options.qw, options.threads, folder)
        check_token_files(count, options.qw, options.threads, folder)
        if options.model:
            check_coder(count, options.qw, options.model, options.positions, options.threads, folder)
    print(f"{count.passed} passed, {count.failed} failed")
    sys.exit(1 if count.failed else 0)


if __name__ == "__main__":
    main()
