#!/usr/bin/env python3
"""Random models of real shapes, for measuring: speed does not depend on what the weights say.

Use:   build/venv/test/bin/python bench/make_model.py SHAPE [--out build/bench-models] [--layers N] [--words FILE.gguf]

SHAPE is a row of SHAPES below: the family, its sizes, and which tensors have more bits, as files named Q4_K_M do. Blocks are
random bytes with scales that keep activations near 1; norms are 1, and the router's random rows spread tokens over all
experts. The vocabulary is one that the loaders of qw and of llama.cpp accept; its tokens mean nothing. With --words it is
that of another model, chat template included, so that the model can be served and a prompt has as many tokens as it has
elsewhere; the answers are nonsense all the same. Written as a stream, a tensor at a time; the same shape gives the same file
(the seed is printed). Needs the packages gguf and numpy.
"""

import argparse
import os

import gguf
import numpy as np

SEED = 20261128
NORMAL, CONTROL, UNUSED = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED

# Per block format: where d and dmin (both f16) lie in its bytes, dmin / d that puts the mean near zero, and the standard
# deviation of a weight when d is 1.
BLOCKS = {"Q4_K": (0, 2, 7.5, 240.0), "Q5_K": (0, 2, 15.5, 480.0), "Q6_K": (208, None, 0, 1360.0), "Q8_0": (0, None, 0, 74.0)}

SHAPES = {
    "qwen3.5-2b": {
        "arch": "qwen35", "layers": 24, "hidden": 2048, "heads": 8, "kv_heads": 2, "head_dim": 256, "rot": 64, "ffn": 6144,
        "vocabulary": 248320, "tied": True, "base": 1e7, "delta": {"k_heads": 16, "v_heads": 16, "dim": 128, "taps": 4},
        "sections": [11, 11, 10, 0],
    },
    "qwen3-30b-a3b": {
        "arch": "qwen3moe", "layers": 48, "hidden": 2048, "heads": 32, "kv_heads": 4, "head_dim": 128, "rot": 128, "ffn": 6144,
        "vocabulary": 151936, "tied": False, "base": 1e6, "experts": 128, "used": 8, "expert_ffn": 768,
    },
}


def more_bits(il, n):
    """Layers whose most sensitive matrices have more bits: the first and last eighths and every third between."""
    return il < n // 8 or il >= n - n // 8 or (il - n // 8) % 3 == 2


def tensors_of(shape):
    """(name, dimensions as numpy has them, type or kind of values) of all tensors, in the order of the layers."""
    h, vocabulary, n = shape["hidden"], shape["vocabulary"], shape["layers"]
    yield "token_embd.weight", (vocabulary, h), "Q6_K" if shape["tied"] else "Q4_K"
    for il in range(n):
        high, b = "Q6_K" if more_bits(il, n) else "Q4_K", f"blk.{il}."
        yield b + "attn_norm.weight", (h,), "one"
        if "delta" in shape and il % 4 != 3:
            yield from delta_tensors(b, shape["delta"], h)
        else:
            yield from attention_tensors(b, shape, high)
        yield b + ("post_attention_norm.weight" if "delta" in shape else "ffn_norm.weight"), (h,), "one"
        if "experts" in shape:
            e, ffn = shape["experts"], shape["expert_ffn"]
            yield b + "ffn_gate_inp.weight", (e, h), "normal"
            yield b + "ffn_gate_exps.weight", (e, ffn, h), "Q4_K"
            yield b + "ffn_up_exps.weight", (e, ffn, h), "Q4_K"
            yield b + "ffn_down_exps.weight", (e, h, ffn), high
        else:
            yield b + "ffn_gate.weight", (shape["ffn"], h), "Q4_K"
            yield b + "ffn_up.weight", (shape["ffn"], h), "Q4_K"
            yield b + "ffn_down.weight", (h, shape["ffn"]), high
    yield "output_norm.weight", (h,), "one"
    if not shape["tied"]:
        yield "output.weight", (vocabulary, h), "Q6_K"


def attention_tensors(b, shape, high):
    h, q, kv = shape["hidden"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    yield b + "attn_q.weight", (2 * q if "delta" in shape else q, h), "Q4_K"
    yield b + "attn_k.weight", (kv, h), "Q4_K"
    yield b + "attn_v.weight", (kv, h), high
    yield b + "attn_output.weight", (h, q), "Q4_K"
    yield b + "attn_q_norm.weight", (shape["head_dim"],), "one"
    yield b + "attn_k_norm.weight", (shape["head_dim"],), "one"


def delta_tensors(b, delta, h):
    key, value, heads = delta["k_heads"] * delta["dim"], delta["v_heads"] * delta["dim"], delta["v_heads"]
    yield b + "attn_qkv.weight", (2 * key + value, h), "Q5_K"
    yield b + "attn_gate.weight", (value, h), "Q4_K"
    yield b + "ssm_beta.weight", (heads, h), "Q8_0"
    yield b + "ssm_alpha.weight", (heads, h), "Q8_0"
    yield b + "ssm_conv1d.weight", (2 * key + value, delta["taps"]), "normal"
    yield b + "ssm_a", (heads,), "decay"
    yield b + "ssm_dt.bias", (heads,), "normal"
    yield b + "ssm_norm.weight", (delta["dim"],), "one"
    yield b + "ssm_out.weight", (h, value), "Q4_K"


def values(rng, dims, kind):
    """A tensor of floats: ones, -exp(A_log) of a delta-net, or normal with the last dimension as fan-in."""
    if kind == "one":
        return np.ones(dims, dtype=np.float32)
    if kind == "decay":
        return -rng.uniform(0.01, 1.0, dims).astype(np.float32)
    return (rng.standard_normal(dims) / np.sqrt(dims[-1])).astype(np.float32)


def blocks(rng, dims, kind):
    """A quantised tensor [rows, bytes]: random blocks whose weights have a standard deviation of 0.5 / sqrt(k)."""
    n, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    d_at, dmin_at, ratio, spread = BLOCKS[kind]
    d = 0.5 / np.sqrt(dims[-1]) / spread
    raw = np.frombuffer(rng.bytes(int(np.prod(dims)) // n * size), dtype=np.uint8).copy().reshape(-1, size)
    raw[:, d_at:d_at + 2] = np.frombuffer(np.float16(d).tobytes(), dtype=np.uint8)
    if dmin_at is not None:
        raw[:, dmin_at:dmin_at + 2] = np.frombuffer(np.float16(d * ratio).tobytes(), dtype=np.uint8)
    return raw.reshape(*dims[:-1], -1)


def add_header(writer, name, shape):
    """The keys that the families' loaders read."""
    writer.add_name(f"random {name}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_block_count(shape["layers"])
    writer.add_context_length(32768)
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["rot"])
    writer.add_rope_freq_base(shape["base"])
    writer.add_layer_norm_rms_eps(1e-6)
    if "sections" in shape:
        writer.add_rope_dimension_sections(shape["sections"])
    if "experts" in shape:
        writer.add_expert_count(shape["experts"])
        writer.add_expert_used_count(shape["used"])
        writer.add_expert_feed_forward_length(shape["expert_ffn"])
    if "delta" in shape:
        delta = shape["delta"]
        writer.add_ssm_conv_kernel(delta["taps"])
        writer.add_ssm_state_size(delta["dim"])
        writer.add_ssm_group_count(delta["k_heads"])
        writer.add_ssm_time_step_rank(delta["v_heads"])
        writer.add_ssm_inner_size(delta["v_heads"] * delta["dim"])
        writer.add_full_attention_interval(4)


def byte_tokens():
    """The 256 tokens of single bytes, as byte-level vocabularies write them."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def add_vocabulary(writer, n):
    tokens = byte_tokens()
    tokens += [f"t{i}" for i in range(len(tokens), n - 1)] + ["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL] * (n - 1) + [CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(n - 1)


def add_words(writer, n, path):
    """The vocabulary and the chat template of another model; what is left of n rows is never used."""
    of = {key.removeprefix("tokenizer."): field.contents() for key, field in gguf.GGUFReader(path).fields.items()
          if key.startswith("tokenizer.")}
    n_padding = n - len(of["ggml.tokens"])
    if n_padding < 0:
        raise SystemExit(f"make_model: {path} has {len(of['ggml.tokens'])} tokens, this shape has room for {n}")
    writer.add_tokenizer_model(of["ggml.model"])
    writer.add_tokenizer_pre(of["ggml.pre"])
    writer.add_token_list(of["ggml.tokens"] + [f"[PAD{i}]" for i in range(n_padding)])
    writer.add_token_types(of["ggml.token_type"] + [UNUSED] * n_padding)
    writer.add_token_merges(of["ggml.merges"])
    writer.add_eos_token_id(of["ggml.eos_token_id"])
    writer.add_chat_template(of["chat_template"])


def write(path, name, shape, words):
    """The file, under its own name only when it is whole."""
    writer = gguf.GGUFWriter(path + ".part", shape["arch"], use_temp_file=False)
    add_header(writer, name, shape)
    if words:
        add_words(writer, shape["vocabulary"], words)
    else:
        add_vocabulary(writer, shape["vocabulary"])
    tensors = list(tensors_of(shape))
    for tensor, dims, kind in tensors:
        if kind in BLOCKS:
            qtype = gguf.GGMLQuantizationType[kind]
            n, size = gguf.GGML_QUANT_SIZES[qtype]
            stored = (*dims[:-1], dims[-1] // n * size)
            writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), int(np.prod(stored)), qtype)
        else:
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), 4 * int(np.prod(dims)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(SEED)
    for _, dims, kind in tensors:
        writer.write_tensor_data(blocks(rng, dims, kind) if kind in BLOCKS else values(rng, dims, kind))
    writer.close()
    os.rename(path + ".part", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "build", "bench-models"))
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--words", metavar="FILE.gguf", help="a model whose vocabulary and chat template it gets")
    options = parser.parse_args()
    shape = dict(SHAPES[options.shape])
    shape["layers"] = options.layers or shape["layers"]
    os.makedirs(options.out, exist_ok=True)
    name = f"{options.shape}-{shape['layers']}{'-words' if options.words else ''}.gguf"
    path = os.path.normpath(os.path.join(options.out, name))
    write(path, options.shape, shape, options.words)
    print(f"{path}: {os.path.getsize(path) / 1e9:.2f} GB, seed {SEED}")


if __name__ == "__main__":
    main()
