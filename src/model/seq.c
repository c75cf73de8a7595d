/* seq.c: see seq.h. */
#include "model/seq.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"

struct qw_seq_pool {
    qw_kv_shape shape;
    size_t page_bytes;       /* rounded up to the system's pages, so that one can be given back alone */
    uint32_t n_pages, n_free, seq_pages_max, seq_tokens_max;
    size_t recurrent_bytes;
    uint8_t *base;           /* [n_pages][page_bytes]: reserved, touched on use */
    uint32_t *refs;          /* [n_pages] */
    uint32_t *free_ids;      /* [n_free]: a stack */
};

enum { SYSTEM_PAGE = 4096 };

qw_status qw_seq_pool_create(const qw_kv_shape *shape, uint32_t n_pages, uint32_t seq_tokens_max,
                             size_t recurrent_bytes, qw_seq_pool **out, qw_err *err)
{
    qw_seq_pool *p = NULL;
    qw_status status;
    size_t bytes;
    *out = NULL;
    QW_TRY(qw_alloc(&p, 1, sizeof *p, "sequence pool", err));
    p->shape = *shape;
    p->page_bytes = (qw_kv_page_bytes(shape) + SYSTEM_PAGE - 1) / SYSTEM_PAGE * SYSTEM_PAGE;
    p->n_pages = p->n_free = n_pages;
    p->seq_tokens_max = seq_tokens_max;
    p->seq_pages_max = (seq_tokens_max + QW_KV_TILE - 1) / QW_KV_TILE;
    p->recurrent_bytes = recurrent_bytes;
    QW_TRY_GOTO(qw_alloc(&p->refs, n_pages, sizeof *p->refs, "page counts", err));
    QW_TRY_GOTO(qw_alloc(&p->free_ids, n_pages, sizeof *p->free_ids, "page list", err));
    for (uint32_t i = 0; i < n_pages; i++) p->free_ids[i] = n_pages - 1 - i;
    if (qw_mul_overflows(p->page_bytes, n_pages, &bytes)) {
        status = qw_fail(err, QW_E_MEMORY, "a KV cache of %u pages does not fit the address space", n_pages);
        goto fail;
    }
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        status = qw_fail(err, QW_E_MEMORY, "the KV cache needs %zu bytes, which the system does not give", bytes);
        goto fail;
    }
    p->base = base;
    *out = p;
    return QW_OK;
fail:
    qw_seq_pool_destroy(p);
    return status;
}

void qw_seq_pool_destroy(qw_seq_pool *p)
{
    if (!p) return;
    QW_ASSERT(p->n_free == p->n_pages || !p->base);
    if (p->base) munmap(p->base, p->page_bytes * p->n_pages);
    free(p->refs);
    free(p->free_ids);
    free(p);
}

const qw_kv_shape *qw_seq_pool_shape(const qw_seq_pool *pool)
{
    return &pool->shape;
}

uint32_t qw_seq_pool_free_pages(const qw_seq_pool *pool)
{
    return pool->n_free;
}

static uint8_t *page_at(const qw_seq_pool *p, uint32_t id)
{
    return p->base + (size_t)id * p->page_bytes;
}

static uint32_t take_page(qw_seq_pool *p)
{
    uint32_t id = p->free_ids[--p->n_free];
    QW_ASSERT(p->refs[id] == 0);
    p->refs[id] = 1;
    return id;
}

static void drop_page(qw_seq_pool *p, uint32_t id)
{
    QW_ASSERT(p->refs[id] > 0);
    if (--p->refs[id] > 0) return;
    /* Gives the memory back and makes the page read as zeros for its next owner. */
    if (madvise(page_at(p, id), p->page_bytes, MADV_DONTNEED) != 0) memset(page_at(p, id), 0, p->page_bytes);
    p->free_ids[p->n_free++] = id;
}

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
    clear_history(s);
    QW_TRY_GOTO(qw_alloc(&s->page_ids, pool->seq_pages_max, sizeof *s->page_ids, "page table", err));
    QW_TRY_GOTO(qw_alloc(&s->pages, pool->seq_pages_max, sizeof *s->pages, "page table", err));
    if (pool->recurrent_bytes) {
        QW_TRY_GOTO(qw_alloc_aligned(&s->recurrent, pool->recurrent_bytes, "recurrent state", err));
    }
    *out = s;
    return QW_OK;
fail:
    qw_seq_release(s);
    return status;
}

void qw_seq_release(qw_seq *s)
{
    if (!s) return;
    for (uint32_t i = 0; i < s->n_pages; i++) drop_page(s->pool, s->page_ids[i]);
    if (s->recurrent) qw_free_aligned(s->recurrent, s->pool->recurrent_bytes);
    free(s->page_ids);
    free(s->pages);
    free(s);
}

qw_status qw_seq_fork(const qw_seq *seq, qw_seq **out, qw_err *err)
{
    qw_seq *s;
    QW_TRY(qw_seq_create(seq->pool, &s, err));
    s->n_tokens = seq->n_tokens;
    s->n_pages = seq->n_pages;
    memcpy(s->page_ids, seq->page_ids, seq->n_pages * sizeof *s->page_ids);
    memcpy(s->pages, seq->pages, seq->n_pages * sizeof *s->pages);
    memcpy(s->history, seq->history, sizeof s->history);
    if (s->recurrent) memcpy(s->recurrent, seq->recurrent, seq->pool->recurrent_bytes);
    for (uint32_t i = 0; i < s->n_pages; i++) s->pool->refs[s->page_ids[i]]++;
    *out = s;
    return QW_OK;
}

qw_status qw_seq_reserve(qw_seq *s, uint32_t n_tokens_after, qw_err *err)
{
    qw_seq_pool *p = s->pool;
    if (n_tokens_after > p->seq_tokens_max) {
        return qw_fail(err, QW_E_LIMIT, "the conversation would hold %u tokens, the context has %u", n_tokens_after,
                       p->seq_tokens_max);
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
        s->page_ids[i] = take_page(p);
        s->pages[i] = page_at(p, s->page_ids[i]);
        memcpy(s->pages[i], page_at(p, shared), p->page_bytes);
        drop_page(p, shared);
    }
    for (; s->n_pages < n_pages_after; s->n_pages++) {
        s->page_ids[s->n_pages] = take_page(p);
        s->pages[s->n_pages] = page_at(p, s->page_ids[s->n_pages]);
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
    return n_tokens == 0 || n_tokens >= s->n_tokens || s->pool->recurrent_bytes == 0;
}

qw_status qw_seq_truncate(qw_seq *s, uint32_t n_tokens, const int32_t *tokens, qw_err *err)
{
    if (n_tokens >= s->n_tokens) return QW_OK;
    if (!qw_seq_can_truncate(s, n_tokens)) {
        return qw_fail(err, QW_E_UNSUPPORTED, "a recurrent state cannot be rewound to token %u", n_tokens);
    }
    uint32_t n_pages = (n_tokens + QW_KV_TILE - 1) / QW_KV_TILE;
    while (s->n_pages > n_pages) drop_page(s->pool, s->page_ids[--s->n_pages]);
    s->n_tokens = n_tokens;
    clear_history(s);
    for (uint32_t i = 0; i < QW_SEQ_HISTORY && i < n_tokens; i++) s->history[i] = tokens[n_tokens - 1 - i];
    if (s->recurrent) memset(s->recurrent, 0, s->pool->recurrent_bytes);
    return QW_OK;
}
