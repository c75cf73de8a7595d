/* side_files.h: the folder of side files: how large it is, what is in use, and what goes first.
 *
 * A side file is `<identity of a model file>.qwp` and as large as its model; while it is written an ending of seven
 * bytes follows. All of them can be made again, so the folder has a bound: what a new one needs is taken from those
 * that were not used for the longest time. Locks (flock) keep that safe among processes: who maps a side file holds a
 * shared lock on it, who writes one an exclusive lock, and names appear and go under the folder's own lock, `.lock`.
 * Nothing that is locked is ever removed to make room. Any thread.
 */
#ifndef QW_BASE_SIDE_FILES_H
#define QW_BASE_SIDE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "base/status.h"

#define QW_SIDE_SUFFIX ".qwp"

enum {
    QW_SIDE_NAME_MAX = 64 + sizeof QW_SIDE_SUFFIX + 7,
    QW_SIDE_FILES_MAX = 65536, /* in a folder */
    QW_SIDE_TOUCH_S = 3600     /* how exactly the last use is remembered */
};

typedef struct qw_side_file {
    char name[QW_SIDE_NAME_MAX]; /* in the folder */
    uint64_t bytes;
    struct timespec used; /* when it was made or used last */
} qw_side_file;

/* All side files of a folder, also unfinished ones, those first that were not used for the longest time. A folder that
 * is not there has none. *out is freed with free(). */
qw_status qw_side_list(const char *dir, qw_side_file **out, size_t *n, qw_err *err) QW_MUST_CHECK;

/* Takes the folder's lock, waiting for it; the folder exists. *fd is closed by qw_side_unlock. */
qw_status qw_side_lock(const char *dir, int *fd, qw_err *err) QW_MUST_CHECK;
void qw_side_unlock(int fd);

/* Removes a side file unless a process uses it; true when it is gone. The caller holds the folder's lock. */
bool qw_side_remove_unused(const char *dir, const char *name);

/* Remembers that a side file was used now. A hint: no error. The modification time holds it, because the access time
 * is kept late or not at all by most mounts and is moved by every backup; it is written at most once in
 * QW_SIDE_TOUCH_S seconds. */
void qw_side_touch(const char *path);

/* ---- the bound --------------------------------------------------------------------------------- */

typedef struct qw_side_limits {
    uint64_t total_max;  /* bytes all side files may have together */
    bool strict;         /* QW_CACHE_MAX is set: a side file that is larger than the rest allows is not written */
    uint64_t free_bytes; /* of the file system */
    uint64_t free_min;   /* what stays free: a twentieth of the file system, at most 4 GB */
} qw_side_limits;

/* QW_CACHE_MAX, a size like "20G" (decimal: K, M, G, T), else a fifth of the file system that holds dir, so that models
 * of that much together keep theirs. dir need not exist yet. QW_E_ARG: QW_CACHE_MAX is no size. */
qw_status qw_side_limits_get(const char *dir, qw_side_limits *out, qw_err *err) QW_MUST_CHECK;

/* True for a side file that nobody can use any more; called with its path under the folder's lock. */
typedef bool qw_side_useless_fn(void *ctx, const char *path);

/* Removes side files until one of `bytes` fits: what killed writers left, then useless ones, then by their last use.
 * Without QW_CACHE_MAX a side file that is needed now is let in whatever its size, as long as the disk has room.
 * QW_E_LIMIT when it cannot fit: nothing that is whole was removed then. The caller holds the folder's lock until it
 * has reserved the space. */
qw_status qw_side_make_room(const char *dir, const qw_side_limits *limits, uint64_t bytes, qw_side_useless_fn *useless,
                            void *ctx, qw_err *err) QW_MUST_CHECK;

#endif
