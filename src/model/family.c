/* family.c: the architectures qw runs, one row each. Constants; any thread.
 *
 * Source: transformers (modeling_qwen2, qwen2_moe, qwen3, qwen3_moe, qwen3_next, qwen3_5, qwen3_5_moe, qwen4_exp). Names are
 * those of general.architecture in GGUF.
 */
#include <string.h>

#include "model/net.h"

static const qw_family families[] = {
    {"qwen2", .ffn_norm = "ffn_norm", .qkv_bias = true},
    {"qwen2moe", .ffn_norm = "ffn_norm", .qkv_bias = true, .experts = true},
    {"qwen3", .ffn_norm = "ffn_norm", .qk_norm = true},
    {"qwen3moe", .ffn_norm = "ffn_norm", .qk_norm = true, .experts = true, .renormalise = true},
    {"qwen3next", .ffn_norm = "post_attention_norm", .qk_norm = true, .gated_attention = true, .hybrid = true,
     .joint_gates = true, .experts = true, .renormalise = true},
    {"qwen35", .ffn_norm = "post_attention_norm", .qk_norm = true, .gated_attention = true, .hybrid = true, .tiled = true},
    {"qwen35moe", .ffn_norm = "post_attention_norm", .qk_norm = true, .gated_attention = true, .hybrid = true, .tiled = true,
     .experts = true, .renormalise = true},
    {"qwen4exp", .ffn_norm = NULL, .qk_norm = true, .gated_attention = true, .hybrid = true, .tiled = true,
     .sigmoid_gate = true, .streams = true, .experts = true, .renormalise = true},
};

const qw_family *qw_family_find(const char *name, size_t n)
{
    for (const qw_family *f = qw_family_next(NULL); f; f = qw_family_next(f)) {
        if (strlen(f->architecture) == n && memcmp(f->architecture, name, n) == 0) return f;
    }
    return NULL;
}

const qw_family *qw_family_next(const qw_family *f)
{
    if (!f) return families;
    return f + 1 < families + sizeof families / sizeof *families ? f + 1 : NULL;
}
