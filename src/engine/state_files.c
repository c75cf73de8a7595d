/* state_files.c: the store: key and ids, saving, finding, limits. See state_files.h. Answers are state_answers.c's.
 *
 * Other processes work in the same folder. Nothing here waits for them: a file that goes away between two calls is one that
 * is not there, and one that comes is as good as ours.
 */
#include "engine/state_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/new_file.h"
#include "engine/state_private.h"

enum {
    FOLDERS = 4096,
    SIBLINGS_MAX = 256,         /* pages after one past whose headers a search reads */
    TRIM_FILES_MAX = 1 << 18,   /* that a trim can choose from */
    TRIM_SHARE = 16,            /* of the limit: what is written between two trims; twice that is made free */
    TRIM_CRAMPED_US = 60000000, /* between trims while there is no room */
    LEFT_OVER_S = 3600          /* an unfinished file of that age has no writer any more */
};
#define TRIM_EVERY_US ((int64_t)3600 * 1000000)

/* ---- key and ids ---------------------------------------------------------------------------------- */

static qw_status key_path(const char *dir, char out[PATH_MAX], qw_err *err)
{
    if (snprintf(out, PATH_MAX - STATE_NAME_MAX, "%s/key", dir) < PATH_MAX - STATE_NAME_MAX) return QW_OK;
    return qw_fail(err, QW_E_LIMIT, "%.200s: the path is too long", dir);
}

/* Many may do this at once: one of them gives the name, and all read that one's key. */
static qw_status make_key(const char *path, qw_err *err)
{
    qw_sip_key keys[2];
    qw_new_file f;
    if (getrandom(keys, sizeof keys, 0) != sizeof keys) return qw_fail_errno(err, "%s: no random key", path);
    qw_status status = qw_new_file_open(&f, path, err);
    if (status == QW_OK && fchmod(f.fd, 0600) != 0) status = qw_fail_errno(err, "%s: cannot be written", path);
    if (status == QW_OK) status = qw_new_file_write(&f, keys, sizeof keys, err);
    if (status == QW_OK) status = qw_new_file_publish(&f, false, err);
    qw_new_file_close(&f);
    return status == QW_E_ARG ? QW_OK : status; /* somebody was faster */
}

static qw_status read_key(const char *path, qw_sip_key keys[2], qw_err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return qw_fail_errno(err, "%s: cannot be opened", path);
    qw_status status = QW_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0) {
        status = qw_fail(err, QW_E_ARG, "%s: is not a file that this user alone may read; remove the folder", path);
    } else if (st.st_size != 2 * sizeof *keys || read(fd, keys, 2 * sizeof *keys) != 2 * sizeof *keys) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: want %zu bytes; remove the folder, it is made again", path,
                         2 * sizeof *keys);
    }
    close(fd);
    return status;
}

static qw_status get_key(const char *dir, qw_sip_key keys[2], qw_err *err)
{
    char path[PATH_MAX];
    QW_TRY(key_path(dir, path, err));
    if (access(path, F_OK) != 0) QW_TRY(make_key(path, err));
    return read_key(path, keys, err);
}

static qw_state_id id_of(const qw_state_files *s, uint64_t seed, const void *data, size_t n)
{
    return (qw_state_id){{qw_siphash(&s->keys[0], seed, data, n), qw_siphash(&s->keys[1], seed, data, n)}};
}

qw_state_id qw_state_root_id(const qw_state_files *s, const uint8_t owner[QW_STATE_OWNER_BYTES])
{
    uint8_t data[STATE_LAYOUT_BYTES + QW_STATE_OWNER_BYTES];
    memcpy(data, s->layout, STATE_LAYOUT_BYTES);
    memcpy(data + STATE_LAYOUT_BYTES, owner, QW_STATE_OWNER_BYTES);
    return id_of(s, 0, data, sizeof data);
}

qw_state_id qw_state_child_id(const qw_state_files *s, qw_state_id parent, const int32_t *tokens, uint32_t n)
{
    struct {
        qw_state_id parent;
        int32_t tokens[QW_KV_TILE];
    } data = {.parent = parent};
    QW_ASSERT(n >= 1 && n <= QW_KV_TILE);
    memcpy(data.tokens, tokens, n * sizeof *tokens);
    return id_of(s, n, &data, sizeof parent + n * sizeof *tokens);
}

static qw_status hash_layout(const qw_state_layout *l, uint8_t out[STATE_LAYOUT_BYTES], qw_err *err)
{
    const uint16_t order = 1; /* as its first byte tells */
    char text[512];
    int n = snprintf(text, sizeof text,
                     "format %d numerics %d order %d model %.64s exact %d kv %d layers %u heads %u of %u by %u index %u by %u "
                     "tile %d page %zu recurrent %zu",
                     STATE_VERSION, QW_STATE_NUMERICS, *(const uint8_t *)&order, l->model, l->exact, (int)l->shape.type,
                     l->shape.n_layers, l->shape.n_heads, l->shape.n_kv_heads, l->shape.head_dim, l->shape.index_dim,
                     l->shape.index_block, QW_KV_TILE, l->page_bytes, l->recurrent_bytes);
    QW_ASSERT(n > 0 && n < (int)sizeof text);
    if (EVP_Digest(text, (size_t)n, out, NULL, EVP_sha256(), NULL) == 1) return QW_OK;
    return qw_fail(err, QW_E_INTERNAL, "SHA-256 is not available from the crypto library");
}

/* ---- life ----------------------------------------------------------------------------------------- */

qw_status qw_state_files_open(const char *dir, const qw_state_layout *layout, const qw_state_limits *limits,
                              qw_state_files **out, qw_err *err)
{
    qw_state_files *s = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_make_dirs(dir, err));
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "store of computed pasts", err));
    s->page_bytes = layout->page_bytes;
    s->recurrent_bytes = layout->recurrent_bytes;
    s->limits = *limits;
    QW_TRY_GOTO(qw_strndup(&s->dir, dir, strlen(dir), err));
    QW_TRY_GOTO(get_key(dir, s->keys, err));
    QW_TRY_GOTO(hash_layout(layout, s->layout, err));
    *out = s;
    return QW_OK;
fail:
    qw_state_files_close(s);
    return status;
}

void qw_state_files_close(qw_state_files *s)
{
    if (!s) return;
    free(s->dir);
    free(s);
}

void qw_state_get_counts(const qw_state_files *s, qw_state_counts *out)
{
    *out = (qw_state_counts){.saved = s->n.saved, .saved_bytes = s->n.saved_bytes, .already_there = s->n.already_there,
                             .failed = s->n.failed, .loaded = s->n.loaded, .loaded_bytes = s->n.loaded_bytes,
                             .missing = s->n.missing, .damaged = s->n.damaged, .trimmed = s->n.trimmed,
                             .trimmed_bytes = s->n.trimmed_bytes, .bytes = s->bytes};
}

/* ---- pieces --------------------------------------------------------------------------------------- */

const char *state_path(const qw_state_files *s, const state_name *n, char out[PATH_MAX])
{
    char name[STATE_NAME_MAX];
    state_name_of(n, name);
    snprintf(out, PATH_MAX, "%s/%s", s->dir, name); /* it fits: key_path saw to that */
    return out;
}

static state_name name_of_piece(const qw_state_files *s, const qw_state_piece *p)
{
    return (state_name){.parent = p->parent, .n_tokens = p->n_tokens, .snapshot = p->snapshot,
                        .id = qw_state_child_id(s, p->parent, p->tokens, p->n_tokens)};
}

static bool is_there(const qw_state_files *s, const state_name *n)
{
    char path[PATH_MAX];
    struct stat st;
    if (lstat(state_path(s, n, path), &st) != 0) return false;
    return S_ISREG(st.st_mode) && st.st_size == (off_t)state_file_bytes(s, n->snapshot);
}

void state_remove_damaged(qw_state_files *s, const char *path)
{
    unlink(path);
    s->n.damaged++;
}

/* A file that was used last at used_s is in use now. */
static void touch_since(const char *path, uint32_t depth, int64_t used_s)
{
    const struct timespec used = state_use_time(depth), times[2] = {used, used};
    int64_t age_s = (int64_t)used.tv_sec - used_s;
    if (age_s < 0 || age_s >= QW_STATE_TOUCH_S) utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

static void touch_path(const char *path, uint32_t depth)
{
    struct stat st;
    if (lstat(path, &st) == 0) touch_since(path, depth, (int64_t)st.st_mtim.tv_sec);
}

void qw_state_touch(qw_state_files *s, const qw_state_piece *p)
{
    char path[PATH_MAX];
    const state_name name = name_of_piece(s, p);
    touch_path(state_path(s, &name, path), p->depth);
}

bool qw_state_load(qw_state_files *s, const qw_state_piece *p, void *data)
{
    char path[PATH_MAX];
    const state_name name = name_of_piece(s, p);
    int64_t used_s = 0;
    state_read got = state_file_load(s, state_path(s, &name, path), p, name.id, data, &used_s);
    if (got == STATE_MISSING) s->n.missing++;
    if (got == STATE_DAMAGED) state_remove_damaged(s, path);
    if (got != STATE_READ) return false;
    s->n.loaded++;
    s->n.loaded_bytes += state_data_bytes(s, p->snapshot);
    touch_since(path, p->depth, used_s);
    return true;
}

/* ---- what follows a past -------------------------------------------------------------------------- */

typedef struct siblings {
    qw_state_id parent;
    DIR *dir; /* NULL: nothing follows */
} siblings;

static siblings siblings_open(const qw_state_files *s, qw_state_id parent)
{
    char path[PATH_MAX], folder[4];
    state_folder(parent, folder);
    snprintf(path, sizeof path, "%s/%s", s->dir, folder);
    return (siblings){.parent = parent, .dir = opendir(path)};
}

static bool siblings_next(siblings *l, bool snapshot, state_name *out)
{
    for (struct dirent *e; l->dir && (e = readdir(l->dir));) {
        if (!state_name_parse(e->d_name, out) || out->unfinished || out->answer || out->snapshot != snapshot)
            continue;
        if (state_id_equal(out->parent, l->parent)) return true;
    }
    return false;
}

static void siblings_close(siblings *l)
{
    if (l->dir) closedir(l->dir);
}

/* ---- saving --------------------------------------------------------------------------------------- */

static uint64_t bytes_free(const qw_state_files *s)
{
    struct statvfs vfs;
    return statvfs(s->dir, &vfs) == 0 ? (uint64_t)vfs.f_bavail * vfs.f_frsize : UINT64_MAX;
}

qw_status state_check_room(const qw_state_files *s, size_t bytes, qw_err *err)
{
    const uint64_t room = bytes_free(s);
    if (s->bytes + bytes > s->limits.bytes_max) {
        return qw_fail(err, QW_E_LIMIT, "%s: the limit of %llu bytes leaves no room for %zu more", s->dir,
                       (unsigned long long)s->limits.bytes_max, bytes);
    }
    if (room < bytes || room - bytes < s->limits.free_min) {
        return qw_fail(err, QW_E_LIMIT, "%s: the disk has %llu bytes free, %llu of them stay free", s->dir,
                       (unsigned long long)room, (unsigned long long)s->limits.free_min);
    }
    return QW_OK;
}

qw_status state_make_folder(const qw_state_files *s, qw_state_id parent, qw_err *err)
{
    char path[PATH_MAX], folder[4];
    state_folder(parent, folder);
    snprintf(path, sizeof path, "%s/%s", s->dir, folder);
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return QW_OK;
    return qw_fail_errno(err, "%s: the folder cannot be made", path);
}

/* Removes pages that hold the beginning of p's tokens: all that was in them is in p's page. */
static void remove_shorter(qw_state_files *s, const qw_state_piece *p)
{
    char path[PATH_MAX];
    state_name name;
    siblings l = siblings_open(s, p->parent);
    while (siblings_next(&l, false, &name)) {
        if (name.n_tokens >= p->n_tokens) continue;
        qw_state_id id = qw_state_child_id(s, p->parent, p->tokens, name.n_tokens);
        if (state_id_equal(name.id, id)) unlink(state_path(s, &name, path));
    }
    siblings_close(&l);
}

static qw_status write_piece(qw_state_files *s, const char *path, const qw_state_piece *p, qw_state_id id,
                             const void *data, qw_err *err)
{
    size_t bytes = state_file_bytes(s, p->snapshot);
    QW_TRY(state_check_room(s, bytes, err));
    qw_status status = state_file_save(s, path, p, id, data, err);
    if (status == QW_E_NOT_FOUND) {
        QW_TRY(state_make_folder(s, p->parent, err));
        status = state_file_save(s, path, p, id, data, err);
    }
    if (status == QW_E_ARG) return QW_OK; /* another process had the same to save */
    if (status != QW_OK) return status;
    s->n.saved++;
    s->n.saved_bytes += bytes;
    s->bytes += bytes;
    if (!p->snapshot) remove_shorter(s, p);
    return QW_OK;
}

qw_status qw_state_save(qw_state_files *s, const qw_state_piece *p, const void *data, qw_err *err)
{
    char path[PATH_MAX];
    const state_name name = name_of_piece(s, p);
    state_path(s, &name, path);
    if (is_there(s, &name)) {
        s->n.already_there++;
        touch_path(path, p->depth);
        return QW_OK;
    }
    unlink(path); /* what has the name and another size is nothing that can be loaded */
    qw_status status = write_piece(s, path, p, name.id, data, err);
    if (status != QW_OK) s->n.failed++;
    if (status == QW_E_LIMIT) s->cramped = true;
    return status;
}

/* ---- finding -------------------------------------------------------------------------------------- */

/* A search: the tokens and the pasts at their pages' borders. */
typedef struct search {
    qw_state_files *s;
    const int32_t *tokens;
    size_t n;
    qw_state_id *ids; /* [n_full + 1] that were followed */
    uint32_t n_full;
    uint32_t n_common; /* with the page after them */
} search;

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void follow_full_pages(search *f)
{
    for (; f->n - (size_t)f->n_full * QW_KV_TILE >= QW_KV_TILE; f->n_full++) {
        const qw_state_id *parent = &f->ids[f->n_full];
        state_name name = {.parent = *parent, .n_tokens = QW_KV_TILE};
        name.id = qw_state_child_id(f->s, *parent, f->tokens + (size_t)f->n_full * QW_KV_TILE, QW_KV_TILE);
        if (!is_there(f->s, &name)) break;
        f->ids[f->n_full + 1] = name.id;
    }
}

static uint32_t common(const int32_t *a, const int32_t *b, size_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

/* Of the pages after the full ones, that with the longest beginning in common; of equal ones the fuller, by name then. */
static void find_last_page(search *f, qw_state_past *out)
{
    char path[PATH_MAX];
    state_name name, best = {0};
    size_t depth = (size_t)f->n_full * QW_KV_TILE, left = least(f->n - depth, QW_KV_TILE);
    siblings l = siblings_open(f->s, f->ids[f->n_full]);
    for (int n_read = 0; n_read < SIBLINGS_MAX && siblings_next(&l, false, &name); n_read++) {
        int32_t tokens[QW_KV_TILE];
        state_read got = state_file_tokens(f->s, state_path(f->s, &name, path), &name, tokens);
        if (got == STATE_DAMAGED) state_remove_damaged(f->s, path);
        if (got != STATE_READ) continue;
        uint32_t k = common(tokens, f->tokens + depth, least(left, name.n_tokens));
        if (k == 0 || k < f->n_common) continue;
        if (k == f->n_common && (name.n_tokens < best.n_tokens ||
                                 (name.n_tokens == best.n_tokens && memcmp(&name.id, &best.id, sizeof best.id) >= 0)))
            continue;
        best = name;
        f->n_common = k;
        memcpy(out->last, tokens, sizeof tokens);
    }
    siblings_close(&l);
    out->n_last = best.n_tokens;
}

/* The last snapshot after page number i begins, within its first `most` tokens; 0: there is none. */
static uint32_t find_snapshot_in(const search *f, uint32_t i, size_t most)
{
    state_name name;
    uint32_t best = 0;
    siblings l = siblings_open(f->s, f->ids[i]);
    while (siblings_next(&l, true, &name)) {
        if (name.n_tokens <= best || name.n_tokens > most) continue;
        qw_state_id id = qw_state_child_id(f->s, f->ids[i], f->tokens + (size_t)i * QW_KV_TILE, name.n_tokens);
        if (state_id_equal(id, name.id) && is_there(f->s, &name)) best = name.n_tokens;
    }
    siblings_close(&l);
    return best;
}

/* The last snapshot that pages lead to. */
static uint32_t find_snapshot(const search *f)
{
    for (uint32_t i = f->n_full + 1; i-- > 0;) {
        size_t depth = (size_t)i * QW_KV_TILE, covered = i < f->n_full ? QW_KV_TILE : f->n_common;
        if (f->n - 1 <= depth || covered == 0) continue;
        uint32_t at = find_snapshot_in(f, i, least(covered, f->n - 1 - depth));
        if (at > 0) return (uint32_t)depth + at;
    }
    return 0;
}

qw_status qw_state_find(qw_state_files *s, qw_state_id parent, const int32_t *tokens, size_t n, qw_state_past *out,
                        qw_err *err)
{
    search f = {.s = s, .tokens = tokens, .n = n};
    QW_ASSERT(n >= 1 && n <= UINT32_MAX);
    *out = (qw_state_past){0};
    QW_TRY(qw_alloc(&f.ids, n / QW_KV_TILE + 1, sizeof *f.ids, "search for a past", err));
    f.ids[0] = parent;
    follow_full_pages(&f);
    size_t depth = (size_t)f.n_full * QW_KV_TILE;
    if (n - 1 > depth) find_last_page(&f, out);
    if (s->recurrent_bytes) out->snapshot_at = out->n_tokens = find_snapshot(&f);
    else out->n_tokens = (uint32_t)least(depth + f.n_common, n - 1);
    out->n_full = f.n_full;
    if (out->n_tokens <= depth) { /* without the last page, and perhaps without full ones */
        out->n_full = (out->n_tokens + QW_KV_TILE - 1) / QW_KV_TILE;
        out->n_last = 0;
    }
    free(f.ids);
    return QW_OK;
}

/* ---- limits --------------------------------------------------------------------------------------- */

typedef struct trim_file {
    state_name name;
    uint64_t bytes;
    struct timespec used;
} trim_file;

typedef struct trim {
    qw_state_files *s;
    int64_t now_s;
    trim_file *files; /* [n] that could go */
    size_t n, cap;
    uint64_t bytes; /* of all that is there */
} trim;

static void trim_remove(trim *t, const char *path, uint64_t bytes)
{
    if (unlink(path) != 0 && errno != ENOENT) return;
    t->bytes -= bytes;
    t->s->n.trimmed++;
    t->s->n.trimmed_bytes += bytes;
}

static qw_status keep_in_mind(trim *t, const state_name *name, uint64_t bytes, struct timespec used, qw_err *err)
{
    if (t->n == TRIM_FILES_MAX) return QW_OK; /* enough to choose from; the rest has its turn another time */
    if (t->n == t->cap) {
        size_t more = t->cap ? t->cap * 2 : 1024;
        QW_TRY(qw_grow(&t->files, t->cap, more, sizeof *t->files, "the list of computed pasts", err));
        t->cap = more;
    }
    t->files[t->n++] = (trim_file){.name = *name, .bytes = bytes, .used = used};
    return QW_OK;
}

/* One name in a folder: what is too old or of no use goes at once. */
static qw_status trim_look(trim *t, const char *folder, const char *text, qw_err *err)
{
    char path[PATH_MAX], right[4];
    struct stat st;
    state_name name;
    if (!state_name_parse(text, &name)) return QW_OK; /* none of ours */
    snprintf(path, sizeof path, "%s/%s/%s", t->s->dir, folder, text);
    if (lstat(path, &st) != 0 || !S_ISREG(st.st_mode)) return QW_OK;
    int64_t age_s = t->now_s - (int64_t)st.st_mtim.tv_sec;
    t->bytes += (uint64_t)st.st_size;
    state_folder(name.parent, right);
    bool useless = name.unfinished ? age_s > LEFT_OVER_S : strcmp(folder, right) != 0;
    if (useless || (t->s->limits.age_s_max > 0 && age_s > t->s->limits.age_s_max)) {
        trim_remove(t, path, (uint64_t)st.st_size);
        return QW_OK;
    }
    if (age_s < -QW_STATE_TOUCH_S) touch_path(path, 0); /* from a clock that was wrong: it would never be too old */
    return name.unfinished ? QW_OK : keep_in_mind(t, &name, (uint64_t)st.st_size, st.st_mtim, err);
}

static qw_status trim_look_at_all(trim *t, qw_err *err)
{
    qw_status status = QW_OK;
    for (unsigned i = 0; i < FOLDERS && status == QW_OK; i++) {
        char path[PATH_MAX], folder[4];
        snprintf(folder, sizeof folder, "%03x", i);
        snprintf(path, sizeof path, "%s/%s", t->s->dir, folder);
        DIR *d = opendir(path);
        for (struct dirent *e; d && status == QW_OK && (e = readdir(d));) status = trim_look(t, folder, e->d_name, err);
        if (d) closedir(d);
    }
    return status;
}

static int by_use(const void *a, const void *b)
{
    const trim_file *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec) return x->used.tv_nsec < y->used.tv_nsec ? -1 : 1;
    return memcmp(&x->name.id, &y->name.id, sizeof x->name.id);
}

static uint64_t excess(uint64_t have, uint64_t most)
{
    return have > most ? have - most : 0;
}

/* Bytes that have to go. */
static uint64_t trim_surplus(const trim *t)
{
    const qw_state_limits *l = &t->s->limits;
    uint64_t over = excess(t->bytes, l->bytes_max - 2 * (l->bytes_max / TRIM_SHARE));
    uint64_t short_of = excess(l->free_min, bytes_free(t->s));
    return over > short_of ? over : short_of;
}

qw_status qw_state_trim(qw_state_files *s, qw_err *err)
{
    trim t = {.s = s, .now_s = qw_wall_s()};
    uint64_t before = s->bytes;
    qw_status status = trim_look_at_all(&t, err);
    if (status == QW_OK) {
        uint64_t most = excess(t.bytes, trim_surplus(&t));
        if (t.n > 1) qsort(t.files, t.n, sizeof *t.files, by_use);
        for (size_t i = 0; i < t.n && t.bytes > most; i++) {
            char path[PATH_MAX];
            trim_remove(&t, state_path(s, &t.files[i].name, path), t.files[i].bytes);
        }
        s->bytes += t.bytes - before; /* what others wrote in the meantime stays counted */
    }
    free(t.files);
    s->bytes_trimmed = s->bytes;
    s->cramped = false;
    s->trimmed_at_us = qw_clock_us();
    return status;
}

bool qw_state_trim_due(const qw_state_files *s)
{
    int64_t age_us = qw_clock_us() - s->trimmed_at_us;
    if (s->trimmed_at_us == 0 || age_us > TRIM_EVERY_US || (s->cramped && age_us > TRIM_CRAMPED_US)) return true;
    uint64_t bytes = s->bytes, trimmed = s->bytes_trimmed;
    return bytes > trimmed && bytes - trimmed >= s->limits.bytes_max / TRIM_SHARE;
}
