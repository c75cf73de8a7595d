/* hparams.c: see hparams.h. One table row a parameter: key, range, where it goes. */
#include "model/hparams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Families qw runs. The same list chooses the blocks in net.c. */
static const char *const architectures[] = {"qwen2"};

typedef struct int_rule {
    const char *key; /* after "A." */
    uint64_t min, max;
    size_t offset;   /* of a uint32_t in qw_hparams */
} int_rule;

static const int_rule int_rules[] = {
    {"block_count", 1, 1024, offsetof(qw_hparams, n_layers)},
    {"context_length", 1, 16u << 20, offsetof(qw_hparams, context_length)},
    {"embedding_length", 32, 1u << 17, offsetof(qw_hparams, hidden)},
    {"feed_forward_length", 32, 1u << 20, offsetof(qw_hparams, ffn)},
    {"attention.head_count", 1, 1024, offsetof(qw_hparams, n_heads)},
    {"attention.head_count_kv", 1, 1024, offsetof(qw_hparams, n_kv_heads)},
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

/* Relations between parameters, checked once each is in its own range. */
static void check_relations(reader *r, qw_hparams *hp)
{
    char key[128];
    if (hp->n_heads % hp->n_kv_heads != 0 || hp->n_heads / hp->n_kv_heads > 64) {
        qw_faults_add(&r->faults, "%u heads over %u KV heads: want a whole number up to 64", hp->n_heads,
                 hp->n_kv_heads);
    }
    key_name(r, "attention.key_length", key);
    if (qw_gguf_has(r->file, key)) {
        hp->head_dim = read_int(r, "attention.key_length", 8, QW_HEAD_DIM_MAX);
        key_name(r, "attention.value_length", key);
        if (qw_gguf_has(r->file, key) &&
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
    key_name(r, "rope.dimension_count", key);
    if (qw_gguf_has(r->file, key) && read_int(r, "rope.dimension_count", 1, QW_HEAD_DIM_MAX) != hp->head_dim) {
        qw_faults_add(&r->faults, "rope.dimension_count differs from the head dimension");
    }
}

/* Positions that are scaled would be computed wrongly. A factor without a type means linear scaling. */
static qw_status check_rope_scaling(const reader *r, qw_err *err)
{
    static const char *const factors[] = {"rope.scaling.factor", "rope.scale_linear"};
    char key[128];
    qw_text type;
    key_name(r, "rope.scaling.type", key);
    if (qw_gguf_has(r->file, key)) {
        QW_TRY(qw_gguf_get_str(r->file, key, &type, err));
        if (type.n == 4 && memcmp(type.s, "none", 4) == 0) return QW_OK;
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

static qw_status read_architecture(const qw_gguf *file, char out[32], qw_err *err)
{
    qw_text arch;
    QW_TRY(qw_gguf_get_str(file, "general.architecture", &arch, err));
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (arch.n == strlen(architectures[i]) && memcmp(arch.s, architectures[i], arch.n) == 0) {
            snprintf(out, 32, "%s", architectures[i]);
            return QW_OK;
        }
    }
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: architecture '%.*s' is not supported; this version runs qwen2",
                   qw_gguf_path(file), (int)(arch.n > 64 ? 64 : arch.n), arch.s);
}

qw_status qw_hparams_read(const qw_gguf *file, qw_hparams *out, qw_err *err)
{
    memset(out, 0, sizeof *out);
    QW_TRY(read_architecture(file, out->architecture, err));
    reader r = {.file = file, .arch = out->architecture};
    QW_TRY(check_rope_scaling(&r, err));
    for (size_t i = 0; i < sizeof int_rules / sizeof *int_rules; i++) {
        const int_rule *rule = &int_rules[i];
        *(uint32_t *)(void *)((char *)out + rule->offset) = read_int(&r, rule->key, rule->min, rule->max);
    }
    for (size_t i = 0; i < sizeof float_rules / sizeof *float_rules; i++) {
        const float_rule *rule = &float_rules[i];
        *(float *)(void *)((char *)out + rule->offset) = read_float(&r, rule->key, rule->min, rule->max);
    }
    if (r.faults.n == 0) check_relations(&r, out);
    return qw_faults_report(&r.faults, QW_E_FORMAT, qw_gguf_path(file), err);
}
