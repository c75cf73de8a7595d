/* family_file.h: parts of files of the families with experts and delta-nets, and one with multi-token prediction.
 *
 * Included once by a test program; needs cmocka before it.
 */
#ifndef FAMILY_FILE_H
#define FAMILY_FILE_H

#include "net_file.h"

enum {
    HIDDEN = 64, HEADS = 4, KV_HEADS = 2, DIM = 16, ROT = 8, VOCAB = 32, FFN = 96,
    EXPERTS = 6, EXPERT_FFN = 48, SHARED_FFN = 32,
    K_HEADS = 2, V_HEADS = 4, K_DIM = 16, V_DIM = 32, TAPS = 4, VALUE = V_HEADS * V_DIM, CHANNELS = 2 * K_HEADS * K_DIM + VALUE,
    STREAMS = 3, WIDE = STREAMS * HIDDEN, RANK = 8, INDEX_HEADS = 2, INDEX_DIM = 16, GRAM_ROW = 8, GRAM_HEADS = 4,
    GRAMS = 100
};

/* ---- parts of files --------------------------------------------------------------------------- */

static inline const char *arch_key(const char *arch, const char *key)
{
    static char names[256][64];
    static size_t n;
    char *name = names[n++ % 256];
    snprintf(name, sizeof names[0], "%s.%s", arch, key);
    return name;
}

static inline void common_keys(file_plan *f, const char *arch, int n_layers)
{
    memset(f, 0, sizeof *f);
    add_text(f, "general.architecture", arch);
    add_number(f, arch_key(arch, "block_count"), 'u', n_layers);
    add_number(f, arch_key(arch, "context_length"), 'u', 128);
    add_number(f, arch_key(arch, "embedding_length"), 'u', HIDDEN);
    add_number(f, arch_key(arch, "attention.head_count"), 'u', HEADS);
    add_number(f, arch_key(arch, "attention.head_count_kv"), 'u', KV_HEADS);
    add_number(f, arch_key(arch, "rope.freq_base"), 'f', 1e6);
    add_number(f, arch_key(arch, "attention.layer_norm_rms_epsilon"), 'f', 1e-6);
    add_tensor(f, "token_embd.weight", 0, VOCAB, HIDDEN);
}

static inline void expert_keys(file_plan *f, const char *arch)
{
    add_number(f, arch_key(arch, "expert_count"), 'u', EXPERTS);
    add_number(f, arch_key(arch, "expert_used_count"), 'u', 2);
    add_number(f, arch_key(arch, "expert_feed_forward_length"), 'u', EXPERT_FFN);
}

static inline void delta_keys(file_plan *f, const char *arch)
{
    add_number(f, arch_key(arch, "attention.key_length"), 'u', DIM);
    add_number(f, arch_key(arch, "attention.value_length"), 'u', DIM);
    add_number(f, arch_key(arch, "rope.dimension_count"), 'u', ROT);
    add_number(f, arch_key(arch, "ssm.conv_kernel"), 'u', TAPS);
    add_number(f, arch_key(arch, "ssm.state_size"), 'u', K_DIM);
    add_number(f, arch_key(arch, "ssm.group_count"), 'u', K_HEADS);
    add_number(f, arch_key(arch, "ssm.time_step_rank"), 'u', V_HEADS);
    add_number(f, arch_key(arch, "ssm.inner_size"), 'u', VALUE);
    add_number(f, arch_key(arch, "full_attention_interval"), 'u', 2);
}

static inline void add_attention(file_plan *f, int il, bool gated)
{
    add_tensor(f, "blk.%d.attn_q.weight", il, HEADS * DIM * (gated ? 2 : 1), HIDDEN);
    add_tensor(f, "blk.%d.attn_k.weight", il, KV_HEADS * DIM, HIDDEN);
    add_tensor(f, "blk.%d.attn_v.weight", il, KV_HEADS * DIM, HIDDEN);
    add_tensor(f, "blk.%d.attn_output.weight", il, HIDDEN, HEADS * DIM);
}

static inline void add_head_norms(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.attn_q_norm.weight", il, 0, DIM);
    add_tensor(f, "blk.%d.attn_k_norm.weight", il, 0, DIM);
}

static inline void add_biases(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.attn_q.bias", il, 0, HEADS * DIM);
    add_tensor(f, "blk.%d.attn_k.bias", il, 0, KV_HEADS * DIM);
    add_tensor(f, "blk.%d.attn_v.bias", il, 0, KV_HEADS * DIM);
}

static inline void add_delta(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.attn_qkv.weight", il, CHANNELS, HIDDEN);
    add_tensor(f, "blk.%d.attn_gate.weight", il, VALUE, HIDDEN);
    add_tensor(f, "blk.%d.ssm_beta.weight", il, V_HEADS, HIDDEN);
    add_tensor(f, "blk.%d.ssm_alpha.weight", il, V_HEADS, HIDDEN);
    add_tensor(f, "blk.%d.ssm_conv1d.weight", il, CHANNELS, TAPS);
    add_tensor(f, "blk.%d.ssm_a", il, 0, V_HEADS);
    add_tensor(f, "blk.%d.ssm_dt.bias", il, 0, V_HEADS);
    add_tensor(f, "blk.%d.ssm_norm.weight", il, 0, V_DIM);
    add_tensor(f, "blk.%d.ssm_out.weight", il, HIDDEN, VALUE);
}

static inline void add_dense(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.ffn_gate.weight", il, FFN, HIDDEN);
    add_tensor(f, "blk.%d.ffn_up.weight", il, FFN, HIDDEN);
    add_tensor(f, "blk.%d.ffn_down.weight", il, HIDDEN, FFN);
}

static inline void add_experts(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.ffn_gate_inp.weight", il, EXPERTS, HIDDEN);
    add_stack(f, "blk.%d.ffn_gate_exps.weight", il, EXPERTS, EXPERT_FFN, HIDDEN);
    add_stack(f, "blk.%d.ffn_up_exps.weight", il, EXPERTS, EXPERT_FFN, HIDDEN);
    add_stack(f, "blk.%d.ffn_down_exps.weight", il, EXPERTS, HIDDEN, EXPERT_FFN);
}

static inline void add_shared_expert(file_plan *f, int il)
{
    add_tensor(f, "blk.%d.ffn_gate_inp_shexp.weight", il, 1, HIDDEN);
    add_tensor(f, "blk.%d.ffn_gate_shexp.weight", il, SHARED_FFN, HIDDEN);
    add_tensor(f, "blk.%d.ffn_up_shexp.weight", il, SHARED_FFN, HIDDEN);
    add_tensor(f, "blk.%d.ffn_down_shexp.weight", il, HIDDEN, SHARED_FFN);
}

static inline void add_norms(file_plan *f, int il, const char *ffn_norm)
{
    add_tensor(f, "blk.%d.attn_norm.weight", il, 0, HIDDEN);
    add_tensor(f, ffn_norm, il, 0, HIDDEN);
}

/* A delta-net, attention, and a block for multi-token prediction. */
static inline void qwen35(file_plan *f)
{
    common_keys(f, "qwen35", 3);
    delta_keys(f, "qwen35");
    add_number(f, "qwen35.feed_forward_length", 'u', FFN);
    add_number(f, "qwen35.nextn_predict_layers", 'u', 1);
    for (int il = 0; il < 3; il++) {
        add_norms(f, il, "blk.%d.post_attention_norm.weight");
        if (il == 0) {
            add_delta(f, il);
        } else {
            add_attention(f, il, true);
            add_head_norms(f, il);
        }
        add_dense(f, il);
    }
    add_tensor(f, "blk.%d.nextn.eh_proj.weight", 2, HIDDEN, 2 * HIDDEN);
    add_tensor(f, "blk.%d.nextn.enorm.weight", 2, 0, HIDDEN);
    add_tensor(f, "blk.%d.nextn.hnorm.weight", 2, 0, HIDDEN);
    add_tensor(f, "blk.%d.nextn.shared_head_norm.weight", 2, 0, HIDDEN);
    add_tensor(f, "output_norm.weight", 0, 0, HIDDEN);
}

#endif
