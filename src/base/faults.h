/* faults.h: collects what is wrong with an input, so that a user sees all of it in one message.
 *
 * Holds no heap memory. What no longer fits in a message is counted, not shown. One thread.
 */
#ifndef QW_BASE_FAULTS_H
#define QW_BASE_FAULTS_H

#include <stddef.h>

#include "base/status.h"

typedef struct qw_faults {
    size_t n;       /* faults added */
    size_t n_shown; /* of them in text */
    size_t n_bytes;
    char text[QW_ERR_TEXT_MAX - 256]; /* "a; b; c" */
} qw_faults;

void qw_faults_add(qw_faults *f, const char *fmt, ...) QW_PRINTF(2, 3);
/* QW_OK when there are none, else `status` with "what: N faults: a; b; c". */
qw_status qw_faults_report(const qw_faults *f, qw_status status, const char *what, qw_err *err) QW_MUST_CHECK;

#endif
