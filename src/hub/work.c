/* work.c: progress, checksums and moving bytes for the hub.
 *
 * Owner: the thread that runs the pull or verification. Contract: see work.h. Every loop here ticks, so that
 * Ctrl-C is noticed within one block of bytes.
 */
#include "hub/work.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum { BLOCK_BYTES = 1 << 20, TELL_US = 100000, SLEEP_STEP_MS = 100 };

void qw_hub_size_text(uint64_t bytes, char out[32])
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
    if (bytes < 1000) {
        snprintf(out, 32, "%u bytes", (unsigned)bytes);
        return;
    }
    double x = (double)bytes / 1000;
    size_t unit = 0;
    while (x >= 999.95 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        x /= 1000;
        unit++;
    }
    snprintf(out, 32, "%.*f %s", unit < 2 ? (int)unit : 2, x, units[unit]);
}

void qw_hub_say(const qw_hub_watch *watch, const char *fmt, ...)
{
    if (!watch || !watch->line) return;
    char text[QW_ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    watch->line(watch->user, text);
}

void qw_hub_meter_start(qw_hub_meter *m, qw_hub_stage stage, uint64_t total_bytes)
{
    m->now.stage = stage;
    m->now.done_bytes = m->now.resumed_bytes = 0;
    m->now.total_bytes = total_bytes;
    m->told_us = 0;
}

static bool tell(qw_hub_meter *m, uint64_t done_bytes, bool now)
{
    int64_t clock_us = qw_clock_us();
    m->now.done_bytes = done_bytes;
    if (!m->watch || !m->watch->progress) return !m->stopped;
    if (!now && m->told_us != 0 && clock_us - m->told_us < TELL_US) return !m->stopped;
    m->told_us = clock_us;
    if (!m->watch->progress(m->watch->user, &m->now)) m->stopped = true;
    return !m->stopped;
}

bool qw_hub_meter_tick(qw_hub_meter *m, uint64_t done_bytes)
{
    return tell(m, done_bytes, false);
}

void qw_hub_meter_finish(qw_hub_meter *m, uint64_t done_bytes)
{
    tell(m, done_bytes, true);
}

qw_status qw_hub_cancelled(qw_err *err)
{
    return qw_fail(err, QW_E_CANCELLED, "stopped");
}

bool qw_hub_meter_sleep(qw_hub_meter *m, int ms)
{
    for (int left = ms; left > 0; left -= SLEEP_STEP_MS) {
        if (!qw_hub_meter_tick(m, m->now.done_bytes)) return false;
        poll(NULL, 0, left < SLEEP_STEP_MS ? left : SLEEP_STEP_MS);
    }
    return qw_hub_meter_tick(m, m->now.done_bytes);
}

static void to_hex(const unsigned char *bytes, unsigned n, char *hex)
{
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < n; i++) {
        hex[2 * i] = digits[bytes[i] >> 4];
        hex[2 * i + 1] = digits[bytes[i] & 15];
    }
    hex[2 * n] = 0;
}

qw_status qw_hub_sha256_text(const char *text, char hex[65], qw_err *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (!EVP_Digest(text, strlen(text), digest, &n, EVP_sha256(), NULL) || n != 32)
        return qw_fail(err, QW_E_INTERNAL, "SHA-256 is not available in the OpenSSL library");
    to_hex(digest, n, hex);
    return QW_OK;
}

/* Opens a regular file for reading; a FIFO or device never blocks or passes. */
static qw_status open_regular(const char *path, int *fd, struct stat *st, qw_err *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return qw_fail_errno(err, "%.400s", path);
    if (fstat(*fd, st) != 0) {
        qw_status status = qw_fail_errno(err, "%.400s", path);
        close(*fd);
        return status;
    }
    if (S_ISREG(st->st_mode)) return QW_OK;
    close(*fd);
    return qw_fail(err, QW_E_FORMAT, "%.400s: not a regular file", path);
}

static qw_status digest_fd(int fd, const char *path, EVP_MD_CTX *ctx, void *block, qw_hub_meter *m,
                           uint64_t *bytes, qw_err *err)
{
    *bytes = 0;
    for (;;) {
        ssize_t n = read(fd, block, BLOCK_BYTES);
        if (n < 0 && errno == EINTR) n = 0;
        else if (n < 0) return qw_fail_errno(err, "%.400s", path);
        else if (n == 0) return QW_OK;
        if (!EVP_DigestUpdate(ctx, block, (size_t)n)) return qw_fail(err, QW_E_INTERNAL, "SHA-256 failed");
        *bytes += (uint64_t)n;
        if (!qw_hub_meter_tick(m, *bytes)) return qw_hub_cancelled(err);
    }
}

qw_status qw_hub_sha256_file(const char *path, qw_hub_meter *m, char hex[65], uint64_t *bytes, qw_err *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    struct stat st;
    int fd = -1;
    char *block = NULL;
    EVP_MD_CTX *ctx = NULL;
    qw_status status;

    QW_TRY(open_regular(path, &fd, &st, err));
    qw_hub_meter_start(m, QW_HUB_CHECKSUM, (uint64_t)st.st_size);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    QW_TRY_GOTO(qw_alloc(&block, BLOCK_BYTES, 1, "a block for checksums", err));
    ctx = EVP_MD_CTX_new();
    if (!ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)) {
        status = qw_fail(err, QW_E_INTERNAL, "SHA-256 is not available in the OpenSSL library");
        goto fail;
    }
    QW_TRY_GOTO(digest_fd(fd, path, ctx, block, m, bytes, err));
    if (!EVP_DigestFinal_ex(ctx, digest, &n) || n != 32) {
        status = qw_fail(err, QW_E_INTERNAL, "SHA-256 failed");
        goto fail;
    }
    to_hex(digest, n, hex);
    qw_hub_meter_finish(m, *bytes);
fail:
    EVP_MD_CTX_free(ctx);
    free(block);
    close(fd);
    return status;
}

qw_status qw_hub_write(int fd, const void *data, size_t n, const char *path, qw_err *err)
{
    const char *at = data;
    while (n > 0) {
        ssize_t done = write(fd, at, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && (errno == ENOSPC || errno == EDQUOT))
            return qw_fail(
                err, QW_E_LIMIT,
                "%.300s: the disk is full; free some space (what came is kept) or set QW_HOME to a folder on "
                "another disk",
                path);
        if (done < 0) return qw_fail_errno(err, "%.400s", path);
        at += done;
        n -= (size_t)done;
    }
    return QW_OK;
}

qw_status qw_hub_space(const char *dir, uint64_t bytes, qw_err *err)
{
    struct statvfs fs;
    uint64_t free_bytes, need_bytes;
    char need[32], have[32];
    if (statvfs(dir, &fs) != 0) return qw_fail_errno(err, "%.400s", dir);
    if (__builtin_mul_overflow((uint64_t)fs.f_bavail, (uint64_t)fs.f_frsize, &free_bytes))
        free_bytes = UINT64_MAX;
    if (__builtin_add_overflow(bytes, bytes / 20, &need_bytes)) need_bytes = UINT64_MAX;
    if (need_bytes <= free_bytes) return QW_OK;
    qw_hub_size_text(need_bytes, need);
    qw_hub_size_text(free_bytes, have);
    return qw_fail(err, QW_E_LIMIT,
                   "not enough space: %s are needed, %.300s has %s free; free some or set QW_HOME to a "
                   "folder on another "
                   "disk",
                   need, dir, have);
}

static qw_status copy_bytes(int in, int out, const char *from, const char *to, qw_hub_meter *m, qw_err *err)
{
    char *block = NULL;
    uint64_t done = 0;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&block, BLOCK_BYTES, 1, "a block for copying", err));
    for (;;) {
        ssize_t n = read(in, block, BLOCK_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = qw_fail_errno(err, "%.400s", from);
            goto fail;
        }
        if (n == 0) break;
        QW_TRY_GOTO(qw_hub_write(out, block, (size_t)n, to, err));
        done += (uint64_t)n;
        if (!qw_hub_meter_tick(m, done)) {
            status = qw_hub_cancelled(err);
            goto fail;
        }
    }
    qw_hub_meter_finish(m, done);
fail:
    free(block);
    return status;
}

/* 0 when `to` now shares the content of the open file `in`, copy on write. */
static int reflink(int in, const char *to)
{
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out < 0) return -1;
    int rc = ioctl(out, FICLONE, in);
    close(out);
    if (rc != 0) unlink(to);
    return rc;
}

/* The open file is linked, not its name: a symbolic link or a swap of the name changes nothing. */
static int hard_link(int in, const char *to)
{
    char proc[64];
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", in);
    return linkat(AT_FDCWD, proc, AT_FDCWD, to, AT_SYMLINK_FOLLOW);
}

static qw_status copy(int in, uint64_t bytes, const char *from, const char *to, qw_hub_meter *m, qw_err *err)
{
    char dir[QW_HUB_PATH_MAX];
    const char *slash = strrchr(to, '/');
    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - to) : 1, slash ? to : ".");
    QW_TRY(qw_hub_space(dir, bytes, err));
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out < 0) return qw_fail_errno(err, "%.400s", to);
    qw_hub_meter_start(m, QW_HUB_COPY, bytes);
    qw_status status = copy_bytes(in, out, from, to, m, err);
    if (status == QW_OK && fsync(out) != 0) status = qw_fail_errno(err, "%.400s", to);
    close(out);
    if (status != QW_OK) unlink(to);
    return status;
}

qw_status qw_hub_clone(const char *from, const char *to, qw_hub_meter *m, qw_err *err)
{
    struct stat st;
    int in = -1;
    QW_TRY(open_regular(from, &in, &st, err));
    qw_status status = QW_OK;
    if (reflink(in, to) != 0 && hard_link(in, to) != 0)
        status = copy(in, (uint64_t)st.st_size, from, to, m, err);
    close(in);
    return status;
}
