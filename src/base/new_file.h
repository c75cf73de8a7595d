/* new_file.h: a file that is made piece by piece and appears under its name only when it is whole.
 *
 * Until it is published it has no name, where the file system can do that (O_TMPFILE): a process that is killed leaves
 * nothing behind. Elsewhere it has a temporary name beside its own. One thread at a time.
 */
#ifndef QW_BASE_NEW_FILE_H
#define QW_BASE_NEW_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct qw_new_file {
    int fd;              /* owns; -1: none */
    uint64_t n_bytes;    /* written so far */
    char path[PATH_MAX]; /* the name it will have */
    char temp[PATH_MAX]; /* the name it has now; "" when it has none */
} qw_new_file;

/* Creates it in the folder of path. Whoever opens it calls qw_new_file_close, also after a failure. */
qw_status qw_new_file_open(qw_new_file *f, const char *path, qw_err *err) QW_MUST_CHECK;
/* Takes room on the disk, so that a full one is noticed now. Nothing happens where the file system cannot do that. */
qw_status qw_new_file_reserve(qw_new_file *f, uint64_t bytes, qw_err *err) QW_MUST_CHECK;
/* Adds n bytes at the end and has the disk begin with them. */
qw_status qw_new_file_write(qw_new_file *f, const void *data, size_t n, qw_err *err) QW_MUST_CHECK;
/* Writes everything to disk and gives the file its name. replace: in place of a file that has it, whose permissions it
 * gets; otherwise QW_E_ARG when the name is taken, also when another process takes it in this moment. */
qw_status qw_new_file_publish(qw_new_file *f, bool replace, qw_err *err) QW_MUST_CHECK;
/* Only gives the file its name, likewise, and leaves to the system when it writes: for what is checked when it is read and
 * can be made again. After a power loss the name may be there with a part of the bytes. */
qw_status qw_new_file_name(qw_new_file *f, bool replace, qw_err *err) QW_MUST_CHECK;
/* Removes what was not published. */
void qw_new_file_close(qw_new_file *f);

#endif
