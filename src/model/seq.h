/* seq.h: the state of sequences: what the forward pass reads and writes for a conversation.
 *
 * A sequence is a table of KV pages (QW_KV_TILE positions each, all layers), a block of fixed-size recurrent
 * state (0 bytes for pure attention) and the last token ids. Pages are reference-counted: qw_seq_fork shares
 * them, and the first write to a shared page copies it. The pool reserves address space for all pages at
 * create; a page that is given back is zeroed, so no owner sees another's bytes.
 * This layer owns the layout; who gets pages is the engine's policy. Engine thread only.
 */
#ifndef QW_MODEL_SEQ_H
#define QW_MODEL_SEQ_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/status.h"

enum { QW_SEQ_HISTORY = 8 }; /* previous token ids that a model may look at (n-gram embeddings) */

typedef struct qw_seq_pool qw_seq_pool;

typedef struct qw_seq {
    qw_seq_pool *pool;
    uint32_t n_tokens;     /* positions computed so far: the next one is n_tokens */
    uint32_t n_pages;
    uint32_t *page_ids;    /* [n_pages_max] */
    uint8_t **pages;       /* [n_pages_max]: addresses, as the backend wants them */
    uint8_t *recurrent;    /* [recurrent_bytes] or NULL */
    int32_t history[QW_SEQ_HISTORY]; /* ids at n_tokens-1, n_tokens-2, ...; -1 before the start */
} qw_seq;

/* n_pages pages in all, sequences of at most seq_tokens_max positions. */
qw_status qw_seq_pool_create(const qw_kv_shape *shape, uint32_t n_pages, uint32_t seq_tokens_max,
                             size_t recurrent_bytes, qw_seq_pool **out, qw_err *err) QW_MUST_CHECK;
void qw_seq_pool_destroy(qw_seq_pool *pool); /* after its sequences were released */
const qw_kv_shape *qw_seq_pool_shape(const qw_seq_pool *pool);
uint32_t qw_seq_pool_free_pages(const qw_seq_pool *pool);

qw_status qw_seq_create(qw_seq_pool *pool, qw_seq **out, qw_err *err) QW_MUST_CHECK;
void qw_seq_release(qw_seq *seq);
/* A second sequence in the same state; nothing is copied until one of them writes. */
qw_status qw_seq_fork(const qw_seq *seq, qw_seq **out, qw_err *err) QW_MUST_CHECK;
/* Makes positions [n_tokens, n_tokens_after) writable: gives pages, copies a shared one. QW_E_LIMIT when the
 * sequence would be too long, QW_E_MEMORY when no page is free; the sequence is unchanged then. */
qw_status qw_seq_reserve(qw_seq *seq, uint32_t n_tokens_after, qw_err *err) QW_MUST_CHECK;
/* Notes that the n tokens at the current end were computed. */
void qw_seq_advance(qw_seq *seq, const int32_t *tokens, uint32_t n);
/* Can it be cut there? A recurrent state cannot be rewound: only to its beginning. */
bool qw_seq_can_truncate(const qw_seq *seq, uint32_t n_tokens);
/* Forgets positions >= n_tokens. Attention alone can do this at any position; a recurrent state cannot be
 * rewound, so with recurrent_bytes > 0 only 0 is allowed (QW_E_UNSUPPORTED). `tokens` are the ids of the
 * remaining positions, for the history. */
qw_status qw_seq_truncate(qw_seq *seq, uint32_t n_tokens, const int32_t *tokens, qw_err *err) QW_MUST_CHECK;

#endif
