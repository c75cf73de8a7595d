/* weights_file.c: the side file of packed weights.
 *
 * Layout: a header of one system page, SHA-256 of every 1 MiB block of the region, then the region on a page
 * border. Opening checks everything but the blocks' sums, which `qw verify` compares: a start must not read
 * the whole file. The writer fsyncs before it renames, so a name that exists is a whole file. Locks and the bound on
 * all side files together are base/side_files.h: who maps a file holds it in use, who writes one has its temporary
 * file locked, and what a killed process left is not locked and goes when the next file is made.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/side_files.h"
#include "model/weights_private.h"

enum {
    LAYOUT_VERSION = 2, /* raise with every change of qw_pack_group's layout or of this file's */
    PAGE = 4096,
    BLOCK_BYTES = 1 << 20,
    HASH_BYTES = 32,
    SOURCE_PATH_MAX = 1024
};

#define MAGIC "QWPACK\n"

typedef struct file_header {
    char magic[8]; /* MAGIC with its NUL */
    uint32_t layout_version, header_bytes;
    uint64_t file_bytes, region_offset, region_bytes, n_blocks;
    char identity[64];             /* of the model file: 64 hex digits */
    /* qw_map_identity of the model's (first) file, and where it lay when this was written; "" when not known. They tell
     * only whether the model was replaced since. */
    char source[96], source_path[SOURCE_PATH_MAX];
    uint8_t table_hash[HASH_BYTES]; /* of every entry's name, form, shape and offset */
    uint8_t sums_hash[HASH_BYTES];  /* of the block sums that follow */
    uint8_t header_hash[HASH_BYTES]; /* of all fields above */
} file_header;
_Static_assert(sizeof(file_header) <= PAGE, "the header has one page");

static qw_status sha256(const void *data, size_t n, uint8_t out[HASH_BYTES], qw_err *err)
{
    if (EVP_Digest(data, n, out, NULL, EVP_sha256(), NULL) == 1) return QW_OK;
    return qw_fail(err, QW_E_INTERNAL, "SHA-256 is not available from the crypto library");
}

static qw_status hash_table(const pack_table *t, uint8_t out[HASH_BYTES], qw_err *err)
{
    qw_buf text;
    qw_status status;
    qw_buf_init(&text, 64 << 20, "weight table");
    for (size_t i = 0; i < t->n; i++) {
        const pack_entry *e = &t->entries[i];
        QW_TRY_GOTO(qw_buf_printf(&text, err, "%s %s %zu %zu %llu\n", e->weight->name, qw_pack_name(e->pack),
                                  e->weight->rows, e->weight->k, (unsigned long long)e->offset));
    }
    status = sha256(text.data, text.n, out, err);
fail:
    qw_buf_free(&text);
    return status;
}

/* The header that a right file has, except for its source and the sums of its blocks. */
static qw_status expected_header(const pack_table *t, const qw_gguf *file, file_header *h, qw_err *err)
{
    char identity[65];
    memset(h, 0, sizeof *h);
    memcpy(h->magic, MAGIC, sizeof h->magic);
    h->layout_version = LAYOUT_VERSION;
    h->header_bytes = sizeof *h;
    h->region_bytes = t->bytes;
    h->n_blocks = (t->bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    h->region_offset = PAGE + (h->n_blocks * HASH_BYTES + PAGE - 1) / PAGE * PAGE;
    h->file_bytes = h->region_offset + t->bytes;
    qw_gguf_identity(file, identity);
    memcpy(h->identity, identity, sizeof h->identity);
    return hash_table(t, h->table_hash, err);
}

static qw_status seal_header(file_header *h, const uint8_t *sums, qw_err *err)
{
    QW_TRY(sha256(sums, h->n_blocks * HASH_BYTES, h->sums_hash, err));
    return sha256(h, offsetof(file_header, header_hash), h->header_hash, err);
}

void qw_weights_cache_path(const qw_gguf *file, const char *cache_dir, char *out, size_t cap)
{
    char identity[65];
    qw_gguf_identity(file, identity);
    snprintf(out, cap, "%s/%s" QW_SIDE_SUFFIX, cache_dir, identity);
}

qw_status qw_pack_file_open(const char *path, const pack_table *t, const qw_gguf *file, qw_map **map,
                            const uint8_t **region, qw_err *err)
{
    file_header want;
    qw_status status;
    *region = NULL;
    QW_TRY(qw_map_open(path, map, err));
    qw_map_hold(*map); /* removed between these two lines: what we have mapped is whole all the same */
    QW_TRY_GOTO(expected_header(t, file, &want, err));
    const uint8_t *data = qw_map_data(*map);
    if (qw_map_bytes(*map) != want.file_bytes) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: has %zu bytes, want %llu", path, qw_map_bytes(*map),
                         (unsigned long long)want.file_bytes);
        goto fail;
    }
    memcpy(want.source, data + offsetof(file_header, source), sizeof want.source + sizeof want.source_path);
    QW_TRY_GOTO(seal_header(&want, data + PAGE, err));
    if (memcmp(data, &want, sizeof want) != 0) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: was made from another model file or by another version", path);
        goto fail;
    }
    *region = data + want.region_offset;
    qw_side_touch(path);
    return QW_OK;
fail:
    qw_map_close(*map);
    *map = NULL;
    return status;
}

static size_t block_bytes(uint64_t region_bytes, size_t block)
{
    uint64_t left = region_bytes - (uint64_t)block * BLOCK_BYTES;
    return left < BLOCK_BYTES ? (size_t)left : BLOCK_BYTES;
}

/* ---- what other side files are worth ----------------------------------------------------------- */

/* The model file is not where it was, or another one is there. */
static bool was_replaced(const file_header *h)
{
    char now[sizeof h->source];
    qw_map *map;
    qw_status status = qw_map_open(h->source_path, &map, NULL);
    if (status != QW_OK) return status == QW_E_NOT_FOUND;
    qw_map_identity(map, now);
    qw_map_close(map);
    return strcmp(now, h->source) != 0;
}

/* True when no start can use the side file: not ours, of an older version, or its model file was replaced. ctx: path of
 * the one that is being made. */
static bool is_useless(void *ctx, const char *path)
{
    file_header h = {0};
    if (strcmp(path, ctx) == 0) return true; /* it was just refused */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return false;
    ssize_t got = pread(fd, &h, sizeof h, 0);
    close(fd);
    if (got < 0) return false;
    if (got != sizeof h || memcmp(h.magic, MAGIC, sizeof h.magic) != 0) return true;
    if (h.layout_version < LAYOUT_VERSION) return true;
    h.source[sizeof h.source - 1] = h.source_path[sizeof h.source_path - 1] = '\0';
    return h.layout_version == LAYOUT_VERSION && h.source_path[0] != '\0' && was_replaced(&h);
}

/* ---- write ------------------------------------------------------------------------------------- */

typedef struct piece {
    int fd;
    uint64_t file_offset;  /* of `data` */
    const uint8_t *data;   /* [bytes] of the region */
    uint64_t bytes;
    uint8_t *sums;         /* of its blocks */
    atomic_int failed;     /* errno of a write that failed, or 0 */
} piece;

static int write_all(int fd, const uint8_t *data, size_t n, uint64_t offset)
{
    while (n > 0) {
        ssize_t done = pwrite(fd, data, n, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : EIO;
        data += done;
        n -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

/* Items are the blocks of a piece. Each is written by the thread that has just read it for its sum. */
static void write_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    piece *p = ctx;
    for (int64_t i = begin; i < end; i++) {
        uint64_t at = (uint64_t)i * BLOCK_BYTES;
        size_t n = block_bytes(p->bytes, (size_t)i);
        uint8_t *sum = p->sums + i * HASH_BYTES;
        /* A digest that fails leaves zeros; sealing the header fails then too. */
        if (sha256(p->data + at, n, sum, NULL) != QW_OK) memset(sum, 0, HASH_BYTES);
        int failed = write_all(p->fd, p->data + at, n, p->file_offset + at);
        if (failed) atomic_store(&p->failed, failed);
    }
}

/* Packs and writes the region. It passes through a buffer and not through a mapping of the file: what was written is
 * the system's to keep or to put on the disk, and no part of our memory. */
static qw_status write_region(int fd, const char *path, const file_header *h, const pack_table *t, qw_pool *pool,
                              uint8_t *sums, qw_err *err)
{
    uint8_t *buffer = NULL;
    size_t slack = t->group_bytes_max; /* the last group of a piece reaches into the next one */
    uint64_t all = t->bytes < QW_PACK_PIECE_BYTES ? t->bytes : QW_PACK_PIECE_BYTES;
    QW_TRY(qw_alloc_aligned(&buffer, all + slack, "buffer of packed weights", err));
    piece p = {.fd = fd, .data = buffer};
    for (uint64_t from = 0; from < t->bytes && !p.failed; from += p.bytes) {
        p.bytes = t->bytes - from < all ? t->bytes - from : all;
        p.file_offset = h->region_offset + from;
        p.sums = sums + from / BLOCK_BYTES * HASH_BYTES;
        qw_pack_table_fill(t, from, from + p.bytes, buffer, pool);
        qw_pool_run(pool, (int64_t)((p.bytes + BLOCK_BYTES - 1) / BLOCK_BYTES), 1, write_blocks, &p);
        memmove(buffer, buffer + p.bytes, slack);
        /* The disk works while the next piece is packed, and the sync at the end has little left to wait for. */
        sync_file_range(fd, (off_t)p.file_offset, (off_t)p.bytes, SYNC_FILE_RANGE_WRITE);
    }
    qw_free_aligned(buffer, all + slack);
    if (!p.failed) return QW_OK;
    errno = p.failed;
    return qw_fail_errno(err, "%s: cannot write", path);
}

/* Fills a temporary file whose space is reserved. */
static qw_status write_contents(int fd, const char *path, file_header *h, const pack_table *t, const qw_gguf *file,
                                qw_pool *pool, qw_err *err)
{
    uint8_t *head = NULL;
    qw_status status;
    QW_TRY(qw_alloc(&head, h->region_offset, 1, "header of packed weights", err));
    QW_TRY_GOTO(write_region(fd, path, h, t, pool, head + PAGE, err));
    QW_TRY_GOTO(seal_header(h, head + PAGE, err));
    if (qw_gguf_map_failed(file)) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: the model file changed while it was read", qw_gguf_path(file));
        goto fail;
    }
    memcpy(head, h, sizeof *h);
    int failed = write_all(fd, head, h->region_offset, 0);
    if (failed || fsync(fd) != 0) {
        if (failed) errno = failed;
        status = qw_fail_errno(err, "%s: cannot write", path);
    }
fail:
    free(head);
    return status;
}

/* A file that is being made: under its temporary name, with our lock on it. */
typedef struct new_file {
    char dir[PATH_MAX], temp[PATH_MAX + 8];
    int fd;
} new_file;

/* Under the folder's lock, so that two processes do not take the same room. */
static qw_status reserve(new_file *f, const char *path, uint64_t bytes, qw_err *err)
{
    char own[PATH_MAX];
    qw_side_limits limits;
    snprintf(own, sizeof own, "%s", path);
    QW_TRY(qw_side_limits_get(f->dir, &limits, err));
    QW_TRY(qw_side_make_room(f->dir, &limits, bytes, is_useless, own, err));
    snprintf(f->temp, sizeof f->temp, "%s.XXXXXX", path);
    f->fd = mkostemp(f->temp, O_CLOEXEC);
    if (f->fd < 0) return qw_fail_errno(err, "%s: cannot create", f->temp);
    int failed = flock(f->fd, LOCK_EX) != 0 ? errno : posix_fallocate(f->fd, 0, (off_t)bytes);
    if (!failed) return QW_OK;
    errno = failed;
    return qw_fail_errno(err, "%s: cannot reserve %llu bytes", f->temp, (unsigned long long)bytes);
}

/* The new file gets its name and is opened before anybody could take it for unused. */
static qw_status publish(new_file *f, const char *path, const pack_table *t, const qw_gguf *file, qw_map **map,
                         const uint8_t **region, qw_err *err)
{
    if (rename(f->temp, path) != 0) return qw_fail_errno(err, "%s: cannot rename", f->temp);
    close(f->fd);
    f->fd = -1;
    QW_TRY(qw_sync_dir(f->dir, err));
    return qw_pack_file_open(path, t, file, map, region, err);
}

/* Where the model lies now, so that a later start can tell that it was replaced. */
static void set_source(file_header *h, const qw_gguf *file)
{
    qw_map *map;
    char *real = realpath(qw_gguf_first_file(file), NULL);
    if (real && strlen(real) < sizeof h->source_path && qw_map_open(real, &map, NULL) == QW_OK) {
        memcpy(h->source_path, real, strlen(real) + 1);
        qw_map_identity(map, h->source);
        qw_map_close(map);
    }
    free(real);
}

qw_status qw_pack_file_make(const char *path, const pack_table *t, const qw_gguf *file, qw_pool *pool, qw_map **map,
                            const uint8_t **region, qw_err *err)
{
    new_file f = {.fd = -1};
    file_header h;
    qw_side_limits limits;
    qw_status status;
    int lock = -1;
    const char *slash = strrchr(path, '/');
    *map = NULL;
    *region = NULL;
    snprintf(f.dir, sizeof f.dir, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    QW_TRY(qw_side_limits_get(f.dir, &limits, err));
    if (limits.strict && limits.total_max == 0) return QW_OK;
    QW_TRY(qw_make_dirs(f.dir, err));
    QW_TRY(expected_header(t, file, &h, err));
    set_source(&h, file);
    QW_TRY(qw_side_lock(f.dir, &lock, err));
    /* Another process may have made it while we waited. */
    status = qw_pack_file_open(path, t, file, map, region, NULL);
    if (status == QW_OK) goto fail;
    QW_TRY_GOTO(reserve(&f, path, h.file_bytes, err));
    qw_side_unlock(lock);
    lock = -1;
    QW_TRY_GOTO(write_contents(f.fd, f.temp, &h, t, file, pool, err));
    QW_TRY_GOTO(qw_side_lock(f.dir, &lock, err));
    QW_TRY_GOTO(publish(&f, path, t, file, map, region, err));
fail:
    if (f.fd >= 0) {
        unlink(f.temp);
        close(f.fd);
    }
    qw_side_unlock(lock);
    return status;
}

/* Numbers of the file are used only after they agree with each other, with its size and with their sums. */
static qw_status check_header(const qw_map *map, file_header *h, bool *whole, qw_err *err)
{
    const uint8_t *data = qw_map_data(map);
    uint8_t sum[HASH_BYTES];
    *whole = qw_map_bytes(map) >= PAGE;
    if (!*whole) return QW_OK;
    memcpy(h, data, sizeof *h);
    *whole = h->region_bytes <= qw_map_bytes(map) && h->n_blocks == (h->region_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES &&
             h->region_offset == PAGE + (h->n_blocks * HASH_BYTES + PAGE - 1) / PAGE * PAGE &&
             h->region_offset + h->region_bytes == qw_map_bytes(map);
    if (!*whole) return QW_OK;
    QW_TRY(sha256(h, offsetof(file_header, header_hash), sum, err));
    *whole = memcmp(sum, h->header_hash, HASH_BYTES) == 0;
    QW_TRY(sha256(data + PAGE, h->n_blocks * HASH_BYTES, sum, err));
    *whole = *whole && memcmp(sum, h->sums_hash, HASH_BYTES) == 0;
    return QW_OK;
}

qw_status qw_weights_verify(const qw_gguf *file, const char *cache_dir, qw_err *err)
{
    char path[4096];
    qw_map *map;
    qw_status status;
    uint8_t sum[HASH_BYTES];
    file_header h;
    bool whole;
    qw_weights_cache_path(file, cache_dir, path, sizeof path);
    status = qw_map_open(path, &map, err);
    if (status == QW_E_NOT_FOUND) return QW_OK;
    if (status != QW_OK) return status;
    const uint8_t *data = qw_map_data(map);
    QW_TRY_GOTO(check_header(map, &h, &whole, err));
    for (size_t i = 0; whole && i < h.n_blocks; i++) {
        QW_TRY_GOTO(sha256(data + h.region_offset + i * BLOCK_BYTES, block_bytes(h.region_bytes, i), sum, err));
        whole = memcmp(sum, data + PAGE + i * HASH_BYTES, HASH_BYTES) == 0;
    }
    if (!whole) status = qw_fail(err, QW_E_CORRUPT, "%s: packed weights are damaged; remove this file", path);
fail:
    qw_map_close(map);
    return status;
}
