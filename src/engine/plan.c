/* plan.c: the memory plan, computed before anything is allocated. See qw.h.
 *
 * What is needed comes first: weights, scratch, one conversation of full length. What is left of the budget is the cache: room
 * for other conversations that run or ran. Address space is reserved for all of it and touched as it fills.
 */
#include <stdio.h>

#include "base/mem_left.h"
#include "engine/draft_small.h"
#include "engine/guesser.h"
#include "model/forward.h"

enum {
    CACHE_CONTEXTS_MAX = 64, /* full conversations in the cache: more memory than that is left alone */
    SNAPSHOTS_MAX = 512
};

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

static uint32_t pages_of(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + QW_KV_TILE - 1) / QW_KV_TILE);
}

/* A second one holds the state before guesses. */
static uint32_t states_per_lane(const qw_engine_options *o)
{
    return o->plain_decoding ? 1 : 2;
}

bool qw_engine_uses_mtp(const qw_model *m, const qw_engine_options *o)
{
    return m->net->mtp && !o->no_mtp && !o->draft && !o->plain_decoding;
}

qw_runtime_options qw_engine_runtime_options(const qw_model *m, const qw_engine_options *o, const qw_plan *plan)
{
    return (qw_runtime_options){.n_threads = o->n_threads, .exact = m->exact, .n_rows_max = QW_BATCH_ROWS, .n_seqs = 1,
                                .seq_tokens_max = plan->context,
                                .n_pages = pages_of(plan->context) + pages_of(plan->cache_tokens),
                                .n_slots = states_per_lane(o) * plan->n_parallel + plan->n_snapshots};
}

/* What is there once for all requests, whatever the plan. */
static uint64_t shared_bytes(const qw_model *m)
{
    return (m->memory ? qw_memory_bytes(QW_MEMORY_BYTES_MAX) : 0) + (m->tokenizer ? qw_token_trie_bytes(m->tokenizer) : 0);
}

/* Everything that the draft model takes; its weights once when it is the model itself. */
static uint64_t draft_bytes(const qw_model *m, const qw_engine_options *o, const qw_plan *p)
{
    uint64_t mapped = 0, packed = 0;
    if (!o->draft) return 0;
    if (o->draft != m) qw_model_weight_bytes(o->draft, &mapped, &packed);
    return mapped + packed + qw_draft_small_bytes(o->draft, o->n_threads, p->n_parallel, pages_of(p->context) * QW_KV_TILE);
}

/* Needs of a plan whose n_parallel is set; the cache is empty. */
static void add_needs(const qw_model *m, const qw_engine_options *o, uint64_t shared, qw_plan *p)
{
    qw_runtime_options ro = qw_engine_runtime_options(m, o, p);
    qw_runtime_bytes(m->net, &ro, &p->kv_bytes, &p->scratch_bytes);
    uint64_t states = (uint64_t)states_per_lane(o) * p->n_parallel * m->net->recurrent_bytes;
    uint64_t n_logits = qw_core_logits_max(p->n_parallel, !o->plain_decoding);
    p->kv_bytes -= states;
    p->scratch_bytes += states + (uint64_t)m->net->hp.n_vocab * (QW_SAMPLER_BYTES_PER_TOKEN + n_logits * sizeof(float));
    if (!o->plain_decoding) {
        uint32_t whole_pages = pages_of(p->context) * QW_KV_TILE;
        p->scratch_bytes += qw_guesses_bytes(p->n_parallel, m->net->hp.n_vocab, whole_pages);
    }
    if (qw_engine_uses_mtp(m, o)) p->scratch_bytes += qw_draft_mtp_bytes(m->net, m->exact, p->n_parallel);
    p->draft_bytes = draft_bytes(m, o, p);
    const qw_core_options core = {.tokenizer = m->tokenizer, .n_vocab = m->net->hp.n_vocab, .context = p->context,
                                  .n_lanes = p->n_parallel, .n_rows_max = QW_BATCH_ROWS,
                                  .n_snapshots = m->net->recurrent_bytes ? SNAPSHOTS_MAX : 0};
    p->fixed_bytes = shared + qw_core_bytes(&core, pages_of(p->context));
    p->total_bytes = p->weights_bytes + p->packed_bytes + p->kv_bytes + p->scratch_bytes + p->fixed_bytes + p->draft_bytes;
}

/* What is left goes to pages, and with recurrent states half of it to those. */
static void divide_cache(const qw_model *m, qw_plan *p, uint64_t bytes)
{
    size_t state = m->net->recurrent_bytes;
    uint64_t page = p->kv_bytes / pages_of(p->context) + qw_prefix_page_bytes();
    if (state > 0) {
        uint64_t n = bytes / 2 / state;
        p->n_snapshots = n < SNAPSHOTS_MAX ? (uint32_t)n : SNAPSHOTS_MAX;
        bytes -= p->n_snapshots * state;
    }
    uint64_t n_pages = bytes / page, most = (uint64_t)CACHE_CONTEXTS_MAX * pages_of(p->context);
    if (n_pages > most) n_pages = most;
    p->cache_tokens = n_pages * QW_KV_TILE;
    p->cache_bytes = n_pages * page + p->n_snapshots * state;
}

/* Pages of the largest context that fits, fewer than were asked for; 0: none does. */
static uint32_t pages_that_fit(const qw_model *m, const qw_engine_options *o, uint64_t shared, qw_plan p)
{
    uint32_t fit = 0, not_fit = pages_of(p.context);
    while (not_fit - fit > 1) {
        uint32_t n = fit + (not_fit - fit) / 2;
        p.context = n * QW_KV_TILE;
        add_needs(m, o, shared, &p);
        if (p.total_bytes <= p.available_bytes) fit = n;
        else not_fit = n;
    }
    return fit;
}

static qw_status check_draft(const qw_model *m, const qw_engine_options *o, qw_err *err)
{
    uint32_t n_common;
    if (!o->draft) return QW_OK;
    if (o->plain_decoding)
        return qw_fail(err, QW_E_ARG, "a draft model and plain decoding exclude each other: nothing is guessed then");
    return qw_draft_small_check(m, o->draft, &n_common, err);
}

static qw_status refuse(const qw_model *m, const qw_engine_options *o, uint64_t shared, const qw_plan *p, qw_err *err)
{
    uint32_t fits = pages_that_fit(m, o, shared, *p) * QW_KV_TILE;
    if (fits == 0) {
        qw_plan least = *p;
        if (least.context > QW_KV_TILE) least.context = QW_KV_TILE;
        add_needs(m, o, shared, &least);
        return qw_fail(err, QW_E_MEMORY, "the model needs %s even for a context of %u tokens and %s are free: take a smaller model",
                       text_of(least.total_bytes).s, least.context, text_of(p->available_bytes).s);
    }
    return qw_fail(err, QW_E_MEMORY,
                   "%s are needed (%s of them for a context of %u tokens) and %s are free: a context of %u fits (-c %u)",
                   text_of(p->total_bytes).s, text_of(p->kv_bytes).s, p->context, text_of(p->available_bytes).s, fits, fits);
}

qw_status qw_engine_plan(const qw_model *m, const qw_engine_options *o, qw_plan *out, qw_err *err)
{
    uint32_t trained = m->net->hp.context_length;
    *out = (qw_plan){.context = o->context ? o->context : trained < QW_CONTEXT_DEFAULT ? trained : QW_CONTEXT_DEFAULT};
    if (out->context > trained) {
        return qw_fail(err, QW_E_ARG, "context %u is more than the %u tokens the model was trained for", out->context,
                       trained);
    }
    if (o->n_parallel > QW_PARALLEL_MAX) {
        return qw_fail(err, QW_E_ARG, "%u requests at a time are wanted, at most %d are possible", o->n_parallel,
                       QW_PARALLEL_MAX);
    }
    QW_TRY(check_draft(m, o, err));
    out->available_bytes = o->memory_bytes_max ? o->memory_bytes_max : qw_mem_left();
    qw_model_weight_bytes(m, &out->weights_bytes, &out->packed_bytes);
    out->n_parallel = o->n_parallel ? o->n_parallel : QW_PARALLEL_DEFAULT;
    uint64_t shared = shared_bytes(m);
    add_needs(m, o, shared, out);
    for (; !o->n_parallel && out->n_parallel > 1 && out->total_bytes > out->available_bytes; add_needs(m, o, shared, out))
        out->n_parallel--;
    if (out->total_bytes > out->available_bytes) return refuse(m, o, shared, out, err);
    uint64_t left = out->available_bytes - out->total_bytes;
    divide_cache(m, out, o->memory_bytes_max ? left : left - left / 4);
    return QW_OK;
}
