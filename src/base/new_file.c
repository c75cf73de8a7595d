/* new_file.c: see new_file.h. The name comes last: by link(2), which never replaces anything, or by rename(2). */
#include "base/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

enum { WRITE_MAX = 1 << 30, ATTEMPTS = 16 };

/* Folder part of a path, "." when there is none. */
static qw_status dir_of(const char *path, char out[PATH_MAX], qw_err *err)
{
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    if (strlen(path) >= PATH_MAX) return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", path);
    if (n > 0) memcpy(out, path, n);
    if (n == 0) out[n++] = '.';
    out[n] = '\0';
    return QW_OK;
}

/* "PATH.tmp-PID-RANDOM"; the random part keeps threads apart too. */
static int temp_name(const char *path, int attempt, char out[PATH_MAX])
{
    uint32_t random = 0;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) random = (uint32_t)attempt;
    int n = snprintf(out, PATH_MAX, "%s.tmp-%ld-%08x", path, (long)getpid(), random);
    if (n > 0 && n < PATH_MAX) return 0;
    errno = ENAMETOOLONG;
    return -1;
}

static int open_named(qw_new_file *f)
{
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if (temp_name(f->path, attempt, f->temp) != 0) break;
        int fd = open(f->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) return fd;
        if (errno != EEXIST) break;
    }
    f->temp[0] = '\0'; /* not ours to remove */
    return -1;
}

qw_status qw_new_file_open(qw_new_file *f, const char *path, qw_err *err)
{
    char dir[PATH_MAX];
    *f = (qw_new_file){.fd = -1};
    QW_TRY(dir_of(path, dir, err));
    snprintf(f->path, sizeof f->path, "%s", path);
    if (access("/proc/self/fd", X_OK) == 0) /* else it could not get its name */
        f->fd = open(dir, O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
    if (f->fd < 0) f->fd = open_named(f);
    if (f->fd < 0) return qw_fail_errno(err, "%s: cannot be written", path);
    return QW_OK;
}

qw_status qw_new_file_reserve(qw_new_file *f, uint64_t bytes, qw_err *err)
{
    if (bytes == 0 || bytes > INT64_MAX) return QW_OK;
    /* Not posix_fallocate: that writes every block itself where the file system has no such thing. */
    if (fallocate(f->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0) return QW_OK;
    if (errno != ENOSPC && errno != EFBIG && errno != EDQUOT) return QW_OK;
    return qw_fail_errno(err, "%s: cannot reserve %llu bytes", f->path, (unsigned long long)bytes);
}

qw_status qw_new_file_write(qw_new_file *f, const void *data, size_t n, qw_err *err)
{
    const char *p = data;
    uint64_t from = f->n_bytes;
    while (n > 0) {
        ssize_t got = write(f->fd, p, n < WRITE_MAX ? n : WRITE_MAX);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return qw_fail_errno(err, "%s: cannot be written", f->path);
        p += got;
        n -= (size_t)got;
        f->n_bytes += (uint64_t)got;
    }
    /* A hint: the sync at the end has little left to wait for. */
    sync_file_range(f->fd, (off_t)from, (off_t)(f->n_bytes - from), SYNC_FILE_RANGE_WRITE);
    return QW_OK;
}

/* A name for a file that has none. */
static int link_unnamed(const qw_new_file *f, const char *name)
{
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", f->fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

/* rename(2) replaces, but wants a name to begin with. */
static int give_temp_name(qw_new_file *f)
{
    for (int attempt = 0; attempt < ATTEMPTS && f->temp[0] == '\0'; attempt++) {
        char temp[PATH_MAX];
        if (temp_name(f->path, attempt, temp) != 0) return -1;
        if (link_unnamed(f, temp) == 0) memcpy(f->temp, temp, sizeof temp);
        else if (errno != EEXIST) return -1;
    }
    return f->temp[0] != '\0' ? 0 : -1;
}

static int name_new(qw_new_file *f)
{
    if (f->temp[0] == '\0') return link_unnamed(f, f->path);
    return link(f->temp, f->path); /* close removes the other name */
}

static int name_over(qw_new_file *f)
{
    struct stat old;
    if (stat(f->path, &old) == 0 && S_ISREG(old.st_mode)) fchmod(f->fd, old.st_mode & 0777);
    if (give_temp_name(f) != 0 || rename(f->temp, f->path) != 0) return -1;
    f->temp[0] = '\0';
    return 0;
}

qw_status qw_new_file_name(qw_new_file *f, bool replace, qw_err *err)
{
    if ((replace ? name_over(f) : name_new(f)) == 0) return QW_OK;
    if (errno == EEXIST && !replace) return qw_fail(err, QW_E_ARG, "%s: exists already", f->path);
    return qw_fail_errno(err, "%s: cannot be written", f->path);
}

qw_status qw_new_file_publish(qw_new_file *f, bool replace, qw_err *err)
{
    char dir[PATH_MAX];
    QW_TRY(dir_of(f->path, dir, err));
    /* What was reserved and not used goes back. */
    if (ftruncate(f->fd, (off_t)f->n_bytes) != 0 || fsync(f->fd) != 0)
        return qw_fail_errno(err, "%s: cannot be written", f->path);
    QW_TRY(qw_new_file_name(f, replace, err));
    return qw_sync_dir(dir, err);
}

void qw_new_file_close(qw_new_file *f)
{
    if (f->temp[0] != '\0') unlink(f->temp);
    if (f->fd >= 0) close(f->fd);
    f->fd = -1;
    f->temp[0] = '\0';
}
