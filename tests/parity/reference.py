#!/usr/bin/env python3
"""The reference: transformers in float32 on the dequantised weights of a GGUF file of the qwen2 family.

Use:   python3 tests/parity/reference.py --model FILE.gguf --tokens FILE --out OUT.npy [--positions N] [--threads 2]

Writes float32 logits [n, vocabulary]. Runs in the "oracle" environment (made on first use, several GB). Weights come
from transformers' own GGUF loader; before any logits are made, every tensor is compared with the gguf package's
dequantisation, and rope base, eps, head counts, widths and the presence of an output matrix with the file's metadata.
"""

import argparse
import logging
import os
import sys

import common


def open_model(path, threads=2, check=True):
    """The model, float32, in evaluation mode, checked against the file; fails with one line."""
    os.environ["TQDM_DISABLE"] = "1"
    import gguf
    import numpy
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    folder, name = os.path.split(os.path.abspath(path))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model.eval()
    if not check:
        return model

    reader = gguf.GGUFReader(path)
    config = model.config
    stored = {key: reader.fields[key].contents() for key in reader.fields if key.startswith("qwen2.")}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for key, have in (("qwen2.block_count", config.num_hidden_layers),
                      ("qwen2.embedding_length", config.hidden_size),
                      ("qwen2.feed_forward_length", config.intermediate_size),
                      ("qwen2.attention.head_count", config.num_attention_heads),
                      ("qwen2.attention.head_count_kv", config.num_key_value_heads),
                      ("qwen2.rope.freq_base", config.rope_parameters["rope_theta"]),
                      ("qwen2.attention.layer_norm_rms_epsilon", config.rms_norm_eps)):
        if key in stored and abs(float(stored[key]) - float(have)) > 1e-12 * abs(float(have)):
            common.fail(f"{name}: {key} is {stored[key]}, transformers took {have}")
    if config.rope_parameters.get("rope_type", "default") != "default":
        common.fail(f"{name}: transformers took rope type {config.rope_parameters['rope_type']}, want default")
    if config.use_sliding_window or config.sliding_window is not None:
        common.fail(f"{name}: transformers turned a sliding window on")
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    if tied != ("output.weight" not in tensors):
        common.fail(f"{name}: output matrix is {'shared' if tied else 'separate'}, unlike the file")

    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not tied:
        names["output.weight"] = "lm_head.weight"
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for layer in range(config.num_hidden_layers):
        for short, long in parts.items():
            for end in ("weight", "bias"):
                names[f"blk.{layer}.{short}.{end}"] = f"model.layers.{layer}.{long}.{end}"
    state = model.state_dict()
    for short, long in names.items():
        if (short in tensors) != (long in state):
            common.fail(f"{name}: {short} is in {'the file' if short in tensors else 'transformers'} only")
        if short not in tensors:
            continue
        tensor = tensors.pop(short)
        want = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        have = state[long].numpy()
        if have.shape != want.shape or not numpy.array_equal(have, want):
            common.fail(f"{name}: {short} differs from the gguf package's dequantisation")
    if tensors:
        common.fail(f"{name}: transformers does not use {sorted(tensors)[0]}")
    return model


def logit_pieces(model, tokens, rows_at_once=128):
    """Yields (first position, float32 logits [rows, vocabulary]) over the whole list, one sequence, positions from 0."""
    import torch
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
        for begin in range(0, len(tokens), rows_at_once):
            yield begin, model.lm_head(hidden[begin:begin + rows_at_once]).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--positions", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    common.enter("oracle")
    import numpy
    if not os.path.isfile(options.model):
        common.fail(f"no such model file: {options.model}")
    tokens = common.read_tokens(options.tokens)[:options.positions or None]
    model = open_model(options.model, options.threads)
    array = numpy.lib.format.open_memmap(options.out + ".new", mode="w+", dtype=numpy.float32,
                                         shape=(len(tokens), model.config.vocab_size))
    for begin, rows in logit_pieces(model, tokens):
        array[begin:begin + len(rows)] = rows
    array.flush()
    os.rename(options.out + ".new", options.out)
    print(f"wrote {len(tokens)} x {model.config.vocab_size} reference logits", file=sys.stderr)


if __name__ == "__main__":
    main()
