/* quant_mix.c: see quant_mix.h. The rules are a table: the first row that fits a matrix gives its type. */
#include "tools/quant_mix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"

typedef enum mix_id {
    MIX_Q4_0, MIX_Q4_1, MIX_Q5_0, MIX_Q5_1, MIX_Q8_0, MIX_Q2_K, MIX_Q3_K_S, MIX_Q3_K_M, MIX_Q3_K_L,
    MIX_Q4_K_S, MIX_Q4_K_M, MIX_Q5_K_S, MIX_Q5_K_M, MIX_Q6_K, MIX_IQ4_NL, MIX_IQ4_XS, MIX_F16, MIX_BF16, MIX_COUNT
} mix_id;

static const qw_quant_mix mixes[MIX_COUNT] = {
    [MIX_Q4_0] = {"Q4_0", QW_TYPE_Q4_0, 2},      [MIX_Q4_1] = {"Q4_1", QW_TYPE_Q4_1, 3},
    [MIX_Q5_0] = {"Q5_0", QW_TYPE_Q5_0, 8},      [MIX_Q5_1] = {"Q5_1", QW_TYPE_Q5_1, 9},
    [MIX_Q8_0] = {"Q8_0", QW_TYPE_Q8_0, 7},      [MIX_Q2_K] = {"Q2_K", QW_TYPE_Q2_K, 10},
    [MIX_Q3_K_S] = {"Q3_K_S", QW_TYPE_Q3_K, 11}, [MIX_Q3_K_M] = {"Q3_K_M", QW_TYPE_Q3_K, 12},
    [MIX_Q3_K_L] = {"Q3_K_L", QW_TYPE_Q3_K, 13}, [MIX_Q4_K_S] = {"Q4_K_S", QW_TYPE_Q4_K, 14},
    [MIX_Q4_K_M] = {"Q4_K_M", QW_TYPE_Q4_K, 15}, [MIX_Q5_K_S] = {"Q5_K_S", QW_TYPE_Q5_K, 16},
    [MIX_Q5_K_M] = {"Q5_K_M", QW_TYPE_Q5_K, 17}, [MIX_Q6_K] = {"Q6_K", QW_TYPE_Q6_K, 18},
    [MIX_IQ4_NL] = {"IQ4_NL", QW_TYPE_IQ4_NL, 25}, [MIX_IQ4_XS] = {"IQ4_XS", QW_TYPE_IQ4_XS, 30},
    [MIX_F16] = {"F16", QW_TYPE_F16, 1},         [MIX_BF16] = {"BF16", QW_TYPE_BF16, 32},
};

const qw_quant_mix *qw_quant_mix_find(const char *name)
{
    char with_m[16];
    int n = snprintf(with_m, sizeof with_m, "%s_M", name);
    for (size_t i = 0; i < MIX_COUNT; i++)
        if (strcasecmp(mixes[i].name, name) == 0) return &mixes[i];
    for (size_t i = 0; i < MIX_COUNT && n < (int)sizeof with_m; i++)
        if (strcasecmp(mixes[i].name, with_m) == 0) return &mixes[i];
    return NULL;
}

void qw_quant_mix_names(char *out, size_t cap)
{
    size_t at = 0;
    for (size_t i = 0; i < MIX_COUNT && at < cap; i++)
        at += (size_t)snprintf(out + at, cap - at, "%s%s", i ? " " : "", mixes[i].name);
}

/* ---- the rules ---------------------------------------------------------------------------------- */

/* What a matrix is for. */
typedef enum mix_part { PART_OTHER, PART_EMBEDDING, PART_OUTPUT, PART_VALUE, PART_DOWN, PART_ATTN_OUTPUT } mix_part;

/* In which of the layers a rule holds, counted over the matrices of the part; and when. */
typedef enum mix_where {
    ALWAYS,
    FIRST_2,
    FIRST_4,
    FIRST_16TH,
    FIRST_8TH,
    FIRST_8TH_PLAIN,    /* when there are no importances */
    FIRST_8TH_WEIGHTED, /* when there are */
    OUTER_AND_THIRDS,   /* the first and last eighth, and every third between them */
    SHARED_BY_4         /* all, where four or more heads share a key head */
} mix_where;

typedef struct rule {
    mix_id mix;
    mix_part part;
    mix_where where;
    qw_type type;
} rule;

static const rule rules[] = {
    {MIX_Q2_K, PART_VALUE, SHARED_BY_4, QW_TYPE_Q4_K},
    {MIX_Q2_K, PART_VALUE, ALWAYS, QW_TYPE_Q3_K},
    {MIX_Q2_K, PART_DOWN, ALWAYS, QW_TYPE_Q3_K},
    {MIX_Q2_K, PART_ATTN_OUTPUT, ALWAYS, QW_TYPE_Q3_K},
    {MIX_Q3_K_M, PART_VALUE, FIRST_2, QW_TYPE_Q5_K},
    {MIX_Q3_K_M, PART_VALUE, ALWAYS, QW_TYPE_Q4_K},
    {MIX_Q3_K_M, PART_DOWN, FIRST_16TH, QW_TYPE_Q5_K},
    {MIX_Q3_K_M, PART_DOWN, ALWAYS, QW_TYPE_Q4_K},
    {MIX_Q3_K_M, PART_ATTN_OUTPUT, ALWAYS, QW_TYPE_Q4_K},
    {MIX_Q3_K_L, PART_VALUE, ALWAYS, QW_TYPE_Q5_K},
    {MIX_Q3_K_L, PART_DOWN, ALWAYS, QW_TYPE_Q5_K},
    {MIX_Q3_K_L, PART_ATTN_OUTPUT, ALWAYS, QW_TYPE_Q5_K},
    {MIX_Q4_K_S, PART_VALUE, FIRST_4, QW_TYPE_Q5_K},
    {MIX_Q4_K_S, PART_DOWN, FIRST_8TH, QW_TYPE_Q5_K},
    {MIX_Q4_K_M, PART_VALUE, OUTER_AND_THIRDS, QW_TYPE_Q6_K},
    {MIX_Q4_K_M, PART_DOWN, OUTER_AND_THIRDS, QW_TYPE_Q6_K},
    {MIX_Q5_K_M, PART_VALUE, OUTER_AND_THIRDS, QW_TYPE_Q6_K},
    {MIX_Q5_K_M, PART_DOWN, OUTER_AND_THIRDS, QW_TYPE_Q6_K},
    {MIX_IQ4_NL, PART_VALUE, SHARED_BY_4, QW_TYPE_Q5_K},
    {MIX_IQ4_NL, PART_DOWN, FIRST_8TH_PLAIN, QW_TYPE_Q5_K},
    {MIX_IQ4_XS, PART_VALUE, SHARED_BY_4, QW_TYPE_Q5_K},
    {MIX_IQ4_XS, PART_DOWN, FIRST_8TH_PLAIN, QW_TYPE_Q5_K},
    {MIX_Q4_0, PART_DOWN, FIRST_8TH_WEIGHTED, QW_TYPE_Q4_1},
    {MIX_Q5_0, PART_DOWN, FIRST_8TH_WEIGHTED, QW_TYPE_Q5_1},
};

/* What the rules look at beside a matrix's name. */
typedef struct mix_model {
    mix_id mix;
    size_t n_layers, n_values; /* layers; matrices that are PART_VALUE */
    bool importances, tied, shared_by_4, has_experts;
    bool is_72b; /* Qwen2 and 2.5 with 80 layers: their values are few and never get less than Q5_K */
} mix_model;

static bool holds(mix_where where, const mix_model *m, size_t i, size_t n)
{
    switch (where) {
    case ALWAYS: return true;
    case FIRST_2: return i < 2;
    case FIRST_4: return i < 4;
    case FIRST_16TH: return i < n / 16;
    case FIRST_8TH: return i < n / 8;
    case FIRST_8TH_PLAIN: return i < n / 8 && !m->importances;
    case FIRST_8TH_WEIGHTED: return i < n / 8 && m->importances;
    case OUTER_AND_THIRDS: return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    default: return m->shared_by_4;
    }
}

static mix_part part_of(const char *name)
{
    if (strcmp(name, "output.weight") == 0) return PART_OUTPUT;
    if (strcmp(name, "token_embd.weight") == 0) return PART_EMBEDDING;
    if (strstr(name, "attn_v.weight") || strstr(name, "attn_qkv.weight")) return PART_VALUE;
    if (strstr(name, "attn_output.weight")) return PART_ATTN_OUTPUT;
    return strstr(name, "ffn_down") ? PART_DOWN : PART_OTHER;
}

/* Matrices; a vector that the file calls a matrix of one row is none. */
static bool is_quantised(const qw_tensor *t)
{
    static const char *const kept[] = {"_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "indexer.k_proj.weight",
                                       "indexer.q_proj.weight", "cls.output.weight"};
    static const char end[] = "weight";
    size_t n = strlen(t->name);
    bool is_matrix = t->ne[1] > 1 || t->ne[2] > 1 || t->ne[3] > 1;
    if (!is_matrix || n < strlen(end) || strcmp(t->name + n - strlen(end), end) != 0) return false;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (strstr(t->name, kept[i])) return false;
    return true;
}

static bool fits(const qw_tensor *t, qw_type type)
{
    return t->ne[0] % qw_type_get(type)->block_n == 0;
}

/* The type itself, or what rows of this length can have instead. */
static qw_type fitting(const qw_tensor *t, qw_type type)
{
    if (fits(t, type)) return type;
    switch (type) {
    case QW_TYPE_Q2_K:
    case QW_TYPE_Q3_K: type = QW_TYPE_Q4_0; break;
    case QW_TYPE_Q4_K: type = QW_TYPE_Q5_0; break;
    case QW_TYPE_Q5_K: type = QW_TYPE_Q5_1; break;
    case QW_TYPE_Q6_K: type = QW_TYPE_Q8_0; break;
    case QW_TYPE_IQ4_XS: type = QW_TYPE_IQ4_NL; break;
    default: break;
    }
    return fits(t, type) ? type : QW_TYPE_F16;
}

static long layer_of(const char *name)
{
    return strncmp(name, "blk.", 4) == 0 ? strtol(name + 4, NULL, 10) : -1;
}

/* The type of a matrix; i: its number among those of its part. */
static qw_type type_of(const mix_model *m, const qw_tensor *t, mix_part part, size_t i)
{
    qw_type type = mixes[m->mix].type;
    if (type == QW_TYPE_F16 || type == QW_TYPE_BF16) return type;
    if (part == PART_OUTPUT || (part == PART_EMBEDDING && m->tied)) {
        if (!fits(t, type)) return fitting(t, QW_TYPE_Q8_0);
        return type == QW_TYPE_Q8_0 ? type : fitting(t, QW_TYPE_Q6_K);
    }
    if (part == PART_DOWN && m->has_experts) i = (size_t)layer_of(t->name); /* a layer has several */
    size_t n = part == PART_VALUE ? m->n_values : m->n_layers;
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
        if (rules[r].mix != m->mix || rules[r].part != part || !holds(rules[r].where, m, i, n)) continue;
        type = rules[r].type;
        break;
    }
    if (m->is_72b && part == PART_VALUE && (type == QW_TYPE_Q3_K || type == QW_TYPE_Q4_K)) type = QW_TYPE_Q5_K;
    return fitting(t, type);
}

/* ---- the model ---------------------------------------------------------------------------------- */

/* An integer under "<architecture>.<key>"; the first one of an array. 0 when there is none. */
static uint64_t model_number(const qw_gguf *file, qw_text architecture, const char *key)
{
    char full[128];
    uint64_t v = 0;
    qw_gguf_array array;
    snprintf(full, sizeof full, "%.*s.%s", (int)architecture.n, architecture.s, key);
    if (qw_gguf_get_u64(file, full, &v, NULL) == QW_OK) return v;
    if (qw_gguf_get_array(file, full, QW_GGUF_I32, &array, NULL) != QW_OK || array.n == 0) return 0;
    int64_t first = qw_gguf_array_int(&array, 0);
    return first > 0 ? (uint64_t)first : 0;
}

static qw_status look_at(const qw_quant_mix *mix, const qw_gguf *file, bool importances, mix_model *m, qw_err *err)
{
    qw_text architecture;
    QW_TRY(qw_gguf_get_str(file, "general.architecture", &architecture, err));
    uint64_t heads = model_number(file, architecture, "attention.head_count");
    uint64_t kv_heads = model_number(file, architecture, "attention.head_count_kv");
    *m = (mix_model){
        .mix = (mix_id)(mix - mixes),
        .n_layers = model_number(file, architecture, "block_count"),
        .importances = importances,
        .tied = qw_gguf_find_tensor(file, "output.weight") == NULL,
        .shared_by_4 = heads / 4 >= (kv_heads ? kv_heads : heads),
        .has_experts = model_number(file, architecture, "expert_count") > 1,
    };
    m->is_72b = architecture.n == 5 && memcmp(architecture.s, "qwen2", 5) == 0 && m->n_layers == 80;
    for (size_t i = 0; i < qw_gguf_n_tensors(file); i++)
        if (part_of(qw_gguf_tensor(file, i)->name) == PART_VALUE) m->n_values++;
    return QW_OK;
}

/* By layer, then by name: "the first" ones do not depend on the order in the file. */
static int compare_places(const void *a, const void *b)
{
    const qw_tensor *s = *(const qw_tensor *const *)a, *t = *(const qw_tensor *const *)b;
    long x = layer_of(s->name), y = layer_of(t->name);
    return x != y ? (x < y ? -1 : 1) : strcmp(s->name, t->name);
}

qw_status qw_quant_mix_types(const qw_quant_mix *mix, const qw_gguf *file, bool importances, qw_type *types,
                             qw_err *err)
{
    size_t n = qw_gguf_n_tensors(file), n_seen[PART_ATTN_OUTPUT + 1] = {0};
    const qw_tensor **order, *first = n > 0 ? qw_gguf_tensor(file, 0) : NULL;
    mix_model m;
    QW_TRY(look_at(mix, file, importances, &m, err));
    QW_TRY(qw_alloc(&order, n, sizeof(const qw_tensor *), "the order of tensors", err));
    for (size_t i = 0; i < n; i++) order[i] = qw_gguf_tensor(file, i);
    qsort(order, n, sizeof(const qw_tensor *), compare_places);
    for (size_t i = 0; i < n; i++) {
        const qw_tensor *t = order[i];
        mix_part part = part_of(t->name);
        types[t - first] = is_quantised(t) ? type_of(&m, t, part, n_seen[part]++) : t->type;
    }
    free(order);
    return QW_OK;
}
