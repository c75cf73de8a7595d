#!/usr/bin/env python3
"""Makes the committed fixtures of tests/fixtures that come from the reference implementation.

Use:   python3 tests/parity/make_fixtures.py --model QWEN2.5-CODER-0.5B.gguf [--only tiny|coder] [--out tests/fixtures]

tiny    Four random models of the qwen2 family, small enough to commit, with a real byte-level BPE vocabulary trained
        here on text-mixed.txt and the chat template of the --model file:
          tiny-f32.gguf       F32, separate output matrix, grouped-query 3:1, padding rows in the vocabulary
          tiny-tied-f16.gguf  F16, no output.weight, 499 rows (an odd number), rope base 1e4, eps 1e-5
          tiny-q4km.gguf      Q4_K, Q6_K, Q5_0, Q8_0 as in a Q4_K_M file
          tiny-mix.gguf       every block format of the project at least once, tied
        and for each NAME: NAME.tokens.json (160 ids) and NAME.logits.npy (float32 [160, vocabulary]).
coder   For the real 0.5B model and text-mixed.txt:
          text-mixed.tokens.json       ids of the whole text, array of numbers
          coder05b.tokens.npy          int32 [4096], the first ids of it
          coder05b.positions.npy       int32 [n], the positions kept below: 0..255, then every 16th
          coder05b.lse.npy             float64 [n], logarithm of the sum of exponentials of all logits
          coder05b.top_ids.npy         int32 [n, 8], best ids, best first;  coder05b.top_logits.npy float32 [n, 8]
          coder05b.sample_ids.npy      int32 [64], fixed pseudo-random ids; coder05b.sample_logits.npy float32 [n, 64]

Logits come from tests/parity/reference.py (transformers, float32, dequantised weights, checked tensor by tensor).
Runs in the "oracle" environment (made on first use, several GB). Seeds are printed; the same seed gives the same file.
"""

import argparse
import json
import os
import sys

import common

N_TINY_TOKENS = 160
N_CODER_TOKENS = 4096
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Per block format: values in a block, bytes, where d and dmin (both f16) lie, and dmin/d that puts the mean near zero.
# Formats the gguf package cannot quantise get random blocks: every bit pattern of quants and sub-scales occurs.
RANDOM_BLOCKS = {"Q2_K": (256, 84, 80, 82, 1.5), "Q3_K": (256, 110, 108, None, 0), "Q4_K": (256, 144, 0, 2, 7.5),
                 "Q5_K": (256, 176, 0, 2, 15.5), "Q6_K": (256, 210, 208, None, 0), "IQ4_NL": (32, 18, 0, None, 0),
                 "IQ4_XS": (256, 136, 0, None, 0)}


def build_tokenizer(vocabulary, merges, added):
    """The tokenizers-package form of a qwen2 vocabulary. added: text -> (id, control?)."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_tokens([tokenizers.AddedToken(text, special=control, normalized=False)
                     for text, (_, control) in sorted(added.items(), key=lambda item: item[1][0])])
    return made


def stored_tokenizer(path):
    """(tokenizer, chat template, added tokens in order with their types) of a GGUF file."""
    import gguf
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {text: i for i, text in enumerate(tokens) if types[i] == NORMAL}
    added = [(text, types[i], i) for i, text in enumerate(tokens) if types[i] in (CONTROL, USER_DEFINED)]
    made = build_tokenizer(vocabulary, merges, {text: (i, kind == CONTROL) for text, kind, i in added})
    wrong = [text for text, _, i in added if made.token_to_id(text) != i]
    if wrong:
        common.fail(f"added token {wrong[0]} got another id than in {os.path.basename(path)}")
    return made, fields["tokenizer.chat_template"].contents(), [(text, kind) for text, kind, _ in added]


def train_vocabulary(text, n_merges, added, n_rows):
    """A small real vocabulary: (tokens, types, merges, tokenizer); n_rows counts padding rows too."""
    import tokenizers
    from tokenizers import pre_tokenizers, trainers
    base = build_tokenizer({}, [], {})
    trainer = trainers.BpeTrainer(vocab_size=256 + n_merges, show_progress=False, special_tokens=[],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    base.train_from_iterator(text.split("\n\n"), trainer)
    model = json.loads(base.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokens = [text for text, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    if len(merges) != n_merges or len(tokens) != 256 + n_merges:
        common.fail(f"the BPE trainer gave {len(tokens)} tokens and {len(merges)} merges")
    types = [NORMAL] * len(tokens)
    ids = {}
    for text, kind in added:
        ids[text] = (len(tokens), kind == CONTROL)
        tokens.append(text)
        types.append(kind)
    for i in range(len(tokens), n_rows):
        tokens.append(f"[PAD{i}]")
        types.append(UNUSED)
    if len(tokens) != n_rows:
        common.fail(f"{len(tokens)} tokens do not fit {n_rows} rows")
    return tokens, types, merges, build_tokenizer(model["vocab"], merges, ids)


def encode(values, kind, rng):
    """(bytes or array for the writer, ggml type) of float32 values [rows, columns] in a block format."""
    import gguf
    import numpy
    ggml_type = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        return values, ggml_type
    if kind == "F16":
        return values.astype(numpy.float16), ggml_type
    if kind not in RANDOM_BLOCKS:
        return gguf.quantize(values, ggml_type), ggml_type
    n_values, n_bytes, at_d, at_dmin, ratio = RANDOM_BLOCKS[kind]
    rows, columns = values.shape
    blocks = rng.integers(0, 256, (rows * columns // n_values, n_bytes), dtype=numpy.uint8)

    def set_scale(scale):
        for at, factor in ((at_d, 1.0), (at_dmin, ratio)):
            if at is not None:
                blocks[:, at:at + 2] = (scale * factor).astype("<f2").reshape(-1, 1).view(numpy.uint8)

    spread = rng.uniform(0.7, 1.4, len(blocks))
    sign = rng.choice([-1.0, 1.0], len(blocks))
    set_scale(spread * sign * 0.01)
    raw = gguf.dequantize(blocks.reshape(rows, -1), ggml_type)
    set_scale(spread * sign * 0.01 * float(values.std() / raw.std()))
    return blocks.reshape(rows, -1), ggml_type


def write_tiny(path, seed, shape, kinds, tokenizer, template):
    """Writes one random model. shape: dict; kinds: function (tensor name) -> block format."""
    import gguf
    import numpy
    rng = numpy.random.Generator(numpy.random.PCG64(seed))
    hidden, ffn, layers, heads, kv_heads = (shape[k] for k in ("hidden", "ffn", "layers", "heads", "kv_heads"))
    tokens, types, merges, _ = tokenizer
    rows, kv = len(tokens), hidden // heads * kv_heads

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("model")
    writer.add_name(os.path.basename(path)[:-5])
    writer.add_license("apache-2.0")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_file_type(shape["file_type"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    writer.add_quantization_version(2)

    def matrix(name, n_out, n_in, gain):
        values = (rng.standard_normal((n_out, n_in)) * gain / numpy.sqrt(n_in)).astype(numpy.float32)
        data, kind = encode(values, kinds(name), rng)
        writer.add_tensor(name, data, raw_dtype=kind)

    def vector(name, n, mean, deviation):
        values = (mean + deviation * rng.standard_normal(n)).astype(numpy.float32)
        writer.add_tensor(name, values)

    # Gains keep every part of a layer audible: residual near 1..2, attention neither flat nor one-hot, logits of
    # standard deviation near 3.
    matrix("token_embd.weight", rows, hidden, 3.0 if shape["tied"] else float(numpy.sqrt(hidden)))
    for i in range(layers):
        vector(f"blk.{i}.attn_norm.weight", hidden, 1.0, 0.25)
        for short, n_out, bias in (("attn_q", hidden, 0.6), ("attn_k", kv, 1.0), ("attn_v", kv, 0.3)):
            matrix(f"blk.{i}.{short}.weight", n_out, hidden, 1.0)
            vector(f"blk.{i}.{short}.bias", n_out, 0.0, bias)
        matrix(f"blk.{i}.attn_output.weight", hidden, hidden, 1.0)
        vector(f"blk.{i}.ffn_norm.weight", hidden, 1.0, 0.25)
        matrix(f"blk.{i}.ffn_gate.weight", ffn, hidden, 1.2)
        matrix(f"blk.{i}.ffn_up.weight", ffn, hidden, 1.2)
        matrix(f"blk.{i}.ffn_down.weight", hidden, ffn, 1.2)
    vector("output_norm.weight", hidden, 1.0, 0.25)
    if not shape["tied"]:
        matrix("output.weight", rows, hidden, 3.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pick_q4km(name):
    """Block formats as a Q4_K_M file mixes them."""
    part = name.split(".")
    if part[0] != "blk":
        return {"token_embd": "Q6_K", "output": "Q8_0"}[part[0]]
    even = int(part[1]) % 2 == 0
    return {"attn_q": "Q4_K" if even else "Q5_0", "attn_k": "Q5_0" if even else "Q4_K",
            "attn_v": "Q6_K" if even else "Q8_0", "attn_output": "Q4_K" if even else "Q5_0",
            "ffn_gate": "Q4_K" if even else "Q5_0", "ffn_up": "Q5_0" if even else "Q4_K",
            "ffn_down": "Q6_K" if even else "Q4_K"}[part[2]]


def pick_mix(name):
    """Every block format at least once; the dense ones in the smallest matrices."""
    part = name.split(".")
    if part[0] != "blk":
        return "Q6_K"
    table = (("Q4_0", "F32", "F16", "Q5_1", "Q2_K", "Q4_1", "Q3_K"),
             ("Q5_K", "BF16", "Q8_0", "IQ4_XS", "MXFP4", "IQ4_NL", "Q4_K"),
             ("Q3_K", "Q5_0", "MXFP4", "Q6_K", "IQ4_XS", "Q5_0", "Q2_K"))
    order = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return table[int(part[1])][order.index(part[2])]


TINY = {
    "tiny-f32": (1001, dict(hidden=96, ffn=160, layers=3, heads=3, kv_heads=1, theta=1e6, eps=1e-6, tied=False,
                            file_type=0, merges=224, rows=512), lambda name: "F32"),
    "tiny-tied-f16": (1002, dict(hidden=128, ffn=160, layers=3, heads=4, kv_heads=2, theta=1e4, eps=1e-5, tied=True,
                                 file_type=1, merges=221, rows=499), lambda name: "F16"),
    "tiny-q4km": (1003, dict(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2, theta=1e6, eps=1e-6, tied=False,
                             file_type=15, merges=224, rows=512), pick_q4km),
    "tiny-mix": (1004, dict(hidden=256, ffn=256, layers=3, heads=4, kv_heads=1, theta=1e6, eps=1e-6, tied=True,
                            file_type=15, merges=224, rows=512), pick_mix),
}


def make_tiny(out, text, template, added):
    """Writes the four small models with their tokens and logits."""
    import numpy
    import reference
    for name, (seed, shape, kinds) in TINY.items():
        tokenizer = train_vocabulary(text, shape["merges"], added, shape["rows"])
        path = os.path.join(out, name + ".gguf")
        write_tiny(path, seed, shape, kinds, tokenizer, template)
        rng = numpy.random.Generator(numpy.random.PCG64(seed + 1000))
        ids = tokenizer[3].encode(text, add_special_tokens=False).ids[:N_TINY_TOKENS * 5 // 8]
        ids += [int(x) for x in rng.integers(0, shape["rows"], N_TINY_TOKENS - len(ids))]
        with open(os.path.join(out, name + ".tokens.json"), "w") as file:
            file.write(json.dumps(ids) + "\n")
        model = reference.open_model(path)
        logits = numpy.concatenate([rows for _, rows in reference.logit_pieces(model, ids)])
        numpy.save(os.path.join(out, name + ".logits.npy"), logits)
        exact = numpy.concatenate([rows for _, rows in reference.logit_pieces(model.double(), ids)])
        p = common.log_softmax(logits)
        print(f"{name}: seed {seed}, {os.path.getsize(path)} bytes, {len(ids)} tokens, logits {logits.shape} "
              f"std {logits.std():.2f} largest {numpy.abs(logits).max():.1f}, mean entropy "
              f"{float(-(numpy.exp(p) * p).sum(1).mean()):.2f} nats, float32 against float64 "
              f"{numpy.abs(logits - exact).max():.1e}", flush=True)


def make_coder(out, text, path, tokenizer):
    """Writes the sampled logits of the real model over the mixed text."""
    import numpy
    import reference
    import transformers
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    folder, name = os.path.split(os.path.abspath(path))
    converted = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    other = converted(text, add_special_tokens=False)["input_ids"]
    if ids != list(other):
        at = next((i for i, (a, b) in enumerate(zip(ids, other)) if a != b), min(len(ids), len(other)))
        print(f"note: transformers' own conversion of the stored tokenizer differs from token {at} on "
              f"({ids[at:at + 3]} against {list(other)[at:at + 3]})")
    if tokenizer.decode(ids, skip_special_tokens=False) != text:
        common.fail("the text does not survive encoding and decoding")
    if len(ids) < N_CODER_TOKENS:
        common.fail(f"text-mixed.txt has {len(ids)} tokens, {N_CODER_TOKENS} needed")
    with open(os.path.join(out, "text-mixed.tokens.json"), "w") as file:
        file.write("[" + ",\n ".join(", ".join(map(str, ids[i:i + 20])) for i in range(0, len(ids), 20)) + "]\n")
    ids = ids[:N_CODER_TOKENS]

    model = reference.open_model(path)
    n_vocab = model.config.vocab_size
    positions = list(range(256)) + list(range(256, N_CODER_TOKENS, 16))
    place = {position: i for i, position in enumerate(positions)}
    rng = numpy.random.Generator(numpy.random.PCG64(2001))
    sample_ids = numpy.sort(rng.choice(151665, 64, replace=False)).astype(numpy.int32)
    lse = numpy.zeros(len(positions))
    top_ids = numpy.zeros((len(positions), 8), dtype=numpy.int32)
    top_logits = numpy.zeros((len(positions), 8), dtype=numpy.float32)
    sample_logits = numpy.zeros((len(positions), 64), dtype=numpy.float32)
    loss, hits, largest = [], 0, 0.0
    for begin, rows in reference.logit_pieces(model, ids):
        p = common.log_softmax(rows)
        largest = max(largest, float(numpy.abs(rows).max()))
        for i, row in enumerate(rows):
            position = begin + i
            if position + 1 < len(ids):
                loss.append(-p[i, ids[position + 1]])
                hits += int(row.argmax()) == ids[position + 1]
            if position in place:
                k = place[position]
                best = numpy.argsort(-row, kind="stable")[:8]
                top_ids[k], top_logits[k], sample_logits[k] = best, row[best], row[sample_ids]
                lse[k] = float(row[best[0]]) - p[i, best[0]]
    for short, array in (("tokens", numpy.array(ids, dtype=numpy.int32)),
                         ("positions", numpy.array(positions, dtype=numpy.int32)), ("lse", lse),
                         ("top_ids", top_ids), ("top_logits", top_logits), ("sample_ids", sample_ids),
                         ("sample_logits", sample_logits)):
        numpy.save(os.path.join(out, f"coder05b.{short}.npy"), array)
    print(f"coder05b: {len(ids)} tokens, {len(positions)} positions, vocabulary {n_vocab}, perplexity of the text "
          f"{numpy.exp(numpy.mean(loss)):.3f}, next token guessed {100 * hits / len(loss):.1f}%, largest |logit| "
          f"{largest:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--model", required=True, help="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, GGUF")
    parser.add_argument("--only", choices=("tiny", "coder"))
    parser.add_argument("--out", default=common.FIXTURES)
    options = parser.parse_args()
    common.enter("oracle")
    if not os.path.isfile(options.model):
        common.fail(f"no such model file: {options.model}")
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(common.FIXTURES, "text-mixed.txt"), encoding="utf-8") as file:
        text = file.read()
    tokenizer, template, added = stored_tokenizer(options.model)
    if options.only != "coder":
        make_tiny(options.out, text, template, added)
    if options.only != "tiny":
        make_coder(options.out, text, options.model, tokenizer)
    size = sum(os.path.getsize(os.path.join(options.out, name)) for name in os.listdir(options.out))
    print(f"{options.out}: {size / 1e6:.2f} MB in all", file=sys.stderr)


if __name__ == "__main__":
    main()
