/* added.c: added tokens as a sorted list.
 *
 * A match narrows the list byte by byte with binary searches: no memory beyond the list, and the cost at
 * one place is bounded by the longest added token (QW_ADDED_BYTES_MAX). Any thread.
 */
#include "text/added.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static int compare_bytes(const char *a, size_t a_n, const char *b, size_t b_n)
{
    int c = memcmp(a, b, a_n < b_n ? a_n : b_n);
    return c ? c : (a_n > b_n) - (a_n < b_n);
}

static int compare(const void *x, const void *y)
{
    const qw_added_token *a = x, *b = y;
    int c = compare_bytes(a->s, a->n, b->s, b->n);
    return c ? c : (a->id > b->id) - (a->id < b->id);
}

qw_status qw_added_build(qw_added *a, const qw_vocab *v, qw_err *err)
{
    *a = (qw_added){0};
    size_t count = 0;
    for (size_t i = 0; i < v->n; i++) count += v->row[i] == QW_ROW_CONTROL || v->row[i] == QW_ROW_USER;
    QW_TRY(qw_alloc(&a->tokens, count, sizeof *a->tokens, "the added tokens", err));
    for (size_t i = 0; i < v->n; i++) {
        if (v->row[i] != QW_ROW_CONTROL && v->row[i] != QW_ROW_USER) continue;
        qw_text text = qw_vocab_text(v, (uint32_t)i);
        a->tokens[a->n++] = (qw_added_token){.s = text.s, .n = text.n, .id = (int32_t)i};
        a->first[(unsigned char)text.s[0]] = true;
    }
    qsort(a->tokens, a->n, sizeof *a->tokens, compare);
    return QW_OK;
}

void qw_added_free(qw_added *a)
{
    free(a->tokens);
    *a = (qw_added){0};
}

int32_t qw_added_find(const qw_added *a, const char *s, size_t n)
{
    size_t low = 0, high = a->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const qw_added_token *t = &a->tokens[middle];
        if (compare_bytes(t->s, t->n, s, n) < 0) low = middle + 1;
        else high = middle;
    }
    if (low == a->n || a->tokens[low].n != n || memcmp(a->tokens[low].s, s, n) != 0) return -1;
    return a->tokens[low].id;
}

/* First index in [low, high), whose tokens agree in depth bytes, with a byte there of at least `byte`
 * (a token that ends at depth comes before all). */
static size_t lower(const qw_added *a, size_t low, size_t high, size_t depth, unsigned byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const qw_added_token *t = &a->tokens[middle];
        if (t->n <= depth || (unsigned char)t->s[depth] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

int64_t qw_added_match(const qw_added *a, const char *text, size_t n)
{
    size_t low = 0, high = a->n;
    int64_t best = -1;
    for (size_t depth = 0; depth < n; depth++) {
        unsigned byte = (unsigned char)text[depth];
        low = lower(a, low, high, depth, byte);
        high = lower(a, low, high, depth, byte + 1);
        if (low == high) break;
        if (a->tokens[low].n == depth + 1) best = (int64_t)low;
    }
    return best;
}
