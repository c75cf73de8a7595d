/* file.c: whole files in and out, and the folders qw keeps things in (the second half of file.h).
 *
 * Any thread, any number of processes: a file is written under a name of its own and renamed, so a
 * reader sees the old content or the new, never a part, also after a power loss.
 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/new_file.h"

/* ---- writing ---------------------------------------------------------------------------------- */

qw_status qw_sync_dir(const char *path, qw_err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return qw_fail_errno(err, "%s: the folder cannot be opened", path);
    int rc = fsync(fd), why = errno;
    close(fd);
    if (rc == 0 || why == EINVAL || why == ENOTSUP) return QW_OK; /* no such thing on some file systems */
    errno = why;
    return qw_fail_errno(err, "%s: the folder cannot be written to disk", path);
}

qw_status qw_file_write(const char *path, const void *data, size_t n, qw_err *err)
{
    qw_new_file f;
    qw_status status;
    QW_TRY(qw_new_file_open(&f, path, err));
    QW_TRY_GOTO(qw_new_file_write(&f, data, n, err));
    status = qw_new_file_publish(&f, true, err);
fail:
    qw_new_file_close(&f);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------------- */

/* Reads to the end of fd; one byte above the limit is asked for to see that there is more. */
static qw_status read_to_end(int fd, const char *path, size_t bytes_max, char **data, size_t *n,
                             qw_err *err)
{
    size_t cap = 0, used = 0;
    struct stat st;
    char *buf = NULL;
    qw_status status = QW_OK;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && (uintmax_t)st.st_size < bytes_max)
        cap = (size_t)st.st_size; /* a guess: the file may change while it is read */
    cap += 4096;
    QW_TRY(qw_alloc(&buf, cap, 1, path, err));
    for (;;) {
        if (cap - used < 2) {
            size_t more;
            if (qw_mul_overflows(cap, 2, &more)) more = cap;
            QW_TRY_GOTO(qw_grow(&buf, cap, more, 1, path, err));
            cap = more;
        }
        ssize_t got = read(fd, buf + used, cap - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            status = qw_fail_errno(err, "%s: cannot be read", path);
            goto fail;
        }
        if (got == 0) break;
        used += (size_t)got;
        if (used > bytes_max) {
            status = qw_fail(err, QW_E_LIMIT, "%s: more than %zu bytes", path, bytes_max);
            goto fail;
        }
    }
    buf[used] = '\0';
    *data = buf;
    *n = used;
    return QW_OK;
fail:
    free(buf);
    return status;
}

qw_status qw_file_read(const char *path, size_t bytes_max, char **data, size_t *n, qw_err *err)
{
    if (strcmp(path, "-") == 0)
        return read_to_end(STDIN_FILENO, "standard input", bytes_max, data, n, err);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return qw_fail_errno(err, "%s: cannot be opened", path);
    qw_status status = read_to_end(fd, path, bytes_max, data, n, err);
    close(fd);
    return status;
}

/* ---- folders ---------------------------------------------------------------------------------- */

static int make_one(const char *path)
{
    struct stat st;
    if (mkdir(path, 0700) == 0) return 0;
    int why = errno;
    if (stat(path, &st) == 0) { /* somebody made it first, or it is a folder we may not write */
        if (S_ISDIR(st.st_mode)) return 0;
        why = ENOTDIR;
    }
    errno = why;
    return -1;
}

qw_status qw_make_dirs(const char *path, qw_err *err)
{
    char part[PATH_MAX];
    size_t n = strlen(path);
    if (n == 0) return qw_fail(err, QW_E_ARG, "the name of a folder is empty");
    if (n >= sizeof part) return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (make_one(part) != 0) return qw_fail_errno(err, "%s: the folder cannot be made", part);
    }
    return QW_OK;
}

/* An environment variable, NULL when unset or empty. */
static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v != NULL && *v != '\0' ? v : NULL;
}

static qw_status join(char *out, size_t cap, const char *a, const char *b, qw_err *err)
{
    int n = snprintf(out, cap, "%s%s", a, b);
    if (n < 0 || (size_t)n >= cap) return qw_fail(err, QW_E_LIMIT, "%s%s: the path is too long", a, b);
    return QW_OK;
}

/* $QW_HOME + own, else $xdg/qw, else $HOME + fallback. The XDG rules ignore a relative folder. */
static qw_status find_dir(char *out, size_t cap, const char *own, const char *xdg, const char *fallback,
                          qw_err *err)
{
    const char *v = env("QW_HOME");
    if (v != NULL) return join(out, cap, v, own, err);
    v = env(xdg);
    if (v != NULL && v[0] == '/') return join(out, cap, v, "/qw", err);
    v = env("HOME");
    if (v != NULL) return join(out, cap, v, fallback, err);
    return qw_fail(err, QW_E_NOT_FOUND,
                   "neither QW_HOME nor HOME is set: set QW_HOME to the folder qw shall use");
}

qw_status qw_home_dir(char *out, size_t cap, qw_err *err)
{
    return find_dir(out, cap, "", "XDG_DATA_HOME", "/.local/share/qw", err);
}

qw_status qw_cache_dir(char *out, size_t cap, qw_err *err)
{
    return find_dir(out, cap, "/cache", "XDG_CACHE_HOME", "/.cache/qw", err);
}

qw_status qw_packed_dir(char *out, size_t cap, qw_err *err)
{
    QW_TRY(qw_cache_dir(out, cap, err));
    size_t n = strlen(out);
    if (snprintf(out + n, cap - n, "/packed") < (int)(cap - n)) return QW_OK;
    return qw_fail(err, QW_E_LIMIT, "%.200s: the path is too long", out);
}
