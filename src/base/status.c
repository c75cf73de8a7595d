/* status.c: filling in qw_err.
 *
 * Any thread; touches nothing but the qw_err it is given. Messages may quote bytes of untrusted files,
 * so control characters (C0, DEL and C1) and bytes that are not UTF-8 never reach a terminal: they
 * become '?', line breaks and tabs become spaces, and a message cut short ends at a whole character.
 */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* Copies text into err->text as described above. */
static void set_text(qw_err *err, const char *text)
{
    size_t n = strlen(text), in = 0, out = 0;
    while (in < n) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(text + in, n - in, &cp);
        size_t step = len > 0 ? (size_t)len : 1;
        if (out + step >= QW_ERR_TEXT_MAX) break;
        if (len == 0 || cp == 0x7f || (cp < 0x20 && cp != '\n' && cp != '\r' && cp != '\t') ||
            (cp >= 0x80 && cp < 0xa0)) {
            err->text[out++] = '?';
        } else if (cp < 0x20) {
            err->text[out++] = ' ';
        } else {
            memcpy(err->text + out, text + in, step);
            out += step;
        }
        in += step;
    }
    while (out > 0 && err->text[out - 1] == ' ') out--;
    err->text[out] = '\0';
}

qw_status qw_fail(qw_err *err, qw_status status, const char *fmt, ...)
{
    if (err == NULL) return status;
    char text[QW_ERR_TEXT_MAX]; /* not err->text itself: an argument may point there */
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof text, fmt, ap) < 0) text[0] = '\0';
    va_end(ap);
    err->status = status;
    set_text(err, text);
    return status;
}

qw_status qw_fail_errno(qw_err *err, const char *fmt, ...)
{
    int saved = errno;
    qw_status status = saved == ENOENT ? QW_E_NOT_FOUND : QW_E_IO;
    if (err == NULL) return status;
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0) n = 0;
    size_t at = (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    char buf[128];
    const char *why = strerror_r(saved, buf, sizeof buf);
    snprintf(text + at, sizeof text - at, ": %s", why);
    err->status = status;
    set_text(err, text);
    return status;
}

qw_status qw_err_prefix(qw_err *err, const char *fmt, ...)
{
    if (err == NULL) return QW_E_INTERNAL; /* no message to extend; callers forward their own status */
    char text[2 * QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, QW_ERR_TEXT_MAX, fmt, ap);
    va_end(ap);
    if (n < 0) n = 0;
    size_t at = (size_t)n < QW_ERR_TEXT_MAX ? (size_t)n : QW_ERR_TEXT_MAX - 1;
    snprintf(text + at, sizeof text - at, ": %s", err->text);
    set_text(err, text);
    return err->status;
}

const char *qw_status_name(qw_status status)
{
    static const char *const names[] = {
        [QW_OK] = "ok",
        [QW_E_ARG] = "bad argument",
        [QW_E_NOT_FOUND] = "not found",
        [QW_E_FORMAT] = "bad format",
        [QW_E_UNSUPPORTED] = "not supported",
        [QW_E_LIMIT] = "limit reached",
        [QW_E_MEMORY] = "out of memory",
        [QW_E_IO] = "input/output error",
        [QW_E_NETWORK] = "network error",
        [QW_E_CORRUPT] = "corrupt data",
        [QW_E_CANCELLED] = "cancelled",
        [QW_E_BUSY] = "busy",
        [QW_E_INTERNAL] = "internal error",
    };
    size_t i = (size_t)status;
    return i < sizeof names / sizeof names[0] ? names[i] : "unknown";
}

_Noreturn void qw_assert_failed(const char *cond, const char *file, int line)
{
    /* A defect of qw itself: the one place that prints, because nobody is left to hand a value to. */
    fprintf(stderr, "qw: internal error: %s does not hold (%s:%d)\n", cond, file, line);
    abort();
}
