/* hf_tensors.c: from the names and forms of a Hugging Face folder to those of GGUF. The opening thread alone.
 *
 * One row of a table for each tensor of a layer: its name there and here, and what is done to it. Every tensor of the folder
 * is used by a row, or is one of those that are left out by name, or the folder is refused: a tensor that nobody asked for
 * means another architecture. Small tensors are made now, as F32, large ones stay where they are or get a maker. Source:
 * transformers 5.23 (modeling_qwen*), and the shapes of GGUF files that exist.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/hf_private.h"

enum { MTP_MAX = 16 };
static const char score_name[] = "score.weight"; /* of models that transformers calls ...ForSequenceClassification */

/* What is done to a tensor. */
typedef enum op {
    MATRIX,  /* nothing, or the order of heads; quantised formats are decoded */
    FLOATS,  /* a matrix as F32 */
    VECTOR,  /* one row of F32 */
    NORM,    /* a vector, plus 1 where norms are stored around zero */
    DECAY,   /* A_log as -exp(A_log) */
    CONV     /* [channels, 1, taps] as F32 [channels, taps] */
} op;

/* Which of its rows or columns belong to value heads, and how many to each. */
typedef enum heads {
    PLAIN, QKV_ROWS /* behind queries and keys */, VALUE_ROWS, HEAD_ROWS /* one a head */, VALUE_COLUMNS
} heads;

/* Which layers have it. */
typedef enum where {
    ANYWHERE, ONE_STREAM, STREAMS, ATTENTION, BIASES, HEAD_NORMS, INDEXER, DELTA, DELTA_PACKED, DELTA_FLAT, DENSE, EXPERTS,
    SHARED, GRAMS
} where;

typedef struct rule {
    const char *hf, *gguf; /* gguf NULL: the family's name; matrices without ".weight" */
    op op;
    where where;
    heads heads;
} rule;

static const rule rules[] = {
    {"input_layernorm.weight", "attn_norm.weight", NORM, ONE_STREAM, PLAIN},
    {"self_attn.q_proj", "attn_q.weight", MATRIX, ATTENTION, PLAIN},
    {"self_attn.k_proj", "attn_k.weight", MATRIX, ATTENTION, PLAIN},
    {"self_attn.v_proj", "attn_v.weight", MATRIX, ATTENTION, PLAIN},
    {"self_attn.q_proj.bias", "attn_q.bias", VECTOR, BIASES, PLAIN},
    {"self_attn.k_proj.bias", "attn_k.bias", VECTOR, BIASES, PLAIN},
    {"self_attn.v_proj.bias", "attn_v.bias", VECTOR, BIASES, PLAIN},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", NORM, HEAD_NORMS, PLAIN},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", NORM, HEAD_NORMS, PLAIN},
    {"self_attn.o_proj", "attn_output.weight", MATRIX, ATTENTION, PLAIN},
    {"self_attn.indexer.q_layernorm.weight", "indexer.q_norm.weight", NORM, INDEXER, PLAIN},
    {"self_attn.indexer.k_layernorm.weight", "indexer.k_norm.weight", NORM, INDEXER, PLAIN},
    {"linear_attn.in_proj_qkv", "attn_qkv.weight", MATRIX, DELTA_FLAT, QKV_ROWS},
    {"linear_attn.in_proj_z", "attn_gate.weight", MATRIX, DELTA_FLAT, VALUE_ROWS},
    {"linear_attn.in_proj_b", "ssm_beta.weight", MATRIX, DELTA_FLAT, HEAD_ROWS},
    {"linear_attn.in_proj_a", "ssm_alpha.weight", MATRIX, DELTA_FLAT, HEAD_ROWS},
    {"linear_attn.in_proj_ba", "ssm_ba.weight", MATRIX, DELTA_PACKED, PLAIN},
    {"linear_attn.conv1d.weight", "ssm_conv1d.weight", CONV, DELTA, QKV_ROWS},
    {"linear_attn.A_log", "ssm_a", DECAY, DELTA, HEAD_ROWS},
    {"linear_attn.dt_bias", "ssm_dt.bias", VECTOR, DELTA, HEAD_ROWS},
    {"linear_attn.norm.weight", "ssm_norm.weight", VECTOR, DELTA, PLAIN}, /* stored as it is, in every family */
    {"linear_attn.out_proj", "ssm_out.weight", MATRIX, DELTA, VALUE_COLUMNS},
    {"post_attention_layernorm.weight", NULL, NORM, ONE_STREAM, PLAIN},
    {"mlp.gate_proj", "ffn_gate.weight", MATRIX, DENSE, PLAIN},
    {"mlp.up_proj", "ffn_up.weight", MATRIX, DENSE, PLAIN},
    {"mlp.down_proj", "ffn_down.weight", MATRIX, DENSE, PLAIN},
    {"mlp.gate", "ffn_gate_inp.weight", FLOATS, EXPERTS, PLAIN},
    {"mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", VECTOR, SHARED, PLAIN},
    {"mlp.shared_expert.gate_proj", "ffn_gate_shexp.weight", MATRIX, SHARED, PLAIN},
    {"mlp.shared_expert.up_proj", "ffn_up_shexp.weight", MATRIX, SHARED, PLAIN},
    {"mlp.shared_expert.down_proj", "ffn_down_shexp.weight", MATRIX, SHARED, PLAIN},
    {"attn_hyper_connection.hc_norm.weight", "hc_attn_norm.weight", NORM, STREAMS, PLAIN},
    {"attn_hyper_connection.input_mix_weight_down", "hc_attn_down.weight", MATRIX, STREAMS, PLAIN},
    {"attn_hyper_connection.input_mix_weight_up", "hc_attn_up.weight", MATRIX, STREAMS, PLAIN},
    {"attn_hyper_connection.block_inject_weight", "hc_attn_inject.weight", MATRIX, STREAMS, PLAIN},
    {"mlp_hyper_connection.hc_norm.weight", "hc_ffn_norm.weight", NORM, STREAMS, PLAIN},
    {"mlp_hyper_connection.input_mix_weight_down", "hc_ffn_down.weight", MATRIX, STREAMS, PLAIN},
    {"mlp_hyper_connection.input_mix_weight_up", "hc_ffn_up.weight", MATRIX, STREAMS, PLAIN},
    {"mlp_hyper_connection.block_inject_weight", "hc_ffn_inject.weight", MATRIX, STREAMS, PLAIN},
    {"ple.key_proj", "ple_key.weight", MATRIX, GRAMS, PLAIN},
    {"ple.value_proj", "ple_value.weight", MATRIX, GRAMS, PLAIN},
    {"ple.norm_key.weight", "ple_norm_key.weight", NORM, GRAMS, PLAIN},
    {"ple.norm_query.weight", "ple_norm_query.weight", NORM, GRAMS, PLAIN},
    {"ple.norm_conv.weight", "ple_norm_conv.weight", NORM, GRAMS, PLAIN},
    {"ple.conv1d.weight", "ple_conv1d.weight", CONV, GRAMS, PLAIN},
};

/* Of the block for multi-token prediction, beside its layer. */
static const rule mtp_rules[] = {
    {"fc", "nextn.eh_proj.weight", MATRIX, ANYWHERE, PLAIN},
    {"pre_fc_norm_embedding.weight", "nextn.enorm.weight", NORM, ANYWHERE, PLAIN},
    {"pre_fc_norm_hidden.weight", "nextn.hnorm.weight", NORM, ANYWHERE, PLAIN},
    {"norm.weight", "nextn.shared_head_norm.weight", NORM, ANYWHERE, PLAIN},
};

typedef struct mapper {
    qw_hf *hf;
    const hf_config *c;
    qw_faults faults; /* tensors that are missing */
    uint64_t *order;  /* [n_v_heads]: head of GGUF -> head of the folder; NULL: the same; owns */
    qw_err *err;
} mapper;

/* ---- names ------------------------------------------------------------------------------------ */

static bool has(const qw_hf *hf, const char *name)
{
    return qw_name_set_find(&hf->names, (qw_text){name, strlen(name)}) != SIZE_MAX;
}

/* Names made here come from the tables, so they are short. */
static void join(char out[QW_ST_NAME_MAX + 1], const char *a, const char *b)
{
    int n = snprintf(out, QW_ST_NAME_MAX + 1, "%s%s", a, b);
    QW_ASSERT(n <= QW_ST_NAME_MAX);
}

/* The first of the prefixes under which there is a tensor of that name; NULL: none. */
static const char *find_prefix(const qw_hf *hf, const char *const *prefixes, size_t n, const char *name)
{
    char full[QW_ST_NAME_MAX + 1];
    for (size_t i = 0; i < n; i++) {
        join(full, prefixes[i], name);
        if (has(hf, full)) return prefixes[i];
    }
    return NULL;
}

static const char *text_prefix(const qw_hf *hf)
{
    static const char *const prefixes[] = {"model.language_model.", "model.", "language_model.model.", ""};
    return find_prefix(hf, prefixes, sizeof prefixes / sizeof *prefixes, "embed_tokens.weight");
}

static const char *mtp_prefix(const qw_hf *hf)
{
    static const char *const prefixes[] = {"mtp.", "model.mtp."};
    return find_prefix(hf, prefixes, sizeof prefixes / sizeof *prefixes, "layers.0.input_layernorm.weight");
}

qw_status hf_tensors_count(qw_hf *hf, const hf_config *c, size_t *n_vocab, size_t *n_mtp, qw_err *err)
{
    char name[QW_ST_NAME_MAX + 1], layer[64];
    const char *prefix = text_prefix(hf), *mtp = c->kind->centred && !c->kind->streams ? mtp_prefix(hf) : NULL;
    if (prefix == NULL)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor 'model.embed_tokens.weight' is missing", hf->dir);
    join(name, prefix, "embed_tokens.weight");
    const qw_st_tensor *t = hf_find(hf, name);
    if (t->n_dims != 2 || t->shape[0] == 0 || t->shape[0] > 1 << 24)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is no embedding of a vocabulary", hf_path_of(hf, t), t->name);
    *n_vocab = (size_t)t->shape[0];
    *n_mtp = 0;
    for (bool more = mtp != NULL; more; *n_mtp += more) {
        snprintf(layer, sizeof layer, "layers.%zu.input_layernorm.weight", *n_mtp);
        join(name, mtp, layer);
        more = *n_mtp < MTP_MAX && has(hf, name);
    }
    return QW_OK;
}

/* ---- what is put into the view ------------------------------------------------------------------ */

static qw_status put(mapper *m, const char *name, qw_type type, uint32_t n_dims, const uint64_t *ne, hf_out out)
{
    qw_hf *hf = m->hf;
    QW_TRY(qw_gguf_put_tensor(hf->writer, name, type, n_dims, ne, m->err));
    QW_TRY(qw_grow(&hf->outs, hf->n_outs, hf->n_outs + 1, sizeof *hf->outs, "the list of tensors", m->err));
    hf->outs[hf->n_outs++] = out;
    return QW_OK;
}

static qw_status put_matrix(mapper *m, const char *name, const hf_matrix *x)
{
    return put(m, name, x->in.type, 2, (uint64_t[]){x->in.k, x->rows}, (hf_out){x->in.data, x->in.make});
}

/* All of a small matrix as float32 in memory. */
static qw_status load_floats(mapper *m, const hf_matrix *x, float **out)
{
    hf_matrix floats;
    uint8_t *bytes = NULL;
    QW_TRY(hf_matrix_as(m->hf, x, QW_TYPE_F32, &floats, m->err));
    QW_TRY(hf_matrix_load(m->hf, &floats, &bytes, m->err));
    *out = (float *)(void *)bytes;
    return QW_OK;
}

static qw_status put_floats(mapper *m, const char *name, const float *v, uint32_t n_dims, const uint64_t *ne)
{
    return put(m, name, QW_TYPE_F32, n_dims, ne, (hf_out){.data = (const uint8_t *)v});
}

/* ---- the order of value heads ------------------------------------------------------------------- */

/* GGUF files of these families count value heads across the key heads, the folder key head by key head. With one value head
 * for each key head both are the same. */
static qw_status make_order(mapper *m)
{
    const hf_config *c = m->c;
    uint64_t ratio = c->kind->hybrid ? c->n_v_heads / c->n_k_heads : 1;
    if (!c->kind->tiled || ratio == 1) return QW_OK;
    QW_TRY(qw_alloc(&m->order, c->n_v_heads, sizeof *m->order, "the order of heads", m->err));
    for (uint64_t j = 0; j < ratio; j++)
        for (uint64_t i = 0; i < c->n_k_heads; i++) m->order[j * c->n_k_heads + i] = i * ratio + j;
    return QW_OK;
}

/* Rows of x: n_fixed that stay, then `each` for each value head. */
static qw_status order_rows(mapper *m, const char *name, uint64_t n_fixed, uint64_t each, hf_matrix *x)
{
    uint64_t want = n_fixed + m->c->n_v_heads * each, *from;
    if (x->rows != want)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' has %" PRIu64 " rows, want %" PRIu64, m->hf->dir, name, x->rows,
                       want);
    if (m->order == NULL) return QW_OK;
    /* Blocks have one size: the largest that divides both parts. */
    uint64_t block = each, a = n_fixed;
    for (uint64_t t; a != 0; block = a, a = t) t = block % a;
    size_t n_blocks = (size_t)(want / block), per_head = (size_t)(each / block), n = 0;
    QW_TRY(qw_alloc(&from, n_blocks, sizeof *from, "the order of rows", m->err));
    for (; n < n_fixed / block; n++) from[n] = n * block;
    for (uint64_t h = 0; h < m->c->n_v_heads; h++)
        for (size_t b = 0; b < per_head; b++) from[n++] = n_fixed + m->order[h] * each + b * block;
    qw_status status = hf_matrix_gather(m->hf, x, 1, from, n_blocks, block, x, m->err);
    free(from);
    return status;
}

static qw_status order_columns(mapper *m, const char *name, hf_matrix *x)
{
    uint64_t each = m->c->v_dim, want = m->c->n_v_heads * each;
    if (x->in.k != want)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' has %" PRIu64 " columns, want %" PRIu64, m->hf->dir, name, x->in.k,
                       want);
    if (m->order == NULL) return QW_OK;
    if (each % qw_type_get(x->in.type)->block_n != 0) QW_TRY(hf_matrix_as(m->hf, x, QW_TYPE_F32, x, m->err));
    return hf_matrix_columns(m->hf, x, m->order, (size_t)m->c->n_v_heads, each, x, m->err);
}

static qw_status order_heads(mapper *m, heads which, const char *name, hf_matrix *x)
{
    const hf_config *c = m->c;
    switch (which) {
    case PLAIN: return QW_OK;
    case QKV_ROWS: return order_rows(m, name, 2 * c->n_k_heads * c->k_dim, c->v_dim, x);
    case VALUE_ROWS: return order_rows(m, name, 0, c->v_dim, x);
    case HEAD_ROWS: return order_rows(m, name, 0, 1, x);
    case VALUE_COLUMNS: return order_columns(m, name, x);
    }
    return QW_OK;
}

/* ---- one tensor --------------------------------------------------------------------------------- */

static qw_status map_matrix(mapper *m, const rule *r, const char *name, const char *out)
{
    hf_matrix x;
    qw_status status = hf_matrix_find(m->hf, m->c, name, &x, m->err);
    if (status == QW_E_NOT_FOUND) {
        qw_faults_add(&m->faults, "tensor '%s.weight' is missing", name);
        return QW_OK;
    }
    QW_TRY(status);
    QW_TRY(order_heads(m, r->heads, name, &x));
    if (r->op == FLOATS) QW_TRY(hf_matrix_as(m->hf, &x, QW_TYPE_F32, &x, m->err));
    return put_matrix(m, out, &x);
}

/* The tensor as a column, so that its elements can be put in the order of heads as rows are. */
static qw_status map_small(mapper *m, const rule *r, const char *name, const char *out)
{
    hf_matrix x;
    float *v = NULL;
    const qw_st_tensor *t = hf_find(m->hf, name);
    if (t == NULL) {
        qw_faults_add(&m->faults, "tensor '%s' is missing", name);
        return QW_OK;
    }
    QW_TRY(hf_matrix_of(m->hf, t, &x, m->err));
    uint64_t n = x.rows * x.in.k;
    if (r->op != CONV) {
        x.in.k = 1;
        x.rows = n;
    }
    QW_TRY(order_heads(m, r->heads, name, &x));
    QW_TRY(load_floats(m, &x, &v));
    if (r->op == CONV) return put_floats(m, out, v, 2, (uint64_t[]){x.in.k, x.rows});
    for (uint64_t i = 0; i < n; i++) {
        if (r->op == NORM && m->c->kind->centred) v[i] += 1.0f;
        if (r->op == DECAY) v[i] = (float)-exp((double)v[i]);
    }
    return put_floats(m, out, v, 1, &n);
}

static qw_status map_one(mapper *m, const rule *r, const char *prefix, size_t il)
{
    char name[QW_ST_NAME_MAX + 1], out[96];
    join(name, prefix, r->hf);
    snprintf(out, sizeof out, "blk.%zu.%s", il, r->gguf ? r->gguf : m->c->kind->ffn_norm);
    return r->op == MATRIX || r->op == FLOATS ? map_matrix(m, r, name, out) : map_small(m, r, name, out);
}

/* ---- in_proj_qkvz ------------------------------------------------------------------------------- */

/* For each key head: its query, its key, its value heads, and their gates. GGUF has all queries, keys, values as one matrix
 * and the gates as another. */
static qw_status map_packed(mapper *m, const char *prefix, size_t il)
{
    const hf_config *c = m->c;
    char name[QW_ST_NAME_MAX + 1], out[64];
    uint64_t v_rows = c->n_v_heads / c->n_k_heads * c->v_dim, each = 2 * (c->k_dim + v_rows), *from = NULL;
    hf_matrix x, part;
    join(name, prefix, "linear_attn.in_proj_qkvz");
    qw_status status = hf_matrix_find(m->hf, c, name, &x, m->err);
    if (status == QW_E_NOT_FOUND) {
        qw_faults_add(&m->faults, "tensor '%s.weight' is missing", name);
        return QW_OK;
    }
    QW_TRY(status);
    if (x.rows != c->n_k_heads * each)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' has %" PRIu64 " rows, want %" PRIu64, m->hf->dir, name, x.rows,
                       c->n_k_heads * each);
    /* Single rows as blocks: the parts have different sizes. */
    const struct {
        uint64_t at, rows;
    } parts[] = {{0, c->k_dim}, {c->k_dim, c->k_dim}, {2 * c->k_dim, v_rows}, {2 * c->k_dim + v_rows, v_rows}};
    size_t n = 0;
    QW_TRY(qw_alloc(&from, (size_t)x.rows, sizeof *from, "the order of rows", m->err));
    for (size_t p = 0; p < 4; p++)
        for (uint64_t h = 0; h < c->n_k_heads; h++)
            for (uint64_t r = 0; r < parts[p].rows; r++) from[n++] = h * each + parts[p].at + r;
    size_t n_gates = (size_t)(c->n_k_heads * v_rows);
    QW_TRY_GOTO(hf_matrix_gather(m->hf, &x, 1, from, n - n_gates, 1, &part, m->err));
    snprintf(out, sizeof out, "blk.%zu.attn_qkv.weight", il);
    QW_TRY_GOTO(put_matrix(m, out, &part));
    QW_TRY_GOTO(hf_matrix_gather(m->hf, &x, 1, from + n - n_gates, n_gates, 1, &part, m->err));
    snprintf(out, sizeof out, "blk.%zu.attn_gate.weight", il);
    status = put_matrix(m, out, &part);
fail:
    free(from);
    return status;
}

/* ---- experts ------------------------------------------------------------------------------------ */

static qw_status put_stack(mapper *m, size_t il, const char *what, const hf_matrix *x, uint64_t n)
{
    char out[64];
    snprintf(out, sizeof out, "blk.%zu.ffn_%s_exps.weight", il, what);
    return put(m, out, x->in.type, 3, (uint64_t[]){x->in.k, x->rows / n, n}, (hf_out){x->in.data, x->in.make});
}

/* One matrix out of one for each expert; those of one type, or all as F32. */
static qw_status stack(mapper *m, hf_matrix *experts, size_t n, size_t il, const char *what)
{
    uint64_t *from = NULL;
    hf_matrix all;
    bool mixed = false;
    for (size_t e = 0; e < n; e++) mixed = mixed || experts[e].in.type != experts[0].in.type;
    for (size_t e = 0; e < n && mixed; e++) QW_TRY(hf_matrix_as(m->hf, &experts[e], QW_TYPE_F32, &experts[e], m->err));
    QW_TRY(qw_alloc(&from, n, sizeof *from, "the order of rows", m->err)); /* each from its row 0 */
    qw_status status = hf_matrix_gather(m->hf, experts, n, from, n, experts[0].rows, &all, m->err);
    free(from);
    return status == QW_OK ? put_stack(m, il, what, &all, n) : status;
}

static qw_status map_separate(mapper *m, const char *prefix, size_t il, const char *what, hf_matrix *experts)
{
    size_t n = (size_t)m->c->n_experts;
    for (size_t e = 0; e < n; e++) {
        char name[QW_ST_NAME_MAX + 1], part[96];
        snprintf(part, sizeof part, "mlp.experts.%zu.%s_proj", e, what);
        join(name, prefix, part);
        qw_status status = hf_matrix_find(m->hf, m->c, name, &experts[e], m->err);
        if (status == QW_E_NOT_FOUND) {
            qw_faults_add(&m->faults, "tensor '%s.weight' is missing", name);
            return QW_OK;
        }
        QW_TRY(status);
        if (experts[e].rows != experts[0].rows || experts[e].in.k != experts[0].in.k)
            return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s.weight' has another shape than that of expert 0", m->hf->dir,
                           name);
    }
    return stack(m, experts, n, il, what);
}

/* One tensor [experts, a, b] for all experts, with its scales when it is FP8. */
typedef struct fused {
    const qw_st_tensor *weight, *scales;
} fused;

static qw_status find_fused(mapper *m, const char *name, fused *out)
{
    char scales[QW_ST_NAME_MAX + 1];
    const qw_st_tensor *t = hf_find(m->hf, name);
    if (t == NULL || t->n_dims != 3 || t->shape[0] != m->c->n_experts)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' is missing or has not [%" PRIu64 ",...]",
                       t ? hf_path_of(m->hf, t) : m->hf->dir, name, m->c->n_experts);
    *out = (fused){.weight = t};
    if (!qw_st_is(t, "F8_E4M3")) return QW_OK;
    join(scales, name, "_scale_inv");
    out->scales = hf_find(m->hf, scales);
    if (out->scales != NULL) return QW_OK;
    return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' is FP8, and its scales '%s' are missing", hf_path_of(m->hf, t), name,
                   scales);
}

/* Part `part` of n_parts that lie behind each other in every expert. turned: [experts, inputs, outputs]. */
static qw_status put_fused(mapper *m, size_t il, const char *what, const fused *f, bool turned, uint64_t part,
                           uint64_t n_parts, hf_matrix *experts)
{
    const uint64_t *shape = f->weight->shape, n = shape[0], rows = shape[turned ? 2 : 1] / n_parts;
    hf_matrix all;
    if (f->scales) {
        QW_TRY(hf_matrix_fp8_fused(m->hf, &m->c->quant, f->weight, f->scales, part, n_parts, &all, m->err));
        return put_stack(m, il, what, &all, n);
    }
    QW_TRY(hf_matrix_of(m->hf, f->weight, &all, m->err));
    if (!turned && n_parts == 1) return put_stack(m, il, what, &all, n);
    for (uint64_t e = 0; e < n; e++) {
        hf_matrix one = hf_matrix_part(&all, e * shape[1], shape[1]);
        if (!turned) experts[e] = hf_matrix_part(&one, part * rows, rows);
        else QW_TRY(hf_matrix_turned(m->hf, &one, part * rows, shape[2], rows, shape[1], &experts[e], m->err));
    }
    return stack(m, experts, (size_t)n, il, what);
}

/* gate_up_proj [experts, 2 * ffn, hidden], gate rows first, and down_proj [experts, hidden, ffn]; or both transposed, which
 * their shapes tell: 2 * ffn and ffn cannot both be the hidden size. */
static qw_status map_fused(mapper *m, const char *prefix, size_t il, hf_matrix *experts)
{
    const uint64_t h = m->c->hidden, ffn = m->c->expert_ffn;
    char name[QW_ST_NAME_MAX + 1];
    fused gate_up, down;
    join(name, prefix, "mlp.experts.gate_up_proj");
    QW_TRY(find_fused(m, name, &gate_up));
    join(name, prefix, "mlp.experts.down_proj");
    QW_TRY(find_fused(m, name, &down));
    const uint64_t *a = gate_up.weight->shape + 1, *b = down.weight->shape + 1;
    bool usual = a[0] == 2 * ffn && a[1] == h && b[0] == h && b[1] == ffn;
    bool turned = a[0] == h && a[1] == 2 * ffn && b[0] == ffn && b[1] == h;
    if (!usual && (!turned || gate_up.scales || down.scales))
        return qw_fail(m->err, QW_E_FORMAT, "%s: '%smlp.experts.*' are [%" PRIu64 ",%" PRIu64 "] and [%" PRIu64 ",%" PRIu64
                       "]%s: want [%" PRIu64 ",%" PRIu64 "] and [%" PRIu64 ",%" PRIu64 "]", m->hf->dir, prefix, a[0], a[1], b[0],
                       b[1], turned ? " in FP8" : "", 2 * ffn, h, h, ffn);
    QW_TRY(put_fused(m, il, "gate", &gate_up, turned, 0, 2, experts));
    QW_TRY(put_fused(m, il, "up", &gate_up, turned, 1, 2, experts));
    return put_fused(m, il, "down", &down, turned, 0, 1, experts);
}

static qw_status map_experts(mapper *m, const char *prefix, size_t il)
{
    static const char *const parts[] = {"gate", "up", "down"};
    char name[QW_ST_NAME_MAX + 1];
    hf_matrix *experts = NULL;
    qw_status status = QW_OK;
    QW_TRY(qw_alloc(&experts, (size_t)m->c->n_experts, sizeof *experts, "the experts of a layer", m->err));
    join(name, prefix, "mlp.experts.gate_up_proj");
    if (has(m->hf, name)) status = map_fused(m, prefix, il, experts);
    else
        for (size_t p = 0; p < 3 && status == QW_OK; p++) status = map_separate(m, prefix, il, parts[p], experts);
    free(experts);
    return status;
}

/* ---- indexer and n-grams ------------------------------------------------------------------------ */

/* Queries of all index heads, then the key, in one matrix there and in two here. */
static qw_status map_index(mapper *m, const char *prefix, size_t il)
{
    uint64_t n_q = m->c->index_heads * m->c->index_dim;
    char name[QW_ST_NAME_MAX + 1], out[64];
    hf_matrix all, part;
    join(name, prefix, "self_attn.indexer.index_qk_proj");
    qw_status status = hf_matrix_find(m->hf, m->c, name, &all, m->err);
    if (status == QW_E_NOT_FOUND) {
        qw_faults_add(&m->faults, "tensor '%s.weight' is missing", name);
        return QW_OK;
    }
    QW_TRY(status);
    if (all.rows != n_q + m->c->index_dim)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' has %" PRIu64 " rows, want %" PRIu64, m->hf->dir, name, all.rows,
                       n_q + m->c->index_dim);
    const uint64_t from[] = {0, n_q}, rows[] = {n_q, m->c->index_dim};
    static const char *const outs[] = {"q_proj", "k_proj"};
    for (size_t i = 0; i < 2; i++) {
        QW_TRY(hf_matrix_gather(m->hf, &all, 1, &from[i], 1, rows[i], &part, m->err));
        snprintf(out, sizeof out, "blk.%zu.indexer.%s.weight", il, outs[i]);
        QW_TRY(put_matrix(m, out, &part));
    }
    return QW_OK;
}

static void gram_name(const qw_hf *hf, const hf_config *c, const char *what, char out[QW_ST_NAME_MAX + 1])
{
    char part[128];
    snprintf(part, sizeof part, "layers.%" PRIu64 ".ple.ple_embedding.%s", c->gram_layer, what);
    join(out, text_prefix(hf), part);
}

qw_status hf_ngram_keys(qw_hf *hf, const hf_config *c, qw_gguf_writer *w, qw_err *err)
{
    static const struct {
        const char *hf, *key;
    } lists[] = {{"layer_multipliers", "layer_multipliers"}, {"ngram_heads_offsets", "head_offsets"},
                 {"ngram_heads_vocab_sizes", "head_vocab_sizes"}};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char name[QW_ST_NAME_MAX + 1], key[128];
        int64_t v[256];
        gram_name(hf, c, lists[i].hf, name);
        const qw_st_tensor *t = hf_find(hf, name);
        if (t == NULL || !qw_st_is(t, "I64") || t->n > sizeof v / sizeof *v)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is missing or no short list of integers", hf->dir, name);
        for (size_t j = 0; j < t->n; j++) {
            uint64_t bits = 0;
            for (size_t b = 8; b-- > 0;) bits = bits << 8 | t->data[8 * j + b];
            v[j] = (int64_t)bits;
        }
        snprintf(key, sizeof key, "%s.ple.%s", c->kind->arch, lists[i].key);
        QW_TRY(qw_gguf_put_i64s(w, key, v, (size_t)t->n, err));
    }
    return QW_OK;
}

/* The parts of the n-gram table one after the other. Blocks have one size: the largest that divides all parts. */
static qw_status join_parts(mapper *m, hf_matrix *parts, size_t n, const char *name)
{
    enum { BLOCKS_MAX = 1 << 16 };
    uint64_t block = 0, rows = 0, *from = NULL;
    hf_matrix *in = NULL, all;
    qw_status status = QW_OK;
    for (size_t i = 0; i < n; i++, rows += parts[i - 1].rows) {
        if (parts[i].in.type != parts[0].in.type || parts[i].in.k != parts[0].in.k)
            return qw_fail(m->err, QW_E_FORMAT, "%s: '%s': its parts have different types or widths", m->hf->dir, name);
        for (uint64_t a = parts[i].rows, t; a != 0; block = a, a = t) t = block % a;
    }
    if (rows / block > BLOCKS_MAX)
        return qw_fail(m->err, QW_E_LIMIT, "%s: '%s': its parts have sizes that do not fit each other", m->hf->dir, name);
    size_t n_blocks = (size_t)(rows / block), at = 0;
    QW_TRY(qw_alloc(&from, n_blocks, sizeof *from, "the order of rows", m->err));
    QW_TRY_GOTO(qw_alloc(&in, n_blocks, sizeof *in, "the order of rows", m->err));
    for (size_t i = 0; i < n; i++)
        for (uint64_t r = 0; r < parts[i].rows; r += block, at++) {
            in[at] = parts[i];
            from[at] = r;
        }
    QW_TRY_GOTO(hf_matrix_gather(m->hf, in, n_blocks, from, n_blocks, block, &all, m->err));
    status = put_matrix(m, "per_layer_token_embd.weight", &all);
fail:
    free(in);
    free(from);
    return status;
}

static qw_status map_grams(mapper *m)
{
    enum { PARTS_MAX = 4096 };
    char name[QW_ST_NAME_MAX + 1], part[64];
    hf_matrix *parts = NULL;
    size_t n = 0;
    qw_status status = QW_OK;
    QW_TRY(qw_alloc(&parts, PARTS_MAX, sizeof *parts, "the n-gram table", m->err));
    for (; n < PARTS_MAX; n++) {
        snprintf(part, sizeof part, "ngram_embedding.shard_%zu", n);
        gram_name(m->hf, m->c, part, name);
        status = hf_matrix_find(m->hf, m->c, name, &parts[n], m->err);
        if (status != QW_OK) break;
    }
    if (status == QW_E_NOT_FOUND || status == QW_OK) {
        status = QW_OK;
        if (n == 0)
            qw_faults_add(&m->faults, "tensor '%s.weight' is missing", name);
        else
            status = join_parts(m, parts, n, name);
    }
    free(parts);
    return status;
}

/* ---- layers ------------------------------------------------------------------------------------- */

typedef struct layer {
    size_t il;
    bool recurrent, experts;
} layer;

static bool belongs(const mapper *m, const rule *r, const layer *l)
{
    switch (r->where) {
    case ANYWHERE: return true;
    case ONE_STREAM: return !m->c->kind->streams;
    case STREAMS: return m->c->kind->streams;
    case ATTENTION: return !l->recurrent;
    case INDEXER: return !l->recurrent && m->c->kind->streams;
    case GRAMS: return m->c->gram_size > 0 && l->il == m->c->gram_layer;
    case BIASES: return !l->recurrent && m->c->kind->qkv_bias; /* Qwen2, and */
    case HEAD_NORMS: return !l->recurrent && !m->c->kind->qkv_bias; /* everything after it */
    case DELTA: return l->recurrent;
    case DELTA_PACKED: return l->recurrent && m->c->kind->packed;
    case DELTA_FLAT: return l->recurrent && !m->c->kind->packed;
    case DENSE: return !l->experts;
    case EXPERTS: return l->experts;
    case SHARED: return l->experts && m->c->shared_ffn > 0;
    }
    return false;
}

static qw_status map_layer(mapper *m, const char *prefix, size_t number, size_t il, bool recurrent)
{
    char full[QW_ST_NAME_MAX + 1], router[QW_ST_NAME_MAX + 1];
    snprintf(full, sizeof full, "%slayers.%zu.", prefix, number);
    join(router, full, "mlp.gate.weight");
    layer l = {.il = il, .recurrent = recurrent, .experts = m->c->kind->moe && has(m->hf, router)};
    if (l.recurrent && m->c->kind->packed) QW_TRY(map_packed(m, full, il));
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (belongs(m, &rules[i], &l)) QW_TRY(map_one(m, &rules[i], full, il));
    if (m->c->kind->streams && !l.recurrent) QW_TRY(map_index(m, full, il));
    return l.experts ? map_experts(m, full, il) : QW_OK;
}

static qw_status map_mtp(mapper *m, size_t n_mtp)
{
    const char *prefix = mtp_prefix(m->hf);
    size_t first = (size_t)m->c->n_layers;
    for (size_t i = 0; i < n_mtp; i++) QW_TRY(map_layer(m, prefix, i, first + i, false));
    for (size_t i = 0; n_mtp > 0 && i < sizeof mtp_rules / sizeof *mtp_rules; i++)
        QW_TRY(map_one(m, &mtp_rules[i], prefix, first));
    return QW_OK;
}

/* ---- the head of a reranker --------------------------------------------------------------------- */

/* Where GGUF has two scores, yes and no, a folder may have one, that of yes against no: then no is 0, and the probability
 * the same. Of two config.json says which is which. */
static qw_status map_score(mapper *m)
{
    const uint64_t h = m->c->hidden;
    hf_matrix x;
    float *from = NULL, *to = NULL;
    const qw_st_tensor *t = hf_find(m->hf, score_name);
    if (t == NULL) return QW_OK;
    if (t->n_dims != 2 || t->shape[1] != h || t->shape[0] < 1 || t->shape[0] > 2)
        return qw_fail(m->err, QW_E_FORMAT, "%s: tensor '%s' is no head of a reranker: want [1,%" PRIu64 "] or [2,%" PRIu64 "]",
                       hf_path_of(m->hf, t), t->name, h, h);
    if (t->shape[0] == 2 && m->c->yes_label < 0)
        return qw_fail(m->err, QW_E_FORMAT, "%s: \"id2label\" has to name the two scores of '%s' \"yes\" and \"no\"",
                       m->hf->config_path, t->name);
    QW_TRY(hf_matrix_of(m->hf, t, &x, m->err));
    QW_TRY(load_floats(m, &x, &from));
    QW_TRY(hf_alloc(m->hf, &to, 2 * h, sizeof *to, m->err));
    size_t yes = t->shape[0] == 2 ? (size_t)m->c->yes_label : 0;
    memcpy(to, from + yes * h, h * sizeof *to);
    if (t->shape[0] == 2) memcpy(to + h, from + (1 - yes) * h, h * sizeof *to);
    return put_floats(m, "cls.output.weight", to, 2, (uint64_t[]){h, 2});
}

/* ---- the whole ---------------------------------------------------------------------------------- */

/* The head, unless it is the embedding: with tied embeddings a head in the folder is not used. */
static qw_status map_head(mapper *m, const char *prefix)
{
    static const char *const names[] = {"lm_head", "language_model.lm_head", "model.lm_head"};
    const rule r = {.hf = "", .gguf = "", .op = MATRIX};
    char name[QW_ST_NAME_MAX + 1];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        join(name, names[i], ".weight");
        if (!has(m->hf, name)) continue;
        if (!m->c->tied) return map_matrix(m, &r, names[i], "output.weight");
        hf_find(m->hf, name);
        return qw_buf_printf(&m->hf->note, m->err, "%s is left out: tie_word_embeddings is true\n", name);
    }
    join(name, names[0], ".qweight");
    if (has(m->hf, name) && !m->c->tied) return map_matrix(m, &r, names[0], "output.weight");
    bool none = prefix[0] == '\0' || has(m->hf, score_name); /* a model for embeddings or a reranker has none */
    if (!m->c->tied && !none) qw_faults_add(&m->faults, "tensor 'lm_head.weight' is missing");
    return QW_OK;
}

static qw_status map_ends(mapper *m, const char *prefix)
{
    const rule embed = {.op = MATRIX}, norm = {.op = NORM};
    char name[QW_ST_NAME_MAX + 1];
    join(name, prefix, "embed_tokens");
    QW_TRY(map_matrix(m, &embed, name, "token_embd.weight"));
    if (m->c->kind->streams) {
        join(name, prefix, "hyper_connection_mixer.hc_norm.weight");
        QW_TRY(map_small(m, &norm, name, "output_hc_norm.weight"));
        join(name, prefix, "hyper_connection_mixer.input_mix_weight_down");
        QW_TRY(map_matrix(m, &embed, name, "output_hc_down.weight"));
        join(name, prefix, "hyper_connection_mixer.input_mix_weight_up");
        QW_TRY(map_matrix(m, &embed, name, "output_hc_up.weight"));
        if (m->c->gram_size > 0) QW_TRY(map_grams(m));
    } else {
        join(name, prefix, "norm.weight");
        QW_TRY(map_small(m, &norm, name, "output_norm.weight"));
    }
    QW_TRY(map_head(m, prefix));
    return map_score(m);
}

static bool all_zero(const qw_st_tensor *t)
{
    for (size_t i = 0; i < t->bytes; i++)
        if (t->data[i] != 0) return false;
    return true;
}

/* GGUF has no names for this family's multi-token prediction. */
static bool is_unnamed_mtp(const hf_config *c, const qw_st_tensor *t)
{
    return c->kind->streams && (strncmp(t->name, "mtp.", 4) == 0 || strncmp(t->name, "model.mtp.", 10) == 0);
}

/* Left out by name: the image part, tables that are computed, biases of zeros that quantising tools add. */
static bool is_left_out(const qw_st_tensor *t, bool *vision)
{
    static const char *const begins[] = {"model.visual.", "visual."}, *const ends[] = {".rotary_emb.inv_freq"};
    size_t n = strlen(t->name);
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
        if (strncmp(t->name, begins[i], strlen(begins[i])) == 0) return *vision = true;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (n > strlen(ends[i]) && strcmp(t->name + n - strlen(ends[i]), ends[i]) == 0) return true;
    return n > 5 && strcmp(t->name + n - 5, ".bias") == 0 && all_zero(t);
}

static qw_status check_all_used(qw_hf *hf, const hf_config *c, qw_err *err)
{
    const qw_st_tensor *first = NULL;
    size_t n = 0;
    bool vision = false, mtp = false;
    for (size_t i = 0; i < hf->n_tensors; i++) {
        const qw_st_tensor *t = hf->tensors[i];
        if (is_unnamed_mtp(c, t)) mtp = true;
        if (t->used || is_left_out(t, &vision) || is_unnamed_mtp(c, t)) continue;
        if (n++ == 0) first = t;
    }
    if (mtp) QW_TRY(qw_buf_add_str(&hf->note, "multi-token prediction is left out\n", err));
    if (vision) QW_TRY(qw_buf_add_str(&hf->note, "the image part is left out\n", err));
    if (n == 0) return QW_OK;
    return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s'%s not part of the %s architecture", hf_path_of(hf, first),
                   first->name, n > 1 ? " and others are" : " is", c->kind->arch);
}

qw_status hf_tensors_map(qw_hf *hf, const hf_config *c, size_t n_mtp, qw_err *err)
{
    const char *prefix = text_prefix(hf);
    mapper m = {.hf = hf, .c = c, .err = err};
    qw_status status;
    QW_TRY(make_order(&m));
    QW_TRY_GOTO(map_ends(&m, prefix));
    for (size_t il = 0; il < c->n_layers; il++)
        QW_TRY_GOTO(map_layer(&m, prefix, il, il, c->kind->hybrid && c->recurrent[il]));
    QW_TRY_GOTO(map_mtp(&m, n_mtp));
    QW_TRY_GOTO(qw_faults_report(&m.faults, QW_E_FORMAT, hf->dir, err));
    status = check_all_used(hf, c, err);
fail:
    free(m.order);
    return status;
}
