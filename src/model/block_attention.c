/* block_attention.c: causal attention with grouped queries and rotary positions, of all positions or of chosen blocks.
 *
 *     sum += Wo (Attn(RoPE(norm(Wq n + bq)), RoPE(norm(Wk n + bk)), Wv n + bv) * sigmoid(gate))
 *
 * where biases (Qwen2), the norms of queries and keys (Qwen3) and the gate (Qwen3-Next and later) exist. Source: Qwen2 and
 * Qwen3 technical reports; transformers, modeling_qwen2, modeling_qwen3 and modeling_qwen3_next. Query head j reads KV
 * head j / (heads / kv heads). Keys are stored after RoPE. A gated Wq has 2 head_dim rows for each head: the query, then
 * its gate, which is computed from the same input and not rotated. With block-sparse attention (Qwen4 experimental) an
 * indexer with queries and keys of its own chooses what a query sees (qw_index in backend.h).
 */
#include "model/forward.h"

static size_t q_stride(const qw_hparams *hp)
{
    return (size_t)hp->head_dim * (hp->family->gated_attention ? 2 : 1);
}

static void bind_qkv(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    size_t h = hp->hidden, q = hp->n_heads * q_stride(hp), kv = (size_t)hp->n_kv_heads * hp->head_dim;
    bool bias = hp->family->qkv_bias;
    if (qw_bind_has(b, "blk.%u.attn_qkv.weight", il)) { /* one matrix [q; k; v] */
        qw_weight all = {0};
        const float *biases = NULL;
        qw_bind_matrix(b, "blk.%u.attn_qkv.weight", il, q + 2 * kv, h, &all);
        if (bias) qw_bind_vector(b, "blk.%u.attn_qkv.bias", il, q + 2 * kv, false, &biases);
        l->attn.q = qw_weight_rows(&all, 0, q);
        l->attn.k = qw_weight_rows(&all, q, kv);
        l->attn.v = qw_weight_rows(&all, q + kv, kv);
        if (!biases) return;
        l->attn.bq = biases;
        l->attn.bk = biases + q;
        l->attn.bv = biases + q + kv;
        return;
    }
    qw_bind_matrix(b, "blk.%u.attn_q.weight", il, q, h, &l->attn.q);
    qw_bind_matrix(b, "blk.%u.attn_k.weight", il, kv, h, &l->attn.k);
    qw_bind_matrix(b, "blk.%u.attn_v.weight", il, kv, h, &l->attn.v);
    if (!bias) return;
    qw_bind_vector(b, "blk.%u.attn_q.bias", il, q, false, &l->attn.bq);
    qw_bind_vector(b, "blk.%u.attn_k.bias", il, kv, false, &l->attn.bk);
    qw_bind_vector(b, "blk.%u.attn_v.bias", il, kv, false, &l->attn.bv);
}

static void bind_index(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    qw_index *x = &l->attn.index;
    *x = (qw_index){.n_heads = hp->index_heads, .dim = hp->index_dim, .n_rot = hp->n_rot, .block = hp->index_block,
                    .top = hp->index_top, .eps = hp->rms_eps, .offset = x->offset};
    qw_bind_matrix(b, "blk.%u.indexer.q_proj.weight", il, (size_t)x->n_heads * x->dim, hp->hidden, &l->attn.index_q);
    qw_bind_matrix(b, "blk.%u.indexer.k_proj.weight", il, x->dim, hp->hidden, &l->attn.index_k);
    qw_bind_vector(b, "blk.%u.indexer.q_norm.weight", il, x->dim, false, &l->attn.index_q_norm);
    qw_bind_vector(b, "blk.%u.indexer.k_norm.weight", il, x->dim, false, &x->k_norm);
}

static void attention_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    bind_qkv(b, hp, il, l);
    if (hp->family->qk_norm) {
        qw_bind_vector(b, "blk.%u.attn_q_norm.weight", il, hp->head_dim, false, &l->attn.q_norm);
        qw_bind_vector(b, "blk.%u.attn_k_norm.weight", il, hp->head_dim, false, &l->attn.k_norm);
    }
    if (hp->index_block) bind_index(b, hp, il, l);
    qw_bind_matrix(b, "blk.%u.attn_output.weight", il, hp->hidden, (size_t)hp->n_heads * hp->head_dim, &l->attn.o);
}

/* Norm, where there is one, and rotation of all heads in place. */
static void norm_and_rotate(qw_pass *p, qw_heads x, size_t n, const float *norm)
{
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    if (norm) ops->rms_norm(p->be, x.x, norm, n * x.n, x.dim, x.stride, hp->rms_eps, x.x);
    ops->rope(p->be, x, n, hp->n_rot, p->cos, p->sin);
}

/* What the pass knows of positions, and the file does not. */
static qw_index index_of(const qw_pass *p, const qw_layer *l)
{
    qw_index x = l->attn.index;
    x.inv_freq = p->inv_freq;
    x.rope_scale = p->rope_scale;
    return x;
}

static void attend_sparsely(qw_pass *p, const qw_layer *l, qw_heads queries, size_t q)
{
    const qw_backend_ops *ops = p->be->ops;
    qw_index x = index_of(p, l);
    size_t n = p->n_rows, ld = (size_t)x.n_heads * x.dim;
    qw_heads heads = {.x = p->index_q, .ld = ld, .stride = x.dim, .n = x.n_heads, .dim = x.dim};
    qw_linear product = {.w = &l->attn.index_q, .out = p->index_q, .ld = ld};
    ops->linear(p->be, p->normed, p->net->hp.hidden, n, &product, 1);
    norm_and_rotate(p, heads, n, l->attn.index_q_norm);
    ops->sparse_attention(p->be, &p->kv, l->kv_index - p->kv_first, &x, p->kv_rows, n, queries, p->index_q, p->mixed, q);
}

static void store_index_keys(qw_pass *p, const qw_layer *l)
{
    const qw_backend_ops *ops = p->be->ops;
    qw_index x = index_of(p, l);
    qw_linear product = {.w = &l->attn.index_k, .out = p->index_k, .ld = x.dim};
    ops->linear(p->be, p->normed, p->net->hp.hidden, p->n_rows, &product, 1);
    ops->index_store(p->be, &p->kv, l->kv_index - p->kv_first, &x, p->kv_rows, p->n_rows, p->index_k);
}

static void attention_forward(qw_pass *p, const qw_layer *l)
{
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    size_t n = p->n_rows, h = hp->hidden, hd = hp->head_dim;
    size_t q = hp->n_heads * hd, qg = hp->n_heads * q_stride(hp), kv = hp->n_kv_heads * hd;
    qw_heads queries = {.x = p->q, .ld = qg, .stride = q_stride(hp), .n = hp->n_heads, .dim = hp->head_dim};
    qw_heads keys = {.x = p->k, .ld = kv, .stride = hd, .n = hp->n_kv_heads, .dim = hp->head_dim};
    qw_linear kvq[] = {
        {.w = &l->attn.k, .bias = l->attn.bk, .out = p->k, .ld = kv},
        {.w = &l->attn.v, .bias = l->attn.bv, .out = p->v, .ld = kv},
        {.w = &l->attn.q, .bias = l->attn.bq, .out = p->q, .ld = qg},
    };

    ops->linear(p->be, p->normed, h, n, kvq, l->last ? 2 : 3);
    norm_and_rotate(p, keys, n, l->attn.k_norm);
    ops->kv_store(p->be, &p->kv, l->kv_index - p->kv_first, p->kv_rows, n, p->k, p->v, kv);
    if (hp->index_block) store_index_keys(p, l);
    if (l->last) { /* only rows whose logits are asked for go on */
        qw_pass_drop_silent(p);
        n = p->n_rows;
        if (n == 0) return;
        ops->linear(p->be, p->normed, h, n, &kvq[2], 1);
    }
    norm_and_rotate(p, queries, n, l->attn.q_norm);
    if (hp->index_block)
        attend_sparsely(p, l, queries, q);
    else
        ops->attention(p->be, &p->kv, l->kv_index - p->kv_first, p->kv_rows, n, queries, p->mixed, q);
    if (hp->family->gated_attention) {
        queries.x += hd; /* the gates */
        ops->sigmoid_gate(p->be, p->mixed, q, n, queries);
    }
    qw_linear out = {.w = &l->attn.o, .out = p->sum, .ld = h, .add = true};
    ops->linear(p->be, p->mixed, q, n, &out, 1);
}

static void attention_each(qw_layer *l, qw_net_weight_fn *fn, void *ctx)
{
    qw_weight *const all[] = {&l->attn.q, &l->attn.k, &l->attn.v, &l->attn.o, &l->attn.index_q, &l->attn.index_k};
    qw_each_of(all, sizeof all / sizeof *all, fn, ctx);
}

const qw_block qw_block_attention = {"attention", attention_bind, attention_forward, attention_each};
