/* buf.c: a growable byte buffer with a mandatory maximum.
 *
 * One thread at a time. Capacity doubles, so that n bytes added in any pieces cost O(n); a failed
 * addition leaves the content as it was.
 */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { CAP_MIN = 64 };

void qw_buf_init(qw_buf *b, size_t bytes_max, const char *name)
{
    *b = (qw_buf){.bytes_max = bytes_max, .name = name};
}

void qw_buf_free(qw_buf *b)
{
    free(b->data);
    b->data = NULL;
    b->n = b->cap = 0;
}

void qw_buf_clear(qw_buf *b)
{
    b->n = 0;
    if (b->data != NULL) b->data[0] = '\0';
}

/* Room for n more bytes and the NUL. */
static qw_status reserve(qw_buf *b, size_t n, qw_err *err)
{
    size_t used, need;
    if (qw_add_overflows(b->n, n, &used) || used > b->bytes_max)
        return qw_fail(err, QW_E_LIMIT, "%s: more than %zu bytes", b->name, b->bytes_max);
    if (qw_add_overflows(used, 1, &need)) return qw_fail(err, QW_E_MEMORY, "%s: too large", b->name);
    if (need <= b->cap) return QW_OK;
    size_t cap = b->cap > 0 ? b->cap : CAP_MIN;
    while (cap < need)
        if (qw_mul_overflows(cap, 2, &cap)) cap = need;
    QW_TRY(qw_grow(&b->data, b->cap, cap, 1, b->name, err));
    b->cap = cap;
    return QW_OK;
}

qw_status qw_buf_add(qw_buf *b, const void *data, size_t n, qw_err *err)
{
    QW_TRY(reserve(b, n, err));
    if (n > 0) memcpy(b->data + b->n, data, n);
    b->n += n;
    b->data[b->n] = '\0';
    return QW_OK;
}

qw_status qw_buf_add_str(qw_buf *b, const char *s, qw_err *err)
{
    return qw_buf_add(b, s, strlen(s), err);
}

qw_status qw_buf_printf(qw_buf *b, qw_err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) return qw_fail(err, QW_E_INTERNAL, "%s: a text could not be formatted", b->name);
    QW_TRY(reserve(b, (size_t)n, err));
    va_start(ap, fmt);
    vsnprintf(b->data + b->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->n += (size_t)n;
    return QW_OK;
}

const char *qw_buf_str(const qw_buf *b)
{
    return b->data != NULL ? b->data : "";
}
