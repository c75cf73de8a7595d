#!/usr/bin/env python3
"""Files that qw makes, in llama.cpp; and files that llama.cpp quantises, in qw.

Use:   python3 tests/parity/convert_peer.py --qw build/qw [--only WORD] [--positions 200] [--threads 2] [--keep FOLDER]

Each row of SHAPES becomes a Hugging Face folder of random weights: the real shape of Qwen3.5-0.8B with its whole vocabulary, and
smaller ones of the other architectures that both programs know. Then, each file in both programs on the same random tokens:

1. what `qw convert` makes of the folder;
2. what `qw quantize` makes of that, in every mix of MIXES;
3. what llama.cpp's quantiser makes of it, in the same mixes; each tensor must have the type that it has in 2.

For every file the best token must be the same at 99% of the positions, and the mean KL divergence a small part of what 4-bit
weights cost on the same model. The small models are also stored in float32, for which llama.cpp computes in float32 too; then `qw logits
--exact` has to be near it at every position.

Runs in the "test" environment, llama.cpp in "peer" (compiled on first use). Needs 12 GB of disk below build/ while it runs.
Prints one line a check and ends with "N passed, M failed"; exit code 0 when nothing failed.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile

import common

SEED = 20261129
TOP1_MIN = 0.99
MIXES = ("Q8_0", "Q6_K", "Q4_K_M")
# Between the programs is the rounding of activations: BF16 there, 8 bits beside quantised weights. Limits of the mean KL, as parts of
# what the rounding of weights to Q4_K_M costs on the same model, which has to be this much at least.
BF16_SHARE, QUANTISED_SHARE, COST_MIN = 0.01, 0.1, 1e-3
FLOAT_MAX = 1e-3  # largest difference of logits where both compute in float32
WRITERS = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")  # what they make is added to the residual stream
# A trained model mostly knows what comes next; a random one does not, and rounding would decide between its best tokens. So the
# head expects, after a token, the one with the next number (or, tied to the embedding, the same again), and layers add little
# enough (the shape's gain) for that to be the best token nearly always, and enough for the probabilities to depend on them.
HEAD_SHARE = 0.5
ROUTER_GAIN = 2  # the last expert chosen has little weight then: rounding may choose another one

# Of one size, small enough for many files and large enough for blocks of 256.
SMALL = dict(layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=768, n_tokens=4000, vocab=4096)
EXPERTS = dict(experts=16, used=4, xffn=256, shared_ffn=256)  # llama.cpp's quantiser has rules of its own for 8
HYBRID = dict(SMALL, head_dim=128, key_dim=64, value_dim=64, sections=[6, 5, 5], key_heads=4)
NESTED = dict(nested=True, prefix="model.language_model.", vision=True, mtp=1)
# NAME: model type, sizes as Folder takes them, and of the vocabulary the number of tokens (None: all of it)
SHAPES = {
    "qwen3.5-0.8b": ("qwen3_5", dict(
        NESTED, layers=24, hidden=1024, heads=8, kv_heads=2, head_dim=256, ffn=3584, key_heads=16, ratio=1, key_dim=128,
        value_dim=128, sections=[11, 11, 10], tied=True, n_tokens=None, vocab=248320, gain=0.45, rope={"rope_theta": 1e7})),
    "qwen2": ("qwen2", dict(SMALL, tied=True, gain=0.55)),
    "qwen2moe": ("qwen2_moe", dict(SMALL, **EXPERTS, norm_topk=False, gain=0.4)),
    "qwen3": ("qwen3", dict(SMALL, gain=0.85)),
    "qwen3moe": ("qwen3_moe", dict(SMALL, **EXPERTS, norm_topk=True, gain=0.4)),
    "qwen3next": ("qwen3_next", dict(HYBRID, **EXPERTS, ratio=2, gain=0.4)),
    "qwen35-r3": ("qwen3_5", dict(HYBRID, **NESTED, ratio=3, gain=0.8)),
    "qwen35moe": ("qwen3_5_moe", dict(HYBRID, **NESTED, **EXPERTS, ratio=2, layout="fused", gain=0.4)),
}


@functools.cache
def shaped_folder():
    """Folder of folders.py with weights that keep every part of a deep model audible, and a real vocabulary."""
    import numpy
    import make_families
    from folders import Folder, Tensor, to_bf16
    from text_common import Vocabulary

    class Shaped(Folder):
        def store(self, name, *shape, scale=None, dtype=None):
            config = {"tie_word_embeddings": self.tied, **({"linear_num_key_heads": self.nk} if self.hybrid else {})}
            mean, deviation = make_families.spread(name, shape, config)
            if name.endswith(WRITERS):
                deviation *= self.o["gain"] / numpy.sqrt(2 * self.layers)
            if name.endswith("mlp.gate.weight"):
                deviation *= ROUTER_GAIN
            out = numpy.empty(shape, dtype=numpy.uint16 if self.dtype == "BF16" else numpy.float32)
            step = max(1, (1 << 22) * shape[0] // out.size)
            for at in range(0, shape[0], step):  # some memory at a time
                x = self.rng.standard_normal((min(step, shape[0] - at), *shape[1:]), dtype=numpy.float32)
                x = x * numpy.float32(deviation) + numpy.float32(mean)
                out[at:at + step] = to_bf16(x) if self.dtype == "BF16" else x
            self.tensors[name] = Tensor(self.dtype, out)
            if name == "lm_head.weight":
                self.expect_next(deviation)

        def expect_next(self, deviation):
            """Mixes into the head's row of each token the embedding of the one before it."""
            head, embedding = (self.tensors[n].floats() for n in ("lm_head.weight", self.prefix + "embed_tokens.weight"))
            mixed = HEAD_SHARE * deviation * numpy.roll(embedding, 1, axis=0) + numpy.sqrt(1 - HEAD_SHARE ** 2) * head
            self.tensors["lm_head.weight"] = Tensor(self.dtype, to_bf16(mixed) if self.dtype == "BF16" else mixed.astype(numpy.float32))

        def write_text(self, path):
            pre = "qwen35" if self.tiled else "qwen2"
            Vocabulary.of_ranks(pre, self.o["n_tokens"]).official(pre).save(os.path.join(path, "tokenizer.json"))
            with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="ascii") as file:
                json.dump({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, file)

    return Shaped


class Bench:
    """Both programs, and where their files lie."""

    def __init__(self, options, work, count):
        self.qw, self.threads, self.positions = options.qw.split(), options.threads, options.positions
        self.work, self.count, self.peer = work, count, common.venv_python("peer")
        self.tokens = os.path.join(work, "tokens.txt")

    def run(self, what, command):
        """True when it ended well; else a failed check."""
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        last = (run.stderr.strip().splitlines() or ["(no message)"])[-1]
        return run.returncode == 0 or self.count.check(False, f"{what}: exit code {run.returncode}: {last}")

    def script(self, name, *arguments):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        return [self.peer, path, *arguments, "--threads", str(self.threads)]

    def ours(self, model, name="ours", exact=False):
        """Logits of qw, or None."""
        return common.run_qw(" ".join(self.qw), model, self.tokens, self.positions, os.path.join(self.work, name + ".npy"),
                             self.threads, exact)

    def theirs(self, model, *more):
        """Logits of llama.cpp, or None."""
        import numpy
        out = os.path.join(self.work, "theirs.npy")
        done = self.run(f"llama.cpp on {os.path.basename(model)}", self.script(
            "llama_logits.py", "--model", model, "--tokens", self.tokens, "--out", out, *more))
        return numpy.load(out, mmap_mode="r") if done else None

    def agree(self, what, model, kl_max):
        """One file in both programs; how far each is from float32 arithmetic on the same weights is said, too."""
        a, b, exact = self.ours(model), self.theirs(model), self.ours(model, "exact", exact=True)
        if a is None or b is None or exact is None or a.shape != b.shape:
            self.count.check(False, f"{what}: no logits of one shape")
            return
        d, off = common.distances(b, a), [float(common.distances(exact, x)["kl"].mean()) for x in (a, b)]
        top, kl = float(d["same_top"].mean()), float(d["kl"].mean())
        self.count.check(top >= TOP1_MIN and kl <= kl_max, f"{what}: top-1 {100 * top:.1f}%, mean KL {kl:.1e} (limit {kl_max:.1e}), "
                         f"max |d| {d['max_abs']:.3f}; KL from float32 arithmetic {off[0]:.1e}, llama.cpp's {off[1]:.1e}")


def types_of(path):
    """{tensor: type}."""
    from gguf import GGUFReader
    return {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}


def check_quantised(bench, name, mix, plain, ours, cost):
    """Both quantisers' files of one mix in both programs."""
    from quantize import MIXES as FILE_TYPES
    theirs = os.path.join(bench.work, "theirs.gguf")
    bench.agree(f"{name}, {mix} by qw", ours, QUANTISED_SHARE * cost)
    if not bench.run(f"{name}: llama.cpp's {mix}", bench.script("llama_quantize.py", plain, theirs, str(FILE_TYPES[mix]))):
        return
    a, b = types_of(ours), types_of(theirs)
    other = [f"{t}: {a.get(t)}, {b.get(t)}" for t in sorted(a.keys() | b.keys()) if a.get(t) != b.get(t)]
    bench.count.check(not other, f"{name}, {mix}: types of {len(a)} tensors: {'; '.join(other[:6]) or 'the same'}")
    bench.agree(f"{name}, {mix} by llama.cpp", theirs, QUANTISED_SHARE * cost)


def check_files(bench, name, plain):
    """The converted file and all that is made of it."""
    import numpy
    made = {mix: os.path.join(bench.work, f"{mix}.gguf") for mix in MIXES}
    if not all([bench.run(f"{name}: qw quantize {mix}", [*bench.qw, "quantize", plain, path, mix]) for mix, path in made.items()]):
        return
    reference = bench.ours(plain, "reference")
    d = common.distances(reference, bench.ours(made["Q4_K_M"]))
    cost = float(d["kl"].mean())
    print(f"     std of logits {reference.std():.2f}, {len(set(reference.argmax(axis=1)))} different best tokens; rounding to Q4_K_M "
          f"costs a KL of {cost:.1e}, top-1 {100 * d['same_top'].mean():.1f}%", flush=True)
    bench.count.check(cost >= COST_MIN and numpy.isfinite(cost), f"{name}: what 4 bits cost can be seen (KL at least {COST_MIN:.0e})")
    bench.agree(f"{name}, converted", plain, BF16_SHARE * cost)
    for mix, path in made.items():
        check_quantised(bench, name, mix, plain, path, cost)


def check_floats(bench, name, rng):
    """The model in float32, where llama.cpp rounds nothing."""
    kind, options = SHAPES[name]
    folder, path = os.path.join(bench.work, "floats"), os.path.join(bench.work, "floats.gguf")
    shaped_folder()(rng, kind, "F32", **options).write(folder)
    if not bench.run(f"{name}: qw convert", [*bench.qw, "convert", "-q", folder, path]):
        return
    a, b = bench.ours(path, exact=True), bench.theirs(path, "--float-cache")
    if a is None or b is None or a.shape != b.shape:
        bench.count.check(False, f"{name}, F32: no logits of one shape")
        return
    d = common.distances(b, a, want_kl=False)
    bench.count.check(d["max_abs"] <= FLOAT_MAX and bool(d["same_top"].all()), f"{name}, F32, --exact: max |d| "
                      f"{d['max_abs']:.1e} (limit {FLOAT_MAX:.0e}), top-1 {100 * d['same_top'].mean():.1f}%")


def check_shape(options, count, name, work):
    """Everything about one model."""
    import numpy
    rng = numpy.random.default_rng([SEED, sorted(SHAPES).index(name)])
    kind, sizes = SHAPES[name]
    bench = Bench(options, work, count)
    folder, plain = os.path.join(work, "folder"), os.path.join(work, "plain.gguf")
    made = shaped_folder()(rng, kind, **sizes)
    made.write(folder)
    common.write_tokens(bench.tokens, [int(x) for x in rng.integers(0, sizes["n_tokens"] or 248000, options.positions)])
    print(f"     {name}: {sum(t.array.size for t in made.tensors.values()) / 1e6:.1f} million weights", flush=True)
    del made
    if not bench.run(f"{name}: qw convert", [*bench.qw, "convert", "-q", folder, plain]):
        return
    check_files(bench, name, plain)
    if sizes["n_tokens"]:
        check_floats(bench, name, rng)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--only", default="", help="shapes whose name holds this word")
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", help="an empty folder for what is made")
    options = parser.parse_args()
    common.enter("test")
    common.check_program(options.qw)
    from logits_small import Count
    count = Count()
    print(f"seed {SEED}, {options.positions} random tokens", flush=True)
    os.makedirs(common.WORK, exist_ok=True)
    for name in (name for name in SHAPES if options.only in name):
        with tempfile.TemporaryDirectory(dir=common.WORK) as work:
            os.environ["QW_HOME"] = os.path.join(work, "home")  # packed weights go with the rest
            if options.keep:
                work = os.path.join(options.keep, name)
                os.makedirs(work)
            check_shape(options, count, name, work)
    print(f"{count.passed} passed, {count.failed} failed")
    sys.exit(1 if count.failed or not count.passed else 0)


if __name__ == "__main__":
    main()
