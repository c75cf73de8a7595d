/* block_delta.c: gated delta-net: a recurrence in place of attention.
 *
 *     sum += Wout (norm(delta rule(conv(Wqkv n), sigmoid(Wbeta n), exp(a softplus(Walpha n + dt)))) * silu(Wz n))
 *
 * Source: Gated Delta Networks (Yang, Kautz, Hatamizadeh); transformers, modeling_qwen3_next and modeling_qwen3_5. The state
 * (qw_delta in backend.h) has a fixed size and cannot be rewound. There are no positions.
 */
#include "model/forward.h"

static void delta_bind(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *l)
{
    size_t h = hp->hidden, value = (size_t)hp->n_v_heads * hp->v_dim;
    qw_delta *d = &l->delta.net;
    *d = (qw_delta){.n_k_heads = hp->n_k_heads, .n_v_heads = hp->n_v_heads, .k_dim = hp->k_dim, .v_dim = hp->v_dim,
                    .n_taps = hp->n_taps, .tiled = hp->family->tiled, .sigmoid_gate = hp->family->sigmoid_gate,
                    .eps = hp->rms_eps};
    qw_bind_matrix(b, "blk.%u.attn_qkv.weight", il, qw_delta_channels(d), h, &l->delta.qkv);
    qw_bind_matrix(b, "blk.%u.attn_gate.weight", il, value, h, &l->delta.z);
    if (hp->family->joint_gates) {
        qw_bind_matrix(b, "blk.%u.ssm_ba.weight", il, 2 * (size_t)hp->n_v_heads, h, &l->delta.beta);
    } else {
        qw_bind_matrix(b, "blk.%u.ssm_beta.weight", il, hp->n_v_heads, h, &l->delta.beta);
        qw_bind_matrix(b, "blk.%u.ssm_alpha.weight", il, hp->n_v_heads, h, &l->delta.alpha);
    }
    qw_bind_turned(b, "blk.%u.ssm_conv1d.weight", il, qw_delta_channels(d), hp->n_taps, &d->conv);
    qw_bind_vector(b, "blk.%u.ssm_a", il, hp->n_v_heads, false, &d->a);
    qw_bind_vector(b, "blk.%u.ssm_dt.bias", il, hp->n_v_heads, false, &d->dt);
    qw_bind_vector(b, "blk.%u.ssm_norm.weight", il, hp->v_dim, false, &d->norm);
    qw_bind_matrix(b, "blk.%u.ssm_out.weight", il, h, value, &l->delta.out);
}

static void delta_forward(qw_pass *p, const qw_layer *l)
{
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    const qw_delta *d = &l->delta.net;
    bool joint = hp->family->joint_gates;
    size_t n = p->n_rows, h = hp->hidden, value = (size_t)hp->n_v_heads * hp->v_dim, channels = qw_delta_channels(d);
    size_t ratio = hp->n_v_heads / hp->n_k_heads, ld = joint ? 2 * (size_t)hp->n_v_heads : hp->n_v_heads;
    const qw_linear projections[] = {
        {.w = &l->delta.qkv, .out = p->qkv, .ld = channels},
        {.w = &l->delta.z, .out = p->z, .ld = value},
        {.w = &l->delta.beta, .out = p->beta, .ld = ld},
        {.w = &l->delta.alpha, .out = p->alpha, .ld = ld},
    };
    qw_delta_in in = {.qkv = p->qkv, .z = p->z, .beta = p->beta, .alpha = joint ? p->beta + ratio : p->alpha,
                      .ld_gates = ld, .per_k_head = joint ? 2 * ratio : 0};
    qw_linear out = {.w = &l->delta.out, .out = p->sum, .ld = h, .add = true};

    ops->linear(p->be, p->normed, h, n, projections, joint ? 3 : 4);
    ops->delta_net(p->be, d, p->kv_rows, n, &in, p->mixed);
    ops->linear(p->be, p->mixed, value, n, &out, 1);
}

static void delta_each(qw_layer *l, qw_net_weight_fn *fn, void *ctx)
{
    qw_weight *const all[] = {&l->delta.qkv, &l->delta.z, &l->delta.beta, &l->delta.alpha, &l->delta.out};
    qw_each_of(all, sizeof all / sizeof *all, fn, ctx);
}

const qw_block qw_block_delta = {"delta", delta_bind, delta_forward, delta_each};
