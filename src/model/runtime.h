/* runtime.h: what it takes to compute with a network: threads, backend, scratch, sequence state.
 *
 * Made by the engine for its requests and by the tools for their passes. One thread at a time.
 */
#ifndef QW_MODEL_RUNTIME_H
#define QW_MODEL_RUNTIME_H

#include "base/pool.h"
#include "model/forward.h"
#include "model/seq.h"

typedef struct qw_runtime_options {
    int n_threads;           /* 0: the cores this process may use */
    qw_pool *pool;           /* borrows: another runtime's, of which only one computes at a time; NULL: one of its own */
    bool exact;              /* float32 keys and values (weights: leave them unpacked) */
    bool mtp;                /* with multi-token prediction, which the network has */
    uint32_t n_rows_max;     /* rows in one pass */
    uint32_t n_seqs;         /* sequences of full length that have room at the same time */
    uint32_t seq_tokens_max; /* positions of each */
    uint32_t n_pages;        /* of keys and values; 0: as many as n_seqs sequences can fill */
    uint32_t n_slots;        /* recurrent states, where the network has any; 0: one for each of n_seqs */
} qw_runtime_options;

typedef struct qw_runtime {
    int n_threads;
    qw_pool *pool;
    bool pool_borrowed;
    qw_backend *be;
    qw_pass *pass;
    qw_seq_pool *seqs;
} qw_runtime;

static inline qw_kv_type qw_runtime_kv_type(bool exact)
{
    return exact ? QW_KV_F32 : QW_KV_I16;
}
/* KV bytes and scratch bytes that create will take, for the plan. */
void qw_runtime_bytes(const qw_net *net, const qw_runtime_options *o, uint64_t *kv, uint64_t *scratch);
qw_status qw_runtime_create(const qw_net *net, const qw_runtime_options *o, qw_runtime *out, qw_err *err) QW_MUST_CHECK;
void qw_runtime_destroy(qw_runtime *rt); /* after its sequences were released; a zeroed one is fine */

#endif
