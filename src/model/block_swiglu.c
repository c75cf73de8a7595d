/* block_swiglu.c: the dense feed-forward block.
 *
 *     x += Wdown (silu(Wgate n) * Wup n),   n = RMSNorm(x)
 *
 * Source: transformers, modeling_qwen2 (Qwen2MLP). No biases.
 */
#include "model/forward.h"

static void swiglu_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    qw_bind_vector(b, "blk.%u.ffn_norm.weight", il, hp->hidden, false, &l->swiglu.norm);
    qw_bind_matrix(b, "blk.%u.ffn_gate.weight", il, hp->ffn, hp->hidden, &l->swiglu.gate);
    qw_bind_matrix(b, "blk.%u.ffn_up.weight", il, hp->ffn, hp->hidden, &l->swiglu.up);
    qw_bind_matrix(b, "blk.%u.ffn_down.weight", il, hp->hidden, hp->ffn, &l->swiglu.down);
}

static void swiglu_forward(qw_pass *p, const qw_layer *l, uint32_t il)
{
    (void)il;
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    size_t n = p->n_rows, h = hp->hidden;

    ops->rms_norm(p->be, p->x, l->swiglu.norm, n, h, h, hp->rms_eps, p->normed);
    qw_swiglu w = {.gate = &l->swiglu.gate, .up = &l->swiglu.up, .down = &l->swiglu.down, .gate_out = p->gate,
                   .up_out = p->up};
    ops->swiglu(p->be, p->normed, h, n, &w, p->x, h);
}

const qw_block qw_block_swiglu = {.name = "swiglu", .bind = swiglu_bind, .forward = swiglu_forward};
