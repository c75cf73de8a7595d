/* history.h: the file with what was typed in earlier chats.
 *
 * One entry a line, newlines in it written \n and backslashes \\. Entries are appended one write at a time, so
 * that several chats can share the file; it is shortened when it is opened. Mode 0600. One thread at a time.
 */
#ifndef QW_CLI_HISTORY_H
#define QW_CLI_HISTORY_H

#include <stddef.h>

#include "base/status.h"

enum {
    QW_HISTORY_ENTRIES_MAX = 1000,
    QW_HISTORY_ENTRY_BYTES_MAX = 64 << 10, /* a longer entry is not written */
    QW_HISTORY_FILE_BYTES_MAX = 64 << 20
};

typedef struct qw_history qw_history;

typedef qw_status qw_history_fn(void *user, const char *text, size_t n, qw_err *err);

/* Gives the newest entries to `each`, oldest first. The folder is made when it is missing. */
qw_status qw_history_open(const char *path, qw_history_fn *each, void *user, qw_history **out,
                          qw_err *err) QW_MUST_CHECK;
qw_status qw_history_append(qw_history *history, const char *text, qw_err *err) QW_MUST_CHECK;
void qw_history_close(qw_history *history);

#endif
