/* hparams.c: see hparams.h. One table row a parameter: key, range, where it goes. */
#include "model/hparams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct int_rule {
    const char *key; /* after "A." */
    uint64_t min, max;
    size_t offset;   /* of a uint32_t in qw_hparams */
} int_rule;

static const int_rule int_rules[] = {
    {"block_count", 1, 1024, offsetof(qw_hparams, n_layers)},
    {"context_length", 1, 16u << 20, offsetof(qw_hparams, context_length)},
    {"embedding_length", 32, 1u << 17, offsetof(qw_hparams, hidden)},
    {"attention.head_count", 1, 1024, offsetof(qw_hparams, n_heads)},
    {"attention.head_count_kv", 1, 1024, offsetof(qw_hparams, n_kv_heads)},
};

/* Of families with experts. */
static const int_rule expert_rules[] = {
    {"expert_count", 1, 4096, offsetof(qw_hparams, n_experts)},
    {"expert_used_count", 1, 64, offsetof(qw_hparams, n_experts_used)},
    {"expert_feed_forward_length", 16, 1u << 20, offsetof(qw_hparams, expert_ffn)},
};

/* Of hybrids. v_dim: of all heads, until check_delta divides it. */
static const int_rule delta_rules[] = {
    {"ssm.conv_kernel", 2, 8, offsetof(qw_hparams, n_taps)},
    {"ssm.state_size", 8, 1024, offsetof(qw_hparams, k_dim)},
    {"ssm.group_count", 1, 1024, offsetof(qw_hparams, n_k_heads)},
    {"ssm.time_step_rank", 1, 4096, offsetof(qw_hparams, n_v_heads)},
    {"ssm.inner_size", 16, 1u << 20, offsetof(qw_hparams, v_dim)},
};

typedef struct float_rule {
    const char *key;
    double min, max;
    size_t offset; /* of a float in qw_hparams */
} float_rule;

static const float_rule float_rules[] = {
    {"rope.freq_base", 1.0, 1e12, offsetof(qw_hparams, rope_base)},
    {"attention.layer_norm_rms_epsilon", 1e-12, 1e-2, offsetof(qw_hparams, rms_eps)},
};

typedef struct reader {
    const qw_gguf *file;
    const char *arch;
    qw_faults faults;
} reader;

static void key_name(const reader *r, const char *key, char out[128])
{
    snprintf(out, 128, "%s.%s", r->arch, key);
}

/* The file's name stands once, in front of all faults. */
static const char *without_path(const reader *r, const char *text)
{
    const char *path = qw_gguf_path(r->file);
    size_t n = strlen(path);
    return strncmp(text, path, n) == 0 && text[n] == ':' && text[n + 1] == ' ' ? text + n + 2 : text;
}

static uint32_t read_int(reader *r, const char *key, uint64_t min, uint64_t max)
{
    char name[128];
    uint64_t value = 0;
    qw_err err;
    key_name(r, key, name);
    if (qw_gguf_get_u64(r->file, name, &value, &err) != QW_OK) {
        qw_faults_add(&r->faults, "%s", without_path(r, err.text));
        return 0;
    }
    if (value < min || value > max) {
        qw_faults_add(&r->faults, "%s is %llu, want %llu to %llu", name, (unsigned long long)value,
                 (unsigned long long)min, (unsigned long long)max);
        return 0;
    }
    return (uint32_t)value;
}

static float read_float(reader *r, const char *key, double min, double max)
{
    char name[128];
    double value = 0;
    qw_err err;
    key_name(r, key, name);
    if (qw_gguf_get_f64(r->file, name, &value, &err) != QW_OK) {
        qw_faults_add(&r->faults, "%s", without_path(r, err.text));
        return 0;
    }
    if (!(isfinite(value) && value >= min && value <= max)) {
        qw_faults_add(&r->faults, "%s is %g, want %g to %g", name, value, min, max);
        return 0;
    }
    return (float)value;
}

static bool has(const reader *r, const char *key)
{
    char name[128];
    key_name(r, key, name);
    return qw_gguf_has(r->file, name);
}

static uint32_t read_int_or(reader *r, const char *key, uint64_t min, uint64_t max, uint32_t otherwise)
{
    return has(r, key) ? read_int(r, key, min, max) : otherwise;
}

static float read_float_or(reader *r, const char *key, double min, double max, float otherwise)
{
    return has(r, key) ? read_float(r, key, min, max) : otherwise;
}

/* Relations between parameters, checked once each is in its own range. */
static void check_heads(reader *r, qw_hparams *hp)
{
    if (hp->n_heads % hp->n_kv_heads != 0 || hp->n_heads / hp->n_kv_heads > 64) {
        qw_faults_add(&r->faults, "%u heads over %u KV heads: want a whole number up to 64", hp->n_heads,
                 hp->n_kv_heads);
    }
    if (has(r, "attention.key_length")) {
        hp->head_dim = read_int(r, "attention.key_length", 8, QW_HEAD_DIM_MAX);
        if (has(r, "attention.value_length") &&
            read_int(r, "attention.value_length", 8, QW_HEAD_DIM_MAX) != hp->head_dim) {
            qw_faults_add(&r->faults, "attention.key_length and attention.value_length differ");
        }
    } else if (hp->hidden % hp->n_heads != 0) {
        qw_faults_add(&r->faults, "embedding length %u is no multiple of %u heads", hp->hidden, hp->n_heads);
    } else {
        hp->head_dim = hp->hidden / hp->n_heads;
    }
    if (hp->head_dim % 8 != 0 || hp->head_dim < 8 || hp->head_dim > QW_HEAD_DIM_MAX) {
        qw_faults_add(&r->faults, "head dimension %u: want a multiple of 8 up to %d", hp->head_dim,
                 QW_HEAD_DIM_MAX);
    }
    hp->n_rot = read_int_or(r, "rope.dimension_count", 2, QW_HEAD_DIM_MAX, hp->head_dim);
    if (hp->family->hybrid) {
        if (hp->n_rot % 2 != 0 || hp->n_rot > hp->head_dim)
            qw_faults_add(&r->faults, "rope.dimension_count is %u: want an even number up to the head dimension %u",
                          hp->n_rot, hp->head_dim);
    } else if (hp->n_rot != hp->head_dim) {
        qw_faults_add(&r->faults, "rope.dimension_count differs from the head dimension");
    }
}

static void check_delta(reader *r, qw_hparams *hp)
{
    if (hp->n_v_heads % hp->n_k_heads != 0)
        qw_faults_add(&r->faults, "%u value heads over %u key heads: want a whole number", hp->n_v_heads, hp->n_k_heads);
    if (hp->v_dim % hp->n_v_heads != 0 || hp->v_dim / hp->n_v_heads % QW_DELTA_LANES != 0) {
        qw_faults_add(&r->faults, "ssm.inner_size is %u: want a multiple of %d for each of %u value heads", hp->v_dim,
                      QW_DELTA_LANES, hp->n_v_heads);
    }
    hp->v_dim /= hp->n_v_heads;
    hp->full_attention_interval = read_int_or(r, "full_attention_interval", 1, 1024, 4);
}

static void check_experts(reader *r, qw_hparams *hp)
{
    char key[128];
    qw_err err;
    if (hp->n_experts_used > hp->n_experts)
        qw_faults_add(&r->faults, "%u of %u experts are used", hp->n_experts_used, hp->n_experts);
    hp->shared_ffn = read_int_or(r, "expert_shared_feed_forward_length", 16, 1u << 20, 0);
    hp->renormalise = hp->family->renormalise;
    key_name(r, "expert_weights_norm", key);
    if (qw_gguf_has(r->file, key) && qw_gguf_get_bool(r->file, key, &hp->renormalise, &err) != QW_OK)
        qw_faults_add(&r->faults, "%s", without_path(r, err.text));
}

/* ---- several streams, sparse attention, n-grams -------------------------------------------------- */

static void read_streams(reader *r, qw_hparams *hp)
{
    hp->n_streams = read_int(r, "hyper_connection.count", 1, 16);
    hp->hyper_rank = read_int(r, "hyper_connection.low_rank", 1, 1u << 16);
}

/* A list of integers in [min, max]; returns how many, 0 with a fault. */
static size_t read_list(reader *r, const char *key, int64_t min, int64_t max, int64_t *out, size_t n_max)
{
    char name[128];
    qw_gguf_array list;
    qw_err err;
    key_name(r, key, name);
    if (qw_gguf_get_array(r->file, name, QW_GGUF_I32, &list, &err) != QW_OK) {
        qw_faults_add(&r->faults, "%s", without_path(r, err.text));
        return 0;
    }
    if (list.n > n_max) {
        qw_faults_add(&r->faults, "%s has %zu entries, the most is %zu", name, list.n, n_max);
        return 0;
    }
    for (size_t i = 0; i < list.n; i++) {
        out[i] = qw_gguf_array_int(&list, i);
        if (out[i] >= min && out[i] <= max) continue;
        qw_faults_add(&r->faults, "%s holds %lld, want %lld to %lld", name, (long long)out[i], (long long)min,
                      (long long)max);
        return 0;
    }
    return list.n;
}

static void read_index(reader *r, qw_hparams *hp)
{
    int64_t ratios[1024];
    uint32_t budget = read_int(r, "attention.indexer.top_k", 1, 1u << 20);
    hp->index_heads = read_int(r, "attention.indexer.head_count", 1, 64);
    hp->index_dim = read_int(r, "attention.indexer.key_length", 8, QW_HEAD_DIM_MAX);
    size_t n = read_list(r, "attention.compress_ratios", 0, QW_KV_TILE, ratios, 1024);
    for (size_t i = 0; i < n; i++) { /* one for each layer; 0: it has no attention */
        if (ratios[i] == 0) continue;
        if (hp->index_block && hp->index_block != ratios[i])
            qw_faults_add(&r->faults, "attention.compress_ratios differ: %u and %lld", hp->index_block, (long long)ratios[i]);
        hp->index_block = (uint32_t)ratios[i];
    }
    if (hp->index_block < 2 || QW_KV_TILE % hp->index_block != 0) {
        qw_faults_add(&r->faults, "attention.compress_ratios are %u: want a divisor of %d", hp->index_block, QW_KV_TILE);
        return;
    }
    hp->index_top = budget / hp->index_block;
    if (hp->index_top == 0) qw_faults_add(&r->faults, "attention.indexer.top_k is %u: want a block at least", budget);
    if (hp->n_rot > hp->index_dim)
        qw_faults_add(&r->faults, "%u elements of an index key are rotated, it has %u", hp->n_rot, hp->index_dim);
}

static void read_ngram(reader *r, qw_hparams *hp)
{
    qw_ngram *g = &hp->ngram;
    int64_t layer;
    if (!has(r, "ple.layers")) return;
    if (read_list(r, "ple.layers", 0, hp->n_layers - 1, &layer, 1) == 1) g->layer = (uint32_t)layer;
    g->n = read_int(r, "ple.ngram_size", 2, QW_NGRAM_MAX);
    g->heads_per_gram = read_int(r, "ple.heads_per_ngram", 1, QW_NGRAM_HEADS_MAX);
    g->n_taps = read_int(r, "ple.conv_kernel", 2, 8);
    g->end = (int32_t)read_int(r, "ple.eos_token_id", 0, 1u << 20);
    g->row = read_int(r, "embedding_length_per_layer_input", 1, 1u << 16);
    size_t n_heads = (size_t)(g->n - 1) * g->heads_per_gram;
    if (r->faults.n) return;
    if (n_heads > QW_NGRAM_HEADS_MAX) {
        qw_faults_add(&r->faults, "%zu n-gram heads, the most is %d", n_heads, QW_NGRAM_HEADS_MAX);
        return;
    }
    size_t n_multipliers = read_list(r, "ple.layer_multipliers", 1, INT64_MAX, g->multipliers, QW_NGRAM_MAX);
    size_t n_offsets = read_list(r, "ple.head_offsets", 0, INT32_MAX, g->offsets, QW_NGRAM_HEADS_MAX);
    size_t n_sizes = read_list(r, "ple.head_vocab_sizes", 1, INT32_MAX, g->sizes, QW_NGRAM_HEADS_MAX);
    if (r->faults.n == 0 && (n_multipliers != g->n || n_offsets != n_heads || n_sizes != n_heads)) {
        qw_faults_add(&r->faults, "ple.layer_multipliers, head_offsets and head_vocab_sizes have %zu, %zu and %zu entries: "
                      "want %u, %zu and %zu", n_multipliers, n_offsets, n_sizes, g->n, n_heads, n_heads);
    }
}

static void read_yarn(reader *r, qw_hparams *hp)
{
    hp->yarn = (qw_yarn){
        .factor = read_float(r, "rope.scaling.factor", 1.0, 1024.0),
        .original_context = (float)read_int(r, "rope.scaling.original_context_length", 1, 16u << 20),
        .beta_fast = read_float_or(r, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0f),
        .beta_slow = read_float_or(r, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0f),
    };
    float usual = hp->yarn.factor > 1.0f ? 0.1f * logf(hp->yarn.factor) + 1.0f : 1.0f;
    hp->yarn.attention_factor = usual * read_float_or(r, "rope.scaling.attn_factor", 1e-3, 1e3, 1.0f);
}

/* Positions that are scaled in another way would be computed wrongly. A factor without a type means linear scaling. */
static qw_status find_rope_scaling(const reader *r, bool *yarn, qw_err *err)
{
    static const char *const factors[] = {"rope.scaling.factor", "rope.scale_linear"};
    char key[128];
    qw_text type;
    *yarn = false;
    key_name(r, "rope.scaling.type", key);
    if (qw_gguf_has(r->file, key)) {
        QW_TRY(qw_gguf_get_str(r->file, key, &type, err));
        *yarn = type.n == 4 && memcmp(type.s, "yarn", 4) == 0;
        if (*yarn || (type.n == 4 && memcmp(type.s, "none", 4) == 0)) return QW_OK;
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: rope scaling '%.*s' is not supported", qw_gguf_path(r->file),
                       (int)(type.n > 64 ? 64 : type.n), type.s);
    }
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++) {
        double factor;
        key_name(r, factors[i], key);
        if (!qw_gguf_has(r->file, key)) continue;
        QW_TRY(qw_gguf_get_f64(r->file, key, &factor, err));
        if (factor == 0 || factor == 1) continue;
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: rope scaling is not supported (%s is %g)", qw_gguf_path(r->file),
                       key, factor);
    }
    return QW_OK;
}

static qw_status find_family(const qw_gguf *file, const qw_family **out, qw_err *err)
{
    qw_text arch;
    char known[256] = "";
    QW_TRY(qw_gguf_get_str(file, "general.architecture", &arch, err));
    *out = qw_family_find(arch.s, arch.n);
    if (*out) return QW_OK;
    size_t at = 0;
    for (const qw_family *f = qw_family_next(NULL); f && at < sizeof known; f = qw_family_next(f))
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", f->architecture);
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: architecture '%.*s' is not supported; this version runs %s",
                   qw_gguf_path(file), (int)(arch.n > 64 ? 64 : arch.n), arch.s, known);
}

static void read_ints(reader *r, const int_rule *rules, size_t n, qw_hparams *out)
{
    for (size_t i = 0; i < n; i++)
        *(uint32_t *)(void *)((char *)out + rules[i].offset) = read_int(r, rules[i].key, rules[i].min, rules[i].max);
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

qw_status qw_hparams_read(const qw_gguf *file, qw_hparams *out, qw_err *err)
{
    bool yarn;
    memset(out, 0, sizeof *out);
    QW_TRY(find_family(file, &out->family, err));
    const qw_family *f = out->family;
    reader r = {.file = file, .arch = f->architecture};
    QW_TRY(find_rope_scaling(&r, &yarn, err));
    read_ints(&r, int_rules, COUNT(int_rules), out);
    if (f->experts) read_ints(&r, expert_rules, COUNT(expert_rules), out);
    if (f->hybrid) read_ints(&r, delta_rules, COUNT(delta_rules), out);
    /* Experts may be all there is. */
    if (!f->experts || has(&r, "feed_forward_length")) out->ffn = read_int(&r, "feed_forward_length", 32, 1u << 20);
    for (size_t i = 0; i < COUNT(float_rules); i++) {
        const float_rule *rule = &float_rules[i];
        *(float *)(void *)((char *)out + rule->offset) = read_float(&r, rule->key, rule->min, rule->max);
    }
    if (r.faults.n == 0) {
        out->n_mtp = read_int_or(&r, "nextn_predict_layers", 0, 16, 0);
        if (out->n_mtp >= out->n_layers)
            qw_faults_add(&r.faults, "%u of %u blocks are for multi-token prediction", out->n_mtp, out->n_layers);
        out->n_layers -= out->n_mtp;
        check_heads(&r, out);
        if (f->experts) check_experts(&r, out);
        if (f->hybrid) check_delta(&r, out);
        if (yarn) read_yarn(&r, out);
        out->n_streams = 1;
        if (f->streams) {
            read_streams(&r, out);
            read_index(&r, out);
            read_ngram(&r, out);
        }
    }
    return qw_faults_report(&r.faults, QW_E_FORMAT, qw_gguf_path(file), err);
}
