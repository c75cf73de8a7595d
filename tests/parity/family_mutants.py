"""Models broken on purpose: one transform left out, or one term of the mathematics changed, after a right conversion.

Use: imported by reference_convert.py and families.py, where numpy is. MUTANTS: name -> function(model) that breaks a Model of
reference_convert.py in place, or leaves it as it is where it has no such part. A fixture whose logits stay the same under one
that changes its file would let that mistake pass.
"""

import re

import numpy


def zero(kind):
    return lambda model: model.change(kind, lambda a: a * 0)


def ones(kind):
    return lambda model: model.change(kind, lambda a: a * 0 + 1)


def shifted(kind, by):
    return lambda model: model.change(kind, lambda a: a + a.dtype.type(by))


def rolled(kind, axis=0):
    """Everything one place on, as if heads or experts were counted wrongly."""
    return lambda model: model.change(kind, lambda a: numpy.roll(a, 1, axis))


def key(name, function):
    """Changes one key where the file has it."""
    def mutate(model):
        if model.get(name) is not None:
            model.set(name, function(model.get(name)))
    return mutate


def swapped(first, second):
    """Two kinds of tensor of the same shape change places."""
    def mutate(model):
        for name in list(model.tensors):
            if re.sub(r"^blk\.\d+\.", "", name) == first:
                other = name.removesuffix(first) + second
                model.tensors[name], model.tensors[other] = model.tensors[other], model.tensors[name]
    return mutate


def after_all(*mutations):
    def mutate(model):
        for one in mutations:
            one(model)
    return mutate


# ---- delta-net ----------------------------------------------------------------------------------


def value_heads(model):
    """(key heads, value heads for each, elements of one, rows of q and k)."""
    n_k, n_v = model.get("ssm.group_count"), model.get("ssm.time_step_rank")
    return n_k, n_v // n_k, model.get("ssm.inner_size") // n_v, 2 * n_k * model.get("ssm.state_size")


def other_order(model, kind, n, first=0, axis=0):
    """Value heads as the other container orders them: tiled ones grouped by key head again, or the reverse."""
    n_k, ratio = value_heads(model)[:2]
    sides = (ratio, n_k) if model.arch != "qwen3next" else (n_k, ratio)

    def turn(a):
        head, tail = numpy.split(a, [first], axis)
        split = (*tail.shape[:axis], *sides, n, *tail.shape[axis + 1:])
        return numpy.concatenate([head, tail.reshape(split).swapaxes(axis, axis + 1).reshape(tail.shape)], axis)

    model.change(kind, turn)


def wrong_order(part):
    """One tensor, or all, whose value heads are in the wrong order."""
    rows = {"qkv": ("attn_qkv.weight", True, True, 0), "conv": ("ssm_conv1d.weight", True, True, 0),
            "z": ("attn_gate.weight", True, False, 0), "beta": ("ssm_beta.weight", False, False, 0),
            "alpha": ("ssm_alpha.weight", False, False, 0), "a": ("ssm_a", False, False, 0),
            "dt": ("ssm_dt.bias", False, False, 0), "out": ("ssm_out.weight", True, False, 1)}

    def mutate(model):
        if not model.get("ssm.group_count"):
            return
        v_dim, first = value_heads(model)[2:]
        for name in rows if part == "all" else [part]:
            kind, wide, behind, axis = rows[name]
            other_order(model, kind, v_dim if wide else 1, first if behind else 0, axis)
    return mutate


def packed_again(model):
    """Next's [q k v z] of each key head, taken for [q; k; v] and z."""
    if model.arch != "qwen3next":
        return
    n_k, ratio, v_dim, first = value_heads(model)
    for name in [name for name in model.tensors if name.endswith("attn_qkv.weight")]:
        other = name.replace("attn_qkv", "attn_gate")
        (qkv, stored), (z, _) = model.tensors[name], model.tensors[other]
        q, k, v = numpy.split(qkv, [first // 2, first])
        groups = [part.reshape(n_k, -1, qkv.shape[1]) for part in (q, k, v, z)]
        rows = numpy.concatenate(groups, axis=1).reshape(-1, qkv.shape[1])
        model.tensors[name], model.tensors[other] = (rows[:len(qkv)], stored), (rows[len(qkv):], stored)


def joint_gates(function):
    """Next's rows [b a] of each key head, as [key head, b or a, value head, hidden]."""
    def mutate(model):
        def change(a):
            return function(a.reshape(value_heads(model)[0], 2, -1, a.shape[1])).reshape(a.shape)
        model.change("ssm_ba.weight", change)
    return mutate


def decay_as_stored(model):
    """A_log in place of -exp(A_log)."""
    model.change("ssm_a", lambda a: numpy.log(-a))


def q_and_k_swapped(kind):
    """The two first parts of [q; k; v]."""
    def mutate(model):
        def change(a):
            half = value_heads(model)[3] // 2
            return numpy.concatenate([a[half:2 * half], a[:half], a[2 * half:]])
        if model.get("ssm.group_count"):
            model.change(kind, change)
    return mutate


# ---- attention, experts, positions --------------------------------------------------------------


def attention_gate(function):
    """The rows of a gated query, as [head, query or gate, element, hidden]."""
    def mutate(model):
        if model.get("ssm.group_count"):
            heads = model.get("attention.head_count")
            model.change("attn_q.weight", lambda a: function(a.reshape(heads, 2, -1, a.shape[1])).reshape(a.shape))
    return mutate


def gate_silent(a):
    a = a.copy()
    a[:, 1] = 0
    return a


def without_scaling(model):
    for name in list(model.keys):
        if ".rope.scaling." in name:
            del model.keys[name]


def swap_layers(model):
    """The feed-forward matrices of the first two blocks change places."""
    for name in [name for name in model.tensors if name.startswith("blk.0.ffn_") and "norm" not in name]:
        other = name.replace("blk.0.", "blk.1.")
        if other in model.tensors and model.tensors[other][0].shape == model.tensors[name][0].shape:
            model.tensors[name], model.tensors[other] = model.tensors[other], model.tensors[name]


MUTANTS = {
    "q bias": zero("attn_q.bias"),
    "k bias": zero("attn_k.bias"),
    "v bias": zero("attn_v.bias"),
    "q norm": ones("attn_q_norm.weight"),
    "k norm": ones("attn_k_norm.weight"),
    "attention norm": ones("attn_norm.weight"),
    "ffn norm": after_all(ones("ffn_norm.weight"), ones("post_attention_norm.weight")),
    "output norm": ones("output_norm.weight"),
    "delta norm": ones("ssm_norm.weight"),
    "delta norm + 1": shifted("ssm_norm.weight", 1),
    "q norm - 1": shifted("attn_q_norm.weight", -1),
    "k norm - 1": shifted("attn_k_norm.weight", -1),
    "attention norm - 1": shifted("attn_norm.weight", -1),
    "ffn norm - 1": after_all(shifted("ffn_norm.weight", -1), shifted("post_attention_norm.weight", -1)),
    "output norm - 1": shifted("output_norm.weight", -1),
    "epsilon": key("attention.layer_norm_rms_epsilon", lambda x: x / 10),
    "gate and up": swapped("ffn_gate.weight", "ffn_up.weight"),
    "attention gate": attention_gate(gate_silent),
    "attention gate first": attention_gate(lambda a: a[:, ::-1]),
    "attention gate in halves": attention_gate(lambda a: a.swapaxes(0, 1)),
    "rope base": key("rope.freq_base", lambda x: x * 2),
    "rope of all": key("rope.dimension_count", lambda x: x * 2),
    "rope scaling": without_scaling,
    "rope scaling factor": key("rope.scaling.factor", lambda x: x * 2),
    "rope scaling origin": key("rope.scaling.original_context_length", lambda x: x * 4),
    "rope scaling attention": key("rope.scaling.attn_factor", lambda x: x * 1.25),
    "beta fast": key("rope.scaling.yarn_beta_fast", lambda x: x * 4),
    "router": rolled("ffn_gate_inp.weight"),
    "renormalisation": key("expert_weights_norm", lambda x: not x),
    "experts used": key("expert_used_count", lambda x: x - 1),
    "expert order": after_all(*(rolled(f"ffn_{part}_exps.weight") for part in ("gate", "up", "down"))),
    "expert order, down": rolled("ffn_down_exps.weight"),
    "expert gate and up": swapped("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "shared expert": zero("ffn_down_shexp.weight"),
    "shared expert's gate": zero("ffn_gate_inp_shexp.weight"),
    "shared gate and up": swapped("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    "decay": decay_as_stored,
    "dt bias": zero("ssm_dt.bias"),
    "alpha and beta": swapped("ssm_alpha.weight", "ssm_beta.weight"),
    "joint alpha and beta": joint_gates(lambda a: a[:, ::-1]),
    "joint gates in halves": joint_gates(lambda a: a.swapaxes(0, 1)),
    "z heads": rolled("attn_gate.weight"),
    "taps reversed": lambda model: model.change("ssm_conv1d.weight", lambda a: a[:, ::-1]),
    "taps late": rolled("ssm_conv1d.weight", 1),
    "channels of q and k": q_and_k_swapped("ssm_conv1d.weight"),
    "q and k": q_and_k_swapped("attn_qkv.weight"),
    "packed rows": packed_again,
    **{f"order of {part}": wrong_order(part) for part in ("all", "qkv", "conv", "z", "beta", "alpha", "a", "dt", "out")},
    "order of layers": swap_layers,
    "hyper mix": zero("hc_attn_up.weight"),
    "hyper mix at the end": zero("output_hc_up.weight"),
    "hyper injection": zero("hc_ffn_inject.weight"),
    "order of streams": rolled("hc_attn_inject.weight"),
    "hyper norm - 1": shifted("hc_ffn_norm.weight", -1),
    "hyper norm at the end - 1": shifted("output_hc_norm.weight", -1),
    "index budget": key("attention.indexer.top_k", lambda x: x // 2),
    "index blocks": key("attention.compress_ratios", lambda x: [2 * n for n in x]),
    "index q norm - 1": shifted("indexer.q_norm.weight", -1),
    "index k norm - 1": shifted("indexer.k_norm.weight", -1),
    "n-gram rows": rolled("per_layer_token_embd.weight"),
    "n-gram multipliers": key("ple.layer_multipliers", lambda x: x[::-1]),
    "n-gram ends": key("ple.eos_token_id", lambda x: x + 1),
    "ple key": zero("ple_key.weight"),
    "ple value": zero("ple_value.weight"),
    "ple key norm - 1": shifted("ple_norm_key.weight", -1),
    "ple query norm - 1": shifted("ple_norm_query.weight", -1),
    "ple convolution norm - 1": shifted("ple_norm_conv.weight", -1),
    "ple taps reversed": lambda model: model.change("ple_conv1d.weight", lambda a: a[:, ::-1]),
}
