/* plan.c: the memory plan, computed before anything is allocated. See qw.h. */
#include <stdio.h>

#include "base/mem_left.h"
#include "engine/engine_private.h"
#include "model/forward.h"

typedef struct size_text {
    char s[24];
} size_text;

static size_text text_of(uint64_t bytes)
{
    size_text t;
    if (bytes < (uint64_t)1 << 30) snprintf(t.s, sizeof t.s, "%.1f MiB", (double)bytes / (double)(1 << 20));
    else snprintf(t.s, sizeof t.s, "%.2f GiB", (double)bytes / (double)(1 << 30));
    return t;
}

qw_runtime_options qw_engine_runtime_options(const qw_model *m, const qw_engine_options *o, uint32_t context)
{
    return (qw_runtime_options){.n_threads = o->n_threads, .exact = m->exact, .n_rows_max = QW_BATCH_ROWS,
                                .n_seqs = 1, .seq_tokens_max = context};
}

qw_status qw_engine_plan(const qw_model *m, const qw_engine_options *o, qw_plan *out, qw_err *err)
{
    uint32_t trained = m->net->hp.context_length;
    *out = (qw_plan){.context = o->context ? o->context : trained < QW_CONTEXT_DEFAULT ? trained : QW_CONTEXT_DEFAULT};
    if (out->context > trained) {
        return qw_fail(err, QW_E_ARG, "context %u is more than the %u tokens the model was trained for", out->context,
                       trained);
    }
    qw_model_weight_bytes(m, &out->weights_bytes, &out->packed_bytes);
    qw_runtime_options ro = qw_engine_runtime_options(m, o, out->context);
    qw_runtime_bytes(m->net, &ro, &out->kv_bytes, &out->scratch_bytes);
    out->scratch_bytes += (uint64_t)m->net->hp.n_vocab * QW_SAMPLER_BYTES_PER_TOKEN;
    out->total_bytes = out->weights_bytes + out->packed_bytes + out->kv_bytes + out->scratch_bytes;
    out->available_bytes = o->memory_bytes_max ? o->memory_bytes_max : qw_mem_left();
    if (out->total_bytes <= out->available_bytes) return QW_OK;
    uint64_t fixed = out->total_bytes - out->kv_bytes;
    uint64_t n_tiles = ((uint64_t)out->context + QW_KV_TILE - 1) / QW_KV_TILE, per_tile = out->kv_bytes / n_tiles;
    uint64_t fits = out->available_bytes > fixed ? (out->available_bytes - fixed) / per_tile * QW_KV_TILE : 0;
    if (fits == 0) {
        return qw_fail(err, QW_E_MEMORY, "the model needs %s without any context and %s are free: take a smaller model",
                       text_of(fixed).s, text_of(out->available_bytes).s);
    }
    return qw_fail(err, QW_E_MEMORY,
                   "%s are needed (%s of them for a context of %u tokens) and %s are free: a context of %llu fits "
                   "(-c %llu)",
                   text_of(out->total_bytes).s, text_of(out->kv_bytes).s, out->context,
                   text_of(out->available_bytes).s, (unsigned long long)fits, (unsigned long long)fits);
}
