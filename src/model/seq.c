/* seq.c: see seq.h. */
#include "model/seq.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"

struct qw_seq_pool {
    qw_seq_pool_options o;
    size_t page_bytes, page_stride; /* the stride is rounded up to the system's pages, so that one can be given back alone */
    size_t slot_stride;
    uint32_t n_free, n_free_slots, seq_pages_max;
    uint8_t *pages;          /* [n_pages][page_stride]: reserved, touched on use */
    uint8_t *slots;          /* [n_slots][slot_stride]: likewise */
    uint32_t *refs;          /* [n_pages] */
    uint32_t *free_ids;      /* [n_free]: a stack */
    uint32_t *free_slots;    /* [n_free_slots]: a stack */
};

enum { SYSTEM_PAGE = 4096 };

/* ---- pages and slots --------------------------------------------------------------------------- */

static size_t stride_of(size_t bytes)
{
    return (bytes + SYSTEM_PAGE - 1) / SYSTEM_PAGE * SYSTEM_PAGE;
}

/* Address space for n pieces; NULL in *out for none. */
static qw_status reserve_space(size_t stride, uint32_t n, const char *what, uint8_t **out, qw_err *err)
{
    size_t bytes;
    if (n == 0 || stride == 0) return QW_OK;
    if (qw_mul_overflows(stride, n, &bytes)) return qw_fail(err, QW_E_MEMORY, "%u %s do not fit the address space", n, what);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return qw_fail(err, QW_E_MEMORY, "%u %s need %zu bytes, which the system does not give", n, what, bytes);
    }
    /* Touched 2 MiB at a time: a past that comes from disk would spend most of its time on faults of 4 KiB. A hint. */
    (void)madvise(at, bytes, MADV_HUGEPAGE);
    *out = at;
    return QW_OK;
}

/* Gives the memory back and makes it read as zeros for its next owner. */
static void give_back(uint8_t *at, size_t stride)
{
    if (madvise(at, stride, MADV_DONTNEED) != 0) memset(at, 0, stride);
}

/* Lowest numbers on top. */
static qw_status fill_stack(uint32_t **stack, uint32_t n, const char *what, qw_err *err)
{
    QW_TRY(qw_alloc(stack, n, sizeof **stack, what, err));
    for (uint32_t i = 0; i < n; i++) (*stack)[i] = n - 1 - i;
    return QW_OK;
}

qw_status qw_seq_pool_create(const qw_seq_pool_options *o, qw_seq_pool **out, qw_err *err)
{
    qw_seq_pool *p = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&p, 1, sizeof *p, "sequence pool", err));
    p->o = *o;
    p->page_bytes = qw_kv_page_bytes(&o->shape);
    p->page_stride = stride_of(p->page_bytes);
    p->slot_stride = stride_of(o->recurrent_bytes);
    p->n_free = o->n_pages;
    p->n_free_slots = o->recurrent_bytes ? o->n_slots : 0;
    p->seq_pages_max = (o->seq_tokens_max + QW_KV_TILE - 1) / QW_KV_TILE;
    QW_TRY_GOTO(qw_alloc(&p->refs, o->n_pages, sizeof *p->refs, "page counts", err));
    QW_TRY_GOTO(fill_stack(&p->free_ids, o->n_pages, "page list", err));
    QW_TRY_GOTO(fill_stack(&p->free_slots, p->n_free_slots, "slot list", err));
    QW_TRY_GOTO(reserve_space(p->page_stride, o->n_pages, "pages of keys and values", &p->pages, err));
    QW_TRY_GOTO(reserve_space(p->slot_stride, p->n_free_slots, "recurrent states", &p->slots, err));
    *out = p;
    return QW_OK;
fail:
    qw_seq_pool_destroy(p);
    return status;
}

void qw_seq_pool_destroy(qw_seq_pool *p)
{
    if (!p) return;
    QW_ASSERT(!p->pages || p->n_free == p->o.n_pages);
    QW_ASSERT(!p->slots || p->n_free_slots == p->o.n_slots);
    if (p->pages) munmap(p->pages, p->page_stride * p->o.n_pages);
    if (p->slots) munmap(p->slots, p->slot_stride * p->o.n_slots);
    free(p->refs);
    free(p->free_ids);
    free(p->free_slots);
    free(p);
}

const qw_seq_pool_options *qw_seq_pool_get_options(const qw_seq_pool *pool)
{
    return &pool->o;
}

uint32_t qw_seq_pool_free_pages(const qw_seq_pool *pool)
{
    return pool->n_free;
}

uint32_t qw_seq_pool_free_slots(const qw_seq_pool *pool)
{
    return pool->n_free_slots;
}

size_t qw_page_bytes(const qw_seq_pool *p)
{
    return p->page_bytes;
}

uint8_t *qw_page_at(const qw_seq_pool *p, uint32_t id)
{
    QW_ASSERT(id < p->o.n_pages);
    return p->pages + (size_t)id * p->page_stride;
}

uint32_t qw_page_users(const qw_seq_pool *p, uint32_t id)
{
    return p->refs[id];
}

uint32_t qw_page_take(qw_seq_pool *p)
{
    if (p->n_free == 0) return QW_NO_PAGE;
    uint32_t id = p->free_ids[--p->n_free];
    QW_ASSERT(p->refs[id] == 0);
    p->refs[id] = 1;
    return id;
}

void qw_page_keep(qw_seq_pool *p, uint32_t id)
{
    QW_ASSERT(p->refs[id] > 0);
    p->refs[id]++;
}

void qw_page_drop(qw_seq_pool *p, uint32_t id)
{
    QW_ASSERT(p->refs[id] > 0);
    if (--p->refs[id] > 0) return;
    give_back(qw_page_at(p, id), p->page_stride);
    p->free_ids[p->n_free++] = id;
}

uint8_t *qw_slot_at(const qw_seq_pool *p, uint32_t slot)
{
    QW_ASSERT(slot < p->o.n_slots);
    return p->slots + (size_t)slot * p->slot_stride;
}

uint32_t qw_slot_take(qw_seq_pool *p)
{
    return p->n_free_slots == 0 ? QW_NO_SLOT : p->free_slots[--p->n_free_slots];
}

void qw_slot_drop(qw_seq_pool *p, uint32_t slot)
{
    give_back(qw_slot_at(p, slot), p->slot_stride);
    p->free_slots[p->n_free_slots++] = slot;
}

/* ---- sequences --------------------------------------------------------------------------------- */

static void clear_history(qw_seq *s)
{
    for (int i = 0; i < QW_SEQ_HISTORY; i++) s->history[i] = -1;
}

qw_status qw_seq_create(qw_seq_pool *pool, qw_seq **out, qw_err *err)
{
    qw_seq *s = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "sequence", err));
    s->pool = pool;
    s->slot = QW_NO_SLOT;
    clear_history(s);
    QW_TRY_GOTO(qw_alloc(&s->page_ids, pool->seq_pages_max, sizeof *s->page_ids, "page table", err));
    QW_TRY_GOTO(qw_alloc(&s->pages, pool->seq_pages_max, sizeof *s->pages, "page table", err));
    if (pool->o.recurrent_bytes) {
        s->slot = qw_slot_take(pool);
        if (s->slot == QW_NO_SLOT) {
            status = qw_fail(err, QW_E_MEMORY, "all %u recurrent states are in use", pool->o.n_slots);
            goto fail;
        }
        s->recurrent = qw_slot_at(pool, s->slot);
    }
    *out = s;
    return QW_OK;
fail:
    qw_seq_release(s);
    return status;
}

static void drop_pages(qw_seq *s, uint32_t n_left)
{
    while (s->n_pages > n_left) qw_page_drop(s->pool, s->page_ids[--s->n_pages]);
}

void qw_seq_release(qw_seq *s)
{
    if (!s) return;
    drop_pages(s, 0);
    if (s->slot != QW_NO_SLOT) qw_slot_drop(s->pool, s->slot);
    free(s->page_ids);
    free(s->pages);
    free(s);
}

void qw_seq_set_pages(qw_seq *s, const uint32_t *page_ids, uint32_t n_tokens, const int32_t *history)
{
    qw_seq_pool *p = s->pool;
    uint32_t n_pages = (n_tokens + QW_KV_TILE - 1) / QW_KV_TILE;
    QW_ASSERT(n_pages <= p->seq_pages_max);
    for (uint32_t i = 0; i < n_pages; i++) qw_page_keep(p, page_ids[i]); /* before any is dropped: they may be the same */
    drop_pages(s, 0);
    for (uint32_t i = 0; i < n_pages; i++) {
        s->page_ids[i] = page_ids[i];
        s->pages[i] = qw_page_at(p, page_ids[i]);
    }
    s->n_pages = n_pages;
    s->n_tokens = n_tokens;
    memcpy(s->history, history, sizeof s->history);
}

void qw_seq_set(qw_seq *s, const uint32_t *page_ids, uint32_t n_tokens, uint32_t slot, const int32_t *history)
{
    qw_seq_pool *p = s->pool;
    QW_ASSERT(slot != QW_NO_SLOT || n_tokens == 0 || !s->recurrent);
    qw_seq_set_pages(s, page_ids, n_tokens, history);
    if (!s->recurrent) return;
    if (slot == QW_NO_SLOT) memset(s->recurrent, 0, p->o.recurrent_bytes);
    else memcpy(s->recurrent, qw_slot_at(p, slot), p->o.recurrent_bytes);
}

void qw_seq_swap_slot(qw_seq *s, uint32_t *slot)
{
    uint32_t old = s->slot;
    s->slot = *slot;
    s->recurrent = qw_slot_at(s->pool, s->slot);
    *slot = old;
}

void qw_seq_clear(qw_seq *s)
{
    drop_pages(s, 0);
    s->n_tokens = 0;
    clear_history(s);
}

void qw_seq_swap_page(qw_seq *s, uint32_t i, uint32_t page_id)
{
    QW_ASSERT(i < s->n_pages);
    qw_page_keep(s->pool, page_id);
    qw_page_drop(s->pool, s->page_ids[i]);
    s->page_ids[i] = page_id;
    s->pages[i] = qw_page_at(s->pool, page_id);
}

qw_status qw_seq_reserve(qw_seq *s, uint32_t n_tokens_after, qw_err *err)
{
    qw_seq_pool *p = s->pool;
    if (n_tokens_after > p->o.seq_tokens_max) {
        return qw_fail(err, QW_E_LIMIT, "the conversation would hold %u tokens, the context has %u", n_tokens_after,
                       p->o.seq_tokens_max);
    }
    if (n_tokens_after <= s->n_tokens) return QW_OK;
    uint32_t n_pages_after = (n_tokens_after + QW_KV_TILE - 1) / QW_KV_TILE;
    uint32_t first = s->n_tokens / QW_KV_TILE; /* the page that the next position is written to */
    uint32_t n_new = n_pages_after > s->n_pages ? n_pages_after - s->n_pages : 0;
    uint32_t n_copy = 0;
    for (uint32_t i = first; i < s->n_pages && i < n_pages_after; i++) n_copy += p->refs[s->page_ids[i]] > 1;
    if (n_new + n_copy > p->n_free) {
        return qw_fail(err, QW_E_MEMORY, "the KV cache is full: %u pages of %d tokens are wanted, %u are free",
                       n_new + n_copy, QW_KV_TILE, p->n_free);
    }
    for (uint32_t i = first; i < s->n_pages && i < n_pages_after; i++) {
        uint32_t shared = s->page_ids[i];
        if (p->refs[shared] == 1) continue;
        s->page_ids[i] = qw_page_take(p);
        s->pages[i] = qw_page_at(p, s->page_ids[i]);
        memcpy(s->pages[i], qw_page_at(p, shared), p->page_bytes);
        qw_page_drop(p, shared);
    }
    for (; s->n_pages < n_pages_after; s->n_pages++) {
        s->page_ids[s->n_pages] = qw_page_take(p);
        s->pages[s->n_pages] = qw_page_at(p, s->page_ids[s->n_pages]);
    }
    return QW_OK;
}

void qw_seq_advance(qw_seq *s, const int32_t *tokens, uint32_t n)
{
    QW_ASSERT(s->n_tokens + n <= s->n_pages * QW_KV_TILE);
    for (uint32_t i = 0; i < n; i++) {
        memmove(s->history + 1, s->history, (QW_SEQ_HISTORY - 1) * sizeof *s->history);
        s->history[0] = tokens[i];
    }
    s->n_tokens += n;
}

bool qw_seq_can_truncate(const qw_seq *s, uint32_t n_tokens)
{
    return n_tokens == 0 || n_tokens >= s->n_tokens || s->pool->o.recurrent_bytes == 0;
}

qw_status qw_seq_truncate(qw_seq *s, uint32_t n_tokens, const int32_t *tokens, qw_err *err)
{
    if (n_tokens >= s->n_tokens) return QW_OK;
    if (!qw_seq_can_truncate(s, n_tokens)) {
        return qw_fail(err, QW_E_UNSUPPORTED, "a recurrent state cannot be rewound to token %u", n_tokens);
    }
    uint32_t n_pages = (n_tokens + QW_KV_TILE - 1) / QW_KV_TILE;
    drop_pages(s, n_pages);
    s->n_tokens = n_tokens;
    clear_history(s);
    for (uint32_t i = 0; i < QW_SEQ_HISTORY && i < n_tokens; i++) s->history[i] = tokens[n_tokens - 1 - i];
    if (s->recurrent) memset(s->recurrent, 0, s->pool->o.recurrent_bytes);
    return QW_OK;
}
