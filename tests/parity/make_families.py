#!/usr/bin/env python3
"""Makes tests/fixtures/families: a tiny random model of every shape that matters in every family of Qwen text models.

Use:   python3 tests/parity/make_families.py [--only NAME] [--long] [--out tests/fixtures/families]

Each NAME is a folder as transformers saves it (config.json, generation_config.json, *.safetensors) with tokens.json (150 ids)
and logits.npy (float32 [150, vocabulary], computed by transformers in float32 from the saved folder, eager attention, the
delta-net in PyTorch). Some models with delta-nets also have long.tokens.json (1000 ids) and long.logits.npy, the logits at
LONG_POSITIONS of it; --long makes only these, from folders that are there.

Default initialisation would leave biases zero and norms one, and the logits so flat that a broken model passes: here every
parameter is random, biases, norms and decays too, with gains that keep every part of a layer audible. Weights are representable
in BF16 (F16 where they are stored so): both sides compute with the same numbers.

Checked before a model is kept: standard deviation of the logits >= 1; float32 within 1e-4 of float64; the last expert or block
chosen and the first not chosen are further apart than rounding could turn. The same seed gives the same files.
Runs in the "oracle" environment (made on first use, several GB).
"""

import argparse
import json
import logging
import os
import shutil
import sys

import common

N_TOKENS = 150
ENDS = (40, 60, 61)  # positions of an end-of-text token, which n-grams do not reach across
LONG_NAMES = ("qwen3next-r3", "qwen35-r1", "qwen35-r2", "qwen35-r3", "qwen35moe-r2", "qwen35moe-r3")
N_LONG, LONG_TRIES = 1000, 100
LONG_POSITIONS = (0, 62, 63, 64, 65, 127, 128, 255, 256, 511, 512, 640, 959, 960, 998, 999)  # delta-nets go by chunks of 64
STD_MIN, FLOAT64_MAX, GAP_MIN = 1.0, 1e-4, 2e-4

# An epsilon of 1e-6 would be inaudible in these.
DENSE = {"vocab_size": 160, "max_position_embeddings": 4096, "rms_norm_eps": 4e-3, "bos_token_id": None, "eos_token_id": 7,
         "pad_token_id": None}
HYBRID = {"linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6}  # the norm behind the delta-net hears it
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 2, "out_hidden_size": 48,
          "num_position_embeddings": 4}


def rope(theta, **more):
    return {"rope_theta": theta, "rope_type": "default", **more}


# NAME: (seed, model type, config, how it is saved)
MODELS = {
    "qwen2-tied": (1, "qwen2", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, intermediate_size=80, vocab_size=161,
        tie_word_embeddings=True, rope_parameters=rope(1e4)), {"dtype": "float32"}),
    "qwen2-yarn": (2, "qwen2", dict(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        tie_word_embeddings=False, rope_parameters=rope(
            1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=512)), {"old_config": True}),
    "qwen2moe-shared": (3, "qwen2_moe", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, intermediate_size=64, num_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=32, norm_topk_prob=False,
        mlp_only_layers=[1], tie_word_embeddings=False, rope_parameters=rope(1e6)), {}),
    "qwen2moe-sparse": (4, "qwen2_moe", dict(
        hidden_size=40, num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=1, intermediate_size=48, num_experts=5,
        num_experts_per_tok=3, moe_intermediate_size=32, shared_expert_intermediate_size=48, norm_topk_prob=True,
        decoder_sparse_step=2, tie_word_embeddings=True, rope_parameters=rope(1e4)), {"dtype": "float16"}),
    "qwen3-tied": (5, "qwen3", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1, head_dim=16, intermediate_size=64,
        tie_word_embeddings=True, rope_parameters=rope(1e6)), {"old_config": True}),
    "qwen3-yarn": (6, "qwen3", dict(
        hidden_size=40, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=24, intermediate_size=72,
        tie_word_embeddings=False, rope_parameters=rope(
            1e5, rope_type="yarn", factor=3.0, original_max_position_embeddings=1024, attention_factor=1.25, beta_fast=24.0,
            beta_slow=2.0)), {}),
    "qwen3moe-norm": (7, "qwen3_moe", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True, tie_word_embeddings=False,
        rope_parameters=rope(1e6)), {}),
    "qwen3moe-plain": (108, "qwen3_moe", dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=24, intermediate_size=64,
        num_experts=7, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=False, mlp_only_layers=[2],
        tie_word_embeddings=True, rope_parameters=rope(1e5)), {"fused": True}),
    "qwen3next-r1": (9, "qwen3_next", dict(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=16, intermediate_size=64,
        linear_num_key_heads=3, linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, norm_topk_prob=True,
        tie_word_embeddings=False, rope_parameters=rope(1e6, partial_rotary_factor=0.5)), {}),
    "qwen3next-r3": (10, "qwen3_next", dict(
        hidden_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=64,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=5,
        num_experts_per_tok=3, moe_intermediate_size=16, shared_expert_intermediate_size=32, norm_topk_prob=False,
        mlp_only_layers=[1], layer_types=["linear_attention", "full_attention"] * 2, rms_norm_eps=1e-3,
        tie_word_embeddings=True, rope_parameters=rope(1e4, partial_rotary_factor=0.25)), {}),
    "qwen35-r1": (11, "qwen3_5_text", dict(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=32, intermediate_size=64,
        linear_num_key_heads=3, linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=16,
        tie_word_embeddings=True, rope_parameters=rope(1e6, partial_rotary_factor=0.25, mrope_section=[2, 1, 1],
                                                       mrope_interleaved=True)), {}),
    "qwen35-r2": (12, "qwen3_5", dict(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=64,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=24, linear_value_head_dim=16, rms_norm_eps=1e-3,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"], tie_word_embeddings=False,
        rope_parameters=rope(1e4, partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)), {}),
    "qwen35-r3": (13, "qwen3_5_text", dict(
        hidden_size=40, num_hidden_layers=5, num_attention_heads=3, num_key_value_heads=3, head_dim=32, intermediate_size=48,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention", "linear_attention"],
        tie_word_embeddings=False, rope_parameters=rope(
            1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=1024, partial_rotary_factor=0.5,
            mrope_section=[3, 3, 2], mrope_interleaved=True)), {}),
    "qwen35moe-r2": (14, "qwen3_5_moe", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, linear_num_key_heads=3,
        linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, tie_word_embeddings=False, rms_norm_eps=1e-3,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        rope_parameters=rope(1e6, partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)),
        {"fused": True, "shards": "80KB"}),
    "qwen35moe-r3": (15, "qwen3_5_moe_text", dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=32, linear_num_key_heads=1,
        linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=32, num_experts=5, num_experts_per_tok=3,
        moe_intermediate_size=32, shared_expert_intermediate_size=32, tie_word_embeddings=True,
        rope_parameters=rope(1e4, partial_rotary_factor=0.25, mrope_section=[2, 1, 1], mrope_interleaved=True)), {}),
    "qwen4exp-r3": (16, "qwen4_exp_text", dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=16, linear_num_key_heads=1,
        linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, norm_topk_prob=True, hc_count=4, hc_lowrank=12,
        layer_types=["linear_attention", "linear_attention", "full_attention", "full_attention"], indexer_n_heads=8,
        indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=24, indexer_compress_ratio=4, output_gate_type="sigmoid",
        ple_layer_ids=[2], ple_embed_dim=32, ple_conv_kernel_size=4, ngram_size=3, heads_per_ngram=2, ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=8, split_ngram_parts=4, tie_word_embeddings=False, rope_parameters=rope(
            1e4, partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)), {}),
    "qwen4exp-r2": (27, "qwen4_exp_text", dict(
        hidden_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=24, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=5, num_experts_per_tok=3,
        moe_intermediate_size=16, shared_expert_intermediate_size=32, norm_topk_prob=False, hc_count=2, hc_lowrank=24,
        layer_types=["linear_attention", "full_attention", "linear_attention"], indexer_n_heads=7, indexer_kv_heads=1,
        indexer_head_dim=32, indexer_budget=32, indexer_compress_ratio=2, output_gate_type="sigmoid", ple_layer_ids=[1],
        ple_embed_dim=24, ple_conv_kernel_size=3, ngram_size=2, heads_per_ngram=3, ngram_vocab_size_base=70, seed=99,
        make_ngram_vocab_size_divisible_by=6, split_ngram_parts=3, tie_word_embeddings=True, rope_parameters=rope(
            1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=1024, partial_rotary_factor=0.5,
            mrope_section=[2, 2, 2], mrope_interleaved=True)), {}),
}
COMPOSITE = {"qwen3_5": "Qwen3_5ForConditionalGeneration", "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"}


# Standard deviation of a matrix's outputs when its inputs have 1; by a part of its name, the first that fits.
GAINS = {"lm_head": 3.0, "input_mix": 2.5, "block_inject": 3.0, "mlp.gate.": 1.5, "shared_expert_gate": 1.5, "in_proj_a.": 1.3,
         "in_proj_b": 1.3, "experts.": 2.0, "shared_expert.": 1.4, "mlp.": 1.2, "": 1.0}
HEAD_OF_STREAMS = 6.0  # the mix of several streams is quieter
BIASES = {"q_proj": 0.6, "k_proj": 1.0, "v_proj": 0.3}


def spread(name, shape, config):
    """(mean, standard deviation) of a parameter."""
    import numpy
    hybrid = "linear_num_key_heads" in config
    last = name.split(".")[-1]
    fan = 1.0 / float(numpy.sqrt(shape[-1]))
    head = HEAD_OF_STREAMS if "hc_count" in config else GAINS["lm_head"]
    if last == "A_log":
        return -1.0, 0.7
    if last == "dt_bias":
        return 0.0, 0.7
    if "conv1d" in name:
        return 0.0, 0.6
    if last == "bias":
        return 0.0, BIASES[name.split(".")[-2]]
    if "norm" in name:
        return 0.0 if hybrid and "linear_attn" not in name else 1.0, 0.25
    if "ngram_embedding" in name or ("embed_tokens" in name and not config["tie_word_embeddings"]):
        return 0.0, 1.0
    if "embed_tokens" in name or "lm_head" in name:
        return 0.0, head * fan
    return 0.0, next(gain for part, gain in GAINS.items() if part in name) * fan


def randomise(model, seed, config, dtype):
    """Every parameter of the model, in the order of names, rounded to what the folder stores."""
    import numpy
    import torch
    rng = numpy.random.Generator(numpy.random.PCG64(seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            mean, deviation = (0.0, 0.1) if "visual" in name else spread(name, parameter.shape, config)
            values = torch.from_numpy(mean + deviation * rng.standard_normal(tuple(parameter.shape)))
            parameter.copy_(values.to(torch.float16 if dtype == "float16" else torch.bfloat16))


def rewrite_old(path):
    """The config as checkpoints before transformers 5 have it: rope_theta on top, rope_scaling with `type`."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save(name, folder):
    """Makes and saves one random model."""
    import torch
    import transformers
    seed, kind, config, how = MODELS[name]
    config = {**DENSE, **(HYBRID if "linear_num_key_heads" in config else {}), **config}
    if kind in COMPOSITE:
        made = transformers.AutoConfig.for_model(kind, text_config=config, vision_config=VISION,
                                                 tie_word_embeddings=config["tie_word_embeddings"])
        model = getattr(transformers, COMPOSITE[kind])(made)
    else:
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **config))
    dtype = how.get("dtype", "bfloat16")
    randomise(model, seed, config, dtype)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=how.get("shards", "1GB"),
                                                    save_original_format=not how.get("fused"))
    if how.get("old_config"):
        rewrite_old(os.path.join(folder, "config.json"))


def load(folder, kind, dtype):
    """The model that the folder holds, as anyone would load it."""
    import torch
    import transformers
    loader = getattr(transformers, COMPOSITE[kind]) if kind in COMPOSITE else transformers.AutoModelForCausalLM
    model, report = loader.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager",
                                           experts_implementation="eager", output_loading_info=True)
    missing = {what: names for what, names in report.items() if names}
    if missing:
        common.fail(f"{folder}: transformers did not load it whole: {missing}")
    return model.eval()


def compute(model, tokens):
    """(logits, smallest distance between the last that was chosen and the first that was not, of experts and of blocks that an
    indexer chooses, as a part of the former)."""
    import torch
    gaps = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.topk, torch.Tensor.topk):
                k = args[1] if len(args) > 1 else kwargs["k"]
                best = args[0].double().sort(-1, descending=True).values
                if k < best.shape[-1]:
                    gaps.append(float(((best[..., k - 1] - best[..., k]) / best[..., k - 1].clamp(min=1e-30)).min()))
            return function(*args, **(kwargs or {}))

    with torch.inference_mode(), Watch():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.double().numpy(), min(gaps, default=None)


def make_long(name, out):
    """The long prompt of a folder: the first of some that is fit."""
    import numpy
    seed, kind, _, _ = MODELS[name]
    folder = os.path.join(out, name)
    model, exact_model = (load(folder, kind, dtype) for dtype in ("float32", "float64"))
    for at in range(seed + 2000, seed + 2000 + LONG_TRIES):
        rng = numpy.random.Generator(numpy.random.PCG64(at))
        tokens = [int(x) for x in rng.integers(0, model.config.get_text_config().vocab_size, N_LONG)]
        logits, gap = compute(model, tokens)
        if gap is not None and gap < GAP_MIN:
            continue
        rounding = float(numpy.abs(logits - compute(exact_model, tokens)[0]).max())
        if rounding <= FLOAT64_MAX:
            break
    else:
        common.fail(f"{name}: none of {LONG_TRIES} long prompts is fit")
    with open(os.path.join(folder, "long.tokens.json"), "w", encoding="ascii") as file:
        file.write(json.dumps(tokens) + "\n")
    numpy.save(os.path.join(folder, "long.logits.npy"), logits[list(LONG_POSITIONS)].astype(numpy.float32))
    print(f"{name}, {N_LONG} tokens: seed {at}, float32 against float64 {rounding:.1e}, gap "
          f"{gap if gap is None else round(gap, 5)}", flush=True)


def make(name, out):
    """One folder; a line of facts; fails when the model is not fit to be a fixture."""
    import numpy
    seed, kind, config, _ = MODELS[name]
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    save(name, folder)
    model = load(folder, kind, "float32")
    rng = numpy.random.Generator(numpy.random.PCG64(seed + 1000))
    tokens = [int(x) for x in rng.integers(0, model.config.get_text_config().vocab_size, N_TOKENS)]
    for at in ENDS if "ple_layer_ids" in config else ():
        tokens[at] = DENSE["eos_token_id"]
    logits, gap = compute(model, tokens)
    exact, _ = compute(load(folder, kind, "float64"), tokens)
    with open(os.path.join(folder, "tokens.json"), "w", encoding="ascii") as file:
        file.write(json.dumps(tokens) + "\n")
    numpy.save(os.path.join(folder, "logits.npy"), logits.astype(numpy.float32))
    size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    rounding = float(numpy.abs(logits - exact).max())
    print(f"{name}: seed {seed}, {size} bytes, std {logits.std():.2f}, largest {numpy.abs(logits).max():.1f}, float32 against "
          f"float64 {rounding:.1e}, gap {gap if gap is None else round(gap, 5)}", flush=True)
    if logits.std() < STD_MIN or not rounding <= FLOAT64_MAX or (gap is not None and gap < GAP_MIN):
        common.fail(f"{name} is no fit fixture: take another seed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--long", action="store_true", help="only the long prompts")
    parser.add_argument("--out", default=os.path.join(common.FIXTURES, "families"))
    options = parser.parse_args()
    common.enter("oracle")
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("highest")
    for name in [options.only] if options.only else MODELS:
        if not options.long:
            make(name, options.out)
        if name in LONG_NAMES:
            make_long(name, options.out)
    print(f"{options.out}: transformers {transformers.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
