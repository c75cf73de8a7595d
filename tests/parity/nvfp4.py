#!/usr/bin/env python3
"""Matrices of NVFP4 with a scale of their own, as llama.cpp's converter writes them, against floats.

    tests/parity/nvfp4.py --qw build/qw [--seed N]

A GGUF file keeps the float32 scale of a matrix X.weight in X.scale: one number, or one for each expert of a stack. Tiny
models are written twice: in NVFP4 with scales, and in F32 with what numpy makes of the same bytes and scales. Both have to
give the same logits up to float32's rounding. Then each scale is left out in turn, which has to be seen; files whose scales
do not fit are refused; a scale for inputs, which nothing here needs, changes nothing.

Prints one line for each failure and `N passed, M failed`.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFWriter, dequantize

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
VOCAB, HIDDEN, FFN, HEADS, KV, DIM, EXPERTS, USED = 512, 64, 128, 4, 2, 64, 3, 2
LIMIT = 2e-5  # of the largest logit: float32's rounding
SEEN = 1e-3
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def random_nvfp4(rng, rows, k):
    """Bytes [rows, k / 64 * 36]: four scales between 0.004 and 0.03, then 64 nibbles."""
    blocks = rng.integers(0, 256, (rows, k // 64, 36), dtype=np.uint8)
    blocks[:, :, :4] = rng.integers(2, 16, (rows, k // 64, 4))
    return blocks.reshape(rows, -1)


def from_nvfp4(data, k):
    """Floats [rows, k], from the format's definition."""
    blocks = data.reshape(data.shape[0], k // 64, 36)
    d, q = blocks[:, :, :4].astype(np.int64), blocks[:, :, 4:].reshape(-1, k // 64, 4, 8)
    scale = np.where(d >> 3, (8 + (d & 7)) * 2.0 ** ((d >> 3) - 10), (d & 7) * 2.0 ** -9)
    nibbles = np.concatenate([q & 15, q >> 4], axis=3)  # of a byte, element j and j + 8
    values = np.where(nibbles & 8, -1, 1) * E2M1[nibbles & 7]
    return (values * scale[..., None]).astype(np.float32).reshape(-1, k)


def add_tokenizer(writer):
    """That of a fixture, so that text can be read."""
    fields = GGUFReader(f"{FIXTURES}/tiny-f32.gguf").fields
    of = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre", "tokens", "token_type", "merges")}
    writer.add_tokenizer_model(of["model"])
    writer.add_tokenizer_pre(of["pre"])
    writer.add_token_list(of["tokens"])
    writer.add_token_types(of["token_type"])
    writer.add_token_merges(of["merges"])


class Model:
    """Tensors of a model: floats, and matrices as (bytes, k, number of matrices) with their scales."""

    def __init__(self, rng, kind):
        self.dense = kind in ("dense", "tied")
        self.arch = "qwen2" if self.dense else "qwen3moe"
        self.floats, self.matrices, self.scales = {"output_norm.weight": self.normal(rng, HIDDEN)}, {}, {}
        self.matrix(rng, "token_embd", VOCAB, HIDDEN)
        if kind != "tied":
            self.matrix(rng, "output", VOCAB, HIDDEN)
        for il in range(2):
            b = f"blk.{il}."
            for name, n in (("attn_norm", HIDDEN), ("ffn_norm", HIDDEN)):
                self.floats[f"{b}{name}.weight"] = self.normal(rng, n)
            for name, n in (("attn_q", HEADS * DIM), ("attn_k", KV * DIM), ("attn_v", KV * DIM)):
                if self.dense:
                    self.floats[f"{b}{name}.bias"] = self.normal(rng, n)
                elif name != "attn_v":
                    self.floats[f"{b}{name}_norm.weight"] = self.normal(rng, DIM)
            for name, rows in (("attn_q", HEADS * DIM), ("attn_k", KV * DIM), ("attn_v", KV * DIM)):
                self.matrix(rng, b + name, rows, HIDDEN)
            self.matrix(rng, b + "attn_output", HIDDEN, HEADS * DIM)
            if self.dense:
                for name, rows, k in (("gate", FFN, HIDDEN), ("up", FFN, HIDDEN), ("down", HIDDEN, FFN)):
                    self.matrix(rng, f"{b}ffn_{name}", rows, k)
                continue
            self.floats[b + "ffn_gate_inp.weight"] = self.normal(rng, EXPERTS, HIDDEN)
            parts = [("gate_up", 2 * FFN)] if kind == "joined" else [("gate", FFN), ("up", FFN)]
            for name, rows in parts:
                self.matrix(rng, f"{b}ffn_{name}_exps", rows, HIDDEN, EXPERTS)
            self.matrix(rng, b + "ffn_down_exps", HIDDEN, FFN, EXPERTS)

    @staticmethod
    def normal(rng, *shape):
        return rng.standard_normal(shape).astype(np.float32)

    def matrix(self, rng, name, rows, k, n=1):
        """Numbers between about -0.2 and 0.2 once the scale is applied."""
        self.matrices[name] = random_nvfp4(rng, n * rows, k), k, n
        self.scales[name] = (rng.random(n) * 3 + 0.5).astype(np.float32)

    def dequantised(self, name):
        """Floats of a matrix, or of a stack, with the scales."""
        data, k, n = self.matrices[name]
        x = from_nvfp4(data, k) if n == 1 else from_nvfp4(data, k).reshape(n, -1, k)
        return x * (self.scales[name][0] if n == 1 else self.scales[name][:, None, None])

    def write(self, path, floats=False, without=None, more=None):
        """floats: in F32. without: the matrix whose scale is left out. more: further tensors, which replace others."""
        writer = GGUFWriter(path, self.arch)
        writer.add_block_count(2)
        writer.add_context_length(512)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV)
        writer.add_key_length(DIM)
        writer.add_value_length(DIM)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e4)
        if self.arch == "qwen3moe":
            writer.add_expert_count(EXPERTS)
            writer.add_expert_used_count(USED)
            writer.add_expert_feed_forward_length(FFN)
        add_tokenizer(writer)
        tensors = dict(self.floats)
        for name, (data, _, n) in self.matrices.items():
            if floats:
                tensors[name + ".weight"] = self.dequantised(name)
                continue
            shape = data.shape if n == 1 else (n, data.shape[0] // n, data.shape[1])
            writer.add_tensor(name + ".weight", data.reshape(shape), raw_dtype=T.NVFP4)
            if name != without:
                tensors[name + ".scale"] = self.scales[name]
        for name, x in {**tensors, **(more or {})}.items():
            writer.add_tensor(name, x)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class Run:
    """Counts, and calls the program."""

    def __init__(self, qw, folder):
        self.qw, self.folder, self.passed, self.failed = qw.split(), folder, 0, 0

    def check(self, ok, line):
        """One test; `line` is printed when it fails."""
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        if not ok:
            print(f"FAIL {line}")

    def logits(self, path, *options):
        """After each of some tokens; None with the error text when there are none."""
        out, ids = f"{self.folder}/logits.npy", ",".join(str(7 * i % VOCAB) for i in range(40))
        done = subprocess.run([*self.qw, "logits", "-m", path, "--tokens", ids, "-o", out, *options], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        return (np.load(out), "") if done.returncode == 0 else (None, done.stderr)


def apart(a, b):
    """Largest difference, in parts of the largest number."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def check_model(run, kind, model):
    """Values, then one scale left out after the other."""
    stored, plain = f"{run.folder}/{kind}.gguf", f"{run.folder}/{kind}-f32.gguf"
    model.write(stored)
    model.write(plain, floats=True)
    for mode in (["--exact"], []):
        (a, said), (b, _) = run.logits(stored, *mode), run.logits(plain, *mode)
        limit = LIMIT if mode else 1e-3  # keys and values of 16 bits round either way
        run.check(a is not None and apart(a, b) < limit,
                  f"{kind} {mode}: {said if a is None else f'{apart(a, b):.2g} off, limit {limit:g}'}")
    want = run.logits(stored, "--exact")[0]
    for name in model.matrices:
        if not model.dense and name.endswith(("attn_q", "attn_k")):
            continue  # normed head by head: their scales cancel out
        model.write(f"{run.folder}/less.gguf", without=name)
        less, said = run.logits(f"{run.folder}/less.gguf", "--exact")
        run.check(less is not None and apart(less, want) > SEEN, f"{kind}: nothing changes without {name}.scale {said}")
    requantised = f"{run.folder}/{kind}-q8_0.gguf"
    subprocess.run([*run.qw, "quantize", stored, requantised, "Q8_0", "--requantize"], stdout=subprocess.DEVNULL, check=False)
    again, said = run.logits(requantised, "--exact")
    run.check(again is not None and SEEN / 100 < apart(again, want) < 0.1, f"{kind}: requantised: {said}")


def check_steps(run, model):
    """`qw imatrix` computes experts one by one: what goes into each matrix is the same."""
    sums = []
    for floats in (False, True):
        path, out = f"{run.folder}/steps.gguf", f"{run.folder}/steps-{floats}.imatrix"
        model.write(path, floats)
        done = subprocess.run([*run.qw, "imatrix", "-m", path, "-f", f"{FIXTURES}/text-mixed.txt", "-o", out, "-c", "256",
                               "--exact"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        run.check(done.returncode == 0, f"qw imatrix: {done.stderr}")
        sums.append({t.name: t.data for t in GGUFReader(out).tensors if t.name.endswith(".in_sum2")})
    run.check(len(sums[0]) == 16 and sums[0].keys() == sums[1].keys(), f"qw imatrix: {sorted(sums[0])}")
    for name, x in sums[0].items():
        run.check(apart(x, sums[1][name]) < 1e-3, f"qw imatrix: {name} is {apart(x, sums[1][name]):.2g} off")


def check_odd_ones(run, model):
    """Scales that do not fit, and those for inputs."""
    path, want = f"{run.folder}/odd.gguf", None
    model.write(path)
    want = run.logits(path)[0]
    inputs = {name + ".input_scale": np.full(len(s), 0.25, np.float32) for name, s in model.scales.items()}
    model.write(path, more=inputs)
    run.check(np.array_equal(run.logits(path)[0], want), "scales of inputs change something")
    down = "blk.1.ffn_down_exps.scale"
    for value, said in ((np.ones(EXPERTS + 1, np.float32), f"{down}: want [{EXPERTS}], file has [{EXPERTS + 1}]"),
                        (np.array([1, np.nan, 1], np.float32), f"{down}: number 1 is not finite"),
                        (np.ones((1, EXPERTS), np.float32), f"{down}: want [{EXPERTS}]"),
                        (np.ones(EXPERTS, np.int32), f"{down}")):
        model.write(path, more={down: value})
        logits, error = run.logits(path)
        run.check(logits is None and said in error, f"want '{said}', have '{error.strip()}'")
    model.write(path, more={"blk.0.attn_norm.scale": np.ones(1, np.float32)})
    logits, error = run.logits(path)
    run.check(logits is None and "blk.0.attn_norm.scale is not part of" in error, f"a scale of a vector: '{error.strip()}'")


def main():
    """All checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--seed", type=int, default=20261129)
    args = parser.parse_args()
    print(f"seed {args.seed}")
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args.qw, folder)
        data = random_nvfp4(rng, 50, 192)
        run.check(np.array_equal(from_nvfp4(data, 192), dequantize(data, T.NVFP4)), "the definition here is not gguf's")
        for kind in ("dense", "tied", "experts", "joined"):
            check_model(run, kind, Model(rng, kind))
        check_steps(run, Model(rng, "experts"))
        check_odd_ones(run, Model(rng, "experts"))
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
