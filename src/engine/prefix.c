/* prefix.c: see prefix.h.
 *
 * Every node is in at most one of two heaps, by what could be taken from it next: its page (it has one, no child of it has,
 * nothing stands on it), or its memory (it has no page and no child, nothing stands on it). `place` keeps that true and is
 * called after every change of what it depends on.
 */
#include "engine/prefix.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum {
    NO_PLACE = -1,
    GAP_NODES_MAX = 64 /* how far back a snapshot looks for the one before it */
};

typedef enum keeping { NOT_SAVED = 0, BEING_SAVED, SAVED } keeping; /* SAVED also when it could not be: once is enough */

typedef struct snapshot {
    struct snapshot *next; /* of the node, ascending; or of the unused ones */
    qw_prefix_node *node;
    uint32_t at, slot;
    keeping keeping;
    int64_t used_us;
} snapshot;

struct qw_prefix_node {
    qw_prefix_node *parent;       /* NULL: a root, its tokens are the owner */
    qw_prefix_node *children, *next, *prev;
    qw_prefix_node *bucket_next;  /* of full nodes and roots; or of the unused ones */
    snapshot *snaps;
    uint64_t hash;
    int64_t used_us;
    uint32_t page;                /* QW_NO_PAGE: a root, or given up */
    uint32_t depth;               /* tokens before it */
    uint32_t n_tokens;            /* 1..QW_KV_TILE, or 0 for a root */
    uint32_t n_pins;
    uint32_t n_with_pages;        /* children that have one */
    uint32_t n_snaps;             /* snapshots on it and on all below it */
    int32_t place;                /* in its heap, or NO_PLACE */
    keeping keeping;              /* its page */
    bool unsaved;                 /* in the list of those with something to save: */
    qw_prefix_node *unsaved_next, *unsaved_prev;
    int64_t unsaved_us;           /* since then */
    qw_state_id id;               /* of full nodes and roots, with a store */
    int32_t tokens[QW_KV_TILE];
};

typedef struct heap {
    qw_prefix_node **node; /* [cap]; smallest first */
    uint32_t n;
} heap;

struct qw_prefix {
    qw_prefix_options o;
    qw_prefix_node *nodes;    /* [n_nodes] */
    qw_prefix_node *unused;
    snapshot *snapshots;      /* [n_snapshots_max] */
    snapshot *unused_snaps;
    qw_prefix_node **buckets; /* [n_buckets], a power of two */
    uint32_t n_nodes, n_buckets, n_slots_taken;
    bool recurrent;
    heap pages, remembered;   /* nodes whose page, whose memory can be taken */
    qw_prefix_node *unsaved_first, *unsaved_last; /* by time */
    uint32_t *path;           /* page ids of a past */
    qw_prefix_counts counts;
};

/* ---- heaps --------------------------------------------------------------------------------------- */

static int64_t worth_us(const qw_prefix *c, uint32_t n_tokens)
{
    return (int64_t)(QW_PREFIX_WORTH * c->o.us_per_token * n_tokens);
}

static int64_t score_of(const qw_prefix *c, const qw_prefix_node *n)
{
    return n->used_us + (n->page == QW_NO_PAGE ? 0 : worth_us(c, n->depth + n->n_tokens));
}

static bool before(const qw_prefix *c, const qw_prefix_node *a, const qw_prefix_node *b)
{
    int64_t sa = score_of(c, a), sb = score_of(c, b);
    return sa != sb ? sa < sb : a < b; /* one order, whatever the heap's history was */
}

static void put(heap *h, uint32_t at, qw_prefix_node *n)
{
    h->node[at] = n;
    n->place = (int32_t)at;
}

static void sift(const qw_prefix *c, heap *h, uint32_t at)
{
    qw_prefix_node *n = h->node[at];
    for (; at > 0 && before(c, n, h->node[(at - 1) / 2]); at = (at - 1) / 2) put(h, at, h->node[(at - 1) / 2]);
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < h->n && before(c, h->node[child + 1], h->node[child])) child++;
        if (child >= h->n || !before(c, h->node[child], n)) break;
        put(h, at, h->node[child]);
        at = child;
    }
    put(h, at, n);
}

static void heap_remove(const qw_prefix *c, heap *h, qw_prefix_node *n)
{
    uint32_t at = (uint32_t)n->place;
    qw_prefix_node *last = h->node[--h->n];
    n->place = NO_PLACE;
    if (last == n) return;
    put(h, at, last);
    sift(c, h, at);
}

static heap *heap_of(qw_prefix *c, const qw_prefix_node *n)
{
    return n->page == QW_NO_PAGE ? &c->remembered : &c->pages;
}

static bool can_be_taken(const qw_prefix_node *n)
{
    return n->n_pins == 0 && (n->page == QW_NO_PAGE ? n->children == NULL : n->n_with_pages == 0);
}

static void place(qw_prefix *c, qw_prefix_node *n)
{
    heap *h = heap_of(c, n);
    bool in = n->place != NO_PLACE, wanted = can_be_taken(n);
    if (in && !wanted) heap_remove(c, h, n);
    if (!in && wanted) put(h, h->n++, n);
    if (wanted) sift(c, h, (uint32_t)n->place);
}

/* Out of its heap, before its page comes or goes. */
static void displace(qw_prefix *c, qw_prefix_node *n)
{
    if (n->place != NO_PLACE) heap_remove(c, heap_of(c, n), n);
}

/* ---- what is to be saved ---------------------------------------------------------------------------- */

static void note_unsaved(qw_prefix *c, qw_prefix_node *n, int64_t now_us)
{
    if (!c->o.store || n->unsaved) return;
    n->unsaved = true;
    n->unsaved_us = now_us;
    n->unsaved_next = NULL;
    n->unsaved_prev = c->unsaved_last;
    if (c->unsaved_last) c->unsaved_last->unsaved_next = n;
    else c->unsaved_first = n;
    c->unsaved_last = n;
}

static void forget_unsaved(qw_prefix *c, qw_prefix_node *n)
{
    if (!n->unsaved) return;
    n->unsaved = false;
    if (n->unsaved_prev) n->unsaved_prev->unsaved_next = n->unsaved_next;
    else c->unsaved_first = n->unsaved_next;
    if (n->unsaved_next) n->unsaved_next->unsaved_prev = n->unsaved_prev;
    else c->unsaved_last = n->unsaved_prev;
}

/* ---- snapshots ------------------------------------------------------------------------------------ */

static void give_slot_back(qw_prefix *c, uint32_t slot)
{
    qw_slot_drop(c->o.pool, slot);
    c->n_slots_taken--;
}

static void count_snapshot(qw_prefix_node *n, int32_t by)
{
    for (; n; n = n->parent) n->n_snaps += (uint32_t)by;
}

/* Takes it off its node; its slot is the caller's. */
static uint32_t detach(qw_prefix *c, snapshot *s)
{
    snapshot **at = &s->node->snaps;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    count_snapshot(s->node, -1);
    s->next = c->unused_snaps;
    s->node = NULL;
    c->unused_snaps = s;
    c->counts.n_snapshots--;
    return s->slot;
}

static void drop_snapshots(qw_prefix *c, qw_prefix_node *n)
{
    while (n->snaps) {
        give_slot_back(c, detach(c, n->snaps));
        c->counts.snapshots_evicted++;
    }
}

/* Takes the slot: at this place there may be a snapshot already, which holds the same bits. */
static void attach(qw_prefix *c, qw_prefix_node *n, uint32_t at, uint32_t slot, int64_t used_us)
{
    snapshot **link = &n->snaps;
    while (*link && (*link)->at < at) link = &(*link)->next;
    if (*link && (*link)->at == at) {
        if ((*link)->used_us < used_us) (*link)->used_us = used_us;
        give_slot_back(c, slot);
        return;
    }
    snapshot *s = c->unused_snaps;
    QW_ASSERT(s && at >= 1 && at <= n->n_tokens);
    c->unused_snaps = s->next;
    *s = (snapshot){.next = *link, .node = n, .at = at, .slot = slot, .used_us = used_us};
    *link = s;
    note_unsaved(c, n, used_us);
    count_snapshot(n, 1);
    c->counts.n_snapshots++;
}

static uint32_t position_of(const snapshot *s)
{
    return s->node->depth + s->at;
}

/* The position of the snapshot before it on its path, as far back as is looked. */
static uint32_t position_before(const snapshot *s)
{
    const qw_prefix_node *n = s->node;
    uint32_t best = 0;
    for (const snapshot *i = n->snaps; i != s; i = i->next) best = position_of(i);
    for (int k = 0; best == 0 && k < GAP_NODES_MAX && n->parent; k++) {
        n = n->parent;
        for (const snapshot *i = n->snaps; i; i = i->next) best = position_of(i);
    }
    return best;
}

/* No later past of its own has a snapshot: here a conversation goes on. */
static bool is_last(const snapshot *s)
{
    uint32_t n_here = 0;
    for (const snapshot *i = s->node->snaps; i; i = i->next) n_here++;
    return !s->next && s->node->n_snaps == n_here;
}

/* Of those inside a past there is another one a little before. */
static int64_t snapshot_score(const qw_prefix *c, const snapshot *s)
{
    return s->used_us + worth_us(c, position_of(s) - (is_last(s) ? 0 : position_before(s)));
}

static snapshot *worst_snapshot(const qw_prefix *c)
{
    snapshot *worst = NULL;
    int64_t least = 0;
    for (uint32_t i = 0; i < c->o.n_snapshots_max; i++) {
        snapshot *s = &c->snapshots[i];
        if (!s->node || s->keeping == BEING_SAVED) continue;
        int64_t score = snapshot_score(c, s);
        if (worst && score >= least) continue;
        worst = s;
        least = score;
    }
    return worst;
}

uint32_t qw_prefix_take_slot(qw_prefix *c)
{
    if (c->n_slots_taken < c->o.n_snapshots_max) {
        uint32_t slot = qw_slot_take(c->o.pool);
        QW_ASSERT(slot != QW_NO_SLOT); /* n_snapshots_max of them are ours */
        c->n_slots_taken++;
        return slot;
    }
    snapshot *worst = worst_snapshot(c);
    if (!worst) {
        c->counts.snapshots_refused += c->recurrent;
        return QW_NO_SLOT;
    }
    c->counts.snapshots_evicted++;
    return detach(c, worst);
}

void qw_prefix_drop_slot(qw_prefix *c, uint32_t slot)
{
    give_slot_back(c, slot);
}

/* ---- nodes ----------------------------------------------------------------------------------------- */

static qw_prefix_node **bucket_of(const qw_prefix *c, uint64_t hash)
{
    return &c->buckets[hash & (c->n_buckets - 1)];
}

static bool is_indexed(const qw_prefix_node *n)
{
    return n->n_tokens == 0 || n->n_tokens == QW_KV_TILE;
}

static uint64_t hash_of(const qw_prefix *c, const qw_prefix_node *parent, const int32_t *tokens)
{
    return qw_siphash(&c->o.key, parent->hash, tokens, QW_KV_TILE * sizeof *tokens);
}

static void unlink_node(qw_prefix *c, qw_prefix_node *n)
{
    if (is_indexed(n)) {
        qw_prefix_node **at = bucket_of(c, n->hash);
        while (*at != n) at = &(*at)->bucket_next;
        *at = n->bucket_next;
    }
    if (!n->parent) return;
    if (n->prev) n->prev->next = n->next;
    else n->parent->children = n->next;
    if (n->next) n->next->prev = n->prev;
}

/* Forgets a node without page and children. */
static void forget(qw_prefix *c, qw_prefix_node *n)
{
    qw_prefix_node *parent = n->parent;
    QW_ASSERT(n->page == QW_NO_PAGE && !n->children && n->n_pins == 0 && !n->snaps);
    displace(c, n);
    unlink_node(c, n);
    c->counts.n_remembered--;
    if (!parent) c->counts.n_roots--;
    n->bucket_next = c->unused;
    c->unused = n;
    if (parent) place(c, parent);
}

static void forget_surplus(qw_prefix *c)
{
    while (c->counts.n_remembered > c->o.n_remembered_max && c->remembered.n > 0) forget(c, c->remembered.node[0]);
}

static void take_page_from(qw_prefix *c, qw_prefix_node *n)
{
    displace(c, n);
    forget_unsaved(c, n);
    drop_snapshots(c, n);
    qw_page_drop(c->o.pool, n->page);
    n->page = QW_NO_PAGE;
    n->parent->n_with_pages--;
    c->counts.n_pages--;
    c->counts.n_remembered++;
    place(c, n);
    place(c, n->parent);
}

static void give_page_to(qw_prefix *c, qw_prefix_node *n, uint32_t page)
{
    displace(c, n);
    displace(c, n->parent);
    qw_page_keep(c->o.pool, page);
    n->page = page;
    if (n->keeping == NOT_SAVED) note_unsaved(c, n, n->used_us);
    n->parent->n_with_pages++;
    c->counts.n_pages++;
    c->counts.n_remembered--;
}

/* Not yet placed, without a page: the caller goes on. tokens: n_tokens of them, or an owner. */
static qw_prefix_node *new_node(qw_prefix *c, qw_prefix_node *parent, uint64_t hash, const void *tokens, uint32_t n_tokens,
                                int64_t now_us)
{
    qw_prefix_node *n = c->unused;
    QW_ASSERT(n);
    c->unused = n->bucket_next;
    *n = (qw_prefix_node){.parent = parent, .hash = hash, .used_us = now_us, .page = QW_NO_PAGE, .n_tokens = n_tokens,
                          .place = NO_PLACE, .depth = parent ? parent->depth + parent->n_tokens : 0};
    memcpy(n->tokens, tokens, n_tokens ? n_tokens * sizeof *n->tokens : QW_OWNER_BYTES);
    c->counts.n_remembered++;
    if (is_indexed(n) && c->o.store) {
        const qw_state_store *store = c->o.store;
        n->id = parent ? store->child_id(store->ctx, parent->id, n->tokens, QW_KV_TILE) : store->root_id(store->ctx, tokens);
    }
    if (is_indexed(n)) {
        n->bucket_next = *bucket_of(c, hash);
        *bucket_of(c, hash) = n;
    }
    if (!parent) return n;
    displace(c, parent);
    n->next = parent->children;
    if (n->next) n->next->prev = n;
    parent->children = n;
    return n;
}

static qw_prefix_node *full_child(const qw_prefix *c, const qw_prefix_node *parent, const int32_t *tokens)
{
    uint64_t hash = hash_of(c, parent, tokens);
    qw_prefix_node *n = *bucket_of(c, hash);
    while (n && !(n->hash == hash && n->parent == parent && memcmp(n->tokens, tokens, sizeof n->tokens) == 0))
        n = n->bucket_next;
    return n;
}

qw_prefix_node *qw_prefix_root(qw_prefix *c, const uint8_t owner[QW_OWNER_BYTES], int64_t now_us)
{
    uint64_t hash = qw_siphash(&c->o.key, 0, owner, QW_OWNER_BYTES);
    for (qw_prefix_node *n = *bucket_of(c, hash); n; n = n->bucket_next)
        if (!n->parent && n->hash == hash && memcmp(n->tokens, owner, QW_OWNER_BYTES) == 0) return n;
    qw_prefix_node *root = new_node(c, NULL, hash, owner, 0, now_us);
    c->counts.n_roots++;
    forget_surplus(c); /* the new one is not in its heap yet */
    place(c, root);
    return root;
}

/* ---- finding ---------------------------------------------------------------------------------------- */

static uint32_t common(const int32_t *a, const int32_t *b, size_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

/* Best place to continue from that is known so far. */
typedef struct place_to_continue {
    qw_prefix_node *node;
    uint32_t n_tokens, slot;
} place_to_continue;

/* Looks at node, whose first `n` tokens are those wanted. most: no position beyond it will do. */
static void consider(const qw_prefix *c, qw_prefix_node *node, uint32_t n, uint32_t most, place_to_continue *best)
{
    if (!c->recurrent) {
        uint32_t end = node->depth + n < most ? node->depth + n : most;
        if (end > node->depth && end > best->n_tokens) *best = (place_to_continue){node, end, QW_NO_SLOT};
        return;
    }
    for (const snapshot *s = node->snaps; s && s->at <= n && position_of(s) <= most; s = s->next)
        if (position_of(s) > best->n_tokens) *best = (place_to_continue){node, position_of(s), s->slot};
}

/* A snapshot in the middle of a page is on the page of whoever took it: others with the same beginning go on from there. */
static void consider_siblings(const qw_prefix *c, const qw_prefix_node *node, const int32_t *tokens, uint32_t most,
                              place_to_continue *best)
{
    for (qw_prefix_node *s = node->parent->children; s; s = s->next)
        if (s != node && s->snaps) consider(c, s, common(s->tokens, tokens, s->n_tokens), most, best);
}

void qw_prefix_find(const qw_prefix *c, const qw_prefix_node *root, const int32_t *tokens, size_t n, qw_prefix_match *out)
{
    qw_prefix_node *node = (qw_prefix_node *)(uintptr_t)root, *next;
    uint32_t most = (uint32_t)n - 1, depth = 0, n_paged = 0; /* tokens on pages that are still there */
    place_to_continue best = {.node = node, .slot = QW_NO_SLOT};
    QW_ASSERT(n >= 1);
    for (; n - depth >= QW_KV_TILE && (next = full_child(c, node, tokens + depth)); node = next, depth += QW_KV_TILE) {
        if (next->page == QW_NO_PAGE) continue;
        n_paged = depth + QW_KV_TILE;
        if (c->recurrent) consider_siblings(c, next, tokens + depth, most, &best);
        consider(c, next, QW_KV_TILE, most, &best);
    }
    uint32_t n_known = depth;
    for (next = node->children; next; next = next->next) {
        size_t left = n - depth < next->n_tokens ? n - depth : next->n_tokens;
        uint32_t k = common(next->tokens, tokens + depth, left);
        if (depth + k > n_known) n_known = depth + k;
        if (next->page == QW_NO_PAGE || k == 0) continue;
        if (depth + k > n_paged) n_paged = depth + k;
        consider(c, next, k, most, &best);
    }
    *out = (qw_prefix_match){.node = best.node, .n_known = n_known, .n_tokens = best.n_tokens, .snapshot = best.slot};
    uint32_t wanted = n_known < most ? n_known : most;
    if (n_known == 0) out->miss = QW_MISS_UNKNOWN;
    else if (best.n_tokens < wanted) out->miss = n_paged < wanted ? QW_MISS_EVICTED : QW_MISS_SNAPSHOT;
}

static void touch(qw_prefix *c, qw_prefix_node *n, int64_t now_us)
{
    for (; n; n = n->parent) {
        n->used_us = now_us;
        if (n->place != NO_PLACE) sift(c, heap_of(c, n), (uint32_t)n->place);
    }
}

static void fill_history(const int32_t *tokens, uint32_t n, int32_t history[QW_SEQ_HISTORY])
{
    for (uint32_t i = 0; i < QW_SEQ_HISTORY; i++) history[i] = i < n ? tokens[n - 1 - i] : -1;
}

static const uint32_t *path_to(qw_prefix *c, const qw_prefix_node *n)
{
    for (; n->parent; n = n->parent) c->path[n->depth / QW_KV_TILE] = n->page;
    return c->path;
}

static void pin(qw_prefix *c, qw_prefix_node *n)
{
    n->n_pins++;
    place(c, n);
}

qw_prefix_node *qw_prefix_full_node(const qw_prefix_match *m, uint32_t *n_tokens)
{
    qw_prefix_node *n = m->node;
    if (n->parent && (m->n_tokens < n->depth + n->n_tokens || n->n_tokens < QW_KV_TILE)) n = n->parent;
    *n_tokens = n->depth + n->n_tokens;
    return n;
}

qw_prefix_node *qw_prefix_continue(qw_prefix *c, const qw_prefix_match *m, const int32_t *tokens, qw_seq *seq,
                                   int64_t now_us)
{
    int32_t history[QW_SEQ_HISTORY];
    uint32_t ignored;
    fill_history(tokens, m->n_tokens, history);
    qw_seq_set(seq, path_to(c, m->node), m->n_tokens, m->snapshot, history);
    touch(c, m->node, now_us);
    for (snapshot *s = m->node->snaps; s; s = s->next)
        if (s->slot == m->snapshot) s->used_us = now_us;
    qw_prefix_node *tip = qw_prefix_full_node(m, &ignored);
    pin(c, tip);
    return tip;
}

void qw_prefix_continue_at(qw_prefix *c, qw_prefix_node *full, const int32_t *tokens, qw_seq *seq, int64_t now_us)
{
    int32_t history[QW_SEQ_HISTORY];
    fill_history(tokens, full->depth + full->n_tokens, history);
    qw_seq_set_pages(seq, path_to(c, full), full->depth + full->n_tokens, history);
    touch(c, full, now_us);
    pin(c, full);
}

bool qw_prefix_find_full(const qw_prefix *c, const qw_prefix_node *root, const int32_t *tokens, uint32_t n, qw_prefix_match *out)
{
    qw_prefix_node *node = (qw_prefix_node *)(uintptr_t)root;
    for (uint32_t depth = 0; node && depth < n; depth += QW_KV_TILE) node = full_child(c, node, tokens + depth);
    *out = (qw_prefix_match){.node = node, .n_tokens = n, .snapshot = QW_NO_SLOT};
    return node && (node->page != QW_NO_PAGE || !node->parent);
}

qw_state_id qw_prefix_id(const qw_prefix_node *full)
{
    return full->id;
}

/* ---- adding ----------------------------------------------------------------------------------------- */

/* Takes over the snapshots of pages that hold the beginning of n's tokens, and forgets those. */
static void absorb(qw_prefix *c, qw_prefix_node *n)
{
    for (qw_prefix_node *s = n->parent->children, *next; s; s = next) {
        next = s->next;
        if (s == n || s->n_pins > 0 || s->n_tokens >= n->n_tokens) continue;
        if (common(s->tokens, n->tokens, s->n_tokens) < s->n_tokens) continue;
        while (s->snaps) {
            uint32_t at = s->snaps->at;
            int64_t used_us = s->snaps->used_us;
            attach(c, n, at, detach(c, s->snaps), used_us);
        }
        if (s->page != QW_NO_PAGE) take_page_from(c, s);
        forget(c, s);
    }
}

/* A page that is there and begins with these tokens. */
static qw_prefix_node *longer_child(const qw_prefix_node *tip, const int32_t *tokens, uint32_t n_tokens)
{
    for (qw_prefix_node *n = tip->children; n; n = n->next)
        if (n->page != QW_NO_PAGE && n->n_tokens >= n_tokens && common(n->tokens, tokens, n_tokens) == n_tokens) return n;
    return NULL;
}

static qw_prefix_node *child_for(qw_prefix *c, qw_prefix_node *tip, const int32_t *tokens, uint32_t n_tokens, qw_seq *seq,
                                 uint32_t i, int64_t now_us)
{
    bool full = n_tokens == QW_KV_TILE;
    qw_prefix_node *n = full ? full_child(c, tip, tokens) : longer_child(tip, tokens, n_tokens);
    if (n && n->page != QW_NO_PAGE) {
        if (full && seq->page_ids[i] != n->page) qw_seq_swap_page(seq, i, n->page);
        return n;
    }
    if (!n) n = new_node(c, tip, full ? hash_of(c, tip, tokens) : 0, tokens, n_tokens, now_us);
    give_page_to(c, n, seq->page_ids[i]);
    absorb(c, n);
    return n;
}

qw_prefix_node *qw_prefix_add(qw_prefix *c, qw_prefix_node *tip, const int32_t *tokens, uint32_t n_tokens, qw_seq *seq,
                              uint32_t i, const qw_prefix_snap *snaps, size_t n_snaps, int64_t now_us)
{
    QW_ASSERT(tip->n_pins > 0 && n_tokens >= 1 && n_tokens <= QW_KV_TILE && i < seq->n_pages);
    QW_ASSERT(i * QW_KV_TILE == tip->depth + tip->n_tokens);
    qw_prefix_node *n = child_for(c, tip, tokens, n_tokens, seq, i, now_us);
    n->n_pins++; /* while others go */
    displace(c, n);
    for (size_t k = 0; k < n_snaps; k++) attach(c, n, snaps[k].at, snaps[k].slot, now_us);
    touch(c, n, now_us);
    forget_surplus(c);
    qw_prefix_node *unpinned = n_tokens == QW_KV_TILE ? tip : n;
    unpinned->n_pins--;
    place(c, unpinned);
    return n_tokens == QW_KV_TILE ? n : tip;
}

void qw_prefix_add_snapshot(qw_prefix *c, qw_prefix_node *tip, uint32_t slot, int64_t now_us)
{
    QW_ASSERT(tip->n_pins > 0 && tip->page != QW_NO_PAGE);
    attach(c, tip, tip->n_tokens, slot, now_us);
}

void qw_prefix_unpin(qw_prefix *c, qw_prefix_node *tip)
{
    QW_ASSERT(tip->n_pins > 0);
    tip->n_pins--;
    place(c, tip);
    forget_surplus(c);
}

/* ---- saving ------------------------------------------------------------------------------------------ */

void qw_prefix_set_saved(qw_prefix *c, qw_prefix_node *full)
{
    if (full->keeping == BEING_SAVED) return; /* by another one, who will say so */
    full->keeping = SAVED;
    if (!full->snaps) forget_unsaved(c, full);
}

/* source: a page, or with `snap` its state. The node stays until the operation is back. */
static bool submit_save(qw_prefix *c, qw_prefix_node *n, snapshot *snap)
{
    const qw_state_store *store = c->o.store;
    qw_state_op *op;
    if (qw_state_op_create(QW_STATE_SAVE, n->parent->id, n->depth, n->tokens, snap ? snap->at : n->n_tokens, &op, NULL) != QW_OK)
        return false;
    op->snapshot = snap != NULL;
    op->user = snap ? (void *)snap : (void *)n;
    op->source = snap ? qw_slot_at(c->o.pool, snap->slot) : qw_page_at(c->o.pool, n->page);
    if (!store->submit(store->ctx, op)) {
        qw_state_op_free(op);
        return false;
    }
    if (snap) snap->keeping = BEING_SAVED;
    else n->keeping = BEING_SAVED;
    c->counts.n_saving++;
    pin(c, n);
    return true;
}

/* True when the store has taken all of it. */
static bool save_node(qw_prefix *c, qw_prefix_node *n)
{
    if (n->keeping == NOT_SAVED && !submit_save(c, n, NULL)) return false;
    for (snapshot *s = n->snaps; s; s = s->next)
        if (s->keeping == NOT_SAVED && !submit_save(c, n, s)) return false;
    forget_unsaved(c, n);
    return true;
}

void qw_prefix_save(qw_prefix *c, int64_t now_us, int64_t age_us)
{
    while (c->unsaved_first && now_us - c->unsaved_first->unsaved_us >= age_us)
        if (!save_node(c, c->unsaved_first)) return;
}

void qw_prefix_take_saved(qw_prefix *c, qw_state_op *op)
{
    snapshot *snap = op->snapshot ? op->user : NULL;
    qw_prefix_node *n = snap ? snap->node : op->user;
    if (snap) snap->keeping = SAVED;
    else n->keeping = SAVED;
    c->counts.n_saving--;
    if (op->status == QW_OK) c->counts.saved++;
    else c->counts.save_failures++;
    qw_state_op_free(op);
    qw_prefix_unpin(c, n);
}

bool qw_prefix_has_unsaved(const qw_prefix *c)
{
    return c->unsaved_first != NULL || c->counts.n_saving > 0;
}

/* What was not saved yet is, before it goes, where the store takes it: it goes the next time then. */
static bool goes_later(qw_prefix *c, qw_prefix_node *n)
{
    return n->unsaved && save_node(c, n) && n->n_pins > 0;
}

bool qw_prefix_free_pages(qw_prefix *c, uint32_t n)
{
    while (qw_seq_pool_free_pages(c->o.pool) < n) {
        if (c->pages.n == 0) return false;
        if (goes_later(c, c->pages.node[0])) continue;
        if (c->pages.n == 0) return false;
        take_page_from(c, c->pages.node[0]);
        c->counts.pages_evicted++;
        forget_surplus(c);
    }
    return true;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static uint32_t power_of_two_from(uint32_t n)
{
    uint32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

enum { NODES_PER_PAGE = 2 }; /* a root may have a single page */

/* With its places in both heaps; buckets are fewer than twice the nodes. */
static size_t node_bytes(void)
{
    return sizeof(qw_prefix_node) + 4 * sizeof(qw_prefix_node *);
}

size_t qw_prefix_page_bytes(void)
{
    return NODES_PER_PAGE * node_bytes() + sizeof(uint32_t);
}

size_t qw_prefix_bytes(const qw_prefix_options *o, uint32_t n_pages)
{
    return sizeof(qw_prefix) + n_pages * qw_prefix_page_bytes() + (o->n_remembered_max + o->n_pinned_max + 2) * node_bytes() +
           o->n_snapshots_max * sizeof(snapshot);
}

qw_status qw_prefix_create(const qw_prefix_options *o, qw_prefix **out, qw_err *err)
{
    const qw_seq_pool_options *po = qw_seq_pool_get_options(o->pool);
    qw_prefix *c = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&c, 1, sizeof *c, "prefix cache", err));
    c->o = *o;
    c->recurrent = po->recurrent_bytes > 0;
    if (!c->recurrent) c->o.n_snapshots_max = 0;
    c->n_nodes = NODES_PER_PAGE * po->n_pages + o->n_remembered_max + o->n_pinned_max + 2;
    c->n_buckets = power_of_two_from(c->n_nodes);
    QW_TRY_GOTO(qw_alloc(&c->nodes, c->n_nodes, sizeof *c->nodes, "prefix cache", err));
    QW_TRY_GOTO(qw_alloc(&c->buckets, c->n_buckets, sizeof *c->buckets, "prefix cache", err));
    QW_TRY_GOTO(qw_alloc(&c->snapshots, c->o.n_snapshots_max, sizeof *c->snapshots, "prefix cache", err));
    QW_TRY_GOTO(qw_alloc(&c->pages.node, c->n_nodes, sizeof *c->pages.node, "prefix cache", err));
    QW_TRY_GOTO(qw_alloc(&c->remembered.node, c->n_nodes, sizeof *c->remembered.node, "prefix cache", err));
    QW_TRY_GOTO(qw_alloc(&c->path, (po->seq_tokens_max + QW_KV_TILE - 1) / QW_KV_TILE, sizeof *c->path, "prefix cache", err));
    for (uint32_t i = c->n_nodes; i-- > 0;) {
        c->nodes[i].bucket_next = c->unused;
        c->unused = &c->nodes[i];
    }
    for (uint32_t i = c->o.n_snapshots_max; i-- > 0;) {
        c->snapshots[i].next = c->unused_snaps;
        c->unused_snaps = &c->snapshots[i];
    }
    *out = c;
    return QW_OK;
fail:
    qw_prefix_destroy(c);
    return status;
}

/* The store is closed: its operations do not come back. */
static void let_go(qw_prefix *c, qw_prefix_node *n)
{
    if (n->page == QW_NO_PAGE || n->n_pins == 0) return;
    uint32_t n_saving = n->keeping == BEING_SAVED;
    for (const snapshot *s = n->snaps; s; s = s->next) n_saving += s->keeping == BEING_SAVED;
    c->counts.n_saving -= n_saving;
    n->n_pins -= n_saving;
    place(c, n);
}

void qw_prefix_destroy(qw_prefix *c)
{
    if (!c) return;
    for (uint32_t i = 0; c->counts.n_saving > 0 && i < c->n_nodes; i++) let_go(c, &c->nodes[i]);
    while (c->pages.n > 0) take_page_from(c, c->pages.node[0]);
    QW_ASSERT(c->counts.n_pages == 0 && c->n_slots_taken == 0); /* else something is still pinned */
    free(c->nodes);
    free(c->buckets);
    free(c->snapshots);
    free(c->pages.node);
    free(c->remembered.node);
    free(c->path);
    free(c);
}

void qw_prefix_get_counts(const qw_prefix *c, qw_prefix_counts *out)
{
    *out = c->counts;
}

/* ---- check ------------------------------------------------------------------------------------------ */

static void check_heap(const qw_prefix *c, const heap *h, bool paged)
{
    for (uint32_t i = 0; i < h->n; i++) {
        const qw_prefix_node *n = h->node[i];
        QW_ASSERT(n->place == (int32_t)i && (n->page != QW_NO_PAGE) == paged && can_be_taken(n));
        QW_ASSERT(i == 0 || !before(c, n, h->node[(i - 1) / 2]));
    }
}

/* Counts what hangs on a node, without recursion deeper than the tree. */
static void check_node(const qw_prefix *c, const qw_prefix_node *n, qw_prefix_counts *seen)
{
    uint32_t n_with_pages = 0;
    for (const qw_prefix_node *i = n->children; i; i = i->next) {
        QW_ASSERT(i->parent == n && i->depth == n->depth + n->n_tokens && (!i->next || i->next->prev == i));
        QW_ASSERT(i->page == QW_NO_PAGE || n->page != QW_NO_PAGE || !n->parent); /* no page hangs on one that is gone */
        n_with_pages += i->page != QW_NO_PAGE;
        check_node(c, i, seen);
    }
    QW_ASSERT(n_with_pages == n->n_with_pages && (n->place != NO_PLACE) == can_be_taken(n));
    QW_ASSERT(n->page != QW_NO_PAGE || !n->snaps);
    QW_ASSERT(n->n_tokens == QW_KV_TILE || !n->children || !n->parent);
    uint32_t n_snaps = 0;
    for (const qw_prefix_node *i = n->children; i; i = i->next) n_snaps += i->n_snaps;
    for (const snapshot *s = n->snaps; s; s = s->next, n_snaps++) {
        QW_ASSERT(s->node == n && s->at <= n->n_tokens && (!s->next || s->next->at > s->at));
        seen->n_snapshots++;
    }
    QW_ASSERT(n_snaps == n->n_snaps);
    if (n->page == QW_NO_PAGE) seen->n_remembered++;
    else seen->n_pages++;
    if (n->page != QW_NO_PAGE) QW_ASSERT(qw_page_users(c->o.pool, n->page) > 0);
}

void qw_prefix_check(const qw_prefix *c)
{
    qw_prefix_counts seen = {0};
    for (uint32_t b = 0; b < c->n_buckets; b++) {
        for (const qw_prefix_node *n = c->buckets[b]; n; n = n->bucket_next) {
            if (n->parent) continue;
            seen.n_roots++;
            check_node(c, n, &seen);
        }
    }
    QW_ASSERT(seen.n_pages == c->counts.n_pages && seen.n_snapshots == c->counts.n_snapshots);
    QW_ASSERT(seen.n_remembered == c->counts.n_remembered && seen.n_roots == c->counts.n_roots);
    QW_ASSERT(c->counts.n_snapshots <= c->n_slots_taken && c->n_slots_taken <= c->o.n_snapshots_max);
    check_heap(c, &c->pages, true);
    check_heap(c, &c->remembered, false);
}
