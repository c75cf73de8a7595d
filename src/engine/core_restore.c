/* core_restore.c: pasts that come from the store. A load is a pass that the disk computes: the request has a lane, its sequence
 * gets tokens, and what became full goes into the cache. See core_private.h.
 */
#include "engine/core_private.h"

/* Asks the store what it has beyond what the cache has. */
static void look(qw_core *c, qw_run *r, const qw_prefix_match *m)
{
    const qw_state_store *store = c->o.store;
    uint32_t depth;
    qw_state_op *op;
    r->looking = QW_LOOKED;
    if (m->n_tokens + 1 >= r->n_known) return;
    qw_prefix_node *from = qw_prefix_full_node(m, &depth);
    qw_status made = qw_state_op_create(QW_STATE_FIND, qw_prefix_id(from), depth, r->job->tokens + depth, r->n_known - depth,
                                        &op, NULL);
    if (made != QW_OK) return;
    op->user = (void *)(uintptr_t)r->job->id; /* it may be gone when the answer comes */
    if (store->submit(store->ctx, op)) r->looking = QW_LOOKING;
    else qw_state_op_free(op);
}

void qw_run_touch(qw_core *c, const qw_run *r)
{
    const qw_state_store *store = c->o.store;
    qw_state_op *op;
    uint32_t n = r->begun ? r->answer.usage.cached_tokens : 0;
    if (!store || n == 0) return;
    if (qw_state_op_create(QW_STATE_TOUCH, store->root_id(store->ctx, r->job->owner), 0, r->job->tokens, n, &op, NULL) != QW_OK)
        return;
    op->snapshot = c->recurrent;
    if (!store->submit(store->ctx, op)) qw_state_op_free(op);
}

static qw_run *run_of(const qw_core *c, const qw_state_op *op)
{
    for (qw_run *r = c->first; r; r = r->next)
        if (r->job->id == (uint64_t)(uintptr_t)op->user) return r;
    return NULL;
}

static void take_found(qw_core *c, qw_state_op *op)
{
    qw_run *r = run_of(c, op);
    if (r && r->looking == QW_LOOKING) {
        r->looking = QW_LOOKED;
        r->found = op->status == QW_OK && op->past.n_tokens > 0 ? op : NULL;
        if (r->found) return;
    }
    qw_state_op_free(op);
}

/* The full node at that depth on the way of a match, or NULL. */
static qw_prefix_node *node_at(const qw_core *c, const qw_run *r, const qw_state_op *op)
{
    qw_prefix_match part;
    const qw_prefix_node *root = qw_prefix_root(c->prefix, r->job->owner, c->now_us);
    return qw_prefix_find_full(c->prefix, root, r->job->tokens, op->depth, &part) ? part.node : NULL;
}

/* Makes the load of what was found: into the lane's pages from the parent on, which have room. */
static bool prepare_load(const qw_lane *l, qw_state_op *op)
{
    uint32_t first = op->depth / QW_KV_TILE;
    if (qw_state_op_make_load(op, NULL) != QW_OK) return false;
    QW_ASSERT(first + qw_state_op_pages(op) <= l->seq->n_pages);
    for (uint32_t i = 0; i < qw_state_op_pages(op); i++) op->pages[i] = l->seq->pages[first + i];
    op->state = l->seq->recurrent;
    op->user = (void *)(uintptr_t)l;
    return true;
}

/* Puts a lane at the node where what was found goes on, with room for it. False: not now. */
static bool enter_lane_at(qw_core *c, qw_run *r, qw_prefix_node *from, uint32_t n_after)
{
    qw_lane *l = qw_lane_find_free(c, r);
    if (!l || node_at(c, r, r->found) != from) return false; /* whoever stepped back may have changed it */
    l->user = r;
    r->lane = l;
    l->tip = from;
    l->n_paged = r->found->depth;
    qw_prefix_continue_at(c->prefix, from, r->job->tokens, l->seq, c->now_us);
    if (qw_lane_make_room(c, r, n_after)) return true;
    qw_lane_abandon(c, r);
    return false;
}

static void drop_found(qw_run *r)
{
    qw_state_op_free(r->found);
    r->found = NULL;
}

/* Loads what was found. False: it is not worth it any more, or not to be had. True: under way, or there is no room yet. */
static bool load(qw_core *c, qw_run *r, const qw_prefix_match *m)
{
    qw_state_op *op = r->found;
    uint32_t n_after = op->depth + op->past.n_tokens;
    qw_prefix_node *from = n_after > m->n_tokens && n_after <= c->o.context ? node_at(c, r, op) : NULL;
    if (!from) {
        drop_found(r);
        return false;
    }
    if (!enter_lane_at(c, r, from, n_after)) return true;
    if (prepare_load(r->lane, op) && c->o.store->submit(c->o.store->ctx, op)) {
        r->lane->op = op;
        r->found = NULL;
        return true;
    }
    qw_lane_abandon(c, r);
    drop_found(r);
    return false;
}

/* How many tokens of a load can be gone on from. */
static uint32_t n_loaded(const qw_core *c, const qw_state_op *op)
{
    bool whole = op->n_good == qw_state_op_pages(op);
    if (c->recurrent) return whole && op->state_good ? op->past.n_tokens : 0;
    if (whole) return op->past.n_tokens;
    return op->n_good * QW_KV_TILE < op->past.n_tokens ? op->n_good * QW_KV_TILE : op->past.n_tokens;
}

static void begin_restored(qw_core *c, qw_run *r, uint32_t n)
{
    qw_prefix_match m;
    qw_run_find_past(c, r, &m);
    m.n_tokens = n;
    if (n >= m.n_known || n + 1 == r->n_known) m.miss = QW_MISS_NONE; /* else it is as without the store, if less of it */
    if (n > m.n_known) m.n_known = n;
    bool first = !r->begun;
    qw_run_begin_answer(c, r, &m);
    if (!first) return; /* it stepped back before: what it was told stays */
    r->answer.cache.restored_tokens = n - r->lane->n_paged;
    c->counts.restored_tokens += n - r->lane->n_paged;
}

static void take_loaded(qw_core *c, qw_state_op *op)
{
    qw_lane *l = op->user;
    qw_run *r = l->user;
    uint32_t n = n_loaded(c, op);
    l->op = NULL;
    if (!r) {
        qw_lane_clear(c, l);
    } else if (n == 0) {
        qw_lane_abandon(c, r);
    } else {
        qw_seq_advance(l->seq, r->job->tokens + op->depth, n);
        l->n_restored = op->depth + n;
        begin_restored(c, r, l->n_restored);
        qw_lane_keep_pages(c, l);
        if (c->o.guesser.begin) c->o.guesser.begin(c->o.guesser.ctx, qw_lane_number(c, l), r->job, r->n_known);
    }
    qw_state_op_free(op);
}

void qw_core_take_from_store(qw_core *c)
{
    qw_state_op *op;
    while (c->o.store && (op = c->o.store->poll(c->o.store->ctx))) {
        switch (op->what) {
        case QW_STATE_FIND: take_found(c, op); break;
        case QW_STATE_LOAD: take_loaded(c, op); break;
        case QW_STATE_SAVE: qw_prefix_take_saved(c->prefix, op); break;
        case QW_STATE_TOUCH: qw_state_op_free(op); break;
        }
    }
}

/* True: r is waiting for the store, or goes on from there. */
bool qw_run_restore(qw_core *c, qw_run *r, const qw_prefix_match *m)
{
    if (!c->o.store || (r->lane && !r->lane->op)) return false;
    if (r->looking == QW_LOOK) look(c, r, m);
    bool stays = r->looking == QW_LOOKING || (r->lane && r->lane->op) || (r->found && load(c, r, m));
    c->waits = c->waits || r->looking == QW_LOOKING || (r->lane && r->lane->op);
    return stays;
}
