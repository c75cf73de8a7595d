/* draft_small.h: a small model with the same vocabulary that drafts: a qw_draft_model (draft.h).
 *
 * It has a runtime of its own on the engine's threads and a sequence for each lane. Asked, it cuts the lane's sequence to what
 * that has in common with the tokens, computes what it lacks, and goes on greedily while it is sure enough. While it lacks more
 * than a few rows it computes a piece and says nothing. Its pages hold one conversation of full length: lanes that are long idle
 * give theirs up. Allocates nothing after create. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_SMALL_H
#define QW_ENGINE_DRAFT_SMALL_H

#include "engine/draft.h"
#include "engine/model.h"

typedef struct qw_draft_small qw_draft_small;

/* Whether an id means the same in both models. Ids below *n_common do; QW_E_ARG with one line that says where they differ. */
qw_status qw_draft_small_check(const qw_model *model, const qw_model *small, uint32_t *n_common, qw_err *err) QW_MUST_CHECK;

typedef struct qw_draft_small_options {
    qw_model *small;      /* borrows */
    qw_pool *pool;        /* borrows; the engine's */
    uint32_t n_common;    /* of qw_draft_small_check */
    uint32_t n_lanes, context;
    double us_per_row;    /* of a piece: a guess, until it was measured */
} qw_draft_small_options;

/* Bytes that create will take, the weights' not counted. n_threads: of the pool; 0: the cores this process may use. */
uint64_t qw_draft_small_bytes(const qw_model *small, int n_threads, uint32_t n_lanes, uint32_t context);
qw_status qw_draft_small_create(const qw_draft_small_options *o, qw_draft_small **out, qw_err *err) QW_MUST_CHECK;
void qw_draft_small_destroy(qw_draft_small *s); /* NULL is fine; the pool is still there */
qw_draft_model qw_draft_small_model(qw_draft_small *s); /* borrows; `user` is the lane's number */

#endif
