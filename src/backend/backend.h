/* backend.h: the operations a forward pass is made of, on some device.
 *
 * The model calls these and nothing below them; a device is one implementation of the table (cpu/). All
 * tensors are float32, row-major, one row per (sequence, position); `ld` is the distance between rows in
 * elements. Every operation treats rows independently, so that a row's bits do not depend on the batch.
 * One thread at a time (the engine's); the backend spreads the work itself. Nothing here allocates after
 * create.
 */
#ifndef QW_BACKEND_BACKEND_H
#define QW_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/attn_layout.h"
#include "kernels/blocks.h"
#include "kernels/kernels.h"
#include "kernels/rows.h"

/* A weight matrix [rows, k], or a stack of such matrices: one for each expert. `packed` is set by qw_weights (model/) when
 * a packed form exists. */
typedef struct qw_weight {
    const char *name;
    qw_type type;
    size_t rows, k;
    size_t n_stacked;    /* 1: a matrix */
    const uint8_t *data; /* blocks as the file has them; borrows from the mapping; NULL: */
    const qw_rows *source; /* rows are made when they are wanted; borrows; NULL as well: there is no such weight */
    size_t source_row;     /* that is row 0 here */
    size_t row_bytes;
    size_t stack_bytes;  /* from one matrix to the next */
    const float *scales; /* [n_stacked]: what all numbers of a matrix are times, beside its blocks; borrows; NULL: 1 */
    qw_pack pack;        /* form of `packed`, or QW_PACK_NONE: computed on dequantised rows */
    const void *packed;  /* [n_stacked][ceil(rows / 16)] groups of qw_pack_group_bytes(); borrows */
} qw_weight;

/* Groups of 16 rows of one matrix. */
static inline size_t qw_weight_groups(const qw_weight *w)
{
    return (w->rows + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
}
static inline bool qw_weight_exists(const qw_weight *w)
{
    return w->data != NULL || w->source != NULL;
}
static inline const uint8_t *qw_weight_row(const qw_weight *w, size_t stacked, size_t row)
{
    return w->data + stacked * w->stack_bytes + row * w->row_bytes;
}
/* Bytes that reading n rows through the source takes: for them, and as scratch; 0 for a weight with data. */
static inline size_t qw_weight_source_bytes(const qw_weight *w, size_t n)
{
    return w->data ? 0 : (n * w->row_bytes + 63) / 64 * 64 + w->source->scratch_bytes;
}
/* Rows [row, row + n) of one matrix: where they lie, or made in the buffer, which has qw_weight_source_bytes(w, n) and is
 * 64-byte aligned. */
static inline const uint8_t *qw_weight_read(const qw_weight *w, size_t stacked, size_t row, size_t n, uint8_t *buffer)
{
    if (w->data) return qw_weight_row(w, stacked, row);
    size_t first = w->source_row + stacked * (w->stack_bytes / w->row_bytes) + row;
    w->source->make(w->source, first, n, buffer, buffer + (n * w->row_bytes + 63) / 64 * 64);
    return buffer;
}

/* Matrix number `stacked` of w, as a weight of its own. */
static inline qw_weight qw_weight_matrix(const qw_weight *w, size_t stacked)
{
    qw_weight one = *w;
    one.n_stacked = 1;
    if (w->data) one.data += stacked * w->stack_bytes;
    else one.source_row += stacked * (w->stack_bytes / w->row_bytes);
    if (w->scales) one.scales += stacked;
    if (w->pack != QW_PACK_NONE) {
        size_t group_bytes = qw_pack_group_bytes(w->pack, w->k);
        one.packed = (const uint8_t *)w->packed + stacked * qw_weight_groups(w) * group_bytes;
    }
    return one;
}

/* One product of a group that shares its input: out[r, :] = W x[r, :] + bias, or out[r, :] += W x[r, :]. */
typedef struct qw_linear {
    const qw_weight *w;
    const float *bias; /* [rows] or NULL */
    float *out;        /* [n_rows, ld], ld >= rows */
    size_t ld;
    bool add;
    bool fine;         /* activations to 16 bits instead of 8: twice the columns. For few rows only */
} qw_linear;

/* A gated feed-forward block; gate_out, up_out [n_rows, ffn] are scratch that a device may use. */
typedef struct qw_swiglu {
    const qw_weight *gate, *up; /* [ffn, hidden] */
    const qw_weight *down;      /* [hidden, ffn] */
    float *gate_out, *up_out;
} qw_swiglu;

/* A feed-forward block of experts: x[r] += the sum over the chosen experts e of weight[r, e] * SwiGLU_e(n[r]), then the
 * shared expert's. Weights are the softmax over all experts, of the n_used largest (the lower number first where two are
 * equal), divided by their sum when renormalise says so. Experts are added in the order of their numbers. */
typedef struct qw_moe {
    const qw_weight *router;             /* [n_experts, hidden] */
    const qw_weight *gate, *up, *down;   /* stacks of n_experts: [ffn, hidden] twice, [hidden, ffn] */
    size_t n_experts, n_used;
    bool renormalise;
    const qw_weight *shared_gate, *shared_up, *shared_down; /* one expert that is always used; NULL: none */
    const qw_weight *shared_scale;       /* [1, hidden]: its weight is the sigmoid of this product; NULL: 1 */
    float *gate_out, *up_out;            /* [n_rows, ffn of the shared expert]: scratch that a device may use */
} qw_moe;

/* One row's experts, from the router's product: expert, weight [n_used], ascending by number. logits [n_experts] are used up. */
void qw_moe_route(const qw_kernels *kernels, const qw_moe *w, float *logits, uint32_t *expert, float *weight);

/* Where one row of a batch stands in its sequence's state. */
typedef struct qw_kv_row {
    uint8_t *const *pages; /* page of position p: pages[p / QW_KV_TILE] */
    uint8_t *recurrent;    /* the sequence's recurrent state, or NULL */
    uint8_t *keep;         /* where the recurrent state goes that follows this row, apart from the sequence; or NULL */
    uint32_t pos;
} qw_kv_row;

/* Heads within rows: head h of row r begins at x + r * ld + h * stride. */
typedef struct qw_heads {
    float *x;
    size_t ld, stride;
    uint32_t n, dim;
} qw_heads;

/* A gated delta-net layer: convolution over time, gated delta rule, gated norm. Its state in a sequence, at `offset` of
 * the recurrent state: the last n_taps - 1 inputs of the convolution [n_taps - 1, channels], oldest first, then S as
 * [n_v_heads][v_dim / QW_DELTA_LANES][k_dim][QW_DELTA_LANES], all float32 and zero at the start. */
typedef struct qw_delta {
    uint32_t n_k_heads, n_v_heads, k_dim, v_dim, n_taps;
    bool tiled;         /* value head j reads key head j % n_k_heads; otherwise j / (n_v_heads / n_k_heads) */
    bool sigmoid_gate;  /* the output gate; otherwise silu */
    float eps;          /* of the norm */
    const float *conv;  /* [n_taps, channels], channels: q, k (n_k_heads * k_dim each), v (n_v_heads * v_dim) */
    const float *a;     /* [n_v_heads]: -exp(A_log) */
    const float *dt;    /* [n_v_heads] */
    const float *norm;  /* [v_dim] */
    size_t offset;
} qw_delta;

static inline size_t qw_delta_channels(const qw_delta *d)
{
    return 2 * (size_t)d->n_k_heads * d->k_dim + (size_t)d->n_v_heads * d->v_dim;
}
/* Bytes of a layer's state in a sequence: a multiple of 64. */
static inline size_t qw_delta_state_bytes(const qw_delta *d)
{
    size_t n = (d->n_taps - 1) * qw_delta_channels(d) + (size_t)d->n_v_heads * d->k_dim * d->v_dim;
    return (n * sizeof(float) + 63) / 64 * 64;
}

/* Inputs of a delta-net layer for the rows of a batch: products of its projections. */
typedef struct qw_delta_in {
    const float *qkv;   /* [n_rows, channels]: q heads, k heads, v heads */
    const float *z;     /* [n_rows, n_v_heads * v_dim]: the output gate */
    const float *beta, *alpha; /* [n_rows, n_v_heads] with ld_gates; value head j of key head i at i * per_k_head + j */
    size_t ld_gates, per_k_head; /* per_k_head 0: at the value head's own number */
} qw_delta_in;

typedef enum qw_kv_type {
    QW_KV_I16 = 0, /* 16-bit integers, a scale for each position and head: kernels/attn_layout.h */
    QW_KV_F32
} qw_kv_type;

/* Shape of attention and of a page. A page holds a tile of QW_KV_TILE positions for each [layer][kv head]: in f32 keys
 * [head_dim][QW_KV_TILE], then values [QW_KV_TILE][head_dim]; the integer tile is the kernels' affair. */
typedef struct qw_kv_shape {
    qw_kv_type type;
    uint32_t n_layers; /* with keys and values */
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t index_dim, index_block; /* with block-sparse attention: a page ends with [layer][QW_KV_TILE / index_block]
                                        keys of index_dim floats; else 0 */
} qw_kv_shape;

/* Bytes of one head's tile, keys and values. */
static inline size_t qw_kv_tile_bytes(const qw_kv_shape *s)
{
    if (s->type == QW_KV_I16) return qw_attn_tile_bytes(qw_attn_padded(s->head_dim));
    return 2 * (size_t)s->head_dim * QW_KV_TILE * sizeof(float);
}
static inline size_t qw_kv_page_bytes(const qw_kv_shape *s)
{
    size_t index = s->index_dim ? (size_t)s->n_layers * (QW_KV_TILE / s->index_block) * s->index_dim * sizeof(float) : 0;
    return qw_kv_tile_bytes(s) * s->n_kv_heads * s->n_layers + index;
}
/* Offset of a layer's index keys in a page. */
static inline size_t qw_kv_index_offset(const qw_kv_shape *s, uint32_t layer)
{
    return qw_kv_tile_bytes(s) * s->n_kv_heads * s->n_layers +
           (size_t)layer * (QW_KV_TILE / s->index_block) * s->index_dim * sizeof(float);
}
/* Offset of a head's tile in a page. */
static inline size_t qw_kv_offset(const qw_kv_shape *s, uint32_t layer, uint32_t kv_head)
{
    return qw_kv_tile_bytes(s) * ((size_t)layer * s->n_kv_heads + kv_head);
}

/* Block-sparse attention: a query attends to the `top` blocks of `block` positions that an indexer scores highest, and to
 * the incomplete block at the end. A complete block's index key is the mean of its positions' keys, normed, and rotated
 * at its first position; a score is the sum over index heads of relu(q . key). While a sequence has no more than `top`
 * complete blocks this is plain attention. The keys of an incomplete block, [block - 1, dim], are kept at `offset` of the
 * recurrent state. */
typedef struct qw_index {
    uint32_t n_heads, dim, n_rot, block, top;
    float eps, rope_scale;
    const float *k_norm;   /* [dim] */
    const float *inv_freq; /* [n_rot / 2] */
    size_t offset;
} qw_index;

/* Per-layer embedding (backend operations ple_*): a short convolution over time whose taps are `dilation` positions apart.
 * State at `offset` of the recurrent state: inputs of the last (n_taps - 1) * dilation positions, that of position p at
 * slot p % count, [count, k]. */
typedef struct qw_ple_conv {
    uint32_t n_taps, dilation;
    size_t k;
    const float *w; /* [n_taps, k] */
    size_t offset;
} qw_ple_conv;

typedef struct qw_backend qw_backend;

typedef struct qw_backend_ops {
    const char *name;
    void (*destroy)(qw_backend *be);

    /* out[r, 0..k) = row tokens[r] of w. */
    void (*embed)(qw_backend *be, const qw_weight *w, const int32_t *tokens, size_t n_rows, float *out, size_t ld);
    /* out[r] = RMSNorm(x[r]) * w over k elements. */
    void (*rms_norm)(qw_backend *be, const float *x, const float *w, size_t n_rows, size_t k, size_t ld, float eps,
                     float *out);
    /* n_products products of one input x [n_rows, ld_x]; all fine or none, and fine ones with at most half the rows
     * of a full batch and without add. */
    void (*linear)(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                   size_t n_products);
    /* x[r] += Wdown (silu(Wgate n[r]) * Wup n[r]); n [n_rows, ld_n], x [n_rows, ld_x]. */
    void (*swiglu)(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                   size_t ld_x);
    /* x[r] += the experts' results; n [n_rows, ld_n], x [n_rows, ld_x]. */
    void (*moe)(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x, size_t ld_x);
    /* gate[r] = silu(gate[r]) * up[r]. */
    void (*silu_mul)(qw_backend *be, float *gate, const float *up, size_t n_rows, size_t k, size_t ld);
    /* x[r, h * dim + i] *= sigmoid(gate head h of row r [i]). */
    void (*sigmoid_gate)(qw_backend *be, float *x, size_t ld, size_t n_rows, qw_heads gate);
    /* Rotates the first n_rot elements of each head in place; cos, sin [n_rows, n_rot / 2]. */
    void (*rope)(qw_backend *be, qw_heads x, size_t n_rows, uint32_t n_rot, const float *cos, const float *sin);
    /* Writes k, v [n_rows, n_kv_heads * head_dim] into the pages, in the stored type. */
    void (*kv_store)(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows, size_t n_rows,
                     const float *k, const float *v, size_t ld);
    /* Causal attention of q over positions 0..pos of each row's sequence, which kv_store has filled; out
     * [n_rows, n_heads * head_dim] with ld_out, may be q where that is dense. */
    void (*attention)(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                      size_t n_rows, qw_heads q, float *out, size_t ld_out);
    /* Takes the index keys [n_rows, dim] of the rows' positions. */
    void (*index_store)(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                        const qw_kv_row *rows, size_t n_rows, const float *keys);
    /* As attention, over the blocks that index queries index_q [n_rows, n_heads * dim] choose. */
    void (*sparse_attention)(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                             const qw_kv_row *rows, size_t n_rows, qw_heads q, const float *index_q, float *out,
                             size_t ld_out);
    /* Gated delta-net: reads and advances the state of each row's sequence; out [n_rows, n_v_heads * v_dim]. */
    void (*delta_net)(qw_backend *be, const qw_delta *d, const qw_kv_row *rows, size_t n_rows, const qw_delta_in *in,
                      float *out);

    /* Hyper-connections: the residual stream is n_streams of k floats, side by side in a row. */
    /* x = silu(x / n_streams), all [n_rows, k]. */
    void (*hyper_gate)(qw_backend *be, float *x, size_t n_rows, size_t k, uint32_t n_streams);
    /* out[r] = mean over streams s of sigmoid(mix[r, s]) * x[r, s]; x, mix [n_rows, n_streams * k], out [n_rows, k]. */
    void (*hyper_mix)(qw_backend *be, const float *x, const float *mix, size_t n_rows, size_t k, uint32_t n_streams,
                      float *out);
    /* x[r, s] += 2 sigmoid(inject[r, s] / n_streams) * y[r]; inject [n_rows, n_streams]. */
    void (*hyper_inject)(qw_backend *be, float *x, const float *y, const float *inject, size_t n_rows, size_t k,
                         uint32_t n_streams);
    /* out[r, s] = sigmoid(root(key[r, s] . query[r, s] / sqrt(k))) * value[r], root(g) = sign(g) sqrt(max(|g|, 1e-6));
     * key, query, out [n_rows, n_streams * k], value [n_rows, k]. */
    void (*ple_gate)(qw_backend *be, const float *key, const float *query, const float *value, size_t n_rows, size_t k,
                     uint32_t n_streams, float *out);
    /* x[r] += y[r] + silu(convolution of u); x, y, u [n_rows, c->k]. Reads and advances the sequences' state. */
    void (*ple_conv)(qw_backend *be, const qw_ple_conv *c, const qw_kv_row *rows, size_t n_rows, const float *u,
                     const float *y, float *x);
} qw_backend_ops;

struct qw_backend {
    const qw_backend_ops *ops;
    /* device fields follow in the implementation's own struct */
};

/* ---- the CPU ---------------------------------------------------------------------------------- */

typedef struct qw_pool qw_pool;

/* What the scratch must hold, known from the model. */
typedef struct qw_cpu_sizes {
    size_t n_rows_max;  /* rows in one batch */
    size_t k_max;       /* longest input of a product */
    uint32_t head_dim;
    uint32_t index_top; /* blocks a query chooses with block-sparse attention; 0: none */
    size_t n_experts, n_used, hidden, expert_ffn; /* of the largest block of experts; 0: none */
    size_t source_bytes; /* the most that reading a row through its source takes; 0: all weights have data */
    size_t k_dim, v_dim; /* of a delta-net's heads; 0: none */
    bool acts[QW_ACT_COUNT]; /* what the packed weights want their input as */
} qw_cpu_sizes;

/* Bytes that qw_cpu_create will allocate, for the plan. */
size_t qw_cpu_scratch_bytes(const qw_cpu_sizes *sizes, int n_threads);
/* Borrows the pool. isa <= qw_cpu_isa(). */
qw_status qw_cpu_create(qw_pool *pool, qw_isa isa, const qw_cpu_sizes *sizes, qw_backend **out,
                        qw_err *err) QW_MUST_CHECK;

#endif
