/* map.c: read-only private mappings of whole files (the first half of file.h).
 *
 * Open and close from one thread, read from any. The descriptor stays open for the life of the map, so
 * that "is the file now smaller?" asks about the very file that was mapped, whatever its name became.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/map_guard.h"
#include "base/mem.h"

struct qw_map {
    int fd;         /* owns */
    uint8_t *data;  /* [bytes], owns the mapping */
    size_t bytes;   /* the file's size when it was mapped: the checked value is the mapped value */
    struct stat st; /* at that moment */
    int slot;       /* in the SIGBUS guard; -1: none yet */
};

static const char *kind_of(mode_t mode)
{
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    if (S_ISSOCK(mode)) return "a socket";
    return "something else";
}

qw_status qw_map_open(const char *path, qw_map **out, qw_err *err)
{
    qw_map *m = NULL;
    qw_status status = QW_OK;
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "a file mapping", err));
    m->slot = -1;
    /* O_NONBLOCK: opening a named pipe must not wait for a writer. */
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (m->fd < 0 || fstat(m->fd, &m->st) != 0) {
        status = qw_fail_errno(err, "%s: cannot be opened", path);
        goto fail;
    }
    if (!S_ISREG(m->st.st_mode)) {
        status = qw_fail(err, QW_E_FORMAT, "%s: is %s, want a regular file", path, kind_of(m->st.st_mode));
        goto fail;
    }
    if (m->st.st_size <= 0) {
        status = qw_fail(err, QW_E_FORMAT, "%s: the file is empty", path);
        goto fail;
    }
    if ((uintmax_t)m->st.st_size > PTRDIFF_MAX / 2) {
        status = qw_fail(err, QW_E_LIMIT, "%s: %jd bytes are more than this machine can map", path,
                         (intmax_t)m->st.st_size);
        goto fail;
    }
    size_t bytes = (size_t)m->st.st_size;
    void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, m->fd, 0);
    if (p == MAP_FAILED) {
        int why = errno;
        status = qw_fail_errno(err, "%s: %zu bytes cannot be mapped", path, bytes);
        if (why == ENOENT && err != NULL) err->status = status = QW_E_IO;
        goto fail;
    }
    m->data = p;
    m->bytes = bytes;
    QW_TRY_GOTO(qw_map_guard_add(p, bytes, &m->slot, err));
    *out = m;
    return QW_OK;
fail:
    qw_map_close(m);
    return status;
}

void qw_map_close(qw_map *m)
{
    if (m == NULL) return;
    if (m->slot >= 0) qw_map_guard_remove(m->slot);
    if (m->data != NULL) munmap(m->data, m->bytes);
    if (m->fd >= 0) close(m->fd);
    free(m);
}

const uint8_t *qw_map_data(const qw_map *m)
{
    return m->data;
}

size_t qw_map_bytes(const qw_map *m)
{
    return m->bytes;
}

bool qw_map_failed(const qw_map *m)
{
    if (qw_map_guard_failed(m->slot)) return true;
    struct stat now;
    return fstat(m->fd, &now) != 0 || now.st_size < m->st.st_size;
}

void qw_map_identity(const qw_map *m, char out[96])
{
    int64_t mtime_ns = (int64_t)m->st.st_mtim.tv_sec * 1000000000 + m->st.st_mtim.tv_nsec;
    snprintf(out, 96, "%ju-%ju-%jd-%" PRId64, (uintmax_t)m->st.st_dev, (uintmax_t)m->st.st_ino,
             (intmax_t)m->st.st_size, mtime_ns);
}

void qw_map_hold(const qw_map *m)
{
    int rc;
    do rc = flock(m->fd, LOCK_SH);
    while (rc != 0 && errno == EINTR);
}

void qw_map_will_need(const qw_map *m, size_t offset, size_t bytes)
{
    if (offset >= m->bytes) return;
    if (bytes > m->bytes - offset) bytes = m->bytes - offset;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), from = offset & ~(page - 1);
    bytes += offset - from;
    madvise(m->data + from, bytes, MADV_HUGEPAGE); /* reads ahead, and maps, 2 MiB at a time where it can */
    madvise(m->data + from, bytes, MADV_WILLNEED);
}

void qw_map_drop(const qw_map *m, const void *begin, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)m->data, from = (uintptr_t)begin;
    if (from < data || from - data >= m->bytes) return;
    size_t room = m->bytes - (size_t)(from - data), head = (size_t)(from % page);
    madvise((void *)(from - head), (bytes < room ? bytes : room) + head, MADV_DONTNEED); /* the map begins on a page */
}
