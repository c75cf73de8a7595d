/* side_files.c: see side_files.h. Any thread; other processes work in the same folder. */
#include "base/bytes.h"
#include "base/side_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"

enum { TEMP_BYTES = 7, FREE_SHARE = 20, TOTAL_SHARE = 5 };
static const uint64_t free_min_most = 4000000000u;

/* ---- list -------------------------------------------------------------------------------------- */

/* "<64 hexadecimal digits>.qwp", or that with a temporary ending ".XXXXXX". */
static bool is_side_name(const char *name)
{
    size_t n = strspn(name, "0123456789abcdef");
    if (n != 64 || strncmp(name + n, QW_SIDE_SUFFIX, sizeof QW_SIDE_SUFFIX - 1) != 0) return false;
    const char *tail = name + n + sizeof QW_SIDE_SUFFIX - 1;
    return *tail == '\0' || (*tail == '.' && strlen(tail) == TEMP_BYTES);
}

static bool is_unfinished(const char *name)
{
    return strlen(name) > 64 + sizeof QW_SIDE_SUFFIX - 1;
}

static int by_use(const void *a, const void *b)
{
    const qw_side_file *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec) return x->used.tv_nsec < y->used.tv_nsec ? -1 : 1;
    return strcmp(x->name, y->name);
}

static qw_status collect(DIR *d, const char *dir, qw_side_file **out, size_t *n, qw_err *err)
{
    size_t cap = 0;
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        if (!is_side_name(e->d_name)) continue;
        /* What went away since readdir saw it, or is no file, is none of ours. */
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
        if (*n == QW_SIDE_FILES_MAX) {
            return qw_fail(err, QW_E_LIMIT, "%s: more than %d side files; remove them with `qw rm --packed`", dir,
                           QW_SIDE_FILES_MAX);
        }
        if (*n == cap) {
            size_t more = cap ? cap * 2 : 16;
            QW_TRY(qw_grow(out, cap, more, sizeof **out, "the list of side files", err));
            cap = more;
        }
        qw_side_file *f = &(*out)[(*n)++];
        snprintf(f->name, sizeof f->name, "%.*s", QW_SIDE_NAME_MAX - 1, e->d_name);
        f->bytes = (uint64_t)st.st_size;
        f->used = st.st_mtim;
    }
    return QW_OK;
}

qw_status qw_side_list(const char *dir, qw_side_file **out, size_t *n, qw_err *err)
{
    *out = NULL;
    *n = 0;
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT ? QW_OK : qw_fail_errno(err, "%s: cannot be listed", dir);
    qw_status status = collect(d, dir, out, n, err);
    closedir(d);
    if (status == QW_OK && *n > 1) qsort(*out, *n, sizeof **out, by_use);
    if (status != QW_OK) {
        free(*out);
        *out = NULL;
        *n = 0;
    }
    return status;
}

/* ---- locks ------------------------------------------------------------------------------------- */

qw_status qw_side_lock(const char *dir, int *fd, qw_err *err)
{
    char path[PATH_MAX];
    *fd = -1;
    if (snprintf(path, sizeof path, "%s/.lock", dir) >= (int)sizeof path)
        return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", dir);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0) return qw_fail_errno(err, "%s: cannot be made", path);
    while (flock(lock, LOCK_EX) != 0) {
        if (errno == EINTR) continue;
        qw_status status = qw_fail_errno(err, "%s: cannot be locked", path);
        close(lock);
        return status;
    }
    *fd = lock;
    return QW_OK;
}

void qw_side_unlock(int fd)
{
    if (fd >= 0) close(fd);
}

/* An exclusive lock on a side file that nobody uses: its descriptor, or -1. */
static int lock_unused(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static const char *join(char out[PATH_MAX], const char *dir, const char *name)
{
    return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX ? out : "";
}

bool qw_side_remove_unused(const char *dir, const char *name)
{
    char path[PATH_MAX];
    int fd = lock_unused(join(path, dir, name));
    if (fd < 0) return false;
    bool gone = unlink(path) == 0;
    close(fd);
    return gone;
}

void qw_side_touch(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return;
    int64_t age_s = (int64_t)time(NULL) - (int64_t)st.st_mtim.tv_sec;
    if (age_s < 0 || age_s > QW_SIDE_TOUCH_S) utimensat(AT_FDCWD, path, NULL, 0);
}

/* ---- limits ------------------------------------------------------------------------------------ */

/* Of the file system that holds dir, or will. */
static qw_status measure(const char *dir, struct statvfs *vfs, qw_err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", dir);
    while (statvfs(path, vfs) != 0) {
        char *slash = strrchr(path, '/');
        if (errno != ENOENT || slash == NULL) return qw_fail_errno(err, "%s: the free space cannot be told", dir);
        if (slash == path) slash++; /* the root itself */
        *slash = '\0';
    }
    return QW_OK;
}

qw_status qw_side_limits_get(const char *dir, qw_side_limits *out, qw_err *err)
{
    struct statvfs vfs;
    const char *text = getenv("QW_CACHE_MAX");
    *out = (qw_side_limits){.strict = text != NULL && *text != '\0'};
    if (out->strict && !qw_parse_bytes(text, &out->total_max)) {
        return qw_fail(err, QW_E_ARG, "QW_CACHE_MAX is \"%.40s\": want a size like 20G, or 0 for no side files", text);
    }
    QW_TRY(measure(dir, &vfs, err));
    uint64_t bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize;
    if (!out->strict) out->total_max = bytes / TOTAL_SHARE;
    out->free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    out->free_min = bytes / FREE_SHARE < free_min_most ? bytes / FREE_SHARE : free_min_most;
    return QW_OK;
}

/* ---- room -------------------------------------------------------------------------------------- */

typedef struct candidate {
    uint64_t bytes;
    bool unused, useless;
} candidate;

static uint64_t excess(uint64_t want, uint64_t have)
{
    return want > have ? want - have : 0;
}

typedef struct size_text {
    char s[24];
} size_text;

static size_text text_of(uint64_t bytes)
{
    size_text t;
    if (bytes < 1000000) snprintf(t.s, sizeof t.s, "%.1f kB", (double)bytes / 1e3);
    else if (bytes < 1000000000) snprintf(t.s, sizeof t.s, "%.1f MB", (double)bytes / 1e6);
    else snprintf(t.s, sizeof t.s, "%.2f GB", (double)bytes / 1e9);
    return t;
}

static qw_status no_room(const char *dir, const qw_side_limits *l, uint64_t bytes, uint64_t used, bool disk,
                         qw_err *err)
{
    if (disk) {
        return qw_fail(err, QW_E_LIMIT,
                       "%s: no room for a side file of %s: the disk has %s free, %s of it stay free; free some space, "
                       "or set QW_HOME to a folder on another disk",
                       dir, text_of(bytes).s, text_of(l->free_bytes).s, text_of(l->free_min).s);
    }
    return qw_fail(err, QW_E_LIMIT,
                   "%s: no room for a side file of %s: QW_CACHE_MAX allows %s in all, %s of it in use; raise "
                   "QW_CACHE_MAX",
                   dir, text_of(bytes).s, text_of(l->total_max).s, text_of(used).s);
}

typedef struct room {
    uint64_t total, unused; /* bytes of all side files; of those that could go */
    uint64_t left_over;     /* of what killed writers had left, removed here */
} room;

/* Removes what killed writers left, and looks at the rest. */
static room look(const char *dir, const qw_side_file *files, size_t n, candidate *c, qw_side_useless_fn *useless,
                 void *ctx)
{
    room r = {0};
    char path[PATH_MAX];
    for (size_t i = 0; i < n; i++) {
        if (is_unfinished(files[i].name) && qw_side_remove_unused(dir, files[i].name)) {
            r.left_over += files[i].bytes;
            continue;
        }
        int fd = lock_unused(join(path, dir, files[i].name));
        c[i] = (candidate){.bytes = files[i].bytes, .unused = fd >= 0};
        if (fd >= 0) close(fd);
        c[i].useless = c[i].unused && useless && useless(ctx, path);
        r.total += c[i].bytes;
        r.unused += c[i].unused ? c[i].bytes : 0;
    }
    return r;
}

/* Removes useless files, then the others in their order, until `bytes` are free; what was freed. One that came into
 * use since it was looked at stays. */
static uint64_t remove_bytes(const char *dir, const qw_side_file *files, size_t n, candidate *c, uint64_t bytes)
{
    uint64_t freed = 0;
    for (int useless = 1; useless >= 0; useless--) {
        for (size_t i = 0; i < n && freed < bytes; i++) {
            if (!c[i].unused || c[i].useless != (useless == 1)) continue;
            if (qw_side_remove_unused(dir, files[i].name)) freed += c[i].bytes;
        }
    }
    return freed;
}

qw_status qw_side_make_room(const char *dir, const qw_side_limits *l, uint64_t bytes, qw_side_useless_fn *useless,
                            void *ctx, qw_err *err)
{
    qw_side_file *files = NULL;
    candidate *c = NULL;
    size_t n = 0;
    qw_status status;
    QW_TRY(qw_side_list(dir, &files, &n, err));
    QW_TRY_GOTO(qw_alloc(&c, n, sizeof *c, "the list of side files", err));
    room r = look(dir, files, n, c, useless, ctx);
    uint64_t over = excess(r.total + bytes, l->total_max);
    uint64_t short_of = excess(bytes + l->free_min, l->free_bytes + r.left_over);
    uint64_t wish = over > short_of ? over : short_of, must = l->strict ? wish : short_of;
    uint64_t freed = must <= r.unused ? remove_bytes(dir, files, n, c, wish) : 0;
    if (freed < must) status = no_room(dir, l, bytes, r.total - r.unused, !l->strict || short_of > r.unused, err);
fail:
    free(c);
    free(files);
    return status;
}
