#!/usr/bin/env python3
"""Hugging Face folders against an independent computation of what they mean in GGUF.

    tests/parity/folders.py --qw build/qw [--seed N] [--keep FOLDER]

Makes tiny folders with numpy alone (safetensors is a length, a JSON header and bytes), for every architecture, layout of
experts and quantised format, converts them with `qw convert`, reads the result with the `gguf` package and compares every
key and every number with what numpy makes of the same tensors here. Then `qw logits` has to give the same bits for a folder
and for its GGUF file, in both modes, and with --quant the same as the file converted with it; `qw quantize` the same bytes;
`qw rerank` the same score, however a reranker is stored. At the end each rule of the computation here is broken once: a
comparison that does not notice is a failure.

Prints one line for each failure and `N passed, M failed`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import gguf

F32, F16, BF16, Q4_0 = (gguf.GGMLQuantizationType[x] for x in ("F32", "F16", "BF16", "Q4_0"))

# ---- numbers as bytes ---------------------------------------------------------------------------


def to_bf16(x):
    """Nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(b):
    return (b.astype(np.uint32) << 16).view(np.float32)


def e4m3(b):
    """Values of E4M3 bytes, from the format's definition."""
    b = b.astype(np.int64)
    exponent, fraction = (b >> 3) & 15, b & 7
    v = np.where(exponent > 0, (1 + fraction / 8) * 2.0 ** (exponent - 7), fraction / 8 * 2.0 ** -6)
    return np.where(b & 0x80, -v, v).astype(np.float32)


class Tensor:
    """What a safetensors file stores: dtype and array of that many bytes an element."""

    def __init__(self, dtype, array):
        self.dtype, self.array = dtype, np.ascontiguousarray(array)

    def floats(self):
        if self.dtype == "BF16":
            return from_bf16(self.array)
        return self.array.astype(np.float32)


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": list(t.array.shape), "data_offsets": [at, at + t.array.nbytes]}
        at += t.array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            file.write(t.array.data)


# ---- folders --------------------------------------------------------------------------------------

VOCAB = 272


class Folder:
    """A model's configuration and tensors, and how they are stored."""

    def __init__(self, rng, model_type, dtype="BF16", **options):
        self.rng, self.type, self.dtype, self.o = rng, model_type, dtype, options
        self.hybrid = model_type.startswith(("qwen3_next", "qwen3_5"))
        self.moe = "moe" in model_type or model_type == "qwen3_next"
        self.packed = model_type == "qwen3_next"
        self.tiled = model_type.startswith("qwen3_5")
        self.qkv_bias = model_type.startswith("qwen2")
        self.h, self.layers = options.get("hidden", 64), options.get("layers", 4 if self.hybrid else 2)
        self.vocab, self.heads, self.kv = options.get("vocab", VOCAB), options.get("heads", 4), options.get("kv_heads", 2)
        self.hd = options.get("head_dim", 16 if not self.hybrid else 32)
        if model_type.startswith("qwen2"):
            self.hd = self.h // self.heads
        self.ffn, self.xffn, self.sffn = options.get("ffn", 96), options.get("xffn", 32), options.get("shared_ffn", 48)
        self.experts, self.used = options.get("experts", 5), options.get("used", 2)
        self.nk, self.r, self.taps = options.get("key_heads", 2), options.get("ratio", 2), 4
        self.nv, self.kd, self.vd = self.nk * self.r, options.get("key_dim", 16), options.get("value_dim", 32)
        self.shared = self.moe and model_type != "qwen3_moe" and options.get("shared", True)
        self.tied, self.mtp = options.get("tied", False), options.get("mtp", 0)
        self.quant, self.group = options.get("quant"), options.get("group", 32)
        self.prefix = options.get("prefix", "model.")
        self.types = options.get("layer_types") or ["full_attention" if not self.hybrid or i % 4 == 3 else "linear_attention"
                                                   for i in range(self.layers)]
        self.tensors = {}
        self.make()

    # -- tensors

    def store(self, name, *shape, scale=0.2, dtype=None):
        x = self.rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
        dtype = dtype or self.dtype
        self.tensors[name] = Tensor(dtype, to_bf16(x) if dtype == "BF16" else x.astype({"F16": np.float16, "F32": np.float32}[dtype]))

    def linear(self, name, rows, k):
        """A product that quantised folders store in their own way."""
        rng, quant = self.rng, self.quant
        if quant == "fp8":
            self.fp8(name + ".weight", (rows, k), (-(-rows // 128), -(-k // 128)))
        elif quant in ("gptq", "awq"):
            groups, word = k // self.group, lambda *s: rng.integers(-2**31, 2**31, s).astype(np.int32)
            zeros = word(groups, rows // 8)
            if quant == "gptq" and self.o.get("sym", True):
                zeros[:] = 0x77777777 if self.o.get("v1", True) else np.uint32(0x88888888).astype(np.int32)
            self.tensors[name + ".qweight"] = Tensor("I32", word(k // 8, rows) if quant == "gptq" else word(k, rows // 8))
            self.tensors[name + ".qzeros"] = Tensor("I32", zeros)
            self.tensors[name + ".scales"] = Tensor("F16", (rng.random((groups, rows)) * 0.02 + 0.001).astype(np.float16))
            if quant == "gptq":
                order = np.arange(k, dtype=np.int32) // self.group
                if self.o.get("act_order"):
                    order = rng.permutation(order)
                self.tensors[name + ".g_idx"] = Tensor("I32", order)
                self.tensors[name + ".bias"] = Tensor("F16", np.zeros(rows, np.float16)) # as some tools write it
        else:
            self.store(name + ".weight", rows, k)

    def fp8(self, name, shape, blocks):
        bits = self.rng.integers(0, 256, shape, dtype=np.uint8)
        bits[(bits & 0x7f) == 0x7f] = 0x38
        scale = (self.rng.random(blocks) * 0.01 + 0.001).astype(np.float32)
        self.tensors[name] = Tensor("F8_E4M3", bits)
        self.tensors[name + "_scale_inv"] = (Tensor("F32", scale) if self.o.get("scale") == "F32"
                                             else Tensor("BF16", to_bf16(scale)))

    def fused_experts(self, p):
        """All experts in two tensors; of FP8 each half has blocks of its own, as when they were quantised one by one, or
        blocks run across both."""
        e, n = self.experts, self.xffn
        if self.quant != "fp8":
            self.store(p + "experts.gate_up_proj", e, 2 * n, self.h)
            self.store(p + "experts.down_proj", e, self.h, n)
            return
        down = -(-2 * n // 128) if self.o.get("joint_blocks") else 2 * -(-n // 128)
        self.fp8(p + "experts.gate_up_proj", (e, 2 * n, self.h), (e, down, -(-self.h // 128)))
        self.fp8(p + "experts.down_proj", (e, self.h, n), (e, -(-self.h // 128), -(-n // 128)))

    def attention(self, p):
        gated = 2 if self.hybrid else 1
        for name, rows in (("q", gated * self.heads * self.hd), ("k", self.kv * self.hd), ("v", self.kv * self.hd)):
            self.linear(f"{p}self_attn.{name}_proj", rows, self.h)
            if self.qkv_bias:
                self.store(f"{p}self_attn.{name}_proj.bias", rows)
        self.linear(f"{p}self_attn.o_proj", self.h, self.heads * self.hd)
        if not self.qkv_bias:
            self.store(f"{p}self_attn.q_norm.weight", self.hd)
            self.store(f"{p}self_attn.k_norm.weight", self.hd)

    def delta(self, p):
        key, value = self.nk * self.kd, self.nv * self.vd
        p += "linear_attn."
        if self.packed:
            self.linear(p + "in_proj_qkvz", 2 * key + 2 * value, self.h)
            self.store(p + "in_proj_ba.weight", 2 * self.nv, self.h)
        else:
            self.linear(p + "in_proj_qkv", 2 * key + value, self.h)
            self.linear(p + "in_proj_z", value, self.h)
            self.store(p + "in_proj_b.weight", self.nv, self.h)
            self.store(p + "in_proj_a.weight", self.nv, self.h)
        self.store(p + "conv1d.weight", 2 * key + value, 1, self.taps)
        self.store(p + "A_log", self.nv, scale=0.7, dtype="F32" if self.o.get("f32_decay") else None)
        self.store(p + "dt_bias", self.nv)
        self.store(p + "norm.weight", self.vd)
        self.linear(p + "out_proj", self.h, value)

    def mlp(self, p, ffn):
        self.linear(p + "gate_proj", ffn, self.h)
        self.linear(p + "up_proj", ffn, self.h)
        self.linear(p + "down_proj", self.h, ffn)

    def feed_forward(self, p, dense):
        p += "mlp."
        if dense:
            self.mlp(p, self.ffn)
            return
        self.store(p + "gate.weight", self.experts, self.h)
        layout, e = self.o.get("layout", "separate"), self.experts
        if layout == "separate":
            for i in range(e):
                self.mlp(f"{p}experts.{i}.", self.xffn)
        elif layout == "fused":
            self.fused_experts(p)
        else:
            self.store(p + "experts.gate_up_proj", e, self.h, 2 * self.xffn)
            self.store(p + "experts.down_proj", e, self.xffn, self.h)
        if self.shared:
            self.store(p + "shared_expert_gate.weight", 1, self.h)
            self.mlp(p + "shared_expert.", self.sffn)

    def layer(self, p, linear, dense):
        self.store(p + "input_layernorm.weight", self.h)
        (self.delta if linear else self.attention)(p)
        self.store(p + "post_attention_layernorm.weight", self.h)
        self.feed_forward(p, dense)

    def dense_layer(self, i):
        return not self.moe or i in self.o.get("mlp_only_layers", [])

    def make(self):
        self.store(self.prefix + "embed_tokens.weight", self.vocab, self.h)
        for i, kind in enumerate(self.types):
            self.layer(f"{self.prefix}layers.{i}.", kind == "linear_attention", self.dense_layer(i))
        self.store(self.prefix + "norm.weight", self.h)
        if (not self.tied and not self.o.get("score")) or self.o.get("head_anyway"):
            self.store("lm_head.weight", self.vocab, self.h)
        if self.o.get("score"):
            self.store("score.weight", 2 if self.o["score"] != ["LABEL_0"] else 1, self.h)
        for i in range(self.mtp):
            self.layer(f"mtp.layers.{i}.", False, not self.moe)
        if self.mtp:
            for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
                self.store(f"mtp.{name}.weight", self.h)
            self.linear("mtp.fc", self.h, 2 * self.h)
        if self.o.get("vision"):
            self.store("model.visual.patch_embed.proj.weight", 3, 5)

    # -- files

    def config(self):
        c = {"model_type": self.type, "num_hidden_layers": self.layers, "hidden_size": self.h, "num_attention_heads": self.heads,
             "num_key_value_heads": self.kv, "max_position_embeddings": 4096, "intermediate_size": self.ffn, "rms_norm_eps": 1e-5,
             "hidden_act": "silu", "tie_word_embeddings": self.tied, "eos_token_id": FIRST + 1, "layer_types": self.types}
        if "score" in self.o:
            c.update(architectures=["Qwen3ForSequenceClassification"], id2label=dict(enumerate(self.o["score"])))
        if not self.qkv_bias:
            c["head_dim"] = self.hd
        rope = dict(self.o.get("rope", {"rope_theta": 5e5}))
        if self.o.get("old_rope"):
            c["rope_theta"] = rope.pop("rope_theta")
            if rope:
                c["rope_scaling"] = rope
            if self.hybrid:
                c["partial_rotary_factor"] = 0.25
        else:
            c["rope_parameters"] = {"rope_type": "default", **rope}
            if self.hybrid:
                c["rope_parameters"]["partial_rotary_factor"] = 0.25
            if self.tiled and not self.o.get("no_sections"):
                c["rope_parameters"]["mrope_section"] = self.o.get("sections", [2, 1, 1])
        if self.moe:
            c[self.o.get("expert_key", "num_experts")] = self.experts
            c.update(num_experts_per_tok=self.used, moe_intermediate_size=self.xffn)
            if self.shared:
                c["shared_expert_intermediate_size"] = self.sffn
            if "norm_topk" in self.o:
                c["norm_topk_prob"] = self.o["norm_topk"]
        if self.hybrid:
            c.update(linear_num_key_heads=self.nk, linear_num_value_heads=self.nv, linear_key_head_dim=self.kd,
                     linear_value_head_dim=self.vd, linear_conv_kernel_dim=self.taps)
        if self.o.get("no_types"):
            del c["layer_types"]
        if self.quant == "fp8":
            c["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
        elif self.quant == "gptq":
            c["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": self.group, "sym": True,
                                        "checkpoint_format": "gptq" if self.o.get("v1", True) else "gptq_v2"}
        elif self.quant == "awq":
            c["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm"}
        if self.o.get("nested"):
            top = {"model_type": self.type, "tie_word_embeddings": c.pop("tie_word_embeddings"), "vision_config": {"depth": 1}}
            c["model_type"] += "_text"
            if "quantization_config" in c:
                top["quantization_config"] = c.pop("quantization_config")
            c = {**top, "text_config": c}
        return c

    def write(self, path):
        os.makedirs(path)
        names, shards = list(self.tensors), self.o.get("shards", 1)
        with open(f"{path}/config.json", "w", encoding="utf-8") as file:
            json.dump(self.config(), file)
        if shards == 1:
            write_safetensors(f"{path}/model.safetensors", self.tensors)
        else:
            index = {"metadata": {"total_size": sum(t.array.nbytes for t in self.tensors.values())}, "weight_map": {}}
            for s in range(shards):
                file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
                part = {n: self.tensors[n] for n in names[s::shards]}
                write_safetensors(f"{path}/{file}", part)
                index["weight_map"].update({n: file for n in part})
            with open(f"{path}/model.safetensors.index.json", "w", encoding="utf-8") as file:
                json.dump(index, file)
        if self.o.get("text", True):
            self.write_text(path)

    def write_text(self, path):
        write_text(path, self.tiled)


# ---- tokenizer ------------------------------------------------------------------------------------

WORDS = ["he", "ye", "yes", "no"]  # what merges make, behind the letters
FIRST = 256 + len(WORDS)  # id of the first added token
ADDED = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<|fim_prefix|>", False), ("<think>", False)]


def byte_letters():
    """Letters that byte-level vocabularies write bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return [table[b] for b in range(256)]


def words_regex(new):
    letters, others = (r"[\p{L}\p{M}]", r"\p{L}\p{M}") if new else (r"\p{L}", r"\p{L}")
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + letters + r"+|\p{N}| ?[^\s" + others
            + r"\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def tokens_of():
    """(text, GGUF type) of every row."""
    letters = byte_letters()
    rows = [(x, 1) for x in letters + WORDS]
    rows += [(text, 3 if special or text.startswith("<|") else 4) for text, special in ADDED]
    return rows + [(f"[PAD{i}]", 5) for i in range(len(rows), VOCAB)]


def write_text(path, new):
    first, merges = FIRST, [["h", "e"], ["y", "e"], ["ye", "s"], ["n", "o"]]
    text = {"added_tokens": [{"id": first + i, "content": t, "special": s} for i, (t, s) in enumerate(ADDED)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": words_regex(new)}, "behavior": "Isolated"}, {"type": "ByteLevel"}]},
            "model": {"type": "BPE", "vocab": {t: i for i, (t, _) in enumerate(tokens_of()[:first])},
                      "merges": merges if new else [" ".join(m) for m in merges]}}
    files = {"tokenizer.json": text, "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                                                              "chat_template": "old {{ messages }}"},
             "generation_config.json": {"eos_token_id": [FIRST + 2, FIRST], "do_sample": True, "temperature": 0.6,
                                        "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}}
    for name, value in files.items():
        with open(f"{path}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file)
    if new:
        with open(f"{path}/chat_template.jinja", "w", encoding="utf-8") as file:
            file.write("new {{ messages }}\n")


# ---- what GGUF has to hold --------------------------------------------------------------------------

ARCH = {"qwen2": "qwen2", "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "qwen3_next": "qwen3next",
        "qwen3_5": "qwen35", "qwen3_5_moe": "qwen35moe"}
KEEP = {"BF16": BF16, "F16": F16, "F32": F32}


class Expected:
    """Tensors as {name: (type, float32 array)}; `broken` names the one rule that is left out."""

    def __init__(self, folder, broken=None):
        self.f, self.broken, self.out = folder, broken, {}
        self.make()

    def rule(self, name):
        return self.broken != name

    def of(self, name):
        t = self.f.tensors[name]
        return KEEP[t.dtype], t.floats()

    # -- quantised formats, element by element

    def weight(self, name):
        f = self.f
        if name + ".weight_scale_inv" in f.tensors:
            scale, bits = f.tensors[name + ".weight_scale_inv"].floats(), f.tensors[name + ".weight"].array
            rows, cols = np.arange(bits.shape[0]) // 128, np.arange(bits.shape[1]) // 128
            if not self.rule("fp8 blocks"):
                rows = rows * 0
            return F32, e4m3(bits) * scale[rows][:, cols]
        if name + ".qweight" not in f.tensors:
            return self.of(name + ".weight")
        q, z = f.tensors[name + ".qweight"].array.view(np.uint32), f.tensors[name + ".qzeros"].array.view(np.uint32)
        scales = f.tensors[name + ".scales"].floats()
        shifts = np.arange(8, dtype=np.uint32) * 4
        if f.quant == "gptq":
            q = ((q[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, q.shape[1])  # [K, N]
            z = ((z[:, :, None] >> shifts) & 15).reshape(z.shape[0], -1).astype(np.int32)
            if f.o.get("v1", True) and self.rule("gptq zero"):
                z = z + 1
            group = f.tensors[name + ".g_idx"].array if self.rule("gptq order") else np.arange(len(q)) // f.group
            exact = f.o.get("sym", True) and not f.o.get("act_order")
        else:
            order = [0, 2, 4, 6, 1, 3, 5, 7] if self.rule("awq order") else list(range(8))
            place = np.argsort(order)  # of column i, the nibble it is in
            q = ((q[:, :, None] >> shifts) & 15)[:, :, place].reshape(q.shape[0], -1)
            z = ((z[:, :, None] >> shifts) & 15)[:, :, place].reshape(z.shape[0], -1).astype(np.int32)
            group, exact = np.arange(len(q)) // f.group, False
        w = (q.astype(np.int32) - z[group]).astype(np.float32) * scales[group]
        return (Q4_0 if exact else F32), np.ascontiguousarray(w.T)

    def fused(self, name, n_parts):
        """(type, parts of [experts, rows / n_parts, k]) of a tensor for all experts."""
        bits = self.f.tensors[name]
        if name + "_scale_inv" not in self.f.tensors:
            kind, x = self.of(name)
            return kind, np.split(x, n_parts, axis=1)
        scale, n = self.f.tensors[name + "_scale_inv"].floats(), bits.array.shape[1] // n_parts
        rows = np.arange(n_parts * n) // 128
        if scale.shape[1] == n_parts * -(-n // 128) and self.rule("fp8 halves"):
            rows = np.concatenate([i * -(-n // 128) + np.arange(n) // 128 for i in range(n_parts)])
        if not self.rule("fp8 experts"):
            scale = scale[::-1]
        rows = np.minimum(rows, scale.shape[1] - 1)
        columns = np.arange(bits.array.shape[2]) // 128
        return F32, np.split(e4m3(bits.array) * scale[:, rows][:, :, columns], n_parts, axis=1)

    # -- the order of value heads

    def order(self, which):
        f = self.f
        if not f.tiled or not self.rule(which):
            return np.arange(f.nv)
        return np.arange(f.nv).reshape(f.nk, f.r).T.reshape(-1)  # head i * r + j goes to j * nk + i

    def value_rows(self, x, fixed, each, which):
        rest = x[fixed:].reshape(self.f.nv, each, *x.shape[1:])[self.order(which)]
        return np.concatenate([x[:fixed], rest.reshape(-1, *x.shape[1:])])

    # -- one layer

    def norm(self, x, which="norm"):
        return F32, x + 1 if self.f.hybrid and self.rule(which) else x

    def put_norm(self, out, name, which="norm"):
        self.out[out] = self.norm(self.of(name)[1], which)

    def attention(self, p, b):
        f = self.f
        for a, g in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")):
            self.out[f"{b}{g}.weight"] = self.weight(f"{p}self_attn.{a}")
            if f.qkv_bias and a != "o_proj":
                self.out[f"{b}{g}.bias"] = F32, self.of(f"{p}self_attn.{a}.bias")[1]
        if not f.qkv_bias:
            for a in "qk":
                self.put_norm(f"{b}attn_{a}_norm.weight", f"{p}self_attn.{a}_norm.weight")

    def delta(self, p, b):
        f, out = self.f, self.out
        key = f.nk * f.kd
        p += "linear_attn."
        if f.packed:
            kind, x = self.weight(p + "in_proj_qkvz")
            parts = np.split(x.reshape(f.nk, -1, f.h), np.cumsum([f.kd, f.kd, f.r * f.vd]), axis=1)
            if not self.rule("packed"):
                parts[2], parts[3] = parts[3], parts[2]
            flat = [y.reshape(-1, f.h) for y in parts]
            out[b + "attn_qkv.weight"], out[b + "attn_gate.weight"] = (kind, np.concatenate(flat[:3])), (kind, flat[3])
            out[b + "ssm_ba.weight"] = self.weight(p + "in_proj_ba")
        else:
            kind, x = self.weight(p + "in_proj_qkv")
            out[b + "attn_qkv.weight"] = kind, self.value_rows(x, 2 * key, f.vd, "order qkv")
            kind, x = self.weight(p + "in_proj_z")
            out[b + "attn_gate.weight"] = kind, self.value_rows(x, 0, f.vd, "order z")
            for a, g in (("b", "beta"), ("a", "alpha")):
                kind, x = self.weight(p + "in_proj_" + a)
                out[f"{b}ssm_{g}.weight"] = kind, self.value_rows(x, 0, 1, "order " + g)
        conv = self.of(p + "conv1d.weight")[1][:, 0, :]
        out[b + "ssm_conv1d.weight"] = F32, self.value_rows(conv, 2 * key, f.vd, "order conv")
        decay = self.of(p + "A_log")[1].astype(np.float64)
        decay = (-np.exp(decay) if self.rule("decay") else decay).astype(np.float32)
        out[b + "ssm_a"] = F32, self.value_rows(decay, 0, 1, "order decay")
        out[b + "ssm_dt.bias"] = F32, self.value_rows(self.of(p + "dt_bias")[1], 0, 1, "order dt")
        x = self.of(p + "norm.weight")[1]
        out[b + "ssm_norm.weight"] = F32, x if self.rule("plain norm") else x + 1
        kind, x = self.weight(p + "out_proj")
        columns = x.reshape(f.h, f.nv, f.vd)[:, self.order("order out")].reshape(f.h, -1)
        out[b + "ssm_out.weight"] = kind, columns

    def experts(self, p, b):
        f, out, layout = self.f, self.out, self.f.o.get("layout", "separate")
        p += "mlp."
        out[b + "ffn_gate_inp.weight"] = F32, self.of(p + "gate.weight")[1]
        if layout == "separate":
            for a in ("gate", "up", "down"):
                all_of = [self.weight(f"{p}experts.{e}.{a}_proj") for e in range(f.experts)]
                if not self.rule("experts"):
                    all_of[0], all_of[1] = all_of[1], all_of[0]
                out[f"{b}ffn_{a}_exps.weight"] = all_of[0][0], np.stack([x for _, x in all_of])
        else:
            if layout == "turned":
                kind, gate_up = self.of(p + "experts.gate_up_proj")
                halves = np.split(gate_up.transpose(0, 2, 1), 2, axis=1)
                down = self.of(p + "experts.down_proj")[1].transpose(0, 2, 1)
            else:
                kind, halves = self.fused(p + "experts.gate_up_proj", 2)
                down = self.fused(p + "experts.down_proj", 1)[1][0]
            if not self.rule("fused"):
                halves.reverse()
            for a, x in zip(("gate", "up", "down"), (*halves, down)):
                out[f"{b}ffn_{a}_exps.weight"] = kind, x
        if f.shared:
            out[b + "ffn_gate_inp_shexp.weight"] = F32, self.of(p + "shared_expert_gate.weight")[1][0]
            for a in ("gate", "up", "down"):
                out[f"{b}ffn_{a}_shexp.weight"] = self.weight(f"{p}shared_expert.{a}_proj")

    def layer(self, p, il, linear, dense):
        b = f"blk.{il}."
        self.put_norm(b + "attn_norm.weight", p + "input_layernorm.weight")
        (self.delta if linear else self.attention)(p, b)
        self.put_norm(b + ("post_attention_norm" if self.f.hybrid else "ffn_norm") + ".weight",
                      p + "post_attention_layernorm.weight")
        if not dense:
            self.experts(p, b)
            return
        for a in ("gate", "up", "down"):
            self.out[f"{b}ffn_{a}.weight"] = self.weight(f"{p}mlp.{a}_proj")

    def make(self):
        f, out = self.f, self.out
        out["token_embd.weight"] = self.of(f.prefix + "embed_tokens.weight")
        self.put_norm("output_norm.weight", f.prefix + "norm.weight")
        if not f.tied and not f.o.get("score"):
            out["output.weight"] = self.of("lm_head.weight")
        if f.o.get("score"):
            x = self.of("score.weight")[1]
            if len(x) == 1:
                x = np.concatenate([x, 0 * x])
            elif f.o["score"][0] == "no" and self.rule("score order"):
                x = x[::-1]
            out["cls.output.weight"] = F32, x
        for i, kind in enumerate(f.types):
            self.layer(f"{f.prefix}layers.{i}.", i, kind == "linear_attention", f.dense_layer(i))
        for i in range(f.mtp):
            self.layer(f"mtp.layers.{i}.", f.layers + i, False, not f.moe)
        if f.mtp:
            b = f"blk.{f.layers}.nextn."
            for a, g in (("pre_fc_norm_embedding", "enorm"), ("pre_fc_norm_hidden", "hnorm"), ("norm", "shared_head_norm")):
                self.put_norm(f"{b}{g}.weight", f"mtp.{a}.weight", "mtp norm")
            out[b + "eh_proj.weight"] = self.weight("mtp.fc")


def expected_keys(f, name):
    """{key: value} of the converted file."""
    a, rope = ARCH[f.type], f.o.get("rope", {"rope_theta": 5e5})
    k = {"general.architecture": a, "general.type": "model", "general.name": name, f"{a}.block_count": f.layers + f.mtp,
         f"{a}.context_length": 4096, f"{a}.embedding_length": f.h, f"{a}.feed_forward_length": f.ffn,
         f"{a}.attention.head_count": f.heads, f"{a}.attention.head_count_kv": f.kv,
         f"{a}.attention.layer_norm_rms_epsilon": np.float32(1e-5), f"{a}.rope.freq_base": np.float32(rope["rope_theta"])}
    if not f.qkv_bias:
        k[f"{a}.attention.key_length"] = k[f"{a}.attention.value_length"] = f.hd
    if f.mtp:
        k[f"{a}.nextn_predict_layers"] = f.mtp
    if f.hybrid:
        k[f"{a}.rope.dimension_count"] = f.hd // 4
        k.update({f"{a}.ssm.conv_kernel": f.taps, f"{a}.ssm.state_size": f.kd, f"{a}.ssm.group_count": f.nk,
                  f"{a}.ssm.time_step_rank": f.nv, f"{a}.ssm.inner_size": f.nv * f.vd})
        recurrent = [t == "linear_attention" for t in f.types]
        k[f"{a}.attention.recurrent_layers"] = recurrent + [False] * f.mtp
        interval = [n for n in range(1, f.layers + 1) if recurrent == [(i + 1) % n != 0 for i in range(f.layers)]]
        if interval:
            k[f"{a}.full_attention_interval"] = interval[0]
    if f.tiled:
        k[f"{a}.rope.dimension_sections"] = [11, 11, 10, 0] if f.o.get("no_sections") or f.o.get("old_rope") else [2, 1, 1, 0]
    if f.moe:
        norm = {"qwen2_moe": False, "qwen3_moe": False, "qwen3_next": True}.get(f.type)
        k.update({f"{a}.expert_count": f.experts, f"{a}.expert_used_count": f.used, f"{a}.expert_feed_forward_length": f.xffn,
                  f"{a}.expert_weights_norm": True if norm is None else f.o.get("norm_topk", norm)})
        if f.shared:
            k[f"{a}.expert_shared_feed_forward_length"] = f.sffn
    if (rope.get("rope_type") or rope.get("type")) == "yarn":
        k.update({f"{a}.rope.scaling.type": "yarn", f"{a}.rope.scaling.factor": np.float32(rope["factor"]),
                  f"{a}.rope.scaling.original_context_length": rope.get("original_max_position_embeddings", 4096)})
        usual = 0.1 * np.log(rope["factor"]) + 1
        if "attention_factor" in rope:
            k[f"{a}.rope.scaling.attn_factor"] = np.float32(rope["attention_factor"] / usual)
        if "mscale" in rope:
            m = [0.1 * rope[x] * np.log(rope["factor"]) + 1 for x in ("mscale", "mscale_all_dim")]
            k[f"{a}.rope.scaling.attn_factor"] = np.float32(m[0] / m[1] / usual)
        for x in ("beta_fast", "beta_slow"):
            if x in rope:
                k[f"{a}.rope.scaling.yarn_{x}"] = np.float32(rope[x])
    if f.o.get("text", True):
        t = "tokenizer.ggml."
        k.update({t + "model": "gpt2", t + "pre": "qwen35" if f.tiled else "qwen2", t + "tokens": [x for x, _ in tokens_of()],
                  t + "token_type": [x for _, x in tokens_of()], t + "merges": ["h e", "y e", "ye s", "n o"],
                  t + "eos_token_id": FIRST + 2, t + "eot_token_id": FIRST, t + "padding_token_id": FIRST, t + "add_bos_token": False,
                  "tokenizer.chat_template": "new {{ messages }}\n" if f.tiled else "old {{ messages }}"})
        k.update({"general.sampling." + key: value for key, value in (
            ("temp", np.float32(0.6)), ("top_k", 20), ("top_p", np.float32(0.95)), ("penalty_repeat", np.float32(1.05)))})
    if f.o.get("score"):
        k.update({f"{a}.pooling_type": 4, f"{a}.classifier.output_labels": ["yes", "no"], "tokenizer.chat_templates": ["rerank"],
                  "tokenizer.chat_template.rerank": RERANK})
    return k


RERANK = ("<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
          "provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
          "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n"
          "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


# ---- comparison -------------------------------------------------------------------------------------


def read_gguf(path):
    """Keys and tensors of a file, as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    keys = {n: x.contents() for n, x in reader.fields.items() if not n.startswith("GGUF.")}
    tensors = {}
    for t in reader.tensors:
        shape = tuple(int(x) for x in reversed(t.shape))
        data = t.data if t.tensor_type in (F32, F16) else gguf.quants.dequantize(t.data, t.tensor_type)
        tensors[t.name] = t.tensor_type, np.asarray(data, dtype=np.float32).reshape(shape)
    return keys, tensors


def compare_tensors(want, have):
    """Faults, one text each."""
    faults = [f"{n} is missing" for n in want if n not in have] + [f"{n} should not be there" for n in have if n not in want]
    for name in want.keys() & have.keys():
        (kind, x), (real_kind, y) = want[name], have[name]
        if kind != real_kind or x.shape != y.shape:
            faults.append(f"{name}: want {kind.name} {x.shape}, have {real_kind.name} {y.shape}")
        elif not np.array_equal(x, y):
            faults.append(f"{name}: {int((x != y).sum())} of {x.size} numbers differ, at most {np.abs(x - y).max():g}")
    return faults


def same_value(a, b):
    if isinstance(a, np.floating):
        return np.float32(b) == a
    return type(a) is type(b) and a == b if not isinstance(a, list) else list(a) == list(b)


def compare_keys(want, have):
    faults = [f"key {n} is missing" for n in want if n not in have]
    faults += [f"key {n} should not be there" for n in have if n not in want]
    return faults + [f"key {n}: want {want[n]!r:.80}, have {have[n]!r:.80}" for n in want.keys() & have.keys()
                     if not same_value(want[n], have[n])]


class Suite:
    def __init__(self, qw, work):
        self.qw, self.work, self.passed, self.failed = qw, work, 0, 0

    def report(self, fault):
        self.passed, self.failed = self.passed + (not fault), self.failed + bool(fault)
        if fault:
            print("FAIL", fault)

    def run(self, *args, fails=False):
        done = subprocess.run([*self.qw.split(), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        if not fails and done.returncode != 0:
            self.report(f"qw {' '.join(args)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done

    def logits(self, model, *options):
        out = f"{self.work}/logits.npy"
        if os.path.exists(out):
            os.unlink(out)
        ids = ",".join(str(7 * i % VOCAB) for i in range(9))
        self.run("logits", "-m", model, "--tokens", ids, "-o", out, *options)
        return np.load(out) if os.path.exists(out) else None

    def same_logits(self, name, what, a, b):
        if a is None or b is None:
            return
        if not np.isfinite(a).all() or a.std() == 0:
            self.report(f"{name}: logits {what} say nothing")
            return
        self.report(None if np.array_equal(a, b) else f"{name}: logits {what} differ by up to {np.abs(a - b).max():g}")

    def check(self, name, folder):
        path, out = f"{self.work}/{name}", f"{self.work}/{name}.gguf"
        folder.write(path)
        if self.run("convert", path, out).returncode != 0:
            return None
        keys, tensors = read_gguf(out)
        for fault in [*compare_keys(expected_keys(folder, name), keys), *compare_tensors(Expected(folder).out, tensors)] or [None]:
            self.report(fault and f"{name}: {fault}")
        if not folder.o.get("no_logits"):
            self.same_logits(name, "--exact of folder and file", self.logits(path, "--exact"), self.logits(out, "--exact"))
            self.same_logits(name, "of folder and file", self.logits(path), self.logits(out))
        self.check_quantize(name, path, out)
        return tensors

    def check_quantize(self, name, path, plain):
        """The folder gives the same bytes as its file, on one thread or three."""
        made = [f"{self.work}/quantised-{i}.gguf" for i in range(2)]
        mix = ("Q4_K_M", "Q8_0", "IQ4_XS", "BF16")[len(name) % 4]
        self.run("quantize", plain, made[0], mix, "--requantize", "--replace", "-t", "1")
        self.run("quantize", path, made[1], mix, "--requantize", "--replace", "-t", "3")
        same = len({open(m, "rb").read() for m in made if os.path.exists(m)}) == 1 and all(map(os.path.exists, made))
        self.report(None if same else f"{name}: quantised to {mix}, folder and file are not the same bytes")
        for m in filter(os.path.exists, made):
            os.unlink(m)

    def check_quantised(self, name, kind):
        path, plain, out = (f"{self.work}/{name}{x}" for x in ("", ".gguf", f".{kind}.gguf"))
        self.run("convert", "--quant", kind, path, out)
        real = read_gguf(out)[1] if os.path.exists(out) else {}
        want = "q8_0" if kind.endswith("k") else kind  # these rows are shorter than a block of 256
        changed = sum(t.name.lower() == want for t, _ in real.values())
        self.report(None if changed > 10 else f"{name}: only {changed} tensors became {kind}")
        for model in (path, plain):
            self.same_logits(name, f"with --quant {kind}", self.logits(model, "--quant", kind), self.logits(out))

    def score(self, model):
        done = self.run("rerank", "-m", model, "--exact", "-q", "yes?", "he said no", "")
        return [json.loads(line)["score"] for line in done.stdout.splitlines()]

    def check_rerankers(self, rng):
        """One reranker stored in every way: as a language model, with a head of two labels in either order, or of one."""
        language = Folder(rng, "qwen3", "F32")
        for name, t in language.tensors.items():  # so that what was read counts, and scores differ
            t.array *= 8 if "o_proj" in name else 2 if "lm_head" in name else 1
        language.write(f"{self.work}/language")
        models, head = [f"{self.work}/language"], language.tensors.pop("lm_head.weight").array
        yes, no = (head[256 + WORDS.index(x)] for x in ("yes", "no"))
        for labels, rows in ((["yes", "no"], [yes, no]), (["no", "yes"], [no, yes]), (["LABEL_0"], [yes - no])):
            language.o["score"] = labels
            language.tensors["score.weight"] = Tensor("F32", np.stack(rows))
            language.write(f"{self.work}/{'-'.join(labels)}")
            models.append(f"{self.work}/{'-'.join(labels)}")
        for folder, options in ((models[0], ["--rerank"]), (models[0], ["--rerank", "--quant", "q8_0"]), (models[2], [])):
            models.append(f"{self.work}/reranker-{len(models)}.gguf")
            self.run("convert", folder, models[-1], *options)
        self.run("quantize", models[-1], f"{self.work}/reranker.gguf", "F16")
        models.append(f"{self.work}/reranker.gguf")
        scores = [self.score(m) for m in models]
        want = scores[0]
        self.report(None if len(want) == 2 and abs(want[0] - want[1]) > 1e-3 else f"rerank: {want} says nothing")
        for model, score in zip(models, scores):
            limit = 1e-2 if os.path.basename(model) in ("reranker-5.gguf", "reranker.gguf") else 1e-6  # Q8_0, F16
            same = len(score) == 2 and max(abs(a - b) for a, b in zip(score, want)) < limit
            self.report(None if same else f"rerank: {model} scores {score}, the language model {want}")
        keys, tensors = read_gguf(models[4])
        self.report(None if np.array_equal(tensors["cls.output.weight"][1], np.stack([yes, no])) else "rerank: the head is another")
        self.report(None if keys.get("tokenizer.chat_template.rerank") == RERANK and keys.get("qwen3.pooling_type") == 4
                    else "rerank: the keys are missing")
        quantised = read_gguf(models[7])[1]["cls.output.weight"]
        self.report(None if quantised[0] == F32 else "rerank: the head is quantised")
        for labels, said in ((["a", "b"], "\"id2label\" has to name"), (["yes", "no", "perhaps"], "is no head of a reranker")):
            language.o["score"] = labels
            language.tensors["score.weight"] = Tensor("F32", np.stack([yes] * len(labels)))
            language.write(f"{self.work}/{'-'.join(labels)}")
            done = self.run("convert", f"{self.work}/{'-'.join(labels)}", f"{self.work}/none.gguf", fails=True)
            self.report(None if done.returncode == 1 and said in done.stderr else f"rerank: {labels}: {done.stderr}")

    def check_broken(self, name, folder, tensors, rules):
        for rule in rules:
            if tensors is not None:
                noticed = compare_tensors(Expected(folder, rule).out, tensors)
                self.report(None if noticed else f"{name}: the rule \"{rule}\" is not noticed when it is broken")


YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024}
ORDERS = ["order qkv", "order z", "order beta", "order alpha", "order conv", "order decay", "order dt", "order out"]


def cases(rng):
    """(name, folder, rules of the computation that it must notice)."""
    def f(*a, **o):
        return Folder(rng, *a, **o)

    hybrid = ["norm", "plain norm", "decay"]
    yield "qwen2", f("qwen2", tied=True, shards=3), []
    yield "qwen2-f16", f("qwen2", "F16", text=False, rope={**YARN, "attention_factor": 1.5}), []
    yield "qwen2-f32-old-yarn", f("qwen2", "F32", old_rope=True, rope={"type": "yarn", "rope_theta": 1e6, "factor": 4.0}), []
    yield "qwen2-tied-head", f("qwen2", tied=True, head_anyway=True), []
    yield "qwen2moe", f("qwen2_moe", norm_topk=False, mlp_only_layers=[0]), ["experts"]
    yield "qwen3", f("qwen3", rope={**YARN, "beta_fast": 16.0, "beta_slow": 2.0}, shards=2), []
    yield "qwen3-mscale", f("qwen3", prefix="", tied=True, rope={**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}), []
    yield "qwen3moe", f("qwen3_moe", norm_topk=True), ["experts"]
    yield "qwen3moe-fused", f("qwen3_moe", layout="fused", expert_key="num_local_experts"), ["fused"]
    yield "qwen3moe-turned", f("qwen3_moe", layout="turned", norm_topk=True), ["fused"]
    yield "qwen3moe-square", f("qwen3_moe", layout="turned", hidden=64, experts=3), ["fused"]  # 2 * ffn is the hidden size
    yield "qwen3next", f("qwen3_next", mtp=1, ratio=2), [*hybrid, "packed", "mtp norm", "experts"]
    yield "qwen3next-3", f("qwen3_next", key_heads=3, ratio=3, layout="fused", no_types=True), [*hybrid, "packed", "fused"]
    yield "qwen35", f("qwen3_5", nested=True, prefix="model.language_model.", vision=True, mtp=1), [*hybrid, *ORDERS, "mtp norm"]
    yield "qwen35-1", f("qwen3_5", ratio=1, f32_decay=True, tied=True, no_sections=True), hybrid
    yield "qwen35-3", f("qwen3_5", key_heads=3, ratio=3, shards=2), [*hybrid, *ORDERS]
    yield "qwen35-list", f("qwen3_5", layers=3, layer_types=["full_attention", "linear_attention", "linear_attention"]), ORDERS
    yield "qwen35moe", f("qwen3_5_moe", layout="fused", nested=True, prefix="model.language_model.", mtp=1), [*hybrid, *ORDERS, "fused"]
    yield "qwen35moe-flat", f("qwen3_5_moe", old_rope=True, ratio=3), [*hybrid, *ORDERS, "experts"]
    yield "qwen3-fp8", f("qwen3", quant="fp8", hidden=192), ["fp8 blocks"]
    yield "qwen35-fp8", f("qwen3_5", quant="fp8", hidden=192, scale="F32", key_heads=3, ratio=2, mtp=1), ["fp8 blocks", *ORDERS]
    yield "qwen35moe-fp8", f("qwen3_5_moe", quant="fp8", hidden=192), ["fp8 blocks", "experts"]
    yield "qwen3moe-fp8-fused", f("qwen3_moe", quant="fp8", hidden=192, layout="fused"), ["fp8 experts", "fp8 halves", "fused"]
    yield "qwen3moe-fp8-odd", f("qwen3_moe", quant="fp8", hidden=192, layout="fused", xffn=160, scale="F32", experts=3), \
        ["fp8 experts", "fp8 halves", "fused"]  # two blocks for each half, the second of 32 rows
    yield "qwen35moe-fp8-joint", f("qwen3_5_moe", quant="fp8", hidden=192, layout="fused", xffn=160, joint_blocks=True), \
        ["fp8 experts", "fused"]  # three blocks for both halves
    yield "qwen3-score", f("qwen3", score=["no", "yes"]), ["score order"]
    yield "qwen3-score-1", f("qwen3", tied=True, score=["LABEL_0"]), []
    yield "qwen2-gptq", f("qwen2", quant="gptq"), ["gptq zero"]
    yield "qwen3-gptq-v2", f("qwen3", quant="gptq", v1=False), []
    yield "qwen3-gptq-order", f("qwen3", quant="gptq", act_order=True), ["gptq zero", "gptq order"]
    yield "qwen3-gptq-zeros", f("qwen3", quant="gptq", sym=False), ["gptq zero"]
    yield "qwen35-gptq", f("qwen3_5", quant="gptq"), ["gptq zero", *ORDERS]
    yield "qwen3moe-gptq", f("qwen3_moe", quant="gptq"), ["gptq zero", "experts"]
    yield "qwen2-awq", f("qwen2", quant="awq"), ["awq order"]
    yield "qwen3moe-awq", f("qwen3_moe", quant="awq", group=16), ["awq order", "experts"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qw", required=True)
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--keep", help="an empty folder for what is made")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as work:
        suite = Suite(args.qw, args.keep or work)
        for name, folder, rules in cases(np.random.default_rng(args.seed)):
            tensors = suite.check(name, folder)
            suite.check_broken(name, folder, tensors, rules)
        for name, kind in (("qwen3", "q8_0"), ("qwen35-3", "q8_0"), ("qwen35moe", "q4_0"), ("qwen3-fp8", "q4_k")):
            suite.check_quantised(name, kind)
        suite.check_rerankers(np.random.default_rng(args.seed + 1))
    print(f"{suite.passed} passed, {suite.failed} failed")
    sys.exit(1 if suite.failed else 0)


if __name__ == "__main__":
    main()
