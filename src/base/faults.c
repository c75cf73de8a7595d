/* faults.c: see faults.h. */
#include "base/faults.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void qw_faults_add(qw_faults *f, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->n++;
    size_t n = strlen(text), n_sep = f->n_bytes ? 2 : 0;
    if (f->n_shown + 1 < f->n || f->n_bytes + n_sep + n >= sizeof f->text) return;
    memcpy(f->text + f->n_bytes, "; ", n_sep);
    memcpy(f->text + f->n_bytes + n_sep, text, n + 1);
    f->n_bytes += n_sep + n;
    f->n_shown++;
}

qw_status qw_faults_report(const qw_faults *f, qw_status status, const char *what, qw_err *err)
{
    if (f->n == 0) return QW_OK;
    if (f->n == 1) return qw_fail(err, status, "%s: %s", what, f->text);
    if (f->n_shown == f->n) return qw_fail(err, status, "%s: %zu faults: %s", what, f->n, f->text);
    return qw_fail(err, status, "%s: %zu faults: %s; and %zu more", what, f->n, f->text, f->n - f->n_shown);
}
