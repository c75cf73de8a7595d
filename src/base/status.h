/* status.h: errors as values on one rail.
 *
 * qw_fail() fills the error where the cause is known; QW_TRY forwards it unchanged. A function that
 * owns something while it calls others uses one `fail:` label. `err` may be NULL everywhere: then
 * only the status travels.
 */
#ifndef QW_BASE_STATUS_H
#define QW_BASE_STATUS_H

#include "qw_status.h"

#define QW_MUST_CHECK __attribute__((warn_unused_result))
#define QW_PRINTF(a, b) __attribute__((format(printf, a, b)))

/* Writes the message (printf style, cut at QW_ERR_TEXT_MAX, newlines and control bytes replaced) and
 * returns `status`, so that `return qw_fail(err, QW_E_FORMAT, ...)` is the whole idiom. */
qw_status qw_fail(qw_err *err, qw_status status, const char *fmt, ...) QW_PRINTF(3, 4);

/* As qw_fail, with ": <strerror(errno)>" appended; status QW_E_IO, or QW_E_NOT_FOUND for ENOENT. */
qw_status qw_fail_errno(qw_err *err, const char *fmt, ...) QW_PRINTF(2, 3);

/* Puts "context: " in front of a message already there and returns err->status. */
qw_status qw_err_prefix(qw_err *err, const char *fmt, ...) QW_PRINTF(2, 3);

/* A short fixed name of a status ("not found"), for logs. */
const char *qw_status_name(qw_status status);

#define QW_TRY(call)                                                                               \
    do {                                                                                           \
        qw_status qw_try_status_ = (call);                                                         \
        if (qw_try_status_ != QW_OK) return qw_try_status_;                                        \
    } while (0)

/* Same, but jumps to the function's `fail:` label with `status` (a qw_status variable) set. */
#define QW_TRY_GOTO(call)                                                                          \
    do {                                                                                           \
        status = (call);                                                                           \
        if (status != QW_OK) goto fail;                                                            \
    } while (0)

/* States what we believe; stays on in release. Bad input is never an assert. */
#define QW_ASSERT(cond)                                                                            \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0)) qw_assert_failed(#cond, __FILE__, __LINE__);             \
    } while (0)
_Noreturn void qw_assert_failed(const char *cond, const char *file, int line);

#endif
