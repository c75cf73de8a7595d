/* hf_config.c: config.json of a Hugging Face folder, and the GGUF keys that say the same. The opening thread alone.
 *
 * Values are read in both styles that exist (rope_theta and rope_scaling, or rope_parameters; flat, or inside text_config).
 * Defaults are those of the official classes, and only where released files leave a value out; everything else is
 * demanded. What would be computed in another way than the official one is refused. Source: transformers 5.23.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/hf_private.h"

enum { LAYERS_MAX = 1024, SIZE_MAX_OF_CONFIG = 1 << 24, DEFAULT_INTERVAL = 4 };

static const hf_kind kinds[] = {
    {"qwen2", "qwen2", .ffn_norm = "ffn_norm.weight", .partial_rotary = 1.0, .qkv_bias = true},
    {"qwen2_moe", "qwen2moe", .ffn_norm = "ffn_norm.weight", .partial_rotary = 1.0, .moe = true,
     .qkv_bias = true},
    {"qwen3", "qwen3", .ffn_norm = "ffn_norm.weight", .head_dim = 128, .partial_rotary = 1.0},
    {"qwen3_moe", "qwen3moe", .ffn_norm = "ffn_norm.weight", .partial_rotary = 1.0, .moe = true},
    {"qwen3_next", "qwen3next", .ffn_norm = "post_attention_norm.weight", .head_dim = 256, .partial_rotary = 0.25,
     .hybrid = true, .moe = true, .centred = true, .packed = true, .norm_topk = HF_TOPK_TRUE},
    {"qwen3_5", "qwen35", .ffn_norm = "post_attention_norm.weight", .head_dim = 256, .partial_rotary = 0.25, .hybrid = true,
     .centred = true, .tiled = true},
    {"qwen3_5_text", "qwen35", .ffn_norm = "post_attention_norm.weight", .head_dim = 256, .partial_rotary = 0.25,
     .hybrid = true, .centred = true, .tiled = true},
    {"qwen3_5_moe", "qwen35moe", .ffn_norm = "post_attention_norm.weight", .head_dim = 256, .partial_rotary = 0.25,
     .hybrid = true, .moe = true, .centred = true, .tiled = true, .norm_topk = HF_TOPK_ALWAYS},
    {"qwen3_5_moe_text", "qwen35moe", .ffn_norm = "post_attention_norm.weight", .head_dim = 256, .partial_rotary = 0.25,
     .hybrid = true, .moe = true, .centred = true, .tiled = true, .norm_topk = HF_TOPK_ALWAYS},
    {"qwen4_exp", "qwen4exp", .head_dim = 256, .partial_rotary = 1.0, .hybrid = true, .moe = true, .centred = true,
     .tiled = true, .streams = true, .norm_topk = HF_TOPK_TRUE},
    {"qwen4_exp_text", "qwen4exp", .head_dim = 256, .partial_rotary = 1.0, .hybrid = true, .moe = true, .centred = true,
     .tiled = true, .streams = true, .norm_topk = HF_TOPK_TRUE},
};

static bool is_text(qw_text t, const char *s)
{
    return t.s != NULL && t.n == strlen(s) && memcmp(t.s, s, t.n) == 0;
}

/* ---- what kind of model ----------------------------------------------------------------------- */

static qw_status find_kind(qw_json o, const hf_kind **out, qw_err *err)
{
    char known[384] = "";
    size_t at = 0;
    qw_text type;
    QW_TRY(qw_json_str(o, "model_type", &type, err));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        *out = &kinds[i];
        if (is_text(type, kinds[i].model_type)) return QW_OK;
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", kinds[i].model_type);
    }
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: model_type \"%.*s\" is not supported; this version reads %s", o.path,
                   type.n < 64 ? (int)type.n : 64, type.s ? type.s : "", known);
}

/* ---- positions -------------------------------------------------------------------------------- */

/* A value that both styles may have: rope_parameters wins. */
static qw_json holder(qw_json params, qw_json config, const char *key)
{
    return qw_json_get(params, key) != NULL ? params : config;
}

static qw_json sub_object(qw_json o, const char *key)
{
    const json_t *v = qw_json_get(o, key);
    return (qw_json){.path = o.path, .object = json_is_object(v) ? v : NULL};
}

static double mscale(double factor, double m)
{
    return factor <= 1.0 ? 1.0 : 0.1 * m * log(factor) + 1.0;
}

/* attention_factor as written, or as mscale and mscale_all_dim give it; 0: the usual one. */
static qw_status read_attention_factor(qw_json p, hf_rope *r, qw_err *err)
{
    double m, all;
    QW_TRY(qw_json_f64(p, "attention_factor", 0.0, &r->attention_factor, err));
    QW_TRY(qw_json_f64(p, "mscale", 0.0, &m, err));
    QW_TRY(qw_json_f64(p, "mscale_all_dim", 0.0, &all, err));
    if (r->attention_factor == 0.0 && m != 0.0 && all != 0.0)
        r->attention_factor = mscale(r->factor, m) / mscale(r->factor, all);
    if (r->attention_factor >= 0.0) return QW_OK;
    return qw_fail(err, QW_E_FORMAT, "%s: attention_factor is %g, want more than 0", p.path, r->attention_factor);
}

static qw_status read_yarn(qw_json p, const hf_config *c, hf_rope *r, qw_err *err)
{
    bool truncate;
    r->yarn = true;
    QW_TRY(qw_json_f64(p, "factor", NAN, &r->factor, err));
    if (!(r->factor >= 1.0)) return qw_fail(err, QW_E_FORMAT, "%s: the yarn factor is %g, want 1 or more", p.path, r->factor);
    QW_TRY(qw_json_u64(p, "original_max_position_embeddings", 1, SIZE_MAX_OF_CONFIG, (int64_t)c->context,
                       &r->original_context, err));
    QW_TRY(read_attention_factor(p, r, err));
    QW_TRY(qw_json_f64(p, "beta_fast", 0.0, &r->beta_fast, err));
    QW_TRY(qw_json_f64(p, "beta_slow", 0.0, &r->beta_slow, err));
    QW_TRY(qw_json_bool(p, "truncate", true, &truncate, err));
    if (truncate) return QW_OK;
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: yarn with \"truncate\": false is not supported", p.path);
}

static qw_status read_sections(qw_json o, hf_rope *r, qw_err *err)
{
    const json_t *list = qw_json_get(o, "mrope_section");
    if (list == NULL) return QW_OK;
    if (!json_is_array(list) || json_array_size(list) != 3)
        return qw_fail(err, QW_E_FORMAT, "%s: mrope_section: want three integers", o.path);
    for (size_t i = 0; i < 3; i++) {
        json_int_t n = json_integer_value(json_array_get(list, i));
        if (n < 0 || n > 4096) return qw_fail(err, QW_E_FORMAT, "%s: mrope_section[%zu] is out of range", o.path, i);
        r->sections[i] = (int32_t)n;
    }
    r->has_sections = true;
    return QW_OK;
}

static qw_status read_rope(qw_json o, hf_config *c, qw_err *err)
{
    qw_json p = sub_object(o, "rope_parameters"), old = sub_object(o, "rope_scaling");
    if (p.object == NULL) p = old;
    qw_text type;
    QW_TRY(qw_json_str(p, "rope_type", &type, err));
    if (type.s == NULL) QW_TRY(qw_json_str(p, "type", &type, err));
    QW_TRY(qw_json_f64(holder(p, o, "rope_theta"), "rope_theta", 10000.0, &c->rope.theta, err));
    QW_TRY(qw_json_f64(holder(p, o, "partial_rotary_factor"), "partial_rotary_factor", c->kind->partial_rotary,
                       &c->rope.partial, err));
    if (!(c->rope.partial > 0.0 && c->rope.partial <= 1.0))
        return qw_fail(err, QW_E_FORMAT, "%s: partial_rotary_factor is %g, want more than 0 up to 1", o.path, c->rope.partial);
    QW_TRY(read_sections(p, &c->rope, err));
    if (type.s == NULL || is_text(type, "default") || is_text(type, "mrope")) return QW_OK;
    if (is_text(type, "yarn")) return read_yarn(p, c, &c->rope, err);
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: rope_type \"%.*s\" is not supported", o.path,
                   type.n < 64 ? (int)type.n : 64, type.s);
}

/* ---- layers ----------------------------------------------------------------------------------- */

/* Attention that looks at a window alone would be computed as if it looked at everything. */
static qw_status check_sliding(qw_json o, const hf_config *c, const json_t *types, qw_err *err)
{
    bool sliding;
    uint64_t first;
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type == NULL || strcmp(type, "full_attention") != 0)
            return qw_fail(err, QW_E_UNSUPPORTED, "%s: layer_types[%zu] is \"%.64s\", which is not supported", o.path, i,
                           type ? type : "(no text)");
    }
    if (types != NULL) return QW_OK;
    QW_TRY(qw_json_bool(o, "use_sliding_window", false, &sliding, err));
    if (!sliding) return QW_OK;
    QW_TRY(qw_json_u64(o, "max_window_layers", 0, SIZE_MAX_OF_CONFIG, 0, &first, err));
    if (first >= c->n_layers && !c->kind->moe) return QW_OK;
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: use_sliding_window is not supported", o.path);
}

static qw_status read_hybrid_layers(qw_hf *hf, qw_json o, hf_config *c, const json_t *types, qw_err *err)
{
    uint64_t interval;
    QW_TRY(qw_json_u64(o, "full_attention_interval", 1, LAYERS_MAX, DEFAULT_INTERVAL, &interval, err));
    QW_TRY(hf_alloc(hf, &c->recurrent, c->n_layers, sizeof *c->recurrent, err));
    for (size_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool linear = type != NULL && strcmp(type, "linear_attention") == 0;
        if (types == NULL) linear = (i + 1) % interval != 0;
        else if (!linear && (type == NULL || !(strcmp(type, "full_attention") == 0 ||
                                               (c->kind->streams && strcmp(type, "indexed_attention") == 0))))
            return qw_fail(err, QW_E_UNSUPPORTED, "%s: layer_types[%zu] is \"%.64s\", which is not supported", o.path, i,
                           type ? type : "(no text)");
        c->recurrent[i] = linear;
    }
    return QW_OK;
}

static qw_status read_layers(qw_hf *hf, qw_json o, hf_config *c, qw_err *err)
{
    const json_t *types = qw_json_get(o, "layer_types");
    if (types != NULL && json_array_size(types) != c->n_layers)
        return qw_fail(err, QW_E_FORMAT, "%s: layer_types has %zu entries for %llu layers", o.path, json_array_size(types),
                       (unsigned long long)c->n_layers);
    return c->kind->hybrid ? read_hybrid_layers(hf, o, c, types, err) : check_sliding(o, c, types, err);
}

/* ---- sizes ------------------------------------------------------------------------------------ */

static qw_status read_sizes(qw_json o, hf_config *c, qw_err *err)
{
    qw_text act;
    QW_TRY(qw_json_u64(o, "num_hidden_layers", 1, LAYERS_MAX, -1, &c->n_layers, err));
    QW_TRY(qw_json_u64(o, "hidden_size", 1, SIZE_MAX_OF_CONFIG, -1, &c->hidden, err));
    QW_TRY(qw_json_u64(o, "num_attention_heads", 1, 1 << 16, -1, &c->n_heads, err));
    QW_TRY(qw_json_u64(o, "num_key_value_heads", 1, 1 << 16, (int64_t)c->n_heads, &c->n_kv_heads, err));
    QW_TRY(qw_json_u64(o, "max_position_embeddings", 1, SIZE_MAX_OF_CONFIG, -1, &c->context, err));
    QW_TRY(qw_json_u64(o, "intermediate_size", 0, SIZE_MAX_OF_CONFIG, 0, &c->ffn, err));
    QW_TRY(qw_json_f64(o, "rms_norm_eps", 1e-6, &c->eps, err));
    QW_TRY(qw_json_u64(o, "head_dim", 0, 1 << 16, c->kind->head_dim, &c->head_dim, err));
    c->has_head_dim = c->head_dim != 0;
    if (!c->has_head_dim) c->head_dim = c->hidden / c->n_heads;
    QW_TRY(qw_json_str(o, "hidden_act", &act, err));
    if (act.s == NULL || is_text(act, "silu")) return QW_OK;
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: hidden_act \"%.*s\" is not supported", o.path, act.n < 64 ? (int)act.n : 64,
                   act.s);
}

static qw_status read_experts(qw_json o, hf_config *c, qw_err *err)
{
    const char *count = qw_json_get(o, "num_experts") != NULL ? "num_experts" : "num_local_experts";
    QW_TRY(qw_json_u64(o, count, 1, 1 << 16, -1, &c->n_experts, err));
    QW_TRY(qw_json_u64(o, "num_experts_per_tok", 1, 1 << 16, -1, &c->n_experts_used, err));
    QW_TRY(qw_json_u64(o, "moe_intermediate_size", 1, SIZE_MAX_OF_CONFIG, -1, &c->expert_ffn, err));
    QW_TRY(qw_json_u64(o, "shared_expert_intermediate_size", 0, SIZE_MAX_OF_CONFIG, 0, &c->shared_ffn, err));
    c->norm_topk = true;
    if (c->kind->norm_topk == HF_TOPK_ALWAYS) return QW_OK;
    return qw_json_bool(o, "norm_topk_prob", c->kind->norm_topk == HF_TOPK_TRUE, &c->norm_topk, err);
}

static qw_status read_delta(qw_json o, hf_config *c, qw_err *err)
{
    QW_TRY(qw_json_u64(o, "linear_num_key_heads", 1, 1 << 12, 16, &c->n_k_heads, err));
    QW_TRY(qw_json_u64(o, "linear_num_value_heads", 1, 1 << 12, 32, &c->n_v_heads, err));
    QW_TRY(qw_json_u64(o, "linear_key_head_dim", 1, 1 << 12, 128, &c->k_dim, err));
    QW_TRY(qw_json_u64(o, "linear_value_head_dim", 1, 1 << 12, 128, &c->v_dim, err));
    QW_TRY(qw_json_u64(o, "linear_conv_kernel_dim", 1, 64, 4, &c->n_taps, err));
    if (c->n_v_heads % c->n_k_heads == 0) return QW_OK;
    return qw_fail(err, QW_E_FORMAT, "%s: %llu value heads over %llu key heads: want a whole number", o.path,
                   (unsigned long long)c->n_v_heads, (unsigned long long)c->n_k_heads);
}

/* ---- several streams -------------------------------------------------------------------------- */

static qw_status read_grams(qw_json o, hf_config *c, qw_err *err)
{
    const json_t *layers = qw_json_get(o, "ple_layer_ids");
    uint64_t ends[2], embedding;
    size_t n_ends;
    if (json_array_size(layers) == 0) return QW_OK;
    json_int_t layer = json_integer_value(json_array_get(layers, 0)); /* from 1 */
    if (json_array_size(layers) != 1 || layer < 1 || (uint64_t)layer > c->n_layers)
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: ple_layer_ids: want one layer from 1 to %llu", o.path,
                       (unsigned long long)c->n_layers);
    c->gram_layer = (uint64_t)layer - 1;
    QW_TRY(qw_json_u64(o, "ngram_size", 2, 4, 3, &c->gram_size, err));
    QW_TRY(qw_json_u64(o, "heads_per_ngram", 1, 64, 8, &c->heads_per_gram, err));
    QW_TRY(qw_json_u64(o, "ple_conv_kernel_size", 2, 8, 4, &c->gram_taps, err));
    QW_TRY(qw_json_u64(o, "ple_embed_dim", 1, SIZE_MAX_OF_CONFIG, (int64_t)c->hidden, &embedding, err));
    c->gram_dim = embedding / ((c->gram_size - 1) * c->heads_per_gram);
    QW_TRY(hf_read_eos(o, ends, &n_ends, err));
    if (n_ends == 0) return qw_fail(err, QW_E_FORMAT, "%s: \"eos_token_id\" is missing: n-grams end at it", o.path);
    c->gram_end = ends[0];
    return QW_OK;
}

static qw_status read_streams(qw_json o, hf_config *c, qw_err *err)
{
    qw_text gate;
    uint64_t n_keys;
    QW_TRY(qw_json_u64(o, "hc_count", 1, 16, 4, &c->n_streams, err));
    QW_TRY(qw_json_u64(o, "hc_lowrank", 1, 1 << 16, 320, &c->hyper_rank, err));
    QW_TRY(qw_json_u64(o, "indexer_n_heads", 1, 64, -1, &c->index_heads, err));
    QW_TRY(qw_json_u64(o, "indexer_kv_heads", 1, 1, 1, &n_keys, err));
    QW_TRY(qw_json_u64(o, "indexer_head_dim", 1, 1 << 16, -1, &c->index_dim, err));
    QW_TRY(qw_json_u64(o, "indexer_budget", 1, SIZE_MAX_OF_CONFIG, -1, &c->index_budget, err));
    QW_TRY(qw_json_u64(o, "indexer_compress_ratio", 1, 1 << 16, -1, &c->index_block, err));
    QW_TRY(qw_json_str(o, "output_gate_type", &gate, err));
    if (!is_text(gate, "sigmoid"))
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: output_gate_type: only \"sigmoid\" is supported for %s", o.path,
                       c->kind->model_type);
    return read_grams(o, c, err);
}

/* ---- quantised folders ------------------------------------------------------------------------ */

static qw_status read_fp8(qw_json q, hf_quant *out, qw_err *err)
{
    const json_t *block = qw_json_get(q, "weight_block_size");
    qw_text fmt;
    uint64_t n[2] = {128, 128};
    out->method = HF_QUANT_FP8;
    QW_TRY(qw_json_str(q, "fmt", &fmt, err));
    if (fmt.s != NULL && !is_text(fmt, "e4m3"))
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: FP8 in the format \"%.*s\" is not supported", q.path,
                       fmt.n < 32 ? (int)fmt.n : 32, fmt.s);
    for (size_t i = 0; block != NULL && i < 2; i++) {
        json_int_t v = json_integer_value(json_array_get(block, i));
        if (json_array_size(block) != 2 || v < 1 || v > SIZE_MAX_OF_CONFIG)
            return qw_fail(err, QW_E_FORMAT, "%s: weight_block_size: want two integers from 1", q.path);
        n[i] = (uint64_t)v;
    }
    out->block_rows = n[0];
    out->block_cols = n[1];
    return QW_OK;
}

static qw_status read_packed_int4(qw_json q, hf_quant *out, qw_err *err)
{
    uint64_t bits;
    const json_t *group = qw_json_get(q, "group_size");
    qw_text version;
    QW_TRY(qw_json_u64(q, "bits", 1, 64, -1, &bits, err));
    if (bits != 4)
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: weights of %llu bits are not supported, only of 4", q.path,
                       (unsigned long long)bits);
    if (!(json_is_integer(group) && json_integer_value(group) == -1)) /* -1: whole columns */
        QW_TRY(qw_json_u64(q, "group_size", 1, SIZE_MAX_OF_CONFIG, -1, &out->group, err));
    if (out->method == HF_QUANT_GPTQ) {
        QW_TRY(qw_json_str(q, "checkpoint_format", &version, err));
        out->zero_offset = is_text(version, "gptq_v2") ? 0 : 1;
        return QW_OK;
    }
    QW_TRY(qw_json_str(q, "version", &version, err));
    if (version.s == NULL || is_text(version, "gemm") || is_text(version, "GEMM")) return QW_OK;
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: AWQ in the layout \"%.*s\" is not supported", q.path,
                   version.n < 32 ? (int)version.n : 32, version.s);
}

static qw_status read_quant(qw_json root, qw_json text, hf_quant *out, qw_err *err)
{
    qw_json q = sub_object(root, "quantization_config");
    qw_text method;
    if (q.object == NULL) q = sub_object(text, "quantization_config");
    if (q.object == NULL) return QW_OK;
    QW_TRY(qw_json_str(q, "quant_method", &method, err));
    if (is_text(method, "fp8")) return read_fp8(q, out, err);
    if (is_text(method, "gptq")) out->method = HF_QUANT_GPTQ;
    else if (is_text(method, "awq")) out->method = HF_QUANT_AWQ;
    else
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: quant_method \"%.*s\" is not supported; fp8, gptq and awq are", q.path,
                       method.n < 64 ? (int)method.n : 64, method.s ? method.s : "");
    return read_packed_int4(q, out, err);
}

/* ---- the whole -------------------------------------------------------------------------------- */

qw_status hf_read_eos(qw_json o, uint64_t out[2], size_t *n, qw_err *err)
{
    const json_t *v = qw_json_get(o, "eos_token_id");
    size_t all = json_is_array(v) ? json_array_size(v) : v != NULL;
    *n = 0;
    for (size_t i = 0; i < all && *n < 2; i++) { /* GGUF has two keys; further ones are known by their text */
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return qw_fail(err, QW_E_FORMAT, "%s: eos_token_id: want an id or a list of ids", o.path);
        out[(*n)++] = (uint64_t)json_integer_value(id);
    }
    return QW_OK;
}

/* Of a reranker: the labels of its two scores. */
static int yes_label(qw_json top)
{
    const json_t *labels = qw_json_get(top, "id2label");
    const char *first = json_string_value(json_object_get(labels, "0")), *second = json_string_value(json_object_get(labels, "1"));
    if (first == NULL || second == NULL || json_object_size(labels) != 2) return -1;
    if (strcmp(first, "yes") == 0 && strcmp(second, "no") == 0) return 0;
    return strcmp(first, "no") == 0 && strcmp(second, "yes") == 0 ? 1 : -1;
}

qw_status hf_config_read(qw_hf *hf, const json_t *root, hf_config *c, qw_err *err)
{
    qw_json top = {.path = hf->config_path, .object = root}, o = sub_object(top, "text_config");
    *c = (hf_config){0};
    if (o.object == NULL) o = top;
    QW_TRY(find_kind(qw_json_get(o, "model_type") ? o : top, &c->kind, err));
    QW_TRY(read_sizes(o, c, err));
    QW_TRY(read_rope(o, c, err));
    QW_TRY(read_layers(hf, o, c, err));
    if (c->kind->moe) QW_TRY(read_experts(o, c, err));
    if (c->kind->hybrid) QW_TRY(read_delta(o, c, err));
    if (c->kind->streams) QW_TRY(read_streams(o, c, err));
    QW_TRY(read_quant(top, o, &c->quant, err));
    c->yes_label = yes_label(top);
    QW_TRY(qw_json_bool(top, "tie_word_embeddings", false, &c->tied, err)); /* of the whole, also when nested */
    QW_TRY(hf_read_eos(o, c->eos, &c->n_eos, err));
    return c->n_eos > 0 ? QW_OK : hf_read_eos(top, c->eos, &c->n_eos, err);
}

/* ---- keys ------------------------------------------------------------------------------------- */

typedef struct key_writer {
    const char *arch;
    qw_gguf_writer *w;
    qw_err *err;
} key_writer;

static qw_status put_int(const key_writer *k, const char *name, uint64_t v)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", k->arch, name);
    return qw_gguf_put_u32(k->w, key, (uint32_t)v, k->err);
}

static qw_status put_float(const key_writer *k, const char *name, double v)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", k->arch, name);
    return qw_gguf_put_f32(k->w, key, (float)v, k->err);
}

static qw_status put_sizes(const key_writer *k, const hf_config *c, size_t n_mtp)
{
    QW_TRY(put_int(k, "block_count", c->n_layers + n_mtp));
    QW_TRY(put_int(k, "context_length", c->context));
    QW_TRY(put_int(k, "embedding_length", c->hidden));
    if (c->ffn > 0) QW_TRY(put_int(k, "feed_forward_length", c->ffn));
    QW_TRY(put_int(k, "attention.head_count", c->n_heads));
    QW_TRY(put_int(k, "attention.head_count_kv", c->n_kv_heads));
    if (c->has_head_dim) {
        QW_TRY(put_int(k, "attention.key_length", c->head_dim));
        QW_TRY(put_int(k, "attention.value_length", c->head_dim));
    }
    if (n_mtp > 0) QW_TRY(put_int(k, "nextn_predict_layers", n_mtp));
    return put_float(k, "attention.layer_norm_rms_epsilon", c->eps);
}

static qw_status put_rope(const key_writer *k, const hf_config *c)
{
    static const int32_t usual[4] = {11, 11, 10, 0};
    const hf_rope *r = &c->rope;
    char key[128];
    QW_TRY(put_float(k, "rope.freq_base", r->theta));
    if (c->kind->hybrid || r->partial != 1.0)
        QW_TRY(put_int(k, "rope.dimension_count", (uint64_t)((double)c->head_dim * r->partial)));
    if (c->kind->tiled) { /* these files always have sections, also where they change nothing */
        snprintf(key, sizeof key, "%s.rope.dimension_sections", k->arch);
        QW_TRY(qw_gguf_put_i32s(k->w, key, r->has_sections ? r->sections : usual, 4, k->err));
    }
    if (!r->yarn) return QW_OK;
    snprintf(key, sizeof key, "%s.rope.scaling.type", k->arch);
    QW_TRY(qw_gguf_put_str(k->w, key, (qw_text){"yarn", 4}, k->err));
    QW_TRY(put_float(k, "rope.scaling.factor", r->factor));
    QW_TRY(put_int(k, "rope.scaling.original_context_length", r->original_context));
    /* GGUF has the factor beside the usual one, config.json the product. */
    if (r->attention_factor != 0.0)
        QW_TRY(put_float(k, "rope.scaling.attn_factor", r->attention_factor / mscale(r->factor, 1.0)));
    if (r->beta_fast != 0.0) QW_TRY(put_float(k, "rope.scaling.yarn_beta_fast", r->beta_fast));
    return r->beta_slow != 0.0 ? put_float(k, "rope.scaling.yarn_beta_slow", r->beta_slow) : QW_OK;
}

static qw_status put_experts(const key_writer *k, const hf_config *c)
{
    char key[128];
    QW_TRY(put_int(k, "expert_count", c->n_experts));
    QW_TRY(put_int(k, "expert_used_count", c->n_experts_used));
    QW_TRY(put_int(k, "expert_feed_forward_length", c->expert_ffn));
    if (c->shared_ffn > 0) QW_TRY(put_int(k, "expert_shared_feed_forward_length", c->shared_ffn));
    snprintf(key, sizeof key, "%s.expert_weights_norm", k->arch);
    return qw_gguf_put_bool(k->w, key, c->norm_topk, k->err);
}

/* The interval whose multiples are the layers with attention; 0: there is none. */
static uint64_t interval_of(const hf_config *c)
{
    for (uint64_t n = 1; n <= c->n_layers; n++) {
        bool fits = true;
        for (size_t i = 0; i < c->n_layers && fits; i++) fits = c->recurrent[i] == ((i + 1) % n != 0);
        if (fits) return n;
    }
    return 0;
}

static qw_status put_delta(const key_writer *k, const hf_config *c, size_t n_mtp)
{
    bool list[LAYERS_MAX * 2] = {false};
    char key[128];
    uint64_t interval = interval_of(c);
    QW_TRY(put_int(k, "ssm.conv_kernel", c->n_taps));
    QW_TRY(put_int(k, "ssm.state_size", c->k_dim));
    QW_TRY(put_int(k, "ssm.group_count", c->n_k_heads));
    QW_TRY(put_int(k, "ssm.time_step_rank", c->n_v_heads));
    QW_TRY(put_int(k, "ssm.inner_size", c->n_v_heads * c->v_dim));
    if (interval > 0) QW_TRY(put_int(k, "full_attention_interval", interval));
    QW_ASSERT(c->n_layers + n_mtp <= sizeof list / sizeof *list);
    memcpy(list, c->recurrent, c->n_layers * sizeof *list);
    snprintf(key, sizeof key, "%s.attention.recurrent_layers", k->arch);
    return qw_gguf_put_bools(k->w, key, list, c->n_layers + n_mtp, k->err);
}

static qw_status put_streams(const key_writer *k, const hf_config *c)
{
    int32_t ratios[LAYERS_MAX], layer = (int32_t)c->gram_layer;
    char key[128];
    QW_TRY(put_int(k, "hyper_connection.count", c->n_streams));
    QW_TRY(put_int(k, "hyper_connection.low_rank", c->hyper_rank));
    QW_TRY(put_int(k, "attention.indexer.head_count", c->index_heads));
    QW_TRY(put_int(k, "attention.indexer.key_length", c->index_dim));
    QW_TRY(put_int(k, "attention.indexer.top_k", c->index_budget));
    for (size_t i = 0; i < c->n_layers; i++) ratios[i] = c->recurrent[i] ? 0 : (int32_t)c->index_block;
    snprintf(key, sizeof key, "%s.attention.compress_ratios", k->arch);
    QW_TRY(qw_gguf_put_i32s(k->w, key, ratios, c->n_layers, k->err));
    if (c->gram_size == 0) return QW_OK;
    snprintf(key, sizeof key, "%s.ple.layers", k->arch);
    QW_TRY(qw_gguf_put_i32s(k->w, key, &layer, 1, k->err));
    QW_TRY(put_int(k, "ple.ngram_size", c->gram_size));
    QW_TRY(put_int(k, "ple.heads_per_ngram", c->heads_per_gram));
    QW_TRY(put_int(k, "ple.conv_kernel", c->gram_taps));
    QW_TRY(put_int(k, "ple.eos_token_id", c->gram_end));
    return put_int(k, "embedding_length_per_layer_input", c->gram_dim);
}

qw_status hf_config_keys(const qw_hf *hf, const hf_config *c, size_t n_mtp, qw_gguf_writer *w, qw_err *err)
{
    key_writer k = {.arch = c->kind->arch, .w = w, .err = err};
    const char *slash = strrchr(hf->dir, '/'), *name = slash ? slash + 1 : hf->dir;
    QW_TRY(qw_gguf_put_str(w, "general.architecture", (qw_text){k.arch, strlen(k.arch)}, err));
    QW_TRY(qw_gguf_put_str(w, "general.type", (qw_text){"model", 5}, err));
    QW_TRY(qw_gguf_put_str(w, "general.name", (qw_text){name, strlen(name)}, err));
    QW_TRY(put_sizes(&k, c, n_mtp));
    QW_TRY(put_rope(&k, c));
    if (c->kind->moe) QW_TRY(put_experts(&k, c));
    if (c->kind->hybrid) QW_TRY(put_delta(&k, c, n_mtp));
    return c->kind->streams ? put_streams(&k, c) : QW_OK;
}
