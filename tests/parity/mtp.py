#!/usr/bin/env python3
"""Multi-token prediction against its formula in numpy, on tiny random models.

Use:   python3 tests/parity/mtp.py --qw build/qw FILE.gguf...

The official implementation leaves the layer out, so the formula is written here once more, in float64, from the description
(Qwen3-Next; DeepSeek-V3 technical report): x = Wjoin [norm(embedding of the next token); norm(hidden state)], one layer with
gated attention and experts where the model has them, a norm, the head. Each FILE, of a family with delta-nets, gets a random
block for it, like its last layer with attention; hidden states come from `qw logits --exact` by least squares with the head.
Compared: `qw logits --exact --mtp` at every position. Mutants (the halves of Wjoin exchanged; no shared expert) must be noticed.
Prints `N passed, M failed`; exit code 0 when all pass.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import common

LIMIT = 2e-3  # hidden states come back through least squares
SEED = 20261128


def run_logits(qw, path, tokens, *more):
    """Logits of a token list."""
    import numpy
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.npy")
        run = subprocess.run([qw, "logits", "-m", path, "--tokens", ",".join(map(str, tokens)), "-o", out, "--exact", *more],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if run.returncode != 0:
            common.fail(f"qw logits ended with exit code {run.returncode}: {run.stderr.strip()}")
        return numpy.load(out).astype(numpy.float64)


class File:
    """Keys and float tensors of a GGUF file, slowest dimension first."""

    def __init__(self, path):
        import gguf
        import numpy
        reader = gguf.GGUFReader(path)
        self.tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float32).reshape(t.shape[::-1])
                        for t in reader.tensors}
        self.fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.arch = self.get("general.architecture")

    def get(self, key):
        return self.fields[key].contents()

    def number(self, key):
        return self.get(f"{self.arch}.{key}")

    def write(self, path, changed):
        import gguf
        writer = gguf.GGUFWriter(path, self.arch)
        for name, field in self.fields.items():
            if name == "general.architecture":
                continue
            value = changed.get(name, field.contents())
            kind = field.types[0]
            writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
        for name, value in changed.items():
            if name not in self.fields:
                writer.add_uint32(name, value)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def add_block(file, generator):
    """A random block behind the layers; returns its number."""
    import numpy
    n = file.number("block_count")
    hidden = file.number("embedding_length")
    last = [f"blk.{i}." for i in range(n) if f"blk.{i}.attn_q.weight" in file.tensors][-1]  # of those with attention
    shapes = {name[len(last):]: tensor.shape for name, tensor in file.tensors.items() if name.startswith(last)}
    shapes.update({"nextn.eh_proj.weight": (hidden, 2 * hidden), "nextn.enorm.weight": (hidden,),
                   "nextn.hnorm.weight": (hidden,), "nextn.shared_head_norm.weight": (hidden,)})
    for name, shape in shapes.items():
        values = generator.standard_normal(shape)
        is_norm = len(shape) == 1 and "shexp" not in name
        values = 1 + 0.3 * values if is_norm else values * 1.5 / numpy.sqrt(shape[-1])
        file.tensors[f"blk.{n}.{name}"] = values.astype(numpy.float32)
    return n


def sigmoid(x):
    import numpy
    return 1 / (1 + numpy.exp(-x))


def swiglu(y, gate, up, down):
    g = y @ gate.T
    return (g * sigmoid(g) * (y @ up.T)) @ down.T


def experts(file, b, y, shared):
    """The block's feed-forward part with its own routing: of the softmax over all experts the largest, made to sum to 1 where the
    model does that."""
    import numpy
    n_used, key = file.number("expert_used_count"), f"{file.arch}.expert_weights_norm"
    scores = y @ b["ffn_gate_inp.weight"].T
    p = numpy.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = numpy.zeros_like(y)
    for row in range(len(y)):
        used = numpy.argsort(-p[row])[:n_used]
        total = p[row, used].sum() if key not in file.fields or file.get(key) else 1.0
        for e in used:
            parts = (b[f"ffn_{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            out[row] += swiglu(y[row], *parts) * p[row, e] / total
    if shared:
        parts = (b[f"ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
        out += swiglu(y, *parts) * sigmoid(y @ b["ffn_gate_inp_shexp.weight"].reshape(-1))[:, None]
    return out


def reference(file, block, tokens, hidden, exchanged=False, shared=True):
    """Logits of the block at all positions but the last, float64."""
    import numpy
    t = {name: tensor.astype(numpy.float64) for name, tensor in file.tensors.items()}
    b = {name[len(f"blk.{block}."):]: tensor for name, tensor in t.items() if name.startswith(f"blk.{block}.")}
    eps = file.number("attention.layer_norm_rms_epsilon")
    heads, kv_heads = file.number("attention.head_count"), file.number("attention.head_count_kv")
    dim, rot = file.number("attention.key_length"), file.number("rope.dimension_count")
    n = len(tokens) - 1

    def norm(x, w):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + eps) * w

    def rotate(x):
        angle = numpy.arange(n)[:, None] / file.number("rope.freq_base") ** (numpy.arange(0, rot, 2) / rot)
        c, s = numpy.cos(angle)[:, None], numpy.sin(angle)[:, None]
        first, second = x[..., :rot // 2], x[..., rot // 2:rot]
        return numpy.concatenate([first * c - second * s, second * c + first * s, x[..., rot:]], -1)

    halves = [norm(t["token_embd.weight"][tokens[1:]], b["nextn.enorm.weight"]), norm(hidden[:n], b["nextn.hnorm.weight"])]
    x = numpy.concatenate(halves[::-1] if exchanged else halves, -1) @ b["nextn.eh_proj.weight"].T
    y = norm(x, b["attn_norm.weight"])
    q = (y @ b["attn_q.weight"].T).reshape(n, heads, 2 * dim)
    q, gate = q[..., :dim], q[..., dim:]
    k = (y @ b["attn_k.weight"].T).reshape(n, kv_heads, dim)
    v = (y @ b["attn_v.weight"].T).reshape(n, kv_heads, dim)
    q, k = rotate(norm(q, b["attn_q_norm.weight"])), rotate(norm(k, b["attn_k_norm.weight"]))
    k, v = (a.repeat(heads // kv_heads, 1) for a in (k, v))
    scores = numpy.einsum("ihd,jhd->hij", q, k) / numpy.sqrt(dim)
    scores[:, numpy.triu(numpy.ones((n, n), bool), 1)] = -numpy.inf
    weights = numpy.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = numpy.einsum("hij,jhd->ihd", weights, v) * sigmoid(gate)
    x = x + mixed.reshape(n, -1) @ b["attn_output.weight"].T
    y = norm(x, b["post_attention_norm.weight"])
    if "ffn_gate_inp.weight" in b:
        x = x + experts(file, b, y, shared)
    else:
        x = x + swiglu(y, b["ffn_gate.weight"], b["ffn_up.weight"], b["ffn_down.weight"])
    return norm(x, b["nextn.shared_head_norm.weight"]) @ t.get("output.weight", t["token_embd.weight"]).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", default=os.path.join(common.ROOT, "build", "qw"))
    parser.add_argument("files", nargs="+", metavar="FILE.gguf")
    options = parser.parse_args()
    common.check_program(options.qw)
    common.enter("test")
    import numpy
    passed = failed = 0

    def check(what, good, detail):
        nonlocal passed, failed
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)

    print(f"seed {SEED}")
    for path in options.files:
        generator = numpy.random.default_rng(SEED)
        file = File(path)
        if f"{file.arch}.rope.scaling.type" in file.fields:
            common.fail(f"{path}: scaled positions are not part of the formula here")
        name = os.path.basename(path)
        block = add_block(file, generator)
        tokens = generator.integers(0, file.tensors["token_embd.weight"].shape[0], 100)
        with tempfile.TemporaryDirectory() as folder:
            made = os.path.join(folder, "mtp.gguf")
            file.write(made, {f"{file.arch}.block_count": block + 1, f"{file.arch}.nextn_predict_layers": 1})
            logits = run_logits(options.qw, made, tokens)
            got = run_logits(options.qw, made, tokens, "--mtp")
            same = run_logits(options.qw, path, tokens)
        check(f"{name}: its own logits", numpy.array_equal(logits, same), "the block changes none of them")
        head = file.tensors.get("output.weight", file.tensors["token_embd.weight"]).astype(numpy.float64)
        hidden = numpy.linalg.lstsq(head, logits.T, rcond=None)[0].T
        gap = float(numpy.abs(reference(file, block, tokens, hidden) - got).max())
        check(f"{name}: guesses", gap <= LIMIT, f"largest difference {gap:.1e} of {got.std():.2f}, limit {LIMIT:.0e}")
        gap = float(numpy.abs(reference(file, block, tokens, hidden, True) - got).max())
        check(f"{name}: halves exchanged", gap > 100 * LIMIT, f"largest difference {gap:.1e}")
        if f"blk.{block}.ffn_gate_shexp.weight" in file.tensors:
            gap = float(numpy.abs(reference(file, block, tokens, hidden, shared=False) - got).max())
            check(f"{name}: no shared expert", gap > 100 * LIMIT, f"largest difference {gap:.1e}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
