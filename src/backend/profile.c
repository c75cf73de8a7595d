/* profile.c: see profile.h. An operation that the table gains needs one function here: find the row, start the clock,
 * forward, stop it with what the operation reads and multiplies. Owner thread: the one that runs passes. */
#include "backend/profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"

typedef struct qw_profile {
    qw_backend base;
    qw_backend *inner; /* borrows */
    qw_steps *steps;   /* owns; NULL: nobody watches inputs */
    qw_profile_row rows[QW_PROFILE_ROWS_MAX];
    size_t n_rows;
} qw_profile;

/* An operation being measured. */
typedef struct mark {
    qw_profile_row *row;
    int64_t start_ns;
} mark;

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static qw_steps *steps_of(qw_backend *be)
{
    return ((qw_profile *)be)->steps;
}

static qw_backend *inner_of(qw_backend *be)
{
    return ((qw_profile *)be)->inner;
}

/* Looks the row up before the clock starts. */
static mark begin(qw_backend *be, const char *op, const char *weights)
{
    qw_profile *p = (qw_profile *)be;
    size_t i = 0;
    while (i < p->n_rows && (strcmp(p->rows[i].op, op) != 0 || strcmp(p->rows[i].weights, weights) != 0)) i++;
    if (i == QW_PROFILE_ROWS_MAX) i--;
    if (i == p->n_rows) {
        p->rows[i] = (qw_profile_row){.op = op};
        snprintf(p->rows[i].weights, sizeof p->rows[i].weights, "%s", weights);
        p->n_rows++;
        if (p->n_rows == QW_PROFILE_ROWS_MAX) {
            p->rows[i].op = "others";
            p->rows[i].weights[0] = '\0';
        }
    }
    return (mark){.row = &p->rows[i], .start_ns = clock_ns()};
}

static void end(mark m, size_t n_bytes, size_t n_macs)
{
    m.row->ns += clock_ns() - m.start_ns;
    m.row->n_calls++;
    m.row->n_bytes += n_bytes;
    m.row->n_macs += n_macs;
}

/* ---- products: their names, and what they read ------------------------------------------------ */

/* "blk.12.ffn_up.weight" is "ffn_up" in every layer. */
static void short_name(const char *name, char *out, size_t cap)
{
    if (strncmp(name, "blk.", 4) == 0) {
        const char *dot = strchr(name + 4, '.');
        if (dot) name = dot + 1;
    }
    size_t n = strlen(name), n_end = strlen(".weight");
    if (n > n_end && strcmp(name + n - n_end, ".weight") == 0) n -= n_end;
    snprintf(out, cap, "%.*s", (int)n, name);
}

/* "attn_q+attn_k+attn_v". */
static void group_name(const qw_linear *products, size_t n_products, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < n_products && at + 1 < cap; i++) {
        if (i > 0) out[at++] = '+';
        short_name(products[i].w->name, out + at, cap - at);
        at += strlen(out + at);
    }
}

static size_t weight_bytes(const qw_weight *w)
{
    if (w->pack == QW_PACK_NONE) return w->n_stacked * w->rows * w->row_bytes;
    return w->n_stacked * qw_weight_groups(w) * qw_pack_group_bytes(w->pack, w->k);
}

static size_t products_bytes(const qw_linear *products, size_t n_products, size_t n_rows)
{
    size_t n = n_rows * products[0].w->k * sizeof(float);
    for (size_t i = 0; i < n_products; i++) n += weight_bytes(products[i].w);
    return n;
}

static size_t products_macs(const qw_linear *products, size_t n_products, size_t n_rows)
{
    size_t n = 0;
    for (size_t i = 0; i < n_products; i++) n += products[i].w->rows * products[i].w->k * n_rows;
    return n;
}

static void profile_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                           size_t n_products)
{
    char name[sizeof((qw_profile_row *)0)->weights];
    group_name(products, n_products, name, sizeof name);
    mark m = begin(be, "linear", name);
    if (steps_of(be))
        qw_steps_linear(steps_of(be), inner_of(be), x, ld_x, n_rows, products, n_products);
    else
        inner_of(be)->ops->linear(inner_of(be), x, ld_x, n_rows, products, n_products);
    end(m, products_bytes(products, n_products, n_rows), products_macs(products, n_products, n_rows));
}

static void profile_swiglu(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                           size_t ld_x)
{
    const qw_linear products[] = {{.w = w->gate}, {.w = w->up}, {.w = w->down}};
    char name[sizeof((qw_profile_row *)0)->weights];
    group_name(products, 3, name, sizeof name);
    mark m = begin(be, "swiglu", name);
    if (steps_of(be))
        qw_steps_swiglu(steps_of(be), inner_of(be), n, ld_n, n_rows, w, x, ld_x);
    else
        inner_of(be)->ops->swiglu(inner_of(be), n, ld_n, n_rows, w, x, ld_x);
    end(m, products_bytes(products, 3, n_rows), products_macs(products, 3, n_rows));
}

/* ---- attention -------------------------------------------------------------------------------- */

static size_t kv_token_bytes(const qw_kv_shape *s) /* of one position in one layer */
{
    return qw_kv_tile_bytes(s) * s->n_kv_heads / QW_KV_TILE;
}

/* Rows of one sequence read the same keys: those of the last row are all of them. */
static size_t attention_bytes(const qw_kv_shape *s, const qw_kv_row *rows, size_t n_rows)
{
    size_t n = n_rows * s->n_heads * s->head_dim * sizeof(float);
    for (size_t r = 0; r < n_rows; r++) {
        bool last = r + 1 == n_rows || rows[r + 1].pages != rows[r].pages;
        if (last) n += ((size_t)rows[r].pos + 1) * kv_token_bytes(s);
    }
    return n;
}

static size_t attention_macs(const qw_kv_shape *s, const qw_kv_row *rows, size_t n_rows)
{
    size_t n_keys = 0;
    for (size_t r = 0; r < n_rows; r++) n_keys += (size_t)rows[r].pos + 1;
    return 2 * n_keys * s->n_heads * s->head_dim;
}

static void profile_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                              size_t n_rows, qw_heads q, float *out, size_t ld_out)
{
    mark m = begin(be, "attention", "");
    inner_of(be)->ops->attention(inner_of(be), shape, layer, rows, n_rows, q, out, ld_out);
    end(m, attention_bytes(shape, rows, n_rows), attention_macs(shape, rows, n_rows));
}

static void profile_kv_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                             size_t n_rows, const float *k, const float *v, size_t ld)
{
    mark m = begin(be, "kv_store", "");
    inner_of(be)->ops->kv_store(inner_of(be), shape, layer, rows, n_rows, k, v, ld);
    end(m, 2 * n_rows * shape->n_kv_heads * shape->head_dim * sizeof(float), 0);
}

/* ---- row by row ------------------------------------------------------------------------------- */

static void profile_embed(qw_backend *be, const qw_weight *w, const int32_t *tokens, size_t n_rows, float *out,
                          size_t ld)
{
    mark m = begin(be, "embed", "");
    inner_of(be)->ops->embed(inner_of(be), w, tokens, n_rows, out, ld);
    end(m, n_rows * w->row_bytes, 0);
}

static void profile_rms_norm(qw_backend *be, const float *x, const float *w, size_t n_rows, size_t k, size_t ld,
                             float eps, float *out)
{
    mark m = begin(be, "rms_norm", "");
    inner_of(be)->ops->rms_norm(inner_of(be), x, w, n_rows, k, ld, eps, out);
    end(m, n_rows * k * sizeof(float), 0);
}

static void profile_silu_mul(qw_backend *be, float *gate, const float *up, size_t n_rows, size_t k, size_t ld)
{
    mark m = begin(be, "silu_mul", "");
    inner_of(be)->ops->silu_mul(inner_of(be), gate, up, n_rows, k, ld);
    end(m, 2 * n_rows * k * sizeof(float), 0);
}

static void profile_sigmoid_gate(qw_backend *be, float *x, size_t ld, size_t n_rows, qw_heads gate)
{
    mark m = begin(be, "sigmoid_gate", "");
    inner_of(be)->ops->sigmoid_gate(inner_of(be), x, ld, n_rows, gate);
    end(m, 2 * n_rows * gate.n * gate.dim * sizeof(float), 0);
}

static void profile_rope(qw_backend *be, qw_heads x, size_t n_rows, uint32_t n_rot, const float *cos, const float *sin)
{
    mark m = begin(be, "rope", "");
    inner_of(be)->ops->rope(inner_of(be), x, n_rows, n_rot, cos, sin);
    end(m, n_rows * x.n * n_rot * sizeof(float), 0);
}

/* ---- delta-net and experts -------------------------------------------------------------------- */

/* The state of each sequence in the batch is read and written once, at least. */
static void profile_delta_net(qw_backend *be, const qw_delta *d, const qw_kv_row *rows, size_t n_rows,
                              const qw_delta_in *in, float *out)
{
    size_t n_bytes = n_rows * qw_delta_channels(d) * sizeof(float);
    for (size_t r = 0; r < n_rows; r++) {
        bool last = r + 1 == n_rows || rows[r + 1].recurrent != rows[r].recurrent;
        if (last) n_bytes += qw_delta_state_bytes(d);
    }
    mark m = begin(be, "delta_net", "");
    inner_of(be)->ops->delta_net(inner_of(be), d, rows, n_rows, in, out);
    end(m, n_bytes, 3 * n_rows * d->n_v_heads * d->k_dim * d->v_dim);
}

/* ---- hyper-connections, per-layer embeddings, block-sparse attention ---------------------------- */

static void profile_index_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                                const qw_kv_row *rows, size_t n_rows, const float *keys)
{
    mark m = begin(be, "index_store", "");
    inner_of(be)->ops->index_store(inner_of(be), shape, layer, index, rows, n_rows, keys);
    end(m, n_rows * index->dim * sizeof(float), 0);
}

/* Counted as plain attention over what a query chooses at most. */
static void profile_sparse_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                                     const qw_kv_row *rows, size_t n_rows, qw_heads q, const float *index_q, float *out,
                                     size_t ld_out)
{
    size_t most = (size_t)index->top * index->block, n_keys = 0, n_scores = 0;
    for (size_t r = 0; r < n_rows; r++) {
        n_keys += rows[r].pos + 1 < most ? rows[r].pos + 1 : most;
        n_scores += (rows[r].pos + 1) / index->block;
    }
    mark m = begin(be, "sparse_attention", "");
    inner_of(be)->ops->sparse_attention(inner_of(be), shape, layer, index, rows, n_rows, q, index_q, out, ld_out);
    end(m, n_keys * kv_token_bytes(shape) + n_scores * index->dim * sizeof(float),
        2 * n_keys * shape->n_heads * shape->head_dim + n_scores * index->n_heads * index->dim);
}

static void profile_hyper_gate(qw_backend *be, float *x, size_t n_rows, size_t k, uint32_t n_streams)
{
    mark m = begin(be, "hyper_gate", "");
    inner_of(be)->ops->hyper_gate(inner_of(be), x, n_rows, k, n_streams);
    end(m, n_rows * k * sizeof(float), 0);
}

static void profile_hyper_mix(qw_backend *be, const float *x, const float *mix, size_t n_rows, size_t k,
                              uint32_t n_streams, float *out)
{
    mark m = begin(be, "hyper_mix", "");
    inner_of(be)->ops->hyper_mix(inner_of(be), x, mix, n_rows, k, n_streams, out);
    end(m, 2 * n_rows * n_streams * k * sizeof(float), 0);
}

static void profile_hyper_inject(qw_backend *be, float *x, const float *y, const float *inject, size_t n_rows, size_t k,
                                 uint32_t n_streams)
{
    mark m = begin(be, "hyper_inject", "");
    inner_of(be)->ops->hyper_inject(inner_of(be), x, y, inject, n_rows, k, n_streams);
    end(m, n_rows * (n_streams + 1) * k * sizeof(float), 0);
}

static void profile_ple_gate(qw_backend *be, const float *key, const float *query, const float *value, size_t n_rows,
                             size_t k, uint32_t n_streams, float *out)
{
    mark m = begin(be, "ple_gate", "");
    inner_of(be)->ops->ple_gate(inner_of(be), key, query, value, n_rows, k, n_streams, out);
    end(m, n_rows * (2 * n_streams + 1) * k * sizeof(float), n_rows * n_streams * k);
}

static void profile_ple_conv(qw_backend *be, const qw_ple_conv *c, const qw_kv_row *rows, size_t n_rows, const float *u,
                             const float *y, float *x)
{
    mark m = begin(be, "ple_conv", "");
    inner_of(be)->ops->ple_conv(inner_of(be), c, rows, n_rows, u, y, x);
    end(m, n_rows * c->k * (c->n_taps + 2) * sizeof(float), n_rows * c->k * c->n_taps);
}

/* Experts that the batch reads: all, when there are enough rows; how many others is the router's secret. */
static void profile_moe(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x, size_t ld_x)
{
    const qw_linear products[] = {{.w = w->gate}, {.w = w->up}, {.w = w->down}};
    char name[sizeof((qw_profile_row *)0)->weights];
    size_t read = n_rows * w->n_used < w->n_experts ? n_rows * w->n_used : w->n_experts;
    group_name(products, 3, name, sizeof name);
    mark m = begin(be, "moe", name);
    if (steps_of(be))
        qw_steps_moe(steps_of(be), inner_of(be), n, ld_n, n_rows, w, x, ld_x);
    else
        inner_of(be)->ops->moe(inner_of(be), n, ld_n, n_rows, w, x, ld_x);
    end(m, products_bytes(products, 3, 0) / w->n_experts * read, products_macs(products, 3, n_rows * w->n_used));
}

/* ---- life ------------------------------------------------------------------------------------- */

static void profile_destroy(qw_backend *be)
{
    qw_steps_destroy(steps_of(be));
    free(be);
}

static const qw_backend_ops profile_ops = {
    .name = "profile",
    .destroy = profile_destroy,
    .embed = profile_embed,
    .rms_norm = profile_rms_norm,
    .linear = profile_linear,
    .swiglu = profile_swiglu,
    .moe = profile_moe,
    .silu_mul = profile_silu_mul,
    .sigmoid_gate = profile_sigmoid_gate,
    .rope = profile_rope,
    .kv_store = profile_kv_store,
    .attention = profile_attention,
    .index_store = profile_index_store,
    .sparse_attention = profile_sparse_attention,
    .delta_net = profile_delta_net,
    .hyper_gate = profile_hyper_gate,
    .hyper_mix = profile_hyper_mix,
    .hyper_inject = profile_hyper_inject,
    .ple_gate = profile_ple_gate,
    .ple_conv = profile_ple_conv,
};
/* A slot that is not forwarded would be a null pointer in the middle of a pass. */
_Static_assert(sizeof(qw_backend_ops) == 20 * sizeof(void (*)(void)), "an operation is new: forward it here");

qw_status qw_profile_create(qw_backend *inner, qw_backend **out, qw_err *err)
{
    qw_profile *p;
    *out = NULL;
    QW_TRY(qw_alloc(&p, 1, sizeof *p, "profile", err));
    p->base.ops = &profile_ops;
    p->inner = inner;
    *out = &p->base;
    return QW_OK;
}

qw_status qw_profile_watch(qw_backend *profile, const qw_cpu_sizes *sizes, qw_input_fn *input, void *ctx, qw_err *err)
{
    qw_profile *p = (qw_profile *)profile;
    QW_ASSERT(p->steps == NULL);
    return qw_steps_create(sizes, input, ctx, &p->steps, err);
}

void qw_profile_clear(qw_backend *profile)
{
    ((qw_profile *)profile)->n_rows = 0;
}

size_t qw_profile_rows(const qw_backend *profile, const qw_profile_row **rows)
{
    const qw_profile *p = (const qw_profile *)profile;
    *rows = p->rows;
    return p->n_rows;
}
