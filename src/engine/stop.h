/* stop.h: stop strings over a stream of text.
 *
 * Text goes in as it is decoded; what can no longer be part of a stop string comes out. Engine thread only.
 */
#ifndef QW_ENGINE_STOP_H
#define QW_ENGINE_STOP_H

#include <stdbool.h>

#include "base/buf.h"

typedef struct qw_stop {
    const char *const *strings; /* borrows; each 1..QW_STOP_BYTES_MAX bytes */
    size_t n;
    qw_buf held;                /* text not yet given out */
    const char *hit;            /* the string that was found, or NULL */
} qw_stop;

void qw_stop_begin(qw_stop *s, const char *const *strings, size_t n);
void qw_stop_free(qw_stop *s);
/* Adds text and appends to `out` what is safe to show. True when a stop string was found: `hit` is set, the
 * text before it is in out, and nothing more may be added. The match that ends first wins, of those the longest:
 * how the text was cut into pieces makes no difference. */
qw_status qw_stop_push(qw_stop *s, const char *text, size_t n, qw_buf *out, bool *found, qw_err *err) QW_MUST_CHECK;
/* The stream ended otherwise: gives out what was held. */
qw_status qw_stop_flush(qw_stop *s, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
