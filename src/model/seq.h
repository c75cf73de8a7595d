/* seq.h: the state of sequences: what the forward pass reads and writes for a conversation.
 *
 * A sequence is a table of KV pages (QW_KV_TILE positions each, all layers), a slot of fixed-size recurrent
 * state (none for pure attention) and the last token ids. Pages are reference-counted: qw_seq_set shares
 * them, and the first write to a shared page copies it. The pool reserves address space for all pages and slots at
 * create; what is given back is zeroed, so no owner sees another's bytes. Only qw_seq_create allocates.
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
    uint8_t *recurrent;    /* [recurrent_bytes], or NULL */
    uint32_t slot;         /* where that lies, or QW_NO_SLOT */
    int32_t history[QW_SEQ_HISTORY]; /* ids at n_tokens-1, n_tokens-2, ...; -1 before the start */
} qw_seq;

typedef struct qw_seq_pool_options {
    qw_kv_shape shape;
    uint32_t n_pages;        /* in all */
    uint32_t seq_tokens_max; /* of a sequence */
    size_t recurrent_bytes;  /* of a slot; 0: there are none */
    uint32_t n_slots;
} qw_seq_pool_options;

qw_status qw_seq_pool_create(const qw_seq_pool_options *o, qw_seq_pool **out, qw_err *err) QW_MUST_CHECK;
void qw_seq_pool_destroy(qw_seq_pool *pool); /* after its sequences were released and its pages and slots dropped */
const qw_seq_pool_options *qw_seq_pool_get_options(const qw_seq_pool *pool);
uint32_t qw_seq_pool_free_pages(const qw_seq_pool *pool);
uint32_t qw_seq_pool_free_slots(const qw_seq_pool *pool);

/* An empty sequence. Takes a slot where there are any: QW_E_MEMORY when none is free. */
qw_status qw_seq_create(qw_seq_pool *pool, qw_seq **out, qw_err *err) QW_MUST_CHECK;
void qw_seq_release(qw_seq *seq);
/* Puts the sequence into a state that was kept: n_tokens positions on page_ids [pages of n_tokens], which it shares;
 * the recurrent state of that position is copied from `slot` (QW_NO_SLOT without one). `history`: as in qw_seq. */
void qw_seq_set(qw_seq *seq, const uint32_t *page_ids, uint32_t n_tokens, uint32_t slot, const int32_t *history);
/* The same without the recurrent state, which is then the caller's to fill in. */
void qw_seq_set_pages(qw_seq *seq, const uint32_t *page_ids, uint32_t n_tokens, const int32_t *history);
/* Its recurrent state becomes that of *slot, whose place the old one takes. */
void qw_seq_swap_slot(qw_seq *seq, uint32_t *slot);
/* Gives all pages back, reserved ones too. To begin anew: qw_seq_set. */
void qw_seq_clear(qw_seq *seq);
/* Takes page number i of the sequence away and puts another with the same contents in its place, which it shares. */
void qw_seq_swap_page(qw_seq *seq, uint32_t i, uint32_t page_id);
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

/* ---- pages and slots that are kept beyond a sequence ------------------------------------------------- */

#define QW_NO_PAGE UINT32_MAX
#define QW_NO_SLOT UINT32_MAX

/* An unused one, zeroed, or QW_NO_PAGE. */
uint32_t qw_page_take(qw_seq_pool *pool);
void qw_page_keep(qw_seq_pool *pool, uint32_t id); /* one more user */
void qw_page_drop(qw_seq_pool *pool, uint32_t id); /* one less; the last one gives it back */
uint32_t qw_page_users(const qw_seq_pool *pool, uint32_t id);
uint8_t *qw_page_at(const qw_seq_pool *pool, uint32_t id);
size_t qw_page_bytes(const qw_seq_pool *pool); /* of its contents, without padding */

/* An unused one, zeroed, or QW_NO_SLOT. Slots have one user each. */
uint32_t qw_slot_take(qw_seq_pool *pool);
void qw_slot_drop(qw_seq_pool *pool, uint32_t slot);
uint8_t *qw_slot_at(const qw_seq_pool *pool, uint32_t slot);

#endif
