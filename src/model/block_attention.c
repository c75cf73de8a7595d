/* block_attention.c: causal attention with grouped queries and rotary positions.
 *
 *     x += Wo Attn(RoPE(Wq n + bq), RoPE(Wk n + bk), Wv n + bv),   n = RMSNorm(x)
 *
 * Source: Qwen2 technical report; transformers, modeling_qwen2 (Qwen2Attention). Query head j reads KV head
 * j / (heads / kv heads). Keys are stored after RoPE.
 */
#include "model/forward.h"

static void attention_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    size_t h = hp->hidden, q = (size_t)hp->n_heads * hp->head_dim, kv = (size_t)hp->n_kv_heads * hp->head_dim;
    qw_bind_vector(b, "blk.%u.attn_norm.weight", il, h, false, &l->attn.norm);
    qw_bind_matrix(b, "blk.%u.attn_q.weight", il, q, h, &l->attn.q);
    qw_bind_matrix(b, "blk.%u.attn_k.weight", il, kv, h, &l->attn.k);
    qw_bind_matrix(b, "blk.%u.attn_v.weight", il, kv, h, &l->attn.v);
    qw_bind_vector(b, "blk.%u.attn_q.bias", il, q, false, &l->attn.bq);
    qw_bind_vector(b, "blk.%u.attn_k.bias", il, kv, false, &l->attn.bk);
    qw_bind_vector(b, "blk.%u.attn_v.bias", il, kv, false, &l->attn.bv);
    qw_bind_matrix(b, "blk.%u.attn_output.weight", il, h, q, &l->attn.o);
}

static void attention_forward(qw_pass *p, const qw_layer *l, uint32_t il)
{
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    size_t n = p->n_rows, h = hp->hidden;
    size_t q = (size_t)hp->n_heads * hp->head_dim, kv = (size_t)hp->n_kv_heads * hp->head_dim;

    ops->rms_norm(p->be, p->x, l->attn.norm, n, h, h, hp->rms_eps, p->normed);
    qw_linear kvq[] = {
        {.w = &l->attn.k, .bias = l->attn.bk, .out = p->k, .ld = kv},
        {.w = &l->attn.v, .bias = l->attn.bv, .out = p->v, .ld = kv},
        {.w = &l->attn.q, .bias = l->attn.bq, .out = p->q, .ld = q},
    };
    bool last = il + 1 == hp->n_layers;
    ops->linear(p->be, p->normed, h, n, kvq, last ? 2 : 3);
    ops->rope(p->be, p->k, n, kv, hp->n_kv_heads, hp->head_dim, p->cos, p->sin);
    ops->kv_store(p->be, &p->kv, il, p->kv_rows, n, p->k, p->v, kv);
    if (last) { /* only rows whose logits are asked for go on */
        qw_pass_drop_silent(p);
        n = p->n_rows;
        if (n == 0) return;
        ops->linear(p->be, p->normed, h, n, &kvq[2], 1);
    }
    ops->rope(p->be, p->q, n, q, hp->n_heads, hp->head_dim, p->cos, p->sin);
    ops->attention(p->be, &p->kv, il, p->kv_rows, n, p->q, p->q, q);
    qw_linear out = {.w = &l->attn.o, .out = p->x, .ld = h, .add = true};
    ops->linear(p->be, p->q, q, n, &out, 1);
}

const qw_block qw_block_attention = {.name = "attention", .bind = attention_bind, .forward = attention_forward};
