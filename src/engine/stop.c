/* stop.c: see stop.h. */
#include "engine/stop.h"

#include <stdint.h>
#include <string.h>

enum { HELD_BYTES_MAX = 1 << 20 };

void qw_stop_begin(qw_stop *s, const char *const *strings, size_t n)
{
    s->strings = strings;
    s->n = n;
    s->hit = NULL;
    qw_buf_free(&s->held);
    qw_buf_init(&s->held, HELD_BYTES_MAX, "stop strings");
}

void qw_stop_free(qw_stop *s)
{
    qw_buf_free(&s->held);
}

/* Offset of the stop string in the held text that ends first, of those the longest; or held.n. Chosen by its end,
 * not by its start: how the text was cut into pieces must not change the answer. */
static size_t find_hit(qw_stop *s)
{
    size_t at = s->held.n, end = SIZE_MAX;
    s->hit = NULL;
    for (size_t i = 0; i < s->n; i++) {
        size_t len = strlen(s->strings[i]);
        const char *p = memmem(s->held.data, s->held.n, s->strings[i], len);
        if (!p) continue;
        size_t offset = (size_t)(p - s->held.data);
        if (offset + len < end || (offset + len == end && offset < at)) {
            at = offset;
            end = offset + len;
            s->hit = s->strings[i];
        }
    }
    return at;
}

/* Bytes at the end of the held text that begin some stop string. */
static size_t open_tail(const qw_stop *s)
{
    size_t longest = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t len = strlen(s->strings[i]) - 1;
        for (size_t k = len < s->held.n ? len : s->held.n; k > longest; k--) {
            if (memcmp(s->held.data + s->held.n - k, s->strings[i], k) == 0) longest = k;
        }
    }
    return longest;
}

static qw_status give(qw_stop *s, size_t n, qw_buf *out, qw_err *err)
{
    if (n == 0) return QW_OK;
    QW_TRY(qw_buf_add(out, s->held.data, n, err));
    memmove(s->held.data, s->held.data + n, s->held.n - n + 1);
    s->held.n -= n;
    return QW_OK;
}

qw_status qw_stop_push(qw_stop *s, const char *text, size_t n, qw_buf *out, bool *found, qw_err *err)
{
    *found = false;
    if (n == 0) return QW_OK;
    if (s->n == 0) return qw_buf_add(out, text, n, err);
    QW_TRY(qw_buf_add(&s->held, text, n, err));
    size_t at = find_hit(s);
    *found = s->hit != NULL;
    return give(s, *found ? at : s->held.n - open_tail(s), out, err);
}

qw_status qw_stop_flush(qw_stop *s, qw_buf *out, qw_err *err)
{
    return give(s, s->held.n, out, err);
}
