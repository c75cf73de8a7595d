#!/usr/bin/env python3
"""A whole model quantised by qw and by llama.cpp: perplexity of a text, and distance from the model that was quantised.

Use:   python3 tests/parity/quantizers_model.py --qw build/qw --model NAME|FILE.gguf [--text FILE] [--mixes Q4_0,...]
       [--threads 2]

The source is the model in F16. A quantised one is first written so by `qw quantize MODEL F16 --requantize`; then every weight is
moved by some random percent, because a quantiser finds the grid again that it once rounded to, and that would be
measured in place of its rounding. What comes out is the truth for both. Each mix is made by both quantisers, without importances, and both files are judged by qw: perplexity of the text in
windows of 512 tokens (`qw eval`), and mean KL divergence from the source over the text's first 512 tokens, which says the same
with less noise. Ours must not be above theirs by more than PPL_SLACK and KL_SLACK.

Runs in the "test" environment, llama.cpp in "peer". Prints one line a mix and ends with "N passed, M failed"; exit code 0 when
nothing failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import common

MIXES = "Q4_0,Q4_K_M,Q5_K_M,Q6_K,IQ4_XS"
# The choice of text leaves several percent open, but for both alike; what stays is what two roundings of one size do by chance.
PPL_SLACK, KL_SLACK = 1.005, 1.05
WINDOW = 512
NOISE, SEED = 0.05, 20261129  # parts of the root mean square of 32 weights: about what 5 bits round off


def move_off_grid(path):
    """Changes every matrix of a file in F16 where it lies."""
    import numpy
    from gguf import GGMLQuantizationType, GGUFReader
    rng = numpy.random.default_rng(SEED)
    for tensor in GGUFReader(path, "r+").tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        for at in range(0, len(rows) if tensor.tensor_type == GGMLQuantizationType.F16 else 0, 4096):
            x = rows[at:at + 4096].astype(numpy.float32).reshape(-1, 32)
            x += NOISE * numpy.sqrt((x ** 2).mean(axis=1, keepdims=True)) * rng.standard_normal(x.shape, dtype=numpy.float32)
            rows[at:at + 4096] = x.reshape(-1, rows.shape[1]).astype(numpy.float16)


class Judge:
    """qw, which reads every file, and the text."""

    def __init__(self, qw, text, threads, work):
        self.qw, self.text, self.threads, self.work = qw, text, threads, work
        self.listed = os.path.join(work, "tokens.txt")

    def command(self, *arguments, **more):
        """Standard output; ends the program when it fails."""
        run = subprocess.run([*self.qw.split(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or ["(no message)"])[-1]
            common.fail(f"qw {arguments[0]} ended with exit code {run.returncode}: {last}")
        return run.stdout

    def take_tokens(self, model):
        with open(self.text, "rb") as file:
            tokens = json.loads(self.command("tokenize", "--json", "-m", model, stdin=file))
        if len(tokens) < WINDOW:
            common.fail(f"{self.text} has {len(tokens)} tokens, at least {WINDOW} are needed")
        common.write_tokens(self.listed, tokens[:WINDOW])

    def logits(self, model, name):
        array = common.run_qw(self.qw, model, self.listed, WINDOW, os.path.join(self.work, name + ".npy"), self.threads, False)
        if array is None:
            sys.exit(1)
        return array

    def measure(self, model, reference):
        """(perplexity, mean KL from the reference)."""
        said = self.command("eval", "--json", "-m", model, "--text", self.text, "-c", str(WINDOW), "-t", str(self.threads),
                            stdin=subprocess.DEVNULL)
        kl = 0.0 if reference is None else float(common.distances(reference, self.logits(model, "other"))["kl"].mean())
        return json.loads(said)["perplexity"], kl


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", default=os.path.join(common.FIXTURES, "text-mixed.txt"))
    parser.add_argument("--mixes", default=MIXES)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    common.enter("test")
    common.check_program(options.qw)
    from logits_small import Count
    from quantize import MIXES as FILE_TYPES
    model, peer, count = common.model_path(options.qw, options.model), common.venv_python("peer"), Count()
    theirs_script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_quantize.py")
    os.makedirs(common.WORK, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as work:
        os.environ["QW_HOME"] = os.path.join(work, "home")  # packed weights go with the rest
        judge = Judge(options.qw, options.text, options.threads, work)
        source, ours, theirs = (os.path.join(work, name + ".gguf") for name in ("source", "ours", "theirs"))
        judge.command("quantize", model, source, "F16", "--requantize")
        move_off_grid(source)
        judge.take_tokens(source)
        reference = judge.logits(source, "source")
        print(f"source: perplexity {judge.measure(source, None)[0]:.4f}", flush=True)
        for mix in options.mixes.split(","):
            judge.command("quantize", source, ours, mix, "--replace")
            subprocess.run([peer, theirs_script, source, theirs, str(FILE_TYPES[mix]), "--threads", str(options.threads)],
                           check=True, stdin=subprocess.DEVNULL)
            (our_ppl, our_kl), (their_ppl, their_kl) = (judge.measure(path, reference) for path in (ours, theirs))
            count.check(our_ppl <= their_ppl * PPL_SLACK and our_kl <= their_kl * KL_SLACK,
                        f"{mix:7} perplexity {our_ppl:.4f}, llama.cpp's {their_ppl:.4f} "
                        f"({100 * (our_ppl / their_ppl - 1):+.2f}%); mean KL from the source {our_kl:.5f}, {their_kl:.5f} "
                        f"({100 * (our_kl / their_kl - 1):+.1f}%)")
    print(f"{count.passed} passed, {count.failed} failed")
    sys.exit(1 if count.failed or not count.passed else 0)


if __name__ == "__main__":
    main()
