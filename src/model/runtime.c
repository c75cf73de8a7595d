/* runtime.c: see runtime.h. */
#include "model/runtime.h"

static uint32_t n_pages(const qw_runtime_options *o)
{
    return o->n_pages ? o->n_pages : (o->seq_tokens_max + QW_KV_TILE - 1) / QW_KV_TILE * o->n_seqs;
}

static uint32_t n_slots(const qw_runtime_options *o)
{
    return o->n_slots ? o->n_slots : o->n_seqs;
}

static int n_threads_of(const qw_runtime_options *o)
{
    if (o->pool) return qw_pool_threads(o->pool);
    return o->n_threads > 0 ? o->n_threads : qw_cpu_count();
}

void qw_runtime_bytes(const qw_net *net, const qw_runtime_options *o, uint64_t *kv, uint64_t *scratch)
{
    qw_kv_shape shape = qw_net_kv_shape(net, qw_runtime_kv_type(o->exact), o->mtp);
    qw_cpu_sizes sizes = qw_net_cpu_sizes(net, o->n_rows_max, !o->exact);
    *kv = (uint64_t)n_pages(o) * qw_kv_page_bytes(&shape) + (uint64_t)n_slots(o) * net->recurrent_bytes;
    *scratch = qw_pass_bytes(net, o->n_rows_max) + qw_cpu_scratch_bytes(&sizes, n_threads_of(o));
}

qw_status qw_runtime_create(const qw_net *net, const qw_runtime_options *o, qw_runtime *rt, qw_err *err)
{
    qw_kv_shape shape = qw_net_kv_shape(net, qw_runtime_kv_type(o->exact), o->mtp);
    qw_cpu_sizes sizes = qw_net_cpu_sizes(net, o->n_rows_max, !o->exact);
    qw_status status;
    *rt = (qw_runtime){.n_threads = n_threads_of(o), .pool = o->pool, .pool_borrowed = o->pool != NULL};
    if (!rt->pool) QW_TRY_GOTO(qw_pool_create(rt->n_threads, &rt->pool, err));
    QW_TRY_GOTO(qw_cpu_create(rt->pool, qw_cpu_isa(), &sizes, &rt->be, err));
    QW_TRY_GOTO(qw_pass_create(net, rt->be, &shape, o->n_rows_max, &rt->pass, err));
    const qw_seq_pool_options so = {.shape = shape, .n_pages = n_pages(o), .seq_tokens_max = o->seq_tokens_max,
                                    .recurrent_bytes = net->recurrent_bytes, .n_slots = n_slots(o)};
    QW_TRY_GOTO(qw_seq_pool_create(&so, &rt->seqs, err));
    return QW_OK;
fail:
    qw_runtime_destroy(rt);
    return status;
}

void qw_runtime_destroy(qw_runtime *rt)
{
    qw_seq_pool_destroy(rt->seqs);
    qw_pass_destroy(rt->pass);
    if (rt->be) rt->be->ops->destroy(rt->be);
    if (!rt->pool_borrowed) qw_pool_destroy(rt->pool);
    *rt = (qw_runtime){0};
}
