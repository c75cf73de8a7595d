/* block_swiglu.c: the dense feed-forward block.
 *
 *     sum += Wdown (silu(Wgate n) * Wup n)
 *
 * Source: transformers, modeling_qwen2 (Qwen2MLP). No biases.
 */
#include "model/forward.h"

static void swiglu_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    qw_bind_matrix(b, "blk.%u.ffn_gate.weight", il, hp->ffn, hp->hidden, &l->swiglu.gate);
    qw_bind_matrix(b, "blk.%u.ffn_up.weight", il, hp->ffn, hp->hidden, &l->swiglu.up);
    qw_bind_matrix(b, "blk.%u.ffn_down.weight", il, hp->hidden, hp->ffn, &l->swiglu.down);
}

static void swiglu_forward(qw_pass *p, const qw_layer *l)
{
    size_t h = p->net->hp.hidden;
    qw_swiglu w = {.gate = &l->swiglu.gate, .up = &l->swiglu.up, .down = &l->swiglu.down, .gate_out = p->gate,
                   .up_out = p->up};
    p->be->ops->swiglu(p->be, p->normed, h, p->n_rows, &w, p->sum, h);
}

static void swiglu_each(qw_layer *l, qw_net_weight_fn *fn, void *ctx)
{
    qw_weight *const all[] = {&l->swiglu.gate, &l->swiglu.up, &l->swiglu.down};
    qw_each_of(all, sizeof all / sizeof *all, fn, ctx);
}

const qw_block qw_block_swiglu = {"swiglu", swiglu_bind, swiglu_forward, swiglu_each};
