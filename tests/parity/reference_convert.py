#!/usr/bin/env python3
"""A second opinion on converting: a Hugging Face folder of a Qwen text model to GGUF, with numpy and the gguf package.

Use:   python3 tests/parity/reference_convert.py FOLDER OUT.gguf [--mutant NAME]
       python3 tests/parity/reference_convert.py --all OUT_FOLDER

--all: every folder NAME of tests/fixtures/families to OUT_FOLDER/NAME.gguf, and to NAME-q8.gguf with Q8_0 where rows allow it.

Written from the description of the formats alone, apart from `qw convert`: where both agree, both are right or the
description is wrong, and the logits tell. It takes unquantised weights (BF16, F16, F32), writes no tokenizer and no block for
multi-token prediction. What changes between the two forms:

  zero-centred norms      Next, 3.5, 4exp: GGUF holds 1 + w, but for the norm behind the delta-net
  A_log                   GGUF holds -exp(A_log)
  value heads             3.5, 4exp: HF keeps those of one key head together, GGUF takes the first of every key head, then the
                          second of every key head, ...: rows of V, z, a, b, channels of the convolution, columns of the
                          output matrix
  packed projections      Next: [q k v z] and [b a] of one key head together; GGUF has [q; k; v] and z apart, b and a as they are
  n-gram table            4exp: shards put together; hash constants become keys; the indexer's q and k rows part
  experts                 one matrix each, or fused with gate rows first; GGUF stacks them, slowest dimension the expert

--mutant leaves one of these out or breaks one term of the model on purpose (MUTANTS below): families.py demands that the
logits notice. Runs in the "test" environment.
"""

import argparse
import json
import os
import re

import common

FAMILIES = os.path.join(common.FIXTURES, "families")

# model_type: (general.architecture, norms are zero-centred, value heads are tiled in GGUF)
ARCHITECTURES = {
    "qwen2": ("qwen2", False, False),
    "qwen2_moe": ("qwen2moe", False, False),
    "qwen3": ("qwen3", False, False),
    "qwen3_moe": ("qwen3moe", False, False),
    "qwen3_next": ("qwen3next", True, False),
    "qwen3_5": ("qwen35", True, True),
    "qwen3_5_text": ("qwen35", True, True),
    "qwen3_5_moe": ("qwen35moe", True, True),
    "qwen3_5_moe_text": ("qwen35moe", True, True),
    "qwen4_exp": ("qwen4exp", True, True),
    "qwen4_exp_text": ("qwen4exp", True, True),
}
HYBRIDS = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")
# Whether the chosen experts' weights are divided by their sum, where the config does not say.
RENORMALISED = {"qwen2moe": False, "qwen3moe": False, "qwen3next": True, "qwen35moe": True, "qwen4exp": True}

CONNECTION = {"hc_norm": "norm", "input_mix_weight_down": "down", "input_mix_weight_up": "up", "block_inject_weight": "inject"}
TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
             **{f"hyper_connection_mixer.{theirs}": f"output_hc_{ours}" for theirs, ours in CONNECTION.items()}}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.in_proj_ba": "ssm_ba", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "self_attn.indexer.q_layernorm": "indexer.q_norm", "self_attn.indexer.k_layernorm": "indexer.k_norm",
    "ple.key_proj": "ple_key", "ple.value_proj": "ple_value", "ple.norm_key": "ple_norm_key", "ple.norm_query": "ple_norm_query",
    "ple.norm_conv": "ple_norm_conv", "ple.conv1d": "ple_conv1d",
    **{f"{part}_hyper_connection.{theirs}": f"hc_{'attn' if part == 'attn' else 'ffn'}_{ours}"
       for part in ("attn", "mlp") for theirs, ours in CONNECTION.items()},
}
# Kept in float32 whatever the folder holds, as every file on the hub has them.
FLOAT32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d", "ple_conv1d")


class Model:
    """What a GGUF file holds: keys in order, name -> (float32 array, name of the type to store)."""

    def __init__(self):
        self.keys, self.tensors = {}, {}

    @property
    def arch(self):
        return self.keys["general.architecture"]

    def get(self, key):
        return self.keys.get(f"{self.arch}.{key}")

    def set(self, key, value):
        self.keys[f"{self.arch}.{key}"] = value

    def kinds(self):
        """Names without block numbers: "attn_q.weight"."""
        return {re.sub(r"^blk\.\d+\.", "", name) for name in self.tensors}

    def change(self, kind, function):
        """function(array) -> array for the tensor of this kind in every block."""
        for name, (array, stored) in self.tensors.items():
            if re.sub(r"^blk\.\d+\.", "", name) == kind:
                changed = function(array)
                assert changed.shape == array.shape
                self.tensors[name] = (changed, stored)

    def fingerprint(self):
        """Equal for two models that would give the same file."""
        return repr(self.keys), {name: array.tobytes() for name, (array, _) in self.tensors.items()}

    def quantize(self, stored):
        """Sets the type of every matrix whose rows hold whole blocks of 32."""
        for name, (array, old) in self.tensors.items():
            if old != "F32" and array.ndim > 1 and array.shape[-1] % 32 == 0:
                self.tensors[name] = (array, stored)


# ---- reading a folder ---------------------------------------------------------------------------


def read_safetensors(path):
    """name -> (float32 array, "BF16" | "F16" | "F32"), or (int64 array, "I64")."""
    import numpy
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        raw = numpy.frombuffer(data[begin:end], {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I64": "<i8"}[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(numpy.uint32) << 16).view(numpy.float32)
        kind = numpy.int64 if entry["dtype"] == "I64" else numpy.float32
        tensors[name] = (raw.astype(kind).reshape(entry["shape"]), entry["dtype"])
    return tensors


def read_folder(folder):
    """(config of the text model, its tensors without the prefix of their names)."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        top = json.load(file)
    config = top.get("text_config", top)
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(read_safetensors(os.path.join(folder, name)))
    plain = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^model\.(language_model\.)?", "", name)
        if not name.startswith(("visual.", "mtp.")):
            plain[name] = tensor
    return config, plain


def rope_of(config):
    """Both ways of writing it, the newer one wins."""
    rope = dict(config.get("rope_scaling") or {})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in config:
            rope[key] = config[key]
    rope.update(config.get("rope_parameters") or {})
    return rope


# ---- keys ---------------------------------------------------------------------------------------


def rope_keys(model, config, head_dim):
    rope = rope_of(config)
    model.set("rope.freq_base", float(rope.get("rope_theta", 10000.0)))
    if model.arch in HYBRIDS:
        model.set("rope.dimension_count", int(head_dim * rope.get("partial_rotary_factor", 1.0 if model.arch == "qwen4exp" else 0.25)))
    if "mrope_section" in rope:
        model.set("rope.dimension_sections", [*rope["mrope_section"], 0])
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return
    if kind != "yarn":
        common.fail(f"rope type {kind} is not known here")
    import math
    factor = float(rope["factor"])
    model.set("rope.scaling.type", "yarn")
    model.set("rope.scaling.factor", factor)
    model.set("rope.scaling.original_context_length",
              int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"]))
    for ours, theirs in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if rope.get(theirs) is not None:
            model.set(f"rope.scaling.{ours}", float(rope[theirs]))
    if rope.get("attention_factor") is not None:  # GGUF: relative to the usual one
        model.set("rope.scaling.attn_factor", rope["attention_factor"] / (0.1 * math.log(factor) + 1.0))


def delta_keys(model, config):
    n_v, v_dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
    model.set("ssm.conv_kernel", config["linear_conv_kernel_dim"])
    model.set("ssm.state_size", config["linear_key_head_dim"])
    model.set("ssm.group_count", config["linear_num_key_heads"])
    model.set("ssm.time_step_rank", n_v)
    model.set("ssm.inner_size", n_v * v_dim)
    kinds = config["layer_types"]
    recurrent = [kind == "linear_attention" for kind in kinds]
    interval = config.get("full_attention_interval") or recurrent.index(False) + 1
    if recurrent == [(i + 1) % interval != 0 for i in range(len(recurrent))]:
        model.set("full_attention_interval", interval)
    model.set("attention.recurrent_layers", recurrent)


def expert_keys(model, config):
    model.set("expert_count", config.get("num_experts") or config["num_local_experts"])
    model.set("expert_used_count", config["num_experts_per_tok"])
    model.set("expert_feed_forward_length", config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size"):
        model.set("expert_shared_feed_forward_length", config["shared_expert_intermediate_size"])
    usual = RENORMALISED[model.arch]
    model.set("expert_weights_norm", True if model.arch == "qwen35moe" else bool(config.get("norm_topk_prob", usual)))


def stream_keys(model, config):
    """Of qwen4exp; what the hash needs comes from tensors (take_ngrams)."""
    model.set("hyper_connection.count", config["hc_count"])
    model.set("hyper_connection.low_rank", config["hc_lowrank"])
    model.set("attention.indexer.head_count", config["indexer_n_heads"])
    model.set("attention.indexer.key_length", config["indexer_head_dim"])
    model.set("attention.indexer.top_k", config["indexer_budget"])
    model.set("attention.compress_ratios", [0 if kind == "linear_attention" else config["indexer_compress_ratio"]
                                            for kind in config["layer_types"]])
    end = config["eos_token_id"]
    model.set("ple.layers", [layer - 1 for layer in config["ple_layer_ids"]])
    model.set("ple.ngram_size", config["ngram_size"])
    model.set("ple.heads_per_ngram", config["heads_per_ngram"])
    model.set("ple.conv_kernel", config["ple_conv_kernel_size"])
    model.set("ple.eos_token_id", end[0] if isinstance(end, list) else end)
    model.set("embedding_length_per_layer_input",
              config["ple_embed_dim"] // ((config["ngram_size"] - 1) * config["heads_per_ngram"]))


def keys_of(config):
    """A Model with its keys and no tensors yet."""
    model = Model()
    model.keys["general.architecture"] = ARCHITECTURES[config["model_type"]][0]
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    model.set("block_count", config["num_hidden_layers"])
    model.set("context_length", config["max_position_embeddings"])
    model.set("embedding_length", hidden)
    if config.get("intermediate_size"):
        model.set("feed_forward_length", config["intermediate_size"])
    model.set("attention.head_count", heads)
    model.set("attention.head_count_kv", config["num_key_value_heads"])
    if config.get("head_dim"):
        model.set("attention.key_length", head_dim)
        model.set("attention.value_length", head_dim)
    model.set("attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    rope_keys(model, config, head_dim)
    if "linear_num_value_heads" in config:
        delta_keys(model, config)
    if model.arch in RENORMALISED:
        expert_keys(model, config)
    if model.arch == "qwen4exp":
        stream_keys(model, config)
    return model


# ---- tensors ------------------------------------------------------------------------------------


class Heads:
    """Sizes of a delta-net, and the two orders of its value heads."""

    def __init__(self, config, tiled):
        self.n_k, self.n_v = config["linear_num_key_heads"], config["linear_num_value_heads"]
        self.k_dim, self.v_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]
        self.ratio = self.n_v // self.n_k
        self.key, self.value = self.n_k * self.k_dim, self.n_v * self.v_dim
        self.tiled = tiled

    def tile(self, array, per_head, axis=0):
        """Rows (columns) of value heads: HF's head i * ratio + j becomes GGUF's j * n_k + i."""
        import numpy
        if not self.tiled:
            return array
        shape = array.shape
        split = (*shape[:axis], self.n_k, self.ratio, per_head, *shape[axis + 1:])
        return numpy.ascontiguousarray(array.reshape(split).swapaxes(axis, axis + 1).reshape(shape))

    def tile_v_part(self, array):
        """The last rows of [q; k; v]."""
        import numpy
        return numpy.concatenate([array[:2 * self.key], self.tile(array[2 * self.key:], self.v_dim)])

    def unpack(self, array):
        """Next's rows [q k v z] of each key head, as ([q; k; v], z)."""
        import numpy
        part, hidden = self.ratio * self.v_dim, array.shape[1]
        grouped = array.reshape(self.n_k, 2 * self.k_dim + 2 * part, hidden)
        cuts = numpy.split(grouped, [self.k_dim, 2 * self.k_dim, 2 * self.k_dim + part], axis=1)
        q, k, v, z = (cut.reshape(-1, hidden) for cut in cuts)
        return numpy.concatenate([q, k, v]), z


def convert_delta(name, array, heads):
    """[(GGUF name, array)] of one tensor of a delta-net."""
    import numpy
    if name == "linear_attn.in_proj_qkvz.weight":
        qkv, z = heads.unpack(array)
        return [("attn_qkv.weight", qkv), ("attn_gate.weight", z)]
    if name == "linear_attn.A_log":
        exact = -numpy.exp(array.astype(numpy.float64))
        return [("ssm_a", heads.tile(exact.astype(numpy.float32), 1))]
    if name == "linear_attn.dt_bias":
        return [("ssm_dt.bias", heads.tile(array, 1))]
    short = LAYER_NAMES[name.removesuffix(".weight")]
    if short == "attn_qkv":
        array = heads.tile_v_part(array)
    elif short == "ssm_conv1d":
        array = heads.tile_v_part(array.reshape(array.shape[0], array.shape[2]))
    elif short == "attn_gate":
        array = heads.tile(array, heads.v_dim)
    elif short in ("ssm_beta", "ssm_alpha"):
        array = heads.tile(array, 1)
    elif short == "ssm_out":
        array = heads.tile(array, heads.v_dim, axis=1)
    return [(short + ".weight", array)]


def stack_experts(tensors, layer):
    """Takes the experts of a layer out of tensors: [(GGUF name, array [expert, rows, columns], type)]."""
    import numpy
    found = []
    prefix = f"layers.{layer}.mlp.experts."
    if prefix + "gate_up_proj" in tensors:
        both, stored = tensors.pop(prefix + "gate_up_proj")
        down, _ = tensors.pop(prefix + "down_proj")
        gate, up = numpy.split(both, 2, axis=1)
        return [(f"ffn_{part}_exps.weight", array, stored) for part, array in (("gate", gate), ("up", up), ("down", down))]
    for part in ("gate", "up", "down"):
        names = [f"{prefix}{e}.{part}_proj.weight" for e in range(4096) if f"{prefix}{e}.{part}_proj.weight" in tensors]
        if names:
            taken = [tensors.pop(name) for name in names]
            found.append((f"ffn_{part}_exps.weight", numpy.stack([array for array, _ in taken]), taken[0][1]))
    return found


def take_ngrams(model, tensors):
    """Takes the n-gram table and its hash constants out of tensors: the keys are set, (array, type) of the table returned."""
    import numpy
    shards = {}
    stored = None
    for name in [name for name in tensors if ".ple_embedding." in name]:
        array, kind = tensors.pop(name)
        last = name.split(".ple_embedding.")[1]
        if kind == "I64":
            key = {"layer_multipliers": "layer_multipliers", "ngram_heads_offsets": "head_offsets",
                   "ngram_heads_vocab_sizes": "head_vocab_sizes"}[last]
            model.set(f"ple.{key}", [int(x) for x in array])
        else:
            shards[int(re.fullmatch(r"ngram_embedding\.shard_(\d+)\.weight", last).group(1))] = array
            stored = kind
    return numpy.concatenate([shards[i] for i in sorted(shards)]), stored


def convert_rest(arch, name, array, config):
    """[(GGUF name, array)] of one tensor of a block that is not of a delta-net."""
    import numpy
    stem, end = name.rsplit(".", 1)
    if stem == "post_attention_layernorm":
        return [("post_attention_norm.weight" if arch in HYBRIDS else "ffn_norm.weight", array)]
    if stem == "self_attn.indexer.index_qk_proj":
        q, k = numpy.split(array, [config["indexer_n_heads"] * config["indexer_head_dim"]])
        return [("indexer.q_proj.weight", q), ("indexer.k_proj.weight", k)]
    if stem == "mlp.shared_expert_gate":
        array = array.reshape(-1)
    elif stem == "ple.conv1d":
        array = array.reshape(array.shape[0], array.shape[2])
    return [(f"{LAYER_NAMES[stem]}.{end}", array)]


def convert(folder):
    """The Model of a folder."""
    config, tensors = read_folder(folder)
    arch, centred, tiled = ARCHITECTURES[config["model_type"]]
    model = keys_of(config)
    heads = Heads(config, tiled) if arch in HYBRIDS else None

    def put(name, array, stored):
        kind = name.split(".")[-2] if name.endswith((".weight", ".bias")) else name
        if array.ndim == 1 or kind in FLOAT32:
            stored = "F32"
        model.tensors[name] = (array, stored)

    if arch == "qwen4exp":
        put("per_layer_token_embd.weight", *take_ngrams(model, tensors))
    for layer in range(config["num_hidden_layers"]):
        for name, array, stored in stack_experts(tensors, layer):
            put(f"blk.{layer}.{name}", array, stored)
    for name, (array, stored) in tensors.items():
        if centred and re.search(r"norm\.weight$|\.ple\.norm_", name) and "linear_attn" not in name:
            array = array + array.dtype.type(1)
        match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        if not match:
            put(f"{TOP_NAMES[name.removesuffix('.weight')]}.weight", array, stored)
            continue
        layer, rest = match.groups()
        if rest.startswith("linear_attn."):
            done = convert_delta(rest, array, heads)
        else:
            done = convert_rest(arch, rest, array, config)
        for short, value in done:
            put(f"blk.{layer}.{short}", value, stored)
    return model


# ---- writing ------------------------------------------------------------------------------------


def write(model, path):
    """The GGUF file; appears under its name when it is whole."""
    import gguf
    import numpy
    writer = gguf.GGUFWriter(path + ".new", model.arch)
    for key, value in model.keys.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            kind = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.INT64}[type(value[0])]
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kind)
    for name, (array, stored) in sorted(model.tensors.items()):
        kind = gguf.GGMLQuantizationType[stored]
        array = numpy.ascontiguousarray(array)
        if stored in ("F16", "F32"):
            writer.add_tensor(name, array.astype({"F16": numpy.float16, "F32": numpy.float32}[stored]))
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".new", path)


def compare(model, path):
    """What another converter's file has that ours has not, or otherwise; a list of short sentences."""
    import gguf
    import numpy
    reader = gguf.GGUFReader(path)
    found = []
    stored = {name: field.contents() for name, field in reader.fields.items()}
    for key, value in model.keys.items():
        other = stored.get(key)
        same = other == numpy.float32(value) if isinstance(value, float) else other == value
        if not same:
            found.append(f"{key} is {other}, want {value}")
    found += [f"{key} is not expected" for key in stored if key.startswith(model.arch + ".") and key not in model.keys]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in sorted(set(model.tensors) ^ set(tensors)):
        found.append(f"{name} is {'missing' if name in model.tensors else 'not expected'}")
    for name in sorted(set(model.tensors) & set(tensors)):
        want, tensor = model.tensors[name][0], tensors[name]
        have = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if have.size != want.size or have.shape[-1] != want.shape[-1] or not numpy.array_equal(have.ravel(), want.ravel()):
            found.append(f"{name} has other values")
    return found


def family_folders():
    """Names of the committed folders, in order."""
    return sorted(name for name in os.listdir(FAMILIES) if os.path.isfile(os.path.join(FAMILIES, name, "config.json")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--mutant", metavar="NAME")
    parser.add_argument("--all", metavar="OUT_FOLDER")
    options = parser.parse_args()
    common.enter("test")
    if options.all:
        os.makedirs(options.all, exist_ok=True)
        for name in family_folders():
            model = convert(os.path.join(FAMILIES, name))
            write(model, os.path.join(options.all, name + ".gguf"))
            model.quantize("Q8_0")
            write(model, os.path.join(options.all, name + "-q8.gguf"))
        return
    if not options.out:
        parser.error("want FOLDER and OUT.gguf, or --all OUT_FOLDER")
    model = convert(options.folder)
    if options.mutant:
        import family_mutants
        if options.mutant not in family_mutants.MUTANTS:
            parser.error(f"no mutant is called {options.mutant!r} (there are: {', '.join(family_mutants.MUTANTS)})")
        family_mutants.MUTANTS[options.mutant](model)
    write(model, options.out)


if __name__ == "__main__":
    main()
