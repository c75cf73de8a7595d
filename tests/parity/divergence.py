#!/usr/bin/env python3
"""`qw eval --kl` against numpy, which makes the same numbers of what `qw logits` says of both models.

    tests/parity/divergence.py --qw build/qw

The model is a tiny one and what `qw quantize` makes of it. A model's divergence from itself is exactly 0; that of the
quantised one, computed here window by window from the logits of both, is the one that `qw eval` prints.
Prints one line for each failure and `N passed, M failed`.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFReader

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
WINDOW = 48


class Run:
    """Counts, and calls the program."""

    def __init__(self, qw, folder):
        self.qw, self.folder, self.passed, self.failed = qw.split(), folder, 0, 0
        self.text = f"{folder}/text.txt"
        with open(f"{FIXTURES}/text-mixed.txt", "rb") as file:
            data = file.read(3000).decode("utf-8", "ignore").encode()
        with open(self.text, "wb") as file:
            file.write(data)

    def check(self, ok, line):
        """One test; `line` is printed when it fails."""
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        if not ok:
            print(f"FAIL {line}")

    def call(self, *arguments):
        """Exit code, standard output and error."""
        done = subprocess.run([*self.qw, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def eval(self, model, *more):
        """The object that `qw eval --json` prints; empty when it fails."""
        code, out, said = self.call("eval", "-m", model, "--text", self.text, "-c", str(WINDOW), "--json", *more)
        self.check(code == 0, f"eval {model} {more}: exit {code}: {said}")
        return json.loads(out) if code == 0 else {}

    def logits(self, model, *more):
        """Float64 [positions, vocabulary] at the scored positions, and the tokens that follow them."""
        ids = json.loads(subprocess.run([*self.qw, "tokenize", "--json", "-m", model], stdin=open(self.text, "rb"),
                                        stdout=subprocess.PIPE, check=True).stdout)
        rows, tokens, out = [], [], f"{self.folder}/logits.npy"
        for at in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = ids[at:at + WINDOW]
            code, _, said = self.call("logits", "-m", model, "--tokens", ",".join(map(str, window)), "-o", out, *more)
            self.check(code == 0, f"logits {model}: {said}")
            rows.append(np.load(out)[WINDOW // 2 - 1:-1])
            tokens += window[WINDOW // 2:]
        return np.concatenate(rows).astype(np.float64), np.array(tokens)


def log_softmax(x):
    """Of each row."""
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def numbers(model, reference, tokens):
    """What `qw eval --kl --json` prints, from the logits of both."""
    q, p = log_softmax(model), log_softmax(reference)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    at = np.arange(len(tokens)), tokens
    change = np.exp(q[at]) - np.exp(p[at])
    return {"scored": len(tokens), "kl.mean": kl.mean(), "kl.stderr": kl.std() / np.sqrt(len(kl) - 1), "kl.median": np.median(kl),
            "kl.p90": np.quantile(kl, 0.9), "kl.p99": np.quantile(kl, 0.99), "kl.max": kl.max(),
            "same_top": (model.argmax(axis=1) == reference.argmax(axis=1)).mean(), "perplexity": np.exp(-q[at].mean()),
            "reference_perplexity": np.exp(-p[at].mean()), "probability_change.mean": change.mean(),
            "probability_change.rms": np.sqrt((change ** 2).mean())}


def compare(run, what, got, want):
    """Every number, to the digits that are printed."""
    flat = {f"{k}.{j}" if isinstance(v, dict) else k: x for k, v in got.items()
            for j, x in (v.items() if isinstance(v, dict) else [("", v)])}
    for name, x in want.items():
        y = flat.get(name, np.nan)
        run.check(abs(y - x) <= 1e-7 * abs(x) + 1e-12, f"{what}: {name} is {y!r}, numpy says {x!r}")


def other_tokens(model, path):
    """The same model whose tokenizer makes late merges first, as far as they have the same length."""
    shutil.copy(model, path)
    merges = GGUFReader(path, "r+").fields["tokenizer.ggml.merges"]
    texts = [merges.parts[i] for i in merges.data]
    for length in {len(t) for t in texts}:
        places = [t for t in texts if len(t) == length]
        for place, text in zip(places, [t.copy() for t in reversed(places)]):
            place[:] = text
    return path


def check_refusals(run, model):
    """What cannot be compared, or is asked for wrongly."""
    other = f"{run.folder}/other"
    os.mkdir(other)
    eval_it = ("eval", "-m", model, "--text", run.text, "-c", str(WINDOW))
    for arguments, exit_code, said in (
            ((*eval_it, "--kl", f"{run.folder}/none.gguf"), 1, "none.gguf"),
            ((*eval_it, "--kl", other), 1, "config.json"),
            ((*eval_it, "--kl", f"{FIXTURES}/tiny-tied-f16.gguf"), 2, "only models with the same can be compared"),
            ((*eval_it, "--kl", other_tokens(model, f"{run.folder}/cut.gguf")), 2, "the text has other tokens"),
            ((*eval_it, "--kl", model, "--mtp", "2"), 2, "--kl and --mtp are two things"),
            ((*eval_it, "--kl-exact"), 2, "--kl-exact goes with --kl")):
        code, out, error = run.call(*arguments)
        run.check(code == exit_code and said in error and not out, f"{arguments[7:]}: exit {code}: {error}")


def main():
    """All checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--qw", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, model = Run(args.qw, folder), f"{FIXTURES}/tiny-f32.gguf"
        quantised = f"{folder}/quantised.gguf"
        run.check(run.call("quantize", model, quantised, "Q4_0")[0] == 0, "qw quantize")
        for mode in ([], ["--exact"]):
            same = run.eval(model, "--kl", model, *mode)
            plain = run.eval(model, *mode)
            run.check(same.get("kl") == dict.fromkeys(("mean", "stderr", "median", "p90", "p99", "max"), 0)
                      and same.get("same_top") == 1 and same.get("probability_change") == {"mean": 0, "rms": 0},
                      f"the model against itself {mode}: {same}")
            run.check(same.get("perplexity") == same.get("reference_perplexity")
                      and abs(same.get("perplexity", 0) / plain.get("perplexity", 1) - 1) < 1e-8,
                      f"perplexity {mode}: {same.get('perplexity')}, without --kl {plain.get('perplexity')}")
            (q, tokens), (p, _) = run.logits(quantised, *mode), run.logits(model, *mode)
            want = numbers(q, p, tokens)
            run.check(want["kl.mean"] > 1e-4 and want["same_top"] < 1, f"these models are too alike to tell anything: {want}")
            compare(run, f"quantised {mode}", run.eval(quantised, "--kl", model, *mode), want)
        compare(run, "exact reference", run.eval(model, "--kl", model, "--kl-exact"),
                numbers(run.logits(model)[0], run.logits(model, "--exact")[0], tokens))
        code, out, _ = run.call("eval", "-m", quantised, "--text", run.text, "-c", str(WINDOW), "--kl", model)
        run.check(code == 0 and f"divergence   {want['kl.mean']:.2f}"[:15] in out and out.count("\n") == 5, f"the page: {out}")
        check_refusals(run, model)
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
