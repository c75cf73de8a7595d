#!/usr/bin/env python3
"""Checks `qw quantize` and `qw imatrix` with files made here, against what llama.cpp chooses and what the `gguf` package reads.

Use:   quantize.py --qw build/qw [--seed N]
       quantize.py --make PYTHON       # tests/fixtures/quant_types.json again; PYTHON: of the environment "peer"

Small models of every kind that the choice of types looks at (layers, shared heads, experts, tied embeddings, odd row
lengths): the type of every tensor for every mix must be llama.cpp's, as recorded in the fixture. Then what is in the
file: rows decode near the original, what stays is the same bytes, keys are kept, importances lower the error that they
weigh, a second run gives the same bytes. And what must not happen: a quantised source without --requantize, a file
overwritten, something left after an interruption. Measured importances are compared with the formula where it is short: the
first layer's inputs are the normed embeddings, and those of its experts too where attention adds nothing. Needs: gguf, numpy.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from folders import Folder
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from folders import Folder

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURE = os.path.join(ROOT, "tests", "fixtures", "quant_types.json")
# Mixes and their general.file_type.
MIXES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
         "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
         "F16": 1, "BF16": 32}
WEIGHTED = ["Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS"]  # where importances change the choice of types
# Largest relative error (RMS) of normal data; docs/blocks.md.
BOUNDS = {T.Q4_0: 0.09, T.Q4_1: 0.081, T.Q5_0: 0.045, T.Q5_1: 0.04, T.Q8_0: 0.006, T.Q2_K: 0.265, T.Q3_K: 0.147,
          T.Q4_K: 0.072, T.Q5_K: 0.0355, T.Q6_K: 0.0175, T.IQ4_NL: 0.075, T.IQ4_XS: 0.0755, T.F16: 0.0003,
          T.BF16: 0.0018}
# name: architecture, layers, width, heads, key heads, experts, tied
MODELS = {
    "dense": ("qwen2", 19, 256, 4, 2, 0, False),
    "shared heads": ("qwen2", 8, 256, 8, 2, 0, True),
    "odd rows": ("qwen2", 5, 96, 6, 2, 0, False),
    "odd rows, tied": ("qwen2", 5, 96, 6, 2, 0, True),
    "80 layers": ("qwen2", 80, 256, 8, 1, 0, False),
    "experts": ("qwen3moe", 17, 256, 8, 2, 4, False),
    "small": ("qwen2", 2, 256, 4, 2, 0, False),
    "small, odd rows": ("qwen2", 2, 96, 6, 2, 0, False),
    "small, experts": ("qwen3moe", 1, 256, 8, 2, 3, True),
}


def tensors_of(arch, n_layers, width, n_heads, n_kv, n_experts, tied):
    """(name, shape with the row length last) of a model; feed-forward 256 wide, vocabulary 64."""
    head, ffn = 32, 256
    yield "token_embd.weight", (64, width)
    yield "output_norm.weight", (width,)
    if not tied:
        yield "output.weight", (64, width)
    # Layers backwards: "the first layers" is not the order of the file.
    for layer in reversed(range(n_layers)):
        b = f"blk.{layer}."
        yield b + "attn_norm.weight", (width,)
        yield b + "attn_q.weight", (n_heads * head, width)
        yield b + "attn_k.weight", (n_kv * head, width)
        yield b + "attn_v.weight", (n_kv * head, width)
        yield b + "attn_output.weight", (width, n_heads * head)
        yield b + "ffn_norm.weight", (width,)
        if n_experts:
            yield b + "attn_q_norm.weight", (head,)
            yield b + "ffn_gate_inp.weight", (n_experts, width)
            for part, shape in (("gate", (ffn, width)), ("up", (ffn, width)), ("down", (width, ffn))):
                yield b + f"ffn_{part}_exps.weight", (n_experts, *shape)
        else:
            for part, shape in (("gate", (ffn, width)), ("up", (ffn, width)), ("down", (width, ffn))):
                yield b + f"ffn_{part}.weight", shape


def make_model(path, name, rng, as_type=T.F32):
    """Writes a model of random numbers; returns {tensor: floats}."""
    arch, n_layers, width, n_heads, n_kv, n_experts, _ = MODELS[name]
    writer, floats = GGUFWriter(path, arch), {}
    writer.add_block_count(n_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(256)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    writer.add_file_type(0)
    if n_experts:
        writer.add_expert_count(n_experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(256)
    writer.add_tokenizer_model("none")
    writer.add_array("test.texts", ["one", "two", "drei"])
    for tensor, shape in tensors_of(*MODELS[name]):
        x = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        floats[tensor] = x
        if len(shape) > 1 and as_type != T.F32:
            writer.add_tensor(tensor, quantize(x, as_type), raw_dtype=as_type)
        else:
            writer.add_tensor(tensor, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return floats


def write_importances(path, floats, rng):
    """An importance file as llama.cpp writes it, for all matrices but the embedding; returns {tensor: mean squares}."""
    writer, means = GGUFWriter(path, ""), {}
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_array("imatrix.datasets", ["made up"])
    for name, x in floats.items():
        if x.ndim < 2 or name == "token_embd.weight":
            continue
        n = x.shape[0] if x.ndim == 3 else 1
        mean = np.exp(rng.standard_normal((n, x.shape[-1])) * 2).astype(np.float32)
        counts = np.full((n, 1), 64, dtype=np.float32)
        writer.add_tensor(name + ".in_sum2", mean * counts)
        writer.add_tensor(name + ".counts", counts)
        means[name] = mean
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return means


# ---- the fixture: what llama.cpp chooses -----------------------------------------------------------


def by_layers(types):
    """{tensor: type} as {name without the layer: "2*Q6_K 3*Q4_K", in the order of the layers}. Without what stays F32."""
    runs = {}
    for name in sorted(types, key=lambda n: (int(n.split(".")[1]) if n.startswith("blk.") else -1, n)):
        short, kind = name.split(".", 2)[2] if name.startswith("blk.") else name, types[name]
        if kind == "F32":
            continue
        seen = runs.setdefault(short, [])
        if seen and seen[-1][1] == kind:
            seen[-1][0] += 1
        else:
            seen.append([1, kind])
    return {short: " ".join(f"{n}*{kind}" for n, kind in seen) for short, seen in runs.items()}


def make_fixture(python, seed):
    """Has llama.cpp quantise every model to every mix, and records the types."""
    rng, types = np.random.default_rng(seed), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            source, out = f"{folder}/in.gguf", f"{folder}/out.gguf"
            floats = make_model(source, name, rng)
            sizes = {t: x.shape[-1] * (x.shape[0] if x.ndim == 3 else 1) for t, x in floats.items() if x.ndim > 1}
            for mix, weights in [(mix, {}) for mix in MIXES] + [(mix, sizes) for mix in WEIGHTED]:
                subprocess.run([python, "-c", PEER, source, out, str(MIXES[mix])], check=True, text=True,
                               input=json.dumps(weights), stderr=subprocess.DEVNULL)
                key = mix + (" with importances" if weights else "")
                types.setdefault(name, {})[key] = by_layers({t.name: t.tensor_type.name for t in GGUFReader(out).tensors})
    text = json.dumps(types, indent=0, sort_keys=True)
    with open(FIXTURE, "w", encoding="ascii") as file:
        file.write(text + "\n")


# ---- the checks ------------------------------------------------------------------------------------

class Run:
    """Counts, and calls the program."""

    def __init__(self, qw, folder):
        self.qw, self.folder = qw.split(), folder
        self.passed = self.failed = 0

    def check(self, ok, line):
        """One test; `line` is printed when it fails."""
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        if not ok:
            print(f"FAIL {line}")

    def quantize(self, source, out, mix, *more):
        """Exit code and error text."""
        done = subprocess.run([*self.qw, "quantize", source, out, mix, *more], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stderr


def rms(x, y, w=1.0):
    """Relative error of y, weighted."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.sqrt((w * (x - y) ** 2).sum() / (w * x ** 2).sum()))


def decoded(tensor, shape):
    """Floats of a tensor of a GGUFReader."""
    return dequantize(np.ascontiguousarray(tensor.data), tensor.tensor_type).reshape(shape)


def check_types(run, name, source, want, more):
    """Every mix of one model, without writing: the types are llama.cpp's."""
    for key in want:
        mix = key.split()[0]
        done = subprocess.run([*run.qw, "quantize", source, "none", mix, "--dry-run", *(more if mix != key else [])],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
        types = by_layers({tensor: kind for tensor, _, kind in rows})
        wrong = {t: (types.get(t), want[key][t]) for t in want[key] if types.get(t) != want[key][t]}
        run.check(done.returncode == 0 and not wrong and len(types) == len(want[key]),
                  f"{name}, {key}: exit {done.returncode}, types (ours, llama.cpp's): {wrong or types} {done.stderr}")


def check_mix(run, name, mix, source, floats):
    """One mix of one model: values and keys."""
    out = f"{run.folder}/{mix}.gguf"
    code, said = run.quantize(source, out, mix)
    run.check(code == 0, f"{name}, {mix}: exit {code}: {said}")
    if code:
        return
    reader = GGUFReader(out)
    run.check(sorted(t.name for t in reader.tensors) == sorted(floats), f"{name}, {mix}: the tensors are others")
    for t in reader.tensors:
        x = floats[t.name]
        error = rms(x, decoded(t, x.shape))
        run.check(error <= BOUNDS.get(t.tensor_type, 0.0) * 1.05,
                  f"{name}, {mix}: {t.name} ({t.tensor_type.name}) has error {error:.4f}")
    fields = reader.fields
    run.check(fields["general.file_type"].contents() == MIXES[mix], f"{name}, {mix}: file type")
    run.check(fields["general.quantization_version"].contents() == 2, f"{name}, {mix}: quantisation version")
    run.check(fields["test.texts"].contents() == ["one", "two", "drei"], f"{name}, {mix}: an array of texts is lost")
    os.unlink(out)


def check_importances(run, source, floats, means):
    """Importances are used, for each expert its own; the embedding has none and that is said."""
    imatrix, plain, weighted = (f"{run.folder}/{n}.gguf" for n in ("imatrix", "plain", "weighted"))
    run.check(run.quantize(source, plain, "Q4_K_S", "--replace")[0] == 0, "importances: plain")
    code, said = run.quantize(source, weighted, "Q4_K_S", "--imatrix", imatrix, "--replace")
    run.check(code == 0 and "token_embd.weight" in said, f"importances: exit {code}, {said!r}")
    first = {t.name: t for t in GGUFReader(plain).tensors}
    second = {t.name: t for t in GGUFReader(weighted).tensors}
    for name, mean in means.items():
        x = floats[name]
        if first[name].tensor_type != second[name].tensor_type or first[name].tensor_type == T.F32:
            continue
        w = mean.reshape(*mean.shape[:1], 1, -1) if x.ndim == 3 else mean
        a, b = (rms(x, decoded(t[name], x.shape), np.broadcast_to(w, x.shape)) for t in (first, second))
        run.check(b < 0.95 * a, f"importances: {name}: weighted error {a:.4f} without, {b:.4f} with them")
    code, said = run.quantize(source, weighted, "Q4_K_S", "--imatrix", source, "--replace")
    run.check(code == 1 and "not an importance matrix" in said or "general.type" in said,
              f"importances: a model in their place: exit {code}, {said!r}")


def check_refusals(run, source, rng):
    """What must not happen, and leaves nothing."""
    out, old = f"{run.folder}/new.gguf", f"{run.folder}/q4_0.gguf"
    make_model(old, "small", rng, T.Q4_0)
    code, said = run.quantize(old, out, "Q4_K_M")
    run.check(code == 2 and "--requantize" in said and not os.path.exists(out), f"quantised source: {code}, {said!r}")
    run.check(run.quantize(old, out, "Q4_K_M", "--requantize")[0] == 0, "--requantize")
    with open(out, "rb") as file:
        before = file.read()
    code, said = run.quantize(source, out, "Q8_0")
    with open(out, "rb") as file:
        run.check(code == 2 and file.read() == before, f"a file with the name: {code}, {said!r}")
    run.check(run.quantize(source, out, "Q8_0", "--replace", "-t", "1")[0] == 0, "--replace")
    with open(out, "rb") as file:
        before = file.read()
    run.check(run.quantize(source, out, "q8_0", "--replace", "-t", "3")[0] == 0, "--replace, three threads")
    with open(out, "rb") as file:
        run.check(file.read() == before, "the bytes depend on the threads")
    run.check(run.quantize(source, out, "Q9_9")[0] == 2, "an unknown type")
    bad = f"{run.folder}/nan.gguf"
    floats = make_model(bad, "odd rows", rng)
    at = GGUFReader(bad, "r+").tensors
    next(t for t in at if t.name == "blk.1.ffn_up.weight").data[3, 5] = np.nan
    del at
    code, said = run.quantize(bad, out + "2", "Q4_0")
    run.check(code == 1 and "blk.1.ffn_up.weight" in said and "row 3" in said and not os.path.exists(out + "2"),
              f"a value that is no number: {code}, {said!r}")
    del floats


def check_interruption(run, source):
    """Ctrl-C in the middle: exit 1, no file and no piece of one."""
    folder = f"{source}-interrupted"
    os.mkdir(folder)
    process = subprocess.Popen([*run.qw, "quantize", source, f"{folder}/out.gguf", "Q5_K_M", "-t", "1"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not is_caught(process.pid):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    run.check(process.returncode == 1 and "interrupted" in said and not os.listdir(folder),
              f"{source} interrupted: exit {process.returncode}, {said!r}, left {os.listdir(folder)}")


def check_imatrix(run):
    """Sums of the first layer's inputs, which are the normed embeddings; what is there; that qw quantize takes it."""
    model, text = os.path.join(ROOT, "tests/fixtures/tiny-f32.gguf"), os.path.join(ROOT, "tests/fixtures/text-mixed.txt")
    out, window = f"{run.folder}/measured.gguf", 64
    with open(text, "rb") as file:
        data = file.read(6000).decode("utf-8", "ignore").encode()
    with open(f"{run.folder}/text.txt", "wb") as file:
        file.write(data)
    done = subprocess.run([*run.qw, "imatrix", "-m", model, "-f", f"{run.folder}/text.txt", "-o", out, "-c", str(window),
                           "--exact"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    run.check(done.returncode == 0, f"imatrix: exit {done.returncode}: {done.stderr}")
    if done.returncode:
        return
    ids = json.loads(subprocess.run([*run.qw, "tokenize", "--json", "-m", model], input=data, stdout=subprocess.PIPE,
                                    check=True).stdout)
    ids = ids[:len(ids) // window * window]
    weights = {t.name: t for t in GGUFReader(model).tensors}
    reader = GGUFReader(out)
    measured = {t.name: t for t in reader.tensors}
    run.check(reader.fields["general.type"].contents() == "imatrix", "imatrix: general.type")
    run.check(reader.fields["imatrix.chunk_count"].contents() == len(ids) // window, "imatrix: chunks")
    run.check(reader.fields["imatrix.chunk_size"].contents() == window, "imatrix: size of a chunk")
    for name, tensor in weights.items():
        if len(tensor.shape) < 2 or not name.startswith("blk."):
            continue
        k, sums, counts = int(tensor.shape[0]), measured.get(name + ".in_sum2"), measured.get(name + ".counts")
        run.check(sums is not None and counts is not None and list(sums.shape) == [k, 1] and list(counts.shape) == [1, 1]
                  and float(counts.data.reshape(-1)[0]) == len(ids) and bool((sums.data > 0).all()),
                  f"imatrix: {name}: not there, or of another shape or count")
    x = weights["token_embd.weight"].data[ids].astype(np.float64)
    eps = float(GGUFReader(model).fields["qwen2.attention.layer_norm_rms_epsilon"].contents())
    x = x / np.sqrt((x ** 2).mean(axis=1, keepdims=True) + eps) * weights["blk.0.attn_norm.weight"].data
    got, want = measured["blk.0.attn_q.weight.in_sum2"].data.reshape(-1), (x ** 2).sum(axis=0)
    run.check(bool(np.allclose(got, want, rtol=1e-4)), f"imatrix: blk.0.attn_q: up to {np.abs(got / want - 1).max():.2g} off")
    code, said = run.quantize(model, f"{run.folder}/weighted.gguf", "Q4_0", "--imatrix", out, "--replace")
    run.check(code == 0, f"quantize with what was measured: exit {code}: {said}")


def expert_inputs(folder, ids):
    """{part: (sums [experts, k], counts [experts])} of the first layer's experts, whose input is the normed embedding."""
    p = "model.layers.0."
    of = lambda name: folder.tensors[name + ".weight"].floats().astype(np.float64)
    x = of("model.embed_tokens")[ids]
    x = x / np.sqrt((x ** 2).mean(axis=1, keepdims=True) + 1e-5) * of(p + "post_attention_layernorm")
    chosen = np.argsort(-x @ of(p + "mlp.gate").T, axis=1)[:, :folder.used]
    sums = {"up": [], "gate": [], "down": []}
    for e in range(folder.experts):
        rows = x[(chosen == e).any(axis=1)]
        gate, up = (rows @ of(f"{p}mlp.experts.{e}.{a}_proj").T for a in ("gate", "up"))
        inner = gate / (1 + np.exp(-gate)) * up
        for part in sums:
            sums[part].append(((inner if part == "down" else rows) ** 2).sum(axis=0))
    return {part: (np.array(s), np.bincount(chosen.reshape(-1), minlength=folder.experts)) for part, s in sums.items()}


def check_imatrix_experts(run, rng):
    """A folder with experts, --exact: each has the sums of the rows that chose it, in a folder as in its file."""
    model, text, out = (f"{run.folder}/{n}" for n in ("moe", "moe.txt", "moe-imatrix.gguf"))
    folder, window = Folder(rng, "qwen3_moe", experts=6, used=2, norm_topk=True), 32
    folder.tensors["model.layers.0.self_attn.o_proj.weight"].array[:] = 0  # attention adds nothing to the first layer
    folder.write(model)
    data = bytes(rng.integers(32, 127, 500, dtype=np.uint8))
    with open(text, "wb") as file:
        file.write(data)
    subprocess.run([*run.qw, "convert", "-q", model, model + ".gguf"], check=True)
    ids = json.loads(subprocess.run([*run.qw, "tokenize", "--json", "-m", model], input=data, stdout=subprocess.PIPE,
                                    check=True).stdout)
    ids = ids[:len(ids) // window * window]
    want = expert_inputs(folder, ids)
    for source in (model, model + ".gguf"):
        done = subprocess.run([*run.qw, "imatrix", "-m", source, "-f", text, "-o", out, "-c", str(window), "--exact",
                               "--replace"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        run.check(done.returncode == 0, f"imatrix, experts: exit {done.returncode}: {done.stderr}")
        measured = {t.name: t.data for t in GGUFReader(out).tensors} if done.returncode == 0 else {}
        for part, (sums, counts) in want.items():
            name = f"blk.0.ffn_{part}_exps.weight"
            got, n = measured.get(name + ".in_sum2"), measured.get(name + ".counts")
            run.check(got is not None and n is not None and got.shape == sums.shape and bool((n.reshape(-1) == counts).all())
                      and bool(np.allclose(got, sums, rtol=1e-4)), f"imatrix, experts: {os.path.basename(source)}: {name}")
    run.check(min(want["up"][1]) > 0 and len(set(want["up"][1])) > 1, "imatrix, experts: the text leaves experts out")
    code, said = run.quantize(model + ".gguf", f"{run.folder}/moe-q.gguf", "Q4_0", "--imatrix", out)
    run.check(code == 0, f"quantize with importances of experts: exit {code}: {said}")


def is_caught(pid):
    """Whether the process has a handler for SIGINT by now."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            caught = next(line for line in file if line.startswith("SigCgt:")).split()[1]
    except (OSError, StopIteration):
        return False
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


def main():
    """All checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--qw", help="the program")
    parser.add_argument("--make", metavar="PYTHON", help="write the fixture anew with this Python's llama_cpp")
    parser.add_argument("--seed", type=int, default=20240607)
    args = parser.parse_args()
    if args.make:
        make_fixture(args.make, args.seed)
        return 0
    print(f"seed {args.seed}")
    rng = np.random.default_rng(args.seed)
    with open(FIXTURE, encoding="ascii") as file:
        types = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args.qw, folder)
        for name in MODELS:
            source = f"{folder}/in.gguf"
            floats = make_model(source, name, rng)
            means = write_importances(f"{folder}/imatrix.gguf", floats, rng)
            check_types(run, name, source, types[name], ["--imatrix", f"{folder}/imatrix.gguf"])
            if name.startswith("small"):
                for mix in MIXES:
                    check_mix(run, name, mix, source, floats)
                check_importances(run, source, floats, means)
        check_refusals(run, source, rng)
        make_model(f"{folder}/80.gguf", "80 layers", rng)
        check_interruption(run, f"{folder}/80.gguf")
        Folder(rng, "qwen3", hidden=1024, layers=60).write(f"{folder}/60 layers")
        check_interruption(run, f"{folder}/60 layers")
        check_imatrix(run)
        check_imatrix_experts(run, rng)
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
