/* store.c: the folder that holds models: paths, locks, commit and removal.
 *
 * Owner: the thread of the caller; other processes may work in the same folder. Contract: see store.h. Two
 * locks, always in this order: the model's (long, held during a pull) and the store's (short, held while the
 * set of manifests and blobs changes, so that a removal never takes a blob from under a commit). A blob may
 * share its inode with a file of the user (hard link), so nothing in the hub ever opens a blob for writing:
 * it is renamed over or unlinked.
 */
#include "hub/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "hub/manifest.h"
#include "hub/packed.h"

enum { NAMES_MAX = 65536, LOCK_POLL_MS = 200 };

qw_status qw_hub_store_open(qw_hub_store *s, qw_err *err)
{
    return qw_home_dir(s->home, sizeof(s->home), err);
}

qw_status qw_hub_store_make(const qw_hub_store *s, qw_err *err)
{
    static const char *const folders[] = {"blobs", "models", "partial", "locks"};
    char path[QW_HUB_PATH_MAX];
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", s->home, folders[i]);
        QW_TRY(qw_make_dirs(path, err));
    }
    return QW_OK;
}

qw_status qw_hub_blob_path(const qw_hub_store *s, const char *sha256, char out[QW_HUB_PATH_MAX], qw_err *err)
{
    if (strnlen(sha256, 65) != 64 || !qw_hub_digest_valid(sha256))
        return qw_fail(err, QW_E_FORMAT, "\"%.70s\" is not a SHA-256", sha256);
    snprintf(out, QW_HUB_PATH_MAX, "%s/blobs/sha256-%s", s->home, sha256);
    return QW_OK;
}

void qw_hub_partial_path(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX])
{
    char leaf[QW_HUB_NAME_MAX];
    qw_hub_name_to_file(name, leaf);
    snprintf(out, QW_HUB_PATH_MAX, "%s/partial/%s", s->home, leaf);
}

/* ---- names ------------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void qw_hub_names_free(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
}

static qw_status collect(DIR *dir, char ***out, size_t *n, qw_err *err)
{
    char name[QW_HUB_NAME_MAX];
    size_t cap = 0;
    for (struct dirent *d; (d = readdir(dir));) {
        size_t len = strlen(d->d_name);
        if (len <= 5 || strcmp(d->d_name + len - 5, ".json") != 0 || d->d_type == DT_DIR) continue;
        if (!qw_hub_name_from_file(d->d_name, len - 5, name)) continue;
        if (*n >= NAMES_MAX) return qw_fail(err, QW_E_LIMIT, "more than %d models are installed", NAMES_MAX);
        if (*n == cap) {
            size_t more = cap ? cap * 2 : 16;
            QW_TRY(qw_grow(out, cap, more, sizeof(**out), "the list of models", err));
            cap = more;
        }
        QW_TRY(qw_strndup(&(*out)[*n], name, strlen(name), err));
        ++*n;
    }
    return QW_OK;
}

qw_status qw_hub_store_names(const qw_hub_store *s, char ***out, size_t *n, qw_err *err)
{
    char path[QW_HUB_PATH_MAX];
    *out = NULL;
    *n = 0;
    snprintf(path, sizeof(path), "%s/models", s->home);
    DIR *dir = opendir(path);
    if (!dir) return errno == ENOENT ? QW_OK : qw_fail_errno(err, "%.400s", path);
    qw_status status = collect(dir, out, n, err);
    closedir(dir);
    if (status == QW_OK && *n > 1) qsort(*out, *n, sizeof(**out), by_text);
    if (status != QW_OK) {
        qw_hub_names_free(*out, *n);
        *out = NULL;
        *n = 0;
    }
    return status;
}

/* ---- locks ------------------------------------------------------------------------------------- */

qw_status qw_hub_lock(const qw_hub_store *s, const char *name, qw_hub_meter *m, int *fd, qw_err *err)
{
    char leaf[QW_HUB_NAME_MAX] = "", path[QW_HUB_PATH_MAX];
    if (name) qw_hub_name_to_file(name, leaf);
    snprintf(path, sizeof(path), "%s/locks/%s%s", s->home, leaf, name ? ".lock" : ".store");
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0) return qw_fail_errno(err, "%.400s", path);
    bool said = false;
    while (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        qw_status status = QW_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            status = qw_fail_errno(err, "%.400s: cannot be locked", path);
        if (status == QW_OK && name && !said) {
            qw_hub_say(m->watch, "another process works on %s, waiting for it", name);
            qw_hub_meter_start(m, QW_HUB_WAIT, 0);
            said = true;
        }
        if (status == QW_OK && !qw_hub_meter_sleep(m, LOCK_POLL_MS)) status = qw_hub_cancelled(err);
        if (status != QW_OK) {
            close(*fd);
            *fd = -1;
            return status;
        }
    }
    return QW_OK;
}

void qw_hub_unlock(int fd)
{
    if (fd >= 0) close(fd);
}

/* ---- removal helpers --------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) != 0 && errno != ENOENT ? -1 : 0;
}

qw_status qw_hub_remove_tree(const char *path, qw_err *err)
{
    struct stat st;
    if (lstat(path, &st) != 0) return errno == ENOENT ? QW_OK : qw_fail_errno(err, "%.400s", path);
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        return qw_fail_errno(err, "%.400s: cannot be removed", path);
    return QW_OK;
}

static qw_status sync_folder(const qw_hub_store *s, const char *folder, qw_err *err)
{
    char path[QW_HUB_PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", s->home, folder);
    return qw_sync_dir(path, err);
}

/* ---- commit ------------------------------------------------------------------------------------ */

static qw_status move_blob(const qw_hub_store *s, const qw_hub_file *f, const char *staged, qw_err *err)
{
    char blob[QW_HUB_PATH_MAX];
    QW_TRY(qw_hub_blob_path(s, f->sha256, blob, err));
    if (strcmp(blob, staged) == 0) /* it was there already; did a removal come in between? */
        return access(blob, R_OK) == 0 ? QW_OK : qw_fail_errno(err, "%.300s: went away, pull again", blob);
    if (rename(staged, blob) != 0)
        return qw_fail_errno(err, "%.300s: cannot be moved into the store", staged);
    unlink(staged); /* rename does nothing when both are links to one file */
    return QW_OK;
}

/* The folder of a split model is built aside and renamed, since a loader must see all parts or none. */
static qw_status link_parts(const qw_hub_store *s, const qw_hub_manifest *m, qw_err *err)
{
    char folder[QW_HUB_PATH_MAX], made[QW_HUB_PATH_MAX], blob[QW_HUB_PATH_MAX], at[QW_HUB_PATH_MAX],
        target[128];
    qw_hub_partial_path(s, m->name, folder);
    if (snprintf(made, sizeof(made), "%s/parts", folder) >= QW_HUB_PATH_MAX) goto too_long;
    QW_TRY(qw_hub_remove_tree(made, err));
    QW_TRY(qw_make_dirs(made, err));
    for (size_t i = 0; i < m->n_files; i++) {
        QW_TRY(qw_hub_blob_path(s, m->files[i].sha256, blob, err));
        if (snprintf(at, sizeof(at), "%s/%s", made, m->files[i].name) >= QW_HUB_PATH_MAX) goto too_long;
        snprintf(target, sizeof(target), "../../blobs/sha256-%s", m->files[i].sha256);
        if (link(blob, at) != 0 && symlink(target, at) != 0) return qw_fail_errno(err, "%.400s", at);
    }
    QW_TRY(qw_sync_dir(made, err));
    qw_hub_parts_path(s, m->name, folder);
    QW_TRY(qw_hub_remove_tree(folder, err));
    if (rename(made, folder) != 0) return qw_fail_errno(err, "%.400s", folder);
    return QW_OK;
too_long:
    return qw_fail(err, QW_E_LIMIT, "%.200s: the path is too long", folder);
}

static qw_status commit_locked(const qw_hub_store *s, const qw_hub_manifest *m, const char *const *staged,
                               qw_err *err)
{
    for (size_t i = 0; i < m->n_files; i++) QW_TRY(move_blob(s, &m->files[i], staged[i], err));
    QW_TRY(sync_folder(s, "blobs", err));
    if (m->n_files > 1) QW_TRY(link_parts(s, m, err));
    return qw_hub_manifest_write(s, m, err);
}

qw_status qw_hub_commit(const qw_hub_store *s, const qw_hub_manifest *m, const char *const *staged,
                        qw_hub_meter *meter, qw_err *err)
{
    int fd = -1;
    char partial[QW_HUB_PATH_MAX];
    QW_TRY(qw_hub_lock(s, NULL, meter, &fd, err));
    qw_status status = commit_locked(s, m, staged, err);
    qw_hub_unlock(fd);
    if (status != QW_OK) return status;
    qw_hub_partial_path(s, m->name, partial);
    if (qw_hub_remove_tree(partial, NULL) != QW_OK)
        qw_hub_say(meter->watch, "%s could not be removed", partial);
    return QW_OK;
}

/* ---- removal ----------------------------------------------------------------------------------- */

/* Whether any manifest still names the blob. A manifest that cannot be read keeps every blob: better a file
 * too much. */
static qw_status blob_used(const qw_hub_store *s, const char *sha256, bool *used, qw_err *err)
{
    char **names = NULL;
    size_t n = 0;
    *used = false;
    QW_TRY(qw_hub_store_names(s, &names, &n, err));
    for (size_t i = 0; i < n && !*used; i++) {
        qw_hub_manifest m;
        qw_status status = qw_hub_manifest_read(s, names[i], &m, NULL);
        *used = status != QW_OK && status != QW_E_NOT_FOUND;
        for (size_t k = 0; status == QW_OK && k < m.n_files; k++)
            if (strcmp(m.files[k].sha256, sha256) == 0) *used = true;
        if (status == QW_OK) qw_hub_manifest_clear(&m);
    }
    qw_hub_names_free(names, n);
    return QW_OK;
}

static qw_status remove_locked(const qw_hub_store *s, const qw_hub_manifest *m, uint64_t *freed_bytes,
                               qw_err *err)
{
    char path[QW_HUB_PATH_MAX], identity[65] = "";
    bool used = false, kept = false;
    if (qw_hub_manifest_path(s, m, path, NULL) == QW_OK) qw_hub_packed_identity(path, identity);
    qw_hub_manifest_file(s, m->name, path);
    if (unlink(path) != 0 && errno != ENOENT) return qw_fail_errno(err, "%.400s", path);
    QW_TRY(sync_folder(s, "models", err));
    qw_hub_parts_path(s, m->name, path);
    QW_TRY(qw_hub_remove_tree(path, err));
    for (size_t i = 0; i < m->n_files; i++) {
        QW_TRY(blob_used(s, m->files[i].sha256, &used, err));
        kept |= used;
        if (used) continue;
        QW_TRY(qw_hub_blob_path(s, m->files[i].sha256, path, err));
        if (unlink(path) == 0) *freed_bytes += m->files[i].bytes;
        else if (errno != ENOENT) return qw_fail_errno(err, "%.400s", path);
    }
    if (!kept) *freed_bytes += qw_hub_packed_remove(identity);
    return sync_folder(s, "blobs", err);
}

qw_status qw_hub_uncommit(const qw_hub_store *s, const qw_hub_manifest *m, qw_hub_meter *meter,
                          uint64_t *freed_bytes, qw_err *err)
{
    int fd = -1;
    *freed_bytes = 0;
    QW_TRY(qw_hub_lock(s, NULL, meter, &fd, err));
    qw_status status = remove_locked(s, m, freed_bytes, err);
    qw_hub_unlock(fd);
    return status;
}
