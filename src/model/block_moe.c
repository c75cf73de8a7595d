/* block_moe.c: the feed-forward block of experts.
 *
 *     p = softmax(Wrouter n);  sum += the sum over the chosen experts e of p_e SwiGLU_e(n) + sigmoid(ws n) SwiGLU_shared(n)
 *
 * Source: transformers, modeling_qwen3_moe, modeling_qwen2_moe and modeling_qwen3_5_moe. Whether the chosen weights are
 * divided by their sum, and whether there is a shared expert, the family and the file say.
 */
#include "model/forward.h"

static void bind_experts(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    size_t n = hp->n_experts, h = hp->hidden, ffn = hp->expert_ffn;
    qw_ffn *x = &l->moe.experts;
    if (qw_bind_has(b, "blk.%u.ffn_gate_up_exps.weight", il)) { /* gate rows first */
        qw_weight both = {0};
        qw_bind_stack(b, "blk.%u.ffn_gate_up_exps.weight", il, n, 2 * ffn, h, &both);
        x->gate = qw_weight_rows(&both, 0, ffn);
        x->up = qw_weight_rows(&both, ffn, ffn);
    } else {
        qw_bind_stack(b, "blk.%u.ffn_gate_exps.weight", il, n, ffn, h, &x->gate);
        qw_bind_stack(b, "blk.%u.ffn_up_exps.weight", il, n, ffn, h, &x->up);
    }
    qw_bind_stack(b, "blk.%u.ffn_down_exps.weight", il, n, h, ffn, &x->down);
}

static void moe_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    size_t h = hp->hidden, ffn = hp->shared_ffn;
    qw_bind_matrix(b, "blk.%u.ffn_gate_inp.weight", il, hp->n_experts, h, &l->moe.router);
    bind_experts(b, hp, il, l);
    if (ffn == 0) return;
    qw_bind_matrix(b, "blk.%u.ffn_gate_inp_shexp.weight", il, 1, h, &l->moe.shared_scale);
    qw_bind_matrix(b, "blk.%u.ffn_gate_shexp.weight", il, ffn, h, &l->moe.shared.gate);
    qw_bind_matrix(b, "blk.%u.ffn_up_shexp.weight", il, ffn, h, &l->moe.shared.up);
    qw_bind_matrix(b, "blk.%u.ffn_down_shexp.weight", il, h, ffn, &l->moe.shared.down);
}

static void moe_forward(qw_pass *p, const qw_layer *l)
{
    const qw_hparams *hp = &p->net->hp;
    size_t h = hp->hidden;
    qw_moe w = {.router = &l->moe.router, .gate = &l->moe.experts.gate, .up = &l->moe.experts.up,
                .down = &l->moe.experts.down, .n_experts = hp->n_experts, .n_used = hp->n_experts_used,
                .renormalise = hp->renormalise, .gate_out = p->gate, .up_out = p->up};
    if (hp->shared_ffn) {
        w.shared_gate = &l->moe.shared.gate;
        w.shared_up = &l->moe.shared.up;
        w.shared_down = &l->moe.shared.down;
        w.shared_scale = &l->moe.shared_scale;
    }
    p->be->ops->moe(p->be, p->normed, h, p->n_rows, &w, p->sum, h);
}

static void moe_each(qw_layer *l, qw_net_weight_fn *fn, void *ctx)
{
    qw_weight *const all[] = {&l->moe.router, &l->moe.experts.gate, &l->moe.experts.up, &l->moe.experts.down,
                              &l->moe.shared_scale, &l->moe.shared.gate, &l->moe.shared.up, &l->moe.shared.down};
    qw_each_of(all, sizeof all / sizeof *all, fn, ctx);
}

const qw_block qw_block_moe = {"moe", moe_bind, moe_forward, moe_each};
