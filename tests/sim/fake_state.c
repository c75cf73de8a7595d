/* fake_state.c: see fake_state.h. Looks for pieces by going through all of them. */
#include "fake_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checksum.h"
#include "base/siphash.h"

typedef struct piece {
    struct piece *next;
    qw_state_id parent;
    bool snapshot;
    uint32_t n_tokens;
    int32_t tokens[QW_KV_TILE];
    uint64_t used, sum; /* of data as it was saved */
    size_t bytes;
    uint8_t data[];
} piece;

typedef struct waiting {
    struct waiting *next;
    qw_state_op *op;
    int64_t due_us;
    uint64_t sum; /* save: of its source */
} waiting;

struct fake_state {
    fake_state_options o;
    uint64_t rng, uses;
    int64_t now_us;
    piece *pieces;
    waiting *waiting;
    qw_state_op *first, *last; /* done */
    fake_state_counts n;
};

static void check(bool holds, const char *what)
{
    if (holds) return;
    printf("fake_state: %s\n", what);
    fflush(stdout);
    abort();
}

static void *take(size_t bytes)
{
    void *p = calloc(1, bytes);
    check(p != NULL, "out of memory");
    return p;
}

static uint64_t below(fake_state *f, uint64_t n)
{
    f->rng = f->rng * 6364136223846793005u + 1442695040888963407u;
    return (f->rng >> 33) % n;
}

static bool happens(fake_state *f, uint32_t permille)
{
    return permille > 0 && below(f, 1000) < permille;
}

/* ---- ids ------------------------------------------------------------------------------------------ */

static qw_state_id id_of(uint64_t seed, const void *data, size_t n)
{
    static const qw_sip_key keys[2] = {{{1, 2}}, {{3, 4}}};
    return (qw_state_id){{qw_siphash(&keys[0], seed, data, n), qw_siphash(&keys[1], seed, data, n)}};
}

static qw_state_id root_id(void *ctx, const uint8_t owner[QW_STATE_OWNER_BYTES])
{
    (void)ctx;
    return id_of(0, owner, QW_STATE_OWNER_BYTES);
}

static qw_state_id child_id(void *ctx, qw_state_id parent, const int32_t *tokens, uint32_t n)
{
    int32_t data[4 + QW_KV_TILE];
    (void)ctx;
    check(n >= 1 && n <= QW_KV_TILE, "a piece has 1 to 64 tokens");
    memcpy(data, &parent, sizeof parent);
    memcpy(data + 4, tokens, n * sizeof *tokens);
    return id_of(n, data, (4 + n) * sizeof *data);
}

static bool same_id(qw_state_id a, qw_state_id b)
{
    return a.w[0] == b.w[0] && a.w[1] == b.w[1];
}

/* ---- pieces --------------------------------------------------------------------------------------- */

static uint32_t common(const int32_t *a, const int32_t *b, size_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

static piece *get(const fake_state *f, qw_state_id parent, bool snapshot, const int32_t *tokens, uint32_t n)
{
    for (piece *p = f->pieces; p; p = p->next)
        if (same_id(p->parent, parent) && p->snapshot == snapshot && p->n_tokens == n && common(p->tokens, tokens, n) == n)
            return p;
    return NULL;
}

static void drop(fake_state *f, piece *p)
{
    piece **at = &f->pieces;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    f->n.n_pieces--;
    free(p);
}

static piece *any(fake_state *f)
{
    uint64_t i = f->n.n_pieces ? below(f, f->n.n_pieces) : 0;
    piece *p = f->pieces;
    while (i-- > 0) p = p->next;
    return p;
}

static void drop_oldest(fake_state *f)
{
    piece *oldest = f->pieces;
    for (piece *p = f->pieces; p; p = p->next)
        if (p->used < oldest->used) oldest = p;
    drop(f, oldest);
}

static void suffer(fake_state *f)
{
    piece *p;
    if (happens(f, f->o.lose_permille) && (p = any(f))) {
        drop(f, p);
        f->n.lost++;
    }
    if (happens(f, f->o.damage_permille) && (p = any(f)) && p->bytes > 0) {
        p->data[below(f, p->bytes)] ^= (uint8_t)(1u << below(f, 8));
        f->n.damaged++;
    }
}

/* ---- what operations do --------------------------------------------------------------------------- */

static uint32_t snapshot_up_to(const fake_state *f, qw_state_id parent, const int32_t *tokens, size_t most)
{
    uint32_t best = 0;
    for (const piece *p = f->pieces; p; p = p->next)
        if (p->snapshot && same_id(p->parent, parent) && p->n_tokens <= most && p->n_tokens > best &&
            common(p->tokens, tokens, p->n_tokens) == p->n_tokens)
            best = p->n_tokens;
    return best;
}

/* The page after `parent` that has the longest beginning of n tokens; its length in common. */
static uint32_t page_like(const fake_state *f, qw_state_id parent, const int32_t *tokens, size_t n, const piece **out)
{
    uint32_t best = 0;
    *out = NULL;
    for (const piece *p = f->pieces; p; p = p->next) {
        if (p->snapshot || !same_id(p->parent, parent)) continue;
        uint32_t k = common(p->tokens, tokens, n < p->n_tokens ? n : p->n_tokens);
        if (k <= best) continue;
        best = k;
        *out = p;
    }
    return best;
}

static void find(const fake_state *f, const qw_state_op *op, qw_state_past *out)
{
    qw_state_id id = op->parent;
    const size_t most = op->n_tokens - 1;
    qw_state_past best = {0};
    for (size_t at = 0; at < most; at += QW_KV_TILE) {
        const piece *page;
        const int32_t *tokens = op->tokens + at;
        size_t left = op->n_tokens - at < QW_KV_TILE ? op->n_tokens - at : QW_KV_TILE;
        uint32_t k = page_like(f, id, tokens, left, &page);
        if (k == 0) break;
        bool whole = k == QW_KV_TILE;
        size_t end = at + k < most ? at + k : most;
        uint32_t snapshot = snapshot_up_to(f, id, tokens, end - at);
        if (!f->o.recurrent_bytes || snapshot > 0) {
            best = (qw_state_past){.n_full = (uint32_t)(at / QW_KV_TILE) + whole, .n_last = whole ? 0 : page->n_tokens};
            best.snapshot_at = snapshot > 0 ? (uint32_t)at + snapshot : 0;
            best.n_tokens = f->o.recurrent_bytes ? best.snapshot_at : (uint32_t)end;
            if (!whole) memcpy(best.last, page->tokens, sizeof best.last);
        }
        if (!whole) break;
        id = child_id(NULL, id, tokens, QW_KV_TILE);
    }
    *out = best;
}

static bool load(fake_state *f, qw_state_id parent, bool snapshot, const int32_t *tokens, uint32_t n, uint8_t *to)
{
    piece *p = get(f, parent, snapshot, tokens, n);
    if (!p) return false;
    if (qw_checksum(p->data, p->bytes) != p->sum) {
        f->n.damage_found++;
        drop(f, p);
        return false;
    }
    p->used = ++f->uses;
    memcpy(to, p->data, p->bytes);
    return true;
}

static void load_all(fake_state *f, qw_state_op *op)
{
    qw_state_id id = op->parent;
    uint32_t n = qw_state_op_pages(op);
    bool good = true;
    op->n_good = 0;
    op->state_good = false;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *tokens = op->tokens + (size_t)i * QW_KV_TILE;
        bool full = i < op->past.n_full;
        uint32_t at = op->past.snapshot_at - i * QW_KV_TILE;
        if (op->state && op->past.snapshot_at > i * QW_KV_TILE && at <= QW_KV_TILE)
            op->state_good = load(f, id, true, tokens, at, op->state);
        good = good && load(f, id, false, full ? tokens : op->past.last, full ? QW_KV_TILE : op->past.n_last, op->pages[i]);
        op->n_good += good;
        if (full) id = child_id(NULL, id, tokens, QW_KV_TILE);
    }
}

static size_t bytes_of(const fake_state *f, bool snapshot)
{
    return snapshot ? f->o.recurrent_bytes : f->o.page_bytes;
}

static void remove_shorter(fake_state *f, const piece *longer)
{
    for (piece *p = f->pieces, *next; p; p = next) {
        next = p->next;
        if (!p->snapshot && same_id(p->parent, longer->parent) && p->n_tokens < longer->n_tokens &&
            common(p->tokens, longer->tokens, p->n_tokens) == p->n_tokens)
            drop(f, p);
    }
}

static qw_status save(fake_state *f, const qw_state_op *op)
{
    if (happens(f, f->o.fail_permille)) {
        f->n.failed++;
        return QW_E_IO;
    }
    piece *p = get(f, op->parent, op->snapshot, op->tokens, (uint32_t)op->n_tokens);
    if (p) {
        p->used = ++f->uses;
        return QW_OK;
    }
    size_t bytes = bytes_of(f, op->snapshot);
    p = take(sizeof *p + bytes);
    *p = (piece){.next = f->pieces, .parent = op->parent, .snapshot = op->snapshot, .n_tokens = (uint32_t)op->n_tokens,
                 .used = ++f->uses, .bytes = bytes, .sum = qw_checksum(op->source, bytes)};
    memcpy(p->tokens, op->tokens, op->n_tokens * sizeof *op->tokens);
    memcpy(p->data, op->source, bytes);
    f->pieces = p;
    f->n.n_pieces++;
    if (!p->snapshot) remove_shorter(f, p);
    while (f->o.n_pieces_max > 0 && f->n.n_pieces > f->o.n_pieces_max) drop_oldest(f);
    return QW_OK;
}

static void touch(fake_state *f, const qw_state_op *op)
{
    qw_state_id id = op->parent;
    for (size_t at = 0; at < op->n_tokens; at += QW_KV_TILE) {
        size_t left = op->n_tokens - at;
        uint32_t n = left < QW_KV_TILE ? (uint32_t)left : QW_KV_TILE;
        piece *page = get(f, id, false, op->tokens + at, n), *snapshot = get(f, id, true, op->tokens + at, n);
        if (page) page->used = ++f->uses;
        if (snapshot && op->snapshot && n == left) snapshot->used = ++f->uses;
        id = child_id(NULL, id, op->tokens + at, n);
    }
}

static void run(fake_state *f, const waiting *w)
{
    qw_state_op *op = w->op;
    suffer(f);
    switch (op->what) {
    case QW_STATE_FIND:
        find(f, op, &op->past);
        op->status = QW_OK;
        f->n.finds++;
        break;
    case QW_STATE_LOAD:
        load_all(f, op);
        f->n.loads++;
        break;
    case QW_STATE_SAVE:
        check(qw_checksum(op->source, bytes_of(f, op->snapshot)) == w->sum, "what was to be saved changed before it was");
        op->status = save(f, op);
        f->n.saves++;
        break;
    case QW_STATE_TOUCH:
        touch(f, op);
        f->n.touches++;
        break;
    }
}

/* ---- operations under way ------------------------------------------------------------------------- */

static void scribble(fake_state *f, uint8_t *at, size_t n)
{
    for (size_t i = 0; i < n; i++) at[i] = (uint8_t)below(f, 256);
}

static bool submit(void *ctx, qw_state_op *op)
{
    fake_state *f = ctx;
    if (happens(f, f->o.refuse_permille)) {
        f->n.refused++;
        return false;
    }
    waiting *w = take(sizeof *w), **at = &f->waiting;
    *w = (waiting){.op = op, .due_us = f->now_us + (f->o.delay_us_max ? (int64_t)below(f, (uint64_t)f->o.delay_us_max) : 0)};
    if (op->what == QW_STATE_SAVE) {
        check(op->n_tokens >= 1 && op->n_tokens <= QW_KV_TILE, "a piece has 1 to 64 tokens");
        w->sum = qw_checksum(op->source, bytes_of(f, op->snapshot));
    }
    if (op->what == QW_STATE_LOAD) {
        check(!op->state == !op->past.snapshot_at, "a snapshot has its place");
        for (uint32_t i = 0; i < qw_state_op_pages(op); i++) scribble(f, op->pages[i], f->o.page_bytes);
        if (op->state) scribble(f, op->state, f->o.recurrent_bytes);
    }
    while (*at && (*at)->due_us <= w->due_us) at = &(*at)->next;
    w->next = *at;
    *at = w;
    fake_state_set_now(f, f->now_us);
    return true;
}

void fake_state_set_now(fake_state *f, int64_t now_us)
{
    check(now_us >= f->now_us, "the clock goes back");
    f->now_us = now_us;
    while (f->waiting && f->waiting->due_us <= now_us) {
        waiting *w = f->waiting;
        f->waiting = w->next;
        run(f, w);
        w->op->next = NULL;
        if (f->last) f->last->next = w->op;
        else f->first = w->op;
        f->last = w->op;
        free(w);
    }
}

int64_t fake_state_next_us(const fake_state *f)
{
    return f->waiting ? f->waiting->due_us : INT64_MAX;
}

static qw_state_op *poll_done(void *ctx)
{
    fake_state *f = ctx;
    qw_state_op *op = f->first;
    if (!op) return NULL;
    f->first = op->next;
    if (!f->first) f->last = NULL;
    return op;
}

/* As if it slept until then. */
static bool wait_done(void *ctx, int64_t timeout_us)
{
    fake_state *f = ctx;
    int64_t until_us = f->now_us + timeout_us, next_us = fake_state_next_us(f);
    if (!f->first) fake_state_set_now(f, next_us < until_us ? next_us : until_us);
    return f->first != NULL;
}

void fake_state_drop_ops(fake_state *f)
{
    while (f->waiting) {
        waiting *w = f->waiting;
        f->waiting = w->next;
        qw_state_op_free(w->op);
        free(w);
    }
    for (qw_state_op *op; (op = poll_done(f));) qw_state_op_free(op);
}

/* ---- life ----------------------------------------------------------------------------------------- */

fake_state *fake_state_create(const fake_state_options *o)
{
    fake_state *f = take(sizeof *f);
    f->o = *o;
    f->rng = o->seed * 2654435761u + 99991;
    return f;
}

void fake_state_lose_all(fake_state *f)
{
    while (f->pieces) drop(f, f->pieces);
}

void fake_state_destroy(fake_state *f)
{
    if (!f) return;
    fake_state_drop_ops(f);
    fake_state_lose_all(f);
    free(f);
}

qw_state_store fake_state_store(fake_state *f)
{
    return (qw_state_store){.ctx = f, .root_id = root_id, .child_id = child_id, .submit = submit, .poll = poll_done,
                            .wait = wait_done};
}

void fake_state_get_counts(const fake_state *f, fake_state_counts *out)
{
    *out = f->n;
}
