/* prefix.h: what was computed before and can be continued.
 *
 * A tree for each owner. A node is a page of keys and values with its tokens (QW_KV_TILE of them, fewer only in a last one)
 * and stands for everything from the root to itself; models with recurrent state have snapshots of it at some positions, and
 * a past can be continued at those alone. Nodes are found by a keyed hash of their tokens and of the node before, and the
 * tokens are compared: a match is never a guess. A node whose page was given up is remembered for a while, so that a miss
 * can be explained.
 *
 * What goes first when pages or snapshots run out: last_used + QW_PREFIX_WORTH * the time it would take to compute it again,
 * smallest first. So what is longer and was used later always outlives what is shorter and was used earlier, and a past is
 * given up from its end. Of its snapshots the last one is worth the whole past, those inside it only the way from the one
 * before. What running sequences stand on is never given up.
 *
 * No clock and no thread of its own: the engine thread calls and says what time it is.
 */
#ifndef QW_ENGINE_PREFIX_H
#define QW_ENGINE_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#include "qw.h"

#include "base/siphash.h"
#include "base/status.h"
#include "engine/state_io.h"
#include "model/seq.h"

enum {
    QW_OWNER_BYTES = 32,
    QW_PREFIX_WORTH = 8
};

typedef struct qw_prefix qw_prefix;
typedef struct qw_prefix_node qw_prefix_node;

typedef struct qw_prefix_options {
    qw_seq_pool *pool;         /* borrows */
    qw_sip_key key;
    uint32_t n_remembered_max; /* nodes without a page, one for each owner among them */
    uint32_t n_pinned_max;     /* sequences that stand in the tree at the same time */
    uint32_t n_snapshots_max;  /* slots of the pool that snapshots may take; 0 for models without recurrent state */
    double us_per_token;       /* what computing a token of a prompt takes */
    const qw_state_store *store; /* borrows; what is kept is also saved there. NULL: it is not */
} qw_prefix_options;

qw_status qw_prefix_create(const qw_prefix_options *o, qw_prefix **out, qw_err *err) QW_MUST_CHECK;
/* What it takes at most: with pools of n_pages, and for each page. */
size_t qw_prefix_bytes(const qw_prefix_options *o, uint32_t n_pages);
size_t qw_prefix_page_bytes(void);
void qw_prefix_destroy(qw_prefix *c); /* after everything was unpinned and the store closed; drops all pages and snapshots */

/* The owner's tree: pasts are shared among requests of one owner and never beyond. Valid while it is pinned or not empty. */
qw_prefix_node *qw_prefix_root(qw_prefix *c, const uint8_t owner[QW_OWNER_BYTES], int64_t now_us);

typedef struct qw_prefix_match {
    qw_prefix_node *node; /* holds position n_tokens - 1; the root when n_tokens is 0 */
    uint32_t n_known;     /* tokens that some earlier past has in common with these */
    uint32_t n_tokens;    /* of them that can be continued: at most n - 1, one is always computed */
    uint32_t snapshot;    /* the slot to continue from, or QW_NO_SLOT */
    qw_cache_miss miss;
} qw_prefix_match;

/* What a past of n >= 1 tokens shares with the tree. Changes nothing. */
void qw_prefix_find(const qw_prefix *c, const qw_prefix_node *root, const int32_t *tokens, size_t n, qw_prefix_match *out);
/* Puts seq where the match ends and marks the way there as used now. Returns the deepest full node on it, pinned. */
qw_prefix_node *qw_prefix_continue(qw_prefix *c, const qw_prefix_match *m, const int32_t *tokens, qw_seq *seq,
                                   int64_t now_us);

/* The deepest full node up to the match's end, and the number of tokens up to its own end. */
qw_prefix_node *qw_prefix_full_node(const qw_prefix_match *m, uint32_t *n_tokens);
/* The node that ends with just these n tokens, a multiple of the page's, if it is there with its page (or the root). */
bool qw_prefix_find_full(const qw_prefix *c, const qw_prefix_node *root, const int32_t *tokens, uint32_t n, qw_prefix_match *out);
qw_state_id qw_prefix_id(const qw_prefix_node *full); /* with a store */
/* As qw_prefix_continue at the end of a full node, but for the recurrent state, which the caller fills in. Pins the node. */
void qw_prefix_continue_at(qw_prefix *c, qw_prefix_node *full, const int32_t *tokens, qw_seq *seq, int64_t now_us);

/* A snapshot that waits for the page under it to be added. */
typedef struct qw_prefix_snap {
    uint32_t at;   /* 1..QW_KV_TILE: after so many tokens of the page */
    uint32_t slot; /* taken from the pool, holds the state */
} qw_prefix_snap;

/* Adds the page number i of seq, whose n_tokens tokens were computed on top of the pinned node `tip` (at a page's border).
 * Takes the snapshots. A full page: moves the pin and returns the new tip, and seq's page is swapped for an equal one that
 * was there already. A page that is not full can only be the last one: the pin stays. */
qw_prefix_node *qw_prefix_add(qw_prefix *c, qw_prefix_node *tip, const int32_t *tokens, uint32_t n_tokens, qw_seq *seq,
                              uint32_t i, const qw_prefix_snap *snaps, size_t n_snaps, int64_t now_us);
/* Takes a snapshot of the state at the end of tip, which has a page. */
void qw_prefix_add_snapshot(qw_prefix *c, qw_prefix_node *tip, uint32_t slot, int64_t now_us);
void qw_prefix_unpin(qw_prefix *c, qw_prefix_node *tip);
/* The page of this full node came from the store. */
void qw_prefix_set_saved(qw_prefix *c, qw_prefix_node *full);

/* Gives pages up until n are free in the pool; false when what is pinned does not allow it. */
bool qw_prefix_free_pages(qw_prefix *c, uint32_t n);
/* A slot for one more snapshot, another one given up for it if it has to be; QW_NO_SLOT when all wait to be added. Goes back
 * with qw_prefix_add or qw_prefix_drop_slot. */
uint32_t qw_prefix_take_slot(qw_prefix *c);
void qw_prefix_drop_slot(qw_prefix *c, uint32_t slot);

/* Gives the store what has waited for age_us. Pages and snapshots stay while they are saved. */
void qw_prefix_save(qw_prefix *c, int64_t now_us, int64_t age_us);
/* Takes an operation of it back that was polled. */
void qw_prefix_take_saved(qw_prefix *c, qw_state_op *op);
bool qw_prefix_has_unsaved(const qw_prefix *c); /* or such that are being saved */

typedef struct qw_prefix_counts {
    uint32_t n_pages, n_snapshots, n_remembered, n_roots;
    uint32_t n_saving; /* operations of the store under way */
    uint64_t saved, save_failures;
    uint64_t pages_evicted, snapshots_evicted;
    uint64_t snapshots_refused; /* no slot was to be had */
} qw_prefix_counts;
void qw_prefix_get_counts(const qw_prefix *c, qw_prefix_counts *out);
/* Compares every link and count with what it should be; for tests. */
void qw_prefix_check(const qw_prefix *c);

#endif
