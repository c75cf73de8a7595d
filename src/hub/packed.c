/* packed.c: the side files of packed weights, as the commands show and remove them.
 *
 * Who makes and reads them is src/model/weights_file.c; here their names, sizes and locks are enough
 * (base/side_files.h). Owner: the thread of the caller; other processes may work in the same folder.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/side_files.h"
#include "formats/gguf.h"
#include "hub/names.h"
#include "hub/packed.h"

void qw_hub_packed_identity(const char *model_path, char identity[65])
{
    qw_gguf *g = NULL;
    identity[0] = 0;
    if (qw_gguf_open(model_path, &g, NULL) != QW_OK) return;
    qw_gguf_identity(g, identity);
    qw_gguf_close(g);
}

uint64_t qw_hub_packed_bytes(const char *identity, char path[QW_HUB_PATH_MAX])
{
    char dir[QW_HUB_PATH_MAX - 128];
    struct stat st;
    path[0] = 0;
    if (!identity[0] || qw_packed_dir(dir, sizeof(dir), NULL) != QW_OK) return 0;
    snprintf(path, QW_HUB_PATH_MAX, "%s/%s" QW_SIDE_SUFFIX, dir, identity);
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

bool qw_hub_packed_find(const char *model_path, char path[QW_HUB_PATH_MAX], uint64_t *bytes)
{
    char identity[65];
    qw_hub_packed_identity(model_path, identity);
    *bytes = qw_hub_packed_bytes(identity, path);
    return path[0] != 0;
}

/* Whether a side file, finished or not, was made for that identity. */
static bool belongs(const qw_side_file *f, const char *identity)
{
    return identity[0] && strncmp(f->name, identity, strlen(identity)) == 0;
}

qw_status qw_hub_packed_total(const qw_hub_model *models, size_t n, qw_hub_packed *out, qw_err *err)
{
    char dir[QW_HUB_PATH_MAX];
    qw_side_file *files = NULL;
    qw_side_limits limits;
    *out = (qw_hub_packed){0};
    QW_TRY(qw_packed_dir(dir, sizeof(dir), err));
    QW_TRY(qw_side_limits_get(dir, &limits, err));
    QW_TRY(qw_side_list(dir, &files, &out->n_files, err));
    out->bytes_max = limits.total_max;
    for (size_t i = 0; i < out->n_files; i++) {
        bool known = false;
        for (size_t k = 0; k < n && !known; k++) known = belongs(&files[i], models[k].identity);
        out->bytes += files[i].bytes;
        if (!known) out->other_bytes += files[i].bytes;
    }
    free(files);
    return QW_OK;
}

/* Opens the folder for removals. *lock is -1 when there is nothing in it. */
static qw_status lock_folder(char *dir, size_t cap, int *lock, qw_side_file **files, size_t *n, qw_err *err)
{
    *lock = -1;
    *files = NULL;
    *n = 0;
    QW_TRY(qw_packed_dir(dir, cap, err));
    QW_TRY(qw_side_list(dir, files, n, err));
    if (*n == 0) return QW_OK; /* looking creates nothing, not even the lock */
    free(*files);
    *files = NULL;
    *n = 0;
    QW_TRY(qw_side_lock(dir, lock, err));
    return qw_side_list(dir, files, n, err);
}

qw_status qw_hub_packed_clear(qw_hub_packed_removal *out, qw_err *err)
{
    char dir[QW_HUB_PATH_MAX];
    qw_side_file *files;
    size_t n;
    int lock;
    *out = (qw_hub_packed_removal){0};
    qw_status status = lock_folder(dir, sizeof(dir), &lock, &files, &n, err);
    for (size_t i = 0; status == QW_OK && i < n; i++) {
        bool gone = qw_side_remove_unused(dir, files[i].name);
        *(gone ? &out->n_removed : &out->n_kept) += 1;
        *(gone ? &out->freed_bytes : &out->kept_bytes) += files[i].bytes;
    }
    free(files);
    qw_side_unlock(lock);
    return status;
}

uint64_t qw_hub_packed_remove(const char *identity)
{
    char dir[QW_HUB_PATH_MAX], path[QW_HUB_PATH_MAX];
    qw_side_file *files;
    size_t n;
    int lock;
    uint64_t freed_bytes = 0;
    if (!identity[0]) return 0;
    qw_status status = lock_folder(dir, sizeof(dir), &lock, &files, &n, NULL);
    for (size_t i = 0; status == QW_OK && i < n; i++) {
        if (!belongs(&files[i], identity)) continue;
        if (snprintf(path, sizeof(path), "%s/%s", dir, files[i].name) >= QW_HUB_PATH_MAX) continue;
        if (unlink(path) == 0) freed_bytes += files[i].bytes;
    }
    free(files);
    qw_side_unlock(lock);
    return freed_bytes;
}
