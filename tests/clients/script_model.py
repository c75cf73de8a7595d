"""A model whose answers are known: it says a script, whatever it is asked and however it is sampled. Not a test itself.

Nothing is mixed between positions: attention and feed-forward blocks are zeros, so the residual stream is the embedding of
the newest token, which is a unit vector of its own. The head leads from each token of a script to the next one. A script
begins after the last token of the prompt; formats end it with one line break or with two, so a file can hold two scripts.
"""
import gguf
import numpy

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
ADDED = [("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED),
         ("</think>", USER_DEFINED), ("<tool_call>", USER_DEFINED), ("</tool_call>", USER_DEFINED)]
PIECE_CHARACTERS = 3
HEAD_DIM, FFN = 32, 32
SURE = 8.0  # times the square root of the width: a logit that no temperature or penalty overtakes

# Templates are recognised by these marks; the text is never executed.
TEMPLATES = {
    "qwen2.5": "<|im_start|> <tool_call>\\n{\\\"name\\\": <function-name> You are Qwen, created by Alibaba Cloud.",
    "qwen3": "<|im_start|> <tool_call>\\n{\\\"name\\\": <function-name> reasoning_content enable_thinking",
    "qwen3.5": "<|im_start|> <function= enable_thinking <think>",
}


def byte_alphabet():
    """The character that stands for each byte in a byte-level vocabulary."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def pieces_of(script, used):
    """The script in pieces that are in no other place: each is a token, and a state."""
    found, at = [], 0
    while at < len(script):
        n = PIECE_CHARACTERS
        while script[at:at + n] in used and at + n < len(script):
            n += 1
        piece = script[at:at + n]
        if (len(piece) < 2 or piece in used) and found:
            used.discard(found[-1])
            piece = found.pop() + piece
        found.append(piece)
        used.add(piece)
        at += n
    return found


def write(path, template, after_one_line, after_two_lines):
    """Writes the file. Each script is a text; the answer ends after it."""
    alphabet = byte_alphabet()
    mapped = lambda text: "".join(alphabet[b] for b in text.encode())
    tokens, types = [alphabet[b] for b in range(256)] + [mapped("\n\n")], [NORMAL] * 257
    used = {chr(b) for b in range(128)} | {"\n\n"}
    chains = []
    for first, script in (("\n", after_one_line), ("\n\n", after_two_lines)):
        pieces = [mapped(p) for p in pieces_of(script, used)]
        chains.append([mapped(first), *pieces])
        tokens += pieces
        types += [NORMAL] * len(pieces)
    for text, kind in ADDED:
        tokens.append(text)
        types.append(kind)
    if len(set(tokens)) != len(tokens):
        raise SystemExit("a script has a token twice")
    width = (len(tokens) + 31) // 32 * 32
    ids = {text: i for i, text in enumerate(tokens)}
    embedding, head = (numpy.zeros((len(tokens), width), numpy.float32) for _ in range(2))
    embedding[range(len(tokens)), range(len(tokens))] = 1
    for chain in chains:
        for one, following in zip(chain, [*chain[1:], "<|im_end|>"]):
            head[ids[following], ids[one]] = SURE
    put(path, TEMPLATES[template], tokens, types, width, {"token_embd.weight": embedding, "output.weight": head})


def put(path, template, tokens, types, width, tensors):
    w = gguf.GGUFWriter(path, "qwen3")
    w.add_name("script")
    w.add_block_count(1)
    w.add_context_length(4096)
    w.add_embedding_length(width)
    w.add_feed_forward_length(FFN)
    w.add_head_count(1)
    w.add_head_count_kv(1)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(1e6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(["\u010a \u010a"])
    w.add_eos_token_id(tokens.index("<|im_end|>"))
    w.add_chat_template("{# " + template + " #}")
    shapes = {"attn_q": (HEAD_DIM, width), "attn_k": (HEAD_DIM, width), "attn_v": (HEAD_DIM, width),
              "attn_output": (width, HEAD_DIM), "ffn_gate": (FFN, width), "ffn_up": (FFN, width), "ffn_down": (width, FFN)}
    tensors |= {f"blk.0.{name}.weight": numpy.zeros(shape, numpy.float32) for name, shape in shapes.items()}
    norms = {"output_norm": width, "blk.0.attn_norm": width, "blk.0.ffn_norm": width, "blk.0.attn_q_norm": HEAD_DIM,
             "blk.0.attn_k_norm": HEAD_DIM}
    tensors |= {f"{name}.weight": numpy.ones(n, numpy.float32) for name, n in norms.items()}
    for name, values in tensors.items():
        w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
