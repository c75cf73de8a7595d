/* buf.h: a growable byte buffer with a mandatory maximum.
 *
 * Owns its bytes; keeps a NUL after the last one so that text can be handed to C functions. Reaching
 * `bytes_max` is QW_E_LIMIT with the buffer's name, never a truncation. One thread at a time.
 */
#ifndef QW_BASE_BUF_H
#define QW_BASE_BUF_H

#include <stddef.h>

#include "base/status.h"

typedef struct qw_buf {
    char *data;       /* owns; NUL-terminated once anything was added, else NULL */
    size_t n;         /* bytes used */
    size_t cap;       /* bytes allocated */
    size_t bytes_max; /* hard limit */
    const char *name; /* borrows (static): for messages */
} qw_buf;

void qw_buf_init(qw_buf *b, size_t bytes_max, const char *name);
void qw_buf_free(qw_buf *b);  /* frees; b can be used again */
void qw_buf_clear(qw_buf *b); /* keeps the memory */
qw_status qw_buf_add(qw_buf *b, const void *data, size_t n, qw_err *err) QW_MUST_CHECK;
qw_status qw_buf_add_str(qw_buf *b, const char *s, qw_err *err) QW_MUST_CHECK;
qw_status qw_buf_printf(qw_buf *b, qw_err *err, const char *fmt, ...) QW_PRINTF(3, 4) QW_MUST_CHECK;
/* The text so far ("" when empty); valid until the next call on b. */
const char *qw_buf_str(const qw_buf *b);

#endif
