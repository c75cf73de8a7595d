/* merge.c: merging one piece: the lowest rank first, of equal ranks the leftmost.
 *
 * Most pieces are a token as they are: whether a token's own text merges to it is worked out once and kept
 * in `whole`. Other short pieces scan their ranks for the lowest; long ones keep a linked list and a heap of
 * (rank, position), so that n bytes take n log n whatever they are. Any thread, with its own qw_merger.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/vocab.h"

enum { SCAN_MAX = 64 };     /* bytes up to which scanning is the quicker way */
#define END UINT32_MAX      /* no neighbour */
enum { WHOLE_UNKNOWN = 0, WHOLE_NO, WHOLE_YES };

void qw_merger_free(qw_merger *m)
{
    free(m->ids);
    free(m->prev);
    free(m->next);
    free(m->ranks);
    free(m->heap);
    *m = (qw_merger){0};
}

/* ---- short pieces ----------------------------------------------------------------------------- */

/* Merges in ids[0, n), n <= SCAN_MAX; returns how many ids are left. */
static size_t merge_scan(const qw_vocab *v, uint32_t *ids, size_t n)
{
    uint32_t ranks[SCAN_MAX]; /* ranks[i]: of the pair (i, i + 1) */
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = qw_vocab_rank(v, ids[i], ids[i + 1]);
    while (n > 1) {
        uint32_t best = QW_RANK_NONE;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            if (ranks[i] < best) {
                best = ranks[i];
                at = i;
            }
        if (best == QW_RANK_NONE) break;
        ids[at] = v->merged[best];
        n--;
        memmove(ids + at + 1, ids + at + 2, (n - at - 1) * sizeof *ids);
        memmove(ranks + at, ranks + at + 1, (n - at - 1) * sizeof *ranks);
        if (at + 1 < n) ranks[at] = qw_vocab_rank(v, ids[at], ids[at + 1]);
        if (at > 0) ranks[at - 1] = qw_vocab_rank(v, ids[at - 1], ids[at]);
    }
    return n;
}

/* ---- long pieces ------------------------------------------------------------------------------ */

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t item = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= item) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

static qw_status heap_push(qw_merger *m, uint64_t item, qw_err *err)
{
    if (m->heap_n == m->heap_cap) {
        size_t cap = m->heap_cap * 2;
        QW_TRY(qw_grow(&m->heap, m->heap_cap, cap, sizeof *m->heap, "merging a long word", err));
        m->heap_cap = cap;
    }
    size_t i = m->heap_n++;
    for (; i > 0 && m->heap[(i - 1) / 2] > item; i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = item;
    return QW_OK;
}

static uint64_t heap_pop(qw_merger *m)
{
    uint64_t top = m->heap[0];
    m->heap[0] = m->heap[--m->heap_n];
    if (m->heap_n > 1) sift_down(m->heap, m->heap_n, 0);
    return top;
}

static qw_status reserve(qw_merger *m, size_t n, qw_err *err)
{
    if (n <= m->cap) return QW_OK;
    uint32_t **arrays[] = {&m->ids, &m->prev, &m->next, &m->ranks};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        QW_TRY(qw_grow(arrays[i], m->cap, n, sizeof **arrays[i], "merging a long word", err));
    if (n > m->heap_cap) {
        QW_TRY(qw_grow(&m->heap, m->heap_cap, n, sizeof *m->heap, "merging a long word", err));
        m->heap_cap = n;
    }
    m->cap = n;
    return QW_OK;
}

/* The symbols of a piece: one a byte, all pairs that merge in the heap. */
static void start(const qw_vocab *v, qw_merger *m, const unsigned char *piece, size_t n)
{
    m->heap_n = 0;
    for (size_t i = 0; i < n; i++) {
        m->ids[i] = v->byte_id[piece[i]];
        m->prev[i] = i ? (uint32_t)i - 1 : END;
        m->next[i] = i + 1 < n ? (uint32_t)i + 1 : END;
    }
    for (size_t i = 0; i < n; i++) {
        m->ranks[i] = i + 1 < n ? qw_vocab_rank(v, m->ids[i], m->ids[i + 1]) : QW_RANK_NONE;
        if (m->ranks[i] != QW_RANK_NONE) m->heap[m->heap_n++] = (uint64_t)m->ranks[i] << 32 | i;
    }
    for (size_t i = m->heap_n / 2; i-- > 0;) sift_down(m->heap, m->heap_n, i);
}

/* The pair at i has new members: takes its rank and enters it. */
static qw_status renew(const qw_vocab *v, qw_merger *m, uint32_t i, qw_err *err)
{
    m->ranks[i] = m->next[i] == END ? QW_RANK_NONE : qw_vocab_rank(v, m->ids[i], m->ids[m->next[i]]);
    return m->ranks[i] == QW_RANK_NONE ? QW_OK : heap_push(m, (uint64_t)m->ranks[i] << 32 | i, err);
}

static qw_status merge_heap(const qw_vocab *v, qw_merger *m, const char *piece, size_t n, qw_tokens *out,
                            qw_err *err)
{
    QW_TRY(reserve(m, n, err));
    start(v, m, (const unsigned char *)piece, n);
    while (m->heap_n > 0) {
        uint64_t item = heap_pop(m);
        uint32_t rank = (uint32_t)(item >> 32), i = (uint32_t)item;
        if (m->ranks[i] != rank) continue; /* that pair is gone */
        uint32_t gone = m->next[i];
        m->ids[i] = v->merged[rank];
        m->ranks[gone] = QW_RANK_NONE;
        m->next[i] = m->next[gone];
        if (m->next[i] != END) m->prev[m->next[i]] = i;
        QW_TRY(renew(v, m, i, err));
        if (m->prev[i] != END) QW_TRY(renew(v, m, m->prev[i], err));
    }
    for (uint32_t i = 0; i != END; i = m->next[i]) QW_TRY(qw_tokens_push(out, (int32_t)m->ids[i], err));
    return QW_OK;
}

/* ---- one piece -------------------------------------------------------------------------------- */

qw_status qw_vocab_merge(const qw_vocab *v, qw_merger *m, const char *piece, size_t n, qw_tokens *out,
                         qw_err *err)
{
    if (n == 1) return qw_tokens_push(out, (int32_t)v->byte_id[(unsigned char)piece[0]], err);
    int32_t same = n <= v->token_bytes_max ? qw_vocab_find(v, piece, n) : -1;
    uint8_t whole = WHOLE_NO;
    if (same >= 0) {
        whole = atomic_load_explicit(&v->whole[same], memory_order_relaxed);
        if (whole == WHOLE_YES) return qw_tokens_push(out, same, err);
    }
    size_t before = out->n;
    if (n <= SCAN_MAX) {
        uint32_t ids[SCAN_MAX];
        for (size_t i = 0; i < n; i++) ids[i] = v->byte_id[(unsigned char)piece[i]];
        size_t left = merge_scan(v, ids, n);
        for (size_t i = 0; i < left; i++) QW_TRY(qw_tokens_push(out, (int32_t)ids[i], err));
    } else {
        QW_TRY(merge_heap(v, m, piece, n, out, err));
    }
    if (same >= 0 && whole == WHOLE_UNKNOWN) {
        bool yes = out->n == before + 1 && out->ids[before] == same;
        atomic_store_explicit(&v->whole[same], yes ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
    }
    return QW_OK;
}
